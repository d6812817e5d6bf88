"""Results on the terminal."""

from __future__ import annotations

from io import StringIO
from typing import Any

from rich.console import Console

from demask.printing import print_summary


def printed(rows: list[dict[str, Any]], axes: list[str]) -> list[list[str]]:
    """The cells of the table's lines."""
    console = Console(file=StringIO(), width=200)
    print_summary("contains", axes, rows, console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert not rows or "contains, with 95% intervals over runs and documents" in said
    return [[cell.strip() for cell in line.replace("┃", "│").split("│")[1:-1]] for line in said.splitlines() if line[:1] in "┃│"]


SCORES = {"forward": 0.5, "forward_low": 0.25, "forward_high": 0.754}
ROW = {"method": "[bold]ar", "runs": 2, **SCORES, "retained_before": 0.9, "retained": 0.8, "flops": 1.31e12, "selected_on": "last"}


def test_a_line_for_each_configuration() -> None:
    rows = [ROW, {"method": "book", "mask_ratio": "0.1 0.9", "runs": 1, "retained": 0.7, "flops": 0.0, "selected_on": ""}]
    assert printed(rows, ["method", "mask_ratio"]) == [
        ["method", "mask_ratio", "runs", "forward", "backward", "retained", "FLOPs"],
        ["[bold]ar", "", "2", "0.50 (0.25-0.75)", "", "0.90 -> 0.80", "1.3e+12"],
        ["book", "0.1 0.9", "1", "", "", "0.70", ""],
    ]


def test_selection_is_told_only_where_it_was_on_test() -> None:
    rows = [ROW | {"selected_on": on} for on in ("validation", "last", "")]
    assert printed(rows, ["method"])[0][-1] == "FLOPs"
    shown = printed([*rows, ROW | {"selected_on": "test"}], ["method"])
    assert [line[-1] for line in shown] == ["selected on", "validation", "last", "", "test"]


def test_nothing_is_nothing() -> None:
    assert printed([], ["method"]) == []
