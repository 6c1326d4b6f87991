"""Damage to every kind of file that is read: what was written comes back, or an error names the file.

``python -m tests.contracts.damage --number 5000 --seed 0`` tries many, ``--kinds study checkpoint`` of these alone.
"""

import argparse
import collections
import importlib.util
import os
import random
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.fixtures import same


class Kind(NamedTuple):
    """Files of one kind.

    ``write(folder)`` writes them into an empty folder, after which ``read(folder)`` gives a pytree that damage may not
    change. It reads as a careful user does, who knows what was there, and computes anew what may be lost. ``other``
    writes files of the same kind that belong elsewhere, under the same names; None where nothing tells them apart.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Any]
    other: Callable[[Path], Any] | None = None


class Attempt(NamedTuple):
    """``outcome`` is "harmless", "refused", "silent" (another value is read) or "nameless" (so is the error)."""

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
    ways += ["permission"] * (os.name == "posix" and os.getuid() != 0)
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
                    yield attempt._replace(outcome="silent")
                else:
                    yield attempt


KINDS: dict[str, Kind] = {}


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
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    asked = {name: kind for name, kind in kinds().items() if not options.kinds or name in options.kinds}
    total = collections.Counter()
    outcomes = ("silent", "nameless", "refused", "harmless")
    for name, kind in asked.items():
        counts = collections.Counter()
        for attempt in attempts(name, kind, -(-options.number // len(asked)), options.seed):
            counts[attempt.outcome] += 1
            if attempt.outcome in outcomes[:2]:
                error = "".join(traceback.format_exception_only(attempt.error)).strip() if attempt.error else ""
                print(f"  {attempt.outcome}: {attempt.file}, {attempt.damage}. {error[:300]}")
        total += counts
        print(f"{name}: " + ", ".join(f"{counts[outcome]} {outcome}" for outcome in outcomes), flush=True)
    print(f"all {total.total()}: " + ", ".join(f"{total[outcome]} {outcome}" for outcome in outcomes))
    return int(total["silent"] + total["nameless"] > 0)


if __name__ == "__main__":
    sys.exit(main())
