"""Published diffusion checkpoints (LLaDA, iLLaDA, Dream) against an independent implementation of their network (tests/llada.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, Qwen2ForCausalLM, StableLmConfig

from demask.chat_format import ChatFormat
from demask.cli import main
from demask.models import load
from demask.models.convert import convert
from demask.models.family import family, make_bidirectional, predicts_next
from demask.models.merge import merge
from demask.types import InputError
from tests import llada

IDS = [11, 250, 3, 77, 140, 3, 201, 8, 64, 390, 5]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return llada.write_llada(tmp_path_factory.mktemp("llada") / "source")


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("converted") / "llada"
    convert(source, str(folder))
    return str(folder)


def config_json(folder: str) -> dict[str, Any]:
    return json.loads((Path(folder) / "config.json").read_text())


@torch.inference_mode()
def logits(model: Any, ids: list[int] = IDS) -> torch.Tensor:
    return model(torch.tensor([ids])).logits[0].double()


def expected(source: str) -> torch.Tensor:
    config = config_json(source)
    return llada.logits(llada.random_weights(config), config, IDS)


# -- the network ---------------------------------------------------------------------------------------------------------


def test_the_logits_are_the_papers(source):
    model = load.load_model(source)
    wanted = expected(source)
    assert type(model) is LlamaForCausalLM
    assert not model.training
    assert wanted.abs().max() > 0.1
    assert (logits(model) - wanted).abs().max() < 1e-6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(source, side, attention):
    model = load.load_model(source, attn_implementation=attention)
    pad = [model.config.eos_token_id] * 4
    short, long = [7, 9, 300], [7, 9, 300, 41, 2, 88, 12]
    row, at = (pad + short, slice(4, 7)) if side == "left" else (short + pad, slice(0, 3))
    mask = torch.tensor([[1] * 7, [int(token != pad[0]) for token in row]])
    with torch.inference_mode():
        found = model(torch.tensor([long, row]), attention_mask=mask).logits.double()
    config = config_json(source)
    weights = llada.random_weights(config)
    assert (found[0] - llada.logits(weights, config, long)).abs().max() < 1e-6
    assert (found[1, at] - llada.logits(weights, config, short)).abs().max() < 1e-6


def test_one_file_grouped_heads_and_a_tied_head(tmp_path):
    source = llada.write_llada(tmp_path / "one", shards=1, n_kv_heads=2, weight_tying=True)
    model = load.load_model(source)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (logits(model) - expected(source)).abs().max() < 1e-6


def test_the_configuration(source):
    config = load.load_config(source)
    raw = config_json(source)
    assert family(config) == "diffusion"
    assert not predicts_next(config)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 500000.0}
    assert (config.rms_norm_eps, config.max_position_embeddings, config.tie_word_embeddings) == (1e-5, 64, False)
    # No padding id: it is the end's, and a native embedding would never learn that row.
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (None, raw["eos_token_id"], None)
    assert config.vocab_size == raw["embedding_size"] == raw["vocab_size"] + 5
    assert load.stored_dtype(source) is torch.float32
    assert load.parameter_counts(config)[0] == sum(tensor.numel() for tensor in llada.random_weights(raw).values())


def test_frequencies_are_exact_in_any_dtype(source):
    model = load.load_model(source, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.config.dtype is torch.bfloat16
    exact = 500000.0 ** (-torch.arange(4).double() / 4)  # heads of 8: four pairs
    frequencies = model.model.rotary_emb.inv_freq
    assert frequencies.dtype is torch.float32
    assert torch.allclose(frequencies.double(), exact, rtol=1e-6, atol=0)
    assert (logits(model) - expected(source)).abs().max() < 0.05


def test_a_loaded_model_does_not_hang_on_its_file(tmp_path):
    source = llada.write_llada(tmp_path / "whole", shards=1)
    model, wanted = load.load_model(source), expected(source)
    weights = tmp_path / "whole" / "model.safetensors"
    with weights.open("r+b") as file:
        file.write(bytes(weights.stat().st_size))
    assert (logits(model) - wanted).abs().max() < 1e-6


def test_an_adapter_on_top(source, tmp_path):
    model = load.load_model(source)
    torch.manual_seed(1)
    adapted = get_peft_model(model, LoraConfig(r=2, init_lora_weights=False, target_modules="all-linear"))
    wanted = logits(adapted)
    adapted.save_pretrained(tmp_path / "lora")
    load.load_tokenizer(source).save_pretrained(tmp_path / "lora")
    assert load.adapter_base(str(tmp_path / "lora")) == source
    assert family(load.load_config(str(tmp_path / "lora"))) == "diffusion"
    assert torch.equal(logits(load.load_model(str(tmp_path / "lora"))), wanted)
    assert (wanted - expected(source)).abs().max() > 0.01
    merge(str(tmp_path / "lora"), str(tmp_path / "merged"))
    assert (logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) - wanted).abs().max() < 1e-5


# -- the tokenizer -------------------------------------------------------------------------------------------------------


def test_the_tokenizer(source):
    tokenizer = load.load_tokenizer(source)
    shipped = llada.tokenizer()
    assert shipped.mask_token is None
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mdm_mask|>", config_json(source)["mask_token_id"])
    assert len(tokenizer) == len(shipped)
    assert tokenizer.encode("Ann <|mdm_mask|> bees.") == shipped.encode("Ann <|mdm_mask|> bees.")
    chat = ChatFormat(tokenizer)
    assert chat.end == shipped.convert_tokens_to_ids("<|eot_id|>")
    assert chat.stop_ids() == sorted([chat.end, shipped.eos_token_id])


CONVERSATIONS = [
    [("user", "Who keeps bees?")],
    [("system", "Be brief."), ("user", "  Who? \n")],
    [("user", "Who?"), ("assistant", " Ann. "), ("user", "Why?")],
]


@pytest.mark.parametrize("turns", CONVERSATIONS, ids=["prompt", "system", "turns"])
def test_our_template_writes_the_prompts_of_the_shipped_one(source, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    tokenizer = load.load_tokenizer(source)
    shipped = llada.tokenizer().apply_chat_template(messages, tokenize=False)
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == shipped
    header = "<|start_header_id|>assistant<|end_header_id|>\n\n"
    assert tokenizer.apply_chat_template(messages, tokenize=False) + header == shipped


def test_our_template_by_hand_and_its_markers(source):
    tokenizer = load.load_tokenizer(source)
    messages = [{"role": "user", "content": " Who? "}, {"role": "assistant", "content": " Ann. "}]
    encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert tokenizer.decode(encoded["input_ids"]) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\n\nWho?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nAnn.<|eot_id|>"
    )
    marked = [token for token, mark in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mark]
    assert tokenizer.decode(marked) == "Ann.<|eot_id|>"


@pytest.mark.parametrize("template", [None, "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"], ids=["none", "another"])
def test_a_base_models_template_is_kept(template, tmp_path):
    tokenizer = load.load_tokenizer(llada.write_llada(tmp_path / "base", template))
    assert tokenizer.chat_template == template
    assert tokenizer.mask_token == "<|mdm_mask|>"


# -- iLLaDA and Dream --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"model_type": "other"}, {"architectures": ["Model"]}], ids=["both", "architecture", "model_type"])
def test_illada(changes, tmp_path):
    source, weights, sizes = llada.write_illada(tmp_path / "illada", **changes)
    model, tokenizer = load.load_model(source), load.load_tokenizer(source)
    assert type(model) is LlamaForCausalLM
    assert not predicts_next(model.config)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert (logits(model) - llada.logits(weights, sizes, IDS)).abs().max() < 1e-6
    assert tokenizer.mask_token == "<[MASK]>"
    assert ChatFormat(tokenizer).end == tokenizer.convert_tokens_to_ids("<|eot_id|>")
    convert(source, str(tmp_path / "native"))
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "native")
    assert torch.equal(logits(native), logits(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "native").mask_token_id == tokenizer.mask_token_id


def test_dream(tmp_path):
    source, weights, sizes = llada.write_dream(tmp_path / "dream")
    model, raw = load.load_model(source), config_json(source)
    assert type(model) is Qwen2ForCausalLM
    assert family(model.config) == "diffusion"
    assert predicts_next(model.config)
    assert (logits(model) - llada.logits(weights, sizes, IDS)).abs().max() < 1e-6
    tokenizer = load.load_tokenizer(source)
    assert (tokenizer.mask_token, tokenizer.mask_token_id) == ("<|mask|>", raw["mask_token_id"])
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, len(tokenizer)) == (raw["bos_token_id"] + 4, raw["eos_token_id"], 402)
    vocab = json.loads((tmp_path / "dream" / "vocab.json").read_text())
    ids = tokenizer.encode("Ann met<|mask|> bees<|im_end|>")
    assert tokenizer.decode(ids) == "Ann met<|mask|> bees<|im_end|>"
    assert ids.count(raw["mask_token_id"]) == 1
    assert ids[:1] == [vocab["Ann"]]
    chat = ChatFormat(tokenizer)
    assert chat.end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    convert(source, str(tmp_path / "native"))
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "native")), logits(model))
    assert predicts_next(AutoConfig.from_pretrained(tmp_path / "native"))
    reloaded = AutoTokenizer.from_pretrained(tmp_path / "native")
    assert reloaded.encode("Ann met<|mask|> 12 bees<|im_end|>") == tokenizer.encode("Ann met<|mask|> 12 bees<|im_end|>")
    assert reloaded.mask_token == "<|mask|>"


# -- conversion --------------------------------------------------------------------------------------------------------


def test_a_converted_checkpoint_reloads_plainly(source, converted):
    model = AutoModelForCausalLM.from_pretrained(converted)
    tokenizer = AutoTokenizer.from_pretrained(converted)
    assert family(model.config) == "diffusion"
    assert (logits(model) - expected(source)).abs().max() < 1e-6
    assert torch.equal(logits(model), logits(load.load_model(source)))
    assert torch.equal(logits(load.load_model(converted)), logits(model))
    ours = load.load_tokenizer(source)
    assert (tokenizer.mask_token_id, tokenizer.chat_template) == (ours.mask_token_id, ours.chat_template)
    assert tokenizer.encode("Ann <|mdm_mask|>\n\n") == ours.encode("Ann <|mdm_mask|>\n\n")
    assert model.config.bos_token_id == tokenizer.bos_token_id
    assert "auto_map" not in "".join(path.read_text() for path in Path(converted).glob("*.json"))


def test_a_conversion_keeps_shards_and_dtype_and_leaves_nothing_else(tmp_path):
    folder = tmp_path / "source"
    llada.write_llada(folder)
    config = config_json(str(folder)) | {"torch_dtype": "bfloat16"}
    llada.write(folder, config, llada.random_weights(config, dtype=torch.bfloat16))
    (tmp_path / "native").mkdir()
    convert(str(folder), str(tmp_path / "native"))
    shards = sorted(path.name for path in (tmp_path / "native").glob("*.safetensors"))
    assert shards == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    stored = [tensor for shard in shards for tensor in load_file(tmp_path / "native" / shard).values()]
    assert {tensor.dtype for tensor in stored} == {torch.bfloat16}
    assert load.stored_dtype(str(tmp_path / "native")) is torch.bfloat16
    index = json.loads((tmp_path / "native" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["native", "source"]


def test_what_cannot_be_converted(source, converted, tmp_path):
    with pytest.raises(InputError) as caught:
        convert(converted, str(tmp_path / "again"))
    assert str(caught.value) == f"model '{converted}': is in the native layout already (llama); there is nothing to convert"
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    for target in (tmp_path / "full", tmp_path / "full" / "mine"):
        with pytest.raises(InputError) as caught:
            convert(source, str(target))
        assert str(caught.value) == f"output_dir: '{target}' exists and is not an empty folder"
    with pytest.raises(InputError, match=r"gone': no such folder$"):
        convert(str(tmp_path / "gone"), str(tmp_path / "again"))
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": source}))
    with pytest.raises(InputError, match=r"is a LoRA adapter; fold it into its base, which converts it \(demask merge\)$"):
        convert(str(tmp_path / "lora"), str(tmp_path / "again"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "lora"]


def test_the_command(source, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["convert", source, str(tmp_path / "native")])
    assert ended.value.code == 0
    assert capsys.readouterr().out.endswith(f"converted model in {tmp_path / 'native'}\n")
    with pytest.raises(SystemExit) as ended:
        main(["convert", str(tmp_path / "native"), str(tmp_path / "again")])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("is in the native layout already (llama); there is nothing to convert\n")


# -- mistakes ----------------------------------------------------------------------------------------------------------


def without(key: str):
    return lambda weights: weights.pop(key)


def with_tensor(key: str, *shape: int):
    return lambda weights: weights.update({key: torch.zeros(shape)})


BLOCK = "model.transformer.blocks.1"
WRONG_KEYS = {
    "missing": (without(f"{BLOCK}.attn_out.weight"), f"its weights lack {BLOCK}.attn_out.weight"),
    "no head": (without("model.transformer.ff_out.weight"), "its weights lack model.transformer.ff_out.weight"),
    "unknown": (
        with_tensor("model.transformer.wpe.weight", 4, 4),
        "its weights hold model.transformer.wpe.weight, which LlamaForCausalLM has no place for",
    ),
    "bias": (with_tensor(f"{BLOCK}.q_proj.bias", 32), f"its weights hold {BLOCK}.q_proj.bias, which LlamaForCausalLM has no place for"),
    "shape": (with_tensor(f"{BLOCK}.up_proj.weight", 32, 48), f"its {BLOCK}.up_proj.weight has shape [32, 48], expected [48, 32]"),
}


@pytest.mark.parametrize("fault", WRONG_KEYS)
def test_wrong_keys_are_named(fault, source, tmp_path):
    change, message = WRONG_KEYS[fault]
    config = config_json(source)
    weights = llada.random_weights(config)
    change(weights)
    folder = llada.write(tmp_path / "wrong", config, weights)
    llada.tokenizer().save_pretrained(folder)
    with pytest.raises(InputError) as caught:
        load.load_model(folder)
    assert str(caught.value) == f"model '{folder}': {message}"
    with pytest.raises(InputError) as caught:
        convert(folder, str(tmp_path / "native"))
    assert str(caught.value) == f"model '{folder}': {message}"
    assert not (tmp_path / "native").exists()


def test_a_stored_head_that_is_not_the_embedding_it_is_tied_to(tmp_path):
    source, _, _ = llada.write_illada(tmp_path / "illada")
    shard = next(path for path in sorted((tmp_path / "illada").glob("*.safetensors")) if "lm_head.weight" in load_file(path))
    save_file(load_file(shard) | {"lm_head.weight": torch.zeros(403, 32)}, shard)
    with pytest.raises(InputError) as caught:
        load.load_model(source)
    assert str(caught.value) == f"model '{source}': its lm_head.weight differs from the embedding, to which its config.json ties it"


def test_files_that_are_not_there_or_broken(source, tmp_path):
    folder = Path(llada.write_llada(tmp_path / "cut"))
    shard = folder / "model-00002-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(InputError, match="': can't load its weights"):
        load.load_model(str(folder))
    shard.unlink()
    with pytest.raises(InputError, match=r"': can't load its weights \(.*model-00002-of-00003\.safetensors"):
        load.load_model(str(folder))
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match=r"': can't load its weights \(.*model\.safetensors"):
        load.load_model(str(folder))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="': can't load its tokenizer"):
        load.load_tokenizer(str(folder))


UNSUPPORTED = {
    "block_type": ("sequential", "llama"),
    "activation_type": ("swiglu", "silu"),
    "layer_norm_type": ("default", "rms"),
    "alibi": (True, False),
    "include_bias": (True, False),
    "include_qkv_bias": (True, False),
    "rope": (False, True),
    "multi_query_attention": (True, False),
    "architectures": (["LLaDAMoEModelLM"], ["LLaDAModelLM"]),
}


@pytest.mark.parametrize("field", UNSUPPORTED)
def test_unsupported_values_are_named(field, source, tmp_path):
    value, wanted = UNSUPPORTED[field]
    (tmp_path / "config.json").write_text(json.dumps(config_json(source) | {field: value}))
    for loads in (load.load_config, load.load_model):
        with pytest.raises(InputError) as caught:
            loads(str(tmp_path))
        found = f"{field} is {json.dumps(value)}, and only {json.dumps(wanted)} has a native counterpart"
        assert str(caught.value) == f"model '{tmp_path}': config.json: {found}"


@pytest.mark.parametrize("field", ["d_model", "rope_theta", "n_heads", "max_sequence_length", "rms_norm_eps"])
def test_missing_fields_are_named(field, source, tmp_path):
    config = config_json(source)
    del config[field]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError) as caught:
        load.load_config(str(tmp_path))
    assert str(caught.value) == f"model '{tmp_path}': config.json: lacks {field}"


@pytest.mark.parametrize(
    ("field", "value"),
    [("rope_scaling", {"rope_type": "yarn", "factor": 4.0}), ("use_sliding_window", True), ("architectures", ["DreamV2"])],
)
def test_unsupported_values_of_dream(field, value, tmp_path):
    source, _, _ = llada.write_dream(tmp_path / "dream", **{field: value})
    with pytest.raises(InputError, match=rf"': config\.json: {field} is .*, and only .* has a native counterpart$"):
        load.load_config(source)


def test_unsupported_values_of_illada(tmp_path):
    source, _, _ = llada.write_illada(tmp_path / "illada", layer_norm_eps=1e-5)
    with pytest.raises(InputError, match=r"layer_norm_eps is 1e-05, and only null has a native counterpart$"):
        load.load_config(source)


@pytest.mark.parametrize(
    ("mask_token_id", "message"),
    [(9999, "config.json: mask_token_id 9999 is not in its tokenizer"), (None, "config.json: lacks mask_token_id")],
)
def test_a_mask_that_is_no_token(mask_token_id, message, tmp_path):
    source = llada.write_llada(tmp_path / "source", mask_token_id=mask_token_id)
    with pytest.raises(InputError) as caught:
        load.load_tokenizer(source)
    assert str(caught.value) == f"model '{source}': {message}"


# -- the probe -----------------------------------------------------------------------------------------------------------


def stablelm(folder: Path) -> str:
    """An architecture that reads is_causal = false under eager attention and ignores it under sdpa (transformers 5.23)."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = StableLmConfig(vocab_size=50, bos_token_id=0, eos_token_id=0, attention_dropout=0.5, **sizes)
    make_bidirectional(config, shifted_logits=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


def test_an_architecture_that_ignores_the_flag_is_refused(tmp_path):
    name = stablelm(tmp_path / "stablelm")
    with pytest.raises(InputError) as caught:
        load.load_model(name, attn_implementation="sdpa")
    assert str(caught.value) == f"model '{name}': its architecture (StableLmForCausalLM) ignores is_causal = false"
    assert load.load_model(name, attn_implementation="eager").config.is_causal is False


def test_the_probe_of_a_model_in_training_and_under_lora(source, tmp_path):
    blind = AutoModelForCausalLM.from_pretrained(stablelm(tmp_path / "stablelm"), attn_implementation="sdpa").train()
    for model in (blind, get_peft_model(blind, LoraConfig(target_modules="all-linear", lora_dropout=0.5)).train()):
        with pytest.raises(InputError, match=r"^model 'it': its architecture \(StableLmForCausalLM\) ignores is_causal = false$"):
            load.check_bidirectional(model, "it")
        assert model.training
    seeing = get_peft_model(load.load_model(source, torch.bfloat16), LoraConfig(target_modules="all-linear"))
    load.check_bidirectional(seeing, "it")
    causal = AutoModelForCausalLM.from_pretrained(load.model_folder(None))
    load.check_bidirectional(causal, "it")  # nothing to check


# -- memory --------------------------------------------------------------------------------------------------------------

PEAK = """
import sys
from pathlib import Path
import torch
from demask.models import load
from demask.models.convert import convert

def memory(field):
    status = Path("/proc/self/status").read_text()
    return int(status.split(field + ":")[1].split()[0]) * 1024

def rise(work):
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far: that of the imports, and of the parent process
    start = memory("VmRSS")
    result = work()
    return result, memory("VmHWM") - start

small, large, target = sys.argv[1:]
convert(small, target + "-small")
load.load_model(small)
_, converting = rise(lambda: convert(large, target))
model, loading = rise(lambda: load.load_model(large, torch.float32))
print(converting, loading, sum(p.nbytes for p in model.parameters()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are read from Linux's /proc")
def test_memory_stays_under_the_model_and_a_shard(source, tmp_path):
    sizes = {"d_model": 512, "mlp_hidden_size": 1536, "n_heads": 8, "n_kv_heads": 8, "n_layers": 12, "torch_dtype": "bfloat16"}
    config = config_json(source) | sizes
    llada.tokenizer().save_pretrained(tmp_path / "large")
    large = llada.write(tmp_path / "large", config, llada.random_weights(config, dtype=torch.bfloat16), shards=6)
    shard = max(path.stat().st_size for path in Path(large).glob("*.safetensors"))
    command = [sys.executable, "-c", PEAK, source, large, str(tmp_path / "native")]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    converting, loading, model = map(int, run.stdout.split())
    assert model > 150e6
    assert converting < 1.3 * (shard + model / 2)  # half: bfloat16
    assert model < loading < 1.3 * (shard + model)
