"""A labelling project as a folder: what is in it, how it begins and changes. Each file is written whole, one last."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import pool
from baal_jax._util import checks, files
from baal_jax.annotation._label_studio import Kind, labelling_config, to_label_studio
from baal_jax.metrics import model_average

CURE = "restore it from a backup"
_KEPT = ("id", "name", "formerly", "excluded", "since")  # of a project that was amended


class Project(NamedTuple):
    """All that is in the folder of a project."""

    content: dict[str, Any]  # of project.json
    id: str  # the digest that it began with, which the other files carry
    queries: list[dict[str, Any]]
    labels: dict[int, dict[str, Any]]  # id → target, round, annotator, time, and perhaps imported, reviewed, said
    skipped: dict[int, dict[str, Any]]  # id → round and time

    @property
    def names(self) -> list[str] | None:
        """Of the classes; None where people give numbers."""
        return self.content["class_names"]

    @property
    def is_multi_label(self) -> bool:
        """Whether any number of classes may be right."""
        return bool(self.content.get("multi_label"))

    @property
    def asked(self) -> list[dict[str, Any]]:
        """The queries that asked for something new, no reviews."""
        return [query for query in self.queries if not query.get("review")]

    @property
    def rounds(self) -> dict[int, int]:
        """Id → the last query that asked for it: what has an answer is not asked for again, but for reviews."""
        return {index: query["round"] for query in self.asked for index in query["indices"]}

    @property
    def waiting(self) -> list[int]:
        """Ids of the last query, if any, that have no answer."""
        if not self.queries:
            return []
        last, over = self.queries[-1], {*self.skipped, *self.content.get("excluded", ())}
        is_review = last.get("review")
        over |= {i for i, said in self.labels.items() if not is_review or said.get("reviewed") == last["round"]}
        return [index for index in last["indices"] if index not in over]

    def text(self, target: Any) -> str:
        """What a target is called."""
        if self.names is None:
            return repr(float(target))
        if self.is_multi_label:
            there = [name for name, value in zip(self.names, target, strict=False) if value == 1]
            return json.dumps(there, ensure_ascii=False)
        return self.names[target]


def means_of(content: Mapping[str, Any], outputs: jax.Array) -> jax.Array:
    """What outputs ``[S, N, …]`` say on average: probabilities ``[N, C]``, or numbers ``[N, 1]``."""
    names = content["class_names"]
    if names is None:  # of a mean and a log-variance the mean
        return jnp.mean(outputs.reshape(*outputs.shape[:2], -1)[..., 0], axis=0)[:, None]
    if outputs.shape[-1] != len(names):
        sizes = f"{outputs.shape[-1]} outputs for the {len(names)} classes"
        raise ValueError(f"loop has {sizes} of the project: make them equal")
    if content.get("multi_label"):
        return jnp.mean(jax.nn.sigmoid(outputs), axis=0)
    return jnp.exp(model_average(outputs))


def start(
    folder: str | Path,
    *,
    references: Sequence[str],
    class_names: Sequence[str] | None = None,
    kind: Kind = "image",
    multi_label: bool = False,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Begins a project, or makes sure that the one in the folder is this one.

    Args:
        folder: made if it is not there.
        references: ``N``, what people are shown of the pool: URLs or paths of images for Label Studio, or texts.
        class_names: names of the ``C`` classes; None for numbers.
        kind: of what is shown.
        multi_label: any number of classes may be right, or none; a loop has one output a class then, and its loss is
            ``losses.binary_cross_entropy``.
        config: whatever else is worth keeping in ``project.json``.

    Returns:
        The path of ``project.json``.

    Raises:
        ValueError: the folder holds another project or what is left of one, or text is missing or cannot be written.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> annotation.start(folder, references=["a.png", "b.png"], class_names=["cat", "dog"]).name
        'project.json'
    """
    folder = Path(folder)
    names = None if class_names is None else [str(name) for name in class_names]
    content = {"kind": kind, "class_names": names, "config": files.plain(config or {})}
    content |= {"multi_label": True} if multi_label else {}
    content["references"] = [str(reference) for reference in references]
    if not content["references"]:
        raise ValueError("references is empty: give one for each example of the pool")
    for name in ("class_names", "references", "config"):
        checks.text(name, content[name], lines=name != "class_names")
    interface = labelling_config(class_names, kind, multi_label=multi_label)
    path, written = folder / "project.json", [*folder.glob("labels.json"), *folder.glob("query-*.json")]
    if path.exists():
        old = files.read_json(path, CURE)
        for name in content | {"multi_label": False}:
            if old.get(name, False) != (value := content.get(name, False)):
                shown = "" if name == "references" else f" ({old.get(name)!r}, now {value!r})"
                raise ValueError(f"{path} is of a project with other {name}{shown}: use another folder")
        content |= {name: old[name] for name in _KEPT if name in old}
    elif written:
        raise ValueError(f"{written[0]} is there, but no {path.name}: {CURE}, or use another folder")
    folder.mkdir(parents=True, exist_ok=True)
    files.write_json(path, content)
    files.write_text(folder / "label_config.xml", interface + "\n")
    if not written:  # nothing was asked for yet
        write_labels(folder, _id(files.read_json(path, CURE)), {}, {})
    return path


def amend(
    folder: str | Path,
    *,
    references: Sequence[str] = (),
    classes: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    exclude: Sequence[int] = (),
    config: Mapping[str, Any] | None = None,
) -> Path:
    """Changes a project that has begun: nothing is lost, no id changes, and every label stays where it is.

    Exports of tasks that were written before are read as they would be now, under the names that classes have now.

    Args:
        folder: of the project.
        references: of new examples, which get the ids from ``N`` on; later calls of :func:`propose` get inputs of all.
        classes: names of new classes, after those that there are. Where any number of classes may be right, an answer
            from before says nothing about them.
        rename: name of a class → its new name.
        exclude: ids that are neither asked for nor trained on any more; what was said of them is kept.
        config: what ``project.json`` keeps from now on instead of what :func:`start` was given.

    Returns:
        The path of ``project.json``, which is written last.

    Raises:
        ValueError: no project, a reference that it has, a class that it lacks or has, or an id beyond its examples.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> _ = annotation.start(folder, references=["a.png", "b.png"], class_names=["cat", "dog"])
        >>> _ = annotation.amend(folder, references=["c.png"], classes=["fox"], exclude=[0])
        >>> annotation.answers(folder).labelled_at.tolist()  # excluded, and two that are available
        [-2, -1, -1]
    """
    folder = Path(folder)
    project = read(folder)
    content, rename = {**project.content, "id": project.id, "name": name_of(project.content)}, dict(rename or {})
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
        before = content.get("formerly", {})
        for new in (*rename.values(), *map(str, classes)):  # an old export would be read wrongly
            owner = before.get(new, new if new in names else None)
            if owner is not None and rename.get(owner) != new:
                raise ValueError(f"{new!r} is or was the name of the class {owner!r}: choose another")
        names = [*(rename.get(name, name) for name in names), *map(str, classes)]
        content["class_names"] = names
        before = {old: rename.get(new, new) for old, new in before.items()}
        content["formerly"] = {old: new for old, new in (before | rename).items() if old not in names}
        since = {rename.get(name, name): time for name, time in content.get("since", {}).items()}
        if project.is_multi_label:
            content["since"] = since | dict.fromkeys(map(str, classes), datetime.now(UTC).isoformat())
    checks.indices("exclude", np.array(exclude, np.int64), len(content["references"]))
    content["excluded"] = sorted({*content.get("excluded", []), *(int(index) for index in exclude if index >= 0)})
    if config is not None:
        content["config"] = files.plain(config)
    for name in ("class_names", "references", "config"):
        checks.text(name, content[name], lines=name != "class_names")
    files.write_text(
        folder / "label_config.xml", labelling_config(names, content["kind"], multi_label=project.is_multi_label) + "\n"
    )
    for query in project.queries[-1:]:
        files.write_text(
            folder / f"query-{query['round']:04d}.label_studio.json",
            tasks_of(project._replace(content=content), query)[0],
        )
    return files.write_json(folder / "project.json", content)


def answers(folder: str | Path) -> pool.PoolState:
    """All answers so far, as a pool that stores them.

    Args:
        folder: of the project.

    Returns:
        A :class:`~baal_jax.PoolState` that stores targets, −1 (numbers: NaN) where there is no answer; ``labelled_at``
        holds the query that asked, reviews aside, 0 for labels from a table. What was skipped is excluded: neither
        trained on nor queried again.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> _ = annotation.start(folder, references=["a.png", "b.png"], class_names=["cat", "dog"])
        >>> np.savetxt(f"{folder}/said.csv", [["id", "label"], ["1", "dog"]], fmt="%s", delimiter=",")
        >>> _ = annotation.ingest(folder, f"{folder}/said.csv")
        >>> annotation.answers(folder).targets.tolist()
        [-1, 1]
    """
    return answers_of(read(Path(folder)))


def answers_of(project: Project) -> pool.PoolState:
    """See :func:`answers`."""
    names, num_examples = project.names, len(project.content["references"])
    shape = (num_examples, len(names)) if names and project.is_multi_label else (num_examples,)
    targets = np.full(shape, np.nan if names is None else -1, np.float32 if names is None else np.int32)
    labelled_at = np.full(num_examples, -1, np.int32)
    excluded = {*project.content.get("excluded", ())}
    place = {query["round"]: i for i, query in enumerate(project.asked)}
    for index, label in project.labels.items():
        if index not in excluded:
            said = label["target"]
            targets[index] = said if targets.ndim == 1 else [*said, *[-1] * (shape[-1] - len(said))]
            labelled_at[index] = place.get(label["round"], 0)
    number = jnp.asarray(len(place), jnp.int32)
    state = pool.PoolState(jnp.asarray(labelled_at), number, jax.device_put(targets))
    return pool.exclude(state, np.array(sorted({*project.skipped, *excluded}), np.int32))


def read(folder: Path) -> Project:
    """Reads and looks at all files of a project."""
    content = files.read_json(folder / "project.json", "start a project first, or restore it from a backup")
    project = Project(content, _id(content), [], {}, {})
    for number in range(sum(bool(re.fullmatch(r"query-\d{4,}\.json", path.name)) for path in folder.iterdir())):
        path = folder / f"query-{number:04d}.json"
        query = files.read_json(path, CURE, project.id)
        with files.about(path, CURE):
            checks.indices("indices", query["indices"], len(content["references"]))
            if query["references"] != [content["references"][index] for index in query["indices"]]:
                raise ValueError("its references are not those of the project")
        project.queries.append(query)
    cure, rounds = CURE if project.queries else "call start again", project.rounds
    record = files.read_json(folder / "labels.json", cure, project.id)
    with files.about(folder / "labels.json", CURE):
        for name, known in (("labels", project.labels), ("skipped", project.skipped)):
            known.update((int(index), said) for index, said in record[name].items())
            for index, said in known.items():
                datetime.fromisoformat(said["time"] or "2000-01-01")
                is_known = said.get("imported") and index < len(content["references"]) and index not in rounds
                if not (is_known or rounds.get(index) == said["round"]) or (
                    known is project.skipped and index in project.labels
                ):
                    raise ValueError(f"query-{said['round']:04d}.json, if it is there, does not wait for {index}")
                if known is project.labels and not _is_target(project, said["target"]):
                    raise ValueError(f"{index} has the target {said['target']}")
    return project


def _is_target(project: Project, target: Any) -> bool:
    if project.names is None:
        return bool(np.isfinite(target))
    if project.is_multi_label:
        return len(target) <= len(project.names) and all(value in (-1, 0, 1) for value in target)
    return target in range(len(project.names))


def _id(content: Mapping[str, Any]) -> str:
    return content.get("id") or files.digest(content)


def name_of(project: Mapping[str, Any]) -> str:
    """A name for the tasks of a project: ids mean the same wherever references, classes and what is shown agree."""
    return project.get("name") or files.digest([project[name] for name in ("kind", "class_names", "references")])[:16]


def tasks_of(project: Project, query: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The tasks of a query as they are written, and why each is asked for."""
    guesses, content, names = query["predictions"], project.content, project.names
    if guesses and names:  # a class that came later was not guessed
        guesses = [[*row, *[0.0] * (len(names) - len(row))] for row in guesses]
    told: dict[str, Any] = {"kind": content["kind"], "multi_label": project.is_multi_label}
    told |= {"project": name_of(content), "predictions": guesses}
    if query.get("review"):
        told["review"] = query["round"]
    scores = np.array(query["scores"], float)  # None is NaN
    reasons = []
    if "mean_score" in query:  # queries of versions before have none
        reasons = [_why(project, query, row, guesses) for row in range(len(query["indices"]))]
        told["reasons"] = reasons
    tasks = to_label_studio(query["indices"], query["references"], names, scores=scores, **told)
    return json.dumps(tasks, indent=1, ensure_ascii=False) + "\n", reasons


def _why(project: Project, query: Mapping[str, Any], row: int, guesses: Sequence[Any] | None) -> str:
    score, mean, parts = query["scores"][row], query["mean_score"], []
    if guesses and project.names is None:
        parts.append(f"about {float(np.ravel(guesses[row])[0]):.4g}")
    elif guesses and project.names:
        values = np.array(guesses[row], float)
        given = np.array(query["given"][row]) if query.get("review") and project.is_multi_label else None
        near = (
            np.abs(values - 0.5) if given is None else np.where(given < 0, 0.0, -np.abs(values[: len(given)] - given))
        )
        order = np.argsort(near if project.is_multi_label else -values, kind="stable")[:2]
        parts.append(", ".join(f"{project.names[i]} {values[i]:.2f}" for i in order))
    if query.get("review"):
        return f"labelled {project.text(query['given'][row])}; a fit without it says {parts[0]}"
    if guesses and score is not None:
        left = "" if mean is None else f" (what is left has {mean:.3g} on average)"
        parts.append(f"score {score:.3g}{left}")
    return "; ".join(parts) or f"chosen before there was a fit, pick {row + 1} of {len(query['indices'])}"


def write_labels(folder: Path, project: str, labels: Mapping[int, Any], skipped: Mapping[int, Any]) -> None:
    """``labels.json``, by id."""
    parts = {"labels": labels, "skipped": skipped}
    content = {name: {str(index): said[index] for index in sorted(said)} for name, said in parts.items()}
    files.write_json(folder / "labels.json", content, project)
