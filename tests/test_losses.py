"""Losses against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from baal_jax import losses

close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
squared_error = jax.jit(losses.squared_error)
gaussian_nll = jax.jit(losses.gaussian_nll)
SHAPES = [(6,), (6, 2, 3)]  # classes, and a map of them
of_both_shapes = pytest.mark.parametrize("shape", SHAPES, ids=["examples", "map"])


def make_case(shape, seed=0, scale=2.0):
    """Logits, and targets of which every third is unknown and the first example knows none."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*shape, 5))).astype(np.float32)
    targets = np.where(rng.random(shape) < 0.3, rng.integers(-7, 0, shape), rng.integers(0, 5, shape))
    targets[0] = -1
    return logits, targets.astype(np.int32)


def mean_of_known(terms, known):
    """Of each example, whatever the number of its positions; zero where nothing is known."""
    rows = zip(terms.reshape(len(terms), -1), np.asarray(known).reshape(len(terms), -1), strict=True)
    return np.array([row[counts].mean() if counts.any() else 0.0 for row, counts in rows])


def expected_cross_entropy(logits, targets, smoothing=0.0):
    q = (1 - smoothing) * np.eye(5)[np.maximum(targets, 0)] + smoothing / 5
    return mean_of_known(-np.sum(q * log_softmax(np.asarray(logits).astype(np.float64), -1), axis=-1), targets >= 0)


@of_both_shapes
def test_cross_entropy_and_its_gradient_equal_the_formulas(shape):
    for seed, scale in enumerate((0.01, 1.0, 30.0, 1000.0)):
        logits, targets = make_case(shape, seed, scale)
        for smoothing in (0.0, 0.1):
            found = cross_entropy(logits, targets, label_smoothing=smoothing)
            assert (found.shape, found.dtype) == ((6,), jnp.float32)
            close(found, expected_cross_entropy(logits, targets, smoothing))
        assert found[0] == 0  # nothing of it is known
    logits, targets = make_case(shape)
    gradient = jax.jit(jax.grad(lambda x: losses.cross_entropy(x, targets).sum()))(logits)
    known = targets >= 0
    share = known / np.maximum(known.sum(axis=tuple(range(1, known.ndim)), keepdims=True), 1)
    p = np.exp(log_softmax(logits.astype(np.float64), -1))
    close(gradient, (p - np.eye(5)[np.maximum(targets, 0)]) * share[..., None])
    targets[2], targets[3] = 5, 4  # beyond the classes
    np.testing.assert_array_equal(np.isnan(cross_entropy(logits, targets)), np.arange(6) == 2)
    impossible = np.array([[0.0, -np.inf, 0.0], [0.0, -np.inf, 0.0]], np.float32)
    np.testing.assert_allclose(cross_entropy(impossible, np.array([0, 1])), [np.log(2), np.inf], rtol=1e-6)
    slopes = jax.grad(lambda x: losses.cross_entropy(x, np.array([0, 2])).sum())(impossible)
    close(slopes, [[-0.5, 0, 0.5], [0.5, 0, -0.5]])


def test_half_precision_loses_nothing_after_the_inputs():
    logits, targets = make_case(SHAPES[1])
    for dtype, integer in ((jnp.bfloat16, np.int8), (jnp.float16, np.uint8)):
        rounded, labels = logits.astype(dtype), np.abs(targets % 5).astype(integer)
        found, errors = cross_entropy(rounded, labels), squared_error(rounded, np.zeros(rounded.shape, dtype))
        assert (found.dtype, errors.dtype) == (jnp.float32, jnp.float32)
        close(found, expected_cross_entropy(rounded, labels.astype(int)))
        close(errors, (rounded.astype(np.float64) ** 2).mean(axis=(1, 2, 3)) / 2)
    scores = gaussian_nll(rounded[..., :4], rounded[..., 3:])
    close(scores, gaussian_nll(rounded[..., :4].astype(np.float32), rounded[..., 3:].astype(np.float32)))
    np.testing.assert_array_equal(squared_error(np.array([[1.0], [3.0]], np.float32), np.array([0, 1])), [0.5, 2.0])


@of_both_shapes
def test_squared_error_and_likelihood_equal_the_formulas_where_targets_are_known(shape):
    rng = np.random.default_rng(1)
    mean, log_variance, targets = rng.normal(size=(3, *shape, 2)).astype(np.float32)
    targets[rng.random(targets.shape) < 0.3] = np.nan
    targets[0] = np.nan
    targets[1] = 7.5
    known, outputs = ~np.isnan(targets), np.concatenate([mean, log_variance], axis=-1)
    squares = (np.where(known, targets, 0.0) - mean.astype(np.float64)) ** 2
    terms = 0.5 * (np.log(2 * np.pi) + log_variance + squares / np.exp(log_variance.astype(np.float64)))
    both = known, np.concatenate([known, known], axis=-1)
    for loss, first, expected, moved in (
        (squared_error, mean, squares / 2, both[0]),
        (gaussian_nll, outputs, terms, both[1]),
    ):
        found = loss(first, targets)
        assert (found.shape, found.dtype) == ((6,), jnp.float32)
        close(found, mean_of_known(expected, known), rtol=1e-5)
        # An unknown target moves neither its mean nor its variance, and no NaN comes back.
        gradient = jax.jit(jax.grad(lambda x, loss=loss: loss(x, targets).sum()))(first)
        np.testing.assert_array_equal(gradient != 0, moved)
        assert np.isfinite(gradient).all()
    # A single output dimension may be left out of the targets.
    one = mean[..., :1], targets[..., 0]
    close(squared_error(*one), mean_of_known(squares[..., :1] / 2, known[..., :1]), rtol=1e-5)
    close(gaussian_nll(outputs[..., ::2], one[1]), mean_of_known(terms[..., :1], known[..., :1]), rtol=1e-5)


def test_shapes_and_types_that_do_not_fit_are_refused():
    integers, floats = (lambda *s, t=t: jax.ShapeDtypeStruct(s, t) for t in (jnp.int32, jnp.float32))
    fits = [((6, 5), floats(6)), ((6, 5), jax.ShapeDtypeStruct((6,), bool)), ((6, 4, 5), integers(6))]
    fits += [((6, 5), integers(*shape)) for shape in ((6, 5), (6, 2), ())]
    uneven = [((6, 3), floats(6, 2)), ((6, 4), floats(6)), ((6, 4), floats(6, 1)), ((6, 2), floats(5, 1))]
    for loss, message, cases in (
        (losses.cross_entropy, "pass integer classes", fits),
        (losses.cross_entropy, r"\(6, 1\) with a single class.*binary_logits", [((6, 1), integers(6))]),
        (losses.squared_error, "make them equal", [((6, 3), floats(*s)) for s in ((6,), (6, 1), (5, 3), (6, 3, 1))]),
        (losses.gaussian_nll, "a mean and a log-variance for each of the targets", uneven),
    ):
        for outputs, targets in cases:
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(loss, floats(*outputs), targets)
