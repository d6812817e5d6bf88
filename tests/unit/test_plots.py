"""The report's pictures: what is drawn where, read back from the SVG."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from typing import Any

import matplotlib
import pytest

from demask.stages import plots
from demask.types import DIRECTIONS

SVG = "{http://www.w3.org/2000/svg}"
NASTY = "_$x_1$ <b>\x00'DejaVu Sans' id=\" {{ 7*7 }} --> &"


def words(svg: str) -> list[str]:
    return ["".join(text.itertext()) for text in ET.fromstring(svg).iter(f"{SVG}text")]


def filled(svg: str, colour: str) -> list[float]:
    """Widths of the rectangles filled with a colour, in the picture's units."""
    paths = [path for path in ET.fromstring(svg).iter(f"{SVG}path") if path.get("style", "") == f"fill: {colour.lower()}"]
    numbers = [[float(number) for number in re.findall(r"[ML] (\S+) ", path.get("d", ""))] for path in paths]
    return [max(row) - min(row) for row in numbers if row]


def lines(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """The points of the lines of a colour, in the picture's units, y from the top; without those of the legend."""
    found = []
    for group in ET.fromstring(svg).iter(f"{SVG}g"):
        if not group.get("id", "").split("-")[-1].startswith("axes"):
            continue
        for path in group.iter(f"{SVG}path"):
            if f"stroke: {colour.lower()}" in path.get("style", "") and "fill: none" in path.get("style", ""):
                found.append([(float(x), float(y)) for x, y in re.findall(r"[ML] (\S+) (\S+)", path.get("d", ""))])
    return found


def corners(svg: str, axes: int) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of a panel, in the picture's units: of its background, which is drawn first."""
    panel = next(g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("id", "").endswith(f"-axes_{axes}"))
    numbers = re.findall(r"[ML] (\S+) (\S+)", next(panel.iter(f"{SVG}path")).get("d", ""))
    xs, ys = ([float(pair[i]) for pair in numbers] for i in range(2))
    return min(xs), max(xs), max(ys), min(ys)


def row(label: str, forward: float | None = None, backward: float | None = None, **other: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"label": label, "curve": {}} | other
    for direction, score in (("forward", forward), ("backward", backward)):
        if score is not None:
            found |= {direction: score, f"{direction}_low": max(0, score - 0.1), f"{direction}_high": min(1, score + 0.1)}
    return found


# --- bars ---------------------------------------------------------------------------------------------------------------------


def test_bars_are_as_long_as_the_scores() -> None:
    svg = plots.bars([row("base", 0.0, 0.0), row("demask", 1.0, 0.5)], "contains")
    assert {"forward", "backward", "demask", "base", "accuracy (contains) with 95% interval"} <= set(words(svg))
    assert words(svg).count("50%") == 2  # the axis, and demask's backward questions
    forward, backward = (max(filled(svg, plots.DIRECTION_COLOURS[direction])) for direction in DIRECTIONS)
    assert backward == pytest.approx(forward / 2, rel=1e-4)


def test_bars_of_one_direction() -> None:
    svg = plots.bars([row("a", backward=0.25), row("b")], "contains")
    assert "forward" not in words(svg)
    assert {"a", "b", "backward"} <= set(words(svg))


# --- curves -------------------------------------------------------------------------------------------------------------------


def curve(*points: tuple[int, float, float]) -> list[dict[str, float]]:
    return [{"step": step, "flops": flops, "score": score} for step, flops, score in points]


CURVES = [
    row("cheap", curve={"forward": curve((0, 0, 0.0), (10, 1e12, 1.0)), "backward": curve((0, 0, 0.0), (10, 1e12, 0.5))}),
    row("untrained", 0.5, 0.5),
    row("dear", curve={"forward": curve((0, 0, 0.0), (10, 2e12, 1.0))}),
]


def test_curves_have_a_panel_a_direction_and_a_line_a_measured_configuration() -> None:
    svg = plots.curves(CURVES, "contains", "step", "c")
    assert {"forward", "backward", "cheap", "dear", "optimiser step", "accuracy (contains)"} <= set(words(svg))
    assert "untrained" not in words(svg)
    first, second = (lines(svg, plots.METHOD_COLOURS[i]) for i in range(2))
    assert [len(line) for line in first] == [2, 2]
    assert [len(line) for line in second if line] == [2], "it was not asked backward"
    heights = [line[0][1] - line[1][1] for line in first]  # the picture's y falls
    assert heights[1] == pytest.approx(heights[0] / 2, rel=1e-4)
    one_way = [CURVES[2]]
    assert "backward" not in words(plots.curves(one_way, "contains", "step", "c"))


def test_curves_by_flops_are_as_wide_as_the_cost() -> None:
    svg = plots.curves(CURVES, "contains", "flops", "c")
    assert "training FLOPs" in words(svg)
    cheap, dear = (lines(svg, plots.METHOD_COLOURS[i])[0] for i in range(2))
    assert dear[1][0] - dear[0][0] == pytest.approx(2 * (cheap[1][0] - cheap[0][0]), rel=1e-4)
    by_step = plots.curves(CURVES, "contains", "step", "c")
    assert lines(by_step, plots.METHOD_COLOURS[0])[0] == lines(by_step, plots.METHOD_COLOURS[1])[0]


def test_a_curve_of_one_point() -> None:
    svg = plots.curves([row("a", curve={"forward": curve((5, 1e9, 0.5))})], "contains", "step", "c")
    assert {"a", "forward"} <= set(words(svg))
    panel = next(g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("id") == "c-axes_1")
    marks = [use for use in panel.iter(f"{SVG}use") if plots.METHOD_COLOURS[0].lower() in use.get("style", "")]
    assert len(marks) == 1


# --- ratios -------------------------------------------------------------------------------------------------------------------


def test_ratios_have_points_for_fixed_ones_and_a_level_line_for_a_drawn_one() -> None:
    rows = [
        row("m 0.75", 0.8, 0.6, method="m", ratio=(0.75, 0.75)),
        row("m 0.25", 0.4, 0.2, method="m", ratio=(0.25, 0.25)),
        row("m drawn", 0.9, 0.7, method="m", ratio=(0.5, 1.0)),
        row("other", 0.3, 0.3, method="n", ratio=(0.5, 0.5)),
        row("no ratio", 0.1, 0.1, method="plain", ratio=None),
    ]
    svg = plots.ratios(rows, "contains")
    assert {"m", "n", "forward", "backward", "share of the tokens hidden", "accuracy (contains)"} <= set(words(svg))
    assert "plain" not in words(svg)
    left, right, bottom, top = corners(svg, 1)

    def place(ratio: float, score: float) -> tuple[Any, Any]:
        """The panel spans ratios from -0.04 to 1.04 and scores from -0.03 to 1.03."""
        x = left + (ratio + 0.04) / 1.08 * (right - left)
        y = bottom + (score + 0.03) / 1.06 * (top - bottom)
        return pytest.approx(x, abs=0.01), pytest.approx(y, abs=0.01)

    forward = lines(svg, plots.METHOD_COLOURS[0])
    assert [place(0.25, 0.4), place(0.75, 0.8)] in forward, "in order of the ratio"
    assert [place(0.5, 0.9), place(1.0, 0.9)] in forward
    assert [place(0.25, 0.3), place(0.25, 0.5)] in forward, "an interval"
    assert [place(0.5, 0.2), place(0.5, 0.4)] in lines(svg, plots.METHOD_COLOURS[1])


@pytest.mark.parametrize(
    "ratios",
    [[], [None, None], [(0.5, 0.5)], [(0.5, 0.5), (0.5, 0.5)], [(0.1, 0.9), (0.5, 0.5)], [(0.1, 0.9), (0.2, 0.8)]],
)
def test_ratios_need_two_fixed_ones(ratios: list[Any]) -> None:
    assert plots.ratios([row(str(i), 0.5, method="m", ratio=ratio) for i, ratio in enumerate(ratios)], "contains") == ""


def test_an_interval_that_does_not_hold_its_mean_has_no_length_there() -> None:
    """Draws of documents of very different sizes may all lie on one side."""
    rows = [row(str(i), 0.5, method="m", ratio=(i / 4, i / 4)) | {"forward_low": 0.51} for i in range(3)]
    assert "m" in words(plots.ratios(rows, "contains"))
    assert "50%" in words(plots.bars(rows, "contains"))


def test_ratios_of_rows_that_were_asked_nothing() -> None:
    assert plots.ratios([row(str(i), method="m", ratio=(i / 4, i / 4)) for i in range(3)], "contains") == ""


# --- all of them --------------------------------------------------------------------------------------------------------------


def all_three(label: str) -> list[str]:
    points = {direction: curve((0, 0, 0.1), (9, 1e9, 0.7)) for direction in DIRECTIONS}
    rows = [row(label, 0.5, 0.2, curve=points, method=label, ratio=(share, share)) for share in (0.2, 0.6)]
    return [plots.bars(rows, "contains", "a"), plots.curves(rows, "contains", "step", "b"), plots.ratios(rows, "contains", "c")]


def test_labels_are_text_as_given() -> None:
    for svg in all_three(NASTY):
        said = " ".join(" ".join(words(svg)).split())
        assert "_$x_1$ <b> 'DejaVu Sans' id=\" {{ 7*7 }} --> &" in said
    for svg in all_three(""):
        assert "-" in words(svg)


def test_pictures_stand_alone_and_share_no_ids() -> None:
    ids: list[str] = []
    for svg, prefix in zip(all_three("label"), "abc", strict=True):
        assert svg.startswith("<svg ")
        own = re.findall(r' id="([^"]+)"', svg)
        assert all(name.startswith(f"{prefix}-") for name in own)
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg)) <= set(own)
        ids += own
    assert len(ids) == len(set(ids))


def test_the_same_rows_give_the_same_text_in_any_style() -> None:
    before = all_three("label")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.fonttype": "path", "text.parse_math": True}):
        assert all_three("label") == before


def test_they_are_empty_without_data() -> None:
    for rows in ([], [row("a")]):
        assert plots.bars(rows, "contains") == plots.curves(rows, "contains", "step", "x") == plots.ratios(rows, "contains") == ""
