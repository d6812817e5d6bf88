"""A comparison of fine-tuning methods as one page that opens offline, and as a table for a spreadsheet.

A comparison is a dict ready for JSON::

    {"title": ..., "verdict": one sentence, "caption": how it was measured, "metric": the main one, a name from scoring.METRICS,
     "settings": {name: value}, "versions": {package: version},
     "methods": [{"name": "ar", "label": "autoregressive", "steps": optimiser steps, "tokens": training tokens, "seconds": of work,
                  "results": scoring.summarise's table, "answers": [types.answer_record's dicts],
                  "curve": [{"step": 100, "forward": 0.5, "backward": 0.1}, ...]}]}

Curves, groups, documents and one of the directions may be missing; the page leaves out what they would have shown.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from demask.stages import plots
from demask.types import DIRECTIONS, replacing

MAX_DOCUMENTS = 500  # rows of the fact-by-fact grid
MAX_SAMPLES = 100  # questions shown with their answers
CSV_COLUMNS = ("method", "group", "direction", "n", "metric", "mean", "low", "high", "tokens", "seconds", "steps")


def write_report(output_dir: Path, comparison: dict[str, Any]) -> Path:
    """Write `output_dir`/report.html and report.csv, each whole or not at all, and return the path of the page.

    The table has a line for each method, group ("all" and each one) and direction, with the main metric in [0, 1].
    """
    output_dir = Path(output_dir)
    page = _environment().get_template("report.html.j2").render(_view(comparison))
    with replacing(output_dir / "report.csv") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(CSV_COLUMNS)
        table.writerows(_csv_rows(comparison))
    with replacing(output_dir / "report.html") as file:
        file.write(page)
    return output_dir / "report.html"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "seconds": _seconds, "plain": _plain}
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 or seconds == 0 else f"{seconds:.1f}"


def _plain(value: Any) -> str:
    """A string as it is, several as "a / b"; everything else as JSON writes it."""
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " / ".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _view(comparison: dict[str, Any]) -> dict[str, Any]:
    """What the template shows: the comparison, and what is derived from it."""
    methods = comparison["methods"]
    directions = [name for name in DIRECTIONS if any(name in method["results"]["by_direction"] for method in methods)]
    documents = _grid(comparison)
    samples = _samples(comparison)
    return {
        **comparison,
        "directions": directions,
        "groups": _groups(methods),
        "bars": Markup(plots.bars(comparison)),  # the only texts that are not escaped here: matplotlib has done it
        "curves": Markup(plots.curves(comparison)),
        "documents": documents[:MAX_DOCUMENTS],
        "all_documents": len(documents),
        "samples": samples,
        "all_questions": len(_by_question(methods)),
    }


# --- scores -------------------------------------------------------------------------------------------------------------


def _groups(methods: list[dict[str, Any]]) -> list[str]:
    """The groups of all methods, in order of first appearance."""
    return list(dict.fromkeys(group for method in methods for group in method["results"]["by_group"]))


def _csv_rows(comparison: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    metric = comparison["metric"]
    for method in comparison["methods"]:
        results = method["results"]
        for group, cells in [("all", results["by_direction"]), *results["by_group"].items()]:
            for direction, cell in cells.items():
                score = cell[metric]
                shown = (method["name"], group, direction, cell["n"], metric, score["mean"], score["low"], score["high"])
                yield (*shown, method["tokens"], method["seconds"], method["steps"])


# --- answers ------------------------------------------------------------------------------------------------------------


def _grid(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a document in order of first appearance: its id, what it is about, and (mean score, questions) a method and direction."""
    scores: dict[str, dict[tuple[int, str], list[float]]] = {}
    about: dict[str, str] = {}
    for i, record in _records(comparison["methods"]):
        if document := record.get("document"):
            cells = scores.setdefault(document, {})
            cells.setdefault((i, record["direction"]), []).append(record["scores"][comparison["metric"]])
            # What a backward question asks for is what the document is about; failing one, any answer tells documents apart.
            if record["direction"] == "backward" or document not in about:
                about[document] = _plain(record["answer"])
    means = {document: {key: (sum(of) / len(of), len(of)) for key, of in cells.items()} for document, cells in scores.items()}
    return [{"id": document, "about": about[document], "cells": cells} for document, cells in means.items()]


def _samples(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Up to MAX_SAMPLES questions, in their order, with {method's place: (prediction, score)}."""
    chosen = []
    questions = _by_question(comparison["methods"])
    for key in _evenly(list(questions), MAX_SAMPLES):
        records = questions[key]
        record = next(iter(records.values()))
        answers = {i: (said["prediction"], said["scores"][comparison["metric"]]) for i, said in records.items()}
        shown = {name: record.get(name, "") for name in ("question", "answer", "direction", "group", "document")}
        chosen.append(shown | {"answers": answers})
    return chosen


# What makes a question the same one for two methods: group, direction, document, text.
QuestionKey = tuple[str, str, str, str]


def _by_question(methods: list[dict[str, Any]]) -> dict[QuestionKey, dict[int, dict[str, Any]]]:
    """{question: {method's place: answer record}}, in order of first appearance."""
    questions: dict[QuestionKey, dict[int, dict[str, Any]]] = {}
    for i, record in _records(methods):
        key = (record.get("group", ""), record["direction"], record.get("document", ""), record["question"])
        questions.setdefault(key, {})[i] = record
    return questions


def _records(methods: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    return ((i, record) for i, method in enumerate(methods) for record in method["answers"])


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
