"""VGG16 on 32×32 images: baal_jax against a naive JAX twin and against Baal (PyTorch), each in a process of its own.

Three measurements: Monte-Carlo dropout prediction, training steps, and a whole round of active learning. The twin is
what one writes first: stock flax layers, and a jitted forward pass for every draw. Baal runs as it comes (replicated
inputs) and tuned (no replication, its caching module). Both get every batch size, and the best one counts. Prints
medians, ratios, the share of the measured rate of matrix products, and checks that all sides compute the same logits
and the same gradients.

    python experiments/benchmarks/vgg_cifar10.py                      # all, on this machine; needs torch and baal
    python experiments/benchmarks/vgg_cifar10.py --sides jax naive    # without them, on a GPU for example

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

TRUNK = 2 * 313_196_544  # operations an image
HEADS = {"original": (4096, 4096), "small": (512,)}
SIDES = ("jax", "naive", "twin", "baal", "baal_tuned")


@dataclasses.dataclass(frozen=True)
class Config:
    """VGG16 on 32×32 images, all sides."""

    sides: tuple[str, ...] = SIDES
    """jax; naive (stock layers, a pass a draw); twin (the same with our layers); baal; baal_tuned."""

    head: Literal["original", "small"] = "original"
    """Dense layers of 4096 and 4096 units, or of 512."""

    map_size: int = 1
    """With 7, Baal's network blows the last map up from 1×1 to 7×7 before the head, as torchvision's does: the same
    function, and a first dense layer 49 times as large."""

    num_samples: tuple[int, ...] = (20,)
    """Monte-Carlo draws."""

    images: int = 512
    """Images predicted by the fast sides; the slow ones predict fewer."""

    batch_sizes: tuple[int, ...] = (32, 128, 256)
    """Of prediction."""

    train_batch: int = 32
    """Images in a training step."""

    parts: tuple[str, ...] = ("predict", "train", "round")
    """What to measure."""

    repeats: int = 3
    """Timed calls after the first, whose median counts."""

    side: str = ""
    """Used by the script itself."""

    weights: Path = Path()
    """Used by the script itself."""


def main(config: Config) -> None:
    """Every side in its own process, then the table."""
    if config.side:
        sides = {"jax": run_jax, "naive": run_twin, "twin": run_twin}
        if config.side not in sides:
            from vgg_cifar10_torch import run_baal as side
        else:
            side = sides[config.side]
        print("RESULT " + json.dumps(side(config)))
        return
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(config, weights=Path(folder) / "weights.npz")
        sides = ("jax", *(side for side in config.sides if side != "jax"))
        found = {side: in_process(dataclasses.replace(config, side=side)) for side in sides}
    ours = found["jax"]
    for side, result in found.items():
        print(f"\n{side}: matrix products at {result['gemm'] / 1e9:.0f} GFLOP/s")
        for part, value in result.items():
            if not isinstance(value, dict):
                continue
            ratio = value["seconds"] / ours[part]["seconds"] if part in ours else float("nan")
            share = value["operations"] / value["seconds"] / result["gemm"]
            print(
                f"  {part:24s} {value['seconds'] * 1e3:10.2f} ms {value['unit']:10s} ratio {ratio:6.2f}   {share:5.0%} "
                f"of the rate  (batch {value['batch']})"
            )
        for what, bound in (("logits", 1e-5), ("gradients", 1e-3)):
            theirs, reference = np.array(result[what]), np.array(ours[what])
            error = np.abs(theirs - reference).max() / np.abs(reference).max()
            print(f"  {what} differ from ours by {error:.1e} of the largest")
            assert error < bound, (side, what, error)


def in_process(config: Config) -> dict:
    """One side's result, from a fresh interpreter."""
    flags = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(config)]
    values = [getattr(config, f.name) for f in dataclasses.fields(config)]
    arguments = []
    for flag, value in zip(flags, values, strict=True):
        arguments += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    output = subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    return json.loads(next(line for line in output.splitlines() if line.startswith("RESULT "))[7:])


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Median of several calls, after one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def entry(seconds: float, operations: float, unit: str, batch: int) -> dict:
    """A line of the result."""
    return {"seconds": seconds, "operations": operations, "unit": unit, "batch": batch}


def best(candidates: list[dict]) -> dict:
    """The fastest batch size."""
    return min(candidates, key=lambda found: found["seconds"])


def operations(config: Config, samples: int, shared: bool) -> float:
    """Operations an image; what comes before the first dropout layer once for all draws where they share it."""
    widths = [512, *HEADS[config.head], 10]
    first, rest = 2 * widths[0] * widths[1], 2 * sum(a * b for a, b in itertools.pairwise(widths[1:]))
    return TRUNK + first + samples * rest if shared else samples * (TRUNK + first + rest)


def images(number: int) -> np.ndarray:
    """Random pixels; speed does not depend on them."""
    return np.random.default_rng(0).normal(size=(number, 32, 32, 3)).astype(np.float32)


def prepare_jax(config: Config, module: Any) -> tuple:
    import jax
    import jax.numpy as jnp

    import baal_jax as baal

    model = baal.from_linen(module)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    rate = 2 * 2048**3 / median_seconds(lambda: jax.block_until_ready(product(square, square)), 15)
    return model, variables, rate


def run_jax(config: Config) -> dict:
    """baal_jax as a user calls it."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import jax
    import jax.numpy as jnp
    import optax
    from models import VGG16

    import baal_jax as baal
    from baal_jax import heuristics, losses, posteriors, selection
    from baal_jax.training import TrainState

    model, variables, rate = prepare_jax(config, VGG16(hidden=HEADS[config.head]))
    save(config, variables.params)
    trainer = baal.trainer(optax.sgd(1e-3, 0.9), losses.cross_entropy, num_epochs=1, batch_size=config.train_batch)
    posterior = posteriors.mc_dropout(model, trainer)
    x = jnp.asarray(images(config.images))
    y = jnp.zeros(config.images, jnp.int32)
    result: dict[str, Any] = {"gemm": rate}
    state = TrainState(variables, (), jnp.int32(0), jnp.float32(0))
    wait = jax.block_until_ready
    few = x[: config.batch_sizes[0]]
    result["logits"] = np.asarray(baal.predict(jax.random.key(1), posterior, state, few, num_samples=2)).tolist()
    result["gradients"] = gradient_norms(VGG16(hidden=HEADS[config.head], rate=0.0), variables.params, x[:32])
    if "predict" in config.parts:
        trunk = jax.jit(lambda v, x: trunk_of(VGG16(hidden=HEADS[config.head]), v, x))
        found = [
            entry(
                median_seconds(lambda b=b: wait(trunk(variables, x[:b])), config.repeats) / b, TRUNK, "an image", b
            )
            for b in config.batch_sizes
        ]  # fmt: skip
        result["trunk forward"] = best(found)
        for samples in config.num_samples:
            found = []
            for b in config.batch_sizes:
                call = lambda b=b, s=samples: wait(  # noqa: E731
                    baal.score(jax.random.key(1), posterior, state, x, heuristics.bald, num_samples=s, batch_size=b)
                )
                seconds = median_seconds(call, config.repeats) / len(x)
                found.append(entry(seconds, operations(config, samples, True), "an image", b))
            result[f"predict, {samples} draws"] = best(found)
    steps = config.images // config.train_batch
    if "train" in config.parts:
        # One program fits any number of labels: the difference of two of them leaves out all that is not a step.
        fits = [
            median_seconds(
                lambda n=n: wait(posterior.fit(jax.random.key(0), baal.Dataset(x, y), jnp.arange(len(x)) < n)),
                config.repeats,
            )
            for n in (2 * config.train_batch, steps * config.train_batch)
        ]
        seconds = (fits[1] - fits[0]) / (steps - 2)
        result["training step"] = entry(seconds, step_operations(config), "a step", config.train_batch)
    if "round" in config.parts:
        samples = config.num_samples[0]
        loop = baal.active_loop(
            posterior, selection.top_k(heuristics.bald), query_size=10, num_samples=samples, batch_size=128
        )  # fmt: skip
        start = loop.init(jax.random.key(0), baal.Dataset(x, y), num_initial=config.images // 4)
        seconds = median_seconds(lambda: wait(loop.step(start, baal.Dataset(x, y))), config.repeats)
        result["round"] = entry(seconds, round_operations(config), "a round", config.train_batch)
    return result


def round_operations(config: Config) -> float:
    """One pass over a quarter of the images, and a prediction of all of them."""
    train = 3 * (config.images // 4) * operations(config, 1, True)
    return train + config.images * operations(config, config.num_samples[0], True)


def step_operations(config: Config) -> float:
    """A training step: forwards, and twice that backwards."""
    return 3 * config.train_batch * operations(config, 1, True)


def trunk_of(module: Any, variables: Any, x: Any) -> Any:
    """The output of the last pooling: what the head reads."""
    import flax.linen as nn

    found = []

    def watch(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        if isinstance(context.module, nn.Dense) and not found:
            found.append(args[0])
        return next_call(*args, **kwargs)

    with nn.intercept_methods(watch):
        module.apply({"params": variables.params}, x, train=False)
    return found[0]


def run_twin(config: Config) -> dict:
    """A jitted pass for every draw, with stock layers (naive) or with ours (twin), and the same draws."""
    sys.path.insert(0, str(Path(__file__).parents[1]))
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import models
    import optax

    from baal_jax import heuristics

    if config.side == "naive":
        models.fast_conv = lambda: jax.lax.conv_general_dilated
        models.max_pool_2x2 = lambda x: nn.max_pool(x, (2, 2), (2, 2))
        models.dropped_dot = lambda *unused: None
    module = models.VGG16(hidden=HEADS[config.head])
    model, variables, rate = prepare_jax(config, module)
    one_pass = jax.jit(model.apply)
    wait = jax.block_until_ready

    def predict(x: Any, samples: int) -> Any:
        return jnp.stack([one_pass(variables, x, draw) for draw in jax.random.split(jax.random.key(1), samples)])

    result: dict[str, Any] = {"gemm": rate}
    x = jnp.asarray(images(config.images))
    result["logits"] = np.asarray(predict(x[: config.batch_sizes[0]], 2)).tolist()
    result["gradients"] = gradient_norms(module.clone(rate=0.0), variables.params, x[:32])
    if "predict" in config.parts:
        slow = config.batch_sizes[:-1] if config.side == "naive" else config.batch_sizes
        for samples in config.num_samples:
            found = []
            for b in slow:
                call = lambda b=b, s=samples: wait(heuristics.bald(predict(x[:b], s)))  # noqa: E731
                found.append(entry(median_seconds(call, 1) / b, operations(config, samples, False), "an image", b))
            result[f"predict, {samples} draws"] = best(found)
    optimizer = optax.sgd(1e-3, 0.9)

    @jax.jit
    def step(params: Any, state: Any, batch: Any, key: Any) -> tuple:
        def loss(params: Any) -> Any:
            logits = module.apply({"params": params}, batch, train=True, rngs={"dropout": key})
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.zeros(len(batch), int)).mean()

        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    start = variables.params, optimizer.init(variables.params)
    batch = x[: config.train_batch]
    if "train" in config.parts:
        seconds = median_seconds(lambda: wait(step(*start, batch, jax.random.key(0))), config.repeats)
        result["training step"] = entry(seconds, step_operations(config), "a step", config.train_batch)
    if "round" in config.parts:
        samples, chunk = config.num_samples[0], 128

        def one_round() -> Any:
            carry = start
            for i in range(config.images // 4 // config.train_batch):
                rows = x[i * config.train_batch : (i + 1) * config.train_batch]
                carry = step(*carry, rows, jax.random.key(i))
            scores = [heuristics.bald(predict(x[i : i + chunk], samples)) for i in range(0, config.images, chunk)]
            return wait(jax.lax.top_k(jnp.concatenate(scores), 10))

        one_round()
        begin = time.perf_counter()
        one_round()
        result["round"] = entry(time.perf_counter() - begin, round_operations(config), "a round", config.train_batch)
    return result


def gradient_norms(module: Any, params: Any, batch: Any) -> list[float]:
    """Of every kernel, with dropout at rest: what a training step follows."""
    import jax
    import jax.numpy as jnp
    import optax

    def loss(params: Any) -> Any:
        logits = module.apply({"params": params}, batch, train=False)
        return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.zeros(len(batch), int)).mean()

    found = jax.jit(jax.grad(loss))(params)
    kernels = [f"Conv_{i}" for i in range(13)] + [f"Dense_{i}" for i in range(len(found) - 13)]
    return [float(jnp.linalg.norm(found[name]["kernel"])) for name in kernels]


def save(config: Config, params: Any) -> None:
    """Weights, and the dropout masks of the first two draws: ``[draws, layers, units]``."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    from models import VGG16

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
            key = jax.random.fold_in(draw, 0)  # as from_linen derives it
            network = VGG16(hidden=HEADS[config.head])
            network.apply({"params": ones}, jnp.zeros((1, 32, 32, 3)), train=True, rngs={"dropout": key})
    arrays = {f"{layer}.{name}": np.asarray(leaf) for layer, part in params.items() for name, leaf in part.items()}
    np.savez(config.weights, **arrays, masks=np.stack(masks).reshape(2, len(HEADS[config.head]), -1))


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
