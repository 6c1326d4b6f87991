"""Features of unedited networks: what their last layer reads, and gradients with respect to all parameters."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import features
from baal_jax._util import programs
from baal_jax.features import _gradient
from baal_jax.typing import Variables
from tests import networks
from tests.fixtures import close, same

# Networks, whose last hidden layer is sown as `h`


class MLP(nn.Module):
    outputs: int = 1
    bias: bool = True
    dtype: Any = None
    normed: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5, name="first", dtype=self.dtype)(x))
        x = nn.relu(nn.Dense(7, name="hidden", dtype=self.dtype)(x))
        self.sow("seen", "h", x)
        last = nn.Dense(self.outputs, use_bias=self.bias, dtype=self.dtype)
        return (nn.WeightNorm(last) if self.normed else last)(x).astype(jnp.float32)


class Flattened(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(3, (3, 3), strides=2)(x)))
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        self.sow("seen", "h", x)
        return nn.softmax(nn.Dense(3)(x) / 0.3)


class MeanMap(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3))(x))
        self.sow("seen", "h", x.mean(axis=(1, 2)))
        return nn.Conv(3, (1, 1))(x).mean(axis=(1, 2))


class Nested(nn.Module):
    """Layers in compiled and rematerialised modules, and the last one in such a module too."""

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.remat(nn.Dense)(6)(nn.gelu(nn.jit(nn.Dense)(6)(x))))
        self.sow("seen", "h", x)
        return nn.jit(nn.Dense)(3, use_bias=False)(x)


class Shared(nn.Module):
    """Every kind of leaf: shared and single kernels, biases, scales, convolutions with strides, groups and dilation."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.gelu(nn.Conv(4, (3, 2), strides=(2, 1), padding=((1, 0), (0, 1)), kernel_dilation=(1, 2))(x))
        x = nn.Conv(4, (2, 2), feature_group_count=2)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.Dense(5)(x)  # at every position
        x = nn.DenseGeneral((2, 3), axis=(1, 3))(x[:, :2, :3])
        x = nn.tanh(nn.Dropout(0.5, deterministic=not train)(x).reshape(x.shape[0], -1))
        twice = nn.Dense(18)
        return nn.Dense(2)(twice(nn.softplus(twice(x))))


INPUTS = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
FLAT = np.ascontiguousarray(INPUTS[:, 0, :4, 0])
HIDDEN = {  # and the kernel of the last layer, where it is a matrix under a name
    "mlp": (MLP(3), FLAT, "Dense_0"),
    "regression": (MLP(1), FLAT, "Dense_0"),
    "no_bias": (MLP(3, bias=False), FLAT, "Dense_0"),
    "flattened": (Flattened(), INPUTS, "Dense_0"),
    "mean_map": (MeanMap(), INPUTS, "Conv_1"),
    "nested": (Nested(), FLAT, None),
    "half_precision": (MLP(2, dtype=jnp.bfloat16), FLAT, None),
    "weight_norm": (MLP(2, normed=True), FLAT, None),
}


def of_params(params):
    return params if isinstance(params, Variables) else Variables(params, {})


@pytest.mark.parametrize("name", HIDDEN)
def test_the_last_layer_reads_what_the_module_itself_hands_to_it(name):
    module, inputs, layer = HIDDEN[name]
    model = baal.from_linen(module)
    variables = networks.variables_of(model, inputs)

    @jax.jit
    def everything(variables):
        outputs, seen = module.apply({"params": variables.params, **variables.collections}, inputs, mutable=["seen"])
        read = features.last_hidden(model, variables=of_params)(variables, inputs)
        both = features.hidden_and_outputs(model, variables, inputs)
        return (seen["seen"]["h"][0].astype(jnp.float32), outputs), (read, *both)

    (hidden, outputs), found = jax.device_get(everything(variables))
    assert [leaf.dtype for leaf in found] == [np.float32] * 3
    assert hidden.std(axis=0).max() > 1e-3
    close(found, (hidden, hidden, outputs), rtol=2e-2 if name == "half_precision" else 1e-5)
    if layer is None:
        return
    kernel = variables.params[layer]["kernel"]
    change, rows = (np.random.default_rng(1).normal(size=size) for size in (kernel.shape, (2, outputs.shape[-1])))
    change, rows = change.astype(np.float32), rows.astype(np.float32)
    matrix, width = change.reshape(-1, change.shape[-1]), change.shape[-1]

    @jax.jit
    def changed(variables):
        def one(example):
            def network(kernel):
                params = {**variables.params, layer: {**variables.params[layer], "kernel": kernel}}
                return model.deterministic(variables._replace(params=params), example[None])[0]

            head = features.head(model, variables, example)
            assert head.width == width
            bias = head.with_bias_row(head.hidden.size + 1), head.with_bias_row(head.hidden.size)
            parts = head.hidden, head.outputs, head.push(head.hidden @ matrix), head.pull(rows), *bias
            slope, pushed = jax.jvp(network, (kernel,), (change,))[1], jax.vmap(head.push, out_axes=1)(jnp.eye(width))
            return (*parts, head.weight_norm, head.offset), slope, pushed

        return jax.vmap(one)(inputs)

    (*parts, norm, offset), slope, pushed = jax.device_get(changed(variables))
    one = np.append(hidden, np.ones((6, 1)), axis=1)
    close(parts, [hidden, outputs, slope, np.einsum("mc,bck->bmk", rows, pushed), one, hidden], rtol=1e-4, atol=1e-5)
    close(norm, np.full(6, np.sum(kernel.astype(np.float64) ** 2)), rtol=1e-5)
    close(offset, outputs - np.einsum("bck,bk->bc", pushed, hidden @ kernel.reshape(-1, width)), rtol=1e-4, atol=1e-4)
    if name in ("mlp", "no_bias"):  # nothing but a bias follows
        close(offset, np.broadcast_to(variables.params[layer].get("bias", 0.0), (6, 3)), atol=1e-5)


def test_transposed_kernels_dead_products_and_loops_do_no_harm(rng):
    def apply(params, inputs, key):
        hidden = jax.lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), inputs, params["deep"])[0]
        outputs = (params["last"].reshape(3, 4) @ hidden.T).T
        jnp.ones((3, 3)) @ params["dead"] @ outputs.T  # a later product that nothing reads
        looped = jax.lax.fori_loop(0, 3, lambda i, carry: carry / jnp.sqrt(carry @ carry.T + 1.0), outputs)
        return looped @ jnp.eye(3)  # no parameter

    params = {"deep": rng.normal(size=(3, 4, 4)), "last": rng.normal(size=12), "dead": rng.normal(size=(3, 3))}
    params, expected, model = jax.tree.map(np.float32, params), FLAT, baal.from_functions(None, apply)
    read = features.last_hidden(model, bias=True, variables=lambda state: of_params(state["weights"]))
    for kernel in params["deep"]:
        expected = np.tanh(expected @ kernel)
    close(read({"weights": params}, FLAT), np.append(expected, np.ones((6, 1)), axis=1), rtol=1e-5)


def test_the_last_layer_gradient_equals_that_by_hand():
    def gradients(name, target):
        model = baal.from_linen(HIDDEN[name][0])
        variables = networks.variables_of(model, FLAT)
        make = [features.last_layer_gradient(model, bias=bias, variables=of_params) for bias in (None, False, True)]

        @jax.jit
        def both(variables):
            def value(layer, example):
                params = {**variables.params, "Dense_0": layer}
                return target(model.deterministic(variables._replace(params=params), example[None])[0])

            slopes = jax.vmap(jax.grad(value), (None, 0))(variables.params["Dense_0"], FLAT)
            return [one(variables, FLAT) for one in make], slopes

        return jax.device_get(both(variables))

    found, slopes = gradients("regression", lambda outputs: outputs[0])
    whole = np.concatenate([slopes["kernel"][..., 0], slopes["bias"]], axis=1)
    close(found, [whole, whole[:, :-1], whole], rtol=1e-5)
    found, slopes = gradients("mlp", lambda outputs: -jax.nn.log_softmax(outputs)[jnp.argmax(outputs)])
    for residual, hidden in found:
        close(residual, slopes["bias"], atol=1e-6)
        close(np.einsum("bd,bc->bdc", hidden[:, :7], residual), slopes["kernel"], atol=1e-6)
    assert [hidden.shape[1] for _, hidden in found] == [7, 7, 8]
    same(found[2][1][:, 7], np.ones(6))
    row = baal.from_functions(None, lambda p, x, key: x @ p)  # outputs [B]
    same(
        features.last_layer_gradient(row, variables=of_params)(FLAT[0], FLAT), np.append(FLAT, np.ones((6, 1)), axis=1)
    )


def product(p, x, key):
    return x @ p


def loop(p, x, key):
    return jax.lax.fori_loop(0, x.sum().astype(int), lambda i, c: c @ p["w"], x @ p["w"])


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, x, key: x * p["row"], "has no weight layer"),
        (lambda p, x, key: x @ jnp.eye(4), "has no weight layer"),
        (lambda p, x, key: jax.lax.scan(lambda c, w: (c @ w, None), x, p["w"][None])[0], "inside of a scan"),
        (lambda p, x, key: jax.lax.cond(x.sum() > 0, lambda: (x @ p["w"]) @ p["w"], lambda: x), r"branch \(cond\)"),
        (loop, "of a while"),
        (lambda p, x, key: x + jax.random.normal(key, x.shape), "depends on the key"),
        (product, r"shape \(8, 8, 2\), but what reads the last layer needs \[C\]"),
    ],
)
def test_last_layers_that_cannot_be_read_are_refused(function, message):
    call, inputs, params = features.last_hidden, FLAT, {"w": jnp.ones((4, 4)), "row": jnp.ones((1, 4))}
    if function is product:
        call, inputs, params = features.last_layer_gradient, INPUTS, jnp.ones((1, 2))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(call(baal.from_functions(None, function), variables=of_params), params, inputs)


def test_kernels_that_are_no_matrix_and_states_without_variables_are_refused():
    with pytest.raises(ValueError, match=r"dict without variables: pass variables=\(state\) -> Variables"):
        features.last_hidden(baal.from_linen(nn.Dense(2)))({"params": 0.0}, FLAT)
    for options in ({"kernel_size": (3, 3)}, {"kernel_size": (1, 1), "feature_group_count": 4}):
        net = nn.Sequential([nn.Conv(4, (1, 1)), nn.Conv(4, **options), lambda x: x.mean(axis=(1, 2))])
        model = baal.from_linen(net)
        with pytest.raises(ValueError, match="whose weights are no matrix"):
            jax.eval_shape(lambda v, m=model: features.head(m, v, INPUTS[0])[0], networks.variables_of(model, INPUTS))


GRADIENTS = {
    "mlp": (MLP(), FLAT, None),
    "classes": (MLP(3), FLAT, None),
    "shared": (Shared(), INPUTS[:3], lambda outputs: outputs[0] * outputs[1]),
    "nested": (Nested(), FLAT, None),
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
        read = [features.gradient(model, n, scalar=scalar, variables=of_params) for n in (None, size)]
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
                sketch = features.gradient(model, size, key=key, scalar=scalar, variables=of_params)
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

    program = programs.trace(network, variables.params, example, keep_rules=True)
    return set(programs.dense_layers(program, program.arguments[0]))


def test_dense_and_convolution_kernels_are_factorised_and_shared_ones_are_not():
    model, variables, inputs, _ = setting("shared")
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables.params)]
    found = {names[i] for i in layers_of(model, variables, inputs[0])}
    assert found == {f"['{name}']['kernel']" for name in ("Conv_0", "Dense_0", "DenseGeneral_0", "Dense_2")}
    returned = programs.trace(lambda kernels, x: (x @ kernels[0], kernels), [np.ones((4, 2), np.float32)], FLAT)
    assert not programs.dense_layers(returned, returned.arguments[0])  # it has a second part of its own


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


@pytest.mark.parametrize(
    ("apply", "params", "options", "message"),
    [
        (product, np.ones((1, 2), np.float32), {}, r"have shape \(8, 8, 2\).*pass scalar="),
        (product, np.ones((1, 2), np.float32), {"scalar": lambda outputs: outputs[0, 0]}, r"returned shape \(2,\)"),
        (product, np.ones((1, 2), np.complex64), {}, "complex numbers"),
        (lambda p, x, key: (x, x), {}, {}, "2 outputs, but gradient needs one number"),
        (lambda p, x, key: x.mean(axis=(1, 2, 3)), {}, {}, "no parameters"),
        (product, None, {"sketch_size": 0}, "sketch_size"),
        (product, None, {"key": np.zeros(2, np.uint32)}, "key"),
    ],
)
def test_what_has_no_gradient_to_sketch_is_refused(apply, params, options, message):
    def sketch(params):
        return features.gradient(baal.from_functions(None, apply), variables=of_params, **options)(params, INPUTS)

    with pytest.raises((ValueError, TypeError), match=message):
        jax.eval_shape(sketch, params)
