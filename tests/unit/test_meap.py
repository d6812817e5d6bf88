"""MEAP: which input tokens are hidden, while every label stays."""

from __future__ import annotations

import math

import pytest

from demask.chat_format import IGNORE, ChatFormat
from demask.masking import MaskRatio
from demask.objectives.autoregressive import Autoregressive
from demask.objectives.meap import Meap
from demask.types import Document
from tests.tokenizers import chatml

FACT = Document("1", "Ann keeps bees.")
PAIR = Document("2", "Ann keeps bees.", prompt="Who keeps bees?")
CHAT = ChatFormat(chatml())
MASK = CHAT.tokenizer.convert_tokens_to_ids("[]")


def rows(objective: Meap, document: Document, visits: int) -> tuple[list[list[int]], list[list[int]]]:
    example = objective.examples([document], CHAT)[0]
    placed = [{**example, "example": 0, "visit": visit, "step": visit, "steps": visits} for visit in range(visits)]
    batch = objective.collate(placed, CHAT, 0)
    return batch["input_ids"].tolist(), batch["labels"].tolist()


@pytest.mark.parametrize("document", [FACT, PAIR])
@pytest.mark.parametrize("format", ["chat", "raw"])
def test_only_the_document_s_tokens_are_hidden(document: Document, format: str) -> None:
    plain = Autoregressive(format).examples([document], CHAT)[0]  # type: ignore[arg-type]
    ids, labels = rows(Meap(MASK, MaskRatio(1, 1), format=format), document, 3)  # type: ignore[arg-type]
    start = plain["labels"].index(next(label for label in plain["labels"] if label != IGNORE))
    assert ids == [[*plain["input_ids"][:start], *[MASK] * 4, plain["input_ids"][start + 4]]] * 3, "all four, and not the end"
    assert labels == [plain["labels"]] * 3
    ids, labels = rows(Meap(MASK, MaskRatio(0, 0), format=format), document, 1)  # type: ignore[arg-type]
    assert ids == [plain["input_ids"]]


def test_fifteen_in_a_hundred_by_default() -> None:
    ids, _ = rows(Meap(MASK), FACT, 1000)
    hidden = sum(row.count(MASK) for row in ids)
    assert abs(hidden - 600) < 4 * math.sqrt(4000 * 0.15 * 0.85)
    assert ids == rows(Meap(MASK), FACT, 1000)[0], "the same at the same visit"


def test_a_rehearsed_example_is_read_as_it_is() -> None:
    plain = Autoregressive().examples([PAIR], CHAT)[0]
    row = {**plain, "example": 0, "visit": 0, "step": 0, "steps": 1}
    assert Meap(MASK, MaskRatio(1, 1)).collate([row], CHAT, 0)["input_ids"].tolist() == [plain["input_ids"]]


def test_size_is_that_of_plain_training() -> None:
    objective = Meap(MASK)
    assert objective.size(objective.examples([FACT], CHAT)[0], CHAT) == Autoregressive().size(
        Autoregressive().examples([FACT], CHAT)[0], CHAT
    )
