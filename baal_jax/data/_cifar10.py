"""CIFAR-10 from a TFDS directory or from the original archives."""

import gzip
import hashlib
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from baal_jax._util import files
from baal_jax.data import _archive, _tfds
from baal_jax.typing import Dataset

_RECORD = 1 + 3 * 32 * 32
_SIZE = 10_000  # of every batch of the original
# MD5 of the python batches of the original, of which the last is for testing; of the binary ones none is known.
_MD5 = """c99cafc152244af753f735de768cd75f d4bba439e000b95fd0a9bffe97cbabec 54ebc095f3ab1f0389bbae665268c751
    634d18415352ddfa80567beed471001a 482c414d41f54cd18b22e5b47cb7c3cb 40351d587109b95175f43aff81a1287e"""
_SUMS = dict(zip([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"], _MD5.split(), strict=True))
_CURE = "download it again"
_ARCHIVES = (
    ("binary archive", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", ".bin"),
    ("python archive", "cifar-10-batches-py", "cifar-10-python.tar.gz", ""),
)


def cifar10(data_dir: str | Path | None = None) -> tuple[Dataset, Dataset]:
    """50,000 + 10,000 colour images of ten classes, 32×32 pixels, decoded once.

    Reads the first of these that is there: a TFDS directory of array_record or tfrecord files, what ``tfds.load`` reads
    (if TensorFlow is installed), the original binary or python archive, packed or unpacked. Nothing is downloaded.

    Args:
        data_dir: as for :func:`from_tfds`, or the folder with the archive.

    Returns:
        ``(train, test)``: ``uint8[N, 32, 32, 3]`` inputs and ``int32[N]`` targets, indices of ``CIFAR10_CLASSES``.

    Raises:
        FileNotFoundError: it is nowhere; the message names all that was tried and the command that brings it.
        ValueError: it is damaged; the message names the file and the record. Unpacked binary batches have no checksum:
            of the original ones, the number of images of each class is compared.

    Example:
        >>> train, test = data.cifar10(data_dir="~/tensorflow_datasets")  # doctest: +SKIP
    """
    tried: list[str] = []
    datasets = _tfds.prepared(_tfds.Source("cifar10", data_dir), tried) or _archives(_tfds.root_of(data_dir), tried)
    if datasets is None:
        raise _tfds.not_found("cifar10", tried, data_dir)
    for dataset, split in zip(datasets, ("train", "test"), strict=True):
        if dataset.inputs.shape[1:] != (32, 32, 3):
            raise ValueError(f"cifar10, {split}: images have shape {dataset.inputs.shape[1:]}, not (32, 32, 3)")
        _tfds.check_labels(f"cifar10, {split}", dataset.targets, len(_tfds.CIFAR10_CLASSES), least=0)
    return datasets[0], datasets[1]


def _archives(root: Path, tried: list[str]) -> tuple[Dataset, ...] | None:
    for kind, folder, archive, suffix in _ARCHIVES:
        names = [name + suffix for name in _SUMS]
        for place in [root / folder, root / archive, root / "cifar10" / folder, root / "cifar10" / archive, root]:
            inside = place.is_dir() and any((place / name).is_file() for name in names)
            if inside or (place.is_file() and place.name == archive):
                return _read_archive(place, names)
        tried.append(f"original {kind}: neither {folder}/ nor {archive} in {root}")
    return None


def _read_archive(place: Path, names: list[str]) -> tuple[Dataset, ...]:
    batches = [_batch(f"{place}, {name}", name, content) for name, content in _contents(place, names)]
    counts = [len(labels) for _, labels in batches]
    if 0 in counts or len(set(counts[:5])) > 1 or (_SIZE in counts and counts[5] != counts[0]):
        held = ", ".join(f"{count} in {name}" for name, count in zip(names, counts, strict=True))
        raise ValueError(f"{place}: batches hold nothing or differ in size ({held}): {_CURE}")
    datasets = []
    for part in (slice(5), slice(5, 6)):
        images, labels = (np.concatenate(arrays) for arrays in zip(*batches[part], strict=True))
        of_class = np.bincount(labels, minlength=10)
        if counts[0] == _SIZE and np.ptp(of_class):  # the original has as many of each
            raise ValueError(f"{place}, {', '.join(names[part])}: {of_class.tolist()} images of the classes: {_CURE}")
        datasets.append(Dataset(images, labels.astype(np.int32)))
    return tuple(datasets)


def _batch(where: str, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if not name.endswith(".bin"):
        pixels, classes = _archive.read_python_batch(where, content)
    elif content and len(content) % _RECORD == 0:
        rows = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
        pixels, classes = rows[:, 1:], rows[:, 0].astype(np.int64)
    else:
        raise ValueError(f"{where}: the file ends inside of record {len(content) // _RECORD}: {_CURE}")
    if pixels.dtype != np.uint8 or pixels.shape != (len(classes), _RECORD - 1):
        raise ValueError(f"{where}: images {pixels.dtype}{pixels.shape} and {len(classes)} labels do not fit CIFAR-10")
    known = len(classes) == _SIZE and _SUMS.get(name)
    if known and hashlib.md5(content, usedforsecurity=False).hexdigest() != known:
        raise ValueError(f"{where}: its checksum is not that of the original: {_CURE}")
    _tfds.check_labels(where, classes, len(_tfds.CIFAR10_CLASSES), least=0)
    return pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), classes


def _contents(place: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    if place.is_dir():
        for name in names:
            if not (place / name).is_file():
                raise ValueError(f"{place / name} is missing: unpack the archive again")
            yield name, (place / name).read_bytes()
        return
    with files.about(place, _CURE):
        with gzip.open(place) as stream:  # to its end, where the checksum of the whole is
            total = sum(map(len, iter(lambda: stream.read(2**20), b"")))
        with tarfile.open(place) as archive:
            members = {Path(member.name).name: member for member in archive.getmembers()}
            for name in names:
                file = archive.extractfile(members[name]) if name in members else None
                if file is None:
                    raise ValueError(f"{place} holds no {name}: {_CURE}")
                if members[name].size > total:
                    raise ValueError(f"{name} is said to be larger than all that is there")
                yield name, file.read()
