"""The loop: one round in every disguise, what it picks, and what reaches its parts."""

import contextlib
from types import SimpleNamespace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import heuristics, metrics, pool, posteriors, selection

ROUNDS, SIZE = 4, 100


@contextlib.contextmanager
def count_compilations():
    """Lists what XLA compiles meanwhile."""
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


def network_posterior():
    net = nn.Sequential([nn.Dense(8), nn.relu, nn.Dropout(0.5, deterministic=False), nn.Dense(10)])
    trainer = baal.trainer(optax.sgd(0.3), baal.losses.cross_entropy, num_steps=10, batch_size=8)
    return posteriors.mc_dropout(baal.from_linen(net), trainer)


def known_scores(seed=0):
    """Inputs whose scores are known, as a data set of 100 and the scores."""
    scores = np.random.default_rng(seed).permutation(SIZE).astype(np.float32)
    return baal.Dataset(jnp.asarray(scores)[:, None], jnp.arange(SIZE) % 7), scores


# The state of a fit is what the fit was given, so that tests can look at it; the only output is the input.
SPY = baal.Posterior(
    fit=lambda key, dataset, labelled, previous=None: {"labelled": labelled, "targets": dataset.targets},
    sample=lambda key, state, num_samples: jnp.zeros(num_samples),
    apply=lambda state, draw, inputs: inputs,
)


def first_output(logits):
    return logits[0, :, 0]


def spy_loop(acquisition=None, **arguments):
    arguments = {"query_size": 10, "num_samples": 2, "batch_size": 32} | arguments
    return baal.active_loop(SPY, acquisition or selection.top_k(first_output), **arguments)


@pytest.fixture(scope="module")
def data():
    train, test = baal.data.digits()
    return baal.Dataset(train.inputs[:40], train.targets[:40]), baal.Dataset(test.inputs[::12], test.targets[::12])


ACCURACY = metrics.MetricSet(
    lambda predictions: metrics.model_average(predictions.logits),
    lambda log_probs, targets: {"accuracy": metrics.accuracy(log_probs, targets)},
)


def build():
    return baal.active_loop(
        network_posterior(),
        selection.top_k(heuristics.bald),
        query_size=3,
        num_samples=4,
        batch_size=16,
        metrics=ACCURACY,
    )


@pytest.fixture(scope="module")
def digits(data):
    """One run by hand, and what compiling it took."""
    loop, (train, test) = build(), data
    key = jax.random.key(7)
    states, infos, compiled = [loop.init(key, train, num_initial=5)], [], []
    for _ in range(ROUNDS):
        with count_compilations() as counted:
            state, info = loop.step(states[-1], train)
        compiled.append(len(counted))
        states.append(state)
        infos.append(info._replace(metrics=loop.evaluate(state, test)))
    return SimpleNamespace(
        loop=loop,
        train=train,
        test=test,
        key=key,
        states=states,
        infos=jax.tree.map(lambda *leaves: np.stack(leaves), *infos),
        compiled=compiled,
    )


def assert_same_run(found, digits, start=0, stop=ROUNDS):
    (state, infos), last = found, digits.states[stop]
    expected = jax.tree.map(lambda leaf: leaf[start:stop], digits.infos)
    np.testing.assert_array_equal(infos.indices, expected.indices)
    np.testing.assert_array_equal(infos.num_labelled, expected.num_labelled)
    np.testing.assert_array_equal(infos.round, expected.round)
    np.testing.assert_allclose(infos.scores, expected.scores, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(infos.mean_score, expected.mean_score, rtol=1e-4)
    if infos.metrics is not None:
        np.testing.assert_array_equal(infos.metrics["accuracy"], expected.metrics["accuracy"])
    np.testing.assert_array_equal(state.pool.labelled_at, last.pool.labelled_at)
    for a, b in zip(jax.tree.leaves(state.posterior), jax.tree.leaves(last.posterior), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_a_run_by_hand_is_sound(digits):
    assert digits.infos.indices.shape == (ROUNDS, 3)
    assert len(set(digits.infos.indices.ravel())) == ROUNDS * 3
    assert digits.infos.num_labelled.tolist() == [5, 8, 11, 14]
    assert digits.infos.round.tolist() == [1, 2, 3, 4]  # round 0 labelled the initial examples
    assert np.all(np.diff(digits.infos.scores, axis=1) <= 0)
    assert np.all(digits.infos.scores[:, 0] > digits.infos.mean_score)
    assert digits.infos.num_nan.tolist() == [0] * ROUNDS
    assert 0.1 < digits.infos.metrics["accuracy"].max() <= 1
    final = digits.states[-1].pool.labelled_at
    for number, indices in zip(digits.infos.round, digits.infos.indices, strict=True):
        assert set(np.flatnonzero(final == number)) == set(indices)


def test_a_whole_run_compiles_the_step_once(digits):
    assert digits.compiled == [1, 0, 0, 0]
    assert digits.loop.evaluate._cache_size() == 1


def test_a_step_is_traced_once_until_the_pool_is_empty():
    data, _ = known_scores()
    loop = spy_loop()
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(lambda state, data: loop.step(state, data), n=1))
    state = loop.init(jax.random.key(0), data, num_initial=10)
    for _ in range(10):
        state, info = step(state, data)
    assert int(info.num_picked) == 0


def test_the_scan_is_the_python_loop(digits):
    # Case 49: twice, with numpy's hidden generator in another state.
    run = jax.jit(lambda key, train, test: baal.run(digits.loop, key, train, test, num_initial=5, num_rounds=ROUNDS))
    once = run(digits.key, digits.train, digits.test)
    assert_same_run(once, digits)
    np.random.seed(3)  # noqa: NPY002
    twice = run(digits.key, digits.train, digits.test)
    jax.tree.map(np.testing.assert_array_equal, once[1], twice[1])
    np.testing.assert_array_equal(once[0].pool.labelled_at, twice[0].pool.labelled_at)


def test_a_run_resumes_from_any_round(digits):
    # Case 49.
    resume = jax.jit(lambda state, train: baal.run(digits.loop, None, train, num_rounds=2, state=state))
    for start in range(ROUNDS - 1):
        found = resume(digits.states[start], digits.train)
        assert_same_run(found, digits, start, start + 2)


@pytest.mark.parametrize("over_keys", [lambda run, keys: jax.lax.map(run, keys), lambda run, keys: jax.vmap(run)(keys)])
def test_one_seed_among_many_is_that_seed_alone(over_keys, digits):
    # Case 49.
    keys = jnp.stack([jax.random.key(1), digits.key])
    many = over_keys(lambda key: baal.run(digits.loop, key, digits.train, num_initial=5, num_rounds=ROUNDS), keys)
    assert_same_run(jax.tree.map(lambda leaf: leaf[1], many), digits)
    other = many[1].indices[0]
    assert not np.array_equal(other, many[1].indices[1])
    assert len(set(np.asarray(other).ravel().tolist())) == ROUNDS * 3


def test_nothing_compiled_goes_back_to_the_host(digits):
    step = jax.make_jaxpr(digits.loop.step)(digits.states[0], digits.train)
    run = jax.make_jaxpr(lambda key, train, test: baal.run(digits.loop, key, train, test, num_initial=5, num_rounds=2))(
        digits.key, digits.train, digits.test
    )
    assert "scan" in str(run)
    for program in (step, run):
        assert "callback" not in str(program)


def test_no_key_is_used_twice_in_a_run(data, key_reuse):
    train = baal.Dataset(*(jnp.asarray(leaf[:12]) for leaf in data[0]))

    def augment(key, batch):
        return batch._replace(inputs=batch.inputs + 0.1 * jax.random.normal(key, batch.inputs.shape))

    net = nn.Sequential([nn.Dropout(0.5, deterministic=False), nn.Dense(10)])
    trainer = baal.trainer(optax.sgd(0.1), baal.losses.cross_entropy, num_steps=2, batch_size=4, augment=augment)
    posterior = posteriors.mc_dropout(baal.from_linen(net), trainer)
    loop = baal.active_loop(
        posterior,
        selection.power(heuristics.bald),
        query_size=2,
        num_samples=2,
        batch_size=None,
        max_sample=6,
    )
    state, infos = baal.run(loop, jax.random.key(0), train, train, num_initial=2, num_rounds=2)
    assert int(pool.num_labelled(state.pool)) == 6
    assert infos.metrics["accuracy"].shape == (2,)


def test_the_best_available_examples_are_labelled_until_none_is_left():
    # Case 46: ten of a hundred, then ten by ten; Baal returns True nine times and then False.
    data, scores = known_scores()
    loop = spy_loop()
    start = loop.init(jax.random.key(0), data, num_initial=10)
    state, infos = baal.run(loop, None, data, num_rounds=11, state=start)
    assert infos.num_picked.tolist() == [10] * 9 + [0, 0]
    assert infos.num_labelled.tolist() == [*range(10, 100, 10), 100, 100]
    left = np.where(np.asarray(pool.available(start.pool)), scores, -np.inf)
    expected = np.argsort(-left)[:90].reshape(9, 10)
    np.testing.assert_array_equal(infos.indices[:9], expected)
    np.testing.assert_array_equal(infos.scores[:9], scores[expected])
    assert np.all(infos.indices[9:] == -1)
    assert np.all(np.isnan(infos.scores[9:]))
    assert np.all(np.isnan(infos.mean_score[9:]))
    np.testing.assert_allclose(infos.mean_score[8], scores[expected[8]].mean())

    after, info = loop.step(state, data)
    assert int(info.num_picked) == 0
    np.testing.assert_array_equal(after.pool.labelled_at, state.pool.labelled_at)
    assert int(after.pool.round) == int(state.pool.round) + 1


def test_a_query_larger_than_what_is_left_takes_what_is_left():
    data, _ = known_scores()
    loop = spy_loop(query_size=60)
    state, infos = baal.run(loop, jax.random.key(0), data, num_initial=10, num_rounds=2)
    assert infos.num_picked.tolist() == [60, 30]
    assert np.all(infos.indices[1, :30] >= 0)
    assert np.all(infos.indices[1, 30:] == -1)
    assert int(pool.num_labelled(state.pool)) == SIZE


@pytest.mark.parametrize(("max_sample", "num_picked"), [(5, 5), (90, 10), (95, 10), (SIZE, 10), (1000, 10)])
def test_a_sampled_pool_is_labelled_by_its_ids_in_the_whole_data_set(max_sample, num_picked):
    # Cases 46 and 47, where Baal's experiment labels other examples than it scored. With a sample as large as what is
    # available (90 of 100) the picks are known although the sample stands in another order.
    data, scores = known_scores()
    loop = spy_loop(max_sample=max_sample)
    start = loop.init(jax.random.key(1), data, num_initial=10)
    state, info = loop.step(start, data)
    left = np.where(np.asarray(pool.available(start.pool)), scores, -np.inf)
    picked = np.asarray(info.indices[:num_picked])
    assert int(info.num_picked) == num_picked
    assert np.all(info.indices[num_picked:] == -1)
    np.testing.assert_array_equal(info.scores[:num_picked], scores[picked])
    assert np.all(np.diff(info.scores[:num_picked]) < 0)
    assert np.all(np.isfinite(left[picked]))
    assert set(np.flatnonzero(pool.labelled(state.pool))) == set(np.flatnonzero(~np.isfinite(left))) | set(picked)
    if max_sample >= 90:
        np.testing.assert_array_equal(picked, np.argsort(-left)[:10])
        np.testing.assert_allclose(info.mean_score, left[np.isfinite(left)].mean(), rtol=1e-6)
    else:
        np.testing.assert_allclose(info.mean_score, scores[picked].mean(), rtol=1e-6)


def test_every_round_samples_the_pool_anew():
    data, _ = known_scores()
    loop = spy_loop(max_sample=5, query_size=5)
    _, infos = baal.run(loop, jax.random.key(1), data, num_rounds=20)
    assert len(np.unique(infos.indices)) == SIZE
    other = baal.run(loop, jax.random.key(2), data, num_rounds=1)[1]
    assert not np.array_equal(np.sort(other.indices[0]), np.sort(infos.indices[0]))


def test_random_acquisition_predicts_nothing():
    # Case 20.
    def never(*arguments):
        raise AssertionError("predicted for a random acquisition")

    posterior = SPY._replace(sample=never, apply=never)
    data, _ = known_scores()
    loop = baal.active_loop(posterior, selection.random(), query_size=10, max_sample=20)
    state, infos = baal.run(loop, jax.random.key(0), data, num_initial=10, num_rounds=3)
    assert int(pool.num_labelled(state.pool)) == 40
    assert np.all(np.isnan(infos.mean_score))
    with pytest.raises(AssertionError, match="predicted"):
        baal.active_loop(posterior, selection.top_k(first_output), query_size=1).step(
            loop.init(jax.random.key(0), data), data
        )


def test_labels_stored_in_the_pool_are_what_a_fit_sees():
    unlabelled = known_scores()[0]._replace(targets=None)
    given = pool.label(pool.init(SIZE, targets=jnp.full(SIZE, -1)), [4, 9], targets=[3, 5])
    loop = spy_loop(query_size=2)
    state, info = loop.step(loop.init(jax.random.key(0), unlabelled, pool=given), unlabelled)
    assert state.posterior["targets"].tolist() == [{4: 3, 9: 5}.get(i, -1) for i in range(SIZE)]
    assert np.flatnonzero(state.posterior["labelled"]).tolist() == [4, 9]
    state = state._replace(pool=pool.annotate(state.pool, info.indices, [6, 1]))
    state, _ = loop.step(state, unlabelled)
    answers = {4: 3, 9: 5, int(info.indices[0]): 6, int(info.indices[1]): 1}
    assert state.posterior["targets"].tolist() == [answers.get(i, -1) for i in range(SIZE)]
    assert set(np.flatnonzero(state.posterior["labelled"])) == set(answers)


def test_a_fit_sees_only_the_last_rounds_while_labels_stay_labels():
    data, _ = known_scores()
    loop = spy_loop(last_rounds=2, query_size=3)
    state = loop.init(jax.random.key(0), data, num_initial=4)
    picked = [np.flatnonzero(pool.labelled(state.pool)).tolist()]
    for number in range(4):
        state, info = loop.step(state, data)
        assert set(np.flatnonzero(state.posterior["labelled"])) == {i for ids in picked[-2:] for i in ids}
        assert int(info.num_labelled) == 4 + 3 * number
        picked.append(info.indices.tolist())
    assert len({i for ids in picked for i in ids}) == 4 + 4 * 3


def test_the_state_before_the_first_round_holds_zeros_and_fits_are_passed_on():
    def fit(key, dataset, labelled, previous=None):
        count = jnp.float32(0) if previous is None else previous["count"]
        return {"count": count + 1, "key": key}

    posterior = SPY._replace(fit=fit)
    data, _ = known_scores()
    loop = baal.active_loop(posterior, selection.top_k(first_output), query_size=1, num_samples=1)
    state = loop.init(jax.random.key(0), data)
    assert float(state.posterior["count"]) == 0
    keys = []
    for number in (1, 2, 3):
        state, _ = loop.step(state, data)
        assert float(state.posterior["count"]) == number
        keys.append(tuple(jax.random.key_data(state.posterior["key"]).tolist()))
    assert len(set(keys)) == 3
    with count_compilations() as compiled:
        loop.step(state, data)
    assert not compiled


def test_your_own_fit_takes_the_place_of_the_trainers(digits):
    fitted = digits.states[2].posterior
    posterior = network_posterior()._replace(fit=lambda key, dataset, labelled, previous=None: fitted)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=3, num_samples=4, batch_size=None)
    state, info = loop.step(digits.states[1], digits.train)
    jax.tree.map(np.testing.assert_array_equal, state.posterior, fitted)
    np.testing.assert_array_equal(info.indices, digits.infos.indices[1])  # the same fit and draws, the same picks


def test_scores_that_are_nan_are_counted_and_come_last():
    # Case 13.
    data, scores = known_scores()
    broken = data.inputs.at[jnp.array([0, 17, 99]), 0].set(jnp.nan)
    data = data._replace(inputs=broken)
    loop = spy_loop(query_size=98)
    given = pool.label(pool.init(SIZE), [17])
    _, info = loop.step(loop.init(jax.random.key(0), data, pool=given), data)
    assert int(info.num_nan) == 2  # the third is labelled already
    ordinary = [i for i in np.argsort(-scores) if i not in (0, 17, 99)]
    np.testing.assert_array_equal(info.indices[:97], ordinary)
    assert int(info.indices[97]) in (0, 99)
    assert np.isnan(info.scores[97])
    np.testing.assert_allclose(info.mean_score, scores[ordinary].mean(), rtol=1e-6)


def test_features_reach_the_acquisition():
    data, scores = known_scores()
    acquisition = baal.Acquisition(lambda p: p.features[:, 0] + 0.0 * p.logits[0, :, 0], selection.top_k().select)
    loop = spy_loop(acquisition, features=lambda state, inputs: -inputs, query_size=5)
    _, info = loop.step(loop.init(jax.random.key(0), data), data)
    np.testing.assert_array_equal(info.indices, np.argsort(scores)[:5])


def test_target_inputs_reach_the_acquisition():
    data, scores = known_scores()

    def nearness(predictions):
        assert predictions.target_logits.shape == (2, 1, 1)
        return -jnp.abs(predictions.logits[0, :, 0] - predictions.target_logits[0, :, 0])

    loop = spy_loop(baal.Acquisition(nearness, selection.top_k().select), query_size=3)
    expected = np.argsort(np.abs(scores - 40.25))[:3]
    _, info = loop.step(loop.init(jax.random.key(0), data), data, jnp.array([[40.25]]))
    np.testing.assert_array_equal(info.indices, expected)
    _, infos = baal.run(loop, jax.random.key(0), data, num_rounds=1, target_inputs=jnp.array([[40.25]]))
    np.testing.assert_array_equal(infos.indices[0], expected)


def test_a_summary_that_is_more_than_a_score_has_no_mean():
    data, scores = known_scores()

    def select(key, summary, available, query_size, labelled=None):
        assert labelled.shape == available.shape == (SIZE,)
        return selection.top_k().select(key, summary["best"][:, 0], available, query_size)

    def summarise(predictions):
        return {"best": predictions.logits[0], "other": jnp.full(predictions.logits.shape[1], jnp.nan).at[1:].set(0.0)}

    loop = spy_loop(baal.Acquisition(summarise, select), query_size=2, batch_size=None)
    _, info = loop.step(loop.init(jax.random.key(0), data), data)
    assert np.isnan(info.mean_score)
    assert int(info.num_nan) == 1
    np.testing.assert_array_equal(info.indices, np.argsort(-scores)[:2])


def test_evaluation_uses_the_metrics_asked_for():
    data, _ = known_scores()
    test = baal.Dataset(jnp.arange(6.0)[:, None], jnp.arange(6.0)[:, None] + 2)
    _, infos = baal.run(spy_loop(), jax.random.key(0), data, test, num_rounds=2)
    np.testing.assert_allclose(infos.metrics["rmse"], [2.0, 2.0])
    loop = spy_loop(metrics=metrics.classification(num_bins=3))
    classes = baal.Dataset(jnp.eye(4), jnp.array([0, 1, 2, 0]))
    state = loop.init(jax.random.key(0), data, num_initial=1)
    np.testing.assert_allclose(loop.evaluate(state, classes)["accuracy"], 0.75)
    assert baal.run(spy_loop(), jax.random.key(0), data, num_rounds=1)[1].metrics is None


def test_the_key_decides_the_initial_labels():
    data, _ = known_scores()
    loop = spy_loop()
    once, again, other = (loop.init(jax.random.key(seed), data, num_initial=6).pool for seed in (3, 3, 4))
    assert int(pool.num_labelled(once)) == 6
    np.testing.assert_array_equal(once.labelled_at, again.labelled_at)
    assert not np.array_equal(once.labelled_at, other.labelled_at)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query_size": 0}, "query_size=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"max_sample": 0}, "max_sample=0"),
        ({"last_rounds": 0}, "last_rounds=0"),
    ],
)
def test_a_loop_checks_its_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        spy_loop(**arguments)


def test_beginnings_that_make_no_sense_are_refused():
    data, _ = known_scores()
    loop, key = spy_loop(), jax.random.key(0)
    with pytest.raises(ValueError, match="query_size=500 exceeds the 100 unlabelled"):
        spy_loop(query_size=500).init(key, data)
    with pytest.raises(ValueError, match="query_size=10 exceeds the 5 unlabelled"):
        loop.init(key, data, num_initial=95)
    with pytest.raises(ValueError, match="num_initial=101 exceeds the 100 unlabelled"):
        loop.init(key, data, num_initial=101)
    with pytest.raises(ValueError, match="num_initial=-1"):
        loop.init(key, data, num_initial=-1)
    with pytest.raises(ValueError, match="pool holds 5 examples, but the data set 100"):
        loop.init(key, data, pool=pool.init(5))
    with pytest.raises(ValueError, match="num_initial=3 exceeds the 2 unlabelled"):
        loop.init(key, data, num_initial=3, pool=pool.label(pool.init(SIZE), range(98)))
    with pytest.raises(ValueError, match="typed key"):
        loop.init(jax.random.PRNGKey(0), data)
    with pytest.raises(ValueError, match="common leading axis"):
        loop.init(key, data._replace(targets=jnp.zeros(3)))


def test_runs_need_a_key_or_a_state_and_some_rounds():
    data, _ = known_scores()
    loop, key = spy_loop(), jax.random.key(0)
    state = loop.init(key, data)
    with pytest.raises(ValueError, match="not both"):
        baal.run(loop, key, data, num_rounds=1, state=state)
    with pytest.raises(ValueError, match="not both"):
        baal.run(loop, None, data, num_rounds=1)
    with pytest.raises(ValueError, match="num_initial=4"):
        baal.run(loop, None, data, num_rounds=1, state=state, num_initial=4)
    with pytest.raises(ValueError, match="num_rounds=0"):
        baal.run(loop, key, data, num_rounds=0)


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_a_state_may_hold_keys(impl):
    posterior = SPY._replace(fit=lambda key, dataset, labelled, previous=None: jax.random.split(key, 3))
    loop = baal.active_loop(posterior, selection.random(), query_size=1)
    key = jax.random.key(0, impl=impl)
    empty = loop.init(key, known_scores()[0]).posterior
    assert empty.shape == (3,)
    assert empty.dtype == key.dtype
    assert not jax.random.key_data(empty).any()
