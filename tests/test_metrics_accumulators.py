"""Accumulators: any split of the examples, any padding and any merging gives what all of them together give."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import baal_jax as baal
from baal_jax import metrics
from baal_jax.metrics import _sums

NUM = 28
EXTRA = ("precision", "recall", "f1", "confusion_matrix", "classwise_ece", "ece_per_class")
RANKED = ("auroc", "average_precision", "adaptive_ece")
CLASSES = metrics.classification(top_k=(2,), num_bins=5, diagnostics=True, extra=(*EXTRA, *RANKED))
REAL = metrics.regression(extra=("crps_draws", "pinball", "coverage"))


def random_case(kind, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "regression":
        targets = rng.normal(size=NUM).astype(np.float32)
        targets[::7] = np.nan
        return (rng.normal(size=(3, NUM, 1)) * 10).astype(np.float32), targets, REAL
    targets = np.where(rng.random(NUM) < 0.2, -1, rng.integers(0, 3, NUM)).astype(np.int32)
    return (2 * rng.normal(size=(3, NUM, 3))).astype(np.float32), targets, CLASSES


@functools.cache
def whole(kind):
    logits, targets, metric_set = random_case(kind)
    accumulator = metrics.accumulate(metric_set, capacity=NUM)
    empty = accumulator.init(baal.Predictions(logits), targets)
    state = accumulator.update(empty, baal.Predictions(logits), targets)
    return accumulator, empty, accumulator.compute(state)


def padded(kind, rows, size):
    """A batch of the given size, of these rows and of padding that holds anything."""
    logits, targets, _ = random_case(kind)
    missing = size - len(rows)
    nothing = np.full(missing, -1 if kind == "classification" else np.nan, targets.dtype)
    garbage = np.full((3, missing, logits.shape[-1]), np.nan, np.float32)
    batch = np.concatenate([logits[:, rows], garbage], axis=1), np.concatenate([targets[rows], nothing])
    return baal.Predictions(batch[0]), batch[1]


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_a_stream_ends_with_the_metrics_of_the_set(kind):
    logits, targets, metric_set = random_case(kind)
    expected = metric_set.compute(metric_set.summarise(baal.Predictions(jnp.asarray(logits))), targets)
    found = whole(kind)[2]
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


cuts = st.lists(st.tuples(st.integers(0, 10), st.booleans()), max_size=12)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@settings(max_examples=8)
@given(seed=st.integers(0, 999), cuts=cuts)
def test_no_split_padding_order_or_merge_changes_a_metric(kind, seed, cuts):
    accumulator, empty, expected = whole(kind)
    rng = np.random.default_rng(seed)
    order, states = rng.permutation(NUM), [empty]
    for size, elsewhere in [*cuts, (10, True), (10, False), (10, True)]:
        rows, order = order[:size], order[size:]
        if elsewhere:
            states.append(empty)
        states[-1] = accumulator.update(states[-1], *padded(kind, rows, 10))
    while len(states) > 1:
        i = rng.integers(len(states) - 1)
        states[i : i + 2] = [accumulator.merge(states[i], states[i + 1])]
    same(accumulator.compute(states[0]), expected)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_one_by_one_is_as_good_as_all_at_once(kind):
    accumulator, state, expected = whole(kind)
    size = 1 if kind == "regression" else 10  # with padding: the program is there
    for row in range(NUM):
        state = accumulator.update(state, *padded(kind, [row], size))
    same(accumulator.compute(state), expected)


def same(found, expected):
    """To the last bit but one; what ranks may add its terms in another order."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-7, atol=1e-7 if name in RANKED else 0, err_msg=name)


def test_the_last_batch_weighs_as_many_examples_as_it_has():
    # Fault 26: Baal's mean over batches of 9 right and 1 wrong is 0.5.
    accumulator = metrics.accumulate(metrics.classification())
    logits = jnp.tile(jnp.array([2.0, 0.0]), (1, 10, 1))
    targets = jnp.array([0] * 9 + [1])
    state = accumulator.init(baal.Predictions(logits), targets)
    for rows in (slice(0, 9), slice(9, 10)):
        state = accumulator.update(state, baal.Predictions(logits[:, rows]), targets[rows])
    np.testing.assert_allclose(accumulator.compute(state)["accuracy"], 0.9, rtol=1e-7)


def test_before_the_first_batch_nothing_is_known():
    accumulator, empty, _ = whole("classification")
    for name, value in accumulator.compute(empty).items():
        counts = name in ("confusion_matrix", "entropy_histogram", "reliability_num_examples")
        assert (value == 0).all() if counts else np.isnan(value).all(), name


def test_scan_vmap_and_merge_are_one_program_and_a_full_buffer_is_exact():
    logits, targets, _ = random_case("classification")
    metric_set = metrics.classification(extra=("auroc",))
    expected = metric_set.compute(metric_set.summarise(baal.Predictions(jnp.asarray(logits))), targets)
    accumulator = metrics.accumulate(metric_set, capacity=int(np.sum(targets >= 0)))
    empty = accumulator.init(baal.Predictions(logits), targets)

    @jax.jit
    def stream(logits, targets):
        def device(logits, targets):
            return jax.lax.scan(
                lambda state, batch: (accumulator.update(state, baal.Predictions(batch[0]), batch[1]), None),
                empty,
                (logits, targets),
            )[0]

        states = jax.vmap(device)(logits, targets)
        first, second = (jax.tree.map(operator.itemgetter(i), states) for i in (0, 1))
        return accumulator.compute(accumulator.merge(first, second))

    chunks = logits.reshape(3, 2, 7, 2, 3).transpose(1, 2, 0, 3, 4), targets.reshape(2, 7, 2)
    for name, value in stream(*chunks).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_a_batch_in_parts_on_several_devices_counts_once(mesh):
    logits, targets, _ = random_case("regression")
    accumulator, empty, expected = whole("regression")
    logits = jax.device_put(logits, jax.NamedSharding(mesh, jax.P(None, "pool")))
    targets = jax.device_put(targets, jax.NamedSharding(mesh, jax.P("pool")))
    same(accumulator.compute(accumulator.update(empty, baal.Predictions(logits), targets)), expected)


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_an_explicit_mesh_is_no_obstacle(kind):
    # Sharding types are checked while tracing: nothing has to be compiled.
    logits, targets, metric_set = random_case(kind)
    mesh = jax.make_mesh((4,), ("pool",), axis_types=(jax.sharding.AxisType.Explicit,))
    accumulator = metrics.accumulate(metric_set, capacity=NUM)
    with jax.set_mesh(mesh):
        predictions = baal.Predictions(jax.device_put(logits, jax.NamedSharding(mesh, jax.P(None, "pool", None))))
        targets = jax.device_put(targets, jax.NamedSharding(mesh, jax.P("pool")))
        state = accumulator.init(predictions, targets)
        after = jax.eval_shape(accumulator.update, state, predictions, targets)
        assert jax.tree.structure(after) == jax.tree.structure(state)
        found = jax.eval_shape(lambda p, t: metric_set.compute(metric_set.summarise(p), t), predictions, targets)
    assert found.keys() == whole(kind)[2].keys()


def test_a_buffer_that_is_too_small_says_so_and_spares_the_counts():
    logits, targets, _ = random_case("classification")
    accumulator, state, expected = whole("classification")
    assert np.sum(targets >= 0) <= NUM < 2 * np.sum(targets >= 0)
    for _ in range(2):
        state = accumulator.update(state, baal.Predictions(logits), targets)
    found = accumulator.compute(state)
    assert all(np.isnan(found[name]) for name in RANKED)
    for name in ("accuracy", "nll", "brier", "ece", "f1", "classwise_ece"):
        np.testing.assert_allclose(found[name], expected[name], rtol=2e-7, err_msg=name)


def test_a_set_of_your_own_is_exact_from_its_buffer():
    own = metrics.MetricSet(
        lambda predictions: predictions.logits.mean(0),
        lambda summary, targets: {"median": jnp.nanmedian(jnp.where(targets >= 0, summary[:, 0], jnp.nan))},
    )
    logits, targets, _ = random_case("classification")
    accumulator = metrics.accumulate(own, capacity=NUM)
    state = accumulator.init(jax.eval_shape(baal.Predictions, logits), jax.ShapeDtypeStruct((5,), jnp.uint8))
    for start in range(0, NUM, 10):
        rows = slice(start, start + 10)
        state = accumulator.update(state, baal.Predictions(logits[:, rows]), targets[rows])
    expected = np.median(logits.mean(0)[targets >= 0, 0])
    np.testing.assert_allclose(accumulator.compute(state)["median"], expected, rtol=1e-6)


def test_errors_name_the_argument():
    logits, targets, metric_set = random_case("classification")
    with pytest.raises(ValueError, match="capacity=None, but auroc, average_precision, adaptive_ece needs"):
        metrics.accumulate(metric_set)
    with pytest.raises(ValueError, match="capacity=0"):
        metrics.accumulate(metric_set, capacity=0)
    accumulator, empty, _ = whole("classification")
    with pytest.raises(ValueError, match="do not go with this state"):
        accumulator.update(empty, baal.Predictions(np.concatenate([logits, logits], axis=-1)), targets)
    assert metrics.accumulate(metrics.classification(), capacity=5) is metrics.accumulate(metrics.classification())


terms = st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=8, max_size=8)


@jax.jit
def in_two_parts(one, other):
    return _sums.double_value(_sums.add(_sums.double_sum(one), _sums.double_sum(other)))


@given(terms, terms)
def test_sums_in_twice_the_precision_lose_nothing_that_float32_could_hold(one, other):
    found = float(in_two_parts(np.float32(one), np.float32(other)))
    size = math.fsum(abs(x) for x in one + other)
    assert abs(found - math.fsum(one + other)) <= 2.0**-24 * abs(found) + 2.0**-44 * size


def test_infinite_and_missing_terms_stay_so():
    for values, expected in (([1.0, np.inf], np.inf), ([1.0, np.nan], np.nan), ([np.inf, -np.inf], np.nan)):
        part = np.float32(values + [0.0] * 6)
        np.testing.assert_array_equal(in_two_parts(part, np.zeros(8, np.float32)), expected)
        np.testing.assert_array_equal(in_two_parts(part, part), expected)


def test_twenty_thousand_small_batches_add_up():
    # In float32 alone, 0.1 added so often is off in the fifth digit.
    tenth = np.float32([0.1])

    @jax.jit
    def add_up():
        one = _sums.double_sum(tenth), _sums.fixed_sum(jnp.asarray(tenth), jnp.zeros(1, jnp.int32), 1)
        zero = jax.tree.map(jnp.zeros_like, one)
        double, fixed = jax.lax.fori_loop(0, 20_000, lambda _, total: _sums.add(total, one), zero)
        return _sums.double_value(double), _sums.fixed_value(fixed)[0]

    double, fixed = add_up()
    np.testing.assert_allclose(double, 20_000 * float(tenth[0]), rtol=1e-7)
    assert float(fixed) == np.float32(20_000 * round(float(tenth[0]) * 2**24) / 2**24)


def test_exact_sums_equal_integers():
    rng = np.random.default_rng(0)
    values, cells = rng.random(500).astype(np.float32), rng.integers(-1, 5, 500)
    add_up = jax.jit(_sums.fixed_sum, static_argnums=2)
    found = jax.device_get(add_up(np.append(values, np.float32(1)), np.append(cells, 0), 4))
    units = np.round(values.astype(np.float64) * 2**24).astype(np.int64)
    for cell in range(4):
        total = units[cells == cell].sum() + (2**24 if cell == 0 else 0)
        digits = [int(word[cell]) for word in found.words]
        assert sum(digit << shift for digit, shift in zip(digits, (0, 8, 16, 24), strict=True)) == total
        assert max(digits[:3]) < 256
