"""What a question is shown with where nothing was trained: the document it is about, or what BM25 finds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from demask.types import Document, InputError, Question

Context = Literal["document", "bm25"]
CONTEXTS: tuple[Context, ...] = ("document", "bm25")


def passages(questions: Sequence[Question], documents: Sequence[Document], context: Context, size: int = 3) -> list[list[Document]]:
    """The documents to show before each question: the first that is about it ("document"), or the `size` best by BM25, best first.

    Raises InputError for a question whose document is not among `documents`.
    """
    if context == "bm25":
        return _found(questions, documents, size)
    by_id: dict[str, Document] = {}
    for place in range(3):  # a document of that very id first, then a part of it, then a paraphrase
        for document in documents:
            by_id.setdefault(_names(document.id)[place], document)
    for question in questions:
        if question.document not in by_id:
            raise InputError(f"question '{question.question[:60]}': its document '{question.document}' is not among the documents")
    return [[by_id[question.document]] for question in questions]


def _names(document_id: str) -> tuple[str, str, str]:
    """What a document is, what it is a part of (x-p2 for `x-p2#1`), and what that is a paraphrase of (x)."""
    whole = re.sub(r"#\d+$", "", document_id)
    return document_id, whole, re.sub(r"-p\d+$", "", whole)


def _found(questions: Sequence[Question], documents: Sequence[Document], size: int) -> list[list[Document]]:
    """By BM25 (bm25s's defaults: Lucene's variant) over lower-cased words; equal scores in the documents' order."""
    import bm25s

    retriever = bm25s.BM25()
    retriever.index([_words(document.text) or [""] for document in documents], show_progress=False)
    found = []
    for question in questions:
        scores = retriever.get_scores(_words(question.question) or [""])
        best = np.argsort(-scores, kind="stable")[:size]
        found.append([documents[i] for i in best])
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def recall(questions: Sequence[Question], shown: Sequence[Sequence[Document]]) -> float | None:
    """The share of the questions that name their document which were shown it, a part or a paraphrase of it; None without any."""
    hits = [
        any(question.document in _names(document.id) for document in documents)
        for question, documents in zip(questions, shown, strict=True)
        if question.document
    ]
    return sum(hits) / len(hits) if hits else None


def with_passages(text: str, documents: Sequence[Document]) -> str:
    """The user's turn: the passages, a paragraph each, then the question."""
    return "\n\n".join([*(document.text for document in documents), text])


def context_settings(context: str | None, size: int, questions: Sequence[Question], shown: Sequence[Sequence[Document]]) -> dict[str, Any]:
    """What results.json says of it."""
    if context is None:
        return {}
    said: dict[str, Any] = {"context": context}
    return said | ({"context_size": size, "recall": recall(questions, shown)} if context == "bm25" else {})
