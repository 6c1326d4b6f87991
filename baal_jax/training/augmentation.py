"""Random changes of a training batch that leave its labels true; compiled into the fit.

Each is a builder of a pure ``(key, batch) -> batch`` on a :class:`~baal_jax.Dataset` whose inputs are images
``[B, H, W, C]`` of any dtype, drawn anew for every example: what ``baal_jax.trainer(augment=…)`` takes. Targets that
are maps, ``[B, H, W]`` or ``[B, H, W, …]``, move with their images. Arguments out of their range raise ``ValueError``.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from baal_jax._util import checks
from baal_jax.typing import Array, Dataset, Key

Augmentation = Callable[[Key, Dataset], Dataset]


def compose(*parts: Augmentation) -> Augmentation:
    """One augmentation after the other, each with a key of its own.

    Args:
        parts: augmentations, the first one first.

    Example:
        >>> augment = augmentation.compose(augmentation.flip(), augmentation.shift(4), augmentation.cutout(8))
        >>> batch = baal.Dataset(jnp.ones((2, 32, 32, 3), jnp.uint8), jnp.array([0, 1]))
        >>> augment(jax.random.key(0), batch).inputs.shape
        (2, 32, 32, 3)
    """

    def augment(key: Key, batch: Dataset) -> Dataset:
        for i, part in enumerate(parts):
            batch = part(jax.random.fold_in(key, i), batch)
        return batch

    return augment


def flip(probability: float = 0.5) -> Augmentation:
    """Mirrors images left to right.

    Args:
        probability: of each example to be mirrored, between 0 and 1.

    Example:
        >>> batch = baal.Dataset(jnp.arange(4.0).reshape(1, 2, 2, 1), jnp.array([0]))
        >>> augmentation.flip(1.0)(jax.random.key(0), batch).inputs[0, :, :, 0].tolist()
        [[1.0, 0.0], [3.0, 2.0]]
    """
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability={probability} must lie between 0 and 1")

    def augment(key: Key, batch: Dataset) -> Dataset:
        mirrored = jax.random.bernoulli(key, jnp.float32(probability), (_images(batch).shape[0],))
        return _moved(batch, lambda image, flipped, fill: jnp.where(flipped, image[:, ::-1], image), mirrored)

    return augment


def shift(pixels: int) -> Augmentation:
    """Moves images by up to ``pixels`` along each axis and fills with zeros: a random crop of the padded image.

    What comes into the map of targets from outside is unknown: −1, or NaN in maps of real values.

    Args:
        pixels: largest shift; every shift from ``-pixels`` to ``pixels`` is as likely.

    Example:
        >>> batch = baal.Dataset(jnp.arange(4.0).reshape(1, 2, 2, 1), jnp.array([0]))
        >>> augmentation.shift(1)(jax.random.key(0), batch).inputs.shape
        (1, 2, 2, 1)
    """
    pixels = checks.positive_int("pixels", pixels)

    def augment(key: Key, batch: Dataset) -> Dataset:
        def crop(image: Array, corner: Array, fill: float) -> Array:
            padded = jnp.pad(image, [(pixels, pixels)] * 2 + [(0, 0)] * (image.ndim - 2), constant_values=fill)
            return jax.lax.dynamic_slice(padded, (*corner, *[0] * (image.ndim - 2)), image.shape)

        return _moved(batch, crop, jax.random.randint(key, (_images(batch).shape[0], 2), 0, 2 * pixels + 1))

    return augment


def cutout(size: int) -> Augmentation:
    """Blanks a square with zeros; its centre may be any pixel, so that part of it may lie outside.

    Args:
        size: side of the square in pixels.

    References:
        DeVries and Taylor, `Improved regularization of convolutional neural networks with cutout
        <https://arxiv.org/abs/1708.04552>`_, 2017.

    Example:
        >>> batch = baal.Dataset(jnp.ones((1, 2, 2, 1)), jnp.array([0]))
        >>> augmentation.cutout(4)(jax.random.key(0), batch).inputs[0, :, :, 0].tolist()
        [[0.0, 0.0], [0.0, 0.0]]
    """
    size = checks.positive_int("size", size)

    def augment(key: Key, batch: Dataset) -> Dataset:
        images = _images(batch)
        examples, height, width, _ = images.shape
        key_rows, key_columns = jax.random.split(key)

        def inside(key: Key, length: int) -> Array:
            start = jax.random.randint(key, (examples, 1), 0, length) - size // 2
            offset = jnp.arange(length, dtype=jnp.int32)[None] - start
            return (offset >= 0) & (offset < size)

        hole = inside(key_rows, height)[:, :, None, None] & inside(key_columns, width)[:, None, :, None]
        return batch._replace(inputs=jnp.where(hole, jnp.zeros((), images.dtype), images))

    return augment


def _moved(batch: Dataset, move: Callable[[Array, Array, float], Array], drawn: Array) -> Dataset:
    """``move(image, drawn, what fills)`` of every image, and of its map of targets where there is one."""
    images, targets = _images(batch), batch.targets
    inputs = jax.vmap(lambda image, one: move(image, one, 0.0))(images, drawn)
    if getattr(targets, "ndim", 0) < 3 or jnp.shape(targets)[1:3] != images.shape[1:3]:
        return batch._replace(inputs=inputs)
    unknown = jnp.nan if jnp.issubdtype(targets.dtype, jnp.floating) else -1
    targets = jnp.asarray(targets) if jnp.issubdtype(targets.dtype, jnp.floating) else targets.astype(jnp.int32)
    return Dataset(inputs, jax.vmap(lambda image, one: move(image, one, unknown))(targets, drawn))


def _images(batch: Dataset) -> Array:
    if getattr(batch.inputs, "ndim", None) != 4:
        shapes = jax.tree.map(jnp.shape, batch.inputs)
        raise ValueError(f"inputs have shape {shapes}, but augmentation needs images [B, H, W, C]")
    return jnp.asarray(batch.inputs)
