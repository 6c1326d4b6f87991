"""Tables of text as numbers: what kind a column is, what is missing, and what was made of it."""

import csv
import io
import json
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util import checks, files

Cells = list[str | None]  # None where nothing is
_NOTHING = {"", "na", "n/a", "nan", "null", "none", "?"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_MOST_WORDS = 20  # of a column, each of which is a column of its own then
_MOST_CLASSES = 20  # of whole numbers that are classes
_TEXT = (25, 4)  # letters and words of what is read as text, on average


class Column(NamedTuple):
    """A column as it goes into a network.

    Attributes:
        values: ``float64[N, D]``.
        scaled: whether it is to be standardised.
    """

    values: np.ndarray
    scaled: bool


def read(path: Path) -> tuple[dict[str, Cells], list[str]]:
    """Columns of a file by name, and what is to be said of it."""
    content, said = path.read_bytes(), []
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        said.append("read as Windows-1252, as it is no UTF-8")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _of_lines(path, text), said
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("@")]
    if not lines:
        raise ValueError(f"{path} is empty")
    often = {mark: statistics.median(line.count(mark) for line in lines[:21]) for mark in ";\t,|"}
    mark = max(often, key=lambda mark: (lines[0].count(mark) > 0) * often[mark])
    if lines[0].count(mark) == 0:
        lines, mark = [" ".join(line.split()) for line in lines], " "
    with files.about(path, "save it as a table in UTF-8, with as many cells in each row"):
        rows = list(csv.reader(io.StringIO("\n".join(lines)), delimiter=mark, skipinitialspace=True, strict=True))
    head, *body = rows
    # Names stand above numbers; where each column of numbers begins with one, there are none.
    number = lambda cell: _as_number(cell.strip(), mark) is not None  # noqa: E731
    numeric = [column for column in zip(*rows, strict=False) if all(number(c) or _is_nothing(c) for c in column[1:])]
    above = [number(column[0]) for column in numeric]
    if (above and all(above)) or len({*head}) < len(head):
        head, body = [str(i) for i in range(1, len(head) + 1)], rows
        said.append(f"no names in its first line: columns are 1 to {len(head)}")
    for number, row in enumerate(body, 2 if body is not rows else 1):
        if len(row) != len(head):
            raise ValueError(f"{path}, row {number}: {len(row)} cells, but {len(head)} names: mend the row")
    columns: dict[str, Cells] = {}
    for name, cells in zip(head, zip(*body, strict=True), strict=True):
        stripped = [cell.strip() for cell in cells]
        numbers = [_as_number(cell, mark) if not _is_nothing(cell) else None for cell in stripped]
        there = [not _is_nothing(cell) for cell in stripped]
        if all(number is not None for number, is_there in zip(numbers, there, strict=True) if is_there):
            stripped = [number or "" for number in numbers]
        columns[name.strip()] = [cell if is_there else None for cell, is_there in zip(stripped, there, strict=True)]
    return columns, said


def _of_lines(path: Path, text: str) -> dict[str, Cells]:
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            with files.about(f"{path}, line {number}", "write one object of JSON a line"):
                row = json.loads(line)
                if not isinstance(row, dict) or any(isinstance(cell, list | dict) for cell in row.values()):
                    raise ValueError("it is no object of texts and numbers")
            rows.append(row)
    return of_rows(rows)


def of_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Cells]:
    """Columns of rows that are mappings; what a row lacks is missing."""
    names = dict.fromkeys(name for row in rows for name in row)
    texts = {name: [row.get(name) for row in rows] for name in names}
    return {name: [None if cell is None or _is_nothing(str(cell)) else str(cell) for cell in cells]
            for name, cells in texts.items()}  # fmt: skip


def _as_number(cell: str, mark: str) -> str | None:
    """A number as Python writes it, from one with a decimal comma or commas between thousands too; else None."""
    if _NUMBER.fullmatch(cell):
        return cell
    if mark != "," and re.fullmatch(r"[+-]?(\d{1,3}(\.\d{3})+|\d*),\d+", cell):
        return cell.replace(".", "").replace(",", ".")
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?", cell):
        return cell.replace(",", "")
    return None


def _is_nothing(cell: str) -> bool:
    return cell.strip().lower() in _NOTHING


def is_numeric(cells: Cells) -> bool:
    """Whether all that is there are numbers."""
    there = [cell for cell in cells if cell is not None]
    return bool(there) and all(_NUMBER.fullmatch(cell) for cell in there)


def is_text(cells: Cells) -> bool:
    """Whether these are sentences."""
    there = [cell for cell in cells if cell is not None]
    if not there or is_numeric(cells) or len({*there}) <= len(there) / 2:
        return False
    means = (statistics.fmean(map(len, there)), statistics.fmean(len(cell.split()) for cell in there))
    return means[0] >= _TEXT[0] and means[1] >= _TEXT[1]


def targets_of(name: str, cells: Cells, task: str | None) -> tuple[np.ndarray, list[str] | None]:
    """Targets of rows that have one, and names of the classes, or None where they are numbers."""
    values = sorted({str(cell) for cell in cells})
    numbers = np.array(cells, np.float64) if is_numeric(cells) else None
    if task not in (None, "classification", "regression"):
        raise ValueError(f"task={task!r} must be classification or regression")
    if task == "regression" and numbers is None:
        word = next(value for value in values if not _NUMBER.fullmatch(value))
        raise ValueError(f"task='regression', but column {name!r} holds words, such as {word[:40]!r}")
    whole = numbers is not None and bool((numbers == np.round(numbers)).all())
    few = numbers is None or (whole and len(values) <= _MOST_CLASSES)
    if task == "regression" or (task is None and not few):
        assert numbers is not None
        return _finite(name, numbers).astype(np.float32), None
    if numbers is not None:
        values = sorted(values, key=float)
    if len(values) < 2 or len(values) > max(len(cells) // 2, 2):
        raise ValueError(f"target={name!r} has {len(values)} different values in {len(cells)} rows: no classes")
    place = {value: i for i, value in enumerate(values)}
    return np.array([place[str(cell)] for cell in cells], np.int32), values


def inputs_of(columns: Mapping[str, Cells], train: np.ndarray, encode: Callable[..., Any]) -> tuple[list, list[str]]:
    """Columns as numbers, and what is to be said of them; medians and texts are learnt from the rows ``train``."""
    made, kinds, left_out, gaps = [], Counter(), [], []
    for name, cells in columns.items():
        there = np.array([cell is not None for cell in cells])
        known = [str(cell) for cell in cells if cell is not None]
        words, missing = sorted({*known}), len(cells) - len(known)
        if len(words) < 2 or not there[train].any():
            left_out.append(f"{name} (one value)")
        elif is_numeric(cells):
            values = _finite(name, np.array([cell if cell is not None else "nan" for cell in cells], np.float64))
            # The numbers of rows, of which some may be left out.
            if not missing and values[0] in (0, 1) and (np.diff(values) >= 1).all() and values[-1] < 1.5 * len(values):
                left_out.append(f"{name} (number of the row)")
                continue
            kinds["columns of numbers"] += 1
            made.append(Column(np.where(there, values, np.nanmedian(values[train]))[:, None], True))
            gaps += [f"{missing} of {name}"] if missing else []
        elif is_text(cells):
            kinds["of sentences"] += 1
            texts = [cell or "" for cell in cells]
            made.append(Column(np.asarray(encode(texts, train), np.float64), False))
        elif len(words) <= _MOST_WORDS:
            kinds["of words, a column each"] += 1
            made.append(Column(np.array([[cell == word for word in words] for cell in cells], np.float64), False))
            gaps += [f"{missing} of {name}"] if missing else []
        elif len(words) <= len(known) / 2:
            kinds["of many words, by their order"] += 1
            place: dict[Any, float] = {word: float(i) for i, word in enumerate(words)} | {None: (len(words) - 1) / 2}
            gaps += [f"{missing} of {name}"] if missing else []
            made.append(Column(np.array([[place[cell]] for cell in cells]), True))
        else:
            left_out.append(f"{name} ({len(words)} different words)")
    if not made:
        raise ValueError(f"no column is left for inputs: {', '.join(left_out) or 'there is the target alone'}")
    kinds_said = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
    said = [f"missing, set to the median or to no word: {', '.join(gaps)}"] if gaps else []
    return made, [kinds_said, *said, *([f"left out: {', '.join(left_out)}"] if left_out else [])]


def _finite(name: str, values: np.ndarray) -> np.ndarray:
    if (np.abs(values) > 3.4e38).any():  # what float32 holds
        raise ValueError(f"column {name!r} holds {values[np.abs(values) > 3.4e38][0]}: no number of float32")
    return values


def tfidf(texts: Sequence[str], train: np.ndarray) -> np.ndarray:
    """Words and pairs of words, weighted by how rare they are, on the hundred directions that hold most of them."""
    module = checks.optional_import("sklearn.feature_extraction.text", "data")
    decomposition = checks.optional_import("sklearn.decomposition", "data")
    counts = module.TfidfVectorizer(ngram_range=(1, 2), min_df=2 if len(train) > 50 else 1, sublinear_tf=True)
    fitted = counts.fit([texts[i] for i in train])
    size = min(100, len(counts.vocabulary_) - 1, len(train) - 1)
    svd = decomposition.TruncatedSVD(max(size, 1), random_state=0).fit(fitted.transform([texts[i] for i in train]))
    return svd.transform(fitted.transform(texts)) * np.sqrt(max(size, 1))  # of the order of 1


def counted(names: Sequence[str], targets: Iterable[int]) -> str:
    """Classes and how many examples each has."""
    counts = Counter(int(target) for target in targets)
    if len(names) <= 12:
        return "classes " + ", ".join(f"{name} {counts[i]}" for i, name in enumerate(names))
    return f"{len(names)} classes of {min(counts[i] for i in range(len(names)))} to {max(counts.values())}"
