"""EPIG as matrix products beside its broadcast form, in NumPy, in PyTorch and compiled by XLA.

The broadcast form multiplies probabilities of candidates and targets into `[S, N, M, C, C]` and averages over draws,
some targets at a time so that it fits into memory. All agree to 1e-5 nats before anything is timed.

    python experiments/benchmarks/epig.py            # needs torch
    python experiments/benchmarks/epig.py --no-torch

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from baal_jax import heuristics


@dataclasses.dataclass(frozen=True)
class Config:
    """EPIG, four ways."""

    num: int = 10_000
    """Candidates."""

    targets: int = 100
    """Target inputs."""

    draws: int = 100
    """Posterior draws."""

    classes: int = 10
    """Classes."""

    timed_targets: int = 4
    """Targets for which the slow forms are timed; their time is scaled to all of them."""

    torch: bool = True
    """Time PyTorch too."""


def main(config: Config) -> None:
    """Equality on a part, then the times."""
    rng = np.random.default_rng(0)
    logits, targets = (
        (2 * rng.normal(size=(config.draws, num, config.classes))).astype(np.float32)
        for num in (config.num, config.targets)
    )
    given = jnp.asarray(logits), jnp.asarray(targets)
    few = given[0][:, :200], given[1][:, :5]
    expected = numpy_form(*(np.asarray(jax.nn.softmax(x), np.float64) for x in few))
    np.testing.assert_allclose(heuristics.epig(*few), expected, atol=1e-5)
    np.testing.assert_allclose(xla_form(*few), expected, atol=1e-5)
    ours = median(lambda: jax.block_until_ready(heuristics.epig(*given)), 5)
    print(f"baal_jax: {ours:.3f} s for {config.num} candidates, {config.targets} targets")
    xla = median(lambda: jax.block_until_ready(xla_form(*given)), 3)
    print(f"broadcast form, compiled and fused by XLA: {xla:.2f} s, ratio {xla / ours:.1f}")
    p, q = (np.asarray(jax.nn.softmax(x)) for x in (given[0], given[1][:, : config.timed_targets]))
    scale = config.targets / config.timed_targets
    forms: dict[str, Callable[[], Any]] = {"NumPy": lambda: numpy_form(p, q)}
    if config.torch:
        import torch

        tensors = torch.tensor(p), torch.tensor(q)
        np.testing.assert_allclose(torch_form(*(t[:, :200] for t in tensors)), numpy_form(p[:, :200], q), atol=1e-5)
        forms["PyTorch"] = lambda: torch_form(*tensors)
    for name, form in forms.items():
        slow = median(form, 1) * scale
        print(f"broadcast form, {name}: {slow:.1f} s (from {config.timed_targets} targets), ratio {slow / ours:.0f}")


def median(call: Callable[[], Any], repeats: int) -> float:
    """Seconds, without the first call."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def numpy_form(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Probabilities ``[S, N, C]`` and ``[S, M, C]``, a target at a time."""
    total = np.zeros(p.shape[1])
    for m in range(q.shape[1]):
        joint = (p[..., None] * q[:, m, None, None]).mean(axis=0)
        apart = joint.sum(axis=2, keepdims=True) * joint.sum(axis=1, keepdims=True)
        total += (joint * np.log(np.maximum(joint, 1e-30) / np.maximum(apart, 1e-30))).sum(axis=(1, 2))
    return total / q.shape[1]


def torch_form(p: Any, q: Any) -> Any:
    """The same in PyTorch."""
    total = 0.0
    for m in range(q.shape[1]):
        joint = (p[..., None] * q[:, m, None, None]).mean(0)
        apart = joint.sum(2, keepdim=True) * joint.sum(1, keepdim=True)
        total = total + (joint * (joint.clamp_min(1e-30) / apart.clamp_min(1e-30)).log()).sum((1, 2))
    return total / q.shape[1]


@jax.jit
def xla_form(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """The same, compiled: the product over draws is fused into the sum, and never stored."""
    p = jax.nn.softmax(logits)[..., None]

    def one(target: jax.Array) -> jax.Array:
        joint = jnp.mean(p * jax.nn.softmax(target)[:, None, None], axis=0)
        apart = joint.sum(2, keepdims=True) * joint.sum(1, keepdims=True)
        return jnp.sum(joint * jnp.log(jnp.maximum(joint, 1e-30) / jnp.maximum(apart, 1e-30)), axis=(1, 2))

    return jnp.mean(jax.lax.map(one, jnp.moveaxis(target_logits, 1, 0)), axis=0)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
