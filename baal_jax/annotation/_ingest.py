"""Answers that come back: exports of Label Studio, and tables of labels."""

import csv
import io
import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from baal_jax._util import checks, files
from baal_jax.annotation._label_studio import Annotations, from_label_studio
from baal_jax.annotation._project import Project, name_of, read, write_labels


class Ingested(NamedTuple):
    """What an export has brought.

    Attributes:
        new: ids that have an answer now, and had none.
        corrected: ids whose answer is another than before.
        unchanged: ids whose answer was known.
        skipped: ids that nobody would answer; they are not asked for again.
        waiting: ids of the latest query that are still without an answer.
        disputed: ids about which annotators do not agree; :func:`export` lists who said what.
        outdated: ids about which the folder has something newer, by the times of the annotations, and keeps it.
    """

    new: np.ndarray
    corrected: np.ndarray
    unchanged: np.ndarray
    skipped: np.ndarray
    waiting: np.ndarray
    disputed: np.ndarray
    outdated: np.ndarray


def ingest(folder: str | Path, export: str | Path, *, several: Literal["newest", "majority"] = "newest") -> Ingested:
    """Reads an export, checks all of it, and then keeps its answers: all of them or, where something is wrong, none.

    The same export twice changes nothing; a later one may correct answers, take them back by skipping, and hold any
    part of what was asked for. An earlier one that is late undoes nothing: of two answers with times the newer is kept.

    A table (``.csv``) brings labels from elsewhere, of examples that were never asked for, too: columns ``id`` or
    ``reference`` and ``label`` (of several labels a JSON list), and if there are such ``annotator`` and ``time``, as in
    the ``labels.csv`` of :func:`export`. Rows without a label say nothing.

    Args:
        folder: of the project.
        export: a file that Label Studio exported as JSON, or a table of labels.
        several: what counts where several people answered, see :func:`from_label_studio`.

    Returns:
        :class:`Ingested`. ``labels.json`` has all answers.

    Raises:
        ValueError: no project, nothing asked for, a damaged file, or a wrong export; the message names file and task
            or row.
    """
    folder, export = Path(folder), Path(export)
    project = read(folder)
    content, labels, skipped = project.content, project.labels, project.skipped
    is_table = export.suffix.lower() == ".csv"
    if not project.queries and not is_table:
        raise ValueError(f"folder={str(folder)!r} has asked for nothing yet: propose first")
    if not export.is_file():
        raise ValueError(f"export={str(export)!r} is no file: give the JSON that Label Studio exported, or a .csv")
    with files.about(export, "export again, as JSON" if not is_table else "save it as CSV in UTF-8"):
        text = export.read_text(encoding="utf-8-sig")
        tasks = _of_table(text, export, project) if is_table else json.loads(text)
    of_project = {"kind": content["kind"], "project": name_of(content), "num_examples": len(content["references"])}
    of_project |= {"multi_label": project.is_multi_label, "source": export.name}
    if not is_table:
        tasks = _renamed(tasks, content.get("formerly", {}))
        of_project["proposed"] = {index for query in project.queries for index in query["indices"]}
    annotations = from_label_studio(tasks, content["class_names"], several=several, **of_project)
    checks.text(f"{export.name}: annotators", annotations.annotators)
    changes: dict[str, list[int]] = {name: [] for name in Ingested._fields}
    for place, index in enumerate(annotations.indices.tolist()):
        label = _label(project, annotations, place, index)
        old = labels.get(index)
        same = old is not None and old["target"] == label["target"]
        if _is_newer(old or skipped.get(index), label["time"]):
            changes["unchanged" if same else "outdated"].append(index)
            continue
        changes["new" if old is None else "unchanged" if same else "corrected"].append(index)
        changes["disputed"] += [index] if "said" in label else []
        labels[index] = label
        skipped.pop(index, None)
    for index in annotations.skipped.tolist():
        time = annotations.times.get(index)
        if _is_newer(labels.get(index) or skipped.get(index), time):
            changes["skipped" if index in skipped else "outdated"].append(index)
            continue
        changes["skipped"].append(index)
        was = labels.pop(index, None) or {}
        kept = {name: was[name] for name in ("imported",) if name in was}
        skipped[index] = {"round": project.rounds.get(index, 0), "time": time, **kept}
    write_labels(folder, project.id, labels, skipped)
    changes["waiting"] = project.waiting
    return Ingested(*(np.array(changes[name], np.int32) for name in Ingested._fields))


def _label(project: Project, annotations: Annotations, place: int, index: int) -> dict[str, Any]:
    """What ``labels.json`` keeps of an answer."""
    rounds, old, time = project.rounds, project.labels.get(index, {}), annotations.times.get(index)
    told = {"target": _known(project, annotations.targets[place].tolist(), time), "round": rounds.get(index, 0)}
    told |= {"annotator": annotations.annotators[place], "time": time}
    if index not in rounds:
        told["imported"] = True
    number = annotations.reviewed.get(index, old.get("reviewed"))
    if number is not None:
        query = project.queries[number] if number < len(project.queries) else {}
        if not query.get("review") or index not in query["indices"]:
            raise ValueError(f"there was no review {number} of {index}: is it an export of this project?")
        told["reviewed"] = number
    if index in annotations.disputed:
        votes = annotations.disputed[index]
        told["said"] = [[who, _known(project, files.plain(target), when), when] for who, target, when in votes]
    return told


def _known(project: Project, target: Any, time: str | None) -> Any:
    """An answer; of labels that came after it, it says nothing."""
    if not project.is_multi_label or time is None:
        return target
    since, said = project.content.get("since", {}), datetime.fromisoformat(time)
    came = [name in since and said < datetime.fromisoformat(since[name]) for name in project.names or ()]
    return [-1 if late and not value else value for value, late in zip(target, came, strict=True)]


def _of_table(text: str, source: Path, project: Project) -> list[dict[str, Any]]:
    """Rows as the tasks of an export."""
    references, kind, found = project.content["references"], project.content["kind"], {}
    places: dict[str, list[int]] = {}
    for index, reference in enumerate(references):
        places.setdefault(reference, []).append(index)
    rows = csv.DictReader(io.StringIO(text, newline=""))
    heads = rows.fieldnames or []
    if "label" not in heads or not {"id", "reference"} & {*heads}:
        raise ValueError(f"{source} has the columns {', '.join(heads)}: name them id or reference, and label")
    for number, row in enumerate(rows, 2):
        where, label = f"row {number} of {source}", (row["label"] or "").strip()
        if not label:
            continue
        if row.get("id"):
            if not row["id"].strip().isdigit() or int(row["id"]) >= len(references):
                raise ValueError(f"{where} has the id {row['id']!r}, of {len(references)} examples: correct it")
            index = int(row["id"])
            if row.get("reference") and row["reference"] != references[index]:
                raise ValueError(
                    f"{where} has {index} as {row['reference']!r}, which is {references[index]!r}: correct it"
                )
        elif len(same := places.get(row.get("reference") or "", [])) != 1:
            why = "that of several examples: name the id" if same else "that of no example: correct it"
            raise ValueError(f"{where} has the reference {row.get('reference')!r}, {why}")
        else:
            index = same[0]
        result = {"from_name": "label", "to_name": kind, **_result(project, label, where)}
        said = {"result": [result], "completed_by": row.get("annotator") or None, "created_at": row.get("time") or None}
        data = {"baal_index": index, "baal_project": name_of(project.content)}
        found.setdefault(index, {"data": data, "annotations": []})["annotations"].append(said)
    return list(found.values())


def _result(project: Project, label: str, where: str) -> dict[str, Any]:
    names, formerly = project.names, project.content.get("formerly", {})
    if names is None:
        try:
            return {"type": "number", "value": {"number": float(label)}}
        except ValueError:
            raise ValueError(f"{where} has the label {label!r}, which is no number: correct it") from None
    labels = [label]
    if project.is_multi_label and label not in names:
        try:
            labels = [str(name) for name in json.loads(label)]
        except (ValueError, TypeError):
            raise ValueError(f'{where} has the label {label!r}: write a list such as ["a", "b"]') from None
    labels = [formerly.get(name, name) for name in labels]
    if unknown := [name for name in labels if name not in names]:
        raise ValueError(f"{where} has the label {unknown[0]!r}: the classes are {', '.join(names)}")
    return {"type": "choices", "value": {"choices": labels}}


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
