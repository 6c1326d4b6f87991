"""What draws share, and what an ensemble holds at a time, read from the compiled program."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import baal_jax as baal
from baal_jax import posteriors
from baal_jax.posteriors import kernels
from tests.fixtures import untrained

BATCH, WIDTH, SAMPLES = 64, 128, 100


def network(*widths, rate=0.0):
    hidden = [layer for width in widths[:-1] for layer in (nn.Dense(width), nn.relu)]
    dropout = [nn.Dropout(rate, deterministic=False)] if rate else []
    return baal.from_linen(nn.Sequential([*hidden, *dropout, nn.Dense(widths[-1])]))


TRUNK = 2 * BATCH * (3 * WIDTH + WIDTH * WIDTH)
SHARING = {  # a posterior, what all draws share, and what each of them costs
    "dropout_gp": (
        posteriors.dropout_gp(network(WIDTH, 2, rate=0.5), untrained(), num_passes=20),
        20 * 2 * BATCH * WIDTH * 2,
        20 * 2 * BATCH * 2,
    ),
    "epinet": (
        posteriors.epinet(network(WIDTH, WIDTH, 2), untrained(), index_dim=3, hidden=(4,)),
        TRUNK + 2 * BATCH * WIDTH * 2 + 2 * 2 * BATCH * WIDTH * 4,  # features meet both first kernels once
        2 * 2 * (3 * 4 + BATCH * (4 * 6 + 6)),
    ),
    "laplace": (
        posteriors.laplace(network(WIDTH, WIDTH, 3), untrained(), structure="diagonal"),
        TRUNK,
        2 * BATCH * (WIDTH + 1) * 3,
    ),
    "gaussian_process": (
        posteriors.gaussian_process(kernels.dense(2), num_classes=3, num_features=WIDTH),
        2 * BATCH * WIDTH * WIDTH,
        2 * BATCH * 3 * (WIDTH + 1 + BATCH),
    ),
    "mc_dropconnect": (
        posteriors.mc_dropconnect(
            network(WIDTH, WIDTH, 3), untrained(), select=lambda path, leaf: path == "layers_4/kernel"
        ),
        TRUNK,
        2 * BATCH * WIDTH * 3 + 600 * WIDTH * 3,  # random bits and scaling, at most
    ),
}


@pytest.mark.parametrize("name", SHARING)
def test_a_hundred_draws_cost_one_trunk_and_a_hundred_heads(name):
    posterior, once, each = SHARING[name]
    inputs, targets = jax.ShapeDtypeStruct((BATCH, 3), jnp.float32), jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    labelled = jax.ShapeDtypeStruct((BATCH,), jnp.bool)
    state = jax.eval_shape(posterior.fit, jax.random.key(0), baal.Dataset(inputs, targets), labelled)
    draws = jax.eval_shape(lambda state: posterior.sample(jax.random.key(0), state, SAMPLES), state)
    apply = jax.jit(lambda state, draws, x: jax.vmap(lambda draw: posterior.apply(state, draw, x))(draws))
    flops = apply.lower(state, draws, inputs).compile().cost_analysis()["flops"]
    assert once < flops < 4 * once + 1.2 * SAMPLES * each


def test_members_at_a_time_bound_memory():
    """Every member needs 64 KiB to be trained, which no other needs after it."""

    def trainer(model):
        return lambda key, *rest: jnp.sum(jnp.sort(jax.random.normal(key, (2**14,)))[::7])

    def temporary(batch_size):
        fit = posteriors.deep_ensemble(network(1), trainer, 16, batch_size=batch_size).fit
        return fit.lower(jax.random.key(0), None, None).compile().memory_analysis().temp_size_in_bytes

    all_at_once, two, one = (temporary(batch_size) for batch_size in (None, 2, 1))
    assert two < all_at_once / 4
    assert one < two / 1.5
