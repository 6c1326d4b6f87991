"""What surrounds the heuristics: conversions into logits, maps reduced to scores, combinations; and EPIG."""

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

close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)


def test_a_sigmoid_model_scores_like_two_classes_and_may_be_sure():
    # Case 14, where Baal's entropy is 0.
    z = make_logits((4, 5, 1), 30, 2.0)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    close(np.exp(heuristics.binary_logits(z)), np.concatenate([1 - p, p], axis=-1))
    z = np.array([-np.inf, -200.0, 200.0, np.inf], np.float16)[:, None]
    close(heuristics.binary_logits(z), np.array([[0, -np.inf], [0, -200], [-200, 0], [-np.inf, 0]]))
    gradient = jax.jit(jax.grad(lambda z: jnp.sum(heuristics.entropy(heuristics.binary_logits(z)[None]))))
    close(gradient(np.array([[-200.0], [0.0], [200.0]])), 0)
    # Baal's layout moves axes and nothing else.
    for middle, dtype in (((), np.float32), ((6, 7), np.float16)):
        theirs = np.random.default_rng(0).normal(size=(2, 3, *middle, 4)).astype(dtype)  # [N, C, …, S]
        ours = heuristics.from_baal_layout(theirs)
        assert ours.dtype == dtype
        np.testing.assert_array_equal(ours, baal.to_package_layout(theirs))


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_reductions_leave_masked_positions_out(reduction):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 3, 4)).astype(np.float32)
    where = rng.random((6, 3, 4)) < 0.5
    where[2] = False
    scores[~where] = rng.choice([np.nan, np.inf, -np.inf, 1e30], (~where).sum())
    numpy = getattr(np, reduction)
    truth = [
        numpy(row[mask].astype(np.float64)) if mask.any() else -np.inf for row, mask in zip(scores, where, strict=True)
    ]
    close(heuristics.reduce_spatial(scores, reduction, where=where), truth)
    # Case 7: reducing nothing is the identity.
    scores = np.array([3.0, -1.0, np.nan], np.float32)
    np.testing.assert_array_equal(heuristics.reduce_spatial(scores, reduction), scores)
    masked = heuristics.reduce_spatial(scores, reduction, where=np.array([True, False, True]))
    np.testing.assert_array_equal(masked, [3.0, -np.inf, np.nan])


def test_reductions_have_no_gradient_where_masked_widen_and_broadcast_the_mask():
    scores = np.array([[1.0, 2.0, np.nan], [3.0, np.inf, 1.0]], np.float32)
    where = np.array([[True, True, False], [True, False, False]])
    for reduction, truth in (("mean", [[0.5, 0.5, 0], [1, 0, 0]]), ("max", [[0, 1, 0], [1, 0, 0]])):
        reduced = functools.partial(heuristics.reduce_spatial, reduction=reduction, where=where)
        np.testing.assert_array_equal(jax.jit(jax.grad(lambda x, f=reduced: jnp.sum(f(x))))(scores), truth)
    mask = np.array([True, False, True])  # [W]
    np.testing.assert_array_equal(
        heuristics.reduce_spatial(np.arange(12).reshape(2, 2, 3), "sum", where=mask), [10, 34]
    )
    half = np.full((1, 300, 300), 1.0, np.float16)
    assert heuristics.reduce_spatial(half, "sum").tolist() == [90_000.0]  # beyond float16


def test_combines_several_outputs_or_one_array():
    a, b = make_logits((4, 5, 3), 40, 2.0), make_logits((4, 5, 3), 41, 2.0)
    (bald, other), margin = (oracle.of_logits("bald", x) for x in (a, b)), oracle.of_logits("margin", b)

    def combined(weights=(2, 1), outputs=None):
        return heuristics.combine([heuristics.bald, heuristics.margin], weights, outputs=outputs)

    for outputs, given in (
        (None, [a, b]),
        (None, (a, b)),
        (None, {"first": a, "second": b}),
        ((1, 0), (b, a)),
        (("first", "second"), {"another": a[:, :1], "second": b, "first": a}),
    ):
        close(combined(outputs=outputs)(given), (2 * bald + margin) / 3)
    close(combined(None, ["y", "y"])({"x": a, "y": b}), (other + margin) / 2)  # read twice, of equal weights
    close(combined((10, 5))([a, b]), (2 * bald + margin) / 3)  # case 19: the scale of the weights means nothing
    nested = heuristics.combine([combined(None), heuristics.mean_std], [2, 1])
    close(jax.vmap(nested)(b[None])[0], (other + margin + oracle.of_logits("mean_std", b)) / 3)


# EPIG, all of which is case 18

near = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
SHAPE, TARGETS = (4, 5, 3), (4, 6, 2)  # candidates and targets need not have the same classes


def make_case(seed, scale=3.0, impossible=0.0):
    return make_logits(SHAPE, seed, scale, impossible), make_logits(TARGETS, seed + 1, scale, impossible)


def expected(logits, targets):
    return oracle.epig(oracle.softmax(logits), oracle.softmax(targets))


def test_is_the_information_that_two_labels_share(monkeypatch):
    cases = [make_case(2 * i, scale, 0.4 * (i > 5)) for i, scale in enumerate([0.01, 1.0, 10.0, 100.0] * 3)]
    for case in cases:
        near(heuristics.epig(*case), expected(*case))
    half = [part.astype(jnp.bfloat16) for part in cases[1]]
    assert heuristics.epig(*half).dtype == jnp.float32
    near(heuristics.epig(*half), expected(*half))
    golden = [baal.to_package_layout(np.log(x)) for x in (baal.PROBS, baal.TARGETS)]
    np.testing.assert_allclose(heuristics.epig(*golden), baal.GOLDEN["EPIG(P,T)"]["scores"], atol=1e-5)
    # Blocks of 5 of the 12 labels of the targets, the last of them padded; seeds are vectorised.
    assert hasattr(heuristics.epig, "lower")
    monkeypatch.setattr(_information, "_BLOCK", 5 * 15)
    together = jax.jit(jax.vmap(heuristics.epig.__wrapped__))(*(np.stack(part) for part in zip(*cases, strict=True)))
    near(together, np.stack([expected(*case) for case in cases]))


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
        near(heuristics.epig(logits, targets), expected(logits, targets))
        assert all(np.isfinite(gradient).all() for gradient in gradients(logits, targets))


def test_what_does_not_fit_is_an_error():
    two, zeros = [heuristics.bald] * 2, np.zeros
    for call, message in (
        *((lambda s=s: heuristics.binary_logits(zeros(s)), r"logit\[\.\.\., None\]") for s in ((), (5, 2), (5, 0))),
        (lambda: heuristics.from_baal_layout(zeros((5, 3))), "three axes"),
        # Case 15.
        (lambda: heuristics.reduce_spatial(zeros((5, 2)), "none"), "choose one of mean, sum, max, min"),
        (lambda: heuristics.reduce_spatial(zeros((5, 2)), None), "choose one of mean, sum, max, min"),
        (lambda: heuristics.combine(two, [1.0]), "2 heuristics"),
        (lambda: heuristics.combine(two, [1.0, 1.0, 1.0]), "2 heuristics"),
        (lambda: heuristics.combine(two, [1.0, -1.0]), "weights=-1.0"),
        (lambda: heuristics.combine(two, [1.0, float("nan")]), "weights=nan"),
        (lambda: heuristics.combine(two, [0.0, 0.0]), "non-negative weight"),
        (lambda: heuristics.combine([]), "0 heuristics"),
        (lambda: heuristics.combine(two, outputs=["a"]), "outputs="),
        (lambda: heuristics.combine(two)([zeros(SHAPE)] * 3), "3 outputs for 2 heuristics"),
        (lambda: heuristics.epig(zeros((5, 3)), zeros(TARGETS)), r"^logits has shape \(5, 3\)"),
        (lambda: heuristics.epig(zeros(SHAPE), zeros((6, 3))), r"^target_logits has shape \(6, 3\)"),
        (lambda: heuristics.epig(zeros((4, 5, 2, 3)), zeros(TARGETS)), r"^logits .* flatten the middle axes"),
        (lambda: heuristics.epig(zeros(SHAPE), zeros((4, 6, 2, 3))), r"^target_logits .* flatten the middle axes"),
        (lambda: heuristics.epig(zeros(SHAPE), zeros((3, 6, 3))), "4 draws of logits and 3 of target_logits"),
        (lambda: heuristics.epig([zeros(SHAPE)], zeros(TARGETS)), r"heuristics\.combine"),
        (lambda: heuristics.epig(zeros(SHAPE), None), "target_logits is None: pass the inputs that matter as target"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
