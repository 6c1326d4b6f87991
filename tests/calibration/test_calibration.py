"""Scalings against optima found by scipy in float64, and calibrated posteriors in the loop."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from scipy.special import log_softmax, logsumexp

import baal_jax as baal
from baal_jax import calibration, heuristics, metrics, selection
from tests.fixtures import centroids, clouds as data


def problem(seed, draws, examples, classes, scale=1.0, accuracy=2.0):
    """Logits ``[S, N, C]`` that are too sure of themselves, and classes."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, examples)
    signal = rng.normal(size=(examples, classes)) + accuracy * np.eye(classes)[targets] + rng.normal(size=classes)
    logits = 3 * scale * (signal[None] + 0.5 * rng.normal(size=(draws, examples, classes)))
    return logits.astype(np.float32), targets.astype(np.int32)


def average_nll(logits, targets):
    """NLL of the model average, float64."""
    chosen = np.take_along_axis(log_softmax(logits.astype(np.float64), axis=-1), targets[None, :, None], axis=-1)[
        ..., 0
    ]
    return -np.mean(logsumexp(chosen, axis=0) - np.log(len(chosen)))


def unpacked(kind, theta, classes):
    if kind == "temperature":
        return np.eye(classes) * np.exp(theta[0]), np.zeros(classes)
    if kind == "vector":
        return np.diag(theta[:classes]), theta[classes:]
    return theta[: classes**2].reshape(classes, classes), theta[classes**2 :]


def objective(kind, penalty, logits, targets):
    """The loss of each paper with its penalty, as a function of all parameters in a row, and its gradient."""
    classes = logits.shape[-1]
    inputs = log_softmax(logits.astype(np.float64), axis=-1) if kind == "dirichlet" else logits.astype(np.float64)
    off = 1 - np.eye(classes)

    def value(theta):
        weight, offset = unpacked(kind, theta, classes)
        log_p = log_softmax(inputs @ weight.T + offset, axis=-1)
        chosen = np.take_along_axis(log_p, targets[None, :, None], axis=-1)[..., 0]
        share = np.exp(chosen - logsumexp(chosen, axis=0)) / len(targets)
        loss = -np.mean(logsumexp(chosen, axis=0) - np.log(len(chosen)))
        slope = np.exp(log_p) * share[..., None]
        slope[:, np.arange(len(targets)), targets] -= share
        by_weight, by_offset = np.einsum("snc,snk->ck", slope, inputs), slope.sum((0, 1))
        if kind == "temperature":
            return loss + penalty * theta[0] ** 2, np.array([np.sum(by_weight * weight) + 2 * penalty * theta[0]])
        if kind == "vector":
            own = np.diag(weight)
            loss += penalty * (np.mean((own - 1) ** 2) + np.mean(offset**2))
            return loss, np.concatenate(
                [np.diag(by_weight) + 2 * penalty * (own - 1) / classes, by_offset + 2 * penalty * offset / classes]
            )
        pairs = classes * (classes - 1)
        loss += penalty * (np.sum((weight * off) ** 2) / pairs + np.mean(offset**2))
        by_weight = by_weight + 2 * penalty * weight * off / pairs
        return loss, np.concatenate([by_weight.ravel(), by_offset + 2 * penalty * offset / classes])

    return value


def flat(kind, params):
    if kind == "temperature":
        return np.array([-np.log(params.temperature)])
    return np.concatenate([np.ravel(leaf) for leaf in params]).astype(np.float64)


def optimum(kind, value, classes):
    start = {
        "temperature": np.zeros(1),
        "vector": np.concatenate([np.ones(classes), np.zeros(classes)]),
        "dirichlet": np.concatenate([np.eye(classes).ravel(), np.zeros(classes)]),
    }[kind]
    if kind == "temperature":  # one number: look everywhere
        grid = np.linspace(-6, 6, 200)
        start = grid[[np.argmin([value(np.array([point]))[0] for point in grid])]]
    return scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 5000}).fun


BUILDERS = {
    "temperature": lambda penalty: calibration.temperature(penalty=penalty),
    "vector": lambda penalty: calibration.vector(penalty=penalty),
    "dirichlet": lambda penalty: calibration.dirichlet(off_diagonal=penalty),
}
SHAPES = {"one prediction": (1, 200, 4), "draws": (3, 200, 4), "two classes": (1, 200, 2), "many": (1, 400, 12)}
PROBLEMS = [
    *(("one prediction", scale, penalty) for scale in (1.0, 300.0, 0.001) for penalty in (0.0, 0.01)),
    ("draws", 1.0, 0.0),
    ("draws", 30.0, 0.0),
    ("two classes", 1.0, 0.0),
    ("many", 1.0, 0.0),
]


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize(("name", "scale", "penalty"), PROBLEMS)
def test_a_fit_is_within_a_thousandth_of_a_nat_of_the_optimum(kind, name, scale, penalty):
    logits, targets = problem(0, *SHAPES[name], scale)
    value = objective(kind, penalty, logits, targets)
    params = BUILDERS[kind](penalty).fit(logits[0] if len(logits) == 1 else logits, targets)
    found = value(flat(kind, params))[0]
    assert found <= optimum(kind, value, logits.shape[-1]) + 1e-3
    if penalty == 0:  # what is applied is what was measured
        scaled = BUILDERS[kind](penalty).apply(params, jnp.asarray(logits))
        assert average_nll(np.asarray(scaled), targets) == pytest.approx(found, abs=2e-4)


def test_the_gradient_of_the_oracle_is_its_slope():
    logits, targets = problem(1, 3, 50, 3)
    for kind in BUILDERS:
        value = objective(kind, 0.1, logits, targets)
        theta = np.random.default_rng(0).normal(1.0, 0.1, {"temperature": 1, "vector": 6, "dirichlet": 12}[kind])
        assert scipy.optimize.check_grad(lambda x, v=value: v(x)[0], lambda x, v=value: v(x)[1], theta) < 1e-5


@pytest.mark.parametrize("kind", BUILDERS)
def test_examples_without_an_error_give_finite_parameters(kind):
    targets = np.arange(200, dtype=np.int32) % 4
    logits = jnp.asarray(2.0 * np.eye(4, dtype=np.float32)[targets])
    params = BUILDERS[kind](0.0).fit(logits, targets)
    chex.assert_tree_all_finite(params)
    assert average_nll(np.asarray(BUILDERS[kind](0.0).apply(params, logits))[None], targets) < 0.01


@pytest.mark.parametrize("kind", BUILDERS)
def test_unknown_targets_and_examples_without_weight_do_not_count(kind):
    logits, targets = problem(2, 1, 200, 4)
    value = objective(kind, 0.0, logits[:, :150], targets[:150])
    scaling = BUILDERS[kind](0.0)
    logits[:, 150:] = 50.0
    targets[150:180] = -1
    weights = np.where(np.arange(200) < 180, 2.0, 0.0).astype(np.float32)
    params = scaling.fit(logits[0], targets, weights)
    assert value(flat(kind, params))[0] <= optimum(kind, value, 4) + 1e-3
    twice = weights * (1 + (np.arange(200) < 50))  # the first fifty count twice
    doubled = objective(
        kind,
        0.0,
        np.concatenate([logits[:, :50], logits[:, :150]], axis=1),
        np.concatenate([targets[:50], targets[:150]]),
    )
    params = scaling.fit(logits[0], targets, twice)
    assert doubled(flat(kind, params))[0] <= optimum(kind, doubled, 4) + 1e-3


def test_a_map_is_its_positions():
    scaling = calibration.temperature()
    logits, targets = problem(2, 2, 60, 3)
    expected = scaling.fit(logits, targets)
    maps = scaling.fit(logits.reshape(2, 6, 2, 5, 3), targets.reshape(6, 2, 5))
    chex.assert_trees_all_close(maps, expected, rtol=1e-5)
    weights = np.float32([1, 1, 1, 1, 0, 0])
    some = scaling.fit(logits.reshape(2, 6, 2, 5, 3), targets.reshape(6, 2, 5), weights)
    chex.assert_trees_all_close(some, scaling.fit(logits[:, :40], targets[:40]), rtol=1e-5)


@pytest.mark.parametrize("kind", BUILDERS)
def test_without_known_targets_it_is_the_identity_and_with_nan_it_is_nan(kind):
    scaling = BUILDERS[kind](0.0)
    logits, targets = problem(3, 1, 200, 4)
    params = scaling.fit(logits[0], np.full(200, -1, np.int32))
    expected = log_softmax(logits, axis=-1)
    np.testing.assert_allclose(jax.nn.log_softmax(scaling.apply(params, logits)), expected, rtol=1e-5, atol=1e-6)
    broken = scaling.fit(np.where(np.arange(200)[:, None] == 7, np.nan, logits[0]).astype(np.float32), targets)
    assert all(np.isnan(leaf).all() for leaf in jax.tree.leaves(broken))


IMPOSSIBLE = [-np.inf, -1e9, float(np.finfo(np.float32).min), -1e6]


@pytest.mark.parametrize("kind", BUILDERS)
@pytest.mark.parametrize("draws", [1, 3])
def test_impossible_classes_are_left_alone_and_the_others_fitted_as_well_as_without_them(kind, draws):
    """Masks as people write them: infinite, and finite numbers of which float32 cannot tell neighbours apart."""
    scaling = BUILDERS[kind](0.0)
    logits, targets = problem(4, draws, 200, 4)
    targets %= 3
    least = optimum(kind, objective(kind, 0.0, logits[..., :3], targets), 3)
    for value in IMPOSSIBLE:
        logits[..., 3] = value
        params = scaling.fit(logits[0] if draws == 1 else logits, targets)
        chex.assert_tree_all_finite(params)
        scaled = np.asarray(scaling.apply(params, jnp.asarray(logits)))
        assert (scaled[..., 3] < -1e4).all()
        assert np.isfinite(scaled[..., :3]).all()
        assert average_nll(scaled, targets) <= least + 1e-3, value


@pytest.mark.parametrize("kind", BUILDERS)
def test_a_class_can_be_impossible_in_some_examples(kind):
    """An infinite mask and a large finite one are the same, and targets that are masked in every draw do not count."""
    scaling = BUILDERS[kind](0.0)
    logits, targets = problem(7, 1, 200, 4)
    masked = np.arange(200)[:, None] % 4 == np.arange(4)
    infinite, finite = (np.where(masked, value, logits[0]).astype(np.float32) for value in (-np.inf, -1e9))
    losses = []
    possible = ~masked[np.arange(200), targets]
    assert not possible.all()
    for each in (infinite, finite):
        scaled = np.asarray(scaling.apply(scaling.fit(each, targets), jnp.asarray(each)))
        np.testing.assert_array_equal(scaled[masked] < -1e2, True)
        losses.append(average_nll(scaled[None, possible], targets[possible]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    raw = average_nll(infinite[None, possible], targets[possible])
    assert losses[0] < raw - 0.1


def test_half_precision_is_computed_in_float32():
    logits, targets = problem(5, 1, 200, 4)
    half = jnp.asarray(logits[0], jnp.bfloat16)
    for kind, builder in BUILDERS.items():
        params = jax.eval_shape(builder(0.0).fit, half, targets)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}, kind
        assert jax.eval_shape(builder(0.0).apply, params, half).dtype == jnp.float32
    scaling = calibration.temperature()
    chex.assert_trees_all_close(scaling.fit(half, targets), scaling.fit(half.astype(jnp.float32), targets))


def test_a_fit_goes_through_jit_and_vmap():
    stacked = [problem(seed, 1, 200, 4) for seed in range(2)]
    logits, targets = (np.stack(part) for part in zip(*stacked, strict=True))
    scaling = calibration.vector()
    together = jax.jit(jax.vmap(scaling.fit))(logits[:, 0], targets)
    for i in range(2):
        value = objective("vector", 0.0, logits[i], targets[i])
        alone = value(flat("vector", scaling.fit(logits[i, 0], targets[i])))[0]
        found = value(flat("vector", jax.tree.map(lambda leaf, i=i: leaf[i], together)))[0]
        assert found == pytest.approx(alone, abs=1e-4)


def test_a_scaling_lowers_the_calibration_error():
    logits, targets = problem(6, 4, 4000, 5)
    logits, fresh, targets, answers = logits[:, :1000], logits[:, 1000:], targets[:1000], targets[1000:]
    before = metrics.ece(metrics.model_average(jnp.asarray(fresh)), answers)
    scaling = calibration.temperature()
    scaled = scaling.apply(scaling.fit(logits, targets), jnp.asarray(fresh))
    assert metrics.ece(metrics.model_average(scaled), answers) < 0.5 * before
    one = jnp.asarray(fresh[:1])
    np.testing.assert_array_equal(
        jnp.argmax(scaling.apply(scaling.fit(logits, targets), one), axis=-1), jnp.argmax(one, axis=-1)
    )


REFUSED = {
    "classes": (np.zeros((4, 3), np.float32), np.full(4, 3, np.int32), None, "targets holds class 3"),
    "numbers": (np.zeros((4, 3), np.float32), np.zeros(4, np.float32), None, "must be integer classes"),
    "shapes": (np.zeros((4, 3), np.float32), np.zeros(5, np.int32), None, "do not fit targets"),
    "one class": (np.zeros((4, 1), np.float32), np.zeros(4, np.int32), None, "single class"),
    "weights": (np.zeros((4, 3), np.float32), np.zeros(4, np.int32), np.full(4, -1.0), "weights holds a negative"),
    "list": ([0.0], np.zeros(4, np.int32), None, "logits is a list"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_fitted_is_refused(case):
    *arguments, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        calibration.temperature().fit(*arguments)


def test_settings_are_checked():
    for make, message in [
        (lambda: calibration.temperature(penalty=-1.0), "penalty=-1.0"),
        (lambda: calibration.temperature(bounds=(2.0, 1.0)), "bounds"),
        (lambda: calibration.temperature(bounds=None), "bounds"),
        (lambda: calibration.temperature(bounds=("1", "2")), "bounds"),
        (lambda: calibration.calibrated(centroids(), calibration.vector), "scaling"),
        (lambda: calibration.calibrated(centroids(), calibration.vector(), validation=EMPTY), "validation is empty"),
        (lambda: calibration.dirichlet(off_diagonal=-1.0), "off_diagonal"),
        (lambda: calibration.calibrated(centroids(), calibration.vector(), held_out=0.7), "held_out=0.7"),
        (lambda: calibration.calibrated(centroids(), calibration.vector(), held_out=0.1, validation=TEST), "beside"),
    ]:
        with pytest.raises(ValueError, match=message):
            make()
    assert set(calibration.REGISTRY) == set(BUILDERS)
    assert all(isinstance(builder(), calibration.Scaling) for builder in calibration.REGISTRY.values())


TRAIN, TEST = (jax.tree.map(jnp.asarray, part) for part in data())
EMPTY = jax.tree.map(lambda leaf: leaf[:0], TEST)
LABELLED = jnp.arange(40) < 20


@pytest.mark.parametrize("options", [{"validation": TEST}, {"refit": True}], ids=["validation", "refit"])
@pytest.mark.parametrize("kind", BUILDERS)
def test_the_posterior_is_not_touched(key, kind, options):
    base = centroids()
    posterior = calibration.calibrated(base, BUILDERS[kind](0.01), num_samples=4, **options)
    state = posterior.fit(key, TRAIN, LABELLED)
    chex.assert_trees_all_equal(state.base, jax.jit(base.fit)(key, TRAIN, LABELLED))
    draws = posterior.sample(key, state, 3)
    chex.assert_trees_all_equal(draws, base.sample(key, state.base, 3))
    raw = jnp.stack([base.apply(state.base, draw, TEST.inputs) for draw in draws])
    scaled = jnp.stack([posterior.apply(state, draw, TEST.inputs) for draw in draws])
    np.testing.assert_allclose(scaled, BUILDERS[kind](0.01).apply(state.params, raw), rtol=1e-6)
    if kind == "temperature":
        np.testing.assert_array_equal(jnp.argmax(scaled, -1), jnp.argmax(raw, -1))


@pytest.mark.parametrize(
    "options", [{}, {"validation": TEST}, {"refit": True}], ids=["held out", "validation", "refit"]
)
def test_no_key_is_used_twice(options, key_reuse):
    base = centroids()
    drawing = base._replace(fit=lambda key, *rest: (jax.random.normal(key), base.fit(key, *rest))[1])
    posterior = calibration.calibrated(drawing, calibration.temperature(), num_samples=2, **options)
    posterior.fit(jax.random.key(0), TRAIN, LABELLED)


def test_the_scaling_is_fitted_to_what_the_posterior_has_not_seen(key):
    """With a share of a quarter, a fit on the other three quarters, and the scaling that fits the rest."""
    base, scaling = centroids(9.0), calibration.temperature(penalty=0.1)
    state = calibration.calibrated(base, scaling, held_out=0.25, num_samples=4).fit(key, TRAIN, LABELLED)
    assert float(state.base[1].sum()) - 3 == 15  # counts, without the prior's
    again = calibration.calibrated(base, scaling, held_out=0.25, num_samples=4).fit(key, TRAIN, LABELLED)
    chex.assert_trees_all_equal(state, again)
    other = calibration.calibrated(base, scaling, held_out=0.25, num_samples=4).fit(jax.random.key(1), TRAIN, LABELLED)
    assert not np.array_equal(other.base[0], state.base[0])


@pytest.mark.parametrize(("labels", "held_out"), [(0, 0), (1, 0), (4, 0), (5, 1), (20, 4), (40, 6)])
def test_few_labels_are_not_taken_away(key, labels, held_out):
    posterior = calibration.calibrated(centroids(), calibration.temperature(), max_held_out=6, num_samples=2)
    state = posterior.fit(key, TRAIN, jnp.arange(40) < labels)
    assert float(state.base[1].sum()) - 3 == labels - held_out
    if not held_out:
        assert float(state.params.temperature) == 1.0


def test_every_round_of_a_compiled_run_is_calibrated_before_it_scores(key):
    posterior = calibration.calibrated(centroids(9.0), calibration.temperature(penalty=0.01), num_samples=4)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=4, num_samples=4)
    keys = jax.random.split(key, 16)
    states, infos = jax.jit(jax.vmap(lambda k: baal.run(loop, k, TRAIN, TEST, num_initial=10, num_rounds=3)))(keys)
    assert infos.metrics["nll"].shape == (16, 3)
    # Nine times too confident; a temperature of five held-out labels is rough, so most of the seeds say so.
    assert np.median(np.asarray(states.posterior.params.temperature)) > 1.5
    state = loop.init(keys[0], TRAIN, num_initial=10)
    for r in range(3):
        state, info = loop.step(state, TRAIN)
        np.testing.assert_array_equal(info.indices, infos.indices[0, r])
    by_hand, in_run = state.posterior.params.temperature, states.posterior.params.temperature[0]
    np.testing.assert_allclose(by_hand, in_run, rtol=1e-3)
    scores = baal.score(key, posterior, state.posterior, TRAIN.inputs, heuristics.bald, num_samples=4)
    raw = baal.score(key, centroids(9.0), state.posterior.base, TRAIN.inputs, heuristics.bald, num_samples=4)
    assert not np.allclose(scores, raw)
