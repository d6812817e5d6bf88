"""The loss on text that is not trained on, against sums written out, and what `retention` makes of it."""

from __future__ import annotations

import math

import pytest
import torch

from demask.chat_format import ChatFormat
from demask.models.family import make_bidirectional
from demask.stages.eval import retention
from demask.stages.text_loss import text_loss
from demask.types import Document, Question
from tests.models import make_model
from tests.tokenizers import llama3

CHAT = ChatFormat(llama3())
TEXTS = ["Ann.", "Ann is the woman who keeps bees.", "The mason and the baker met on 12 May 1984, near the old mill.", "They were glad!"]
DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXTS)]


def by_hand(model: torch.nn.Module, text: str) -> tuple[float, int]:
    """(nats, tokens): every token after BOS, and EOS, given all before it."""
    ids = [CHAT.tokenizer.bos_token_id, *CHAT.content(text), CHAT.tokenizer.eos_token_id]
    logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return -sum(logits[i - 1, ids[i]].item() for i in range(1, len(ids))), len(ids) - 1


@torch.no_grad()
def test_causal_loss_by_hand() -> None:
    model = make_model("llama")
    sums = [by_hand(model, text) for text in TEXTS]
    expected = sum(nats for nats, _ in sums) / sum(n for _, n in sums)
    found = text_loss(model, CHAT, DOCUMENTS, batch_size=3)
    assert found["tokens"] == sum(n for _, n in sums)
    assert found["nll"] == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_a_text_longer_than_the_context_is_split() -> None:
    model = make_model("llama", max_position_embeddings=16)
    long = "Ann keeps bees. " * 9
    found = text_loss(model, CHAT, [Document("long", long.strip())])
    parts = found["tokens"] - len(CHAT.content(long.strip()))
    assert 3 <= parts <= 9, "one EOS a part, less the space at its cut"
    assert found["nll"] > 0


def test_diffusion_bound_of_a_uniform_model() -> None:
    """A model that finds all V tokens equally likely has log V nats a token hidden, and weights 1 / (t n) make of that log V a token."""
    model = make_model("llama")
    make_bidirectional(model.config, shifted_logits=False)
    torch.nn.init.zeros_(model.get_output_embeddings().weight)
    tokenizer = llama3()
    tokenizer.mask_token = "<|reserved_special_token_0|>"
    found = text_loss(model, ChatFormat(tokenizer), DOCUMENTS)
    assert found["nll"] == pytest.approx(math.log(model.config.vocab_size), rel=1e-5)
    assert found["tokens"] == sum(len(CHAT.content(text)) + 1 for text in TEXTS)
    assert text_loss(model, ChatFormat(tokenizer), DOCUMENTS) == found, "the same masks each time"


def test_retention_holds_what_was_given() -> None:
    model = make_model("llama")
    asked = [
        Question("Who keeps bees?", ("Ann",), "backward", document="a"),
        Question("Who is Ann?", ("the woman",), "forward", document="a"),
    ]
    options = {"max_new_tokens": 3, "sampling": None}
    both = retention(model, CHAT, asked, DOCUMENTS, **options)
    assert set(both) == {"questions", "text"}
    assert both["questions"]["n"] == 2
    assert both["questions"]["documents"] == 1
    assert 0 <= both["questions"]["contains"]["low"] <= both["questions"]["contains"]["mean"]
    assert retention(model, CHAT, [], DOCUMENTS, **options) == {"text": both["text"]}
    assert retention(model, CHAT, asked, [], **options) == {"questions": both["questions"]}
