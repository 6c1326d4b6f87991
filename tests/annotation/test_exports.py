"""Exports that are wrong in any way, and names that people give."""

import collections
import copy
import json
import random
import re
import xml.etree.ElementTree as ET

import pytest

from baal_jax import annotation
from tests.annotation.exports import NAMES, answer, refused
from tests.annotation.test_annotation import numbered, read, rejects


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
    ({"annotations": ["ape"]}, ", annotation 0: cannot be read .*: the file is damaged"),
    ({"annotations": [{"was_cancelled": False}]}, r", annotation 0: cannot be read \(KeyError: 'result'\)"),
    (
        {"annotations": [answer("ape", result=["ape"])]},
        ", annotation 0: cannot be read .*'str' object has no attribute",
    ),
    ({"annotations": [answer("ape", created_at="yesterday")]}, ".*Invalid isoformat string: 'yesterday'"),
    ({"annotations": [answer("ape", created_at=5)]}, ".*argument must be str"),
    ({"annotations": [answer("ape", result=answer("ape")["result"] * 2)]}, ", annotation 0 has 2 labels, but one is"),
    (with_answer(value={"choices": ["dog"]}), ", annotation 0 has the class 'dog': the classes are ape, bee, cat"),
    (with_answer(value={"choices": NAMES[:2]}), r", annotation 0 has the choices \['ape', 'bee'\], but one is asked"),
    (with_answer(value={"choices": "ape"}), ", annotation 0 has the choices 'ape', but one is asked for"),
    (with_answer(from_name="kind"), ", annotation 0 answers kind, not label: use the labelling interface"),
    (with_answer(to_name="photo"), ", annotation 0 labels 'photo', not 'image'"),
    (with_answer(type="number", value={"number": 2}), ", annotation 0 has type 'number', not choices"),
    (with_answer(value=None), ", annotation 0: cannot be read .*: the file is damaged"),
]


BAD = (None, True, 0, -1, 3.5, 10**400, float("nan"), float("inf"), 1e300, "", "x", "\ud800", "a" * 10**5, [], [[]])
BAD += ({}, {"id": 3}, {"email": [1]}, "2026-01-01", "9999-12-31T23:59:59-23:59", {"choices": ["bee"]}, ["ape"], 2**63)


def places(node, path=()):
    yield path
    for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield from places(node[key], (*path, key))


def test_any_export_is_read_or_refused_by_name():
    rng = random.Random(0)
    counts = collections.Counter()
    for _ in range(3000):
        is_number = rng.random() < 0.3
        said = [answer("ape", 3, number=2.5 if is_number else None), refused(2)]
        said.append(answer("bee", 5, who={"id": 3, "email": "a@b"}, number=1 if is_number else None))
        export = [
            {"data": {"image": f"{i}.png", "baal_index": i}, "annotations": copy.deepcopy(rng.choices(said, k=i))}
            for i in range(3)
        ]
        for _ in range(rng.choice([1, 1, 2, 4])):
            *path, last = rng.choice(list(places(export))[1:])
            node = export
            for key in path:
                node = node[key]
            node[last] = copy.deepcopy(rng.choice(BAD))
        try:
            found = annotation.from_label_studio(
                export, None if is_number else NAMES, num_examples=3, several=rng.choice(["newest", "majority"])
            )
            json.dumps([part.tolist() for part in found[:4]], allow_nan=False)
            json.dumps([found.annotators, found.times], ensure_ascii=False).encode("utf-8")
            counts["read"] += 1
        except ValueError as error:
            message = str(error)
            counts["refused" if re.match("export, task [0-2]", message) and len(message) < 400 else message] += 1
    assert set(counts) == {"read", "refused"}


NAMED = ["<script>", "]]>", "a\"b'", "\u202e", "a\u2028", "&amp;", "a\n\tb", "x" * 100_000, "\U0001f600"]


@pytest.mark.parametrize("text", NAMED, ids=lambda text: ascii(text[:9]))
def test_a_labelling_interface_holds_any_name_that_xml_can_hold(text):
    choices = ET.fromstring(annotation.labelling_config([text, "other"])).iter("Choice")
    assert [choice.get("value") for choice in choices] == [text, "other"]
    for letter in ("\0", "\x1f", "\ud800", "\ufffe"):
        rejects("which XML cannot hold", annotation.labelling_config, ["a", text[:10] + letter])


def test_a_malformed_export_is_refused_and_its_task_named():
    tasks = [{**with_index(i), "annotations": [answer("ape")]} for i in range(3)]
    options = {"num_examples": 40, "proposed": range(3), "project": "mine", "source": "export.json"}
    assert annotation.from_label_studio(tasks, NAMES, **options).indices.tolist() == [0, 1, 2]
    for fields, message in MALFORMED:
        damaged = copy.deepcopy(tasks)
        damaged[1] |= fields
        rejects(f"export.json, task 1{message}", annotation.from_label_studio, damaged, NAMES, **options)
    for damaged, message in ((["task"], "task 0 has no data"), ({}, "export.json holds a dict, not a list of tasks")):
        rejects(message, annotation.from_label_studio, damaged, NAMES, **options)
    rejects("several='all' is unknown", read, several="all")
    for number in ("2.5", True, float("nan")):
        rejects(f"has the number {number!r}: correct it", read, *numbered((number, "a")), names=None)
