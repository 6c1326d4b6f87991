"""One suite for every posterior, with each library and each task once: linen and nnx, classes and real values."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec

import baal_jax as baal
from baal_jax import checkpoint, heuristics, losses, posteriors, selection
from baal_jax.posteriors import kernels

RNG = np.random.default_rng(0)
INPUTS = RNG.normal(size=(24, 4)).astype(np.float32)
WEIGHTS = RNG.normal(size=(4, 3))
TARGETS = {
    "classification": (INPUTS @ WEIGHTS).argmax(axis=1).astype(np.int32),
    "regression": (INPUTS @ WEIGHTS)[:, 0].astype(np.float32),
}
LABELLED = jnp.arange(24) < 9
NUM_SAMPLES = 5
LEAST = {  # the smallest settings at which a method is still itself
    "mc_dropout": {},
    "mc_dropconnect": {"rate": 0.3},
    "deep_ensemble": {"num_members": NUM_SAMPLES},
    "swag": {"rank": 3, "start": 0.5, "every": 1},
    "bayes_by_backprop": {},
    "laplace": {},
    "dropout_gp": {},
    "epinet": {},
    "gaussian_process": {"num_features": 64},
}


class LinenNet(nn.Module):
    outputs: int

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(nn.Dense(8)(x)))
        return nn.Dense(self.outputs)(x)


class NnxNet(nnx.Module):
    def __init__(self, outputs, rngs: nnx.Rngs):
        self.hidden, self.out = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, outputs, rngs=rngs)
        self.dropout = nnx.Dropout(0.3, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def make(name, library, task):
    outputs = 3 if task == "classification" else 1
    if library == "linen":
        model = baal.from_linen(LinenNet(outputs))
    else:
        model = baal.from_nnx(lambda rngs: NnxNet(outputs, rngs))
    if name == "gaussian_process":
        num_classes = outputs if task == "classification" else None
        return posteriors.gaussian_process(kernels.dense(1), num_classes=num_classes, **LEAST[name])
    loss = losses.cross_entropy if task == "classification" else losses.squared_error
    trainer = baal.trainer(optax.adam(3e-2), loss, num_steps=12, batch_size=4)
    return posteriors.REGISTRY[name](model, trainer, **LEAST[name])


def data(task):
    return baal.Dataset(jnp.asarray(INPUTS), jnp.asarray(TARGETS[task]))


LIBRARIES = dict.fromkeys(LEAST, ("linen", "nnx")) | {"gaussian_process": ("none",)}
TASKS = {"linen": ("regression",), "nnx": ("classification",), "none": ("classification", "regression")}
CASES = [(name, library, task) for name in LEAST for library in LIBRARIES[name] for task in TASKS[library]]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def fitted(request):
    posterior = make(*request.param)
    state = posterior.fit(jax.random.key(0), data(request.param[2]), LABELLED)
    yield posterior, state, logits(posterior, state, INPUTS), request.param[2]
    jax.clear_caches()  # a case shares no program with the next; those of all would exhaust the memory maps


def logits(posterior, state, inputs, batch_size=None, num_samples=NUM_SAMPLES):
    options = {"num_samples": num_samples, "batch_size": batch_size}
    return baal.predict(jax.random.key(1), posterior, state, inputs, **options)


def close(found, expected, tolerance=2e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


def test_every_posterior_is_here():
    assert {*posteriors.REGISTRY} | {"gaussian_process"} == {*LEAST}


def test_draws_are_finite_and_differ(fitted):
    expected = np.asarray(fitted[2])
    assert expected.shape[:2] == (NUM_SAMPLES, 24)
    assert np.isfinite(expected).all()
    gaps = np.abs(expected[:, None] - expected[None]).max(axis=tuple(range(2, expected.ndim + 1)))
    assert (gaps[~np.eye(NUM_SAMPLES, dtype=bool)] > 1e-4 * np.abs(expected).max()).all()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_a_draw_is_one_function(fitted, batch_size):
    posterior, state, expected, _ = fitted
    order = np.random.default_rng(1).permutation(24)
    close(logits(posterior, state, INPUTS[order], batch_size), expected[:, order])


def test_four_devices_change_nothing(fitted, mesh):
    posterior, state, expected, _ = fitted
    sharded = jax.device_put(INPUTS, NamedSharding(mesh, PartitionSpec("pool")))
    replicated = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    close(logits(posterior, replicated, sharded, 8), expected)


def test_more_draws_keep_the_first(fitted):
    posterior, state, expected, _ = fitted
    close(logits(posterior, state, INPUTS, num_samples=2), expected[:2])


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_scores_never_hold_all_predictions(case):
    posterior, task = make(*case), case[2]
    state = jax.eval_shape(posterior.fit, jax.random.key(0), data(task), LABELLED)
    fn = heuristics.bald if task == "classification" else heuristics.variance
    inputs = jax.ShapeDtypeStruct((4096, 4), jnp.float32)

    def temporary(num_samples):
        options = {"num_samples": num_samples, "batch_size": 16}
        lowered = baal.score.lower(jax.random.key(0), posterior, state, inputs, fn, **options)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    # Sixty more draws of 4,096 predictions would be a megabyte; of the draws themselves a few kilobytes each.
    assert temporary(64) - temporary(4) < 60 * 4096 * 4 * 0.6


def test_fits_are_compiled_and_vectorised_over_keys(fitted):
    posterior, _, _, task = fitted
    keys = jax.random.split(jax.random.key(3), 2)

    def predictions(key):
        return logits(posterior, posterior.fit(key, data(task), LABELLED), INPUTS)

    both = jax.jit(jax.vmap(predictions))(keys)
    close(both[1], predictions(keys[1]), 2e-3)


def test_a_state_survives_a_checkpoint(fitted, tmp_path):
    posterior, state, expected, _ = fitted
    with checkpoint.checkpointer(tmp_path / "run", {"name": "contract"}) as checkpoints:
        checkpoints.save(0, state)
    with checkpoint.checkpointer(tmp_path / "run", {"name": "contract"}) as checkpoints:
        restored = checkpoints.restore(jax.tree.map(jnp.zeros_like, state))
    np.testing.assert_array_equal(logits(posterior, restored, INPUTS), expected)


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_runs_in_the_loop(case):
    posterior, task = make(*case), case[2]
    acquire = selection.top_k(heuristics.bald if task == "classification" else heuristics.variance)
    loop = baal.active_loop(posterior, acquire, query_size=3, num_samples=NUM_SAMPLES)
    final, infos = baal.run(loop, jax.random.key(0), data(task), data(task), num_initial=4, num_rounds=2)
    assert int(baal.pool.num_labelled(final.pool)) == 10
    assert all(np.isfinite(values).all() for values in infos.metrics.values())


def test_nothing_labelled_is_harmless(fitted):
    posterior, _, _, task = fitted
    state = posterior.fit(jax.random.key(0), data(task), jnp.zeros(24, bool))
    assert np.isfinite(logits(posterior, state, INPUTS)).all()
