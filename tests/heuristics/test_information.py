"""EPIG against the explicit double loop, Baal's golden numbers and the inequalities of information."""

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


def test_equals_the_double_loop_and_keeps_within_its_bounds():
    for seed, scale in enumerate([0.01, 1.0, 10.0, 100.0] * 3):
        logits, targets = make_case(2 * seed, scale, 0.4 * (seed > 5))
        scores = np.asarray(heuristics.epig(logits, targets))
        close(scores, expected(logits, targets))
        assert (scores >= -1e-6).all()
        assert (scores <= oracle.bald(oracle.softmax(logits)) + 1e-6).all()
        assert (scores <= oracle.entropy(oracle.softmax(targets)).mean() + 1e-6).all()


def test_baal_golden_numbers():
    logits, targets = (baal.to_package_layout(np.log(x)) for x in (baal.PROBS, baal.TARGETS))
    np.testing.assert_allclose(heuristics.epig(logits, targets), baal.GOLDEN["EPIG(P,T)"]["scores"], atol=1e-5)
    close(heuristics.epig(logits, targets), expected(logits, targets), rtol=1e-6)


def test_half_precision_loses_nothing_after_the_inputs():
    logits, targets = (x.astype(jnp.bfloat16) for x in make_case(1))
    scores = heuristics.epig(logits, targets)
    assert (scores.shape, scores.dtype) == ((5,), jnp.float32)
    close(scores, expected(logits, targets))


def test_label_pairs_are_worked_through_in_blocks(monkeypatch):
    # Blocks of 5 of the 12 labels of the targets, the last of them padded.
    monkeypatch.setattr(_information, "_BLOCK", 5 * 15)
    case = make_case(16, 3.0, 0.2)
    close(jax.jit(heuristics.epig.__wrapped__)(*case), expected(*case))


def test_nan_of_a_candidate_stays_there_and_nan_of_a_target_reaches_all():
    logits, targets = make_case(12, 1.0)
    broken = logits.copy()
    broken[1, 2, 0] = np.nan
    scores = np.asarray(heuristics.epig(broken, targets))
    np.testing.assert_array_equal(np.isnan(scores), np.arange(5) == 2)
    np.testing.assert_array_equal(np.delete(scores, 2), np.delete(heuristics.epig(logits, targets), 2))
    targets[1, 2, 0] = np.nan
    assert np.isnan(heuristics.epig(logits, targets)).all()


def test_gradients_equal_finite_differences_and_joint_probabilities_may_underflow():
    gradients = jax.jit(jax.grad(lambda logits, targets: jnp.sum(heuristics.epig(logits, targets)), argnums=(0, 1)))
    for scale, impossible in ((1.0, 0.0), (10.0, 0.0), (1.0, 0.4), (0.0, 0.0)):
        logits, targets = make_case(14, scale, impossible)
        one, other = gradients(logits, targets)
        wide = logits.astype(np.float64), targets.astype(np.float64)
        difference = oracle.central_difference(lambda x, wide=wide: expected(x, wide[1]), wide[0])
        np.testing.assert_allclose(one, difference, rtol=1e-4, atol=1e-5)
        difference = oracle.central_difference(lambda x, wide=wide: expected(wide[0], x), wide[1])
        np.testing.assert_allclose(other, difference, rtol=1e-4, atol=1e-5)
    for gap in (30.0, 43.25, 43.5, 43.75, 60.0, 100.0):
        # Both classes are rare in one draw and impossible in the other: p p' leaves float32 well before p does.
        logits = np.zeros(SHAPE, np.float32)
        logits[0, :, 1], logits[1:, :, 1] = -gap, -np.inf
        targets = logits[:, [0, 1, 2, 3, 4, 0], :2]
        close(heuristics.epig(logits, targets), expected(logits, targets))
        assert all(np.isfinite(gradient).all() for gradient in gradients(logits, targets))


def test_exported_compiled_and_vmaps_over_seeds():
    assert hasattr(heuristics.epig, "lower")
    cases = [make_case(seed) for seed in range(3)]
    together = jax.jit(jax.vmap(heuristics.epig))(*(np.stack(part) for part in zip(*cases, strict=True)))
    close(together, np.stack([heuristics.epig(*case) for case in cases]), rtol=1e-6)


def test_shapes_that_do_not_fit_are_errors():
    for shape, target_shape, message in (
        ((5, 3), (4, 6, 3), r"^logits has shape \(5, 3\)"),
        ((4, 5, 3), (6, 3), r"^target_logits has shape \(6, 3\)"),
        ((4, 5, 2, 3), (4, 6, 3), r"^logits .* flatten the middle axes"),
        ((4, 5, 3), (4, 6, 2, 3), r"^target_logits .* flatten the middle axes"),
        ((4, 5, 3), (3, 6, 3), "4 draws of logits and 3 of target_logits"),
    ):
        with pytest.raises(ValueError, match=message):
            heuristics.epig(np.zeros(shape), np.zeros(target_shape))


def test_what_is_not_one_array_is_an_error():
    with pytest.raises(ValueError, match=r"heuristics\.combine"):
        heuristics.epig([np.zeros((4, 5, 3))], np.zeros((4, 6, 3)))
    with pytest.raises(ValueError, match="target_logits is None: pass the inputs that matter as target_inputs"):
        heuristics.epig(np.zeros((4, 5, 3)), None)
