"""Tables, digits and arrays of other libraries. Pictures: test_data.py."""

import types

import jax.numpy as jnp
import numpy as np
import pytest

from baal_jax import data
from tests.data import files as data_files
from tests.data.files import assert_is, refused

TRAIN = data_files.pictures(15)


def test_digits_are_split_by_class():
    sklearn = pytest.importorskip("sklearn.datasets").load_digits()
    train, test = data.digits(num_test=180)
    assert [train.inputs.dtype, train.targets.dtype] == [np.float32, np.int32]
    np.testing.assert_allclose(np.bincount(test.targets), np.bincount(sklearn.target) / 1797 * 180, atol=1.01)
    rows = np.concatenate([np.column_stack([part.inputs * 16, part.targets]) for part in (train, test)])
    expected = np.column_stack([sklearn.data, sklearn.target])
    np.testing.assert_array_equal(rows[np.lexsort(rows.T)], expected[np.lexsort(expected.T)])  # each of them once
    pictures = data.digits(num_test=180, image=True)[1]
    np.testing.assert_array_equal(pictures.inputs, test.inputs.reshape(180, 8, 8, 1))
    assert (data.digits(num_test=180, seed=1)[1].inputs != test.inputs).any()
    assert len(data.digits(num_test=1796)[0].targets) == 1
    for wrong in (0, 1797):
        refused(f"num_test={wrong}", data.digits, wrong)


def test_arrays_are_checked_and_cast():
    kinds = np.zeros((3, 2)), np.ones((3, 4), np.uint8), jnp.ones(3, jnp.bfloat16), np.ones(3, bool)
    found = data.from_arrays(kinds, np.array([0, -1, 2], np.int8), num_classes=3)
    assert [leaf.dtype for leaf in found.inputs] == [np.float32, np.uint8, jnp.bfloat16, np.bool_]
    assert [found.targets.dtype, found.targets.tolist()] == [np.int32, [0, -1, 2]]
    assert data.from_arrays(np.zeros((3, 2)), np.zeros(3)).targets.dtype == np.float32
    assert data.from_arrays(np.array([[1.0], [2.0]])).targets is None
    assert data.from_arrays(np.zeros(1), np.array([2**31 - 1])).targets.tolist() == [2**31 - 1]
    for arguments, message in (
        ((np.zeros((3, 2)), np.zeros(4)), r"3 inputs, but targets of shape .4"),
        (({"a": np.zeros(3), "b": np.zeros(4)},), "inputs needs one common leading axis"),
        ((np.zeros((0, 2)),), "empty"),
        ((np.array(["a", "b"]),), "inputs hold <U1, not numbers"),
        ((np.zeros(2), np.array(["a", "b"])), "targets hold <U1, not numbers"),
        ((np.array([1.0, np.inf]),), "inputs are not finite in 1 of"),
        (({"a": np.zeros(2), "b": np.array([1, np.nan])},), "inputs are not finite in 1 of"),
        ((jnp.array([1, jnp.nan], jnp.bfloat16),), "inputs are not finite in 1 of"),
        ((np.zeros(2), np.array([0, -2])), "hold -2 in 1 of 2 rows"),
        ((np.zeros(2), np.array([0, 2**31])), "hold 2147483648 in 1 of 2 rows"),
        ((np.zeros(2), np.array([[0, 1], [0, 3]])), "hold 3 in 1 of 2 rows .1.: outside of the classes 0 to 2"),
    ):
        refused(message, data.from_arrays, *arguments, num_classes=3 if message.endswith("0 to 2") else None)


class Split:
    """What is used of a Hugging Face data set."""

    def __init__(self, **columns):
        self.columns, self.column_names = columns, list(columns)

    def with_format(self, kind, columns):
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
    assert_is(grey, (TRAIN[0][..., :1], TRAIN[1]))
    numbers = data.from_huggingface(Split(image=np.ones((6, 2, 3)), label=TRAIN[1][:6]))
    assert numbers.inputs.shape == (6, 2, 3)  # not an image
    assert data.from_huggingface(Split(image=TRAIN[0]), label=None).targets is None
    named, few = (Split(image=TRAIN[0], label=np.full(15, 3)) for _ in range(2))
    named.features, few.features = ({"label": types.SimpleNamespace(num_classes=number)} for number in (4, 3))
    assert data.from_huggingface(named).targets.tolist() == [3] * 15
    pictures, ragged = [TRAIN[0][0]] * 6, [TRAIN[0][1][:8]]
    for split, message in (
        (few, "outside of the classes 0 to 2"),
        (Split(image=TRAIN[0][:0], label=[]), "no example"),
        (Split(image=TRAIN[0], fine_label=TRAIN[1]), "'label' does not exist: choose among image, fine_label"),
        (Split(image=pictures + ragged, label=[0] * 7), r"row 6 of column 'image' has shape \(8, 32, 3\), but those"),
        (Split(image=pictures[:5] + ragged * 5, label=[0] * 10), "rows of column 'image' differ in shape"),
    ):
        with pytest.raises(ValueError, match=message):
            data.from_huggingface(split)
