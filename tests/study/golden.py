"""Values as they were when they were looked at: ``python -m`` of a test module with ``CASES`` writes its file anew."""

import json
from pathlib import Path

import jax
import numpy as np

FOLDER = Path(__file__).parents[1] / "golden"


def plain(value):
    """What JSON can hold, with numbers of six digits."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, tuple | list) or getattr(value, "ndim", 0):
        return [plain(part) for part in value]
    if isinstance(value, str | bool | None):
        return value
    return float(f"{value:.6g}") if np.isfinite(value) else str(float(value))


def write(file, cases):
    lines = [f"{json.dumps(name)}: {json.dumps(plain(make()), ensure_ascii=False)}" for name, make in cases.items()]
    (FOLDER / file).write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")


def agree(found, expected):
    if isinstance(expected, float | int):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    else:
        assert found == expected


def is_as_it_was(file, name, value):
    expected = json.loads((FOLDER / file).read_text("utf-8"))[name]
    jax.tree.map(agree, plain(value), expected, is_leaf=lambda leaf: leaf is None)
