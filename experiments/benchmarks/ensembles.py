"""What posteriors cost beside one training: an ensemble in one vmap, and SWAG's moments.

Trains ten members of a deep ensemble in one `vmap` and one after the other, which give the same numbers, for a narrow and a
wide dense network and a small convolutional one; and a network with and without SWAG's running moments. Medians,
compilation apart.

    python experiments/benchmarks/ensembles.py

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import baal_jax as baal
from baal_jax import losses, posteriors

sys.path.insert(0, str(Path(__file__).parents[1]))
from models import MLP, SmallCNN


@dataclasses.dataclass(frozen=True)
class Config:
    """Ensembles and SWAG on digits."""

    members: int = 10
    """Of an ensemble."""

    steps: int = 300
    """Adam steps of a training."""

    repeats: int = 5
    """Timed fits of each side, in turn."""


def main(config: Config) -> None:
    """Every network, both ways."""
    device = jax.devices()[0]
    print(f"{device.device_kind}, {config.members} members, {config.steps} steps of 32")
    for name, module, image in (
        ("dense 64-32-10", MLP(hidden=(32,)), False),
        ("dense 64-128-128-10", MLP(hidden=(128, 128)), False),
        ("convolutional", SmallCNN(channels=(8, 16), hidden=64), True),
    ):
        train = jax.tree.map(jnp.asarray, baal.data.digits(image=image)[0])
        labelled = jnp.arange(len(train.targets)) < 200
        model = baal.from_linen(module)
        trainer = baal.trainer(optax.adam(1e-3), losses.cross_entropy, num_steps=config.steps, batch_size=32)
        together, apart = (
            posteriors.deep_ensemble(model, trainer, num_members=config.members, batch_size=size) for size in (None, 1)
        )
        ratio = compare(together.fit, apart.fit, train, labelled, config.repeats)
        alone = posteriors.mc_dropout(model, trainer).fit
        moments = posteriors.swag(model, trainer).fit
        share = compare(moments, alone, train, labelled, config.repeats, equal=False) - 1
        print(f"{name}: ensemble in one vmap ÷ sequential {ratio:.2f}; moments of SWAG {share:+.1%} of a training")


def compare(
    first: Callable, second: Callable, train: baal.Dataset, labelled: jax.Array, repeats: int, equal: bool = True
) -> float:
    """Median time of the first over that of the second, called in turn."""
    fits = [jax.jit(fit) for fit in (first, second)]
    states = [jax.block_until_ready(fit(jax.random.key(0), train, labelled)) for fit in fits]
    if equal:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2), *map(numbers, states))
    times: list[list[float]] = [[], []]
    for _ in range(repeats):
        for side, fit in zip(times, fits, strict=True):
            begin = time.perf_counter()
            jax.block_until_ready(fit(jax.random.key(0), train, labelled))
            side.append(time.perf_counter() - begin)
    return float(np.median(times[0]) / np.median(times[1]))


def numbers(state: Any) -> list[Any]:
    """Parameters, without keys."""
    return [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
