"""Set selection beside bmdal_reg, scikit-activeml and DISTIL, and beside naive twins: max-det, LCMD, BAIT, BADGE.

Three parts, each of which says how many picks are the same on both sides:

- `bmdal`: the selectors against bmdal_reg's own functions, same features, same labelled points;
- `twin`: greedy max-det against computing the posterior anew for each pick;
- `badge`: the factorised gradient against its dense twin (same uniforms), scikit-activeml's and DISTIL's BADGE.

    python experiments/benchmarks/sets.py                      # needs torch, bmdal_reg, scikit-activeml, decile-distil
    python experiments/benchmarks/sets.py --parts twin badge --no-others

256 of 40,000 × 512: max_det 1.61 s, LCMD 1.07 s, BAIT 2.50 s; bmdal_reg takes 4.9, 4.9 and 9.9 times as long. Two cores
of an AMD EPYC with AVX-512 (docs/benchmarks.md).
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import sys
import types
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from measuring import median_seconds, timed

from baal_jax import Acquisition, Predictions, selection
from baal_jax.selection.sets import feature_maps, selectors

NOISE = 0.1


@dataclasses.dataclass(frozen=True)
class Config:
    """Set selection, both sides.

    Attributes:
        parts: what to measure.
        num: examples, for bmdal and twin.
        size: features.
        query_size: picks.
        badge: examples, classes and hidden units for badge.
        badge_query: picks of badge; the other libraries take 10.
        others: time the other libraries too.
        repeats: timed calls, after one that compiles; the median counts.
    """

    parts: tuple[Literal["bmdal", "twin", "badge"], ...] = ("bmdal", "twin", "badge")
    num: int = 40_000
    size: int = 512
    query_size: int = 256
    badge: tuple[str, ...] = ("10000,10,512", "5000,100,768")
    badge_query: int = 100
    others: bool = True
    repeats: int = 3


def main(config: Config) -> None:
    """Each part in turn."""
    for part in config.parts:
        {"bmdal": beside_bmdal, "twin": beside_the_twin, "badge": beside_dense_badge}[part](config)


def features_of(num: int, size: int, seed: int = 0) -> np.ndarray:
    """Features with a decaying spectrum, as a network's are."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num, size)) * np.exp(-4 * np.arange(size) / size) + 0.3).astype(np.float32)


class Pair(NamedTuple):
    """The same selection here and in bmdal_reg, both with the labelled points told."""

    ours: Acquisition
    method: str
    arguments: dict[str, Any]


def pair(selector: selectors.Selector, method: str, **arguments: Any) -> Pair:
    """A selector of features, and the name and the arguments of theirs."""
    return Pair(selection.grid(selector=selector), f"{method}SelectionMethod", {"sel_with_train": True, **arguments})


PAIRS = {
    "max_det": pair(selectors.max_det(NOISE, use_labelled=True), "MaxDet", noise_sigma=NOISE),
    "k_center": pair(selectors.k_center(), "MaxDist"),
    "lcmd": pair(selectors.lcmd(), "LargestClusterMaxDist"),
    "frank_wolfe": pair(selectors.frank_wolfe(use_labelled=True), "FrankWolfe"),
    "bait, forward": pair(selectors.bait(NOISE, oversampling=1.0), "BaitFeatureSpace", noise_sigma=NOISE),
    "bait, forward and backward": pair(
        selectors.bait(NOISE, oversampling=2.0), "BaitFeatureSpace", noise_sigma=NOISE, overselection_factor=2.0
    ),
}


def beside_bmdal(config: Config) -> None:
    """The same picks on small problems, in the same order, then times on a large one."""
    for (name, both), seed in itertools.product(PAIRS.items(), range(5) if config.others else ()):
        given = features_of(300, 12, seed), np.random.default_rng(seed).random(300) < 0.05, 10
        picks, expected = pick(both, *given).tolist(), bmdal(both, *given, double=True)
        assert picks == expected, (name, seed, picks, expected)
    print(f"{config.query_size} of {config.num} x {config.size}, {config.query_size} labelled")
    given = features_of(config.num, config.size), np.arange(config.num) < config.query_size, config.query_size
    on_device = *map(jnp.asarray, given[:2]), config.query_size
    for name, both in PAIRS.items():
        ours = median_seconds(partial(pick, both, *on_device), config.repeats)
        line = f"{name:28s} baal_jax {ours:6.2f} s"
        if config.others:
            picks, theirs = timed(partial(bmdal, both, *given, double=False))
            same = len({*pick(both, *on_device).tolist()} & {*picks})
            line += f"   bmdal_reg {theirs:6.2f} s   ratio {theirs / ours:5.1f}   {same} picks in common"
        print(line, flush=True)


def pick(both: Pair, features: Any, labelled: Any, query_size: int) -> jax.Array:
    """Our picks."""
    features, labelled = jnp.asarray(features), jnp.asarray(labelled)
    return both.ours.select(jax.random.key(0), features, ~labelled, query_size, labelled).indices


def bmdal(both: Pair, features: np.ndarray, labelled: np.ndarray, query_size: int, double: bool) -> list[int]:
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
        picks = getattr(theirs, both.method)(*parts, verbosity=0, **both.arguments).select(query_size)
    return np.flatnonzero(~labelled)[picks.numpy()].tolist()


def beside_the_twin(config: Config) -> None:
    """Max-det against a Gaussian process that is fitted anew for each pick."""
    for num, size, query_size in ((500, 16, 12), (config.num, config.size, config.query_size)):
        features, labelled = jnp.asarray(features_of(num, size)), jnp.arange(num) < query_size
        call = partial(pick, PAIRS["max_det"], features, labelled, query_size)
        fast, picks = median_seconds(call, config.repeats), call()
        naive = partial(naive_max_det, features, labelled, query_size if num == 500 else 8)
        theirs, _ = timed(naive)  # compiles
        slow = timed(naive)[1] * query_size / len(theirs)
        same = theirs == picks[: len(theirs)].tolist()
        assert same or num > 500, (picks, theirs)
        print(f"max_det, {query_size} of {num} x {size}: {fast:.2f} s", end="   ")
        print(
            f"posterior anew for each pick: {slow:.1f} s (from {len(theirs)} picks), ratio {slow / fast:.1f}; {same=}"
        )


def naive_max_det(features: jax.Array, labelled: jax.Array, count: int) -> list[int]:
    """Each pick by a new posterior over the whole pool, compiled."""
    known, left, picks = labelled, ~labelled, []
    for _ in range(count):
        picks.append(int(largest_variance(features, known, left)))
        known, left = known.at[picks[-1]].set(True), left.at[picks[-1]].set(False)
    return picks


@jax.jit
def largest_variance(features: jax.Array, known: jax.Array, left: jax.Array) -> jax.Array:
    """Of what is left, given what is known."""
    rows = jnp.where(known[:, None], features, 0.0) / NOISE
    root = jnp.linalg.cholesky(jnp.eye(features.shape[1]) + rows.T @ rows)
    white = jax.scipy.linalg.solve_triangular(root, features.T, lower=True)
    return jnp.argmax(jnp.where(left, jnp.sum(white**2, axis=0), -jnp.inf))


def beside_dense_badge(config: Config) -> None:
    """Factors against the gradient written out."""
    twin = selection.grid(selector=selectors.k_means_pp(use_labelled=False, largest_first=True))
    selects = selection.badge().select, twin.select
    for text in config.badge:
        num, classes, size = (int(number) for number in text.split(","))
        rng = np.random.default_rng(0)
        logits = jnp.asarray(2 * rng.normal(size=(1, num, classes)), jnp.float32)
        hidden = jnp.asarray(np.maximum(rng.normal(size=(num, size)), 0), jnp.float32)
        factors = feature_maps.badge(Predictions(logits, hidden))
        dense = (factors[0][:, :, None] * factors[1][:, None]).reshape(num, -1)
        given = jnp.ones(num, bool), config.badge_query
        calls = [
            partial(select, jax.random.key(0), features, *given)
            for select, features in zip(selects, (factors, dense), strict=True)
        ]
        fast, slow = (median_seconds(call, config.repeats) for call in calls)
        picks, others = (np.asarray(call().indices) for call in calls)
        memory = [peak(selects[0], features, *given) for features in (factors, dense)]
        ideal = classes * size / (classes + size)
        print(
            f"badge, {config.badge_query} of {num}, C={classes}, D={size}: {fast:.4f} s, dense twin {slow:.3f} s, "
            f"ratio {slow / fast:.1f}; {np.sum(picks == others)} of {config.badge_query} picks the same as in float32 "
            f"twin\n  memory {memory[0] / 1e6:.1f} MB, dense {memory[1] / 1e6:.1f} MB: {memory[1] / memory[0]:.1f} x "
            f"lower, {memory[1] / memory[0] / ideal:.2f} of CD / (C + D) = {ideal:.1f}"
        )
        if config.others:
            ten = partial(selects[0], jax.random.key(0), factors, given[0], 10)
            ours, probabilities = median_seconds(ten, config.repeats), np.asarray(jax.nn.softmax(logits[0]), np.float64)
            for name, call in (
                ("scikit-activeml", partial(scikit_activeml, probabilities, np.asarray(hidden), 10)),
                ("DISTIL", partial(distil, np.asarray(dense), 10)),
            ):
                theirs = timed(call)[1]
                print(f"  10 picks: {name} {theirs:.2f} s, ours {ours:.4f} s, ratio {theirs / ours:.0f}", flush=True)


def peak(select: Any, features: Any, available: jax.Array, query_size: int) -> int:
    """Bytes of the features and of what the program needs beside them."""
    compiled = select.lower(jax.random.key(0), features, available, query_size).compile()
    return compiled.memory_analysis().temp_size_in_bytes + sum(leaf.nbytes for leaf in jax.tree.leaves(features))


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
        package.__path__ = [f"{find_spec('distil').submodule_search_locations[0]}/active_learning_strategies"]
        sys.modules[name] = package
    from distil.active_learning_strategies.badge import init_centers

    return init_centers(dense, query_size, "cpu")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
