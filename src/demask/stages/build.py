"""A named data set as documents.jsonl and questions.jsonl: read from a folder of its files, fetched, or generated."""

from __future__ import annotations

import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from demask.corpora import CORPORA, PUBLISHED
from demask.corpora.published import Corpus, Published
from demask.download import cache_folder, checksum, fetch
from demask.types import Document, InputError, write_documents, write_json, write_questions

FILES = ("documents.jsonl", "questions.jsonl", "source.json")
PARAPHRASES = ("none", "same_order", "permuted")
OPTIONS = ("paraphrases", "form", "calculator_marks", "lm_eval", "seed", "n")
GENERATED_PARAPHRASES = 10  # of each document of a generated set


def build(name: str, output_dir: str | os.PathLike[str], *, source: str | os.PathLike[str] | None = None, **options: Any) -> dict[str, Any]:
    """Write a set's documents.jsonl, questions.jsonl (where it has questions) and source.json into `output_dir`, all or none of them.

    `options` are those of the set's own `read` (paraphrases, form, calculator_marks, lm_eval), of a generated one seed, n and paraphrases.
    Gives what stands in source.json: name, where it is from, files with sha256, options, counts, and `warnings` where the counts are not
    those published. Raises InputError for files that are missing or broken, options the set does not have, and, where the files were
    fetched, counts that are not those published.
    """
    if name not in PUBLISHED and name not in CORPORA:
        raise InputError(f"build: there is no data set '{name}'; there are {', '.join([*PUBLISHED, *CORPORA])}")
    output = Path(output_dir)
    _check_output(output)
    options = _check_options(name, options, source)
    if name in CORPORA:
        corpus, origin = _generated(name, **options), {"generated_by": f"demask {metadata.version('demask')}"}
    else:
        known = PUBLISHED[name]
        folder = _folder(Path(source)) if source is not None else _fetched(name, known)
        corpus, origin = known.read(folder, **options), {"home": known.home, "licence": known.licence}
        origin |= {"source": str(source)} if source is not None else {"url": known.url, "revision": known.revision}
    record: dict[str, Any] = {"name": name} | origin | {"options": options}
    try:
        with tempfile.TemporaryDirectory(prefix=".demask-", dir=_above(output)) as temporary:
            _write(Path(temporary), corpus, record)
            if record["warnings"] and source is None:
                raise InputError(f"{record['warnings'][0]}, in the files of the pinned revision; please report this")
            _move(Path(temporary), output)
    except OSError as error:
        raise InputError(f"output_dir: '{output}' cannot be written ({(error.strerror or str(error)).lower()})") from None
    return record


def sets_tables() -> tuple[Table, Table]:
    """All sets, a row each: size, paraphrases and where the files come from; and who publishes them, under which licence."""
    sets = Table("name", "documents", "questions", "paraphrases", "files", box=SIMPLE_HEAD, pad_edge=False)
    homes = Table("name", "published at", "licence", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, known in PUBLISHED.items():
        sets.add_row(name, known.documents, known.questions, _variants(name), "fetched" if known.url else "--source")
        homes.add_row(name, known.home, known.licence)
    for name in CORPORA:
        sets.add_row(name, "by --n", "by --n", _variants(name), "generated")
    return sets, homes


def _variants(name: str) -> str:
    return ", ".join(_paraphrases(name)[1:]) or "none"


def _paraphrases(name: str) -> tuple[str, ...]:
    if name in PUBLISHED:
        return PUBLISHED[name].paraphrases
    return PARAPHRASES if "paraphrases" in inspect.signature(CORPORA[name]).parameters else ("none",)


def _check_options(name: str, given: dict[str, Any], source: Any) -> dict[str, Any]:
    """The options, those not given by their defaults. Raises InputError for one the set does not have, and for files it can't get."""
    if source is not None and name in CORPORA:
        raise InputError(f"build: {name} is generated, and read from no --source")
    read: Callable[..., Any] = PUBLISHED[name].read if name in PUBLISHED else CORPORA[name]
    parameters = inspect.signature(read).parameters
    defaults = {option: parameters[option].default for option in OPTIONS if option in parameters}
    if name in CORPORA:
        defaults |= {"seed": 1} | ({"paraphrases": "none"} if "paraphrases" in defaults else {})
    for option in given:
        if option not in defaults and option != "paraphrases":
            raise InputError(f"build: --{option} is not an option of {name}")
    variant = given.get("paraphrases", "none")
    if variant not in PARAPHRASES:
        raise InputError(f"build: --paraphrases must be one of {', '.join(PARAPHRASES)}, found '{variant}'")
    if variant not in _paraphrases(name):
        raise InputError(f"{name}: it has no paraphrases '{variant}'; there are {_variants(name)}")
    if source is None and name in PUBLISHED and not PUBLISHED[name].url:
        home = PUBLISHED[name].home
        raise InputError(f"{name}: its files are not fetched, as their checksums are not known; get them from {home}; then --source FOLDER")
    return defaults | {option: value for option, value in given.items() if option in defaults}


def _check_output(output: Path) -> None:
    """Raise InputError where something else than a former build would be written over, before anything is read or fetched."""
    if not output.exists():
        return
    if not output.is_dir():
        raise InputError(f"output_dir: '{output}' is a file, expected a folder")
    names = {path.name for path in output.iterdir()}
    if names and not (names <= set(FILES) and _is_ours(output / "source.json")):
        raise InputError(f"output_dir: '{output}' holds something else than a former build; name a new folder")


def _is_ours(path: Path) -> bool:
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(record, dict) and record.get("name") in {*PUBLISHED, *CORPORA}


def _folder(source: Path) -> Path:
    if not source.is_dir():
        raise InputError(f"source: '{source}' is {'a file, expected a folder' if source.exists() else 'no folder'}")
    return source


def _fetched(name: str, known: Published) -> Path:
    folder = cache_folder() / name / known.revision
    for file, sha256 in known.files.items():
        fetch(f"{known.url}/{file}", folder / file, sha256)
    return folder


def _generated(name: str, seed: int, n: int, paraphrases: str = "none") -> Corpus:
    options: dict[str, Any] = {"n": n}
    if paraphrases != "none":
        order = "same" if paraphrases == "same_order" else "permuted"
        options |= {"paraphrases": GENERATED_PARAPHRASES, "paraphrase_order": order}
    documents, questions = CORPORA[name](seed, **options)
    return Corpus(documents, questions, [])


def _write(folder: Path, corpus: Corpus, record: dict[str, Any]) -> None:
    """The files, into a folder of their own; completes the record."""
    count = 0

    def counted(document: Document) -> Document:
        nonlocal count
        count += 1
        return document

    write_documents(folder / "documents.jsonl", map(counted, corpus.documents))
    if not count:
        raise InputError(f"{record['name']}: no documents in {', '.join(map(str, corpus.files))}")
    if corpus.questions:
        write_questions(folder / "questions.jsonl", corpus.questions)
    counts = {"documents": count, "questions": len(corpus.questions)}
    record |= {"files": {str(path): checksum(path) for path in corpus.files}} | counts
    record["warnings"] = [
        f"{record['name']}: expected {number:,} {what}, found {counts[what]:,}"
        for what, number in corpus.expected.items()
        if counts[what] != number
    ]
    write_json(folder / "source.json", record)


def _above(output: Path) -> Path:
    """The nearest folder above the output that is there already: on the same disk, and nothing is made before all is well."""
    return next(parent for parent in output.absolute().parents if parent.exists())


def _move(temporary: Path, output: Path) -> None:
    """What was built takes the place of a former build, source.json last: where that is missing, something came between."""
    output.mkdir(parents=True, exist_ok=True)
    for name in reversed(FILES):
        (output / name).unlink(missing_ok=True)
    for name in FILES:
        if (temporary / name).exists():
            shutil.move(temporary / name, output / name)
