"""Layers of the experiments are the stock ones in another form: values and gradients."""

import jax
import jax.numpy as jnp
import layers
import numpy as np
import pytest

CASES = {
    "same, uneven image": ((2, 7, 5, 3), (3, 3), (1, 1), "SAME"),
    "valid": ((2, 6, 7, 2), (3, 2), (1, 1), "VALID"),
    "explicit padding": ((2, 8, 7, 1), (5, 4), (1, 1), ((2, 1), (0, 2))),
    "two by two": ((4, 2, 2, 5), (3, 3), (1, 1), "SAME"),
    "strides": ((3, 9, 8, 2), (3, 2), (2, 3), "SAME"),
    "strided one pixel": ((3, 8, 8, 2), (1, 1), (2, 2), "SAME"),
}


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def close(found, expected, atol=1e-4):
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=atol * max(1.0, float(np.abs(theirs).max())))


def stock_conv(x, w, strides, padding):
    return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@pytest.mark.parametrize("name", CASES)
def test_convolution_and_its_gradients_are_those_of_lax(name, rng):
    shape, kernel, strides, padding = CASES[name]
    x, w = normal(rng, *shape), normal(rng, *kernel, shape[-1], 4)

    def with_gradients(convolve, x, w):
        value, pull_back = jax.vjp(lambda x, w: convolve(x, w, strides, padding), x, w)
        return value, *pull_back(jnp.cos(value))

    ours, theirs, mapped = jax.jit(
        lambda x, w: (
            with_gradients(layers.cpu_conv, x, w),
            with_gradients(stock_conv, x, w),
            jax.vmap(lambda w: with_gradients(layers.cpu_conv, x, w))(jnp.stack([-w, w])),
        )
    )(x, w)
    close(ours, theirs)
    close([leaf[1] for leaf in mapped], theirs)  # seeds


UNITS = (1024, 768)


def masks(rng, rate):
    return [(rng.random((1, n)) < 1 - rate).astype(np.float32) / np.float32(1 - rate) for n in UNITS]


def test_a_dense_layer_between_masks_is_the_stock_one_or_nan(rng):
    x, kernel, (before, after) = normal(rng, 6, UNITS[0]), normal(rng, *UNITS), masks(rng, 0.5)

    def ours(before, after, x, kernel):
        return layers.dropped_dot(before, after, 0.5)(x * before, kernel, (((1,), (0,)), ((), ()))) * after

    def stock(before, after, x, kernel):
        return ((x * before) @ kernel) * after

    @jax.jit
    def values(*arguments):
        gradients = lambda f: jax.grad(lambda *a: jnp.sum(f(*a) ** 2), (2, 3))(*arguments)  # noqa: E731
        return [(f(*arguments), *gradients(f)) for f in (ours, stock)]

    close(*values(before, after, x, kernel), atol=1e-5)
    for first, second in ((np.ones_like(before), after), (before, np.ones_like(after))):  # which keep too much
        assert np.isnan(values(first, second, x, kernel)[0][0]).all()


def test_other_backends_and_low_rates_have_the_stock_layers(rng, monkeypatch):
    assert layers.dropped_dot(*masks(rng, 0.2), 0.2) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.dropped_dot(*masks(rng, 0.5), 0.5) is None
    assert layers.fast_conv() is jax.lax.conv_general_dilated
