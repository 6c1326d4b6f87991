"""Pictures as bytes: PNG written with the standard library, these and others read by Pillow."""

import importlib
import io
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from baal_jax._util import checks


def png(image: np.ndarray) -> bytes:
    """A PNG of ``uint8[H, W, 1 or 3]``."""
    height, width, channels = image.shape
    if channels not in (1, 3):
        raise ValueError(f"image has shape {image.shape}, but [H, W, 1] (grey) or [H, W, 3] (colour) is needed")

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    # Differences between neighbours compress better where pictures are photographs, the bytes themselves elsewhere.
    differences = image.copy()
    differences[:, 1:] -= image[:, :-1]
    flat = ((kind, rows.reshape(height, -1)) for kind, rows in ((0, image), (1, differences)))
    lines = (np.insert(rows, 0, kind, axis=1).tobytes() for kind, rows in flat)
    content = min((zlib.compress(part, 9) for part in lines), key=len)
    header = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def as_bytes(shown: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Bytes as they are; other numbers stretched to what a byte holds, from the least to the largest of ``of``."""
    if shown.dtype == np.uint8:
        return shown
    low, high = float(np.min(of)), float(np.max(of))
    return np.round((shown - low) / max(high - low, 1e-12) * 255).astype(np.uint8)


def are_pictures(shape: Sequence[int]) -> bool:
    """Whether an array of this shape can be shown as images."""
    return len(shape) == 4 and shape[-1] in (1, 3)


def decode(
    encoded: bytes, size: tuple[int, int] | None, channels: int | None = None, *, photo: bool = False
) -> np.ndarray:
    """``uint8[H, W, channels]`` from PNG or JPEG; without ``channels`` 1 for grey pictures and 3 for others.

    With ``photo`` from what else people have, too, and turned as EXIF says, as every viewer shows it.
    """
    image_module = checks.optional_import("PIL.Image", "data")
    formats = ("PNG", "JPEG", *(("WEBP", "BMP", "TIFF", "GIF") if photo else ()))
    image_module.open(io.BytesIO(encoded), formats=formats).verify()  # checksums, which are not looked at else
    with image_module.open(io.BytesIO(encoded), formats=formats) as image:
        if photo:
            image = importlib.import_module("PIL.ImageOps").exif_transpose(image)
        if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
            raise ValueError(f"its pixels are {image.mode}, not bytes")
        mode = {None: "L" if image.mode in ("1", "L") else "RGB", 1: "L", 3: "RGB", 4: "RGBA"}.get(channels)
        if mode is None:
            raise ValueError(f"features.json declares {channels} channels, but 1, 3 or 4 can be read")
        image = image.convert(mode)
        if size is not None:
            image = image.resize((size[1], size[0]))
        pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels
