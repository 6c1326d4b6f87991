"""Files of other people as small sets: written by the tests, read by the package, damaged by whoever asks for them.

``write(folder)`` makes the files and ``read(folder)`` gives arrays and text that can be compared; ``other(folder)``
makes another set of the same kind, whose files may be taken for those of the first. A file whose path ends with one of
``unknown`` has no checksum, so that some damage cannot be noticed: it is read, or refused by name.
"""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from baal_jax import annotation, data
from baal_jax._cli import _assemble
from tests.annotation.exports import NAMES, answer
from tests.data import files


class Kind(NamedTuple):
    """How a set is written and read."""

    write: Callable[[Path], None]
    read: Callable[[Path], Any]
    other: Callable[[Path], None] | None = None
    unknown: tuple[str, ...] = ()


TRAIN, TEST = files.pictures(10), files.pictures(4, seed=1)
LETTERS = {"train": files.pictures(6, shape=(9, 7, 1)), "test": files.pictures(3, seed=2, shape=(9, 7, 1))}
LETTERS = {split: (pictures, labels % 3) for split, (pictures, labels) in LETTERS.items()}


def prepared(file_format: str, seed: int = 0) -> Callable[[Path], None]:
    """Shards of different lengths, for nothing tells equally long ones of a split apart."""
    splits = {"train": files.pictures(11, seed), "test": files.pictures(5, seed + 1)}
    return lambda folder: files.write_tfds(folder, splits, file_format, shards=2)


def letters(folder: Path) -> None:
    files.write_tfds(folder, LETTERS, "tfrecord", name="letters", classes=("a", "b", "c"))
    path = folder / "letters" / "3.0.2" / "features.json"
    features = json.loads(path.read_text())
    features["featuresDict"]["features"]["image"] = {"image": {"shape": {"dimensions": ["9", "7", "1"]}}}
    path.write_text(json.dumps(features, indent=1))


def read_letters(folder: Path) -> Any:
    return data.from_tfds("letters", data_dir=folder), data.class_names("letters", data_dir=folder)


def archive(kind: str, *, packed: bool = False) -> Callable[[Path], None]:
    return lambda folder: files.write_archive(folder, TRAIN, TEST, kind, packed=packed)


def table(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savetxt(folder / "table.txt", np.random.default_rng(0).normal(size=(12, 3)), fmt="%.5f")


def study(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng, targets = np.random.default_rng(0), np.arange(12) % 3
    arrays = {"train_inputs": rng.normal(size=(12, 4)), "train_targets": targets, "class_names": np.array(NAMES)}
    arrays |= {"test_inputs": rng.normal(size=(12, 4)), "test_targets": targets[::-1]}
    np.savez(folder / "mine.npz", **arrays)


def pool(folder: Path, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    inputs, texts = np.random.default_rng(seed).normal(size=(12, 4)), [f"text {i}" for i in range(12)]
    np.savez_compressed(folder / "pool.npz", inputs=inputs, references=texts, embeddings=inputs[:, :2])


def pictures(kind: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"a.{kind.lower()}").write_bytes(files.encoded(TRAIN[0][0], kind))

    return write


def read_problem(name: str) -> Callable[[Path], Any]:
    return lambda folder: data.open(folder / name)


def read_pool(folder: Path, name: str = "") -> Any:
    return _assemble.pool(SimpleNamespace(data=str(folder / name), url_prefix="", image_size=32), "text")


def read_picture(name: str) -> Callable[[Path], Any]:
    """As somebody who knows which pictures there are."""
    return lambda folder: (folder / name).stat() and read_pool(folder)


def export(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    said = [[answer(name, i + 1)] for i, name in enumerate(NAMES)]
    tasks = [{"data": {"image": f"{i}.png", "baal_index": i}, "annotations": said[i]} for i in range(3)]
    (folder / "export.json").write_text(json.dumps(tasks))


def read_export(folder: Path) -> Any:
    """As the package is given it: what is no JSON is refused before."""
    path = folder / "export.json"
    try:
        tasks = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return annotation.from_label_studio(tasks, NAMES, num_examples=3, source=str(path))


# The number of channels and the names of classes are nowhere else; CIFAR-10's are known.
DESCRIBED = ("features.json", "labels.txt")
FOREIGN: dict[str, Kind] = {
    **{f"cifar10, {kind}": Kind(prepared(kind), data.cifar10) for kind in ("tfrecord", "array_record")},
    "letters, tfrecord": Kind(letters, read_letters, unknown=DESCRIBED),
    "cifar10, binary": Kind(archive("binary"), data.cifar10, unknown=(".bin",)),
    "cifar10, python": Kind(archive("python"), data.cifar10, unknown=("_batch", *"12345")),
    **{f"cifar10, {kind} packed": Kind(archive(kind, packed=True), data.cifar10) for kind in ("binary", "python")},
    "table": Kind(table, read_problem("table.txt"), unknown=(".txt",)),
    "arrays of a study": Kind(study, read_problem("mine.npz")),
    "arrays of a pool": Kind(pool, lambda folder: read_pool(folder, "pool.npz")),
    "PNG": Kind(pictures("PNG"), read_picture("a.png")),
    "JPEG": Kind(pictures("JPEG"), read_picture("a.jpeg"), unknown=(".jpeg",)),
    "export of Label Studio": Kind(export, read_export, unknown=(".json",)),
}
