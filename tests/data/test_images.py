"""Loaders: the same pixels from every format, and an error that names the file for everything that can be wrong."""

import contextlib
import copyreg
import json
import os
import pickle
import shutil
import sys
import tarfile
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from baal_jax import data
from baal_jax._util import images
from baal_jax.data import _records
from baal_jax.data._archive import read_python_batch
from tests.data import files as data_files
from tests.data.files import assert_is

pytest.importorskip("PIL")
TRAIN, TEST = data_files.pictures(12), data_files.pictures(7, seed=1)
GOLDEN = Path(__file__).parents[1] / "golden" / "cifar10_python2_batch"
SHARED = Path(__file__).parents[3] / "shared" / "data" / "tensorflow_datasets"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "not there"))


def write(root, kind):
    """Where the set is, and what is in its training part."""
    if "record" in kind:
        return data_files.write_tfds(root, {"train": TRAIN, "test": TEST}, kind), TRAIN
    place = data_files.write_archive(root, TRAIN, TEST, kind.split()[0], packed="packed" in kind)
    order = np.concatenate([np.arange(12)[i::5] for i in range(5)])
    return place, (TRAIN[0][order], TRAIN[1][order])


def read(name, root, splits=("train",), **options):
    return data.from_tfds(name, data_dir=root, splits=splits, **options)[0]


def small_record(**changed):
    features = {"image": data_files.encoded(TRAIN[0][0]), "label": 3, **changed}
    return data_files.example({name: value for name, value in features.items() if value is not None})


@pytest.mark.parametrize("kind", ["array_record", "tfrecord", "binary", "binary packed", "python", "python packed"])
def test_cifar10_is_the_same_from_every_format_and_any_folder_on_the_way(kind, tmp_path, monkeypatch):
    place, expected = write(tmp_path / "cifar10" if "packed" in kind else tmp_path, kind)
    for where in (str(tmp_path), place.parent, place):
        train, test = data.cifar10(where)
        assert_is(train, expected)
        assert_is(test, TEST)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert_is(data.cifar10()[1], TEST)


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_several_shards_of_the_newest_version_are_read(kind, tmp_path):
    data_files.write_tfds(tmp_path, {"train": TEST, "test": TEST}, kind, version="3.0.2")
    data_files.write_tfds(tmp_path, {"train": TRAIN, "test": TEST}, kind, version="3.0.10", shards=3)
    assert_is(data.cifar10(tmp_path)[0], TRAIN)


def test_when_there_is_nothing_the_error_names_all_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError) as caught:
        data.cifar10(tmp_path)
    message = str(caught.value)
    tried = [line.strip().split(":")[0] for line in message.splitlines() if line.startswith("  ")]
    assert [*tried[:4], len(tried)] == [
        "TFDS directory of array_record or tfrecord files",
        "tfds.load",
        "original binary archive",
        "original python archive",
        5,
    ]
    assert "tensorflow is not installed" in message
    assert message.count("download_and_prepare") == 1
    assert f"tfds.builder('cifar10', file_format='array_record', data_dir='{tmp_path}')" in message
    for name in ("cifar-10-batches-bin", "cifar-10-python.tar.gz"):
        assert name in message


def test_damage_is_named_and_never_covered_up_by_another_format(tmp_path):
    """A flipped byte, and a file that ends early."""
    write(tmp_path, "binary")
    for kind in ("tfrecord", "array_record"):
        folder, _ = write(tmp_path / kind, kind)
        path = next(folder.glob("cifar10-train.*"))
        whole = path.read_bytes()
        flips = {3: "header of record 0", 40: "checksum of record 0", -1: "checksum of record 11"}
        for position, message in flips.items() if kind == "tfrecord" else [(len(whole) // 2, "")]:
            content = bytearray(whole)
            content[position] ^= 0xFF
            path.write_bytes(bytes(content))
            with pytest.raises(ValueError, match=f"cifar10-train.{kind}.*{message}.*copy or download"):
                data.cifar10(folder.parents[1])
        for left, message in ((0.7, "ends inside of record 8"), (0.999, "ends inside of record 11")):
            path.write_bytes(whole[: int(len(whole) * left)])
            with pytest.raises(ValueError, match=f"cifar10-train.{kind}.*{message * (kind == 'tfrecord')}"):
                data.cifar10(folder.parents[1])
    shutil.move(tmp_path / "tfrecord" / "cifar10", tmp_path)  # beside a whole archive
    with pytest.raises(ValueError, match="ends inside"):
        data.cifar10(tmp_path)


BROKEN = [
    (b"\xff\xff", "record 1: not a tf.train.Example"),
    (b"\x08\x01", "record 1: not a tf.train.Example"),  # a field of another kind
    (b"\x09" + bytes(8), r"record 1: not a tf.train.Example \(wire type 1"),
    (b"\x0a\x05ab", r"record 1: not a tf.train.Example \(a field is longer"),
    (small_record(image=None), "record 1: needs an encoded image and an integer label, but holds .'label'.: name"),
    (small_record(label=None), "record 1: .*integer label"),
    (small_record(label=1.5), "record 1: .*integer label"),
    (small_record(image=data_files.encoded(TRAIN[0][0])[:200]), "record 1: the image cannot be decoded"),
    (small_record(image=data_files.encoded(TRAIN[0][0], "GIF")), "record 1: the image cannot be decoded"),
    (small_record(image=data_files.encoded(TRAIN[0][0][:16])), r"record 1: .*\(16, 32, 3\).*\(32, 32, 3\): pass size="),
    (small_record(label=10), "record 1: label 10 is none of the 10 classes"),
    (small_record(label=-2), "record 1: label -2"),
]


def test_a_bad_record_is_named(tmp_path):
    folder = data_files.write_tfds(tmp_path, {"train": [small_record(), small_record(label=-1)]}, "tfrecord")
    assert read("cifar10", tmp_path).targets.tolist() == [3, -1]  # unknown
    for record, message in BROKEN:
        data_files.write_records(next(folder.glob("*tfrecord*")), [small_record(), record], "tfrecord")
        with pytest.raises(ValueError, match=message):
            read("cifar10", tmp_path)


def test_what_is_not_cifar10_is_refused(tmp_path):
    for name, records, message in (
        ("size", [small_record(image=data_files.encoded(TRAIN[0][0][:28, :28]))], r"cifar10, train: .*\(28, 28, 3\)"),
        ("unknown", [small_record(), small_record(label=-1)], "cifar10, train, record 1: label -1 is none of the 10"),
    ):
        data_files.write_tfds(tmp_path / name, {"train": records, "test": records}, "tfrecord")
        with pytest.raises(ValueError, match=message):
            data.cifar10(tmp_path / name)


def test_what_dataset_info_declares_is_checked(tmp_path):
    folder, _ = write(tmp_path, "tfrecord")
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for lengths, message in (
        (["11"], "holds more than 11 records, but dataset_info.json declares 11"),
        (["13"], "holds 12 records, but dataset_info.json declares 13"),
        (["12", "3"], "00000-of-00002: is missing, but dataset_info.json declares 2 files"),
        ([], "declares no files for split 'train'"),
    ):
        info["splits"][0]["shardLengths"] = lengths
        path.write_text(json.dumps(info))
        with pytest.raises(ValueError, match=message):
            data.cifar10(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"dataset_info.json is not JSON"):
        data.cifar10(tmp_path)


def test_damaged_archives_are_named(tmp_path):
    folder, _ = write(tmp_path / "open", "binary")
    path = folder / "data_batch_2.bin"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-5], r"data_batch_2.bin: the file ends inside of record 2"),
        (b"", r"data_batch_2.bin: the file ends inside of record 0"),
        (b"\x0a" + whole[1:], r"data_batch_2.bin, record 0: label 10 is none of the 10 classes"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            data.cifar10(folder)
    path.unlink()
    with pytest.raises(ValueError, match=r"data_batch_2.bin is missing"):
        data.cifar10(folder)
    for kind in ("binary", "python"):
        archive, _ = write(tmp_path / kind, f"{kind} packed")
        whole = archive.read_bytes()
        flipped = [bytearray(whole) for _ in range(3)]
        for content, place in zip(flipped, (0.3, 0.9, 0.9999), strict=True):  # the last is in the checksum of the whole
            content[int(len(whole) * place)] ^= 0xFF
        for content in (whole[:3000], *flipped):
            archive.write_bytes(content)
            with pytest.raises(ValueError, match=rf"cifar-10-{kind}.tar.gz is damaged"):
                data.cifar10(tmp_path / kind)
        with tarfile.open(archive, "w:gz"):
            pass
        with pytest.raises(ValueError, match=r"tar.gz holds no data_batch_1"):
            data.cifar10(archive)


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)


FORBIDDEN = {
    "code": (pickle.dumps(Bomb(), 2), r"(posix|nt).system does not belong"),
    "code inside": (pickle.dumps({"data": TRAIN[0], "labels": Bomb()}, 2), r"(posix|nt).system does not belong"),
    "a name": (b"cos\nsystem\n.", "os.system does not belong"),
    "a name of numpy": (b"cnumpy\nsave\n.", "numpy.save does not belong"),
    "an object of elsewhere": (b"Pname\n.", "persistent"),
    "an extension": (b"\x80\x02\x82\xf0.", "extension codes do not belong"),
    "a place far away": (b"\x80\x02Nr\x00\x00\x00\x7f.", "it remembers object 2130706432 after 2 instr"),
    "a state for a name": (b"\x80\x02cnumpy\ndtype\n}b.", "TypeError"),
    "no labels": (pickle.dumps({"data": TRAIN[0]}, 2), "KeyError: 'labels'"),
    "labels between classes": (pickle.dumps({"data": TRAIN[0], "labels": [0.5]}, 2), "labels are float64"),
    "a list": (pickle.dumps([1, 2], 2), "AttributeError"),
}


def test_a_python_archive_runs_no_code_and_holds_arrays_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code of the file was run"))
    copyreg.add_extension("os", "system", 0xF0)
    try:
        assert pickle.loads(FORBIDDEN["an extension"][0]) is os.system  # known from now on, without a look at its name
        for content, message in FORBIDDEN.values():
            with pytest.raises(ValueError, match=rf"(?s)here: cannot be read .*{message}.*: download it again"):
                read_python_batch("here", content)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        copyreg.clear_extension_cache()
    folder, _ = write(tmp_path, "python")
    for content, message in (
        (FORBIDDEN["code"][0], "cannot be read"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.int16), "labels": [1]}, 2), r"images int16\(1, 3072\) and 1 lab"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, 2), ".*and 1 labels do not fit CIFAR-10"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, 2), "record 0: label 10"),
    ):
        (folder / "data_batch_1").write_bytes(content)
        with pytest.raises(ValueError, match=f"data_batch_1[:,] {message}"):
            data.cifar10(tmp_path)


def test_a_python_archive_of_any_age_is_read(tmp_path):
    # The golden batch was written by Python 2.7 and NumPy 1.16, as the original was: strings are bytes there.
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(GOLDEN.read_bytes())
    train, test = data.cifar10(tmp_path)
    expected = (np.arange(2 * 3072) * 7 % 251).reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    assert train.inputs.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(test.inputs, expected)
    assert test.targets.tolist() == [3, 8]
    pixels = np.asfortranarray(np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8))
    for protocol in range(1, 6):
        for labels in ([3, 8], np.array([3, 8], ">i4"), list(np.array([3, 8]))):
            content = {b"data": pixels, "labels": labels, "filenames": ["a.png", "b.png"], "x": None}
            found = read_python_batch("here", pickle.dumps(content, protocol))
            np.testing.assert_array_equal(found[0], pixels)
            assert found[1].tolist() == [3, 8]


@given(st.integers(0, 6500), st.integers(0, 255))
def test_a_damaged_python_archive_is_an_error_or_an_array(position, value):
    content = bytearray(GOLDEN.read_bytes())
    content[position % len(content)] = value
    with contextlib.suppress(ValueError):
        pixels, labels = read_python_batch("here", bytes(content))
        assert isinstance(pixels, np.ndarray)
        assert labels.dtype == np.int64


def test_tensorflow_is_asked_where_it_is_installed_and_hides_no_archive(tmp_path, monkeypatch):
    calls = []

    def load(name, *, split, data_dir, download):
        calls.append((name, split, data_dir, download))
        pairs = zip(*(TRAIN if split == "train" else TEST), strict=True)
        return [{"image": image, "label": label} for image, label in pairs]

    stand_in = types.SimpleNamespace(load=load, as_numpy=list)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    train, test = data.cifar10(tmp_path)
    assert_is(train, TRAIN)
    assert_is(test, TEST)
    assert calls == [("cifar10", split, str(tmp_path), False) for split in ("train", "test")]
    assert read("other", tmp_path, size=(4, 6)).inputs.shape == (12, 4, 6, 3)
    with pytest.raises(ValueError, match=r"other, train: tfds.load cannot read it \(KeyError"):
        read("other", tmp_path, image="picture")
    stand_in.load = lambda *names, **options: [][0]
    with pytest.raises(FileNotFoundError, match=r"tfds\.load: IndexError: list index"):
        data.cifar10(tmp_path)
    write(tmp_path, "binary")
    assert_is(data.cifar10(tmp_path)[1], TEST)


def test_names_of_classes_and_how_many_there_are(tmp_path):
    names = ("pink primrose", "canterbury bells", "sweet pea", "rose")
    folder = data_files.write_tfds(tmp_path, {"train": [small_record()]}, "tfrecord", name="flowers", classes=names)
    assert data.class_names("flowers", data_dir=tmp_path) == names
    assert read("flowers", tmp_path).targets.tolist() == [3]
    (folder / "label.labels.txt").write_text("pink primrose\n\nrose\n")
    with pytest.raises(ValueError, match="label 3 is none of the 2"):
        read("flowers", tmp_path)
    (folder / "label.labels.txt").unlink()
    features = {"featuresDict": {"features": {"label": {"classLabel": {"numClasses": "3"}}}}}
    (folder / "features.json").write_text(json.dumps(features))
    with pytest.raises(ValueError, match="label 3 is none of the 3"):
        read("flowers", tmp_path)
    for name in ("flowers", "digits"):
        with pytest.raises(FileNotFoundError, match=rf"{name} was not found.*\n  label.labels.txt under"):
            data.class_names(name, data_dir=tmp_path)


def test_any_image_set_by_its_splits_sizes_and_features(tmp_path):
    grey, other = data_files.pictures(5, shape=(9, 7, 1)), data_files.pictures(3, shape=(9, 7, 1))
    folder = data_files.write_tfds(
        tmp_path, {"train": other, "validation": grey}, "tfrecord", name="letters", classes=()
    )
    found = data.from_tfds("letters", data_dir=tmp_path, splits=("validation", "train"))
    assert_is(found[0], grey)
    assert_is(found[1], other)
    shutil.move(folder, tmp_path / "letters" / "bold" / "3.0.2")  # a set in several variants
    shown = read("letters/bold", tmp_path, size=(3, 4)).inputs[0, ..., 0]
    np.testing.assert_array_equal(shown, images.decode(data_files.encoded(other[0][0]), (3, 4))[..., 0])
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        data.from_tfds("letters/bold", data_dir=tmp_path)
    with pytest.raises(ValueError, match="record 0: needs an encoded picture and an integer label"):
        read("letters/bold", tmp_path, image="picture")
    with pytest.raises(ValueError, match="record 0: needs an encoded image and an integer weight"):
        read("letters/bold", tmp_path, label="weight")
    with pytest.raises(FileNotFoundError, match="digits was not found"):
        data.from_tfds("digits", data_dir=tmp_path)


def test_grey_and_coloured_files_become_what_the_features_declare(tmp_path):
    grey, colour = (data_files.encoded(data_files.pictures(1, shape=(8, 8, c))[0][0], "JPEG") for c in (1, 3))
    records = [small_record(image=grey), small_record(image=colour)]
    folder = data_files.write_tfds(tmp_path, {"train": records}, "tfrecord", name="mixed")
    for declared, expected in (("3", 3), ("1", 1), ("4", 4), (None, None)):
        image = {"image": {"shape": {"dimensions": [] if declared is None else ["-1", "-1", declared]}}}
        (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": {"image": image}}}))
        if expected is not None:
            assert read("mixed", tmp_path).inputs.shape == (2, 8, 8, expected)
            continue
        with pytest.raises(ValueError, match="record 1: the image has shape"):
            read("mixed", tmp_path)


def test_pictures_of_any_mode_are_decoded_to_bytes():
    colour = data_files.pictures(1, shape=(6, 4, 3))[0][0]
    for mode, channels in (("1", 1), ("L", 1), ("LA", 3), ("P", 3), ("RGB", 3), ("RGBA", 3)):
        found = images.decode(data_files.encoded(colour, mode=mode), None)
        assert [found.shape, found.dtype] == [(6, 4, channels), np.uint8]
        if mode in ("RGB", "RGBA"):
            np.testing.assert_array_equal(found, colour)
    assert images.decode(data_files.encoded(colour), (3, 5), 1).shape == (3, 5, 1)
    with pytest.raises(ValueError, match="its pixels are I;16, not bytes"):
        images.decode(data_files.encoded(np.full((8, 8), 40_000, np.uint16)), None)
    with pytest.raises(ValueError, match=r"declares 2 channels, but 1, 3 or 4"):
        images.decode(data_files.encoded(colour), None, 2)
    with pytest.raises(ValueError, match=r"image has shape \(6, 4, 2\)"):
        images.png(colour[..., :2])


@pytest.mark.parametrize(("records", "budget", "sizes"), [(5, 2**26, [5, 5, 2]), (99, 10_000, [3] * 4)])
def test_records_are_read_a_few_at_a_time(records, budget, sizes, tmp_path, monkeypatch):
    folder, _ = write(tmp_path, "tfrecord")
    other, _ = write(tmp_path / "other", "array_record")
    monkeypatch.setattr(_records, "_CHUNK_BYTES", budget)
    monkeypatch.setattr(_records, "_CHUNK", records)
    read = list(_records.read(next(folder.glob("cifar10-train.*")), "tfrecord"))
    assert [len(chunk) for chunk in read] == sizes
    same = list(_records.read(next(other.glob("cifar10-train.*")), "array_record"))
    assert [record for chunk in same for record in chunk] == [record for chunk in read for record in chunk]
    assert max(len(chunk) for chunk in same) == min(records, 12)
    assert_is(data.cifar10(tmp_path)[0], TRAIN)


VALUES = st.one_of(st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False))


@given(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4), st.booleans())
def test_every_example_comes_back(features, packed):
    assert _records.parse_example(data_files.example(features, packed)) == features


@settings(max_examples=15)
@given(st.lists(st.binary(max_size=40), max_size=6))
def test_checksums_are_those_of_the_definition(records):
    found = _records._masked_crc(records)
    assert data_files.crc32c(b"123456789") == 0xE3069283  # the check value
    assert [int(value).to_bytes(4, "little") for value in found] == [data_files.masked(record) for record in records]


def test_the_real_images():
    pytest.importorskip("array_record")
    root = Path(os.environ.get("BAAL_JAX_CIFAR10") or SHARED)
    if not (root / "cifar10").is_dir():
        pytest.skip("the full CIFAR-10 is not here: set BAAL_JAX_CIFAR10 to its folder")
    assert data.class_names("cifar10", data_dir=root) == data.CIFAR10_CLASSES
    path = next((root / "cifar10").glob("*/cifar10-test.array_record*"))
    examples = [_records.parse_example(record) for record in next(_records.read(path, "array_record"))]
    pixels = np.stack([images.decode(example["image"], None) for example in examples[:200]])
    assert pixels.shape == (200, 32, 32, 3)
    assert 100 < pixels.mean() < 140  # photographs
    assert (np.bincount([example["label"] for example in examples], minlength=10) > 150).all()


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, "tfrecord")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install 'baal_jax\[data\]'"):
        data.cifar10(tmp_path)
