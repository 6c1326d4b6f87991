"""Wrong data at every door: refused with the rows, the values and the cure, or understood."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import calibration, heuristics, losses, metrics, posteriors, selection, study, tasks
from tests.fixtures import Net, first, linear, trainer

X = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
Y = (np.arange(12) % 3).astype(np.int32)
KEY = jax.random.key(0)
LEARN = trainer(num_steps=1)
POSTERIOR = posteriors.mc_dropout(baal.from_linen(Net()), LEARN)
LOOP = baal.active_loop(POSTERIOR, selection.random(), query_size=1, num_samples=2)
GOOD = baal.Dataset(X, Y)
FITTED = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(POSTERIOR.fit, KEY, GOOD, first(3))
)


class Frame:
    """As a data frame looks from outside."""

    shape, dtype = (12, 4), np.dtype(np.float32)

    def to_numpy(self):
        return X

    def __len__(self):
        return 12

    def __getitem__(self, name):
        return self


def bad_row(values, value, row=4):
    values = np.array(values)
    values[row] = value
    return values


# Name: what comes in, and what is said of it. The first ones of classes need the network, the others do not.
WRONG = {
    "classes from 1": (baal.Dataset(X, Y + 1), "hold 3 in 4 of 12 rows .2, 5, 8, …"),
    "classes with gaps": (baal.Dataset(X, np.array([2, 4, 9])[Y]), "hold 4 in 8 of 12 rows"),
    "a class too many": (baal.Dataset(X, bad_row(Y, 3)), "hold 3 in 1 of 12 rows .4.*classes 0 to 2"),
    "a negative class": (baal.Dataset(X, bad_row(Y, -7)), "hold -7 in 1 of 12 rows .4.*unknown"),
    "floats for classes": (baal.Dataset(X, Y.astype(np.float32)), "float32, but classes are whole numbers"),
    "strings": (baal.Dataset(X, np.array(["a", "b", "c"])[Y]), "not numbers: encode them"),
    "objects": (baal.Dataset(X.astype(object), Y), "object, not numbers"),
    "lists": (baal.Dataset(X.tolist(), Y.tolist()), "numpy.asarray"),
    "a list of targets": (baal.Dataset(X, Y.tolist()), "targets holds a list"),
    "a data frame": (baal.Dataset(Frame(), Y), "to_numpy"),
    "NaN": (baal.Dataset(bad_row(X, np.nan), Y), "inputs are not finite in 1 of 12 rows .4"),
    "infinity in a dictionary": (baal.Dataset({"a": X, "b": bad_row(X, np.inf)}, Y), "not finite in 1 of 12"),
    "too few targets": (baal.Dataset(X, Y[:11]), "12 inputs, but targets of shape .11,"),
    "inputs of unlike length": (baal.Dataset((X, X[:11]), Y), "common leading axis"),
    "nothing": (baal.Dataset(X[:0], Y[:0]), "empty"),
    "a tuple": ((X, Y), "is a tuple: pass baal_jax.Dataset"),
}
DOORS = {
    "init": lambda data: LOOP.init(KEY, data, num_initial=3),
    "run": lambda data: baal.run(LOOP, KEY, data, None, num_initial=3, num_rounds=1),
    "test": lambda data: baal.run(LOOP, KEY, GOOD, data, num_initial=3, num_rounds=1),
    "fit": lambda data: POSTERIOR.fit(KEY, data, first(3)),
    "evaluate": lambda data: baal.evaluate(KEY, POSTERIOR, FITTED, data),
    "validation": lambda data: posteriors.mc_dropout(baal.from_linen(Net()), trainer(num_steps=1, validation=data)),
    "study": lambda data: study.run("", {"a": LOOP}, data, GOOD, key=KEY, num_seeds=1, num_rounds=1, num_initial=3),
    "study's test": lambda data: study.run(
        "", {"a": LOOP}, GOOD, data, key=KEY, num_seeds=1, num_rounds=1, num_initial=3
    ),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses_what_is_wrong_in_one_line(door):
    for name, (data, words) in WRONG.items():
        with pytest.raises((ValueError, TypeError), match=words) as error:
            DOORS[door](data)
        message = str(error.value)
        assert len(message.splitlines()[0]) == len(message) <= 300, (name, message)


def test_a_simulation_asks_for_no_label_that_nobody_knows():
    few = baal.Dataset(X, np.where(np.arange(12) < 6, Y, -100))
    for door in ("run", "study"):
        with pytest.raises(ValueError, match=r"unknown in 6 of 12 rows \(6, 7, 8, …\)"):
            DOORS[door](few)
    signs = baal.Dataset(X, np.where(Y > 0, 1, -1).astype(np.int32))
    for door in ("init", "run", "study"):
        with pytest.raises(ValueError, match=r"−1 and 1.*\(targets > 0\).astype"):
            DOORS[door](signs)
    LOOP.init(KEY, few, num_initial=0)  # people may answer
    excluded = baal.pool.exclude(baal.pool.init(12), jnp.arange(6, 12))
    baal.run(LOOP, None, few, None, num_rounds=1, state=LOOP.init(KEY, few, 3, pool=excluded))
    maps = baal.Dataset(np.zeros((3, 2, 2, 1), np.float32), np.array([[[0, -1], [1, 1]]] * 3, np.int32))
    tasks.admit("dataset", maps, tasks.classification, complete=np.ones(3, bool))  # a pixel may be unknown


@pytest.mark.parametrize("unknown", [-1, -100])
def test_unknown_targets_and_columns_mean_the_same_everywhere(unknown):
    targets = np.array([0, 1, unknown, 2], np.int32)
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
    log_probs = jax.nn.log_softmax(logits)
    known = np.array([0, 1, 3])
    for column in (targets, targets[:, None]):
        np.testing.assert_allclose(
            losses.cross_entropy(logits, jnp.asarray(column))[known], -log_probs[known, targets[known]], 1e-5
        )
        assert float(losses.cross_entropy(logits, jnp.asarray(column))[2]) == 0
        np.testing.assert_allclose(metrics.nll(log_probs, column), metrics.nll(log_probs[known], targets[known]), 1e-6)
        np.testing.assert_array_equal(baal.data.from_arrays(X[:4], column).targets, [0, 1, -1, 2])


@pytest.mark.parametrize("options", [{"num_steps": 3}, {"num_epochs": 3}])
def test_what_nobody_answered_is_not_labelled(options):
    """Equal to a fit without these rows: neither loss nor penalty nor steps know of them."""
    fit = trainer(optax.sgd(0.1), batch_size=4, **{"num_steps": None, **options})
    unanswered = np.where((np.arange(12) >= 4) & (np.arange(12) < 8), -1, Y)
    bound = fit(
        baal.from_linen(nn.Dense(3)),
        penalty=lambda params, count: count.astype(jnp.float32) * jnp.sum(params["kernel"] ** 2),
    )
    few, many = bound(KEY, GOOD, first(4)), bound(KEY, baal.Dataset(X, unanswered), first(8))
    jax.tree.map(np.testing.assert_array_equal, few, many)
    assert int(few.steps) == 3
    assert float(few.loss) > 0


def test_nothing_labelled_is_no_nan_whatever_the_loss():
    targets = np.full(12, np.nan, np.float32)
    own = trainer(optax.sgd(0.1), lambda outputs, targets: (outputs[..., 0] - targets) ** 2, task=tasks.regression)
    for labelled in (first(0), first(5)):
        state = own(linear(1.0))(KEY, baal.Dataset(X, targets), labelled)
        assert float(state.loss) == 0
        assert np.isfinite(state.variables.params).all()
        assert int(state.steps) == 0


LOSSES = {
    "broadcasts": lambda outputs, targets: (outputs - targets) ** 2,
    "broadcasts and averages": lambda outputs, targets: jnp.mean((outputs - targets) ** 2, -1),
    "averages over examples": lambda outputs, targets: jnp.mean((outputs[..., 0] - targets) ** 2)[None].repeat(4),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_that_mixes_examples_is_refused(name):
    fit = trainer(optax.sgd(0.1), LOSSES[name])(linear(1.0))
    with jax.numpy_rank_promotion("allow"), pytest.raises(ValueError, match=r"loss.*outputs\[\.\.\., 0\] - targets"):
        fit(KEY, baal.Dataset(X, X[:, 0]), first(5))


TASKS = {
    "own classes": (None, (12, 3), Y, tasks.classification),
    "a column of classes": (None, (12, 3), Y[:, None], tasks.classification),
    "one-hot": (None, (12, 3), np.eye(3, dtype=np.float32)[Y], tasks.classification),
    "labels": (None, (12, 4), (X > 0).astype(np.int32), tasks.multi_label),
    "labels, float": (None, (12, 4), (X > 0).astype(np.float32), tasks.multi_label),
    "labels, bool": (None, (12, 4), X > 0, tasks.multi_label),
    "real values": (None, (12, 4), X, tasks.regression),
    "a real value": (None, (12, 1), X[:, 0], tasks.regression),
    "counts": (None, (12, 1), np.arange(12) - 3, tasks.regression),
    "0 and 1 for one output": (None, (12, 1), Y % 2, None),
    "real values for two outputs": (None, (12, 2), X[:, 0], None),
    "counts, squared error": (losses.squared_error, (12, 1), Y - 1, tasks.regression),
    "head": (losses.gaussian_nll, (12, 2), X[:, 0], tasks.gaussian_regression),
}


@pytest.mark.parametrize("name", TASKS)
def test_what_is_learnt_is_known_by_the_loss_or_told_by_the_targets(name):
    loss, outputs, targets, task = TASKS[name]
    given = None if loss is None else tasks.of_loss(jax.tree_util.Partial(loss))
    assert tasks.admit("dataset", baal.Dataset(X, targets), given, lambda: outputs) is task
    if task is tasks.multi_label:
        with pytest.raises(ValueError, match="a label is there, 1, or not, 0"):
            tasks.admit("dataset", baal.Dataset(X, targets.astype(np.int32) + 1), task, lambda: outputs)


def test_metrics_that_are_not_clear_are_asked_for():
    quantiles = baal.active_loop(POSTERIOR._replace(task=None), selection.random(), query_size=1)
    with pytest.raises(ValueError, match="say what the loss learns"):
        baal.run(quantiles, KEY, GOOD, baal.Dataset(X, X[:, 0]), num_initial=3, num_rounds=1)


def test_acquisitions_read_outputs_of_their_task():
    of_labels = trainer(loss=losses.binary_cross_entropy)
    several = posteriors.mc_dropout(baal.from_linen(Net()), of_labels)
    with pytest.raises(ValueError, match=r"classification, but the loss learns multi_label.*heuristics.multi_label"):
        baal.active_loop(several, selection.top_k(heuristics.bald), query_size=1)
    for acquisition in (
        selection.top_k(heuristics.multi_label(heuristics.bald)),
        selection.top_k(lambda z: z[0, :, 0]),
    ):
        baal.active_loop(several, acquisition, query_size=1)
    with pytest.raises(ValueError, match="max_sample=2 is less than query_size=3"):
        baal.active_loop(POSTERIOR, selection.top_k(), query_size=3, max_sample=2)


MISTAKES = {
    "a heuristic for an acquisition": (
        lambda: baal.active_loop(POSTERIOR, heuristics.bald, query_size=1),
        "acquisition is a",
    ),
    "a string for an acquisition": (lambda: baal.active_loop(POSTERIOR, "bald", query_size=1), "acquisition is a str"),
    "a trainer for a posterior": (lambda: baal.active_loop(LEARN, selection.random(), query_size=1), "posterior is a"),
    "a string for a loss": (lambda: baal.trainer(optax.sgd(1.0), "cross_entropy", num_steps=1), "loss='cross_entropy'"),
    "a string for an optimizer": (lambda: baal.trainer("adam", losses.cross_entropy, num_steps=1), "optimizer='adam'"),
    "a string for a heuristic": (lambda: selection.power("bald"), "score_fn='bald'"),
    "a module for a model": (lambda: posteriors.deep_ensemble(Net(), LEARN), "model is a Net: wrap it by"),
    "a class for a module": (lambda: baal.from_linen(Net), "the class Net"),
    "an old key": (lambda: LOOP.init(jax.random.PRNGKey(0), GOOD), "must be a typed key"),
    "a number for a key": (
        lambda: selection.random().select(3, None, jnp.ones(3, bool), 1),
        "key=3 must be a typed key",
    ),
    "a loop state for a loop": (lambda: baal.run(GOOD, KEY, GOOD, None, num_rounds=1), "loop is a Dataset"),
    "logits for log-probabilities": (lambda: metrics.accuracy(3 * X, Y), "do not add up to 1"),
    "probabilities for logits": (lambda: heuristics.bald(jax.nn.softmax(X)[None]), "are probabilities"),
    "a scaling's builder": (lambda: calibration.calibrated(POSTERIOR, calibration.temperature), "no Scaling"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_a_line(name):
    call, words = MISTAKES[name]
    with pytest.raises((ValueError, TypeError), match=words) as error:
        call()
    assert len(str(error.value)) <= 300
    assert "\n" not in str(error.value)


def test_records_print_in_ten_lines():
    state = LOOP.init(KEY, GOOD, num_initial=3)
    for record in (state, state.posterior, state.pool, GOOD, LOOP, POSTERIOR):
        assert len(repr(record)) <= 900
        assert repr(record).startswith(type(record).__name__)
        assert "\n" not in repr(record)
    assert "indices=[3, 1]" in repr(baal.Selection(jnp.array([3, 1]), jnp.zeros(2)))


class Callable:
    """A loss that cannot be hashed."""

    __hash__ = None

    def __call__(self, outputs, targets):
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets)


def next_tokens(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs[:, :-1], targets[:, 1:])


def of_two(outputs, targets):
    return (outputs[:, 0] - targets["first"]) ** 2 + (outputs[:, 1] - targets["second"][:, 0]) ** 2


TWO = {"first": X[:, 0], "second": X[:, 1:2]}
RIGHT = {
    "a loss without a hash": ((4, 3), Callable(), X, Y),
    "tokens": ((4, 3), next_tokens, np.stack([X] * 5, 1), np.stack([Y] * 5, 1)),
    "maps of many classes": ((4, 999), next_tokens, np.stack([X] * 64, 1), np.stack([Y] * 64, 1)),
    "targets in two parts": ((4, 2), of_two, X, TWO),
    "no targets": ((4, 2), lambda outputs, targets: jnp.sum(outputs**2, axis=-1), X, None),
}


@pytest.mark.parametrize("name", RIGHT)
def test_own_losses_that_are_right_are_learnt_from(name):
    shape, loss, inputs, targets = RIGHT[name]
    init = lambda key, inputs: 0.1 * jax.random.normal(key, shape)  # noqa: E731
    noisy = lambda params, inputs, key: inputs @ params + 0.01 * jax.random.normal(key)  # noqa: E731
    model = baal.from_functions(init, noisy)  # which has no evaluation mode
    state = trainer(optax.sgd(0.1), loss, num_steps=2)(model)(KEY, baal.Dataset(inputs, targets), first(5))
    assert (int(state.steps), bool(jnp.isfinite(state.loss))) == (2, True)


def user(size, **options):
    """A posterior of one's own, which says nothing of a task."""
    fit = lambda key, dataset, labelled, previous=None: jnp.zeros(1)  # noqa: E731
    sample = lambda key, state, number: jax.random.normal(key, (number, 4, size))  # noqa: E731
    return baal.Posterior(fit, sample, lambda state, draw, inputs: inputs @ draw, **options)


def test_posteriors_of_ones_own_are_told_apart_by_their_targets(tmp_path):
    loop = baal.active_loop(user(1), selection.random(), query_size=1, num_samples=2)
    data = baal.Dataset(X, 3 * Y + 1)  # measured: one output
    assert set(baal.run(loop, KEY, data, data, num_initial=3, num_rounds=1)[1].metrics) == {
        "rmse",
        "mae",
        "nll",
        "crps",
    }
    soft = np.float32(np.eye(3)[Y] * 0.7 + 0.1)
    soft[5] = np.nan  # unknown
    assert tasks.admit("dataset", baal.Dataset(X, soft), None, lambda: (12, 3)) is tasks.classification
    assert tasks.admit("dataset", baal.Dataset(X, soft), tasks.classification, lambda: (12, 3)) is tasks.classification
    labels = np.where(X > 0, 1.0, np.where(X > -1, 0.0, -1.0)).astype(np.float32)
    tasks.admit("dataset", baal.Dataset(X, labels), tasks.multi_label, lambda: (12, 4))
    same = np.asarray(tasks.known(labels, tasks.multi_label))
    np.testing.assert_array_equal(same, X > -1)
    with pytest.raises(ValueError, match="−1 and 1"):
        loop.init(KEY, baal.Dataset(X, np.where(Y > 0, 1, -1)), num_initial=3)
    with pytest.raises(ValueError, match="test has no targets"):
        baal.run(loop, KEY, data, baal.Dataset(X), num_initial=3, num_rounds=1)
    several = baal.active_loop(user(3), selection.random(), query_size=1, num_samples=2)
    known = baal.Dataset(X, np.float32(np.eye(3)[Y]))
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "baal_jax.study._run._folder.Folder", lambda folder, description: results.update(description) or 1 / 0
        )
        with pytest.raises(ZeroDivisionError):
            study.run("", {"a": several}, known, known, key=KEY, num_seeds=1, num_rounds=1, num_initial=3)
    assert results["metric"] == "accuracy"


def test_maps_of_bytes_and_flags_are_unknown_outside():
    for dtype in (np.uint8, np.bool_, np.int32):
        batch = baal.Dataset(jnp.ones((4, 6, 6, 1)), jnp.ones((4, 6, 6), dtype))
        moved = baal.training.augmentation.shift(2)(KEY, batch)
        np.testing.assert_array_equal(moved.targets, np.where(moved.inputs[..., 0] > 0, 1, -1))


def test_a_warm_start_continues_weights_that_a_fit_did_not_move():
    loss = lambda outputs, targets: jnp.maximum(0.0 * outputs[:, 0], 0.0)  # noqa: E731
    fit = trainer(optax.sgd(0.1), loss, num_steps=2, warm_start=True)(linear())
    one = fit(KEY, GOOD, first(5))
    assert int(one.steps) == 0
    np.testing.assert_array_equal(fit(jax.random.key(9), GOOD, first(5), one).variables.params, one.variables.params)


def test_arguments_may_be_named():
    logits = jnp.asarray(X).reshape(2, 6, 4)
    expected = heuristics.epig(logits, logits)
    np.testing.assert_array_equal(heuristics.epig(logits=logits, target_logits=logits), expected)
