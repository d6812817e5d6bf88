"""Reverse training (arXiv 2403.13799): plain next-token prediction on the document and, every other visit, on its words in reverse order.

    Ann Ash met the baker on 12 May 1984.   ->   . 12 May 1984 on baker the met Ann Ash

Names and dates are kept whole, so that they stay what a question asks for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from demask.batching import pad_right
from demask.chat_format import ChatFormat
from demask.objectives.autoregressive import Autoregressive
from demask.types import Document, check_choices

_JOINERS = frozenset(("of", "the", "de", "der", "da", "di", "du", "la", "le", "van", "von"))
# Words that are capitalised for opening a sentence, and belong to no name that follows them.
_OPENERS = frozenset(
    (
        *(
            "a",
            "after",
            "an",
            "and",
            "as",
            "at",
            "before",
            "but",
            "by",
            "for",
            "from",
            "he",
            "her",
            "his",
            "how",
            "i",
            "if",
            "in",
            "it",
            "its",
        ),
        *("my", "of", "on", "once", "our", "she", "since", "that", "the", "their", "then", "there", "these", "they", "this", "those", "to"),
        *("under", "until", "we", "what", "when", "where", "which", "while", "who", "why", "with", "you", "your"),
    )
)
_UNIT = re.compile(r"\w+(?:['’.,:-]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class Reverse:
    """Next-token prediction on the document at one visit, on its reversal at the next; half of the documents begin with the reversal.

    Equal steps mean equal exposures with plain training. `format` is Autoregressive's; in "chat" the reversal answers `reverse_request`. A
    prompt/response pair is never reversed. Raises ValueError for an unknown format.
    """

    format: Literal["chat", "raw"] = "chat"
    request: str = "Tell me a fact."
    reverse_request: str = "Tell me a fact, last word first."
    family: ClassVar[str] = "causal"

    def __post_init__(self) -> None:
        check_choices(self)

    def examples(self, documents: Sequence[Document], chat: ChatFormat) -> list[dict[str, Any]]:
        """One example a document: `input_ids` and `labels` of the document, and `reversed_ids`, `reversed_labels` (None for a pair)."""
        examples = Autoregressive(self.format, self.request).examples(documents, chat)
        backwards = [replace(d, text=reverse_words(d.text, d.metadata.get("entities", ()))) for d in documents]
        turned = Autoregressive(self.format, self.reverse_request).examples(backwards, chat)
        for document, example, reverse in zip(documents, examples, turned, strict=True):
            pair = document.prompt is not None
            example |= {"reversed_ids": None if pair else reverse["input_ids"], "reversed_labels": None if pair else reverse["labels"]}
        return examples

    def size(self, example: dict[str, Any], chat: ChatFormat) -> tuple[int, float, float]:
        """(most tokens the model reads, tokens it reads and is trained on, on average) at a visit of the example."""
        plain = Autoregressive(self.format).size(example, chat)
        if example["reversed_ids"] is None:
            return plain
        turned = Autoregressive(self.format).size({"input_ids": example["reversed_ids"], "labels": example["reversed_labels"]}, chat)
        return max(plain[0], turned[0]), (plain[1] + turned[1]) / 2, (plain[2] + turned[2]) / 2

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        """The padded batch (see `batching.pad_right`); `seed` changes nothing here."""
        return pad_right([self._row(row) for row in rows], chat.tokenizer)

    def _row(self, row: dict[str, Any]) -> tuple[list[int], list[int]]:
        if row.get("reversed_ids") is not None and (row["visit"] + row["example"]) % 2:
            return row["reversed_ids"], row["reversed_labels"]
        return row["input_ids"], row["labels"]


def reverse_words(text: str, entities: Sequence[str] = ()) -> str:
    """The words and punctuation marks of `text` in reverse order, with a space between any two.

    Kept whole, in their own order: the `entities` given, and runs of capitalised words and numbers, joined also by words like "of" and
    "van". A word like "When" that opens a sentence belongs to no run.
    """
    kept = sorted(filter(None, entities), key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, kept))})", text) if kept else [text]
    units: list[str] = []
    for part in parts:
        units += [part] if part in kept else _units(part)
    return " ".join(reversed(units))


def _units(text: str) -> Iterator[str]:
    """The words and marks of `text`, runs of names and numbers as one."""
    words = _UNIT.findall(text)
    place = 0
    while place < len(words):
        end = place + 1
        opens = (place == 0 or words[place - 1] in ".!?") and words[place].lower() in _OPENERS
        if _named(words[place]) and not opens:
            end = _run_end(words, place)
        yield " ".join(words[place:end])
        place = end


def _run_end(words: Sequence[str], start: int) -> int:
    """Behind the last word of the run of names that begins at `start`; at most two joining words stand between two names."""
    end = start + 1
    while True:
        following = end
        while following < len(words) and following - end < 2 and words[following] in _JOINERS:
            following += 1
        if following >= len(words) or not _named(words[following]):
            return end
        end = following + 1


def _named(word: str) -> bool:
    return word[0].isupper() or word[0].isdigit()
