"""MEAP (arXiv 2502.07490): next-token prediction with a part of the input tokens masked in place, and no token more to read.

reads      user: Tell me a fact.   assistant: Ann [M] the woman who [M] bees.
predicts                                      Ann is  the woman who keeps bees. <end>      all of it, as plain training does
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from demask.batching import pad_right
from demask.chat_format import IGNORE, ChatFormat
from demask.masking import MaskRatio, generator, independent_mask
from demask.objectives.autoregressive import Autoregressive
from demask.types import Document, check_choices

_MASK = 32  # stream of the seed


@dataclass(frozen=True)
class Meap:
    """Autoregressive, but each token of the document (a pair: of the response) is read as `mask_id` at ratio `mask_ratio`, drawn for each
    example; the labels stay. Raises ValueError for an unknown format."""

    mask_id: int
    mask_ratio: MaskRatio = field(default_factory=lambda: MaskRatio(0.15, 0.15))
    format: Literal["chat", "raw"] = "chat"
    request: str = "Tell me a fact."
    family: ClassVar[str] = "causal"

    def __post_init__(self) -> None:
        check_choices(self)

    def examples(self, documents: Sequence[Document], chat: ChatFormat) -> list[dict[str, Any]]:
        """One example a document: its `input_ids` and `labels`, and `start`, `stop`: where the document's own tokens stand."""
        examples = Autoregressive(self.format, self.request).examples(documents, chat)
        for document, example in zip(documents, examples, strict=True):
            start = next(i for i, label in enumerate(example["labels"]) if label != IGNORE)
            example |= {"start": start, "stop": start + len(chat.content(document.text))}
        return examples

    def size(self, example: dict[str, Any], chat: ChatFormat) -> tuple[int, float, float]:
        """(most tokens the model reads, tokens it reads, tokens it is trained on) at each visit of the example."""
        return Autoregressive(self.format).size(example, chat)

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        """The padded batch (see `batching.pad_right`), masked by (seed, example, visit)."""
        return pad_right([(self._ids(row, seed), row["labels"]) for row in rows], chat.tokenizer)

    def _ids(self, row: dict[str, Any], seed: int) -> list[int]:
        if row.get("start") is None:  # a rehearsed example is read as it is
            return row["input_ids"]
        rng = generator(seed, _MASK, row["example"], row["visit"])
        ratio = self.mask_ratio.draw(rng, row["step"] / max(1, row["steps"] - 1))
        text = row["input_ids"][row["start"] : row["stop"]]
        shown = np.where(independent_mask(len(text), ratio, rng), self.mask_id, text).tolist()
        return [*row["input_ids"][: row["start"]], *shown, *row["input_ids"][row["stop"] :]]
