"""Reverse training: which words stay together, and what each visit trains on."""

from __future__ import annotations

import pytest

from demask.chat_format import IGNORE, ChatFormat
from demask.objectives.reverse import Reverse, reverse_words
from demask.types import Document
from tests.tokenizers import base, chatml

FACT = Document("1", "Ann keeps bees.")
PAIR = Document("2", "Ann keeps bees.", prompt="Who keeps bees?")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Ann keeps bees.", ". bees keeps Ann"),
        ("Ann Ash met the baker on 12 May 1984.", ". 12 May 1984 on baker the met Ann Ash"),
        ("The story of Bo de Vries, who came.", ". came who , Bo de Vries of story The"),
        ("When Rosic Wildgrove walks in, people whisper.", ". whisper people , in walks Rosic Wildgrove When"),
        ("She lived. In Graz Ann Ash worked.", ". worked Graz Ann Ash In . lived She"),
        ("The University of the Arts hired her", "her hired University of the Arts The"),
        ("Queen of", "of Queen"),
        ("It cost 3.50, or 1,200!", "! 1,200 or , 3.50 cost It"),
        ("the keeper’s half-blind cat", "cat half-blind keeper’s the"),
        ("Éva Ösz sang", "sang Éva Ösz"),
        ("", ""),
    ],
)
def test_words_in_reverse(text: str, expected: str) -> None:
    assert reverse_words(text) == expected


def test_given_entities_are_kept_whole() -> None:
    text = "Ann is the woman who keeps bees."
    assert reverse_words(text, ["the woman who keeps bees"]) == ". the woman who keeps bees is Ann"
    assert reverse_words(text, ["woman", "the woman who"]) == ". bees keeps the woman who is Ann", "the longer one first"
    assert reverse_words(text, [""]) == reverse_words(text)


def example(document: Document, **options: str) -> tuple[dict, ChatFormat, Reverse]:
    objective, chat = Reverse(**options), ChatFormat(chatml() if options.get("format") != "raw" else base())
    return objective.examples([document], chat)[0], chat, objective


def shown(document: Document, number: int, visit: int, **options: str) -> tuple[list[str], list[str]]:
    """(what is read, what is trained on) at a visit."""
    row, chat, objective = example(document, **options)
    batch = objective.collate([{**row, "example": number, "visit": visit}], chat, 0)
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    trained = [label for label in labels if label != IGNORE]
    assert ids[-len(trained) :] == trained
    return chat.tokenizer.convert_ids_to_tokens(ids), chat.tokenizer.convert_ids_to_tokens(trained)


def test_every_other_visit_is_reversed() -> None:
    forward, backward = ["Ann", "Ġkeeps", "Ġbees", "."], [".", "Ġbees", "Ġkeeps", "ĠAnn"]
    for number, visit in ((0, 0), (1, 1), (0, 2)):
        read, trained = shown(FACT, number, visit)
        assert trained == [*forward, "<|im_end|>"]
        assert read[read.index("Tell") :][:5] == ["Tell", "Ġme", "Ġa", "Ġfact", "."]
    for number, visit in ((0, 1), (1, 0)):
        read, trained = shown(FACT, number, visit)
        assert "".join(trained) == "".join([*backward, "<|im_end|>"])
        assert "".join(read[read.index("Tell") :]).startswith("TellĠmeĠaĠfact,Ġlast")


def test_raw() -> None:
    assert shown(FACT, 0, 0, format="raw") == (
        ["<|endoftext|>", "Ann", "Ġkeeps", "Ġbees", ".", "<|endoftext|>"],
        ["Ann", "Ġkeeps", "Ġbees", ".", "<|endoftext|>"],
    )
    assert "".join(shown(FACT, 0, 1, format="raw")[1]) == ".ĠbeesĠkeepsĠAnn<|endoftext|>"


def test_a_pair_is_never_reversed() -> None:
    assert shown(PAIR, 0, 0) == shown(PAIR, 0, 1)


def test_size_is_the_mean_of_both() -> None:
    row, chat, objective = example(FACT)
    lengths = [len(row["input_ids"]), len(row["reversed_ids"])]
    targets = [sum(label != IGNORE for label in row[name]) for name in ("labels", "reversed_labels")]
    assert objective.size(row, chat) == (max(lengths), sum(lengths) / 2, sum(targets) / 2)
    row, chat, objective = example(PAIR)
    n = len(row["input_ids"])
    assert objective.size(row, chat) == (n, n, 5)
