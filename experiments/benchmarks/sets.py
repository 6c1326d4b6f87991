"""Set selection beside bmdal_reg, scikit-activeml and DISTIL, and beside our own naive twins.

Three parts, each with an equality check before its times:

- `bmdal`: the selectors against bmdal_reg's own functions, same features, same labelled points;
- `twin`: greedy max-det against computing the posterior anew for each pick;
- `badge`: the factorised gradient against its dense twin (same uniforms), scikit-activeml's and DISTIL's BADGE.

    python experiments/benchmarks/sets.py                      # needs torch, bmdal_reg, scikit-activeml, decile-distil
    python experiments/benchmarks/sets.py --parts twin badge --no-others

Result, hardware and command: docs/benchmarks.md.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from baal_jax import Predictions, selection
from baal_jax.selection.sets import feature_maps, selectors

NOISE = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """Set selection, both sides."""

    parts: tuple[Literal["bmdal", "twin", "badge"], ...] = ("bmdal", "twin", "badge")
    """What to measure."""

    num: int = 40_000
    """Examples, for bmdal and twin."""

    size: int = 512
    """Features."""

    query_size: int = 256
    """Picks."""

    badge: tuple[str, ...] = ("10000,10,512", "5000,100,768")
    """Examples, classes and hidden units for badge."""

    badge_query: int = 100
    """Picks of badge; the other libraries take 10."""

    others: bool = True
    """Time the other libraries too."""

    repeats: int = 3
    """Timed calls, after one that compiles; the median counts."""


def main(config: Config) -> None:
    """Each part in turn."""
    for part in config.parts:
        {"bmdal": beside_bmdal, "twin": beside_the_twin, "badge": beside_dense_badge}[part](config)


def median(call: Callable[[], Any], repeats: int) -> tuple[Any, float]:
    """The result, and the median of the times, without the first call."""
    result, times = call(), []
    jax.block_until_ready(result)
    for _ in range(repeats):
        begin = time.perf_counter()
        result = jax.block_until_ready(call())
        times.append(time.perf_counter() - begin)
    return result, float(np.median(times))


def features_of(num: int, size: int, seed: int = 0) -> np.ndarray:
    """Features with a decaying spectrum, as a network's are."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, size)) * np.exp(-4 * np.arange(size) / size) + 0.3).astype(np.float32)


# name, our selector, theirs, and its arguments; all with the labelled points told
SELECTORS: dict[str, tuple[selectors.Selector, str, dict[str, Any]]] = {
    "max_det": (
        selectors.max_det(NOISE, use_labelled=True),
        "MaxDetSelectionMethod",
        {"noise_sigma": NOISE, "sel_with_train": True},
    ),
    "k_center": (selectors.k_center(), "MaxDistSelectionMethod", {"sel_with_train": True}),
    "lcmd": (selectors.lcmd(), "LargestClusterMaxDistSelectionMethod", {"sel_with_train": True}),
    "frank_wolfe": (
        selectors.frank_wolfe(use_labelled=True),
        "FrankWolfeSelectionMethod",
        {"sel_with_train": True},
    ),
    "bait, forward": (
        selectors.bait(NOISE, oversampling=1.0),
        "BaitFeatureSpaceSelectionMethod",
        {"noise_sigma": NOISE, "sel_with_train": True},
    ),
    "bait, forward and backward": (
        selectors.bait(NOISE, oversampling=2.0),
        "BaitFeatureSpaceSelectionMethod",
        {"noise_sigma": NOISE, "sel_with_train": True, "overselection_factor": 2.0},
    ),
}


def beside_bmdal(config: Config) -> None:
    """The same picks on small problems, then times on a large one."""
    acquisitions = {name: selection.grid(selector=ours) for name, (ours, *_) in SELECTORS.items()}
    if config.others:
        for name, (_, method, arguments) in SELECTORS.items():
            for seed in range(5):
                check_against_bmdal(name, acquisitions[name], method, arguments, seed)
    print(f"{config.query_size} of {config.num} x {config.size}, {config.query_size} labelled")
    features = features_of(config.num, config.size)
    labelled = np.arange(config.num) < config.query_size
    given = jnp.asarray(features), jnp.asarray(~labelled)
    for name, (_, method, arguments) in SELECTORS.items():
        select = acquisitions[name].select
        call = partial(select, jax.random.key(0), *given, config.query_size, jnp.asarray(labelled))
        found, ours = median(call, config.repeats)
        line = f"{name:28s} baal_jax {ours:6.2f} s"
        if config.others:
            begin = time.perf_counter()
            picks = bmdal(features, labelled, method, arguments, config.query_size, double=False)
            theirs = time.perf_counter() - begin
            same = len(set(found.indices.tolist()) & set(picks))
            line += f"   bmdal_reg {theirs:6.2f} s   ratio {theirs / ours:5.1f}   {same} picks in common"
        print(line, flush=True)


def check_against_bmdal(name: str, ours: Any, method: str, arguments: dict[str, Any], seed: int) -> None:
    """The same picks, in the same order where theirs keep it."""
    small = features_of(300, 12, seed)
    labelled = np.random.default_rng(seed).random(300) < 0.05
    found = ours.select(jax.random.key(0), jnp.asarray(small), jnp.asarray(~labelled), 10, jnp.asarray(labelled))
    expected = bmdal(small, labelled, method, arguments, 10, double=True)
    assert found.indices.tolist() == expected, (name, seed, found.indices.tolist(), expected)


def bmdal(
    features: np.ndarray, labelled: np.ndarray, method: str, arguments: dict[str, Any], query_size: int, double: bool
) -> list[int]:
    """The other library's picks, as ids of the whole set."""
    import torch

    np.Inf = np.inf  # ruff: ignore[NPY201]  # it was written for numpy 1
    from bmdal_reg.bmdal import selection as theirs
    from bmdal_reg.bmdal.feature_data import TensorFeatureData
    from bmdal_reg.bmdal.feature_maps import IdentityFeatureMap
    from bmdal_reg.bmdal.features import Features

    tensor = torch.tensor(features, dtype=torch.float64 if double else torch.float32)
    identity = IdentityFeatureMap(n_features=features.shape[1])
    parts = [
        Features(identity, TensorFeatureData(tensor[torch.tensor(mask)])).precompute() for mask in (~labelled, labelled)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        picks = getattr(theirs, method)(*parts, verbosity=0, **arguments).select(query_size)
    return np.flatnonzero(~labelled)[picks.numpy()].tolist()


def beside_the_twin(config: Config) -> None:
    """Max-det against a Gaussian process that is fitted anew for each pick."""
    for num, size, query_size in ((500, 16, 12), (config.num, config.size, config.query_size)):
        features = jnp.asarray(features_of(num, size))
        labelled = jnp.arange(num) < query_size
        ours = selection.grid(selector=selectors.max_det(NOISE, use_labelled=True))
        found, fast = median(
            partial(ours.select, jax.random.key(0), features, ~labelled, query_size, labelled), config.repeats
        )
        picks, slow = naive_max_det(features, labelled, query_size if num == 500 else 8)
        same = picks.tolist() == found.indices[: len(picks)].tolist()
        assert same or num > 500, (picks, found.indices)
        slow *= query_size / len(picks)
        print(f"max_det, {query_size} of {num} x {size}: {fast:.2f} s", end="   ")
        print(f"posterior anew for each pick: {slow:.1f} s (from {len(picks)} picks), ratio {slow / fast:.1f}; {same=}")


def naive_max_det(features: jax.Array, labelled: jax.Array, count: int) -> tuple[np.ndarray, float]:
    """Each pick by a new posterior over the whole pool, compiled."""

    @jax.jit
    def one(features: jax.Array, known: jax.Array, left: jax.Array) -> jax.Array:
        rows = jnp.where(known[:, None], features, 0.0) / NOISE
        root = jnp.linalg.cholesky(jnp.eye(features.shape[1]) + rows.T @ rows)
        white = jax.scipy.linalg.solve_triangular(root, features.T, lower=True)
        return jnp.argmax(jnp.where(left, jnp.sum(white**2, axis=0), -jnp.inf))

    def run() -> np.ndarray:
        known, left, picks = labelled, ~labelled, []
        for _ in range(count):
            picks.append(int(one(features, known, left)))
            known, left = known.at[picks[-1]].set(True), left.at[picks[-1]].set(False)
        return np.array(picks)

    return median(run, 1)


def beside_dense_badge(config: Config) -> None:
    """Factors against the gradient written out."""
    for text in config.badge:
        num, classes, size = (int(number) for number in text.split(","))
        rng = np.random.default_rng(0)
        given = Predictions(
            jnp.asarray(2 * rng.normal(size=(1, num, classes)), jnp.float32),
            jnp.asarray(np.maximum(rng.normal(size=(num, size)), 0), jnp.float32),
        )
        factors = feature_maps.badge(given)
        dense = (factors[0][:, :, None] * factors[1][:, None]).reshape(num, -1)
        everything, key = jnp.ones(num, bool), jax.random.key(0)
        select = selection.badge().select
        twin = selection.grid(selector=selectors.k_means_pp(use_labelled=False, largest_first=True)).select
        found, fast = median(partial(select, key, factors, everything, config.badge_query), config.repeats)
        other, slow = median(partial(twin, key, dense, everything, config.badge_query), config.repeats)
        same = int(np.sum(np.asarray(found.indices) == np.asarray(other.indices)))
        check_badge(factors, dense, found.indices)
        memory = [peak(select, key, part, everything, config.badge_query) for part in (factors, dense)]
        ideal = classes * size / (classes + size)
        print(
            f"badge, {config.badge_query} of {num}, C={classes}, D={size}: {fast:.4f} s, dense twin {slow:.3f} s",
            end="",
        )
        print(f", ratio {slow / fast:.1f}; {same} of {config.badge_query} picks the same as in float32 twin")
        print(f"  memory {memory[0] / 1e6:.1f} MB, dense {memory[1] / 1e6:.1f} MB: ", end="")
        print(f"{memory[1] / memory[0]:.1f} x lower, {memory[1] / memory[0] / ideal:.2f} of CD / (C + D) = {ideal:.1f}")
        if config.others:
            probabilities = np.asarray(jax.nn.softmax(given.logits[0]), np.float64)
            ours10 = median(partial(select, key, factors, everything, 10), config.repeats)[1]
            for name, call in (
                ("scikit-activeml", partial(scikit_activeml, probabilities, np.asarray(given.features), 10)),
                ("DISTIL", partial(distil, np.asarray(dense), 10)),
            ):
                begin = time.perf_counter()
                call()
                theirs = time.perf_counter() - begin
                print(
                    f"  10 picks: {name} {theirs:.2f} s, ours {ours10:.4f} s, ratio {theirs / ours10:.0f}", flush=True
                )


def check_badge(factors: tuple, dense: jax.Array, picks: jax.Array) -> None:
    """The picks are those of a dense float64 k-means++ given the same uniforms."""
    count = 30
    uniforms = np.asarray(jax.random.uniform(jax.random.split(jax.random.key(0), 1)[0], (len(picks),)), np.float64)
    phi = np.asarray(dense, np.float64)
    nearest, expected = np.full(len(phi), np.inf), [int(np.argmax((phi**2).sum(axis=1)))]
    left = np.ones(len(phi), bool)
    for turn in range(1, count):
        left[expected[-1]] = False
        nearest = np.minimum(nearest, ((phi - phi[expected[-1]]) ** 2).sum(axis=1))
        cumulative = np.cumsum(np.where(left, nearest, 0.0))
        expected.append(int(np.searchsorted(cumulative, uniforms[turn] * cumulative[-1], side="right")))
    assert picks[:count].tolist() == expected, (picks[:count].tolist(), expected)


def peak(select: Any, key: jax.Array, features: Any, available: jax.Array, query_size: int) -> int:
    """Bytes of the features and of what the program needs beside them."""
    analysis = select.lower(key, features, available, query_size).compile().memory_analysis()
    return analysis.temp_size_in_bytes + sum(leaf.nbytes for leaf in jax.tree.leaves(features))


def scikit_activeml(probabilities: np.ndarray, hidden: np.ndarray, query_size: int) -> list[int]:
    """The other library's BADGE on given predictions."""
    from skactiveml.base import SkactivemlClassifier
    from skactiveml.pool import Badge

    class Given(SkactivemlClassifier):
        def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Given:
            return self

        def predict_proba(self, X: Any) -> np.ndarray:
            return probabilities

    classes = list(range(probabilities.shape[1]))
    labels = np.full(len(hidden), np.nan)
    return list(Badge(random_state=0).query(hidden, labels, Given(classes), fit_clf=False, batch_size=query_size))


def distil(dense: np.ndarray, query_size: int) -> list[int]:
    """The other library's k-means++ on gradients that are written out already."""
    name = "distil.active_learning_strategies"
    if name not in sys.modules:  # the package itself imports what its BADGE does not need
        package = types.ModuleType(name)
        found = find_spec("distil")
        package.__path__ = [f"{found.submodule_search_locations[0]}/active_learning_strategies"]
        sys.modules[name] = package
    from distil.active_learning_strategies.badge import init_centers

    return init_centers(dense, query_size, "cpu")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
