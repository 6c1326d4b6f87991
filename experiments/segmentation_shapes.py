"""Active learning for semantic segmentation: BALD per pixel, reduced to a score per image, on synthetic shapes.

Nearly all images of the pool are noise and clutter, some hold a disc or a square, few a triangle. Labelling at random
spends its labels on nothing. BALD scores every pixel, and a reduction over the image makes one score of them: the mean
asks for images with much to learn, the maximum for those with a single doubtful spot. Prints the statistics; the folder
has `results.csv` and `report.html`. Resumes where it was stopped.

    python experiments/segmentation_shapes.py
    python experiments/segmentation_shapes.py --seeds 2 --rounds 3 --pool 200        # a look

Final mean IoU: random .310, BALD .349 (mean and maximum alike), entropy .348. Two CPU cores, 13 min beside other work
(docs/studies.md).
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import harness
import jax
import jax.numpy as jnp
import numpy as np
import tyro
from models import conv

import baal_jax as baal
from baal_jax import heuristics, metrics, posteriors, selection, study
from baal_jax.study import report, statistics
from baal_jax.study.results import Results

CLASSES = ["background", "disc", "square", "triangle"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Training, harness.Rounds):
    """BALD with a spatial reduction on images of shapes.

    Attributes:
        pool: images to choose from.
        test: images held out; every other one holds a shape.
    """

    pool: int = 400
    test: int = 200
    seeds: int = 10
    rounds: int = 8
    num_initial: int = 10
    num_samples: int = 10
    num_steps: int = 150
    batch_size: int = 16
    learning_rate: float = 3e-3
    out: Path = Path("results/segmentation")


class Segmenter(nn.Module):
    """A small U-Net: one level down, one up, dropout on both."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """``[B, H, W, 1] -> [B, H, W, 4]``."""
        fine = nn.relu(conv(12)(x))
        coarse = nn.relu(conv(24)(nn.max_pool(fine, (2, 2), (2, 2))))
        coarse = nn.relu(conv(24)(nn.Dropout(0.3, deterministic=not train)(coarse)))
        up = jnp.repeat(jnp.repeat(coarse, 2, axis=1), 2, axis=2)
        both = nn.Dropout(0.3, deterministic=not train)(jnp.concatenate([fine, up], axis=-1))
        return conv(len(CLASSES), kernel=1)(both)


def shapes(num: int, seed: int, share: float, size: int = 16) -> baal.Dataset:
    """Grey images ``[num, size, size, 1]`` and the class of every pixel; a share of them holds a shape."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    images = rng.normal(0.0, 0.25, (num, size, size, 1)).astype(np.float32)
    targets = np.zeros((num, size, size), np.int32)
    kinds = np.where(rng.random(num) < share, rng.choice([1, 2, 3], num, p=[0.45, 0.45, 0.1]), 0)
    for image, target, kind in zip(images, targets, kinds, strict=True):
        lines = rng.random(2) < 0.5  # clutter that is no shape
        image[rng.integers(size), :, 0] += 0.8 * lines[0]
        image[:, rng.integers(size), 0] += 0.8 * lines[1]
        radius, y, x = rng.integers(3, 5), *rng.integers(4, size - 4, 2)
        down, right = rows - y, columns - x
        inside = {
            0: np.zeros((size, size), bool),
            1: down**2 + right**2 <= radius**2,
            2: np.maximum(abs(down), abs(right)) < radius,
            3: (abs(down) <= radius) & (2 * abs(right) <= down + radius),
        }[int(kind)]
        image[inside] += rng.uniform(0.5, 1.0)
        target[inside] = kind
    return baal.Dataset(images, targets)


def per_class_overlap() -> baal.metrics.MetricSet:
    """Accuracy, NLL, Brier score and ECE of pixels, and the mean over classes of intersection over union."""
    base = metrics.classification(extra=("confusion_matrix",))

    def compute(summary: Any, targets: jax.Array) -> dict[str, jax.Array]:
        values = base.compute(summary, targets)
        matrix = values.pop("confusion_matrix").astype(jnp.float32)
        hits = jnp.diag(matrix)
        return values | {"miou": jnp.mean(hits / jnp.maximum(matrix.sum(0) + matrix.sum(1) - hits, 1.0))}

    return metrics.MetricSet(base.summarise, compute)


def acquisitions() -> dict[str, baal.Acquisition]:
    """Random labelling, and scores of pixels made into scores of images."""

    def of_image(score_fn: Any, reduction: str) -> baal.Acquisition:
        return selection.top_k(lambda logits: heuristics.reduce_spatial(score_fn(logits), reduction))

    return {
        "random": selection.random(),
        "bald, mean": of_image(heuristics.bald, "mean"),
        "bald, max": of_image(heuristics.bald, "max"),
        "entropy, mean": of_image(heuristics.entropy, "mean"),
    }


def main(config: Config) -> Results:
    """The study, its statistics and its report."""
    start = time.perf_counter()
    study.use_all_cores()
    train = shapes(config.pool, config.seed, share=0.15)
    test = shapes(config.test, config.seed + 1, share=0.5)
    posterior = posteriors.mc_dropout(baal.from_linen(Segmenter()), harness.trainer(config))
    options = {"batch_size": 100, "metrics": per_class_overlap()}
    loops = {name: harness.active_loop(config, posterior, how, **options) for name, how in acquisitions().items()}
    described = {name: value for name, value in dataclasses.asdict(config).items() if name not in ("seeds", "out")}
    about = {"name": "Segmentation of shapes", "class_names": CLASSES, "config": described}
    about |= {"metric": "miou", "higher_is_better": True}
    results = harness.run_study(config, config.out, loops, train, test, **about)
    print(statistics.markdown(statistics.summary(results)))
    page = report.write(results, config.out / "report.html")
    print(f"\n{config.seeds} seeds in {time.perf_counter() - start:.0f} s; wrote {page} and results.csv beside it")
    return results


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
