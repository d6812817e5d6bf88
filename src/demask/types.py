"""The nouns every stage shares, and how they are read from and written to disk."""

from __future__ import annotations

import codecs
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import IO, Any, Literal, Union, get_args, get_origin, get_type_hints

Direction = Literal["forward", "backward"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
SPLITS = ("validation", "test")


class InputError(ValueError):
    """A user's mistake. Its message is one line that names the file, line and field; the program exits with 2."""


@dataclass(frozen=True)
class Document:
    """One text to learn. With a `prompt` it is a prompt/response pair and `text` is the response."""

    id: str
    text: str
    prompt: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Question:
    """A closed-book question; `direction` says whether its cue comes before ("forward") or after the answer in the document."""

    question: str
    answers: tuple[str, ...]
    direction: Direction
    group: str = ""
    document: str = ""
    split: str = ""


@dataclass(frozen=True)
class Answer:
    """What a model answered to a question, with its scores in [0, 1] by metric name."""

    question: Question
    prediction: str
    scores: dict[str, float]


def document_record(document: Document) -> dict[str, Any]:
    """The line of documents.jsonl for a document (metadata only where there is some)."""
    record: dict[str, Any] = {"id": document.id}
    if document.prompt is None:
        record["text"] = document.text
    else:
        record |= {"prompt": document.prompt, "response": document.text}
    return record | ({"metadata": document.metadata} if document.metadata else {})


def question_record(question: Question) -> dict[str, Any]:
    """The line of questions.jsonl for a question (a single answer as a string, several as a list)."""
    answers = question.answers
    record: dict[str, Any] = {"question": question.question, "answer": answers[0] if len(answers) == 1 else list(answers)}
    record["direction"] = question.direction
    for name in ("group", "document", "split"):
        if getattr(question, name):
            record[name] = getattr(question, name)
    return record


def answer_record(answer: Answer) -> dict[str, Any]:
    """The line of answers.jsonl for an answer."""
    return question_record(answer.question) | {"prediction": answer.prediction, "scores": answer.scores}


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[str]]:
    """Open `path` for writing UTF-8 text under a temporary name that replaces it only when all went well."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="\n") as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_jsonl(path: str | os.PathLike[str], records: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all."""
    with replacing(path) as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write one indented JSON value, whole or not at all."""
    with replacing(path) as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def write_documents(path: str | os.PathLike[str], documents: Iterable[Document]) -> None:
    write_jsonl(path, map(document_record, documents))


def write_questions(path: str | os.PathLike[str], questions: Iterable[Question]) -> None:
    write_jsonl(path, map(question_record, questions))


def read_jsonl(path: str | os.PathLike[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number from 1, object) for each non-blank line, of which one at a time is in memory.

    Raises InputError naming file and line for a missing file, text that is not UTF-8, and a line that is no JSON object.
    """
    for number, line in read_lines(path):
        yield number, parse_object(line, path, number)


def parse_object(line: str, path: str | os.PathLike[str], number: int) -> dict[str, Any]:
    """The JSON object of line `number` of the file `path`; InputError where it is none."""
    record = parse_json(line, path, number)
    if not isinstance(record, dict):
        raise InputError(f"{path}:{number}: expected a JSON object, found {json_type(record)}")
    return record


def parse_json(text: str, path: str | os.PathLike[str], line: int = 1) -> Any:
    """The value of a JSON text that starts at `line` of the file `path`; InputError naming file and line where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{line + error.lineno - 1}: not valid JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise InputError(f"{path}:{line}: its JSON is nested too deeply to be read") from None
    except ValueError:  # Python refuses to convert integers of more than 4,300 digits
        raise InputError(f"{path}:{line}: holds an integer with too many digits to be read") from None


def read_text(path: str | os.PathLike[str]) -> str:
    """The whole of a UTF-8 file, a byte-order mark dropped and line ends made "\\n"; InputError where it can't be read."""
    with open_bytes(path) as file:
        return _decoded(file.read().removeprefix(codecs.BOM_UTF8), path, 1)


def read_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) for each non-blank line of a UTF-8 file, as `read_text` would read it."""
    number = 1
    with open_bytes(path) as file:
        for raw in file:  # no byte of a longer UTF-8 character is a line's end
            text = _decoded(raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw, path, number)
            for line in text.removesuffix("\n").split("\n"):
                if line.strip():
                    yield number, line
                number += 1


def open_bytes(path: str | os.PathLike[str]) -> IO[bytes]:
    """Open a file for reading; InputError where there is none or it may not be read."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder, expected a file") from None
    except PermissionError:
        raise InputError(f"{path}: permission denied") from None


def _decoded(raw: bytes, path: str | os.PathLike[str], first: int) -> str:
    """UTF-8 text that starts at line `first` of a file, its line ends made "\n"."""
    try:
        return _plain_line_ends(raw.decode())
    except UnicodeDecodeError as error:
        line = _plain_line_ends(raw[: error.start].decode()).count("\n") + first
        raise InputError(f"{path}:{line}: not UTF-8 (byte 0x{raw[error.start]:02x}); convert the file to UTF-8") from None


def _plain_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


def json_type(value: Any) -> str:
    """The JSON name of a Python value's type, for messages."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    names = {str: "a string", int: "a number", float: "a number", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def string_field(record: dict[str, Any], name: str, where: str, default: str | None = None) -> str:
    """A non-empty string field; `where` ("file:line") opens the message of the InputError. A default makes it optional."""
    value = record.get(name, default)
    if value is None:
        problem = "is null" if name in record else "is missing"
        raise InputError(f"{where}: field '{name}' {problem}")
    if not isinstance(value, str):
        raise InputError(f"{where}: field '{name}' must be a string, found {json_type(value)}")
    if not value.strip() and default is None:
        raise InputError(f"{where}: field '{name}' is empty")
    return value


def read_questions(path: str | os.PathLike[str]) -> list[Question]:
    """Read questions.jsonl; every fault is an InputError that names file, line and field."""
    questions = []
    for number, record in read_jsonl(path):
        questions.append(question := parse_question(record, f"{path}:{number}"))
        texts = {
            "question": question.question,
            "answer": " ".join(question.answers),
            "group": question.group,
            "document": question.document,
        }
        for name, text in texts.items():
            if half := re.search("[\ud800-\udfff]", text):  # JSON can write one, UTF-8 can't
                raise InputError(f"{path}:{number}: field '{name}' holds half a surrogate pair (\\u{ord(half[0]):04x})")
    if not questions:
        raise InputError(f"{path}: no questions in it")
    return questions


def parse_question(record: dict[str, Any], where: str) -> Question:
    """The question of a line; `where` ("file:line") opens the message of the InputError."""
    answers = record.get("answer")
    if isinstance(answers, list):
        if not answers:
            raise InputError(f"{where}: field 'answer' is an empty list")
        answers = tuple(string_field({"answer": answer}, "answer", where) for answer in answers)
    else:
        answers = (string_field(record, "answer", where),)
    direction = string_field(record, "direction", where)
    if direction not in DIRECTIONS:
        raise InputError(f"{where}: field 'direction' must be one of {', '.join(DIRECTIONS)}, found '{direction}'")
    split = string_field(record, "split", where, default="")
    if split and split not in SPLITS:
        raise InputError(f"{where}: field 'split' must be one of {', '.join(SPLITS)}, found '{split}'")
    return Question(
        question=string_field(record, "question", where),
        answers=answers,
        direction=direction,
        group=string_field(record, "group", where, default=""),
        document=string_field(record, "document", where, default=""),
        split=split,
    )


def check_choices(options: Any) -> None:
    """Raise ValueError where a field of a dataclass that is declared as `Literal[...]` holds something else."""
    for name, hint in get_type_hints(type(options)).items():
        choices = [hint] if get_origin(hint) is Literal else get_args(hint) if get_origin(hint) in (Union, UnionType) else []
        allowed = [value for choice in choices if get_origin(choice) is Literal for value in get_args(choice)]
        value = getattr(options, name)
        if allowed and value not in allowed and not (value is None and type(None) in choices):
            raise ValueError(f"{name}: must be one of {', '.join(map(str, allowed))}, found '{value}'")
