"""Which questions select a checkpoint and which test it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from zlib import crc32

from demask.masking import generator
from demask.types import Question

_SPLIT = 21  # stream of the seed


def assign_splits(questions: Sequence[Question], seed: int) -> list[Question]:
    """Questions without a split get one by their document: a fifth of the documents, by seeded hash, is validation, the rest is test."""

    def split(question: Question) -> str:
        key = crc32((question.document or question.question).encode())
        return "validation" if generator(seed, _SPLIT, key).random() < 0.2 else "test"

    return [question if question.split else replace(question, split=split(question)) for question in questions]
