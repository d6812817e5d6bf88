"""A tied vocabulary's gradient, with the embedding's rows added to the head's: the gradient of plain autograd."""

from __future__ import annotations

import copy

import pytest
import torch

from demask.embedding_gradient import rows_added_in_place
from tests.models import make_model
from tests.unit.test_packing import batch_of, model_of


def gradients(model, batches, autocast=False):
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(batch["input_ids"], attention_mask=batch["attention_mask"], labels=batch["labels"]).loss
        loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("n_batches", [1, 2])
def test_it_is_autograds(n_batches, autocast, checkpointing):
    model = model_of("llama", tie_word_embeddings=True).train()
    twin = copy.deepcopy(model)
    if checkpointing:
        twin.gradient_checkpointing_enable()
    batches = [batch_of(seed=seed) for seed in range(n_batches)]
    expected = gradients(model, batches, autocast)
    with rows_added_in_place(twin):
        found = gradients(twin, batches, autocast)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name, atol=1e-6, rtol=1e-5)
    # The embedding's rows do count: token 1, the padding, is the only one that it does not train.
    head_only = copy.deepcopy(model)
    head_only.zero_grad()
    head_only.get_input_embeddings().register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    assert (gradients(head_only, batches, autocast)["model.embed_tokens.weight"] - expected["model.embed_tokens.weight"]).abs().max() > 1e-3


def test_it_is_over_afterwards():
    model = model_of("llama", tie_word_embeddings=True).train()
    expected = gradients(copy.deepcopy(model), [batch_of()])
    with rows_added_in_place(model):
        gradients(model, [batch_of()])
    model.zero_grad()
    found = gradients(model, [batch_of()])
    assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())


@pytest.mark.parametrize("arch", ["qwen3", "gemma3"], ids=["a head of its own", "a scaled embedding"])
def test_other_models_are_left_alone(arch):
    model = make_model(arch)
    with rows_added_in_place(model):
        assert not model.get_input_embeddings()._forward_hooks


def test_frozen_embeddings_are_left_alone():
    model = model_of("llama", tie_word_embeddings=True)
    model.requires_grad_(False)
    with rows_added_in_place(model):
        assert not model.get_input_embeddings()._forward_hooks
