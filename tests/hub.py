"""Folders named like models on the hub, with a configuration of the published shape and a small tokenizer of the family: no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import LlamaConfig, Qwen2Config, Qwen3Config

from tests import llada
from tests.tokenizers import chatml, llama3

# Parameters as published; counting them from the shapes below must give the same.
PARAMETERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8_030_261_248,
    "meta-llama/Llama-3.2-3B-Instruct": 3_212_749_824,
    "Qwen/Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen/Qwen3-4B-Instruct-2507": 4_022_468_096,
    "GSAI-ML/LLaDA-8B-Instruct": 8_015_581_184,
}


def _shape(width: int, layers: int, heads: int, kv_heads: int, inner: int, rows: int, tied: bool, context: int) -> dict[str, Any]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size")
    sizes = dict(zip(names, (width, layers, heads, kv_heads, inner, rows), strict=True))
    return sizes | {"tie_word_embeddings": tied, "max_position_embeddings": context, "head_dim": 128, "dtype": "bfloat16"}


def write_hub(folder: Path) -> None:
    """The paper's five models below `folder`."""
    native = {
        "meta-llama/Llama-3.1-8B-Instruct": (LlamaConfig(**_shape(4096, 32, 32, 8, 14336, 128256, False, 131072)), llama3()),
        "meta-llama/Llama-3.2-3B-Instruct": (LlamaConfig(**_shape(3072, 28, 24, 8, 8192, 128256, True, 131072)), llama3()),
        "Qwen/Qwen2.5-7B-Instruct": (Qwen2Config(**_shape(3584, 28, 28, 4, 18944, 152064, False, 32768)), chatml()),
        "Qwen/Qwen3-4B-Instruct-2507": (Qwen3Config(**_shape(2560, 36, 32, 8, 9728, 151936, True, 262144)), chatml()),
    }
    for name, (config, tokenizer) in native.items():
        config.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    words = llada.tokenizer()
    words.save_pretrained(folder / "GSAI-ML/LLaDA-8B-Instruct")
    sizes = {"d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv_heads": 32, "mlp_hidden_size": 12288, "max_sequence_length": 4096}
    ids = {"mask_token_id": words.convert_tokens_to_ids("<|mdm_mask|>"), "eos_token_id": words.eos_token_id}
    ids |= {"pad_token_id": words.eos_token_id, "vocab_size": 126464, "embedding_size": 126464}
    (folder / "GSAI-ML/LLaDA-8B-Instruct/config.json").write_text(json.dumps(llada.CONFIG | sizes | ids | {"torch_dtype": "bfloat16"}))
