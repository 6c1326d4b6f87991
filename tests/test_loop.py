"""The loop: its keys, what it picks, and what reaches its parts. Many seeds: contracts/test_stopping."""

import gc
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import calibration, checkpoint, data, heuristics, metrics, pool, posteriors, selection, stopping
from tests.fixtures import SPY, Net, close, clouds, count_compilations, random_network, same, same_key, trainer

SIZE, ROUNDS = 100, 4
KEY = jax.random.key(7)
# Inputs whose scores are known.
SCORES = np.random.default_rng(0).permutation(SIZE).astype(np.float32)
DATA = baal.Dataset(SCORES[:, None], (np.arange(SIZE) % 7).astype(np.int32))
SOURCE = DATA._replace(inputs=data.View(DATA.inputs))
TRAIN, TEST = clouds()


def first_output(predictions):
    return predictions.logits[0, :, 0]


def spy_loop(acquisition=None, posterior=SPY, **options):
    acquisition = acquisition or baal.Acquisition(first_output, selection.top_k().select)
    return baal.active_loop(posterior, acquisition, **{"query_size": 10, "num_samples": 2, "batch_size": 32} | options)


def ids(mask):
    return set(np.flatnonzero(np.asarray(mask)).tolist())


def pool_of(*labelled):
    """A pool of which these have been labelled in round 0."""
    since = np.full(SIZE, -1, np.int32)
    since[list(labelled)] = 0
    return pool.PoolState(jnp.asarray(since), jnp.asarray(np.int32(1)))


def run(*arguments, **options):
    """A run whose numbers are on the host, where looking at a part of them compiles nothing."""
    state, infos = baal.run(*arguments, **options)
    return state, jax.device_get(infos)


# Which key goes where


@jax.jit
def documented_keys(key, number, available):
    """What the keys of one round bring about in the recording loop below, from the split as it is written down."""
    fit, draws, select, subset, evaluate = jax.random.split(jax.random.fold_in(key, number), 5)
    order = jnp.argsort(-jnp.where(available, jax.random.uniform(subset, available.shape), -jnp.inf))
    return {
        "fit": fit,
        "score": jax.random.uniform(draws, (3,))[0],
        "picked": order[:5],
        "scores": jax.random.uniform(select, (5,)),
        "evaluated": jax.random.uniform(evaluate, (3,)),
    }


def recording_loop(batches):
    """A loop in which whatever is random shows its key, and which lists the sizes of the batches it predicts."""

    def apply(state, draw, inputs):
        batches.append(inputs.shape[0])
        return draw + 0.0 * inputs

    def select(key, summary, available, query_size, labelled=None):
        scores = jax.random.uniform(key, (query_size,))
        return baal.Selection(jnp.argsort(~available)[:query_size].astype(jnp.int32), scores)

    posterior = baal.Posterior(
        fit=lambda key, dataset, labelled, previous=None: {"key": key},
        sample=lambda key, state, num_samples: jax.random.uniform(key, (num_samples,)),
        apply=apply,
    )
    draws = metrics.MetricSet(lambda p: p.logits[:, :, 0].T, lambda summary, targets: {"draws": summary[0]})
    acquisition, options = baal.Acquisition(first_output, select), {"query_size": 5, "num_samples": 3, "batch_size": 32}
    return baal.active_loop(posterior, acquisition, **options, max_sample=40, metrics=draws)


def test_the_first_labels_have_a_key_of_their_own():
    key_rounds, key_first = jax.random.split(KEY)
    state = spy_loop().init(KEY, DATA, num_initial=6)
    same_key(state.key, key_rounds)
    same(state.pool, pool.label_randomly(key_first, pool.init(SIZE), 6))
    assert int(state.step) == 0


@pytest.mark.parametrize(("dataset", "scored"), [(DATA, 20), (SOURCE, 32)], ids=["arrays", "source"])
def test_every_part_of_a_round_has_a_key_of_its_own_and_the_size_of_its_batches(dataset, scored):
    batches, test = [], TEST._replace(inputs=TEST.inputs[:, :1])
    loop = recording_loop(batches)
    start = state = loop.init(KEY, dataset, num_initial=5)
    infos = []
    for number in (1, 2):
        expected = documented_keys(start.key, number, pool.available(state.pool))
        state, info = loop.step(state, dataset)
        same_key(state.posterior["key"], expected["fit"])
        assert float(info.mean_score) == pytest.approx(float(expected["score"]))
        same(info.indices, expected["picked"])
        same(info.scores, expected["scores"])
        # The round is over and the state begins the next one, but the fit is still that of this round.
        info = info._replace(metrics=loop.evaluate(state, test))
        same(info.metrics["draws"], expected["evaluated"])
        predicted = np.asarray(loop.predict(state, DATA.inputs[:90]))
        assert predicted.shape == (3, 90, 1)
        same(predicted[:, 0, 0], expected["evaluated"])
        infos.append(info)
    # A sample of 40, 30 test examples and 90 inputs, in even batches of 32 at most; a source is padded to whole ones,
    # and its first example tells whether anything is predicted.
    assert set(batches) - {1} == {scored, 30, 90 // 3}
    again, found = baal.run(loop, None, dataset, test, num_rounds=2, state=start)
    same(found, jax.tree.map(lambda *leaves: np.stack(leaves), *infos))
    same(again.pool, state.pool)


def test_no_key_is_used_twice_in_a_run(key_reuse):
    options = {"query_size": 2, "num_samples": 2, "batch_size": None, "max_sample": 6}
    loop = baal.active_loop(random_network(), selection.power(heuristics.bald), **options)
    jax.jit(lambda key: baal.run(loop, key, TRAIN, TEST, num_initial=2, num_rounds=1)[1]).trace(KEY)


# One round after the other, in every disguise


def test_the_scan_is_the_python_loop_from_any_round_on(tmp_path):
    """Where every part is random, and fits go on from the last."""

    def fit(key, dataset, labelled, previous=None):
        return random_network().fit(key, dataset, labelled) + (0.0 if previous is None else 0.5 * previous)

    posterior, options = random_network()._replace(fit=fit), {"query_size": 3, "num_samples": 4, "batch_size": 16}
    loop = baal.active_loop(posterior, selection.power(heuristics.bald), **options)
    states, infos = [loop.init(KEY, TRAIN, num_initial=5)], []
    for number in range(ROUNDS):
        with count_compilations() as compiled:
            state, info = loop.step(states[-1], TRAIN)
            infos.append(info._replace(metrics=loop.evaluate(state, TEST)))
        assert len(compiled) == (0 if number else 2)  # the step, and the evaluation
        states.append(state)
        assert ids(np.asarray(state.pool.labelled_at) == number + 1) == set(info.indices.tolist())
        assert [int(info.num_labelled), int(info.num_nan), int(state.step)] == [5 + 3 * number, 0, number + 1]
    infos = jax.tree.map(lambda *leaves: np.stack(leaves), *infos)
    assert infos.round.tolist() == [1, 2, 3, 4]  # round 0 labelled the initial examples
    # Case 49: twice, with numpy's hidden generator in another state.
    whole = jax.jit(lambda key: baal.run(loop, key, TRAIN, TEST, num_initial=5, num_rounds=ROUNDS))
    once = whole(KEY)
    close((once[1], once[0]._replace(key=0)), (infos, states[-1]._replace(key=0)))
    same_key(once[0].key, states[-1].key)
    np.random.seed(3)  # noqa: NPY002
    again = whole(KEY)
    same((once[0].pool, once[1]), (again[0].pool, again[1]))
    assert once[1].stopped.tolist() == [False] * ROUNDS
    with checkpoint.checkpointer(tmp_path, {}) as saved:  # Case 44.
        saved.save(2, states[2])
        given = saved.restore(states[2])
    # A state of one's own may hold Python numbers.
    state, rest = baal.run(loop, None, TRAIN, TEST, num_rounds=2, state=given._replace(step=int(given.step)))
    close((rest, state._replace(key=0)), (jax.tree.map(lambda leaf: leaf[2:], infos), states[-1]._replace(key=0)))


# What is picked


def test_the_best_available_examples_are_labelled_until_none_is_left():
    # Case 46: ten of a hundred, then ten by ten; Baal returns True nine times and then False.
    loop = spy_loop()
    start = loop.init(KEY, DATA, num_initial=10)
    state, infos = run(loop, None, DATA, None, num_rounds=11, state=start)
    assert infos.num_picked.tolist() == [10] * 9 + [0, 0]
    assert infos.num_labelled.tolist() == [*range(10, 100, 10), 100, 100]
    left = np.where(pool.available(start.pool), SCORES, -np.inf)
    expected = np.argsort(-left)[:90].reshape(9, 10)
    same(infos.indices[:9], expected)
    same(infos.scores[:9], SCORES[expected])
    assert np.all(infos.indices[9:] == -1)
    assert np.all(np.isnan(infos.scores[9:]))
    close(infos.mean_score, [*(SCORES[expected[r:]].mean() for r in range(9)), np.nan, np.nan])
    assert infos.metrics is None
    # A round without picks counts as one.
    assert int(state.pool.round) == 12
    assert int(state.pool.labelled_at.max()) == 9


def test_a_schedule_of_query_sizes_holds_on_to_its_last_and_ends_with_the_pool():
    loop = spy_loop(query_size=[10, 60], batch_size=None)
    assert (loop.sizes, loop.batch_size) == ((10, 60), None)
    state, infos = run(loop, KEY, DATA, None, num_initial=4, num_rounds=4)
    assert infos.num_picked.tolist() == [10, 60, 26, 0]
    assert infos.num_labelled.tolist() == [4, 14, 74, 100]
    same(infos.indices >= 0, np.arange(60) < np.asarray(infos.num_picked)[:, None])
    same(np.isnan(infos.scores), infos.indices < 0)
    # Where the schedule stands travels in the state, which counts the rounds of this loop alone.
    half, _ = run(loop, KEY, DATA, None, num_initial=4, num_rounds=2)
    rest, later = run(loop, None, DATA, None, state=half, num_rounds=2)
    assert later.num_picked.tolist() == [26, 0]
    same(rest.pool, state.pool)
    old = loop.init(KEY, DATA, pool=pool_of()._replace(round=jnp.asarray(np.int32(5))))
    assert int(loop.step(old, DATA)[1].num_picked) == 10


@pytest.mark.parametrize("max_sample", [10, 95])
def test_a_sampled_pool_is_labelled_by_its_ids_in_the_whole_data_set(max_sample):
    # Cases 46 and 47, where Baal's experiment labels other examples than it scored. With a sample as large as what is
    # available (90 of 100) the picks are known although the sample stands in another order.
    loop, num = spy_loop(max_sample=max_sample), min(max_sample, 10)
    start = loop.init(KEY, DATA, num_initial=10)
    state, info = loop.step(start, DATA)
    info, free = jax.device_get(info), np.asarray(pool.available(start.pool))
    picked = info.indices[:num]
    assert (int(info.num_picked), int(info.num_nan)) == (num, 0)
    assert info.indices[num:].tolist() == [-1] * (10 - num)
    same(info.scores[:num], -np.sort(-SCORES[picked]))
    assert ids(pool.labelled(state.pool)) == ids(~free) | set(picked.tolist())
    assert free[picked].all()
    assert max_sample == 10 or picked.tolist() == np.argsort(-np.where(free, SCORES, -np.inf))[:10].tolist()
    close(info.mean_score, SCORES[free if max_sample == 95 else picked].mean())
    for size, shape in ((SIZE - 1, (SIZE - 1,)), (SIZE, None)):  # as large as the pool, it is the pool
        assert getattr(spy_loop(max_sample=size).round.candidates(KEY, start)[0], "shape", None) == shape
    # Case 20: nothing is predicted for random picks, so there is nothing to sample.
    silent = spy_loop(selection.random(), SPY._replace(sample=None, apply=None), max_sample=5)
    assert silent.round.candidates(KEY, start)[0] is None
    info = silent.step(start, DATA)[1]
    assert (int(info.num_picked), np.isnan(info.mean_score)) == (10, True)


def test_the_mean_is_that_of_a_single_score_and_nan_is_counted_in_every_part_of_a_summary():
    def first_available(key, summary, available, query_size, labelled=None):
        return selection.random().select(key, None, available, query_size)

    # Case 13. That NaN comes last: contracts/test_selections.
    loop = spy_loop(baal.Acquisition(first_output, first_available))
    state, places = loop.init(KEY, DATA, pool=pool_of(0)), np.arange(SIZE)
    half = np.where(places < 9, np.nan, SCORES).astype(np.float16)
    columns = np.where(places[:, None] == [3, 5], np.nan, 1.0).astype(np.float32)
    for summary, mean, num_nan in (
        ({"score": half, "place": places}, SCORES[9:].mean(), 8),  # integers are no scores, nor can be NaN
        ({"score": half, "columns": columns}, np.nan, 8),
        (columns, np.nan, 2),
    ):
        _, info = loop.round.select(KEY, state, summary, None, places > 0)
        assert info.mean_score.dtype == jnp.float32
        close(info.mean_score, mean)
        assert int(info.num_nan) == num_nan


# What reaches the parts


def test_what_an_acquisition_is_given():
    """Features, predictions on target inputs, and which of the candidates are labelled, from arrays and a source."""

    def nearness(predictions):
        assert predictions.target_logits.shape == (2, 1, 1)
        distance = predictions.logits[0, :, 0] - predictions.target_logits[0, :, 0]
        return {"near": -jnp.abs(distance) + predictions.features[:, 0]}

    def select(key, summary, available, query_size, labelled=None):
        picked = selection.top_k().select(key, summary["near"], available, query_size)
        return picked._replace(scores=jnp.stack([labelled.sum(), available.sum(), available.size]).astype(float))

    options = {"query_size": 3, "last_rounds": 1, "features": lambda state, inputs: jnp.where(inputs > 90, 1000.0, 0.0)}
    loop, few = (spy_loop(baal.Acquisition(nearness, select), **options, max_sample=n) for n in (None, 98))
    state, target = loop.init(KEY, DATA, pool=pool.label(pool_of(50), 3)), np.float32([[40.25]])
    free = np.asarray(pool.available(state.pool))
    expected = np.argsort(-np.where(free, -np.abs(SCORES - 40.25) + 1000 * (SCORES > 90), -np.inf))[:3]
    for dataset in (DATA, SOURCE):
        _, infos = run(loop, None, dataset, None, num_rounds=1, state=state, target_inputs=target)
        for picked in (loop.step(state, dataset, target)[1], jax.tree.map(lambda leaf: leaf[0], infos)):
            same(picked.indices, expected)
            assert picked.scores.tolist() == [2, 98, 100]  # two are labelled, although one is trained on
    assert few.step(state, DATA, target)[1].scores.tolist() == [0, 98, 98]


def test_what_a_fit_is_given():
    """The labels stored in the pool, of the last rounds alone, and the fit before, which is zeros at first."""

    def fit(key, dataset, labelled, previous=None):
        number = jnp.float32(0) if previous is None else previous["number"]
        return {"labelled": labelled, "targets": dataset.targets, "number": number + 1}

    loop, unlabelled = (
        spy_loop(posterior=SPY._replace(fit=fit), last_rounds=2, query_size=2),
        DATA._replace(targets=None),
    )
    answers, picked = {4: 3, 9: 5}, [{4, 9}]
    stored = jnp.asarray([answers.get(i, -1) for i in range(SIZE)], jnp.int32)
    state = loop.init(KEY, unlabelled, pool=pool_of(4, 9)._replace(targets=stored))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(state.posterior))
    key = jax.random.key(0, impl="rbg")  # which a state may hold
    empty = spy_loop().init(key, DATA).posterior["key"]
    assert (empty.shape, empty.dtype, jax.random.key_data(empty).any()) == ((), key.dtype, False)
    for number in (1, 2, 3):
        state, info = loop.step(state, unlabelled)
        assert float(state.posterior["number"]) == number
        assert ids(state.posterior["labelled"]) == set().union(*picked[-2:])
        assert state.posterior["targets"].tolist() == [answers.get(i, -1) for i in range(SIZE)]
        assert int(info.num_labelled) == 2 * number  # labels stay labels
        picked.append(set(info.indices.tolist()))
        answers |= dict.fromkeys(picked[-1], number)
        state = state._replace(pool=pool.annotate(state.pool, info.indices, [number, number]))


# What is refused


def test_a_loop_checks_its_arguments():
    wrong = [(name, value) for name in ("num_samples", "batch_size", "max_sample", "last_rounds") for value in (0, 1.5)]
    for name, value in [*wrong, *(("query_size", value) for value in (0, (), (5, 0), [1.5]))]:
        with pytest.raises(ValueError, match=name):
            spy_loop(**{name: value})


def test_beginnings_and_runs_that_make_no_sense_are_refused():
    loop, full = spy_loop(), pool_of(*range(98))
    asked = pool.init(SIZE, targets=np.full(SIZE, -1))
    state = loop.init(KEY, DATA, num_initial=90)  # as many as there are can be asked for
    assert int(pool.num_labelled(state.pool)) == 90
    for message, call in {
        "query_size=500 exceeds the 100 unlabelled": lambda: spy_loop(query_size=(500, 1)).init(KEY, DATA),
        "query_size=10 exceeds the 9 unlabelled": lambda: loop.init(KEY, DATA, num_initial=91),
        "num_initial=101 exceeds the 100 unlabelled": lambda: loop.init(KEY, DATA, num_initial=101),
        "num_initial=-1": lambda: loop.init(KEY, DATA, num_initial=-1),
        "pool holds 5 examples, but the data set 100": lambda: loop.init(KEY, DATA, pool=pool.init(5)),
        "num_initial=3 exceeds the 2 unlabelled": lambda: loop.init(KEY, DATA, num_initial=3, pool=full),
        "whose targets are still to come": lambda: loop.init(KEY, DATA, num_initial=3, pool=asked),
        "typed key": lambda: loop.init(jax.random.PRNGKey(0), DATA),
        "100 inputs, but targets of shape .3": lambda: loop.init(KEY, DATA._replace(targets=np.zeros(3))),
        "dataset has 100 inputs, but targets of shape .99": lambda: loop.init(
            KEY, SOURCE._replace(targets=DATA.targets[1:])
        ),
        "num_rounds=0": lambda: baal.run(loop, KEY, DATA, None, num_rounds=0),
        "not both": lambda: baal.run(loop, KEY, DATA, None, num_rounds=1, state=state),
        "a state to continue one": lambda: baal.run(loop, None, DATA, None, num_rounds=1),
        "num_initial=4": lambda: baal.run(loop, None, DATA, None, num_rounds=1, state=state, num_initial=4),
        "test.inputs is a source": lambda: baal.run(loop, KEY, DATA, SOURCE, num_rounds=1),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("kind", ["plain", "validation", "calibrated", "pretrained"])
def test_a_loop_that_is_deleted_frees_what_it_held(kind):
    """Without jax.clear_caches(): data, weights and programs belong to the loop, not to this process."""
    kept = {}

    def note(name, thing):
        kept[name] = weakref.ref(thing)
        return thing

    def use():
        train, test = (
            baal.Dataset(note(f"{name} data", jnp.asarray(part.inputs)), part.targets)
            for name, part in zip(("train", "test"), clouds(20, 9), strict=True)
        )
        model = baal.from_linen(Net())
        if kind == "pretrained":
            weights = jax.tree.map(lambda leaf: note("weights", leaf + 1), model.init(KEY, train.inputs[:1]))
            model = model._replace(init=lambda key, inputs: weights)
        posterior = posteriors.mc_dropout(model, trainer(validation=test if kind == "validation" else None))
        note("fit", posterior.fit)
        if kind == "calibrated":
            options = {"validation": test, "num_samples": 2}
            posterior = calibration.calibrated(posterior, calibration.temperature(), **options)
        loop = baal.active_loop(posterior, selection.top_k_epig(), query_size=2, num_samples=2)
        note("step", loop.step)
        targets = note("targets", train.inputs[:3] + 1)
        state, _ = loop.step(loop.init(KEY, train, num_initial=5), train, targets)
        on_host = train._replace(inputs=data.View(np.asarray(train.inputs)))
        state, _ = loop.step(state, on_host, targets)
        loop.evaluate(state, test)
        loop.predict(state, test.inputs)
        given, options = (KEY, posterior, state.posterior), {"num_samples": 2}
        baal.predict(*given, test.inputs, **options)
        baal.score(*given, test.inputs, heuristics.bald, **options)
        baal.score(*given, on_host.inputs, heuristics.bald, **options)
        baal.evaluate(*given, test, **options)
        rule = stopping.plateau("accuracy", 2)
        baal.run(loop, KEY, train, test, num_initial=5, num_rounds=2, target_inputs=targets, stop=rule)

    use()
    gc.collect()
    assert len(kept) >= 5
    assert [name for name, thing in kept.items() if thing() is not None] == []
