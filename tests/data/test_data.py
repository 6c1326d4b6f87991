"""Loaders: the same numbers from every format, and an error that names the file for all that can be wrong."""

import copyreg
import hashlib
import io
import itertools
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
from hypothesis import given
from hypothesis import strategies as st

from baal_jax import data
from baal_jax._util import images
from baal_jax.data import _cifar10, _records
from baal_jax.data._archive import read_python_batch
from tests.data import files as data_files
from tests.data.files import assert_is, encoded, refused

TRAIN, TEST = data_files.pictures(15), data_files.pictures(7, seed=1)
GOLDEN = Path(__file__).parents[1] / "golden" / "cifar10_python2_batch"


@pytest.fixture(autouse=True)
def nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "not there"))


def write(root, kind):
    """Where the set is, and what is in its training part."""
    if "record" in kind:
        return data_files.write_tfds(root, {"train": TRAIN, "test": TEST}, kind), TRAIN
    place = data_files.write_archive(root, TRAIN, TEST, kind.split()[0], packed="packed" in kind)
    order = np.concatenate([np.arange(15)[i::5] for i in range(5)])
    return place, (TRAIN[0][order], TRAIN[1][order])


def read(name, root, splits=("train",), **options):
    return data.from_tfds(name, data_dir=root, splits=splits, **options)[0]


def small_record(**changed):
    features = {"image": encoded(TRAIN[0][0]), "label": 3, **changed}
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
    if "record" in kind:  # several shards of the newest version
        data_files.write_tfds(tmp_path, {"train": TEST, "test": TRAIN}, kind, version="3.0.10", shards=3)
        for found, written in zip(data.cifar10(tmp_path), (TEST, TRAIN), strict=True):
            assert_is(found, written)


def test_damage_is_named_and_never_covered_up_by_another_format(tmp_path):
    """A flipped byte, and a file that ends early."""
    write(tmp_path, "binary")
    for kind in ("tfrecord", "array_record"):
        folder, _ = write(tmp_path / kind, kind)
        path = next(folder.glob("cifar10-train.*"))
        whole = path.read_bytes()
        places = {3: "header of record 0", 40: "checksum of record 0", -1: "checksum of record 14"}
        damages = []
        for position, message in places.items() if kind == "tfrecord" else [(len(whole) // 2, "")]:
            damages.append((bytearray(whole), f"{message}.*copy or download"))
            damages[-1][0][position] ^= 0xFF
        for left, message in ((0.7, "ends inside of record 10"), (0.999, "ends inside of record 14")):
            damages.append((whole[: int(len(whole) * left)], message * (kind == "tfrecord")))
        for content, message in damages:
            path.write_bytes(bytes(content))
            refused(f"cifar10-train.{kind}.*{message}", data.cifar10, folder.parents[1])
    shutil.move(tmp_path / "tfrecord" / "cifar10", tmp_path)  # beside a whole archive
    refused("ends inside", data.cifar10, tmp_path)


BROKEN = [
    (b"\xff\xff", r"record 1: cannot be read \(a number has no end"),
    (b"\x08\x01", "record 1: cannot be read"),  # a field of another kind
    (b"\x09" + bytes(8), r"record 1: cannot be read \(wire type 1"),
    (b"\x0a\x05ab", r"record 1: cannot be read \(a field is longer"),
    (small_record(image=None), "record 1: needs an encoded image and an integer label, but holds .'label'.: name"),
    (small_record(label=None), "record 1: .*integer label"),
    (small_record(label=1.5), "record 1: .*integer label"),
    (small_record(image=encoded(TRAIN[0][0])[:200]), "record 1: cannot be read .*: copy or download"),
    (small_record(image=encoded(TRAIN[0][0], "GIF")), r"record 1: cannot be read \(UnidentifiedImageError"),
    (small_record(image=encoded(TRAIN[0][0][:16])), r"record 1: .*\(16, 32, 3\).*\(32, 32, 3\): pass size="),
    (small_record(label=10), "record 1: label 10 is none of the 10 classes"),
    (small_record(label=-2), "record 1: label -2"),
]


def test_a_bad_record_and_what_is_not_cifar10_are_named(tmp_path):
    folder = data_files.write_tfds(tmp_path, {"train": [small_record(), small_record(label=-1)]}, "tfrecord")
    assert read("cifar10", tmp_path).targets.tolist() == [3, -1]  # unknown
    for record, message in BROKEN:
        data_files.write_records(next(folder.glob("*tfrecord*")), [small_record(), record], "tfrecord")
        refused(message, read, "cifar10", tmp_path)
    for name, records, message in (
        ("size", [small_record(image=encoded(TRAIN[0][0][:28, :28]))], r"cifar10, train: .*\(28, 28, 3\)"),
        ("unknown", [small_record(), small_record(label=-1)], "cifar10, train, record 1: label -1 is none of the 10"),
    ):
        data_files.write_tfds(tmp_path / name, {"train": records, "test": records}, "tfrecord")
        refused(message, data.cifar10, tmp_path / name)


def test_what_dataset_info_declares_is_checked(tmp_path):
    folder, _ = write(tmp_path, "tfrecord")
    path = folder / "dataset_info.json"
    info = json.loads(path.read_text())
    for lengths, message in (
        (["14"], "holds 15 records, but dataset_info.json declares 14"),
        (["16"], "holds 15 records, but dataset_info.json declares 16"),
        ([str(10**15)], "is missing or too short, but dataset_info.json declares 1 files, and 1000000000000000 rec"),
        (["15", "3"], "00000-of-00002: is missing or too short, but dataset_info.json declares 2 files"),
        ([], r"dataset_info.json: cannot be read \(it declares no files for split 'train'"),
        ("15", "it declares no files for split 'train'"),
        ([-15], "-15 is no number of things"),
        ([[15]], r"\[15\] is no number of things"),
        (None, r"dataset_info.json: cannot be read \(JSONDecodeError"),
    ):
        info["splits"][0]["shardLengths"] = lengths
        path.write_text("{" if lengths is None else json.dumps(info))
        refused(message, data.cifar10, tmp_path)
    info["splits"][0]["shardLengths"] = ["15"]
    for changed in (["cifar10"], {**info, "name": 3}, {**info, "splits": {"a": 1}}, {**info, "splits": [{"nam": 1}]}):
        path.write_text(json.dumps(changed))
        refused(r"dataset_info.json: cannot be read \((Attribute|Type|Key)Error", data.cifar10, tmp_path)
    path.write_bytes(b'{"name": "\xff"}')
    refused(r"dataset_info.json: cannot be read \(UnicodeDecodeError", data.cifar10, tmp_path)
    path.write_text(json.dumps(info))
    for content in ('{"featuresDict": []}', '{"featuresDict": {"features": {"image": 3}}}', "[" * 10**5, "\ufeff{}"):
        (folder / "features.json").write_text(content, encoding="utf-8")
        refused(r"features.json: cannot be read .*: copy or download", data.cifar10, tmp_path)


def test_what_is_lost_of_the_newest_version_does_not_bring_an_older_one(tmp_path):
    for version in ("3.0.2", "3.0.10"):
        data_files.write_tfds(tmp_path, {"train": TRAIN, "test": TEST}, "tfrecord", version=version)
    (tmp_path / "cifar10" / "3.0.10" / "dataset_info.json").unlink()
    refused("3.0.10/dataset_info.json is missing", data.cifar10, tmp_path)
    assert_is(data.cifar10(tmp_path / "cifar10" / "3.0.2")[0], TRAIN)
    (tmp_path / "cifar10" / "3.0.10" / "dataset_info.json").write_text('{"name": "cifar11"}')
    refused("3.0.10/dataset_info.json: cannot be read .it describes 'cifar11'", data.cifar10, tmp_path)
    (tmp_path / "cifar10" / "3.0.10" / "dataset_info.json").unlink()
    (tmp_path / "cifar10" / "3.0.10").rename(tmp_path / "cifar10" / "3.0.10.incompleteAB12")
    assert_is(data.cifar10(tmp_path)[0], TRAIN)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "dataset_info.json").write_text("{")  # of a set that nobody asked for
    assert_is(data.cifar10(tmp_path)[0], TRAIN)


def test_damaged_archives_are_named(tmp_path):
    folder, _ = write(tmp_path / "open", "binary")
    path = folder / "data_batch_2.bin"
    whole = path.read_bytes()
    for content, message in (
        (whole[:-5], r": the file ends inside of record 2"),
        (b"", r": the file ends inside of record 0"),
        (b"\x0a" + whole[1:], r", record 0: label 10 is none of the 10 classes"),
        (None, " is missing"),
        (whole[:3073], r".*differ in size \(3 in data_batch_1.bin, 1 in data_batch_2.bin"),
    ):
        path.unlink() if content is None else path.write_bytes(content)
        refused(f"(?s){'' if 'differ' in message else 'data_batch_2.bin'}{message}", data.cifar10, folder)
    path.write_bytes(whole)
    (folder / "test_batch.bin").unlink()
    refused("test_batch.bin is missing", data.cifar10, tmp_path / "open")
    for kind in ("binary", "python"):
        archive, _ = write(tmp_path / kind, f"{kind} packed")
        whole = archive.read_bytes()
        damaged = [bytearray(whole) for _ in range(3)]
        for content, place in zip(damaged, (0.3, 0.9, 0.9999), strict=True):  # the last is in the checksum of the whole
            content[int(len(whole) * place)] ^= 0xFF
        for content in (whole[:3000], *damaged):
            archive.write_bytes(content)
            refused(rf"cifar-10-{kind}.tar.gz: cannot be read .*: download it", data.cifar10, tmp_path / kind)
        tarfile.open(archive, "w:gz").close()
        refused(r"tar.gz holds no data_batch_1", data.cifar10, archive)


def test_batches_of_the_original_have_the_sums_of_the_original(tmp_path, monkeypatch):
    monkeypatch.setattr(_cifar10, "_SIZE", 20)
    content = [(data_files.pictures(count)[0], np.arange(count) % 10) for count in (100, 20)]
    for kind in ("python", "binary"):
        folder = data_files.write_archive(tmp_path, *content, kind)
        names = sorted(path.name for path in folder.iterdir())
        if kind == "python":
            refused(r"data_batch_1: its checksum is not that of the original", data.cifar10, folder)
            sums = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in names}
            monkeypatch.setattr(_cifar10, "_SUMS", sums)
        assert_is(data.cifar10(folder)[1], content[1])
        path = folder / names[2]
        whole = bytearray(path.read_bytes())
        whole[3000 if kind == "python" else 0] ^= 1  # a pixel, a label
        path.write_bytes(whole)
        message = r"3: its checksum" if kind == "python" else r"3.bin, .*9, 11, 10, .* images of the classes"
        refused(f"data_batch_{message}", data.cifar10, folder)
        for name in names[:5]:
            (folder / name).write_bytes((folder / names[0]).read_bytes()[: 3073 * 3])
        if kind == "binary":
            refused("3 in data_batch_5.bin, 20 in test_batch.bin", data.cifar10, folder)


def test_a_member_of_an_archive_is_no_larger_than_the_archive(tmp_path):
    archive, _ = write(tmp_path, "binary packed")
    names = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(2**40)}
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("data_batch_1.bin")
        member.pax_headers, member.size = names | {"GNU.sparse.name": "data_batch_1.bin"}, 512
        tar.addfile(member, io.BytesIO(b"1\n0\n0\n".ljust(512, b"\0")))
    refused("binary.tar.gz: cannot be read .data_batch_1.bin is said to be larger", data.cifar10, archive)


class Bomb:
    def __reduce__(self):
        return os.system, ("exit 1",)


def pickled(labels, shape=None, dtype=np.uint8):
    return pickle.dumps({"data": TRAIN[0] if shape is None else np.zeros(shape, dtype), "labels": labels}, 2)


EXTENSION = b"\x80\x02\x82\xf0."
FORBIDDEN = [
    (pickle.dumps(Bomb(), 2), r"(posix|nt).system does not belong"),
    (pickled(Bomb()), r"(posix|nt).system does not belong"),
    (b"cos\nsystem\n.", "os.system does not belong"),
    (b"cnumpy\nsave\n.", "numpy.save does not belong"),
    (b"Pname\n.", "persistent"),
    (EXTENSION, "extension codes do not belong"),
    (b"\x80\x02Nr\x00\x00\x00\x7f.", "it remembers object 2130706432 after 2 instr"),
    (b"\x80\x02cnumpy\ndtype\n}b.", "TypeError"),  # a state for a name
    (pickle.dumps({"data": TRAIN[0]}, 2), "KeyError: 'labels'"),
    (pickled([0.5]), "labels are float64"),
    (pickled([[1], [2]]), "labels are lists of lists"),
    (pickle.dumps({"data": [1], "labels": [1]}, 2), "data is no array"),
    (pickle.dumps([1, 2], 2), "AttributeError"),
]


def test_a_python_archive_runs_no_code_and_holds_arrays_only(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "system", lambda command: pytest.fail("code of the file was run"))
    copyreg.add_extension("os", "system", 0xF0)
    try:
        assert pickle.loads(EXTENSION) is os.system  # known from now on, without a look at its name
        for content, message in FORBIDDEN:
            refused(rf"(?s)here: cannot be read .*{message}.*: download it again", read_python_batch, "here", content)
    finally:
        copyreg.remove_extension("os", "system", 0xF0)
        copyreg.clear_extension_cache()
    folder, _ = write(tmp_path, "python")
    for content, message in (
        (FORBIDDEN[0][0], "cannot be read"),
        (pickled([1], (1, 3072), np.int16), r"images int16\(1, 3072\) and 1 lab"),
        (pickled([1], (2, 3072)), ".*and 1 labels do not fit CIFAR-10"),
        (pickled([10], (1, 3072)), "record 0: label 10"),
    ):
        (folder / "data_batch_1").write_bytes(content)
        refused(f"data_batch_1[:,] {message}", data.cifar10, tmp_path)


def test_a_python_archive_of_any_age_is_read():
    # The golden batch was written by Python 2.7 and NumPy 1.16, as the original was: strings are bytes there.
    found = read_python_batch("here", GOLDEN.read_bytes())
    np.testing.assert_array_equal(found[0], (np.arange(2 * 3072) * 7 % 251).reshape(2, 3072))
    assert found[1].tolist() == [3, 8]
    pixels = np.asfortranarray(np.arange(2 * 3072).reshape(2, 3072).astype(np.uint8))
    for protocol in range(1, 6):
        for labels in ([3, 8], np.array([3, 8], ">i4"), list(np.array([3, 8]))):
            content = {b"data": pixels, "labels": labels, "filenames": ["a.png", "b.png"], "x": None}
            found = read_python_batch("here", pickle.dumps(content, protocol))
            np.testing.assert_array_equal(found[0], pixels)
            assert found[1].tolist() == [3, 8]


def test_tensorflow_is_asked_where_it_is_installed_and_hides_no_archive(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for said in ("tfds.load: tensorflow is not installed", "original binary archive", r"data_dir='.*'\)"):
        refused(rf"(?s){said}", data.cifar10, tmp_path, error=FileNotFoundError)

    def load(name, *, split, data_dir, download):
        calls.append((name, split, data_dir, download))
        pairs = zip(*(TRAIN if split == "train" else TEST), strict=True)
        return [{"image": image, "label": label} for image, label in pairs]

    stand_in = types.SimpleNamespace(load=load, as_numpy=list)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    for found, expected in zip(data.cifar10(tmp_path), (TRAIN, TEST), strict=True):
        assert_is(found, expected)
    assert calls == [("cifar10", split, str(tmp_path), False) for split in ("train", "test")]
    assert read("other", tmp_path, size=(4, 6)).inputs.shape == (15, 4, 6, 3)
    refused(r"other, train: tfds.load cannot read it \(KeyError", read, "other", tmp_path, image="picture")
    stand_in.load = lambda *names, **options: [][0]
    refused(r"tfds\.load: IndexError: list index", data.cifar10, tmp_path, error=FileNotFoundError)
    write(tmp_path, "binary")
    assert_is(data.cifar10(tmp_path)[1], TEST)
    write(tmp_path / "other", "tfrecord")
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    refused(r"pip install 'baal_jax\[data\]'", data.cifar10, tmp_path / "other", error=ImportError)


def test_names_of_classes_and_how_many_there_are(tmp_path):
    names = ("pink primrose", "canterbury bells", "sweet pea", "rose")
    folder = data_files.write_tfds(tmp_path, {"train": [small_record()]}, "tfrecord", name="flowers", classes=names)
    assert data.class_names("flowers", data_dir=tmp_path) == names
    assert read("flowers", tmp_path).targets.tolist() == [3]
    for text, message in (
        ("a\nb\n\nd\n", "line 3, '', is blank"),
        ("a\nb\nc\nd\n\n", "line 5, '', is blank"),
        ("a\nb\na\nd\n", "line 3, 'a', is .*there twice"),
        ("a\nb\nc\0\nd\n", "line 3, .*not text"),
        ("a\nb\nc\n", "it holds 3 names, but features.json declares 4 classes"),
        ("", "line 1, '', is blank"),
        ("a\nb\nc\n\udcff\n", "UnicodeDecodeError"),
    ):
        (folder / "label.labels.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
        for call in (lambda: read("flowers", tmp_path), lambda: data.class_names("flowers", data_dir=tmp_path)):
            refused(rf"label.labels.txt: cannot be read \({message}.*copy or download", call)
    (folder / "label.labels.txt").write_bytes(b"a\r\nb\r\nc c\r\nd")
    assert data.class_names("flowers", data_dir=tmp_path) == ("a", "b", "c c", "d")
    (folder / "label.labels.txt").unlink()
    features = {"featuresDict": {"features": {"label": {"classLabel": {"numClasses": "3"}}}}}
    (folder / "features.json").write_text(json.dumps(features))
    refused("label 3 is none of the 3", read, "flowers", tmp_path)
    folder = data_files.write_tfds(tmp_path, {"train": TRAIN}, "tfrecord", classes=data.CIFAR10_CLASSES[::-1])
    refused("labels.txt.*the classes of CIFAR-10 are airplane, ", read, "cifar10", tmp_path)
    for name in ("flowers", "digits"):
        with pytest.raises(FileNotFoundError, match=rf"{name} was not found.*\n  label.labels.txt under"):
            data.class_names(name, data_dir=tmp_path)


def test_any_image_set_by_its_splits_sizes_and_features(tmp_path):
    grey, other = data_files.pictures(5, shape=(9, 7, 1)), data_files.pictures(3, shape=(9, 7, 1))
    splits = {"train": other, "validation": grey}
    folder = data_files.write_tfds(tmp_path, splits, "tfrecord", name="letters", classes=())
    found = data.from_tfds("letters", data_dir=tmp_path, splits=("validation", "train"))
    assert_is(found[0], grey)
    assert_is(found[1], other)
    shutil.move(folder, tmp_path / "letters" / "bold" / "3.0.2")  # a set in several variants
    shown = read("letters/bold", tmp_path, size=(3, 4)).inputs[0, ..., 0]
    np.testing.assert_array_equal(shown, images.decode(encoded(other[0][0]), (3, 4))[..., 0])
    for options, message in (
        ({"splits": ("test",)}, "no split 'test', only train, validation"),
        ({"image": "picture"}, "record 0: needs an encoded picture and an integer label"),
        ({"label": "weight"}, "record 0: needs an encoded image and an integer weight"),
    ):
        refused(message, read, "letters/bold", tmp_path, **options)
    refused("digits was not found", data.from_tfds, "digits", data_dir=tmp_path, error=FileNotFoundError)


def test_grey_and_coloured_files_become_what_the_features_declare(tmp_path):
    records = [small_record(image=encoded(data_files.pictures(1, shape=(8, 8, c))[0][0], "JPEG")) for c in (1, 3)]
    folder = data_files.write_tfds(tmp_path, {"train": records}, "tfrecord", name="mixed")
    for dimensions in (["-1", "-1", "3"], ["-1", "-1", "1"], ["-1", "-1", "4"], []):
        features = {"features": {"image": {"image": {"shape": {"dimensions": dimensions}}}}}
        (folder / "features.json").write_text(json.dumps({"featuresDict": features}))
        if dimensions:
            assert read("mixed", tmp_path).inputs.shape == (2, 8, 8, int(dimensions[2]))
            continue
        refused("record 1: the image has shape", read, "mixed", tmp_path)


def test_pictures_of_any_mode_are_decoded_to_bytes():
    colour = data_files.pictures(1, shape=(6, 4, 3))[0][0]
    for mode, channels in (("1", 1), ("L", 1), ("LA", 3), ("P", 3), ("RGB", 3), ("RGBA", 3)):
        found = images.decode(encoded(colour, mode=mode), None)
        assert [found.shape, found.dtype] == [(6, 4, channels), np.uint8]
        if mode in ("RGB", "RGBA"):
            np.testing.assert_array_equal(found, colour)
    assert images.decode(encoded(colour), (3, 5), 1).shape == (3, 5, 1)
    for call, message in (
        (lambda: images.decode(encoded(np.full((8, 8), 40_000, np.uint16)), None), "its pixels are I;16, not bytes"),
        (lambda: images.decode(encoded(colour), None, 2), "declares 2 channels, but 1, 3 or 4"),
        (lambda: images.png(colour[..., :2]), r"image has shape \(6, 4, 2\)"),
    ):
        refused(message, call)


@pytest.mark.parametrize(("records", "budget", "sizes"), [(5, 2**26, [5, 5, 5]), (99, 10_000, [3] * 5)])
def test_records_are_read_a_few_at_a_time(records, budget, sizes, tmp_path, monkeypatch):
    monkeypatch.setattr(_records, "_CHUNK_BYTES", budget)
    monkeypatch.setattr(_records, "_CHUNK", records)
    paths = {kind: next(write(tmp_path / kind, kind)[0].glob("cifar10-train.*")) for kind in data._tfds.FORMATS}
    same, read = (list(_records.read(path, kind)) for kind, path in paths.items())
    assert [len(chunk) for chunk in read] == sizes
    assert [*itertools.chain(*same)] == [*itertools.chain(*read)]
    assert max(len(chunk) for chunk in same) == min(records, 15)
    assert_is(data.cifar10(tmp_path / "tfrecord")[0], TRAIN)


VALUES = st.one_of(st.binary(max_size=300), st.integers(-(2**63), 2**63 - 1), st.floats(width=32, allow_nan=False))


@given(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=4), st.booleans())
def test_every_example_comes_back(features, packed):
    assert _records.parse_example(data_files.example(features, packed)) == features


def test_checksums_are_those_of_the_definition():
    records, alone = [b"", b"123456789", b"12345678", b"1234567890" * 4], _records._masked_crc_of_length
    found = _records._masked_crc(records)
    crc = 0xE3069283  # the check value, before it is masked
    assert found[1] == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32
    assert found.tolist() == [alone(record) for record in records]
