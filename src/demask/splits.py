"""Which questions select a checkpoint and which test it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from demask.masking import generator
from demask.types import Question

_SPLIT, _ROUND = 21, 22  # streams of the seed
SHARE = 0.2  # of the questions is for validation
ENOUGH = 100  # questions, and documents, in the validation split by document


def assign_splits(questions: Sequence[Question], seed: int) -> list[Question]:
    """Questions without a split get one, a fifth of them "validation" and the rest "test", by seeded hash.

    By document, so that no document is on both sides, where a fifth of the documents is at least ENOUGH of them with at least as many
    questions. Few documents give too few questions to select by: there it is a fifth of the questions about each document in each
    direction (rounded up or down, by the seed). The same question of a document is on one side.
    """
    chosen = None if by_document(questions) else _of_each_document(questions, seed)

    def split(question: Question) -> str:
        validation = _by_hash(seed, _document(question)) if chosen is None else _key(question) in chosen
        return "validation" if validation else "test"

    return [question if question.split else replace(question, split=split(question)) for question in questions]


def by_document(questions: Sequence[Question]) -> bool:
    """Whether the questions without a split get it by their document (one that names none: by its own words)."""
    asked = [question for question in questions if not question.split]
    documents = {_document(question) for question in asked}
    return SHARE * min(len(asked), len(documents)) >= ENOUGH


def said_of_splits(questions: Sequence[Question]) -> list[str]:
    """A line on how `assign_splits` deals out these questions; none where all have a split."""
    if all(question.split for question in questions):
        return []
    if by_document(questions):
        return ["split: by document, a fifth of the documents is for validation"]
    return [f"split: by question, a fifth of each document's is for validation (fewer than {ENOUGH / SHARE:.0f} documents)"]


def _document(question: Question) -> str:
    return question.document or question.question


def _by_hash(seed: int, text: str) -> bool:
    return generator(seed, _SPLIT, crc32(text.encode())).random() < SHARE


def _key(question: Question) -> tuple[str, str, str]:
    return question.document, question.direction, question.question


def _of_each_document(questions: Sequence[Question], seed: int) -> set[tuple[str, str, str]]:
    """The validation questions. Those that name no document are taken together, by direction."""
    kinds: dict[tuple[str, str], dict[tuple[str, str, str], None]] = {}
    for question in questions:
        if not question.split:
            kinds.setdefault((question.document, question.direction), {})[_key(question)] = None
    chosen: set[tuple[str, str, str]] = set()
    for kind, keys in kinds.items():
        # What is left over of whole fifths is drawn, so that it is a fifth on the average: of one question about a document too.
        extra = generator(seed, _ROUND, crc32("\0".join(kind).encode())).random()
        number = int(SHARE * len(keys) + extra)
        chosen.update(sorted(keys, key=lambda key: generator(seed, _SPLIT, crc32("\0".join(key).encode())).random())[:number])
    return chosen
