"""Damage to every kind of file that is read: what was written comes back, or an error names the file.

``python -m tests.contracts.damage --number 5000 --seed 0`` tries many, ``--kinds study checkpoint`` of these alone;
``--kills 40`` kills programs that write at random moments, and lets them go on.
"""

import argparse
import collections
import importlib.util
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from baal_jax import annotation, checkpoint, features
from baal_jax._util import files
from baal_jax.features import _encode
from baal_jax.study import _folder, results
from tests.annotation import exports
from tests.fixtures import same
from tests.study.files import make_results


class Kind(NamedTuple):
    """Files of one kind.

    ``write(folder)`` writes them into an empty folder, after which ``read(folder)`` gives a pytree that damage may not
    change. It reads as a careful user does, who knows what was there, and computes anew what may be lost. ``other``
    writes files of the same kind that belong elsewhere, under the same names; None where nothing tells them apart.
    Files whose paths end with one of ``unknown`` have no checksum: not all of their damage can be noticed.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    other: Callable[[Path], Any] | None = None
    unknown: tuple[str, ...] = ()


OUTCOMES = ("silent", "nameless", "refused", "harmless", "unknown")


class Attempt(NamedTuple):
    """``outcome`` is one of OUTCOMES; "silent": another value is read, "unknown": of a file without a checksum."""

    kind: str
    file: str
    damage: str
    outcome: str
    error: BaseException | None = None


def flipped(content, chance):
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 3))):
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    return bytes(changed)


def cut(content, chance):
    return content[: chance.randrange(len(content))]


def appended(content, chance):
    return content + chance.choice((b"\n", b"\0", b"}", content, chance.randbytes(chance.randrange(1, 99))))


def removed(content, chance):
    start = chance.randrange(len(content))
    return content[:start] + content[start + chance.choice((1, 2, 60)) :]


def doubled(content, chance):
    start, size = chance.randrange(len(content)), chance.choice((1, 2, 60))
    return content[: start + size] + content[start:]


def digit(content, chance):
    """Another digit, which is still well-formed where numbers are text."""
    places = [place for place, byte in enumerate(content) if byte in b"0123456789"]
    if not places:
        return flipped(content, chance)
    place = chance.choice(places)
    return (
        content[:place]
        + chance.choice([b"%d" % i for i in range(10) if i != content[place] - 48])
        + content[place + 1 :]
    )


CONTENTS = (flipped, flipped, digit, cut, appended, removed, doubled, lambda content, chance: b"")


def damage(folder: Path, path: Path, other: Path | None, chance: random.Random) -> tuple[str, list[Path]]:
    """Damages a file of a folder; returns how, and the files that an error may name."""
    files = [file for file in sorted(folder.rglob("*")) if file.is_file() and file.name != "lock" and file != path]
    ways = ["content"] * 6 + ["loss", "folder"] + ["swap"] * bool(files) + ["other"] * 2 * (other is not None)
    ways += ["permission"] * (os.name == "posix")  # which root may ignore
    way, named = chance.choice(ways), [path]
    content = path.read_bytes()
    if way == "content" and content:
        change = chance.choice(CONTENTS)
        path.write_bytes(change(content, chance))
        way = change.__name__.replace("<lambda>", "emptied")
    elif way == "loss":
        path.unlink()
    elif way == "folder":
        path.unlink()
        path.mkdir()
    elif way == "swap":
        alike = [file for file in files if file.suffix == path.suffix]
        named.append(chance.choice(alike or files))
        path.write_bytes(named[1].read_bytes())
        named[1].write_bytes(content)
    elif way == "other" and other is not None and (there := other / path.relative_to(folder)).is_file():
        path.write_bytes(there.read_bytes())
    elif way == "permission":
        path.chmod(0)
    return way, named


def attempts(name: str, kind: Kind, number: int, seed: int) -> Iterator[Attempt]:
    """``number`` damages of one kind, seeded."""
    chance = random.Random(f"{name} {seed}")
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        whole, other, folder = (home / part / "a" for part in ("whole", "other", "damaged"))
        for place, write in ((whole, kind.write), (other, kind.other)):
            place.mkdir(parents=True)
            if write is not None:
                write(place)
        shutil.copytree(whole, folder)
        expected = kind.read(folder)
        for _ in range(number):
            shutil.rmtree(home / "damaged")
            shutil.copytree(whole, folder)
            files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "lock"]
            path = chance.choice(files)
            way, named = damage(folder, path, None if kind.other is None else other, chance)
            attempt = Attempt(name, path.name, way, "harmless")
            try:
                found = kind.read(folder)
            except (ValueError, OSError) as error:
                outcome = "refused" if any(file.name in str(error) for file in named) else "nameless"
                yield attempt._replace(outcome=outcome, error=error)
            except Exception as error:
                yield attempt._replace(outcome="nameless", error=error)
            else:
                try:
                    same(found, expected)
                except (AssertionError, ValueError, TypeError):
                    is_unknown = any(str(file).endswith(kind.unknown) for file in named)
                    yield attempt._replace(outcome="unknown" if is_unknown else "silent")
                else:
                    yield attempt


NAMES = ["ape", "bée"]


def save(number, folder, rate=0.1):
    with checkpoint.checkpointer(folder, {"rate": rate}) as saved:
        saved.save(number, {"number": number, "rows": np.arange(300) * number + int(rate > 0.1)})


def continued(folder):
    """Which computes anew what was lost, and deletes nothing."""
    with checkpoint.checkpointer(folder, {"rate": 0.1}) as saved:
        if saved.latest != 2:
            saved.save(2, {"number": 2, "rows": np.arange(300) * 2})
        for number in (1, 2) if (folder / "step_00000001.npz").exists() else (2,):
            state = saved.restore({"number": 0, "rows": np.zeros(300, int)}, number=number)
        return state


def whole_study(folder, strategies=("random", "bald"), key=0):
    """What is missing of a study, whose cells are two seeds each, with its pictures."""
    told = make_results(strategies, seeds=4, rounds=2, classes=2, noise=0.02 + key / 100)
    asked = {"strategies": [*strategies], "baseline": None, "seeds": [*range(4)], "key": key, "num_rounds": 2}
    place = _folder.Folder(folder, {**asked, "num_pool": told.description["num_pool"], "chunk": 2})
    place.begin(dict.fromkeys(strategies, "none"))
    for name, seeds in results.missing(folder, results.cells_of(strategies, 4, 2)):
        rows = jax.tree.map(lambda leaf, seeds=seeds: leaf[seeds[0] : seeds[-1] + 1], told.runs[name])
        place.add(name, results.Cell(rows, "none", "cpu"))
    place.finish(np.roll(np.arange(400), key).reshape(100, 2, 2, 1), np.arange(100))
    found = results.read(folder)
    found.description.pop("environment")
    return [found, (folder / "results.csv").read_text()]


def started(folder, rate=0.5):
    annotation.start(folder, references=list("abçdefgh"), class_names=NAMES, config={"rate": rate})


def begun(folder, rate=0.5, **options):
    started(folder, rate)
    return annotation.propose(folder, None, np.zeros((8, 1)), key=jax.random.key(0), num_initial=3, **options)


def labelled(folder, rate=0.5):
    """Two queries, of the first of which one is answered, and of the second one is skipped."""
    first, second = (json.loads(begun(folder, rate, give_up=True).tasks.read_text()) for _ in range(2))
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": ["bée"]}}
    first = [task for task in first if task["data"] not in [other["data"] for other in second]]
    parts = [first[0] | {"annotations": [{"result": [result], "created_at": "2026-01-01T12:00:00Z"}]}]
    parts += [second[0] | {"annotations": [{"was_cancelled": True, "result": [], "created_at": "2026-01-02"}]}]
    export = folder.parent / "export.json"
    export.write_text(json.dumps(parts))
    annotation.ingest(folder, export)


def of_project(folder):
    last = begun(folder)
    content = [json.loads(path.read_text()) for path in sorted(folder.glob("query-????.json"))]
    return [annotation.answers(folder), last.indices, last.waiting, content, (folder / "label_config.xml").read_text()]


def journal(folder):
    for i in range(9):
        checkpoint.append_line(folder / "rounds.jsonl", {"i": i, "values": [i / 7, i**9]})


def journalled(folder):
    checkpoint.keep_lines(folder / "rounds.jsonl", 9)
    return checkpoint.read_lines(folder / "rounds.jsonl")


ROWS = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)


class Ending:
    """Rows that can be read so often."""

    def __init__(self, reads):
        self.reads = reads

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        self.reads -= 1
        if self.reads < 0:
            raise EOFError
        return ROWS[index]


def embedded(folder, scale=1.0, inputs=ROWS):
    """Embeddings in a file, recorded after every batch."""
    with mock.patch.object(_encode, "_EVERY", -1.0):
        apply = lambda x: jnp.tanh(x * scale)  # noqa: E731
        return np.array(features.encode(apply, inputs, batch_size=2, cache=folder / "rows.npy"))


def half_embedded(folder, scale=1.0):
    """Ends in the middle, after the 16 rows that are looked at first."""
    with suppress(EOFError):
        embedded(folder, scale, Ending(16 + 12))


KINDS = {
    "checkpoint": Kind(
        lambda folder: [save(number, folder) for number in (1, 2)],
        continued,
        lambda folder: [save(number, folder, rate=0.2) for number in (1, 2)],
    ),
    "journal": Kind(journal, journalled),
    "study": Kind(whole_study, whole_study, partial(whole_study, key=1)),
    "labelling project": Kind(labelled, of_project, partial(labelled, rate=0.25)),
    "embeddings": Kind(embedded, embedded, partial(embedded, scale=2.0)),
    "embeddings begun": Kind(half_embedded, embedded, partial(half_embedded, scale=2.0)),
}


def steps(folder):
    """A run with a journal and checkpoints, which goes on from the newest."""
    with checkpoint.checkpointer(folder / "checkpoints", {"rate": 0.1}) as saved:
        done = saved.latest or 0
        state = saved.restore({"sum": np.zeros(300, int)}) if done else {"sum": np.zeros(300, int)}
        checkpoint.keep_lines(folder / "rounds.jsonl", done)
        for i in range(done, 9):
            state = {"sum": state["sum"] + i}
            checkpoint.append_line(folder / "rounds.jsonl", {"i": i, "sum": state["sum"][:3]})
            saved.save(i + 1, state)


def skipped(folder):
    """A project all of whose examples are asked for and skipped, three at a time."""
    started(folder)
    while (np.asarray(annotation.answers(folder).labelled_at) == -1).any():
        tasks = json.loads(begun(folder).tasks.read_text())
        said = {"was_cancelled": True, "result": [], "created_at": "2026-01-02"}
        export = folder.parent / f"{folder.name}.json"
        export.write_text(json.dumps([task | {"annotations": [said]} for task in tasks]))
        annotation.ingest(folder, export)


LOOPS = {number: exports.frequencies(number) for number in (2, 3)}
PHOTOS = np.random.default_rng(0).normal(size=(17, 2)).astype(np.float32)


def living(folder):
    """A project that changes while it is labelled: photographs come, a class comes and one is renamed, one goes."""
    names, key = [f"photo {i}.png" for i in range(17)], jax.random.key(1)
    if not (folder / "project.json").exists() or not list(folder.glob("query-*.json")):
        annotation.start(folder, references=names[:12], class_names=["cat", "dog"])
    content = lambda: json.loads((folder / "project.json").read_text())  # noqa: E731
    while True:
        now = content()
        loop, pool = LOOPS[len(now["class_names"])], PHOTOS[: len(now["references"])]
        try:
            query = annotation.propose(folder, loop, pool, key=key, num_initial=6)
        except ValueError as error:
            if "have been answered" not in str(error):
                raise
            annotation.export(folder, loop, pool, key=key)
            (folder / "network.stablehlo").unlink()  # the same function, but not the same bytes
            return
        said = [exports.answer(content()["class_names"][i % len(content()["class_names"])], 1) for i in range(17)]
        tasks = json.loads(query.tasks.read_text())
        if query.round == 0 and len(query.waiting) == 6:  # half of them, and then all this
            tasks = tasks[:3]
        elif query.round == 0 and len(now["references"]) == 12:
            annotation.amend(folder, references=names[12:], config={"network": "another"})
            continue
        elif query.round == 0 and "bird" not in now["class_names"]:
            annotation.amend(
                folder, classes=["bird"], rename={"cat": "kitten"}, exclude=[tasks[0]["data"]["baal_index"]]
            )
            continue
        tasks = [task | {"annotations": [said[task["data"]["baal_index"]]]} for task in tasks]
        annotation.ingest(folder, files.write_text(folder / "export.json", json.dumps(tasks)))


PROGRAMS = {"study": whole_study, "steps": steps, "project": skipped, "living project": living, "embeddings": embedded}


def contents(folder):
    """Of all files but the lock, which holds nothing that anybody wants back, and what a killed process left."""
    paths = [path for path in folder.rglob("[!.]*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def kills(name: str, number: int, seed: int, home: Path) -> Iterator[bool]:
    """Kills a program at random moments, lets it go on, and says whether it ended as if in peace."""
    chance, peace = random.Random(f"{name} {seed}"), home / "peace"
    peace.mkdir()
    began = time.monotonic()
    PROGRAMS[name](peace)
    within = max(0.5, 0.8 * (time.monotonic() - began))
    for _ in range(number):
        folder = home / f"killed{_}"
        folder.mkdir()
        command = [sys.executable, "-m", "tests.contracts.damage", "--go-on", name, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(chance.uniform(0, within))
            process.kill()
        PROGRAMS[name](folder)
        yield contents(folder) == contents(peace)


def kinds() -> dict[str, Kind]:
    """Ours and those of other programs."""
    if importlib.util.find_spec("tests.contracts.foreign") is None:
        return KINDS
    return KINDS | importlib.import_module("tests.contracts.foreign").FOREIGN


def main() -> int:
    """Prints counts of every kind, and what was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=500, help="damages, over all kinds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=kinds())
    parser.add_argument("--kills", type=int, help="kill programs that write, so often each, instead")
    parser.add_argument("--go-on", nargs=2, metavar=("PROGRAM", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.go_on:
        print("ready", flush=True)
        PROGRAMS[options.go_on[0]](Path(options.go_on[1]))
        return 0
    if options.kills:
        with tempfile.TemporaryDirectory() as home:
            same_ends = {}
            for name in PROGRAMS:
                (place := Path(home, name)).mkdir()
                same_ends[name] = sum(kills(name, options.kills, options.seed, place))
        print(f"of {options.kills} kills each ended as if in peace: {same_ends}")
        return int(set(same_ends.values()) != {options.kills})
    asked = {name: kind for name, kind in kinds().items() if not options.kinds or name in options.kinds}
    total = collections.Counter()
    for name, kind in asked.items():
        counts = collections.Counter()
        for attempt in attempts(name, kind, -(-options.number // len(asked)), options.seed):
            counts[attempt.outcome] += 1
            if attempt.outcome in OUTCOMES[:2]:
                error = "".join(traceback.format_exception_only(attempt.error)).strip() if attempt.error else ""
                print(f"  {attempt.outcome}: {attempt.file}, {attempt.damage}. {error[:300]}")
        total += counts
        print(f"{name}: " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES), flush=True)
    print(f"all {total.total()}: " + ", ".join(f"{total[outcome]} {outcome}" for outcome in OUTCOMES))
    return int(total["silent"] + total["nameless"] > 0)


if __name__ == "__main__":
    sys.exit(main())
