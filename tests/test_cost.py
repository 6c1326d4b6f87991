"""Deterministic cost: floating-point operations and memory, read from the compiled program."""

import itertools
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import heuristics, losses, posteriors

import models

IMAGES = jax.ShapeDtypeStruct((16, 32, 32, 3), jnp.float32)
CHANNELS = (16, 32, 64, 64, 64)
HIDDEN = 256


class LinenVgg(nn.Module):
    """Five convolutional stages and a dropout head, as in VGG."""

    @nn.compact
    def __call__(self, x, train: bool):
        for width in CHANNELS:
            for _ in range(2):
                x = nn.relu(nn.Conv(width, (3, 3))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(HIDDEN)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxVgg(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        widths = [3, *(width for width in CHANNELS for _ in range(2))]
        self.convs = nnx.List([nnx.Conv(a, b, (3, 3), rngs=rngs) for a, b in itertools.pairwise(widths)])
        self.dense = nnx.List(
            [nnx.Linear(a, b, rngs=rngs) for a, b in ((CHANNELS[-1], HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 10))]
        )
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for i, conv in enumerate(self.convs):
            x = nnx.relu(conv(x))
            x = nnx.max_pool(x, (2, 2), (2, 2)) if i % 2 else x
        x = self.dropout(nnx.relu(self.dense[0](x.reshape(x.shape[0], -1))))
        return self.dense[2](self.dropout(nnx.relu(self.dense[1](x))))


class LinenHead(nn.Module):
    """What comes after the first dropout, by itself."""

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.5, deterministic=not train)(x)
        x = nn.relu(nn.Dense(HIDDEN)(x))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


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


@pytest.mark.parametrize("model", [lambda: baal.from_linen(LinenVgg()), lambda: baal.from_nnx(NnxVgg)])
def test_twenty_draws_cost_one_trunk_and_twenty_heads(model, key):
    posterior, head = _posterior(model()), _posterior(baal.from_linen(LinenHead()))
    state = _state(posterior, IMAGES)
    head_input = jax.ShapeDtypeStruct((16, HIDDEN), jnp.float32)
    head_state = _state(head, head_input)

    def predict(posterior, num_samples):
        return lambda state, x: baal.predict(key, posterior, state, x, num_samples=num_samples)

    whole = {s: _flops(_compiled(predict(posterior, s), state, IMAGES)) for s in (1, 20)}
    heads = {s: _flops(_compiled(predict(head, s), head_state, head_input)) for s in (1, 20)}
    trunk = whole[1] - heads[1]
    assert trunk > 20 * heads[1]
    assert whole[20] <= 1.05 * (trunk + heads[20])
    assert heads[20] <= 1.05 * 20 * heads[1]
    # Sharing the trunk must come from the draws, not from a head that costs nothing.
    assert heads[20] > 19 * 16 * 2 * HIDDEN * HIDDEN


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


@pytest.fixture(scope="module")
def mlp():
    net = nn.Sequential([nn.Dense(64), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(10)])
    return _posterior(baal.from_linen(net))


@pytest.mark.parametrize("num_examples", [1024, 4096])
def test_score_holds_one_batch_of_draws_and_never_all(mlp, key, num_examples):
    inputs = jax.ShapeDtypeStruct((num_examples, 8), jnp.float32)
    state = _state(mlp, inputs)

    def memory(num_samples):
        def score(state, x):
            return baal.score(key, mlp, state, x, heuristics.bald, num_samples=num_samples, batch_size=32)

        return _compiled(score, state, inputs).memory_analysis().temp_size_in_bytes

    few, many = memory(10), memory(100)
    one_batch = 32 * (64 + 64 + 10 * 8) * 4  # hidden units, their mask, and copies of the logits, for one draw
    assert many - few <= 90 * one_batch
    assert many < 100 * num_examples * 10 * 4  # smaller than [S, N, C] alone


def test_predict_is_as_large_as_what_it_returns(mlp, key):
    inputs = jax.ShapeDtypeStruct((2048, 8), jnp.float32)

    def predict(state, x):
        return baal.predict(key, mlp, state, x, num_samples=50, batch_size=32)

    memory = _compiled(predict, _state(mlp, inputs), inputs).memory_analysis()
    assert memory.output_size_in_bytes == 50 * 2048 * 10 * 4
    assert memory.temp_size_in_bytes <= 3 * memory.output_size_in_bytes
