"""What the examples in docstrings may use without importing it, as docs/reference/index.md says."""

import tempfile

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import (
    active_testing,
    annotation,
    calibration,
    checkpoint,
    data,
    heuristics,
    losses,
    metrics,
    pool,
    posteriors,
    selection,
    stopping,
    study,
)
from baal_jax.posteriors import kernels, layers
from baal_jax.selection.sets import feature_maps, selectors, transforms
from baal_jax.study import plots, report, results, statistics
from baal_jax.training import augmentation, semi_supervised

ROOMS = [active_testing, annotation, augmentation, calibration, checkpoint, data, heuristics, kernels, layers, losses,
         metrics, plots, pool, posteriors, report, results, selection, semi_supervised, statistics, stopping, study,
         feature_maps, selectors, transforms]  # fmt: skip


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update({room.__name__.rpartition(".")[2]: room for room in ROOMS})
    doctest_namespace.update(baal=baal, jax=jax, jnp=jnp, nn=nn, np=np, optax=optax, tempfile=tempfile)
