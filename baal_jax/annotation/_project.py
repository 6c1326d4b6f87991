"""A labelling project as a folder: ask, wait for people, read their answers, ask again."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool
from baal_jax._util import checks, files, sources
from baal_jax.annotation._label_studio import Kind, from_label_studio, labelling_config, to_label_studio
from baal_jax.loop import ActiveLoop
from baal_jax.loop import query as query_pool
from baal_jax.metrics import model_average
from baal_jax.training import tasks
from baal_jax.typing import Acquisition, Dataset, Key, LoopState, PyTree

_CURE = "restore it from a backup"
_KEPT = ("id", "name", "formerly", "excluded")  # of a project that was amended


class Query(NamedTuple):
    """What people are asked for.

    Attributes:
        round: number of the query, from 0.
        indices: ``int[Q]``, ids in order of picking.
        scores: ``float[Q]``, NaN where nothing was scored.
        waiting: ``int[W]``, those of them without an answer yet.
        tasks: the file to import into Label Studio.
    """

    round: int
    indices: np.ndarray
    scores: np.ndarray
    waiting: np.ndarray
    tasks: Path


class Ingested(NamedTuple):
    """What an export has brought.

    Attributes:
        new: ids that have an answer now, and had none.
        corrected: ids whose answer is another than before.
        unchanged: ids whose answer was known.
        skipped: ids that nobody would answer; they are not asked for again.
        waiting: ids of the latest query that are still without an answer.
        outdated: ids about which the folder has something newer, by the times of the annotations, and keeps it.
    """

    new: np.ndarray
    corrected: np.ndarray
    unchanged: np.ndarray
    skipped: np.ndarray
    waiting: np.ndarray
    outdated: np.ndarray


class _Project(NamedTuple):
    """All that is in the folder of a project."""

    content: dict[str, Any]  # of project.json
    id: str  # the digest that it began with, which the other files carry
    queries: list[dict[str, Any]]
    labels: dict[int, dict[str, Any]]  # id → target, round, annotator and time
    skipped: dict[int, dict[str, Any]]  # id → round and time

    @property
    def rounds(self) -> dict[int, int]:
        """Id → the last query that asked for it: what has an answer is not asked for again."""
        return {index: query["round"] for query in self.queries for index in query["indices"]}

    @property
    def waiting(self) -> list[int]:
        """Ids of the last query, if any, that have no answer."""
        indices = self.queries[-1]["indices"] if self.queries else []
        over = {*self.labels, *self.skipped, *self.content.get("excluded", ())}
        return [index for index in indices if index not in over]


def start(
    folder: str | Path,
    *,
    references: Sequence[str],
    class_names: Sequence[str] | None = None,
    kind: Kind = "image",
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Begins a project, or makes sure that the one in the folder is this one.

    Args:
        folder: made if it is not there.
        references: ``N``, what people are shown of the pool: URLs or paths of images for Label Studio, or texts.
        class_names: names of the ``C`` classes; None for numbers.
        kind: of what is shown.
        config: whatever else is worth keeping in ``project.json``.

    Returns:
        The path of ``project.json``.

    Raises:
        ValueError: the folder holds another project or what is left of one, or text is missing or cannot be written.
    """
    folder = Path(folder)
    names = None if class_names is None else [str(name) for name in class_names]
    content = {"kind": kind, "class_names": names, "config": files.plain(config or {})}
    content["references"] = [str(reference) for reference in references]
    if not content["references"]:
        raise ValueError("references is empty: give one for each example of the pool")
    for name in ("class_names", "references", "config"):
        checks.text(name, content[name], lines=name != "class_names")
    interface = labelling_config(class_names, kind)
    path, written = folder / "project.json", [*folder.glob("labels.json"), *folder.glob("query-*.json")]
    if path.exists():
        old = files.read_json(path, _CURE)
        for name, value in content.items():
            if old.get(name) != value:
                shown = "" if name == "references" else f" ({old.get(name)!r}, now {value!r})"
                raise ValueError(f"{path} is of a project with other {name}{shown}: use another folder")
        content |= {name: old[name] for name in _KEPT if name in old}
    elif written:
        raise ValueError(f"{written[0]} is there, but no {path.name}: {_CURE}, or use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, content)
    files.write_text(folder / "label_config.xml", interface + "\n")
    if not written:  # nothing was asked for yet
        _write_labels(folder, _id(files.read_json(path, _CURE)), {}, {})
    return path


def amend(
    folder: str | Path,
    *,
    references: Sequence[str] = (),
    classes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    exclude: Sequence[int] = (),
) -> Path:
    """Changes a project that has begun: nothing is lost, no id changes, and every label stays where it is.

    Exports of tasks that were written before are read as they would be now, under the names that classes have now.

    Args:
        folder: of the project.
        references: of new examples, which get the ids from ``N`` on; later calls of :func:`propose` get inputs of all.
        classes: names of new classes, after those that there are.
        rename: name of a class → its new name.
        exclude: ids that are neither asked for nor trained on any more; what was said of them is kept.

    Returns:
        The path of ``project.json``, which is written last.

    Raises:
        ValueError: no project, a reference that it has, a class that it lacks or has, or an id beyond its examples.
    """
    folder = Path(folder)
    project = _read(folder)
    content, rename = {**project.content, "id": project.id, "name": _name(project.content)}, dict(rename or {})
    known, new = content["references"], [str(reference) for reference in references]
    if twice := [one for i, one in enumerate(new) if one in known or one in new[:i]]:
        raise ValueError(f"references holds {twice[0]!r}, which the project has: give new ones")
    content["references"] = [*known, *new]
    names = content["class_names"]
    if classes or rename:
        if names is None:
            raise ValueError("classes cannot change where people give numbers")
        if unknown := [old for old in rename if old not in names]:
            raise ValueError(f"rename={unknown[0]!r} is none of the classes {', '.join(names)}")
        names = [*(rename.get(name, name) for name in names), *map(str, classes)]
        content["class_names"] = names
        before = {old: rename.get(new, new) for old, new in content.get("formerly", {}).items()}
        content["formerly"] = {old: new for old, new in (before | rename).items() if old not in names}
    checks.indices("exclude", np.array(exclude, np.int64), len(content["references"]))
    content["excluded"] = sorted({*content.get("excluded", []), *(int(index) for index in exclude if index >= 0)})
    for name in ("class_names", "references"):
        checks.text(name, content[name], lines=name != "class_names")
    files.write_text(folder / "label_config.xml", labelling_config(names, content["kind"]) + "\n")
    for query in project.queries[-1:]:
        files.write_text(folder / f"query-{query['round']:04d}.label_studio.json", _tasks(content, query))
    return files.write_json(folder / "project.json", content)


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

    Returns:
        A :class:`Query`. ``query-R.json`` and ``query-R.label_studio.json`` are in the folder.

    Raises:
        ValueError: no project, a file of it is damaged, lost or another's (named), other inputs, or nothing is left.
    """
    folder = Path(folder)
    project = _read(folder)
    num_examples = len(project.content["references"])
    on_host = sources.is_source(inputs)
    given = len(inputs) if on_host else checks.leading_axis("inputs", inputs)
    if given != num_examples:
        held = f"inputs holds {given} examples, but the project {num_examples}"
        raise ValueError(f"{held}: pass the pool that it was started with")
    checks.typed_key("key", key)
    if project.waiting and not give_up:
        return _as_query(folder, project)
    tasks.admit("pool", Dataset(inputs))
    number = len(project.queries)
    answered = _answers(project)
    if limits is not None:
        if limits.labelled_at.shape != (num_examples,):
            raise ValueError(f"limits are of {len(limits.labelled_at)} examples, but the project holds {num_examples}")
        answered = answered._replace(costs=limits.costs, groups=limits.groups, quota=limits.quota)
        answered = pool.exclude(answered, np.flatnonzero(np.asarray(limits.labelled_at) < -1))
    left = int(pool.num_available(answered))
    if not left:
        raise ValueError(f"folder={str(folder)!r}: all {num_examples} examples have been answered or skipped")
    key_rounds, key_first = jax.random.split(key)  # as in a loop, whose picks are the same for the same key
    shown = None
    if not int(pool.num_labelled(answered)):
        size = min(checks.positive_int("num_initial", num_initial), left)
        if number:  # the first query was given up: ask for others
            key_first = jax.random.fold_in(key_first, number)
        selection = pool.first_query(key_first, answered, size, cold_start, embeddings)
    else:
        state = LoopState(key_rounds, answered, None, step=jnp.asarray(max(number - 1, 0), jnp.int32))
        fitted, selection, info = query_pool(loop, state, Dataset(inputs), target_inputs)
        if int(info.num_failed_fits):
            look = "look at the learning rate, the loss and the validation set before you ask people"
            warnings.warn(f"the fit is not finite or ended where it began: {look}", stacklevel=2)
        rows = np.maximum(np.asarray(selection.indices), 0)
        queried = sources.load(inputs, rows) if on_host else jax.tree.map(lambda leaf: leaf[rows], inputs)
        outputs = loop.predict(loop.round.advance(state, fitted, selection), queried)
        names = project.content["class_names"]
        if names is None:  # of a mean and a log-variance the mean
            shown = jnp.mean(outputs.reshape(*outputs.shape[:2], -1)[..., 0], axis=0)
        elif outputs.shape[-1] != len(names):
            sizes = f"{outputs.shape[-1]} outputs for the {len(names)} classes"
            raise ValueError(f"loop has {sizes} of the project: make them equal")
        else:
            shown = jnp.exp(model_average(outputs))
    kept = np.asarray(selection.indices) >= 0
    ids = np.asarray(selection.indices)[kept]
    query = {"round": number, "indices": ids, "scores": np.asarray(selection.scores, np.float64)[kept]}
    query["predictions"] = None if shown is None else np.asarray(shown, np.float64)[kept]
    query = files.plain(query | {"references": [project.content["references"][index] for index in ids]})
    files.write_text(folder / f"query-{number:04d}.label_studio.json", _tasks(project.content, query))
    files.write_json(folder / f"query-{number:04d}.json", query, project.id)  # a query is there once all of it is
    project.queries.append(query)
    return _as_query(folder, project)


def ingest(folder: str | Path, export: str | Path, *, several: Literal["newest", "majority"] = "newest") -> Ingested:
    """Reads an export, checks all of it, and then keeps its answers: all of them or, where something is wrong, none.

    The same export twice changes nothing; a later one may correct answers, take them back by skipping, and hold any
    part of what was asked for. An earlier one that is late undoes nothing: of two answers with times the newer is kept.

    Args:
        folder: of the project.
        export: a file that Label Studio exported as JSON.
        several: what counts where several people answered, see :func:`from_label_studio`.

    Returns:
        :class:`Ingested`. ``labels.json`` has all answers.

    Raises:
        ValueError: no project, nothing asked for, a damaged file, or a wrong export; the message names file and task.
    """
    folder, export = Path(folder), Path(export)
    project = _read(folder)
    content, labels, skipped = project.content, project.labels, project.skipped
    if not project.queries:
        raise ValueError(f"folder={str(folder)!r} has asked for nothing yet: propose first")
    if not export.is_file():
        raise ValueError(f"export={str(export)!r} is no file: give the JSON that Label Studio exported")
    with files.about(export, "export again, as JSON"):
        tasks = json.loads(export.read_text(encoding="utf-8-sig"))
    rounds = project.rounds
    of_project = {"kind": content["kind"], "project": _name(content), "num_examples": len(content["references"])}
    of_project |= {"proposed": rounds, "source": export.name}
    tasks = _renamed(tasks, content.get("formerly", {}))
    annotations = from_label_studio(tasks, content["class_names"], several=several, **of_project)
    checks.text(f"{export.name}: annotators", annotations.annotators)
    changes: dict[str, list[int]] = {name: [] for name in Ingested._fields}
    for place, index in enumerate(annotations.indices.tolist()):
        label = {"target": annotations.targets[place].item(), "round": rounds[index]}
        label |= {"annotator": annotations.annotators[place], "time": annotations.times.get(index)}
        old = labels.get(index)
        same = old is not None and old["target"] == label["target"]
        if _is_newer(old or skipped.get(index), label["time"]):
            changes["unchanged" if same else "outdated"].append(index)
            continue
        changes["new" if old is None else "unchanged" if same else "corrected"].append(index)
        labels[index] = label
        skipped.pop(index, None)
    for index in annotations.skipped.tolist():
        time = annotations.times.get(index)
        if _is_newer(labels.get(index) or skipped.get(index), time):
            changes["skipped" if index in skipped else "outdated"].append(index)
            continue
        changes["skipped"].append(index)
        labels.pop(index, None)
        skipped[index] = {"round": rounds[index], "time": time}
    _write_labels(folder, project.id, labels, skipped)
    changes["waiting"] = project.waiting
    return Ingested(*(np.array(changes[name], np.int32) for name in Ingested._fields))


def _renamed(tasks: Any, formerly: Mapping[str, str]) -> Any:
    """An export, whose classes have the names that they have now."""
    if isinstance(tasks, list):
        return [_renamed(one, formerly) for one in tasks]
    if isinstance(tasks, dict):
        told = {name: _renamed(one, formerly) for name, one in tasks.items()}
        if isinstance(choices := told.get("choices"), list):
            told["choices"] = [formerly.get(one, one) if isinstance(one, str) else one for one in choices]
        return told
    return tasks


def _is_newer(known: Mapping[str, Any] | None, time: str | None) -> bool:
    """Whether the folder's answer was given after ``time``; what has no time is as new as its export."""
    if known is None or known["time"] is None or time is None:
        return False
    return datetime.fromisoformat(known["time"]) > datetime.fromisoformat(time)


def read_project(folder: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """What ``project.json`` says, and answers by id: target, round, annotator and time."""
    project = _read(folder)
    return project.content, project.labels


def answers(folder: str | Path) -> pool.PoolState:
    """All answers so far, as a pool that stores them.

    Args:
        folder: of the project.

    Returns:
        A :class:`~baal_jax.PoolState` that stores targets, −1 (numbers: NaN) where there is no answer; ``labelled_at``
        holds the query that asked. What was skipped is excluded: neither trained on nor queried again.
    """
    return _answers(_read(Path(folder)))


def _answers(project: _Project) -> pool.PoolState:
    num_examples, is_number = len(project.content["references"]), project.content["class_names"] is None
    targets = np.full(num_examples, np.nan if is_number else -1, np.float32 if is_number else np.int32)
    labelled_at = np.full(num_examples, -1, np.int32)
    excluded = {*project.content.get("excluded", ())}
    for index, label in project.labels.items():
        if index not in excluded:
            targets[index], labelled_at[index] = label["target"], label["round"]
    number = jnp.asarray(len(project.queries), jnp.int32)
    state = pool.PoolState(jnp.asarray(labelled_at), number, jax.device_put(targets))
    return pool.exclude(state, np.array(sorted({*project.skipped, *excluded}), np.int32))


def _read(folder: Path) -> _Project:
    """Reads and looks at all files of a project."""
    content = files.read_json(folder / "project.json", "start a project first, or restore it from a backup")
    project = _Project(content, _id(content), [], {}, {})
    for number in range(sum(bool(re.fullmatch(r"query-\d{4,}\.json", path.name)) for path in folder.iterdir())):
        path = folder / f"query-{number:04d}.json"
        query = files.read_json(path, _CURE, project.id)
        with files.about(path, _CURE):
            checks.indices("indices", query["indices"], len(content["references"]))
            if query["references"] != [content["references"][index] for index in query["indices"]]:
                raise ValueError("its references are not those of the project")
        project.queries.append(query)
    cure, rounds, names = _CURE if project.queries else "call start again", project.rounds, content["class_names"]
    record = files.read_json(folder / "labels.json", cure, project.id)
    with files.about(folder / "labels.json", _CURE):
        for name, known in (("labels", project.labels), ("skipped", project.skipped)):
            known.update((int(index), said) for index, said in record[name].items())
            for index, said in known.items():
                datetime.fromisoformat(said["time"] or "2000-01-01")
                if rounds.get(index) != said["round"] or (known is project.skipped and index in project.labels):
                    raise ValueError(f"query-{said['round']:04d}.json, if it is there, does not wait for {index}")
                target = said.get("target", 0)
                if not (np.isfinite(target) if names is None else target in range(len(names))):
                    raise ValueError(f"{index} has the target {target}")
    return project


def _id(content: Mapping[str, Any]) -> str:
    return content.get("id") or files.digest(content)


def _name(project: Mapping[str, Any]) -> str:
    """A name for the tasks of a project: ids mean the same wherever references, classes and what is shown agree."""
    return project.get("name") or files.digest([project[name] for name in ("kind", "class_names", "references")])[:16]


def _as_query(folder: Path, project: _Project) -> Query:
    query = project.queries[-1]
    path, tasks = folder / f"query-{query['round']:04d}.label_studio.json", _tasks(project.content, query)
    if path.exists() and path.read_bytes() != tasks.encode():
        raise ValueError(f"{path} is damaged or not what was asked for: delete it, and propose writes it anew")
    files.write_text(path, tasks)
    ids, waiting = np.array(query["indices"], np.int32), np.array(project.waiting, np.int32)
    return Query(query["round"], ids, np.array(query["scores"], float), waiting, path)


def _tasks(project: Mapping[str, Any], query: Mapping[str, Any]) -> str:
    guesses = query["predictions"]
    if guesses and project["class_names"]:  # a class that came later was not guessed
        guesses = [[*row, *[0.0] * (len(project["class_names"]) - len(row))] for row in guesses]
    told: dict[str, Any] = {"kind": project["kind"], "project": _name(project), "predictions": guesses}
    scores = np.array(query["scores"], float)  # None is NaN
    tasks = to_label_studio(query["indices"], query["references"], project["class_names"], scores=scores, **told)
    return json.dumps(tasks, indent=1, ensure_ascii=False) + "\n"


def _write_labels(folder: Path, project: str, labels: Mapping[int, Any], skipped: Mapping[int, Any]) -> None:
    parts = {"labels": labels, "skipped": skipped}
    content = {name: {str(index): said[index] for index in sorted(said)} for name, said in parts.items()}
    files.write_json(folder / "labels.json", content, project)
