"""Numbers that Baal 2.0 computes, and the inputs they belong to, in Baal's layout ``[N, C, …, S]``."""

import json
from pathlib import Path

import numpy as np
from scipy.special import softmax

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "baal.json").read_text())


def to_package_layout(predictions):
    """``[S, N, …, C]``."""
    return np.moveaxis(predictions, [-1, 1], [0, -1])


_n, _c, _k = np.ogrid[:5, :3, :4]
LOGITS = np.sin(1 + _n + 2 * _c + 3 * _k) * (1 + 0.5 * _n)
PROBS = softmax(LOGITS, axis=1)

_n, _c, _k = np.ogrid[:3, :3, :4]
TARGETS = softmax(2 * np.sin(1 + _n + 2 * _c + 3 * _k)[::-1], axis=1)

_n, _c, _h, _w, _k = np.ogrid[:3, :3, :2, :2, :4]
MAPS = softmax(np.sin(1 + _n + 2 * _c + 3 * _h + 4 * _w + 5 * _k) * (1 + _n), axis=1)
