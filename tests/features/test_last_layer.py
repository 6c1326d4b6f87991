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
WITH_ONE = np.append(FLAT, np.ones((6, 1), np.float32), axis=1)
HIDDEN = {  # and the kernel of the last layer, where it is a matrix under a name
    "mlp": (nets.MLP(3), FLAT, "Dense_0"),
    "regression": (nets.MLP(1), FLAT, "Dense_0"),
    "no_bias": (nets.MLP(3, bias=False), FLAT, "Dense_0"),
    "flattened": (nets.Flattened(), INPUTS, "Dense_0"),
    "mean_map": (nets.MeanMap(), INPUTS, "Conv_1"),
    "nested": (nets.Nested(), FLAT, None),
    "tied": (nets.Tied(), FLAT, None),
    "half_precision": (nets.MLP(2, dtype=jnp.bfloat16), FLAT, None),
    "weight_norm": (nets.MLP(2, normed=True), FLAT, None),
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

    @jax.jit
    def everything(variables):
        outputs, seen = module.apply({"params": variables.params, **variables.collections}, inputs, mutable=["seen"])
        read = features.last_hidden(model, variables=itself)(variables, inputs)
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


def test_transposed_kernels_dead_products_and_loops_do_no_harm(rng):
    def apply(params, inputs, key):
        hidden = jax.lax.scan(lambda carry, w: (jnp.tanh(carry @ w), None), inputs, params["deep"])[0]
        outputs = (params["last"].reshape(3, 4) @ hidden.T).T
        jnp.ones((3, 3)) @ params["dead"] @ outputs.T  # a later product that nothing reads
        looped = jax.lax.fori_loop(0, 3, lambda i, carry: carry / jnp.sqrt(carry @ carry.T + 1.0), outputs)
        return looped @ jnp.eye(3)  # no parameter

    params = {"deep": rng.normal(size=(3, 4, 4)), "last": rng.normal(size=12), "dead": rng.normal(size=(3, 3))}
    params, expected = jax.tree.map(np.float32, params), FLAT
    read = features.last_hidden(
        baal.from_functions(None, apply), bias=True, variables=lambda state: of_params(state["weights"])
    )
    for kernel in params["deep"]:
        expected = np.tanh(expected @ kernel)
    close(read({"weights": params}, FLAT), np.append(expected, np.ones((6, 1)), axis=1), rtol=1e-5)
    straight = baal.from_functions(None, lambda p, x, key: (p["last"].reshape(3, 4) @ x.T).T)
    head = jax.jit(lambda: features.head(straight, of_params(params), FLAT[0])._replace(push=None))()
    outputs = params["last"].reshape(3, 4) @ FLAT[0]
    close((head.outputs, head.hidden, head.offset), (outputs, FLAT[0], np.zeros(3)), atol=1e-5)
    assert int(head.width) == 3


def test_the_last_layer_gradient_equals_that_by_hand():
    def gradients(name, target):
        model = baal.from_linen(HIDDEN[name][0])
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
    same(found[2][1][:, 7], np.ones(6))
    row = baal.from_functions(None, lambda p, x, key: x @ p)  # outputs [B]
    same(features.last_layer_gradient(row, variables=of_params)(FLAT[0], FLAT), WITH_ONE)


def maps(p, x, key):
    return x @ p["map"]


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
        (maps, r"shape \(8, 8, 2\), but what reads the last layer needs \[C\]"),
    ],
)
def test_last_layers_that_cannot_be_read_are_refused(function, message):
    params = {"w": jnp.ones((4, 4)), "row": jnp.ones((1, 4)), "map": jnp.ones((1, 2))}
    call, inputs = (features.last_layer_gradient, INPUTS) if function is maps else (features.last_hidden, FLAT)
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
