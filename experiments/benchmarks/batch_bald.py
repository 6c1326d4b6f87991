"""BatchBALD beside batchbald_redux (PyTorch): seconds for the picks, from the same log-probabilities.

Both enumerate while label configurations fit and sample beyond, with the same number of them. Both must pick the same
batches from small pools where all configurations can be enumerated. Prints the ratio, the share of the pool that the
lazy bound evaluated for each pick, and the peak memory of our process before the other library is loaded.

    python experiments/benchmarks/batch_bald.py                              # needs torch and batchbald_redux
    python experiments/benchmarks/batch_bald.py --pool adversarial --no-redux

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import resource
import time
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from baal_jax.selection import _batch_bald


@dataclasses.dataclass(frozen=True)
class Config:
    """BatchBALD, both sides."""

    pool: Literal["mixed", "adversarial"] = "mixed"
    """mixed: draws of logits with a spread that differs between examples, as a trained network's do; adversarial: every
    example is as uncertain as any other, so that no bound excludes anything."""

    num: int = 10_000
    """Examples."""

    draws: int = 100
    """Posterior draws."""

    classes: int = 10
    """Classes."""

    query_size: int = 10
    """Picks."""

    configurations: int = 10_000
    """Label configurations at most."""

    redux: bool = True
    """Time the other side too (minutes)."""

    repeats: int = 3
    """Timed calls of ours, after one that compiles."""


def main(config: Config) -> None:
    """Equality, then both sides."""
    log_probs = pool(config.pool, config.num, config.draws, config.classes)
    everything = jnp.ones(config.num, bool)
    pick = jax.jit(partial(_batch_bald.greedy, query_size=config.query_size, num_configurations=config.configurations))
    given = jnp.asarray(log_probs)
    begin = time.perf_counter()
    jax.block_until_ready(pick(jax.random.key(0), given, everything))
    print(f"first call, compilation included: {time.perf_counter() - begin:.1f} s")
    times = []
    for i in range(config.repeats):
        begin = time.perf_counter()
        found, evaluated = jax.block_until_ready(pick(jax.random.key(i), given, everything))
        times.append(time.perf_counter() - begin)
    ours = float(np.median(times))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    shares = ", ".join(f"{100 * count / config.num:.0f} %" for count in np.asarray(evaluated))
    print(f"baal_jax: {ours:.2f} s; peak memory of the process {peak:.2f} GiB")
    print(f"  gains {np.round(np.asarray(found.scores), 4).tolist()}\n  evaluated for each pick: {shares}")
    if config.redux:
        for seed in range(5):
            small = pool("mixed", 200, 20, 4, seed)
            expected = redux(small, 5, 4**5)
            picked, _ = _batch_bald.greedy(jax.random.key(0), jnp.asarray(small), jnp.ones(200, bool), 5, 4**5)
            assert picked.indices.tolist() == expected, (seed, picked.indices.tolist(), expected)
        begin = time.perf_counter()
        redux(log_probs, config.query_size, config.configurations)
        theirs = time.perf_counter() - begin
        print(f"batchbald_redux: {theirs:.1f} s, ratio {theirs / ours:.1f}; the same picks on 5 small pools")


def pool(kind: str, num: int, draws: int, classes: int, seed: int = 0) -> np.ndarray:
    """``[N, S, C]`` log-probabilities."""
    rng = np.random.default_rng(seed)
    spread = rng.gamma(1.0, 1.0, (num, 1, 1)) if kind == "mixed" else 2.0
    centre = 2 * rng.normal(size=(num, 1, classes)) if kind == "mixed" else 0.0
    logits = centre + spread * rng.normal(size=(num, draws, classes))
    logits -= logits.max(axis=-1, keepdims=True)
    return (logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))).astype(np.float32)


def redux(log_probs: np.ndarray, query_size: int, configurations: int) -> list[int]:
    """The other library's picks."""
    import torch
    from batchbald_redux import batchbald

    arguments: dict[str, Any] = {"dtype": torch.double, "device": "cpu"}
    found = batchbald.get_batchbald_batch(torch.tensor(log_probs), query_size, configurations, **arguments)
    return [int(i) for i in found.indices]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
