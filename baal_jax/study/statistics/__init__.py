"""Statistics of a study: pure functions of arrays, a row for every seed.

Seeds are paired: seed 3 of one strategy starts from the labels of seed 3 of another. Everything is NumPy in float64,
and what resamples is the same in every call with the same ``seed``.

Refused with a ``ValueError`` are shapes that do not fit, a baseline or a metric that is not there or has no direction
that is known, numbers of labels that decrease or are negative, a target that is NaN, confidences and p-values that are
not between 0 and 1, fewer than 99 resamples, and fewer than two strategies to rank.
"""

from baal_jax.study.statistics._comparisons import (
    Comparison,
    Ranking,
    Saved,
    Verdict,
    compare,
    compare_all,
    holm,
    labels_saved,
    rank,
)
from baal_jax.study.statistics._curves import (
    Curve,
    area,
    is_higher_better,
    labels_to_target,
    mean_curve,
    shared_range,
    standard_error,
)
from baal_jax.study.statistics._summary import Row, Summary, Table, markdown, number, summary, table, text

__all__ = ["Comparison", "Curve", "Ranking", "Row", "Saved", "Summary", "Table", "Verdict", "area", "compare",
           "compare_all", "holm", "is_higher_better", "labels_saved", "labels_to_target", "markdown", "mean_curve",
           "number", "rank", "shared_range", "standard_error", "summary", "table", "text"]  # fmt: skip
