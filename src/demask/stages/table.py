"""Results as tables: table.csv, a line a run and kind of question, and summary.csv, a line a configuration over its seeds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demask.scoring import METRICS, RIGHT, difference_interval, interval_over_runs
from demask.stages.results import Configuration, Result
from demask.types import DIRECTIONS, replacing

ALL = "all"  # the group of all questions
KEPT = ("kept", "kept_low", "kept_high", "kept_n")  # of what the base answered right, the share that is still right
COSTS = ("steps", "tokens", "target_tokens", "flops", "cpu_seconds")
REACHED = (0.5, 0.8)  # accuracies whose first sight is told of


def write_table(path: Path, results: Sequence[Result]) -> None:
    """table.csv: a line for every finished run, group of questions ("all" and each one) and direction."""
    axes = list(dict.fromkeys(axis for result in results for axis in result.axes))
    scores = [f"{metric}_{part}" for metric in METRICS for part in ("mean", "low", "high")]
    before = [f"{metric}_before" for metric in METRICS] + [f"{metric}_new" for metric in METRICS] + ["n_new"]
    known = ["retained_before", "retained", *KEPT, "text_nll_before", "text_nll"]
    columns = ["cell", *axes, "group", "direction", "n", *scores, *before, *known, *COSTS, "selected_on"]
    with replacing(path) as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        for result in results:
            measured, base = (_by_group(result.record.get(name) or {}) for name in ("results", "before"))
            unknown = _by_kind(unknown_before(result.answers(), result.before()))
            shared: dict[str, Any] = {"cell": result.folder.name, **result.axes, "selected_on": result.selected_on}
            kept = result.record.get("retention", {}).get("kept", {})
            shared |= {name: kept[part] for name, part in zip(KEPT, ("mean", "low", "high", "n"), strict=True) if kept}
            shared |= _retention(result.record) | _cost(result.record)
            for group, directions in measured.items():
                for direction, leaf in directions.items():
                    line = shared | {"group": group, "direction": direction, "n": leaf["n"]}
                    for metric in METRICS:
                        line |= {f"{metric}_{part}": leaf[metric][part] for part in ("mean", "low", "high")}
                        if was := base.get(group, {}).get(direction):
                            line[f"{metric}_before"] = was[metric]["mean"]
                        if new := unknown.get((group, direction)):
                            line |= {f"{metric}_new": sum(one["scores"][metric] for one in new) / len(new), "n_new": len(new)}
                    table.writerow(rounded(line))


def _by_group(measured: dict[str, Any]) -> dict[str, Any]:
    """The cells of `scoring.summarise` by group and direction."""
    return {ALL: measured.get("by_direction", {}), **measured.get("by_group", {})}


def _by_kind(answers: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The answers by group (ALL, and their own) and direction."""
    kinds: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for answer in answers:
        for group in dict.fromkeys(filter(None, (ALL, answer.get("group")))):
            kinds.setdefault((group, answer["direction"]), []).append(answer)
    return kinds


def unknown_before(answers: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those of a run's answers whose question its base, whose answers are `before`, did not answer right; none where it was not asked."""
    base = {question_key(answer): answer["scores"][RIGHT] for answer in before}
    return [answer for answer in answers if base.get(question_key(answer)) == 0]


# What makes a question the same one for two models: group, direction, document, text.
QuestionKey = tuple[str, str, str, str]


def question_key(record: dict[str, Any]) -> QuestionKey:
    return record.get("group", ""), record["direction"], record.get("document", ""), record["question"]


def write_benchmarks(path: Path, results: Sequence[Result]) -> None:
    """benchmarks.csv: a line for every finished run, task of lm-eval and metric; no file without any."""
    axes = list(dict.fromkeys(axis for result in results for axis in result.axes))
    lines: list[dict[str, Any]] = []
    for result in results:
        for (task, metric), (before, after) in result.benchmarks().items():
            line: dict[str, Any] = {"cell": result.folder.name, **result.axes, "task": task, "metric": metric}
            line |= {"before": before.get("value"), "before_stderr": before.get("stderr")}
            lines.append(line | {"after": after["value"], "after_stderr": after["stderr"]})
    if lines:
        with replacing(path) as file:
            table = csv.DictWriter(file, ["cell", *axes, *list(lines[0])[-6:]], lineterminator="\n")
            table.writeheader()
            table.writerows(lines)


def _retention(record: dict[str, Any]) -> dict[str, Any]:
    """What the base knew (share answered right, loss in nats a token), before and after; what was not measured is left out."""
    measured, found = record.get("retention", {}), dict[str, Any]()
    name = RIGHT if all(RIGHT in part.get("questions", {RIGHT}) for part in measured.values()) else "contains"  # older records lack RIGHT
    for when, end in (("before", "_before"), ("after", "")):
        parts = measured.get(when, {})
        if "questions" in parts:
            found[f"retained{end}"] = parts["questions"][name]["mean"]
        if "text" in parts:
            found[f"text_nll{end}"] = parts["text"]["nll"]
    return found


def _cost(record: dict[str, Any]) -> dict[str, float]:
    """What was planned, or, of a run that the clock or its patience ended, its share of it."""
    plan = record.get("plan", {})
    costs = {name: plan.get(name, 0) for name in COSTS[:-1]}
    steps = costs["steps"]
    trained = record.get("trained_steps", steps)
    if trained < steps:
        costs = {name: value * trained / steps for name, value in costs.items()}
    return costs | {"cpu_seconds": record.get("cpu_seconds", 0)}


def summarise_runs(configuration: Configuration, metric: str, scores: dict[str, dict[str, float]]) -> dict[str, Any]:
    """A configuration's row: its axes and its number of `runs`; the mean over them of either direction and the gap, from `scores` as
    `accuracy` gives them of the runs' answers, and in the same way of what was `retained` of old knowledge and `kept` of what the base
    answered right, each with its 95% interval over runs and documents (`_low`, `_high`) and number (`_n`); the mean costs; and the FLOPs
    at which the mean curve of either direction first came to each of REACHED. What was not measured is missing."""
    runs = configuration.runs
    row: dict[str, Any] = {**configuration.axes, "runs": len(runs)}
    row |= scores[ALL]
    retained, before = _over_runs([run.known() for run in runs], RIGHT), _over_runs([run.known_before() for run in runs], RIGHT)
    row |= {"retained_before": before[""]} if before and retained else {}
    row |= {f"retained{end}": value for end, value in retained.items()}
    row |= {f"kept{end}": value for end, value in _over_runs([run.kept() for run in runs], "kept").items()}
    row |= {name: value for name, value in _mean([_retention(run.record) for run in runs]).items() if name not in row}
    row |= _mean([_cost(run.record) for run in runs])
    for direction, points in curve(configuration, metric).items():
        for share in REACHED:
            first = next((point["flops"] for point in points if point["score"] >= share - 1e-9), None)
            row |= {} if first is None else {f"{direction}_flops_to_{share:g}": first}
    return row | {"selected_on": runs[0].selected_on}


def accuracy(
    answers: Sequence[Sequence[dict[str, Any]]], metric: str, before: Sequence[Sequence[dict[str, Any]]] = ()
) -> dict[str, dict[str, float]]:
    """By group (ALL, then each that occurs): of either direction the mean over runs of each run's mean, its interval and the number of
    answers, and, where both were asked, the gap (forward less backward) with its interval.

    With the answers of the runs' bases, where all of them were asked `before`: of either direction also theirs (`forward_before`), and the
    runs' over the questions that their base could not answer (`forward_new`), with interval and number."""
    groups = dict.fromkeys([ALL, *(record["group"] for run in answers for record in run if record.get("group"))])
    told = bool(before) and all(before)
    new = [unknown_before(run, base) for run, base in zip(answers, before, strict=True)] if told else []
    found = {}
    for group in groups:
        row: dict[str, float] = {}
        for direction in DIRECTIONS:
            for name, runs in ((direction, answers), (f"{direction}_before", before if told else ()), (f"{direction}_new", new)):
                scores = _over_runs([_by_kind(run).get((group, direction), []) for run in runs], metric)
                row |= {f"{name}{end}": value for end, value in scores.items()}
        if set(DIRECTIONS) <= set(row):
            forward, backward = ((row[d], row[f"{d}_low"], row[f"{d}_high"]) for d in DIRECTIONS)
            low, high = difference_interval(forward, backward)
            row |= {"gap": forward[0] - backward[0], "gap_low": low, "gap_high": high}
        found[group] = row
    return found


def _over_runs(runs: Sequence[Sequence[dict[str, Any]]], metric: str) -> dict[str, float]:
    """The mean ("") of these answers, its interval and their number; nothing where nothing was asked."""
    asked = [run for run in runs if run]
    if not asked:
        return {}
    values = [[record["scores"][metric] for record in run] for run in asked]
    clusters = [[record.get("document") or i for i, record in enumerate(run)] for run in asked]
    low, high = interval_over_runs(values, clusters)
    mean = sum(sum(run) / len(run) for run in values) / len(values)
    return {"": mean, "_low": low, "_high": high, "_n": sum(map(len, values))}


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean of every number that all have."""
    names = [name for name in found[0] if all(name in one for one in found)]
    return {name: sum(one[name] for one in found) / len(found) for name in names}


def curve(configuration: Configuration, metric: str) -> dict[str, list[dict[str, float]]]:
    """By direction, the mean over runs of the questions asked during training, at the steps that all runs have: step, flops, score.

    Only `rouge1_recall` and `contains` are measured during training.
    """
    curves = [{point["step"]: point for point in run.curve()} for run in configuration.runs]
    steps = [step for step in curves[0] if all(step in one for one in curves)]
    found = {}
    for direction in DIRECTIONS:
        name = f"{direction}_{metric}"
        points = [(step, [one[step] for one in curves]) for step in steps if all(name in one[step] for one in curves)]
        found[direction] = [
            {
                "step": step,
                "flops": sum(one["flops"] for one in at) / len(at),
                "score": sum(one[name] for one in at) / len(at),
            }
            for step, at in points
        ]
    return {direction: points for direction, points in found.items() if points}


def write_summary(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows as CSV, in the columns that any of them has."""
    with replacing(path) as file:
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
        table.writeheader()
        table.writerows(map(rounded, rows))


def rounded(row: dict[str, Any]) -> dict[str, Any]:
    """A row as a table has it: shares, losses and means with four digits behind the point."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
