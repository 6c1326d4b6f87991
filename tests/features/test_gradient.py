"""Gradients of unedited networks with respect to all parameters, and sketches of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import features
from baal_jax.features import _gradient, _program
from tests import feature_networks as nets
from tests import networks
from tests.features.test_last_layer import FLAT, INPUTS, itself, of_params
from tests.fixtures import close, same

GRADIENTS = {
    "mlp": (nets.MLP(), FLAT, None),
    "classes": (nets.MLP(3), FLAT, None),
    "shared": (nets.Shared(), INPUTS[:3], lambda outputs: outputs[0] * outputs[1]),
    "tied": (nets.Tied(), FLAT, lambda outputs: outputs[1]),
    "nested": (nets.Nested(), FLAT, None),
    "attention": (networks.LinenAttention(), INPUTS[:3], None),
}


def by_default(outputs):
    return outputs[0] if outputs.shape == (1,) else jax.nn.log_softmax(outputs)[jnp.argmax(outputs)]


def gradients(model, variables, inputs, scalar):
    def value(params, example):
        return scalar(model.deterministic(variables._replace(params=params), example[None])[0])

    slopes = jax.vmap(jax.grad(value), (None, 0))(variables.params, inputs)
    return jnp.concatenate([leaf.reshape(len(inputs), -1) for leaf in jax.tree.leaves(slopes)], axis=1)


def kernel(found):
    return found @ found.T


def setting(name):
    module, inputs, scalar = GRADIENTS[name]
    model = baal.from_linen(module)
    return model, networks.variables_of(model, inputs), inputs, scalar


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_exact_gradient_and_a_sketch_without_collisions_give_the_kernel(name, monkeypatch):
    model, variables, inputs, scalar = setting(name)
    size = 1 + sum(leaf.size for leaf in jax.tree.leaves(variables.params))
    # A bin for every parameter: only what is projected has an error, and here nothing is.
    monkeypatch.setattr(_gradient, "_is_cheaper_formed", lambda *sizes: True)

    @jax.jit
    def everything(variables):
        expected = gradients(model, variables, inputs, scalar or by_default)
        read = [features.gradient(model, n, scalar=scalar, variables=itself) for n in (None, size)]
        return expected, *(one(variables, inputs) for one in read)

    expected, exact, sketch = jax.device_get(everything(variables))
    close(exact, expected, atol=1e-5)
    assert (sketch.shape, sketch.dtype) == ((len(inputs), size), np.float32)
    scale = np.abs(kernel(expected)).max()
    np.testing.assert_allclose(kernel(sketch) / scale, kernel(expected) / scale, atol=1e-4)


@pytest.mark.parametrize(("name", "formed"), [("shared", False), ("mlp", True)], ids=["projected", "formed"])
def test_sketches_are_unbiased_and_concentrate(name, formed, monkeypatch):
    monkeypatch.setattr(_gradient, "_is_cheaper_formed", lambda *sizes: formed)
    model, variables, inputs, scalar = setting(name)

    @jax.jit
    def both(variables):
        def kernels(size):
            def one(key):
                sketch = features.gradient(model, size, key=key, scalar=scalar, variables=itself)
                return kernel(sketch(variables, inputs))

            return jax.lax.map(one, jax.random.split(jax.random.key(5), 300))

        return kernel(gradients(model, variables, inputs, scalar or by_default)), kernels(8), kernels(128)

    expected, *found = jax.device_get(both(variables))
    for sketched in found:
        error = sketched.std(axis=0) / np.sqrt(len(sketched))
        assert (np.abs(sketched.mean(axis=0) - expected) < 4.5 * error + 1e-3 * np.abs(expected).max()).all()
    errors = [np.sqrt(((sketched - expected) ** 2).mean()) for sketched in found]
    assert 0 < errors[1] < 0.4 * errors[0]  # a quarter, where errors fall with the square root


def test_the_factorised_sketch_is_the_implied_projection_also_in_pieces(monkeypatch, rng):
    left, right = (rng.normal(size=(3, 7, n)).astype(np.float32) for n in (5, 4))
    signs = [rng.choice([-1, 1], size=12 * n).astype(np.float32) for n in (5, 4)]
    projection = np.einsum("ki,ko->kio", signs[0].reshape(12, 5), signs[1].reshape(12, 4)) / np.sqrt(12)
    for chunk in (2**24, 100):
        monkeypatch.setattr(_gradient, "_CHUNK", chunk)
        found = jax.jit(lambda *given: _gradient._product_sketch(*given, 12))(*signs, left, right)
        close(found, np.einsum("kio,bti,bto->bk", projection, left, right), atol=1e-5)


def test_a_gradient_is_formed_where_it_is_small_and_projected_where_it_is_large():
    assert _gradient._is_cheaper_formed(1, 8, 8, 512)
    assert _gradient._is_cheaper_formed(1024, 27, 64, 512)  # a kernel that meets many positions
    assert not _gradient._is_cheaper_formed(1, 2048, 1000, 512)


def test_a_gradient_in_step_with_the_bins_does_not_fall_into_one(rng):
    size, blocks = 16, 32
    values = np.zeros((2, size * blocks - 3), np.float32)
    values[0, ::size], values[1] = 1.0, np.arange(size * blocks - 3)  # one entry of every block at the same place
    words = rng.integers(0, 2**32, blocks, dtype=np.uint32)
    sketch = jax.jit(lambda signs: _gradient._count_sketch(signs, words, values, size))
    found = jax.device_get(sketch(np.ones(size * blocks, np.float32)))
    assert (found[0] > 0).sum() > size / 2
    rows = np.pad(values, ((0, 0), (0, 3))).reshape(2, blocks, size)  # every block turns by its own angle
    expected = sum(np.roll(rows[:, block], -int(word % size), axis=1) for block, word in enumerate(words))
    close(found, expected)
    close(sketch(np.full(size * blocks, -1, np.float32)), -expected)


def layers_of(model, variables, example):
    def network(params, example):
        return model.deterministic(variables._replace(params=params), example[None])[0]

    program = _program.trace(network, variables.params, example, keep_rules=True)
    return set(_program.dense_layers(program, program.arguments[0]))


def test_dense_and_convolution_kernels_are_factorised_and_shared_ones_are_not():
    model, variables, inputs, _ = setting("shared")
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables.params)]
    found = {names[i] for i in layers_of(model, variables, inputs[0])}
    assert found == {f"['{name}']['kernel']" for name in ("Conv_0", "Dense_0", "DenseGeneral_0", "Dense_2")}
    returned = _program.trace(lambda kernels, x: (x @ kernels[0], kernels), [np.ones((4, 2), np.float32)], FLAT)
    assert not _program.dense_layers(returned, returned.arguments[0])  # it has a second part of its own


@jax.custom_vjp
def faster(inputs, kernel):
    return jnp.pad(inputs, ((0, 0), (0, 1))) @ kernel


def _faster_backward(saved, cotangent):
    inputs, kernel = saved
    return (cotangent @ kernel.T)[:, :-1], jnp.pad(inputs, ((0, 0), (0, 1))).T @ cotangent


faster.defvjp(lambda inputs, kernel: (faster(inputs, kernel), (inputs, kernel)), _faster_backward)


@jax.custom_jvp
def rounded(inputs, kernel):
    return inputs @ jnp.round(kernel)


@rounded.defjvp
def _straight_through(primals, tangents):
    (inputs, kernel), (inputs_dot, kernel_dot) = primals, tangents
    return rounded(inputs, kernel), inputs_dot @ jnp.round(kernel) + inputs @ kernel_dot


def test_derivatives_of_a_users_own_are_kept_and_faster_products_are_seen(rng):
    def hidden(params, inputs):
        return jnp.tanh(rounded(jnp.tanh(faster(inputs, params["faster"])), params["rounded"]))

    shapes = {"faster": (5, 3), "last": (4, 1), "rounded": (3, 4)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = baal.from_functions(None, lambda params, inputs, key: hidden(params, inputs) @ params["last"])

    @jax.jit
    def both(params):
        expected = kernel(gradients(model, of_params(params), FLAT, lambda outputs: outputs[0]))
        sketch = features.gradient(model, 64, variables=of_params)(params, FLAT)
        read = features.last_hidden(model, variables=of_params)(params, FLAT)
        return (kernel(sketch), read), (expected, hidden(params, FLAT))

    close(*both(params), atol=1e-4)
    assert layers_of(model, of_params(params), FLAT[0]) == {0, 1}  # not the rounded one


def test_one_key_is_one_projection_for_every_batch_and_every_network_of_a_stack(rng):
    params = {"count": np.int32(3), "w": rng.normal(size=(4, 30)).astype(np.float32)}
    model = baal.from_functions(None, lambda p, x, key: jnp.tanh(x @ p["w"]).sum(axis=1))  # outputs [B]

    def make(key, size=16):
        return features.gradient(model, size, key=key, variables=of_params)

    @jax.jit
    def everything(params):
        stack = jax.tree.map(lambda leaf: jnp.stack([2 * leaf, leaf]), params)
        same_rows = make(3)(params, FLAT[::-1])[::-1], jax.vmap(make(3), (0, None))(stack, FLAT)[1]
        each = (make(key)(params, FLAT) for key in (3, jax.random.key(3), 4))
        return *each, make(3, None)(params, FLAT), same_rows

    whole, by_key, other, exact, same_rows = jax.device_get(everything(params))
    for rows in same_rows:
        close(rows, whole, atol=1e-4)
    close(make(3)(params, FLAT[1:2]), whole[1:2], atol=1e-4)
    same(by_key, whole)
    assert np.abs(other - whole).max() > 1e-2
    slope = 1 - np.tanh(FLAT @ params["w"]) ** 2
    close(exact, (FLAT[:, :, None] * slope[:, None]).reshape(6, -1), rtol=1e-3, atol=1e-5)  # nothing of the counter


def maps(p, x, key):
    return x @ p


@pytest.mark.parametrize(
    ("apply", "params", "options", "message"),
    [
        (maps, np.ones((1, 2), np.float32), {}, r"have shape \(8, 8, 2\).*pass scalar="),
        (maps, np.ones((1, 2), np.float32), {"scalar": lambda outputs: outputs[0, 0]}, r"scalar returned shape \(2,\)"),
        (maps, np.ones((1, 2), np.complex64), {}, "complex numbers"),
        (lambda p, x, key: (x, x), {}, {}, "2 outputs, but gradient needs one number"),
        (lambda p, x, key: x.mean(axis=(1, 2, 3)), {}, {}, "no parameters"),
        (maps, None, {"sketch_size": 0}, "sketch_size"),
        (maps, None, {"key": np.zeros(2, np.uint32)}, "key"),
    ],
)
def test_what_has_no_gradient_to_sketch_is_refused(apply, params, options, message):
    def sketch(params):
        return features.gradient(baal.from_functions(None, apply), variables=of_params, **options)(params, INPUTS)

    with pytest.raises((ValueError, TypeError), match=message):
        jax.eval_shape(sketch, params)
