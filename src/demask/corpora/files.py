"""Documents from the user's own files, folders and Hugging Face data sets, and what to do with those that are too long."""

from __future__ import annotations

import json
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from demask.types import Document, InputError, json_type, parse_json, read_jsonl, read_text, string_field

OnLong = Literal["split", "truncate", "error"]
SUFFIXES = (".txt", ".md", ".jsonl", ".json")
Placed = tuple[str, Document]  # a document and where it was found, for messages

# `name` or `owner/name`, then perhaps `:split` in the notation of `datasets` (train, train[:100], train+test).
_HUB_NAME = re.compile(r"([A-Z0-9][\w.-]*(?:/[A-Z0-9][\w.-]*)?)(?::([\w\[\]:%+.-]+))?", re.ASCII | re.IGNORECASE)
_FILE_SUFFIX = re.compile(r"\.[A-Z]+$", re.ASCII | re.IGNORECASE)

# A sentence runs from a non-space to a stop before space and a capital, digit or quote, to a CJK stop, to a line's end, or to the end.
# A stop may hide behind one closing quote or bracket. Lower case is spotted in Latin only; elsewhere a few more cuts do no harm.
_STOP = r"(?:(?<=[.!?])|(?<=[.!?][\"'”’»)\]]))\s+(?=[\"'“‘«(\[]?[^\Wa-zß-öø-ÿ_])|(?<=[。！？])|(?<=\S)\s*(?:\n|\Z)"
_SENTENCE = re.compile(rf"\S.*?(?={_STOP})", re.DOTALL)
_WORD = re.compile(r"\S+")
_CHARACTER = re.compile(r"\S")


def read_documents(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], text_column: str = "text") -> list[Document]:
    """Read documents from one or several sources: a folder, a file, or a Hugging Face data set (`owner/name` or `owner/name:split`).

    - .txt and .md: one document a file, its text stripped, its id the file's path in the given folder without suffix.
    - .jsonl and .json: one document an object. `text` (or the field `text_column` names) is a document; `prompt` and `response` are a pair;
      `prompt` and `completion` (Berglund et al., arXiv 2309.12288) are one document, joined as published and stripped. `id` is optional
      (default: file and line or item); an object `metadata` and all other fields become the metadata. In .json, items may be strings.
    - A folder: all of these below it, sorted; hidden files and other kinds are passed over, links to folders are not followed.
    - A data set: its text column, or its pairs, and its `id` column where it has one; the split is "train" unless named.

    Raises InputError, one line that names file, line or item, and field, for whatever can't be read and for ids used twice.
    """
    names = [os.fspath(name) for name in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    if not names or not all(names):
        raise InputError("documents: expected the name of a file, a folder or a data set")
    places: dict[str, str] = {}
    documents = []
    for name in names:
        for where, document in _read_source(name, text_column):
            if document.id in places:
                raise InputError(f"{where}: id {document.id!r} is used twice, first in {places[document.id]}")
            places[document.id] = where
            documents.append(document)
    return documents


def _read_source(source: str, text_column: str) -> Iterator[Placed]:
    hub_name = _HUB_NAME.fullmatch(source)
    if os.path.isdir(source):
        return _read_folder(Path(source), text_column)
    if os.path.exists(source):
        return _read_file(Path(source), Path(source).stem, text_column)
    if hub_name and not _FILE_SUFFIX.search(hub_name[1]):
        return _read_hub(source, hub_name[1], hub_name[2] or "train", text_column)
    raise InputError(f"{source}: no such file or folder")


def _read_folder(folder: Path, text_column: str) -> Iterator[Placed]:
    paths = sorted(path for path in _visible_files(folder) if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"{folder}: no documents in this folder; supported are {', '.join(SUFFIXES)}")
    for path in paths:
        yield from _read_file(path, path.relative_to(folder).with_suffix("").as_posix(), text_column)


def _visible_files(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> NoReturn:  # left alone, os.walk passes over a folder it may not open
        raise InputError(f"{error.filename}: {(error.strerror or 'cannot be read').lower()}")

    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(root, name) for name in names if not name.startswith("."))


def _read_file(path: Path, stem: str, text_column: str) -> Iterator[Placed]:
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(f"{path}: cannot read {suffix or 'a file without a suffix'}; supported are {', '.join(SUFFIXES)}")
    if suffix in (".txt", ".md"):
        text = _characters(read_text(path).strip(), f"{path}: the file")
        if not text:
            raise InputError(f"{path}: the file is empty")
        yield str(path), Document(stem, text)
        return
    number = 0
    for number, where, record in _lines(path) if suffix == ".jsonl" else _items(path, text_column):
        yield where, _document(record, where, f"{stem}-{number}", text_column)
    if not number:
        raise InputError(f"{path}: no documents in it")


def _lines(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for number, record in read_jsonl(path):
        yield number, f"{path}:{number}", record


def _items(path: Path, text_column: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    text = read_text(path)
    items = parse_json(text, path) if text.strip() else []
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a JSON list, found {json_type(items)}; one object a line is .jsonl")
    for number, item in enumerate(items, start=1):
        where = f"{path}: item {number}"
        if not isinstance(item, (str, dict)):
            raise InputError(f"{where}: expected a JSON object or a string, found {json_type(item)}")
        yield number, where, item if isinstance(item, dict) else {text_column: item}


def _read_hub(source: str, name: str, split: str, text_column: str) -> Iterator[Placed]:
    import datasets  # here, because it takes a second to import

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, hub, split, configuration, parsing: always about the name the user gave
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise InputError(f"{source}: no such file or folder, and not read as a Hugging Face data set ({reason})") from error
    columns = rows.column_names
    fields = _text_fields(columns, text_column)
    if missing := [field for field in fields if field not in columns]:
        raise InputError(f"{source}: column '{missing[0]}' is missing; the columns are {', '.join(columns)}")
    # Other columns may be large, or no JSON at all (images, dates), so here they don't become metadata.
    rows = rows.select_columns([column for column in columns if column in (*fields, "id")])
    number = 0
    for number, row in enumerate(rows, start=1):
        where = f"{source}: row {number}"
        yield where, _document(row, where, f"{source.split('/')[-1]}-{number}", text_column)
    if not number:
        raise InputError(f"{source}: no documents in it")


def _document(record: dict[str, Any], where: str, default_id: str, text_column: str) -> Document:
    fields = _text_fields(record, text_column)
    texts = [_characters(string_field(record, field, where), f"{where}: field '{field}'") for field in fields]
    name, metadata = _id(record, where, default_id), _metadata(record, where, fields)
    if fields == ("prompt", "response"):
        return Document(name, texts[1], texts[0], metadata)
    return Document(name, texts[0] if len(texts) == 1 else "".join(texts).strip(), None, metadata)


def _text_fields(names: Iterable[str], text_column: str) -> tuple[str, ...]:
    """The fields that hold the text of a record with these field names: the text column, else a pair's two."""
    names = set(names)
    if text_column in names or not names & {"prompt", "response", "completion"}:
        return (text_column,)
    return ("prompt", "completion" if "completion" in names and "response" not in names else "response")


def _id(record: dict[str, Any], where: str, default: str) -> str:
    value = record.get("id", default)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{where}: field 'id' must be a string or an integer, found {json_type(value)}")
    return _characters(string_field({"id": value}, "id", where), f"{where}: field 'id'")


def _metadata(record: dict[str, Any], where: str, text_fields: tuple[str, ...]) -> dict[str, Any]:
    metadata = {} if "metadata" in text_fields else record.get("metadata", {})
    if not isinstance(metadata, dict):
        raise InputError(f"{where}: field 'metadata' must be an object, found {json_type(metadata)}")
    others = {name: value for name, value in record.items() if name not in {"id", "metadata", *text_fields}}
    if both := metadata.keys() & others.keys():
        raise InputError(f"{where}: field '{min(both)}' is also in 'metadata'")
    metadata = metadata | others
    _characters(json.dumps(metadata, ensure_ascii=False), f"{where}: metadata")
    return metadata


def _characters(text: str, what: str) -> str:
    """The text itself, once it is known to hold nothing that no UTF-8 text file should; `what` opens the message."""
    if "\0" in text:
        raise InputError(f"{what} holds a NUL character; is it binary?")
    if half := re.search("[\ud800-\udfff]", text):  # JSON can write one, UTF-8 can't
        raise InputError(f"{what} holds half a surrogate pair (\\u{ord(half[0]):04x})")
    return text


def split_long(
    documents: Iterable[Document], length: Callable[[str], int], limit: int, on_long: OnLong = "split"
) -> tuple[list[Document], list[str]]:
    """Make every document fit in `limit` tokens, as `length(text)` counts them; a pair's prompt and response count together.

    - "split": parts `id#1`, `id#2`, ... with as many whole sentences each as fit; a sentence that is too long is cut between words, and a
      word that is too long between characters. Only space at the cuts is lost. A pair is refused.
    - "truncate": cut after the last word that fits (a pair: of its response).
    - "error": refuse.

    Returns the documents and, for the user, a line about each one that was changed. Raises InputError naming document, tokens and limit.
    """
    fitting: list[Document] = []
    notes = []
    for document in documents:
        prompt_tokens = 0 if document.prompt is None else length(document.prompt)
        tokens = prompt_tokens + length(document.text)
        if tokens <= limit:
            fitting.append(document)
            continue
        where = f"document {document.id!r}: {tokens:,} tokens"
        parts = _shorten(document, length, limit - prompt_tokens, on_long, f"{where}, the limit is {limit:,}")
        fitting += parts
        done = f"split into {len(parts)} parts" if on_long == "split" else f"truncated to {prompt_tokens + length(parts[0].text):,}"
        notes.append(f"{where}, {done}")
    for name, count in Counter(document.id for document in fitting).items():
        if count > 1:
            raise InputError(f"document {name!r}: a part of a split document needs this id; rename this document")
    return fitting, notes


def _shorten(document: Document, length: Callable[[str], int], limit: int, on_long: OnLong, too_long: str) -> list[Document]:
    """The documents that replace one whose text has more than `limit` tokens; `too_long` opens the message of an InputError."""
    if on_long == "error":
        raise InputError(f"{too_long}; --on_long split or truncate makes it fit")
    if on_long == "split" and document.prompt is not None:
        raise InputError(f"{too_long}; a prompt and its response can't be split, --on_long truncate cuts the response")
    text = document.text
    levels = [_SENTENCE, _WORD, _CHARACTER] if on_long == "split" else [_WORD, _CHARACTER]
    spans = _pack(text, levels, lambda start, end: length(text[start:end]) <= limit)
    try:
        if on_long == "truncate":
            start, end = next(spans)
            return [replace(document, text=text[start:end])]
        return [replace(document, id=f"{document.id}#{number}", text=text[start:end]) for number, (start, end) in enumerate(spans, start=1)]
    except _NothingFits:
        raise InputError(f"{too_long}, in which not one character of its text fits") from None


class _NothingFits(Exception):
    pass


def _pack(text: str, levels: list[re.Pattern[str]], fits: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Cut a text to spans that fit, each of as many of the first level's units as possible, too long ones cut by the levels below.

    The units go on a stack, the next one on top. One that doesn't fit alone makes way for its pieces, so that the last of them shares a
    span with what follows.
    """
    stack = [(*match.span(), 0) for match in levels[0].finditer(text)][::-1]
    while stack:
        start, end, level = stack[-1]
        count = _most(len(stack), lambda count, start=start: fits(start, stack[-count][1]))  # type: ignore[misc]
        if count:
            yield start, stack[-count][1]
            del stack[-count:]
        elif level + 1 < len(levels):
            stack[-1:] = [(*match.span(), level + 1) for match in levels[level + 1].finditer(text, start, end)][::-1]
        else:
            raise _NothingFits


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to `limit` that fits, 0 for none: doubling, then halving, so that few and mostly small ones are tried.

    Token counts of joined texts are not sums and may even shrink as a text grows, so only a count that was tried is returned.
    """
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
