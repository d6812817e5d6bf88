"""The report's two pictures as SVG text: the same comparison gives the same bytes, and text stays text.

`comparison` is the dict described in report.py. Both pictures stand alone: light background, readable at 700 px, and never by
colour alone.
"""

from __future__ import annotations

import re
import textwrap
from io import StringIO
from typing import Any

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


def bars(comparison: dict[str, Any]) -> str:
    """Accuracy by method, one bar a direction, with 95% intervals. The empty string where there is no method or no answer."""
    methods, metric = comparison["methods"], comparison["metric"]
    directions = [name for name in DIRECTIONS if any(name in method["results"]["by_direction"] for method in methods)]
    if not directions:
        return ""
    with style.context(["default", _STYLE]):  # not the user's own
        figure = Figure(figsize=(WIDTH, 0.95 + 0.62 * len(methods)), layout="constrained")
        axes = figure.add_subplot()
        for i, direction in enumerate(directions):
            offset = (i - (len(directions) - 1) / 2) * BAR
            _bars_of(axes, methods, direction, metric, offset)
        axes.set_yticks(range(len(methods)), [_label(method, 26) for method in methods], color=INK)
        axes.set_ylim(len(methods) - 0.5, -0.5)  # the first method on top
        axes.set_xlim(0, 1.1)  # room for the figure beside a full bar
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.xaxis.set_major_formatter(PercentFormatter(1, 0))
        axes.spines["bottom"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(f"accuracy ({metric}) with 95% interval")
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, borderpad=0, borderaxespad=0.4, handlelength=1, handleheight=1)
        return _svg(figure, "bars")


def _bars_of(axes: Any, methods: list[dict[str, Any]], direction: str, metric: str, offset: float) -> None:
    asked = [i for i, method in enumerate(methods) if direction in method["results"]["by_direction"]]
    cells = [methods[i]["results"]["by_direction"][direction][metric] for i in asked]
    places, means = [i + offset for i in asked], [cell["mean"] for cell in cells]
    axes.barh(places, means, height=BAR - 0.03, color=DIRECTION_COLOURS[direction], label=direction)
    whiskers = [[max(0.0, c["mean"] - c["low"]) for c in cells], [max(0.0, c["high"] - c["mean"]) for c in cells]]
    axes.errorbar(means, places, xerr=whiskers, fmt="none", ecolor=INK, elinewidth=1, capsize=2.5, capthick=1)
    for place, cell in zip(places, cells, strict=True):
        right = max(cell["mean"], cell["high"])
        axes.text(right + 0.012, place, f"{cell['mean']:.0%}", va="center_baseline", fontsize=9)


def curves(comparison: dict[str, Any]) -> str:
    """Accuracy against optimiser step, a panel a direction, a line a method. The empty string where nothing was measured."""
    lines = {  # (method's place, direction) -> points
        (i, direction): [(point["step"], point[direction]) for point in method.get("curve", ()) if point.get(direction) is not None]
        for i, method in enumerate(comparison["methods"])
        for direction in DIRECTIONS
    }
    lines = {key: points for key, points in lines.items() if points}
    directions = [name for name in DIRECTIONS if any(direction == name for _, direction in lines)]
    if not directions:
        return ""
    drawn = sorted({i for i, _ in lines})
    with style.context(["default", _STYLE]):  # not the user's own
        figure = Figure(figsize=(WIDTH, 2.9 + 0.22 * ((len(drawn) + 1) // 2)), layout="constrained")
        panels = figure.subplots(1, len(directions), sharey=True, squeeze=False)[0]
        for axes, direction in zip(panels, directions, strict=True):
            for i in drawn:
                if (i, direction) in lines:
                    axes.plot(*zip(*lines[i, direction], strict=True), **_line_style(i))
            axes.set_title(direction, fontsize=10, loc="left")
            axes.set_xlabel("optimiser step")
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.set_ylim(-0.03, 1.03)
            axes.grid(axis="y")
        panels[0].set_ylabel(f"accuracy ({comparison['metric']})")
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, 0))
        handles = [Line2D([], [], **_line_style(i)) for i in drawn]
        labels = [_label(comparison["methods"][i], 44) for i in drawn]
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
        return _svg(figure, "curves")


def _line_style(i: int) -> dict[str, Any]:
    return {
        "color": METHOD_COLOURS[i % len(METHOD_COLOURS)],
        "linestyle": DASHES[i % len(DASHES)],
        "marker": MARKERS[i % len(MARKERS)],
        "markersize": 4.5,
        "linewidth": 1.8,
        "clip_on": False,
    }


def _label(method: dict[str, Any], width: int) -> str:
    """A method's label in lines of at most `width` characters, without characters that XML forbids."""
    return textwrap.fill("".join(c if c.isprintable() else " " for c in method["label"]), width) or method["name"]


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
