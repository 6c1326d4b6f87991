"""The oracle row: the batch after which the test loss is smallest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, pool, posteriors, selection
from tests import fixtures

TRAIN, TEST = fixtures.clouds()
NUM = len(TRAIN.targets)
INPUTS = jnp.asarray(TEST.inputs)
HEAD = posteriors.logistic_regression(3, prior_precision=1.0, point_estimate=True)
own = lambda state, inputs: inputs  # noqa: E731


def loss_after(labelled):
    """On the test set, of a head that knows these labels."""
    state = HEAD.fit(jax.random.key(0), baal.Dataset(*map(jnp.asarray, TRAIN)), jnp.asarray(labelled))
    log_p = np.asarray(jax.nn.log_softmax(HEAD.apply(state, state.weights, INPUTS)))
    return -float(np.mean(log_p[np.arange(len(TEST.targets)), TEST.targets]))


def loop_of(strategies, query_size, **options):
    acquisition = selection.oracle(strategies, HEAD, TRAIN.targets, TEST.targets, **options)
    posterior = posteriors.logistic_regression(3, prior_precision=1.0)
    return baal.active_loop(posterior, acquisition, query_size=query_size, num_samples=8, features=own)


def test_of_all_single_examples_it_takes_the_best():
    one = np.eye(NUM, dtype=np.float32)
    loop = loop_of({f"{i}": selection.precomputed(one[i]) for i in range(NUM)}, 1, num_batches=1)
    state = loop.init(jax.random.key(1), TRAIN, 4)
    labelled = np.asarray(pool.labelled(state.pool))
    _, info = loop.step(state, TRAIN, INPUTS)
    losses = [np.inf if labelled[i] else loss_after(labelled | (one[i] > 0)) for i in range(NUM)]
    np.testing.assert_allclose(-info.scores[0], min(losses), rtol=1e-4)
    np.testing.assert_allclose(losses[int(info.indices[0])], min(losses), rtol=1e-4)


def test_by_accuracy_it_takes_the_most_accurate_and_targets_may_be_traced():
    one = np.eye(NUM, dtype=np.float32)
    strategies = {f"{i}": selection.precomputed(one[i]) for i in range(NUM)}

    @jax.jit
    def picked(targets, test_targets):
        acquisition = selection.oracle(strategies, HEAD, targets, test_targets, num_batches=1, by="accuracy")
        loop = baal.active_loop(HEAD, acquisition, query_size=1, num_samples=1, features=own)
        state = loop.init(jax.random.key(1), baal.Dataset(TRAIN.inputs, targets), 4)
        _, info = loop.step(state, baal.Dataset(TRAIN.inputs, targets), INPUTS)
        return pool.labelled(state.pool), info.indices[0], info.scores[0]

    def value(labelled):
        state = HEAD.fit(jax.random.key(0), baal.Dataset(*map(jnp.asarray, TRAIN)), jnp.asarray(labelled))
        logits = HEAD.apply(state, state.weights, INPUTS)
        return np.mean(logits.argmax(axis=1) == TEST.targets) + 1 / (1 + loss_after(labelled)) / len(TEST.targets)

    labelled, index, score = picked(*(jnp.asarray(part.targets, jnp.int32) for part in (TRAIN, TEST)))
    values = [-np.inf if labelled[i] else value(labelled | (one[i] > 0)) for i in range(NUM)]
    np.testing.assert_allclose([score, values[int(index)]], max(values), rtol=1e-5)


def test_it_is_no_worse_than_any_of_its_strategies():
    strategies = {"margin": selection.top_k(heuristics.margin), "herding": selection.uncertainty_herding()}
    loop = loop_of(strategies, 4, num_batches=3)
    state = loop.init(jax.random.key(2), TRAIN, 4)
    labelled = np.asarray(pool.labelled(state.pool))
    _, info = loop.step(state, TRAIN, INPUTS)
    best = loss_after(labelled | np.isin(np.arange(NUM), info.indices))
    np.testing.assert_allclose(info.scores, np.full(4, -best), rtol=1e-4)
    for one in strategies.values():
        alone = baal.active_loop(loop.posterior, one, query_size=4, num_samples=8, features=own)
        _, other = alone.step(state, TRAIN)
        assert best <= loss_after(labelled | np.isin(np.arange(NUM), other.indices)) + 1e-6
    # It is an acquisition as any other: a run is one program, and a pool that runs out ends it.
    final, infos = baal.run(loop, None, TRAIN, TEST, state=state, num_rounds=10, target_inputs=INPUTS)
    assert int(pool.num_labelled(final.pool)) == NUM
    assert np.isnan(infos.scores[-1]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategies": {}}, "at least one"),
        ({"strategies": {"a": heuristics.bald}}, "must be acquisitions"),
        ({"targets": np.full(NUM, -1)}, "targets int64.* must be known classes"),
        ({"test_targets": np.ones((3, 2), int)}, "test_targets int64"),
        ({"num_batches": 0}, "num_batches=0 must be"),
        ({"share": 1.5}, "share=1.5 is a part of the pool"),
    ],
)
def test_what_it_cannot_read_is_refused(change, message):
    given = {"strategies": {"random": selection.random()}, "targets": TRAIN.targets, "test_targets": TEST.targets}
    with pytest.raises(ValueError, match=message):
        selection.oracle(**{"head": HEAD, **given, **change})


def test_targets_of_other_examples_are_refused():
    acquisition = selection.oracle({"random": selection.random()}, HEAD, TRAIN.targets[:-1], TEST.targets)
    given = baal.Predictions(None, jnp.asarray(TRAIN.inputs), None, INPUTS)
    with pytest.raises(ValueError, match="targets are of 39 examples, but features of 40"):
        baal.select(jax.random.key(0), acquisition, given, query_size=2, labelled=np.zeros(NUM, bool))
