"""Outputs of any library, without a loop: picks are those of the loop's own parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import Predictions, heuristics, selection
from tests.fixtures import SPY

KEY, NUM = jax.random.key(0), 12
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, NUM, 3)).astype(np.float32)
FEATURES = RNG.normal(size=(NUM, 4)).astype(np.float32)
ALL = Predictions(LOGITS, FEATURES, RNG.normal(size=(5, 2, 3)).astype(np.float32))
AVAILABLE = np.arange(NUM) % 5 != 3
LABELLED = np.arange(NUM) == 3


def build(name):
    return selection.REGISTRY[name](**({"num_configurations": 27} if name == "batch_bald" else {}))


@pytest.mark.parametrize("name", selection.REGISTRY)
def test_picks_are_those_of_a_round_of_the_loop(name):
    acquisition = build(name)
    loop = baal.active_loop(SPY, acquisition, query_size=3)
    labelled_at = np.where(LABELLED, 0, np.where(AVAILABLE, -1, -2)).astype(np.int32)
    pool = baal.pool.init(NUM)._replace(labelled_at=jnp.asarray(labelled_at))
    np.testing.assert_array_equal(baal.pool.available(pool), AVAILABLE)
    state = baal.LoopState(KEY, pool, None, jnp.int32(0))
    summary = None if acquisition.summarise is None else jax.jit(acquisition.summarise)(ALL)
    theirs, _ = loop.round.select(KEY, state, summary, None, jnp.asarray(AVAILABLE))
    picked = baal.select(KEY, acquisition, ALL, AVAILABLE, query_size=3, labelled=LABELLED)
    np.testing.assert_array_equal(picked.indices, theirs.indices)
    np.testing.assert_allclose(picked.scores, theirs.scores, rtol=1e-4, atol=1e-5)


def test_logits_alone_are_enough_for_what_reads_no_more():
    margin = selection.top_k(heuristics.margin)
    order = np.argsort(-np.asarray(heuristics.margin(LOGITS)), kind="stable")
    assert baal.select(KEY, margin, LOGITS, query_size=4).indices.tolist() == order[:4].tolist()
    few = np.isin(np.arange(NUM), order[[2, 5]])
    assert baal.select(KEY, margin, LOGITS, few, query_size=3).indices.tolist() == [*order[[2, 5]].tolist(), -1]
    inside = jax.jit(lambda logits: baal.select(KEY, margin, logits, query_size=4).indices)
    assert inside(LOGITS).tolist() == order[:4].tolist()
    assert set(baal.select(KEY, selection.random(), LOGITS, few, query_size=2).indices.tolist()) == {*order[[2, 5]]}
    embedded = baal.select(KEY, selection.typiclust(), Predictions(None, FEATURES), query_size=2, labelled=LABELLED)
    assert len(set(embedded.indices.tolist())) == 2


@pytest.mark.parametrize(
    ("acquisition", "predictions", "options", "words"),
    [
        (heuristics.bald, LOGITS, {}, "acquisition is bald.*selection.top_k"),
        (build("lcmd"), LOGITS, {"labelled": LABELLED}, r"features is None.*Predictions\(logits, features\)"),
        (build("lcmd"), ALL, {}, "labelled is None.*bool"),
        (build("top_k"), LOGITS[0], {}, r"predictions has shape \(12, 3\).*predictions\[None\]"),
        (build("top_k"), LOGITS, {"available": AVAILABLE[1:]}, r"of \[12, 11\] examples"),
        (build("top_k"), LOGITS, {"available": np.flatnonzero(np.ones(NUM))}, "masks, bool"),
        (build("top_k"), LOGITS, {"query_size": NUM + 1}, "query_size=13 exceeds the 12"),
        (build("top_k"), np.exp(LOGITS) / np.exp(LOGITS).sum(-1, keepdims=True), {}, "probabilities: pass logits"),
    ],
)
def test_what_is_missing_or_does_not_fit_is_named(acquisition, predictions, options, words):
    with pytest.raises((ValueError, TypeError), match=words):
        baal.select(KEY, acquisition, predictions, **{"query_size": 2, **options})


def test_a_committee_of_trees_votes():
    """Query by committee (Dagan and Engelson 1995), whose trees are sure of most of what they say."""
    from sklearn.ensemble import RandomForestClassifier

    targets = (FEATURES[:, 0] > 0).astype(int) + (FEATURES[:, 1] > 0)
    forest = RandomForestClassifier(7, random_state=0).fit(FEATURES[::2], targets[::2])
    votes = np.stack([tree.predict_proba(FEATURES) for tree in forest.estimators_])
    predictions = Predictions.from_probabilities(votes, FEATURES)
    assert np.isneginf(predictions.logits).any()
    assert predictions.features is FEATURES
    np.testing.assert_allclose(np.exp(predictions.logits), votes, rtol=1e-6)
    # Trees grown to purity: the mean is the share of votes, and its entropy is that of the vote.
    share = votes.mean(axis=0)
    vote_entropy = -np.sum(share * np.log(np.where(share > 0, share, 1)), axis=-1)
    np.testing.assert_allclose(heuristics.entropy(predictions.logits), vote_entropy, rtol=1e-5, atol=1e-6)
    for score in heuristics.REGISTRY.values():
        if selection.top_k(score).tasks == ("classification",) and score is not heuristics.epig:
            picked = baal.select(KEY, selection.top_k(score), predictions, query_size=NUM)
            assert np.isfinite(picked.scores).all(), score.__name__
    picked = baal.select(KEY, selection.top_k(heuristics.entropy), predictions, query_size=3)
    np.testing.assert_allclose(picked.scores, np.sort(vote_entropy)[::-1][:3], rtol=1e-5, atol=1e-6)


def test_probabilities_are_looked_at():
    one = np.array([[0.5, 0.5], [1.0, 0.0]])
    assert Predictions.from_probabilities(one).logits.shape == (1, 2, 2)
    both = Predictions.from_probabilities(one[None], target_probabilities=one[None, :1])
    np.testing.assert_allclose(both.target_logits, np.log([[[0.5, 0.5]]]), rtol=1e-6)
    jax.jit(Predictions.from_probabilities)(one)
    for wrong in (np.array([[0.5, 0.6]]), np.array([[1.5, -0.5]]), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="1 rows are no probabilities, such as"):
            Predictions.from_probabilities(wrong)
    with pytest.raises(ValueError, match=r"shape \(2,\)"):
        Predictions.from_probabilities(one[0])
