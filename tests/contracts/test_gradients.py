"""Array functions have the gradients of finite differences, in reverse mode, under ``jit`` and ``vmap``.

Heuristics of the registry are differentiated at hard places in test_heuristics.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax import calibration, features, heuristics, losses, metrics, posteriors
from baal_jax.posteriors import kernels
from baal_jax.training import semi_supervised
from tests.fixtures import untrained

KEY, RNG = jax.random.key(0), np.random.default_rng(0)


def spread(*shape):
    """Numbers between −2 and 2, no two of which are so close that a small step makes them change places."""
    return RNG.permutation(np.linspace(-2, 2, np.prod(shape))).reshape(shape)


LOGITS, OTHERS, WIDE, ROWS = spread(6, 5, 3), spread(6, 4, 3), spread(20, 3, 17), spread(5, 4)
VALUES = 0.9 * spread(5, 3)
CLASSES = np.int32([0, 2, 1, -1, 1])
LABELLED = np.arange(5) != 1


def log_softmax(metric):
    return lambda x: metric(jax.nn.log_softmax(x), CLASSES)


def process(**options):
    """A Gaussian process of five inputs, and what its kernel is."""
    kernel = kernels.dense(2, activation="erf")
    return kernel, posteriors.gaussian_process(kernel, num_features=4, scale=1.0, **options)


def conditioned(x, targets, **options):
    return process(**options)[1].fit(KEY, baal.Dataset(x, targets), LABELLED)


def moments(x):
    return posteriors.gaussian_process_moments(process()[0], conditioned(ROWS, VALUES, noise=0.5), x)


MODEL = baal.from_linen(nn.Dense(3))
WEIGHTS = {"kernel": jnp.asarray(0.3 * RNG.normal(size=(4, 3)), jnp.float32), "bias": jnp.ones(3, jnp.float32)}


def approximated(x, structure, weights=WEIGHTS, **options):
    """Batches of two, of which three are more than what is labelled fills."""
    posterior = posteriors.laplace(MODEL, untrained(weights), structure=structure, batch_size=2, **options)
    return posterior.fit(KEY, baal.Dataset(x, CLASSES), LABELLED)


def laplace_moments(x):
    state = approximated(jnp.asarray(ROWS, jnp.float32), "full")
    return posteriors.laplace_moments(MODEL)(state, jnp.asarray(x, jnp.float32))


def fitted_draws(x):
    posterior = posteriors.laplace(MODEL, untrained(WEIGHTS), batch_size=2, prior_precision=0.7)
    state = posterior.fit(KEY, baal.Dataset(x, CLASSES), LABELLED)
    return jnp.sum(baal.predict(KEY, posterior, state, jnp.asarray(ROWS, jnp.float32), num_samples=3) ** 2)


def of_network(feature_fn):
    variables = baal.Variables(WEIGHTS, {})
    state = baal.TrainState(variables, (), jnp.int32(1), jnp.float32(0))
    return lambda x: feature_fn(state, x.astype(jnp.float32))


def scaled(name):
    scaling = calibration.REGISTRY[name]()
    params = scaling.fit(LOGITS.astype(np.float32), CLASSES)
    return lambda x: scaling.apply(params, x.astype(jnp.float32))


OF_LOGITS = {
    "epig": lambda x: heuristics.epig(x, OTHERS),
    "epig of targets": lambda x: heuristics.epig(LOGITS, x[:, :4]),
    "uncertainty": heuristics.uncertainty,
    "multi_label": lambda x: heuristics.multi_label(heuristics.bald)(x),
    "binary_logits": lambda x: heuristics.binary_logits(x[..., :1]),
    "combine": heuristics.combine([heuristics.bald, heuristics.margin], [1.0, 2.0]),
    "reduce_spatial": lambda x: heuristics.reduce_spatial(x[0]),
    "from_baal_layout": heuristics.from_baal_layout,
    "gaussian_uncertainty": lambda x: heuristics.gaussian_uncertainty(x, 0.5),
    "gaussian_bald": lambda x: heuristics.gaussian_bald(jnp.concatenate([x, x**2], axis=-1)),
    "gaussian_epig": lambda x: heuristics.gaussian_epig(x, OTHERS, 0.5),
    "gaussian_epig of targets": lambda x: heuristics.gaussian_epig(OTHERS, x, 0.5),
    "gaussian_epig of one output": lambda x: heuristics.gaussian_epig(x[..., :1], OTHERS[..., :1], 0.5),
    "model_average": metrics.model_average,
    "joint_log_likelihood": lambda x: metrics.joint_log_likelihood(x, CLASSES, np.array([[0, 1], [2, 4]])),
    "crps": lambda x: metrics.crps(x, LOGITS[0] + 0.022),
    "quantiles": lambda x: metrics.quantiles(x, (0.1, 0.5)),
    "pinball": lambda x: metrics.pinball(x[:2], VALUES, levels=(0.1, 0.5)),
    "probability_difference": lambda x: semi_supervised.probability_difference(x[0], x[1]),
    "squared_difference": lambda x: semi_supervised.squared_difference(x[0], x[1]),
    **{f"{name} scaling": lambda x, name=name: scaled(name)(x) for name in calibration.REGISTRY},
}
OF_ONE = {
    "cross_entropy": lambda x: losses.cross_entropy(x, CLASSES),
    "binary_cross_entropy": lambda x: losses.binary_cross_entropy(x, (VALUES > 0).astype(int)),
    "squared_error": lambda x: losses.squared_error(x, VALUES),
    "gaussian_nll": lambda x: losses.gaussian_nll(x[:, :2], VALUES[:, 0]),
    "nll": log_softmax(metrics.nll),
    "brier": log_softmax(metrics.brier),
    "rmse": lambda x: metrics.rmse(x, VALUES),
    "mae": lambda x: metrics.mae(x, VALUES),
    "gaussian_crps": lambda x: metrics.gaussian_crps(x, x**2 + 0.1, VALUES),
    "probit": lambda x: posteriors.probit(x, x**2),
    "evidence of targets": lambda x: conditioned(ROWS, x, noise=0.5).log_evidence,
}
OF_ROWS = {
    **{
        f"{name} {part}": lambda x, kernel=kernel, part=part: getattr(kernel, part)(*[x] * (1 + (part == "gram")))
        for name, kernel in {"relu": kernels.dense(2), "erf": kernels.dense(1, activation="erf")}.items()
        for part in ("gram", "diagonal")
    },
    "convolutional": lambda x: kernels.convolutional(2, 3).gram(x[:, :, None], ROWS[:, :, None]),
    "kernel features": lambda x: kernels.dense(2).features(kernels.dense(2).init(KEY, x[:1], 8), x),
    "process moments": moments,
    "process evidence": lambda x: conditioned(x, VALUES, noise=0.5).log_evidence,
    "process evidence of a grid": lambda x: conditioned(x, VALUES).log_evidence,
    "process evidence of classes": lambda x: conditioned(x, CLASSES, num_classes=3).log_evidence,
    "laplace moments": laplace_moments,
    # Of classes the curvature has directions that are zero, but for rounding.
    "laplace draws": lambda x: fitted_draws(x.astype(jnp.float32)),
    **{
        f"laplace evidence, {structure}": lambda x, structure=structure: (
            approximated(x.astype(jnp.float32), structure, prior_precision=0.7).log_evidence
        )
        for structure in ("full", "kronecker", "diagonal")
    },
    "laplace evidence, chosen": lambda x: (
        approximated(x.astype(jnp.float32), "full", prior_precision="evidence").log_evidence
    ),
    "last_hidden": of_network(features.last_hidden(MODEL)),
    "last_layer_gradient": of_network(lambda state, x: features.last_layer_gradient(MODEL)(state, x)),
    "gradient": of_network(lambda state, x: features.gradient(MODEL)(state, x)),
}
CASES = {
    **{name: (function, LOGITS) for name, function in OF_LOGITS.items()},
    **{name: (function, spread(5, 3)) for name, function in OF_ONE.items()},
    **{name: (function, ROWS) for name, function in OF_ROWS.items()},
    "gaussian_epig of 17 outputs": (lambda x: heuristics.gaussian_epig(x, WIDE[:, :2], 0.5), WIDE),
}
NOT_SMOOTH = {"accuracy", "auroc", "average_precision", "confusion_matrix", "coverage", "f1", "precision", "recall"} | {
    "adaptive_ece", "classwise_ece", "ece", "ece_per_class", "reliability", "tasks_of"
}  # fmt: skip


def test_every_public_array_function_is_here():
    public = {*heuristics.__all__, *metrics.__all__} | {
        name for name, known in vars(losses).items() if callable(known) and known.__module__ == losses.__name__
    }
    sets = {"classification", "gaussian_regression", "regression"}
    functions = {name for name in public if not name.startswith("_") and not name[0].isupper()}
    assert functions - {*sets, *heuristics.REGISTRY, *NOT_SMOOTH} <= set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_gradients_in_reverse_mode_are_those_of_finite_differences(name):
    function, x = CASES[name]
    with jax.enable_x64(True):
        rng = np.random.default_rng(1)
        shapes = jax.eval_shape(function, jnp.asarray(x))
        weights = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), shapes)

        def total(x):
            parts = jax.tree.map(lambda w, leaf: jnp.sum(w * leaf.astype(jnp.float64)), weights, function(x))
            return jax.tree.reduce(jnp.add, parts)

        directions, step = rng.normal(size=(2, *x.shape)), 3e-3
        values = jax.jit(jax.vmap(total))(np.stack([x, *(x + step * directions), *(x - step * directions)]))
        gradient = jax.jit(jax.vmap(jax.grad(total)))(np.stack([x, x]))[0]
        expected = (values[1:3] - values[3:]) / (2 * step)
        found = np.sum(np.asarray(gradient) * directions, axis=tuple(range(1, x.ndim + 1)))
    np.testing.assert_allclose(found, expected, rtol=5e-3, atol=5e-3 * np.abs(expected).max())
