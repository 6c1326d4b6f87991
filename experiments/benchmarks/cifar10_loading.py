"""CIFAR-10 from its TFDS directory into arrays: seconds and peak memory, in a process of its own.

    python experiments/benchmarks/cifar10_loading.py --data-dir ~/tensorflow_datasets

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import resource
import subprocess
import sys
import time
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Loading CIFAR-10."""

    data_dir: Path | None = None
    """Where it lies; by default where TFDS keeps it."""

    repeats: int = 3
    """Fresh processes; 0 is used by the script itself."""


def main(config: Config) -> None:
    """Loads in fresh processes."""
    if config.repeats:
        place = [] if config.data_dir is None else ["--data-dir", str(config.data_dir)]
        for _ in range(config.repeats):
            subprocess.run([sys.executable, __file__, "--repeats", "0", *place], check=True)
        return
    begin = time.perf_counter()
    from baal_jax import data

    imported = time.perf_counter()
    parts = data.cifar10(config.data_dir)
    seconds = time.perf_counter() - imported
    size = sum(part.inputs.nbytes + part.targets.nbytes for part in parts)
    images = sum(len(part.targets) for part in parts)
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    print(
        f"{images} images in {seconds:.2f} s ({seconds / images * 1e6:.0f} µs an image; "
        f"import {imported - begin:.2f} s)\n"
        f"peak memory of the process {peak / 1e6:.0f} MB = {peak / size:.2f} × the {size / 1e6:.0f} MB of the arrays"
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
