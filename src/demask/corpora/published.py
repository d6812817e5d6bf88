"""What the published data sets share: who keeps them, how their records are read, and which document a question is about.

A set is one file of this folder: a `Published`, whose `read` takes a folder and options and gives a `Corpus`. Some of them have the files
of arXiv 2510.09885: training texts as a JSON list of {"text"}, test questions as lines of {"group", "task", "question", "answer"}.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from demask.types import (
    Direction,
    Document,
    InputError,
    Question,
    json_type,
    parse_json,
    parse_question,
    read_jsonl,
    read_text,
    string_field,
)

# The paper's own files: who keeps them, and what the variants of a set's training texts are called there.
REFERENCE_HOME, REFERENCE_LICENCE = "github.com/xup5/masked_arLLM", "none stated"
REFERENCE_VARIANTS = {"none": "no_paraphrase", "same_order": "paraphrase_same_order", "permuted": "paraphrase_change_order"}
RECORDS = (".jsonl", ".json", ".parquet")
_WORD = re.compile(r"\w+")
_UNFIT = re.compile("[\0\ud800-\udfff]")


@dataclass(frozen=True)
class Corpus:
    """What the `files` of a set hold. `expected`: the published numbers of "documents" and "questions", as far as they are known."""

    documents: Iterable[Document]
    questions: list[Question]
    files: list[Path]
    expected: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Published:
    """A published set. Where `url` (a folder at the pinned `revision`) is empty, the user has to bring its files."""

    read: Callable[..., Corpus]
    home: str
    licence: str
    documents: str
    questions: str
    paraphrases: tuple[str, ...] = ("none",)
    url: str = ""
    revision: str = ""
    files: Mapping[str, str] = field(default_factory=dict)  # name -> sha256


def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, object) for each line of .jsonl, item of a .json list (or its one object), or row of .parquet; else InputError."""
    if path.suffix == ".jsonl":
        for number, record in read_jsonl(path):
            yield _fit(record, f"{path}:{number}")
    elif path.suffix == ".parquet":
        yield from _rows(path)
    else:
        value = parse_json(read_text(path), path)
        if not isinstance(value, (list, dict)):
            raise InputError(f"{path}: expected a JSON list, found {json_type(value)}")
        for number, item in enumerate(value if isinstance(value, list) else [value], start=1):
            if not isinstance(item, dict):
                raise InputError(f"{path}: item {number}: expected a JSON object, found {json_type(item)}")
            yield _fit(item, f"{path}: item {number}" if isinstance(value, list) else str(path))


def _fit(record: dict[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """(where, record), unless it holds what `read_documents` refuses: JSON can escape it, a text file can't or shouldn't hold it."""
    for name, value in record.items():
        for text in value if isinstance(value, list) else [value]:
            unfit = _UNFIT.search(text) if isinstance(text, str) else None
            if unfit:
                what = f"half a surrogate pair (\\u{ord(unfit[0]):04x})" if ord(unfit[0]) else "a NUL character"
                raise InputError(f"{where}: field '{name}' holds {what}")
    return where, record


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    import pyarrow  # heavy, and needed for this kind of file only
    from pyarrow.parquet import ParquetFile

    number = 0
    try:
        with ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1000):
                for record in batch.to_pylist():
                    number += 1
                    yield _fit(record, f"{path}: row {number}")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: not a parquet file that can be read ({str(error).splitlines()[0]})") from None


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of records that are named after a split, or lie in a folder of its name, sorted; InputError where there are none."""
    found = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix in RECORDS and path.is_file() and (path.name.startswith(split) or split in path.relative_to(folder).parts[:-1])
    ]
    if not found:
        raise InputError(f"{folder}: no {split} files in it ({split}.jsonl, {split}*.parquet, or .json files in a folder {split})")
    return found


def read_reference(
    folder: Path,
    prefix: str,
    variant: str,
    wordings: int,
    directions: Mapping[str, Mapping[str, Direction]],
    expected: dict[str, int],
) -> Corpus:
    """The paper's files {prefix}_train_{variant}.json and {prefix}_test.jsonl.

    The `wordings` of a document follow each other and are named wiki-3, wiki-3-p1, ...; a question's `document` is the first of them.
    `directions` has group -> task -> direction, with the group "*" for any.
    """
    train, test = folder / f"{prefix}_train_{variant}.json", folder / f"{prefix}_test.jsonl"
    documents, texts = [], defaultdict[str, str](str)
    for i, (where, record) in enumerate(records(train)):
        name, wording = f"{prefix.lower()}-{i // wordings}", i % wordings
        documents.append(Document(name + (f"-p{wording}" if wording else ""), string_field(record, "text", where).strip()))
        texts[name] += f"\n{documents[-1].text}"
    if not documents:
        raise InputError(f"{train}: no documents in it")
    asked = [_reference_question(record, where, directions) for where, record in records(test)]
    if not asked:
        raise InputError(f"{test}: no questions in it")
    return Corpus(documents, with_documents(asked, texts), [train, test], expected)


def _reference_question(record: dict[str, Any], where: str, directions: Mapping[str, Mapping[str, Direction]]) -> Question:
    group, task = string_field(record, "group", where, default=""), string_field(record, "task", where)
    tasks = directions.get(group) or directions.get("*")
    if tasks is None:
        raise InputError(f"{where}: field 'group' must be one of {', '.join(directions)}, found '{group}'")
    if task not in tasks:
        raise InputError(f"{where}: field 'task' must be one of {', '.join(tasks)}, found '{task}'")
    asked = {name: record[name] for name in ("question", "answer") if name in record}
    return parse_question(asked | {"group": group, "direction": tasks[task], "split": "test"}, where)


def with_documents(questions: list[Question], texts: Mapping[str, str]) -> list[Question]:
    """The questions, each with the id of the document (id -> text) it is about, where that can be told.

    It is the one that holds most of the words of question and answer. A word counts by how few of the questions have it: "What is the
    birth date of" for little, a name for much. None is named where two hold as much, or the best holds less than half.
    """
    holders = defaultdict(list)
    for name, text in texts.items():
        for word in _words(text):
            holders[word].append(name)
    words = [_words(" ".join([q.question, *q.answers])) for q in questions]
    asked = Counter(word for of_one in words for word in of_one)
    found = []
    for question, of_one in zip(questions, words, strict=True):
        weights = {word: math.log(1 + len(questions) / asked[word]) for word in sorted(of_one)}
        held: Counter[str] = Counter()
        for word, weight in weights.items():
            for name in holders.get(word, ()):
                held[name] += weight  # type: ignore[assignment]
        best = held.most_common(2)
        clear = best and best[0][1] >= sum(weights.values()) / 2 and (len(best) == 1 or best[0][1] - best[1][1] > 1e-9)
        found.append(_about(question, best[0][0] if clear else ""))
    return found


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.casefold()))


def _about(question: Question, document: str) -> Question:
    return Question(question.question, question.answers, question.direction, question.group, document, question.split)
