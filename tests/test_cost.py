"""Deterministic cost: floating-point operations and memory, read from the compiled program."""

import itertools

import flax.linen as nn
import jax
import optax
from flax import nnx

import baal_jax as baal
from baal_jax import losses, posteriors

KEY = jax.random.key(0)
FEATURES, TRUNK, HIDDEN = 128, 512, 64


class LinenTrunk(nn.Module):
    """Wide layers and a dropout head."""

    @nn.compact
    def __call__(self, x, train: bool):
        for width in (TRUNK, TRUNK, HIDDEN):
            x = nn.relu(nn.Dense(width)(x))
        return LinenHead()(x, train)


class LinenHead(nn.Module):
    """What comes with the first dropout and after it."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxTrunk(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        sizes = (FEATURES, TRUNK, TRUNK, HIDDEN, HIDDEN, 10)
        self.dense = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for layer in self.dense[:3]:
            x = nnx.relu(layer(x))
        return self.dense[4](self.dropout(nnx.relu(self.dense[3](self.dropout(x)))))


def _compiled(model, shape, **options):
    """The program that predicts; nothing is fitted or run."""
    posterior = posteriors.mc_dropout(model, baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1))
    inputs, targets, labelled = (
        jax.ShapeDtypeStruct(*leaf) for leaf in ((shape, "f4"), (shape[:1], "i4"), (shape[:1], bool))
    )
    state = jax.eval_shape(posterior.fit, KEY, baal.Dataset(inputs, targets), labelled)
    return jax.jit(lambda state, x: baal.predict(KEY, posterior, state, x, **options)).lower(state, inputs).compile()


def _flops_of_draws(model, width, num_samples):
    cost = _compiled(model, (16, width), num_samples=num_samples).cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def test_twenty_draws_cost_one_trunk_and_twenty_heads():
    heads = {num: _flops_of_draws(baal.from_linen(LinenHead()), HIDDEN, num) for num in (1, 20)}
    assert heads[20] <= 1.05 * 20 * heads[1]
    # Sharing the trunk must come from the draws, not from a head that costs nothing.
    assert heads[20] > 19 * 16 * 2 * HIDDEN * HIDDEN
    for model in (baal.from_linen(LinenTrunk()), baal.from_nnx(NnxTrunk)):
        whole = {num: _flops_of_draws(model, FEATURES, num) for num in (1, 20)}
        trunk = whole[1] - heads[1]
        assert trunk > 20 * heads[1]
        assert whole[20] <= 1.05 * (trunk + heads[20])


def test_predict_is_as_large_as_what_it_returns():
    net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(10)])
    memory = _compiled(baal.from_linen(net), (2048, 8), num_samples=50, batch_size=32).memory_analysis()
    assert memory.output_size_in_bytes == 50 * 2048 * 10 * 4
    assert memory.temp_size_in_bytes <= 3 * memory.output_size_in_bytes
