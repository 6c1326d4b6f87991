"""Answers that come back: exports of Label Studio, and tables of labels."""

import csv
import io
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote

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
    ``reference`` and ``label`` (of several labels a JSON list, and a column ``unknown`` of those that nobody was asked
    for), and if there are such ``annotator`` and ``time``, as in the ``labels.csv`` of :func:`export`. Rows without a
    label say nothing.

    Args:
        folder: of the project.
        export: a file that Label Studio exported as JSON, or a table of labels.
        several: what counts where several people answered, see :func:`from_label_studio`.

    Returns:
        :class:`Ingested`. ``labels.json`` has all answers.

    Raises:
        ValueError: no project, nothing asked for, a damaged file, or a wrong export; the message names file and task
            or row.

    Example:
        >>> folder = tempfile.mkdtemp()
        >>> _ = annotation.start(folder, references=["a.png", "b.png"], class_names=["cat", "dog"])
        >>> np.savetxt(f"{folder}/said.csv", [["reference", "label"], ["b.png", "dog"]], fmt="%s", delimiter=",")
        >>> annotation.ingest(folder, f"{folder}/said.csv").new
        array([1], dtype=int32)
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
    of_project |= {"multi_label": project.is_multi_label, "source": export.name, "since": content.get("since")}
    if not is_table:
        tasks = _renamed(tasks, content.get("formerly", {}))
        of_project["proposed"] = {index for query in project.queries for index in query["indices"]}
    annotations = from_label_studio(tasks, content["class_names"], several=several, **of_project)
    checks.text(f"{export.name}: annotators", annotations.annotators)
    changes: dict[str, list[int]] = {name: [] for name in Ingested._fields}
    for place, index in enumerate(annotations.indices.tolist()):
        label = _label(project, annotations, place, index)
        old = labels.get(index)
        same = old is not None and _padded(project, old["target"]) == label["target"]
        if _is_newer(old or skipped.get(index), label["time"]):
            changes["unchanged" if same else "outdated"].append(index)
            if old is not None and "reviewed" in label:
                old["reviewed"] = label["reviewed"]
            continue
        if same and old is not None and old["time"] == label["time"] and "said" in old:
            label.setdefault("said", old["said"])  # a table of ours has one answer of several
        changes["new" if old is None else "unchanged" if same else "corrected"].append(index)
        changes["disputed"] += [index] if "said" in label else []
        labels[index] = label
        skipped.pop(index, None)
    for index in annotations.skipped.tolist():
        time = annotations.times.get(index)
        if index in labels and index in annotations.reviewed:  # a review that was skipped leaves the label as it is
            labels[index]["reviewed"] = _review(project, annotations.reviewed[index], index)
            changes["unchanged"].append(index)
            continue
        if _is_newer(labels.get(index) or skipped.get(index), time):
            changes["skipped" if index in skipped else "outdated"].append(index)
            continue
        changes["skipped"].append(index)
        labels.pop(index, None)
        skipped[index] = {"round": project.rounds.get(index, 0), "time": time}
        if index not in project.rounds:
            skipped[index]["imported"] = True
    write_labels(folder, project.id, labels, skipped)
    changes["waiting"] = project.waiting
    return Ingested(*(np.array(changes[name], np.int32) for name in Ingested._fields))


def _label(project: Project, annotations: Annotations, place: int, index: int) -> dict[str, Any]:
    """What ``labels.json`` keeps of an answer."""
    rounds, old, time = project.rounds, project.labels.get(index, {}), annotations.times.get(index)
    told = {"target": annotations.targets[place].tolist(), "round": rounds.get(index, 0)}
    told |= {"annotator": annotations.annotators[place], "time": time}
    if index not in rounds:
        told["imported"] = True
    number = annotations.reviewed.get(index, old.get("reviewed"))
    if number is not None:
        told["reviewed"] = _review(project, number, index)
    if index in annotations.disputed:
        told["said"] = [[who, files.plain(target), when] for who, target, when in annotations.disputed[index]]
    return told


def _review(project: Project, number: int, index: int) -> int:
    query = project.queries[number] if number < len(project.queries) else {}
    if not query.get("review") or index not in query["indices"]:
        raise ValueError(f"there was no review {number} of {index}: is it an export of this project?")
    return number


def _padded(project: Project, target: Any) -> Any:
    """A target from before labels were added, which it does not know."""
    return [*target, *[-1] * (len(project.names or ()) - len(target))] if project.is_multi_label else target


def _of_table(text: str, source: Path, project: Project) -> list[dict[str, Any]]:
    """Rows as the tasks of an export."""
    references, kind, found = project.content["references"], project.content["kind"], {}
    places: dict[str, list[int]] = {}
    for index, reference in enumerate(references):
        path = "" if kind == "text" else unquote(reference)  # whose end will do, where it is that of one example
        for name in {reference, path, *(path[mark.end() :] for mark in re.finditer("[/=]", path))} - {""}:
            places.setdefault(name, []).append(index)
    rows = csv.DictReader(io.StringIO(text, newline=""))
    heads = list(rows.fieldnames or [])
    if heads.count("label") != 1 or not {"id", "reference"} & {*heads}:
        raise ValueError(f"{source} has the columns {', '.join(heads)}: name them id or reference, and label")
    for number, row in enumerate(rows, 2):
        where, label = f"row {number} of {source}", (row["label"] or "").strip()
        if None in row or None in row.values():
            raise ValueError(f"{where} has not {len(heads)} cells: correct it")
        if not label:
            continue
        if row.get("id"):
            if not re.fullmatch("[0-9]+", row["id"].strip()) or int(row["id"]) >= len(references):
                raise ValueError(f"{where} has the id {row['id']!r}, of {len(references)} examples: correct it")
            index = int(row["id"])
            if row.get("reference") and row["reference"] != references[index]:
                raise ValueError(
                    f"{where} has {index} as {row['reference']!r}, which is {references[index]!r}: correct it"
                )
        elif len(same := places.get(row.get("reference") or "", [])) != 1:
            why = "which several examples have: name the id"
            why = why if same else f"which no example has; they are such as {references[0]!r}: correct it"
            raise ValueError(f"{where} has the reference {row.get('reference')!r}, {why}")
        else:
            index = same[0]
        with files.about(where, "write it as 2026-01-31T12:00:00"):
            datetime.fromisoformat(row.get("time") or "2026-01-01")
        result = {"from_name": "label", "to_name": kind, **_result(project, label, row.get("unknown") or "", where)}
        said = {"result": [result], "completed_by": row.get("annotator") or None, "created_at": row.get("time") or None}
        data = {"baal_index": index, "baal_project": name_of(project.content)}
        found.setdefault(index, {"data": data, "annotations": []})["annotations"].append(said)
    return list(found.values())


def _result(project: Project, label: str, unknown: str, where: str) -> dict[str, Any]:
    if project.names is None:
        try:
            return {"type": "number", "value": {"number": float(label)}}
        except ValueError:
            raise ValueError(f"{where} has the label {label!r}, which is no number: correct it") from None
    choices = _names(project, label, where) if project.is_multi_label else [label]
    known = project.content.get("formerly", {})
    parts = {"choices": choices} | ({"unknown": _names(project, unknown, where)} if unknown else {})
    parts = {key: [known.get(name, name) for name in names] for key, names in parts.items()}
    for name in (name for names in parts.values() for name in names):
        if name not in project.names:
            raise ValueError(f"{where} has the label {name!r}: the classes are {', '.join(project.names)}")
    return {"type": "choices", "value": parts}


def _names(project: Project, cell: str, where: str) -> list[str]:
    """Names in a cell: a list in JSON, or one."""
    if cell in (project.names or ()):
        return [cell]
    with suppress(ValueError):
        found = json.loads(cell)
        if isinstance(found, list) and all(isinstance(name, str) for name in found):
            return found
    raise ValueError(f'{where} has the label {cell!r}: write a list such as ["a", "b"]')


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
