"""Scalings against optima found by scipy in float64. One shape of logits for all that is convex, one for draws."""

import functools

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
    """The loss of each paper with its penalty, as a function of all parameters in a row, and its gradient.

    The inputs are measured in ``unit``, which without a penalty changes the parameters and not the smallest loss.
    """
    classes = logits.shape[-1]
    inputs = (log_softmax(logits.astype(float), axis=-1) if kind == "dirichlet" else logits.astype(float)) / unit

    def unpacked(theta):
        if kind == "temperature":
            return np.eye(classes) * np.exp(-theta[0]), np.zeros(classes)
        weight, offset = theta[:-classes], theta[-classes:]
        return np.diag(weight) if kind == "vector" else weight.reshape(classes, classes), offset

    def value(theta):
        weight, offset = unpacked(theta)
        log_p = log_softmax(inputs @ weight.T + offset, axis=-1)
        chosen = np.take_along_axis(log_p, targets[None, :, None], axis=-1)[..., 0]
        loss = -np.mean(logsumexp(chosen, axis=0) - np.log(len(chosen)))
        share = np.exp(chosen - logsumexp(chosen, axis=0)) / len(targets)
        slope = share[..., None] * (np.exp(log_p) - np.eye(classes)[targets])
        by_weight, by_offset = np.einsum("snc,snk->ck", slope, inputs), slope.sum((0, 1))
        if kind == "temperature":
            by_theta = 2 * penalty * theta[0] - np.sum(by_weight * weight)
            return loss + penalty * theta[0] ** 2, np.array([by_theta])
        own, off = np.diag(weight) - 1, weight * (1 - np.eye(classes))
        if kind == "vector":
            loss += penalty * np.mean(own**2) + penalty * np.mean(offset**2)
            return loss, np.append(np.diag(by_weight) + penalty * own / 2, by_offset + penalty * offset / 2)
        loss += penalty * np.sum(off**2) / 12 + penalty / 4 * np.mean(offset**2)  # pairs of four classes
        return loss, np.append(by_weight + penalty * off / 6, by_offset + penalty * offset / 8)

    return value


def flat(kind, params):
    if kind == "temperature":
        return np.array([np.log(params.temperature)])
    return np.concatenate([np.ravel(leaf) for leaf in params]).astype(float)


def optimum(kind, value, classes=4, **options):
    """The best that scipy finds."""
    if kind == "temperature":  # one number: look everywhere
        grid = np.linspace(-6, 6, 200)
        start = grid[[np.argmin([value(grid[i : i + 1])[0] for i in range(200)])]]
    else:
        start = np.append(np.ones(classes) if kind == "vector" else np.eye(classes).ravel(), np.zeros(classes))
    return scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 3000} | options)


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_fit_is_within_a_thousandth_of_a_nat_of_the_optimum_whatever_the_scale(kind):
    scaling = BUILDERS[kind](0.0)
    for scale in (1.0, 300.0, 0.001):
        logits, targets = problem(0, scale=scale)
        value, params = objective(kind, 0.0, logits, targets), scaling.fit(logits[0], targets)
        found = value(flat(kind, params))[0]
        assert found <= optimum(kind, objective(kind, 0.0, logits, targets, scale)).fun + 1e-3
        # What is applied is what was measured.
        scaled = np.asarray(scaling.apply(params, jnp.asarray(logits)))
        assert average_nll(scaled, targets) == pytest.approx(found, abs=2e-4)
        if kind == "temperature":
            close(scaled, logits / float(params.temperature), 1e-5)


@pytest.mark.parametrize("kind", BUILDERS)
def test_penalties_are_those_of_the_papers(kind):
    """They matter as much as the data here, so that the parameters themselves are those of the optimum."""
    logits, targets = problem(0)
    params = BUILDERS[kind](2.0).fit(logits[0], targets)
    best = optimum(kind, objective(kind, 2.0, logits, targets), ftol=1e-13, gtol=1e-8).x
    close(flat(kind, params), best, 0.0, 3e-3)


def two_valleys(seed):
    """Six known examples to which two draws say different things: the loss has a minimum at two temperatures."""
    rng, logits = np.random.default_rng(seed), problem(0, 2)[0]
    logits[:, :6] = rng.normal(size=(2, 6, 4)) * np.exp(2 * rng.normal(size=(2, 6, 1)))
    return logits, np.where(np.arange(200) < 6, rng.integers(0, 4, 200), -1).astype(np.int32)


@pytest.mark.parametrize("kind", ["temperature", "dirichlet"])
def test_of_several_draws_it_is_the_average_that_is_fitted(kind):
    scaling = BUILDERS[kind](0.0)
    for scale in (1.0, 30.0):
        logits, targets = problem(0, 2, scale)
        found = objective(kind, 0.0, logits, targets)(flat(kind, scaling.fit(logits, targets)))[0]
        assert found <= optimum(kind, objective(kind, 0.0, logits, targets, scale)).fun + 1e-3


def test_of_several_local_optima_the_temperature_is_the_best():
    for seed in (1007, 215):
        logits, targets = two_valleys(seed)
        value = objective("temperature", 0.0, logits[:, :6], targets[:6])
        found = value(flat("temperature", calibration.temperature().fit(logits, targets)))[0]
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


@pytest.mark.parametrize(
    ("kind", "draws"), [("temperature", 1), ("vector", 1), ("dirichlet", 1), ("temperature", 2), ("dirichlet", 2)]
)
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
        found = value(flat("vector", jax.tree.map(lambda leaf, i=i: leaf[i], together)))[0]
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


def test_what_cannot_be_is_refused():
    ok, classes = np.zeros((4, 3), np.float32), np.zeros(4, np.int32)
    fit = calibration.temperature().fit
    affine = calibration.AffineParams(jnp.ones(3), jnp.zeros(3))
    for call, message in [
        (lambda: fit(ok, classes + 3), "targets holds class 3, but logits has 3"),
        (lambda: fit(ok, classes.astype(np.float32)), "must be integer classes"),
        (lambda: fit(ok, np.zeros(5, np.int32)), "do not fit targets"),
        (lambda: fit(ok[None, None], classes), "do not fit targets"),
        (lambda: fit(np.zeros((0, 4, 3), np.float32), classes), "do not fit targets"),
        (lambda: fit(ok[:, :1], classes), "single class"),
        (lambda: fit([0.0], classes), "logits is a list"),
        (lambda: fit(None, classes), "logits is a NoneType"),
        (lambda: fit(ok, classes, np.full(4, -1.0)), "weights holds a negative"),
        (lambda: fit(ok, classes, np.full(4, np.inf)), "weights holds a negative number, NaN or infinity"),
        (lambda: fit(ok, classes, np.ones(3)), "do not fit targets of shape"),
        (lambda: fit(ok, classes, np.float32(1)), "do not fit targets of shape"),
        (lambda: calibration.vector().apply(affine, jnp.zeros((2, 4))), "do not fit a scaling of 3 classes"),
        (lambda: calibration.temperature().apply(calibration.TemperatureParams(1.0), 0.0), "several classes"),
        (functools.partial(calibration.temperature, penalty=-1.0), "penalty=-1.0"),
        (functools.partial(calibration.vector, penalty=-1.0), "penalty=-1.0"),
        (functools.partial(calibration.dirichlet, off_diagonal=-1.0), "off_diagonal=-1.0"),
        (functools.partial(calibration.dirichlet, intercept=-1.0), "intercept=-1.0"),
        *(
            (functools.partial(calibration.temperature, bounds=bounds), "two positive numbers, the smaller one first")
            for bounds in ((2.0, 1.0), (0.0, 1.0), None, ("1", "2"), (1.0, 1.0))
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
