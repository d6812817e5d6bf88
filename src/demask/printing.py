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
        was, now = (part["questions"]["contains"] for part in (before, after))
        n, limits = after["questions"]["n"], f"{now['low']:.2f}-{now['high']:.2f}"
        print(f"what it knew: {was['mean']:.2f} of {n} questions before, {now['mean']:.2f} ({limits}) after (contains)")
    if "text" in before and "text" in after:
        was, now = (part["text"]["nll"] for part in (before, after))
        print(f"other text: {was:.3f} nats a token before, {now:.3f} after")
