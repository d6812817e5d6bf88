"""A study's results as tables: table.csv, a line a cell and kind of question, and summary.csv, a line a configuration over its seeds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demask.runs import read_run
from demask.scoring import METRICS, interval_over_runs
from demask.stages.grid import Cell
from demask.types import DIRECTIONS, read_jsonl, replacing


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
            shared |= _retention(record) | _cost(record)
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


def summarise_cells(folder: Path, cells: Sequence[Cell], metric: str) -> list[dict[str, Any]]:
    """A row for each configuration, that is all axes but the seed, whose cells are finished: `runs`, and over them the mean of each
    direction with its 95% interval over runs and documents, the gap (forward less backward), what was retained, and the mean cost."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        alike.setdefault(repr({axis: value for axis, value in cell.axes.items() if axis != "seed"}), []).append(cell)
    rows = []
    for group in alike.values():
        folders = {cell.hash: folder / "cells" / cell.hash for cell in group}
        records = {name: read_run(path) or {} for name, path in folders.items()}
        finished = [name for name, record in records.items() if record.get("status") == "finished"]
        if not finished:
            continue
        row: dict[str, Any] = {axis: as_text(value) for axis, value in group[0].axes.items() if axis != "seed"} | {"runs": len(finished)}
        row |= _accuracy([folders[name] for name in finished], metric)
        row |= _mean([_retention(records[name]) for name in finished])
        row |= _mean([_cost(records[name]) for name in finished])
        rows.append(row)
    return rows


def _accuracy(folders: Sequence[Path], metric: str) -> dict[str, float]:
    """By direction: the mean over runs of each run's mean, and its interval; and the gap, where both directions were asked."""
    found: dict[str, Any] = {}
    answers = [[record for _, record in read_jsonl(folder / "answers.jsonl")] for folder in folders]
    for direction in DIRECTIONS:
        runs = [[record for record in run if record["direction"] == direction] for run in answers]
        runs = [run for run in runs if run]
        if not runs:
            continue
        values = [[record["scores"][metric] for record in run] for run in runs]
        clusters = [[record.get("document") or i for i, record in enumerate(run)] for run in runs]
        low, high = interval_over_runs(values, clusters)
        found |= {direction: round(sum(sum(run) / len(run) for run in values) / len(values), 4)}
        found |= {f"{direction}_low": round(low, 4), f"{direction}_high": round(high, 4), f"{direction}_n": sum(map(len, values))}
    if set(DIRECTIONS) <= set(found):
        found["gap"] = round(found["forward"] - found["backward"], 4)
    return found


def _cost(record: dict[str, Any]) -> dict[str, float]:
    plan = record.get("plan", {})
    return {name: plan.get(name, 0) for name in ("steps", "tokens", "target_tokens", "flops")} | {
        "cpu_seconds": record.get("cpu_seconds", 0)
    }


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every number that all have."""
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: round(sum(one[name] for one in found) / len(found), 4) for name in names}


def write_summary(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as CSV, in the columns that any of them has."""
    with replacing(path) as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
