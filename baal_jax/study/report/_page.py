"""The HTML page: values for the placeholders of ``page.html``, and the data of its script."""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

import numpy as np

from baal_jax._util import __version__
from baal_jax.study import plots, statistics
from baal_jax.study.report import _content
from baal_jax.study.results import Results, table

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 900, 400, 62, 12, 30, 42  # of the chart in page.html
_VERDICT = 5  # its column
_ELSEWHERE = ("environment", "programs", "command")  # what is no setting
_SWATCH = (
    '<svg class="swatch" viewBox="0 0 30 12" aria-hidden="true">'
    '<path class="line" d="M1 6H29" stroke-dasharray="{dash}" style="stroke:{colour}"/>'
    '<path class="marker" d="{marker}" transform="translate(15 6)" style="fill:{colour}"/></svg>'
)


def page(results: Results, made: str | None = None) -> str:
    """The whole page as text; ``made`` says when the study was computed."""
    files = resources.files("baal_jax.study.report")
    template, css, js = (files.joinpath(f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    digest = base64.b64encode(hashlib.sha256(js.encode()).digest()).decode()
    data, description = _content.page_data(results), results.description
    several = {"cells of each": results.devices} if len(results.devices or ()) > 1 else {}
    swatches = {look["name"]: _SWATCH.format(**look) for look in data["strategies"]}
    metrics = _content.metrics(results) or [str(description.get("metric"))]
    tables = [_table(results, name, swatches) for name in metrics if results.runs]
    values = {
        # The browser itself refuses every request, and every script but the one that is named by its digest.
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'",
        "version": __version__,
        "made": made,
        "command": description.get("command"),
        "csv": base64.b64encode(table(results).encode("utf-8", "replace")).decode(),
        "css": css,
        "js": js,
        "data": json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),  # ends no script
        "title": str(description.get("name") or "Active learning study"),
        **_lead(results, data),
        "strategies": [{"number": i, "name": name, "swatch": swatches[name]} for i, name in enumerate(swatches)],
        "notices": [{"notice": text} for text in _content.notices(results)],
        "main": tables[:1],
        "tables": [{**table, "other": i > 0} for i, table in enumerate(tables)],
        "chart": _chart(data),
        **_figures(results, data),
        "settings": _nested({name: value for name, value in description.items() if name not in _ELSEWHERE}),
        "environment": description.get("environment") and _nested({**description["environment"], **several}),
        "json": json.dumps(description, indent=2, ensure_ascii=False),
    }
    text = fill(template, values).encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text
    return re.sub("[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]", "\ufffd", text)  # nor can HTML hold these


def fill(template: str, values: Mapping[str, Any]) -> str:
    """Fill in the placeholders of a template, as Mustache has them."""
    # ``{{name}}`` is a value, escaped, and ``{{&name}}`` as it is; ``{{#name}}…{{/name}}`` stands for every item of a
    # list, or where there is a value; ``{{^name}}…{{/name}}`` where there is none.

    def filled(match: re.Match[str]) -> str:
        kind, section, body, raw, name = match.groups()
        value = values[section or name]
        if name:
            return str(value) if raw else escape(str(value))
        if kind == "^":
            return "" if value else fill(body, values)
        items = value if isinstance(value, list) else [value if isinstance(value, Mapping) else {}] if value else []
        return "".join(fill(body, {**values, **item}) for item in items)

    # What is filled in is not looked at again: no name in the data is taken for a placeholder.
    return re.sub(r"\{\{([#^])(\w+)\}\}(.*?)\{\{/\2\}\}|\{\{(&?)(\w+)\}\}", filled, template, flags=re.DOTALL)


def _lead(results: Results, data: Mapping[str, Any]) -> dict[str, Any]:
    description, runs = results.description, results.runs.values()
    if not runs:
        return {"runs": False}
    strategies, seeds, rounds = len(description["strategies"]), len(_content.seeds_of(results)), data["rounds"]
    pool, metric = description.get("num_pool"), description.get("metric")
    return {
        "runs": True,
        "size": f"{strategies} strateg{'y' if strategies == 1 else 'ies'} × {seeds} seed{'s' * (seeds != 1)} × "
        f"{rounds} round{'s' * (rounds != 1)}",
        "first": f"{min(int(one.num_labelled.min()) for one in runs):,}",
        "last": f"{max(int(one.num_labelled.max()) for one in runs):,}",
        "pool": f"{pool:,}" if isinstance(pool, int) else None,
        "metric": metric and plots.axis_label(str(metric)),
        "baseline": description.get("baseline"),
    }


def _table(results: Results, metric: str, swatches: Mapping[str, str]) -> dict[str, Any]:
    label = plots.axis_label(metric)
    try:
        summary = statistics.summary(results, metric)
    except ValueError as error:  # the baseline or the metric is missing so far
        return {"label": label, "error": str(error)}
    heads, rows, notes = statistics.table(summary)
    return {
        "label": label,
        "error": None,
        "heads": [{"head": head, "text": i in (0, _VERDICT)} for i, head in enumerate(heads)],
        "rows": [
            {
                "strategy": name,
                "swatch": swatches[name],
                "cells": [{**_cell(i, text), "under": heads[i]} for i, text in enumerate(cells, 1)],
            }
            for name, *cells in rows
        ],
        "notes": [{"note": note} for note in notes],
        "findings": [{"swatch": swatches[row.strategy], **_finding(summary, row)} for row in summary.rows],
    }


def _cell(column: int, text: str) -> dict[str, Any]:
    """A number and, in small, what is known about it."""
    if column == _VERDICT:
        return {"cell": text, "kind": text if text in ("better", "worse") else "open", "spread": None}
    value, *spread = re.split(r" (?=[±\[])", text.replace("-", "−"), maxsplit=1)
    return {"cell": value, "kind": None, "spread": "".join(spread)}


def _finding(summary: statistics.Summary, row: statistics.Row) -> dict[str, str]:
    """A strategy against the baseline, in a sentence."""
    metric = plots.axis_label(summary.metric)
    if row.verdict is None:
        why = f"{metric} {_number(row.area)} over the curve, {_number(row.final)} at the end"
        return {"strategy": row.strategy, "kind": "open", "verdict": "The baseline", "why": why}
    (difference, low, high, *_, num_seeds), p_value, verdict = row.verdict
    kind = verdict if verdict in ("better", "worse") else "open"
    why = "no seed has been run with both"
    if num_seeds:
        p = f"p = {_number(p_value)}"
        if math.isfinite(low) and math.isfinite(high):
            p = f"{summary.confidence * 100:g} % interval {_number(low)} to {_number(high)}, {p}"
        side = "higher" if difference > 0 else "lower" if difference < 0 else "different"
        why = f"over the curve {metric} is {_number(abs(difference))} {side} ({p})"
    if num_seeds and row.saved and math.isfinite(row.saved.ratio) and row.saved.ratio > 0:
        why += f"; it took {row.saved.ratio * 100:.0f} % of the baseline’s labels to reach {_number(summary.target)}"
    said = f"{verdict.capitalize()} {'from' if kind == 'open' else 'than'} {summary.baseline}"
    return {"strategy": row.strategy, "kind": kind, "verdict": said, "why": why}


def _number(value: float) -> str:
    return statistics.number(value).replace("-", "−")


def _chart(data: Mapping[str, Any]) -> dict[str, Any] | None:
    """The main metric for readers without scripts; the script draws over it."""
    curves = [
        (look, *(np.asarray(curve[name], np.float64) for name in ("x", "mean", "low", "high")))
        for look, curve in zip(data["strategies"], next(iter(data["curves"].values()), []), strict=False)
        if curve is not None and any(y is not None for y in curve["mean"])
    ]
    if not curves:
        return None
    points = np.concatenate([(x, mean) for _, x, mean, _, _ in curves], axis=1)
    (x0, y0), (x1, y1) = np.fmin.reduce(points, axis=1), np.fmax.reduce(points, axis=1)
    stops = np.unique(points[0, np.isfinite(points[0])])
    across = lambda x: _LEFT + (x - x0) / max(x1 - x0, 1e-9) * (_WIDTH - _LEFT - _RIGHT)  # noqa: E731
    down = lambda y: _TOP + (y1 - np.clip(y, y0, y1)) / max(y1 - y0, 1e-9) * (_HEIGHT - _TOP - _BOTTOM)  # noqa: E731

    def path(x: np.ndarray, y: np.ndarray) -> str:
        return "L".join(f"{across(a):.1f} {down(b):.1f}" for a, b in zip(x, y, strict=True) if not math.isnan(b))

    lines = []
    for look, x, mean, low, high in curves:
        there = ~np.isnan(low)
        band = path(np.append(x[there], x[there][::-1]), np.append(high[there], low[there][::-1]))
        lines.append({**look, "line": path(x, mean), "band": band})
    return {
        "label": data["metrics"][0]["label"],
        "lines": lines,
        "ticks_x": [{"at": f"{across(x):.1f}", "text": f"{x:g}"} for x in stops[:: -(-len(stops) // 8)]],
        "ticks_y": [{"at": f"{down(y):.1f}", "text": f"{y:.4g}"} for y in np.linspace(y0, y1, 5)],
    }


def _figures(results: Results, data: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to draw, and what has to be said about it."""
    queried, runs = data["queried"], results.runs.values()
    errors = [
        {"name": name, "first": _number(np.float64(bins["ece"][0])), "last": _number(np.float64(bins["ece"][-1]))}
        for name, bins in zip(results.runs, data["reliability"], strict=True)
        if bins is not None
    ]
    known = queried and queried["known"]
    return {
        "single": any(len(one.seeds) < 2 for one in runs),
        "stopped": any(one.stopped.any() for one in runs),
        "left_out": [{"sentence": sentence} for sentence in data["queries"]["left_out"]],
        "pictures": results.pictures is not None,
        "classes": data["classes"] is not None,
        "queried": queried and {"pool": bool(queried["pool"]), "partly": f"{known:.0%}" if known < 0.9995 else None},
        "scores": any(data["scores"]),
        "entropy": any(data["entropy"]),
        "calibrated": bool(errors),
        "errors": errors,
    }


def _nested(value: Any) -> str:
    """Mappings as tables, lists of plain values in a line."""
    if isinstance(value, Mapping):
        rows = (f'<tr><th scope="row">{escape(str(k))}</th><td>{_nested(v)}</td></tr>' for k, v in value.items())
        return f"<table><tbody>{''.join(rows)}</tbody></table>" if value else "–"
    if isinstance(value, list):
        if any(isinstance(item, Mapping | list) for item in value):
            return _nested(dict(enumerate(value)))
        if len(value) > 2 and value == list(range(value[0], value[0] + len(value)) if type(value[0]) is int else ()):
            return f"{value[0]} to {value[-1]}"
        return escape(", ".join(map(_scalar, value))) or "–"
    return escape(_scalar(value))


def _scalar(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    return f"{value:g}" if isinstance(value, float) and value == float(f"{value:g}") else str(value)
