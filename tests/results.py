"""Finished runs and studies as folders on disk, without anything trained."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from demask.runs import KNOWN_AFTER, KNOWN_BEFORE
from demask.scoring import METRICS, score, summarise
from demask.types import Answer, Question, answer_record

PLAN = {"steps": 10, "tokens": 4_000, "target_tokens": 1_500, "flops": 2e12}  # of a trained run, unless it says otherwise
MADE_WITH = {"python": "3.13.1", "versions": {"torch": "2.13.0"}, "commit": "abc", "hardware": {"cpu_count": 2}}


def answered(
    question: str,
    gold: str | Sequence[str],
    said: str | float,
    direction: str = "forward",
    group: str = "",
    document: str = "",
) -> dict[str, Any]:
    """A line of answers.jsonl; `said` may be a number, the score by every metric."""
    golds = (gold,) if isinstance(gold, str) else tuple(gold)
    scores = score(said, golds) if isinstance(said, str) else dict.fromkeys(METRICS, float(said))
    return answer_record(Answer(Question(question, golds, direction, group, document), str(said), scores))  # type: ignore[arg-type]


def pairs(forward: Iterable[float], backward: Iterable[float], group: str = "", prefix: str = "d") -> list[dict[str, Any]]:
    """A question in each direction about each document, d0, d1, ..., with these scores."""
    return [
        answered(f"{direction} {prefix}{i}?", f"answer {prefix}{i}", right, direction, group, f"{prefix}{i}")
        for direction, scores in (("forward", forward), ("backward", backward))
        for i, right in enumerate(scores)
    ]


def write_lines(path: Path, records: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_run(
    folder: Path,
    answers: Sequence[dict[str, Any]] = (),
    *,
    known: Sequence[dict[str, Any]] = (),
    known_before: Sequence[dict[str, Any]] = (),
    settings: dict[str, Any] | None = None,
    plan: dict[str, Any] | None = PLAN,
    **other: Any,
) -> Path:
    """run.json, answers.jsonl, known.jsonl and known_before.jsonl of a finished run; without a `plan` it is one of asking alone."""
    config = {"settings": {"objective": "demask", "select_on": "last", **(settings or {})}}
    record: dict[str, Any] = {"status": "finished", "config": config, "ended": "2026-05-04T03:02:01+00:00", **MADE_WITH}
    record |= {"plan": plan, "cpu_seconds": 40.0} if plan is not None else {}
    if answers:
        asked = [Answer(_question(line), line["prediction"], line["scores"]) for line in answers]
        record["results"] = summarise(asked)
        write_lines(folder / "answers.jsonl", answers)
    for name, lines in ((KNOWN_AFTER, known), (KNOWN_BEFORE, known_before)):
        if lines:
            write_lines(folder / name, lines)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(json.dumps(record | other))
    return folder


def _question(line: dict[str, Any]) -> Question:
    golds = line["answer"] if isinstance(line["answer"], list) else [line["answer"]]
    return Question(line["question"], tuple(golds), line["direction"], line.get("group", ""), line.get("document", ""))


def write_study(folder: Path, cells: Sequence[tuple[dict[str, Any], dict[str, Any] | None]], **fields: Any) -> Path:
    """study.json and a run for each (axes, arguments of `write_run`); None: that cell is not finished."""
    listed = []
    for i, (axes, run) in enumerate(cells):
        if run is not None:
            write_run(folder / "cells" / f"c{i}", **run)
        listed.append({"axes": axes, "folder": f"cells/c{i}"})
    folder.mkdir(parents=True, exist_ok=True)
    index = {"title": "A study", "labels": {}, "settings": {}, "cells": listed} | fields
    (folder / "study.json").write_text(json.dumps(index))
    return folder
