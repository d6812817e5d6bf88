"""What a report's page shows, worked out from finished runs: a section for each data set, in numbers, sentences and pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from demask import paper
from demask.scoring import RIGHT
from demask.stages import plots
from demask.stages.results import Collection, Configuration
from demask.stages.table import ALL, REACHED, QuestionKey, accuracy, curve, question_key, summarise_runs
from demask.types import DIRECTIONS

MAX_DRAWN = 12  # configurations in a picture of lines and in a grid of facts
MAX_DOCUMENTS = 300  # rows of a section's grid of facts
MAX_SAMPLES = 40  # questions of a section that are shown with their answers
LEARNT = 0.5  # from this share of its questions on a fact is counted as learnt


def view(collection: Collection) -> dict[str, Any]:
    """The template's variables. Texts are as they came; pictures are Markup, for matplotlib has escaped what is in them."""
    by_data: dict[str, list[Configuration]] = {}
    for configuration in collection.configurations:
        by_data.setdefault(configuration.data, []).append(configuration)
    sections = [_section(i, data, members, collection.metric) for i, (data, members) in enumerate(by_data.items())]
    return {
        "title": collection.title,
        "about": collection.about,
        "metric": collection.metric,
        "verdict": collection.verdict,
        "unfinished": collection.unfinished,
        "sections": sections,
        "paper_source": paper.SOURCE,
        "settings": collection.settings,
        "made_with": _made_with(collection.configurations),
        "n_runs": sum(len(c.runs) for c in collection.configurations),
    }


def _section(number: int, data: str, members: list[Configuration], metric: str) -> dict[str, Any]:
    rows, facts, said = [], [], []
    recall: list[dict[str, dict[str, float]]] = []
    for configuration in members:
        answers = [run.answers() for run in configuration.runs]
        rows.append(_row(configuration, metric, answers))
        facts.append(_facts(answers))
        said.append({question_key(record): record for record in (answers[0] if answers else [])})
        recall.append(accuracy(answers, "rouge1_recall") if configuration.paper else {})
    measured = [row for row in rows if row["curve"]]
    asked = [direction for direction in DIRECTIONS if any(direction in row for row in rows)]
    grid = _grid(facts[:MAX_DRAWN])
    return {
        "data": data,
        "verdict": verdict(rows),
        "rows": rows,
        "directions": asked,
        "told_before": any(f"{direction}_before" in row for row in rows for direction in asked),
        "groups": list(dict.fromkeys(group for row in rows for group in row["groups"] if group != ALL)),
        "bars": Markup(plots.bars(rows, metric, f"bars{number}")),
        "steps": Markup(plots.curves(measured[:MAX_DRAWN], metric, "step", f"steps{number}")),
        "flops": Markup(plots.curves(measured[:MAX_DRAWN], metric, "flops", f"flops{number}")),
        "ratios": Markup(plots.ratios(rows, metric, f"ratios{number}")),
        "reached": measured,
        "max_drawn": MAX_DRAWN,
        "shares": REACHED,
        "learnt": _learnt(rows, facts) if len(asked) == len(DIRECTIONS) else [],
        "documents": grid[:MAX_DOCUMENTS],
        "all_documents": len(grid),
        "drawn": rows[:MAX_DRAWN],
        "samples": _samples(rows, said, metric),
        "tasks": list(dict.fromkeys(task for row in rows for task in row["tasks"])),
        "paper": _beside_the_paper(members, recall),
    }


def _row(configuration: Configuration, metric: str, answers: Sequence[list[dict[str, Any]]]) -> dict[str, Any]:
    """`summarise_runs`' numbers and what else the page says of a configuration."""
    settings, axes = configuration.settings, configuration.axes
    groups = accuracy(answers, metric, [run.before() for run in configuration.runs])
    drawn = settings.get("mask_ratio") if "mask_ratio" in axes else None
    return {
        **summarise_runs(configuration, metric, groups),
        "label": configuration.label,
        "trained": configuration.trained,
        "plain": configuration.trained and settings.get("objective") == "autoregressive",
        "groups": groups,
        "curve": curve(configuration, metric),
        "tasks": configuration.runs[0].benchmarks(),  # of lm-eval, whose standard error is that of one run
        "method": configuration.label.replace(f", mask_ratio {axes.get('mask_ratio')}", "", 1),
        "ratio": (drawn[0], drawn[-1]) if drawn else None,
        "seeds": ", ".join(run.axes["seed"] for run in configuration.runs if "seed" in run.axes),
    }


# --- the verdict --------------------------------------------------------------------------------------------------------


def verdict(rows: Sequence[dict[str, Any]]) -> str:
    """What the numbers say of a data set: who learnt most, in both directions, at what gap and what loss; and plain training beside it."""
    trained = [row for row in rows if row["trained"] and any(direction in row for direction in DIRECTIONS)]
    asked = trained or [row for row in rows if any(direction in row for direction in DIRECTIONS)]
    if not asked:
        return "Nothing was asked."
    best = max(asked, key=_mean_of_directions)
    others = [row for row in asked if row is not best and row.get("plain")]
    lines = [f"{best['label']}{' learnt most' if len(asked) > 1 else ''}: {_said_of(best)}."]
    if others:
        plain = max(others, key=_mean_of_directions)
        lines.append(f"{plain['label']}: {_said_of(plain)}.")
    if best.get("selected_on") == "test":
        lines.append("Checkpoints were selected on the test questions: these numbers are optimistic.")
    return " ".join(line[0].upper() + line[1:] for line in lines)


def _mean_of_directions(row: dict[str, Any]) -> float:
    scores = [row[direction] for direction in DIRECTIONS if direction in row]
    return sum(scores) / len(scores)


def _said_of(row: dict[str, Any]) -> str:
    parts = []
    for direction in (direction for direction in DIRECTIONS if direction in row):
        before = f"{row[f'{direction}_before']:.0%} before, " if f"{direction}_before" in row else ""
        parts.append(f"{direction} {before}{_share(row, direction)}{' after' if before else ''} (n = {row[f'{direction}_n']:,})")
    if "gap" in row:
        parts.append(f"a gap of {100 * row['gap']:z.0f} points ({100 * row['gap_low']:z.0f} to {100 * row['gap_high']:z.0f})")
    said = ", ".join(parts)
    if "retained" in row and row["trained"]:
        before = f"{row['retained_before']:.0%} before, " if "retained_before" in row else ""
        count = f" (n = {row['retained_n']:,})" if "retained_n" in row else ""
        said += f"; old knowledge: {before}{_share(row, 'retained')} after{count}"
        if "kept" in row:
            said += f", {_share(row, 'kept')} kept of what the base answered right (n = {row['kept_n']:,})"
    return said


def _share(row: dict[str, Any], name: str) -> str:
    interval = f" ({100 * row[f'{name}_low']:.0f} to {100 * row[f'{name}_high']:.0f}%)" if f"{name}_low" in row else ""
    return f"{row[name]:.0%}{interval}"


# --- facts --------------------------------------------------------------------------------------------------------------

# (the run's place, document) -> direction -> which of its questions are right (0 or 1), and what it is about
Facts = dict[tuple[int, str], dict[str, Any]]


def _facts(answers: Sequence[list[dict[str, Any]]]) -> Facts:
    facts: Facts = {}
    for i, run in enumerate(answers):
        for record in run:
            if not (document := record.get("document")):
                continue
            fact = facts.setdefault((i, document), {"scores": {}})
            fact["scores"].setdefault(record["direction"], []).append(record["scores"][RIGHT])
            # What a backward question asks for is what the document is about; failing one, any answer tells documents apart.
            if record["direction"] == "backward" or "about" not in fact:
                fact["about"] = plain(record["answer"])
    return facts


def _learnt(rows: Sequence[dict[str, Any]], facts: Sequence[Facts]) -> list[dict[str, Any]]:
    """Of each configuration, how many facts were learnt in both directions, in one of them only, or not at all."""
    found = []
    for row, of_row in zip(rows, facts, strict=True):
        counts = dict.fromkeys(("both", "forward", "backward", "neither"), 0)
        for fact in of_row.values():
            right = [d for d in DIRECTIONS if d in fact["scores"] and _mean(fact["scores"][d]) >= LEARNT]
            counts["both" if len(right) == 2 else right[0] if right else "neither"] += 1
        if of_row:
            found.append({"label": row["label"], "n": len(of_row), **counts})
    return found


def _grid(facts: Sequence[Facts]) -> list[dict[str, Any]]:
    """A row a document in order of first appearance: its id, what it is about, and (share right, questions) by configuration's place and
    direction, over all runs."""
    documents: dict[str, dict[str, Any]] = {}
    for place, of_row in enumerate(facts):
        for (_, document), fact in of_row.items():
            row = documents.setdefault(document, {"id": document, "about": fact["about"], "scores": {}})
            for direction, scores in fact["scores"].items():
                row["scores"].setdefault((place, direction), []).extend(scores)
    return [
        {"id": row["id"], "about": row["about"], "cells": {key: (_mean(scores), len(scores)) for key, scores in row["scores"].items()}}
        for row in documents.values()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# --- samples ------------------------------------------------------------------------------------------------------------


def _samples(rows: Sequence[dict[str, Any]], said: Sequence[dict[QuestionKey, dict[str, Any]]], metric: str) -> list[dict[str, Any]]:
    """Up to MAX_SAMPLES questions in their order, each with its answers: (label, prediction, score), by configuration's first run."""
    keys = list(dict.fromkeys(key for answers in said for key in answers))
    samples = []
    for key in _evenly(keys, MAX_SAMPLES):
        answered = [(row["label"], of_row[key]) for row, of_row in zip(rows, said, strict=True) if key in of_row]
        first = answered[0][1]
        samples.append(
            {name: first.get(name, "") for name in ("question", "answer", "direction", "group", "document")}
            | {"answers": [(label, record["prediction"], record["scores"][metric]) for label, record in answered]}
        )
    return samples


def _evenly(keys: list[QuestionKey], limit: int) -> list[QuestionKey]:
    """At most `limit` of `keys`, as many of each group and direction as there are, spread over each; in their order."""
    buckets: dict[tuple[str, str], list[QuestionKey]] = {}
    for key in keys:
        buckets.setdefault(key[:2], []).append(key)
    chosen: set[QuestionKey] = set()
    for left, bucket in zip(range(len(buckets), 0, -1), sorted(buckets.values(), key=len), strict=True):
        take = min(len(bucket), (limit - len(chosen)) // left)  # what a small bucket leaves goes to the larger ones
        chosen.update(bucket[i * len(bucket) // take] for i in range(take))
    return [key for key in keys if key in chosen]


# --- the paper, and how it was made -------------------------------------------------------------------------------------


def _beside_the_paper(members: Sequence[Configuration], recall: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any] | None:
    """Our ROUGE-1 recall and the paper's of the set that this data stands for: column heads, our rows, theirs."""
    name = members[0].paper
    if not name:
        return None
    columns = [(column, direction) for column in paper.SETS[name] for direction in DIRECTIONS]
    ours = []
    for configuration, scores in zip(members, recall, strict=True):
        by_column = {column: next((scores[g] for g in groups if g in scores), {}) for column, groups in paper.SETS[name].items()}
        ours.append({"label": configuration.label, "scores": [by_column[column].get(direction) for column, direction in columns]})
    theirs = [{"model": row.model, "label": row.method, "scores": row.scores[name]} for row in paper.ROWS]
    return {"set": name, "columns": [f"{c} {d}" if c != ALL else d for c, d in columns], "ours": ours, "theirs": theirs}


def _made_with(members: Sequence[Configuration]) -> dict[str, str]:
    """Versions, commits and hardware of all runs: the values that occur, each once."""
    seen: dict[str, dict[str, None]] = {}
    for run in (run for c in members for run in c.runs):
        record = run.record
        values = {"python": record.get("python"), **record.get("versions", {}), "commit": record.get("commit"), "day": record.get("ended")}
        for name, value in record.get("hardware", {}).items():
            values[name] = value
        for name, value in values.items():
            if value is not None:
                seen.setdefault(name, {})[plain(value)[:10] if name == "day" else plain(value)] = None
    return {name: " / ".join(sorted(values)) for name, values in seen.items()}


def plain(value: Any) -> str:
    """A string as it is, several as "a / b"; everything else as JSON writes it."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " / ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
