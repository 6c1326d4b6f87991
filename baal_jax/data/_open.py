"""One way to name data: a word, a file or a folder becomes arrays, and a line that says what was read."""

import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from baal_jax._util import checks, files, images
from baal_jax.data import _tables, _tfds
from baal_jax.data._adapters import digits, from_arrays, from_huggingface
from baal_jax.data._cifar10 import cifar10
from baal_jax.typing import Dataset

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
_TABLES = {".csv", ".tsv", ".txt", ".data", ".dat", ".jsonl", ".ndjson"}
_TRAIN, _HELD_OUT = ("train", "training"), ("test", "testing", "val", "valid", "validation", "dev", "eval")
_MOST_HELD_OUT = 10_000
_KINDS = "digits, cifar10, tfds:NAME, hf:NAME, an .npz file, a table (.csv, .tsv, .jsonl, .txt) or a folder of images"


class Opened(NamedTuple):
    """A data set as :func:`open` read it.

    Attributes:
        train: the pool; ``targets`` is None where nothing is labelled.
        test: held out, or None.
        num_classes: ``C``, None where targets are numbers or missing.
        class_names: ``C`` names, where there are any.
        images: ``[N, H, W, 1 or 3]``, what can be shown of the pool.
        references: names of the files of the pool.
        said: what was read, in a line.
    """

    train: Dataset
    test: Dataset | None
    num_classes: int | None = None
    class_names: tuple[str, ...] | None = None
    images: Any = None
    references: tuple[str, ...] | None = None
    said: str = ""


def open(
    spec: Any,
    *,
    target: str | None = None,
    task: Literal["classification", "regression"] | None = None,
    encode: str | Callable[[list[str]], Any] = "tfidf",
    image_size: int | None = None,
    num_test: int | None = None,
    seed: int = 0,
    data_dir: str | Path | None = None,
    image: bool = False,
) -> Opened:
    """A data set by its name: what it is, is seen from the name and from what is in it, and said.

    Columns of numbers are standardised by the pool's; of words, one for each of up to 20, else their place in order;
    missing numbers become the median. Targets are classes if they are words or up to 20 whole numbers; other numbers
    are standardised. Rows without a target are left out. Images are turned as their EXIF data say; hidden files are
    left out. Nothing is downloaded.

    Args:
        spec: ``"digits"``; ``"cifar10"``; ``"tfds:NAME"``; ``"hf:NAME"`` of the cache or ``"hf:FOLDER"`` of
            ``save_to_disk``; a path of an ``.npz`` with ``inputs`` and ``targets`` (numbers or words), or with
            ``train_inputs``, ``train_targets``, ``test_inputs`` and ``test_targets``, and perhaps ``class_names``; of a
            table; of a folder with one folder a class (in ``train`` and ``test``, if there are those), or of images
            without labels. Or a Grain ``MapDataset`` or a sequence whose elements are ``(input, target)``, or mappings
            of which ``target`` names one entry.
        target: the column to predict; may be left out with ``num_test=0`` (rows without labels, whose text is in
            ``references``), where there is a column of classes in a Hugging Face set, and in
            a table of numbers (``.txt``, ``.data``), whose last column it is then.
        task: what to do, where the kind of the target does not say.
        encode: of columns of sentences: ``"tfidf"``, 100 numbers; ``"sentence:MODEL"`` of sentence-transformers; or a
            function of a list of texts that gives ``[N, D]``.
        image_size: images become so many pixels on each side, those of folders 32 by default.
        num_test: held out where the data have no test set, a fifth by default; with 0 there is none.
        seed: of that.
        data_dir: where TFDS sets are, by default ``$TFDS_DATA_DIR`` or ``~/tensorflow_datasets``.
        image: digits as ``[N, 8, 8, 1]``.

    Returns:
        An :class:`Opened`.

    Raises:
        ValueError: there is nothing of this name, a file is damaged, or an option does not fit.
        ImportError: a library that reads it is missing.

    Example:
        >>> data.open("digits").said
        'digits: 1437 images to choose from and 360 held out, 10 classes'
    """

    def unused(kind: str, *names: str) -> None:
        given = {"target": target, "task": task, "image_size": image_size, "num_test": num_test, "data_dir": data_dir}
        given["encode"] = None if encode == "tfidf" else encode
        if odd := [f"{name}={given[name]!r}" for name in names if given[name] is not None]:
            raise ValueError(f"{', '.join(odd)}: {kind} has no use for it, leave it out")

    if not isinstance(spec, str | Path):
        unused("a sequence", "task", "image_size", "data_dir", "encode")
        return _from_rows(spec, target or "label", num_test, seed)
    name, path = str(spec), Path(spec)
    if name == "digits":
        unused(name, "target", "task", "image_size", "num_test", "data_dir", "encode")
        train, test = digits(image=image)
        pictures, names = np.asarray(train.inputs).reshape(-1, 8, 8, 1), tuple(map(str, range(10)))
        return _told(Opened(train, test, 10, names, pictures), name, "images")
    if name == "cifar10":
        unused(name, "target", "task", "image_size", "num_test", "encode")
        train, test = cifar10(data_dir)
        return _told(Opened(train, test, 10, tuple(_tfds.CIFAR10_CLASSES), train.inputs), name, "images")
    if name.startswith("tfds:"):
        unused(name, "target", "task", "encode")
        return _from_tfds(name, image_size, num_test, seed, data_dir)
    is_saved = path.is_dir() and any((path / file).exists() for file in ("dataset_info.json", "dataset_dict.json"))
    if name.startswith("hf:") or is_saved:
        unused("a set of Hugging Face", "image_size", "data_dir")
        return _from_hub(name.removeprefix("hf:"), target, task, encode, num_test, seed)
    if path.is_dir():
        unused("a folder of images", "target", "task", "data_dir", "encode")
        return _from_pictures(path, image_size or 32, num_test, seed)
    if not path.is_file():
        raise ValueError(f"data={name!r} does not exist: give {_KINDS}")
    if path.suffix.lower() == ".npz":
        unused("an .npz file", "target", "task", "image_size", "data_dir", "encode")
        return _from_arrays(path, num_test, seed)
    if path.suffix.lower() not in _TABLES:
        raise ValueError(f"data={name!r} is of a kind that is not known: give {_KINDS}")
    unused("a table", "image_size", "data_dir")
    columns, said = _tables.read(path)
    of_numbers = path.suffix.lower() in (".txt", ".data", ".dat") and all(map(_tables.is_numeric, columns.values()))
    if target is None and num_test != 0 and of_numbers:
        target = list(columns)[-1]
        said = ["its last column is the target", *said]
    return _from_columns(path.name, columns, said, target, task, encode, num_test, seed)


def _told(opened: Opened, name: str, what: str, more: Sequence[str] = ()) -> Opened:
    """With the line that says what it is."""
    parts = [f"{name}: {len(opened.train.inputs)} {what}"]
    if opened.test is not None:
        parts[0] += f" to choose from and {len(opened.test.inputs)} held out"
    names, targets = opened.class_names, opened.train.targets
    if opened.num_classes and names and name not in ("digits", "cifar10") and opened.test is not None:
        parts.append(_tables.counted(names, np.concatenate([targets, opened.test.targets])))
    elif opened.num_classes:
        parts.append(f"{opened.num_classes} classes")
    return opened._replace(said="; ".join([", ".join(parts), *filter(None, more)]))


def _split(count: int, num_test: int | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows to choose from, and rows held out."""
    held_out = min(max(count // 5, 1), _MOST_HELD_OUT) if num_test is None else num_test
    if checks.positive_int("num_test", held_out, 0) and held_out > count - 2:
        raise ValueError(f"num_test={held_out} leaves too little to choose from: there are {count} examples")
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def _parted(whole: Dataset, num_test: int | None, seed: int) -> tuple[Dataset, Dataset | None]:
    train, test = _split(len(whole.targets), num_test, seed)
    held_out = Dataset(whole.inputs[test], whole.targets[test]) if len(test) else None
    return Dataset(whole.inputs[train], whole.targets[train]), held_out


def _from_columns(
    name: str,
    columns: dict,
    said: list[str],
    target: str | None,
    task: Any,
    encode: Any,
    num_test: Any,
    seed: int,
    num_train: int | None = None,
) -> Opened:
    if target is None and num_test == 0:  # nothing is known yet
        return _unlabelled(name, columns, said, encode)
    if target is None or target not in columns:
        given = "target is missing" if target is None else f"target={target!r} is no column of {name}"
        raise ValueError(f"{given}: name one of {', '.join(columns)}")
    there = [i for i, cell in enumerate(columns[target]) if cell is not None]
    if without := len(columns[target]) - len(there):
        said = [*said, f"{without} rows without {target} left out"]
    if len(there) < 3:
        raise ValueError(f"{name} has {len(there)} rows with {target}: at least 3 are needed")
    columns = {key: [cells[i] for i in there] for key, cells in columns.items()}
    targets, names = _tables.targets_of(target, columns.pop(target), task)
    train, test = _split(len(there), num_test, seed)
    if num_train is not None:  # of a set with a test part of its own
        train, test = (np.flatnonzero((np.array(there) < num_train) == side) for side in (True, False))
    inputs, told = _numbers(columns, train, encode)
    if names is None:
        centre, width = float(targets[train].mean()), float(targets[train].std()) or 1.0
        targets = ((targets - centre) / width).astype(np.float32)
        told = [f"{target} of mean {centre:.4g} in units of {width:.4g}", *told]
    held_out = Dataset(inputs[test], targets[test]) if len(test) else None
    classes = None if names is None else tuple(names)
    return _told(
        Opened(Dataset(inputs[train], targets[train]), held_out, None if classes is None else len(classes), classes),
        name,
        "rows",
        [*told, *said],
    )


def _unlabelled(name: str, columns: dict, said: list[str], encode: Any) -> Opened:
    """Rows that nobody has labelled, and their text."""
    rows = zip(*columns.values(), strict=True)
    kept = [i for i, row in enumerate(rows) if any(cell is not None for cell in row)]
    if empty := len(next(iter(columns.values()))) - len(kept):
        said = [*said, f"{empty} empty rows left out"]
    columns = {key: [cells[i] for i in kept] for key, cells in columns.items()}
    ids, (words, *others) = np.arange(len(kept)), columns.values()
    if not others and not _tables.is_numeric(words):  # texts, however short they are
        inputs, told = np.asarray(_encoder(encode)(words, ids), np.float32), []
    else:
        inputs, told = _numbers(columns, ids, encode)
    lines = [", ".join(f"{key}: {cell}" for key, cell in zip(columns, row, strict=True) if cell is not None)
             for row in zip(*columns.values(), strict=True)]  # fmt: skip
    told = ["no labels", f"columns {', '.join(columns)}", *told, *said]
    return _told(Opened(Dataset(inputs, None), None, references=tuple(lines if others else words)), name, "rows", told)


def _numbers(columns: dict, train: np.ndarray, encode: Any) -> tuple[np.ndarray, list[str]]:
    """``float32[N, D]``, standardised by the rows ``train``, and what is to be said of them."""
    made, told = _tables.inputs_of(columns, train, _encoder(encode))
    inputs = np.concatenate([part.values for part in made], axis=1)
    scaled = np.concatenate([np.full(part.values.shape[1], part.scaled) for part in made])
    mean, std = inputs[train].mean(axis=0), inputs[train].std(axis=0)
    return np.where(scaled, (inputs - mean) / np.where(std > 0, std, 1.0), inputs).astype(np.float32), told


def _encoder(encode: Any) -> Callable[[list[str], np.ndarray], np.ndarray]:
    if callable(encode):
        return lambda texts, train: _rows_of(encode(texts), len(texts))
    if encode == "tfidf":
        return _tables.tfidf
    kind, _, model = str(encode).partition(":")
    if kind != "sentence" or not model:
        raise ValueError(f"encode={encode!r} must be tfidf, sentence:MODEL, or a function of a list of texts")
    found = checks.optional_import("sentence_transformers").SentenceTransformer(model, local_files_only=True)
    return lambda texts, train: _rows_of(found.encode(texts), len(texts))


def _rows_of(made: Any, count: int) -> np.ndarray:
    rows = np.asarray(made)
    if rows.ndim != 2 or len(rows) != count or not np.isfinite(rows).all():
        raise ValueError(f"encode gave {rows.dtype}{rows.shape} for {count} texts: finite numbers [N, D] are needed")
    return rows


def _from_tfds(name: str, image_size: int | None, num_test: int | None, seed: int, data_dir: Any) -> Opened:
    what, size = name.removeprefix("tfds:"), None if image_size is None else (image_size, image_size)
    try:
        train, test = _tfds.from_tfds(what, data_dir=data_dir, size=size)
    except (FileNotFoundError, ValueError) as error:
        try:
            (whole,) = _tfds.from_tfds(what, data_dir=data_dir, size=size, splits=("train",))
        except (FileNotFoundError, ValueError):
            raise error from None
        train, test = _parted(whole, num_test, seed)
    else:
        if num_test is not None:
            raise ValueError(f"num_test={num_test}, but {name} has a test part: leave it out")
    try:
        names: Any = _tfds.class_names(what, data_dir=data_dir)
    except FileNotFoundError:
        names = None
    largest = 1 + int(max(part.targets.max() for part in (train, test) if part is not None))
    return _told(Opened(train, test, len(names) if names else largest, names, train.inputs), name, "images")


def _from_hub(name: str, target: str | None, task: Any, encode: Any, num_test: int | None, seed: int) -> Opened:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not in the cache is not looked for
    library = checks.optional_import("datasets", "hub")
    if Path(name).is_dir():
        with files.about(f"data={name!r}", "save it again with save_to_disk"):
            found = library.load_from_disk(name)
    else:
        with files.about(f"data='hf:{name}'", "load it once with datasets.load_dataset, which keeps it"):
            found = library.load_dataset(name, download_config=library.DownloadConfig(local_files_only=True))
    parts = dict(found) if hasattr(found, "keys") else {"train": found}
    first = parts.get("train", next(iter(parts.values())))
    second = next((parts[part] for part in _HELD_OUT if part in parts and parts[part] is not first), None)
    kinds = {key: type(kind).__name__ for key, kind in first.features.items()}
    label = target or next((key for key, kind in kinds.items() if kind == "ClassLabel"), None)
    picture = next((key for key, kind in kinds.items() if kind == "Image"), None)
    names: Any = getattr(first.features.get(label), "names", None)
    if picture is None:
        given = [first] if second is None else [first, second]
        rows = [dict(row) for part in given for row in part]
        own = len(first) if second is not None and num_test is None else None
        for row in rows if names else ():
            row[label] = names[row[label]] if row[label] is not None and row[label] >= 0 else None
        columns = _tables.of_rows(f"hf:{name}", rows)
        return _from_columns(f"hf:{name}", columns, [], label, task, encode, num_test, seed, own)
    if label is None:
        raise ValueError(f"target is missing: name one of {', '.join(first.column_names)}")
    if second is None:
        ids = _split(len(first), num_test, seed)
        first, second = (first.select(part) if len(part) else None for part in ids)
    elif num_test is not None:
        raise ValueError(f"num_test={num_test}, but hf:{name} has a part that is held out: leave it out")
    with files.about(f"data='hf:{name}'", "give classes as whole numbers, or as a ClassLabel"):
        train = from_huggingface(first, inputs=picture, label=label)
        test = None if second is None else from_huggingface(second, inputs=picture, label=label)
    count = len(names) if names else 1 + int(max(part.targets.max() for part in (train, test) if part))
    return _told(Opened(train, test, count, names and tuple(names), train.inputs), f"hf:{name}", "images")


def _from_pictures(folder: Path, size: int, num_test: int | None, seed: int) -> Opened:
    """Images; their classes are the folders that they are in."""
    found = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in _PICTURES]
    paths = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    said = [f"{len(found) - len(paths)} hidden files left out"] if len(paths) < len(found) else []
    others = sum(file.is_file() for file in folder.rglob("*")) - len(found)
    said += [f"{others} files of other kinds left out"] if others else []
    if not paths:
        raise ValueError(f"data={str(folder)!r} holds no images, {', '.join(sorted(_PICTURES))}: give a folder of them")
    inputs = []
    for file in paths:
        with files.about(repr(str(file)), "rename it: its name is no text"):
            str(file).encode("utf-8")
        with files.about(file, "repair or remove it"):
            inputs.append(images.decode(file.read_bytes(), (size, size), 3, photo=True))
    inputs, places = np.stack(inputs), [file.relative_to(folder).parts for file in paths]
    references = tuple("/".join(parts) for parts in places)
    tops = {parts[0].lower() for parts in places if len(parts) > 1}
    parted = all(len(parts) > 2 and parts[0].lower() in (*_TRAIN, *_HELD_OUT) for parts in places)
    classes = [parts[1 if parted else 0] if len(parts) > 1 + parted else None for parts in places]
    names = tuple(sorted({name for name in classes if name is not None}))
    if num_test != 0 and names:  # labels are wanted: what may be meant in two ways is refused
        if not parted and tops & {*_TRAIN, *_HELD_OUT}:
            raise ValueError(f"data={str(folder)!r}: {', '.join(sorted(tops))} must each hold one folder a class")
        if parted and not tops & {*_TRAIN}:
            raise ValueError(f"data={str(folder)!r} has {', '.join(sorted(tops))}, but no train: add it")
        if None in classes and not parted:
            odd = references[classes.index(None)]
            raise ValueError(
                f"data={str(folder)!r}: {odd} is beside the folders of classes: put it into one, or remove it"
            )
    if len(names) < 2 or None in classes:
        whole = Opened(Dataset(inputs, None), None, images=inputs, references=references)
        return _told(whole, str(folder), "images", ["no labels", *said])
    targets = np.array([names.index(str(name)) for name in classes], np.int32)
    if parted and num_test != 0 and len(tops) > 1:
        if num_test is not None:
            raise ValueError(f"num_test={num_test}, but data={str(folder)!r} has a part that is held out: leave it out")
        is_train = np.array([parts[0].lower() in _TRAIN for parts in places])
        ids = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    else:
        ids = _split(len(targets), num_test, seed)
    train, test = (Dataset(inputs[part], targets[part]) if len(part) else None for part in ids)
    assert train is not None
    kept = tuple(references[i] for i in ids[0])
    return _told(Opened(train, test, len(names), names, train.inputs, kept), str(folder), "images", said)


def _from_arrays(path: Path, num_test: int | None, seed: int) -> Opened:
    parts = [("train_inputs", "train_targets"), ("test_inputs", "test_targets")]
    with files.about(f"data={str(path)!r}", files.CURE):
        with zipfile.ZipFile(path) as archive:
            if not any(f"{name}.npy" in archive.namelist() for part in parts for name in part):
                parts = [("inputs", "targets")]
        arrays = files.arrays_of(path, [name for part in parts for name in part], ["class_names"])
        class_names = tuple(files.texts_of(arrays["class_names"])) if "class_names" in arrays else None
        words = [name for _, name in parts if arrays[name].dtype.kind == "U" and arrays[name].ndim == 1]
        if len(words) == len(parts):
            class_names = class_names or tuple(sorted({word for name in words for word in arrays[name].tolist()}))
            place = {name: i for i, name in enumerate(class_names)}
            for name in words:
                if odd := [word for word in arrays[name].tolist() if word not in place]:
                    raise ValueError(f"{name} has {odd[0]!r}, which is none of class_names")
                arrays[name] = np.array([place[word] for word in arrays[name].tolist()], np.int32)
        datasets = [from_arrays(*(arrays[name] for name in part)) for part in parts]
        kinds = [(part.inputs.shape[1:], part.targets.shape[1:], part.targets.dtype.kind) for part in datasets]
        if kinds[0] != kinds[-1]:
            raise ValueError(f"train and test differ in the shapes or the kind of an example: {kinds}")
        if len(parts) > 1 and num_test is not None:
            raise ValueError(f"num_test={num_test}, but there are test_inputs: leave it out")
        train, test = datasets if len(parts) > 1 else _parted(datasets[0], num_test, seed)
        num_classes = None
        if kinds[0][2] == "i":
            num_classes = max(2, 1 + int(max(part.targets.max() for part in datasets)), len(class_names or ()))
            if class_names and (len({*class_names}) < num_classes or not all(name.strip() for name in class_names)):
                raise ValueError(f"class_names={[*class_names]} are not {num_classes} different names, none empty")
    shown = train.inputs if images.are_pictures(np.shape(train.inputs)) else None
    return _told(Opened(train, test, num_classes, class_names, shown), path.name, "examples")


def _from_rows(rows: Any, target: str, num_test: int | None, seed: int) -> Opened:
    """Elements of a sequence or of a Grain ``MapDataset``, loaded whole."""
    if not (hasattr(rows, "__len__") and hasattr(rows, "__getitem__")) or not len(rows):
        raise ValueError(f"data is a {type(rows).__name__}: give {_KINDS}, or a sequence of (input, target)")
    pairs = []
    for i in range(len(rows)):
        row = rows[i] if not isinstance(rows, dict) else None
        if isinstance(row, dict):
            others = [key for key in row if key != target]
            if target not in row or len(others) != 1:
                told = f"element {i} has {', '.join(row)}, and one entry beside it is needed"
                raise ValueError(f"target={target!r}: {told}")
            row = row[others[0]], row[target]
        if not isinstance(row, tuple | list) or len(row) != 2:
            raise ValueError(f"data is a {type(rows).__name__} whose element {i} is no (input, target)")
        pairs.append(row)
    inputs, targets = (np.stack([np.asarray(part) for part in column]) for column in zip(*pairs, strict=True))
    whole = from_arrays(inputs, targets)
    train, test = _parted(whole, num_test, seed)
    count = 1 + int(whole.targets.max()) if whole.targets.dtype.kind == "i" else None
    shown = train.inputs if images.are_pictures(np.shape(train.inputs)) else None
    return _told(Opened(train, test, count, None, shown), type(rows).__name__, "elements")
