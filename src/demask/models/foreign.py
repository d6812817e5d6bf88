"""Published masked diffusion checkpoints in native transformers classes, without their remote code.

    format    native class            its layout                                        logits
    LLaDA     LlamaForCausalLM        names of its own, e.g. blocks.0.attn_out          of the token itself
    iLLaDA    LlamaForCausalLM        Llama's names, head tied to the embedding         of the token itself
    Dream     Qwen2ForCausalLM        Qwen2's names                                     of the next token

Each is its native class without the causal mask: only names differ. (LLaDA: arXiv 2502.09992, iLLaDA: 2606.25331, Dream: 2508.15487.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen2Config, Qwen2Tokenizer
from transformers.utils import cached_file

from demask.models.family import make_bidirectional
from demask.types import InputError

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
NO = (False, None)
PLAIN_ROPE: tuple[Any, ...] = (None, {}, {"rope_type": "default"}, {"rope_type": "default", "factor": 1.0})

# What LLaDA's instruct models are prompted with, here with the markers of what the assistant writes, and with the assistant's header
# only where it is asked for (theirs always adds it).
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first %}{{ bos_token }}{% endif %}"
    "<|start_header_id|>{{ message.role }}<|end_header_id|>\n\n"
    "{% if message.role == 'assistant' %}"
    "{% generation %}{{ message.content | trim }}<|eot_id|>{% endgeneration %}"
    "{% else %}{{ message.content | trim }}<|eot_id|>{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True)
class Format:
    """How checkpoints of one format differ from native ones.

    `fields` are the native configuration's fields and what the format calls them; `only` the values of its other fields that the native
    class computes, checked where given; `key` the checkpoint's name for a native parameter; `mask` the mask token where no field names it.
    """

    native: type
    architecture: str
    shifted_logits: bool
    tokenizer: type
    fields: dict[str, str]
    only: dict[str, tuple[Any, ...]]
    key: Callable[[str], str]
    mask: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of a published format: its folder or hub name, and its config.json."""

    name: str
    format: Format
    raw: dict[str, Any]

    def error(self, problem: str) -> InputError:
        return InputError(f"model '{self.name}': {problem}")


_LLADA_PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
_LLADA_OUTER = {EMBEDDING: "wte.weight", "model.norm.weight": "ln_f.weight", HEAD: "ff_out.weight"}


def _llada_key(native: str) -> str:
    if native in _LLADA_OUTER:
        return f"model.transformer.{_LLADA_OUTER[native]}"
    _, _, layer, part = native.removesuffix(".weight").split(".", 3)
    return f"model.transformer.blocks.{layer}.{_LLADA_PARTS[part]}.weight"


_SAME_FIELDS = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"]
_SAME_FIELDS += ["max_position_embeddings", "rms_norm_eps", "tie_word_embeddings"]
_SAME = {name: name for name in _SAME_FIELDS}

LLADA = Format(
    native=LlamaConfig,
    architecture="LlamaForCausalLM",
    shifted_logits=False,
    tokenizer=PreTrainedTokenizerFast,
    fields={
        "vocab_size": "embedding_size",  # the rows of the embedding, which may be more than the tokens
        "hidden_size": "d_model",
        "intermediate_size": "mlp_hidden_size",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "max_position_embeddings": "max_sequence_length",
        "rms_norm_eps": "rms_norm_eps",
        "tie_word_embeddings": "weight_tying",
    },
    only={
        "architectures": (["LLaDAModelLM"],),
        "block_type": ("llama",),
        "block_group_size": (1,),
        "activation_type": ("silu",),
        "layer_norm_type": ("rms",),
        "layer_norm_with_affine": (True,),
        "rope": (True,),
        **dict.fromkeys(("alibi", "attention_layer_norm", "input_emb_norm", "scale_logits", "multi_query_attention"), NO),
        **dict.fromkeys(("include_bias", "include_qkv_bias", "bias_for_layer_norm"), NO),
        "embedding_dropout": (0, None),
        "residual_dropout": (0, None),
    },
    key=_llada_key,
)
ILLADA = Format(
    native=LlamaConfig,
    architecture="LlamaForCausalLM",
    shifted_logits=False,
    tokenizer=PreTrainedTokenizerFast,
    fields=_SAME | {"attention_bias": "attention_bias", "mlp_bias": "mlp_bias"},
    only={"hidden_act": ("silu",), "layer_norm_eps": (None,), "rope_scaling": PLAIN_ROPE, "resid_pdrop": (0, None)},
    key=str,
    mask="<[MASK]>",
)
DREAM = Format(
    native=Qwen2Config,
    architecture="Qwen2ForCausalLM",
    shifted_logits=True,
    tokenizer=Qwen2Tokenizer,
    fields=_SAME,
    # Later models of that name (DreamForCausalLM) have another attention and unshifted logits.
    only={
        "architectures": (["DreamModel"],),
        "hidden_act": ("silu",),
        "rope_scaling": PLAIN_ROPE,
        "use_sliding_window": NO,
        "use_mrope": NO,
    },
    key=str,
)
# iLLaDA's configuration was not at hand: its code calls the class ILLaDAForCausalLM, and by that or by this model_type it is known.
FORMATS = {"llada": LLADA, "illada": ILLADA, "Dream": DREAM}
_BY_ARCHITECTURE = {"ILLaDAForCausalLM": ILLADA}


def read_foreign(name: str) -> Checkpoint | None:
    """The checkpoint, where its config.json is of a published format; None for a native one, and where there is none to read."""
    try:
        raw = json.loads(Path(str(cached_file(name, "config.json"))).read_text(encoding="utf-8"))
        architectures = raw.get("architectures") or [None]
    except (OSError, ValueError, AttributeError):  # the ordinary way of loading says what is wrong
        return None
    found = _BY_ARCHITECTURE.get(architectures[0]) or FORMATS.get(raw.get("model_type"))
    return Checkpoint(name, found, raw) if found else None


def native_config(checkpoint: Checkpoint) -> Any:
    """The native, bidirectional configuration. Raises InputError naming a field that is missing or that the native class can't honour."""
    raw, names = checkpoint.raw, checkpoint.format.fields
    for field, values in checkpoint.format.only.items():
        if field in raw and raw[field] not in values:
            wanted = json.dumps(values[0])
            raise checkpoint.error(f"config.json: {field} is {json.dumps(raw[field])}, and only {wanted} has a native counterpart")
    fields = dict(raw)
    if checkpoint.format is LLADA:  # what may be left out there
        fields["embedding_size"] = raw.get("embedding_size") or raw.get("vocab_size")
        fields["n_kv_heads"] = raw.get("n_kv_heads") or raw.get("n_heads")
    for field in (*names.values(), "rope_theta"):
        if fields.get(field) is None:
            raise checkpoint.error(f"config.json: lacks {field}")
    pad = raw.get("pad_token_id")
    config = checkpoint.format.native(
        **{native: fields[theirs] for native, theirs in names.items()},
        rope_parameters={"rope_type": "default", "rope_theta": fields["rope_theta"]},
        attention_dropout=raw.get("attention_dropout") or 0.0,
        bos_token_id=raw.get("bos_token_id"),
        eos_token_id=raw.get("eos_token_id"),
        # LLaDA pads with its end, whose embedding a native class would keep from learning.
        pad_token_id=None if pad == raw.get("eos_token_id") else pad,
        architectures=[checkpoint.format.architecture],
        dtype=raw.get("dtype") or raw.get("torch_dtype"),
    )
    config.name_or_path = checkpoint.name  # PEFT writes it into an adapter
    make_bidirectional(config, checkpoint.format.shifted_logits)
    return config


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Its tokenizer with the mask token set, and with our chat template where that writes the same prompts as the one it ships."""
    tokenizer: Any = checkpoint.format.tokenizer.from_pretrained(checkpoint.name)  # type: ignore[attr-defined]
    tokenizer.init_kwargs.pop("auto_map", None)  # else a saved copy asks for the remote code again
    mask, mask_id = checkpoint.format.mask, checkpoint.raw.get("mask_token_id")
    if mask_id is not None:
        mask = tokenizer.convert_ids_to_tokens(mask_id)
        if mask is None:
            raise checkpoint.error(f"config.json: mask_token_id {mask_id} is not in its tokenizer")
    if mask is None or mask not in tokenizer.get_vocab():
        raise checkpoint.error(f"its tokenizer has no mask token {mask}" if mask else "config.json: lacks mask_token_id")
    tokenizer.add_special_tokens({"mask_token": mask})
    if tokenizer.chat_template is not None and _prompt(tokenizer) == _prompt(tokenizer, CHAT_TEMPLATE):
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _prompt(tokenizer: Any, template: str | None = None) -> str | None:
    """A conversation that waits for an answer, as a template (the tokenizer's own for None) writes it."""
    turns = [("system", "Be brief."), ("user", " Who? "), ("assistant", "Ann."), ("user", "Why?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    try:
        return tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=True)
    except Exception:  # a template is a program of its author's, and raises what it likes
        return None


def load_model(checkpoint: Checkpoint, dtype: torch.dtype, config: Any = None, **options: Any) -> Any:
    """The native model in `dtype`, in evaluation mode; `options` (attn_implementation) go to `from_config`.

    Memory: the model and one shard of the checkpoint. Raises InputError as `shards` does.
    """
    config = config or native_config(checkpoint)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    for _, state in shards(checkpoint, config, dtype):
        model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    # Its frequencies are no parameters: made anew off the meta device, and in fp32 whatever the weights are.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.eval()


def shards(checkpoint: Checkpoint, config: Any, dtype: torch.dtype | None = None) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """Each shard's file name and its tensors under their native names, one shard at a time: copies in `dtype`, for None the mapped file.

    Before the first, all headers are checked: InputError names the first key that is missing, unknown or of another shape, and a head
    that differs from the embedding it is said to be tied to.
    """
    files = _files(checkpoint.name)
    names = _check_keys(checkpoint, config, files)
    for file in files:
        state = {}
        with safe_open(file, "pt") as shard:
            for key in shard.keys():  # noqa: SIM118 (no dict)
                if name := names[key]:
                    tensor = shard.get_tensor(key)
                    state[name] = tensor if dtype is None else tensor.to(dtype, copy=True)
        if state:
            yield Path(file).name, state


def _files(name: str) -> list[str]:
    index = cached_file(name, "model.safetensors.index.json", _raise_exceptions_for_missing_entries=False)
    shard_names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values() if index else ["model.safetensors"]
    return [str(cached_file(name, shard)) for shard in sorted(set(shard_names))]


def _check_keys(checkpoint: Checkpoint, config: Any, files: list[str]) -> dict[str, str | None]:
    """The native name of each of the checkpoint's keys; None for a tied head that is stored all the same."""
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in AutoModelForCausalLM.from_config(config).state_dict().items()}
    native = {checkpoint.format.key(name): name for name in wanted}
    found: dict[str, tuple[str, list[int]]] = {}
    for file in files:
        with safe_open(file, "pt") as shard:
            found |= {key: (file, list(shard.get_slice(key).get_shape())) for key in shard.keys()}  # noqa: SIM118
    head = checkpoint.format.key(HEAD)
    tied = config.tie_word_embeddings
    for key, name in native.items():
        if key not in found and not (tied and key == head):
            raise checkpoint.error(f"its weights lack {key}")
        if key in found and found[key][1] != wanted[name]:
            raise checkpoint.error(f"its {key} has shape {found[key][1]}, expected {wanted[name]}")
    if unknown := sorted(set(found) - set(native)):
        raise checkpoint.error(f"its weights hold {unknown[0]}, which {checkpoint.format.architecture} has no place for")
    if not tied or head not in found:
        return dict(native)
    if not torch.equal(*(_tensor(found[key][0], key) for key in (head, checkpoint.format.key(EMBEDDING)))):
        raise checkpoint.error(f"its {head} differs from the embedding, to which its config.json ties it")
    return native | {head: None}


def _tensor(file: str, key: str) -> torch.Tensor:
    with safe_open(file, "pt") as shard:
        return shard.get_tensor(key)
