"""Random small models of four families in the standard layout, each with its family's tokenizer (tests/tokenizers.py)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config, set_seed

from tests.tokenizers import TOKENIZERS

TOKENIZER_OF = {"llama": "llama3", "qwen3": "chatml", "gemma3": "gemma", "mistral": "mistral"}
ARCHITECTURES = tuple(TOKENIZER_OF)


def config_of(arch: str, **changes: Any) -> Any:
    """Width 32, two layers, grouped-query attention, the tokenizer's vocabulary, and what sets the family apart.

    Weights are drawn wide enough that what the model says depends on its prompt. Sliding windows are shorter than any prompt.
    """
    tokenizer = TOKENIZERS[TOKENIZER_OF[arch]]()
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 512,
        "initializer_range": 0.15,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if arch == "llama":
        rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
        rope["original_max_position_embeddings"] = 64
        return LlamaConfig(**shape | {"rope_parameters": rope, "tie_word_embeddings": True} | changes)
    if arch == "qwen3":
        return Qwen3Config(**shape | changes)
    if arch == "gemma3":
        own = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8, "query_pre_attn_scalar": 8}
        return Gemma3TextConfig(**shape | own | changes)
    assert arch == "mistral"
    return MistralConfig(**shape | {"sliding_window": 8} | changes)


def make_model(arch: str, seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """The model itself; `changes` go to its configuration."""
    set_seed(seed)
    return AutoModelForCausalLM.from_config(config_of(arch, **changes), dtype=dtype).eval()


def save_model(folder: Path, arch: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> str:
    """Write model and tokenizer as a hub checkpoint would be; returns the folder."""
    make_model(arch, dtype=dtype, **changes).save_pretrained(folder)
    TOKENIZERS[TOKENIZER_OF[arch]]().save_pretrained(folder)
    return str(folder)
