"""Versions and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform

from baal_jax._util import __version__


def environment() -> dict[str, str]:
    """Versions and hardware that numbers were made with.

    Returns:
        Name → version, with ``python``, ``platform`` and ``device`` among them.
    """
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "numpy")
    versions = {"baal_jax": __version__, **{name: importlib.metadata.version(name) for name in packages}}
    device = jax.devices()[0]
    return {
        **versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": f"{device.device_kind} ({device.platform}), {os.cpu_count()} CPU cores",
    }
