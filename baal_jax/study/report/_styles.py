"""How a strategy is drawn: colour, dashes and marker, so that colour is not the only cue."""

from __future__ import annotations

from typing import Any, NamedTuple

from baal_jax.study import plots

# Style 6 is black: in the dark the page draws it white.
_COLOURS = len(plots.COLOURS)
# Dashes of a line 2 pixels wide, in SVG; matplotlib takes them in units of its own line width.
_DASHES = ((), (9, 3), (2, 4), (9, 4, 2, 4), (14, 4), (5, 4), (), (14, 4, 2, 4, 2, 4))
# The same shapes as SVG paths around the origin and by matplotlib's names.
_MARKERS = (
    ("M-3.6 0A3.6 3.6 0 1 0 3.6 0A3.6 3.6 0 1 0 -3.6 0Z", "o"),
    ("M-3.2 -3.2H3.2V3.2H-3.2Z", "s"),
    ("M0 -4.4L4.2 3.2H-4.2Z", "^"),
    ("M0 -4.6L4.6 0L0 4.6L-4.6 0Z", "D"),
    ("M0 4.4L4.2 -3.2H-4.2Z", "v"),
    ("M-1.4 -4.2H1.4V-1.4H4.2V1.4H1.4V4.2H-1.4V1.4H-4.2V-1.4H-1.4Z", "P"),
    ("M-3.6 0A3.6 3.6 0 1 0 3.6 0A3.6 3.6 0 1 0 -3.6 0Z", "o"),
    ("M0 -4.4L4.2 -1.4L2.6 3.6H-2.6L-4.2 -1.4Z", "p"),
)


class Style(NamedTuple):
    """One way to draw a strategy."""

    number: int
    colour: str
    dashes: tuple[int, ...]
    path: str
    marker: str

    def svg(self) -> dict[str, str]:
        """For the page: the colour is a variable of its style sheet, light or dark."""
        dash = " ".join(map(str, self.dashes)) or "none"
        return {"colour": f"var(--c{self.number})", "dash": dash, "marker": self.path}

    def dash(self) -> Any:
        """For matplotlib, whose dashes are in units of the line's width."""
        return (0, tuple(part / 2 for part in self.dashes)) if self.dashes else "-"


def style(i: int) -> Style:
    """The style of number ``i``; the first eight differ in all three, later ones in how the three go together."""
    again = i // _COLOURS
    path, marker = _MARKERS[(i + again) % len(_MARKERS)]
    return Style(i % _COLOURS, plots.COLOURS[i % _COLOURS], _DASHES[(i + 2 * again) % len(_DASHES)], path, marker)
