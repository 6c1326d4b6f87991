"""First labels from an acquisition that needs no fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, selection


def loop():
    posterior = baal.Posterior(
        lambda key, dataset, labelled, previous=None: jnp.zeros(()),
        lambda key, state, num_samples: jax.random.split(key, num_samples),
        lambda state, draw, inputs: inputs @ jax.random.normal(draw, (3, 2)),
    )
    return baal.active_loop(posterior, selection.top_k(), query_size=2)


DATA = baal.Dataset(jnp.asarray(np.random.default_rng(0).normal(size=(30, 3)), jnp.float32), jnp.zeros(30, jnp.int32))


def test_the_acquisition_picks_the_first_labels(key):
    state = loop().init(key, DATA, 4, acquisition=selection.k_center(), embeddings=DATA.inputs)
    everything = jnp.ones(30, bool)
    expected = selection.k_center().select(key, DATA.inputs, everything, 4)
    assert sorted(jnp.flatnonzero(baal.pool.labelled(state.pool)).tolist()) == sorted(expected.indices.tolist())
    assert int(state.pool.round) == int(loop().init(key, DATA, 4).pool.round)
    state, info = loop().step(state, DATA)
    assert int(info.num_labelled) == 4


def test_what_is_labelled_already_is_a_centre(key):
    given = baal.pool.label(baal.pool.init(30), [7])
    state = loop().init(key, DATA, 1, given, acquisition=selection.k_center(), embeddings=DATA.inputs)
    farthest = int(jnp.argmax(jnp.sum((DATA.inputs - DATA.inputs[7][None]) ** 2, axis=1)))
    assert jnp.flatnonzero(baal.pool.labelled(state.pool)).tolist() == sorted([7, farthest])


def test_embeddings_may_be_what_the_data_are(key):
    pixels = np.random.default_rng(0).integers(0, 255, (30, 4, 4, 1)).astype(np.uint8)
    state = loop().init(key, DATA, 3, acquisition=selection.k_means(), embeddings=pixels)
    assert int(baal.pool.num_labelled(state.pool)) == 3


def test_seeds_are_mapped():
    keys = jax.random.split(jax.random.key(0), 3)

    def first(key):
        state = loop().init(key, DATA, 3, acquisition=selection.k_means_pp(), embeddings=DATA.inputs)
        return baal.pool.labelled(state.pool)

    together = jax.vmap(first)(keys)
    np.testing.assert_array_equal(together, np.stack([first(key) for key in keys]))
    assert len(np.unique(together, axis=0)) > 1


def test_random_and_given_scores_need_no_embeddings(key):
    for acquisition in (selection.random(), selection.precomputed(jnp.arange(30.0))):
        state = loop().init(key, DATA, 2, acquisition=acquisition)
    assert jnp.flatnonzero(baal.pool.labelled(state.pool)).tolist() == [28, 29]


def test_what_does_not_fit_is_refused(key):
    with pytest.raises(ValueError, match="embeddings is None"):
        loop().init(key, DATA, 2, acquisition=selection.typiclust())
    with pytest.raises(ValueError, match="embeddings of 29 examples for 30"):
        loop().init(key, DATA, 2, acquisition=selection.typiclust(), embeddings=DATA.inputs[:29])
    with pytest.raises(ValueError, match="embeddings are given but no acquisition"):
        loop().init(key, DATA, 2, embeddings=DATA.inputs)
    with pytest.raises(ValueError, match="num_initial=0 leaves the acquisition nothing to pick"):
        loop().init(key, DATA, acquisition=selection.typiclust(), embeddings=DATA.inputs)
    with pytest.raises(ValueError, match="there is no fit to predict with"):
        loop().init(key, DATA, 2, acquisition=selection.top_k(heuristics.bald), embeddings=DATA.inputs)
