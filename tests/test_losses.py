"""Losses against float64 NumPy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_jax import losses

SHAPES = {"classes": (6,), "tokens": (6, 4), "map": (6, 2, 3)}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
close = functools.partial(np.testing.assert_allclose, rtol=2e-6, atol=2e-6)

cross_entropy = jax.jit(losses.cross_entropy, static_argnames="label_smoothing")
squared_error = jax.jit(losses.squared_error)


def make_case(shape, num_classes=5, seed=0, scale=2.0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.normal(size=(*shape, num_classes))).astype(np.float32)
    targets = rng.integers(0, num_classes, shape).astype(np.int32)
    return logits, np.where(rng.random(shape) < 0.3, -1, targets).astype(np.int32)


def expected_cross_entropy(logits, targets, smoothing=0.0):
    logits = np.asarray(logits).astype(np.float64)
    num_classes = logits.shape[-1]
    result = []
    for rows, labels in zip(logits, targets, strict=True):
        terms = []
        for row, label in zip(rows.reshape(-1, num_classes), np.reshape(labels, -1), strict=True):
            if label < 0:
                continue
            log_p = row - np.log(np.sum(np.exp(row - row.max()))) - row.max()
            q = np.full(num_classes, smoothing / num_classes)
            q[label] += 1 - smoothing
            terms.append(-np.sum(q[q > 0] * log_p[q > 0]))
        result.append(np.mean(terms) if terms else 0.0)
    return np.array(result)


@every_shape
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_cross_entropy_equals_the_formula(shape, smoothing):
    logits, targets = make_case(shape)
    targets[0] = -1
    found = cross_entropy(jnp.asarray(logits), jnp.asarray(targets), label_smoothing=smoothing)
    assert (found.shape, found.dtype) == ((6,), jnp.float32)
    close(found, expected_cross_entropy(logits, targets, smoothing))


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.01, 1.0, 30.0, 1000.0]))
def test_cross_entropy_of_any_logits(seed, scale):
    logits, targets = make_case((6, 4), seed=seed, scale=scale)
    close(cross_entropy(logits, targets), expected_cross_entropy(logits, targets))


def test_unknown_targets_do_not_count():
    logits, _ = make_case((3, 4))
    targets = np.array([[1, 2, 3, 4], [1, -1, -7, 4], [-1, -1, -1, -1]])
    found = cross_entropy(logits, targets)
    close(found, expected_cross_entropy(logits, targets))
    assert found[2] == 0
    changed = logits.copy()
    changed[1, 1:3], changed[2] = 100.0, -100.0
    np.testing.assert_array_equal(cross_entropy(changed, targets), found)
    gradient = jax.grad(lambda x: jnp.sum(cross_entropy(x, targets)))(logits)
    np.testing.assert_array_equal(np.any(gradient != 0, axis=-1), targets >= 0)


def test_the_gradient_is_softmax_minus_target():
    logits, _ = make_case((3,), num_classes=4)
    gradient = jax.grad(lambda x: jnp.sum(cross_entropy(x, np.array([2, 0, 3]))))(logits)
    close(gradient, jax.nn.softmax(logits) - np.eye(4)[[2, 0, 3]])


def test_impossible_classes():
    logits = jnp.array([[0.0, -jnp.inf, 0.0], [0.0, -jnp.inf, 0.0]])
    found = cross_entropy(logits, jnp.array([0, 1]))
    np.testing.assert_allclose(found, [math.log(2), np.inf], rtol=1e-6)
    gradient = jax.grad(lambda x: cross_entropy(x, jnp.array([0, 2])).sum())(logits)
    close(gradient, [[-0.5, 0, 0.5], [0.5, 0, -0.5]])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("integer", [jnp.int32, jnp.int8, jnp.uint8])
def test_half_precision_loses_nothing_after_the_inputs(dtype, integer):
    logits, targets = make_case((6, 2, 3))
    logits, targets = jnp.asarray(logits).astype(dtype), jnp.abs(targets).astype(integer)
    found = cross_entropy(logits, targets)
    assert found.dtype == jnp.float32
    close(found, expected_cross_entropy(logits, np.asarray(targets).astype(int)))
    outputs = squared_error(logits, jnp.zeros(logits.shape, dtype))
    assert outputs.dtype == jnp.float32
    close(outputs, (np.asarray(logits).astype(np.float64) ** 2).mean(axis=(1, 2, 3)) / 2)


@pytest.mark.parametrize(
    ("shape", "targets"),
    [
        ((6, 5), jnp.zeros(6)),
        ((6, 5), jnp.zeros((6, 5), jnp.int32)),
        ((6, 5), jnp.zeros((6, 1), jnp.int32)),
        ((6, 5), jnp.zeros((), jnp.int32)),
        ((6, 4, 5), jnp.zeros(6, jnp.int32)),
        ((6, 5), jnp.zeros(6, bool)),
    ],
    ids=["float", "one-hot", "column", "scalar", "positions", "bool"],
)
def test_targets_that_do_not_fit_are_errors(shape, targets):
    with pytest.raises(ValueError, match="pass integer classes"):
        cross_entropy(jnp.zeros(shape), targets)


@pytest.mark.parametrize("shape", [(6, 5), (6, 1), (6, 4, 5), (6, 2, 3, 5)])
def test_squared_error_equals_the_formula(shape):
    rng = np.random.default_rng(1)
    outputs, targets = rng.normal(size=(2, *shape)).astype(np.float32)
    truth = np.mean((outputs.astype(np.float64) - targets) ** 2, axis=tuple(range(1, len(shape)))) / 2
    found = squared_error(outputs, targets)
    assert (found.shape, found.dtype) == ((6,), jnp.float32)
    close(found, truth)


@pytest.mark.parametrize("shape", [(6, 1), (6, 4, 1), (6, 2, 3, 1)])
def test_a_single_output_dimension_may_be_left_out_of_the_targets(shape):
    rng = np.random.default_rng(2)
    outputs, targets = rng.normal(size=(2, *shape)).astype(np.float32)
    close(squared_error(outputs, targets[..., 0]), squared_error(outputs, targets), rtol=1e-6)
    close(squared_error(outputs, targets), np.mean((outputs - targets).reshape(6, -1) ** 2, axis=1) / 2)


def test_integer_regression_targets():
    np.testing.assert_array_equal(squared_error(jnp.array([[1.0], [3.0]]), jnp.array([0, 1])), [0.5, 2.0])


@pytest.mark.parametrize("target_shape", [(6,), (6, 1), (5, 3), (6, 3, 1), (6, 4)])
def test_squared_error_does_not_broadcast(target_shape):
    with pytest.raises(ValueError, match="make them equal"):
        squared_error(jnp.zeros((6, 3)), jnp.zeros(target_shape))


def test_losses_are_the_same_eager_and_mapped():
    logits, targets = make_case(SHAPES["map"])
    found = cross_entropy(logits, targets)
    close(losses.cross_entropy(logits, targets), found, rtol=1e-6)
    alone = jax.vmap(lambda row, target: cross_entropy(row[None], target[None])[0])(logits, targets)
    close(alone, found, rtol=1e-6)


def test_a_single_class_and_labels_beyond_the_classes_are_not_silent():
    with pytest.raises(ValueError, match="binary_logits"):
        losses.cross_entropy(jnp.zeros((2, 1)), jnp.zeros(2, jnp.int32))
    assert np.isnan(losses.cross_entropy(jnp.zeros((2, 3)), jnp.array([2, 3]))).tolist() == [False, True]
