"""How time and memory grow with N (pool), S (draws), C (classes), Q (query) and D (features), and what theory gives.

Each operation is compiled and timed at sizes over two decades along one axis, the other sizes fixed. The exponent is
the slope of a line through the upper part in log-log. Time on a CPU is that of its cores, which other work on the
machine hardly changes; memory is what the compiled program needs beside arguments and outputs. What grows faster than
its theory by more than .1 is marked.

    python experiments/benchmarks/growth.py
    python experiments/benchmarks/growth.py --which typiclust k_center --repeats 9
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from compilation import Net

import baal_jax as baal
from baal_jax import Predictions, heuristics, pool, posteriors, selection

CLOCK = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
BASE = {"N": 10_000, "S": 20, "C": 10, "Q": 20, "D": 32}
LARGEST = {"N": 100_000, "S": 400, "C": 200, "Q": 1_000, "D": 1_000}

# Exponents of time along each axis, where that axis is large; of fewer examples or labels where the work is more.
THEORY: dict[str, dict[str, float]] = {
    "pool.label_randomly": {"N": 1, "Q": 0},
    "bald": {"N": 1, "S": 1, "C": 1},
    "margin": {"N": 1, "S": 1, "C": 1},
    "epig": {"N": 1, "S": 1, "C": 2},  # N M C² S, with M targets
    "top_k": {"N": 1, "Q": 0},
    "power": {"N": 1, "Q": 0},
    "softrank": {"N": 1.1, "Q": 0},  # N log N, between 10⁴ and 10⁵
    "batch_bald": {"N": 1, "S": 1, "Q": 1},  # N S C configurations for each pick, of which there are at most so many
    "k_center": {"N": 1, "Q": 1, "D": 1},
    "badge": {"N": 1, "Q": 1, "D": 1, "C": 1},
    "lcmd": {"N": 1, "Q": 1, "D": 1},
    "max_det": {"N": 1, "Q": 2, "D": 2},  # N Q (Q + D), and N D² to condition on labels
    "max_diag": {"N": 1, "Q": 0, "D": 1},
    "bait": {"N": 1, "Q": 1, "D": 2},
    "frank_wolfe": {"N": 1, "Q": 1, "D": 1},
    "batch_bald_gaussian": {"N": 1, "S": 1, "Q": 2},  # N Q (Q + S)
    "k_means": {"N": 1, "Q": 1, "D": 1},  # an iteration; more examples take more of them to settle
    "cluster_margin": {"N": 1, "Q": 2, "D": 1},  # clusters of a multiple of Q candidates: Q² D, and a sort of N
    "typiclust": {"N": 2, "Q": 1, "D": 1},  # neighbours in N² D, clusters in N Q D
    "prob_cover": {"N": 2, "Q": 1, "D": 1},
    "predict": {"N": 1, "S": 1, "D": 1},
    "score": {"N": 1, "S": 1, "D": 1},
    "round": {"N": 1, "S": 1, "Q": 0, "D": 1},
}
MEMORY = {("epig", "C"): 2.0, ("bait", "D"): 2.0}  # elsewhere no more than linear
FIXED: dict[str, dict[str, int]] = {  # sizes other than BASE
    "pool.label_randomly": {"N": 1_000_000}, "top_k": {"N": 1_000_000}, "power": {"N": 1_000_000},
    "max_diag": {"N": 100_000},
    "epig": {"N": 2_000, "S": 100}, "batch_bald": {"N": 1_000, "Q": 5}, "bait": {"N": 2_000, "Q": 10},
    "cluster_margin": {"N": 20_000}, "typiclust": {"N": 4_000}, "prob_cover": {"N": 4_000}, "predict": {"N": 4_000},
    "score": {"N": 4_000}, "round": {"N": 4_000},
}  # fmt: skip
UP_TO: dict[tuple[str, str], int] = {  # where the work is less or more
    ("pool.label_randomly", "N"): 3_000_000, ("top_k", "N"): 3_000_000, ("power", "N"): 3_000_000,
    ("typiclust", "N"): 20_000, ("prob_cover", "N"): 20_000, ("batch_bald", "N"): 20_000, ("batch_bald", "S"): 200,
    ("batch_bald", "Q"): 40, ("bait", "N"): 10_000, ("bait", "D"): 250, ("bait", "Q"): 60, ("max_det", "Q"): 500,
    ("batch_bald_gaussian", "Q"): 500, ("epig", "N"): 30_000, ("epig", "C"): 60, ("k_means", "N"): 50_000,
    ("k_means", "Q"): 300, ("typiclust", "Q"): 300, ("cluster_margin", "Q"): 200,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured.

    Attributes:
        which: names, or parts of them; all by default.
        points: sizes along an axis.
        share: of the largest sizes, for a quick look.
        repeats: calls of each program at least, of which the median counts.
        picture: where to draw the curves; "" for nowhere.
    """

    which: tuple[str, ...] = ()
    points: int = 5
    share: float = 1.0
    repeats: int = 3
    picture: str = ""


class Curve(NamedTuple):
    """One operation along one axis."""

    name: str
    axis: str
    sizes: np.ndarray
    seconds: np.ndarray
    memory: np.ndarray

    def exponents(self) -> tuple[float, float]:
        """Of time and of memory, over the upper part."""
        upper = slice(len(self.sizes) // 2, None)
        slope = lambda values: float(np.polyfit(*np.log((self.sizes[upper], values[upper])), 1)[0])  # noqa: E731
        return slope(self.seconds), slope(np.maximum(self.memory, 4096))


def main(config: Config) -> list[Curve]:
    """The table, one line when it is measured, and the picture."""
    print("| operation | of | sizes | ms | time, theory | time | memory, at most | memory | |")
    curves = []
    for name, axes in THEORY.items():
        if config.which and not any(part in name for part in config.which):
            continue
        for axis, theory in axes.items():
            curve = measure(name, axis, config)
            curves.append(curve)
            (time, memory), bound = curve.exponents(), MEMORY.get((name, axis), 1.0)
            mark = "time " * (time > theory + 0.1) + "memory" * (memory > bound + 0.1)
            sizes = f"{curve.sizes[0]}–{curve.sizes[-1]}"
            line = f"{1e3 * curve.seconds[-1]:.2f} | {theory:g} | {time:.2f} | {bound:g} | {memory:.2f} | {mark}"
            print(f"| {name} | {axis} | {sizes} | {line} |", flush=True)
    if config.picture:
        draw(curves, config.picture)
    return curves


def measure(name: str, axis: str, config: Config) -> Curve:
    """Times and temporary memory along an axis."""
    fixed = BASE | FIXED.get(name, {})
    largest = max(int(config.share * UP_TO.get((name, axis), LARGEST[axis])), 12)
    sizes = np.unique(np.geomspace(max(largest / 100, 3), largest, config.points).astype(int))
    seconds, memory = [], []
    for size in sizes:
        shape = {key: value if key == axis else max(int(config.share * value), 3) for key, value in fixed.items()}
        shape[axis] = int(size)
        shape["N"] = max(shape["N"], 4 * shape["Q"])
        function, arguments = operation(name, shape)
        compiled = jax.jit(function).lower(*arguments).compile()
        call = lambda compiled=compiled, arguments=arguments: jax.block_until_ready(compiled(*arguments))  # noqa: E731
        call()
        runs: list[float] = []
        while len(runs) < config.repeats or (sum(runs) < 0.2 and len(runs) < 50):
            begin = CLOCK()
            call()
            runs.append(CLOCK() - begin)
        seconds.append(float(np.median(runs)))
        memory.append(compiled.memory_analysis().temp_size_in_bytes)
    return Curve(name, axis, sizes, np.array(seconds), np.array(memory))


def operation(name: str, shape: dict[str, int]) -> tuple[Callable, tuple]:
    """A function of arrays alone, and the arrays."""
    num, draws, classes, query, width = (shape[axis] for axis in "NSCQD")
    rng, key = np.random.default_rng(0), jax.random.key(0)

    def normal(*sizes: int) -> jax.Array:
        return jnp.asarray(rng.standard_normal(sizes, np.float32))

    available = jnp.arange(num) >= min(query, num // 4)
    if name == "pool.label_randomly":
        return lambda key, state: pool.label_randomly(key, state, query), (key, pool.init(num))
    if name in ("predict", "score", "round"):
        return network(name, shape, normal(num, width))
    if name in heuristics.REGISTRY:
        return heuristics.REGISTRY[name], (2 * normal(draws, num, classes),)
    if name == "epig":
        return heuristics.epig, (2 * normal(draws, num, classes), 2 * normal(draws, 100, classes))
    acquisition = selection.REGISTRY[name]()
    # Clouds, as representations of classes are.
    features = normal(num, width) + 3 * normal(20, width)[rng.integers(0, 20, num)]
    few = draws if name.startswith("batch_bald") else 2
    summary = jax.jit(acquisition.summarise)(Predictions(2 * normal(few, num, classes), features))
    select = lambda *given: acquisition.select(*given[:3], query, given[3])  # noqa: E731
    return select, (key, summary, available, ~available)


def network(name: str, shape: dict[str, int], inputs: jax.Array) -> tuple[Callable, tuple]:
    """Prediction, scores and a whole round of a network with dropout."""
    trainer = baal.trainer(optax.adam(1e-3), baal.losses.cross_entropy, num_steps=20, batch_size=32)
    posterior = posteriors.mc_dropout(baal.from_linen(Net()), trainer)
    acquisition, key = selection.top_k(heuristics.bald), jax.random.key(0)
    options: dict[str, Any] = {"num_samples": shape["S"], "batch_size": 256}
    loop = baal.active_loop(posterior, acquisition, query_size=shape["Q"], **options)
    data = baal.Dataset(inputs, jnp.arange(len(inputs), dtype=jnp.int32) % 10)
    state = loop.init(key, data, num_initial=min(20, len(inputs) // 4))
    if name == "round":
        return loop.step, (state, data)
    score = (heuristics.bald,) if name == "score" else ()
    call = baal.score if name == "score" else baal.predict
    return lambda fitted, x: call(key, posterior, fitted, x, *score, **options), (state.posterior, inputs)


def draw(curves: list[Curve], path: str) -> None:
    """Time against size, a panel for each axis."""
    import matplotlib.pyplot as plt

    axes = [axis for axis in BASE if any(curve.axis == axis for curve in curves)]
    figure, places = plt.subplots(1, len(axes), figsize=(3.2 * len(axes), 5), squeeze=False)
    for axis, place in zip(axes, places[0], strict=True):
        for turn, curve in enumerate(curve for curve in curves if curve.axis == axis):
            style = ("-", "--", ":")[turn // 10]
            place.loglog(curve.sizes, 1e3 * curve.seconds, style, marker=".", label=curve.name, linewidth=1)
        place.set(xlabel=axis, ylabel="ms", title=f"time against {axis}")
        place.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.15), frameon=False)
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
