"""The HTML page: one file that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from baal_jax._util import __version__
from baal_jax.study import plots
from baal_jax.study.report import _content, _statistics
from baal_jax.study.report._styles import Style, style
from baal_jax.study.results import Results


def page(results: Results) -> str:
    """The whole page as text."""
    files = resources.files("baal_jax.study.report")
    template, css, js = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    names = _content.metrics(results)
    labels = {name: plots.axis_label(name) for name in names}
    styles = [style(i) for i in _content.order(results)]
    swatches = {name: _swatch(one) for name, one in zip(results.runs, styles, strict=True)}
    data = _content.page_data(results, labels, [one.svg() for one in styles])
    notices, findings, table = _content.notices(results), *_statistics.render(results, swatches)
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    parts = {
        # The browser itself refuses every request, and every script but the one that is named by its digest.
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        "title": escape(str(results.description.get("name") or "Active learning study")),
        "version": escape(__version__),
        "lead": _lead(results),
        "css": css,
        "js": js,
        "data": embed(data),
        "legend": _legend(results, swatches),
        "findings": findings,
        "notices": f'<ul class="notices">{"".join(f"<li>{escape(text)}</li>" for text in notices)}</ul>'
        if notices
        else "",
        "static_curve": _static_curve(data, labels),
        "curve_caption": _curve_caption(results),
        "statistics": table,
        "queries": _queries(results, data),
        "uncertainty": _uncertainty(data),
        "calibration": _calibration(results, data),
        "configuration": _configuration(results.description),
    }
    text = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    return text.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair in a name is no text


def embed(data: Any) -> str:
    """JSON that may stand inside of a script element, whatever its texts are."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _swatch(one: Style) -> str:
    look = one.svg()
    return (
        '<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">'
        f'<path class="line" d="M1 6H29" stroke-dasharray="{look["dash"]}" style="stroke:{look["colour"]}"/>'
        f'<path class="marker" d="{look["marker"]}" transform="translate(15 6)" style="fill:{look["colour"]}"/></svg>'
    )


def _lead(results: Results) -> str:
    description, runs = results.description, results.runs
    if not runs:
        return "No run of this study is there yet."
    seeds, rounds = len(_content.seeds_of(results)), max(one.num_labelled.shape[1] for one in runs.values())
    first = min(int(one.num_labelled.min()) for one in runs.values())
    last = max(int(one.num_labelled.max()) for one in runs.values())
    pool = description.get("num_pool")
    parts = [
        _count(len(description["strategies"]), "strategy", "strategies"),
        _count(seeds, "seed", "seeds"),
        _count(rounds, "round", "rounds"),
    ]
    text = f"<strong>{' × '.join(parts)}</strong>, from {first:,} to {last:,} labels"
    text += f" of a pool of {pool:,}." if isinstance(pool, int) else "."
    metric, baseline = description.get("metric"), description.get("baseline")
    if metric:
        text += f" Judged by {escape(plots.axis_label(str(metric)))}"
        text += f"; the baseline is <strong>{escape(str(baseline))}</strong>." if baseline else "."
    return text


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def _legend(results: Results, swatches: Mapping[str, str]) -> str:
    return "".join(
        f'<button type="button" aria-pressed="true" data-strategy="{i}" title="{escape(name)}">'
        f"{swatches[name]}<span>{escape(name)}</span></button>"
        for i, name in enumerate(results.runs)
    )


def _curve_caption(results: Results) -> str:
    text = "Means over seeds; the bands are 95 % intervals of Student’s t, for every round by itself."
    if any(len(runs.seeds) < 2 for runs in results.runs.values()):
        text += " One seed has no band."
    if any(runs.stopped.any() for runs in results.runs.values()):
        text += " Where runs have stopped, later rounds speak of those still going."
    return (
        text + ' <span class="needs-script">Point at the chart, or focus it and use the arrow keys, to read it.</span>'
    )


def _static_curve(data: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The main metric for readers without scripts; the script draws over it."""
    curves = next(iter(data["curves"].values()), [])
    there = [(one, look) for one, look in zip(curves, data["strategies"], strict=False) if one is not None]
    pairs = [(x, y) for one, _ in there for x, y in zip(one["x"], one["mean"], strict=True) if y is not None]
    if not pairs:
        return '<p class="missing">There is no metric to draw.</p>'
    (x0, y0), (x1, y1) = np.min(pairs, axis=0), np.max(pairs, axis=0)
    width, height, left, top, bottom = 900, 400, 62, 30, 42
    wide, high = max(x1 - x0, 1e-9), max(y1 - y0, 1e-9)

    def place(x: float, y: float) -> str:
        return (
            f"{left + (x - x0) / wide * (width - left - 12):.1f} {top + (y1 - y) / high * (height - top - bottom):.1f}"
        )

    marks = []
    for y in _ticks(y0, y1):
        at = place(x0, y).split()[1]
        marks.append(f'<line class="grid" x1="{left}" x2="{width - 12}" y1="{at}" y2="{at}"/>')
        marks.append(f'<text x="{left - 8}" y="{at}" dy="4" text-anchor="end">{y:.4g}</text>')
    for x in _ticks(x0, x1):
        at = place(x, y0).split()[0]
        marks.append(f'<text x="{at}" y="{height - bottom + 18}" text-anchor="middle">{x:g}</text>')
    for one, look in there:
        rows = [row for row in zip(one["x"], one["mean"], one["low"], one["high"], strict=True) if row[1] is not None]
        inside = [row for row in rows if row[2] is not None and row[3] is not None]
        if inside:
            clipped = [(x, max(low, y0), min(up, y1)) for x, _, low, up in inside]
            around = [place(x, up) for x, _, up in clipped] + [place(x, low) for x, low, _ in reversed(clipped)]
            marks.append(f'<path class="band" d="M{"L".join(around)}Z" style="fill:{look["colour"]}"/>')
        line = "L".join(place(x, y) for x, y, *_ in rows)
        dash = f'stroke-dasharray="{look["dash"]}" style="stroke:{look["colour"]}"'
        marks.append(f'<path class="line" d="M{line}" {dash}/>')
    label = escape(labels[next(iter(data["curves"]))])
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label} against labels">'
        f'<text class="title" x="{left}" y="14">{label}</text>'
        f'<text class="title" x="{width - 12}" y="{height - 5}" text-anchor="end">labels</text>{"".join(marks)}</svg>'
    )


def _ticks(low: float, high: float) -> np.ndarray:
    """Round numbers between two bounds, four to nine of them."""
    rough = max(high - low, 1e-9) / 8
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(size for size in (1, 2, 2.5, 5, 10) if size * power >= rough) * power
    return np.arange(np.ceil(low / step), np.floor(high / step + 1e-9) + 1) * step


def _queries(results: Results, data: Mapping[str, Any]) -> str:
    content, asked = data["queries"], data["asked"]
    text = '<p class="caption">What each run asked for, in order of picking; the number under an example is its score.'
    text += "".join(f" {escape(sentence)}" for sentence in content["left_out"]) + "</p>"
    if results.pictures is None:
        text += '<p class="missing">The study has no pictures: examples are listed by their ids.</p>'
    text += '<div class="controls needs-script" id="query-controls"></div><div id="rounds" class="needs-script"></div>'
    text += "<h3>Classes asked for</h3>"
    if asked is None:
        regression = data["classes"] is None
        why = "this is regression" if regression else "the study does not keep the classes of its queries"
        return text + f'<p class="missing">There is no histogram of classes: {why}.</p>'
    caption = "Share of all queries by class, over all seeds."
    if asked["pool"]:
        caption += " The upright line is the class’s share of the pool."
    if asked["known"] < 0.9995:
        caption += f" The class of {asked['known'] * 100:.0f} % of the queries is known."
    return text + f'<div class="multiples needs-script" id="asked"></div><p class="caption">{caption}</p>'


def _uncertainty(data: Mapping[str, Any]) -> str:
    text = "<h3>Mean score of the pool</h3>"
    if any(data["scores"]):
        text += '<div class="chart" id="score-chart"></div><p class="caption">What acquisition sees, in the units of '
        text += "each strategy’s own score: compare a strategy with itself over rounds, not with another.</p>"
    else:
        text += '<p class="missing">No strategy of this study scores the pool.</p>'
    text += "<h3>Entropy of the predictions</h3>"
    if not any(data["entropy"]):
        return text + '<p class="missing">The study has no histograms of entropies.</p>'
    return (
        text + '<div class="controls needs-script" id="entropy-round"></div><div class="multiples needs-script" '
        'id="entropy"></div><p class="caption">Over all seeds. A run that has stopped keeps its last histogram.</p>'
    )


def _calibration(results: Results, data: Mapping[str, Any]) -> str:
    if not any(data["reliability"]):
        regression = data["classes"] is None
        why = "this is regression, which has no confidence bins" if regression else "the study has no reliability bins"
        return f'<p class="missing">There is no reliability diagram: {why}.</p>'
    rows = "".join(
        f'<tr><td class="text">{escape(name)}</td>'
        f"<td>{_plain(bins['ece'][0])}</td><td>{_plain(bins['ece'][-1])}</td></tr>"
        for name, bins in zip(results.runs, data["reliability"], strict=True)
        if bins is not None
    )
    head = '<th class="text">Strategy</th><th>ECE, first round</th><th>ECE, last round</th>'
    return (
        '<div class="controls needs-script" id="reliability-round"></div>'
        '<div class="multiples needs-script" id="reliability"></div>'
        '<p class="caption">Accuracy against confidence, seeds pooled; on the dotted diagonal a model knows how sure '
        "it may be. Grey bars: how many predictions are in a bin. ECE is the expected calibration error, the mean over "
        "seeds. A run that has stopped keeps its last round.</p>"
        f'<noscript><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div></noscript>"
    )


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _configuration(description: Mapping[str, Any]) -> str:
    settings = {name: value for name, value in description.items() if name != "environment"}
    text = f'<div class="scroll config">{_nested(settings)}</div>'
    text += "<h3>Versions and hardware</h3>"
    if description.get("environment"):
        text += f'<div class="scroll config">{_nested(description["environment"])}</div>'
    else:
        text += '<p class="missing">The study does not say which versions and hardware it ran with.</p>'
    raw = escape(json.dumps(description, indent=2, ensure_ascii=False))
    return (
        text + '<details><summary>As JSON</summary><button type="button" id="copy" class="needs-script">Copy</button>'
        f'<pre id="raw" tabindex="0">{raw}</pre></details>'
    )


def _nested(value: Any) -> str:
    """Mappings as tables, lists of plain values in a line."""
    if isinstance(value, Mapping):
        if not value:
            return "–"
        rows = (f'<tr><th scope="row">{escape(str(k))}</th><td>{_nested(v)}</td></tr>' for k, v in value.items())
        return f"<table><tbody>{''.join(rows)}</tbody></table>"
    if isinstance(value, list):
        if any(isinstance(item, Mapping | list) for item in value):
            return _nested(dict(enumerate(value)))
        if len(value) > 2 and value == list(range(value[0], value[0] + len(value)) if type(value[0]) is int else ()):
            return f"{value[0]} to {value[-1]}"
        return escape(", ".join(map(_scalar, value))) or "–"
    return escape(_scalar(value))


def _scalar(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
