"""What the quickstart compares, and how it says what came out: the methods, their shared settings, the table and the sentence."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

METRIC = "contains"


@dataclass(frozen=True)
class Method:
    """A row of the table: its label, the settings in which it differs from the others, and how many times their steps it takes."""

    label: str
    settings: dict[str, Any]
    learning_rate: float | None = None
    rounds: int = 1


_MASKS = {"mask_pattern": "window", "mask_ratio_per": "example"}
METHODS = {
    "ar": Method("plain AR fine-tuning", {"objective": "autoregressive"}),
    "demask": Method("demask", {"objective": "demask", **_MASKS}),
    "control": Method("random-token control", {"objective": "demask", "corruption": "random", **_MASKS}),
    "diffusion": Method(
        "masked diffusion",
        {
            "objective": "diffusion",
            "format": "chat",
            "mask_pattern": "mix",
            "mask_pattern_share": 0.25,
            "eos_padding": 8,
            "crop_share": 0.5,
            "block_length": 2,
        },
        learning_rate=5e-4,
        rounds=2,
    ),
}
# What the methods start from: (label, model). The second is the first one, adapted to masked diffusion.
BASES = {"base": ("base model, before", "tiny/causal"), "diffusion_base": ("diffusion base, before", "tiny/diffusion")}
LABELS = {name: method.label for name, method in METHODS.items()} | {name: label for name, (label, _) in BASES.items()}
ROWS = ("base", "ar", "control", "demask", "diffusion_base", "diffusion")


@dataclass(frozen=True)
class QuickstartSettings:
    """What all methods share. Chosen on seeds other than the reported ones (docs/results.md)."""

    seed: int = 1
    steps: int = 300
    batch_size: int = 32
    learning_rate: float = 3e-4
    lr_scheduler_type: str = "linear"
    replay_share: float = 0.2
    max_new_tokens: int | None = 40


def compare(records: dict[str, dict[str, Any]], settings: QuickstartSettings, n_documents: int, *, own_data: bool) -> dict[str, Any]:
    """The comparison, from the methods' records: its sentence, how it was measured, and each method's results and cost."""
    methods = []
    for name in ROWS:
        plan = records[name].get("plan", {})
        cost = {"steps": plan.get("steps", 0), "tokens": plan.get("tokens", 0), "seconds": records[name].get("cpu_seconds", 0.0)}
        methods.append({"name": name, "label": LABELS[name], **cost, "results": records[name]["results"]})
    return {
        "title": "demask quickstart",
        "verdict": verdict({m["name"]: m for m in methods}),
        "caption": caption(settings, n_documents, own_data),
        "metric": METRIC,
        "methods": methods,
    }


def index(comparison: dict[str, Any], settings: QuickstartSettings, own_data: bool) -> dict[str, Any]:
    """What study.json holds (see stages/results.py): the methods' folders as the runs of a study."""
    return {
        **{name: comparison[name] for name in ("title", "verdict", "metric")},
        "about": comparison["caption"],
        "labels": {"data": {"facts": "the documents given" if own_data else "new people, one statement about each"}, "method": LABELS},
        "settings": {"all methods": asdict(settings), **{name: method.settings for name, method in METHODS.items()}},
        "cells": [{"axes": {"data": "facts", "method": name}, "folder": name} for name in ROWS],
    }


def caption(settings: QuickstartSettings, n_documents: int, own_data: bool) -> str:
    """How the numbers of the table came about."""
    made = f"{n_documents} statements about new people (generated world, seed {settings.seed}), one wording each"
    sentences = (
        f"Facts: {'the documents given' if own_data else made}.",
        "Base: the embedded model; for masked diffusion the same model adapted to it.",
        f"Every method takes {settings.steps} steps of {settings.batch_size} rows at a learning rate of "
        f"{settings.learning_rate:g} ({settings.lr_scheduler_type} schedule), masked diffusion, which learns from hidden tokens only, "
        f"{METHODS['diffusion'].rounds} times as many at {METHODS['diffusion'].learning_rate:g}; the last step is reported.",
        f"{settings.replay_share:.0%} of every batch rehearses questions about people the base knows, for every method.",
        "Masks: for demask all but one window at a ratio U(0.05, 0.95) per example; for diffusion independent ones (in a quarter of the "
        "rows all but one window) at ratios spread evenly over (0, 1) in every batch; half of its rows begin inside the statement.",
        "Accuracy: the whole answer occurs in the model's, articles, case and punctuation aside; 95% intervals over documents.",
        "Seconds: of processor time, in training and the questions asked during it.",
    )
    return " ".join(sentences)


def verdict(methods: dict[str, dict[str, Any]]) -> str:
    """One sentence that says what the numbers show, whatever they show."""

    def percent(name: str, direction: str) -> str:
        cell = methods[name]["results"]["by_direction"].get(direction)
        return "(not asked)" if cell is None else f"{cell[METRIC]['mean']:.0%}"

    def score(name: str, direction: str) -> float:
        cell = methods[name]["results"]["by_direction"].get(direction)
        return cell[METRIC]["mean"] if cell else 0.0

    says = (
        f"plain AR fine-tuning answers {percent('ar', 'forward')} of the forward and {percent('ar', 'backward')} of the backward "
        f"questions, demask {percent('demask', 'forward')} and {percent('demask', 'backward')} in as many steps"
    )
    behind = score("ar", "forward") - score("demask", "forward")
    if behind > 0.02:
        says += f", {100 * behind:.0f} points fewer forward"
    says += (
        f"; masked diffusion, on its own base, {percent('diffusion', 'forward')} and {percent('diffusion', 'backward')} in twice as many"
    )
    cured = score("demask", "backward") - score("ar", "backward") > 0.2 and behind < 0.15
    if cured and score("ar", "backward") <= 0.2:
        return f"The reversal curse and its cure: {says}."
    if cured:
        return f"Masked fine-tuning helps: {says}."
    return f"No clear gain here: {says}."


def print_table(comparison: dict[str, Any]) -> None:
    """The table on the terminal, its caption and the verdict."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table("method", "forward", "backward", "tokens", "seconds", title=comparison["title"])
    for method in comparison["methods"]:
        cells = []
        for direction in ("forward", "backward"):
            cell = method["results"]["by_direction"].get(direction)
            score = cell[comparison["metric"]] if cell else None
            cells.append(f"{score['mean']:.0%} ({score['low']:.0%}-{score['high']:.0%})" if score else "-")
        table.add_row(
            method["label"],
            *cells,
            f"{method['tokens']:,}" if method["tokens"] else "",
            f"{method['seconds']:.0f}" if method["steps"] else "",
        )
    console.print(table)
    console.print(comparison["caption"], style="dim", markup=False, highlight=False)
    console.print(f"\n{comparison['verdict']}", markup=False, highlight=False)
