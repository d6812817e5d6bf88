r"""MATH: competition problems with worked solutions (Hendrycks et al., arXiv 2103.03874).

Records of `problem`, `solution`, `level` and `type`: train.jsonl and test.jsonl, parquet files of these names (also in a folder for each
subject), or one problem a .json file below the folders train and test, as first published.

A row made up in their form, {"problem": "What is half of $\\frac{2}{3}$?", "solution": "It is $\\boxed{\\frac{1}{3}}$.", "level":
"Level 1", "type": "Prealgebra"}, is for training the pair of problem and solution, for the test the question with the answer
"\\frac{1}{3}" and the group "Prealgebra".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from demask.corpora.published import Corpus, Published, records, split_files
from demask.types import Document, InputError, Question, string_field

_BOX = re.compile(r"\\(?:boxed|fbox)\s*")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # what a backslash escapes is no brace
_BARE = re.compile(r"\\?\w+")


def read(folder: Path, *, lm_eval: bool = False) -> Corpus:
    """The training problems as pairs, the test problems as questions. `lm_eval`: prompts as hendrycks_math of lm-eval asks them."""
    files = {split: split_files(folder, split) for split in ("train", "test")}
    documents: list[Document] = []
    questions = []
    for path in files["train"]:
        for where, record in records(path):
            told = {name: string_field(record, name, where, default="") for name in ("level", "type")}
            solution = string_field(record, "solution", where).strip()
            metadata = {name: value for name, value in told.items() if value}
            documents.append(Document(f"math-{len(documents) + 1}", solution, _prompt(record, where, lm_eval), metadata))
    for path in files["test"]:
        for where, record in records(path):
            answer = boxed(string_field(record, "solution", where))
            if answer is None:
                raise InputError(f"{where}: field 'solution' holds no \\boxed{{...}}, or one whose braces do not match")
            group = string_field(record, "type", where, default="")
            questions.append(Question(_prompt(record, where, lm_eval), (answer,), "forward", group, split="test"))
    return Corpus(documents, questions, files["train"] + files["test"], {"documents": 7500, "questions": 5000})


def _prompt(record: dict[str, Any], where: str, lm_eval: bool) -> str:
    problem = string_field(record, "problem", where).strip()
    return f"Problem: {problem}\nAnswer:" if lm_eval else problem


def boxed(solution: str) -> str | None:
    r"""What stands in the last \boxed{...} of a solution, braces within it and all; also of \boxed 5. None where there is none."""
    starts = [match.end() for match in _BOX.finditer(solution)]
    if not starts:
        return None
    start, depth = starts[-1], 0
    if not solution.startswith("{", start):
        bare = _BARE.match(solution, start)
        return bare[0] if bare else None
    for brace in _BRACE.finditer(solution, start):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if not depth:
            return solution[start + 1 : brace.start()].strip() or None
    return None


SET = Published(
    read,
    home="github.com/hendrycks/math",
    licence="MIT",
    documents="7,500",
    questions="5,000",
)
