"""Layers of the experiments are the stock ones in another form: values and gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {
    "same, uneven image": ((2, 7, 5, 3), (3, 3), (1, 1), "SAME"),
    "valid": ((2, 6, 7, 2), (3, 2), (1, 1), "VALID"),
    "even kernel": ((2, 6, 6, 2), (2, 4), (1, 1), "SAME"),
    "explicit padding": ((2, 8, 7, 1), (5, 5), (1, 1), ((2, 1), (0, 2))),
    "two by two": ((4, 2, 2, 5), (3, 3), (1, 1), "SAME"),
    "two by two, valid": ((4, 2, 2, 5), (2, 2), (1, 1), "VALID"),
    "one by one": ((4, 1, 1, 5), (3, 3), (1, 1), "SAME"),
    "strides": ((3, 9, 8, 2), (3, 2), (2, 2), "SAME"),
    "strides, valid": ((3, 9, 8, 2), (3, 2), (2, 3), "VALID"),
    "strided one pixel": ((3, 8, 8, 2), (1, 1), (2, 2), "SAME"),
}


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def test_convolution_and_its_gradients_are_those_of_lax(rng):
    def with_gradients(convolve, x, w, cotangent):
        value, pull_back = jax.vjp(convolve, x, w)
        return value, *pull_back(cotangent)

    @jax.jit
    def both(arrays):
        results = {}
        for name, (_, _, strides, padding) in CASES.items():
            stock = lambda x, w: jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)  # noqa: B023, E731
            ours = lambda x, w: layers.cpu_conv(x, w, strides, padding)  # noqa: B023, E731
            results[name] = [with_gradients(convolve, *arrays[name]) for convolve in (ours, stock)]
        return results

    arrays = {}
    for name, (shape, kernel, strides, padding) in CASES.items():
        x, w = normal(rng, *shape), normal(rng, *kernel, shape[-1], 4)
        out = jax.eval_shape(
            lambda x, w: jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT),  # noqa: B023
            x,
            w,
        )
        arrays[name] = x, w, normal(rng, *out.shape)
    for name, (found, expected) in both(arrays).items():
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4, err_msg=name)


def test_convolution_maps_over_seeds(rng):
    gradients = jax.grad(lambda x, w: jnp.sum(layers.cpu_conv(x, w, (1, 1), "SAME") ** 2), (0, 1))
    w = normal(rng, 2, 3, 3, 4, 5)
    for inputs in (normal(rng, 2, 3, 2, 2, 4), normal(rng, 2, 3, 6, 6, 4)):
        mapped, single = jax.jit(lambda x, w: (jax.vmap(gradients)(x, w), gradients(x[1], w[1])))(inputs, w)
        for ours, theirs in zip(mapped, single, strict=True):
            np.testing.assert_allclose(ours[1], theirs, rtol=1e-4, atol=1e-4)


def test_convolution_keeps_bfloat16_and_refuses_what_it_does_not_know():
    x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((2, 4, 4, 3), (3, 3, 3, 4)))
    assert jax.eval_shape(lambda x, w: layers.cpu_conv(x, w, (1, 1), "SAME"), x, w).dtype == jnp.bfloat16
    total = lambda w, x: jnp.sum(layers.cpu_conv(x, w, (1, 1), "SAME").astype(jnp.float32))  # noqa: E731
    assert jax.eval_shape(jax.grad(total), w, x).dtype == jnp.bfloat16
    module = nn.Conv(4, (3, 3), kernel_dilation=2, conv_general_dilated=layers.cpu_conv)
    with pytest.raises(ValueError, match="groups nor dilation"):
        module.init(jax.random.key(0), np.ones((1, 8, 8, 2), np.float32))


def test_the_backend_decides(monkeypatch):
    assert layers.fast_conv() is layers.cpu_conv
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.fast_conv() is jax.lax.conv_general_dilated


def test_max_pool_is_the_window_maximum_and_its_gradient_is_shared_among_equals(rng):
    def pooled(pool, x):
        return pool(x), jax.grad(lambda x: jnp.sum(pool(x) ** 2))(x)

    stock = lambda x: nn.max_pool(x, (2, 2), (2, 2))  # noqa: E731
    ours, theirs = jax.jit(lambda x: [pooled(pool, x) for pool in (layers.max_pool_2x2, stock)])(
        normal(rng, 2, 9, 8, 3)
    )
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-6)
    slope = jax.jit(lambda x: jax.vjp(layers.max_pool_2x2, x)[1](jnp.ones((1, 2, 2, 2)))[0])
    np.testing.assert_array_equal(slope(np.ones((1, 4, 4, 2), np.float32)), np.full((1, 4, 4, 2), 0.25))


UNITS = (1024, 768)


def masks(rng, rate, *draws):
    return [(rng.random((*draws, 1, n)) < 1 - rate).astype(np.float32) / np.float32(1 - rate) for n in UNITS]


@pytest.mark.parametrize("rate", [0.5, 0.9])
def test_a_dense_layer_between_masks_is_the_stock_one(rate, rng):
    x, kernel, (before, after) = normal(rng, 6, UNITS[0]), normal(rng, *UNITS), masks(rng, rate, 3)

    def ours(before, after, x, kernel):
        dot = layers.dropped_dot(before, after, rate)
        return dot(x * before, kernel, (((1,), (0,)), ((), ()))) * after

    def stock(before, after, x, kernel):
        return ((x * before) @ kernel) * after

    @jax.jit
    def values(before, after, x, kernel):
        return [
            (
                jax.vmap(layer, in_axes=(0, 0, None, None))(before, after, x, kernel),
                *jax.grad(lambda *a, f=layer: jnp.sum(f(*a) ** 2), (2, 3))(before[0], after[0], x, kernel),
            )
            for layer in (ours, stock)
        ]

    for found, expected in zip(*values(before, after, x, kernel), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * float(np.abs(expected).max()))


def test_a_mask_that_keeps_too_much_gives_nan_and_no_wrong_number(rng):
    x, kernel, (before, after) = normal(rng, 6, UNITS[0]), normal(rng, *UNITS), masks(rng, 0.5)
    multiplied = jax.jit(lambda before, after: layers.dropped_dot(before, after, 0.5)(x, kernel))
    for first, second in ((np.ones_like(before), after), (before, np.ones_like(after))):
        assert np.isnan(multiplied(first, second)).all()


def test_little_to_leave_out_means_the_stock_layer(rng, monkeypatch):
    assert layers.dropped_dot(*masks(rng, 0.2), 0.2) is None
    assert layers.dropped_dot(*masks(rng, 0.0), 0.0) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.dropped_dot(*masks(rng, 0.5), 0.5) is None
