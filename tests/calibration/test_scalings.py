"""Scalings against optima found by scipy in float64, and posteriors that are calibrated in every fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, logsumexp

import baal_jax as baal
from baal_jax import calibration
from tests.fixtures import centroids, close, clouds, same, same_key, split

BUILDERS = {
    "temperature": lambda penalty: calibration.temperature(penalty=penalty),
    "vector": lambda penalty: calibration.vector(penalty=penalty),
    "dirichlet": lambda penalty: calibration.dirichlet(off_diagonal=penalty, intercept=penalty / 4),
}


def problem(seed, draws=1, scale=1.0):
    """Logits ``[S, 200, 4]`` that are too sure of themselves, and classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 4, 200)
    signal = rng.normal(size=(200, 4)) + 2.0 * np.eye(4)[targets] + rng.normal(size=4)
    logits = 3 * scale * (signal[None] + 0.5 * rng.normal(size=(draws, 200, 4)))
    return logits.astype(np.float32), targets.astype(np.int32)


def average_nll(logits, targets):
    chosen = np.take_along_axis(log_softmax(logits.astype(float), axis=-1), targets[None, :, None], axis=-1)[..., 0]
    return -np.mean(logsumexp(chosen, axis=0) - np.log(len(chosen)))


def objective(kind, penalty, logits, targets, unit=1.0):
    """The loss of each paper, of all parameters in a row; the unit of the inputs changes these, not the least loss."""
    classes = logits.shape[-1]
    inputs = (log_softmax(logits.astype(float), axis=-1) if kind == "dirichlet" else logits.astype(float)) / unit

    def value(theta):
        if kind == "temperature":
            return average_nll(inputs * np.exp(-theta[0]), targets) + penalty * theta[0] ** 2
        weight, offset = theta[:-classes], theta[-classes:]
        if kind == "vector":
            scaled = average_nll(inputs * weight + offset, targets)
            return scaled + penalty * np.mean((weight - 1) ** 2) + penalty * np.mean(offset**2)
        weight = weight.reshape(classes, classes)
        off = np.sum(weight**2) - np.sum(np.diag(weight) ** 2)
        scaled = average_nll(inputs @ weight.T + offset, targets)
        return scaled + penalty * off / (classes * (classes - 1)) + penalty / 4 * np.mean(offset**2)

    return value


def flat(kind, params):
    if kind == "temperature":
        return np.array([np.log(params.temperature)])
    return np.concatenate([np.ravel(leaf) for leaf in params]).astype(float)


def optimum(kind, value, classes=4):
    if kind == "temperature":  # one number: look everywhere
        start = min(np.linspace(-6, 6, 200)[:, None], key=value)
    else:
        start = np.append(np.ones(classes) if kind == "vector" else np.eye(classes).ravel(), np.zeros(classes))
    return scipy.optimize.minimize(value, start, method="BFGS", options={"gtol": 1e-6})


OF_DRAWS = [("temperature", 1), ("vector", 1), ("dirichlet", 1), ("temperature", 2), ("dirichlet", 2)]


@pytest.mark.parametrize(("kind", "draws"), OF_DRAWS)
def test_a_fit_is_within_a_thousandth_of_a_nat_of_the_optimum_whatever_the_scale(kind, draws):
    """Of several draws it is the average that is fitted."""
    scaling = BUILDERS[kind](0.0)
    for scale in (1.0, 300.0, 0.001) if draws == 1 else (1.0, 30.0):
        logits, targets = problem(0, draws, scale)
        params = scaling.fit(logits[0] if draws == 1 else logits, targets)
        found = objective(kind, 0.0, logits, targets)(flat(kind, params))
        assert found <= optimum(kind, objective(kind, 0.0, logits, targets, scale)).fun + 1e-3
        # What is applied is what was measured.
        scaled = np.asarray(scaling.apply(params, jnp.asarray(logits)))
        assert average_nll(scaled, targets) == pytest.approx(found, abs=2e-4)
        if kind == "temperature":
            close(scaled, logits / float(params.temperature), 1e-5)


@pytest.mark.parametrize(
    ("kind", "penalty"), [("temperature", 2.0), ("temperature", 0.02), ("vector", 0.5), ("dirichlet", 2.0)]
)
def test_penalties_are_those_of_the_papers(kind, penalty):
    """They matter as much as the data here, so that the parameters themselves are those of the optimum."""
    logits, targets = problem(0)
    params = flat(kind, BUILDERS[kind](penalty).fit(logits[0], targets))
    close(params, optimum(kind, objective(kind, penalty, logits, targets)).x, 0.0, 3e-3)


def test_more_weight_is_more_examples_and_unknown_targets_have_none():
    logits, targets = problem(2)
    scaling = calibration.temperature(penalty=0.0)
    weights = np.where(np.arange(200) < 180, 2.0, 0.0).astype(np.float32) * (1 + (np.arange(200) < 50))
    logits[:, 150:], targets[150:180] = 50.0, -1
    logits[:, 160] = np.nan  # whatever stands there
    twice = np.append(np.arange(50), np.arange(150))  # the first fifty count twice
    value = objective("temperature", 0.0, logits[:, twice], targets[twice])
    close(flat("temperature", scaling.fit(logits[0], targets, weights)), optimum("temperature", value).x, 0, 1e-3)
    assert float(scaling.fit(logits[0], targets, np.zeros(200, np.float32)).temperature) == 1.0


def test_a_map_is_its_positions():
    logits, targets = problem(2, 2)
    maps, classes = logits.reshape(2, 10, 4, 5, 4), targets.reshape(10, 4, 5)
    some = np.float32([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    for weights, size in ((None, 200), (some, 80)):
        value = objective("temperature", 0.0, logits[:, :size], targets[:size])
        found = calibration.temperature(penalty=0.0).fit(maps, classes, weights)
        close(flat("temperature", found), optimum("temperature", value).x, 0, 1e-3)


@pytest.mark.parametrize("kind", BUILDERS)
def test_without_known_targets_it_is_the_identity_and_with_nan_it_is_nan(kind):
    scaling, (logits, targets) = BUILDERS[kind](0.0), problem(3)
    params = scaling.fit(logits[0], np.full(200, -1, np.int32))
    close(jax.nn.log_softmax(scaling.apply(params, logits)), log_softmax(logits, axis=-1), 1e-5)
    for wrong in (np.nan, np.inf):
        broken = np.where(np.arange(200)[:, None] == 7, wrong, logits[0]).astype(np.float32)
        assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(scaling.fit(broken, targets)))
    # Without an error the parameters are finite, and the loss is nearly none.
    right = 2.0 * np.eye(4, dtype=np.float32)[targets]
    params = scaling.fit(right, targets)
    assert average_nll(np.asarray(scaling.apply(params, right))[None], targets) < 0.01
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    if kind == "temperature":  # where the loss is within a millionth of nothing: log(1 + 3 exp(−2/T))
        assert 0.02 < float(params.temperature) < 0.15


@pytest.mark.parametrize(("kind", "draws"), OF_DRAWS)
def test_impossible_classes_are_left_alone_and_the_others_fitted_as_well_as_without_them(kind, draws):
    """Masks as people write them: infinite, and finite numbers of which float32 cannot tell neighbours apart."""
    scaling, (logits, targets) = BUILDERS[kind](0.0), problem(4, draws)
    targets %= 3
    least = optimum(kind, objective(kind, 0.0, logits[..., :3], targets), 3).fun
    for value in (-np.inf, -1e9, float(np.finfo(np.float32).min), -1e6):
        logits[..., 3] = value
        params = scaling.fit(logits[0] if draws == 1 else logits, targets)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
        scaled = np.asarray(scaling.apply(params, jnp.asarray(logits)))
        assert (scaled[..., 3] < -1e4).all()
        assert np.isfinite(scaled[..., :3]).all()
        assert average_nll(scaled, targets) <= least + 1e-3, value


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_class_can_be_impossible_in_some_examples(kind):
    """An infinite mask and a large finite one are the same, and targets that are masked in every draw do not count."""
    scaling, (logits, targets) = BUILDERS[kind](0.0), problem(7)
    masked = np.arange(200)[:, None] % 4 == np.arange(4)
    infinite, finite = (np.where(masked, value, logits[0]).astype(np.float32) for value in (-np.inf, -1e9))
    losses, possible = [], ~masked[np.arange(200), targets]
    assert not possible.all()
    for each in (infinite, finite):
        scaled = np.asarray(scaling.apply(scaling.fit(each, targets), jnp.asarray(each)))
        np.testing.assert_array_equal(scaled[masked] < -1e2, True)
        losses.append(average_nll(scaled[None, possible], targets[possible]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert losses[0] < average_nll(infinite[None, possible], targets[possible]) - 0.1


def test_a_temperature_stays_within_its_bounds():
    logits, targets = problem(0)
    bounded = calibration.temperature(penalty=0.0, bounds=(0.5, 1.25))
    assert float(bounded.fit(logits[0], targets).temperature) == pytest.approx(1.25)
    scaling = calibration.temperature(bounds=(3.0, 4.0))
    assert float(scaling.fit(0.1 * logits[0], targets).temperature) == pytest.approx(3.0)  # would be lower
    assert float(scaling.fit(logits[0], targets - 4).temperature) == 1.0  # nothing counts


def test_a_fit_goes_through_jit_and_vmap_as_a_constant():
    stacked = [problem(seed) for seed in range(2)]
    logits, targets = (np.stack(part) for part in zip(*stacked, strict=True))
    scaling = calibration.vector(penalty=0.0)
    fit = jax.jit(jax.vmap(scaling.fit))
    together = fit(logits[:, 0], targets)
    for i in range(2):
        value = objective("vector", 0.0, logits[i], targets[i])
        found = value(flat("vector", jax.tree.map(lambda leaf, i=i: leaf[i], together)))
        assert found <= optimum("vector", value).fun + 1e-3
    # A class too many, which compiled code cannot refuse; and a loop has no gradient, but a constant has.
    assert np.isnan(fit(logits[:, 0], targets + 1)[0]).all()
    jax.eval_shape(jax.grad(lambda logits: scaling.fit(logits, targets[0]).offset[0]), logits[0, 0])
    for build in BUILDERS.values():
        half = jax.ShapeDtypeStruct((200, 4), jnp.bfloat16)
        params = jax.eval_shape(build(0.0).fit, half, targets[0])
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert jax.eval_shape(build(0.0).apply, params, half).dtype == jnp.float32
    # Equal settings are one object, whose programs are compiled once; what is left out is as its neighbour.
    assert calibration.dirichlet(off_diagonal=2.0) is calibration.dirichlet(off_diagonal=2, intercept=2.0)
    assert calibration.temperature() is calibration.temperature(bounds=[1e-6, 1e6])


OK, CLASSES = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
FIT = calibration.temperature().fit
AFFINE = calibration.AffineParams(jnp.ones(3), jnp.zeros(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FIT(OK, CLASSES + 3), "targets holds class 3, but logits has 3"),
        (lambda: FIT(OK, CLASSES.astype(np.float32)), "must be integer classes"),
        (lambda: FIT(OK, np.zeros(5, np.int32)), "do not fit targets"),
        (lambda: FIT(np.zeros((0, 4, 3), np.float32), CLASSES), "do not fit targets"),
        (lambda: FIT(OK[:, :1], CLASSES), "single class"),
        (lambda: FIT([0.0], CLASSES), "logits is a list"),
        (lambda: FIT(OK, CLASSES, np.full(4, -1.0)), "weights holds a negative"),
        (lambda: FIT(OK, CLASSES, np.full(4, np.inf)), "weights holds a negative number, NaN or infinity"),
        (lambda: FIT(OK, CLASSES, np.ones(3)), "do not fit targets of shape"),
        (lambda: calibration.vector().apply(AFFINE, jnp.zeros((2, 4))), "do not fit a scaling of 3 classes"),
        (lambda: calibration.temperature().apply(calibration.TemperatureParams(1.0), 0.0), "several classes"),
        (lambda: calibration.temperature(penalty=-1.0), "penalty=-1.0"),
        (lambda: calibration.vector(penalty=-1.0), "penalty=-1.0"),
        (lambda: calibration.dirichlet(off_diagonal=-1.0), "off_diagonal=-1.0"),
        (lambda: calibration.dirichlet(intercept=-1.0), "intercept=-1.0"),
        (lambda: calibration.temperature(bounds=(2.0, 1.0)), "two positive numbers, the smaller one first"),
        (lambda: calibration.temperature(bounds=(0.0, 1.0)), "two positive numbers, the smaller one first"),
        (lambda: calibration.temperature(bounds=None), "two positive numbers, the smaller one first"),
        (lambda: calibration.temperature(bounds=(1.0, 1.0)), "two positive numbers, the smaller one first"),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


TRAIN, TEST = (jax.tree.map(jnp.asarray, part) for part in clouds())
SPLIT, DRAWS = 0x63616C69, 0x62726174  # what is folded into the key of a fit


# The state is what a fit was given; a draw is a key, and noise of it beside the inputs the outputs.
RECORDING = baal.Posterior(
    fit=lambda key, dataset, labelled, previous=None: {
        "key": key, "labelled": labelled, "fits": jnp.int32(1) if previous is None else previous["fits"] + 1
    },
    sample=split,
    apply=lambda state, draw, inputs: inputs + jax.random.normal(draw, (1, 4)),
)  # fmt: skip
SEEN = calibration.Scaling(
    fit=lambda logits, targets, weights=None: {"logits": logits, "targets": targets, "weights": weights},
    apply=lambda params, logits: 2.0 * logits,
)


def recording(**options):
    return calibration.calibrated(RECORDING, SEEN, **{"num_samples": 3, **options})


def held_out(key, labelled, share, most):
    """Ids of examples, by random numbers of their places among the labelled: ``floor(share · labelled)`` of them."""
    (ids,), number = np.nonzero(labelled), int(np.floor(labelled.sum() * share + 1e-6))
    values = np.asarray(jax.random.uniform(jax.random.fold_in(key, SPLIT), (40,)))[: len(ids)]
    return ids[np.argsort(-values)][: min(number, most)]


def noise(key):
    keys = jax.random.split(jax.random.split(jax.random.fold_in(key, DRAWS))[1], 3)
    return np.stack([jax.random.normal(one, (1, 4)) for one in keys])


@pytest.fixture
def any_gain(monkeypatch):
    """The parameters of a scaling that shows what it was given are kept."""
    monkeypatch.setattr("baal_jax.calibration._optimum.gains", lambda *given: jnp.bool_(True))


def test_a_share_of_the_labels_is_held_out_and_the_key_is_left_to_the_posterior(any_gain):
    posterior = recording(max_held_out=6, batch_size=4, held_out=0.3)
    key, previous, taken = jax.random.key(5), None, []
    for number in (0, 1, 4, 5, 10, 20, 40):
        labelled = np.zeros(40, bool)
        labelled[np.random.default_rng(number).permutation(40)[:number]] = True
        rows = held_out(key, labelled, 0.3, 6)
        state = posterior.fit(key, TRAIN, jnp.asarray(labelled), previous)
        same_key(state.base["key"], key)
        same(state.base["labelled"], labelled)
        assert int(state.base["fits"]) == (1 if previous is None else 2)
        params, count = state.params, len(rows)
        assert params["logits"].shape == (3, 12, 4)
        close(params["weights"], np.concatenate([(np.arange(6) < count) * part for part in (0.632, 0.368)]), 1e-6)
        for half in range(2):
            same(params["targets"][6 * half :][:count], TRAIN.targets[rows])
        again = np.asarray(params["logits"][:, 6:]) - np.asarray(TRAIN.inputs)[np.asarray(
            jnp.pad(jnp.asarray(rows, int), (0, 6 - count)))]  # fmt: skip
        close(again[:, :count], np.broadcast_to(noise(key), (3, count, 4)), 1e-6)
        taken.append(count)
        previous = state._replace(base=state.base | {"fits": jnp.int32(1)})
    assert taken == [0, 0, 1, 1, 3, 6, 6]


# A state is what was labelled, and the outputs of a row say whether it was.
SEEING = baal.Posterior(
    fit=lambda key, dataset, labelled, previous=None: labelled.astype(jnp.float32),
    sample=split,
    apply=lambda state, draw, inputs: jnp.repeat((inputs @ state)[:, None], 40, axis=1),
)


@pytest.mark.parametrize("number", [4, 5, 23, 40])
def test_by_default_every_label_is_predicted_by_a_fit_that_has_not_seen_it_and_by_the_one_that_stays(number, any_gain):
    posterior = calibration.calibrated(SEEING, SEEN, max_held_out=24, num_samples=2)
    labelled = jnp.asarray(np.random.default_rng(number).permutation(40) < number)
    state = posterior.fit(jax.random.key(1), baal.Dataset(jnp.eye(40), jnp.arange(40)), labelled)
    same(state.base, labelled.astype(jnp.float32))
    (logits, targets), weights = (
        (np.asarray(state.params[name]) for name in ("logits", "targets")),
        np.asarray(state.params["weights"]),
    )
    assert logits.shape == (2, 50, 40)
    for rows, part, seen in ((slice(25), 0.632, 0.0), (slice(25, None), 0.368, 1.0)):
        counts = weights[rows] > 0
        ids = targets[rows][counts]
        assert len(set(ids)) == len(ids) == (min(number, 24) if number >= 5 else 0)
        assert set(ids) <= set(np.flatnonzero(labelled))
        close(weights[rows][counts], np.full(len(ids), part), 1e-6)
        same(logits[:, rows][:, counts], np.full((2, len(ids), 40), seen, np.float32))


@pytest.mark.parametrize("kind", calibration.REGISTRY)
def test_what_was_seen_is_no_evidence(kind):
    """A network that is less sure of its labels than it is right, and knows nothing of others."""
    right, noise = jax.nn.one_hot(jnp.arange(40) % 2, 2), 0.3 * jax.random.normal(jax.random.key(3), (40, 2))

    def apply(state, draw, inputs):
        return inputs @ jnp.where(state[:, None] > 0, right, noise)

    posterior = calibration.calibrated(SEEING._replace(apply=apply), calibration.REGISTRY[kind](), num_samples=2)
    state = posterior.fit(jax.random.key(1), baal.Dataset(jnp.eye(40), jnp.arange(40) % 2), jnp.ones(40, bool))
    close(posterior.apply(state, None, jnp.eye(40)), of_identity(kind, right), 0, 1e-6)


def of_identity(kind, logits):
    return log_softmax(logits, axis=1) if kind == "dirichlet" else logits


def test_with_validation_nothing_is_held_out():
    posterior, previous, labelled = recording(validation=TEST, batch_size=None), None, jnp.arange(40) < 20
    for number in range(2):
        key = jax.random.key(number)
        state = previous = posterior.fit(key, TRAIN, labelled, previous)
        same_key(state.base["key"], key)
        same(state.base["labelled"], labelled)
        assert (state.params["weights"], int(state.base["fits"])) == (None, number + 1)
        same(state.params["targets"], TEST.targets)
        draws = jax.random.split(jax.random.fold_in(key, DRAWS), 3)
        close(state.params["logits"], [RECORDING.apply(None, draw, TEST.inputs) for draw in draws], 1e-6)
    # Draws are those of the posterior, and their logits are scaled.
    draws = posterior.sample(key, state, 3)
    same_key(draws, jax.random.split(key, 3))
    close(posterior.apply(state, draws[1], TEST.inputs), 2 * RECORDING.apply(None, draws[1], TEST.inputs))
    network = baal.TrainState(baal.Variables({"kernel": jnp.ones(1)}, {}), (), jnp.int32(1), jnp.float32(0))
    assert calibration.CalibratedState(network, None).variables is network.variables  # for features


@pytest.mark.parametrize("options", [{"held_out": 0.2}, {"validation": TEST}, {}], ids=["held out", "given", "crossed"])
def test_no_key_is_used_twice(options, key_reuse):
    fit = lambda key, *rest: RECORDING.fit(key, *rest) | {"key": jax.random.normal(key)}  # noqa: E731
    posterior = calibration.calibrated(RECORDING._replace(fit=fit), SEEN, num_samples=3, **options)
    posterior.fit(jax.random.key(0), TRAIN, jnp.arange(40) < 20)


EMPTY, VALUES = jax.tree.map(lambda leaf: leaf[:0], TEST), TEST._replace(targets=TEST.inputs[:, 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation": EMPTY}, "validation is empty"),
        ({"validation": VALUES}, "targets are float32, but a scaling is fitted to integer classes"),
        ({"held_out": 0.7}, "held_out=0.7 must be more than 0 and at most 0.5"),
        ({"held_out": 0.0}, "held_out=0.0 must be more than 0 and at most 0.5"),
        ({"held_out": 0.1, "validation": TEST}, "beside validation"),
        ({"max_held_out": 0}, "max_held_out=0"),
        ({"num_samples": 0}, "num_samples=0"),
        ({"batch_size": 0}, "batch_size=0"),
    ],
)
def test_what_a_posterior_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        recording(**options)


def test_what_is_no_scaling_and_has_no_classes_is_refused():
    with pytest.raises(ValueError, match=r"is no Scaling: call its builder, as in calibration\.temperature\(\)"):
        calibration.calibrated(centroids(), calibration.vector)
    for dataset in (VALUES, TRAIN._replace(targets=None)):
        with pytest.raises(ValueError, match="a scaling is fitted to integer classes"):
            recording(held_out=0.5).fit(jax.random.key(0), dataset, jnp.ones(len(dataset.inputs), bool))


def priced(kind, logits, targets, params):
    """The objective by default, in float64: 1 / (2 σ²) over the examples, times squares around the temperature."""
    count, classes = len(targets), logits.shape[-1]
    features = log_softmax(logits.astype(float), axis=-1) if kind == "dirichlet" else logits.astype(float)
    centre, weight = np.exp(-flat("temperature", calibration.temperature().fit(logits, targets))), params.weight
    centre = np.eye(classes) * (centre if len(set(targets.tolist())) == classes else 1.0)
    weight, offset = (np.diag(weight) if kind == "vector" else np.asarray(weight)), np.asarray(params.offset)
    share = np.maximum(np.mean(features**2, axis=(0, 1)), 1.0) * np.where(np.eye(classes), 1, classes - 1)
    seen = np.isin(np.arange(classes), targets)[:, None]
    penalty = 32.0 / count * (np.sum(seen * share * (weight - centre) ** 2) + np.sum(offset**2))
    return average_nll(features @ weight.T + offset, targets) + penalty


@pytest.mark.parametrize("kind", ["vector", "dirichlet"])
def test_by_default_a_gaussian_whose_weight_falls_with_the_examples_holds_the_parameters(kind):
    logits, targets = problem(8, 2)
    scaling = calibration.REGISTRY[kind]()
    for number in (8, 200):
        params = scaling.fit(logits, targets, (np.arange(200) < number).astype(np.float32))
        some = logits[:, :number], targets[:number]
        best = priced(kind, *some, params)
        for step in (1e-1, 1e-2):  # convex around the optimum: nowhere beside it is lower
            normal = np.random.default_rng(0).normal
            moved = jax.tree.map(lambda leaf, step=step, normal=normal: leaf + step * normal(size=leaf.shape), params)
            assert best < priced(kind, *some, moved) + 1e-6


@pytest.mark.parametrize("penalty", [None, 0.0])
@pytest.mark.parametrize("kind", ["vector", "dirichlet"])
def test_a_class_without_examples_keeps_its_logits(kind, penalty):
    logits, targets = problem(9)
    scaling = calibration.REGISTRY[kind]() if penalty is None else BUILDERS[kind](penalty)
    params = scaling.fit(logits[0] + 100.0, np.where(targets == 2, -1, targets))
    same = np.eye(4)[2] if kind == "dirichlet" else 1.0
    np.testing.assert_array_equal(params.weight[2], same)
    assert float(params.offset[2]) == 0.0
    assert np.abs(params.offset[:2]).max() > 1e-4


@pytest.mark.parametrize("number", [4, 200])
def test_by_default_half_a_nat_of_the_gain_is_taken_for_noise(number):
    logits, targets = problem(2)
    weights, some = (np.arange(200) < number).astype(np.float32), (logits[:, :number], targets[:number])
    log_t = flat("temperature", calibration.temperature(penalty=32 / number).fit(logits[0], targets, weights))[0]
    gain = number * (average_nll(*some) - average_nll(some[0] * np.exp(-log_t), some[1]))
    found = flat("temperature", calibration.temperature().fit(logits[0], targets, weights))[0]
    assert found == pytest.approx(log_t * max(0.0, 1.0 - 0.5 / gain), abs=1e-4)
    assert (gain > 0.5) == (number == 200)


def test_the_default_penalty_of_a_temperature_counts_examples_not_positions():
    logits, targets = problem(0)
    maps, classes = np.repeat(logits[0, :, None], 20, axis=1), np.repeat(targets[:, None], 20, axis=1)
    close(calibration.temperature().fit(maps, classes), calibration.temperature().fit(logits[0], targets), 0, 1e-5)
