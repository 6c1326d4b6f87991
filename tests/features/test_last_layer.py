"""The last layer of unedited networks: what it reads, its gradients, and what a change of it changes."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import features
from baal_jax.typing import TrainState, Variables
from tests import feature_networks as nets
from tests import networks
from tests.fixtures import close, same

INPUTS = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
FLAT = np.ascontiguousarray(INPUTS[:, 0, :4, 0])
HIDDEN = {  # and the kernel of the last layer, where it is a matrix under a name
    "mlp": (nets.MLP(3), FLAT, "Dense_0"),
    "regression": (nets.MLP(1), FLAT, "Dense_0"),
    "no_bias": (nets.MLP(3, bias=False), FLAT, "Dense_0"),
    "flattened": (nets.Flattened(), INPUTS, "Dense_0"),
    "mean_map": (nets.MeanMap(), INPUTS, "Conv_1"),
    "attention": (nets.Attention(), INPUTS, "Dense_1"),
    "nested": (nets.Nested(), FLAT, None),
    "tied": (nets.Tied(), FLAT, None),
    "half_precision": (nets.HalfPrecision(), FLAT, None),
    "weight_norm": (nets.WeightNormalised(), FLAT, None),
}


def itself(state):
    return state


def of_params(params):
    return Variables(params, {})


@pytest.mark.parametrize("name", HIDDEN)
def test_the_last_layer_reads_what_the_module_itself_hands_to_it(name):
    module, inputs, layer = HIDDEN[name]
    model = baal.from_linen(module)
    variables = networks.variables_of(model, inputs)
    flags = {"train": False} if isinstance(module, nets.Flattened | nets.Attention) else {}

    @jax.jit
    def everything(variables):
        arrays = {"params": variables.params, **variables.collections}
        outputs, seen = module.apply(arrays, inputs, mutable=["seen"], **flags)
        read = features.last_hidden(model, variables=itself)(variables, inputs)
        both = features.hidden_and_outputs(model, variables, inputs)
        return (seen["seen"]["h"][0].astype(jnp.float32), outputs), (read, *both)

    (hidden, outputs), found = everything(variables)
    assert [leaf.dtype for leaf in found] == [jnp.float32] * 3
    assert hidden.std(axis=0).max() > 1e-3
    close(found, (hidden, hidden, outputs), rtol=2e-2 if name == "half_precision" else 1e-5)
    if layer is None:
        return
    kernel = variables.params[layer]["kernel"]
    rng = np.random.default_rng(1)
    change = rng.normal(size=kernel.shape).astype(np.float32)
    width, num_outputs = kernel.shape[-1], outputs.shape[-1]
    rows = rng.normal(size=(2, num_outputs)).astype(np.float32)

    @jax.jit
    def changed(variables):
        def one(example):
            def network(kernel):
                leaves = {**variables.params[layer], "kernel": kernel}
                params = {**variables.params, layer: leaves}
                return model.deterministic(variables._replace(params=params), example[None])[0]

            head = features.head(model, variables, example)
            assert head.width == width
            slope = jax.jvp(network, (kernel,), (change,))[1]
            pushed = jax.vmap(head.push, out_axes=1)(jnp.eye(width))
            bias = head.with_bias_row(head.hidden.size + 1), head.with_bias_row(head.hidden.size)
            parts = (
                head.hidden,
                head.outputs,
                head.push(head.hidden @ change.reshape(-1, width)),
                head.pull(rows),
                *bias,
            )
            return (*parts, head.weight_norm, head.offset), slope, pushed

        return jax.vmap(one)(inputs)

    (*parts, norm, offset), slope, pushed = jax.device_get(changed(variables))
    hidden, outputs = np.asarray(hidden), np.asarray(outputs)
    one = np.concatenate([hidden, np.ones((6, 1))], axis=1)
    close(parts, [hidden, outputs, slope, np.einsum("mc,bck->bmk", rows, pushed), one, hidden], rtol=1e-4, atol=1e-5)
    close(norm, np.full(6, np.sum(kernel.astype(np.float64) ** 2)), rtol=1e-5)
    close(offset, outputs - np.einsum("bck,bk->bc", pushed, hidden @ kernel.reshape(-1, width)), rtol=1e-4, atol=1e-4)
    if name in ("mlp", "no_bias"):  # nothing but a bias follows
        close(offset, np.broadcast_to(variables.params[layer].get("bias", 0.0), (6, 3)), atol=1e-5)


def test_the_last_layer_of_an_nnx_module():
    module = networks.NnxConv(nnx.Rngs(0))
    model = baal.from_nnx(module)

    @jax.jit
    def both():
        x = nnx.relu(module.norm(module.conv(INPUTS), use_running_average=True))
        x = nnx.relu(module.hidden(nnx.max_pool(x, (2, 2), (2, 2)).reshape(6, -1)))
        state = TrainState(model.init(jax.random.key(0), INPUTS), None, None, None)
        return features.last_hidden(model)(state, INPUTS), x

    close(*both(), rtol=1e-5)


def test_transposed_kernels_dead_products_and_loops_do_no_harm():
    def apply(params, inputs, key):
        hidden = jax.lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), inputs, params["deep"])[0]
        outputs = (params["last"].reshape(3, 4) @ hidden.T).T
        del key
        jnp.ones((3, 3)) @ params["dead"] @ outputs.T  # a later product that nothing reads
        looped = jax.lax.fori_loop(0, 3, lambda i, carry: carry / jnp.sqrt(carry @ carry.T + 1.0), outputs)
        return looped @ jnp.eye(3)  # no parameter

    rng = np.random.default_rng(0)
    shapes = {"deep": (3, 4, 4), "last": (12,), "dead": (3, 3)}
    params = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = baal.from_functions(lambda key, x: params, apply)
    read = features.last_hidden(model, bias=True, variables=lambda state: of_params(state["weights"]))
    expected = FLAT
    for kernel in params["deep"]:
        expected = np.tanh(expected @ kernel)
    close(read({"weights": params}, FLAT), np.concatenate([expected, np.ones((6, 1))], axis=1), rtol=1e-5)
    straight = baal.from_functions(None, lambda p, x, key: (p["last"].reshape(3, 4) @ x.T).T)
    head = jax.jit(lambda: features.head(straight, of_params(params), FLAT[0])._replace(push=None))()
    change = params["last"].reshape(3, 4)
    close((head.outputs, head.hidden, head.offset), (change @ FLAT[0], FLAT[0], np.zeros(3)), atol=1e-5)
    assert int(head.width) == 3


def test_the_last_layer_gradient_equals_that_by_hand():
    def gradients(name, target):
        module = HIDDEN[name][0]
        model = baal.from_linen(module)
        variables = networks.variables_of(model, FLAT)
        make = [features.last_layer_gradient(model, bias=bias, variables=itself) for bias in (None, False, True)]

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
    np.testing.assert_array_equal(found[2][1][:, 7], 1.0)
    row = baal.from_functions(None, lambda p, x, key: x @ p)  # outputs [B]
    expected = np.concatenate([FLAT, np.ones((6, 1))], axis=1)
    same(features.last_layer_gradient(row, variables=of_params)(FLAT[0], FLAT), expected)


def test_last_layers_that_cannot_be_read_are_refused():
    def refused(function, message, call=features.last_hidden, inputs=FLAT, params=None):
        params = {"w": jnp.ones((4, 4)), "row": jnp.ones((1, 4))} if params is None else params
        model = baal.from_functions(lambda key, x: params, function)
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(call(model, variables=of_params), params, inputs)

    def branch(p, x, key):
        return jax.lax.cond(x.sum() > 0, lambda: (x @ p["w"]) @ p["w"], lambda: x)

    refused(lambda p, x, key: x * p["row"], "has no weight layer")
    refused(lambda p, x, key: x @ jnp.eye(4), "has no weight layer")
    refused(lambda p, x, key: jax.lax.scan(lambda c, w: (c @ w, None), x, p["w"][None])[0], "inside of a scan")
    refused(branch, r"inside of a branch \(cond\)")
    loop = lambda p, x, key: jax.lax.fori_loop(0, x.sum().astype(int), lambda i, c: c @ p["w"], x @ p["w"])  # noqa: E731
    refused(loop, "of a while")
    refused(lambda p, x, key: x + jax.random.normal(key, x.shape), "depends on the key")
    maps = lambda p, x, key: x @ p  # noqa: E731
    need = r"shape \(8, 8, 2\), but what reads the last layer needs \[C\]"
    refused(maps, need, features.last_layer_gradient, INPUTS, jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"dict without variables: pass variables=\(state\) -> Variables"):
        features.last_hidden(baal.from_linen(nn.Dense(2)))({"params": 0.0}, FLAT)
    for options in ({"kernel_size": (3, 3)}, {"kernel_size": (1, 1), "feature_group_count": 4}):
        conv = nn.Conv(4, **options)
        model = baal.from_linen(nn.Sequential([nn.Conv(4, (1, 1)), conv, lambda x: x.mean(axis=(1, 2))]))
        with pytest.raises(ValueError, match="whose weights are no matrix"):
            jax.eval_shape(lambda v, m=model: features.head(m, v, INPUTS[0])[0], networks.variables_of(model, INPUTS))
