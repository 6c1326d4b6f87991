"""Tables of text as numbers: what kind a column is, what is missing, and what was made of it."""

import csv
import io
import itertools
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
_NOTHING = {"", "na", "n/a", "nan", "null", "?"}
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?(\d{1,3}(\.\d{3})+|\d+)?(,\d+)?([eE][+-]?\d+)?(?<!^)")
_THOUSANDS = re.compile(r"[+-]?(\d{1,3}(,\d{3})+|\d+)(\.\d*)?([eE][+-]?\d+)?")
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
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
        said.append("read as Windows-1252, as it is no UTF-8")
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _of_lines(path, text), said
    names = None
    if text.lstrip().lower().startswith("@relation"):  # ARFF
        names = re.findall(r"^@attribute\s+(\S+)", text, re.M | re.I)
        text = re.split(r"^@data\s*$", text, maxsplit=1, flags=re.M | re.I)[-1]
        said.append("read as ARFF")
    with files.about(path, "save it as a table in UTF-8, with as many cells in each row"):
        mark = _mark(text)
        if mark == " " and path.suffix.lower() in (".csv", ".tsv"):
            ragged = len({*map(len, _rows(text, mark))} - {0}) > 1
            mark = "," if ragged or '"' in text else mark  # one column, of sentences
        rows = [[cell.strip() for cell in row] for row in _rows(text, mark) if any(cell.strip() for cell in row)]
    if len(rows) < 2:
        raise ValueError(f"{path} holds {len(rows)} rows: names and examples are needed")
    if names is None and (names := _names(path, rows, mark)) is not None:
        rows = rows[1:]
    elif names is None:
        names = [str(i) for i in range(1, len(rows[0]) + 1)]
        said.append(f"no names in its first line: columns are 1 to {len(names)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} has several columns {twice[0]!r}: give each a name of its own")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise ValueError(f"{path}, example {number}: {len(row)} cells, but {len(names)} names: mend the row")
    columns = zip(*rows, strict=True)
    return {name: _cells(path, name, column, mark) for name, column in zip(names, columns, strict=True)}, said


def _rows(text: str, mark: str) -> Iterable[list[str]]:
    if mark == " ":
        return (line.split() for line in text.splitlines())
    csv.field_size_limit(1 << 30)
    return csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True, strict=True)


def _mark(text: str) -> str:
    """What stands between cells: the mark by which rows have the same number of them, most often at least."""
    best, found, head = " ", 0, text.lstrip().partition("\n")[0]
    for mark in "\t;|,":
        try:
            counts = Counter(len(row) for row in itertools.islice(_rows(text, mark), 50) if any(row))
        except csv.Error:  # which reading it by this mark will tell
            best = mark if not found and mark in head else best
            continue
        width, often = max(counts.items(), key=lambda item: item[1], default=(0, 0))
        if width > 1 and often > found:
            best, found = mark, often
    return best


def _names(path: Path, rows: list[list[str]], mark: str) -> list[str] | None:
    """The first row if it has names, which stand above numbers or are no values of their columns; else None."""
    columns = list(zip(*(row for row in rows if len(row) == len(rows[0])), strict=True))
    numeric = [column for column in columns if _as_numbers(column[1:], mark) is not None]
    above = [_as_numbers(column[:1], mark) is not None or _is_nothing(column[0]) for column in numeric]
    if not all(above):
        return rows[0]
    words = [column for column in columns if column not in numeric]
    if words and not any(column[0] in column[1:] for column in words):
        if not numeric:
            return rows[0]
        raise ValueError(
            f"{path}: its first row, {', '.join(rows[0])}, may be names or an example: name columns in words"
        )
    return None


def _cells(path: Path, name: str, column: Sequence[str], mark: str) -> Cells:
    """Cells of a column, numbers as Python writes them, None where nothing is."""
    there = [cell for cell in column if not _is_nothing(cell)]
    numbers = _as_numbers(there, mark)
    if numbers is None:  # is it nearly one?
        bare = [cell.strip("%$€£ ") for cell in there]
        wrong = [cell for cell, number in zip(there, bare, strict=True) if _as_numbers([number], mark) is None]
        none = [cell for cell in wrong if cell.lower() == "none"]
        if none and len(none) == len(wrong):
            return _cells(path, name, ["" if cell.lower() == "none" else cell for cell in column], mark)
        if len(wrong) <= len(there) / 10:
            odd = next(cell for cell in there if _as_numbers([cell], mark) is None)
            row = 1 + list(column).index(odd)
            raise ValueError(f"{path}, column {name!r}, example {row}: {odd!r} is no number, but others are: mend it")
        return [None if _is_nothing(cell) else cell for cell in column]
    left = iter(numbers)
    return [None if _is_nothing(cell) else next(left) for cell in column]


def _as_numbers(cells: Sequence[str], mark: str) -> list[str] | None:
    """Numbers of a column as Python writes them, all with the same marks; None where some are none."""
    there = [cell for cell in cells if not _is_nothing(cell)]
    if not there or all(_NUMBER.fullmatch(cell) for cell in there):
        return there or None
    decimal = all(_DECIMAL_COMMA.fullmatch(cell) for cell in there)
    thousands = all(_THOUSANDS.fullmatch(cell) for cell in there)
    if decimal and thousands and mark not in ";,":
        odd = next(cell for cell in there if "," in cell)
        raise ValueError(f"{odd!r} may have a decimal comma or one between thousands: write numbers without")
    if decimal and (mark == ";" or not thousands):
        return [cell.replace(".", "").replace(",", ".") for cell in there]
    return [cell.replace(",", "") for cell in there] if thousands else None


def _of_lines(path: Path, text: str) -> dict[str, Cells]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            with files.about(f"{path}, line {number}", "write one object of JSON a line"):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("it is no object of texts and numbers")
            rows.append(row)
    if len(rows) < 2:
        raise ValueError(f"{path} holds {len(rows)} rows: examples are needed")
    return of_rows(str(path), rows)


def of_rows(where: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, Cells]:
    """Columns of rows that are mappings; what a row lacks is missing."""
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        if odd := [value for value in values if not isinstance(value, str | int | float | None)]:
            raise ValueError(f"{where}: column {name!r} holds a {type(odd[0]).__name__}: texts and numbers are needed")
        columns[name] = _cells(
            Path(where), name, ["" if value is None else str(value).strip() for value in values], ","
        )
    return columns


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
        return _finite(name, numbers), None
    if numbers is not None:
        values = sorted(values, key=float)
        if same := [pair for pair in itertools.pairwise(values) if float(pair[0]) == float(pair[1])]:
            raise ValueError(f"target={name!r} has {same[0][0]!r} and {same[0][1]!r}, one number: write it in one way")
    if len(values) < 2 or len(values) > max(len(cells) // 2, 2):
        cure = "" if numbers is None or task else ": with task='regression' they are numbers"
        raise ValueError(f"target={name!r} has {len(values)} different values in {len(cells)} rows, no classes{cure}")
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
            counts = values[0] in (0, 1) and (np.diff(values) >= 1).all() and values[-1] < 1.5 * len(values)
            if not missing and counts and len(columns) > 1:
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
