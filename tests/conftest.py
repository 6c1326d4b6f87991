"""Strict settings for every test, made before jax is imported."""

import gc
import importlib.metadata
import os
import signal
import sys
import zlib
from pathlib import Path

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=4 --xla_cpu_parallel_codegen_split_count=1"
    # The older code generator compiles twice as fast; newer versions of jaxlib no longer have it.
    + " --xla_cpu_use_fusion_emitters=false" * importlib.metadata.version("jaxlib").startswith("0.10.")
).strip()
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("MPLBACKEND", "agg")
# Tests compile thousands of small programs and run each once or twice: compiling is what they wait for. One step of
# .ci/run sets this to 0 and runs a part of them as users do. The environment reaches processes that tests start.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of BLAS in two workers wait for each other

import hypothesis
import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where a shell starts tests in its background
gc.set_threshold(200_000, 20, 100)  # tracing makes many small objects and little garbage
jax.config.update("jax_disable_most_optimizations", os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

hypothesis.settings.register_profile("strict", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("strict")

_MAPS = Path("/proc/self/maps")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    """Files that take long come first, so that workers end together."""
    names = ["posteriors", "selections", "cifar10", "experiments", "run", "readme", "scalings", "batch_bald", "suites"]
    order = {f"test_{name}.py": place for place, name in enumerate(names) if "PYTEST_XDIST_WORKER" in os.environ}
    items.sort(key=lambda item: order.get(item.path.name, len(order)))


@pytest.fixture(scope="module", autouse=True)
def _programs():
    """Drops what has been compiled when there is much of it: thousands of programs exhaust a process's memory maps."""
    yield
    if not _MAPS.exists() or _MAPS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture
def rng(request):
    """Random numbers of a test's own, the same whatever ran before it."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def key_reuse():
    """Raises where a key is consumed twice."""
    with jax.debug_key_reuse(True):
        yield


@pytest.fixture
def mesh():
    """Four devices in a row, under automatic sharding."""
    return jax.make_mesh((4,), ("pool",), axis_types=(jax.sharding.AxisType.Auto,))
