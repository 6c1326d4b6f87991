"""Cost of a deep ensemble in one vmap and of SWAG's moments, beside one training.

Trains ten members of a deep ensemble in one `vmap` and one after the other, which give the same numbers, for a narrow
and a wide dense network and a small convolutional one; and a network with and without SWAG's running moments. Medians,
compilation apart.

    python experiments/benchmarks/ensembles.py

One vmap ÷ one after the other: .81 (narrow), .65 (wide), .94 (convolutional); SWAG's moments: 12.8, 3.2 and 2.9 % of a
training. Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from measuring import timed
from models import MLP, SmallCNN

import baal_jax as baal
from baal_jax import losses, posteriors


@dataclasses.dataclass(frozen=True)
class Config:
    """Ensembles and SWAG on digits.

    Attributes:
        members: of an ensemble.
        steps: Adam steps of a training.
        repeats: timed fits of each side, in turn.
    """

    members: int = 10
    steps: int = 300
    repeats: int = 5


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
    calls = [lambda fit=fit: fit(jax.random.key(0), train, labelled) for fit in fits]
    leaves = [jax.tree.leaves(jax.block_until_ready(call())) for call in calls]
    for a, b in zip(*leaves, strict=True) if equal else ():
        if jnp.issubdtype(a.dtype, jnp.floating):  # not the keys
            np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2)
    seconds = np.median([[timed(call)[1] for call in calls] for _ in range(repeats)], axis=0)
    return float(seconds[0] / seconds[1])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
