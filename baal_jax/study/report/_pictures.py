"""Many small pictures as one PNG."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from baal_jax._util import images as images_util

_LARGEST = 48  # pixels of a thumbnail's longer side
_BUDGET = 2_000_000  # bytes of all thumbnails together, before compression


def bytes_of(images: Any) -> np.ndarray:
    """Images as bytes: integers are taken as 0 to 255, floats as 0 to 1; what is outside is clipped, NaN is black."""
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool or not np.issubdtype(images.dtype, np.integer):
        images = np.round(np.nan_to_num(images.astype(np.float64)) * 255)
    return np.clip(images, 0, 255).astype(np.uint8)


def small(images: np.ndarray) -> np.ndarray:
    """Thumbnails ``uint8[m, h, w, c]``: means of blocks, so that no side is above 48 pixels."""
    _, height, width, channels = images.shape
    factor = -(-max(height, width) // _LARGEST)
    if factor == 1:
        return images
    height, width = max(height // factor, 1), max(width // factor, 1)
    cut = images[:, : height * factor, : width * factor]
    blocks = cut.reshape(len(images), height, -1, width, cut.shape[2] // width, channels)
    return np.round(blocks.mean(axis=(2, 4))).astype(np.uint8)


def how_many(height: int, width: int, channels: int) -> int:
    """Thumbnails that the page can carry."""
    return max(_BUDGET // (height * width * channels), 1)


def sheet(images: np.ndarray) -> tuple[str, int]:
    """All thumbnails as one data URI, row by row, and the number of columns."""
    count, height, width, channels = images.shape
    columns = max(int(np.ceil(np.sqrt(count * height / width))), 1)
    rows = -(-count // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:count] = images
    whole = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    data = images_util.png(np.ascontiguousarray(whole).reshape(rows * height, columns * width, channels))
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii"), columns
