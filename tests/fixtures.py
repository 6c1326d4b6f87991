"""What tests share: data, networks, trainers, posteriors and loops, small enough to compile at once."""

import contextlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import baal_jax as baal
from baal_jax import heuristics, losses, selection, study

# Data


def regression_data(num=12, dim=3, seed=0):
    """A linear function and a little noise."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(num, dim)).astype(np.float32)
    targets = (inputs @ np.arange(1.0, dim + 1) + 0.1 * rng.normal(size=num)).astype(np.float32)
    return baal.Dataset(jnp.asarray(inputs), jnp.asarray(targets))


def classes_data(num=20):
    """Three classes that the inputs do not tell apart."""
    rng = np.random.default_rng(1)
    inputs, targets = rng.normal(size=(num, 4)), rng.integers(0, 3, num)
    return baal.Dataset(jnp.asarray(inputs, jnp.float32), jnp.asarray(targets, jnp.int32))


def clouds(num_pool=40, num_test=30, seed=0):
    """Three clouds of points of four features: a pool and a test set, on the host."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, 3, num_pool + num_test)
    inputs = np.eye(3, 4)[targets] + 0.6 * rng.normal(size=(len(targets), 4))
    inputs, targets = inputs.astype(np.float32), targets.astype(np.int32)
    return baal.Dataset(inputs[:num_pool], targets[:num_pool]), baal.Dataset(inputs[num_pool:], targets[num_pool:])


def first(num, size=12):
    """The first ``num`` of ``size`` are labelled."""
    return jnp.arange(size) < num


def make_logits(shape, seed=0, scale=1.0, impossible=0.0):
    """Random logits, some of them −inf, with at least one finite one a row."""
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=shape)
    masked = rng.random(shape) < impossible
    np.put_along_axis(masked, rng.integers(0, shape[-1], (*shape[:-1], 1)), False, axis=-1)
    return np.where(masked, -np.inf, logits).astype(np.float32)


# Networks and trainers


class Net(nn.Module):
    """A hidden layer and dropout."""

    outputs: int = 3
    width: int = 8
    rate: float = 0.5

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.Dropout(self.rate, deterministic=not train)(nn.relu(nn.Dense(self.width)(x)))
        return nn.Dense(self.outputs)(x)


class NormedNet(nn.Module):
    """Batch statistics, a hidden layer and dropout."""

    outputs: int = 3

    @nn.compact
    def __call__(self, x, train: bool):
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x)))
        return nn.Dense(self.outputs)(nn.Dropout(0.5, deterministic=not train)(x))


class NnxNet(nnx.Module):
    """Of four features: a hidden layer and dropout."""

    def __init__(self, rngs: nnx.Rngs, outputs: int = 3):
        self.hidden, self.out = nnx.Linear(4, 8, rngs=rngs), nnx.Linear(8, outputs, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.out(self.dropout(nnx.relu(self.hidden(x))))


def linear(start=None):
    """One output of weights ``[D, 1]``, which start at a known point, so that an oracle can follow."""

    def init(key, inputs):
        shape = (inputs.shape[-1], 1)
        return jax.random.normal(key, shape) if start is None else jnp.full(shape, start)

    return baal.from_functions(init, lambda params, inputs, key: inputs @ params)


def trainer(optimizer=None, loss=losses.cross_entropy, **options):
    """A few small steps."""
    options = {"num_steps": 5, "batch_size": 4} | options
    return baal.trainer(optax.adam(1e-2) if optimizer is None else optimizer, loss, **options)


def untrained(params=None):
    """A trainer that keeps the key of a fit as state of the optimizer; a fit after another adds 1 to its weights."""

    def bind(model, *, penalty=None, transform=None):
        def fit(key, dataset, labelled, previous=None):
            variables = model.init(key, dataset.inputs[:1]) if params is None else baal.Variables(params, {})
            if previous is not None:
                variables = variables._replace(params=jax.tree.map(lambda leaf: leaf + 1, previous.variables.params))
            opt_state = (key,) if transform is None else (key, transform.init(variables.params))
            return baal.TrainState(variables, opt_state, jnp.int32(1), jnp.float32(0))

        return fit

    return bind


# Posteriors that compile at once


def split(key, state, num_samples):
    """A draw is a key."""
    return jax.random.split(key, num_samples)


# The state of a fit is what the fit was given, so that tests can look at it; the only output is the input.
SPY = baal.Posterior(
    fit=lambda key, dataset, labelled, previous=None: {"key": key, "labelled": labelled, "targets": dataset.targets},
    sample=lambda key, state, num_samples: jnp.zeros(num_samples),
    apply=lambda state, draw, inputs: inputs,
)

# The state is the weights of a linear function, to which every draw adds noise.
LINEAR = baal.Posterior(
    fit=None,
    sample=split,
    apply=lambda state, draw, inputs: inputs @ (state + 0.5 * jax.random.normal(draw, state.shape)),
)


def random_network():
    """Random weights of one layer, ``[4, 3]``, and dropout of inputs as draws."""

    def fit(key, dataset, labelled, previous=None):
        return jax.random.normal(key, (4, 3)) + 0.1 * jnp.sum(labelled, dtype=jnp.float32)

    def apply(state, draw, inputs):
        return (inputs * jax.random.bernoulli(draw, 0.5, (1, 4)).astype(jnp.float32)) @ state

    return baal.Posterior(fit, split, apply)


def centroids(scale=3.0, num_classes=3):
    """Normal posteriors of the class means, with a prior of one example at the origin."""

    def fit(key, dataset, labelled, previous=None):
        members = jax.nn.one_hot(dataset.targets, num_classes) * labelled.astype(jnp.float32)[:, None]
        flat = dataset.inputs.reshape(len(dataset.inputs), -1)
        # One example after the other: padding and other rows then change no bit of the sums.
        sums, _ = jax.lax.scan(
            lambda total, row: (total + jnp.outer(*row), None), jnp.zeros((num_classes, flat.shape[1])), (members, flat)
        )
        counts = members.sum(0) + 1.0
        return sums / counts[:, None], counts

    def sample(key, state, num_samples):
        means, counts = state
        return means[None] + jax.random.normal(key, (num_samples, *means.shape)) * jax.lax.rsqrt(counts)[None, :, None]

    def apply(state, draw, inputs):
        flat = inputs.reshape(len(inputs), -1)
        return -scale * jnp.sum((flat[:, None, :] - draw[None]) ** 2, axis=-1)

    return baal.Posterior(fit, sample, apply)


def loops(names=("random", "bald"), **options):
    """Of the strategies of a study, with class means."""
    acquisitions = {"random": selection.random(), "bald": selection.top_k(heuristics.bald)}
    options = {"query_size": 3, "num_samples": 6, **options}
    return study.strategies(centroids(), {name: acquisitions[name] for name in names}, **options)


# Looking at what happens


@contextlib.contextmanager
def count_compilations():
    """Lists what XLA compiles meanwhile."""
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield compiled
    jax.monitoring.unregister_event_duration_listener(listen)


def noted(calls, name, answer):
    """A function that keeps under its name what it is called with."""

    def call(*arguments, **options):
        calls[name] = (*arguments, options)
        return answer

    return call


def same(found, expected):
    """Leaf for leaf, bit for bit."""
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def close(found, expected, rtol=1e-4, atol=1e-6):
    """Leaf for leaf, up to rounding."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


def same_key(found, expected):
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(expected))
