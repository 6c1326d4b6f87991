"""Bayesian logistic regression against float64 formulas and scikit-learn: optimum, Gaussian, evidence, classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection
from baal_jax.posteriors import _logistic_regression as ours
from tests.oracles import laplace as laplace_oracle
from tests.oracles import logistic_regression as oracle

KEY, NUM = jax.random.key(0), 300
RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(NUM, 4)).astype(np.float32)
TARGETS = (INPUTS @ RNG.normal(size=(4, 3)) + RNG.normal(size=(NUM, 3))).argmax(axis=1).astype(np.int32)
DATA = baal.Dataset(INPUTS, TARGETS)
SEPARABLE = baal.Dataset(INPUTS, (INPUTS @ RNG.normal(size=(4, 3))).argmax(axis=1).astype(np.int32))
MANY = np.arange(NUM) % 2 == 0  # more than one batch of rows
FEW = np.isin(np.arange(NUM), [3, 50, 52, 77, 120, 121, 200, 299])
BIAS = 2.0
CLASSES = {
    "many": (DATA, MANY),
    "few": (DATA, FEW),
    "separable": (SEPARABLE, MANY),
    "one class": (DATA, MANY & (TARGETS == 1)),
    "large features": (baal.Dataset(300 * INPUTS, TARGETS), MANY),
    "nothing": (DATA, np.zeros(NUM, bool)),
    "unknown": (baal.Dataset(INPUTS, np.where(np.arange(NUM) % 4 == 0, -1, TARGETS)), MANY),
}


@functools.cache
def posterior_of(precision, **options):
    return posteriors.logistic_regression(3, prior_precision=precision, bias=BIAS, **options)


def fitted(name, precision, previous=None):
    return posterior_of(precision).fit(KEY, *CLASSES[name], previous)


@functools.cache
def expected(name, precision):
    (inputs, targets), labelled = CLASSES[name]
    known = labelled & (targets >= 0)
    design = np.column_stack([inputs[known].astype(float), np.full(known.sum(), BIAS)])
    return design, targets[known], oracle.fit(design, targets[known], 3, precision)


@pytest.fixture(params=["exact", "matrix-free"])
def way(request, monkeypatch):
    """Beyond 1,024 weights there is no exact Hessian; here that is beyond none."""
    if request.param == "matrix-free":
        monkeypatch.setattr(ours, "_MOST_WEIGHTS", 0)
        monkeypatch.setitem(globals(), "posterior_of", functools.cache(posterior_of.__wrapped__))
    return request.param


@pytest.mark.parametrize("precision", [30.0, 0.5, 1e-3])
def test_the_optimum_is_that_of_float64_and_of_scikit_learn(precision, way):
    for name in CLASSES:
        design, targets, (weights, _, _) = expected(name, precision)
        found = np.asarray(fitted(name, precision).weights, float)
        np.testing.assert_allclose(
            found, weights, rtol=1e-4, atol=3e-5 * max(np.abs(weights).max(), 1e-3), err_msg=name
        )
        if len(set(targets)) == 3 and name != "large features":
            theirs = laplace_oracle.logistic_map(design, targets, precision)
            np.testing.assert_allclose(found, theirs, rtol=1e-3, atol=1e-4 * np.abs(weights).max(), err_msg=name)
    # From elsewhere it is the same.
    again = fitted("few", precision, fitted("separable", precision))
    np.testing.assert_allclose(again.weights, fitted("few", precision).weights, rtol=1e-3, atol=1e-4)


def contrasts_of(matrix):
    """What a Gaussian over ``[P, C]`` weights says of differences of classes."""
    size = int(np.sqrt(matrix.shape[0] * matrix.shape[1])) // 3
    centring = np.kron(np.eye(size), np.eye(3) - 1 / 3)
    return centring @ matrix @ centring


@pytest.mark.parametrize("name", ["many", "separable", "nothing"])
def test_draws_and_evidence_are_those_of_the_gaussian_around_it(name):
    posterior, state = posterior_of(0.5), fitted(name, 0.5)
    _, _, (_, hessian, evidence) = expected(name, 0.5)
    covariance = contrasts_of(np.linalg.inv(hessian + 0.5 * np.eye(15)))
    # The root that makes a draw of white noise, and not its noisy estimate from many draws.
    (factor,) = state.factors
    basis = np.kron(np.eye(5), ours._contrasts(3))
    found = basis @ np.linalg.inv(np.asarray(factor, float) @ np.asarray(factor, float).T) @ basis.T
    np.testing.assert_allclose(found, covariance, rtol=1e-3, atol=1e-4 * np.abs(covariance).max())
    draws = np.asarray(posterior.sample(KEY, state, 20_000), float)
    np.testing.assert_allclose(draws.sum(axis=2), 0, atol=1e-4)
    flat = (draws - np.asarray(state.weights)).reshape(20_000, -1)
    np.testing.assert_allclose(flat.T @ flat / 20_000, covariance, atol=0.05 * np.abs(covariance).max())
    np.testing.assert_allclose(flat.mean(axis=0), 0, atol=0.05 * np.abs(covariance).max() ** 0.5)
    np.testing.assert_allclose(state.log_evidence, evidence, rtol=1e-4, atol=1e-4)
    logits = baal.predict(KEY, posterior, state, INPUTS, num_samples=3)
    first = np.asarray(posterior.sample(KEY, state, 3), float)
    np.testing.assert_allclose(logits, INPUTS @ first[:, :-1] + BIAS * first[:, -1:], rtol=1e-3, atol=1e-3)


def test_beyond_the_exact_hessian_draws_are_of_two_kronecker_factors(monkeypatch):
    monkeypatch.setattr(ours, "_MOST_WEIGHTS", 0)
    posterior = posterior_of.__wrapped__(0.5)
    state = posterior.fit(KEY, DATA, MANY)
    design, targets, (weights, _, _) = expected("many", 0.5)
    p = np.exp(oracle.log_probs(design @ weights))
    hessian = np.kron(design.T @ design, np.mean(laplace_oracle.hessians(p), axis=0))
    covariance = contrasts_of(np.linalg.inv(hessian + 0.5 * np.eye(15)))
    draws = np.asarray(posterior.sample(KEY, state, 20_000), float)
    flat = (draws - np.asarray(state.weights)).reshape(20_000, -1)
    np.testing.assert_allclose(flat.T @ flat / 20_000, covariance, atol=0.05 * np.abs(covariance).max())
    log_lik = np.sum(oracle.log_probs(design @ weights)[np.arange(len(targets)), targets])
    half = np.linalg.slogdet(np.eye(15) + hessian / 0.5)[1] / 2
    np.testing.assert_allclose(state.log_evidence, log_lik - 0.25 * np.sum(weights**2) - half, rtol=1e-4)


def test_the_precision_of_the_largest_evidence_is_climbed_to():
    ends = set()
    for name in ("many", "few", "separable"):
        values = {tau: expected(name, tau)[2][2] for tau in 2.0 ** np.arange(-16, 17)}
        tau, steps = 1.0, 0
        state = fitted(name, "evidence")
        # Up first, then down, where .01 nats are gained.
        for factor in (2.0, 0.5):
            while values.get(tau * factor, -np.inf) > values[tau] + 0.01:
                tau, steps = tau * factor, steps + 1
            if steps:
                break
        assert float(state.prior_precision) == tau, name
        np.testing.assert_allclose(state.log_evidence, values[tau], rtol=1e-3)
        assert float(fitted(name, "evidence", state).prior_precision) == tau  # it stays
        ends.add(tau)
    assert len(ends) > 1
    # Without labels nothing tells: whatever was before.
    assert float(fitted("nothing", "evidence", fitted("separable", "evidence")).prior_precision) == 1.0


def test_many_fits_at_once_are_those_one_by_one():
    masks = np.random.default_rng(1).random((5, NUM)) < np.array([0.0, 0.02, 0.1, 0.5, 1.0])[:, None]
    fit = posterior_of("evidence").fit
    together = jax.vmap(lambda labelled: fit(KEY, DATA, labelled))(masks)
    for i, labelled in enumerate(masks):
        alone = fit(KEY, DATA, labelled)
        np.testing.assert_array_equal(together.prior_precision[i], alone.prior_precision)
        np.testing.assert_allclose(together.weights[i], alone.weights, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(together.log_evidence[i], alone.log_evidence, rtol=1e-4, atol=1e-4)


def test_float64_is_kept_and_ends_at_its_own_optimum():
    with jax.enable_x64(True):
        state = posteriors.logistic_regression(3, prior_precision=1e-3, bias=BIAS).fit(
            KEY, baal.Dataset(INPUTS.astype(float), TARGETS), jnp.asarray(MANY)
        )
        assert state.weights.dtype == jnp.float64
        np.testing.assert_allclose(state.weights, expected("many", 1e-3)[2][0], rtol=1e-9, atol=1e-9)


def test_a_point_estimate_has_one_draw_which_is_the_optimum():
    posterior = posterior_of(0.5, point_estimate=True)
    state = posterior.fit(KEY, DATA, MANY)
    assert posterior.num_draws == 1
    assert not state.factors
    scores = baal.score(KEY, posterior, state, INPUTS, heuristics.margin)
    logits = INPUTS @ state.weights[:-1] + BIAS * state.weights[-1:]
    np.testing.assert_allclose(scores, heuristics.margin(logits[None]), rtol=1e-4, atol=1e-5)


class Source:
    """Inputs on the host."""

    def __len__(self):
        return NUM

    def __getitem__(self, index):
        return INPUTS[index]


def test_classes_are_counted_where_targets_can_be_seen():
    posterior = posteriors.logistic_regression()
    loop = baal.active_loop(posterior, selection.top_k(heuristics.margin), query_size=3, num_samples=4)
    state, infos = baal.run(loop, KEY, DATA, DATA, num_initial=6, num_rounds=4)
    assert state.posterior.weights.shape == (5, 3)
    assert float(infos.metrics["accuracy"][-1]) > 0.5
    state = loop.init(KEY, DATA, num_initial=6)
    for picks in infos.indices:
        state, info = loop.step(state, DATA)
        np.testing.assert_array_equal(info.indices, picks)
    on_host = loop.init(KEY, baal.Dataset(Source(), TARGETS), num_initial=6)
    assert on_host.posterior.weights.shape == (5, 3)
    assert loop.step(on_host, baal.Dataset(Source(), TARGETS))[1].indices.tolist() == infos.indices[0].tolist()
    seeds = jax.vmap(lambda key: baal.run(loop, key, DATA, None, num_initial=6, num_rounds=2)[1])
    assert seeds(jax.random.split(KEY, 3)).indices.shape == (3, 2, 3)


def test_classes_that_nobody_sees_have_to_be_given():
    posterior = posteriors.logistic_regression()
    for call in (
        lambda: jax.jit(posterior.fit)(KEY, DATA, MANY),
        lambda: posterior.fit(KEY, baal.Dataset(INPUTS, np.full(NUM, -1, np.int32)), MANY),
    ):
        with pytest.raises(ValueError, match="pass num_classes="):
            call()
    loop = baal.active_loop(posterior, selection.random(), query_size=2)
    asked = baal.pool.init(NUM)._replace(targets=jnp.full(NUM, -1, jnp.int32).at[0].set(1))
    with pytest.raises(ValueError, match="pass num_classes="):  # people may name a third one
        loop.init(KEY, baal.Dataset(INPUTS), pool=asked)
    with pytest.raises(ValueError, match=r"hold 2 in .*classes 0 to 1"):
        posteriors.logistic_regression(2).fit(KEY, DATA, MANY)
    beyond = jax.jit(posteriors.logistic_regression(2).fit)(KEY, DATA, MANY)
    assert np.isnan(beyond.weights).all()
    for inputs, targets, words in (
        ({"x": INPUTS}, TARGETS, "one array of features"),
        (INPUTS[:, 0], TARGETS, "one array of features"),
        (INPUTS, np.eye(3, dtype=np.float32)[TARGETS], "integer classes"),
    ):
        with pytest.raises(ValueError, match=words):
            posterior.fit(KEY, baal.Dataset(inputs, targets), MANY)
