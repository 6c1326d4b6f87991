"""What the examples in docstrings may use without importing it."""

import jax
import jax.numpy as jnp
import pytest

from baal_jax import calibration, heuristics, losses, metrics, pool, selection
from baal_jax.study import statistics


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    rooms = calibration, heuristics, losses, metrics, pool, selection, statistics
    doctest_namespace.update({room.__name__.rpartition(".")[2]: room for room in rooms}, jax=jax, jnp=jnp)
