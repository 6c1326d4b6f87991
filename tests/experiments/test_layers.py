"""Layers of the experiments are the stock ones in another form: values and gradients."""

import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import layers

LAYOUT = ("NHWC", "HWIO", "NHWC")
CASES = {
    "same": ((3, 8, 8, 2), (3, 3), (1, 1), "SAME"),
    "uneven image": ((2, 7, 5, 3), (3, 3), (1, 1), "SAME"),
    "valid": ((2, 6, 7, 2), (3, 2), (1, 1), "VALID"),
    "one pixel kernel": ((2, 4, 4, 3), (1, 1), (1, 1), "SAME"),
    "even kernel": ((2, 6, 6, 2), (2, 4), (1, 1), "SAME"),
    "explicit padding": ((2, 8, 7, 1), (5, 5), (1, 1), ((2, 1), (0, 2))),
    "two by two": ((4, 2, 2, 5), (3, 3), (1, 1), "SAME"),
    "two by two, valid": ((4, 2, 2, 5), (2, 2), (1, 1), "VALID"),
    "one by one": ((4, 1, 1, 5), (3, 3), (1, 1), "SAME"),
    "strides": ((3, 9, 8, 2), (3, 2), (2, 2), "SAME"),
    "strides, valid": ((3, 9, 8, 2), (3, 2), (2, 3), "VALID"),
    "strided one pixel": ((3, 8, 8, 2), (1, 1), (2, 2), "SAME"),
}


@pytest.mark.parametrize("name", CASES)
def test_convolution_and_its_gradients_are_those_of_lax(name):
    shape, kernel, strides, padding = CASES[name]
    x = jax.random.normal(jax.random.key(0), shape)
    w = jax.random.normal(jax.random.key(1), (*kernel, shape[-1], 4))

    def stock(x, w):
        return jax.lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=LAYOUT)

    expected, pull_back = jax.vjp(stock, x, w)
    found, our_pull_back = jax.vjp(lambda x, w: layers.cpu_conv(x, w, strides, padding), x, w)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    cotangent = jax.random.normal(jax.random.key(2), expected.shape)
    for ours, theirs in zip(our_pull_back(cotangent), pull_back(cotangent), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_convolution_maps_over_seeds():
    x = jax.random.normal(jax.random.key(0), (2, 3, 2, 2, 4))
    w = jax.random.normal(jax.random.key(1), (2, 3, 3, 4, 5))
    wide = jax.random.normal(jax.random.key(0), (2, 3, 6, 6, 4))
    for inputs in (x, wide):
        mapped = jax.vmap(jax.grad(lambda x, w: jnp.sum(layers.cpu_conv(x, w, (1, 1), "SAME") ** 2), (0, 1)))(inputs, w)
        single = jax.grad(lambda x, w: jnp.sum(layers.cpu_conv(x, w, (1, 1), "SAME") ** 2), (0, 1))(inputs[1], w[1])
        for ours, theirs in zip(mapped, single, strict=True):
            np.testing.assert_allclose(ours[1], theirs, rtol=1e-4, atol=1e-4)


def test_convolution_keeps_bfloat16():
    x = jnp.ones((2, 4, 4, 3), jnp.bfloat16)
    w = jnp.ones((3, 3, 3, 4), jnp.bfloat16)
    assert layers.cpu_conv(x, w, (1, 1), "SAME").dtype == jnp.bfloat16
    gradient = jax.grad(lambda w: jnp.sum(layers.cpu_conv(x, w, (1, 1), "SAME").astype(jnp.float32)))(w)
    assert gradient.dtype == jnp.bfloat16


def test_convolution_refuses_what_it_does_not_know():
    module = nn.Conv(4, (3, 3), kernel_dilation=2, conv_general_dilated=layers.cpu_conv)
    with pytest.raises(ValueError, match="groups nor dilation"):
        module.init(jax.random.key(0), jnp.ones((1, 8, 8, 2)))


def test_the_backend_decides(monkeypatch):
    assert layers.fast_conv() is layers.cpu_conv
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.fast_conv() is jax.lax.conv_general_dilated


def test_max_pool_is_the_window_maximum():
    x = jax.random.normal(jax.random.key(0), (2, 9, 8, 3))
    np.testing.assert_array_equal(layers.max_pool_2x2(x), nn.max_pool(x, (2, 2), (2, 2)))
    stock = jax.grad(lambda x: jnp.sum(nn.max_pool(x, (2, 2), (2, 2)) ** 2))(x)
    np.testing.assert_allclose(jax.grad(lambda x: jnp.sum(layers.max_pool_2x2(x) ** 2))(x), stock, rtol=1e-6)


def test_gradients_of_max_pool_count_nothing_and_share_among_equals():
    def slope(x, cotangent):
        return jax.vjp(layers.max_pool_2x2, x)[1](cotangent)[0]

    arrays = jnp.ones((1, 4, 4, 2)), jnp.ones((1, 2, 2, 2))
    np.testing.assert_array_equal(slope(*arrays), np.full((1, 4, 4, 2), 0.25))
    assert "reduce_sum" not in str(jax.make_jaxpr(slope)(*arrays))


UNITS = (1024, 768)


def masks(rate, key=0):
    keys = jax.random.split(jax.random.key(key))
    return [
        jax.random.bernoulli(k, 1 - rate, (1, n)).astype(jnp.float32) / (1 - rate)
        for k, n in zip(keys, UNITS, strict=True)
    ]


def dense_case():
    keys = jax.random.split(jax.random.key(5), 2)
    return jax.random.normal(keys[0], (6, UNITS[0])), jax.random.normal(keys[1], UNITS)


@pytest.mark.parametrize("rate", [0.5, 0.7, 0.9])
def test_a_dense_layer_between_masks_is_the_stock_one(rate):
    x, kernel = dense_case()

    def ours(before, after, x, kernel):
        dot = layers.dropped_dot(before, after, rate)
        return dot(x * before, kernel, (((1,), (0,)), ((), ()))) * after

    def stock(before, after, x, kernel):
        return ((x * before) @ kernel) * after

    draws = [masks(rate, key) for key in range(3)]
    stacked = [jnp.stack(part) for part in zip(*draws, strict=True)]
    for function in (ours, jax.jit(ours)):
        found = jax.vmap(function, in_axes=(0, 0, None, None))(*stacked, x, kernel)
        expected = jax.vmap(stock, in_axes=(0, 0, None, None))(*stacked, x, kernel)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6 * float(jnp.abs(expected).max()))
    gradients = [jax.grad(lambda x, w, f=f: jnp.sum(f(*draws[0], x, w) ** 2), (0, 1))(x, kernel) for f in (ours, stock)]
    scale = [float(jnp.abs(leaf).max()) for leaf in gradients[1]]
    for found, expected, largest in zip(*gradients, scale, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * largest)


def test_a_mask_that_keeps_too_much_gives_nan_and_no_wrong_number():
    x, kernel = dense_case()
    before, after = masks(0.5)
    for first, second in ((jnp.ones_like(before), after), (before, jnp.ones_like(after))):
        found = layers.dropped_dot(first, second, 0.5)(x, kernel)
        assert np.isnan(found).all()


def test_little_to_leave_out_means_the_stock_layer(monkeypatch):
    assert layers.dropped_dot(*masks(0.2), 0.2) is None
    assert layers.dropped_dot(*masks(0.0), 0.0) is None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert layers.dropped_dot(*masks(0.5), 0.5) is None
