"""EPIG against its definition, pair for pair, and Baal's golden numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import heuristics
from baal_jax.heuristics import _information
from tests.fixtures import make_logits
from tests.oracles import baal
from tests.oracles import heuristics as oracle

# All is case 18.
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
SHAPE, TARGETS = (4, 5, 3), (4, 6, 2)  # candidates and targets need not have the same classes


def make_case(seed, scale=3.0, impossible=0.0):
    return make_logits(SHAPE, seed, scale, impossible), make_logits(TARGETS, seed + 1, scale, impossible)


def expected(logits, targets):
    return oracle.epig(oracle.softmax(logits), oracle.softmax(targets))


def test_is_the_information_that_two_labels_share(monkeypatch):
    cases = [make_case(2 * i, scale, 0.4 * (i > 5)) for i, scale in enumerate([0.01, 1.0, 10.0, 100.0] * 3)]
    for case in cases:
        close(heuristics.epig(*case), expected(*case))
    half = [part.astype(jnp.bfloat16) for part in cases[1]]
    assert heuristics.epig(*half).dtype == jnp.float32
    close(heuristics.epig(*half), expected(*half))
    golden = [baal.to_package_layout(np.log(x)) for x in (baal.PROBS, baal.TARGETS)]
    np.testing.assert_allclose(heuristics.epig(*golden), baal.GOLDEN["EPIG(P,T)"]["scores"], atol=1e-5)
    # Blocks of 5 of the 12 labels of the targets, the last of them padded; seeds are vectorised.
    assert hasattr(heuristics.epig, "lower")
    monkeypatch.setattr(_information, "_BLOCK", 5 * 15)
    together = jax.jit(jax.vmap(heuristics.epig.__wrapped__))(*(np.stack(part) for part in zip(*cases, strict=True)))
    close(together, np.stack([expected(*case) for case in cases]))


def test_nan_of_a_candidate_stays_there_and_nan_of_a_target_reaches_all():
    logits, targets = make_case(12, 1.0)
    broken = logits.copy()
    broken[1, 2, 0] = np.nan
    scores = np.asarray(heuristics.epig(broken, targets))
    assert np.isnan(scores[2])
    np.testing.assert_array_equal(np.delete(scores, 2), np.delete(heuristics.epig(logits, targets), 2))
    targets[1, 2, 0] = np.nan
    assert np.isnan(heuristics.epig(logits, targets)).all()


def test_gradients_equal_finite_differences_and_joint_probabilities_may_underflow():
    gradients = jax.jit(jax.grad(lambda logits, targets: jnp.sum(heuristics.epig(logits, targets)), argnums=(0, 1)))
    for scale, impossible in ((1.0, 0.0), (10.0, 0.0), (1.0, 0.4), (0.0, 0.0)):
        case = make_case(14, scale, impossible)
        wide = [part.astype(np.float64) for part in case]
        truth = (
            oracle.central_difference(lambda x, wide=wide: expected(x, wide[1]), wide[0]),
            oracle.central_difference(lambda x, wide=wide: expected(wide[0], x), wide[1]),
        )
        for found, difference in zip(gradients(*case), truth, strict=True):
            np.testing.assert_allclose(found, difference, rtol=1e-4, atol=1e-5)
    for gap in (30.0, 43.25, 43.5, 43.75, 60.0, 100.0):
        # Both classes are rare in one draw and impossible in the other: p p' leaves float32 well before p does.
        logits = np.zeros(SHAPE, np.float32)
        logits[0, :, 1], logits[1:, :, 1] = -gap, -np.inf
        targets = logits[:, [0, 1, 2, 3, 4, 0], :2]
        close(heuristics.epig(logits, targets), expected(logits, targets))
        assert all(np.isfinite(gradient).all() for gradient in gradients(logits, targets))


def test_what_does_not_fit_is_an_error():
    zeros = np.zeros
    for logits, targets, message in (
        (zeros((5, 3)), zeros((4, 6, 3)), r"^logits has shape \(5, 3\)"),
        (zeros((4, 5, 3)), zeros((6, 3)), r"^target_logits has shape \(6, 3\)"),
        (zeros((4, 5, 2, 3)), zeros((4, 6, 3)), r"^logits .* flatten the middle axes"),
        (zeros((4, 5, 3)), zeros((4, 6, 2, 3)), r"^target_logits .* flatten the middle axes"),
        (zeros((4, 5, 3)), zeros((3, 6, 3)), "4 draws of logits and 3 of target_logits"),
        ([zeros((4, 5, 3))], zeros((4, 6, 3)), r"heuristics\.combine"),
        (zeros((4, 5, 3)), None, "target_logits is None: pass the inputs that matter as target_inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            heuristics.epig(logits, targets)
