"""Norms computed in fewer passes: the same values and gradients, cast once, and only where linear layers read them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model

from demask.norms import FAMILIES, lean_norms, rms_norm
from demask.packing import FAMILIES as PACKED
from tests.unit.test_packing import batch_of, logits_of, model_of


def with_weights(family: str, **changes: Any) -> Any:
    """A model whose norms have weights of their own, where a fresh one has ones."""
    model = model_of(family, **changes)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
    return model


def replaced(model: Any) -> list[str]:
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("family", FAMILIES)
def test_models_say_and_learn_the_same(family):
    model, batch = with_weights(family), batch_of()
    read = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    model(**read).loss.backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    logits = logits_of(model, batch)
    model.zero_grad(set_to_none=True)
    with lean_norms(model):
        assert len(replaced(model)) == 4  # two layers of two
        torch.testing.assert_close(logits_of(model, batch), logits, atol=1e-4, rtol=1e-4)
        model(**read).loss.backward()
    assert not replaced(model)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_by_its_formula(dtype):
    """weight x / sqrt(mean of x squared + eps) and torch's derivative of it, in fp32."""
    norm = with_weights("llama").model.norm.to(dtype)
    norm.variance_epsilon = 0.1
    states = torch.randn(3, 5, 32).to(dtype).requires_grad_()
    twin, weight = states.detach().float().requires_grad_(), norm.weight.detach().float().requires_grad_()
    found, expected = rms_norm(norm, states), weight * twin / (twin.pow(2).mean(-1, keepdim=True) + 0.1).sqrt()
    gradient = torch.randn(3, 5, 32).to(dtype)
    found.backward(gradient)
    expected.backward(gradient.float())
    assert found.dtype == states.grad.dtype == norm.weight.grad.dtype == dtype
    precision = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 1e-2}
    for one, other in ((found, expected), (states.grad, twin.grad), (norm.weight.grad, weight.grad)):
        torch.testing.assert_close(one.float(), other, **precision)


def test_under_autocast_the_result_is_cast_once():
    norm, states = with_weights("llama").model.norm, torch.randn(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rms_norm(norm, states), norm(states).to(torch.bfloat16), atol=0, rtol=2**-7)
    assert rms_norm(norm, states).dtype == torch.float32


def test_a_frozen_weight_gets_no_gradient():
    norm = with_weights("llama").model.norm.requires_grad_(False)
    states = torch.randn(4, 32, requires_grad=True)
    rms_norm(norm, states).sum().backward()
    assert norm.weight.grad is None
    assert states.grad.any()


@pytest.mark.parametrize("family", sorted(set(PACKED) - set(FAMILIES)))
def test_norms_that_are_added_to_the_stream_are_left(family):
    model = model_of(family)
    with lean_norms(model):
        assert not replaced(model)


def test_a_norm_that_an_adapter_wraps_is_left_and_a_librarys_comes_back():
    wrapped = get_peft_model(model_of("llama"), LoraConfig(target_modules=["q_proj"], modules_to_save=["input_layernorm"]))
    with lean_norms(wrapped):
        assert [name.rsplit(".", 1)[1] for name in replaced(wrapped)] == ["post_attention_layernorm"] * 2
    model = model_of("llama")
    norm = model.model.layers[0].input_layernorm
    norm.forward = theirs = lambda states: states
    with lean_norms(model):
        assert norm.forward is not theirs
    assert norm.forward is theirs
