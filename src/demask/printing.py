"""Results as the command line shows them."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table


def print_results(results: dict[str, Any]) -> None:
    """The scoring table: a row for each group and direction."""
    table = Table("group", "direction", "n", "ROUGE-1 recall", "contains", title="answers, with 95% intervals")
    for group, directions in [("all", results["by_direction"]), *results["by_group"].items()]:
        for direction, cell in directions.items():
            scores = [f"{cell[m]['mean']:.2f} ({cell[m]['low']:.2f}-{cell[m]['high']:.2f})" for m in ("rouge1_recall", "contains")]
            table.add_row(escape(group), direction, str(cell["n"]), *scores)
    Console().print(table)


def print_retention(known: dict[str, Any]) -> None:
    """What the model knew before, before and after, a line each for questions and text."""
    before, after = known["before"], known.get("after", {})
    if "questions" in before and "questions" in after:
        was, now = (part["questions"]["contains"] for part in (before, after))
        n, limits = after["questions"]["n"], f"{now['low']:.2f}-{now['high']:.2f}"
        print(f"what it knew: {was['mean']:.2f} of {n} questions before, {now['mean']:.2f} ({limits}) after (contains)")
    if "text" in before and "text" in after:
        was, now = (part["text"]["nll"] for part in (before, after))
        print(f"other text: {was:.3f} nats a token before, {now:.3f} after")


def print_summary(metric: str, axes: list[str], rows: list[dict[str, Any]], console: Console) -> None:
    """A line for each of `table.summarise_runs`' rows: its axes, accuracy by direction, and what is left of what the base knew."""
    scores = ("forward", "backward")
    on_test = any(row["selected_on"] == "test" for row in rows)
    columns = (*axes, "runs", *scores, "retained", "FLOPs", *(["selected on"] if on_test else []))
    table = Table(*columns, title=f"{metric}, with 95% intervals over runs and documents")
    for row in rows:
        shown = [f"{row[d]:.2f} ({row[f'{d}_low']:.2f}-{row[f'{d}_high']:.2f})" if d in row else "" for d in scores]
        kept = " -> ".join(f"{row[name]:.2f}" for name in ("retained_before", "retained") if name in row)
        flops = f"{row['flops']:.1e}" if row["flops"] else ""
        cells = [*(escape(row.get(axis, "")) for axis in axes), str(row["runs"]), *shown, kept, flops]
        table.add_row(*cells, *([row["selected_on"]] if on_test else []))
    if rows:
        console.print(table)
