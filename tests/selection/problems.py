"""Small pools of features, some rows labelled and some hidden, and one way to pick from them."""

import functools

import jax
import numpy as np

from baal_jax import Predictions, selection
from baal_jax.selection import _k_means
from tests.oracles import heuristics

NUM, SIZE, QUERY, CLASSES, NOISE = 48, 5, 8, 4, 0.1
EVERY = np.ones(NUM, bool)
SEEDS = range(6)  # of which 0 and 4 have no labels
clusters = jax.jit(_k_means.clusters_of, static_argnums=(3, 4))


@functools.cache
def build(name, *parts, **arguments):
    return getattr(selection, name)(*parts, **arguments)


def problem(seed, num=NUM, size=SIZE):
    """Loose blobs away from the origin: points, available, labelled."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(num, size)) + 2 * rng.normal(size=(4, size))[rng.integers(0, 4, num)] + 5
    labelled = (rng.random(num) < 0.15) & (seed % 4 != 0)
    available = ~labelled & (rng.random(num) < 0.9)
    return points.astype(np.float32), available, labelled


def predictions(seed, draws=5, classes=CLASSES, size=SIZE):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(draws, NUM, classes))
    return Predictions(logits.astype(np.float32), rng.normal(size=(NUM, size)).astype(np.float32))


def mean_probabilities(given):
    return heuristics.softmax(given.logits).mean(axis=0)


def pick(acquisition, features, available, labelled, query_size=QUERY, key=0):
    return acquisition.select(jax.random.key(key), features, np.asarray(available), query_size, np.asarray(labelled))


def uniforms(key, query_size=QUERY):
    """Those that a selector of a grid without transforms draws."""
    return np.asarray(jax.random.uniform(jax.random.split(jax.random.key(key), 1)[0], (query_size,)), np.float64)


def clusters_of(points, known, bound, active, key, num_iterations=100):
    """Centres and the assignment that a selection finds, whose own test is elsewhere, and centred points."""
    centred = np.where(known[:, None], points - points[known].mean(axis=0), 0).astype(np.float32)
    key = jax.random.key(key) if isinstance(key, int) else key
    found = clusters(key, centred, known, bound, num_iterations, active)
    return np.asarray(found.centres, np.float64), np.asarray(found.assignment), centred.astype(np.float64)
