"""What the cells of a study will cost, on this machine or on a named GPU."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from demask.printing import print_by_data
from demask.stages.grid import Cell
from demask.stages.results import SEED, as_text, label_all
from demask.workers import cores

# Peak rate of dense bfloat16 products (TFLOP/s) and memory (GB), from the makers' data sheets.
GPUS = {
    "T4": (65, 16),  # float16: it has no bfloat16
    "L4": (121, 24),
    "RTX4090": (165, 24),
    "L40S": (362, 48),
    "A100-40GB": (312, 40),
    "A100-80GB": (312, 80),
    "H100": (989, 80),
    "H200": (989, 141),
    "B200": (2250, 192),
}
UTILISATION = 0.3  # of the peak rate: a cautious share, as nothing can be timed


def print_plan(
    title: str,
    labels: dict[str, dict[str, str]],
    cells: Sequence[Cell],
    plans: dict[str, dict[str, Any]],
    gpu: str | None,
    console: Console,
) -> None:
    """A line for each configuration, with its seeds taken together, and the sum."""
    alike: dict[str, list[Cell]] = {}
    for cell in cells:
        alike.setdefault(cell.configuration, []).append(cell)
    axes = [{name: as_text(value) for name, value in same[0].axes.items() if name != SEED} for same in alike.values()]
    lines = []
    for (data, label), same in zip(label_all(axes, labels), alike.values(), strict=True):
        plan = plans[same[0].hash]
        numbers = ["not trained"]
        if plan:
            too_much = gpu and plan["memory_gib"] > GPUS[gpu][1]
            size = plan["parameters"]
            numbers = [
                f"{size / 1e9:.2f} B" if size >= 1e9 else f"{size / 1e6:.1f} M",
                f"{plan['steps']:,}",
                f"{plan['tokens']:,}",
                f"{plan['flops']:.1e}",
            ]
            numbers += [f"{plan['memory_gib']:.1f}{' (!)' if too_much else ''}", duration(seconds_of(plan, gpu))]
        lines.append((data, [label, str(len(same)), *numbers]))
    print_by_data(("method", "runs", "parameters", "steps", "tokens", "FLOPs", "GiB", "time"), lines, console)
    hours = sum(seconds_of(plan, gpu) for plan in plans.values()) / 3600
    where = f"GPU-hours on {gpu}" if gpu else f"hours on this machine ({hours * cores():.1f} core-hours)"
    flops = sum(plan.get("flops", 0) for plan in plans.values())
    total = f"{title}: {len(plans)} cells, {flops:.2e} FLOPs, about {hours:.1f} {where}; rough, and without the questions"
    console.print(total, markup=False, highlight=False, soft_wrap=True)


def seconds_of(plan: dict[str, Any], gpu: str | None) -> float:
    return plan.get("flops", 0) / (UTILISATION * GPUS[gpu][0] * 1e12) if gpu else plan.get("seconds", 0)


def duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
