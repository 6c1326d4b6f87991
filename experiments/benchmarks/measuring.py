"""What the benchmarks share: median times, the rate of matrix products, and each side in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

sys.path.append(str(Path(__file__).parents[1]))  # the networks of the experiments


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    begin = time.perf_counter()
    outputs = jax.block_until_ready(call())
    return outputs, time.perf_counter() - begin


def median_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Median of several calls, after one that compiles and does not count."""
    jax.block_until_ready(call())
    return float(np.median([timed(call)[1] for _ in range(repeats)]))


def matmul_rate(size: int = 2048) -> float:
    """Float32 operations a second when every device multiplies square matrices."""
    devices = jax.devices()
    mesh, each = jax.sharding.Mesh(np.array(devices), ("each",)), jax.sharding.PartitionSpec("each")
    product = jax.jit(jax.shard_map(lambda x: x @ x, mesh=mesh, in_specs=each, out_specs=each))
    squares = jax.device_put(jnp.ones((len(devices), size, size)), jax.NamedSharding(mesh, each))
    return len(devices) * 2 * size**3 / median_seconds(lambda: product(squares), 12)


def copy_bandwidth(megabytes: int = 256) -> float:
    """Bytes a second that one device reads and writes."""
    values, copy = jnp.ones(megabytes * 2**18), jax.jit(lambda x: x + 1)
    return 2 * values.nbytes / median_seconds(lambda: copy(values), 12)


def in_process(script: str, config: Any) -> dict:
    """What :func:`hand_over` got in a fresh interpreter that runs a script with the arguments of ``config``."""
    arguments = []
    for name, value in dataclasses.asdict(config).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            arguments.append(option if value else option.replace("--", "--no-", 1))
        else:
            arguments += [option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]
    command = [sys.executable, script, *arguments]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])


def hand_over(measured: dict) -> None:
    """Gives the numbers of one side to the process that compares."""
    print("RESULT " + json.dumps(measured))


class Side(NamedTuple):
    """One implementation of a network, ready to be measured; its functions measure when they are called."""

    gemm: float  # operations a second of matrix products
    logits: list  # under given dropout masks, equal on all sides
    gradients: list[float]  # norms of the kernels' gradients, likewise
    predict: Callable[[int, int], float | None]  # of batch size and draws: seconds an image, None if left out
    train: Callable[[], dict[str, float]]  # name → seconds of a training step
    round: Callable[[], float]  # seconds of a round of active learning
    shares_trunk: bool = False  # whether draws share what comes before the first dropout layer
