"""GSM8K: grade-school word problems with worked answers (Cobbe et al., arXiv 2110.14168, their published files).

train.jsonl and test.jsonl are lines of `question` and `answer`. The answer's last line is "#### " and the result; `<<...>>` behind a
calculation marks where a calculator may step in.

A row made up in their form, {"question": "Ann has 2 hives of 3 bees. How many bees?", "answer": "There are 2*3=<<2*3=6>>6 bees.\\n#### 6"},
is for training the pair of that question and "There are 2*3=6 bees.\\n#### 6", for the test the question with the answer "6".
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from demask.corpora.published import Corpus, Published, records
from demask.types import Document, InputError, Question, string_field

_MARK = re.compile(r"<<[^<>\n]*>>")
_RESULT = re.compile(r"^#### *(-?[\d,]*\.?\d+) *\Z", re.MULTILINE)


def read(folder: Path, *, calculator_marks: bool = False, lm_eval: bool = False) -> Corpus:
    """The training problems as pairs, the test problems as questions. `lm_eval`: prompts as the task gsm8k of lm-eval asks them."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    documents = []
    for number, (where, record) in enumerate(records(train), start=1):
        answer, _ = _answer(record, where)
        answer = answer if calculator_marks else _MARK.sub("", answer)
        documents.append(Document(f"gsm8k-{number}", answer, prompt=_prompt(record, where, lm_eval)))
    questions = []
    for where, record in records(test):
        _, result = _answer(record, where)
        plain = result.replace(",", "")
        golds = (result,) if plain == result else (result, plain)
        questions.append(Question(_prompt(record, where, lm_eval), golds, "forward", split="test"))
    return Corpus(documents, questions, [train, test], {"documents": 7473, "questions": 1319})


def _prompt(record: dict[str, Any], where: str, lm_eval: bool) -> str:
    question = string_field(record, "question", where).strip()
    return f"Question: {question}\nAnswer:" if lm_eval else question


def _answer(record: dict[str, Any], where: str) -> tuple[str, str]:
    """The worked answer, and its result."""
    answer = string_field(record, "answer", where).strip()
    result = _RESULT.search(answer)
    if not result:
        raise InputError(f"{where}: field 'answer' must end in a line of '####' and a number")
    return answer, result[1]


_REVISION = "3101c7d5072418e28b9008a6636bde82a006892c"
SET = Published(
    read,
    home="github.com/openai/grade-school-math",
    licence="MIT",
    documents="7,473",
    questions="1,319",
    url=f"https://raw.githubusercontent.com/openai/grade-school-math/{_REVISION}/grade_school_math/data",
    revision=_REVISION,
    files={
        "train.jsonl": "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
        "test.jsonl": "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
    },
)
