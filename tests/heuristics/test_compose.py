"""What surrounds the heuristics: conversions into logits, maps reduced to scores, combinations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import heuristics
from tests.oracles import baal
from tests.oracles import heuristics as oracle
from tests.contracts.test_heuristics import PROBS, close, expected, make_logits

# binary_logits


def test_a_sigmoid_model_scores_like_two_classes():
    # Case 14, where Baal's entropy is 0.
    z = make_logits((4, 5, 1), 30, 2.0)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    two = heuristics.binary_logits(z)
    close(jnp.exp(two), np.concatenate([1 - p, p], axis=-1))
    for name in ("bald", "entropy", "least_confidence"):
        scores = np.asarray(heuristics.REGISTRY[name](two))
        close(scores, getattr(oracle, name)(np.concatenate([1 - p, p], axis=-1)))
        assert (scores > 0).all()


def test_labels_of_a_multi_label_model_are_a_middle_axis():
    z = make_logits((4, 5, 6), 31, 2.0)
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    scores = heuristics.reduce_spatial(heuristics.bald(heuristics.binary_logits(z[..., None])), "sum")
    close(scores, oracle.bald(np.stack([1 - p, p], axis=-1)).sum(axis=-1))


def test_a_sigmoid_model_may_be_sure():
    z = jnp.array([-np.inf, -200.0, 200.0, np.inf], jnp.float16)[:, None]
    expected_logits = np.array([[0, -np.inf], [0, -200], [-200, 0], [-np.inf, 0]])
    close(heuristics.binary_logits(z), expected_logits)
    gradient = jax.grad(lambda z: jnp.sum(heuristics.entropy(heuristics.binary_logits(z)[None])))
    close(gradient(jnp.array([[-200.0], [0.0], [200.0]])), 0)


@pytest.mark.parametrize("shape", [(), (4, 5, 2), (4, 5, 0)])
def test_binary_logits_need_one_logit(shape):
    with pytest.raises(ValueError, match=r"logit\[\.\.\., None\]"):
        heuristics.binary_logits(jnp.zeros(shape))


# from_baal_layout


@pytest.mark.parametrize("middle", [(), (6,), (6, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_baal_layout_moves_axes_and_nothing_else(middle, dtype):
    theirs = np.random.default_rng(0).normal(size=(2, 3, *middle, 4)).astype(dtype)  # [N, C, …, S]
    ours = heuristics.from_baal_layout(theirs)
    assert (ours.shape, ours.dtype) == ((4, 2, *middle, 3), dtype)
    for s, n, c in np.ndindex(4, 2, 3):
        np.testing.assert_array_equal(ours[s, n, ..., c], theirs[n, c, ..., s])


def test_baal_layout_needs_draws():
    with pytest.raises(ValueError, match="three axes"):
        heuristics.from_baal_layout(jnp.zeros((5, 3)))


# reduce_spatial


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_reductions_leave_masked_positions_out(reduction):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(6, 3, 4)).astype(np.float32)
    where = rng.random((6, 3, 4)) < 0.5
    where[2] = False
    scores[~where] = rng.choice([np.nan, np.inf, -np.inf, 1e30], (~where).sum())
    numpy = getattr(np, reduction)
    truth = [numpy(row[mask].astype(np.float64)) for row, mask in zip(scores, where, strict=True) if mask.any()]
    reduced = heuristics.reduce_spatial(scores, reduction, where=where)
    close(reduced, np.insert(np.array(truth), 2, -np.inf))


@pytest.mark.parametrize("reduction", ["mean", "max"])
def test_masked_positions_have_no_gradient(reduction):
    scores = jnp.array([[1.0, 2.0, jnp.nan], [3.0, jnp.inf, 1.0]])
    where = np.array([[True, True, False], [True, False, False]])
    gradient = jax.grad(lambda x: jnp.sum(heuristics.reduce_spatial(x, reduction, where=where)))(scores)
    truth = {"mean": [[0.5, 0.5, 0], [1, 0, 0]], "max": [[0, 1, 0], [1, 0, 0]]}
    np.testing.assert_array_equal(gradient, truth[reduction])


@pytest.mark.parametrize("reduction", ["mean", "sum", "max", "min"])
def test_reducing_nothing_is_the_identity(reduction):
    # Case 7.
    scores = jnp.array([3.0, -1.0, jnp.nan])
    np.testing.assert_array_equal(heuristics.reduce_spatial(scores, reduction), scores)
    masked = heuristics.reduce_spatial(scores, reduction, where=np.array([True, False, True]))
    np.testing.assert_array_equal(masked, [3.0, -np.inf, np.nan])


def test_reductions_widen_and_broadcast_the_mask():
    scores = jnp.arange(12).reshape(2, 2, 3)
    mask = jnp.array([True, False, True])  # [W]
    np.testing.assert_array_equal(heuristics.reduce_spatial(scores, "sum", where=mask), [10, 34])
    half = jnp.full((1, 300, 300), 1.0, jnp.float16)
    assert heuristics.reduce_spatial(half, "sum").tolist() == [90_000.0]  # beyond float16


@pytest.mark.parametrize("reduction", ["none", "median", None, True])
def test_an_unknown_reduction_is_an_error(reduction):
    # Case 15.
    with pytest.raises(ValueError, match="choose one of mean, sum, max, min"):
        heuristics.reduce_spatial(jnp.zeros((5, 2)), reduction)


# combine


def test_baal_combination():
    # Case 19.
    weights = [1, 3]
    combined = heuristics.combine([heuristics.bald, heuristics.entropy], weights=weights)
    reversed_probs = PROBS[:, ::-1]
    scores = combined([PROBS, reversed_probs])
    bald, entropy = (np.array(baal.GOLDEN[f"{name}(P)"]["scores"]) for name in ("BALD", "Entropy"))
    close(scores, (bald + 3 * entropy[::-1]) / 4)
    assert np.argsort(-scores).tolist() == baal.GOLDEN["Combine([BALD(P),Entropy(P[::-1])],w=[1,3])"]
    assert weights == [1, 3]
    scaled = heuristics.combine([heuristics.bald, heuristics.entropy], weights=np.array([10.0, 30.0]))
    close(scaled([PROBS, reversed_probs]), scores, rtol=1e-6)
    half = heuristics.combine([heuristics.bald, heuristics.entropy])
    close(half([PROBS, reversed_probs]), (bald + entropy[::-1]) / 2)


@pytest.mark.parametrize(
    ("outputs", "container"),
    [
        (None, lambda a, b: [a, b]),
        (None, lambda a, b: (a, b)),
        (None, lambda a, b: {"first": a, "second": b}),
        ((1, 0), lambda a, b: (b, a)),
        (("first", "second"), lambda a, b: {"another": a[:, :1], "second": b, "first": a}),
    ],
    ids=["list", "tuple", "dict", "indices", "names"],
)
def test_combines_several_outputs(outputs, container):
    a, b = make_logits((4, 5, 3), 40, 2.0), make_logits((4, 5, 3), 41, 2.0)
    combined = heuristics.combine([heuristics.bald, heuristics.margin], weights=[2, 1], outputs=outputs)
    truth = (2 * expected("bald", a) + expected("margin", b)) / 3
    close(combined(container(a, b)), truth)


def test_one_output_may_be_read_twice():
    a, b = make_logits((4, 5, 3), 42, 2.0), make_logits((4, 5, 3), 43, 2.0)
    combined = heuristics.combine([heuristics.bald, heuristics.margin], outputs=["y", "y"])
    close(combined({"x": a, "y": b}), (expected("bald", b) + expected("margin", b)) / 2)


def test_one_array_goes_to_every_heuristic():
    logits = make_logits((4, 5, 3), 44, 2.0)
    nested = heuristics.combine([heuristics.combine([heuristics.bald, heuristics.margin]), heuristics.mean_std], [2, 1])
    truth = (expected("bald", logits) + expected("margin", logits) + expected("mean_std", logits)) / 3
    close(nested(logits), truth)
    close(jax.vmap(nested)(logits[None]), truth[None])


@pytest.mark.parametrize(
    ("num", "arguments", "message"),
    [
        (2, {"weights": [1.0]}, "2 heuristics"),
        (2, {"weights": [1.0, 1.0, 1.0]}, "2 heuristics"),
        (2, {"weights": [1.0, -1.0]}, "weights=-1.0"),
        (2, {"weights": [1.0, float("nan")]}, "weights=nan"),
        (2, {"weights": [0.0, 0.0]}, "non-negative weight"),
        (0, {}, "0 heuristics"),
        (2, {"outputs": ["a"]}, "outputs="),
    ],
)
def test_a_combination_that_does_not_fit_is_an_error(num, arguments, message):
    with pytest.raises(ValueError, match=message):
        heuristics.combine([heuristics.bald] * num, **arguments)


def test_the_number_of_outputs_must_fit():
    combined = heuristics.combine([heuristics.bald, heuristics.margin])
    with pytest.raises(ValueError, match="3 outputs for 2 heuristics"):
        combined([jnp.zeros((4, 5, 3))] * 3)
