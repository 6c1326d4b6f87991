"""Embedding images once: `baal.encode` with and without a cache beside the bare compiled calls, and its memory.

A small convolutional network with random weights embeds images of CIFAR-10's shape from a memory map of bytes or of
floats. The bare side is a loop that slices, calls the compiled network and keeps what it gives; both give the same
numbers. Memory is that of the process's own pages (pages of files, which the system takes back, left out), the largest
seen while a quarter and all of the images are encoded, each in a process of its own.

    python experiments/benchmarks/encode.py
    python experiments/benchmarks/encode.py --dtype uint8

60,000 images of floats: bare calls 7.6 s (6.7 to 10.6), encode 8.5 s (6.0 to 13.1), with a cache 6.4 s (5.8 to 9.9), a
finished cache 0.34 s; 16 MB of memory for 15,000 images and 13 MB for 60,000. Two cores of an AMD EPYC with AVX-512,
beside three other processes, which is where the ranges come from.
"""

from __future__ import annotations

import dataclasses
import tempfile
import threading
import time
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro
from measuring import hand_over, in_process, timed

import baal_jax as baal


@dataclasses.dataclass(frozen=True)
class Config:
    """Encoding beside bare calls.

    Attributes:
        num: images.
        dtype: of the images.
        batch_size: of both sides.
        width: channels of the first convolution.
        repeats: runs of each side, one after the other in turn; medians are compared.
        memory_of: how many images to encode for the peak of memory alone; 0 compares times.
    """

    num: int = 60_000
    dtype: Literal["float32", "uint8"] = "float32"
    batch_size: int = 256
    width: int = 32
    repeats: int = 3
    memory_of: int = 0


def main(config: Config) -> None:
    """Times, then memory."""
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        write_images(folder / "images.npy", config.memory_of or config.num, config.dtype)
        images, apply = np.load(folder / "images.npy", mmap_mode="r"), encoder(config.width)
        if config.memory_of:
            before = private_memory()
            with Peak() as peak:
                embeddings = baal.encode(apply, images, config.batch_size, cache=folder / "embeddings.npy")
            hand_over({"megabytes": peak.largest / 1e6, "before": before / 1e6, "output": embeddings.nbytes / 1e6})
            return
        sides = {
            "bare calls": lambda _: bare(apply, images, config.batch_size),
            "encode": lambda _: baal.encode(apply, images, config.batch_size),
            "encode, cache": lambda i: baal.encode(apply, images, config.batch_size, cache=folder / f"{i}.npy"),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for repeat in range(config.repeats):
            outputs = {}
            for name, run in sides.items():
                outputs[name], spent = timed(lambda run=run, repeat=repeat: run(repeat))
                seconds[name].append(spent)
            for name, output in outputs.items():
                assert np.array_equal(output, outputs["bare calls"]), f"{name} gives other numbers"
        _, again = timed(lambda: baal.encode(apply, images, config.batch_size, cache=folder / "0.npy"))
    base = np.median(seconds["bare calls"])
    for name, spent in seconds.items():
        print(f"{name}: {np.median(spent):.2f} s ({min(spent):.2f} to {max(spent):.2f}), {np.median(spent) / base:.3f}")
    print(f"a finished cache: {again:.2f} s; all numbers are equal")
    for num in (config.num // 4, config.num):
        told = in_process(__file__, dataclasses.replace(config, memory_of=num))
        more = told["megabytes"] - told["before"]
        print(
            f"{num} images, {told['output']:.0f} MB of embeddings: {more:.0f} MB beside {told['before']:.0f} MB before"
        )


def write_images(path: Path, num: int, dtype: str) -> None:
    """Random images, written in parts."""
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(path, "w+", np.dtype(dtype), (num, 32, 32, 3))
    for start in range(0, num, 1000):
        part = rng.integers(0, 256, images[start : start + 1000].shape, np.uint8)
        images[start : start + 1000] = part if dtype == "uint8" else part / np.float32(255)


def encoder(width: int):
    """Three convolutions and a mean over positions, ``[B, 32, 32, 3] -> [B, 4 · width]``."""
    keys, sizes = jax.random.split(jax.random.key(0), 3), (3, width, 2 * width, 4 * width)
    kernels = [
        jax.random.normal(key, (3, 3, a, b)) / np.sqrt(9 * a)
        for key, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]

    def apply(x):
        x = x.astype(np.float32)
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.relu(x)
        return x.mean(axis=(1, 2))

    return apply


def bare(apply, images, batch_size: int) -> np.ndarray:
    """What anybody would write."""
    compiled, parts = jax.jit(lambda batch: apply(batch)), []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        missing = batch_size - len(batch)
        if missing:
            batch = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
        parts.append(compiled(batch))
    return np.concatenate([np.asarray(part) for part in parts])[: len(images)]


def private_memory() -> int:
    """Bytes of this process that are no pages of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


class Peak:
    """The largest :func:`private_memory` while it is open, looked at every 2 ms."""

    def __enter__(self) -> Peak:
        self.largest, self._over = private_memory(), threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def _look(self) -> None:
        while not self._over.is_set():
            self.largest = max(self.largest, private_memory())
            time.sleep(0.002)

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
