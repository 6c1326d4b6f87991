"""CIFAR-10 from a TFDS directory or from the original archives."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from baal_jax.data import _tfds
from baal_jax.data._archive import read_python_batch
from baal_jax.typing import Dataset

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_RECORD = 1 + 3 * 32 * 32
_BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
_ARCHIVES = (
    ("binary archive", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin"),
    ("python archive", "cifar-10-batches-py", "cifar-10-python.tar.gz", ""),
)


def cifar10(data_dir: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """50,000 + 10,000 colour images of ten classes, 32×32 pixels, decoded once.

    Reads, in this order, what it finds: a TFDS directory of array_record or of tfrecord files (neither needs
    TensorFlow), whatever ``tfds.load`` can read where TensorFlow is installed, and the original binary or python
    archive, packed or unpacked. Nothing is downloaded.

    Args:
        data_dir: the root of the TFDS directories, the folder of the set or of a version of it, or the folder with the
            archive; by default ``$TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.

    Returns:
        ``(train, test)``: ``uint8[N, 32, 32, 3]`` inputs and ``int32[N]`` targets, indices of ``CIFAR10_CLASSES``.

    Raises:
        FileNotFoundError: it is nowhere; the message names all that was tried and the command that brings it.
        ValueError: it is damaged; the message names the file and the record.
    """
    tried: list[str] = []
    datasets = _tfds.prepared(_tfds.Source("cifar10", data_dir), tried) or _archives(_tfds.root_of(data_dir), tried)
    if datasets is None:
        raise _tfds.not_found("cifar10", tried, data_dir)
    for dataset, split in zip(datasets, _BATCHES, strict=True):
        if dataset.inputs.shape[1:] != (32, 32, 3):
            raise ValueError(f"cifar10, {split}: images have shape {dataset.inputs.shape[1:]}, not (32, 32, 3)")
        _tfds.check_labels(f"cifar10, {split}", dataset.targets, len(CIFAR10_CLASSES), least=0)
    return datasets[0], datasets[1]


def _archives(root: Path, tried: list[str]) -> tuple[Dataset, ...] | None:
    for kind, folder, archive, suffix in _ARCHIVES:
        names = {split: [name + suffix for name in batches] for split, batches in _BATCHES.items()}
        places = [root / folder, root / archive, root / "cifar10" / folder, root / "cifar10" / archive, root]
        for place in places:
            inside = place.is_dir() and (place / names["test"][0]).is_file()
            if inside or (place.is_file() and place.name == archive):
                return tuple(_read_split(place, names[split], suffix == ".bin") for split in _BATCHES)
        tried.append(f"original {kind}: neither {folder}/ nor {archive} in {root}")
    return None


def _read_split(place: Path, names: list[str], binary: bool) -> Dataset:
    images, labels = [], []
    for name, content in _contents(place, names):
        where = f"{place}, {name}"
        pixels, classes = _binary_batch(where, content) if binary else read_python_batch(where, content)
        if pixels.dtype != np.uint8 or pixels.shape != (len(classes), _RECORD - 1):
            found = f"images {pixels.dtype}{pixels.shape} and {len(classes)} labels"
            raise ValueError(f"{where}: {found} do not fit CIFAR-10")
        _tfds.check_labels(where, classes, len(CIFAR10_CLASSES))
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(classes)
    return Dataset(np.concatenate(images), np.concatenate(labels).astype(np.int32))


def _contents(place: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for name in names:
            if not (place / name).is_file():
                raise ValueError(f"{place / name} is missing: unpack the archive again")
            yield name, (place / name).read_bytes()
        return
    try:
        with gzip.open(place) as stream:  # to its end, where the checksum of the whole is
            while stream.read(2**20):
                pass
        with tarfile.open(place) as archive:
            members = {Path(member.name).name: member for member in archive.getmembers()}
            for name in names:
                file = archive.extractfile(members[name]) if name in members else None
                if file is None:
                    raise ValueError(f"{place} holds no {name}: download it again")
                yield name, file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{place} is damaged ({error}): download it again") from error


def _binary_batch(where: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not content or len(content) % _RECORD:
        raise ValueError(f"{where}: the file ends inside of record {len(content) // _RECORD}: download it again")
    rows = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return rows[:, 1:], rows[:, 0].astype(np.int64)
