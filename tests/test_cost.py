"""Deterministic cost: floating-point operations and memory, read from the compiled program."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import models
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import losses, posteriors

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


def _posterior(model):
    return posteriors.mc_dropout(model, baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1))


def _compiled(function, *arguments):
    return jax.jit(function).lower(*arguments).compile()


def _flops(compiled):
    cost = compiled.cost_analysis()
    return (cost[0] if isinstance(cost, list) else cost)["flops"]


def _state(posterior, inputs):
    data = baal.Dataset(inputs, jax.ShapeDtypeStruct(inputs.shape[:1], jnp.int32))
    labelled = jax.ShapeDtypeStruct(inputs.shape[:1], jnp.bool)
    return jax.eval_shape(posterior.fit, jax.random.key(0), data, labelled)


def _flops_of_draws(posterior, width, num_samples, key):
    inputs = jax.ShapeDtypeStruct((16, width), jnp.float32)

    def predict(state, inputs):
        return baal.predict(key, posterior, state, inputs, num_samples=num_samples)

    return _flops(_compiled(predict, _state(posterior, inputs), inputs))


def test_twenty_draws_cost_one_trunk_and_twenty_heads(key):
    head = _posterior(baal.from_linen(LinenHead()))
    heads = {num: _flops_of_draws(head, HIDDEN, num, key) for num in (1, 20)}
    assert heads[20] <= 1.05 * 20 * heads[1]
    # Sharing the trunk must come from the draws, not from a head that costs nothing.
    assert heads[20] > 19 * 16 * 2 * HIDDEN * HIDDEN
    for model in (baal.from_linen(LinenTrunk()), baal.from_nnx(NnxTrunk)):
        whole = {num: _flops_of_draws(_posterior(model), FEATURES, num, key) for num in (1, 20)}
        trunk = whole[1] - heads[1]
        assert trunk > 20 * heads[1]
        assert whole[20] <= 1.05 * (trunk + heads[20])


def test_vgg16_computes_its_trunk_and_its_first_dense_layer_once(key):
    batch, samples = 4, 20
    trunk, first, rest = 2 * 313_196_544, 2 * 512 * 4096, 2 * (4096 * 4096 + 4096 * 10)
    posterior = _posterior(baal.from_linen(models.VGG16()))
    inputs = jax.ShapeDtypeStruct((batch, 32, 32, 3), jnp.uint8)
    state = _state(posterior, inputs)

    def predict(state, x):
        return baal.predict(key, posterior, state, x, num_samples=samples)

    flops = _flops(_compiled(predict, state, inputs))
    assert flops <= 1.05 * batch * (trunk + first + samples * rest)
    # Of the kernel between two dropout layers, what is dropped is left out: 2304² of 4096² weights are multiplied.
    assert flops == pytest.approx(batch * (trunk + first + samples * 2 * (2304**2 + 4096 * 10)), rel=0.1)


def test_predict_is_as_large_as_what_it_returns(key):
    """That scores are smaller: contracts/test_posteriors."""
    net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(10)])
    posterior, inputs = _posterior(baal.from_linen(net)), jax.ShapeDtypeStruct((2048, 8), jnp.float32)

    def predict(state, x):
        return baal.predict(key, posterior, state, x, num_samples=50, batch_size=32)

    memory = _compiled(predict, _state(posterior, inputs), inputs).memory_analysis()
    assert memory.output_size_in_bytes == 50 * 2048 * 10 * 4
    assert memory.temp_size_in_bytes <= 3 * memory.output_size_in_bytes
