"""Tasks that say what Label Studio reads, and exports that are read back whole or refused by name."""

import copy
import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from baal_jax import annotation
from tests.annotation.exports import NAMES, answer, refused


def read(*annotations, names=NAMES, **options):
    """The answers of one task, of example 3."""
    task = {"data": {"image": "a", "baal_index": 3}, "annotations": list(annotations)}
    return annotation.from_label_studio([task], names, num_examples=5, **options)


def test_the_interface_names_what_the_tasks_name():
    names = ['"quoted" & <odd>', "naïve"]
    root = ET.fromstring(annotation.labelling_config(names, "text"))
    assert [choice.get("value") for choice in root.iter("Choice")] == names
    task = annotation.to_label_studio([1], ["words"], names, kind="text", predictions=[[0.1, 0.9]])[0]
    result = task["predictions"][0]["result"][0]
    named = {"name": result["from_name"], "toName": result["to_name"]}
    assert root.find("Choices").attrib == {**named, "choice": "single", "required": "true"}
    assert root.find("Text").attrib == {"name": result["to_name"], "value": "$text"}
    assert task["data"]["text"] == "words"
    number = ET.fromstring(annotation.labelling_config(None, "audio")).find("Number")
    assert number.attrib == {"name": "label", "toName": "audio", "required": "true"}
    for wrong in (["a"], ["a", "a"], ["a", " "]):
        with pytest.raises(ValueError, match="class_names="):
            annotation.labelling_config(wrong)
    with pytest.raises(ValueError, match="kind='video' is unknown: choose one of image, text, audio"):
        annotation.labelling_config(names, "video")


def test_tasks_hold_the_guess_and_the_score_of_every_example_but_padding():
    predictions = np.array([[0.2, 0.7123456789, 0.1], [np.nan] * 3, [0.1] * 3, [0.5, 0.25, 0.25]])
    scores = np.array([0.123456789, np.nan, 3.0, np.inf], np.float32)
    options = {"predictions": predictions, "scores": scores, "project": "mine"}
    found = annotation.to_label_studio(np.array([4, 2, -1, 0]), ["a", "b", "c", "d"], NAMES, **options)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    data = [{"image": name, "baal_index": i, "baal_project": "mine"} for name, i in (("a", 4), ("b", 2), ("d", 0))]
    assert [task["data"] for task in found] == [{**data[0], "acquisition": 0.123457}, *data[1:]]
    assert ["predictions" in task for task in found] == [True, False, True]
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["bee"]}}
    assert found[0]["predictions"] == [{"model_version": "baal_jax", "result": [result], "score": 0.712346}]
    numbers = annotation.to_label_studio([1, 2], ["a", "b"], None, kind="text", predictions=[[np.inf], [2.0]])
    assert "predictions" not in numbers[0]
    result = {"from_name": "label", "to_name": "text", "type": "number", "value": {"number": 2.0}}
    assert numbers[1]["predictions"] == [{"model_version": "baal_jax", "result": [result]}]
    for arguments, options, message in (
        (([1, 2], ["a"], NAMES), {}, "references holds 1 for 2 indices: pass one for each"),
        (([1, 2], ["a", "b"], NAMES), {"scores": [1.0]}, "scores holds 1 for 2"),
        (([1, 2], ["a", "b"], NAMES), {"predictions": [[1, 0, 0]]}, "predictions holds 1 for 2"),
        (([1, 1], ["a", "b"], NAMES), {}, "indices"),
        (([1], ["a"], NAMES), {"kind": "video"}, "kind='video'"),
        (([1], ["a"], NAMES), {"predictions": [[1.0, 2.0]]}, r"predictions of shape \(2,\) do not fit 3 classes"),
        (([1], ["a"], None), {"predictions": [[1.0, 2.0]]}, r"predictions of shape \(2,\) do not fit a number"),
    ):
        with pytest.raises(ValueError, match=message):
            annotation.to_label_studio(*arguments, **options)


def with_answer(**fields):
    return {"annotations": [answer("ape", result=[answer("ape")["result"][0] | fields])]}


def with_index(index, project="mine"):
    return {"data": {"image": "a", "baal_index": index, "baal_project": project}}


# What is changed in the second of three tasks, and what is said of it.
MALFORMED = [
    ({"data": None}, " has no data: export as JSON, not as JSON-MIN"),
    ({"annotations": None}, " has no annotations: export as JSON"),
    ({"data": {"image": "a"}}, " has baal_index=None, not an integer: it comes from other tasks"),
    (with_index("7"), " has baal_index='7', not an integer"),
    (with_index(True), " has baal_index=True"),
    (with_index(40), " has baal_index 40, outside of the 40 examples"),
    (with_index(-1), " has baal_index -1, outside"),
    (with_index(5), " has baal_index 5, which was never asked for"),
    (with_index(0), ": baal_index 0 is there a second time"),
    (with_index(1, "b"), " has baal_project='b', but the tasks of this folder have 'mine'"),
    ({"data": {"baal_index": 1}}, " has baal_project=None"),
    ({"annotations": ["ape"]}, ", annotation 0 is a str: the file is damaged"),
    ({"annotations": [{"was_cancelled": False}]}, ", annotation 0 has no result"),
    ({"annotations": [answer("ape", result=["ape"])]}, ", annotation 0: the result is not a list of regions"),
    ({"annotations": [answer("ape", created_at="yesterday")]}, ".*has the time 'yesterday', which is none"),
    ({"annotations": [answer("ape", created_at=5)]}, ".*has the time 5, which is none"),
    ({"annotations": [answer("ape", result=answer("ape")["result"] * 2)]}, ", annotation 0 has 2 labels, but one is"),
    (with_answer(value={"choices": ["dog"]}), ", annotation 0 has the class 'dog': the classes are ape, bee, cat"),
    (with_answer(value={"choices": NAMES[:2]}), r", annotation 0 has the choices \['ape', 'bee'\], but one is asked"),
    (with_answer(value={"choices": "ape"}), ", annotation 0 has the choices 'ape', but one is asked for"),
    (with_answer(from_name="kind"), ", annotation 0 answers kind, not label: use the labelling interface"),
    (with_answer(to_name="photo"), ", annotation 0 labels 'photo', not 'image'"),
    (with_answer(type="number", value={"number": 2}), ", annotation 0 has type 'number', not choices"),
    (with_answer(value=None), ", annotation 0 has the value None without choices: the file is damaged"),
]


def test_a_malformed_export_is_refused_and_its_task_named():
    tasks = [{**with_index(i), "annotations": [answer("ape")]} for i in range(3)]
    options = {"num_examples": 40, "proposed": range(3), "project": "mine", "source": "export.json"}
    assert annotation.from_label_studio(tasks, NAMES, **options).indices.tolist() == [0, 1, 2]
    for fields, message in MALFORMED:
        damaged = copy.deepcopy(tasks)
        damaged[1] |= fields
        with pytest.raises(ValueError, match=f"export.json, task 1{message}"):
            annotation.from_label_studio(damaged, NAMES, **options)
    for damaged, message in ((["task"], "task 0 has no data"), ({}, "export.json holds a dict, not a list of tasks")):
        with pytest.raises(ValueError, match=message):
            annotation.from_label_studio(damaged, NAMES, **options)
    with pytest.raises(ValueError, match="several='all' is unknown"):
        read(several="all")
    for number in ("2.5", True, float("nan")):
        with pytest.raises(ValueError, match=f"has the number {number!r}: correct it"):
            read(with_answer(type="number", value={"number": number})["annotations"][0], names=None)


def test_what_is_an_answer_a_refusal_and_neither():
    def kinds(*annotations):
        found = read(*annotations)
        return [part.tolist() for part in (found.indices, found.targets, found.skipped, found.unanswered)]

    comment = {"from_name": "comment", "type": "textarea", "value": {"text": ["?"]}}
    assert kinds(answer("bee", 1), refused(2)) == [[3], [1], [], []]  # a refusal does not count beside an answer
    assert kinds(refused(2), refused(1)) == [[], [], [3], []]
    assert kinds() == kinds(answer("bee", result=[])) == [[], [], [], [3]]
    assert kinds(answer("cat", result=[comment, *answer("cat")["result"]])) == [[3], [2], [], []]
    assert read(refused(1), refused(3), refused()).times == {3: "2026-01-03T12:00:00+00:00"}


def test_answers_come_sorted_with_who_gave_them_and_when():
    said = {
        4: answer("ape", 1, who={"id": 4, "email": "ann@example.org"}),
        2: answer("bee", created_at="2026-01-05T01:00:00+02:00", who={"id": 4}),
        3: answer("cat", 3, updated_at="2026-02-03T04:05:06", who=None),  # without a zone it is UTC
        0: answer("cat", who=5),
    }
    tasks = [{"data": {"baal_index": index}, "annotations": [one]} for index, one in said.items()]
    found = annotation.from_label_studio(tasks, NAMES, num_examples=5)
    assert [found.indices.tolist(), found.targets.tolist()] == [[0, 2, 3, 4], [2, 1, 2, 0]]
    assert [part.dtype for part in found[:4]] == [np.int32] * 4
    assert found.annotators == ("5", "4", None, "ann@example.org")
    expected = {2: "2026-01-04T23:00:00", 3: "2026-02-03T04:05:06", 4: "2026-01-01T12:00:00"}
    assert found.times == {index: f"{time}+00:00" for index, time in expected.items()}
    numbers = [with_answer(type="number", value={"number": number})["annotations"][0] for number in (2.5, -1)]
    found = read(*numbers, names=None)
    assert [found.targets.dtype, found.targets.tolist()] == [np.float32, [-1.0]]  # the last of those without a time


# What was said, when and by whom, the newest, and what most say.
SEVERAL = [
    ([("ape", 1, "a"), ("bee", 2, "a"), ("ape", 3, "b"), ("bee", 4, "c")], "bee", "bee"),  # a has changed their mind
    ([("ape", 1, "a"), ("ape", 2, "a"), ("ape", 3, "a"), ("bee", 4, "b")], "bee", "bee"),  # one vote each
    ([("ape", 4, "a"), ("bee", 1, "b"), ("bee", 2, "c"), ("ape", 3, "a")], "ape", "bee"),
    ([("ape", 1, None), ("ape", 2, None), ("bee", 4, None)], "bee", "ape"),  # nameless ones are different people
    ([("ape", 2, "a"), ("bee", 4, "b"), ("ape", 3, "c")], "bee", "ape"),
    ([("ape", None, "a"), ("bee", 4, "b")], "bee", "bee"),  # of equals the newest; no time is the oldest
    ([("bee", 4, "b"), ("ape", None, "a")], "bee", "bee"),
]


def test_of_several_annotators_the_newest_counts_or_the_most_with_one_vote_each():
    for given, newest, majority in SEVERAL:
        annotations = [answer(*said) for said in given]
        for options, expected in (({}, newest), ({"several": "newest"}, newest), ({"several": "majority"}, majority)):
            found = read(*annotations, **options)
            assert [NAMES[target] for target in found.targets] == [expected]
            assert found.times == {3: "2026-01-04T12:00:00+00:00"}  # the newest had a say
            assert found.annotators[0] in {who for name, _, who in given if name == expected}
    numbers = [answer("", when, who) for when, who in ((1, "a"), (2, "a"), (3, "b"), (4, "c"))]
    for given, number in zip(numbers, (1.0, 4.0, 1.0, 4.0), strict=True):
        given["result"][0] |= {"type": "number", "value": {"number": number}}
    assert read(*numbers, names=None, several="majority").targets.tolist() == [3.0]  # the mean
    assert read(*numbers, names=None).targets.tolist() == [4.0]
