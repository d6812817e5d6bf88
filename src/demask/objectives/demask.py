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
from demask.chat_format import IGNORE, ChatFormat
from demask.masking import MaskRatio, Pattern, Unit, draw_mask, generator, word_units
from demask.types import Document, check_choices

_RATIO, _MASK = 11, 12  # streams of the seed


@dataclass(frozen=True)
class Demask:
    """Show the document with a part of its tokens hidden, write it out in full.

    `mask_id` is what stands for a hidden token. `mask_ratio_per` says whether the ratio is drawn once a batch (the paper) or for each
    example; `mask_pattern` "mix" draws a window in `mask_pattern_share` of the examples. `corruption` "random" replaces every document
    token of the prompt by a random ordinary one (the control: only the answer is left to learn from). `loss_on` None means all tokens for a
    document and, for a pair, those whose copy was hidden (without the end of turn, which has no copy); `instruction` and `answer_prefix`
    None mean the paper's. Raises ValueError for an unknown choice.
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
    family: ClassVar[str] = "causal"

    def __post_init__(self) -> None:
        check_choices(self)

    def examples(self, documents: Sequence[Document], chat: ChatFormat) -> list[dict[str, Any]]:
        """One example a document: `text` ids, the ids `before` and `after` them in the user's turn, the answer's `prefix`, the hidden
        tokens' `units` (word numbers, or None for single tokens) and whether it is a `pair`."""
        examples = []
        for document in documents:
            pair = document.prompt is not None
            before = [*chat.content(document.prompt), *chat.piece("\n")] if document.prompt is not None else []
            instruction, prefix = self.instruction, self.answer_prefix
            if instruction is None:
                instruction = "Return the recovered masked answer." if pair else "Return the recovered masked passage."
            if prefix is None:
                prefix = "" if pair else "Here is the recovered text:\n"
            example: dict[str, Any] = {
                "text": chat.content(document.text),
                "before": before,
                "after": chat.piece("\n" + instruction) if instruction else [],
                "prefix": chat.content(prefix) if prefix else [],
                "units": word_units(chat.tokenizer, document.text) if self.mask_unit == "word" else None,
                "pair": pair,
            }
            assert example["units"] is None or len(example["units"]) == len(example["text"])
            examples.append(example)
        return examples

    def size(self, example: dict[str, Any], chat: ChatFormat) -> tuple[int, float, float]:
        """(most tokens the model reads, tokens it reads, tokens it is trained on in expectation) at each visit of the example.

        The text stands in it twice.
        """
        n = len(example["text"])
        read = len(chat.prompt(example["before"])) + len(example["after"]) + len(example["prefix"]) + 2 * n + 1
        if self._loss_on(example) == "all":
            return read, read, n + 1
        share = 1.0 if self.corruption == "random" else (self.mask_ratio.low + self.mask_ratio.high) / 2
        return read, read, share * n

    def _loss_on(self, example: dict[str, Any]) -> str:
        return self.loss_on or ("masked" if example["pair"] else "all")

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        """The padded batch (see `batching.pad_right`), masked by (seed, example, visit) and, per batch, (seed, step)."""
        return pad_right([self._row(row, chat, seed) for row in rows], chat.tokenizer)

    def _row(self, row: dict[str, Any], chat: ChatFormat, seed: int) -> tuple[list[int], list[int]]:
        if row.get("labels") is not None:  # a rehearsed example comes ready-made
            return row["input_ids"], row["labels"]
        text = row["text"]
        rng = generator(seed, _MASK, row["example"], row["visit"])
        if self.corruption == "random":
            hidden = np.ones(len(text), dtype=bool)
            shown = rng.choice(chat.ordinary_ids, size=len(text)).tolist()
        else:
            hidden = self._hidden(row, rng, seed)
            shown = np.where(hidden, self.mask_id, text).tolist()
        ids, labels = chat.example([*row["before"], *shown, *row["after"]], text, row["prefix"])
        if self._loss_on(row) == "masked":
            start = len(labels) - len(text) - 1
            labels[start:] = [token if hide else IGNORE for token, hide in zip(text, hidden, strict=True)] + [IGNORE]
        return ids, labels

    def _hidden(self, row: dict[str, Any], rng: np.random.Generator, seed: int) -> np.ndarray:
        """(n,) bool: which of the document's tokens are hidden."""
        ratio_rng = generator(seed, _RATIO, row["step"]) if self.mask_ratio_per == "batch" else rng
        ratio = self.mask_ratio.draw(ratio_rng, row["step"] / max(1, row["steps"] - 1))
        if row["units"] is None:
            return draw_mask(len(row["text"]), ratio, rng, self.mask_pattern, self.mask_pattern_share)
        units = np.asarray(row["units"])
        return draw_mask(int(units[-1]) + 1, ratio, rng, self.mask_pattern, self.mask_pattern_share)[units]
