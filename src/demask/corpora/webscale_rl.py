"""Webscale-RL: 1.2 million questions and answers written from web text, with the text (Cen et al., arXiv 2510.06499).

Records of `pretrain_text`, `question`, `answer`, `domain` and `persona`, in parquet files data/part-0.parquet and on; .jsonl is read too.

A row made up in their form, {"pretrain_text": "Ann Ash keeps bees in Troy.", "question": "Who keeps bees in Troy?", "answer": "Ann Ash",
"domain": "Social", "persona": "reporter"}, is as `pairs` the pair of question and answer, as `texts` the document "Ann Ash keeps bees in
Troy.", once for all the questions about it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from demask.corpora.published import RECORDS, Corpus, Published, records
from demask.types import Document, InputError, string_field

FORMS = ("pairs", "texts")


def read(folder: Path, *, form: str = "pairs") -> Corpus:
    """The pairs, or the texts, read as they are asked for: all of it may be larger than memory. There are no test questions."""
    if form not in FORMS:
        raise InputError(f"build: --form must be one of {', '.join(FORMS)}, found '{form}'")
    files = sorted((path for path in folder.rglob("*") if path.suffix in RECORDS and path.is_file()), key=_in_order)
    if not files:
        raise InputError(f"{folder}: no .parquet, .jsonl or .json file in it")
    return Corpus(_pairs(files) if form == "pairs" else _texts(files), [], files)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Sorts part-2 before part-10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(path))]


def _pairs(files: list[Path]) -> Iterator[Document]:
    number = 0
    for path in files:
        for where, record in records(path):
            number += 1
            domain = string_field(record, "domain", where, default="")
            question, answer = (string_field(record, name, where).strip() for name in ("question", "answer"))
            yield Document(f"webscale-{number}", answer, prompt=question, metadata={"domain": domain} if domain else {})


def _texts(files: list[Path]) -> Iterator[Document]:
    seen: set[bytes] = set()
    for path in files:
        for where, record in records(path):
            text = string_field(record, "pretrain_text", where).strip()
            mark = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]
            if mark not in seen:
                seen.add(mark)
                yield Document(f"webscale-{len(seen)}", text)


SET = Published(
    read,
    home="huggingface.co/datasets/Salesforce/Webscale-RL",
    licence="CC-BY-NC-4.0",
    documents="1.2 million",
    questions="none",
)
