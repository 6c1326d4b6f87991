"""Seconds until the first number: compilation of a fit, a step and a run beside a plain loop of flax and optax.

The plain side is what somebody would write who needs no active learning: the same network and optimizer, as many steps
in one `lax.scan`, random batches. All are traced, lowered and compiled in one process, in turn, and the medians count.

    python experiments/benchmarks/compilation.py
    python experiments/benchmarks/compilation.py --network transformer
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection


@dataclasses.dataclass(frozen=True)
class Config:
    """What is compiled.

    Attributes:
        network: that of the README, or blocks of a transformer on rows of pixels.
        blocks: of the transformer.
        steps: of a fit.
        repeats: compilations of each program.
    """

    network: Literal["readme", "transformer"] = "readme"
    blocks: int = 4
    steps: int = 300
    repeats: int = 5


class Net(nn.Module):
    """The network of the README."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, 64] -> [B, 10]``."""
        x = nn.relu(nn.Dense(256)(x))
        return nn.Dense(10)(nn.Dropout(0.5, deterministic=not train)(x))


class Transformer(nn.Module):
    """Blocks of attention and dense layers over the eight rows of an image."""

    blocks: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, 64] -> [B, 10]``."""
        x = nn.Dense(64)(x.reshape(x.shape[0], 8, 8))
        for _ in range(self.blocks):
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(4, dropout_rate=0.1, deterministic=not train)(y)
            y = nn.gelu(nn.Dense(256)(nn.LayerNorm()(x)))
            x = x + nn.Dropout(0.1, deterministic=not train)(nn.Dense(64)(y))
        return nn.Dense(10)(x.mean(axis=1))


def main(config: Config) -> None:
    """Medians of trace, lowering and compilation, and ratios to the plain side."""
    net = Net() if config.network == "readme" else Transformer(config.blocks)
    train, test = baal.data.digits()
    train, test = (jax.tree.map(jnp.asarray, part) for part in (train, test))
    key, optimizer = jax.random.key(0), optax.adam(1e-3)
    trainer = baal.trainer(optimizer, loss=baal.losses.cross_entropy, num_steps=config.steps, batch_size=32)

    def make() -> baal.ActiveLoop:
        posterior = posteriors.mc_dropout(baal.from_linen(net), trainer)
        return baal.active_loop(posterior, selection.top_k(heuristics.bald), query_size=10, num_samples=20)

    def loss(params: Any, inputs: jax.Array, targets: jax.Array, key: jax.Array) -> jax.Array:
        logits = net.apply(params, inputs, True, rngs={"dropout": key})
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def update(carry: Any, key: jax.Array, inputs: jax.Array, targets: jax.Array) -> Any:
        params, state = carry
        key_rows, key_dropout = jax.random.split(key)
        rows = jax.random.randint(key_rows, (32,), 0, len(inputs))
        gradients = jax.grad(loss)(params, inputs[rows], targets[rows], key_dropout)
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    def plain(key: jax.Array, inputs: jax.Array, targets: jax.Array) -> Any:
        key_init, key_steps = jax.random.split(key)
        params = net.init(key_init, inputs[:1], False)
        step = lambda carry, key: (update(carry, key, inputs, targets), None)  # noqa: E731
        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(key_steps, config.steps))[0]

    state = make().init(key, train, num_initial=20)
    labelled = baal.pool.labelled(state.pool)
    params = jax.eval_shape(lambda key: net.init(key, train.inputs[:1], False), key)
    carry = params, jax.eval_shape(optimizer.init, params)
    programs: dict[str, Callable[[], tuple]] = {
        "plain scan": lambda: (plain, key, train.inputs, train.targets),
        "plain step": lambda: (update, carry, key, train.inputs, train.targets),
        "fit": lambda: (make().posterior.fit, key, train, labelled),
        "step": lambda: (make().step, state, train),
        "run": lambda: (run_of(make()), state, train, test),
    }
    seconds = {name: [] for name in programs}
    for turn in range(config.repeats + 1):
        for name, program in programs.items():
            call, *arguments = program()
            begin = time.process_time()
            jax.jit(lambda *given, call=call: call(*given)).lower(*arguments).compile()
            if turn:  # the first one warms the process up
                seconds[name].append(time.process_time() - begin)
    medians = {name: float(np.median(each)) for name, each in seconds.items()}
    print("| program | s | / plain scan | / plain step |")
    for name, median in medians.items():
        print(
            f"| {name} | {median:.2f} | {median / medians['plain scan']:.2f} | {median / medians['plain step']:.2f} |"
        )


def run_of(loop: baal.ActiveLoop) -> Callable:
    """Three rounds, evaluated."""
    return lambda state, train, test: baal.run(loop, None, train, test, state=state, num_rounds=3)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
