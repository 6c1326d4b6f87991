"""A posterior in closed form and loops with it, which compile at once."""

import jax
import jax.numpy as jnp
import numpy as np

import baal_jax as baal
from baal_jax import heuristics, selection, study

NUM_CLASSES, NUM_FEATURES = 3, 4
ACQUISITIONS = {"random": selection.random(), "bald": selection.top_k(heuristics.bald)}


def data(num_pool=40, num_test=30, seed=0):
    """Three clouds of points."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, NUM_CLASSES, num_pool + num_test)
    inputs = np.eye(NUM_CLASSES, NUM_FEATURES)[targets] + 0.6 * rng.normal(size=(len(targets), NUM_FEATURES))
    inputs, targets = inputs.astype(np.float32), targets.astype(np.int32)
    return baal.Dataset(inputs[:num_pool], targets[:num_pool]), baal.Dataset(inputs[num_pool:], targets[num_pool:])


def centroids(scale=3.0):
    """Normal posteriors of the class means, with a prior of one example at the origin."""

    def fit(key, dataset, labelled, previous=None):
        del key, previous
        members = jax.nn.one_hot(dataset.targets, NUM_CLASSES) * labelled.astype(jnp.float32)[:, None]
        counts = members.sum(0) + 1.0
        flat = dataset.inputs.reshape(len(dataset.inputs), -1)
        # One example after the other: padding and other rows then change no bit of the sums.
        sums, _ = jax.lax.scan(
            lambda total, row: (total + jnp.outer(*row), None),
            jnp.zeros((NUM_CLASSES, flat.shape[1])),
            (members, flat),
        )
        return sums / counts[:, None], counts

    def sample(key, state, num_samples):
        means, counts = state
        return means[None] + jax.random.normal(key, (num_samples, *means.shape)) * jax.lax.rsqrt(counts)[None, :, None]

    def apply(state, draw, inputs):
        del state
        flat = inputs.reshape(len(inputs), -1)
        return -scale * jnp.sum((flat[:, None, :] - draw[None]) ** 2, axis=-1)

    return baal.Posterior(fit, sample, apply)


def loops(names=("random", "bald"), **options):
    options = {"query_size": 3, "num_samples": 6, **options}
    return study.strategies(centroids(), {name: ACQUISITIONS[name] for name in names}, **options)
