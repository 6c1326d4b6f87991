"""Image classification sets in the directories of TensorFlow Datasets, decoded once into arrays."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from baal_jax._util import checks, images
from baal_jax.data import _records
from baal_jax.typing import Dataset

FORMATS = ("array_record", "tfrecord")


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

    Directories of array_record and of tfrecord files are read without TensorFlow. Other file formats go through
    ``tfds.load``, where TensorFlow is installed. Nothing is ever downloaded.

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
    """
    tried: list[str] = []
    found = read_directory(name, data_dir, splits, image, label, size, tried)
    found = found or load_with_tensorflow(name, data_dir, splits, image, label, size, tried)
    if found is None:
        raise not_found(name, tried, data_dir)
    return found


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
    """
    folder = find_version(name, root_of(data_dir))
    path = None if folder is None else folder / f"{label}.labels.txt"
    if path is None or not path.exists():
        raise not_found(name, [f"{label}.labels.txt under {root_of(data_dir)}: not there"], data_dir)
    return _names(path)


def root_of(data_dir: str | Path | None) -> Path:
    """Where data sets lie."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser()


def not_found(name: str, tried: Sequence[str], data_dir: str | Path | None) -> FileNotFoundError:
    """What was tried, and the one command that cures it."""
    place = f", data_dir='{root_of(data_dir)}'"
    command = (
        f'python -m pip install tensorflow tensorflow-datasets && python -c "import tensorflow_datasets as tfds; '
        f"tfds.builder('{name}', file_format='array_record'{place}).download_and_prepare()\""
    )
    lines = "".join(f"\n  {line}" for line in tried)
    return FileNotFoundError(f"{name} was not found. Tried:{lines}\nThis command brings it:\n  {command}")


def find_version(name: str, root: Path) -> Path | None:
    """The folder of the newest version below any of the folders that a user may mean."""
    for folder in (root / name, root):
        versions = [path.parent for path in (*folder.glob("dataset_info.json"), *folder.glob("*/dataset_info.json"))]
        matching = [path for path in versions if _info(path).get("name", "").split("/")[0] == name.split("/")[0]]
        if matching:
            return max(matching, key=_version)
    return None


def read_directory(
    name: str,
    data_dir: str | Path | None,
    splits: Sequence[str],
    image: str,
    label: str,
    size: tuple[int, int] | None,
    tried: list[str],
) -> tuple[Dataset, ...] | None:
    """The data sets, or None (and a line in ``tried``) where there is no directory of a known format."""
    root = root_of(data_dir)
    folder = find_version(name, root)
    if folder is None:
        tried.append(f"TFDS directory of array_record or tfrecord files: no {name} with a dataset_info.json in {root}")
        return None
    for file_format in FORMATS:
        if any(folder.glob(f"*.{file_format}*")):
            reading = _Reading(image, label, size, _channels(folder, image), _num_classes(folder, label))
            return tuple(_read_split(folder, split, file_format, reading) for split in splits)
    tried.append(f"TFDS directory {folder}: holds neither array_record nor tfrecord files")
    return None


def load_with_tensorflow(
    name: str,
    data_dir: str | Path | None,
    splits: Sequence[str],
    image: str,
    label: str,
    size: tuple[int, int] | None,
    tried: list[str],
) -> tuple[Dataset, ...] | None:
    """``tfds.load`` without a download, or None (and a line in ``tried``)."""
    if importlib.util.find_spec("tensorflow") is None:
        tried.append("tfds.load: TensorFlow is not installed")
        return None
    if importlib.util.find_spec("tensorflow_datasets") is None:
        tried.append("tfds.load: tensorflow-datasets is not installed")
        return None
    tfds = checks.optional_import("tensorflow_datasets", "data")
    try:
        loaded = [
            tfds.as_numpy(tfds.load(name, split=split, data_dir=str(root_of(data_dir)), download=False))
            for split in splits
        ]
    except Exception as error:  # it raises all kinds where a set or its files are not there
        tried.append(f"tfds.load: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        return None
    found = []
    for split, examples in zip(splits, loaded, strict=True):
        try:
            pairs = [(_resized(np.asarray(item[image]), size), int(item[label])) for item in examples]
        except Exception as error:
            raise ValueError(f"{name}, {split}: tfds.load cannot read it ({error!r}): {_records.CURE}") from error
        found.append(assemble(f"{name}, {split}", [pair[0] for pair in pairs], [pair[1] for pair in pairs], None))
    return tuple(found)


def assemble(where: str, images: Sequence[np.ndarray], labels: Sequence[int], num_classes: int | None) -> Dataset:
    """One array of equal images, and labels in their range."""
    if not len(images):
        raise ValueError(f"{where}: there are no examples")
    shape = images[0].shape
    inputs = np.empty((len(images), *shape), np.uint8)
    for i, pixels in enumerate(images):
        check_shape(where, i, pixels, shape)
        inputs[i] = pixels
    targets = np.array(labels, np.int64)
    check_labels(where, targets, num_classes)
    return Dataset(inputs, targets.astype(np.int32))


def check_shape(where: str | Path, number: int, pixels: np.ndarray, shape: tuple[int, ...]) -> None:
    """Refuses an image unlike the others."""
    if pixels.shape != shape:
        raise ValueError(
            f"{where}, record {number}: the image has shape {pixels.shape}, but those before it {shape}: "
            "pass size=(height, width)"
        )


def check_labels(where: str, targets: np.ndarray, num_classes: int | None, least: int = -1) -> None:
    """Refuses labels that are no classes. −1 is what TFDS writes for unknown ones."""
    wrong = np.flatnonzero((targets < least) | (targets >= (num_classes or np.iinfo(np.int32).max)))
    if wrong.size:
        raise ValueError(
            f"{where}, record {wrong[0]}: label {targets[wrong[0]]} is none of the {num_classes} classes: "
            f"{_records.CURE}"
        )


class _Reading(NamedTuple):
    """What to make of a record."""

    image: str
    label: str
    size: tuple[int, int] | None
    channels: int | None
    num_classes: int | None


def _read_split(folder: Path, split: str, file_format: str, reading: _Reading) -> Dataset:
    lengths = _shard_lengths(folder, split)
    paths = [_shard_path(folder, split, file_format, i, len(lengths)) for i in range(len(lengths))]
    total = sum(lengths)
    targets = np.empty(total, np.int64)
    inputs: np.ndarray | None = None
    done = 0

    # One thread: decoding small images holds the interpreter's lock too long for a second one to help.
    for path, length in zip(paths, lengths, strict=True):
        number = 0
        for record in itertools.chain.from_iterable(_records.read(path, file_format)):
            if number == length:
                raise _wrong_length(path, f"more than {length}", length)
            pixels, target = _decode(path, number, record, reading)
            if inputs is None:
                inputs = np.empty((total, *pixels.shape), np.uint8)
            check_shape(path, number, pixels, inputs.shape[1:])
            inputs[done], targets[done] = pixels, target
            number, done = number + 1, done + 1
        if number != length:
            raise _wrong_length(path, str(number), length)
    if inputs is None:
        raise ValueError(f"{folder}, split {split}: there are no examples: {_records.CURE}")
    check_labels(f"{folder}, split {split}", targets, reading.num_classes)
    return Dataset(inputs, targets.astype(np.int32))


def _decode(path: Path, number: int, record: bytes, reading: _Reading) -> tuple[np.ndarray, int]:
    try:
        features = _records.parse_example(record)
    except Exception as error:  # random bytes can go wrong in any way
        raise ValueError(f"{path}, record {number}: not a tf.train.Example ({error}): {_records.CURE}") from error
    encoded, target = features.get(reading.image), features.get(reading.label)
    if not isinstance(encoded, bytes) or not isinstance(target, int):
        raise ValueError(
            f"{path}, record {number}: needs an encoded {reading.image} and an integer {reading.label}, but holds "
            f"{sorted(features)}: name the features with image=… and label=…"
        )
    try:
        return images.decode(encoded, reading.size, reading.channels), target
    except ImportError:
        raise
    except Exception as error:  # and so can the decoder
        raise ValueError(f"{path}, record {number}: the image cannot be decoded ({error}): {_records.CURE}") from error


def _wrong_length(path: Path, found: str, length: int) -> ValueError:
    return ValueError(f"{path}: holds {found} records, but dataset_info.json declares {length}: {_records.CURE}")


def _info(folder: Path) -> dict[str, Any]:
    return _json(folder / "dataset_info.json")


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): {_records.CURE}") from error


def _split_info(folder: Path, split: str) -> dict[str, Any]:
    splits = {part["name"]: part for part in _info(folder).get("splits", [])}
    if split not in splits:
        raise ValueError(f"{folder}: has no split {split!r}, only {', '.join(splits)}: name them with splits=…")
    return splits[split]


def _shard_lengths(folder: Path, split: str) -> list[int]:
    lengths = [int(length) for length in _split_info(folder, split).get("shardLengths", [])]
    if not lengths:
        raise ValueError(f"{folder / 'dataset_info.json'}: declares no files for split {split!r}: {_records.CURE}")
    return lengths


def _shard_path(folder: Path, split: str, file_format: str, index: int, total: int) -> Path:
    template = _split_info(folder, split).get("filepathTemplate", "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}")
    dataset = _info(folder)["name"].split("/")[0]
    shard = f"{index:05d}-of-{total:05d}"
    parts = {"{DATASET}": dataset, "{SPLIT}": split, "{FILEFORMAT}": file_format, "{SHARD_X_OF_Y}": shard}
    for placeholder, value in parts.items():
        template = template.replace(placeholder, value)
    path = folder / template
    if not path.exists():
        raise ValueError(f"{path}: is missing, but dataset_info.json declares {total} files: {_records.CURE}")
    return path


def _num_classes(folder: Path, label: str) -> int | None:
    path = folder / f"{label}.labels.txt"
    if path.exists():
        return len(_names(path))
    number = _feature(folder, label).get("classLabel", {}).get("numClasses")
    return None if number is None else int(number)


def _names(path: Path) -> tuple[str, ...]:
    """One a line: a name may hold spaces."""
    return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())


def _channels(folder: Path, image: str) -> int | None:
    dimensions = _feature(folder, image).get("image", {}).get("shape", {}).get("dimensions", [])
    return int(dimensions[2]) if len(dimensions) == 3 and int(dimensions[2]) > 0 else None


def _feature(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "features.json"
    features = _json(path).get("featuresDict", {}).get("features", {}) if path.exists() else {}
    return features.get(name, {})


def _version(folder: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in folder.name.split(".") if part.isdigit())


def _resized(pixels: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    if size is None:
        return pixels
    image_module = checks.optional_import("PIL.Image", "data")
    resized = np.asarray(image_module.fromarray(np.squeeze(pixels)).resize((size[1], size[0])))
    return resized[..., None] if resized.ndim == 2 else resized
