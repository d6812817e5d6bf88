"""The formats of documents: one function each, which imports its library when it is first needed.

A reader takes (path, text column, remark) and yields (number, where, record): the number of the line, row or item from 1 on, 0 for a file
that is one document, whose record then holds `text` and what else is known of it; where it stands, for messages; and the record's fields,
or the InputError that says why it has none: a reader goes on after a bad record. `remark` takes a line the user should know.
"""

from __future__ import annotations

import csv
import json
import logging
import re
import textwrap
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from demask.corpora.encoding import Remark, decode, encoding_of
from demask.types import InputError, json_type, open_bytes, parse_json, parse_object, read_lines, read_text

Found = tuple[int, str, dict[str, Any] | InputError]

DELIMITERS = ",;\t"
ROWS = 256  # of a parquet file, read at a time


def read_plain(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    yield 0, str(path), {"text": _whole(path, remark)}


def read_markdown(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    """YAML between a first line `---` and the next one is front matter, unless it reads as mere text (two rules of Markdown)."""
    text = _whole(path, remark)
    front, body = _front_matter(text, path)
    title = front.pop("title", None)
    heading = re.match(r"#[ \t]+(.*?)[ \t#]*(?:\n|\Z)", body)
    if isinstance(title, (str, int, float)) and str(title).strip():
        front["title"] = " ".join(str(title).split())
        body = _under(front["title"], body)
    elif heading and heading[1]:
        front["title"] = heading[1]
    yield 0, str(path), front | {"text": _filled(body, path)}


def _front_matter(text: str, path: Path) -> tuple[dict[str, Any], str]:
    found = re.match(r"---[ \t]*\n(.*?\n)??(?:---|\.\.\.)[ \t]*(?:\n|\Z)", text, re.DOTALL)
    if not found:
        return {}, text
    import yaml

    source = found[1] or ""
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(source)):  # a few of them can stand for gigabytes
            raise InputError(f"{path}: the front matter holds an alias (*), write out what it stands for")
        front = yaml.safe_load(source)
        fields = json.loads(json.dumps(front, default=str))  # a date becomes its text
    except InputError:
        raise
    except yaml.YAMLError as error:
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or getattr(error, "reason", None)
        line = f":{mark.line + 2}" if mark else ""
        raise InputError(f"{path}{line}: the front matter is not valid YAML ({problem or 'unreadable'})") from None
    except (TypeError, ValueError, RecursionError) as error:  # what YAML can say and JSON can't, impossible dates, endless nesting
        raise InputError(f"{path}: the front matter can't be kept as metadata ({_reason(error)})") from None
    if fields is not None and not isinstance(fields, dict):
        return {}, text
    if "text" in (fields or {}):
        raise InputError(f"{path}: the front matter can't have a field 'text': it is what stands below")
    return fields or {}, text[found.end() :].strip()


def _under(title: str, body: str) -> str:
    """The text with the title as its first line, unless it begins with it already."""
    begins = re.match(rf"[#\s*_]*{re.escape(title)}(?!\w)", body, re.IGNORECASE)
    return body if begins else f"{title}\n\n{body}".strip()


def read_html(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    """The main content as trafilatura finds it; the whole page where it is small, and where more than links would be left out."""
    from demask.corpora.html import page

    with open_bytes(path) as file:
        raw = file.read()
    declared = re.search(rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w-]+)", raw[:4096], re.IGNORECASE)
    source = decode(raw, path, remark, declared[1].decode() if declared else None)
    _no_nul(source, path)
    _filled(source, path)
    try:
        with _quiet("trafilatura"):
            title, text = page(source)
    except Exception as error:  # lxml and trafilatura raise many kinds for what is no HTML, none of them of use to a user
        raise InputError(f"{path}: can't be read as HTML ({_reason(error)})") from None
    text = _filled(text, path)
    yield 0, str(path), {"title": title, "text": _under(title, text)} if title else {"text": text}


def read_pdf(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    from demask.corpora.pdf import document

    with open_bytes(path) as file:
        raw = file.read()
    try:
        with _quiet("pypdf"):
            title, text, pages, empty = document(raw)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # pypdf meets broken files with KeyError, AttributeError, zlib.error, RecursionError and many more
        raise InputError(f"{path}: can't be read as PDF ({_reason(error)})") from None
    if not text:
        raise InputError(f"{path}: no text in it (a scan? run OCR first)")
    if empty:
        remark(f"{path}: {empty} of {pages} pages hold no text")
    yield 0, str(path), {"title": title, "text": text} if title else {"text": text}


def read_json_lines(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    for number, line in read_lines(path):
        where = f"{path}:{number}"
        try:
            yield number, where, parse_object(line, path, number)
        except InputError as error:
            yield number, where, error


def read_json(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    text = read_text(path)
    items = parse_json(text, path) if text.strip() else []
    if not isinstance(items, list):
        raise InputError(f"{path}: expected a JSON list, found {json_type(items)}; one object a line is .jsonl")
    for number, item in enumerate(items, start=1):
        where = f"{path}: item {number}"
        if isinstance(item, (str, dict)):
            yield number, where, item if isinstance(item, dict) else {text_column: item}
        else:
            yield number, where, InputError(f"{where}: expected a JSON object or a string, found {json_type(item)}")


def read_csv(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    """Rows under a header; the delimiter is the one by which the header names the text, else the one that cuts it most often.

    An empty cell is a field that is missing, so that it becomes no metadata. Numbered by the line of the file at which a row begins.
    """
    with open_bytes(path) as file:
        encoding = encoding_of(iter(lambda: file.read(1 << 20), b""), path, remark)
    csv.field_size_limit(1 << 24)  # characters; its default is too short for a chapter
    with open(path, encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline="") as lines:
        first = lines.readline(1 << 16)
        lines.seek(0)
        choices = [(_header(first, delimiter), delimiter) for delimiter in ("\t,;" if path.suffix.lower() == ".tsv" else DELIMITERS)]
        header, delimiter = max(choices, key=lambda choice: (set(text_fields(choice[0], text_column)) <= set(choice[0]), len(choice[0])))
        rows = csv.reader(lines, delimiter=delimiter, strict=True)
        texts: tuple[str, ...] = ()
        while True:
            line = rows.line_num + 1
            where = f"{path}:{line}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except UnicodeError:
                raise InputError(f"{path}: not valid {encoding} after line {line}; convert the file to UTF-8") from None
            except csv.Error as error:
                if not texts:
                    raise InputError(f"{where}: not valid CSV ({error})") from None
                yield line, where, InputError(f"{where}: not valid CSV ({error})")
                continue
            if not row:
                continue
            if not texts:
                header = [name.strip() for name in row]
                texts = named_fields(header, text_column, where)
                if twice := [name for name in header if name and header.count(name) > 1]:
                    raise InputError(f"{where}: column '{twice[0]}' is named twice")
            elif len(row) != len(header):
                yield line, where, InputError(f"{where}: expected {len(header)} fields as in the header, found {len(row)}")
            else:
                yield line, where, {name: value for name, value in zip(header, row, strict=True) if name and (value or name in texts)}


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def read_parquet(path: Path, text_column: str, remark: Remark) -> Iterator[Found]:
    """Rows of the columns that hold the text, `id` and `title`, batch by batch; others may be large, or no JSON at all."""
    import pyarrow.parquet

    with open_bytes(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
            names = table.schema_arrow.names
            kept = [name for name in names if name in (*text_fields(names, text_column), "id", "title")]
            batches = table.iter_batches(ROWS, columns=kept)
        except Exception as error:  # pyarrow, too, raises many kinds for broken files
            raise InputError(f"{path}: can't be read as parquet ({_reason(error)})") from None
        named_fields(names, text_column, str(path))
        number = 0
        while True:
            try:
                batch = next(batches, None)
                rows = batch.to_pylist() if batch is not None else []
            except Exception as error:
                raise InputError(f"{path}: can't be read as parquet after row {number} ({_reason(error)})") from None
            if batch is None:
                return
            for row in rows:
                number += 1
                yield number, f"{path}: row {number}", row


READERS: dict[str, Callable[[Path, str, Remark], Iterator[Found]]] = {
    ".txt": read_plain,
    ".md": read_markdown,
    ".html": read_html,
    ".htm": read_html,
    ".pdf": read_pdf,
    ".jsonl": read_json_lines,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": read_csv,
    ".parquet": read_parquet,
}


def text_fields(names: Iterable[str], text_column: str) -> tuple[str, ...]:
    """The fields that hold the text of a record with these field names: the text column, else a pair's two."""
    names = set(names)
    if text_column in names or not names & {"prompt", "response", "completion"}:
        return (text_column,)
    return ("prompt", "completion" if "completion" in names and "response" not in names else "response")


def named_fields(columns: Sequence[str], text_column: str, where: str) -> tuple[str, ...]:
    """`text_fields` of a table's columns, all of which are there; else an InputError."""
    fields = text_fields(columns, text_column)
    if missing := [field for field in fields if field not in columns]:
        raise InputError(f"{where}: column '{missing[0]}' is missing; the columns are {', '.join(columns)}")
    return fields


def _whole(path: Path, remark: Remark) -> str:
    """The text of a file, its line ends made "\\n" and white space at its ends removed; InputError for one without any."""
    with open_bytes(path) as file:
        text = decode(file.read(), path, remark).replace("\r\n", "\n").replace("\r", "\n")
    _no_nul(text, path)
    return _filled(text, path)


def _filled(text: str, path: Path) -> str:
    if not text.strip():
        raise InputError(f"{path}: the file is empty")
    return text.strip()


def _no_nul(text: str, path: Path) -> None:
    if "\0" in text:
        raise InputError(f"{path}: the file holds a NUL character; is it binary?")


def _reason(error: Exception) -> str:
    return textwrap.shorten(f"{type(error).__name__}: {error}" if str(error).strip() else type(error).__name__, 200)


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Keep what a library has to say about a file, in its log and in warnings, from the user: our own line says what is wrong."""
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
