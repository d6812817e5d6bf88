"""What is left of what the base knew: of the questions that it answered right, those that the trained model still answers right."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from demask.runs import KNOWN_AFTER, KNOWN_BEFORE
from demask.scoring import interval
from demask.types import read_jsonl


def kept_answers(before: Iterable[dict[str, Any]], after: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trained model's answers (lines of known.jsonl) to what the base answered right (known_before.jsonl), paired by question.

    Their only score is `kept`: 1.0 for an answer that is right, else 0.0.
    """
    knew = {_question(record) for record in before if _right(record)}
    return [record | {"scores": {"kept": float(_right(record))}} for record in after if _question(record) in knew]


def kept_share(folder: str | os.PathLike[str]) -> dict[str, float]:
    """The share of a run's `kept_answers` that are right: {"n": those that the base answered right, "mean", "low", "high"}.

    The 95% interval is over documents, or questions that name none. Empty where the base answered nothing right, or was not asked.
    """
    before, after = Path(folder) / KNOWN_BEFORE, Path(folder) / KNOWN_AFTER
    if not before.is_file() or not after.is_file():
        return {}
    answers = kept_answers(*([record for _, record in read_jsonl(path)] for path in (before, after)))
    if not answers:
        return {}
    values = [record["scores"]["kept"] for record in answers]
    low, high = interval(values, [record.get("document") or number for number, record in enumerate(answers)])
    return {"n": len(values), "mean": sum(values) / len(values), "low": low, "high": high}


def _right(record: dict[str, Any]) -> bool:
    """All words of a right answer are there."""
    return bool(record["scores"]["rouge1_recall"] == 1)


def _question(record: dict[str, Any]) -> tuple[str, str]:
    return record.get("document", ""), record["question"]
