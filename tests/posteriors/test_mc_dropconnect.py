"""MC-DropConnect against all masks of a small layer written out, and what it leaves alone."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

import baal_jax as baal
from baal_jax.posteriors._mc_dropconnect import mc_dropconnect
from tests.fixtures import NnxNet, NormedNet, close, same, same_key, untrained

RATE = 0.3
KERNEL = np.array([[1.0, -2.0], [0.5, 3.0], [2.0, 1.0]], np.float32)
SQUARE = np.ones((8, 8), np.float32)
INPUTS = np.zeros((2, 4), np.float32)
# A network whose output are the weights that it runs with, in evaluation mode, and in training beside its key.
SHOWN = baal.Model(
    init=None,
    apply=None,
    train=lambda variables, inputs, key: (variables, key),
    deterministic=lambda variables, inputs: variables.params,
)


def state_of(params):
    return baal.TrainState(baal.Variables(params, {"batch_stats": np.float32(7)}), None, np.int32(0), np.float32(0))


def weights_of_draws(params, num_draws, **options):
    """``[S, …]``, as the network sees them."""
    posterior = mc_dropconnect(SHOWN, untrained(), RATE, **options)

    @jax.jit
    def draws(key, state):
        return jax.vmap(lambda draw: posterior.apply(state, draw, INPUTS))(posterior.sample(key, state, num_draws))

    return jax.device_get(draws(jax.random.key(1), state_of(params)))


def test_masks_are_drawn_with_the_chances_of_all_of_them_written_out():
    bias = np.full(2, 0.25, np.float32)
    drawn = weights_of_draws({"kernel": KERNEL, "bias": bias}, 20_000)
    close(drawn["kernel"], np.where(drawn["kernel"] == 0, 0, KERNEL / (1 - RATE)), rtol=1e-6)
    same(drawn["bias"], np.broadcast_to(bias, (20_000, 2)))
    numbers = (drawn["kernel"] != 0).reshape(-1, 6) @ 2 ** np.arange(5, -1, -1)
    masks = np.array(list(itertools.product([0, 1], repeat=6)))
    chances = np.prod(np.where(masks == 1, 1 - RATE, RATE), axis=1)
    error = np.sqrt(chances * (1 - chances) / 20_000)
    assert (np.abs(np.bincount(numbers, minlength=64) / 20_000 - chances) < 5 * error).all()


def test_kernels_are_masked_and_nothing_else_unless_paths_choose():
    tree = {"first": {"w": SQUARE, "scale": SQUARE}, "list": [{"weight": SQUARE}, {"weight": np.ones(5, np.float32)}]}
    networks = baal.from_linen(NormedNet()), baal.from_nnx(NnxNet)
    linen, nnx = (jax.eval_shape(model.init, jax.random.key(0), INPUTS).params for model in networks)
    for params, select, expected in (
        (linen, None, {"Dense_0/kernel", "Dense_1/kernel"}),
        (nnx, None, {"hidden/kernel", "out/kernel"}),
        (tree, None, {"first/w", "list/0/weight"}),
        (tree, lambda path, leaf: leaf.ndim == 1, {"list/1/weight"}),
        (tree, lambda path, leaf: path.startswith("first/"), {"first/w", "first/scale"}),
    ):
        ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), params)
        drawn = jax.tree_util.tree_leaves_with_path(weights_of_draws(ones, 20, select=select))
        differ = {jax.tree_util.keystr(path, simple=True, separator="/") for path, leaf in drawn if np.ptp(leaf) > 0}
        assert differ == expected


def test_the_mask_of_a_layer_is_its_own():
    """Another one than that of the next layer, and the same whether there is a next or not."""
    alone = weights_of_draws({"b": {"kernel": SQUARE}}, 50)
    beside = weights_of_draws({"a": {"kernel": SQUARE}, "b": {"kernel": SQUARE}}, 50)
    same(beside["b"], alone["b"])
    unequal = np.mean(beside["a"]["kernel"] != beside["b"]["kernel"])
    assert abs(unequal - 2 * RATE * (1 - RATE)) < 0.05  # of independent masks: 3,200 entries, 5 standard errors


def test_a_step_trains_the_masked_network_with_keys_of_its_own(key):
    """The trainer gets a model that masks anew with every key, and keeps the weights and their type as they are."""
    given = []
    posterior = mc_dropconnect(SHOWN, lambda model, **_: given.append(model) or untrained()(model), RATE)
    model, state = given[0], state_of({"kernel": SQUARE})
    key_masks, key_model = jax.random.split(key)
    variables, used = model.train(state.variables, INPUTS, key)
    same(variables.params, model.apply(state.variables, INPUTS, key_masks))
    same(variables.collections, state.variables.collections)
    same_key(used, key_model)
    assert 0.1 < np.mean(variables.params["kernel"] == 0) < 0.5
    same(model.deterministic(state.variables, INPUTS), {"kernel": SQUARE})

    def total(params):
        return model.train(state.variables._replace(params=params), INPUTS, key)[0].params["kernel"].sum()

    same(jax.jit(jax.grad(total))(state.variables.params), variables.params)  # nothing where a weight is dropped
    half = state_of({"kernel": jnp.asarray(KERNEL, jnp.bfloat16)})
    assert jax.eval_shape(posterior.apply, half, key, INPUTS)["kernel"].dtype == jnp.bfloat16
