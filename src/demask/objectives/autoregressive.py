"""Plain autoregressive fine-tuning: the baseline (arXiv 2510.09885), and supervised fine-tuning on prompt/response pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch

from demask.batching import pad_right
from demask.chat_format import IGNORE, ChatFormat
from demask.types import Document, check_choices


@dataclass(frozen=True)
class Autoregressive:
    """Next-token prediction on every document token and the end.

    `format` "chat" shows the document as the answer to `request`, "raw" as BOS document EOS. A prompt/response pair is always a chat.
    Raises ValueError for an unknown format.
    """

    format: Literal["chat", "raw"] = "chat"
    request: str = "Tell me a fact."
    family: ClassVar[str] = "causal"

    def __post_init__(self) -> None:
        check_choices(self)

    def examples(self, documents: Sequence[Document], chat: ChatFormat) -> list[dict[str, Any]]:
        """One example a document: its `input_ids` and `labels`, which are the same at every visit."""
        examples, request = [], chat.content(self.request)
        for document in documents:
            text = chat.content(document.text)
            if document.prompt is not None:
                ids, labels = chat.example(chat.content(document.prompt), text)
            elif self.format == "raw":
                ids, labels = chat.raw_example(text)
            else:
                ids, labels = chat.example(request, text)
            examples.append({"input_ids": ids, "labels": labels})
        return examples

    def size(self, example: dict[str, Any], chat: ChatFormat) -> tuple[int, float, float]:
        """(most tokens the model reads, tokens it reads, tokens it is trained on) at each visit of the example."""
        n = len(example["input_ids"])
        return n, n, sum(label != IGNORE for label in example["labels"])

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        """The padded batch (see `batching.pad_right`); `seed` changes nothing here."""
        return pad_right([(row["input_ids"], row["labels"]) for row in rows], chat.tokenizer)
