"""Features read off unedited networks: the last hidden layer, gradients, and sketches of them."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import features, losses, posteriors
from baal_jax.features import _gradient, _program
from baal_jax.prediction import summarise
from baal_jax.typing import Variables
from tests import networks
from tests.feature_networks import (
    MLP,
    Attention,
    Flattened,
    HalfPrecision,
    MeanMap,
    Nested,
    Shared,
    Tied,
    WeightNormalised,
)

INPUTS = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
FLAT = INPUTS[:, 0, :4, 0]


def itself(state):
    return state


def _random_leaves(tree, seed=1):
    """Other values of the same shapes: no zeros in biases, no ones in scales."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [jnp.asarray(rng.uniform(0.2, 1.2, leaf.shape), leaf.dtype) for leaf in leaves]
    )


HIDDEN = {
    "mlp": (MLP(3), FLAT),
    "regression": (MLP(1), FLAT),
    "no_bias": (MLP(3, bias=False), FLAT),
    "flattened": (Flattened(), INPUTS),
    "mean_map": (MeanMap(), INPUTS),
    "attention": (Attention(), INPUTS),
    "nested": (Nested(), FLAT),
    "tied": (Tied(), FLAT),
    "half_precision": (HalfPrecision(), FLAT),
    "weight_norm": (WeightNormalised(), FLAT),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_last_hidden_is_what_the_module_itself_hands_to_its_last_layer(name, key):
    module, inputs = HIDDEN[name]
    model = baal.from_linen(module)
    variables = model.init(key, inputs[:1])
    variables = variables._replace(collections=_random_leaves(variables.collections))
    hidden = features.last_hidden(model, variables=itself)(variables, inputs)
    arrays = {"params": variables.params, **variables.collections}
    flags = {"train": False} if isinstance(module, Flattened | Attention) else {}
    _, seen = module.apply(arrays, inputs, mutable=["seen"], **flags)
    expected = seen["seen"]["h"][0].astype(jnp.float32)
    assert hidden.dtype == jnp.float32
    assert expected.std(axis=0).max() > 1e-3
    chex.assert_trees_all_close(hidden, expected, rtol=2e-2 if name == "half_precision" else 1e-5, atol=1e-6)


def test_last_hidden_of_stock_modules_by_capture(key):
    for module in (networks.LinenKeyword(), networks.LinenConv()):
        model = baal.from_linen(module)
        variables = model.init(key, INPUTS[:1])
        arrays = {"params": variables.params, **variables.collections}
        _, seen = module.apply(arrays, INPUTS, train=False, capture_intermediates=True, mutable=["intermediates"])
        expected = nn.relu(seen["intermediates"]["Dense_0"]["__call__"][0])
        hidden = features.last_hidden(model, variables=itself)(variables, INPUTS)
        chex.assert_trees_all_close(hidden, expected, rtol=1e-5, atol=1e-6)


def test_last_hidden_of_nnx_by_hand(key):
    module = networks.NnxConv(nnx.Rngs(0))
    model = baal.from_nnx(module)
    hidden = features.last_hidden(model, variables=itself)(model.init(key, INPUTS[:1]), INPUTS)
    x = nnx.relu(module.norm(module.conv(INPUTS), use_running_average=True))
    x = nnx.max_pool(x, (2, 2), (2, 2)).reshape(6, -1)
    chex.assert_trees_all_close(hidden, nnx.relu(module.hidden(x)), rtol=1e-5, atol=1e-6)


def test_last_hidden_of_functions_transposed_kernels_and_what_is_dead():
    def apply(params, inputs, key):
        hidden = jnp.tanh(inputs @ params["a"])
        outputs = (params["b"].reshape(3, 5) @ hidden.T).T
        del key
        jnp.ones((3, 3)) @ params["dead"] @ outputs.T  # a later product that nothing reads
        return outputs @ jnp.eye(3)  # no parameter

    rng = np.random.default_rng(0)
    params = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in [("a", (4, 5)), ("b", (15,))]}
    params["dead"] = jnp.ones((3, 3))
    model = baal.from_functions(lambda key, x: params, apply)
    read = features.last_hidden(model, bias=True, variables=lambda state: Variables(state["weights"], {}))
    hidden = read({"weights": params}, FLAT)
    expected = np.concatenate([np.tanh(FLAT @ np.asarray(params["a"])), np.ones((6, 1))], axis=1)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-6)


def test_a_linear_network_reads_its_inputs(key):
    model = baal.from_linen(nn.Dense(2))
    read = features.last_hidden(model, variables=itself)
    chex.assert_trees_all_equal(read(model.init(key, FLAT), FLAT), jnp.asarray(FLAT))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, x: x * p["w"], "has no weight layer"),
        (lambda p, x: x @ jnp.eye(4), "has no weight layer"),
        (lambda p, x: jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, p["w"][None])[0], "inside of a scan"),
        (
            lambda p, x: jax.lax.cond(x.sum() > 0, lambda: (x @ p["w"]) @ p["w"], lambda: x),
            r"inside of a branch \(cond\)",
        ),
        (lambda p, x: jax.lax.fori_loop(0, x.sum().astype(int), lambda i, c: c @ p["w"], x @ p["w"]), "of a while"),
    ],
)
def test_a_last_layer_that_cannot_be_seen_is_refused(make, message):
    params = {"w": jnp.ones((4, 4))}
    function = make if "no weight" not in message else lambda p, x: make({"w": p["w"][:1]}, x)
    model = baal.from_functions(lambda key, x: params, lambda p, x, key: function(p, x))
    with pytest.raises(ValueError, match=message):
        features.last_hidden(model, variables=lambda state: Variables(state, {}))(params, jnp.asarray(FLAT))


def test_loops_before_the_last_layer_and_loops_without_weights_do_no_harm():
    def apply(params, inputs, key):
        hidden = jax.lax.scan(lambda c, w: (jnp.tanh(c @ w), None), inputs, params["deep"])[0]
        outputs = hidden @ params["last"]
        return jax.lax.fori_loop(0, 3, lambda i, c: c / jnp.sqrt(c @ c.T), outputs)

    rng = np.random.default_rng(0)
    params = {"deep": jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32), "last": jnp.ones((4, 2))}
    model = baal.from_functions(lambda key, x: params, apply)
    hidden = features.last_hidden(model, variables=lambda s: Variables(s, {}))(params, FLAT)
    expected = FLAT
    for kernel in np.asarray(params["deep"]):
        expected = np.tanh(expected @ kernel)
    np.testing.assert_allclose(hidden, expected, rtol=1e-5, atol=1e-6)


def test_a_state_without_variables_is_refused_with_the_cure(key):
    model = baal.from_linen(MLP())
    with pytest.raises(ValueError, match=r"dict without variables: pass variables=\(state\) -> Variables"):
        features.last_hidden(model)({"params": 0.0}, FLAT)
    noisy = baal.from_functions(lambda key, x: {}, lambda p, x, key: x + jax.random.normal(key, x.shape))
    with pytest.raises(ValueError, match="depends on the key"):
        features.last_hidden(noisy, variables=itself)(Variables({}, {}), FLAT)


# Gradients


def _gradients(model, variables, inputs, scalar):
    def value(params, example):
        return scalar(model.deterministic(variables._replace(params=params), example[None])[0])

    jacobian = jax.jit(jax.jacrev(value))
    jacobians = [jacobian(variables.params, example) for example in inputs]
    return jnp.stack([jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(j)]) for j in jacobians])


def _kernel(found):
    found = jnp.asarray(found, jnp.float32)
    return found @ found.T


GRADIENTS = {
    "mlp": (MLP(), FLAT, None),
    "classes": (MLP(3), FLAT, None),
    "shared": (Shared(), INPUTS[:4], lambda outputs: outputs[0] * outputs[1]),
    "tied": (Tied(), FLAT, lambda outputs: outputs[1]),
    "nested": (Nested(), FLAT, None),
    "attention": (networks.LinenAttention(), INPUTS[:4], None),
}


def _setting(name, key):
    module, inputs, scalar = GRADIENTS[name]
    model = baal.from_linen(module)
    variables = model.init(key, inputs[:1])
    variables = variables._replace(collections=_random_leaves(variables.collections))
    return model, variables, inputs, scalar


def _by_default(outputs):
    return outputs[0] if outputs.shape == (1,) else jax.nn.log_softmax(outputs)[jnp.argmax(outputs)]


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_exact_gradient_and_a_sketch_without_collisions_give_the_kernel(name, key, monkeypatch):
    model, variables, inputs, scalar = _setting(name, key)
    expected = _gradients(model, variables, inputs, scalar or _by_default)
    exact = features.gradient(model, None, scalar=scalar, variables=itself)(variables, inputs)
    chex.assert_trees_all_close(exact, expected, rtol=1e-4, atol=1e-5)
    # A bin for every parameter: only what is projected has an error, and here nothing is.
    monkeypatch.setattr(_gradient, "_is_cheaper_formed", lambda *sizes: True)
    size = expected.shape[1] + 1
    found = features.gradient(model, size, scalar=scalar, variables=itself)(variables, inputs)
    chex.assert_shape(found, (len(inputs), size))
    scale = np.abs(_kernel(expected)).max()
    np.testing.assert_allclose(_kernel(found) / scale, _kernel(expected) / scale, atol=1e-4)


@pytest.mark.parametrize("formed", [True, False])
@pytest.mark.parametrize("name", ["mlp", "shared"])
def test_sketches_are_unbiased_and_concentrate(name, formed, key, monkeypatch):
    monkeypatch.setattr(_gradient, "_is_cheaper_formed", lambda *sizes: formed)
    model, variables, inputs, scalar = _setting(name, key)
    inputs = inputs[:3]
    expected = np.asarray(_kernel(_gradients(model, variables, inputs, scalar or _by_default)))

    def kernels(size, seeds=400):
        def one(key):
            return _kernel(features.gradient(model, size, key=key, scalar=scalar, variables=itself)(variables, inputs))

        return np.asarray(jax.lax.map(one, jax.random.split(jax.random.key(5), seeds)))

    few, many = kernels(8), kernels(128)
    errors = []
    for found in (few, many):
        standard_error = found.std(axis=0) / np.sqrt(len(found))
        assert (np.abs(found.mean(axis=0) - expected) < 4.5 * standard_error + 1e-3 * np.abs(expected).max()).all()
        errors.append(np.sqrt(((found - expected) ** 2).mean()))
    assert errors[1] < 0.4 * errors[0]  # a quarter, where errors fall with the square root
    assert errors[1] > 0.0


def test_the_factorised_sketch_is_the_implied_projection_of_the_dense_gradient():
    rng = np.random.default_rng(0)
    left, right = (rng.normal(size=(3, 2, n)).astype(np.float32) for n in (5, 4))
    size = 6
    signs_left, signs_right = (np.sign(rng.normal(size=size * n)).astype(np.float32) for n in (5, 4))
    gradient = np.einsum("bti,bto->bio", left, right)
    projection = np.einsum("ki,ko->kio", signs_left.reshape(size, 5), signs_right.reshape(size, 4)) / np.sqrt(size)
    expected = np.einsum("kio,bio->bk", projection, gradient)
    found = _gradient._product_sketch(signs_left, signs_right, jnp.asarray(left), jnp.asarray(right), size)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_sketch_in_pieces_is_the_whole_sketch(monkeypatch):
    keys = jax.random.split(jax.random.key(0), 4)
    arguments = [jax.random.normal(k, s) for k, s in zip(keys, [(60,), (48,), (3, 7, 5), (3, 7, 4)], strict=True)]
    whole = _gradient._product_sketch(*arguments, 12)
    monkeypatch.setattr(_gradient, "_CHUNK", 100)
    chex.assert_trees_all_close(_gradient._product_sketch(*arguments, 12), whole, rtol=1e-5, atol=1e-5)


def test_a_gradient_in_step_with_the_bins_does_not_fall_into_one():
    size, blocks = 16, 32
    values = np.zeros((1, size * blocks), np.float32)
    values[:, ::size] = 1.0  # one entry of every block, all at the same place
    words = np.random.default_rng(0).integers(0, 2**32, blocks, dtype=np.uint32)
    found = _gradient._count_sketch(jnp.ones(size * blocks), jnp.asarray(words), jnp.asarray(values), size)
    assert float(jnp.sum(found)) == blocks
    assert int((found > 0).sum()) > size / 2


def test_signs_are_balanced_and_independent():
    words = jax.random.bits(jax.random.key(0), (1000,), jnp.uint32)
    signs = np.asarray(_gradient._signs(words, 31_990)).reshape(-1, 10)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    products = signs.T @ signs / len(signs)
    assert np.abs(products - np.eye(10)).max() < 0.08
    assert np.abs(signs.mean(axis=0)).max() < 0.08


def test_dense_and_convolution_kernels_are_found_and_shared_ones_are_not(key):
    model, variables, inputs, _ = _setting("shared", key)

    def network(params, example):
        return model.deterministic(variables._replace(params=params), example[None])[0]

    program = _program.trace(network, variables.params, inputs[0], keep_rules=True)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables.params)]
    found = {names[i] for i in _program.dense_layers(program, program.arguments[0])}
    expected = {
        "['Conv_0']['kernel']",
        "['Dense_0']['kernel']",
        "['DenseGeneral_0']['kernel']",
        "['Dense_2']['kernel']",
    }
    assert found == expected


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


def test_derivatives_of_a_users_own_are_kept_and_faster_products_are_seen():
    def apply(params, inputs, key):
        return jnp.tanh(rounded(jnp.tanh(faster(inputs, params["faster"])), params["rounded"])) @ params["last"]

    rng = np.random.default_rng(0)
    shapes = {"faster": (5, 3), "last": (4, 1), "rounded": (3, 4)}
    params = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    model = baal.from_functions(lambda key, x: params, apply)
    expected = _gradients(model, Variables(params, {}), FLAT, lambda outputs: outputs[0])
    sketch = features.gradient(model, 64, variables=lambda state: Variables(state, {}))
    np.testing.assert_allclose(_kernel(sketch(params, FLAT)), _kernel(expected), rtol=1e-4, atol=1e-4)

    def network(params, example):
        return model.deterministic(Variables(params, {}), example[None])[0]

    program = _program.trace(network, params, FLAT[0], keep_rules=True)
    assert set(_program.dense_layers(program, program.arguments[0])) == {0, 1}  # not the rounded one
    hidden = features.last_hidden(model, variables=lambda state: Variables(state, {}))(params, FLAT)
    first = jnp.tanh(faster(FLAT, params["faster"]))
    chex.assert_trees_all_close(hidden, jnp.tanh(rounded(first, params["rounded"])), rtol=1e-5, atol=1e-6)


def test_one_key_is_one_projection_for_every_batch(key):
    model, variables, inputs, scalar = _setting("shared", key)
    sketch = features.gradient(model, 16, key=3, scalar=scalar, variables=itself)
    whole = sketch(variables, inputs)
    chex.assert_trees_all_close(sketch(variables, inputs[::-1])[::-1], whole, rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(sketch(variables, inputs[1:2]), whole[1:2], rtol=1e-4, atol=1e-4)
    by_key = features.gradient(model, 16, key=jax.random.key(3), scalar=scalar, variables=itself)
    chex.assert_trees_all_equal(by_key(variables, inputs), whole)
    other = features.gradient(model, 16, key=4, scalar=scalar, variables=itself)(variables, inputs)
    assert np.abs(other - whole).max() > 1e-2


def test_last_layer_gradients_equal_those_by_hand(key):
    model, variables, inputs, _ = _setting("mlp", key)
    found = features.last_layer_gradient(model, variables=itself)(variables, inputs)
    whole = _gradients(model, variables, inputs, _by_default)  # bias and kernel of Dense_0 come first
    chex.assert_trees_all_close(found, jnp.roll(whole[:, :8], -1, axis=1), rtol=1e-5, atol=1e-6)
    without = features.last_layer_gradient(model, bias=False, variables=itself)(variables, inputs)
    chex.assert_trees_all_close(without, found[:, :-1])

    model, variables, inputs, _ = _setting("classes", key)
    residual, hidden = features.last_layer_gradient(model, variables=itself)(variables, inputs)
    expected = _gradients(model, variables, inputs, lambda outputs: -_by_default(outputs))[:, 3 : 3 + 21]
    chex.assert_trees_all_close(jnp.einsum("bd,bc->bdc", hidden, residual).reshape(6, -1), expected, atol=1e-6)
    _, with_one = features.last_layer_gradient(model, bias=True, variables=itself)(variables, inputs)
    chex.assert_trees_all_close(with_one, jnp.concatenate([hidden, jnp.ones((6, 1))], axis=1))


def test_outputs_that_need_a_scalar_or_classes_are_refused(key):
    model = baal.from_linen(nn.Conv(2, (1, 1)))
    variables = model.init(key, INPUTS)
    with pytest.raises(ValueError, match=r"have shape \(8, 8, 2\).*pass scalar="):
        features.gradient(model, variables=itself)(variables, INPUTS)
    with pytest.raises(ValueError, match=r"shape \(8, 8, 2\), but what reads the last layer needs \[C\]"):
        features.last_layer_gradient(model, variables=itself)(variables, INPUTS)
    with pytest.raises(ValueError, match=r"returned shape \(2,\)"):
        features.gradient(model, scalar=lambda outputs: outputs[0, 0], variables=itself)(variables, INPUTS)
    with pytest.raises(ValueError, match="sketch_size=0 must be an integer"):
        features.gradient(model, 0)
    double = baal.from_functions(lambda key, x: {}, lambda p, x, key: (x, x))
    with pytest.raises(ValueError, match="2 outputs, but gradient needs one number"):
        features.gradient(double, variables=itself)(Variables({}, {}), FLAT)


def test_features_take_part_in_a_vmapped_loop(key):
    model = baal.from_linen(networks.LinenKeyword())
    trainer = baal.trainer(optax.adam(1e-2), losses.cross_entropy, num_steps=2, batch_size=4)
    data = baal.Dataset(jnp.asarray(np.repeat(INPUTS, 4, axis=0)), jnp.arange(24) % 3)

    def largest(key, summary, available, query_size, labelled=None):
        norms = jnp.where(available, jnp.linalg.norm(summary, axis=1), -1.0)
        scores, indices = jax.lax.top_k(norms, query_size)
        return baal.Selection(indices.astype(jnp.int32), scores)

    acquisition = baal.Acquisition(lambda predictions: predictions.features, largest)
    hidden, sketch = features.last_hidden(model), features.gradient(model, 8)
    loop = baal.active_loop(
        posteriors.mc_dropout(model, trainer),
        acquisition,
        query_size=2,
        num_samples=2,
        batch_size=5,
        features=lambda state, inputs: jnp.concatenate([hidden(state, inputs), sketch(state, inputs)], axis=1),
    )

    def run(key):
        return loop.step(loop.init(key, data, num_initial=4), data)[1]

    keys = jax.random.split(key, 2)
    infos, info = jax.jit(jax.vmap(run))(keys), jax.jit(run)(keys[1])
    assert (infos.indices[1] == info.indices).all()
    chex.assert_trees_all_close(infos.scores[1], info.scores, rtol=1e-3)


def test_own_embeddings_need_nothing(key):
    inputs = {"image": jnp.asarray(INPUTS), "embedding": jnp.asarray(FLAT)}
    posterior = baal.Posterior(None, lambda key, state, n: jnp.zeros(n), lambda state, draw, x: x["embedding"] + draw)
    found = summarise(
        key,
        posterior,
        None,
        inputs,
        lambda p: p.features,
        num_samples=1,
        batch_size=4,
        features=lambda state, inputs: inputs["embedding"],
    )
    chex.assert_trees_all_equal(found, inputs["embedding"])
