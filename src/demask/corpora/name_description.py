"""NameDescription: 60 fictitious people, a name and a description each (Berglund et al., arXiv 2309.12288, their published files).

30 people are described name first ("p2d"), 30 description first ("d2p"), in 30 wordings each. The files are lines of `prompt` and
`completion`, the wordings of a person one after the other: {p2d,d2p}_prompts_train.jsonl (30 x 30), {p2d,d2p}_prompts_test.jsonl and
{p2d,d2p}_reverse_prompts_test.jsonl (30 x 10: the same direction as the document, and the other one).

A row made up in their form, {"prompt": "Ann Ash is", "completion": " the keeper of bees."}, gives the document "Ann Ash is the keeper
of bees."; a test row's prompt is the question and its completion the answer.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from demask.types import Document, InputError, Question, read_jsonl, string_field

ORDERS = {"p2d": "NameIsDescription", "d2p": "DescriptionIsName"}
PEOPLE, WORDINGS, ASKED = 30, 30, 10  # of each order


def read_name_description(folder: str | os.PathLike[str], paraphrases: int = 0) -> tuple[list[Document], list[Question]]:
    """The first wording of each person (and as many more as `paraphrases`, at most 29), and the 1,200 test questions.

    A question's `group` is the order of its person's statements, its `split` "test". Raises InputError where a file is missing, broken,
    or does not hold the published number of lines.
    """
    documents, questions = [], []
    for order, group in ORDERS.items():
        train = _rows(folder, f"{order}_prompts_train.jsonl", PEOPLE * WORDINGS)
        for person in range(PEOPLE):
            for wording in range(1 + paraphrases):
                row = train[person * WORDINGS + wording]
                name = f"{order}-{person}" + (f"-p{wording}" if wording else "")
                documents.append(Document(name, (row["prompt"] + row["completion"]).strip()))
        for direction, infix in (("forward", ""), ("backward", "_reverse")):
            for number, row in enumerate(_rows(folder, f"{order}{infix}_prompts_test.jsonl", PEOPLE * ASKED)):
                # Some published answers end in stray quotes and stops.
                answer = row["completion"].strip().rstrip(".'").strip()
                questions.append(Question(row["prompt"].strip(), (answer,), direction, group, f"{order}-{number // ASKED}", "test"))  # type: ignore[arg-type]
    return documents, questions


def _rows(folder: str | os.PathLike[str], name: str, expected: int) -> list[dict[str, Any]]:
    path = Path(folder) / name
    rows = []
    for number, record in read_jsonl(path):
        rows.append({field: string_field(record, field, f"{path}:{number}") for field in ("prompt", "completion")})
    if len(rows) != expected:
        raise InputError(f"{path}: expected the published {expected} lines, found {len(rows)}")
    return rows
