"""What no posterior can be made of, or be fitted to."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import losses, posteriors
from baal_jax.posteriors import kernels, layers
from baal_jax.posteriors._adapters import from_blackjax
from tests.fixtures import Net, trainer, untrained

PLAIN, RANDOM, CONV = (baal.from_linen(net) for net in (nn.Dense(3), Net(2), nn.Conv(2, (1, 1))))


def climb(slope):
    return SimpleNamespace(init=lambda position: position, step=lambda key, position, batch, *_: slope(position, batch))


BUILDERS = posteriors.REGISTRY | {
    "gaussian_process": lambda model, trainer, **options: posteriors.gaussian_process(kernels.dense(1), **options),
    "logistic_regression": lambda model, trainer, **options: posteriors.logistic_regression(**options),
    "rbf": lambda model, trainer, **options: kernels.rbf(**options),
    "from_blackjax": lambda model, trainer, step_size=0.1, **options: from_blackjax(
        model, trainer, climb, lambda outputs, targets: (outputs - targets) ** 2, step_size=step_size, **options
    ),
    "BayesianDense": lambda model, trainer, **options: layers.BayesianDense(4, **options),
    "dense": lambda model, trainer, depth=1, **options: kernels.dense(depth, **options),
    "convolutional": lambda model, trainer, depth=1, **options: kernels.convolutional(depth, **options),
}
OPTIONS = {
    "bayes_by_backprop": {"prior_std": (0.0, -1.0), "initial_std": (0.0,), "kl_weight": (-0.1,)},
    "deep_ensemble": {"num_members": (0,), "batch_size": (0, 1.5)},
    "dropout_gp": {"num_passes": (1,), "noise": (0.0, -1.0), "retrain_every": (0,), "batch_size": (0,)},
    "epinet": {"index_dim": (0,), "prior_scale": (-1.0,)},
    "from_blackjax": {
        "step_size": (0.0,), "prior_std": (-1.0,), "num_kept": (0,), "thinning": (0,), "temperature": (-1.0,),
        "batch_size": (0,), "burn_in": (-1,),
    },
    "gaussian_process": {
        "scale": (0.0,), "noise": (0.0,), "alpha": (-1.0,), "num_classes": (1,), "max_labelled": (0,),
        "num_features": (0,),
    },
    "laplace": {"structure": ("dense",), "prior_precision": (0.0,), "noise": (-1.0,), "batch_size": (0,)},
    "logistic_regression": {"num_classes": (1, 2.5), "prior_precision": (0.0, "best"), "bias": (-1.0, float("inf"))},
    "rbf": {"length_scale": (0.0,)},
    "mc_dropconnect": {"rate": (0, 1.0, -0.1, True, 2)},
    "swag": {"rank": (-1, 1), "start": (1.0, -0.1), "every": (0,), "scale": (-1.0,)},
    "BayesianDense": {"estimator": ("rank_one",), "initial_std": (0.0, -1.0)},
    "dense": {"depth": (-1,), "activation": ("tanh",), "weight_std": (-1.0,), "bias_std": (float("nan"),)},
    "convolutional": {"depth": (0,), "filter_size": (0,)},
}  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
def test_options_out_of_their_range_are_refused(name):
    for option, values in OPTIONS[name].items():
        for value in values:
            with pytest.raises(ValueError, match=f"{option}={value!r}"):
                BUILDERS[name](PLAIN, untrained(), **{option: value})


KEY, ROWS, MAPS = jax.random.key(0), np.zeros((40, 4), np.float32), np.zeros((40, 4, 4, 1), np.float32)
VALUES, CLASSES = np.zeros(40, np.float32), np.zeros(40, np.int32)
SCALAR, FOUR = baal.from_linen(nn.Dense(1)), baal.from_linen(nn.Dense(4))


def fit(name, model=PLAIN, inputs=ROWS, targets=CLASSES, train=None, **options):
    posterior = BUILDERS[name](model, train or untrained(), **options)
    return jax.eval_shape(lambda: posterior.fit(KEY, baal.Dataset(inputs, targets), np.arange(40) < 12))


STEPS = baal.trainer(optax.sgd(0.1), losses.squared_error, num_steps=12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bayes_by_backprop", {"train": trainer(), "select": lambda *_: False}, "no Gaussian weights"),
        ("dropout_gp", {}, "does not depend on the key"),
        ("dropout_gp", {"model": RANDOM, "targets": VALUES}, r"shape \(40,\), but the outputs \(40, 2\)"),
        ("dropout_gp", {"model": RANDOM, "targets": np.zeros((40, 2), int)}, "make real values float32"),
        ("dropout_gp", {"model": baal.from_linen(Net(1))}, "make real values float32"),  # one output is no class
        ("epinet", {"hidden": (5, 0)}, "hidden=0 must be an integer"),
        ("epinet", {"model": CONV, "inputs": MAPS}, r"shape \(4, 4, 2\), but what reads the last layer needs \[C\]"),
        ("from_blackjax", {"targets": np.zeros((40, 3), np.float32)}, "sum over the other axes"),
        ("gaussian_process", {}, "give num_classes"),
        ("gaussian_process", {"targets": VALUES[:, None, None]}, r"\(40, 1, 1\), but without num_classes real values"),
        ("gaussian_process", {"targets": VALUES, "num_classes": 3}, "float32, but classes are whole numbers"),
        ("gaussian_process", {"targets": CLASSES[:, None, None], "num_classes": 3}, "num_classes=3 needs integers"),
        ("gaussian_process", {"inputs": ROWS[:39], "targets": VALUES[:39]}, r"shape \(40,\), but must have one .* 39"),
        ("laplace", {"noise": 1.0}, r"noise=1\.0 belongs to regression"),
        ("laplace", {"model": SCALAR}, "pass one class an example"),
        ("laplace", {"targets": np.stack([CLASSES] * 2, axis=1)}, r"integer targets of shape \(2,\) an example"),
        ("laplace", {"targets": VALUES}, "1 target values an example do not fit 3 outputs"),
        ("laplace", {"model": FOUR, "inputs": np.zeros((40, 1024)), "structure": "full"}, 'use structure="kronecker"'),
        ("laplace", {"model": CONV, "inputs": MAPS}, r"needs \[C\]"),
        ("mc_dropout", {"model": baal.from_linen(Net(rate=0.0))}, "MC-dropout would be deterministic"),
        ("mc_dropconnect", {"select": lambda *_: False}, r"picks no weights.*'bias' \(3,\), 'kernel' \(4, 3\)"),
        ("swag", {"model": SCALAR, "train": STEPS, "every": 3}, "every=3 leave 1 snapshot in 12 steps"),
        ("swag", {"model": SCALAR, "train": STEPS, "start": 0.95}, "leave 1 snapshot in 12 steps"),
    ],
)
def test_data_and_networks_that_do_not_fit_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        fit(name, **options)


def test_what_is_just_within_the_limits_is_not_refused():
    fit("bayes_by_backprop", kl_weight=0.0)
    fit("epinet", prior_scale=0.0)
    assert fit("laplace", FOUR, np.zeros((40, 1023), np.float32)).structure == "full"
    assert fit("laplace", FOUR, np.zeros((40, 1024), np.float32)).structure == "kronecker"
    fit("swag", SCALAR, train=STEPS, targets=VALUES, every=3, scale=0)
    fit("swag", SCALAR, train=STEPS, targets=VALUES, every=2)


STILL = baal.TrainState(jax.eval_shape(PLAIN.init, KEY, ROWS), None, None, None)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: layers.BayesianDense(3).init(KEY, VALUES, deterministic=True), r"leading axis .* inputs\[None\]"),
        (lambda: layers.BayesianConv(3, (3, 2)).init(KEY, MAPS[0], deterministic=True), r"pass inputs\[None\]"),
        (lambda: kernels.convolutional(1, (3, 3)).gram(MAPS[:, 0], MAPS[:, 0]), "filter_size="),
        (lambda: kernels.convolutional(1).diagonal(ROWS), r"inputs have shape \(40, 4\)"),
        (lambda: posteriors.mc_dropout(PLAIN, untrained()).apply(STILL, KEY, ROWS), "would be deterministic"),
    ],
)
def test_inputs_and_networks_that_do_not_fit_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
