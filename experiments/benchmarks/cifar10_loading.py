"""CIFAR-10 from its TFDS directory into arrays: seconds and peak memory of the process.

    python experiments/benchmarks/cifar10_loading.py --data-dir ~/tensorflow_datasets

60,000 images in 6.1 to 6.3 s; peak memory 2.1 × the arrays. Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import resource
import sys
import time
from pathlib import Path

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Loading CIFAR-10.

    Attributes:
        data_dir: where it lies; by default where TFDS keeps it.
    """

    data_dir: Path | None = None


def main(config: Config) -> None:
    """Imports, then loads."""
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
