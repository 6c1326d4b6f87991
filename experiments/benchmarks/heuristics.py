"""Heuristics on ready logits beside NumPy written well, and beside the exponentials alone.

python experiments/benchmarks/heuristics.py
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import median_seconds

from baal_jax import heuristics


@dataclasses.dataclass(frozen=True)
class Config:
    """Two sides of each heuristic.

    Attributes:
        draws: posterior samples.
        num: examples.
        classes: how many.
        repeats: timings, of which the median counts.
    """

    draws: int = 20
    num: int = 100_000
    classes: int = 10
    repeats: int = 9


def main(config: Config) -> None:
    """Equality, then times, ratios and temporary memory in units of ``N·C`` floats."""
    shape = config.draws, config.num, config.classes
    logits = 3 * np.random.default_rng(0).normal(size=shape).astype(np.float32)
    on_device = jax.device_put(logits)
    exponentials = jax.jit(lambda logits: jnp.sum(jnp.exp(logits)))
    least = median_seconds(lambda: exponentials(on_device), config.repeats)
    print(f"exponentials, summed: {1e3 * least:.1f} ms\n| heuristic | ms | NumPy / it | it / exponentials | memory |")
    for name, numpy_form in FORMS.items():
        score = heuristics.REGISTRY[name]
        np.testing.assert_allclose(score(on_device), numpy_form(logits), rtol=1e-3, atol=1e-5)
        ours = median_seconds(lambda score=score: score(on_device), config.repeats)
        theirs = median_seconds(lambda form=numpy_form: form(logits), 3)
        memory = score.lower(on_device).compile().memory_analysis().temp_size_in_bytes
        share = memory / (4 * config.num * config.classes)
        print(f"| {name} | {1e3 * ours:.1f} | {theirs / ours:.1f} | {ours / least:.1f} | {share:.1f} |")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """In place but for one copy."""
    shifted = logits - logits.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def mean_probs(logits: np.ndarray) -> np.ndarray:
    """``[N, C]``."""
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    return p.mean(0)


def bald(logits: np.ndarray) -> np.ndarray:
    """Entropy of the mean minus the mean entropy."""
    log_p = log_softmax(logits)
    p = np.exp(log_p)
    mean = p.mean(0)
    p *= log_p
    return p.sum(-1).mean(0) - (mean * np.log(mean)).sum(-1)


def entropy(logits: np.ndarray) -> np.ndarray:
    """Of the mean."""
    mean = mean_probs(logits)
    return -(mean * np.log(mean)).sum(-1)


def margin(logits: np.ndarray) -> np.ndarray:
    """Two best by partition."""
    best = np.partition(mean_probs(logits), logits.shape[-1] - 2, axis=-1)
    return best[:, -2] - best[:, -1]


def variation_ratio(logits: np.ndarray) -> np.ndarray:
    """Votes counted by class."""
    votes = logits.argmax(-1)
    return 1 - np.stack([(votes == label).mean(0) for label in range(logits.shape[-1])]).max(0)


FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bald": bald,
    "entropy": entropy,
    "margin": margin,
    "least_confidence": lambda logits: 1 - mean_probs(logits).max(-1),
    "variation_ratio": variation_ratio,
    "mean_std": lambda logits: np.exp(log_softmax(logits)).std(0).mean(-1),
    "variance": lambda logits: logits.var(0).mean(-1),
}


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
