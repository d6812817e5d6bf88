"""Models from a folder: counts and context without weights, dtypes, tied weights, adapters, and one line for each failure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from demask.models import load
from demask.models.merge import merge
from demask.types import InputError
from tests.tokenizers import llama3

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1}


def llama_config(**options) -> LlamaConfig:
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    return LlamaConfig(**{"vocab_size": len(llama3()), "max_position_embeddings": 64, **SIZES, **ids, **options})


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """A folder with a random tiny model, stored in bfloat16, and its tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tie_word_embeddings=True)).to(torch.bfloat16).save_pretrained(folder)
    llama3().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(saved, tmp_path_factory) -> Path:
    """A LoRA adapter of it that changes what it computes."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32), LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(folder)
    llama3().save_pretrained(folder)
    return folder


def with_files(saved: Path, target: Path, *removed: str, **written: bytes) -> str:
    """A copy of the folder without some files and with others written anew ("__" stands for the dot)."""
    shutil.copytree(saved, target)
    for name in removed:
        (target / name).unlink()
    for name, content in written.items():
        (target / name.replace("__", ".")).write_bytes(content)
    return str(target)


# -- sizes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(
    ("config_class", "model_class"), [(LlamaConfig, LlamaForCausalLM), (Qwen3Config, Qwen3ForCausalLM)], ids=["llama", "qwen3"]
)
def test_parameter_counts_are_the_models(config_class, model_class, tied):
    config = config_class(vocab_size=50, head_dim=8, tie_word_embeddings=tied, pad_token_id=None, **SIZES)
    total = sum(parameter.numel() for parameter in model_class(config).parameters())
    # The input embedding looks rows up; only as the head's weight, tied or not, is it multiplied by.
    assert load.parameter_counts(config) == (total, total if tied else total - 50 * 16)


def test_parameter_counts_by_hand():
    config = llama_config(vocab_size=50, tie_word_embeddings=False)
    attention = 16 * 16 + 2 * (16 * 8) + 16 * 16  # q; k and v of one head; o
    layer = attention + 3 * 16 * 24 + 2 * 16  # gated MLP; two norms
    body = 2 * layer + 16
    assert load.parameter_counts(config) == (body + 2 * 50 * 16, body + 50 * 16)


def test_a_large_model_is_counted_without_its_memory():
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=False,
    )
    assert load.parameter_counts(config)[0] == 8_030_261_248  # Llama 3.1 8B


def test_the_context_is_the_smaller_of_the_models_and_the_tokenizers():
    class Tokenizer:
        model_max_length = 48

    class NoLimit:
        model_max_length = int(1e30)  # what transformers sets for a tokenizer that names none

    assert load.context_length(llama_config(), Tokenizer()) == 48
    assert load.context_length(llama_config(), NoLimit()) == 64
    assert load.context_length(llama_config(max_position_embeddings=32), Tokenizer()) == 32


def test_module_names():
    names = load.module_names(llama_config())
    assert "model.layers.1.self_attn.q_proj" in names
    assert "lm_head" in names
    assert "" not in names


# -- dtypes and tied weights -----------------------------------------------------------------------------------------------


def test_the_stored_dtype(saved, adapter, tmp_path):
    assert load.stored_dtype(str(saved)) is torch.bfloat16
    assert load.stored_dtype(str(adapter)) is torch.bfloat16
    config = json.loads((saved / "config.json").read_text())
    del config["dtype"]
    silent = with_files(saved, tmp_path / "silent", config__json=json.dumps(config).encode())
    assert load.stored_dtype(silent) is torch.float32


def test_weights_load_in_the_dtype_asked_for_and_frequencies_stay_exact(saved):
    model = load.load_model(str(saved), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype is torch.float32
    assert {parameter.dtype for parameter in load.load_model(str(saved)).parameters()} == {torch.float32}


def test_cast_state_keeps_ties_and_leaves_integers():
    shared = torch.tensor([1.0, 1.0 + 2**-12])
    state = {"embedding": shared, "head": shared, "other": shared.clone(), "count": torch.tensor([2**24 + 1])}
    cast = load.cast_state(state, torch.bfloat16)
    assert cast["embedding"] is cast["head"]
    assert cast["other"] is not cast["head"]
    assert cast["embedding"].tolist() == [1.0, 1.0]
    assert cast["embedding"].dtype is torch.bfloat16
    assert cast["count"].tolist() == [2**24 + 1]


def test_a_tied_model_is_saved_in_the_dtype_asked_for_with_its_embedding_once(saved, tmp_path):
    load.save_model(load.load_model(str(saved)), tmp_path, torch.bfloat16)
    assert load.stored_dtype(str(tmp_path)) is torch.bfloat16
    before, after = load_file(saved / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert set(after) == set(before)
    assert all(torch.equal(after[name], before[name]) and after[name].dtype is torch.bfloat16 for name in before)


# -- adapters ----------------------------------------------------------------------------------------------------------------


def test_the_base_of_an_adapter(saved, adapter):
    assert load.adapter_base(str(saved)) is None
    assert load.adapter_base(str(adapter)) == str(saved)
    assert load.load_config(str(adapter)).hidden_size == 16


def test_a_merged_adapter_computes_what_base_and_adapter_do(adapter, saved, tmp_path):
    merge(str(adapter), str(tmp_path / "merged"))
    ids = torch.tensor([llama3().encode("Ann keeps bees.")])
    with torch.inference_mode():
        plain = load.load_model(str(saved))(ids).logits
        wanted = load.load_model(str(adapter))(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)(ids).logits
    assert AutoConfig.from_pretrained(tmp_path / "merged").dtype is torch.bfloat16
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["merged"]
    difference = (wanted - plain).abs().max()
    assert difference > 0.1
    assert (merged - wanted).abs().max() < 0.05 * difference  # the sum was rounded to bfloat16
    assert load.load_tokenizer(str(tmp_path / "merged")).encode("Ann") == llama3().encode("Ann")


# -- names and failures --------------------------------------------------------------------------------------------------------


def test_names(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(saved.parent)
    assert load.model_folder(None) == str(load.EMBEDDED["tiny/causal"])
    assert load.model_folder("tiny") == "tiny"
    assert load.model_folder(str(saved)) == str(saved)
    assert load.model_folder("owner/name") == "owner/name"
    monkeypatch.setenv("HOME", str(saved.parent))
    assert load.model_folder("~/tiny") == str(saved)


@pytest.mark.parametrize("name", ["./gone", "/gone/far", "~/gone-from-here", "a/b/c"])
def test_a_folder_that_is_not_there(name):
    with pytest.raises(InputError) as caught:
        load.model_folder(name)
    assert str(caught.value) == f"model '{name}': no such folder"


FAULTS = {
    # name: (what loads, files removed, files written, what the message holds)
    "no configuration": (load.load_config, ["config.json"], {}, "can't load its configuration (Unrecognized model"),
    "broken configuration": (load.load_config, [], {"config__json": b"{"}, "can't load its configuration (It looks like the config file"),
    "unknown architecture": (load.load_config, [], {"config__json": b'{"model_type": "zork"}'}, "model type `zork`"),
    "no weights": (load.load_model, ["model.safetensors"], {}, "can't load its weights (Error no file named model.safetensors"),
    "broken weights": (load.load_model, [], {"model__safetensors": b"weights"}, "can't load its weights (Error while deserializing header"),
    "no tokenizer": (load.load_tokenizer, ["tokenizer.json", "tokenizer_config.json"], {}, "can't load its tokenizer ("),
    "broken tokenizer": (load.load_tokenizer, [], {"tokenizer__json": b"{"}, "can't load its tokenizer ("),
    "broken adapter": (load.adapter_base, [], {"adapter_config__json": b"{"}, "can't load its adapter configuration ("),
    "adapter of nothing": (load.adapter_base, [], {"adapter_config__json": b"{}"}, "its adapter_config.json names no base model"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failure_is_one_line_that_names_the_model(fault, saved, tmp_path):
    loads, removed, written, message = FAULTS[fault]
    name = with_files(saved, tmp_path / "broken", *removed, **written)
    with pytest.raises(InputError) as caught:
        loads(name)
    assert str(caught.value).startswith(f"model '{name}': ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_cut_short(saved, tmp_path):
    whole = (saved / "model.safetensors").read_bytes()
    name = with_files(saved, tmp_path / "cut", model__safetensors=whole[: len(whole) // 2])
    with pytest.raises(InputError, match="can't load its weights"):
        load.load_model(name)


def test_weights_that_lack_a_tensor_are_refused_rather_than_made_up(saved, tmp_path):
    name = with_files(saved, tmp_path / "lacking")
    state = load_file(saved / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, f"{name}/model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"': its weights lack 1 tensors, the first is model\.norm\.weight$"):
        load.load_model(name)


def test_merge_refuses_what_it_cannot_do(saved, adapter, tmp_path):
    with pytest.raises(InputError, match=r"holds no adapter_config\.json$"):
        merge(str(saved), str(tmp_path / "merged"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    with pytest.raises(InputError, match=r"full' exists and is not an empty folder$"):
        merge(str(adapter), str(tmp_path / "full"))
    with pytest.raises(InputError, match=r"exists and is not an empty folder$"):
        merge(str(adapter), str(tmp_path / "full" / "mine"))
    assert not (tmp_path / "merged").exists()


def test_the_embedded_model_is_complete():
    tokenizer = load.load_tokenizer(load.model_folder(None))
    config = load.load_config(load.model_folder(None))
    assert load.context_length(config, tokenizer) == 512
    assert load.stored_dtype(load.model_folder(None)) is torch.bfloat16
    assert config.vocab_size >= len(tokenizer)
