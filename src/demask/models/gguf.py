"""GGUF files (llama.cpp's format) as transformers' own models: weights unpacked, configuration, tokenizer and chat template from the file.

transformers reads them, and leaves its mark on what it has read: a `quantization_config`, for which a model of plain weights refuses to be
saved. So the model is built anew from the plain configuration.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast
from transformers.integrations.gguf import read_gguf_metadata
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from demask.chat_format import ChatFormat
from demask.types import InputError

# Vocabularies learnt from single digits (as llama.cpp splits for them), which transformers reads as GPT-2's: "\n\n1" would be cut as
# "\n", "\n", "1", not "\n\n", "1".
_SINGLE_DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")


def gguf_file(name: str) -> Path | None:
    """The file, where `name` is a GGUF file or a folder with one and no model of its own; None for any other model.

    Raises InputError for a folder with several.
    """
    path = Path(name)
    if path.suffix.lower() == ".gguf" and not path.is_dir():
        return path
    if not path.is_dir() or (path / "config.json").exists() or (path / "adapter_config.json").exists():
        return None
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    if len(files) > 1:
        raise InputError(f"model '{name}': holds {len(files)} .gguf files; name one of them ({files[0]}, ...)")
    return files[0] if files else None


@contextlib.contextmanager
def _readable(file: Path, what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a broken file raises whatever its bytes lead to
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"model '{file}': can't read its {what} as GGUF ({reason[:300]})") from None


def read(file: Path) -> tuple[Any, Any]:
    """(configuration, tokenizer), each a copy: the file is read once for as long as it stays the same.

    Raises InputError for a file that is broken, cut short, without a tokenizer, or of an architecture that transformers can't read.
    """
    with _readable(file, "header"):
        stat = file.stat()
        return copy.deepcopy(_read(file, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=2)
def _read(file: Path, size: int, changed: int) -> tuple[Any, Any]:
    del size, changed  # what tells one state of the file from another
    metadata, _ = read_gguf_metadata(str(file))
    architecture = metadata["general.architecture"]
    if "tokenizer.ggml.model" not in metadata or "tokenizer.ggml.tokens" not in metadata:
        raise InputError(f"model '{file}': holds no tokenizer")
    config = AutoConfig.from_pretrained(str(file.parent), gguf_file=file.name)
    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise InputError(f"model '{file}': its architecture ({architecture}) is no language model that writes text")
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    config.dtype = torch.float32
    config.name_or_path = str(file)  # PEFT writes it into an adapter
    vars(config).pop("_model_name_or_path", None)  # a title, under a name that looks like a place
    return config, _tokenizer(file, metadata, config)


def _tokenizer(file: Path, metadata: dict[str, Any], config: Any) -> Any:
    # AutoTokenizer would read the whole configuration once more, to come to the same class.
    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(str(file.parent), gguf_file=file.name)
    if metadata.get("tokenizer.ggml.pre") in _SINGLE_DIGITS:
        digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    for role, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
        stored, found = metadata.get(f"tokenizer.ggml.{key}_token_id"), getattr(tokenizer, f"{role}_token_id")
        if found != stored:
            raise InputError(f"model '{file}': its {role} token has id {stored}, and {found} as transformers reads its tokenizer")
    if len(tokenizer) > config.vocab_size:
        raise InputError(f"model '{file}': its tokenizer has {len(tokenizer)} tokens, its embedding {config.vocab_size}")
    tokenizer.model_max_length = config.max_position_embeddings
    for name in ("is_local", "local_files_only"):  # of this reading
        tokenizer.init_kwargs.pop(name, None)
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = str(file)
    return tokenizer


def load_model(file: Path, dtype: torch.dtype, config: Any = None, **options: Any) -> Any:
    """The model with its weights unpacked to `dtype`, in evaluation mode; `options` (attn_implementation) go to `from_pretrained`.

    It generates until whatever ends an answer by its chat template. Raises InputError where weights are missing or can't be read.
    """
    plain, tokenizer = read(file)
    config = config or plain
    with _readable(file, "weights"):
        read_in: Any = AutoModelForCausalLM.from_pretrained(
            str(file.parent), gguf_file=file.name, config=copy.deepcopy(config), dtype=dtype, output_loading_info=True
        )
        marked, found = read_in
        if missing := sorted(found["missing_keys"]):
            raise InputError(f"model '{file}': its weights lack {len(missing)} tensors, the first is {missing[0]}")
        kind, state = type(marked), marked.state_dict()
        del marked, read_in
        model = kind.from_pretrained(None, config=config, state_dict=state, dtype=dtype, **options)
    model.name_or_path = model.config.name_or_path = str(file)
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with contextlib.suppress(InputError):  # a template that no training could use
        stops = ChatFormat(tokenizer).stop_ids()
        ids["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    model.generation_config = GenerationConfig(**ids)
    return model.eval()
