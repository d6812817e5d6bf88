"""A training step in fewer products and passes: the same loss and gradients as the model's own layers give."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from demask import lean_layers
from demask.lean_layers import FAMILIES
from demask.lean_layers import lean_layers as lean
from demask.losses import target_nll, weighted_sum
from demask.packing import NAME, pack
from tests.unit.test_packing import batch_of, model_of


def model_in_training(family: str, **changes: Any) -> Any:
    """A model with norms and biases of its own, where a fresh one has ones and zeros."""
    model = model_of(family, **{"tie_word_embeddings": True} | changes).train()
    model.set_attn_implementation(NAME)
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=float("norm" in name), std=0.3)
    return model


def replaced(model: Any) -> int:
    return sum("forward" in vars(module) for module in model.modules())


def loss_and_gradients(model: Any, batch: Any, micro_batches: int = 1) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    for _ in range(micro_batches):
        loss = weighted_sum(target_nll(model, batch), batch) / 7
        loss.backward()
    return float(loss.detach()), {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("from_tokens", [1, 1024])
@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {}), ("llama", {"attention_bias": True}), ("mistral", {"sliding_window": 4}), ("qwen2", {})],
)
def test_loss_and_gradients_are_those_of_the_models_own_layers(family, changes, micro_batches, from_tokens, monkeypatch):
    """From the second step on, gradients are written into the memory of the first step's; those of several micro-batches add up."""
    monkeypatch.setattr(lean_layers, "_LONG", from_tokens)
    monkeypatch.setattr(lean_layers, "_ROWS", 16)
    model, batch = model_in_training(family, **changes), batch_of()
    loss, gradients = loss_and_gradients(model, batch, micro_batches)
    with lean(model):
        assert replaced(model) == 3  # two layers and the head
        for _ in range(2):
            found_loss, found = loss_and_gradients(model, pack(batch), micro_batches)
            assert found_loss == pytest.approx(loss, abs=1e-5)
            for name, gradient in gradients.items():
                torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=name)
    assert not replaced(model)


def test_under_autocast_gradients_are_as_near_to_fp32s_as_the_models_own():
    model, batch = model_in_training("llama"), batch_of()
    _, exact = loss_and_gradients(model, batch)

    def error(patch: Any, batch: Any) -> float:
        with patch, torch.autocast("cpu", torch.bfloat16):
            _, found = loss_and_gradients(model, batch)
        return sum(float((found[name] - exact[name]).norm()) for name in exact) / sum(float(exact[name].norm()) for name in exact)

    own = error(contextlib.nullcontext(), batch)
    assert error(lean(model), pack(batch)) < 1.5 * own


def test_weights_are_cast_again_once_they_have_changed():
    model, batch = model_in_training("llama"), pack(batch_of())
    with lean(model) as weights_changed:
        before, _ = loss_and_gradients(model, batch)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.mul_(2)
        weights_changed()
        after, _ = loss_and_gradients(model, batch)
    assert before != after
    assert after == pytest.approx(loss_and_gradients(model, batch)[0], abs=1e-5)


def test_what_is_not_a_packed_batch_is_computed_as_usual():
    model, batch = model_in_training("llama").eval(), batch_of()
    read = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(**read).logits
        with lean(model):
            torch.testing.assert_close(model(**read).logits, expected, atol=0, rtol=0)


def test_bidirectional_models_train_too():
    model, batch = model_in_training("llama", is_causal=False), batch_of()
    loss, gradients = loss_and_gradients(model, batch)
    with lean(model):
        found_loss, found = loss_and_gradients(model, pack(batch))
    assert found_loss == pytest.approx(loss, abs=1e-5)
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_other_models_are_left_as_they_are():
    for model in (model_in_training("qwen3"), get_peft_model(model_in_training("llama"), LoraConfig(target_modules=["q_proj"]))):
        with lean(model):
            assert not replaced(model)
    frozen = model_in_training("llama")
    frozen.model.layers[1].mlp.up_proj.weight.requires_grad_(False)
    dropping = model_in_training("llama", attention_dropout=0.1)
    for model in (frozen, dropping):
        with lean(model):
            assert not replaced(model)
    assert set(FAMILIES) == {"llama", "mistral", "qwen2"}
