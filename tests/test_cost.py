"""Deterministic cost: floating-point operations and memory, read from the compiled program."""

import itertools

import flax.linen as nn
import jax
import optax
from flax import nnx

import baal_jax as baal
from baal_jax import heuristics, losses, posteriors

KEY = jax.random.key(0)
FEATURES, TRUNK, HIDDEN = 128, 512, 64


def head():
    """What comes with the first dropout and after it."""
    dropout = nn.Dropout(0.5, deterministic=False)
    return [dropout, nn.Dense(HIDDEN), nn.relu, dropout, nn.Dense(10)]


def trunk():
    return [nn.Dense(TRUNK), nn.relu, nn.Dense(TRUNK), nn.relu, nn.Dense(HIDDEN), nn.relu]


def nnx_network(rngs):
    sizes, dropout = (FEATURES, TRUNK, TRUNK, HIDDEN, HIDDEN, 10), nnx.Dropout(0.5, rngs=rngs)
    dense = [nnx.Linear(*pair, rngs=rngs) for pair in itertools.pairwise(sizes)]
    layers = [part for layer in dense[:3] for part in (layer, nnx.relu)]
    return nnx.Sequential(*layers, dropout, dense[3], nnx.relu, dropout, dense[4])


def compiled(model, shape, **options):
    """The program that predicts; nothing is fitted or run."""
    posterior = posteriors.mc_dropout(model, baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1))
    inputs, targets, labelled = (
        jax.ShapeDtypeStruct(*leaf) for leaf in ((shape, "f4"), (shape[:1], "i4"), (shape[:1], bool))
    )
    state = jax.eval_shape(posterior.fit, KEY, baal.Dataset(inputs, targets), labelled)
    return jax.jit(lambda state, x: baal.predict(KEY, posterior, state, x, **options)).lower(state, inputs).compile()


def flops(model, width):
    """Of one draw and of twenty."""
    costs = [compiled(model, (16, width), num_samples=num).cost_analysis() for num in (1, 20)]
    return [(cost[0] if isinstance(cost, list) else cost)["flops"] for cost in costs]


def test_twenty_draws_cost_one_trunk_and_twenty_heads():
    one_head, heads = flops(baal.from_linen(nn.Sequential(head())), HIDDEN)
    assert heads <= 1.05 * 20 * one_head
    # Sharing the trunk must come from the draws, not from a head that costs nothing.
    assert heads > 19 * 16 * 2 * HIDDEN * HIDDEN
    for model in (baal.from_linen(nn.Sequential([*trunk(), *head()])), baal.from_nnx(nnx_network)):
        one, twenty = flops(model, FEATURES)
        assert one - one_head > 20 * one_head
        assert twenty <= 1.05 * (one - one_head + heads)


def test_predict_is_as_large_as_what_it_returns():
    memory = compiled(
        baal.from_linen(nn.Sequential(head())), (2048, 8), num_samples=50, batch_size=32
    ).memory_analysis()
    assert memory.output_size_in_bytes == 50 * 2048 * 10 * 4
    assert memory.temp_size_in_bytes <= 3 * memory.output_size_in_bytes


def test_heuristics_hold_no_array_of_all_draws():
    num, classes = 3000, 10
    logits = jax.ShapeDtypeStruct((20, num, classes), "float32")
    for name, score in heuristics.REGISTRY.items():
        memory = score.lower(logits).compile().memory_analysis()
        assert memory.temp_size_in_bytes <= 4 * 6.01 * num * classes, name
