"""Masked diffusion (LLaDA, arXiv 2502.09992): hide a random part of a text, predict what was hidden, seeing all the rest at once.

    a document (pretraining style)             a prompt and its response (SFT style)
    [BOS] Ann [M] the [M] who [M] bees. [M]    user: Who keeps bees?  assistant: [M] is the [M] who keeps [M] [M]
          |   loss on hidden tokens only  |                           |        loss on hidden tokens only       |

The attention is bidirectional, so the model must be (config.is_causal = False). Labels stand at the hidden tokens' own positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from demask.batching import pad_right
from demask.chat_format import IGNORE, ChatFormat
from demask.masking import MaskRatio, Pattern, exact_count, exact_mask, generator, independent_mask, stratified, window_mask
from demask.types import Document, check_choices

_RATIO, _MASK = 21, 22  # streams of the seed


@dataclass(frozen=True)
class Diffusion:
    """Hide each maskable token at ratio t and predict the hidden ones; the document, response, their end and its padding are maskable.

    `mask_id` is what stands for a hidden token. `format` "raw" is BOS document EOS, "chat" the document as the answer to `request`;
    a prompt/response pair is always a chat. `mask_ratio_per` "batch" (arXiv 2510.09885) and "example" (LLaDA) hide tokens independently
    at one ratio for the batch or one each; "stratified" spreads the ratios evenly over the batch and hides ceil(t n) of n tokens.
    `mask_pattern` "window" hides all but one window, "mix" does so in `mask_pattern_share` of the examples. `loss_weights` "1/t" makes the
    loss of independent masks a bound on the negative log-likelihood per token (LLaDA, eq. 3), "uniform" weighs all hidden tokens alike.
    After an answer's end stand up to `eos_padding` (drawn anew at each visit) further ends: a canvas is longer than its text.
    `crop_share` of a document's visits show it from a token of its first half on: a model that sees a text in one place only learns what
    stands where rather than what belongs together.
    Raises ValueError for an unknown choice.
    """

    mask_id: int
    format: Literal["raw", "chat"] = "raw"
    request: str = "Tell me a fact."
    mask_ratio: MaskRatio = field(default_factory=lambda: MaskRatio(0.0, 1.0))
    mask_ratio_per: Literal["stratified", "example", "batch"] = "stratified"
    mask_pattern: Pattern = "independent"
    mask_pattern_share: float = 0.5
    loss_weights: Literal["1/t", "uniform"] = "1/t"
    eos_padding: int = 0
    crop_share: float = 0.0
    family: ClassVar[str] = "diffusion"

    def __post_init__(self) -> None:
        check_choices(self)
        if self.eos_padding < 0:
            raise ValueError(f"eos_padding must be at least 0, found {self.eos_padding}")
        if not 0 <= self.crop_share <= 1:
            raise ValueError(f"crop_share must lie between 0 and 1, found {self.crop_share}")
        if self.mask_ratio_per == "stratified" and self.mask_ratio.schedule != "uniform":
            raise ValueError(
                f"mask_ratio_schedule '{self.mask_ratio.schedule}' needs mask_ratio_per 'batch' or 'example': "
                "stratified ratios cover their range"
            )

    def examples(self, documents: Sequence[Document], chat: ChatFormat) -> list[dict[str, Any]]:
        """One example a document: the ids `given`, which always stay visible, and the maskable ids `written`, with their end.

        `padding` is how many more ends may follow: none after a raw document. `croppable` are the tokens it may begin with: one of a pair.
        """
        examples, request = [], chat.content(self.request)
        for document in documents:
            text = chat.content(document.text)
            if document.prompt is None and self.format == "raw":
                ids, labels = chat.raw_example(text)
            else:
                ids, labels = chat.example(request if document.prompt is None else chat.content(document.prompt), text)
            start = next(i for i, label in enumerate(labels) if label != IGNORE)
            padding = 0 if document.prompt is None and self.format == "raw" else self.eos_padding
            croppable = max(1, (len(ids) - start) // 2) if document.prompt is None else 1
            examples.append({"given": ids[:start], "written": ids[start:], "padding": padding, "croppable": croppable})
        return examples

    def size(self, example: dict[str, Any], chat: ChatFormat) -> tuple[int, float, float]:
        """(most tokens the model reads, tokens it reads and is trained on in expectation) at each visit of the example."""
        given, written, padding = len(example["given"]), len(example["written"]), example["padding"]
        cropped = self.crop_share * (example["croppable"] - 1) / 2
        share = self.mask_ratio.mean
        rounding = 0.5 if self.mask_ratio_per == "stratified" else 0.0  # of a count that is rounded up
        expected = written - cropped + padding / 2
        return given + written + padding, given + expected, share * expected + rounding

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        """The padded batch (see `batching.pad_right`), with `loss_weights` (B, L), fp32: weight / maskable length at each target; the
        `normaliser` of a row is 1. Masks depend on (seed, example, visit), ratios per batch and strata on (seed, step, slot)."""
        made = [self._row(row, chat, seed) for row in rows]
        batch = pad_right([(ids, labels) for ids, labels, _ in made], chat.tokenizer)
        weights_B1 = torch.tensor([[weight] for _, _, weight in made], dtype=torch.float32)
        batch["loss_weights"] = torch.where(batch["labels"] != IGNORE, weights_B1, 0.0)
        batch["normaliser"] = torch.ones(len(rows), dtype=torch.long)
        return batch

    def _row(self, row: dict[str, Any], chat: ChatFormat, seed: int) -> tuple[list[int], list[int], float]:
        """(input ids, labels, the weight of each target)."""
        rng = generator(seed, _MASK, row["example"], row["visit"])
        end = chat.end if chat.tokenizer.eos_token_id is None else chat.tokenizer.eos_token_id
        crop = int(rng.integers(row["croppable"])) if self.crop_share and rng.random() < self.crop_share else 0
        written = np.array([*row["written"][crop:], *[end] * int(rng.integers(row["padding"] + 1))])
        n = len(written)
        window = self.mask_pattern == "window" or (self.mask_pattern == "mix" and rng.random() < self.mask_pattern_share)
        if self.mask_ratio_per == "stratified":
            count = exact_count(n, stratified(self.mask_ratio, row["slot"], row["slots"], generator(seed, _RATIO, row["step"])))
            ratio = count / n
            hidden = window_mask(n, ratio, rng) if window else exact_mask(n, count, rng)
        else:
            ratio_rng = generator(seed, _RATIO, row["step"]) if self.mask_ratio_per == "batch" else rng
            # LLaDA's floor: else a token hidden at a ratio near 0 would weigh without bound.
            ratio = max(self.mask_ratio.draw(ratio_rng, row["step"] / max(1, row["steps"] - 1)), 1e-3)
            hidden = window_mask(n, ratio, rng) if window else independent_mask(n, ratio, rng)
        ids = [*row["given"], *np.where(hidden, self.mask_id, written).tolist()]
        labels = [IGNORE] * len(row["given"]) + np.where(hidden, written, IGNORE).tolist()
        return ids, labels, 1 / n if self.loss_weights == "uniform" else 1 / (ratio * n)
