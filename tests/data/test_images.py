"""Loaders: the same pixels from every format, and an error that names the file for everything that can be wrong."""

import contextlib
import copyreg
import json
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from baal_jax import data
from baal_jax.data import _records
from baal_jax.data._archive import read_python_batch
from tests.data import files as data_files
from tests.data.files import assert_is

pytest.importorskip("PIL")
TRAIN, TEST = data_files.pictures(12), data_files.pictures(7, seed=1)


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "not there"))


def write(root, kind):
    if kind in ("array_record", "tfrecord"):
        if kind == "array_record":
            pytest.importorskip("array_record")
        data_files.write_tfds(root, {"train": TRAIN, "test": TEST}, kind)
        return TRAIN
    data_files.write_archive(root, TRAIN, TEST, kind.split()[0], packed="packed" in kind)
    order = np.concatenate([np.arange(12)[i::5] for i in range(5)])
    return TRAIN[0][order], TRAIN[1][order]


KINDS = ["array_record", "tfrecord", "binary", "binary packed", "python", "python packed"]


@pytest.mark.parametrize("kind", KINDS)
def test_cifar10_is_the_same_from_every_format(kind, tmp_path, monkeypatch):
    expected = write(tmp_path, kind)
    for found in (data.cifar10(tmp_path), data.cifar10(str(tmp_path))):
        assert_is(found[0], expected)
        assert_is(found[1], TEST)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    assert_is(data.cifar10()[1], TEST)


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("deeper", ["cifar10", "cifar10/3.0.2"])
def test_any_folder_on_the_way_will_do(kind, deeper, tmp_path):
    expected = write(tmp_path, kind)
    assert_is(data.cifar10(tmp_path / deeper)[0], expected)


@pytest.mark.parametrize("kind", ["binary", "python"])
def test_the_folder_or_file_of_an_archive_will_do(kind, tmp_path):
    expected = write(tmp_path, kind)
    assert_is(data.cifar10(next(tmp_path.iterdir()))[0], expected)


@pytest.mark.parametrize("kind", ["binary packed", "python packed"])
def test_the_packed_archive_itself_will_do(kind, tmp_path):
    expected = write(tmp_path, kind)
    assert_is(data.cifar10(next(tmp_path.glob("*.tar.gz")))[0], expected)


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_several_shards_and_the_newest_version(kind, tmp_path):
    if kind == "array_record":
        pytest.importorskip("array_record")
    data_files.write_tfds(tmp_path, {"train": TEST, "test": TEST}, kind, version="3.0.2")
    data_files.write_tfds(tmp_path, {"train": TRAIN, "test": TEST}, kind, version="3.0.10", shards=3)
    assert_is(data.cifar10(tmp_path)[0], TRAIN)


def test_when_there_is_nothing_the_error_names_all_that_was_tried(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError) as caught:
        data.cifar10(tmp_path)
    message = str(caught.value)
    for part in (
        "array_record",
        "tfrecord",
        "tfds.load",
        "binary archive",
        "python archive",
        str(tmp_path),
        "python -m",
    ):
        assert part in message
    assert message.count("download_and_prepare") == 1
    assert f"data_dir='{tmp_path}'" in message  # where the same call will look again


def flip_byte(path, position):
    content = bytearray(path.read_bytes())
    content[position] ^= 0xFF
    path.write_bytes(bytes(content))


def shard(tmp_path, kind, split="train"):
    return next((tmp_path / "cifar10" / "3.0.2").glob(f"cifar10-{split}.{kind}*"))


@pytest.mark.parametrize(
    ("position", "message"), [(3, "header of record 0"), (40, "checksum of record 0"), (-1, "checksum of record 11")]
)
def test_a_flipped_byte_in_a_tfrecord_is_found(position, message, tmp_path):
    write(tmp_path, "tfrecord")
    flip_byte(shard(tmp_path, "tfrecord"), position)
    with pytest.raises(ValueError, match=f"cifar10-train.tfrecord.*{message}"):
        data.cifar10(tmp_path)


def test_a_flipped_byte_in_an_array_record_is_found(tmp_path):
    write(tmp_path, "array_record")
    path = shard(tmp_path, "array_record")
    flip_byte(path, path.stat().st_size // 2)
    with pytest.raises(ValueError, match=r"cifar10-train.array_record"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("left", [0.7, 0.999])
def test_a_truncated_file_is_found(kind, left, tmp_path):
    write(tmp_path, kind)
    path = shard(tmp_path, kind)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(ValueError, match=f"cifar10-train.{kind}"):
        data.cifar10(tmp_path)


def small_record(**changed):
    features = {"image": data_files.encoded(TRAIN[0][0]), "label": 3, **changed}
    return data_files.example({name: value for name, value in features.items() if value is not None})


BROKEN = {
    "not a message": (b"\xff\xff", "record 1.*not a tf.train.Example"),
    "no image": (small_record(image=None), "record 1.*needs an encoded image"),
    "no label": (small_record(label=None), "record 1.*integer label"),
    "half an image": (small_record(image=data_files.encoded(TRAIN[0][0])[:200]), "record 1.*cannot be decoded"),
    "no picture": (small_record(image=b"GIF89a"), "record 1.*cannot be decoded"),
    "another shape": (small_record(image=data_files.encoded(TRAIN[0][0][:16])), r"record 1.*\(16, 32, 3\).*size="),
    "label too large": (small_record(label=10), "record 1.*label 10.*10 classes"),
    "another wire type": (b"\x08\x01", "record 1.*not a tf.train.Example"),
    "label negative": (small_record(label=-1), "record 1.*label -1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_bad_record_is_named(name, tmp_path):
    record, message = BROKEN[name]
    data_files.write_tfds(tmp_path, {"train": [small_record(), record], "test": TEST}, "tfrecord")
    with pytest.raises(ValueError, match=message):
        data.cifar10(tmp_path)


def test_images_of_another_size_are_not_cifar10(tmp_path):
    images = data_files.pictures(3, shape=(28, 28, 3))
    data_files.write_tfds(tmp_path, {"train": images, "test": images}, "tfrecord")
    with pytest.raises(ValueError, match=r"\(28, 28, 3\)"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize(
    ("lengths", "message"), [(["11"], "declares 11"), (["13"], "holds 12"), (["12", "3"], "missing")]
)
def test_what_dataset_info_declares_is_checked(lengths, message, tmp_path):
    write(tmp_path, "tfrecord")
    path = tmp_path / "cifar10" / "3.0.2" / "dataset_info.json"
    info = json.loads(path.read_text())
    info["splits"][0]["shardLengths"] = lengths
    path.write_text(json.dumps(info))
    with pytest.raises(ValueError, match=message):
        data.cifar10(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        data.cifar10(tmp_path)


def test_damage_is_never_covered_up_by_another_format(tmp_path):
    write(tmp_path, "tfrecord")
    write(tmp_path, "binary")
    flip_byte(shard(tmp_path, "tfrecord"), 40)
    with pytest.raises(ValueError, match="checksum"):
        data.cifar10(tmp_path)


def test_a_truncated_binary_archive_and_a_label_out_of_range(tmp_path):
    folder = data_files.write_archive(tmp_path, TRAIN, TEST, "binary")
    path = folder / "data_batch_2.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"data_batch_2.bin: the file ends inside of record"):
        data.cifar10(tmp_path)
    path.write_bytes(b"\x0b" + whole[1:])
    with pytest.raises(ValueError, match=r"data_batch_2.bin, record 0: label 11"):
        data.cifar10(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match=r"data_batch_2.bin is missing"):
        data.cifar10(tmp_path)


def test_a_damaged_tar_is_named(tmp_path):
    archive = data_files.write_archive(tmp_path, TRAIN, TEST, "binary", packed=True)
    archive.write_bytes(archive.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"cifar-10-binary.tar.gz is damaged"):
        data.cifar10(tmp_path)


@pytest.mark.parametrize("place", [0.3, 0.6, 0.9, 0.9999])
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_a_changed_byte_in_a_packed_archive_is_noticed(kind, place, tmp_path):
    archive = data_files.write_archive(tmp_path, TRAIN, TEST, kind, packed=True)
    flip_byte(archive, int(archive.stat().st_size * place))
    with pytest.raises(ValueError, match=rf"cifar-10-{kind}.tar.gz is damaged"):
        data.cifar10(tmp_path)


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)


@pytest.mark.parametrize(
    "content", [Bomb(), {"data": TRAIN[0], "labels": Bomb()}, [1, 2]], ids=["code", "inside", "list"]
)
def test_a_python_archive_runs_no_code(content, tmp_path, monkeypatch):
    folder = data_files.write_archive(tmp_path, TRAIN, TEST, "python")
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol=2))
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code of the file was run"))
    with pytest.raises(ValueError, match="data_batch_1: cannot be read"):
        data.cifar10(tmp_path)


FORBIDDEN = {
    "a name": (b"cos\nsystem\n.", "os.system does not belong"),
    "a name of numpy": (b"cnumpy\nsave\n.", "numpy.save does not belong"),
    "an object of elsewhere": (b"Pname\n.", "persistent"),
    "an extension": (b"\x80\x02\x82\xf0.", "extension codes do not belong"),
    "a place far away": (b"\x80\x02Nr\x00\x00\x00\x7f.", "it remembers object 2130706432 after 2 instr"),
    "a state for a name": (b"\x80\x02cnumpy\ndtype\n}b.", "TypeError"),
}


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_a_python_archive_may_not_say(name):
    content, message = FORBIDDEN[name]
    copyreg.add_extension("os", "system", 0xF0)
    try:
        assert pickle.loads(FORBIDDEN["an extension"][0]) is os.system  # known from now on, without a look at its name
        with pytest.raises(ValueError, match=f"here: cannot be read .*{message}"):
            read_python_batch("here", content)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        copyreg.clear_extension_cache()


def test_an_archive_written_by_python_2_is_read(tmp_path):
    # The golden batch was written by Python 2.7 and NumPy 1.16, as the original was: strings are bytes there.
    batch = (Path(__file__).parents[1] / "golden" / "cifar10_python2_batch").read_bytes()
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / name).write_bytes(batch)
    train, test = data.cifar10(tmp_path)
    expected = (np.arange(2 * 3072) * 7 % 251).reshape(2, 3, 32, 32).transpose(0, 2, 3, 1)
    assert train.inputs.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(test.inputs, expected)
    assert test.targets.tolist() == [3, 8]


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
@pytest.mark.parametrize(
    "labels", [[3, 8], np.array([3, 8], ">i4"), list(np.array([3, 8]))], ids=["list", "big endian", "scalars"]
)
def test_a_python_archive_of_any_age_is_read(protocol, labels):
    pixels = np.asfortranarray(np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8))
    content = pickle.dumps({b"data": pixels, "labels": labels, "filenames": ["a.png", "b.png"], "x": None}, protocol)
    found = read_python_batch("here", content)
    np.testing.assert_array_equal(found[0], pixels)
    assert found[1].tolist() == [3, 8]


@pytest.mark.parametrize("content", [{"data": TRAIN[0], "labels": [0.5]}, {"data": TRAIN[0]}, {"labels": [1]}, 5])
def test_a_python_archive_with_something_else_is_refused(content):
    with pytest.raises(ValueError, match="here: cannot be read"):
        read_python_batch("here", pickle.dumps(content, protocol=2))


@given(st.integers(0, 6500), st.integers(0, 255))
def test_a_damaged_python_archive_is_an_error_or_an_array(position, value):
    content = bytearray((Path(__file__).parents[1] / "golden" / "cifar10_python2_batch").read_bytes())
    content[position % len(content)] = value
    with contextlib.suppress(ValueError):
        pixels, labels = read_python_batch("here", bytes(content))
        assert isinstance(pixels, np.ndarray)
        assert labels.dtype == np.int64


def test_tensorflow_is_asked_where_it_is_installed(tmp_path, monkeypatch):
    calls = []

    def load(name, *, split, data_dir, download):
        calls.append((name, split, data_dir, download))
        images, labels = TRAIN if split == "train" else TEST
        return [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)]

    class NotFoundError(ValueError):
        pass

    registered = types.SimpleNamespace(DatasetNotFoundError=NotFoundError)
    stand_in = types.SimpleNamespace(load=load, as_numpy=list, core=types.SimpleNamespace(registered=registered))
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert_is(data.cifar10(tmp_path)[0], TRAIN)
    assert calls[0] == ("cifar10", "train", str(tmp_path), False)
    small = data.from_tfds("other", data_dir=tmp_path, size=(4, 6))
    assert small[0].inputs.shape == (12, 4, 6, 3)

    def nothing(*args, **kwargs):
        raise AssertionError("Dataset cifar10: could not find data")

    stand_in.load = nothing
    with pytest.raises(FileNotFoundError, match=r"tfds\.load: AssertionError: Dataset cifar10"):
        data.cifar10(tmp_path)


def test_tensorflow_alone_does_not_hide_an_archive(tmp_path, monkeypatch):
    data_files.write_archive(tmp_path, TRAIN, TEST, "binary")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if "datasets" in name else object())
    assert_is(data.cifar10(tmp_path)[1], TEST)


def test_names_may_hold_spaces(tmp_path):
    names = ("pink primrose", "canterbury bells", "sweet pea", "rose")
    data_files.write_tfds(tmp_path, {"train": [small_record()]}, "tfrecord", name="flowers", classes=names)
    assert data.class_names("flowers", data_dir=tmp_path) == names
    path = tmp_path / "flowers" / "3.0.2" / "label.labels.txt"
    path.write_text("pink primrose\nrose\n")
    with pytest.raises(ValueError, match="label 3 is none of the 2"):
        data.from_tfds("flowers", data_dir=tmp_path, splits=("train",))


@pytest.mark.parametrize(("declared", "expected"), [(3, 3), (1, 1), (4, 4), (None, None)])
def test_grey_and_coloured_files_become_what_the_features_declare(declared, expected, tmp_path):
    grey, colour = (data_files.encoded(data_files.pictures(1, shape=(8, 8, c))[0][0], "JPEG") for c in (1, 3))
    records = [small_record(image=grey), small_record(image=colour)]
    data_files.write_tfds(tmp_path, {"train": records}, "tfrecord", name="mixed")
    path = tmp_path / "mixed" / "3.0.2" / "features.json"
    dimensions = [] if declared is None else ["-1", "-1", str(declared)]
    image = {"image": {"shape": {"dimensions": dimensions}}}
    path.write_text(json.dumps({"featuresDict": {"features": {"image": image}}}))
    if expected is None:
        with pytest.raises(ValueError, match="record 1: the image has shape"):
            data.from_tfds("mixed", data_dir=tmp_path, splits=("train",))
        return
    (found,) = data.from_tfds("mixed", data_dir=tmp_path, splits=("train",))
    assert found.inputs.shape == (2, 8, 8, expected)
    if expected == 3:
        np.testing.assert_array_equal(found.inputs[0, ..., 0], found.inputs[0, ..., 2])


def test_pixels_of_more_than_a_byte_are_refused(tmp_path):
    deep = data_files.encoded(np.full((8, 8), 40_000, np.uint16))
    data_files.write_tfds(tmp_path, {"train": [small_record(image=deep)]}, "tfrecord", name="deep")
    with pytest.raises(ValueError, match=r"record 0: the image cannot be decoded.*not bytes"):
        data.from_tfds("deep", data_dir=tmp_path, splits=("train",))


@pytest.mark.parametrize(("budget", "most"), [(10_000, 3), (100, 1)])
def test_long_records_are_read_a_few_at_a_time(budget, most, tmp_path, monkeypatch):
    write(tmp_path, "tfrecord")
    monkeypatch.setattr(_records, "_CHUNK_BYTES", budget)
    read = list(_records.read(shard(tmp_path, "tfrecord"), "tfrecord"))
    assert min(len(chunk) for chunk in read) > 0
    assert max(len(chunk) for chunk in read) <= most
    assert sum(len(chunk) for chunk in read) == 12
    assert_is(data.cifar10(tmp_path)[0], TRAIN)


def test_any_image_set_with_names_sizes_and_grey_pictures(tmp_path):
    grey = data_files.pictures(5, shape=(9, 7, 1))
    data_files.write_tfds(
        tmp_path, {"train": grey, "validation": grey}, "tfrecord", name="letters", classes=("a",) * 10
    )
    (found,) = data.from_tfds("letters", data_dir=tmp_path, splits=("validation",))
    assert_is(found, grey)
    assert data.class_names("letters", data_dir=tmp_path) == ("a",) * 10
    assert data.from_tfds("letters", data_dir=tmp_path, splits=("train",), size=(3, 4))[0].inputs.shape == (5, 3, 4, 1)
    with pytest.raises(ValueError, match="no split 'test', only train, validation"):
        data.from_tfds("letters", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="digits"):
        data.from_tfds("digits", data_dir=tmp_path)
    with pytest.raises(FileNotFoundError, match="labels"):
        data.class_names("digits", data_dir=tmp_path)


def test_classes_without_names_are_counted_by_the_features(tmp_path):
    data_files.write_tfds(tmp_path, {"train": [small_record(label=2)]}, "tfrecord", name="few", classes=())
    path = tmp_path / "few" / "3.0.2" / "features.json"
    features = {"featuresDict": {"features": {"label": {"classLabel": {"numClasses": "2"}}}}}
    path.write_text(json.dumps(features))
    with pytest.raises(ValueError, match="label 2 is none of the 2"):
        data.from_tfds("few", data_dir=tmp_path, splits=("train",))


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=8),
        st.one_of(st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False)),
        max_size=4,
    ),
    st.booleans(),
)
def test_every_example_comes_back(features, packed):
    assert _records.parse_example(data_files.example(features, packed)) == features


@given(st.lists(st.binary(max_size=40), max_size=6))
def test_checksums_are_those_of_the_definition(records):
    found = _records._masked_crc(records)
    assert [int(value).to_bytes(4, "little") for value in found] == [data_files.masked(record) for record in records]


def test_the_check_value_of_crc32c():
    assert data_files.crc32c(b"123456789") == 0xE3069283


def test_the_real_images():
    shared = Path(__file__).parents[2] / "shared" / "data" / "tensorflow_datasets"
    root = os.environ.get("BAAL_JAX_CIFAR10") or (shared if shared.is_dir() else None)
    if root is None:
        pytest.skip("the full CIFAR-10 is not here: set BAAL_JAX_CIFAR10 to its folder")
    train, test = data.cifar10(root)
    assert train.inputs.shape == (50_000, 32, 32, 3)
    assert test.inputs.shape == (10_000, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(train.targets), np.full(10, 5000))
    np.testing.assert_array_equal(np.bincount(test.targets), np.full(10, 1000))


def test_a_missing_extra_says_what_to_install(tmp_path, monkeypatch):
    write(tmp_path, "tfrecord")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r"pip install 'baal_jax\[data\]'"):
        data.cifar10(tmp_path)
    shutil.rmtree(tmp_path)
    assert not Path(tmp_path).exists()
