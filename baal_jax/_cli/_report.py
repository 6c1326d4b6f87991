"""``python -m baal_jax report RESULTS``: a study as one HTML page, and as figures for papers."""

import dataclasses
from pathlib import Path

from baal_jax.study import report, results


@dataclasses.dataclass(frozen=True)
class Report:
    """Writes a study as one self-contained HTML page.

    The page needs no network and no other file: open it in a browser, or mail it. It holds learning curves, statistics,
    what was queried, uncertainty, calibration and the configuration, of a study that still runs as far as it has come.

        python -m baal_jax report runs/digits
        python -m baal_jax report runs/digits --out digits.html --figures paper/figures

    Attributes:
        results: Folder of the study: the one that holds study.json.
        out: The page to write. By default report.html in the folder of the study.
        figures: Folder for the same figures as files, for papers. Needs matplotlib: pip install 'baal_jax[plot]'.
        formats: Formats of those files: png, pdf, svg and others that matplotlib writes.
    """

    results: Path
    out: Path | None = None
    figures: Path | None = None
    formats: tuple[str, ...] = ("png", "pdf")


def write(wanted: Report) -> None:
    """Writes the page and the figures that a command line asks for, and prints their paths."""
    study = results.read(wanted.results)
    print(report.write(study, wanted.out or wanted.results / "report.html"))
    if wanted.figures is not None:
        print(*report.figures(study, wanted.figures, formats=wanted.formats), sep="\n")
