"""Pages for people from other libraries: what they say of equal numbers, where the library is installed."""

import jax
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, selection


@pytest.fixture
def probas(rng):
    z = 2 * rng.normal(size=(8, 40, 3))
    return np.exp(z) / np.exp(z).sum(axis=2, keepdims=True)  # [S, N, C]


def test_scikit_activeml_gives_the_same_scores_and_picks(probas):
    pool = pytest.importorskip("skactiveml.pool")
    logits, mean = np.log(probas).astype(np.float32), probas.mean(axis=0)
    for method, name, offset in (("least_confident", "least_confidence", 0), ("margin_sampling", "margin", 1),
                                 ("entropy", "entropy", 0)):  # fmt: skip
        found = heuristics.REGISTRY[name](logits) + np.float32(offset)
        np.testing.assert_allclose(pool.uncertainty_scores(mean, method=method), found, atol=2e-6)
    np.testing.assert_allclose(pool.average_kl_divergence(probas), heuristics.bald(logits), atol=2e-6)
    utilities = pool.batch_bald(probas.copy(), 3, n_MC_samples=10_000, random_state=0)
    picked = baal.select(jax.random.key(0), selection.batch_bald(), logits, query_size=3)
    assert np.nanargmax(utilities, axis=1).tolist() == picked.indices.tolist()
    np.testing.assert_allclose(np.nanmax(utilities, axis=1), np.cumsum(picked.scores), atol=1e-5)


def test_batchbald_redux_gives_the_same_scores_and_picks(probas):
    torch, batchbald = pytest.importorskip("torch"), pytest.importorskip("batchbald_redux.batchbald")
    log_probs = np.log(probas)
    given = torch.from_numpy(np.moveaxis(log_probs, 0, 1).copy())
    theirs = batchbald.get_batchbald_batch(given, 3, 10_000, dtype=torch.double)
    picked = baal.select(jax.random.key(0), selection.batch_bald(), log_probs.astype(np.float32), query_size=3)
    assert theirs.indices == picked.indices.tolist()
    np.testing.assert_allclose(theirs.scores, np.cumsum(picked.scores), atol=1e-5)
