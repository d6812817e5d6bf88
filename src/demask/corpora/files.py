"""Documents from the user's own files, folders and Hugging Face data sets."""

from __future__ import annotations

import json
import logging
import os
import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from demask.corpora.duplicates import Digests
from demask.corpora.formats import READERS, named_fields, text_fields
from demask.types import Document, InputError, json_type, string_field

# `name` or `owner/name`, then perhaps `:split` in the notation of `datasets` (train, train[:100], train+test).
_HUB_NAME = re.compile(r"([A-Z0-9][\w.-]*(?:/[A-Z0-9][\w.-]*)?)(?::([\w\[\]:%+.-]+))?", re.ASCII | re.IGNORECASE)
_FILE_SUFFIX = re.compile(r"\.[A-Z]+$", re.ASCII | re.IGNORECASE)


@dataclass
class Notes:
    """What the user should know of sources that were read: a line each for what was passed over, and for what was read with a doubt.

    `others` counts the files of a folder that are of no kind that is read, by their suffix.
    """

    skipped: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)

    def lines(self, limit: int = 5) -> list[str]:
        """The first lines of each kind, and a count of the rest."""
        said = [f"passed over: {line}" for line in self.skipped[:limit]] + self.remarks[:limit]
        rest = {"passed over": len(self.skipped) - limit, "such remarks": len(self.remarks) - limit}
        return said + [f"... and {count:,} more {what} (demask data check lists them)" for what, count in rest.items() if count > 0]


class Placed(NamedTuple):
    """A document, where it stands ("a.jsonl:3"), and the file or data set it is from."""

    document: Document
    where: str
    source: str


def read_documents(
    sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], text_column: str = "text", notes: Notes | None = None
) -> list[Document]:
    """Read documents from one or several sources: a folder, a file, or a Hugging Face data set (`owner/name` or `owner/name:split`).

    - .txt, .md, .html, .pdf: one document a file, its id the file's path in the given folder without suffix (with it, where two differ
      in nothing else); YAML front matter of .md may give `id`, `title` and further fields. A title is kept as metadata `title`.
    - .jsonl, .json, .csv, .tsv, .parquet: one document a record. `text` (or the field `text_column` names) is a document; `prompt` and
      `response` are a pair; `prompt` and `completion` (Berglund et al., arXiv 2309.12288) are one document, joined as published and
      stripped. `id` is optional (default: file and line, row or item); an object `metadata` and all other fields become the metadata, of
      .parquet only `title`. In .json, items may be strings.
    - A folder: all of these below it, sorted; hidden files and other kinds are passed over, links to folders are not followed.
    - A data set: its text column, or its pairs, and its columns `id` and `title` where it has them; the split is "train" unless named.

    What can't be read raises InputError, one line that names file, line or item, and field; but what is found in a folder is passed over
    and told in `notes` (without them: in the log). A folder with nothing usable in it, and an id used twice, always raise it.
    """
    told = Notes() if notes is None else notes
    documents = [placed.document for placed in iter_documents(sources, text_column, told)]
    if notes is None:
        for line in told.lines():
            logging.getLogger(__name__).warning(" ".join(line.splitlines()))
    return documents


def iter_documents(sources: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], text_column: str, notes: Notes) -> Iterator[Placed]:
    """`read_documents` one by one: of a file of many documents one is in memory (of .json the file, of .parquet a batch of rows).

    What is kept of each is a digest of its id, to find ids used twice. `notes` is filled while it runs.
    """
    names = [os.fspath(name) for name in ([sources] if isinstance(sources, (str, os.PathLike)) else sources)]
    if not names or not all(names):
        raise InputError("documents: expected the name of a file, a folder or a data set")
    met, count = Digests(), 0
    for name in names:
        for placed in _read_source(name, text_column, notes):
            if not met.add(placed.document.id):
                _refuse_twice(placed, count, names, text_column)
            count += 1
            yield placed


def _refuse_twice(twice: Placed, count: int, names: Sequence[str], text_column: str) -> None:
    """Raise InputError if the id stands in one of the first `count` documents, which are read once more to find it."""
    before = (placed for name in names for placed in _read_source(name, text_column, Notes()))
    for placed in islice(before, count):
        if placed.document.id == twice.document.id:
            raise InputError(f"{twice.where}: id {twice.document.id!r} is used twice, first in {placed.where}")


def batches(documents: Iterable[Placed], most: int = 256, characters: int = 1 << 20) -> Iterator[list[Placed]]:
    """Documents that are tokenized together: so many, or about so many characters of them."""
    batch, size = [], 0
    for placed in documents:
        batch.append(placed)
        size += len(placed.document.text) + len(placed.document.prompt or "")
        if len(batch) == most or size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def source_files(source: str) -> list[Path]:
    """The files that a source is read from, sorted; none for a data set."""
    path = Path(source)
    return list(_visible_files(path, lambda error: None)) if path.is_dir() else [path] if path.exists() else []


def _read_source(source: str, text_column: str, notes: Notes) -> Iterator[Placed]:
    hub_name = _HUB_NAME.fullmatch(source)
    if os.path.isdir(source):
        return _read_folder(source, text_column, notes)
    if os.path.exists(source):
        return _read_file(Path(source), Path(source).stem, text_column, notes.remarks.append, _refuse)
    if hub_name and not _FILE_SUFFIX.search(hub_name[1]):
        return _read_hub(source, hub_name[1], hub_name[2] or "train", text_column)
    raise InputError(f"{source}: no such file or folder")


def _read_folder(folder: str, text_column: str, notes: Notes) -> Iterator[Placed]:
    before, usable = len(notes.skipped), 0
    stems: set[str] = set()

    def skip(error: InputError) -> None:
        notes.skipped.append(str(error))

    for path in _visible_files(Path(folder), skip):
        if path.suffix.lower() not in READERS:
            notes.others[path.suffix.lower() or "without a suffix"] += 1
            continue
        name, found = path.relative_to(folder), 0
        stem = name.with_suffix("").as_posix()
        if stem in stems:  # notes.md beside notes.pdf
            stem = name.as_posix()
        stems.add(stem)
        try:
            for placed in _read_file(path, stem, text_column, notes.remarks.append, skip):
                found += 1
                yield placed
        except InputError as error:
            skip(InputError(f"{error}; the documents before it are kept, {found:,} of them") if found else error)
        usable += found
    if not usable:
        skipped = notes.skipped[before:]
        if not skipped:
            raise InputError(f"{folder}: no documents in this folder; supported are {', '.join(READERS)}")
        more = f", and {len(skipped) - 1:,} more" if len(skipped) > 1 else ""
        raise InputError(f"{folder}: nothing in this folder can be used ({skipped[0]}{more})")


def _visible_files(folder: Path, on_fault: Callable[[InputError], None]) -> Iterator[Path]:
    """The files below a folder but the hidden ones, each folder's files and folders sorted by name; links to folders are not followed."""
    waiting = [folder]
    while waiting:
        path = waiting.pop()
        if path != folder and not (path.is_dir() and not path.is_symlink()):
            if not path.is_dir():
                yield path
            continue
        try:
            names = sorted((name for name in os.listdir(path) if not name.startswith(".")), reverse=True)
        except OSError as error:
            fault = InputError(f"{path}: {(error.strerror or 'cannot be read').lower()}")
            if path == folder:
                raise fault from None
            on_fault(fault)
        else:
            waiting += [path / name for name in names]


def _refuse(error: InputError) -> NoReturn:
    raise error


def _read_file(
    path: Path, stem: str, text_column: str, remark: Callable[[str], None], on_fault: Callable[[InputError], None]
) -> Iterator[Placed]:
    """The documents of a file. A bad record goes to `on_fault`, a file that can't be read (on) raises InputError."""
    name = os.fsencode(path).decode(errors="backslashreplace")
    suffix = path.suffix.lower()
    if suffix not in READERS:
        raise InputError(f"{path}: cannot read {suffix or 'a file without a suffix'}; supported are {', '.join(READERS)}")
    if name != str(path):
        raise InputError(f"{name}: its name is not UTF-8; rename the file")
    if path.exists() and not path.is_file():  # reading a pipe would wait for ever
        raise InputError(f"{path}: is no regular file")
    records = READERS[suffix](path, text_column, remark)
    some = False
    while True:
        try:
            found = next(records, None)
        except OSError as error:
            raise InputError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
        if found is None:
            break
        some = True
        number, where, record = found
        try:
            if isinstance(record, InputError):
                raise record
            document = _document(record, where, f"{stem}-{number}" if number else stem, text_column if number else "text")
        except InputError as error:
            on_fault(error)
            continue
        yield Placed(document, where, str(path))
    if not some:
        raise InputError(f"{path}: no documents in it")


def _read_hub(source: str, name: str, split: str, text_column: str) -> Iterator[Placed]:
    import datasets  # here, because it takes a second to import

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # network, hub, split, configuration, parsing: always about the name the user gave
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
        raise InputError(f"{source}: no such file or folder, and not read as a Hugging Face data set ({reason})") from error
    columns = rows.column_names
    fields = named_fields(columns, text_column, source)
    # Other columns may be large, or no JSON at all (images, dates), so here they don't become metadata.
    rows = rows.select_columns([column for column in columns if column in (*fields, "id", "title")])
    number = 0
    for number, row in enumerate(rows, start=1):
        where = f"{source}: row {number}"
        yield Placed(_document(row, where, f"{source.split('/')[-1]}-{number}", text_column), where, source)
    if not number:
        raise InputError(f"{source}: no documents in it")


def _document(record: dict[str, Any], where: str, default_id: str, text_column: str) -> Document:
    fields = text_fields(record, text_column)
    texts = [_characters(string_field(record, field, where), f"{where}: field '{field}'") for field in fields]
    name, metadata = _id(record, where, default_id), _metadata(record, where, fields)
    if fields == ("prompt", "response"):
        return Document(name, texts[1], texts[0], metadata)
    return Document(name, texts[0] if len(texts) == 1 else "".join(texts).strip(), None, metadata)


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
    if metadata:
        _characters(json.dumps(metadata, ensure_ascii=False), f"{where}: metadata")
    return metadata


def _characters(text: str, what: str) -> str:
    """The text itself, once it is known to hold nothing that no UTF-8 text file should; `what` opens the message."""
    if "\0" in text:
        raise InputError(f"{what} holds a NUL character; is it binary?")
    if half := re.search("[\ud800-\udfff]", text):  # JSON can write one, UTF-8 can't
        raise InputError(f"{what} holds half a surrogate pair (\\u{ord(half[0]):04x})")
    return text
