"""EPIG as matrix products beside its broadcast form, in NumPy, in PyTorch and compiled by XLA.

The broadcast form multiplies probabilities of candidates and targets into `[S, N, M, C, C]` and averages over draws,
some targets at a time so that it fits into memory. All agree to 1e-5 nats before anything is timed.

    python experiments/benchmarks/epig.py            # needs torch
    python experiments/benchmarks/epig.py --no-torch

0.385 s; the broadcast form takes 59 times as long in PyTorch, 43 in NumPy, 6.1 compiled by XLA. Two cores of an AMD
EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import median_seconds

from baal_jax import heuristics


@dataclasses.dataclass(frozen=True)
class Config:
    """EPIG, four ways.

    Attributes:
        num: candidates.
        targets: target inputs.
        draws: posterior samples.
        classes: how many.
        timed_targets: targets for which the slow forms are timed; their time is scaled to all of them.
        torch: time PyTorch too.
    """

    num: int = 10_000
    targets: int = 100
    draws: int = 100
    classes: int = 10
    timed_targets: int = 4
    torch: bool = True


def main(config: Config) -> None:
    """Equality on a part, then the times."""
    rng = np.random.default_rng(0)
    shapes = ((config.draws, num, config.classes) for num in (config.num, config.targets))
    logits, targets = (jnp.asarray(2 * rng.normal(size=shape), jnp.float32) for shape in shapes)
    few = logits[:, :200], targets[:, :5]
    expected = mean_nats(*(np.asarray(jax.nn.softmax(x), np.float64) for x in few), np.log)
    np.testing.assert_allclose(heuristics.epig(*few), expected, atol=1e-5)
    np.testing.assert_allclose(xla_form(*few), expected, atol=1e-5)
    ours = median_seconds(lambda: heuristics.epig(logits, targets), 5)
    print(f"baal_jax: {ours:.3f} s for {config.num} candidates, {config.targets} targets")
    xla = median_seconds(lambda: xla_form(logits, targets), 3)
    print(f"broadcast form, compiled and fused by XLA: {xla:.2f} s, ratio {xla / ours:.1f}")
    p, q = (np.asarray(jax.nn.softmax(x)) for x in (logits, targets[:, : config.timed_targets]))
    scale = config.targets / config.timed_targets
    forms: dict[str, Callable[[], Any]] = {"NumPy": lambda: mean_nats(p, q, np.log)}
    if config.torch:
        import torch

        tensors = torch.tensor(p), torch.tensor(q)
        forms["PyTorch"] = lambda: mean_nats(*tensors, torch.log)
        np.testing.assert_allclose(forms["PyTorch"](), forms["NumPy"](), atol=1e-5)
    for name, form in forms.items():
        slow = median_seconds(form, 1) * scale
        print(f"broadcast form, {name}: {slow:.1f} s (from {config.timed_targets} targets), ratio {slow / ours:.0f}")


def nats(p: Any, q: Any, log: Callable) -> Any:
    """``[N]``, from probabilities of candidates ``[S, N, C]`` and of one target ``[S, C]``, in any of the libraries."""
    joint = (p[..., None] * q[:, None, None]).mean(0)
    apart = joint.sum(2)[..., None] * joint.sum(1)[:, None]
    return (joint * log(joint.clip(1e-30) / apart.clip(1e-30))).sum((1, 2))


def mean_nats(p: Any, q: Any, log: Callable) -> Any:
    """``[N]``, over the targets of ``[S, M, C]``, one at a time."""
    return sum(nats(p, q[:, m], log) for m in range(q.shape[1])) / q.shape[1]


@jax.jit
def xla_form(logits: jax.Array, target_logits: jax.Array) -> jax.Array:
    """The same, compiled: the product over draws is fused into the sum, and never stored."""
    p, q = jax.nn.softmax(logits), jnp.moveaxis(jax.nn.softmax(target_logits), 1, 0)
    return jnp.mean(jax.lax.map(lambda target: nats(p, target, jnp.log), q), axis=0)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
