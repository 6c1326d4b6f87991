"""The program of a strategy: one seed as a pure function, many of them in one call, as many as memory holds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from baal_jax import pool
from baal_jax._run import run
from baal_jax._util import checks
from baal_jax.loop import ActiveLoop, StepInfo
from baal_jax.stopping import Criterion
from baal_jax.typing import Array, Dataset, Key, PyTree

SHARE_OF_MEMORY = 0.9  # the rest is for what the allocator cannot use


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


class Traced(NamedTuple):
    """A strategy before it is compiled.

    Attributes:
        compile: ``(memory, may_shrink) -> Program``: as it is, or for fewer seeds in a call where these take more than
            ``memory`` bytes of a device (None: nine tenths of what it says that it has).
        chunk: seeds in a call.
        fingerprint: of what is computed, and by what.
    """

    compile: Callable[[int | None, bool], Program]
    chunk: int
    fingerprint: str


class Program(NamedTuple):
    """A compiled strategy.

    Attributes:
        call: ``int32[chunk] seeds -> (initial int32[chunk, I], infos [chunk, R, …])``.
        chunk: seeds in a call.
        fingerprint: of what is computed, and by what.
        memory: bytes of a device that a call takes, as the compiler counts them.
    """

    call: Callable[[np.ndarray], tuple[Array, StepInfo]]
    chunk: int
    fingerprint: str
    memory: int


def use_all_cores(num_cores: int | None = None) -> int:
    """Makes every core of this machine a device of its own, so that as many seeds run at the same time.

    Without it XLA shares its cores among the operations of one run, and small ones leave most of them idle. It has no
    effect on a GPU or a TPU, nor where ``XLA_FLAGS`` says already how many devices a CPU is. Call it before JAX
    computes anything: at the top of a script.

    Args:
        num_cores: how many; all by default.

    Returns:
        How many.

    Raises:
        ValueError: JAX has been used already, or the number is not positive.
    """
    cores = os.cpu_count() or 1 if num_cores is None else checks.positive_int("num_cores", num_cores)
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return len(jax.devices("cpu"))  # somebody has decided
    try:
        jax.config.update("jax_num_cpu_devices", cores)
    except RuntimeError as error:
        if len(jax.devices("cpu")) != cores:
            raise ValueError(
                f"num_cores={cores} comes too late, JAX has computed already: call use_all_cores at the top of the "
                "script"
            ) from error
    return cores


def trace(
    loop: ActiveLoop, rounds: Rounds, data: Data, chunk: int, compiler_options: dict[str, Any] | None = None
) -> Traced:
    """The program of a strategy, not compiled yet.

    Args:
        loop: of the strategy.
        rounds: what a seed does.
        data: what all seeds share.
        chunk: seeds in a call, rounded up to a multiple of the devices.
        compiler_options: of XLA.

    Returns:
        :class:`Traced`.
    """
    devices = jax.devices()
    per_device = -(-chunk // len(devices))
    chunk = per_device * len(devices)
    mesh = Mesh(np.array(devices), ("seeds",))
    split = NamedSharding(mesh, PartitionSpec("seeds"))
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    program = _over_devices(partial(_one_seed, loop, rounds), mesh)
    lowered = program.lower(jax.ShapeDtypeStruct((chunk,), jnp.int32, sharding=split), data)
    found = fingerprint([lowered.as_text()], devices[0])

    def compile_it(memory: int | None, may_shrink: bool) -> Program:
        limit = memory if memory is not None else _memory_of(devices[0])
        compiled = lowered.compile(compiler_options=compiler_options)
        shared, varying = _bytes(compiled, data)
        if limit is None or shared + varying <= limit:
            call = lambda seeds: compiled(jax.device_put(seeds.astype(np.int32), split), data)  # noqa: E731
            return Program(call, chunk, found, shared + varying)
        if per_device == 1 or not may_shrink:
            raise ValueError(
                f"a call for {chunk} seeds takes {_mib(shared + varying)} of a device, {_mib(shared)} of them for the "
                f"data, but memory={_mib(limit)} is what it may take: ask for a smaller chunk or a smaller batch_size "
                "of the loop, or pass stream=study.Stream() for data that do not fit"
            )
        fitting = int((limit - shared) // -(-varying // per_device))  # linear in the seeds
        fewer = max(1, min(per_device - 1, fitting)) * len(devices)
        return trace(loop, rounds, data, fewer, compiler_options).compile(memory, True)

    return Traced(compile_it, chunk, found)


def default_chunk(num_seeds: int) -> int:
    """One seed for every device on a CPU, where more of them would take turns anyhow; else all of them."""
    return len(jax.devices()) if jax.default_backend() == "cpu" else num_seeds


def _over_devices(one_seed: Callable[[Array, Data], Any], mesh: Mesh) -> Any:
    def some_seeds(seeds: Array, data: Data) -> Any:
        if seeds.shape[0] == 1:  # a batch of one is a loop that nothing simplifies
            return jax.tree.map(lambda leaf: leaf[None], one_seed(seeds[0], data))
        return jax.vmap(one_seed, in_axes=(0, None))(seeds, data)

    split, shared = PartitionSpec("seeds"), PartitionSpec()
    return jax.jit(jax.shard_map(some_seeds, mesh=mesh, in_specs=(split, shared), out_specs=split, check_vma=False))


def fingerprint(texts: Sequence[str], device: Any) -> str:
    """Of programs and of what turns them into numbers."""
    made_with = f"{jax.__version__} {importlib.metadata.version('jaxlib')} {device.platform} {device.device_kind}"
    return hashlib.sha256("\n".join([made_with, *texts]).encode()).hexdigest()[:16]


def _one_seed(loop: ActiveLoop, rounds: Rounds, seed: Array, data: Data) -> tuple[Array, StepInfo]:
    """The whole run of a seed, and which examples were labelled at first."""
    state = loop.init(jax.random.fold_in(data.key, seed), data.train, rounds.num_initial)
    initial = jnp.flatnonzero(pool.labelled(state.pool), size=rounds.num_initial, fill_value=-1)
    _, infos = run(
        loop,
        None,
        data.train,
        data.test,
        num_rounds=rounds.num_rounds,
        state=state,
        target_inputs=data.target_inputs,
        stop=rounds.stop,
        stop_inputs=data.stop_inputs,
    )
    return initial.astype(jnp.int32), infos


def _bytes(compiled: Any, data: Data) -> tuple[int, int]:
    """What a call takes on a device: what all seeds share, and what grows with them."""
    found = compiled.memory_analysis()
    leaves = jax.tree.leaves(data)
    keys = [jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf for leaf in leaves]
    shared = sum(leaf.nbytes for leaf in keys)
    total = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return shared, max(total - shared, 0)


def _memory_of(device: Any) -> int | None:
    """Bytes that a call may take, None where the device does not say."""
    stats = device.memory_stats()
    return None if not stats or "bytes_limit" not in stats else int(stats["bytes_limit"] * SHARE_OF_MEMORY)


def _mib(size: int) -> str:
    return f"{size / 2**20:.3g} MiB"
