"""The program of a strategy: one seed as a pure function, many of them in one call, as many as memory holds."""

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from baal_jax import pool
from baal_jax._util import checks, sources
from baal_jax.loop import ActiveLoop, run, shapes_of_dataset
from baal_jax.stopping import Criterion
from baal_jax.typing import Array, Dataset, Key, PyTree, StepInfo


class Rounds(NamedTuple):
    """What a seed does."""

    num_rounds: int
    num_initial: int
    stop: Criterion | None


class Data(NamedTuple):
    """What all seeds share."""

    key: Key
    train: Dataset
    test: Dataset
    target_inputs: PyTree
    stop_inputs: PyTree


class Program(NamedTuple):
    """A strategy, compiled when it is called first."""

    call: Callable[[np.ndarray], tuple[Array, StepInfo]]  # int32[chunk] -> int32[chunk, I] initial, [chunk, R, …] infos
    chunk: int  # seeds in a call
    fingerprint: str  # of what is computed, and by what


def use_all_cores(num_cores: int | None = None) -> int:
    """Makes every core of this machine a device of its own, so that as many seeds run at the same time.

    XLA shares its cores among the operations of one run, and small ones leave most of them idle. Call it at the top of
    a script. It has no effect on a GPU or a TPU, nor where ``XLA_FLAGS`` says how many devices a CPU is.

    Args:
        num_cores: how many; all by default.

    Returns:
        How many.

    Raises:
        ValueError: JAX has computed something already, or the number is not positive.
    """
    cores = os.cpu_count() or 1 if num_cores is None else checks.positive_int("num_cores", num_cores)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return len(jax.devices("cpu"))  # somebody has decided
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError as error:
        if len(jax.devices("cpu")) != cores:
            cure = "call use_all_cores at the top of the script"
            raise ValueError(f"num_cores={cores} comes too late, JAX has computed already: {cure}") from error
    return cores


def program(loop: ActiveLoop, rounds: Rounds, data: Data, chunk: int) -> Program:
    """A strategy, not compiled yet: of ``chunk`` seeds, rounded up to a multiple of the devices; of one on the host."""
    if sources.is_source(data.train.inputs) or checks.debugs_nans():
        return _on_host(loop, rounds, data)
    devices = jax.devices()
    chunk = -(-chunk // len(devices)) * len(devices)
    mesh = Mesh(np.array(devices), ("seeds",))
    split = NamedSharding(mesh, PartitionSpec("seeds"))
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    over_devices = _over_devices(partial(_one_seed, loop, rounds), mesh)
    lowered = over_devices.lower(jax.ShapeDtypeStruct((chunk,), jnp.int32, sharding=split), data)
    compiled = cache(lowered.compile)

    def call(seeds: np.ndarray) -> tuple[Array, StepInfo]:
        return compiled()(jax.device_put(seeds.astype(np.int32), split), data)

    return Program(call, chunk, _fingerprint([lowered.as_text()]))


def default_chunk(num_seeds: int) -> int:
    """One seed for every device on a CPU, where more of them would take turns anyhow; else all of them."""
    return len(jax.devices()) if jax.default_backend() == "cpu" else num_seeds


def _over_devices(one_seed: Callable[[Array, Data], Any], mesh: Mesh) -> Any:
    def some_seeds(seeds: Array, data: Data) -> Any:
        if seeds.shape[0] == 1:  # a batch of one is a loop that nothing simplifies
            return jax.tree.map(lambda leaf: leaf[None], one_seed(seeds[0], data))
        # A batch of seeds has batched kernels, with which a CPU's convolutions are several times slower.
        one = lambda seed: one_seed(seed, data)  # noqa: E731
        return jax.lax.map(one, seeds) if jax.default_backend() == "cpu" else jax.vmap(one)(seeds)

    split, shared = PartitionSpec("seeds"), PartitionSpec()
    return jax.jit(jax.shard_map(some_seeds, mesh=mesh, in_specs=(split, shared), out_specs=split, check_vma=False))


def _on_host(loop: ActiveLoop, rounds: Rounds, data: Data) -> Program:
    """One seed a call, whose rounds are a loop in Python."""

    def call(seeds: np.ndarray) -> tuple[Any, StepInfo]:
        one = _one_seed(loop, rounds, jnp.asarray(seeds[0], jnp.int32), data)
        return jax.tree.map(lambda leaf: np.asarray(leaf)[None], one)

    shapes = jnp.zeros((), jnp.int32), data._replace(train=shapes_of_dataset(data.train)[0])
    whole = jax.jit(lambda *given: _one_seed(loop, rounds, *given)).lower(*shapes)
    return Program(call, 1, _fingerprint([whole.as_text(), f"on the host, {loop.batch_size} at a time"]))


def _fingerprint(texts: Sequence[str]) -> str:
    """Of programs and of what turns them into numbers."""
    device = jax.devices()[0]
    made_with = f"{jax.__version__} {importlib.metadata.version('jaxlib')} {device.platform} {device.device_kind}"
    return hashlib.sha256("\n".join([made_with, *texts]).encode()).hexdigest()[:16]


def _one_seed(loop: ActiveLoop, rounds: Rounds, seed: Array, data: Data) -> tuple[Array, StepInfo]:
    """The whole run of a seed, and which examples were labelled at first."""
    state = loop.init(jax.random.fold_in(data.key, seed), data.train, rounds.num_initial)
    initial = jnp.flatnonzero(pool.labelled(state.pool), size=rounds.num_initial, fill_value=-1)
    options = {"num_rounds": rounds.num_rounds, "stop": rounds.stop, "stop_inputs": data.stop_inputs}
    _, infos = run(loop, None, data.train, data.test, state=state, target_inputs=data.target_inputs, **options)
    return initial.astype(jnp.int32), infos
