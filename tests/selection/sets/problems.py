"""Pools of features of one shape, so that a selection is compiled once, and one way to pick from them."""

import functools

import jax
import numpy as np

from baal_jax import Predictions, selection
from tests.oracles import heuristics

NUM, SIZE, QUERY, NOISE, CLASSES = 40, 6, 8, 0.1, 4
EVERY = np.ones(NUM, bool)
SEEDS = range(8)  # of which 0 and 4 have no labels


@functools.cache
def build(name, *parts, **arguments):
    return getattr(selection, name)(*parts, **arguments)


def problem(seed, size=SIZE):
    """Features with a common offset and unequal scales, some rows labelled and some hidden."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(NUM, size)) * rng.uniform(0.2, 2, size) + rng.normal(size=size)
    labelled = rng.random(NUM) < 0.15
    labelled[0] = True
    labelled &= seed % 4 != 0
    available = ~labelled & (rng.random(NUM) < 0.9)
    return features.astype(np.float32), available, labelled


def pick(acquisition, features, available, labelled, query_size=QUERY, key=0):
    return acquisition.select(jax.random.key(key), features, np.asarray(available), query_size, np.asarray(labelled))


def predictions(seed, draws=5, classes=CLASSES, size=SIZE):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(draws, NUM, classes))
    return Predictions(logits.astype(np.float32), rng.normal(size=(NUM, size)).astype(np.float32))


def mean_probabilities(given):
    return heuristics.softmax(given.logits).mean(axis=0)


def uniforms(key, query_size=QUERY):
    """Those that a selector of a grid without transforms draws."""
    return np.asarray(jax.random.uniform(jax.random.split(jax.random.key(key), 1)[0], (query_size,)), np.float64)
