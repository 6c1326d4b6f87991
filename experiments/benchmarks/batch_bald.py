"""BatchBALD beside batchbald_redux (PyTorch): seconds for the picks, from the same log-probabilities.

Both enumerate while label configurations fit and sample beyond, with the same number of them. Both must pick the same
batches from small pools where all configurations can be enumerated. Prints the ratio, the share of the pool that the
lazy bound evaluated for each pick, and the peak memory of our process before the other library is loaded.

    python experiments/benchmarks/batch_bald.py                              # needs torch and batchbald_redux
    python experiments/benchmarks/batch_bald.py --pool adversarial --no-redux

6.06 s and 1.03 GiB; batchbald_redux takes 40 times as long. Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
import resource
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import median_seconds, timed

from baal_jax.selection import _batch_bald


@dataclasses.dataclass(frozen=True)
class Config:
    """BatchBALD, both sides.

    Attributes:
        pool: mixed: draws of logits with a spread that differs between examples, as a trained network's do;
            adversarial: every example is as uncertain as any other, so that no bound excludes anything.
        num: examples.
        draws: posterior samples.
        classes: how many.
        query_size: picks.
        configurations: label configurations at most.
        redux: time the other side too (minutes).
        repeats: timed calls of ours, after one that compiles.
    """

    pool: Literal["mixed", "adversarial"] = "mixed"
    num: int = 10_000
    draws: int = 100
    classes: int = 10
    query_size: int = 10
    configurations: int = 10_000
    redux: bool = True
    repeats: int = 3


def main(config: Config) -> None:
    """Equality, then both sides."""
    log_probs = pool(config.pool, config.num, config.draws, config.classes)
    given = jax.random.key(0), jnp.asarray(log_probs), jnp.ones(config.num, bool)
    pick = jax.jit(partial(_batch_bald.greedy, query_size=config.query_size, num_kept=config.configurations))
    (picked, evaluated), first_call = timed(lambda: pick(*given))
    print(f"first call, compilation included: {first_call:.1f} s")
    ours = median_seconds(lambda: pick(*given), config.repeats)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    shares = ", ".join(f"{100 * count / config.num:.0f} %" for count in np.asarray(evaluated))
    print(f"baal_jax: {ours:.2f} s; peak memory of the process {peak:.2f} GiB")
    print(f"  gains {np.round(np.asarray(picked.scores), 4).tolist()}\n  evaluated for each pick: {shares}")
    if config.redux:
        for seed in range(5):
            small = pool("mixed", 200, 20, 4, seed)
            expected = redux(small, 5, 4**5)
            picked, _ = _batch_bald.greedy(jax.random.key(0), jnp.asarray(small), jnp.ones(200, bool), 5, 4**5)
            assert picked.indices.tolist() == expected, (seed, picked.indices.tolist(), expected)
        theirs = timed(lambda: redux(log_probs, config.query_size, config.configurations))[1]
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

    options = {"dtype": torch.double, "device": "cpu"}
    batch = batchbald.get_batchbald_batch(torch.tensor(log_probs), query_size, configurations, **options)
    return [int(i) for i in batch.indices]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
