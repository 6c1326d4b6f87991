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
_REVIEW = "baal_review"


class Annotations(NamedTuple):
    """What people said.

    Attributes:
        indices: ``int[K]`` ids that have an answer, ascending.
        targets: ``int32[K]`` classes, ``float64[K]`` numbers, or ``int32[K, C]`` labels that are there (1), not there
            (0) or unknown (−1).
        skipped: ``int[M]`` ids that nobody would answer: all their annotations are cancelled.
        unanswered: ``int[U]`` ids without an annotation, or with an empty one.
        annotators: of every answer, who gave it (or the newest of those that count), as the export has it; or None.
        times: id → when it was answered or skipped last, ISO 8601 in UTC; ids without a time are left out.
        disputed: id → what each annotator said last, as ``(annotator, target, time)``, where they do not agree.
        reviewed: id → the latest review in which somebody answered or skipped it.
    """

    indices: np.ndarray
    targets: np.ndarray
    skipped: np.ndarray
    unanswered: np.ndarray
    annotators: tuple[str | None, ...]
    times: dict[int, str]
    disputed: dict[int, list[tuple[str | None, Any, str | None]]]
    reviewed: dict[int, int]


def labelling_config(class_names: Sequence[str] | None, kind: Kind = "image", *, multi_label: bool = False) -> str:
    """The labelling interface of the tasks of :func:`to_label_studio`.

    Args:
        class_names: names of the classes, of which one is chosen; None for a number.
        kind: of what is shown.
        multi_label: any number of classes are chosen, or none.

    Returns:
        XML, for the settings of a Label Studio project.

    Raises:
        ValueError: fewer than two classes (one, of several labels), a name twice, empty or nothing that XML can hold,
            or an unknown kind.

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
    class_names = _checked_names(class_names, multi_label)
    lines = [f'  <{_tag(kind)} name="{kind}" value="${kind}"/>']
    if class_names is None:
        lines.append(f'  <Number name="label" toName="{kind}" required="true"/>')
    else:
        choices = [f"    <Choice value={quoteattr(name)}/>" for name in class_names]
        how = 'choice="multiple"' if multi_label else 'choice="single" required="true"'
        lines += [f'  <Choices name="label" toName="{kind}" {how}>', *choices, "  </Choices>"]
    return "\n".join(["<View>", *lines, "</View>"])


def to_label_studio(
    indices: Any,
    references: Sequence[str],
    class_names: Sequence[str] | None,
    *,
    kind: Kind = "image",
    multi_label: bool = False,
    predictions: Any = None,
    scores: Any = None,
    reasons: Sequence[str] | None = None,
    project: str | None = None,
    review: int | None = None,
) -> list[dict[str, Any]]:
    """Examples as tasks to import. The network's guess comes with each, and its score to sort by.

    Args:
        indices: ``int[Q]`` ids into the pool; −1 is left out.
        references: ``Q`` of them: what is shown. URLs or paths of images, or texts.
        class_names: names of the classes; None for a number.
        kind: of what is shown.
        multi_label: any number of classes are right; those with a probability from ½ on are the guess.
        predictions: ``[Q, C]`` probabilities of classes, or ``[Q]`` numbers, where they are finite; None for none.
        scores: ``[Q]`` of the acquisition; None for none. NaN is left out.
        reasons: ``Q`` texts, why each is asked for: a column ``why`` of the tool's tables.
        project: a name that goes into every task, so that :func:`from_label_studio` can refuse those of others.
        review: number of a review, so that these tasks may stand beside the first ones of the same examples.

    Returns:
        A list of ``Q`` tasks, which ``json.dump`` takes.

    Raises:
        ValueError: lengths differ, an id is there twice, or a name is missing.

    Example:
        >>> task, = annotation.to_label_studio([42], ["pool/42.png"], ["cat", "dog"], scores=[0.33])
        >>> task
        {'data': {'image': 'pool/42.png', 'baal_index': 42, 'acquisition': 0.33}}
    """
    class_names = _checked_names(class_names, multi_label)
    _tag(kind)
    ids = np.atleast_1d(np.asarray(indices))
    checks.indices("indices", ids, 2**31 - 1)
    given = {"references": references, "predictions": predictions, "scores": scores, "reasons": reasons}
    for name, value in given.items():
        if value is not None and len(value) != len(ids):
            raise ValueError(f"{name} holds {len(value)} for {len(ids)} indices: pass one for each")
    tasks = []
    for row, index in enumerate(ids.tolist()):
        if index < 0:
            continue
        task: dict[str, Any] = {"data": {kind: str(references[row]), _INDEX: index}}
        if project is not None:
            task["data"][_PROJECT] = project
        if review is not None:
            task["data"][_REVIEW] = review
        if reasons is not None:
            task["data"]["why"] = reasons[row]
        if scores is not None and math.isfinite(scores[row]):
            task["data"]["acquisition"] = _rounded(scores[row])
        if predictions is not None:
            guess = _prediction(np.asarray(predictions[row], np.float64), class_names, kind, multi_label)
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
    multi_label: bool = False,
    proposed: Collection[int] | None = None,
    several: Literal["newest", "majority"] = "newest",
    project: str | None = None,
    since: Mapping[str, str] | None = None,
    source: str = "export",
) -> Annotations:
    """An export in JSON, checked as a whole.

    Predictions, drafts and controls other than ``label`` are not read. Annotations that were cancelled ("skip") do not
    count beside others; where there are no others the example is skipped. Annotations without an answer do not count;
    where any number of labels may be right, an empty list of results says that none is, and null is no answer.

    Args:
        export: a list of tasks, as ``json.load`` gives it.
        class_names: as they were given to :func:`labelling_config`.
        num_examples: ``N`` of the pool.
        kind: of what is shown.
        multi_label: any number of classes were chosen.
        proposed: ids that have been asked for; None for all.
        several: of several annotations of one example, the newest counts, or the class most of them name (the newest
            among equals; of numbers, the mean; of several labels, each by itself). An annotator has one vote, for what
            they said last.
        project: the name that every task has to carry; None for any.
        since: class → ISO 8601 time when it was added: what was said before, or nobody knows when, leaves it unknown.
        source: a name for messages.

    Raises:
        ValueError, which names the task: it has no annotations or is of another project, its ``baal_index`` is missing,
            out of range, never asked for or there twice (in one review), or an answer does not fit the interface.

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
    class_names = _checked_names(class_names, multi_label)
    _tag(kind)
    if several not in ("newest", "majority"):
        raise ValueError(f"several={several!r} is unknown: choose newest or majority")
    if not isinstance(export, list):
        raise ValueError(f"{source} holds a {type(export).__name__}, not a list of tasks: export as JSON")
    said: dict[int, list[_Answer]] = {}
    cancelled: dict[int, list[datetime | None]] = {}
    seen: set[tuple[int, int | None]] = set()
    reviewed: dict[int, int] = {}
    for number, task in enumerate(export):
        where = f"{source}, task {number}"
        index = _index_of(task, where, num_examples, proposed, project)
        review = _review_of(task, where)
        if (index, review) in seen:
            why = "a query was imported twice, or two exports were joined; remove one of the two tasks and export again"
            raise ValueError(f"{where}: {_INDEX} {index} is there a second time: {why}")
        seen.add((index, review))
        answers, refusals = _answers_of(task, where, class_names, kind, multi_label, since or {})
        said.setdefault(index, []).extend(answers)
        cancelled.setdefault(index, []).extend(refusals)
        if review is not None and (answers or refusals):
            reviewed[index] = max(review, reviewed.get(index, 0))
    for answers in said.values():
        answers.sort(key=lambda answer: answer.time or datetime.min.replace(tzinfo=UTC))
    indices = [index for index in sorted(said) if said[index]]
    refused = [index for index in sorted(said) if not said[index] and cancelled[index]]
    left = [index for index in sorted(said) if not said[index] and not cancelled[index]]
    agreed = {index: _agreed(said[index], several, class_names is None) for index in indices}
    targets = np.array([answer.value for answer in agreed.values()], np.float64 if class_names is None else np.int32)
    if multi_label and class_names:
        targets = targets.reshape(-1, len(class_names))
    times = {index: answer.time for index, answer in agreed.items()}
    times |= {index: max((time for time in cancelled[index] if time), default=None) for index in refused}
    when = {index: time.isoformat() for index, time in times.items() if time is not None}
    disputed = {}
    for index in indices:
        votes = _votes(said[index])
        parts = zip(*(vote.value for vote in votes), strict=True) if multi_label else [[vote.value for vote in votes]]
        if any(len({*part} - ({-1} if multi_label else set())) > 1 for part in parts):
            disputed[index] = [(vote.annotator, vote.value, vote.time and vote.time.isoformat()) for vote in votes]
    ids = [np.array(some, np.int32) for some in (indices, refused, left)]
    people = tuple(answer.annotator for answer in agreed.values())
    return Annotations(ids[0], targets, ids[1], ids[2], people, when, disputed, reviewed)


class _Answer(NamedTuple):
    """What one annotation says."""

    value: Any
    annotator: str | None
    time: datetime | None


def _checked_names(class_names: Sequence[str] | None, multi_label: bool) -> list[str] | None:
    if class_names is None:
        if multi_label:
            raise ValueError("multi_label=True needs class_names: name the labels that may be right")
        return None
    names = [str(name) for name in class_names]
    if len(names) < 2 - multi_label or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise ValueError(f"class_names={names} must be at least {2 - multi_label} names, none twice or empty")
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


def _prediction(
    values: np.ndarray, class_names: list[str] | None, kind: str, multi_label: bool
) -> dict[str, Any] | None:
    if class_names is None:
        if values.size != 1:
            raise ValueError(f"predictions of shape {values.shape} do not fit a number for each: pass [Q]")
        control, value, score = "number", _rounded(values.item()), {}
    else:
        if values.shape != (len(class_names),):
            raise ValueError(f"predictions of shape {values.shape} do not fit {len(class_names)} classes: pass [Q, C]")
        there = np.flatnonzero(values >= 0.5) if multi_label else [int(np.argmax(values))]
        control, value = "choices", [class_names[i] for i in there]
        # Of several labels the least sure one.
        score = {"score": _rounded(np.min(np.maximum(values, 1.0 - values)) if multi_label else np.max(values))}
    if not np.isfinite(values).all() or value == []:
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
        cure = "is it this project's export? Labels from another come as a table, its labels.csv"
        raise ValueError(f"{where} has {_INDEX} {index}, which was never asked for: {cure}")
    return index


def _review_of(task: Mapping[str, Any], where: str) -> int | None:
    number = task["data"].get(_REVIEW)
    if number is not None and (not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**31):
        raise ValueError(f"{where} has {_REVIEW}={_shown(number)}, not a number: it comes from other tasks than ours")
    return number


def _answers_of(
    task: Any, where: str, class_names: list[str] | None, kind: str, multi_label: bool, since: Mapping[str, str]
) -> tuple[list[_Answer], list[Any]]:
    """Answers of a task, and when somebody refused to give one."""
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
            elif (answer := _answer_of(annotation["result"], place, class_names, kind, multi_label)) is not None:
                if multi_label and class_names:
                    came = (
                        name in since and (not time or time < datetime.fromisoformat(since[name]))
                        for name in class_names
                    )
                    answer = tuple(
                        -1 if late and not value else value for late, value in zip(came, answer, strict=True)
                    )
                said.append(_Answer(answer, _annotator_of(annotation), time))
    return said, cancelled


def _annotator_of(annotation: Mapping[str, Any]) -> str | None:
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    if isinstance(who, bool) or not isinstance(who, str | int | None):
        raise ValueError(f"completed_by is {_shown(who)}, and nobody's name or number")
    return None if who is None else str(who).encode("utf-8").decode("utf-8")


def _answer_of(
    result: list[Any] | None, where: str, class_names: list[str] | None, kind: str, multi_label: bool
) -> Any:
    """A class, a number, or a tuple of 0 and 1 for each of several labels; None for no answer."""
    if result is None:
        return None
    if not isinstance(result, list):
        raise ValueError("the result is not a list of regions")
    if not result:
        return (0,) * len(class_names) if multi_label and class_names else None
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
    if not isinstance(choices, list) or (len(choices) != 1 and not multi_label):
        asked = "a list is" if multi_label else "one is"
        raise ValueError(f"{where} has the choices {_shown(choices)}, but {asked} asked for: correct it, export again")
    for choice in choices:
        if choice not in class_names:
            raise ValueError(f"{where} has the class {_shown(choice)}: the classes are {', '.join(class_names)}")
    if not multi_label:
        return class_names.index(choices[0])
    unknown = item["value"].get("unknown", ())  # of a table of ours
    return tuple(1 if name in choices else -1 if name in unknown else 0 for name in class_names)


def _time_of(annotation: Mapping[str, Any]) -> datetime | None:
    text = next((annotation[name] for name in ("updated_at", "created_at") if annotation.get(name) is not None), None)
    if text is None:
        return None
    time = datetime.fromisoformat(text)
    return time.astimezone(UTC) if time.tzinfo else time.replace(tzinfo=UTC)


def _votes(answers: list[_Answer]) -> list[_Answer]:
    """Of what one annotator said the last; those without a name are all different people."""
    return list({answer.annotator or position: answer for position, answer in enumerate(answers)}.values())


def _agreed(answers: list[_Answer], several: str, is_number: bool) -> _Answer:
    """One answer of several, which are in order of age. It is as new as the newest of them: that one had a say."""
    newest = answers[-1]
    if several == "newest":
        return newest
    votes = _votes(answers)
    if is_number:
        return newest._replace(value=float(np.mean([vote.value for vote in votes])))
    if isinstance(newest.value, tuple):  # each label by itself
        ages = [answer for answer in answers if answer in votes]
        parts = [[answer._replace(value=answer.value[i]) for answer in ages] for i in range(len(newest.value))]
        return newest._replace(value=tuple(_agreed(part, several, False).value for part in parts))
    votes = [vote for vote in votes if vote.value != -1] or votes  # who does not know has no say
    counts = Counter(vote.value for vote in votes)
    most = max(counts.values())
    agreed = next(answer for answer in reversed(answers) if counts[answer.value] == most and answer in votes)
    return agreed._replace(time=newest.time)
