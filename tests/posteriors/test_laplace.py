"""Last-layer Laplace: exact where it can be, equal to NumPy elsewhere, and one trunk for all draws."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import baal_jax as baal
from baal_jax import heuristics, losses, pool, posteriors, selection
from baal_jax.posteriors import _gauss_newton
from tests.oracles import laplace as oracle

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(40, 3))
VALUES = INPUTS @ np.array([1.0, -2.0, 0.5]) + 0.3 + 0.4 * RNG.normal(size=40)
CLASSES = (INPUTS @ RNG.normal(size=(3, 3)) + RNG.normal(size=(40, 3))).argmax(axis=1)
LABELLED = np.arange(40) % 5 < 2  # 16 of them
DESIGN = oracle.with_one(INPUTS)[LABELLED]
STRUCTURES = ("full", "kronecker", "diagonal")


def linear(num_outputs, tail=lambda outputs: outputs):
    """A network that is its last layer, and what may follow it."""

    def init(key, inputs):
        kernel = jax.random.normal(key, (inputs.shape[-1], num_outputs))
        return {"kernel": kernel, "bias": jnp.zeros(num_outputs)}

    return baal.from_functions(init, lambda params, inputs, _: tail(inputs @ params["kernel"] + params["bias"][None]))


def weights_of(array):
    """A trainer that knows the weights ``[D + 1, C]``."""
    params = {"kernel": jnp.asarray(array[:-1], jnp.float32), "bias": jnp.asarray(array[-1], jnp.float32)}

    def trainer(model, *, penalty=None, transform=None):
        del model, penalty, transform
        state = baal.TrainState(baal.Variables(params, {}), (), jnp.int32(1), jnp.float32(0))
        return lambda key, dataset, labelled, previous=None: state

    return trainer


def dataset(targets):
    targets = targets.astype(np.float32 if targets.dtype == np.float64 else np.int32)
    return baal.Dataset(jnp.asarray(INPUTS, jnp.float32), jnp.asarray(targets))


def fit(weights, targets, tail=lambda outputs: outputs, **options):
    model = linear(weights.shape[1], tail)
    posterior = posteriors.laplace(model, weights_of(weights), **options)
    return model, posterior, posterior.fit(jax.random.key(0), dataset(targets), jnp.asarray(LABELLED))


def moments(model, state, inputs=INPUTS):
    return posteriors.laplace_moments(model)(state, jnp.asarray(inputs, jnp.float32))


def close(found, expected, tolerance=1e-4):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def weight_covariance(state):
    """The covariance of the weights, column by column."""
    shape = state.curvature.eigenvalues.shape
    unit = np.eye(np.prod(shape), dtype=np.float32).reshape(-1, *shape)
    values = 1 / (state.curvature.eigenvalues + state.prior_precision)
    columns = jax.vmap(lambda column: _gauss_newton.multiply(state.curvature.basis, values, column))(unit)
    return np.asarray(columns).reshape(len(unit), -1)


@pytest.fixture(scope="module")
def logistic():
    weights = oracle.logistic_map(DESIGN, CLASSES[LABELLED], 3, precision=0.7)
    return weights, oracle.softmax(DESIGN @ weights)


@pytest.mark.parametrize("structure", ["full", "kronecker"])
def test_linear_regression_is_exact(structure):
    mean, covariance = oracle.linear_regression(DESIGN, VALUES[LABELLED], 0.7, 0.4)
    options = {"structure": structure, "prior_precision": 0.7, "noise": 0.4, "batch_size": 5}
    model, posterior, state = fit(mean[:, None], VALUES, **options)
    close(weight_covariance(state), covariance)
    everywhere = oracle.with_one(INPUTS)
    found = moments(model, state)
    close(found.mean[:, 0], everywhere @ mean)
    close(found.covariance[:, 0, 0], np.einsum("nd,de,ne->n", everywhere, covariance, everywhere))
    close(state.log_evidence, oracle.regression_evidence(DESIGN, VALUES[LABELLED], 0.7, 0.4))

    draws = posterior.sample(jax.random.key(1), state, 20_000)
    np.testing.assert_allclose(np.cov(np.asarray(draws)[..., 0].T), covariance, atol=0.05 * covariance.max())
    close(posterior.sample(jax.random.key(1), state, 2), draws[:2], 1e-5)
    outputs = jax.vmap(lambda draw: posterior.apply(state, draw, dataset(VALUES).inputs))(draws[:3])
    close(outputs[..., 0], np.asarray(draws[:3])[..., 0] @ everywhere.T + everywhere @ mean)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_logistic_regression_is_that_of_numpy(logistic, structure):
    weights, probs = logistic
    matrix = oracle.kronecker(DESIGN, probs) if structure == "kronecker" else oracle.gauss_newton(DESIGN, probs)
    matrix = np.diag(np.diag(matrix)) if structure == "diagonal" else matrix
    model, _, state = fit(weights, CLASSES, structure=structure, prior_precision=0.7, batch_size=7)
    covariance = np.linalg.inv(matrix + 0.7 * np.eye(12))
    close(weight_covariance(state), covariance)
    found, everywhere = moments(model, state), oracle.with_one(INPUTS)
    close(found.mean, everywhere @ weights)
    close(found.covariance, np.stack([oracle.output_covariance(h, covariance, 3) for h in everywhere]))
    log_likelihood = np.log(probs[np.arange(16), CLASSES[LABELLED]]).sum()
    close(state.log_evidence, oracle.log_evidence(log_likelihood, weights, matrix, 0.7))

    # The precision that it chooses is the best of a fine grid.
    chosen = fit(weights, CLASSES, structure=structure, prior_precision="evidence")[2]
    grid = np.exp(np.linspace(-6, 6, 1201))
    values = [oracle.log_evidence(log_likelihood, weights, matrix, tau) for tau in grid]
    assert abs(np.log(chosen.prior_precision / grid[np.argmax(values)])) < 0.011
    close(chosen.log_evidence, max(values))


def test_kronecker_is_full_where_the_matrix_factorises():
    alike = np.zeros((4, 3))  # the same probabilities for every example
    states = [fit(alike, CLASSES, structure=structure, prior_precision=2.0)[2] for structure in ("full", "kronecker")]
    close(weight_covariance(states[1]), weight_covariance(states[0]))
    different = np.random.default_rng(1).normal(size=(4, 3))
    states = [fit(different, CLASSES, structure=structure, prior_precision=2.0)[2] for structure in STRUCTURES[:2]]
    assert np.abs(weight_covariance(states[1]) - weight_covariance(states[0])).max() > 1e-2


def test_hyperparameters_of_regression_maximise_the_marginal_likelihood():
    mean, _ = oracle.linear_regression(DESIGN, VALUES[LABELLED], 0.7, 0.4)
    eigenvalues = np.linalg.eigvalsh(DESIGN.T @ DESIGN)
    norm, error = np.sum(mean**2), np.sum((DESIGN @ mean - VALUES[LABELLED]) ** 2)

    def log_evidence(tau, beta):
        volume = np.sum(np.log1p(beta * eigenvalues[:, None, None] / tau), axis=0)
        return 8 * np.log(beta / (2 * np.pi)) - 0.5 * (beta * error + tau * norm + volume)

    axis = np.exp(np.linspace(-4, 6, 1001))
    grids = {
        ("evidence", None): np.meshgrid(axis, axis, indexing="ij"),
        (0.7, None): (np.full((1, 1001), 0.7), axis[None]),
        ("evidence", 0.4): (axis[None], np.full((1, 1001), 0.4**-2)),
    }
    for (precision, noise), (taus, betas) in grids.items():
        values = log_evidence(taus, betas)
        best = np.argmax(values)
        state = fit(mean[:, None], VALUES, prior_precision=precision, noise=noise)[2]
        assert abs(np.log(float(state.prior_precision) / taus.ravel()[best])) < 0.011
        assert abs(np.log(float(state.noise) ** -2 / betas.ravel()[best])) < 0.011
        close(state.log_evidence, values.max())


def test_the_best_hyperparameters_follow_the_scale_of_targets_and_features():
    eigenvalues, values = jnp.array([3.0, 1.0, 0.1]), (jnp.float32(2.0), jnp.float32(5.0), jnp.float32(9.0))
    tau, beta = _gauss_newton.maximise(_gauss_newton.Evidence(eigenvalues, *values), None, None)
    scaled = _gauss_newton.Evidence(1e4 * eigenvalues, values[0] * 1e-4, values[1], values[2])
    close(jnp.stack(_gauss_newton.maximise(scaled, None, None)), jnp.stack([tau * 1e4, beta]))
    scaled = _gauss_newton.Evidence(eigenvalues, values[0] * 1e6, values[1] * 1e6, values[2])
    close(jnp.stack(_gauss_newton.maximise(scaled, None, None)), jnp.stack([tau, beta]) * 1e-6)


def test_what_follows_the_last_layer_is_differentiated(logistic):
    weights, _ = logistic
    temperature = {"structure": "full", "prior_precision": 0.7}
    model, posterior, state = fit(weights, CLASSES, lambda logits: 4 * logits, **temperature)
    probs = oracle.softmax(4 * DESIGN @ weights)
    covariance = np.linalg.inv(16 * oracle.gauss_newton(DESIGN, probs) + 0.7 * np.eye(12))
    close(weight_covariance(state), covariance)
    everywhere = oracle.with_one(INPUTS)
    close(moments(model, state).covariance[5], 16 * oracle.output_covariance(everywhere[5], covariance, 3))
    draw = np.asarray(posterior.sample(jax.random.key(1), state, 1))[0]
    outputs = posterior.apply(state, jnp.asarray(draw), dataset(CLASSES).inputs)
    close(outputs, 4 * everywhere @ (weights + draw))

    binary = (CLASSES > 0).astype(np.int64)
    model, _, state = fit(weights[:, :1], binary, heuristics.binary_logits, prior_precision=0.7)
    p = 1 / (1 + np.exp(-DESIGN @ weights[:, 0]))
    close(weight_covariance(state), np.linalg.inv((DESIGN * (p * (1 - p))[:, None]).T @ DESIGN + 0.7 * np.eye(4)))


class Tokens(nn.Module):
    mean_first: bool

    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(x.mean(axis=1)) if self.mean_first else nn.Dense(3)(x).mean(axis=1)


def test_positions_that_share_the_layer_are_averaged(key):
    data = baal.Dataset(jax.random.normal(key, (6, 5, 4)), jnp.arange(6, dtype=jnp.int32) % 3)
    found = []
    for mean_first in (False, True):
        trainer = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1)
        posterior = posteriors.laplace(baal.from_linen(Tokens(mean_first)), trainer)
        state = posterior.fit(key, data, jnp.ones(6, bool))
        found.append(
            (
                weight_covariance(state),
                state.log_evidence,
                baal.predict(key, posterior, state, data.inputs, num_samples=3),
            )
        )
    for left, right in zip(*found, strict=True):
        close(left, right)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_unknown_targets_and_unlabelled_rows_do_not_count(structure, key):
    weights = np.random.default_rng(1).normal(size=(4, 3))
    posterior = posteriors.laplace(linear(3), weights_of(weights), structure=structure, prior_precision=1.0)
    expected = posterior.fit(key, dataset(CLASSES), jnp.asarray(LABELLED))
    unknown = np.where(LABELLED, CLASSES, -1)
    close(weight_covariance(posterior.fit(key, dataset(unknown), jnp.ones(40, bool))), weight_covariance(expected))

    posterior = posteriors.laplace(linear(2), weights_of(weights[:, :2]), structure=structure, noise=0.5)
    both = np.stack([VALUES, -VALUES], axis=1)
    expected = posterior.fit(key, dataset(both), jnp.asarray(LABELLED))
    both = np.where(LABELLED[:, None], both, np.nan)
    state = posterior.fit(key, dataset(both), jnp.ones(40, bool))
    close(weight_covariance(state), weight_covariance(expected))
    close(state.log_evidence, expected.log_evidence)


def test_by_default_the_prior_has_the_scale_of_the_trained_weights(logistic):
    weights, _ = logistic
    close(fit(weights, CLASSES)[2].prior_precision, weights.size / np.sum(weights**2))


@pytest.mark.parametrize("structure", STRUCTURES)
def test_with_nothing_labelled_draws_come_from_the_prior(structure, key):
    weights = np.random.default_rng(1).normal(size=(4, 3))
    for precision, expected in ((2.0, 2.0), (None, 12 / np.sum(weights**2)), ("evidence", 12 / np.sum(weights**2))):
        posterior = posteriors.laplace(linear(3), weights_of(weights), structure=structure, prior_precision=precision)
        state = posterior.fit(key, dataset(CLASSES), jnp.zeros(40, bool))
        close(weight_covariance(state), np.eye(12) / expected)


def test_draws_agree_as_the_prior_grows_narrow(logistic, key):
    weights, _ = logistic
    spread = []
    for precision in (1.0, 1e4, 1e8):
        _, posterior, state = fit(weights, CLASSES, prior_precision=precision)
        logits = baal.predict(key, posterior, state, dataset(CLASSES).inputs, num_samples=20)
        spread.append(float(logits.std(axis=0).max()))
    assert spread[0] > 50 * spread[1] > 50 * 50 * spread[2]
    assert spread[2] < 1e-3


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3)(nn.relu(nn.Dense(256)(nn.relu(nn.Dense(256)(x)))))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        sizes = (3, 256, 256, 3)
        self.layers = nnx.List([nnx.Linear(a, b, rngs=rngs) for a, b in itertools.pairwise(sizes)])

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


@pytest.mark.parametrize("model", [lambda: baal.from_linen(LinenNet()), lambda: baal.from_nnx(NnxNet)])
def test_a_hundred_draws_cost_one_trunk_and_a_hundred_heads(model, key):
    trainer = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1)
    posterior = posteriors.laplace(model(), trainer, structure="diagonal")
    inputs = jax.ShapeDtypeStruct((64, 3), jnp.float32)
    data = baal.Dataset(inputs, jax.ShapeDtypeStruct((64,), jnp.int32))
    state = jax.eval_shape(posterior.fit, key, data, jax.ShapeDtypeStruct((64,), jnp.bool))
    draws = jax.ShapeDtypeStruct((100, 257, 3), jnp.float32)

    def predict(draws, state, inputs):
        return jax.vmap(lambda draw: posterior.apply(state, draw, inputs))(draws)

    cost = jax.jit(predict).lower(draws, state, inputs).compile().cost_analysis()
    flops = (cost[0] if isinstance(cost, list) else cost)["flops"]
    trunk, heads = 64 * 2 * (3 * 256 + 256 * 256), 100 * 64 * 2 * 257 * 3
    assert trunk + heads < flops < 1.1 * (trunk + heads)


def test_the_curvature_holds_no_jacobian(key):
    """The temporary memory of a fit does not grow with the number of labelled examples."""
    sizes = []
    for number in (256, 1024):
        posterior = posteriors.laplace(linear(8), weights_of(np.zeros((33, 8))), batch_size=32)
        data = baal.Dataset(jnp.zeros((number, 32)), jnp.zeros(number, jnp.int32))
        compiled = posterior.fit.lower(key, data, jnp.ones(number, bool)).compile()
        sizes.append(compiled.memory_analysis().temp_size_in_bytes)
    assert sizes[1] - sizes[0] < 768 * 4 * 8  # ids and flags of examples
    assert sizes[1] < 1024 * 8 * 33 * 8 * 4


def test_two_rounds_in_the_loop_reduce_the_spread(key):
    trainer = baal.trainer(optax.adam(3e-2), losses.squared_error, num_steps=60, batch_size=8, warm_start=True)
    posterior = posteriors.laplace(linear(1), trainer, noise=0.4, prior_precision=1.0)
    loop = baal.active_loop(posterior, selection.top_k(heuristics.variance), query_size=5, num_samples=30)
    final, infos = baal.run(loop, key, dataset(VALUES), dataset(VALUES), num_initial=4, num_rounds=2)
    assert int(pool.num_labelled(final.pool)) == 14
    assert int(final.posterior.steps) == 120  # the second fit went on from the first
    assert float(infos.scores[1].max()) < float(infos.scores[0].max())


def test_what_does_not_fit_is_refused(key):
    trainer = baal.trainer(optax.sgd(0.1), losses.cross_entropy, num_steps=1)
    for options, message in (
        ({"structure": "dense"}, "structure='dense' must be one of 'full', 'kronecker', 'diagonal'"),
        ({"prior_precision": 0.0}, r"prior_precision=0\.0 must be a finite number above 0"),
        ({"noise": -1.0}, r"noise=-1\.0 must be a finite number"),
        ({"batch_size": 0}, "batch_size=0 must be an integer"),
    ):
        with pytest.raises(ValueError, match=message):
            posteriors.laplace(linear(3), trainer, **options)

    labelled = jnp.ones(40, bool)
    for num_outputs, targets, options, message in (
        (3, CLASSES, {"noise": 1.0}, r"noise=1\.0 belongs to regression"),
        (1, CLASSES, {}, "pass one class an example"),
        (2, VALUES, {}, "1 target values an example do not fit 2 outputs"),
        (3, CLASSES, {"structure": "full"}, 'use structure="kronecker"'),
    ):
        rows = 2000 if options.get("structure") else 4
        posterior = posteriors.laplace(linear(num_outputs), weights_of(np.zeros((rows, num_outputs))), **options)
        data = dataset(targets)._replace(inputs=jnp.zeros((40, rows - 1)))
        with pytest.raises(ValueError, match=message):
            posterior.fit(key, data, labelled)

    maps = baal.Dataset(jnp.zeros((2, 4, 4, 1)), jnp.zeros(2, jnp.int32))
    for net, message in ((nn.Conv(3, (1, 1)), r"needs \[C\]"), (nn.Conv(3, (3, 3)), "more than one pixel")):
        image_trainer = baal.trainer(
            optax.sgd(0.1), lambda maps, targets: losses.cross_entropy(maps[:, 0, 0], targets), num_steps=1
        )
        with pytest.raises(ValueError, match=message):
            posteriors.laplace(baal.from_linen(net), image_trainer).fit(key, maps, jnp.ones(2, bool))
