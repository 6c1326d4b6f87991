"""How good the network of a labelling project is, from the labels themselves."""

import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool
from baal_jax._util import checks, sources
from baal_jax.annotation._project import Project, answers_of, means_of, read
from baal_jax.loop import ActiveLoop
from baal_jax.typing import Dataset, Key, LoopState, PyTree

_LOG = logging.getLogger(__name__)
_LEAST = 4  # labels


class Assessment(NamedTuple):
    """What cross-validation says of the labels and of the network.

    Attributes:
        metric: ``"accuracy"`` (of several labels, of each by itself) or ``"rmse"``.
        score: its value on labels that the fit did not see.
        error: a standard error of it.
        first: the same over the first query alone, if it was drawn at random: a fair sample of the pool, which others,
            chosen because they are hard or typical, are not. NaN where there is none.
        curve: ``(labels, score, error, first)`` of the labels of the first rounds, on the same left-out examples.
        indices: ``int[L]`` ids with an answer, ascending.
        doubts: ``float[L]``: one minus the probability that the fit to others gives the label (of several, the least
            probable), or how far off it is; the larger, the sooner the label is wrong.
        predictions: ``[L, C]`` probabilities, or numbers ``[L, 1]``, by these fits.
    """

    metric: str
    score: float
    error: float
    first: float
    curve: tuple[tuple[int, float, float, float], ...]
    indices: np.ndarray
    doubts: np.ndarray
    predictions: np.ndarray


def assess(
    folder: str | Path, loop: ActiveLoop, inputs: PyTree, *, key: Key, folds: int = 5, points: int = 4
) -> Assessment:
    """Cross-validation of all answers so far: how good a network of these labels is, and which labels it doubts.

    The labels are cut into ``folds`` parts, with the same share of each class; each is predicted by a fit of ``loop``
    to the others. For the curve the fits see only what was labelled by then. Fits see labelled examples alone.

    Args:
        folder: of the project.
        loop: as of :func:`propose`.
        inputs: ``[N, …]`` of the pool, or a source on the host.
        key: a typed key, of the whole project.
        folds: parts, and fits for each point of the curve.
        points: of the curve, the last of which has all labels.

    Returns:
        An :class:`Assessment`.

    Raises:
        ValueError: no project, fewer than four labels, other inputs, fewer than two folds, or fits that are not finite.

    Example:
        >>> folder, inputs = tempfile.mkdtemp(), jnp.arange(8.0)[:, None] - 3.5
        >>> _ = annotation.start(folder, references=list("abcdefgh"), class_names=["low", "high"])
        >>> rows = [[str(i), "high" if i > 3 else "low"] for i in range(8)]
        >>> np.savetxt(f"{folder}/said.csv", [["id", "label"], *rows], fmt="%s", delimiter=",")
        >>> _ = annotation.ingest(folder, f"{folder}/said.csv")
        >>> posterior, acquisition = posteriors.logistic_regression(2), selection.top_k(heuristics.margin)
        >>> loop = baal.active_loop(posterior, acquisition, query_size=1)
        >>> annotation.assess(folder, loop, inputs, key=jax.random.key(0), folds=2, points=1).score
        1.0
    """
    return assessed(read(Path(folder)), loop, inputs, key=key, folds=folds, points=points)


def assessed(project: Project, loop: ActiveLoop, inputs: PyTree, *, key: Key, folds: int, points: int) -> Assessment:
    """See :func:`assess`."""
    if checks.positive_int("folds", folds) < 2:
        raise ValueError(f"folds={folds} leaves nothing out: give at least 2")
    checks.positive_int("points", points)
    answered = answers_of(project)
    indices = np.flatnonzero(np.asarray(pool.labelled(answered))).astype(np.int32)
    if len(indices) < _LEAST:
        raise ValueError(f"{len(indices)} labels cannot say how good a network is: label at least {_LEAST}")
    part, size = rows_of(inputs, indices), 1 << (len(indices) - 1).bit_length()  # so that few programs are compiled
    part, targets = jax.tree.map(jnp.asarray, part), np.asarray(answered.targets)[indices]
    padded = jax.tree.map(lambda leaf: jnp.asarray(sources.pad(np.asarray(leaf), size)), Dataset(part, targets))
    rounds = np.asarray(answered.labelled_at)[indices]
    key_folds, key_fits = jax.random.split(jax.random.fold_in(key, 1))
    of_fold = _folds(key_folds, targets, folds)
    ends = sorted({int(end) for end in np.linspace(0, rounds.max(), points + 1)[1:]} | {int(rounds.max())})
    start = project.asked[0] if project.asked else {}
    fair = [
        i for i in start.get("indices", ()) if start.get("random") and not project.labels.get(i, {}).get("imported")
    ]
    first = np.isin(indices, fair)
    curve, scored, count = [], None, 0
    for end in ends:
        sees = rounds <= end
        if sees.sum() < _LEAST or any(not (sees & (of_fold != fold)).any() for fold in range(folds)):
            continue
        outputs: Any = None
        for fold in range(folds):
            if not (left_out := of_fold == fold).any():
                continue
            count += 1
            seeing = int((sees & ~left_out).sum())
            _LOG.info("cross-validation: fit %d of %d, to %d labels", count, folds * len(ends), seeing)
            seen = np.full(size, -1, np.int32)
            seen[: len(indices)][sees & ~left_out] = 0
            state = LoopState(key_fits, pool.PoolState(jnp.asarray(seen), jnp.int32(1)), None, jnp.int32(0))
            fitted = loop.round.fit(jax.random.fold_in(key_fits, fold), padded, state)
            means = means_of(project.content, loop.predict(state._replace(posterior=fitted), padded.inputs))
            means = np.asarray(means, np.float64)[: len(indices)]
            outputs = np.zeros_like(means) if outputs is None else outputs
            outputs[left_out] = means[left_out]
        if not np.isfinite(outputs).all():
            raise ValueError("loop predicts what is not finite: look at the learning rate and the loss")
        scored = _scored(project, outputs, targets, first)
        curve.append((int(sees.sum()), *scored[1:4]))
    if scored is None:
        raise AssertionError("the last point has all labels")
    metric, score, error, first, doubts, predictions = scored
    return Assessment(metric, score, error, first, tuple(curve), indices, doubts, predictions)


def _folds(key: Key, targets: np.ndarray, folds: int) -> np.ndarray:
    """``int[L]``: the part of each label, drawn at random, with the same share of each class."""
    drawn = np.asarray(jax.random.permutation(key, len(targets)))
    if targets.dtype.kind == "i" and targets.ndim == 1:
        drawn = drawn[np.argsort(targets[drawn], kind="stable")]
    of_fold = np.empty(len(targets), np.int32)
    of_fold[drawn] = np.arange(len(targets)) % folds
    return of_fold


def _scored(project: Project, outputs: np.ndarray, targets: np.ndarray, first: np.ndarray) -> tuple[Any, ...]:
    """Metric, score, its standard error, score of the first query, doubts and predictions."""
    if project.names is None:
        squares = (outputs[:, 0] - targets) ** 2
        score = math.sqrt(squares.mean())
        error = squares.std(ddof=1) / math.sqrt(len(squares)) / (2.0 * score) if score else 0.0  # delta method
        start = math.sqrt(squares[first].mean()) if first.any() else math.nan
        return "rmse", score, float(error), start, np.sqrt(squares), outputs
    if project.is_multi_label:
        known = targets >= 0
        given = np.where(targets == 1, outputs, 1.0 - outputs)
        right = np.where(known, (outputs >= 0.5) == (targets == 1), 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
        doubts = 1.0 - np.where(known, given, 1.0).min(axis=1)
    else:
        right = (outputs.argmax(axis=1) == targets).astype(float)
        doubts = 1.0 - outputs[np.arange(len(targets)), targets]
    start = float(right[first].mean()) if first.any() else math.nan
    return "accuracy", float(right.mean()), float(right.std(ddof=1) / math.sqrt(len(right))), start, doubts, outputs


def rows_of(inputs: PyTree, ids: Any) -> PyTree:
    """Some examples of a pool."""
    ids = np.asarray(ids)
    return sources.load(inputs, ids) if sources.is_source(inputs) else jax.tree.map(lambda leaf: leaf[ids], inputs)
