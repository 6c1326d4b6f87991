"""What a study shows, and what it does not: pure functions of arrays, a row for every seed.

Learning curves with bands, areas under them, labels to a target, paired comparisons with a baseline, ranks. Seeds are
paired: seed 3 of one strategy starts from the labels of seed 3 of another. Everything is NumPy in float64, and what
resamples is the same in every call with the same ``seed``.
"""

from baal_jax.study.statistics._comparisons import Comparison, Saved, Verdict, compare, compare_all, holm, labels_saved
from baal_jax.study.statistics._curves import Band, area, band, is_higher_better, labels_to_target, shared_range
from baal_jax.study.statistics._ranking import Ranking, rank
from baal_jax.study.statistics._summary import Row, Summary, markdown, notes, summary

__all__ = [
    "Band",
    "Comparison",
    "Ranking",
    "Row",
    "Saved",
    "Summary",
    "Verdict",
    "area",
    "band",
    "compare",
    "compare_all",
    "holm",
    "is_higher_better",
    "labels_saved",
    "labels_to_target",
    "markdown",
    "notes",
    "rank",
    "shared_range",
    "summary",
]
