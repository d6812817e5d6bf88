"""GGUF files of small Llamas, written tensor by tensor with the `gguf` package as llama.cpp's own converter lays them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.models import make_model
from tests.tokenizers import chatml

PLAIN_ROPE = {"rope_type": "default", "rope_theta": 100000.0}
_OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}
_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def native_tokenizer(pre: str = "default") -> PreTrainedTokenizerFast:
    """The tokenizer of these files: chatml's vocabulary, split as GPT-2 does, and for "smollm" at every digit."""
    tokenizer = chatml()
    words = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words]) if pre == "smollm" else words
    return tokenizer


def native_model(**changes: Any) -> Any:
    """The model of these files, in float32."""
    size = {"vocab_size": len(chatml()), "eos_token_id": chatml().eos_token_id, "pad_token_id": chatml().pad_token_id}
    return make_model("llama", **{"rope_parameters": PLAIN_ROPE, "max_position_embeddings": 384, **size, **changes})


def gguf_name(name: str) -> str:
    if name in _OUTER:
        return _OUTER[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_PARTS[part]}.weight"


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a head from (first half, second half), as transformers rotates them, to pairs, as llama.cpp does."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(
    path: Path,
    model: Any = None,
    *,
    arch: str = "llama",
    pre: str = "default",
    tokenizer: bool = True,
    leave_out: str = "",
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
) -> str:
    """Write the model with its tokenizer; `leave_out` a tensor, `kind` is what its matrices are stored as. Returns the path."""
    model = model or native_model()
    config, words = model.config, native_tokenizer(pre)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(path, arch)
    writer.add_name("A small model")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if tokenizer:
        backend = json.loads(words.backend_tokenizer.to_str())
        pieces = words.convert_ids_to_tokens(list(range(len(words))))
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(pre)
        writer.add_token_list(pieces)
        writer.add_token_types([TokenType.CONTROL if i in words.added_tokens_decoder else TokenType.NORMAL for i in range(len(words))])
        writer.add_token_merges([" ".join(pair) for pair in backend["model"]["merges"]])
        writer.add_eos_token_id(words.eos_token_id)
        writer.add_pad_token_id(words.pad_token_id)
        writer.add_chat_template(words.chat_template)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    for name, tensor in model.state_dict().items():
        if name == leave_out or (name == "lm_head.weight" and config.tie_word_embeddings):
            continue
        weight = tensor.float().numpy()
        for part, count in heads.items():
            weight = permuted(weight, count) if part in name else weight
        if weight.ndim == 2 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(gguf_name(name), quantize(weight, kind), raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(path)
