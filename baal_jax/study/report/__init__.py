"""Report of a study: one HTML page to look at and to send around, and the same figures for papers.

The page loads nothing from anywhere and shows learning curves with bands that can be switched, the statistics, what was
queried round by round, uncertainty, calibration, and the exact configuration. What a study does not have is said.

Besides the fields that :mod:`baal_jax.study.results` names, two are shown where a study has them:
``diagnostics["query_targets"]`` ``[n, R, Q]``, the targets of what was queried, and
``description["class_counts"]``, how many examples of each class the pool has.
"""

import time
from pathlib import Path

from baal_jax._util import files
from baal_jax.study.report._figures import figures
from baal_jax.study.report._page import page
from baal_jax.study.results import Results, read

__all__ = ["figures", "write"]


def write(study: str | Path | Results, path: str | Path | None = None) -> Path:
    """Write a study as one HTML page that needs no other file, no network and no matplotlib.

    An unfinished study is shown as far as it has come. Statistics are those of :mod:`baal_jax.study.statistics`.

    Args:
        study: the folder of a study, finished or not, or :class:`~baal_jax.study.results.Results`.
        path: where to; folders are made. By default ``report.html`` in the folder of the study.

    Returns:
        The path. A reader never sees half of the page: it is written under another name and renamed.

    Raises:
        ValueError: there is no study in the folder, or results are given without a path.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     study = {"name": "begun a minute ago", "strategies": ["random", "bald"]}
        ...     path = report.write(results.Results(study, {}, None), f"{folder}/report.html")
        ...     "nothing is there of random, bald" in path.read_text()
        True
    """
    if isinstance(study, Results) and path is None:
        raise ValueError("path=None, but results have no folder to write to: pass path")
    where = Path(str(study)) / "report.html" if path is None else Path(path)
    if path is not None:
        where.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(study, Results):
        return files.write_text(where, page(study))
    results = read(study)
    times = sorted(cell.stat().st_mtime for cell in Path(study).glob("cells/*.npz"))
    clock = [time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) for at in (times[:1] + times[-1:])]
    made = f"Computed with {_made_with(results)}" + (f", cells from {clock[0]} to {clock[-1]}." if clock else ".")
    return files.write_text(where, page(results, made))


def _made_with(results: Results) -> str:
    versions = results.description.get("environment") or {}
    known = [f"{name} {versions[name]}" for name in ("baal_jax", "jax") if name in versions]
    return ", ".join([*known, *([str(versions["device"])] if "device" in versions else [])]) or "versions unknown"
