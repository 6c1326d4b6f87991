"""Writers of tiny data sets in every format that is read, independent of the readers but for the checksums."""

import io
import json
import pickle
import shutil
import struct
import tarfile

import numpy as np
import pytest
from PIL import Image

from baal_jax.data import _records

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def pictures(count, seed=0, shape=(32, 32, 3)):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, *shape)).astype(np.uint8), rng.integers(0, 10, count)


def varint(number):
    number, rest = number & 0x7F, (number & (1 << 64) - 1) >> 7
    return bytes([number | 0x80]) + varint(rest) if rest else bytes([number])


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def example(features, packed=True):
    """A tf.train.Example."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = field(1, field(1, value))
        elif isinstance(value, float):
            feature = field(2, field(1, struct.pack("<f", value)))
        else:
            feature = field(3, field(1, varint(value)) if packed else varint(1 << 3) + varint(value))
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


def encoded(picture, kind="PNG", mode=None):
    buffer, image = io.BytesIO(), Image.fromarray(np.squeeze(picture))
    (image if mode is None else image.convert(mode)).save(buffer, kind)
    return buffer.getvalue()


def record(image, label):
    return example({"id": b"train_1", "image": encoded(image), "label": int(label), "weight": 0.5})


def write_records(path, records, file_format):
    if file_format == "array_record":
        module = pytest.importorskip("array_record.python.array_record_module")
        writer = module.ArrayRecordWriter(str(path), "group_size:1")
        for record in records:
            writer.write(record)
        writer.close()
        return
    parts = [part for record in records for part in (struct.pack("<Q", len(record)), record)]
    sums = _records._masked_crc(parts).astype("<u4").tolist()
    path.write_bytes(b"".join(part + crc.to_bytes(4, "little") for part, crc in zip(parts, sums, strict=True)))


def write_tfds(root, splits, file_format, name="cifar10", version="3.0.2", shards=1, classes=CLASSES):
    """``splits``: name → (images, labels), or → list of records."""
    folder = root / name / version
    folder.mkdir(parents=True)
    described = []
    for split, content in splits.items():
        records = content if isinstance(content, list) else list(map(record, *content))
        parts = [list(part) for part in np.array_split(np.array(records, object), shards)]
        for i, part in enumerate(parts):
            write_records(folder / f"{name}-{split}.{file_format}-{i:05d}-of-{shards:05d}", part, file_format)
        template, lengths = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}", [str(len(part)) for part in parts]
        described.append({"name": split, "shardLengths": lengths, "filepathTemplate": template, "numBytes": "1"})
    info = {"name": name, "version": version, "fileFormat": file_format, "splits": described}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    features = {"featuresDict": {"features": {"label": {"classLabel": {"numClasses": str(len(classes))}}}}}
    (folder / "features.json").write_text(json.dumps(features))
    if classes:
        (folder / "label.labels.txt").write_text("\n".join(classes) + "\n")
    return folder


def write_archive(root, train, test, kind, packed=False):
    """The original binary or python archive; ``train`` is spread over its five files."""
    folder = root / ("cifar-10-batches-bin" if kind == "binary" else "cifar-10-batches-py")
    folder.mkdir(parents=True)
    images, labels = train
    parts = [(f"data_batch_{i + 1}", images[i::5], labels[i::5]) for i in range(5)] + [("test_batch", *test)]
    for name, images, targets in parts:
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        if kind == "binary":
            rows = np.concatenate([targets[:, None].astype(np.uint8), pixels], axis=1)
            (folder / f"{name}.bin").write_bytes(rows.tobytes())
        else:
            content = {"data": pixels, "labels": targets.tolist(), "batch_label": name}
            (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    if not packed:
        return folder
    archive = root / f"cifar-10-{kind}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, arcname=folder.name)
    shutil.rmtree(folder)
    return archive


def assert_is(found, expected):
    """The images and labels, and their types."""
    assert [found.inputs.dtype, found.targets.dtype] == [np.uint8, np.int32]
    np.testing.assert_array_equal(found.inputs, expected[0])
    np.testing.assert_array_equal(found.targets, expected[1])


def refused(message, call, *arguments, error=(ValueError, TypeError), **options):
    with pytest.raises(error, match=message):
        call(*arguments, **options)
