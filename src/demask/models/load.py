"""Models and tokenizers from a folder, a GGUF file or the hub, native or of a published diffusion format, always without remote code.

Every failure is one line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import is_deepspeed_zero3_enabled, is_fsdp_enabled

from demask.models import foreign, gguf
from demask.models.family import Family, family
from demask.types import InputError

# The embedded models by the names they go by.
EMBEDDED = {f"tiny/{name}": Path(__file__).resolve().parent.parent / "tiny" / name for name in ("causal", "diffusion")}


@contextlib.contextmanager
def one_line(name: str, what: str) -> Iterator[None]:
    """Turn what transformers raises for a missing or broken checkpoint into an InputError."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"model '{name}': can't load its {what} ({reason[:300]})") from None


def model_folder(name: str | None, wanted: Family = "causal") -> str:
    """The name to load: an embedded model's folder for its name, and for None that of the `wanted` family. A local path must exist, and so
    must a GGUF file."""
    if name is None or (name in EMBEDDED and not Path(name).is_dir()):
        return str(EMBEDDED[name or f"tiny/{wanted}"])
    path = Path(name).expanduser()
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        if not path.is_file():
            raise InputError(f"model '{name}': no such file")
        return str(path)
    looks_local = name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not path.is_dir():
        raise InputError(f"model '{name}': no such folder")
    return str(path) if path.is_dir() else name


def convertible(name: str) -> bool:
    """Whether `demask convert` has something to do: for a GGUF file and for a checkpoint of a published format."""
    return bool(gguf.gguf_file(name) or foreign.read_foreign(name))


def adapter_base(name: str) -> str | None:
    """The base model's name, where `name` is a folder that holds a PEFT adapter."""
    if not (Path(name) / "adapter_config.json").is_file():
        return None
    from peft import PeftConfig

    with one_line(name, "adapter configuration"):
        base = PeftConfig.from_pretrained(name).base_model_name_or_path
    if not base:
        raise InputError(f"model '{name}': its adapter_config.json names no base model")
    return base


def load_tokenizer(name: str) -> Any:
    with one_line(name, "tokenizer"):
        if file := gguf.gguf_file(name):
            return gguf.read(file)[1]
        if checkpoint := foreign.read_foreign(name):
            return foreign.load_tokenizer(checkpoint)
        return AutoTokenizer.from_pretrained(name)


def load_config(name: str) -> Any:
    """The checkpoint's native configuration (an adapter's: its base model's)."""
    base = adapter_base(name) or name
    with one_line(name, "configuration"):
        if file := gguf.gguf_file(base):
            return gguf.read(file)[0]
        if checkpoint := foreign.read_foreign(base):
            return foreign.native_config(checkpoint)
        return AutoConfig.from_pretrained(base)


def load_model(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """The model in `dtype`, with a LoRA adapter applied if the folder holds one.

    `options` go to `from_pretrained`; for what is `convertible` they are `config` and `attn_implementation`.
    Raises InputError where its weights do not fit its architecture, and where that architecture can't be bidirectional as it should.
    """
    base = adapter_base(name)
    with one_line(name, "weights"):
        model = _load_whole(base or name, dtype, **options)
        check_bidirectional(model, base or name)
        if base:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, name)
    return model


def _load_whole(name: str, dtype: torch.dtype, **options: Any) -> Any:
    if file := gguf.gguf_file(name):
        return gguf.load_model(file, dtype, **options)
    if checkpoint := foreign.read_foreign(name):
        return foreign.load_model(checkpoint, dtype, **options)
    loaded: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, output_loading_info=True, **options)
    model, found = loaded
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random values in their place
        raise InputError(f"model '{name}': its weights lack {len(missing)} tensors, the first is {missing[0]}")
    return model


@torch.no_grad()
def check_bidirectional(model: Any, name: str) -> None:
    """Raise InputError where a model of the diffusion family does not see what follows: some architectures ignore `is_causal = false`.

    Its first logits must change with the second of two tokens. Not asked where a process may hold only a part of the weights.
    """
    if family(model.config) != "diffusion" or is_deepspeed_zero3_enabled() or is_fsdp_enabled():
        return
    token = model.config.get_text_config().vocab_size // 2  # it and its neighbours: ordinary tokens with embeddings of their own
    training = model.training
    model.eval()  # dropout would change the logits as well
    first, second = (model(torch.tensor([[token - 1, other]], device=model.device)).logits[0, 0] for other in (token, token + 1))
    model.train(training)
    if torch.equal(first, second):
        architecture = (model.config.architectures or [type(model).__name__])[0]
        raise InputError(f"model '{name}': its architecture ({architecture}) ignores is_causal = false")


def stored_dtype(name: str) -> torch.dtype:
    """The dtype a checkpoint is stored in (an adapter's: its base model's); float32 for a GGUF file, whose weights are unpacked to that."""
    stored = load_config(name).dtype or torch.float32
    return getattr(torch, stored) if isinstance(stored, str) else stored


def cast_state(state: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A state dict in another dtype, in which tied weights stay one tensor, so that they are saved once."""
    cast: dict[int, torch.Tensor] = {}
    for value in state.values():
        if value.data_ptr() not in cast:
            cast[value.data_ptr()] = value.to(dtype) if value.is_floating_point() else value
    return {name: cast[value.data_ptr()] for name, value in state.items()}


def save_model(model: Any, folder: str | Path, dtype: torch.dtype, state: dict[str, torch.Tensor] | None = None) -> None:
    """Write the model (or `state` in its place) in `dtype`, whatever dtype it has in memory."""
    model.save_pretrained(folder, state_dict=cast_state(model.state_dict() if state is None else state, dtype))
    # Once more, since transformers writes the dtype in memory into the configuration, and loads the weights in it again.
    model.config.dtype = dtype
    model.config.save_pretrained(folder)


def context_length(config: Any, tokenizer: Any) -> int:
    """The most tokens a sequence may have."""
    text_config = config.get_text_config()
    return min(getattr(text_config, "max_position_embeddings", None) or 10**9, tokenizer.model_max_length)


_counts: dict[str, tuple[int, int]] = {}  # by configuration: a study asks for the same few models again and again


def parameter_counts(config: Any) -> tuple[int, int]:
    """(all parameters, those outside the input embedding: what a token is multiplied by), without loading or allocating weights."""
    key = config.to_json_string()
    if key not in _counts:
        model = _skeleton(config)
        total = sum(parameter.numel() for parameter in model.parameters())
        embedding = model.get_input_embeddings().weight.numel()
        tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
        _counts[key] = total, total if tied else total - embedding
    return _counts[key]


def module_names(config: Any) -> list[str]:
    """The names of the model's modules, without loading or allocating weights."""
    return [name for name, _ in _skeleton(config).named_modules() if name]


def _skeleton(config: Any) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
