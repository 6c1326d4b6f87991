"""VGG16 on 32×32 images: baal_jax against a naive JAX twin and against Baal (PyTorch), each in a process of its own.

Three measurements: Monte-Carlo dropout prediction, training steps, and a whole round of active learning. The twin is
what one writes first: a jitted forward pass for every draw, with what XLA makes of the layers. Baal runs as it comes
(replicated inputs) and tuned (no replication, its caching module). Both get every batch size, and the best one counts.
Prints medians, ratios, the share of the measured rate of matrix products, and checks that all sides compute the same
logits and the same gradients.

    python experiments/benchmarks/vgg_cifar10.py                      # all, on this machine; needs torch and baal
    python experiments/benchmarks/vgg_cifar10.py --sides jax naive    # without them, on a GPU for example

Prediction with 20 draws takes 5.12 ms an image; the naive twin takes 111 times, Baal 16.1 and tuned 2.75 times as long.
Two cores of an AMD EPYC with AVX-512 (docs/benchmarks.md, with the commands).
"""

from __future__ import annotations

import dataclasses
import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from measuring import Side, hand_over, in_process, matmul_rate, median_seconds
from models import VGG16

import baal_jax as baal
from baal_jax import heuristics, losses, posteriors, selection
from baal_jax._util import windows
from baal_jax.training import TrainState

TRUNK = 2 * 313_196_544  # operations an image
HEADS = {"original": (4096, 4096), "small": (512,)}


@dataclasses.dataclass(frozen=True)
class Config:
    """VGG16 on 32×32 images, all sides.

    Attributes:
        sides: jax; naive (XLA's layers, a pass a draw); twin (the same with our forms of them); baal; baal_tuned.
        head: dense layers of 4096 and 4096 units, or of 512.
        map_size: with 7, Baal's network blows the last map up from 1×1 to 7×7 before the head, as torchvision's does:
            the same function, and a first dense layer 49 times as large.
        num_samples: Monte-Carlo draws.
        images: images predicted by the fast sides; the slow ones predict fewer.
        batch_sizes: of prediction.
        train_batch: images in a training step.
        parts: what to measure.
        repeats: timed calls after the first, whose median counts.
        side: used by the script itself.
        weights: used by the script itself.
    """

    sides: tuple[str, ...] = ("jax", "naive", "twin", "baal", "baal_tuned")
    head: Literal["original", "small"] = "original"
    map_size: int = 1
    num_samples: tuple[int, ...] = (20,)
    images: int = 512
    batch_sizes: tuple[int, ...] = (32, 128, 256)
    train_batch: int = 32
    parts: tuple[str, ...] = ("predict", "train", "round")
    repeats: int = 3
    side: str = ""
    weights: Path = Path()


def main(config: Config) -> None:
    """Every side in its own process, then the table."""
    if config.side:
        hand_over(measure(config, make_side(config)))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, weights=Path(folder) / "weights.npz")
        sides = ("jax", *(side for side in config.sides if side != "jax"))
        measured = {side: in_process(__file__, dataclasses.replace(config, side=side)) for side in sides}
    ours = measured["jax"]
    for side, theirs in measured.items():
        print(f"\n{side}: matrix products at {theirs['gemm'] / 1e9:.0f} GFLOP/s")
        for part, (seconds, count, unit, batch) in theirs["parts"].items():
            ratio = seconds / ours["parts"][part][0] if part in ours["parts"] else float("nan")
            print(
                f"  {part:24s} {seconds * 1e3:10.2f} ms {unit:10s} ratio {ratio:6.2f}   "
                f"{count / seconds / theirs['gemm']:5.0%} of the rate  (batch {batch})"
            )
        for what, bound in (("logits", 1e-5), ("gradients", 1e-3)):
            values, reference = np.array(theirs[what]), np.array(ours[what])
            error = np.abs(values - reference).max() / np.abs(reference).max()
            print(f"  {what} differ from ours by {error:.1e} of the largest")
            assert error < bound, (side, what, error)


def make_side(config: Config) -> Side:
    """The side that this process measures."""
    x = np.random.default_rng(0).normal(size=(config.images, 32, 32, 3)).astype(np.float32)
    if config.side == "jax":
        return jax_side(config, jnp.asarray(x))
    if config.side in ("naive", "twin"):
        return twin_side(config, jnp.asarray(x))
    from vgg_cifar10_torch import baal_side

    return baal_side(config, HEADS[config.head], x)


def measure(config: Config, side: Side) -> dict:
    """Seconds, operations, unit and batch size of every part, and what must be equal on all sides."""
    parts = {}
    if "predict" in config.parts:
        for samples in config.num_samples:
            times = {batch: side.predict(batch, samples) for batch in config.batch_sizes}
            seconds, batch = min((seconds, batch) for batch, seconds in times.items() if seconds is not None)
            count = operations(config, samples, side.shares_trunk)
            parts[f"predict, {samples} draws"] = (seconds, count, "an image", batch)
    step = 3 * operations(config, 1, True)  # forwards, and twice that backwards
    if "train" in config.parts:
        for name, seconds in side.train().items():
            parts[name] = (seconds, config.train_batch * step, "a step", config.train_batch)
    if "round" in config.parts:
        # One pass over a quarter of the images, and a prediction of all of them.
        whole = config.images // 4 * step + config.images * operations(config, config.num_samples[0], True)
        parts["round"] = (side.round(), whole, "a round", config.train_batch)
    return {"gemm": side.gemm, "logits": side.logits, "gradients": side.gradients, "parts": parts}


def operations(config: Config, samples: int, shared: bool) -> float:
    """Operations an image; what comes before the first dropout layer once for all draws where they share it."""
    widths = [512, *HEADS[config.head], 10]
    first, rest = 2 * widths[0] * widths[1], 2 * sum(a * b for a, b in itertools.pairwise(widths[1:]))
    return TRUNK + first + samples * rest if shared else samples * (TRUNK + first + rest)


def jax_side(config: Config, x: jax.Array) -> Side:
    """baal_jax as a user calls it."""
    network = VGG16(hidden=HEADS[config.head])
    model = baal.from_linen(network)
    variables = model.init(jax.random.key(0), x[:1])
    save(config, variables.params)
    trainer = baal.trainer(optax.sgd(1e-3, 0.9), losses.cross_entropy, num_epochs=1, batch_size=config.train_batch)
    posterior = posteriors.mc_dropout(model, trainer)
    state = TrainState(variables, (), jnp.int32(0), jnp.float32(0))
    data, few = baal.Dataset(x, jnp.zeros(len(x), jnp.int32)), x[: config.batch_sizes[0]]

    def predict(batch: int, samples: int) -> float:
        options = {"num_samples": samples, "batch_size": batch}
        call = lambda: baal.score(jax.random.key(1), posterior, state, x, heuristics.bald, **options)  # noqa: E731
        return median_seconds(call, config.repeats) / len(x)

    def train() -> dict[str, float]:
        # One program fits any number of labels: the difference of two of them leaves out all that is not a step.
        steps = len(x) // config.train_batch

        def seconds(count: int) -> float:
            labelled = jnp.arange(len(x)) < count * config.train_batch
            return median_seconds(lambda: posterior.fit(jax.random.key(0), data, labelled), config.repeats)

        return {"training step": (seconds(steps) - seconds(2)) / (steps - 2)}

    def one_round() -> float:
        acquisition, samples = selection.top_k(heuristics.bald), config.num_samples[0]
        loop = baal.active_loop(posterior, acquisition, query_size=10, num_samples=samples, batch_size=128)
        start = loop.init(jax.random.key(0), data, num_initial=len(x) // 4)
        return median_seconds(lambda: loop.step(start, data), config.repeats)

    logits = np.asarray(baal.predict(jax.random.key(1), posterior, state, few, num_samples=2)).tolist()
    gradients = gradient_norms(model, variables, x[:32])
    return Side(matmul_rate(), logits, gradients, predict, train, one_round, shares_trunk=True)


def twin_side(config: Config, x: jax.Array) -> Side:
    """A jitted pass for every draw, with XLA's layers (naive) or with our forms of them (twin), and the same draws."""
    if config.side == "naive":
        import models

        windows.rules = dict
        models.dropped_dot = lambda *unused: None
    network = VGG16(hidden=HEADS[config.head])
    model = baal.from_linen(network)
    variables = model.init(jax.random.key(0), x[:1])
    one_pass, optimizer = jax.jit(model.apply), optax.sgd(1e-3, 0.9)
    start = variables.params, optimizer.init(variables.params)

    def draws(x: jax.Array, samples: int) -> jax.Array:
        return jnp.stack([one_pass(variables, x, draw) for draw in jax.random.split(jax.random.key(1), samples)])

    def predict(batch: int, samples: int) -> float | None:
        if config.side == "naive" and batch == config.batch_sizes[-1]:
            return None  # minutes, and never the best
        return median_seconds(lambda: heuristics.bald(draws(x[:batch], samples)), 1) / batch

    @jax.jit
    def step(params: Any, state: Any, batch: jax.Array, key: jax.Array) -> tuple:
        loss = lambda params: mean_loss(model.train(variables._replace(params=params), batch, key)[0])  # noqa: E731
        gradient = jax.grad(loss)(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def train() -> dict[str, float]:
        call = lambda: step(*start, x[: config.train_batch], jax.random.key(0))  # noqa: E731
        return {"training step": median_seconds(call, config.repeats)}

    def one_round() -> jax.Array:
        carry, samples = start, config.num_samples[0]
        for i, first in enumerate(range(0, len(x) // 4, config.train_batch)):
            carry = step(*carry, x[first : first + config.train_batch], jax.random.key(i))
        scores = [heuristics.bald(draws(x[i : i + 128], samples)) for i in range(0, len(x), 128)]
        return jax.lax.top_k(jnp.concatenate(scores), 10)[1]

    logits = np.asarray(draws(x[: config.batch_sizes[0]], 2)).tolist()
    gradients = gradient_norms(model, variables, x[:32])
    return Side(matmul_rate(), logits, gradients, predict, train, lambda: median_seconds(one_round, 1))


def mean_loss(logits: jax.Array) -> jax.Array:
    """Of a batch whose labels are all zero."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.zeros(len(logits), int)).mean()


def gradient_norms(model: baal.Model, variables: Any, batch: jax.Array) -> list[float]:
    """Of every kernel, without dropout: what a training step follows."""
    loss = lambda params: mean_loss(model.deterministic(variables._replace(params=params), batch))  # noqa: E731
    gradients = jax.jit(jax.grad(loss))(variables.params)
    kernels = [f"Conv_{i}" for i in range(13)] + [f"Dense_{i}" for i in range(len(gradients) - 13)]
    return [float(jnp.linalg.norm(gradients[name]["kernel"])) for name in kernels]


def save(config: Config, params: Any) -> None:
    """Weights, and the dropout masks of the first two draws: ``[draws, layers, units]``."""
    masks = []

    def watch(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        outputs = next_call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
            masks.append(np.asarray(outputs[0]))
        return outputs

    # Biases of one and kernels of zero: what goes into a dropout layer is one, and what comes out its mask.
    ones = jax.tree.map(jnp.zeros_like, params)
    for i, width in enumerate(HEADS[config.head]):
        ones[f"Dense_{i}"]["bias"] = jnp.ones(width)
    with nn.intercept_methods(watch):
        for draw in jax.random.split(jax.random.key(1), 2):
            rngs = {"dropout": jax.random.fold_in(draw, 0)}  # as from_linen derives it
            network = VGG16(hidden=HEADS[config.head])
            network.apply({"params": ones}, jnp.zeros((1, 32, 32, 3)), train=True, rngs=rngs)
    arrays = {f"{layer}.{name}": np.asarray(leaf) for layer, part in params.items() for name, leaf in part.items()}
    np.savez(config.weights, **arrays, masks=np.stack(masks).reshape(2, len(HEADS[config.head]), -1))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
