"""Masked fine-tuning of an autoregressive model (arXiv 2510.09885), its masked SFT for prompt/response pairs, and the random-token control.

user       Ann [M] the [M] who [M] bees.        <- the document, tokens masked at ratio t
           Return the recovered masked passage.
assistant  Here is the recovered text:
           Ann is the woman who keeps bees.     <- loss on every document token and the end of turn
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from demask.batching import pad_right
from demask.chat_format import IGNORE, RECOVER_ANSWER, RECOVER_PASSAGE, RECOVERED, ChatFormat
from demask.masking import MaskRatio, Pattern, Unit, draw_mask, generator, word_units
from demask.objectives.autoregressive import Autoregressive
from demask.types import Document, check_choices

_RATIO, _MASK, _PLAIN = 11, 12, 13  # streams of the seed


@dataclass(frozen=True)
class Demask:
    """Show the document with a part of its tokens hidden, write it out in full.

    `mask_id` is what stands for a hidden token. `mask_ratio_per` says whether the ratio is drawn once a batch (the paper) or for each
    example; `mask_pattern` "mix" draws a window in `mask_pattern_share` of the examples. `corruption` "random" replaces every document
    token of the prompt by a random ordinary one (the control: only the answer is left to learn from). `loss_on` None means all tokens for a
    document and, for a pair, those whose copy was hidden (without the end of turn, which has no copy); `instruction` and `answer_prefix`
    None mean the paper's. Variants: `plain_share` of the visits are plain autoregressive ones; `crop_share` of a document's visits show it
    from a token of its first half on; `collapse_masks` shows a run of hidden tokens as one mask; `complementary` hides at every other visit
    what the one before it showed. Raises ValueError for an unknown choice.
    """

    mask_id: int
    mask_ratio: MaskRatio = field(default_factory=MaskRatio)
    mask_ratio_per: Literal["batch", "example"] = "batch"
    mask_pattern: Pattern = "independent"
    mask_pattern_share: float = 0.5
    mask_unit: Unit = "token"
    corruption: Literal["mask", "random"] = "mask"
    loss_on: Literal["all", "masked"] | None = None
    instruction: str | None = None
    answer_prefix: str | None = None
    plain_share: float = 0.0
    crop_share: float = 0.0
    collapse_masks: bool = False
    complementary: bool = False
    family: ClassVar[str] = "causal"

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("plain_share", "crop_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, found {getattr(self, name)}")
        if self.complementary and self.mask_ratio_per == "batch":
            raise ValueError("complementary needs mask_ratio_per 'example': a batch can't have one ratio and its complement")

    def examples(self, documents: Sequence[Document], chat: ChatFormat) -> list[dict[str, Any]]:
        """One example a document: `text` ids, the ids `before` and `after` them in the user's turn, the answer's `prefix`, the hidden
        tokens' `units` (word numbers, or None for single tokens) and whether it is a `pair`."""
        examples, line_end = [], chat.piece("\n")
        around = {pair: self._around(pair, chat) for pair in {document.prompt is not None for document in documents}}
        plain = Autoregressive().examples(documents, chat) if self.plain_share else [None] * len(documents)
        for number, document in enumerate(documents):
            pair = document.prompt is not None
            after, prefix = around[pair]
            example: dict[str, Any] = {
                "text": chat.content(document.text),
                "before": [*chat.content(document.prompt), *line_end] if document.prompt is not None else [],
                "after": after,
                "prefix": prefix,
                "units": word_units(chat.tokenizer, document.text) if self.mask_unit == "word" else None,
                "pair": pair,
                "plain": plain[number],
            }
            assert example["units"] is None or len(example["units"]) == len(example["text"])
            examples.append(example)
        return examples

    def _around(self, pair: bool, chat: ChatFormat) -> tuple[list[int], list[int]]:
        """The ids after the text in the user's turn, and the answer's prefix."""
        instruction, prefix = self.instruction, self.answer_prefix
        if instruction is None:
            instruction = RECOVER_ANSWER if pair else RECOVER_PASSAGE
        if prefix is None:
            prefix = "" if pair else RECOVERED
        return chat.piece("\n" + instruction) if instruction else [], chat.content(prefix) if prefix else []

    def size(self, example: dict[str, Any], chat: ChatFormat) -> tuple[int, float, float]:
        """(most tokens the model reads, tokens it reads, tokens it is trained on in expectation) at each visit of the example.

        The text stands in it twice, but for masks that are collapsed, whose number is estimated.
        """
        n = len(example["text"])
        around = len(chat.prompt(example["before"])) + len(example["after"]) + len(example["prefix"]) + 1
        answer = n - self._crop_mean(example)
        shown = self._shown_mean(example) if self.collapse_masks else answer
        targets = answer + 1
        if self._loss_on(example) == "masked":
            targets = (1.0 if self.corruption == "random" else self.mask_ratio.mean) * answer
        longest, read = around + 2 * n, around + shown + answer
        if example["plain"] is None:
            return longest, read, targets
        plain, p = Autoregressive().size(example["plain"], chat), self.plain_share
        return max(longest, plain[0]), (1 - p) * read + p * plain[1], (1 - p) * targets + p * plain[2]

    def _crop_mean(self, example: dict[str, Any]) -> float:
        return 0.0 if example["pair"] else self.crop_share * (max(1, len(example["text"]) // 2) - 1) / 2

    def _shown_mean(self, example: dict[str, Any], draws: int = 32) -> float:
        """How many tokens stand in the prompt for the text when runs of masks are one, by some draws."""
        rows = ({**example, "example": 0, "visit": visit, "step": visit, "steps": draws} for visit in range(draws))
        return sum(len(self._show(row, 0)[1]) for row in rows) / draws

    def _loss_on(self, example: dict[str, Any]) -> str:
        return self.loss_on or ("masked" if example["pair"] else "all")

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        """The padded batch (see `batching.pad_right`), masked by (seed, example, visit) and, per batch, (seed, step)."""
        return pad_right([self._row(row, chat, seed) for row in rows], chat.tokenizer)

    def _row(self, row: dict[str, Any], chat: ChatFormat, seed: int) -> tuple[list[int], list[int]]:
        if row.get("labels") is not None:  # a rehearsed example comes ready-made
            return row["input_ids"], row["labels"]
        if row["plain"] is not None and generator(seed, _PLAIN, row["example"], row["visit"]).random() < self.plain_share:
            return row["plain"]["input_ids"], row["plain"]["labels"]
        text, shown, hidden = self._show(row, seed, chat)
        ids, labels = chat.example([*row["before"], *shown, *row["after"]], text, row["prefix"])
        if self._loss_on(row) == "masked":
            start = len(labels) - len(text) - 1
            labels[start:] = [token if hide else IGNORE for token, hide in zip(text, hidden, strict=True)] + [IGNORE]
        return ids, labels

    def _show(self, row: dict[str, Any], seed: int, chat: ChatFormat | None = None) -> tuple[list[int], list[int], np.ndarray]:
        """The text's ids, what the prompt shows of them, and (n,) bool which of them it hides."""
        text = row["text"]
        rng = generator(seed, _MASK, row["example"], row["visit"] // 2 if self.complementary else row["visit"])
        crop = 0
        if self.crop_share and not row["pair"] and rng.random() < self.crop_share:
            crop = int(rng.integers(max(1, len(text) // 2)))
        text = text[crop:]
        if self.corruption == "random":
            assert chat is not None
            return text, rng.choice(chat.ordinary_ids, size=len(text)).tolist(), np.ones(len(text), dtype=bool)
        hidden = self._hidden(row, len(text), crop, rng, seed)
        if self.complementary and row["visit"] % 2:
            hidden = ~hidden
        shown = np.where(hidden, self.mask_id, text)
        if self.collapse_masks:
            shown = shown[~hidden | ~np.concatenate([[False], hidden[:-1]])]
        return text, shown.tolist(), hidden

    def _hidden(self, row: dict[str, Any], n: int, crop: int, rng: np.random.Generator, seed: int) -> np.ndarray:
        """(n,) bool: which of the last n tokens of the text are hidden."""
        ratio_rng = generator(seed, _RATIO, row["step"]) if self.mask_ratio_per == "batch" else rng
        ratio = self.mask_ratio.draw(ratio_rng, row["step"] / max(1, row["steps"] - 1))
        if row["units"] is None:
            return draw_mask(n, ratio, rng, self.mask_pattern, self.mask_pattern_share)
        units = np.asarray(row["units"][crop:]) - row["units"][crop]
        return draw_mask(int(units[-1]) + 1, ratio, rng, self.mask_pattern, self.mask_pattern_share)[units]
