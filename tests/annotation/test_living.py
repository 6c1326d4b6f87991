"""Projects in any order of what people do to them, killed on the way: nothing is lost, every label stays there."""

import csv
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from baal_jax import annotation
from baal_jax._util import files
from tests.annotation.exports import answer, frequencies, refused

ROWS = np.random.default_rng(0).normal(size=(23, 2)).astype(np.float32)
LOOPS = {size: frequencies(size) for size in (2, 3, 4)}
KEY = jax.random.key(2)


class Killed(BaseException):
    """The process ends here."""


class Project(RuleBasedStateMachine):
    """What the folder says is compared with what was done."""

    def __init__(self):
        super().__init__()
        self.home = Path(tempfile.mkdtemp()) / "home"
        self.names, self.count, self.labels, self.out, self.days = ["a0", "a1"], 8, {}, set(), 0
        self.files, self.skips, self.former = [], set(), {}

    def teardown(self):
        shutil.rmtree(self.home.parent)

    @initialize()
    def begins(self):
        annotation.start(self.home, references=[f"{i}.png" for i in range(8)], class_names=self.names)

    def survives(self, data, call):
        """Is killed at a write, before its file is there or after it, and called again until it ends."""
        writes, real = iter(range(100)), files.rename
        at, after = data.draw(st.integers(0, 6)), data.draw(st.booleans())

        def rename(source, path):
            dies = next(writes) == at
            if not dies or after:
                real(source, path)
            if dies:
                raise Killed

        files.rename = rename
        try:
            return call()
        except Killed:
            pass
        finally:
            files.rename = real
        return call()

    @rule(data=st.data())
    def is_asked_and_answered(self, data):
        self.is_asked(data, False, False)
        if self.files and self.days < 31:
            self.is_answered(data, of_last=True)

    @rule(data=st.data(), review=st.booleans(), give_up=st.booleans())
    def is_asked(self, data, review, give_up):
        state = annotation.answers(self.home)
        left = int((np.asarray(state.labelled_at) == -1).sum())
        waiting = self.waiting()
        before = len(list(self.home.glob("query-????.json")))
        call = lambda: annotation.propose(  # noqa: E731
            self.home, LOOPS[len(self.names)], ROWS[: self.count], key=KEY, num_initial=3, review=review,
            give_up=give_up and len(list(self.home.glob("query-????.json"))) == before,
        )  # fmt: skip
        try:
            query = self.survives(data, call)
        except ValueError as error:
            if not any(
                why in str(error) for why in ("answered or skipped", "labels cannot say", "been reviewed", "waits for")
            ):
                raise
            if left and not review:
                raise
            return
        if waiting and not give_up:
            assert query.waiting.tolist() == waiting
        else:
            assert query.waiting.tolist() == query.indices.tolist()
            assert not (
                {*query.indices.tolist()} - {*self.labels} if review else {*query.indices.tolist()} & {*self.labels}
            )
        assert not {*query.waiting.tolist()} & (self.out | self.skips)
        tasks = json.loads(query.tasks.read_text(encoding="utf-8"))
        if not self.files or tasks != self.files[-1]:
            self.files.append(tasks)

    def waiting(self):
        paths = sorted(self.home.glob("query-????.json"))
        if not paths:
            return []
        last, labels = json.loads(paths[-1].read_text()), json.loads((self.home / "labels.json").read_text())["labels"]
        done = {int(i) for i, said in labels.items() if not last.get("review") or said.get("reviewed") == last["round"]}
        return [i for i in last["indices"] if i not in done | self.out | self.skips]

    @precondition(lambda self: self.files and self.days < 31)
    @rule(data=st.data())
    def is_answered(self, data, of_last=False):
        tasks, self.days = self.files[-1] if of_last else data.draw(st.sampled_from(self.files)), self.days + 1
        known = [*self.names, *self.former]  # a tool may have the interface of before
        said, told = [], {}
        for task in tasks:
            index = task["data"]["baal_index"]
            what = data.draw(st.sampled_from([*known, "skip", None]))
            if what is not None:
                given = refused(self.days) if what == "skip" else answer(what, self.days)
                said.append(task | {"annotations": [given]})
                told[index] = what
        path = self.home.parent / "export.json"
        path.write_text(json.dumps(said))
        for _ in range(1 + data.draw(st.booleans())):  # the same twice changes nothing
            self.survives(data, lambda: annotation.ingest(self.home, path))
        reviewed = {task["data"]["baal_index"] for task in said if "baal_review" in task["data"]}
        for index, what in told.items():
            if what == "skip" and index in reviewed and index in self.labels:
                continue  # the label stays
            self.labels.pop(index, None)
            self.skips.discard(index)
            if what == "skip":
                self.skips.add(index)
            else:
                self.labels[index] = self.names.index(what) if what in self.names else self.former[what]

    @precondition(lambda self: self.days < 31)
    @rule(data=st.data())
    def is_told_from_a_table(self, data):
        self.days += 1
        ids = data.draw(st.lists(st.integers(0, self.count - 1), unique=True, max_size=3))
        rows = [[f"{i}.png", data.draw(st.sampled_from(self.names)), f"2026-01-{self.days:02d}T12:00:00Z"] for i in ids]
        path = self.home.parent / "labels.csv"
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["reference", "label", "time"], *rows])
        self.survives(data, lambda: annotation.ingest(self.home, path))
        for index, (_, name, _) in zip(ids, rows, strict=True):
            self.labels[index] = self.names.index(name)
            self.skips.discard(index)

    def amends(self, data, done, **changes):
        def call():
            now = json.loads((self.home / "project.json").read_text())
            return None if done(now) else annotation.amend(self.home, **changes)

        self.survives(data, call)

    @precondition(lambda self: self.count < 20)
    @rule(data=st.data())
    def grows(self, data):
        new = [f"{i}.png" for i in range(self.count, self.count + 3)]
        self.count += 3
        self.amends(data, lambda now: len(now["references"]) == self.count, references=new)

    @precondition(lambda self: len(self.names) < 4)
    @rule(data=st.data())
    def gets_a_class(self, data):
        name = f"a{len(self.names)}"
        self.amends(data, lambda now: name in now["class_names"], classes=[name])
        self.names.append(name)

    @precondition(lambda self: len(self.former) < 4)
    @rule(data=st.data())
    def renames_a_class(self, data):
        place = data.draw(st.integers(0, len(self.names) - 1))
        old, new = self.names[place], f"{self.names[place]}b"
        self.amends(data, lambda now: new in now["class_names"], rename={old: new})
        self.names[place] = new
        self.former[old] = place

    @precondition(lambda self: len(self.out) < 4)
    @rule(data=st.data())
    def excludes_one(self, data):
        index = data.draw(st.integers(0, self.count - 1))
        self.amends(data, lambda now: False, exclude=[index])
        self.out.add(index)

    @rule()
    def writes_its_labels(self):
        (path,) = annotation.export(self.home)
        with path.open(newline="") as file:
            rows = {int(row["id"]): row["label"] for row in csv.DictReader(file)}
        assert rows == {index: self.names[place] for index, place in self.labels.items()}

    @invariant()
    def every_label_is_where_it_was(self):
        if not (self.home / "project.json").exists():
            return
        state = annotation.answers(self.home)
        at, targets = np.asarray(state.labelled_at), np.asarray(state.targets)
        found = {i: int(targets[i]) for i in np.flatnonzero(at >= 0).tolist()}
        assert found == {i: place for i, place in self.labels.items() if i not in self.out}
        assert {*np.flatnonzero(at == -2).tolist()} == self.out | self.skips


# Without shrinking, which takes minutes: a history of 25 steps can be read as it is.
_PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
Project.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None, phases=_PHASES)
test_any_order = Project.TestCase
