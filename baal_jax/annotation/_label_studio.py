"""Tasks for Label Studio, and its exports read back: plain JSON, none of its packages."""

import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from reprlib import repr as _shown  # no more than a line of a damaged value
from typing import Any, Literal, NamedTuple
from xml.sax.saxutils import quoteattr

import numpy as np

from baal_jax._util import checks, files

Kind = Literal["image", "text", "audio"]
_TAGS = {"image": "Image", "text": "Text", "audio": "Audio"}
_INDEX = "baal_index"
_PROJECT = "baal_project"


class Annotations(NamedTuple):
    """What people said.

    Attributes:
        indices: ``int[K]`` ids that have an answer, ascending.
        targets: ``[K]``: ``int32`` classes, or ``float32`` numbers.
        skipped: ``int[M]`` ids that nobody would answer: all their annotations are cancelled.
        unanswered: ``int[U]`` ids without an annotation, or with an empty one.
        annotators: of every answer, who gave it (or the newest of those that count), as the export has it; or None.
        times: id → when it was answered or skipped last, ISO 8601 in UTC; ids without a time are left out.
    """

    indices: np.ndarray
    targets: np.ndarray
    skipped: np.ndarray
    unanswered: np.ndarray
    annotators: tuple[str | None, ...]
    times: dict[int, str]


def labelling_config(class_names: Sequence[str] | None, kind: Kind = "image") -> str:
    """The labelling interface of the tasks of :func:`to_label_studio`.

    Args:
        class_names: names of the classes, of which one is chosen; None for a number.
        kind: of what is shown.

    Returns:
        XML, for the settings of a Label Studio project.

    Raises:
        ValueError: fewer than two classes, a name twice, empty or nothing that XML can hold, or an unknown kind.

    Example:
        >>> print(annotation.labelling_config(["cat", "dog"]))
        <View>
          <Image name="image" value="$image"/>
          <Choices name="label" toName="image" choice="single" required="true">
            <Choice value="cat"/>
            <Choice value="dog"/>
          </Choices>
        </View>
    """
    class_names = _checked_names(class_names)
    lines = [f'  <{_tag(kind)} name="{kind}" value="${kind}"/>']
    if class_names is None:
        lines.append(f'  <Number name="label" toName="{kind}" required="true"/>')
    else:
        choices = [f"    <Choice value={quoteattr(name)}/>" for name in class_names]
        lines += [f'  <Choices name="label" toName="{kind}" choice="single" required="true">', *choices, "  </Choices>"]
    return "\n".join(["<View>", *lines, "</View>"])


def to_label_studio(
    indices: Any,
    references: Sequence[str],
    class_names: Sequence[str] | None,
    *,
    kind: Kind = "image",
    predictions: Any = None,
    scores: Any = None,
    project: str | None = None,
) -> list[dict[str, Any]]:
    """Examples as tasks to import. The network's guess comes with each, and its score to sort by.

    Args:
        indices: ``int[Q]`` ids into the pool; −1 is left out.
        references: ``Q`` of them: what is shown. URLs or paths of images, or texts.
        class_names: names of the classes; None for a number.
        kind: of what is shown.
        predictions: ``[Q, C]`` probabilities of classes, or ``[Q]`` numbers, where they are finite; None for none.
        scores: ``[Q]`` of the acquisition; None for none. NaN is left out.
        project: a name that goes into every task, so that :func:`from_label_studio` can refuse those of others.

    Returns:
        A list of ``Q`` tasks, which ``json.dump`` takes.

    Raises:
        ValueError: lengths differ, an id is there twice, or a name is missing.

    Example:
        >>> task, = annotation.to_label_studio([42], ["pool/42.png"], ["cat", "dog"], scores=[0.33])
        >>> task
        {'data': {'image': 'pool/42.png', 'baal_index': 42, 'acquisition': 0.33}}
    """
    class_names = _checked_names(class_names)
    _tag(kind)
    ids = np.atleast_1d(np.asarray(indices))
    checks.indices("indices", ids, 2**31 - 1)
    for name, value in (("references", references), ("predictions", predictions), ("scores", scores)):
        if value is not None and len(value) != len(ids):
            raise ValueError(f"{name} holds {len(value)} for {len(ids)} indices: pass one for each")
    tasks = []
    for row, index in enumerate(ids.tolist()):
        if index < 0:
            continue
        task: dict[str, Any] = {"data": {kind: str(references[row]), _INDEX: index}}
        if project is not None:
            task["data"][_PROJECT] = project
        if scores is not None and math.isfinite(scores[row]):
            task["data"]["acquisition"] = _rounded(scores[row])
        if predictions is not None:
            guess = _prediction(np.asarray(predictions[row], np.float64), class_names, kind)
            if guess is not None:
                task["predictions"] = [guess]
        tasks.append(task)
    return tasks


def from_label_studio(
    export: Any,
    class_names: Sequence[str] | None,
    *,
    num_examples: int,
    kind: Kind = "image",
    proposed: Collection[int] | None = None,
    several: Literal["newest", "majority"] = "newest",
    project: str | None = None,
    source: str = "export",
) -> Annotations:
    """An export in JSON, checked as a whole.

    Predictions, drafts and controls other than ``label`` are not read. Annotations that were cancelled ("skip") do not
    count beside others; where there are no others the example is skipped. Annotations without an answer do not count.

    Args:
        export: a list of tasks, as ``json.load`` gives it.
        class_names: as they were given to :func:`labelling_config`.
        num_examples: ``N`` of the pool.
        kind: of what is shown.
        proposed: ids that have been asked for; None for all.
        several: of several annotations of one example, the newest counts, or the class most of them name (the newest
            among equals; of numbers, the mean). An annotator has one vote, for what they said last.
        project: the name that every task has to carry; None for any.
        source: a name for messages.

    Raises:
        ValueError, which names the task: it has no annotations or is of another project, its ``baal_index`` is missing,
            out of range, never asked for or there twice, or an answer does not fit the labelling interface.

    Example:
        >>> export = [{
        ...     "data": {"image": "pool/42.png", "baal_index": 42},
        ...     "annotations": [{"was_cancelled": False, "result": [
        ...         {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["dog"]}}]}],
        ... }]
        >>> answered = annotation.from_label_studio(export, ["cat", "dog"], num_examples=100)
        >>> answered.indices.tolist(), answered.targets.tolist()
        ([42], [1])
    """
    class_names = _checked_names(class_names)
    _tag(kind)
    if several not in ("newest", "majority"):
        raise ValueError(f"several={several!r} is unknown: choose newest or majority")
    if not isinstance(export, list):
        raise ValueError(f"{source} holds a {type(export).__name__}, not a list of tasks: export as JSON")
    answered: dict[int, _Answer] = {}
    skipped: dict[int, datetime | None] = {}
    unanswered: dict[int, None] = {}
    for number, task in enumerate(export):
        where = f"{source}, task {number}"
        index = _index_of(task, where, num_examples, proposed, project)
        if index in answered or index in skipped or index in unanswered:
            why = "a query was imported twice, or two exports were joined; remove one of the two tasks and export again"
            raise ValueError(f"{where}: {_INDEX} {index} is there a second time: {why}")
        answers, cancelled = _answers_of(task, where, class_names, kind)
        if answers:
            answered[index] = _agreed(answers, several, class_names is None)
        elif cancelled:
            skipped[index] = max((time for time in cancelled if time is not None), default=None)
        else:
            unanswered[index] = None
    indices, refused, left = (np.array(sorted(ids), np.int32) for ids in (answered, skipped, unanswered))
    said = [answered[index] for index in sorted(answered)]
    targets = np.array([answer.value for answer in said], np.float32 if class_names is None else np.int32)
    times = {index: answered[index].time for index in sorted(answered)} | skipped
    when = {index: time.isoformat() for index, time in times.items() if time is not None}
    return Annotations(indices, targets, refused, left, tuple(answer.annotator for answer in said), when)


class _Answer(NamedTuple):
    """What one annotation says."""

    value: Any
    annotator: str | None
    time: datetime | None


def _checked_names(class_names: Sequence[str] | None) -> list[str] | None:
    if class_names is None:
        return None
    names = [str(name) for name in class_names]
    if len(names) < 2 or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ValueError(f"class_names={names} must be at least two names, none twice or empty")
    for name in names:
        if unfit := re.search("[^\t\n\r -\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", name):
            raise ValueError(f"class_names holds {_shown(name)}: leave out {unfit[0]!r}, which XML cannot hold")
    return names


def _tag(kind: str) -> str:
    if kind not in _TAGS:
        raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(_TAGS)}")
    return _TAGS[kind]


def _rounded(value: Any) -> float:
    return float(f"{float(value):.6g}")


def _prediction(values: np.ndarray, class_names: list[str] | None, kind: str) -> dict[str, Any] | None:
    if class_names is None:
        if values.size != 1:
            raise ValueError(f"predictions of shape {values.shape} do not fit a number for each: pass [Q]")
        control, value, score = "number", _rounded(values.item()), {}
    else:
        if values.shape != (len(class_names),):
            raise ValueError(f"predictions of shape {values.shape} do not fit {len(class_names)} classes: pass [Q, C]")
        control, value = "choices", [class_names[int(np.argmax(values))]]
        score = {"score": _rounded(np.max(values))}
    if not np.isfinite(values).all():
        return None
    result = [{"from_name": "label", "to_name": kind, "type": control, "value": {control: value}}]
    return {"model_version": "baal_jax", "result": result, **score}


def _index_of(task: Any, where: str, num_examples: int, proposed: Collection[int] | None, project: str | None) -> int:
    if not isinstance(task, Mapping) or not isinstance(task.get("data"), Mapping):
        raise ValueError(f"{where} has no data: export as JSON, not as JSON-MIN, CSV or COCO")
    index = task["data"].get(_INDEX)
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f"{where} has {_INDEX}={_shown(index)}, not an integer: it comes from other tasks than ours")
    if project is not None and (other := task["data"].get(_PROJECT)) != project:
        why = f"the tasks of this folder have {project!r}: ingest it where its query was proposed"
        raise ValueError(f"{where} has {_PROJECT}={_shown(other)}, but {why}")
    if not 0 <= index < num_examples:
        raise ValueError(f"{where} has {_INDEX} {_shown(index)}, outside of the {num_examples} examples: is it ours?")
    if proposed is not None and index not in proposed:
        raise ValueError(f"{where} has {_INDEX} {index}, which was never asked for: is it this project's export?")
    return index


def _answers_of(task: Any, where: str, class_names: list[str] | None, kind: str) -> tuple[list[_Answer], list[Any]]:
    """Answers of a task, newest last, and when somebody refused to give one."""
    annotations = task.get("annotations")
    if not isinstance(annotations, list):
        raise ValueError(f"{where} has no annotations: export as JSON, tasks with their annotations")
    said, cancelled = [], []
    for position, annotation in enumerate(annotations):
        place = f"{where}, annotation {position}"
        with files.about(place, "the file is damaged"):
            time = _time_of(annotation)
            if annotation.get("was_cancelled") not in (None, False, True):
                raise ValueError(f"was_cancelled is {_shown(annotation['was_cancelled'])}")
            if annotation.get("was_cancelled"):
                cancelled.append(time)
            elif (answer := _answer_of(annotation["result"], place, class_names, kind)) is not None:
                said.append(_Answer(answer, _annotator_of(annotation), time))
    return sorted(said, key=lambda answer: answer.time or datetime.min.replace(tzinfo=UTC)), cancelled


def _annotator_of(annotation: Mapping[str, Any]) -> str | None:
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    if isinstance(who, bool) or not isinstance(who, str | int | None):
        raise ValueError(f"completed_by is {_shown(who)}, and nobody's name or number")
    return None if who is None else str(who).encode("utf-8").decode("utf-8")


def _answer_of(result: list[Any], where: str, class_names: list[str] | None, kind: str) -> Any:
    if not isinstance(result, list):
        raise ValueError("the result is not a list of regions")
    if not result:
        return None
    labels = [item for item in result if item.get("from_name") == "label"]
    if not labels:
        others = ", ".join(sorted({str(item.get("from_name")) for item in result}))
        raise ValueError(f"{where} answers {others[:80]}, not label: use the labelling interface of label_config.xml")
    if len(labels) > 1:
        raise ValueError(f"{where} has {len(labels)} labels, but one is asked for: correct it and export again")
    item = labels[0]
    if item.get("to_name") != kind:
        raise ValueError(f"{where} labels {_shown(item.get('to_name'))}, not {kind!r}: is it this project's export?")
    wanted = "number" if class_names is None else "choices"
    if item.get("type") != wanted:
        raise ValueError(f"{where} has type {_shown(item.get('type'))}, not {wanted}: use the one of label_config.xml")
    choices = number = item["value"][wanted]
    if class_names is None:
        if isinstance(number, bool) or not isinstance(number, int | float) or not abs(number) < 3.4e38:
            raise ValueError(f"{where} has the number {_shown(number)}: correct it and export again")
        return float(number)
    if not isinstance(choices, list) or len(choices) != 1:
        raise ValueError(f"{where} has the choices {_shown(choices)}, but one is asked for: correct it, export again")
    if choices[0] not in class_names:
        raise ValueError(f"{where} has the class {_shown(choices[0])}: the classes are {', '.join(class_names)}")
    return class_names.index(choices[0])


def _time_of(annotation: Mapping[str, Any]) -> datetime | None:
    text = next((annotation[name] for name in ("updated_at", "created_at") if annotation.get(name) is not None), None)
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _agreed(answers: list[_Answer], several: str, is_number: bool) -> _Answer:
    """One answer of several, which are in order of age. It is as new as the newest of them: that one had a say."""
    newest = answers[-1]
    if several == "newest":
        return newest
    # Of what one annotator said the last; those without a name are all different people.
    votes = list({answer.annotator or position: answer for position, answer in enumerate(answers)}.values())
    if is_number:
        return newest._replace(value=float(np.mean([vote.value for vote in votes])))
    counts = Counter(vote.value for vote in votes)
    most = max(counts.values())
    agreed = next(answer for answer in reversed(answers) if counts[answer.value] == most and answer in votes)
    return agreed._replace(time=newest.time)
