"""What the statistics say, as a sentence a strategy and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from baal_jax.study import plots, statistics
from baal_jax.study.report import _content
from baal_jax.study.results import Results
from baal_jax.study.statistics import Row, Summary

_VERDICTS = {
    "better": ("better", "Better than {}"),
    "worse": ("worse", "Worse than {}"),
    "no difference shown": ("open", "No difference from {} is shown"),
    "too few seeds to show a difference": ("open", "Too few seeds to show a difference from {}"),
}


def render(results: Results, swatches: Mapping[str, str]) -> tuple[str, str]:
    """Findings and tables as HTML."""
    if not results.runs:
        missing = '<p class="missing">No run of this study is there yet.</p>'
        return missing, missing
    names = _content.metrics(results)
    # What cannot be compared, because the baseline or a metric is missing so far, is said instead.
    found: dict[str, Summary | str] = {}
    for name in names or [str(results.description.get("metric"))]:
        try:
            found[name] = statistics.summary(results, name)
        except ValueError as error:
            found[name] = f'<p class="missing">There is no comparison by this metric: {escape(str(error))}.</p>'
    main, *others = found
    first = found[main]
    findings = first if isinstance(first, str) else _findings(first, swatches)
    text = _table(first, swatches)
    for name in others:
        label = escape(plots.axis_label(name))
        text += f"<details><summary>By {label}</summary>{_table(found[name], swatches)}</details>"
    return findings, text


def _findings(found: Summary, swatches: Mapping[str, str]) -> str:
    metric = escape(plots.axis_label(found.metric))
    lines = []
    for row in found.rows:
        name = escape(row.strategy)
        if row.verdict is None:
            said = (
                f'<span class="open">The baseline</span>: <span class="why">{metric} {_number(row.area)} over the curve'
            )
            said += f", {_number(row.final)} at the end.</span>"
        else:
            kind, text = _VERDICTS[row.verdict.verdict]
            said = f'<span class="{kind}">{text.format(escape(found.baseline))}</span>: '
            said += f'<span class="why">{_why(found, row)}</span>'
        lines.append(f'<li><div class="name">{swatches[row.strategy]}{name}</div><div>{said}</div></li>')
    return f'<ul class="findings">{"".join(lines)}</ul>'


def _why(found: Summary, row: Row) -> str:
    assert row.verdict is not None
    one = row.verdict.comparison
    if not one.num_seeds:
        return "no seed has been run with both."
    metric = escape(plots.axis_label(found.metric))
    side = "higher" if one.difference > 0 else "lower" if one.difference < 0 else "different"
    text = f"over the curve {metric} is {_number(abs(one.difference))} {side}"
    if math.isfinite(one.low) and math.isfinite(one.high):
        text += f" ({found.confidence * 100:g} % interval {_signed(one.low)} to {_signed(one.high)}, {_p(row)})"
    else:
        text += f" ({_p(row)})"
    saved = row.saved
    if saved is not None and math.isfinite(saved.ratio) and saved.ratio > 0:
        text += f"; it took {_share(saved.ratio)} of the baseline’s labels to reach {_number(found.target)}"
    return text + "."


def _p(row: Row) -> str:
    assert row.verdict is not None
    value = row.verdict.adjusted_p_value
    return "p unknown" if math.isnan(value) else "p &lt; 0.0001" if value < 1e-4 else f"p = {value:.2g}"


def _table(found: Summary | str, swatches: Mapping[str, str]) -> str:
    if isinstance(found, str):
        return found
    heads = [
        "Strategy",
        "Over the curve",
        "Last value",
        f"Difference from {found.baseline}",
        "p, corrected",
        "Verdict",
        f"Labels to {_number(found.target)}",
        "Share of the baseline’s labels",
        "Mean rank",
    ]
    texts = {0, 5}
    head = "".join(f'<th scope="col"{_text(i in texts)}>{escape(name)}</th>' for i, name in enumerate(heads))
    body = ""
    for row in found.rows:
        cells = _cells(row)
        body += f'<tr><th scope="row">{swatches[row.strategy]}{escape(row.strategy)}</th>'
        body += "".join(f"<td{_text(i in texts)}>{cell}</td>" for i, cell in enumerate(cells, start=1)) + "</tr>"
    notes = "".join(f'<p class="caption">{escape(note)}</p>' for note in statistics.notes(found))
    label = escape(f"Statistics by {plots.axis_label(found.metric)}")
    return (
        f'<div class="scroll" role="region" aria-label="{label}" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{notes}"
    )


def _text(yes: bool) -> str:
    return ' class="text"' if yes else ""


def _cells(row: Row) -> list[str]:
    cells = [
        f"{_number(row.area)} <small>± {_number(row.area_error)}</small>",
        f"{_number(row.final)} <small>± {_number(row.final_error)}</small>",
    ]
    if row.verdict is None:
        cells += ["", "", "baseline"]
    else:
        one = row.verdict.comparison
        kind = _VERDICTS[row.verdict.verdict][0]
        cells += [
            f"{_signed(one.difference)} <small>{_signed(one.low)} to {_signed(one.high)}</small>",
            _p(row).removeprefix("p = ").removeprefix("p "),
            f'<span class="{kind}">{escape(row.verdict.verdict)}</span>',
        ]
    cells.append("not reached" if math.isinf(row.labels) else "–" if math.isnan(row.labels) else f"{row.labels:,.0f}")
    saved = row.saved
    if saved is None or math.isinf(saved.baseline_median):
        cells.append("" if saved is None else "–")
    else:
        cells.append(f"{_share(saved.ratio)} <small>{_share(saved.low)} to {_share(saved.high)}</small>")
    return [*cells, "–" if math.isnan(row.mean_rank) else f"{row.mean_rank:.2f}"]


def _share(value: float) -> str:
    return "–" if math.isnan(value) else "∞" if math.isinf(value) else f"{value * 100:.0f} %"


def _signed(value: float) -> str:
    return ("+" if value > 0 else "") + _number(value, 3)


def _number(value: float, small: int = 4) -> str:
    """Three decimals, ``small`` of what is below 0.01, two digits of what is below 0.001; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    size = abs(value)
    text = f"{value:.2g}" if 0 < size < 1e-3 else f"{value:.{small}f}" if 0 < size < 0.01 else f"{value:,.3f}"
    return (text if size < 1e5 else f"{value:.3g}").replace("-", "−")
