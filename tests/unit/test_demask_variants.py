"""The variants of masked fine-tuning: what they show, what they train on, and that the defaults are what they were."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from demask.chat_format import IGNORE, ChatFormat
from demask.masking import MaskRatio, generator
from demask.objectives.autoregressive import Autoregressive
from demask.objectives.demask import Demask
from demask.types import Document
from tests.tokenizers import chatml

FACT = Document("1", "Ann keeps bees.")
PAIR = Document("2", "Ann keeps bees.", prompt="Who keeps bees?")
LONG = Document("3", "The mason and the baker met on 12 May 1984, near the old mill.\nThey were glad! The woman is called Ann.")
CHAT = ChatFormat(chatml())
MASK = CHAT.tokenizer.convert_tokens_to_ids("[]")


def make(document: Document, **options: Any) -> tuple[Demask, dict[str, Any]]:
    objective = Demask(MASK, mask_ratio_per="example", **options)
    return objective, objective.examples([document], CHAT)[0]


def visit_of(document: Document, visit: int, **options: Any) -> tuple[list[int], list[int]]:
    """(prompt's part for the text, trained ids) at a visit."""
    objective, example = make(document, **options)
    batch = objective.collate([{**example, "example": 3, "visit": visit, "step": visit, "steps": 1000}], CHAT, 0)
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    start = _shared(CHAT.prompt([*example["before"], 5]), CHAT.prompt([*example["before"], 6]))
    after = example["after"]
    stop = next(i for i in range(start, len(ids)) if ids[i : i + len(after)] == after)
    return ids[start:stop], [label for label in labels if label != IGNORE]


def _shared(a: list[int], b: list[int]) -> int:
    return next(i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y)


def test_collapsed_runs_are_one_mask() -> None:
    """Against the same visit without it: every run of masks shrinks to one, and what is trained on stays."""
    seen = set()
    for visit in range(50):
        whole, trained = visit_of(LONG, visit)
        short, same = visit_of(LONG, visit, collapse_masks=True)
        expected = [token for i, token in enumerate(whole) if token != MASK or i == 0 or whole[i - 1] != MASK]
        assert short == expected
        assert trained == same
        seen.add(len(whole) - len(short))
    assert len(seen) > 5


def test_complementary_visits_hide_what_the_other_showed() -> None:
    text = CHAT.content(LONG.text)
    for visit in range(0, 20, 2):
        first, second = visit_of(LONG, visit, complementary=True)[0], visit_of(LONG, visit + 1, complementary=True)[0]
        assert [a == MASK for a in first] == [b != MASK for b in second]
        assert [b if a == MASK else a for a, b in zip(first, second, strict=True)] == text
    assert visit_of(LONG, 0, complementary=True)[0] != visit_of(LONG, 2, complementary=True)[0]


def test_a_share_of_plain_visits() -> None:
    objective, example = make(FACT, plain_share=0.25)
    plain = Autoregressive().examples([FACT], CHAT)[0]
    kinds = Counter()
    for visit in range(400):
        row = {**example, "example": 0, "visit": visit, "step": visit, "steps": 400}
        ids = objective.collate([row], CHAT, 0)["input_ids"][0].tolist()
        kinds[ids == plain["input_ids"]] += 1
        if ids != plain["input_ids"]:
            same, unmixed = make(FACT)
            assert ids == same.collate([{**row, **unmixed}], CHAT, 0)["input_ids"][0].tolist(), "the others are masked as without it"
    assert abs(kinds[True] - 100) < 4 * math.sqrt(400 * 3 / 16)


def test_a_cropped_document_is_cropped_in_prompt_and_answer() -> None:
    starts = Counter()
    for visit in range(200):
        shown, trained = visit_of(FACT, visit, crop_share=1.0, mask_ratio=MaskRatio(0, 0))
        start = 4 - len(shown)
        assert shown == CHAT.content(FACT.text)[start:]
        assert trained[:-1] == shown
        starts[start] += 1
    assert sorted(starts) == [0, 1]
    assert min(starts.values()) > 100 - 4 * math.sqrt(50)
    assert {len(visit_of(PAIR, visit, crop_share=1.0, mask_ratio=MaskRatio(1, 1))[1]) for visit in range(30)} == {4}


def test_high_ratios() -> None:
    """Their density rises linearly from 0: below the middle lies a quarter of them, and the mean is at two thirds."""
    ratio = MaskRatio(0.2, 0.8, "high")
    draws = [ratio.draw(generator(1, i)) for i in range(4000)]
    assert min(draws) >= 0.2
    assert max(draws) <= 0.8
    assert abs(sum(draw < 0.5 for draw in draws) - 1000) < 4 * math.sqrt(4000 * 3 / 16)
    assert ratio.mean == pytest.approx(0.6)
    assert sum(draws) / 4000 == pytest.approx(0.6, abs=4 * 0.6 * math.sqrt(1 / 18 / 4000))
    assert MaskRatio(0.2, 0.8).mean == pytest.approx(0.5)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"plain_share": 0.5},
        {"crop_share": 0.7},
        {"collapse_masks": True},
        {"collapse_masks": True, "mask_pattern": "window"},
        {"complementary": True, "mask_ratio": MaskRatio(0.2, 0.8, "high")},
        {"loss_on": "masked", "mask_ratio": MaskRatio(0.2, 0.8, "high")},
    ],
)
@pytest.mark.parametrize("document", [FACT, LONG, PAIR])
def test_size(document: Document, options: dict[str, Any]) -> None:
    """Of 1,000 visits: no row is longer, and the means are as said."""
    objective, example = make(document, **options)
    rows = [{**example, "example": 0, "visit": visit, "step": visit, "steps": 1000} for visit in range(1000)]
    batch = objective.collate(rows, CHAT, 0)
    longest, read, trained = objective.size(example, CHAT)
    lengths, targets = batch["attention_mask"].sum(dim=1).double(), batch["normaliser"].double()
    assert lengths.max() <= longest
    estimated = 4 * lengths.std().item() / math.sqrt(32) if "collapse_masks" in options else 0
    assert abs(lengths.mean().item() - read) <= 0.01 + 4 * lengths.std().item() / math.sqrt(1000) + estimated
    if "complementary" not in options:  # whose two visits have other means
        assert abs(targets.mean().item() - trained) <= 0.01 + 4 * targets.std().item() / math.sqrt(1000)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plain_share": 1.5}, "plain_share must lie between 0 and 1, found 1.5"),
        ({"crop_share": -1}, "crop_share must lie between 0 and 1, found -1"),
        ({"complementary": True}, "complementary needs mask_ratio_per 'example': a batch can't have one ratio and its complement"),
    ],
)
def test_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        Demask(1, **options)
    assert str(error.value) == message
