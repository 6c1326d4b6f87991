"""Losses against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baal_jax import losses

close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)
cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
squared_error = jax.jit(losses.squared_error)
gaussian_nll = jax.jit(losses.gaussian_nll)
SHAPES = [(6,), (6, 2, 3)]  # classes, and a map of them


def make_case(shape, num_classes=5, seed=0, scale=2.0):
    """Logits, and targets of which every third is unknown and the first example knows none."""
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*shape, num_classes))).astype(np.float32)
    targets = np.where(rng.random(shape) < 0.3, rng.integers(-7, 0, shape), rng.integers(0, num_classes, shape))
    targets[0] = -1
    return logits, targets.astype(np.int32)


def mean_of_known(terms, known):
    """Of each example, whatever the number of its positions; zero where nothing is known."""
    rows = zip(terms.reshape(len(terms), -1), np.asarray(known).reshape(len(terms), -1), strict=True)
    return np.array([row[counts].mean() if counts.any() else 0.0 for row, counts in rows])


def expected_cross_entropy(logits, targets, smoothing=0.0):
    logits, num_classes = np.asarray(logits).astype(np.float64), logits.shape[-1]
    log_p = logits - logits.max(-1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(-1, keepdims=True))
    q = (1 - smoothing) * np.eye(num_classes)[np.maximum(targets, 0)] + smoothing / num_classes
    return mean_of_known(-np.sum(q * log_p, axis=-1), targets >= 0)


@pytest.mark.parametrize("shape", SHAPES, ids=["classes", "map"])
def test_cross_entropy_equals_the_formula(shape):
    logits, targets = make_case(shape)
    for smoothing in (0.0, 0.1):
        found = cross_entropy(logits, targets, label_smoothing=smoothing)
        assert (found.shape, found.dtype) == ((6,), jnp.float32)
        close(found, expected_cross_entropy(logits, targets, smoothing))
    assert found[0] == 0  # nothing of it is known


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
def test_cross_entropy_of_any_logits(seed, scale):
    logits, targets = make_case(SHAPES[1], seed=seed, scale=scale)
    close(cross_entropy(logits, targets), expected_cross_entropy(logits, targets))


def test_the_gradient_is_softmax_minus_target_where_that_is_known():
    logits, targets = make_case(SHAPES[1])
    gradient = jax.jit(jax.grad(lambda x: losses.cross_entropy(x, targets).sum()))(logits)
    p = np.exp(logits.astype(np.float64))
    known = targets >= 0
    share = known / np.maximum(known.sum(axis=(1, 2), keepdims=True), 1)
    close(gradient, (p / p.sum(-1, keepdims=True) - np.eye(5)[np.maximum(targets, 0)]) * share[..., None])


def test_impossible_classes():
    logits = np.array([[0.0, -np.inf, 0.0], [0.0, -np.inf, 0.0]], np.float32)
    both = jax.jit(lambda targets: (losses.cross_entropy(logits, targets), slopes(targets)))

    def slopes(targets):
        return jax.grad(lambda x: losses.cross_entropy(x, targets).sum())(logits)

    np.testing.assert_allclose(both(np.array([0, 1]))[0], [np.log(2), np.inf], rtol=1e-6)
    close(both(np.array([0, 2]))[1], [[-0.5, 0, 0.5], [0.5, 0, -0.5]])


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


@pytest.mark.parametrize("shape", SHAPES, ids=["examples", "map"])
def test_squared_error_and_likelihood_equal_the_formulas_where_targets_are_known(shape):
    rng = np.random.default_rng(1)
    mean, log_variance, targets = rng.normal(size=(3, *shape, 2)).astype(np.float32)
    targets[rng.random(targets.shape) < 0.3] = np.nan
    targets[0] = np.nan
    targets[1] = 7.5
    known, outputs = ~np.isnan(targets), np.concatenate([mean, log_variance], axis=-1)
    squares = (np.where(known, targets, 0.0) - mean.astype(np.float64)) ** 2
    terms = 0.5 * (np.log(2 * np.pi) + log_variance + squares / np.exp(log_variance.astype(np.float64)))
    for loss, first, expected in ((squared_error, mean, squares / 2), (gaussian_nll, outputs, terms)):
        found = loss(first, targets)
        assert (found.shape, found.dtype) == ((6,), jnp.float32)
        close(found, mean_of_known(expected, known), rtol=1e-5)
    gradients = jax.jit(
        lambda: (
            jax.grad(lambda x: losses.squared_error(x, targets).sum())(mean),
            jax.grad(lambda x: losses.gaussian_nll(x, targets).sum())(outputs),
        )
    )()
    # An unknown target moves neither its mean nor its variance, and no NaN comes back.
    np.testing.assert_array_equal(gradients[0] != 0, known)
    np.testing.assert_array_equal(gradients[1] != 0, np.concatenate([known, known], axis=-1))
    assert np.isfinite(np.concatenate([np.ravel(leaf) for leaf in gradients])).all()
    # A single output dimension may be left out of the targets.
    one = mean[..., :1], targets[..., 0]
    close(squared_error(*one), mean_of_known(squares[..., :1] / 2, known[..., :1]), rtol=1e-5)
    close(gaussian_nll(outputs[..., ::2], one[1]), mean_of_known(terms[..., :1], known[..., :1]), rtol=1e-5)


def test_integer_regression_targets():
    np.testing.assert_array_equal(squared_error(np.array([[1.0], [3.0]], np.float32), np.array([0, 1])), [0.5, 2.0])


def test_labels_beyond_the_classes_make_the_loss_nan():
    logits, targets = make_case(SHAPES[1])
    targets[2, 0, 0], targets[3] = 5, 4
    np.testing.assert_array_equal(np.isnan(cross_entropy(logits, targets)), np.arange(6) == 2)


def test_shapes_and_types_that_do_not_fit_are_refused():
    def check(loss, message, cases):
        for outputs, targets in cases:
            with pytest.raises(ValueError, match=message):
                jax.eval_shape(loss, jax.ShapeDtypeStruct(outputs, jnp.float32), targets)

    integers, floats = (lambda *s, t=t: jax.ShapeDtypeStruct(s, t) for t in (jnp.int32, jnp.float32))
    fits = [((6, 5), floats(6)), ((6, 5), jax.ShapeDtypeStruct((6,), bool)), ((6, 4, 5), integers(6))]
    fits += [((6, 5), integers(*shape)) for shape in ((6, 5), (6, 1), ())]
    check(losses.cross_entropy, "pass integer classes", fits)
    check(losses.cross_entropy, r"\(6, 1\) with a single class.*binary_logits", [((6, 1), integers(6))])
    check(losses.squared_error, "make them equal", [((6, 3), floats(*s)) for s in ((6,), (6, 1), (5, 3), (6, 3, 1))])
    uneven = [((6, 3), floats(6, 2)), ((6, 4), floats(6)), ((6, 4), floats(6, 1)), ((6, 2), floats(5, 1))]
    check(losses.gaussian_nll, "a mean and a log-variance for each of the targets", uneven)
