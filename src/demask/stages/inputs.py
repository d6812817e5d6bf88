"""The inputs of a study's cells that no file of the user holds: each is written once under the study's folder, and named by what it is."""

from __future__ import annotations

import hashlib
import json
import tempfile
from functools import cache
from pathlib import Path

from demask.corpora import CORPORA, world
from demask.corpora.files import Notes, iter_documents
from demask.examples import Collector, Texts
from demask.general import general_questions
from demask.types import InputError, write_documents, write_questions
from demask.writing.cloze import questions_of


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def generated(folder: Path, corpus: str, options: str) -> Path:
    """The folder of a generated corpus' `documents.jsonl` and `questions.jsonl`; `options` is a JSON object."""
    target = folder / "data" / f"{corpus}-{digest(options.encode())[:8]}"
    try:
        documents, questions = CORPORA[corpus](**json.loads(options))
    except TypeError as error:
        raise InputError(f"data: corpus '{corpus}': {error}") from None
    write_documents(target / "documents.jsonl", documents)
    write_questions(target / "questions.jsonl", questions)
    return target


@cache
def old_world(folder: Path, seed: int) -> Path:
    """The folder of what the embedded models have read, asked and not asked: for rehearsal, and to see what is forgotten."""
    target = folder / "data" / f"world-{seed}"
    write_documents(target / "rehearsal.jsonl", world.rehearsal(2000, seed))
    write_questions(target / "questions.jsonl", world.old_questions(100, seed))
    known = world.old_documents(100, seed)
    write_documents(target / "documents.jsonl", known)
    write_documents(target / "retold.jsonl", world.retold(seed))
    write_documents(target / "rehearsal_documents.jsonl", world.rehearsal_documents(2000, seed, {document.id for document in known}))
    return target


@cache
def general_file(folder: Path) -> str:
    """The file of the general questions, whose content is part of a cell's name."""
    target = folder / "data" / "general" / "questions.jsonl"
    write_questions(target, general_questions())
    return str(target)


@cache
def auto_questions(folder: Path, documents: tuple[str, ...], text_column: str) -> str:
    """The file of the questions that are made of documents themselves."""
    target = folder / "data" / f"auto-{digest(json.dumps([documents, text_column]).encode())[:8]}" / "questions.jsonl"
    with tempfile.TemporaryDirectory() as scratch:
        texts = Collector(Path(scratch) / "texts.arrow")
        for placed in iter_documents(documents, text_column, Notes()):  # a cell's plan tells what was passed over
            if placed.document.prompt is None:
                texts.add({"id": placed.document.id, "text": placed.document.text})
        write_questions(target, questions_of(Texts(texts.finish()), seed=0))
    return str(target)
