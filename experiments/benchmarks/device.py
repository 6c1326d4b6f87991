"""What a device makes of it, in one command: compilation, speed, and share of the roofline, as one JSON.

Predicts with VGG16, picks by BatchBALD, BADGE, EPIG and exact top-k from large pools, runs seeds of the digits study
and a piece of the curve on images of CIFAR-10's shape (synthetic ones); other forms of the same beside them. The
roofline is made of what this device does: the rate of large matrix products and the bandwidth of a copy, both measured,
against the operations and bytes that XLA counts. It counts a loop once, so loops are told by pieces without one and how
often they run. Bytes are those of all fusions: what stays in a cache can pass the limit.

    python experiments/benchmarks/device.py                          # full: for an accelerator
    python experiments/benchmarks/device.py --size small             # seconds on a CPU, to see that all runs
    python experiments/benchmarks/device.py --parts badge epig top_k
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import platform
import time
from pathlib import Path
from typing import Any, Literal

import jax
import tyro
from device_parts import PARTS, SIZES, Work
from measuring import copy_bandwidth, matmul_rate, median_seconds


@dataclasses.dataclass(frozen=True)
class Config:
    """What runs.

    Attributes:
        size: of everything.
        parts: what of it.
        repeats: timed calls, whose median counts.
        out: the JSON.
    """

    size: Literal["full", "small"] = "full"
    parts: tuple[str, ...] = ("vgg", "batch_bald", "badge", "epig", "top_k", "digits", "cifar10")
    repeats: int = 5
    out: Path = Path("results/device.json")


def main(config: Config) -> dict:
    """Measures the device, then each part; a line each, and the JSON."""
    size = SIZES[config.size]
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax")}
    device = jax.devices()[0]
    measured: dict[str, Any] = {
        "device": f"{device.device_kind} × {len(jax.devices())}",
        "platform": device.client.platform_version,  # of CUDA, where that is what it is
        "versions": {"python": platform.python_version(), **versions},
        "size": config.size,
        "matmul_flops_per_s": matmul_rate(size["matmul"]) / len(jax.devices()),
        "copy_bytes_per_s": copy_bandwidth(size["copy"]),
        "parts": {},
    }
    print(json.dumps(measured, indent=1))
    for name in config.parts:
        measured["parts"][name] = part = measure(PARTS[name](size), measured, config.repeats)
        print(name, json.dumps(part), flush=True)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    config.out.write_text(json.dumps(measured, indent=1))
    return measured


def measure(work: Work, device: dict, repeats: int) -> dict:
    """Seconds to compile and to run, and the share of the shortest time that the device allows."""
    begin = time.perf_counter()
    compiled = jax.jit(work.function).lower(*work.arguments).compile()
    compile_s = time.perf_counter() - begin
    seconds = median_seconds(lambda: compiled(*work.arguments), repeats)
    flops = moved = 0.0
    for function, arguments, count in work.pieces:
        cost: Any = jax.jit(function).lower(*arguments).compile().cost_analysis()
        flops, moved = flops + count * cost.get("flops", 0.0), moved + count * cost.get("bytes accessed", 0.0)
    if not work.pieces:
        cost = compiled.cost_analysis()
        flops, moved = cost.get("flops", 0.0), cost.get("bytes accessed", 0.0)
    limits = {"matrix products": flops / device["matmul_flops_per_s"], "memory": moved / device["copy_bytes_per_s"]}
    bound = max(limits, key=lambda name: limits[name])
    part = {"compile_s": compile_s, "run_s": seconds, "flops": flops, "bytes": moved, "bound": bound}
    part |= {"share": limits[bound] / seconds}
    if (peer := work.peer(compiled(*work.arguments))) is not None:
        part |= {"peer": peer[0], "peer_s": peer[1], "ratio": peer[1] / seconds}
    return part


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
