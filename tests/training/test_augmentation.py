"""Augmentation: every example on its own, labels untouched, and exactly the changes that are promised."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import baal_jax as baal
from baal_jax.training import augmentation

# Images whose pixels are all different, and none of them 0.
IMAGE = np.arange(1, 61).reshape(6, 5, 2)
TARGETS = np.arange(400)


def changed(augment, dtype=np.uint8):
    """Every image after an augmentation, which leaves type and targets as they are."""
    after = jax.jit(augment)(jax.random.key(0), baal.Dataset(np.stack([IMAGE] * 400).astype(dtype), TARGETS))
    assert (after.inputs.shape, after.inputs.dtype) == ((400, 6, 5, 2), dtype)
    np.testing.assert_array_equal(after.targets, TARGETS)
    return np.asarray(after.inputs).astype(int)


def test_flip_mirrors_or_leaves(key_reuse):
    images = changed(augmentation.flip(0.3), np.float32)
    mirrored = (images == IMAGE[:, ::-1]).all(axis=(1, 2, 3))
    assert (mirrored ^ (images == IMAGE).all(axis=(1, 2, 3))).all()
    assert 0.22 < mirrored.mean() < 0.38
    np.testing.assert_array_equal(changed(augmentation.flip(1.0)), np.stack([IMAGE[:, ::-1]] * 400))
    np.testing.assert_array_equal(changed(augmentation.flip(0.0)), np.stack([IMAGE] * 400))


def test_shift_moves_by_every_offset_and_fills_with_zeros(key_reuse):
    padded = np.pad(IMAGE, ((2, 2), (2, 2), (0, 0)))
    possible = {padded[i : i + 6, j : j + 5].tobytes() for i in range(5) for j in range(5)}
    assert {image.tobytes() for image in changed(augmentation.shift(2))} == possible


def test_cutout_blanks_one_square_around_any_pixel(key_reuse):
    images = changed(augmentation.cutout(3), np.float32)
    holes = images[..., 0] == 0
    np.testing.assert_array_equal(images, np.where(holes[..., None], 0, IMAGE))
    possible = np.zeros((6, 5, 6, 5), bool)
    for row, column in np.ndindex(6, 5):
        possible[row, column, max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = True  # cut off by the edge
    assert {hole.tobytes() for hole in holes} == {hole.tobytes() for hole in possible.reshape(30, 6, 5)}


def test_compose_gives_each_part_a_key_of_its_own_and_the_batch_of_the_part_before(key):
    def part(key, batch):
        return batch._replace(inputs=batch.inputs * 2 + jax.random.uniform(key))

    batch = baal.Dataset(np.ones(3, np.float32), TARGETS)
    noise = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(2)]
    found = augmentation.compose(part, part)(key, batch).inputs
    np.testing.assert_allclose(found, np.full(3, 4 + 2 * noise[0] + noise[1]), rtol=1e-6)
    assert noise[0] != noise[1]


def test_bad_input_is_named():
    for make, message in (
        (lambda: augmentation.flip(1.5), "probability=1.5"),
        (lambda: augmentation.flip(-0.1), "probability=-0.1"),
        (lambda: augmentation.shift(0), "pixels=0"),
        (lambda: augmentation.cutout(-1), "size=-1"),
        (lambda: augmentation.flip()(jax.random.key(0), baal.Dataset(jnp.ones((2, 4)), None)), r"\(2, 4\)"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
