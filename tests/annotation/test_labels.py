"""Labels from tables, several labels, people who do not agree, reviews, and what labels say of the network."""

import csv
import json
import logging

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import baal_jax as baal
from baal_jax import __main__ as command_line
from baal_jax import annotation, heuristics, posteriors, selection, study
from tests.annotation.exports import answer, frequencies, save
from tests.fixtures import Net

KEY = jax.random.key(3)
ROWS = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
SIDE = (ROWS[:, 0] > 0).astype(int)
NAMES = ["left", "right"]


def begun(folder, names=NAMES, count=12, **options):
    annotation.start(folder, references=[f"{i}.png" for i in range(24)], class_names=names, **options)
    return annotation.propose(folder, frequencies(2), ROWS, key=KEY, num_initial=count)


def told(folder, query, say, **fields):
    tasks = json.loads(query.tasks.read_text(encoding="utf-8"))
    tasks = [task | {"annotations": say(task["data"]["baal_index"])} for task in tasks]
    return annotation.ingest(folder, save(folder.parent, tasks), **fields)


def table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_cross_validation_counts_what_each_fold_did_not_see(tmp_path):
    home = tmp_path / "a"
    query = begun(home)
    wrong = int(query.indices[3])
    side = lambda i: NAMES[SIDE[i] if i != wrong else 1 - SIDE[i]]  # noqa: E731
    told(home, query, lambda i: [answer(side(i), 1)])
    for _ in range(2):
        query = annotation.propose(home, frequencies(2), ROWS, key=KEY)
        told(home, query, lambda i: [answer(side(i), 2)])
    found = annotation.assess(home, frequencies(2), ROWS, key=KEY, folds=3, points=2)
    state = annotation.answers(home)
    at, targets = np.asarray(state.labelled_at), np.asarray(state.targets)
    ids = np.flatnonzero(at >= 0)
    np.testing.assert_array_equal(found.indices, ids)
    assert [found.metric, len(ids), len(found.curve)] == ["accuracy", 18, 2]
    # Each is predicted by counts of the others: of its own part of all, it and a third of its class are not seen.
    hits = 0
    for row, i in enumerate(ids):
        same = [j for j in ids if SIDE[j] == SIDE[i] and j != i]
        counts = np.bincount(targets[same], minlength=2)
        given = found.predictions[row]
        assert given.sum() == pytest.approx(1.0)
        # Of a side all labels but at most the mistake are one class, whatever was left out.
        assert given.argmax() == SIDE[i] == counts.argmax()
        seen = round(1 / given.min() - 2) if given.min() > 0 else 0
        assert 0 <= seen <= len(same)
        hits += given.argmax() == targets[i]
        assert found.doubts[row] == pytest.approx(1 - given[targets[i]])
    assert found.score == hits / 18 == 17 / 18
    assert found.error == pytest.approx(np.std([1] * 17 + [0], ddof=1) / np.sqrt(18))
    assert ids[found.doubts.argmax()] == wrong
    first = at[ids] == 0
    right = np.array([found.predictions[row].argmax() == targets[i] for row, i in enumerate(ids)])
    assert found.first == right[first].mean()
    assert [point[0] for point in found.curve] == [15, 18]
    assert found.curve[-1][1:] == (found.score, found.error, found.first)
    # The same share of a class in every part, and the same parts from the same key.
    again = annotation.assess(home, frequencies(2), ROWS, key=KEY, folds=3, points=2)
    np.testing.assert_array_equal(again.predictions, found.predictions)
    for options, message in (({"folds": 1}, "folds=1 leaves nothing out"), ({"points": 0}, "points")):
        with pytest.raises(ValueError, match=message):
            annotation.assess(home, frequencies(2), ROWS, key=KEY, **options)
    # A review asks for the wrong label first, each label once, and what it brings corrects.
    review = annotation.propose(home, frequencies(2), ROWS, key=KEY, review=True)
    assert [int(review.indices[0]), len(review.indices)] == [wrong, 3]
    assert review.reasons[0].startswith(
        f"labelled {NAMES[1 - SIDE[wrong]]}; a fit without it says {NAMES[SIDE[wrong]]} "
    )
    assert json.loads(review.tasks.read_text())[0]["data"]["baal_review"] == review.round
    before = annotation.answers(home)
    brought = told(home, review, lambda i: [answer(NAMES[SIDE[i]], 3)])
    assert [brought.corrected.tolist(), brought.waiting.tolist()] == [[wrong], []]
    np.testing.assert_array_equal(annotation.answers(home).labelled_at, before.labelled_at)
    second = annotation.propose(home, frequencies(2), ROWS, key=KEY, review=True)
    assert not {*second.indices.tolist()} & {*review.indices.tolist()}
    stray = json.loads(review.tasks.read_text())
    stray[0]["data"]["baal_review"] = 0
    stray = [stray[0] | {"annotations": [answer("left", 9)]}]
    with pytest.raises(ValueError, match=f"there was no review 0 of {wrong}"):
        annotation.ingest(home, save(tmp_path, stray))


def test_reviews_do_not_change_what_is_asked_next(tmp_path):
    asked = []
    for name in ("a", "b"):
        query = begun(tmp_path / name)
        told(tmp_path / name, query, lambda i: [answer(NAMES[SIDE[i]], 1)])
        if name == "b":
            review = annotation.propose(tmp_path / name, frequencies(2), ROWS, key=KEY, review=True)
            told(tmp_path / name, review, lambda i: [answer(NAMES[SIDE[i]], 2)])
        asked.append(annotation.propose(tmp_path / name, frequencies(2), ROWS, key=KEY).indices.tolist())
    assert asked[0] == asked[1]


def test_numbers_are_assessed_by_their_error(tmp_path):
    home = tmp_path / "a"
    query = begun(home, None)
    told(home, query, lambda i: [answer("", 1, number=float(i % 2))])
    kernel = posteriors.kernels.rbf(1.0)
    process = posteriors.gaussian_process(kernel, num_features=16, max_labelled=16)
    loop = baal.active_loop(process, selection.random(), query_size=2, num_samples=8)
    found = annotation.assess(home, loop, ROWS, key=KEY, folds=4, points=1)
    errors = found.predictions[:, 0] - found.indices % 2
    np.testing.assert_allclose(found.doubts, np.abs(errors), rtol=1e-6)
    assert found.score == pytest.approx(np.sqrt(np.mean(errors**2)))
    assert found.metric == "rmse"


def test_several_labels_go_round(tmp_path):
    home, names = tmp_path / "a", ["right", "even"]
    annotation.start(home, references=[f"{i}.png" for i in range(24)], class_names=names, multi_label=True)
    assert 'choice="multiple">' in (home / "label_config.xml").read_text()
    trainer = baal.trainer(optax.adam(1e-2), baal.losses.binary_cross_entropy, num_steps=60)
    posterior = posteriors.mc_dropout(baal.from_linen(Net(2)), trainer)
    bald = selection.top_k(heuristics.multi_label(heuristics.bald))
    loop = baal.active_loop(posterior, bald, query_size=3, num_samples=4)
    query = annotation.propose(home, loop, ROWS, key=KEY, num_initial=12)
    holds = lambda i: [name for name, is_so in zip(names, (SIDE[i], i % 2 == 0), strict=True) if is_so]  # noqa: E731

    def said(i):
        one = answer("x", 1)
        one["result"][0]["value"]["choices"] = holds(i)
        return [one] if holds(i) else [answer("x", 1, result=[])]  # which says that none is right

    told(home, query, said)
    targets = np.asarray(annotation.answers(home).targets)
    expected = np.stack([SIDE, np.arange(24) % 2 == 0], axis=1).astype(int)
    np.testing.assert_array_equal(targets[query.indices], expected[query.indices])
    assert (targets[np.setdiff1d(np.arange(24), query.indices)] == -1).all()
    second = annotation.propose(home, loop, ROWS, key=KEY)
    guesses = json.loads(second.tasks.read_text(encoding="utf-8"))
    for guess, row in zip(guesses, json.loads((home / "query-0001.json").read_text())["predictions"], strict=True):
        likely = [name for name, value in zip(names, row, strict=True) if value >= 0.5]
        shown = [part["value"]["choices"] for one in guess.get("predictions", []) for part in one["result"]]
        assert shown == ([likely] if likely else [])
    found = annotation.assess(home, loop, ROWS, key=KEY, folds=3, points=1)
    right = (found.predictions >= 0.5) == (expected[found.indices] == 1)
    assert found.score == pytest.approx(right.mean())
    given = np.where(expected[found.indices] == 1, found.predictions, 1 - found.predictions)
    np.testing.assert_allclose(found.doubts, 1 - given.min(axis=1), rtol=1e-6)
    written = annotation.export(home, loop, ROWS, key=KEY, folds=0)
    assert json.loads(table(written[0])[0]["label"]) == holds(int(table(written[0])[0]["id"]))
    network = jax.export.deserialize(bytearray(written[2].read_bytes()))
    probabilities = [float(table(written[1])[5][name]) for name in names]
    np.testing.assert_allclose(network.call(ROWS[5:6])[0], probabilities, atol=1e-6)
    # A class that comes later is unknown in what was said before it, and known in what is said after it.
    annotation.amend(home, classes=["big"], rename={"even": "straight"})
    targets = np.asarray(annotation.answers(home).targets)
    np.testing.assert_array_equal(targets[query.indices], np.c_[expected[query.indices], [-1] * 12])
    told(home, query, said)  # an old export, under old names
    np.testing.assert_array_equal(np.asarray(annotation.answers(home).targets), targets)
    index = int(query.indices[0])
    late = answer("big")
    late["created_at"] = "2999-01-01T00:00:00Z"
    told(home, query._replace(tasks=query.tasks), lambda i: [late] if i == index else [])
    assert np.asarray(annotation.answers(home).targets)[index].tolist() == [0, 0, 1]


def test_of_several_labels_a_majority_holds_for_each_and_null_is_no_answer():
    def read(*choices, several="majority"):
        given = [answer("a", i + 1, who) for i, (who, _) in enumerate(choices)]
        for one, (_, said) in zip(given, choices, strict=True):
            one["result"] = one["result"] if said else []
            if said:
                one["result"][0]["value"]["choices"] = [*said]
        task = {"data": {"image": "a", "baal_index": 3}, "annotations": given}
        options = {"num_examples": 5, "multi_label": True, "several": several}
        return annotation.from_label_studio([task], ["a", "b", "c"], **options)

    votes = ("x", "ab"), ("y", "bc"), ("z", "b")
    assert read(*votes).targets.tolist() == [[0, 1, 0]]
    assert read(*votes, several="newest").targets.tolist() == [[0, 1, 0]]
    assert read(("x", "ab"), ("y", "")).targets.tolist() == [[0, 0, 0]]  # of equals the newest
    assert [vote[1] for vote in read(("x", "ab"), ("y", "")).disputed[3]] == [(1, 1, 0), (0, 0, 0)]
    assert not read(("x", "ab"), ("y", "ba")).disputed
    task = {"data": {"image": "a", "baal_index": 3}, "annotations": [answer("a", 1, result=None)]}
    for multi_label in (False, True):
        found = annotation.from_label_studio([task], ["a", "b"], num_examples=5, multi_label=multi_label)
        assert found.unanswered.tolist() == [3]
    assert annotation.labelling_config(["one"], multi_label=True).count("<Choice ") == 1
    with pytest.raises(ValueError, match="multi_label=True needs class_names"):
        annotation.labelling_config(None, multi_label=True)


def test_labels_come_from_a_table_and_go_into_one(tmp_path):
    homes = [tmp_path / name for name in ("a", "b")]
    for home in homes:
        annotation.start(home, references=[f"{i}.png" for i in range(24)], class_names=NAMES)
    path = tmp_path / "labels.csv"
    path.write_text("\ufeffreference,label,annotator\n3.png,left,ann\n5.png,right,\n7.png,,\n")
    brought = annotation.ingest(homes[0], path)
    assert brought.new.tolist() == [3, 5]
    state = annotation.answers(homes[0])
    assert np.flatnonzero(np.asarray(state.labelled_at) >= 0).tolist() == [3, 5]
    # There is something to fit to, so that the first query is no random one; and these are not asked for.
    query = annotation.propose(homes[0], frequencies(2), ROWS, key=KEY)
    assert not {3, 5} & {*query.indices.tolist()}
    assert "left 0." in query.reasons[0]
    told(homes[0], query, lambda i: [answer("left", 4, "ann"), answer("right", 5, "bob")])
    labels, quarrels = annotation.export(homes[0])
    assert {row["label"] for row in table(quarrels)} == {"left", "right"}
    assert [row["annotator"] for row in table(quarrels)] == ["ann", "bob"] * 3
    assert annotation.ingest(homes[1], labels).new.tolist() == sorted([3, 5, *query.indices.tolist()])
    assert table(annotation.export(homes[1])[0]) == [row | {"round": "0"} for row in table(labels)]
    for text, message in (
        ("name,label\nx,left\n", "has the columns name, label: name them id or reference"),
        ("id,label\n24,left\n", "row 2 of .*labels.csv has the id '24', of 24 examples"),
        ("id,label\n-1,left\n", "has the id '-1'"),
        ("id,reference,label\n3,4.png,left\n", "row 2 of .* has 3 as '4.png', which is '3.png'"),
        ("reference,label\n99.png,left\n", "has the reference '99.png', which no example has; they are such"),
        ("id,label\n1,left\n2,middle\n", "row 3 of .* has the label 'middle': the classes are left, right"),
    ):
        path.write_text(text)
        before = (homes[0] / "labels.json").read_bytes()
        with pytest.raises(ValueError, match=message):
            annotation.ingest(homes[0], path)
        assert (homes[0] / "labels.json").read_bytes() == before
    named = tmp_path / "e"
    annotation.start(
        named, references=["/data/?d=a/x%20y.png", "/data/?d=b/z.png", "/data/?d=c/z.png"], class_names=NAMES
    )
    path.write_text("reference,label\na/x y.png,left\n/data/?d=c/z.png,right\n")
    assert annotation.ingest(named, path).new.tolist() == [0, 2]
    path.write_text("reference,label\nz.png,left\n")
    with pytest.raises(ValueError, match="which several examples have: name the id"):
        annotation.ingest(named, path)
    several, numbers = tmp_path / "c", tmp_path / "d"
    annotation.start(several, references=["x", "x"], class_names=NAMES, multi_label=True)
    path.write_text('id,label\n0,"[""left"", ""right""]"\n1,left\n')
    annotation.ingest(several, path)
    assert np.asarray(annotation.answers(several).targets).tolist() == [[1, 1], [1, 0]]
    annotation.start(numbers, references=["x", "y"])
    for cell, message in (("much", "'much', which is no number"), ("nan", "has the number nan")):
        path.write_text(f"id,label\n0,{cell}\n")
        with pytest.raises(ValueError, match=message):
            annotation.ingest(numbers, path)
    path.write_text("reference,label\nx,left\n")
    with pytest.raises(ValueError, match="'x', which several examples have: name the id"):
        annotation.ingest(several, path)


def test_a_table_of_texts_grows_and_settings_change_by_the_command(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    words = ["a cat that sleeps on a warm stone", "the dog who barks at the old gate"]
    rows = [f"{words[i % 2]}, number {i}" for i in range(9)]
    (tmp_path / "texts.csv").write_text("text\n" + "".join(f'"{row}"\n' for row in [*rows, rows[0]]))
    cheap = ["--num-initial", "6", "--query-size", "2", "--num-steps", "3", "--num-samples", "2"]
    call = lambda *given: command_line.main([*given])  # noqa: E731
    assert call("propose", "home", "--data", "texts.csv", "--classes", "cat", "dog", *cheap) == 0
    home = tmp_path / "home"
    project = json.loads((home / "project.json").read_text())
    assert [project["kind"], project["references"]] == ["text", [*rows, rows[0]]]
    tasks = json.loads((home / "query-0000.label_studio.json").read_text())
    assert tasks[0]["data"]["text"] in rows
    said = [task | {"annotations": [_of_text(words, task)]} for task in tasks]
    save(tmp_path, said)
    assert call("ingest", "home", "export.json") == 0
    with (tmp_path / "texts.csv").open("a") as file:
        file.write('"a bird that sings in the early morning"\n')
    capsys.readouterr()
    with caplog.at_level(logging.INFO):
        assert call("propose", "home", "--num-steps", "4", "--strategy", "margin") == 0
    shown = capsys.readouterr()
    assert "strategy: power_bald → margin" in shown.err
    assert "num_steps: 3 → 4" in shown.err
    assert "1 new examples, with ids from 10 on" in shown.err
    assert any("fits to 6 labels, scores 5 examples" in record.message for record in caplog.records)
    assert shown.out.count("; score ") == 2
    config = json.loads((home / "project.json").read_text())["config"]
    assert [config["num_steps"], config["strategy"]] == [4, "margin"]
    assert call("propose", "home", "--seed", "7") == 2
    assert "seed=7, but the project was begun with 0" in capsys.readouterr().err
    light = ["--give-up", "--posterior", "logistic_regression"]  # which has no network to read features of
    assert call("propose", "home", *light) == 0
    assert call("export", "home", "--folds", "2") == 0
    shown = capsys.readouterr().out
    assert "labels, each left out of one of 2 fits; " in shown
    assert table(home / "learning_curve.csv")[0].keys() == {
        "labels", "accuracy", "standard_error", "accuracy_of_the_first_query"
    }  # fmt: skip


def _of_text(words, task):
    name = "cat" if task["data"]["text"].startswith(words[0]) else "dog"
    one = answer(name, 1)
    one["result"][0]["to_name"] = "text"
    return one


def test_nothing_is_trained_where_nothing_is_left(tmp_path):
    query = begun(tmp_path / "a", count=24)
    told(tmp_path / "a", query, lambda i: [answer(NAMES[SIDE[i]], 1)])
    loop = frequencies(2)
    called = []
    fit = lambda *given: called.append(given) or loop.round.fit(*given)  # noqa: E731
    counted = loop._replace(round=loop.round._replace(fit=fit))
    with pytest.raises(ValueError, match="all 24 examples have been answered"):
        annotation.propose(tmp_path / "a", counted, ROWS, key=KEY)
    assert not called
    annotation.assess(tmp_path / "a", counted, ROWS, key=KEY, folds=2, points=1)
    assert len(called) == 2


def test_a_label_that_came_later_is_unknown_to_those_who_spoke_before(tmp_path):
    home = tmp_path / "a"
    annotation.start(home, references=["x", "y", "z"], class_names=["a", "b"], multi_label=True)
    query = annotation.propose(home, None, ROWS[:3], key=KEY, num_initial=3)

    def given(names, day, who):
        one = answer("a", day, who)
        one["result"][0]["value"]["choices"] = names
        return one

    untimed = [given(["a"], None, 1)]
    told(home, query, lambda i: untimed)
    annotation.amend(home, classes=["c"])
    assert told(home, query, lambda i: untimed).unchanged.tolist() == [0, 1, 2]  # and not absent now
    assert np.asarray(annotation.answers(home).targets).tolist() == [[1, 0, -1]] * 3
    late = given(["a", "c"], 5, 3) | {"created_at": "2999-01-01T00:00:00Z"}
    votes = [given(["a"], 1, 1), given(["a"], 2, 2), late]
    brought = told(home, query, lambda i: votes, several="majority")
    assert np.asarray(annotation.answers(home).targets).tolist() == [[1, 0, 1]] * 3  # who could not see it has no say
    assert not brought.disputed.size
    told(home, query, lambda i: [given(["b"], 3, 1)] if i == 0 else [], several="majority")
    # A table keeps what is unknown.
    other = tmp_path / "b"
    annotation.start(other, references=["x", "y", "z"], class_names=["a", "b", "c"], multi_label=True)
    path = tmp_path / "labels.csv"
    path.write_text('id,label,unknown\n0,"[""a""]","[""c""]"\n1,[],\n')
    annotation.ingest(other, path)
    targets = [[1, 0, -1], [0, 0, 0], [-1, -1, -1]]
    assert np.asarray(annotation.answers(other).targets).tolist() == targets
    (written,) = annotation.export(other)
    third = tmp_path / "c"
    annotation.start(third, references=["x", "y", "z"], class_names=["a", "b", "c"], multi_label=True)
    annotation.ingest(third, written)
    assert np.asarray(annotation.answers(third).targets).tolist() == targets
    for cell in ('{"a": false}', '"ab"', "[1]"):
        path.write_text("id,label\n0,'" + cell.replace('"', '""') + "'\n")
        with pytest.raises(ValueError, match="write a list such as"):
            annotation.ingest(third, path)


def test_a_name_that_a_class_had_is_not_that_of_another(tmp_path):
    annotation.start(tmp_path / "a", references=["x"], class_names=["cat", "dog"])
    for change, new, owner in (
        ({"rename": {"cat": "dog", "dog": "cat"}}, "dog", "dog"),
        ({"classes": ["cat"]}, "cat", "cat"),
    ):
        with pytest.raises(ValueError, match=f"'{new}' is or was the name of the class '{owner}': choose another"):
            annotation.amend(tmp_path / "a", **change)
    annotation.amend(tmp_path / "a", rename={"cat": "kitten"})
    for change in ({"classes": ["cat"]}, {"rename": {"dog": "cat"}}):
        with pytest.raises(ValueError, match="'cat' is or was the name of the class 'kitten'"):
            annotation.amend(tmp_path / "a", **change)
    annotation.amend(tmp_path / "a", rename={"kitten": "cat"})  # its own name again


def test_a_review_that_is_skipped_or_late_leaves_the_label_and_ends(tmp_path):
    home = tmp_path / "a"
    path = tmp_path / "labels.csv"
    rows = [f"{i},{NAMES[SIDE[i]]},2026-01-20T12:00:00,{'ann' if i else 'bob'}\n" for i in range(8)]
    annotation.start(home, references=[f"{i}.png" for i in range(24)], class_names=NAMES)
    path.write_text("id,label,time,annotator\n" + "".join(rows))
    annotation.ingest(home, path)
    assert np.isnan(annotation.assess(home, frequencies(2), ROWS, key=KEY, folds=2, points=1).first)  # none was drawn
    review = annotation.propose(home, frequencies(2), ROWS, key=KEY, review=True)
    before = np.asarray(annotation.answers(home).targets)
    for say in ([answer("x", 1, was_cancelled=True, result=[])], [answer("left", 19)]):
        (home / "labels.json").write_bytes((home / "labels.json").read_bytes())
        brought = told(home, review, lambda i, say=say: say)
        assert not len(brought.waiting)
        np.testing.assert_array_equal(annotation.answers(home).targets, before)
    # What was never asked for is skipped as often as one likes.
    again = annotation.propose(home, frequencies(2), ROWS, key=KEY)
    for _ in range(2):
        told(home, again, lambda i: [answer("x", 25, was_cancelled=True, result=[])])
    waits = annotation.propose(home, frequencies(2), ROWS, key=KEY)
    with pytest.raises(ValueError, match=f"review=True, but the last query waits for {len(waits.waiting)} answers"):
        annotation.propose(home, frequencies(2), ROWS, key=KEY, review=True)


def test_what_is_not_finite_is_no_accuracy(tmp_path):
    query = begun(tmp_path / "a")
    told(tmp_path / "a", query, lambda i: [answer(NAMES[SIDE[i]], 1)])
    loop = frequencies(2)
    broken = loop._replace(predict=lambda state, inputs: loop.predict(state, inputs) * jnp.nan)
    with jax.debug_nans(False):
        for call in (annotation.assess, annotation.export):
            with pytest.raises(ValueError, match="loop predicts what is not finite: look at the learning rate"):
                call(tmp_path / "a", broken, ROWS, key=KEY)
    assert not (tmp_path / "a" / "predictions.csv").exists()
    for folds in (1, -1):
        with pytest.raises(ValueError, match=f"folds={folds} leaves nothing out"):
            annotation.export(tmp_path / "a", loop, ROWS, key=KEY, folds=folds)


def test_large_numbers_are_learnt_and_zero_is_a_setting(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "use_compilation_cache", lambda: None)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(24, 2)).astype(np.float32)
    np.savez("pool.npz", inputs=inputs, references=[f"row {i}" for i in range(24)])
    cheap = ["--num-initial", "16", "--num-steps", "200", "--num-samples", "4", "--rate", "0.1", "--kind", "text"]
    call = lambda *given: command_line.main([*given])  # noqa: E731
    assert call("propose", "home", "--data", "pool.npz", *cheap, "--seed", "3") == 0
    home = tmp_path / "home"
    (home / "labels.json").unlink()  # killed before it was there
    for path in home.glob("query-*"):
        path.unlink()
    (home / "label_config.xml").unlink()
    assert call("propose", "home") == 0
    assert (home / "label_config.xml").exists()
    assert call("propose", "home", "--rate", "0") == 2
    assert (
        "mc_dropout' fails when it is called (ValueError: the model's output does not depend" in capsys.readouterr().err
    )
    assert call("propose", "home", "--seed", "0") == 2
    assert call("propose", "home", "--query-size", "0") == 2
    tasks = json.loads((home / "query-0000.label_studio.json").read_text())
    value = lambda i: 1000.0 + 10.0 * float(inputs[i, 0])  # noqa: E731
    for task in tasks:
        one = answer("", 1, number=value(task["data"]["baal_index"]))
        one["result"][0]["to_name"] = "text"
        task["annotations"] = [one]
    save(tmp_path, tasks)
    assert call("ingest", "home", "export.json") == 0
    assert call("export", "home", "--folds", "0") == 0
    rows = table(home / "predictions.csv")
    error = np.array([float(row["mean"]) - value(i) for i, row in enumerate(rows)])
    assert np.sqrt(np.mean(error**2)) < 8
    labels = table(home / "labels.csv")
    assert float(labels[0]["label"]) == value(int(labels[0]["id"]))
    # A posterior that cannot learn such targets is refused before people are asked.
    capsys.readouterr()
    made = ["--data", "pool.npz", "--kind", "text", "--classes", "a", "b", "--multi-label", "--posterior", "laplace"]
    assert call("propose", "other", *made) == 2
    assert "posterior='laplace' fails when it is called" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


def test_texts_of_a_table_are_texts(tmp_path):
    path = tmp_path / "texts.csv"
    for rows, said in (
        (["good movie", "bad movie", "", "NA", "fine day"], "1 empty rows left out"),
        (["one two three"] * 3 + ["four five six"] * 3, "columns words"),
    ):
        path.write_text("words\n" + "".join(f'"{row}"\n' for row in rows))
        found = baal.data.open(path, num_test=0)
        assert [*found.references] == [row for row in rows if row not in ("", "NA")]
        assert said in found.said
        assert found.train.inputs.shape[1] > 1
    path.write_text("title,size\nfirst,3\nsecond,\n")
    assert baal.data.open(path, num_test=0).references == ("title: first, size: 3", "title: second")
