"""Training on packed rows: the same logits, losses and gradients as on padded ones, and nothing that leaks from row to row."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, Gemma2Config, set_seed

from demask import packing
from demask.losses import target_nll, weighted_sum
from demask.packing import FAMILIES, NAME, PlainAttention, pack, packable
from tests.models import make_model

WINDOWED = {"mistral": {"sliding_window": 4}, "gemma3_text": {"sliding_window": 4}, "phi3": {"sliding_window": 4}}
LENGTHS = (3, 9, 1, 6)


def model_of(family: str, **changes: Any) -> Any:
    """Two layers of width 32 with weights wide enough that every token matters."""
    shape = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "initializer_range": 0.2}
    shape |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    if family == "gemma3_text":
        shape |= {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
    if family == "phi3":
        del shape["head_dim"]
    set_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape | changes), dtype=torch.float32).eval()


def batch_of(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, torch.Tensor]:
    """Rows of random tokens, padded on the right; every other token from the second on is a target, each with another weight."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(2, 50, (rows, longest), generator=generator)
    targets = mask.bool() & (torch.arange(longest) % 2 == 1)
    return {
        "input_ids": ids * mask + (1 - mask),
        "attention_mask": mask,
        "labels": torch.where(targets, ids, -100),
        "loss_weights": torch.rand(rows, longest, generator=generator) * targets,
        "normaliser": targets.sum(1),
    }


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    names = ("input_ids", "attention_mask", "position_ids", "packed_places")
    with torch.no_grad():
        return model(**{name: batch[name] for name in names if name in batch}, use_cache=False).logits


def test_what_is_packed():
    packed = pack(
        {
            "input_ids": torch.tensor([[5, 6, 0], [7, 8, 9]]),
            "attention_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
            "labels": torch.tensor([[-100, 6, -100], [-100, -100, 9]]),
            "loss_weights": torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.25]]),
            "normaliser": torch.tensor([1, 1]),
        }
    )
    assert {name: values.tolist() for name, values in packed.items()} == {
        "input_ids": [[5, 6, 7, 8, 9]],
        "labels": [[-100, 6, -100, -100, 9]],
        "loss_weights": [[0.0, 0.5, 0.0, 0.0, 0.25]],
        "position_ids": [[0, 1, 0, 1, 2]],
        "packed_places": [0, 1, 3, 4, 5],
        "attention_mask": [[[[True, True, False]]], [[[True, True, True]]]],
        "normaliser": [1, 1],
    }


def with_prefix(lengths: tuple[int, ...] = (8, 9, 6, 7), prefix: int = 4) -> dict[str, torch.Tensor]:
    """A batch whose sequences begin with the same tokens, on which none is trained, and no two with a longer beginning."""
    batch = batch_of(lengths)
    batch["input_ids"][:, :prefix] = batch["input_ids"][0, :prefix]
    batch["input_ids"][:, prefix] = 10 + torch.arange(len(lengths))
    batch["labels"][:, : prefix + 1] = -100
    batch["loss_weights"][:, : prefix + 1] = 0
    return batch


def test_a_common_beginning_is_packed_once():
    packed = pack(
        {
            "input_ids": torch.tensor([[3, 4, 5, 6, 0], [3, 4, 7, 8, 9]]),
            "attention_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]),
            "labels": torch.tensor([[-100, -100, -100, 6, -100], [-100, -100, -100, 8, 9]]),
            "normaliser": torch.tensor([1, 2]),
        },
        share_prefix=True,
    )
    assert packed["input_ids"].tolist() == [[3, 4, 5, 6, 7, 8, 9]]
    assert packed["position_ids"].tolist() == [[0, 1, 2, 3, 2, 3, 4]]
    assert packed["labels"].tolist() == [[-100, -100, -100, 6, -100, 8, 9]]
    assert packed["packed_places"].tolist() == [2, 3, 7, 8, 9]


@pytest.mark.parametrize(
    ("labels", "shared"),
    [
        ([[-100, -100, -100, 6], [-100, -100, -100, 6]], 2),  # three are alike and untrained; the third predicts the first target
        ([[-100, 4, 5, 6], [-100, -100, 5, 6]], 0),
        ([[-100, -100, 5, 6], [-100, -100, -100, 6]], 1),
        ([[-100, -100, -100, -100], [-100, -100, -100, -100]], 3),
    ],
)
def test_the_common_beginning_ends_before_what_predicts_the_first_target(labels, shared):
    ids = torch.tensor([[3, 4, 5, 6], [3, 4, 5, 7]])
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(labels)}
    assert len(pack(batch, share_prefix=True)["packed_places"]) == 8 - 2 * shared


@pytest.mark.parametrize("short", [128, 0], ids=["plain products", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_common_beginning_changes_no_loss_and_no_gradient(family, short, monkeypatch):
    monkeypatch.setattr(packing, "SHORT", short)
    model = model_of(family, **WINDOWED.get(family, {}), tie_word_embeddings=True)
    model.set_attn_implementation(NAME)
    batch, found = with_prefix(), []
    for packed in (pack(batch), pack(batch, share_prefix=True)):
        model.zero_grad()
        loss = weighted_sum(target_nll(model, packed), packed)
        loss.backward()
        found.append((packed["input_ids"].shape[1], loss, {name: p.grad.clone() for name, p in model.named_parameters()}))
    (tokens, loss, gradients), (fewer, same_loss, same_gradients) = found
    assert (tokens, fewer) == (30, 30 - 3 * 4)
    torch.testing.assert_close(same_loss, loss)
    for name, gradient in gradients.items():
        torch.testing.assert_close(same_gradients[name], gradient, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("short", [128, 0], ids=["plain products", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_logits_are_the_padded_ones(family, short, monkeypatch):
    monkeypatch.setattr(packing, "SHORT", short)
    for changes in ({}, WINDOWED.get(family), {"is_causal": False}):
        if changes is None:
            continue
        model = model_of(family, **changes)
        if not packable(model.config):
            assert "is_causal" in changes
            continue
        batch = batch_of()
        padded = logits_of(model, batch)[batch["attention_mask"].bool()]
        model.set_attn_implementation(NAME)
        torch.testing.assert_close(logits_of(model, pack(batch))[0], padded, atol=1e-4, rtol=1e-4)
        # What the other rows say changes nothing here.
        others = batch_of(seed=1)
        others["input_ids"][1] = batch["input_ids"][1]
        row = slice(3, 12)
        torch.testing.assert_close(logits_of(model, pack(others))[0, row], padded[row], atol=1e-4, rtol=1e-4)
        assert (logits_of(model, pack(others))[0, :3] - padded[:3]).abs().max() > 0.1


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_losses_and_gradients_are_the_padded_ones(bidirectional, checkpointing):
    model = model_of("llama", is_causal=not bidirectional, tie_word_embeddings=True).train()
    twin = copy.deepcopy(model)
    twin.set_attn_implementation(NAME)
    if checkpointing:
        twin.gradient_checkpointing_enable()
    batch = batch_of()
    padded = weighted_sum(target_nll(model, batch, not bidirectional), batch)
    batch = pack(batch)
    packed = weighted_sum(target_nll(twin, batch, not bidirectional), batch)
    torch.testing.assert_close(packed, padded)
    padded.backward()
    packed.backward()
    for (name, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, msg=name, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("short", [128, 0], ids=["plain products", "sdpa"])
def test_attention_dropout_is_for_training(short, monkeypatch):
    monkeypatch.setattr(packing, "SHORT", short)
    model = model_of("llama", attention_dropout=0.5)
    model.set_attn_implementation(NAME)
    batch = pack(batch_of())
    assert torch.equal(logits_of(model, batch), logits_of(model, batch))
    model.train()
    assert not torch.equal(logits_of(model, batch), logits_of(model, batch))


@pytest.mark.parametrize("shared", [1, 2, 6])
@pytest.mark.parametrize("kind", ["causal", "window", "padded"])
def test_plain_products_are_torchs_attention(kind, shared):
    """Six heads that share keys and values, in value and gradient, against torch's own kernel."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 6, 7, 4), (3, shared, 7, 4), (3, shared, 7, 4)]
    ours = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    theirs = [values.detach().clone().requires_grad_() for values in ours]
    mask = None
    if kind == "window":
        mask = torch.ones(7, 7, dtype=torch.bool).tril().triu(-2)[None, None]
    if kind == "padded":
        mask = (torch.arange(7) < torch.tensor([[3], [7], [5]]))[:, None, None].expand(3, 1, 7, 7)
    found = PlainAttention.apply(*ours, mask, 0.3)
    expected = functional.scaled_dot_product_attention(*theirs, attn_mask=mask, is_causal=mask is None, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))
    gradient = torch.randn(found.shape, generator=generator)
    found.backward(gradient)
    expected.backward(gradient.transpose(1, 2))
    for name, one, other in zip("qkv", ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


def test_unpacked_calls_are_sdpas():
    model = make_model("llama")
    batch = {name: batch_of()[name] for name in ("input_ids", "attention_mask")}
    expected, text = logits_of(model, batch), model.generate(batch["input_ids"][1:2], max_new_tokens=8, do_sample=False)
    model.set_attn_implementation(NAME)
    assert torch.equal(logits_of(model, batch), expected)
    assert torch.equal(model.generate(batch["input_ids"][1:2], max_new_tokens=8, do_sample=False), text)


def test_models_that_are_not_packed():
    assert packable(model_of("qwen2").config)
    assert not packable(Gemma2Config())  # it caps its attention's scores
    assert not packable(AutoConfig.for_model("mistral", is_causal=False, sliding_window=8))
    assert not packable(AutoConfig.for_model("lfm2"))  # convolutions would run over the borders of rows
    assert not packable(AutoConfig.for_model("qwen3", layer_types=["linear_attention"], num_hidden_layers=1))
