"""MC-dropout and MC-DropConnect: one function a draw, and the masks of every weight as written down."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import posteriors
from baal_jax._util import random
from tests import networks
from tests.fixtures import NnxNet, NormedNet, close, first, same, same_key, untrained

INPUTS = np.random.default_rng(0).normal(size=(24, 8, 8, 1)).astype(np.float32)
DATA = baal.Dataset(INPUTS, np.arange(24) % 3)
MODELS = {"convolutions": baal.from_linen(networks.LinenConv()), "attention": baal.from_nnx(networks.NnxAttention)}


@pytest.mark.parametrize(("network", "shared"), [("convolutions", False), ("convolutions", True), ("attention", True)])
def test_a_draw_is_one_function(network, shared):
    """Whatever the order and the batch: the network with one key, or with one that is made of the example."""
    model, key = MODELS[network], jax.random.key(0)
    posterior = posteriors.mc_dropout(model, untrained(), shared_masks=shared)
    state = posterior.fit(key, DATA, first(24, 24))
    same_key(state.opt_state[0], key)

    def predict(inputs, batch_size=None):
        return np.asarray(baal.predict(key, posterior, state, inputs, num_samples=3, batch_size=batch_size))

    expected, order = predict(INPUTS), np.random.default_rng(1).permutation(24)
    close(predict(INPUTS[order], 7), expected[:, order], rtol=1e-5, atol=1e-5)
    assert (np.ptp(expected, axis=0) > 1e-3).any()

    @jax.jit
    def by_hand(variables, draw):
        keys = [draw if shared else random.of_example(draw, example) for example in INPUTS[4:6]]
        return jnp.stack([model.apply(variables, INPUTS[4 + i : 5 + i], one)[0] for i, one in enumerate(keys)])

    close(by_hand(state.variables, jax.random.split(key, 3)[2]), expected[2, 4:6], rtol=1e-5, atol=1e-5)


RATE = 0.3
# A network whose output are the weights that it runs with, in evaluation mode, and in training beside its key.
SHOWN = baal.Model(
    init=None,
    apply=None,
    train=lambda variables, inputs, key: (variables, key),
    deterministic=lambda variables, inputs: variables.params,
)


def state_of(params):
    return baal.TrainState(baal.Variables(params, {"batch_stats": np.float32(7)}), None, np.int32(0), np.float32(0))


def kernels(rng):
    return {"a": {"kernel": np.float32(rng.normal(size=(30, 20))), "bias": np.ones(2, np.float32)}}


def test_masks_have_a_key_of_their_name_and_keep_the_mean(key, rng):
    params = kernels(rng) | {"b": [jnp.ones((4, 4), jnp.bfloat16)]}
    posterior = posteriors.mc_dropconnect(SHOWN, untrained(), RATE, select=lambda path, leaf: leaf.ndim > 1)
    found = posterior.apply(state_of(params), key, INPUTS)
    for path, part in (("a/kernel", lambda tree: tree["a"]["kernel"]), ("b/0", lambda tree: tree["b"][0])):
        leaf, kept = part(found), part(params)
        own = jax.random.fold_in(random.vectorised(key), zlib.crc32(path.encode()))
        mask = np.asarray(jax.random.bernoulli(own, 1 - RATE, leaf.shape))
        assert leaf.dtype == kept.dtype
        close(np.float32(leaf), np.where(mask, np.float32(kept) / (1 - RATE), 0), 1e-2 if path == "b/0" else 1e-6)
    same(found["a"]["bias"], params["a"]["bias"])


def test_kernels_are_masked_and_nothing_else_unless_paths_choose(key):
    square = np.ones((8, 8), np.float32)
    tree = {"first": {"w": square, "scale": square}, "list": [{"weight": square}, {"weight": np.ones(5, np.float32)}]}
    networks = baal.from_linen(NormedNet()), baal.from_nnx(NnxNet)
    linen, nnx = (jax.eval_shape(model.init, key, np.zeros((2, 4), np.float32)).params for model in networks)
    for params, select, expected in (
        (linen, None, {"Dense_0/kernel", "Dense_1/kernel"}),
        (nnx, None, {"hidden/kernel", "out/kernel"}),
        (tree, None, {"first/w", "list/0/weight"}),
        (tree, lambda path, leaf: leaf.ndim == 1, {"list/1/weight"}),
        (tree, lambda path, leaf: path.startswith("first/"), {"first/w", "first/scale"}),
    ):
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
        found = posteriors.mc_dropconnect(SHOWN, untrained(), RATE, select=select).apply(state_of(ones), key, INPUTS)
        paths = [path for path, leaf in jax.tree_util.tree_leaves_with_path(found) if np.any(leaf != 1)]
        assert {jax.tree_util.keystr(path, simple=True, separator="/") for path in paths} == expected


def test_a_step_trains_the_masked_network_with_keys_of_its_own(key, rng):
    given, state = [], state_of(kernels(rng))
    posteriors.mc_dropconnect(SHOWN, lambda model, **_: given.append(model) or untrained()(model), RATE)
    key_masks, key_model = jax.random.split(key)
    variables, used = given[0].train(state.variables, INPUTS, key)
    same(variables.params, given[0].apply(state.variables, INPUTS, key_masks))
    same(variables.collections, state.variables.collections)
    same_key(used, key_model)
    same(given[0].deterministic(state.variables, INPUTS), state.variables.params)

    def total(params):
        return given[0].train(state.variables._replace(params=params), INPUTS, key)[0].params["a"]["kernel"].sum()

    slope, dropped = jax.grad(total)(state.variables.params)["a"]["kernel"], variables.params["a"]["kernel"] == 0
    close(slope, np.where(dropped, 0, 1 / (1 - RATE)))
