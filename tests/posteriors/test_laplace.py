"""Last-layer Laplace: exact where it can be, and equal to NumPy elsewhere."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import softmax
from scipy.stats import multivariate_normal, norm

import baal_jax as baal
from baal_jax import features, posteriors
from baal_jax.posteriors import _gauss_newton
from tests.fixtures import same_key, untrained
from tests.oracles import laplace as oracle

GENERATOR = np.random.default_rng(0)
INPUTS = GENERATOR.normal(size=(40, 3))
VALUES = INPUTS @ np.array([1.0, -2.0, 0.5]) + 0.3 + 0.4 * GENERATOR.normal(size=40)
CLASSES = (INPUTS @ GENERATOR.normal(size=(3, 3)) + GENERATOR.normal(size=(40, 3))).argmax(axis=1)
LABELLED = np.arange(40) % 5 < 2  # 16 of them
EVERYWHERE = np.column_stack([INPUTS, np.ones(40)])
DESIGN = EVERYWHERE[LABELLED]
STRUCTURES = ("full", "kronecker", "diagonal")
LOGISTIC = oracle.logistic_map(DESIGN, CLASSES[LABELLED], precision=0.7)
PROBS = softmax(DESIGN @ LOGISTIC, axis=1)
RANDOM = np.random.default_rng(1).normal(size=(4, 3))


def dataset(targets):
    targets = targets.astype(np.float32 if targets.dtype == np.float64 else np.int32)
    return baal.Dataset(INPUTS.astype(np.float32), targets)


def fit(weights, targets, tail=lambda outputs: outputs, labelled=LABELLED, **options):
    """With a network that has the weights ``[D + 1, C]``."""
    dense = baal.from_linen(nn.Dense(weights.shape[1]))
    model = dense._replace(deterministic=lambda *given: tail(dense.deterministic(*given)))
    trained = untrained({"kernel": weights[:-1].astype(np.float32), "bias": weights[-1].astype(np.float32)})
    posterior = posteriors.laplace(model, trained, **options)
    return model, posterior, posterior.fit(jax.random.key(0), dataset(targets), labelled)


def near(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@jax.jit
def weight_covariance(state):
    shape = state.curvature[0].shape[:2]
    unit = jnp.eye(math.prod(shape)).reshape(-1, *shape)
    rows = _gauss_newton.deviations(state.curvature, state.prior_precision, unit).reshape(len(unit), -1)
    return jnp.matmul(rows.T, rows, precision="highest")


def output_covariance(covariance):
    """``J Σ Jᵀ [N, C, C]``."""
    return np.einsum("nd,dcek,ne->nck", EVERYWHERE, covariance.reshape(4, 3, 4, 3), EVERYWHERE)


@pytest.mark.parametrize(("structure", "bias"), [("full", True), ("kronecker", True), ("full", False)])
def test_linear_regression_is_exact(structure, bias):
    """Without a bias only the kernel is uncertain."""
    everywhere = EVERYWHERE if bias else INPUTS
    mean, covariance = oracle.linear_regression(everywhere[LABELLED], VALUES[LABELLED], 0.7, 0.4)
    weights = mean[:, None] if bias else np.append(mean, 0.0)[:, None]
    options = {"structure": structure, "prior_precision": 0.7, "noise": 0.4, "batch_size": 5, "bias": bias}
    model, posterior, state = fit(weights, VALUES, **options)
    near(weight_covariance(state), covariance)
    found = posteriors.laplace_moments(model)(state, dataset(CLASSES).inputs)
    near(found.mean[:, 0], everywhere @ mean)
    near(found.covariance[:, 0, 0], np.einsum("nd,de,ne->n", everywhere, covariance, everywhere))
    evidence_covariance = 0.4**2 * np.eye(16) + everywhere[LABELLED] @ everywhere[LABELLED].T / 0.7
    near(state.log_evidence, multivariate_normal.logpdf(VALUES[LABELLED], cov=evidence_covariance))

    draws = np.asarray(jax.jit(posterior.sample, static_argnums=2)(jax.random.key(1), state, 20_000))
    np.testing.assert_allclose(np.cov(draws[..., 0].T), covariance, atol=0.05 * covariance.max())
    np.testing.assert_allclose(draws.mean(axis=0), 0, atol=0.05 * np.sqrt(covariance.max()))
    outputs = jax.jit(posterior.apply)(state, draws[0], dataset(VALUES).inputs)
    near(outputs[:, 0], everywhere @ (mean + draws[0, :, 0]))
    if not bias:
        shifted = fit(np.append(mean, 5.0)[:, None], VALUES, bias=False)[2]
        near(shifted.prior_precision, 3 / np.sum(mean**2))  # which a bias of 5 does not change


@pytest.mark.parametrize("structure", STRUCTURES)
def test_logistic_regression_is_that_of_numpy(structure):
    matrix = oracle.kronecker(DESIGN, PROBS) if structure == "kronecker" else oracle.gauss_newton(DESIGN, PROBS)
    matrix = np.diag(np.diag(matrix)) if structure == "diagonal" else matrix
    model, _, state = fit(LOGISTIC, CLASSES, structure=structure, prior_precision=0.7, batch_size=7)
    covariance = np.linalg.inv(matrix + 0.7 * np.eye(12))
    near(weight_covariance(state), covariance)
    found = posteriors.laplace_moments(model)(state, dataset(CLASSES).inputs)
    near(found.mean, EVERYWHERE @ LOGISTIC)
    near(found.covariance, output_covariance(covariance))
    log_likelihood = np.log(PROBS[np.arange(16), CLASSES[LABELLED]]).sum()
    near(state.log_evidence, oracle.log_evidence(log_likelihood, LOGISTIC, matrix, 0.7))
    assert float(state.noise) == 1.0
    assert state.structure == structure

    chosen = fit(LOGISTIC, CLASSES, structure=structure, prior_precision="evidence")[2]
    grid = np.exp(np.linspace(-6, 6, 1201))
    values = [oracle.log_evidence(log_likelihood, LOGISTIC, matrix, tau) for tau in grid]
    assert abs(np.log(chosen.prior_precision / grid[np.argmax(values)])) < 0.011
    near(chosen.log_evidence, max(values))


@pytest.mark.parametrize(("precision", "noise"), [("evidence", None), (0.7, None), ("evidence", 0.4)])
def test_hyperparameters_of_regression_maximise_the_marginal_likelihood(precision, noise):
    """Where its derivatives vanish (Bishop 2006, equations 3.92 and 3.95)."""
    mean, _ = oracle.linear_regression(DESIGN, VALUES[LABELLED], 0.7, 0.4)
    state = fit(mean[:, None], VALUES, prior_precision=precision, noise=noise)[2]
    tau, beta = float(state.prior_precision), float(state.noise) ** -2
    eigenvalues = beta * np.linalg.eigvalsh(DESIGN.T @ DESIGN)
    gamma, error = np.sum(eigenvalues / (eigenvalues + tau)), np.sum((DESIGN @ mean - VALUES[LABELLED]) ** 2)
    near(tau, gamma / np.sum(mean**2) if precision == "evidence" else precision)
    near(beta, (16 - gamma) / error if noise is None else noise**-2)
    likelihood = norm(DESIGN @ mean, beta**-0.5).logpdf(VALUES[LABELLED]).sum()
    near(state.log_evidence, oracle.log_evidence(likelihood, mean, beta * DESIGN.T @ DESIGN, tau))


def test_what_follows_the_last_layer_is_differentiated():
    model, posterior, state = fit(LOGISTIC, CLASSES, lambda logits: 4 * logits, prior_precision=0.7)
    probs = softmax(4 * DESIGN @ LOGISTIC, axis=1)
    covariance = np.linalg.inv(16 * oracle.gauss_newton(DESIGN, probs) + 0.7 * np.eye(12))
    near(weight_covariance(state), covariance)
    found = posteriors.laplace_moments(model)(state, dataset(CLASSES).inputs).covariance[5]
    near(found, 16 * output_covariance(covariance)[5])
    draw = RANDOM.astype(np.float32)
    near(jax.jit(posterior.apply)(state, draw, dataset(CLASSES).inputs), 4 * EVERYWHERE @ (LOGISTIC + draw))


def test_unknown_targets_and_unlabelled_rows_do_not_count():
    """With Kronecker factors, which are the only ones to need the number of examples."""
    posterior = fit(RANDOM, CLASSES, structure="kronecker")[1]
    expected = posterior.fit(jax.random.key(0), dataset(CLASSES), LABELLED)
    state = posterior.fit(jax.random.key(0), dataset(np.where(LABELLED, CLASSES, -1)), jnp.ones(40, bool))
    near(weight_covariance(state), weight_covariance(expected))
    near(state.log_evidence, expected.log_evidence)

    # Of two outputs the second has targets for half of the labelled examples.
    known = np.stack([LABELLED, LABELLED & (np.arange(40) % 5 == 0)], axis=1)
    both = np.where(known, np.stack([VALUES, -VALUES], axis=1), np.nan)
    state = fit(RANDOM[:, :2], both, labelled=np.ones(40, bool), noise=0.5, prior_precision=0.7)[2]
    found = weight_covariance(state).reshape(4, 2, 4, 2)
    evidence = 0.0
    for output in range(2):
        design, targets = EVERYWHERE[known[:, output]], both[known[:, output], output]
        near(found[:, output, :, output], oracle.linear_regression(design, targets, 0.7, 0.5)[1])
        matrix, weights = design.T @ design / 0.25, RANDOM[:, output]
        log_likelihood = norm(design @ weights, 0.5).logpdf(targets).sum()
        evidence += oracle.log_evidence(log_likelihood, weights, matrix, 0.7)
    assert np.abs(found[:, 0, :, 1]).max() < 1e-6
    near(state.log_evidence, evidence)
    both = np.stack([VALUES, -VALUES], axis=1)
    full, factors = (fit(RANDOM[:, :2], both, structure=structure, noise=0.5)[2] for structure in STRUCTURES[:2])
    near(weight_covariance(factors), weight_covariance(full))


@pytest.mark.parametrize(
    ("structure", "precision", "targets"),
    [("kronecker", 2.0, CLASSES), ("diagonal", "evidence", CLASSES), ("full", "evidence", VALUES)],
)
def test_with_nothing_labelled_draws_come_from_the_prior(structure, precision, targets):
    weights = RANDOM if targets is CLASSES else RANDOM[:, :1]
    options = {"structure": structure, "prior_precision": precision}
    state = fit(weights, targets, labelled=np.zeros(40, bool), **options)[2]
    expected = 2.0 if precision == 2.0 else weights.size / np.sum(weights**2)
    near(weight_covariance(state), np.eye(weights.size) / expected)
    assert float(state.noise) == 1.0


def test_a_fit_hands_its_key_and_the_fit_before_to_the_trainer(key):
    _, posterior, state = fit(np.zeros((4, 3)), CLASSES)
    same_key(state.trained.opt_state[0], key)
    assert float(state.prior_precision) == 1.0  # weights of nothing tell nothing
    later = posterior.fit(jax.random.key(1), dataset(CLASSES), LABELLED, state)
    near(later.variables.params["kernel"], np.ones((3, 3)))
    same_key(later.trained.opt_state[0], jax.random.key(1))


def digits(num_labelled, **options):
    """The posterior of a last layer of 65 x 10 weights, and what its fit is given."""
    train = jax.tree.map(jnp.asarray, baal.data.digits()[0])
    trainer = baal.trainer(optax.adam(1e-2), baal.losses.cross_entropy, num_steps=30, batch_size=32)
    model = baal.from_linen(nn.Sequential([lambda x: x / 16.0, nn.Dense(64), nn.relu, nn.Dense(10)]))
    return model, posteriors.laplace(model, trainer, **options), train, jnp.arange(len(train.targets)) < num_labelled


@pytest.mark.parametrize("num_labelled", [20, 300])
def test_a_whole_layer_of_digits_is_that_of_an_oracle(num_labelled):
    """Evidence, moments and draws by one Cholesky factor in float32, where a matrix has a rank far below its size."""
    model, posterior, train, labelled = digits(num_labelled)
    state = posterior.fit(jax.random.key(0), train, labelled)
    moments = posteriors.laplace_moments(model)(state, train.inputs[-5:])
    hidden = features.last_hidden(model, bias=True)(state, train.inputs)
    outputs = np.asarray(model.deterministic(state.variables, train.inputs), float)
    hidden, probs = np.asarray(hidden, float), softmax(outputs, axis=1)
    matrix, tau = oracle.gauss_newton(hidden[:num_labelled], probs[:num_labelled]), float(state.prior_precision)
    layer = state.variables.params["layers_3"]
    weights = np.concatenate([layer["kernel"], layer["bias"][None]])
    log_likelihood = np.log(probs[np.arange(num_labelled), train.targets[:num_labelled]]).sum()
    near(state.log_evidence, oracle.log_evidence(log_likelihood, weights, matrix, tau))
    factor = np.linalg.cholesky(np.linalg.inv(matrix + tau * np.eye(650)))
    for found, h in zip(moments.covariance, hidden[-5:], strict=True):
        seen = np.kron(h[None], np.eye(10)) @ factor
        near(found, seen @ seen.T)
    near(weight_covariance(state), factor @ factor.T)


def test_eigenvalues_of_a_whole_matrix_are_left_to_the_evidence():
    """They cost ten times as much as its Cholesky factor."""
    for options, calls in (({}, 0), ({"prior_precision": "evidence"}, 1)):
        _, posterior, train, labelled = digits(20, **options)
        program = posterior.fit.lower if hasattr(posterior.fit, "lower") else jax.jit(posterior.fit).lower
        text = program(jax.random.key(0), train, labelled).as_text()
        assert text.count("syevd") == calls
        assert text.count("potrf") == 1


def test_hardly_any_prior_leaves_a_factor():
    """Rounding of a singular matrix is larger than the prior, and no number is lost."""
    model, posterior, train, labelled = digits(300, prior_precision=1e-9)
    state = posterior.fit(jax.random.key(0), train, labelled)
    assert np.isfinite(state.log_evidence)
    assert np.isfinite(posteriors.laplace_moments(model)(state, train.inputs[:3]).covariance).all()
