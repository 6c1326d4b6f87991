"""Convolutions and poolings are the stock ones in another form: values and derivatives of every kind."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun, jaxprs_in_params
from jax.extend.core.primitives import sharding_constraint_p

from baal_jax._util import programs, windows

CASES = {  # images, kernel, strides, padding, what else
    "same, uneven image": ((2, 7, 5, 3), (3, 3), (1, 1), "SAME", {}),
    "valid": ((2, 6, 7, 2), (3, 2), (1, 1), "VALID", {}),
    "explicit padding": ((2, 8, 7, 1), (5, 4), (1, 1), ((2, 1), (0, 2)), {}),
    "cropping": ((2, 8, 7, 1), (3, 3), (1, 2), ((-1, 1), (0, -2)), {}),
    "two by two": ((4, 2, 2, 5), (3, 3), (1, 1), "SAME", {}),
    "two by two, strides": ((4, 2, 2, 3), (3, 3), (2, 2), "SAME", {}),
    "one pixel": ((4, 1, 1, 5), (3, 3), (1, 1), "SAME", {}),
    "one window": ((4, 3, 2, 5), (3, 2), (1, 1), "VALID", {}),
    "all padding": ((2, 1, 2, 3), (2, 2), (1, 1), ((3, 0), (1, 1)), {}),
    "one by one": ((2, 4, 4, 3), (1, 1), (1, 1), "SAME", {}),
    "one by one, strides": ((3, 8, 8, 2), (1, 1), (2, 2), "SAME", {}),
    "strides": ((3, 9, 8, 2), (3, 2), (2, 3), "SAME", {}),
    "dilation": ((2, 9, 8, 2), (3, 3), (1, 1), "SAME", {"rhs_dilation": (2, 1)}),
    "transposed": ((2, 4, 5, 2), (3, 3), (1, 1), ((1, 2), (2, 1)), {"lhs_dilation": (2, 2)}),
    "one dimension": ((2, 9, 3), (3,), (2,), "SAME", {}),
    "three dimensions": ((2, 4, 5, 3, 2), (3, 2, 2), (1, 2, 1), "SAME", {}),
}
STOCK = {
    "groups": (((2, 6, 6, 4), (3, 3, 2, 4)), {"feature_group_count": 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
    "groups of images": (
        ((4, 6, 6, 3), (3, 3, 3, 4)),
        {"batch_group_count": 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")},
    ),
    "channels first": (((2, 3, 6, 6), (4, 3, 3, 3)), {}),
    "no images": (((0, 6, 6, 3), (3, 3, 3, 4)), {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}),
}
POOLS = {  # window, strides, padding
    "2×2": ((2, 2), (2, 2), "VALID"),
    "overlapping": ((3, 3), (2, 2), "SAME"),
    "every place": ((3, 2), (1, 1), ((1, 1), (0, 1))),
    "gaps": ((2, 1), (3, 2), "VALID"),
    "wide": ((5, 2), (5, 2), "VALID"),  # left to XLA
}


def rewritten(function, *arguments):
    closed = jax.make_jaxpr(function)(*arguments)
    return programs.rewritten(closed, windows.rules())


def ours(function):
    def call(*arguments):
        (output,) = jaxpr_as_fun(rewritten(function, *arguments))(*arguments)
        return output

    return call


def derivatives(function, *given):
    """In a loop: values, reverse and forward derivatives, forward over reverse, and those of two of an operand."""
    few = range(len(given))
    ways = [*(tuple(0 if i == j else None for i in few) for j in few), (0,) * len(given)]

    def backward(*given):
        value, pull_back = jax.vjp(function, *given)
        return value, pull_back(jnp.sin(value))

    def step(_, given):
        tangents = tuple(jnp.cos(3 * leaf) for leaf in given)
        found = [jax.jvp(backward, given, tangents), jax.linearize(jax.checkpoint(function), *given)[1](*tangents)]
        for way in ways:
            pairs = [leaf if at is None else jnp.stack([leaf, -leaf]) for leaf, at in zip(given, way, strict=True)]
            of_both = lambda *pairs, way=way: jnp.sum(jnp.sin(jax.vmap(function, way)(*pairs)))  # noqa: E731
            found += [jax.vmap(backward, way)(*pairs), jax.grad(of_both, tuple(few))(*pairs)]
        return None, found

    return jax.lax.scan(step, None, tuple(leaf[None] for leaf in given))[1]


def agree(function, *given, exact=True):
    """With the function as it stands, up to rounding of float64 or of the type given."""
    with jax.enable_x64(exact):
        given = [jnp.asarray(leaf, jnp.float64) if exact else jnp.asarray(leaf) for leaf in given]
        found, expected = jax.jit(lambda *a: (derivatives(ours(function), *a), derivatives(function, *a)))(*given)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            assert one.dtype == other.dtype
            one, other = np.asarray(one, float), np.asarray(other, float)
            np.testing.assert_allclose(one, other, rtol=0, atol=(1e-12 if exact else 2e-6) * (1 + np.abs(other).max()))


def primitives_of(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jaxprs_in_params(equation.params):
            yield from primitives_of(inner)


@pytest.mark.parametrize("name", CASES)
def test_convolutions_are_those_of_lax(name, rng):
    shape, kernel, strides, padding, options = CASES[name]
    lhs = "NDHWC"[0] + "DHW"[3 - len(kernel) :] + "C"
    options = {"dimension_numbers": (lhs, lhs[1:-1] + "IO", lhs), **options}
    convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, strides, padding, **options)  # noqa: E731
    x, w = rng.normal(size=shape), rng.normal(size=(*kernel, shape[-1], 4))
    assert [*primitives_of(rewritten(convolve, x, w).jaxpr)] == ["baal_conv"]
    agree(convolve, x, w)


@pytest.mark.parametrize("name", ["same, uneven image", "two by two", "strides"])
def test_convolutions_of_narrow_types(name, rng):
    shape, kernel, strides, padding, _ = CASES[name]
    x, w = (rng.normal(size=size).astype(np.float32) for size in (shape, (*kernel, shape[-1], 4)))
    layer = lambda kind, x, w: jax.lax.conv_general_dilated(  # noqa: E731
        x.astype(kind), w.astype(kind), strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    ).astype(jnp.float32)
    agree(partial(layer, jnp.float32), x, w, exact=False)
    narrow = partial(layer, jnp.bfloat16)
    both = [
        jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1)))(x, w)
        for f in (ours(narrow), narrow)
    ]
    for one, other in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=0.05 * np.abs(other).max())


@pytest.mark.parametrize("name", STOCK)
def test_other_convolutions_stay_as_they_are(name, rng):
    shapes, options = STOCK[name]
    convolve = lambda x, w: jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", **options)  # noqa: E731
    arrays = [rng.normal(size=shape).astype(np.float32) for shape in shapes]
    assert str(rewritten(convolve, *arrays)) == str(jax.make_jaxpr(convolve)(*arrays))


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(("start", "join"), [(-jnp.inf, jax.lax.max), (0.0, jax.lax.add)], ids=["max", "sum"])
def test_poolings_are_those_of_lax_also_where_entries_are_equal(start, join, name, rng):
    window, strides, padding = POOLS[name]
    call = lambda x: nn.pooling.pool(x, start, join, window, strides, padding)  # noqa: E731
    x = rng.integers(-2, 3, (2, 11, 9, 3)).astype(float)
    assert any("reduce_window" in each for each in primitives_of(rewritten(call, x).jaxpr)) == (name == "wide")
    agree(call, np.maximum(x, 0.0))
    x[0, 4, 4] = np.nan
    np.testing.assert_array_equal(jax.jit(ours(call))(x), jax.jit(call)(x))


def test_programs_inside_of_programs_are_rewritten(rng):
    kernel, x = rng.normal(size=(3, 3, 2, 2)).astype(np.float32), rng.normal(size=(2, 6, 6, 2)).astype(np.float32)

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    @jax.custom_vjp
    def whole(x):
        return convolve(x, kernel)

    whole.defvjp(lambda x: (whole(x), None), lambda _, g: (2 * g,))

    def network(x, kernel):
        x = jax.jit(convolve)(x, kernel)
        x = jax.checkpoint(convolve)(jax.nn.relu(x), kernel)
        x = jax.lax.scan(lambda x, _: (convolve(x, kernel), None), x, length=2)[0]
        return jax.lax.cond(x[0, 0, 0, 0] > 0, convolve, lambda x, kernel: x, x, kernel)

    names = [*primitives_of(rewritten(lambda *given: whole(network(*given)), x, kernel).jaxpr)]
    assert names.count("baal_conv") == 4
    assert names.count("conv_general_dilated") == 1
    agree(network, x, kernel, exact=False)


def test_a_program_without_windows_is_handed_back_and_so_is_every_one_on_an_accelerator(rng, monkeypatch):
    dense = jax.make_jaxpr(lambda x: jax.nn.relu(x @ x))(np.ones((3, 3), np.float32))
    assert programs.rewritten(dense, windows.rules()) is dense
    assert programs.rewritten(dense, {sharding_constraint_p: None}) is dense
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    pooled = jax.make_jaxpr(lambda x: nn.max_pool(x, (2, 2), (2, 2)))(np.ones((1, 4, 4, 1), np.float32))
    assert programs.rewritten(pooled, windows.rules()) is pooled
