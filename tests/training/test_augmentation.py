"""Augmentation: every example on its own, labels untouched, and exactly the changes that are promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.training import augmentation

BUILDERS = {
    "flip": augmentation.flip(),
    "shift": augmentation.shift(2),
    "cutout": augmentation.cutout(3),
    "all": augmentation.compose(augmentation.flip(), augmentation.shift(1), augmentation.cutout(2)),
}


def batch(count=200, height=6, width=5, dtype=np.uint8):
    """Images whose pixels are all different, and none of them 0."""
    pixels = np.arange(1, height * width * 2 + 1).reshape(height, width, 2)
    return baal.Dataset(jnp.asarray(np.stack([pixels] * count).astype(dtype)), jnp.arange(count))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("name", BUILDERS)
def test_shape_dtype_and_targets_stay(name, dtype, key, key_reuse):
    before = batch(dtype=dtype)
    after = jax.jit(BUILDERS[name])(key, before)
    assert after.inputs.shape == before.inputs.shape
    assert after.inputs.dtype == before.inputs.dtype
    np.testing.assert_array_equal(after.targets, before.targets)
    assert len(np.unique(np.asarray(after.inputs).reshape(200, -1), axis=0)) > 1  # every example has draws of its own
    again = BUILDERS[name](jax.random.key(0), before)
    np.testing.assert_array_equal(after.inputs, again.inputs)


def test_flip_mirrors_or_leaves(key):
    before = batch()
    images = np.asarray(before.inputs)
    found = np.asarray(augmentation.flip(0.3)(key, before).inputs)
    mirrored = (found == images[:, :, ::-1]).all(axis=(1, 2, 3))
    same = (found == images).all(axis=(1, 2, 3))
    assert (mirrored ^ same).all()
    assert 0.15 < mirrored.mean() < 0.45
    np.testing.assert_array_equal(augmentation.flip(1.0)(key, before).inputs, images[:, :, ::-1])
    np.testing.assert_array_equal(augmentation.flip(0.0)(key, before).inputs, images)


def test_shift_moves_by_every_offset_and_fills_with_zeros(key):
    before = batch(400)
    image = np.asarray(before.inputs)[0].astype(int)
    padded = np.pad(image, ((2, 2), (2, 2), (0, 0)))
    possible = {padded[i : i + 6, j : j + 5].tobytes(): (i, j) for i in range(5) for j in range(5)}
    found = np.asarray(augmentation.shift(2)(key, before).inputs).astype(int)
    assert {possible[one.tobytes()] for one in found} == set(possible.values())


def test_cutout_blanks_one_square_around_any_pixel(key):
    found = np.asarray(augmentation.cutout(3)(key, batch(400)).inputs)
    holes = found[..., 0] == 0
    np.testing.assert_array_equal(holes, (found == 0).all(axis=-1))
    assert holes.any(axis=(1, 2)).all()
    sizes = set()
    for hole in holes:
        rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
        assert hole.sum() == len(rows) * len(columns)  # a rectangle
        assert rows[-1] - rows[0] == len(rows) - 1
        assert columns[-1] - columns[0] == len(columns) - 1
        sizes.add((len(rows), len(columns)))
    assert sizes == {(i, j) for i in (2, 3) for j in (2, 3)}  # cut off by the edge


def test_compose_gives_each_part_a_key_of_its_own(key):
    seen = []
    part = lambda key, batch: seen.append(jax.random.key_data(key).tolist()) or batch  # noqa: E731
    augmentation.compose(part, part)(key, batch())
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: augmentation.flip(1.5), "probability=1.5"),
        (lambda: augmentation.shift(0), "pixels=0"),
        (lambda: augmentation.cutout(-1), "size=-1"),
        (lambda: augmentation.flip()(jax.random.key(0), baal.Dataset(jnp.ones((2, 4)), None)), r"\(2, 4\)"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
