"""Strict settings for every test, made before jax is imported."""

import gc
import importlib.metadata
import os
import zlib

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_cpu_parallel_codegen_split_count=1"
    # The older code generator compiles twice as fast; newer versions of jaxlib no longer have it.
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10.")
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "agg")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # for processes that tests start

import hypothesis
import jax
import numpy as np
import pytest

gc.set_threshold(200_000, 20, 100)  # tracing makes many small objects and little garbage
# Tests compile thousands of small programs and run each once or twice: compiling is what they wait for.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile("strict", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("strict")


def pytest_runtest_setup(item):
    """Gives every test random numbers of its own, whatever ran before it."""
    if hasattr(item.module, "RNG"):
        item.module.RNG = np.random.default_rng(zlib.crc32(item.name.encode()))


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """Drops what a module has compiled: thousands of programs in one process exhaust its memory maps."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def key_reuse():
    """Raises where a key is consumed twice."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def mesh():
    """Four devices in a row, under automatic sharding."""
    return jax.make_mesh((4,), ("pool",), axis_types=(jax.sharding.AxisType.Auto,))
