"""The loss against values worked out on paper, and against Hugging Face's own on the logits of every token."""

from __future__ import annotations

from math import log
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import convert_outputs_to_fp32
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.nn import functional
from transformers import Gemma2Config, Gemma2ForCausalLM, set_seed

from demask import losses
from demask.chat_format import IGNORE
from demask.losses import target_nll, weighted_sum
from tests.models import ARCHITECTURES, make_model

# Two tokens. Whatever it reads, the model gives token 1 the odds 3:1 after position 0, 1:1 after 1, 1:9 after 2, and 1:999 after 3.
LOGITS = torch.tensor([[0.0, log(3)], [0.0, 0.0], [log(9), 0.0], [log(999), 0.0]])


class Fixed:
    """A model of known logits, (L, V) for each row, that answers as transformers does and remembers what it was asked."""

    def __init__(self, logits_LV: torch.Tensor = LOGITS) -> None:
        self.logits_LV = logits_LV.requires_grad_(logits_LV.is_floating_point())

    def __call__(self, *, input_ids, attention_mask, logits_to_keep, use_cache):
        assert input_ids.shape == attention_mask.shape == logits_to_keep.shape
        assert not use_cache
        self.kept = logits_to_keep
        return SimpleNamespace(logits=self.logits_LV.expand(len(input_ids), -1, -1)[logits_to_keep])


def batch_of(labels: list[list[int]], **more: torch.Tensor) -> dict[str, torch.Tensor]:
    labels_BL = torch.tensor(labels)
    return {"input_ids": labels_BL.clamp(min=0), "attention_mask": torch.ones_like(labels_BL), "labels": labels_BL, **more}


_ = IGNORE
LABELS = [[_, 1, _, 0], [_, _, 0, _]]


def test_nll_by_hand():
    """Row 0: token 1 after position 0 (3/4) and token 0 after position 2 (9/10); row 1: token 0 after position 1 (1/2)."""
    model = Fixed()
    nll = target_nll(model, batch_of(LABELS))
    assert nll.tolist() == pytest.approx([log(4 / 3), log(10 / 9), log(2)])
    # The head runs at the positions before the targets and nowhere else.
    assert model.kept.tolist() == [[True, False, True, False], [False, True, False, False]]


def test_weighted_sum_by_hand():
    batch = batch_of(LABELS)
    nll = target_nll(Fixed(), batch)
    assert weighted_sum(nll, batch).item() == pytest.approx(log(4 / 3) + log(10 / 9) + log(2))
    # The targets' weights are 2, 0.5 and 3; what stands elsewhere counts for nothing.
    batch["loss_weights"] = torch.tensor([[7.0, 2.0, 7.0, 0.5], [7.0, 7.0, 3.0, 7.0]])
    assert weighted_sum(nll, batch).item() == pytest.approx(2 * log(4 / 3) + 0.5 * log(10 / 9) + 3 * log(2))


def test_position_0_is_never_a_target():
    """No logit predicts it: a label there changes nothing, nor does it make the last position's logits a prediction of it."""
    model = Fixed()
    nll = target_nll(model, batch_of([[0, 1, _, 0], [1, _, 0, _]]))
    assert nll.tolist() == pytest.approx([log(4 / 3), log(10 / 9), log(2)])
    assert not model.kept[:, -1].any()
    batch = batch_of([[1, _, _, 1]], loss_weights=torch.tensor([[100.0, 100.0, 100.0, 1.0]]))
    assert weighted_sum(target_nll(Fixed(), batch), batch).item() == pytest.approx(log(10))


def test_nll_at_the_targets_own_places_by_hand():
    """Unshifted logits. Row 0: token 1 at position 1 (1/2) and token 0 at position 3 (999/1000); row 1: token 0 at position 2 (9/10)."""
    model = Fixed()
    batch = batch_of(LABELS, loss_weights=torch.tensor([[7.0, 2.0, 7.0, 0.5], [7.0, 7.0, 3.0, 7.0]]))
    nll = target_nll(model, batch, next_token=False)
    assert nll.tolist() == pytest.approx([log(2), log(1000 / 999), log(10 / 9)], rel=1e-4)
    assert model.kept.tolist() == [[False, True, False, True], [False, False, True, False]]
    assert weighted_sum(nll, batch).item() == pytest.approx(2 * log(2) + 0.5 * log(1000 / 999) + 3 * log(10 / 9))
    # A label at position 0 changes nothing here either.
    assert target_nll(model, batch_of([[0, 1, _, 0], [1, _, 0, _]]), next_token=False).equal(nll)
    assert not model.kept[:, 0].any()


def test_a_row_without_targets_adds_nothing():
    with_row, without = batch_of([*LABELS, [_, _, _, _]]), batch_of(LABELS)
    assert weighted_sum(target_nll(Fixed(), with_row), with_row).item() == weighted_sum(target_nll(Fixed(), without), without).item()


@pytest.mark.parametrize("next_token", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_batch_without_targets_is_a_zero_that_depends_on_the_model(weighted, next_token):
    model = Fixed()
    batch = batch_of([[_, _, _, _]] * 2)
    if weighted:
        batch["loss_weights"] = torch.ones(2, 4)
    loss = weighted_sum(target_nll(model, batch, next_token), batch)
    assert loss.item() == 0
    loss.backward()
    assert model.logits_LV.grad is not None
    assert not model.logits_LV.grad.any()


def test_nll_is_float32_whatever_the_logits_are():
    nll = target_nll(Fixed(torch.tensor([[8.0, 0.0], [0.0, 0.0]], dtype=torch.bfloat16)), batch_of([[_, 0]]))
    assert nll.dtype == torch.float32
    assert nll.item() == pytest.approx(log(1 + 2.718281828459045**-8), rel=1e-4)  # bfloat16 would make it 0


def ragged_batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Three rows of 9, 5 and 2 tokens, padded on the right, with targets here and there."""
    ids = torch.randint(0, vocabulary, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 9, [1] * 5 + [0] * 4, [1] * 2 + [0] * 7])
    labels = ids.masked_fill(mask == 0, IGNORE)
    labels[:, 0] = IGNORE
    labels[0, 2:5] = IGNORE
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equals_hugging_faces_loss_on_all_logits(arch):
    """Their mean over the targets, times the number of targets (5 + 4 + 1), in value and in every gradient."""
    model = make_model(arch)
    batch = ragged_batch(model.config.vocab_size)
    theirs = model(**batch).loss * 10
    theirs.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    nll = target_nll(model, batch)
    assert nll.shape == (10,)
    weighted_sum(nll, batch).backward()
    assert nll.sum().item() == pytest.approx(theirs.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("next_token", [True, False])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_nll_is_that_of_its_target(arch, next_token):
    """Row by row without padding, from the log-softmax of all logits; so with weights too. Left to right, and in a diffusion model."""
    model = make_model(arch, is_causal=next_token)
    batch = ragged_batch(model.config.vocab_size)
    expected, weights = [], torch.rand(3, 9, generator=torch.Generator().manual_seed(1))
    total = 0.0
    with torch.no_grad():
        for i, length in enumerate([9, 5, 2]):
            log_p_LV = model(input_ids=batch["input_ids"][i : i + 1, :length]).logits[0].log_softmax(-1)
            for place in range(1, length):
                if batch["labels"][i, place] != IGNORE:
                    expected.append(-log_p_LV[place - next_token, batch["labels"][i, place]].item())
                    total += weights[i, place].item() * expected[-1]
        nll = target_nll(model, batch, next_token)
        assert nll.tolist() == pytest.approx(expected, rel=1e-4)
        assert weighted_sum(nll, batch | {"loss_weights": weights}).item() == pytest.approx(total, rel=1e-4)


# --- one copy of the logits, taken at the head


def plain_nll(model: Any, batch: dict[str, torch.Tensor], next_token: bool = True) -> torch.Tensor:
    """The targets' nll from the logits of every token and torch's own cross-entropy."""
    logits_BLV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
    labels_BL = batch["labels"][:, 1:]
    logits_BLV = logits_BLV[:, :-1] if next_token else logits_BLV[:, 1:]
    nll_BL = functional.cross_entropy(logits_BLV.transpose(1, 2), labels_BL, reduction="none")
    return nll_BL[labels_BL != IGNORE]


def gradients_of(model: Any, nll: torch.Tensor, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    weighted_sum(nll, batch).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_same_loss_and_gradients(model: Any, next_token: bool = True) -> None:
    batch = ragged_batch(model.config.vocab_size)
    batch["loss_weights"] = torch.rand(3, 9, generator=torch.Generator().manual_seed(1))
    expected = plain_nll(model, batch, next_token)
    gradients = gradients_of(model, expected, batch)
    nll = target_nll(model, batch, next_token)
    torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
    found = gradients_of(model, nll, batch)
    assert found.keys() == gradients.keys()
    assert any(gradient.any() for gradient in found.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=name)
    assert not model.get_output_embeddings()._forward_hooks


@pytest.mark.parametrize("chunk", [1, 1000, 2**23], ids=["a_row", "some_rows", "all_rows"])
@pytest.mark.parametrize("next_token", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_weighted_gradients_equal_those_of_plain_cross_entropy(tied, next_token, chunk, monkeypatch):
    """Whether the logits are taken row by row or at once; left to right and, as converted LLaDA is, in a bidirectional Llama."""
    monkeypatch.setitem(losses.CHUNK, "cpu", chunk)
    assert_same_loss_and_gradients(make_model("llama", is_causal=next_token, tie_word_embeddings=tied), next_token)


@pytest.mark.parametrize("modules", ["all-linear", ["q_proj", "lm_head"]], ids=["all_linear", "head"])
def test_a_lora_model_and_a_head_under_lora(modules):
    from peft import LoraConfig, get_peft_model

    model = make_model("llama", tie_word_embeddings=False)
    lora = LoraConfig(r=4, target_modules=modules, init_lora_weights=False, task_type="CAUSAL_LM")
    assert_same_loss_and_gradients(get_peft_model(model, lora).eval())


def softcapping_model() -> Any:
    """Gemma 2 caps what its head gives at 2 x tanh(logit / 2): what the head alone gives is not the model's logits."""
    set_seed(0)
    shape = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "query_pre_attn_scalar": 8}
    config = Gemma2Config(**shape, **heads, final_logit_softcapping=2.0, initializer_range=0.15, attn_implementation="eager")
    return Gemma2ForCausalLM(config).eval()


def test_a_model_that_changes_its_heads_logits():
    model = softcapping_model()
    for _step in range(2):  # found out at the first one, known at the second
        assert_same_loss_and_gradients(model)


def test_a_compiled_model():
    model = make_model("llama")
    batch = ragged_batch(model.config.vocab_size)
    expected = plain_nll(model, batch)
    torch.testing.assert_close(target_nll(torch.compile(model, backend="eager"), batch), expected, rtol=1e-5, atol=1e-5)


def test_no_hook_stays_where_the_model_fails():
    model = make_model("llama")
    batch = ragged_batch(model.config.vocab_size)
    batch["input_ids"] = batch["input_ids"] + model.config.vocab_size
    with pytest.raises(IndexError):
        target_nll(model, batch)
    assert not model.lm_head._forward_hooks


def test_under_mixed_precision_one_bfloat16_copy_of_the_logits_is_kept():
    """With the forward that accelerate gives a model, whose bfloat16 outputs turn into fp32. Of (N, V), autograd holds N x V x 2 bytes."""
    model = make_model("llama")
    batch = ragged_batch(model.config.vocab_size)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (10, model.config.vocab_size):
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_nll(model, batch)
    gradients = gradients_of(model, expected, batch)
    model.forward = convert_outputs_to_fp32(torch.autocast("cpu", torch.bfloat16)(model.forward))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        nll = target_nll(model, batch)
    assert list(kept.values()) == [10 * model.config.vocab_size * 2]
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, expected, rtol=0.02, atol=0.02)
    for name, gradient in gradients_of(model, nll, batch).items():
        torch.testing.assert_close(gradient, gradients[name], rtol=0.1, atol=0.02 * gradients[name].abs().max().item(), msg=name)


@pytest.mark.parametrize("output_dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_a_sharded_model(arch, output_dtype, tmp_path):
    """FSDP2, the untied head sharded on its own; what leaves the model may be cast to bfloat16, the nll that is trained on is not."""
    model, batch = make_model(arch), ragged_batch(300)
    expected = plain_nll(model, batch)
    gradients = gradients_of(model, expected, batch)
    model.zero_grad()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for module in [*model.model.layers, *([model.lm_head] if arch == "qwen3" else [])]:
            fully_shard(module, mesh=mesh)
        fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(output_dtype=output_dtype))
        nll = target_nll(model, batch)
        torch.testing.assert_close(nll, expected, rtol=1e-5, atol=1e-5)
        for name, gradient in gradients_of(model, nll, batch).items():
            torch.testing.assert_close(gradient.full_tensor(), gradients[name], rtol=1e-4, atol=1e-5, msg=name)
    finally:
        torch.distributed.destroy_process_group()


def test_a_second_backward_pass_is_refused():
    """The first one has written over the logits."""
    nll = target_nll(make_model("llama"), ragged_batch(300))
    nll.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        nll.sum().backward()
