"""The next query of a labelling project, and a review of its labels."""

import logging
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool
from baal_jax._util import checks, files, sources
from baal_jax.annotation._assess import assessed, rows_of
from baal_jax.annotation._project import Project, answers_of, means_of, read, tasks_of
from baal_jax.loop import ActiveLoop
from baal_jax.loop import query as query_pool
from baal_jax.training import tasks
from baal_jax.typing import Acquisition, Dataset, Key, LoopState, PyTree, Selection, StepInfo

_LOG = logging.getLogger(__name__)
_FOLDS = 5  # of a review


class Query(NamedTuple):
    """What people are asked for.

    Attributes:
        round: number of the query, from 0.
        indices: ``int[Q]``, ids in order of picking.
        scores: ``float[Q]``, NaN where nothing was scored.
        waiting: ``int[W]``, those of them without an answer yet.
        tasks: the file to import into Label Studio.
        reasons: why each of ``indices`` is asked for: what the network says, and the score beside that of the others.
    """

    round: int
    indices: np.ndarray
    scores: np.ndarray
    waiting: np.ndarray
    tasks: Path
    reasons: tuple[str, ...] = ()


def propose(
    folder: str | Path,
    loop: ActiveLoop,
    inputs: PyTree,
    *,
    key: Key,
    num_initial: int = 10,
    cold_start: Acquisition | None = None,
    embeddings: PyTree = None,
    target_inputs: PyTree = None,
    limits: pool.PoolState | None = None,
    give_up: bool = False,
    review: bool = False,
) -> Query:
    """The next query: fits to the answers so far, scores what is left, and writes what to ask for.

    While the last query waits for answers it is returned again, and nothing is computed: labels of a round come
    together. The first query is random, or a cold start. The same folder and key give the same query, however often.

    Args:
        folder: of a project that :func:`start` began.
        loop: fits, scores and picks as in :func:`~baal_jax.run`: the same from the same key and labels. Only answers
            are carried on: a posterior that reads its last state (``warm_start``, ``retrain_every``) starts anew.
        inputs: ``[N, …]`` of the pool, or a source on the host.
        key: a typed key, of the whole project.
        num_initial: examples in the first query.
        cold_start: picks the first query instead of chance, such as ``selection.typiclust()``.
        embeddings: ``[N, D]``, for ``cold_start``.
        target_inputs: inputs whose predictions matter, for acquisitions that read them.
        limits: a pool that says what is excluded, costs or has a quota; its labels do not matter.
        give_up: does not wait for what is unanswered in the last query; these examples may be asked for again.
        review: asks again for the labels that are least certain, each once: those that fits to the other labels find
            least probable, by :func:`assess` (Northcutt et al., `Confident learning
            <https://arxiv.org/abs/1911.00068>`_, 2021).

    Returns:
        A :class:`Query`. ``query-R.json`` and ``query-R.label_studio.json`` are in the folder.

    Raises:
        ValueError: no project, a file of it is damaged, lost or another's (named), other inputs, or nothing is left.
        ValueError: of a review: fewer than four labels, or all of them have been reviewed.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> _ = annotation.start(folder, references=["a.png", "b.png"], class_names=["cat", "dog"])
        >>> acquisition = selection.top_k(heuristics.margin)
        >>> loop = baal.active_loop(posteriors.logistic_regression(2), acquisition, query_size=1)
        >>> query = annotation.propose(folder, loop, jnp.eye(2), key=jax.random.key(0), num_initial=1)
        >>> query.tasks.name
        'query-0000.label_studio.json'
    """
    folder = Path(folder)
    project = read(folder)
    checks.typed_key("key", key)
    num_examples = num_inputs(project, inputs)
    if project.waiting and not give_up:
        if review and not project.queries[-1].get("review"):
            cure = "ingest them, or give them up"
            raise ValueError(f"review=True, but the last query waits for {len(project.waiting)} answers: {cure}")
        return _as_query(folder, project)
    tasks.admit("pool", Dataset(inputs))
    if review:
        return _ask(folder, project, _least_certain(project, loop, inputs, key))
    number, answered = len(project.asked), answers_of(project)
    if limits is not None:
        if limits.labelled_at.shape != (num_examples,):
            raise ValueError(f"limits are of {len(limits.labelled_at)} examples, but the project holds {num_examples}")
        answered = answered._replace(costs=limits.costs, groups=limits.groups, quota=limits.quota)
        answered = pool.exclude(answered, np.flatnonzero(np.asarray(limits.labelled_at) < -1))
    left = int(pool.num_available(answered))
    if not left:
        raise ValueError(f"folder={str(folder)!r}: all {num_examples} examples have been answered or skipped")
    if not int(pool.num_labelled(answered)):
        key_first = jax.random.split(key)[1]  # as in a loop, whose picks are the same for the same key
        size = min(checks.positive_int("num_initial", num_initial), left)
        if number:  # the first query was given up: ask for others
            key_first = jax.random.fold_in(key_first, number)
        selection = pool.first_query(key_first, answered, size, cold_start, embeddings)
        shown = mean = None
    else:
        state, selection, info = fitted_to(project, loop, inputs, key, answered, target_inputs)
        shown = means_of(project.content, loop.predict(state, rows_of(inputs, np.maximum(selection.indices, 0))))
        mean = float(info.mean_score)
    kept = np.asarray(selection.indices) >= 0
    query = {"indices": np.asarray(selection.indices)[kept], "mean_score": mean}
    query["random"] = shown is None and cold_start is None
    query["scores"] = np.asarray(selection.scores, np.float64)[kept]
    query["predictions"] = None if shown is None else _squeezed(project, np.asarray(shown, np.float64)[kept])
    return _ask(folder, project, query)


def fitted_to(
    project: Project, loop: ActiveLoop, inputs: PyTree, key: Key, answered: pool.PoolState, target_inputs: PyTree = None
) -> tuple[LoopState, Selection, StepInfo]:
    """The state after a fit to all answers, what it picks, and what is to be said of it."""
    # As in a loop, whose rounds are the same for the same key.
    step = jnp.asarray(max(len(project.asked) - 1, 0), jnp.int32)
    state = LoopState(jax.random.split(key)[0], answered, None, step)
    _LOG.info(
        "fits to %d labels, scores %d examples", int(pool.num_labelled(answered)), int(pool.num_available(answered))
    )
    began = time.monotonic()
    fitted, selection, info = query_pool(loop, state, Dataset(inputs), target_inputs)
    if int(info.num_failed_fits):
        look = "look at the learning rate, the loss and the validation set before you ask people"
        warnings.warn(f"the fit is not finite or ended where it began: {look}", stacklevel=3)
    jax.block_until_ready(selection)
    _LOG.info("took %.1f s", time.monotonic() - began)
    return loop.round.advance(state, fitted, selection), selection, info


def num_inputs(project: Project, inputs: PyTree) -> int:
    """How many examples there are; refuses a pool that is not that of the project."""
    held = len(project.content["references"])
    given = sources.length(inputs)
    if given != held:
        raise ValueError(f"inputs holds {given} examples, but the project {held}: pass its pool")
    return held


def _squeezed(project: Project, shown: np.ndarray) -> np.ndarray:
    return shown[:, 0] if project.names is None else shown


def _least_certain(project: Project, loop: ActiveLoop, inputs: PyTree, key: Key) -> dict[str, Any]:
    """What a review asks for."""
    seen = [index for index, label in project.labels.items() if "reviewed" in label]
    found = assessed(project, loop, inputs, key=key, folds=_FOLDS, points=1)
    order = [row for row in np.argsort(-found.doubts, kind="stable") if found.indices[row] not in seen]
    if not order:
        raise ValueError("review=True: all labels have been reviewed, label more")
    rows = np.array(order[: loop.sizes[min(max(len(project.asked) - 1, 0), len(loop.sizes) - 1)]])
    ids = found.indices[rows]
    given = [project.labels[index]["target"] for index in ids.tolist()]
    query = {"review": True, "indices": ids, "scores": found.doubts[rows], "mean_score": float(found.doubts.mean())}
    return query | {"predictions": _squeezed(project, found.predictions[rows]), "given": given}


def _ask(folder: Path, project: Project, query: dict[str, Any]) -> Query:
    number, references = len(project.queries), project.content["references"]
    query = files.plain({"round": number} | query | {"references": [references[index] for index in query["indices"]]})
    files.write_text(folder / f"query-{number:04d}.label_studio.json", tasks_of(project, query)[0])
    files.write_json(folder / f"query-{number:04d}.json", query, project.id)  # a query is there once all of it is
    project.queries.append(query)
    return _as_query(folder, project)


def _as_query(folder: Path, project: Project) -> Query:
    query = project.queries[-1]
    path, (tasks, reasons) = folder / f"query-{query['round']:04d}.label_studio.json", tasks_of(project, query)
    if path.exists() and path.read_bytes() != tasks.encode():
        raise ValueError(f"{path} is damaged or not what was asked for: delete it, and propose writes it anew")
    files.write_text(path, tasks)
    ids, waiting = np.array(query["indices"], np.int32), np.array(project.waiting, np.int32)
    return Query(query["round"], ids, np.array(query["scores"], float), waiting, path, tuple(reasons))
