"""Loaders of tables, arrays and Hugging Face data sets, and what they say of bad ones."""

import types

import numpy as np
import pytest

from baal_jax import data
from tests.data import files as data_files
from tests.data.files import assert_is

TRAIN = data_files.pictures(12)


def test_uci_is_standardised_by_the_training_part(tmp_path):
    rng = np.random.default_rng(0)
    rows = rng.normal(3.0, 2.0, (50, 4))
    rows[:, 1] = 7.0  # says nothing
    path = tmp_path / "set.txt"
    np.savetxt(path, rows)
    found = data.uci(path, num_test=10, seed=1)
    assert found.train.inputs.shape == (40, 3)
    assert found.test.targets.shape == (10,)
    assert found.train.inputs.dtype == found.train.targets.dtype == np.float32
    np.testing.assert_allclose(found.train.inputs.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(found.train.inputs.std(axis=0), [1, 0, 1], atol=1e-6)
    assert abs(found.test.inputs[:, 0].mean()) > 1e-3  # its own mean was not used
    both = np.concatenate([found.train.targets, found.test.targets]) * found.target_std + found.target_mean
    np.testing.assert_allclose(np.sort(both), np.sort(rows[:, 3]), rtol=1e-5)
    assert data.uci(path).test.targets.shape == (5,)
    assert (data.uci(path, seed=2).test.targets != data.uci(path, seed=3).test.targets).any()
    path.write_text("a,b,y\n" + "\n".join(",".join(map(str, row)) for row in rows[:, :3]))
    assert data.uci(path).train.inputs.shape == (45, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1 2\n3 4\n5 x\n6 7", "line 3, column 2: 'x'"),
        ("1 2\n3 4 5\n6 7", "line 2: 3 columns, but 2"),
        ("1 2\n\nnan 4\n5 6", "line 3, column 1: 'nan'"),
        ("1\n2\n3", "one column"),
        ("1 2\n3 4", "holds 2 examples"),
        ("1 2\n3 4\n5 6\n", None),
    ],
)
def test_bad_text_is_named_by_line(text, message, tmp_path):
    path = tmp_path / "set.txt"
    path.write_text(text)
    if message is None:
        with pytest.raises(ValueError, match="num_test=2"):
            data.uci(path, num_test=2)
        return
    with pytest.raises(ValueError, match=message):
        data.uci(path)


def test_arrays_are_checked_and_cast():
    found = data.from_arrays({"a": np.zeros((3, 2)), "b": np.ones((3, 4), np.uint8)}, np.array([0, -1, 2]))
    assert found.inputs["a"].dtype == np.float32
    assert found.inputs["b"].dtype == np.uint8
    assert found.targets.dtype == np.int32
    assert data.from_arrays(np.zeros((3, 2)), np.zeros(3)).targets.dtype == np.float32
    assert data.from_arrays(np.array([[1.0], [2.0]])).targets is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 2)), np.zeros(4)), "targets have shape"),
        (((np.zeros(3), np.zeros(4)),), "inputs needs one common leading axis"),
        ((np.zeros((0, 2)),), "no example"),
        ((np.array(["a", "b"]),), "not numbers"),
        ((np.array([1.0, np.inf]),), "inputs hold non-finite values"),
        ((np.zeros(2), np.array([0, -2])), r"targets\[1\] is -2"),
        ((np.zeros(2), np.array([0, 2**40])), r"targets\[1\] is 1099511627776"),
    ],
)
def test_bad_arrays_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.from_arrays(*arguments)


def test_classes_are_held_to_their_number():
    with pytest.raises(ValueError, match=r"targets\[0\] is 3, outside of the classes 0 to 2"):
        data.from_arrays(np.zeros(1), np.array([3]), num_classes=3)


class Split:
    """What is used of a Hugging Face data set."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def with_format(self, kind, columns):
        assert kind == "numpy"
        return Split(**{name: self.columns[name] for name in columns})

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, part):
        return {name: values[part] for name, values in self.columns.items()}


def test_hugging_face_splits_become_arrays(monkeypatch):
    monkeypatch.setattr("baal_jax.data._adapters._ROWS", 5)
    assert_is(data.from_huggingface(Split(image=TRAIN[0], label=TRAIN[1], other=[None] * 12)), TRAIN)
    assert_is(data.from_huggingface(Split(image=list(TRAIN[0]), label=list(TRAIN[1]))), TRAIN)
    grey = data.from_huggingface(Split(pixels=TRAIN[0][..., 0], y=TRAIN[1]), inputs="pixels", label="y")
    assert grey.inputs.shape == (12, 32, 32, 1)
    assert data.from_huggingface(Split(image=TRAIN[0]), label=None).targets is None
    named = Split(image=TRAIN[0], label=TRAIN[1])
    named.features = {"label": types.SimpleNamespace(num_classes=3)}
    with pytest.raises(ValueError, match="outside of the classes 0 to 2"):
        data.from_huggingface(named)
    with pytest.raises(ValueError, match="no example"):
        data.from_huggingface(Split(image=TRAIN[0][:0], label=TRAIN[1][:0]))
    with pytest.raises(ValueError, match="'label' does not exist: choose among image, fine_label"):
        data.from_huggingface(Split(image=TRAIN[0], fine_label=TRAIN[1]))
    ragged = [TRAIN[0][0], TRAIN[0][1][:8]]
    with pytest.raises(ValueError, match="row 1 of column 'image'"):
        data.from_huggingface(Split(image=ragged, label=[0, 1]))
    with pytest.raises(ValueError, match="differ in shape"):
        data.from_huggingface(Split(image=[TRAIN[0][0]] * 5 + [TRAIN[0][0][:8]] * 5, label=[0] * 10))


def test_the_real_hugging_face_library():
    library = pytest.importorskip("datasets", reason="the Hugging Face library is not installed")
    split = library.Dataset.from_dict({"image": TRAIN[0].tolist(), "label": TRAIN[1].tolist()})
    found = data.from_huggingface(split)
    np.testing.assert_array_equal(found.inputs, TRAIN[0])
