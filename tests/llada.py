"""LLaDA's network as its paper describes it, in plain float64 torch under its checkpoint's names, and random checkpoints in its layout.

With biases and grouped heads it is also iLLaDA's and Dream's network, for which `RENAMED` gives the names in their checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerFast

from tests.tokenizers import CHATML_TEMPLATE, _byte_level, _wrap

Weights = dict[str, torch.Tensor]

# Llama 3's way of writing a conversation, always with the assistant's header behind it.
SHIPPED_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<|start_header_id|>' ~ m['role'] ~ '<|end_header_id|>\n\n' ~ (m['content'] | trim) ~ '<|eot_id|>' }}"
    "{% endfor %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)

CONFIG: dict[str, Any] = {
    "activation_type": "silu",
    "alibi": False,
    "architectures": ["LLaDAModelLM"],
    "attention_dropout": 0.0,
    "attention_layer_norm": False,
    "auto_map": {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModelForCausalLM": "modeling_llada.LLaDAModelLM"},
    "bias_for_layer_norm": False,
    "block_group_size": 1,
    "block_type": "llama",
    "d_model": 32,
    "embedding_dropout": 0.0,
    "include_bias": False,
    "include_qkv_bias": False,
    "input_emb_norm": False,
    "layer_norm_type": "rms",
    "layer_norm_with_affine": True,
    "max_sequence_length": 64,
    "mlp_hidden_size": 48,
    "mlp_ratio": 4,
    "model_type": "llada",
    "multi_query_attention": None,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 3,
    "residual_dropout": 0.0,
    "rms_norm_eps": 1e-05,
    "rope": True,
    "rope_theta": 500000.0,
    "scale_logits": False,
    "torch_dtype": "float32",
    "weight_tying": False,
}

RENAMED = {
    "model.transformer.wte.": "model.embed_tokens.",
    "model.transformer.ln_f.": "model.norm.",
    "model.transformer.ff_out.": "lm_head.",
    "model.transformer.blocks.": "model.layers.",
    ".attn_norm.": ".input_layernorm.",
    ".ff_norm.": ".post_attention_layernorm.",
    ".q_proj.": ".self_attn.q_proj.",
    ".k_proj.": ".self_attn.k_proj.",
    ".v_proj.": ".self_attn.v_proj.",
    ".attn_out.": ".self_attn.o_proj.",
    ".ff_proj.": ".mlp.gate_proj.",
    ".up_proj.": ".mlp.up_proj.",
    ".ff_out.": ".mlp.down_proj.",
}


def random_weights(config: dict[str, Any], seed: int = 0, dtype: torch.dtype = torch.float32, qkv_bias: bool = False) -> Weights:
    """A random network's tensors; with `weight_tying` it has no head of its own."""
    generator = torch.Generator().manual_seed(seed)
    width, inner, rows = config["d_model"], config["mlp_hidden_size"], config["embedding_size"]
    kv_width = width // config["n_heads"] * config["n_kv_heads"]
    shapes: dict[str, list[int]] = {"model.transformer.wte.weight": [rows, width], "model.transformer.ln_f.weight": [width]}
    if not config["weight_tying"]:
        shapes["model.transformer.ff_out.weight"] = [rows, width]
    for layer in range(config["n_layers"]):
        block = f"model.transformer.blocks.{layer}"
        shapes |= {f"{block}.attn_norm.weight": [width], f"{block}.ff_norm.weight": [width]}
        shapes |= {f"{block}.q_proj.weight": [width, width], f"{block}.attn_out.weight": [width, width]}
        shapes |= {f"{block}.{name}.weight": [kv_width, width] for name in ("k_proj", "v_proj")}
        shapes |= {f"{block}.{name}.weight": [inner, width] for name in ("ff_proj", "up_proj")}
        shapes |= {f"{block}.ff_out.weight": [width, inner]}
        if qkv_bias:
            shapes |= {f"{block}.q_proj.bias": [width], f"{block}.k_proj.bias": [kv_width], f"{block}.v_proj.bias": [kv_width]}

    def draw(name: str, shape: list[int]) -> torch.Tensor:
        noise = torch.randn(shape, generator=generator)
        return (1 + 0.3 * noise if "norm" in name or "ln_f" in name else 0.1 * noise).to(dtype)

    return {name: draw(name, shape) for name, shape in shapes.items()}


def logits(weights: Weights, config: dict[str, Any], ids: list[int]) -> torch.Tensor:
    """(L, rows) float64: every position attends to every position."""
    weights = {name.removeprefix("model.transformer."): tensor.double() for name, tensor in weights.items()}
    heads, kv_heads = config["n_heads"], config["n_kv_heads"]
    size, length = config["d_model"] // heads, len(ids)

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ weights[f"{name}.weight"].T + weights.get(f"{name}.bias", 0)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x / (x.square().mean(-1, keepdim=True) + config["rms_norm_eps"]).sqrt() * weights[f"{name}.weight"]

    def rotate(x: torch.Tensor) -> torch.Tensor:
        """Components i and i + size/2 of a head are one complex number, turned by position times theta^(-2i/size)."""
        numbers = torch.complex(x[..., : size // 2], x[..., size // 2 :])
        angle = torch.arange(length)[:, None] * config["rope_theta"] ** (-2 * torch.arange(size // 2).double() / size)
        turned = numbers * torch.polar(torch.ones_like(angle), angle)[:, None, :]
        return torch.cat([turned.real, turned.imag], dim=-1)

    x = weights["wte.weight"][ids]
    for layer in range(config["n_layers"]):
        block = f"blocks.{layer}"
        h = norm(x, f"{block}.attn_norm")
        query = rotate(linear(h, f"{block}.q_proj").view(length, heads, size))
        key = rotate(linear(h, f"{block}.k_proj").view(length, kv_heads, size))
        value = linear(h, f"{block}.v_proj").view(length, kv_heads, size)
        seen = []
        for head in range(heads):
            shared = head * kv_heads // heads
            share = (query[:, head] @ key[:, shared].T / size**0.5).softmax(dim=-1)
            seen.append(share @ value[:, shared])
        x = x + linear(torch.cat(seen, dim=-1), f"{block}.attn_out")
        h = norm(x, f"{block}.ff_norm")
        gate = linear(h, f"{block}.ff_proj")
        x = x + linear(gate * gate.sigmoid() * linear(h, f"{block}.up_proj"), f"{block}.ff_out")
    x = norm(x, "ln_f")
    return linear(x, "wte" if config["weight_tying"] else "ff_out")


def renamed(weights: Weights) -> Weights:
    """The same tensors under Llama's names."""

    def rename(name: str) -> str:
        for old, new in RENAMED.items():
            name = name.replace(old, new)
        return name

    return {rename(name): tensor for name, tensor in weights.items()}


def write(folder: Path, config: dict[str, Any], weights: Weights, shards: int = 3) -> str:
    """The checkpoint as it lies on the hub, its tensors dealt out to shards in turn (1: one file, no index). Returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if shards == 1:
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        return str(folder)
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(weights)}
    for file in set(weight_map.values()):
        save_file({name: tensor for name, tensor in weights.items() if weight_map[name] == file}, folder / file, {"format": "pt"})
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return str(folder)


def tokenizer(template: str | None = SHIPPED_TEMPLATE) -> PreTrainedTokenizerFast:
    """LLaDA's kind: byte-level, Llama 3's headers, a mask among its special tokens that no field names."""
    names = ["<|startoftext|>", "<|endoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|mdm_mask|>", "<[MASK]>"]
    return _wrap(_byte_level(names), template, bos_token=names[0], eos_token=names[1], pad_token=names[1])


def write_llada(folder: Path, template: str | None = SHIPPED_TEMPLATE, shards: int = 3, seed: int = 0, **changes: Any) -> str:
    """A random LLaDA checkpoint whose embedding has five rows more than its tokenizer has tokens; `changes` go to its config.json."""
    words = tokenizer(template)
    words.save_pretrained(folder)
    ids = {"mask_token_id": words.convert_tokens_to_ids("<|mdm_mask|>"), "eos_token_id": words.eos_token_id}
    config = CONFIG | ids | {"pad_token_id": words.eos_token_id, "vocab_size": len(words), "embedding_size": len(words) + 5} | changes
    return write(folder, config, random_weights(config, seed), shards)


def write_illada(folder: Path, **changes: Any) -> tuple[str, Weights, dict[str, Any]]:
    """A random iLLaDA checkpoint; with it its tensors and sizes under LLaDA's names."""
    words = tokenizer()
    words.save_pretrained(folder)
    sizes = CONFIG | {"n_kv_heads": 2, "weight_tying": True, "embedding_size": len(words)}
    weights = random_weights(sizes)
    config = _native(sizes) | {
        "architectures": ["ILLaDAForCausalLM"],
        "auto_map": {"AutoModelForCausalLM": "modeling_illada.ILLaDAForCausalLM"},
        "model_type": "illada",
        "attention_bias": False,
        "mlp_bias": False,
        "layer_norm_eps": None,
        "resid_pdrop": 0.0,
    }
    stored = renamed(weights) | {"lm_head.weight": weights["model.transformer.wte.weight"].clone()}
    return write(folder, config | changes, stored), weights, sizes


def write_dream(folder: Path, **changes: Any) -> tuple[str, Weights, dict[str, Any]]:
    """A random Dream checkpoint with a tokenizer of remote code; with it its tensors and sizes under LLaDA's names."""
    folder.mkdir(parents=True)
    model = json.loads(_byte_level([]).to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]) + "\n")
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "<|beginoftext|>", "<|mask|>"]
    options = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    first = len(model["vocab"])
    tokenizer_config = {
        "added_tokens_decoder": {
            str(first + i): {"content": name, "special": name.startswith("<|"), **options} for i, name in enumerate(added)
        },
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "bos_token": "<|beginoftext|>",
        "chat_template": CHATML_TEMPLATE,
        "eos_token": "<|endoftext|>",
        "mask_token": None,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "DreamTokenizer",
        "unk_token": None,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    sizes = CONFIG | {"n_kv_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "embedding_size": first + len(added) + 2}
    weights = random_weights(sizes, qkv_bias=True)
    config = _native(sizes) | {
        "architectures": ["DreamModel"],
        "auto_map": {"AutoModel": "modeling_dream.DreamModel"},
        "model_type": "Dream",
        "bos_token_id": first,
        "eos_token_id": first,
        "pad_token_id": first,
        "mask_token_id": first + len(added) - 1,
        "max_window_layers": 28,
        "use_mrope": False,
        "use_sliding_window": False,
        "sliding_window": None,
    }
    return write(folder, config | changes, renamed(weights)), weights, sizes


def _native(sizes: dict[str, Any]) -> dict[str, Any]:
    """The sizes as Llama's and Qwen2's configurations call them."""
    return {
        "attention_dropout": 0.0,
        "hidden_act": "silu",
        "hidden_size": sizes["d_model"],
        "intermediate_size": sizes["mlp_hidden_size"],
        "max_position_embeddings": sizes["max_sequence_length"],
        "num_attention_heads": sizes["n_heads"],
        "num_hidden_layers": sizes["n_layers"],
        "num_key_value_heads": sizes["n_kv_heads"],
        "rms_norm_eps": sizes["rms_norm_eps"],
        "rope_scaling": None,
        "rope_theta": sizes["rope_theta"],
        "tie_word_embeddings": sizes["weight_tying"],
        "torch_dtype": "float32",
        "vocab_size": sizes["embedding_size"],
    }
