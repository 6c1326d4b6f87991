"""The pictures and the table of `vgg_mcdropout_cifar10.py`, made from its journal alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import matplotlib
import numpy as np

import baal_jax as baal
from baal_jax import checkpoint, study
from baal_jax.metrics import Reliability
from baal_jax.study import plots

matplotlib.use("agg")


def report(out: Path, config: dict, class_names: Sequence[str], targets: np.ndarray) -> dict:
    """Reads `rounds.jsonl`, prints the table, writes the pictures and `results.json`.

    Args:
        out: folder of the journal and of all that is written.
        config: of the run.
        class_names: ``C`` names.
        targets: ``int[N]`` of the pool.

    Returns:
        What `results.json` holds.
    """
    lines = checkpoint.read_lines(out / "rounds.jsonl")
    curves, bins, asked = {}, {}, {}
    for name in config["strategies"]:
        rounds = [line for line in lines if line["kind"] == "round" and line["strategy"] == name]
        curves[name] = learning_curves(rounds)
        closing = [line["reliability"] for line in lines if line["kind"] == "close" and line["strategy"] == name]
        bins[name] = Reliability(
            *(jnp.asarray(stacked([part[field] for part in closing])) for field in Reliability._fields)
        )
        asked[name] = labels_asked_for(rounds, targets, len(class_names), config["rounds"])
    print(plots.learning_curve_table(curves, target=0.5))
    draw(out, curves, bins, asked, class_names)
    content = {
        "config": config,
        "environment": study.environment(),
        "seconds": sum(line["seconds"] for line in lines if line["kind"] == "round"),
        "strategies": {name: curve._asdict() for name, curve in curves.items()},
        "labels_by_class": dict(zip(class_names, np.stack(list(asked.values()), axis=-1).tolist(), strict=True))
        if asked
        else {},
    }
    study.results.write_json(out / "results.json", content)
    print(f"wrote results.json, rounds.jsonl and pictures to {out}")
    return content


def learning_curves(rounds: list[dict]) -> plots.Curves:
    """All seeds of one strategy."""
    numbers = sorted({line["round"] for line in rounds})
    by_round = [[line for line in rounds if line["round"] == number] for number in numbers]
    values = {
        name: np.stack([stacked([line["metrics"][name] for line in part]) for part in by_round], axis=1)
        for name in rounds[0]["metrics"]
    }
    return plots.Curves(np.array([part[0]["num_labelled"] for part in by_round]), values)


def labels_asked_for(rounds: list[dict], targets: np.ndarray, num_classes: int, last: int) -> np.ndarray:
    """``[C]``: how often each class was picked, mean over seeds; the picks of the last round are never trained on."""
    picked = [np.asarray(line["picked"]) for line in rounds if line["round"] < last - 1]
    seeds = sum(len(line["seeds"]) for line in rounds if line["round"] == 0)
    if not picked:
        return np.zeros(num_classes)
    ids = np.concatenate([part.ravel() for part in picked])
    return np.bincount(targets[ids[ids >= 0]], minlength=num_classes) / seeds


def stacked(parts: list[list]) -> np.ndarray:
    """Along the seeds; what is not finite is null in the journal."""
    return np.concatenate([np.array(part, dtype=np.float64) for part in parts])


def draw(out: Path, curves: dict, bins: dict, asked: dict, class_names: Sequence[str]) -> None:
    """Learning curves, calibration, classes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    for ax, metric in zip(axes, ("accuracy", "nll", "ece"), strict=True):
        plots.plot_learning_curves(curves, metric, ax)
    save(figure, out / "curves.png")
    save(plots.plot_reliability(bins).figure, out / "calibration.png")
    save(plots.plot_class_histogram(asked, class_names).figure, out / "classes.png")


def gallery(
    path: Path, pool: baal.Dataset, scores: np.ndarray, available: np.ndarray, class_names: Sequence[str], num: int = 12
) -> None:
    """The unlabelled images with the highest and the lowest scores."""
    ids = np.flatnonzero(available)
    order = ids[np.argsort(scores[ids], kind="stable")]
    inputs, targets = np.asarray(pool.inputs), np.asarray(pool.targets)

    def row(chosen: np.ndarray) -> tuple[np.ndarray, list[str]]:
        return inputs[chosen], [f"{class_names[int(targets[i])]}\n{scores[i]:.2f}" for i in chosen]

    if len(order):
        rows = {"most informative": row(order[::-1][:num]), "least informative": row(order[:num])}
        save(plots.plot_gallery(rows), path)


def save(figure, path: Path) -> None:
    """A picture, whole or not there."""
    import matplotlib.pyplot as plt

    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=130, format="png")
    plt.close(figure)
    temporary.replace(path)
