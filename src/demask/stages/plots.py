"""The report's pictures as SVG text: the same rows give the same bytes, and text stays text.

A row is a dict as `table.summarise_runs` makes it, with a `label` and a `curve` (see `table.curve`). Every picture stands alone: light
background, readable at 700 px, and never by colour alone. `prefix` sets its ids apart from those of the others on a page.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from io import StringIO
from typing import Any, Literal

from matplotlib import style
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from demask.types import DIRECTIONS

# Okabe and Ito's colours, told apart under the common kinds of colour blindness; a direction and a method never share one.
DIRECTION_COLOURS = {"forward": "#0072B2", "backward": "#E69F00"}
METHOD_COLOURS = ("#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (6, 2)), "-", (0, (2, 2)))  # a line shows through one drawn over it
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
INK, QUIET, RULE = "#222222", "#555555", "#dddddd"
WIDTH = 7.0  # inches
BAR = 0.36  # thickness, where 1 is the distance between two methods

_STYLE: dict[Any, Any] = {
    "svg.hashsalt": "demask",  # else ids are random
    "svg.fonttype": "none",  # else letters become outlines
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that sizes are measured the same everywhere
    "font.size": 10,
    "text.parse_math": False,  # a "$" in a label is a "$"
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.labelsize": 9.5,
    "axes.edgecolor": RULE,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": RULE,
    "grid.linewidth": 0.7,
    "legend.frameon": False,
}
_FONTS = "system-ui, 'Segoe UI', Roboto, Helvetica, Arial, sans-serif"


def bars(rows: Sequence[dict[str, Any]], metric: str, prefix: str = "bars") -> str:
    """Accuracy by configuration, one bar a direction, with 95% intervals. The empty string where nothing was asked."""
    directions = [name for name in DIRECTIONS if any(name in row for row in rows)]
    if not directions:
        return ""
    with style.context(["default", _STYLE]):  # not the user's own
        figure = Figure(figsize=(WIDTH, 0.95 + 0.62 * len(rows)), layout="constrained")
        axes = figure.add_subplot()
        for i, direction in enumerate(directions):
            offset = (i - (len(directions) - 1) / 2) * BAR
            _bars_of(axes, rows, direction, offset)
        axes.set_yticks(range(len(rows)), [_label(row["label"], 26) for row in rows], color=INK)
        axes.set_ylim(len(rows) - 0.5, -0.5)  # the first one on top
        axes.set_xlim(0, 1.1)  # room for the figure beside a full bar
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.spines["bottom"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(f"accuracy ({metric}) with 95% interval")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0, borderaxespad=0.4, handlelength=1, handleheight=1)
        return _svg(figure, prefix)


def _bars_of(axes: Any, rows: Sequence[dict[str, Any]], direction: str, offset: float) -> None:
    asked = [i for i, row in enumerate(rows) if direction in row]
    scores = [(rows[i][direction], rows[i][f"{direction}_low"], rows[i][f"{direction}_high"]) for i in asked]
    places, means = [i + offset for i in asked], [mean for mean, _, _ in scores]
    axes.barh(places, means, height=BAR - 0.03, color=DIRECTION_COLOURS[direction], label=direction)
    axes.errorbar(means, places, xerr=_spread(scores), fmt="none", ecolor=INK, elinewidth=1, capsize=2.5, capthick=1)
    for place, (mean, _, high) in zip(places, scores, strict=True):
        axes.text(max(mean, high) + 0.012, place, f"{mean:.0%}", va="center_baseline", fontsize=9)


def _spread(scores: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    """How far each (mean, low, high) reaches down and up; an interval of draws need not hold its mean."""
    return [[max(0.0, mean - low) for mean, low, _ in scores], [max(0.0, high - mean) for mean, _, high in scores]]


def curves(rows: Sequence[dict[str, Any]], metric: str, over: Literal["step", "flops"], prefix: str) -> str:
    """Accuracy against optimiser steps or FLOPs, a panel a direction, a line a configuration. Empty where nothing was measured."""
    drawn = [row for row in rows if row["curve"]]
    directions = [name for name in DIRECTIONS if any(name in row["curve"] for row in drawn)]
    if not directions:
        return ""
    with style.context(["default", _STYLE]):  # not the user's own
        figure = Figure(figsize=(WIDTH, 2.9 + 0.22 * ((len(drawn) + 1) // 2)), layout="constrained")
        panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
        for axes, direction in zip(panels, directions, strict=True):
            for i, row in enumerate(drawn):
                points = row["curve"].get(direction, [])
                axes.plot([point[over] for point in points], [point["score"] for point in points], **_line_style(i))
            axes.set_title(direction, fontsize=10, loc="left")
            axes.set_xlabel({"step": "optimiser step", "flops": "training FLOPs"}[over])
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=over == "step"))
            axes.grid(axis="y")
        _finish(figure, panels, metric, [row["label"] for row in drawn])
        return _svg(figure, prefix)


def ratios(rows: Sequence[dict[str, Any]], metric: str, prefix: str = "ratios") -> str:
    """Accuracy against a fixed mask ratio, a panel a direction, a line a method; a drawn ratio is a level line over its range.

    A row's `ratio` is (low, high), and `method` names its line. Empty where fewer than two fixed ratios were tried.
    """
    tried = [row for row in rows if row.get("ratio") and any(name in row for name in DIRECTIONS)]
    if len({row["ratio"] for row in tried if row["ratio"][0] == row["ratio"][1]}) < 2:
        return ""
    directions = [name for name in DIRECTIONS if any(name in row for row in tried)]
    methods = list(dict.fromkeys(row["method"] for row in tried))
    with style.context(["default", _STYLE]):
        figure = Figure(figsize=(WIDTH, 3.1 + 0.22 * ((len(methods) + 1) // 2)), layout="constrained")
        panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
        for axes, direction in zip(panels, directions, strict=True):
            for i, method in enumerate(methods):
                own = [row for row in tried if row["method"] == method and direction in row]
                _ratio_line(axes, own, direction, _line_style(i))
            axes.set_title(direction, fontsize=10, loc="left")
            axes.set_xlabel("share of the tokens hidden")
            axes.set_xlim(-0.04, 1.04)
            axes.grid(axis="y")
        _finish(figure, panels, metric, methods)
        return _svg(figure, prefix)


def _ratio_line(axes: Any, rows: Sequence[dict[str, Any]], direction: str, line: dict[str, Any]) -> None:
    fixed = sorted((row for row in rows if row["ratio"][0] == row["ratio"][1]), key=lambda row: row["ratio"])
    if fixed:
        scores = [(row[direction], row[f"{direction}_low"], row[f"{direction}_high"]) for row in fixed]
        means, spread = [mean for mean, _, _ in scores], _spread(scores)
        axes.errorbar([row["ratio"][0] for row in fixed], means, yerr=spread, elinewidth=0.8, capsize=2, **line)
    for row in rows:
        if row not in fixed:
            axes.plot(row["ratio"], [row[direction]] * 2, color=line["color"], linewidth=1, linestyle=":")


def _finish(figure: Figure, panels: Any, metric: str, labels: Sequence[str]) -> None:
    """What pictures of lines share: the axis of accuracy, and a legend below."""
    panels[0].set_ylim(-0.03, 1.03)
    panels[0].set_ylabel(f"accuracy ({metric})")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1, 0))
    handles = [Line2D([], [], **_line_style(i)) for i in range(len(labels))]
    figure.legend(handles, [_label(label, 44) for label in labels], loc="outside lower center", ncols=2)


def _line_style(i: int) -> dict[str, Any]:
    return {
        "color": METHOD_COLOURS[i % len(METHOD_COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
        "clip_on": False,
    }


def _label(text: str, width: int) -> str:
    """A label in lines of at most `width` characters, without characters that XML forbids."""
    return textwrap.fill("".join(c if c.isprintable() else " " for c in text), width) or "-"


def _svg(figure: Figure, prefix: str) -> str:
    """`figure` as an <svg> element, its ids prefixed: several of them on one page must not share any."""
    file = StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)  # every label a second time
    return re.sub(r"<[^>]*>", lambda tag: _rewritten(tag[0], prefix), text)  # tags only: what a label says is left alone


def _rewritten(tag: str, prefix: str) -> str:
    tag = tag.replace("'DejaVu Sans'", _FONTS)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{prefix}-", tag)
