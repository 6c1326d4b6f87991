"""What the examples in docstrings may use without importing it."""

import jax
import jax.numpy as jnp
import pytest

from baal_jax import heuristics, metrics


@pytest.fixture(autouse=True)
def _names(doctest_namespace):
    doctest_namespace.update(jax=jax, jnp=jnp, heuristics=heuristics, metrics=metrics)
