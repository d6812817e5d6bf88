"""Results as the command line shows them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from demask.types import DIRECTIONS


def print_results(results: dict[str, Any], before: dict[str, Any] | None = None) -> None:
    """The scoring table: a row for each group and direction; `before` has the results of the base model, asked the same."""
    table = Table("group", "direction", "n", "ROUGE-1 recall", "contains", title="answers, with 95% intervals")
    base = {"all": before["by_direction"], **before["by_group"]} if before else {}
    for group, directions in [("all", results["by_direction"]), *results["by_group"].items()]:
        for direction, cell in directions.items():
            was = base.get(group, {}).get(direction)
            scores = [
                (f"{was[m]['mean']:.2f} -> " if was else "") + f"{cell[m]['mean']:.2f} ({cell[m]['low']:.2f}-{cell[m]['high']:.2f})"
                for m in ("rouge1_recall", "contains")
            ]
            table.add_row(escape(group), direction, str(cell["n"]), *scores)
    Console().print(table)


def print_new(scores: dict[str, float]) -> None:
    """A line on the questions that the base model could not answer, of `table.accuracy`'s scores; none where it was not asked."""
    new = [f"{d} {scores[f'{d}_new']:.2f} of {scores[f'{d}_new_n']:,.0f}" for d in DIRECTIONS if f"{d}_new" in scores]
    if new:
        print(f"of the questions that the base could not answer: {', '.join(new)} (ROUGE-1 recall)")


def print_benchmarks(found: dict[str, Any]) -> None:
    """A line for each task of lm-eval, with all its metrics, before and after."""
    before, after = found.get("before", {}), found.get("after", {})
    for task, metrics in (after or before).items():
        said = []
        for name, now in metrics.items():
            spread = "" if now["stderr"] is None else f" (standard error {now['stderr']:.3f})"
            was = f"{before[task][name]['value']:.3f} before, " if after and task in before else ""
            said.append(f"{name} {was}{now['value']:.3f}{' after' if was else ''}{spread}")
        print(f"{task}: {'; '.join(said)}")


def print_retention(known: dict[str, Any]) -> None:
    """What the model knew before, before and after, a line each for questions and text."""
    before, after = known["before"], known.get("after", {})
    if "questions" in before and "questions" in after:
        name = "right" if all("right" in part["questions"] for part in (before, after)) else "contains"  # older records lack the first
        was, now = (part["questions"][name] for part in (before, after))
        n, limits = after["questions"]["n"], f"{now['low']:.2f}-{now['high']:.2f}"
        print(f"what it knew: {was['mean']:.2f} of {n} questions before, {now['mean']:.2f} ({limits}) after")
    if kept := known.get("kept"):
        limits = f"{kept['low']:.2f}-{kept['high']:.2f}"
        print(f"kept: {kept['mean']:.2f} ({limits}) of the {kept['n']} questions that it answered right before")
    if "text" in before and "text" in after:
        was, now = (part["text"]["nll"] for part in (before, after))
        print(f"other text: {was:.3f} nats a token before, {now:.3f} after")


def print_summary(metric: str, labels: Sequence[tuple[str, str]], rows: Sequence[dict[str, Any]], console: Console) -> None:
    """`table.summarise_runs`' rows by data set: accuracy by direction, and what is left of what the base knew. `labels`: (data, method)."""
    on_test = any(row["selected_on"] == "test" for row in rows)
    any_new, any_kept = any(f"{d}_new" in row for row in rows for d in DIRECTIONS), any("kept" in row for row in rows)
    lines = []
    for (data, label), row in zip(labels, rows, strict=True):
        shown = [
            (f"{row[f'{d}_before']:.2f} -> " if f"{d}_before" in row else "")
            + (f"{row[d]:.2f} ({row[f'{d}_low']:.2f}-{row[f'{d}_high']:.2f})" if d in row else "")
            for d in DIRECTIONS
        ]
        if any_new:
            shown.append(" ".join(f"{row[f'{d}_new']:.2f}" for d in DIRECTIONS if f"{d}_new" in row))
        shown.append(" -> ".join(f"{row[name]:.2f}" for name in ("retained_before", "retained") if name in row))
        if any_kept:
            shown.append(f"{row['kept']:.2f}" if "kept" in row else "")
        shown.append(f"{row['flops']:.1e}" if row["flops"] else "")
        lines.append((data, [label, str(row["runs"]), *shown, *([row["selected_on"]] if on_test else [])]))
    new, kept = ["not known before"] * any_new, ["kept"] * any_kept
    columns = ("method", "runs", *DIRECTIONS, *new, "retained", *kept, "FLOPs", *(["selected on"] * on_test))
    print_by_data(columns, lines, console, title=f"{metric}, with 95% intervals over runs and documents")


def print_by_data(columns: Sequence[str], lines: Sequence[tuple[str, Sequence[str]]], console: Console, title: str | None = None) -> None:
    """A table whose lines, (data set, texts), stand under the name of their data set; the first column is wrapped, the others are not."""
    table = Table(title=title, box=SIMPLE_HEAD, pad_edge=False, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, no_wrap=i > 0, justify="right" if i else "left")
    for data in dict.fromkeys(data for data, _ in lines):
        table.add_section()
        table.add_row(Text(data, style="bold"))
        for own, texts in lines:
            if own == data:
                table.add_row(*map(escape, texts))
    console.print(table)
