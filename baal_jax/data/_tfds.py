"""Image classification sets in the directories of TensorFlow Datasets, decoded once into arrays."""

import importlib.util
import itertools
import json
import os
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util import checks, files, images
from baal_jax.data import _records
from baal_jax.typing import Dataset

FORMATS = ("array_record", "tfrecord")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def from_tfds(
    name: str,
    *,
    data_dir: str | Path | None = None,
    splits: Sequence[str] = ("train", "test"),
    image: str = "image",
    label: str = "label",
    size: tuple[int, int] | None = None,
) -> tuple[Dataset, ...]:
    """An image classification set that TensorFlow Datasets prepared.

    Files of array_record and tfrecord need no TensorFlow, others are read by ``tfds.load``. Nothing is downloaded.

    Args:
        name: "mnist", "cifar100" or "my_set/my_config".
        data_dir: the root of the TFDS directories, the folder of the set, or that of one version of it; by default
            ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
        splits: which parts.
        image: name of the feature with the picture.
        label: name of the feature with the class.
        size: ``(height, width)`` to resize to, needed where the pictures differ in size.

    Returns:
        One :class:`~baal_jax.Dataset` a split: ``uint8[N, H, W, 1 or 3]`` inputs and ``int32[N]`` targets.

    Raises:
        FileNotFoundError: there is no such set; the message says where it was looked for and how to get it.
        ValueError: a file or a record is damaged, pictures differ in size, or a label is out of range.

    Example:
        >>> train, test = data.from_tfds("mnist", data_dir="~/tensorflow_datasets")  # doctest: +SKIP
    """
    tried: list[str] = []
    datasets = prepared(Source(name, data_dir, splits, image, label, size), tried)
    if datasets is None:
        raise not_found(name, tried, data_dir)
    return datasets


def class_names(name: str, *, data_dir: str | Path | None = None, label: str = "label") -> tuple[str, ...]:
    """The names of the classes of a set that TensorFlow Datasets prepared.

    Args:
        name: as for :func:`from_tfds`.
        data_dir: as for :func:`from_tfds`.
        label: name of the feature with the class.

    Returns:
        ``C`` names.

    Raises:
        FileNotFoundError: there is no such set, or its classes have no names.
        ValueError: a name is blank or there twice, or there are more or fewer than ``features.json`` declares.

    Example:
        >>> data.class_names("mnist", data_dir="~/tensorflow_datasets")  # doctest: +SKIP
    """
    folder = _newest_version(name, root_of(data_dir))
    names = None if folder is None else _names(name, folder, label)
    if names is None:
        raise not_found(name, [f"{label}.labels.txt under {root_of(data_dir)}: not there"], data_dir)
    return names


def root_of(data_dir: str | Path | None) -> Path:
    """Where data sets lie."""
    return Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def not_found(name: str, tried: Sequence[str], data_dir: str | Path | None) -> FileNotFoundError:
    """What was tried, and the one command that cures it."""
    code = f"tfds.builder('{name}', file_format='array_record', data_dir='{root_of(data_dir)}').download_and_prepare()"
    command = f'python -c "import tensorflow_datasets as tfds; {code}"'
    command = f"python -m pip install tensorflow tensorflow-datasets && {command}"
    lines = "".join(f"\n  {line}" for line in tried)
    return FileNotFoundError(f"{name} was not found. Tried:{lines}\nThis command brings it:\n  {command}")


class Source(NamedTuple):
    """Which splits of which set to read, and the features of a record that matter."""

    name: str
    data_dir: str | Path | None
    splits: Sequence[str] = ("train", "test")
    image: str = "image"
    label: str = "label"
    size: tuple[int, int] | None = None


def prepared(source: Source, tried: list[str]) -> tuple[Dataset, ...] | None:
    """The data sets from a directory or else by ``tfds.load``, or None and lines in ``tried``."""
    root = root_of(source.data_dir)
    folder = _newest_version(source.name, root)
    for file_format in FORMATS:
        if folder and any(folder.glob(f"*.{file_format}*")):
            return tuple(_read_split(folder, split, file_format, source) for split in source.splits)
    missing = f"no {source.name} with a dataset_info.json in {root}"
    tried.append(f"TFDS directory of array_record or tfrecord files: {f'none in {folder}' if folder else missing}")
    return _load_with_tensorflow(source, tried)


def _load_with_tensorflow(source: Source, tried: list[str]) -> tuple[Dataset, ...] | None:
    if missing := [name for name in ("tensorflow", "tensorflow_datasets") if importlib.util.find_spec(name) is None]:
        tried.append(f"tfds.load: {missing[0]} is not installed")
        return None
    tfds = checks.optional_import("tensorflow_datasets", "data")
    where = {"data_dir": str(root_of(source.data_dir)), "download": False}
    try:
        loaded = [tfds.as_numpy(tfds.load(source.name, split=split, **where)) for split in source.splits]
    except Exception as error:  # it raises all kinds where a set or its files are not there
        tried.append(f"tfds.load: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None
    return tuple(_from_examples(split, part, source) for split, part in zip(source.splits, loaded, strict=True))


def _from_examples(split: str, examples: Iterable[Mapping[str, Any]], source: Source) -> Dataset:
    where = f"{source.name}, {split}"
    try:
        pairs = [(_resized(np.asarray(item[source.image]), source.size), int(item[source.label])) for item in examples]
    except Exception as error:
        raise ValueError(f"{where}: tfds.load cannot read it ({error!r}): {_records.CURE}") from error
    return _assembled(where, len(pairs), None, ((where, number, *pair) for number, pair in enumerate(pairs)))


def _read_split(folder: Path, split: str, file_format: str, source: Source) -> Dataset:
    shards, names = _shards(folder, split, file_format), _names(source.name, folder, source.label)
    number, channels = _declared(folder, source.label, source.image)
    with files.about(folder, _records.CURE):
        decoded, total = _decoded(shards, file_format, source, channels), sum(length for _, length in shards)
        return _assembled(f"{folder}, split {split}", total, len(names) if names else number, decoded)


_Row = tuple[Path | str, int, np.ndarray, int]  # the file, the number in it, pixels and label


def _assembled(where: str, total: int, num_classes: int | None, decoded: Iterable[_Row]) -> Dataset:
    """One array of equal images, and labels in their range."""
    targets = np.empty(total, np.int64)
    inputs: np.ndarray | None = None
    for i, (place, number, pixels, target) in enumerate(decoded):
        if inputs is None:
            inputs = np.empty((total, *pixels.shape), np.uint8)
        if pixels.shape != inputs.shape[1:]:
            found = f"the image has shape {pixels.shape}, but those before it {inputs.shape[1:]}"
            raise ValueError(f"{place}, record {number}: {found}: pass size=(height, width)")
        inputs[i], targets[i] = pixels, target
    if inputs is None:
        raise ValueError(f"{where}: there are no examples: {_records.CURE}")
    check_labels(where, targets, num_classes)
    return Dataset(inputs, targets.astype(np.int32))


def check_labels(where: str, targets: np.ndarray, num_classes: int | None, least: int = -1) -> None:
    """Refuses labels that are no classes. −1 is what TFDS writes for unknown ones."""
    wrong = np.flatnonzero((targets < least) | (targets >= (num_classes or np.iinfo(np.int32).max)))
    if wrong.size:
        found = f"label {targets[wrong[0]]} is none of the {num_classes} classes"
        raise ValueError(f"{where}, record {wrong[0]}: {found}: {_records.CURE}")


def _decoded(shards: list[tuple[Path, int]], file_format: str, source: Source, channels: int | None) -> Iterator[_Row]:
    # One thread: decoding small images holds the interpreter's lock too long for a second one to help.
    for path, length in shards:
        number = -1
        for number, record in enumerate(itertools.chain.from_iterable(_records.read(path, file_format))):
            if number < length:
                yield path, number, *_decode(path, number, record, source, channels)
        if number + 1 != length:
            declared = f"but dataset_info.json declares {length}"
            raise ValueError(f"{path}: holds {number + 1} records, {declared}: {_records.CURE}")


def _decode(path: Path, number: int, record: bytes, source: Source, channels: int | None) -> tuple[np.ndarray, int]:
    where = f"{path}, record {number}"
    with files.about(where, _records.CURE):
        features = _records.parse_example(record)
    encoded, target = features.get(source.image), features.get(source.label)
    if not isinstance(encoded, bytes) or not isinstance(target, int):
        needed = f"needs an encoded {source.image} and an integer {source.label}, but holds {sorted(features)}"
        raise ValueError(f"{where}: {needed}: name the features with image=… and label=…")
    with files.about(where, _records.CURE):
        return images.decode(encoded, source.size, channels), target


def _newest_version(name: str, root: Path) -> Path | None:
    """The folder of the newest version below any of the folders that a user may mean."""
    for folder in (root / name, root):
        versions = {}
        for path in (*folder.glob("dataset_info.json"), *folder.glob("*/dataset_info.json")):
            with files.about(path, _records.CURE):
                found = json.loads(path.read_text("utf-8")).get("name", "").split("/")[0]
                if found == name.split("/")[0]:
                    versions[path.parent] = _version(path.parent)
                elif folder != root:
                    raise ValueError(f"it describes {found!r}")
        if versions:
            newest = max(versions, key=_version)
            for path in folder.glob("*"):
                if _version(path) > versions[newest] and any(path.glob("*record*")):
                    raise ValueError(f"{path / 'dataset_info.json'} is missing: {_records.CURE}")
            return newest
    return None


def _version(folder: Path) -> list[int]:
    parts = folder.name.split(".")
    return [int(part) for part in parts] if all(part.isdecimal() and len(part) < 10 for part in parts) else []


def _shards(folder: Path, split: str, file_format: str) -> list[tuple[Path, int]]:
    """The files of a split, and how many records each of them should hold."""
    info = folder / "dataset_info.json"
    with files.about(info, _records.CURE):
        described = json.loads(info.read_text("utf-8"))
        splits = {part["name"]: part for part in described.get("splits", [])}
        if split not in splits:
            raise ValueError(f"{info}: has no split {split!r}, only {', '.join(splits)}: name them with splits=…")
        lengths = splits[split].get("shardLengths")
        if not lengths or not isinstance(lengths, list):
            raise ValueError(f"it declares no files for split {split!r}")
        lengths = [_whole(length) for length in lengths]
        template = splits[split].get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
        parts = {"DATASET": described["name"].split("/")[0], "SPLIT": split, "FILEFORMAT": file_format}
        for placeholder, value in parts.items():
            template = template.replace(f"{{{placeholder}}}", value)
        numbers = [f"{i:05d}-of-{len(lengths):05d}" for i in range(len(lengths))]
        paths = [folder / template.replace("{SHARD_X_OF_Y}", number) for number in numbers]
    for path, length in zip(paths, lengths, strict=True):
        if not path.is_file() or path.stat().st_size < length:
            told = f"dataset_info.json declares {len(lengths)} files, and {length} records in this one"
            raise ValueError(f"{path}: is missing or too short, but {told}: {_records.CURE}")
    return list(zip(paths, lengths, strict=True))


def _whole(value: Any) -> int:
    """A number of a description, which may be text."""
    if not str(value).isdecimal():
        raise ValueError(f"{reprlib.repr(value)} is no number of things")
    return int(value)


def _names(name: str, folder: Path, label: str) -> tuple[str, ...] | None:
    """One a line: a name may hold spaces. None where the classes have no names."""
    path, number = folder / f"{label}.labels.txt", _declared(folder, label)[0]
    if not path.exists():
        return None
    with files.about(path, _records.CURE):
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        first = {one: i for i, one in reversed([*enumerate(names)])}
        for i, one in enumerate(names):
            if not one or first[one] != i or any(ord(letter) < 32 for letter in one):
                raise ValueError(f"line {i + 1}, {one!r}, is blank, not text or there twice")
        if number not in (None, len(names)):
            raise ValueError(f"it holds {len(names)} names, but features.json declares {number} classes")
        if name == "cifar10" and names != CIFAR10_CLASSES:
            raise ValueError(f"the classes of CIFAR-10 are {', '.join(CIFAR10_CLASSES)}")
        return names


def _declared(folder: Path, label: str, image: str = "") -> tuple[int | None, int | None]:
    """How many classes and how many channels there are, where ``features.json`` tells."""
    path = folder / "features.json"
    with files.about(path, _records.CURE):
        told = json.loads(path.read_text("utf-8")) if path.exists() else {}
        features = told.get("featuresDict", {}).get("features", {})
        number = features.get(label, {}).get("classLabel", {}).get("numClasses")
        dimensions = features.get(image, {}).get("image", {}).get("shape", {}).get("dimensions", [])
        channels = None if len(dimensions) != 3 or str(dimensions[2]) == "-1" else _whole(dimensions[2]) or None
        return None if number is None else _whole(number), channels


def _resized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None:
        return pixels
    image_module = checks.optional_import("PIL.Image", "data")
    resized = np.asarray(image_module.fromarray(np.squeeze(pixels)).resize((size[1], size[0])))
    return resized[..., None] if resized.ndim == 2 else resized
