"""A study's results as one table."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demask.runs import read_run
from demask.scoring import METRICS
from demask.stages.grid import Cell
from demask.types import replacing


def axes_of(cells: Sequence[Cell]) -> list[str]:
    """What sets the cells apart, in order of first appearance."""
    return list(dict.fromkeys(axis for cell in cells for axis in cell.axes))


def as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def write_table(folder: Path, cells: Sequence[Cell]) -> None:
    """table.csv: a line for every finished cell, group of questions ("all" and each one) and direction."""
    axes = axes_of(cells)
    scores = [f"{metric}_{part}" for metric in METRICS for part in ("mean", "low", "high")]
    kept = ["retained_before", "retained", "text_nll_before", "text_nll"]
    costs = ["steps", "tokens", "target_tokens", "flops", "cpu_seconds"]
    with replacing(folder / "table.csv") as file:
        table = csv.DictWriter(file, ["cell", *axes, "group", "direction", "n", *scores, *kept, *costs], lineterminator="\n")
        table.writeheader()
        for cell in cells:
            record = read_run(folder / "cells" / cell.hash) or {}
            if record.get("status") != "finished":
                continue
            results = record.get("results", {})
            shared: dict[str, Any] = {"cell": cell.hash} | {axis: as_text(value) for axis, value in cell.axes.items()}
            shared |= _retention(record) | {name: record.get("plan", {}).get(name, 0) for name in costs[:-1]}
            shared["cpu_seconds"] = record.get("cpu_seconds", 0)
            for group, directions in {"all": results.get("by_direction", {}), **results.get("by_group", {})}.items():
                for direction, leaf in directions.items():
                    line = shared | {"group": group, "direction": direction, "n": leaf["n"]}
                    for metric in METRICS:
                        line |= {f"{metric}_{part}": round(leaf[metric][part], 4) for part in ("mean", "low", "high")}
                    table.writerow(line)


def _retention(record: dict[str, Any]) -> dict[str, Any]:
    """What the base knew (accuracy by containment, loss in nats a token), before and after; what was not measured is left out."""
    measured, found = record.get("retention", {}), dict[str, Any]()
    for when, end in (("before", "_before"), ("after", "")):
        parts = measured.get(when, {})
        if "questions" in parts:
            found[f"retained{end}"] = round(parts["questions"]["contains"]["mean"], 4)
        if "text" in parts:
            found[f"text_nll{end}"] = round(parts["text"]["nll"], 4)
    return found
