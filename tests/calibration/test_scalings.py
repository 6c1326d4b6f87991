"""Scalings against optima found by scipy in float64. One shape of logits for all that is convex, one for draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, logsumexp

from baal_jax import calibration
from tests.fixtures import close

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
    """NLL of the model average, float64."""
    chosen = np.take_along_axis(log_softmax(logits.astype(float), axis=-1), targets[None, :, None], axis=-1)[..., 0]
    return -np.mean(logsumexp(chosen, axis=0) - np.log(len(chosen)))


def objective(kind, penalty, logits, targets, unit=1.0):
    """The loss of each paper with its penalty, as a function of all parameters in a row.

    The inputs are measured in ``unit``, which without a penalty changes the parameters and not the smallest loss.
    """
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
    """The best that scipy finds."""
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


@pytest.mark.parametrize("kind", BUILDERS)
def test_penalties_are_those_of_the_papers(kind):
    """Where they matter as much as the data the parameters themselves are those of the optimum, elsewhere the loss."""
    logits, targets = problem(0)
    for penalty in (2.0, 0.02):
        value = objective(kind, penalty, logits, targets)
        params, best = flat(kind, BUILDERS[kind](penalty).fit(logits[0], targets)), optimum(kind, value)
        assert value(params) <= best.fun + 1e-4
        if penalty == 2.0:
            close(params, best.x, 0.0, 3e-3)


def two_valleys(seed):
    """Six known examples to which two draws say different things: the loss has a minimum at two temperatures."""
    rng, logits = np.random.default_rng(seed), problem(0, 2)[0]
    logits[:, :6] = rng.normal(size=(2, 6, 4)) * np.exp(2 * rng.normal(size=(2, 6, 1)))
    return logits, np.where(np.arange(200) < 6, rng.integers(0, 4, 200), -1).astype(np.int32)


def test_of_several_local_optima_the_temperature_is_the_best():
    for seed in (1007, 215):
        logits, targets = two_valleys(seed)
        value = objective("temperature", 0.0, logits[:, :6], targets[:6])
        found = value(flat("temperature", calibration.temperature().fit(logits, targets)))
        assert found <= optimum("temperature", value).fun + 1e-4


def test_more_weight_is_more_examples_and_unknown_targets_have_none():
    logits, targets = problem(2)
    scaling = calibration.temperature()
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
        found = calibration.temperature().fit(maps, classes, weights)
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
    assert float(calibration.temperature(bounds=(0.5, 1.25)).fit(logits[0], targets).temperature) == pytest.approx(1.25)
    scaling = calibration.temperature(bounds=(3.0, 4.0))
    assert float(scaling.fit(0.1 * logits[0], targets).temperature) == pytest.approx(3.0)  # would be lower
    assert float(scaling.fit(logits[0], targets - 4).temperature) == 1.0  # nothing counts


def test_a_fit_goes_through_jit_and_vmap_as_a_constant():
    stacked = [problem(seed) for seed in range(2)]
    logits, targets = (np.stack(part) for part in zip(*stacked, strict=True))
    scaling = calibration.vector()
    fit = jax.jit(jax.vmap(scaling.fit))
    together = fit(logits[:, 0], targets)
    for i in range(2):
        value = objective("vector", 0.0, logits[i], targets[i])
        found = value(flat("vector", jax.tree.map(lambda leaf, i=i: leaf[i], together)))
        assert found <= optimum("vector", value).fun + 1e-3
    # A class too many, which compiled code cannot refuse; and a loop has no gradient, but a constant has.
    assert np.isnan(fit(logits[:, 0], targets + 1)[0]).all()
    jax.eval_shape(jax.grad(lambda logits: scaling.fit(logits, targets[0]).offset[0]), logits[0, 0])


def test_half_precision_is_computed_in_float32():
    half, targets = jax.ShapeDtypeStruct((200, 4), jnp.bfloat16), problem(5)[1]
    for build in BUILDERS.values():
        params = jax.eval_shape(build(0.0).fit, half, targets)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
        assert jax.eval_shape(build(0.0).apply, params, half).dtype == jnp.float32


def test_settings_that_are_left_out_are_those_of_their_neighbours():
    """Equal settings are one object, whose programs are compiled once."""
    assert calibration.dirichlet(off_diagonal=2.0) is calibration.dirichlet(off_diagonal=2, intercept=2.0)
    assert calibration.dirichlet(off_diagonal=2.0) is not calibration.dirichlet(off_diagonal=2.0, intercept=0.0)
    assert calibration.vector(penalty=1) is calibration.vector(penalty=1.0)
    assert calibration.temperature() is calibration.REGISTRY["temperature"](bounds=[1e-6, 1e6])
    assert {*calibration.REGISTRY} == {*BUILDERS}


OK, CLASSES = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
FIT = calibration.temperature().fit
AFFINE = calibration.AffineParams(jnp.ones(3), jnp.zeros(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: FIT(OK, CLASSES + 3), "targets holds class 3, but logits has 3"),
        (lambda: FIT(OK, CLASSES.astype(np.float32)), "must be integer classes"),
        (lambda: FIT(OK, np.zeros(5, np.int32)), "do not fit targets"),
        (lambda: FIT(OK[None, None], CLASSES), "do not fit targets"),
        (lambda: FIT(np.zeros((0, 4, 3), np.float32), CLASSES), "do not fit targets"),
        (lambda: FIT(OK[:, :1], CLASSES), "single class"),
        (lambda: FIT([0.0], CLASSES), "logits is a list"),
        (lambda: FIT(None, CLASSES), "logits is a NoneType"),
        (lambda: FIT(OK, CLASSES, np.full(4, -1.0)), "weights holds a negative"),
        (lambda: FIT(OK, CLASSES, np.full(4, np.inf)), "weights holds a negative number, NaN or infinity"),
        (lambda: FIT(OK, CLASSES, np.ones(3)), "do not fit targets of shape"),
        (lambda: FIT(OK, CLASSES, np.float32(1)), "do not fit targets of shape"),
        (lambda: calibration.vector().apply(AFFINE, jnp.zeros((2, 4))), "do not fit a scaling of 3 classes"),
        (lambda: calibration.temperature().apply(calibration.TemperatureParams(1.0), 0.0), "several classes"),
        (lambda: calibration.temperature(penalty=-1.0), "penalty=-1.0"),
        (lambda: calibration.vector(penalty=-1.0), "penalty=-1.0"),
        (lambda: calibration.dirichlet(off_diagonal=-1.0), "off_diagonal=-1.0"),
        (lambda: calibration.dirichlet(intercept=-1.0), "intercept=-1.0"),
        *(
            (
                lambda bounds=bounds: calibration.temperature(bounds=bounds),
                "two positive numbers, the smaller one first",
            )
            for bounds in ((2.0, 1.0), (0.0, 1.0), None, ("1", "2"), (1.0, 1.0))
        ),
    ],
)
def test_what_cannot_be_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
