"""The program of a strategy: one seed as a pure function, many of them in one call, as many as memory holds."""

import hashlib
import importlib.metadata
import os
import platform
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from baal_jax import pool
from baal_jax._util import checks, files, sources, windows
from baal_jax.loop import ActiveLoop, one_of, run, shapes_of_dataset
from baal_jax.stopping import Criterion
from baal_jax.typing import Array, Dataset, Key, PyTree, StepInfo

_FOLDER = "jax_compilation_cache_dir"
_KEEP_ALL = {"jax_persistent_cache_min_compile_time_secs": 0.0, "jax_persistent_cache_min_entry_size_bytes": -1}
_TRY = f"""
import sys, jax, jax.numpy as jnp
for name, value in {{**{_KEEP_ALL}, "{_FOLDER}": sys.argv[1]}}.items():
    jax.config.update(name, value)
events = []
jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
jax.jit(lambda x: jax.lax.fori_loop(0, 3, lambda _, x: jnp.tanh(x @ x), x))(jnp.ones((64, 64))).block_until_ready()
print("read" if any("cache_hits" in event for event in events) else "written")
"""


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
    size: int | None  # seeds in a call, None for any number


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

    Example:
        >>> study.use_all_cores()  # doctest: +SKIP
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


def use_compilation_cache(folder: str | Path | None = None) -> Path | None:
    """Keeps compiled programs on the disk: a study of the same shapes starts without compiling.

    Call it at the top of a script, after :func:`use_all_cores`. Programs belong to a version of jaxlib and a processor,
    and may be deleted at any time. It has no effect where ``jax_compilation_cache_dir`` names a folder.

    Args:
        folder: where; by default ``baal_jax`` in the user's folder of caches (``XDG_CACHE_HOME``, ``~/.cache``).

    Returns:
        The folder; None where it cannot be written or programs are refused, as a process of its own tries once.

    Example:
        >>> home = study.use_compilation_cache("runs/programs")        # doctest: +SKIP
    """
    if (given := getattr(jax.config, _FOLDER)) is not None:
        return Path(given)
    homes = {"win32": os.environ.get("LOCALAPPDATA"), "darwin": "~/Library/Caches"}
    home = os.environ.get("XDG_CACHE_HOME") or homes.get(sys.platform) or "~/.cache"
    cpu = platform.processor() + platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line for line in lines if line.startswith(("flags", "Features"))), cpu)
    version, features = importlib.metadata.version("jaxlib"), hashlib.sha256(cpu.encode()).hexdigest()[:12]
    place = Path(home, "baal_jax").expanduser() if folder is None else Path(folder)
    place = place.absolute() / f"jaxlib-{version}-{features}"
    verdict = place / "verdict.txt"
    try:
        place.mkdir(parents=True, exist_ok=True)
        if not verdict.exists():
            # Some processors refuse what they wrote themselves, with a line for every program, and some crash.
            quiet: Any = {"capture_output": True, "text": True, "env": {**os.environ, "JAX_PLATFORMS": "cpu"}}
            tries = [subprocess.run([sys.executable, "-c", _TRY, str(place)], **quiet) for _ in range(2)]
            is_read = tries[1].returncode == 0 and tries[1].stdout.split() == ["read"] and not tries[1].stderr
            files.write_text(verdict, "read back" if is_read else "refused")
        if verdict.read_text() != "read back":
            return None
    except OSError:
        return None
    warnings.filterwarnings("ignore", ".*persistent compilation cache")
    for name, value in {**_KEEP_ALL, _FOLDER: str(place)}.items():
        jax.config.update(name, value)
    return place


def programs(loops: Sequence[ActiveLoop], rounds: Rounds, data: Data) -> Callable[[ActiveLoop, int], Program]:
    """From one of the strategies and a chunk to its program, not compiled yet.

    It is of ``chunk`` seeds, rounded up to a multiple of this process's devices. Strategies that differ in their
    acquisition alone are compiled together, their fit once.
    """
    if _is_on_host(data) or any(loop.candidates for loop in loops):
        return lambda loop, chunk: Program(partial(_in_turn, loop, rounds, data), None)
    devices = jax.local_devices()
    mesh = Mesh(np.array(devices), ("seeds",))
    split, shared = NamedSharding(mesh, PartitionSpec("seeds")), NamedSharding(mesh, PartitionSpec())
    data = jax.device_put(data, shared)

    def lower(loops: Sequence[ActiveLoop], chunk: int) -> Any:
        over_devices = _over_devices(partial(_one_seed, loops, rounds), mesh)
        which = jax.ShapeDtypeStruct((), jnp.int32, sharding=shared)
        return over_devices.lower(jax.ShapeDtypeStruct((chunk,), jnp.int32, sharding=split), which, data)

    @cache
    def compiled(places: tuple[int, ...], chunk: int) -> Any:
        try:
            return lower([loops[place] for place in places], chunk).compile()
        except TypeError:  # what they report has different types
            return None

    def program(loop: ActiveLoop, chunk: int) -> Program:
        chunk = -(-chunk // len(devices)) * len(devices)
        alike = tuple(place for place, other in enumerate(loops) if _but_acquisition(other) == _but_acquisition(loop))
        which = alike.index(next(place for place in alike if loops[place] is loop))

        def call(seeds: np.ndarray) -> tuple[Array, StepInfo]:
            given = jax.device_put(seeds.astype(np.int32), split), jax.device_put(np.int32(which), shared)
            together = compiled(alike, chunk) or compiled((alike[which],), chunk)
            return together(*given, data)

        return Program(call, chunk)

    return program


def _but_acquisition(loop: ActiveLoop) -> tuple:
    """What loops must share to be one program."""
    return loop.posterior, loop.sizes, loop.batch_size, loop.metrics, loop.num_samples, loop.last_rounds


def default_chunk(data: Data, num_seeds: int, num_strategies: int, num_parts: int) -> int:
    """One seed for every device on a CPU, where more would take turns anyhow, or else all; fewer for many parts."""
    if _is_on_host(data):
        return 1
    most = len(jax.local_devices()) if jax.default_backend() == "cpu" else num_seeds
    cells_of_each = -(-num_parts // num_strategies)
    return most if cells_of_each == 1 else min(most, -(-num_seeds // cells_of_each))


def _is_on_host(data: Data) -> bool:
    """Whether rounds are a loop in Python."""
    return sources.is_source(data.train.inputs) or checks.debugs_nans()


def _over_devices(one_seed: Callable[[Array, Array, Data], Any], mesh: Mesh) -> Any:
    def some_seeds(seeds: Array, which: Array, data: Data) -> Any:
        if seeds.shape[0] == 1:  # a batch of one is a loop that nothing simplifies
            return jax.tree.map(lambda leaf: leaf[None], one_seed(seeds[0], which, data))
        # A batch of seeds has batched kernels, with which a CPU's convolutions are several times slower.
        one = lambda seed: one_seed(seed, which, data)  # noqa: E731
        return jax.lax.map(one, seeds) if jax.default_backend() == "cpu" else jax.vmap(one)(seeds)

    split, shared = PartitionSpec("seeds"), PartitionSpec()
    specs = {"in_specs": (split, shared, shared), "out_specs": split}
    return jax.jit(jax.shard_map(some_seeds, mesh=mesh, check_vma=False, **specs))


def _in_turn(loop: ActiveLoop, rounds: Rounds, data: Data, seeds: np.ndarray) -> tuple[Any, StepInfo]:
    runs = [_one_seed([loop], rounds, jnp.asarray(seed, jnp.int32), jnp.int32(0), data) for seed in seeds]
    return jax.tree.map(lambda *leaves: np.stack(leaves), *runs)


def fingerprint(loop: ActiveLoop, rounds: Rounds, data: Data) -> str:
    """Of what is computed and by which versions; the same on every device, and in every company."""
    shapes = data._replace(train=shapes_of_dataset(data.train)[0])
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)
    seed = jax.ShapeDtypeStruct((), jnp.int32)
    near = "" if loop.candidates is None else f", {getattr(loop.candidates, '__qualname__', loop.candidates)}"
    if near:  # which are looked for on the host
        everything = lambda _, state: (None, pool.available(state.pool))  # noqa: E731
        loop = loop._replace(candidates=None, round=loop.round._replace(candidates=everything))
    # As on a CPU wherever we are, which is what this program would be there.
    with nullcontext() if jax.default_backend() == "cpu" else windows.as_on_cpu(True):
        traced = jax.jit(partial(_one_seed, [loop], rounds)).trace(seed, seed, shapes)
        text = traced.lower(lowering_platforms=("cpu",)).as_text()
    where = f"on the host, {loop.batch_size} at a time" if _is_on_host(data) else "on a device"
    made_with = f"{jax.__version__} {importlib.metadata.version('jaxlib')}"
    return hashlib.sha256("\n".join([made_with, where + near, text]).encode()).hexdigest()[:16]


def _one_seed(
    loops: Sequence[ActiveLoop], rounds: Rounds, seed: Array, which: Array, data: Data
) -> tuple[Array, StepInfo]:
    """The whole run of a seed of the ``which``-th strategy, and which examples were labelled at first."""
    loop = loops[0] if len(loops) == 1 else one_of(loops, which)
    state = loop.init(jax.random.fold_in(data.key, seed), data.train, rounds.num_initial)
    initial = jnp.flatnonzero(pool.labelled(state.pool), size=rounds.num_initial, fill_value=-1)
    options = {"num_rounds": rounds.num_rounds, "stop": rounds.stop, "stop_inputs": data.stop_inputs}
    _, infos = run(loop, None, data.train, data.test, state=state, target_inputs=data.target_inputs, **options)
    return initial.astype(jnp.int32), infos
