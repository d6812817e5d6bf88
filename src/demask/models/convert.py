"""Write a GGUF file, or a checkpoint of a published diffusion format, once for all in the layout that transformers loads by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from demask.models import foreign
from demask.models.gguf import gguf_file
from demask.models.load import adapter_base, load_config, load_model, load_tokenizer, model_folder, one_line, save_model, stored_dtype
from demask.types import InputError


def convert(source: str, output_dir: str) -> None:
    """Write `source` (folder, hub name or GGUF file) with native names, configuration and tokenizer.

    A published format stays in its stored dtype and is written one shard at a time; a GGUF file is unpacked to float32, whole. Raises
    InputError where the source is native already or an adapter, where its weights do not fit, or where the output folder is not empty.
    """
    name = model_folder(source)
    if adapter_base(name):
        raise InputError(f"model '{source}': is a LoRA adapter; fold it into its base, which converts it (demask merge)")
    target = Path(output_dir).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"output_dir: '{output_dir}' exists and is not an empty folder")
    config, packed = load_config(name), gguf_file(name) is not None
    checkpoint = None if packed else foreign.read_foreign(name)
    if checkpoint is None and not packed:
        raise InputError(f"model '{source}': is in the native layout already ({config.model_type}); there is nothing to convert")
    tokenizer = load_tokenizer(name)
    if config.bos_token_id is None:  # LLaDA's configuration leaves it to the tokenizer
        config.bos_token_id = tokenizer.bos_token_id
    # Written beside the target and renamed, so that an interruption leaves no half-written model under its name.
    temporary = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    if packed:
        save_model(load_model(name), temporary, stored_dtype(name))
    if checkpoint:
        _write_shards(checkpoint, config, temporary)
        config.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if target.exists():
        target.rmdir()
    temporary.rename(target)


def _write_shards(checkpoint: foreign.Checkpoint, config: Any, folder: Path) -> None:
    weight_map: dict[str, str] = {}
    total = 0
    with one_line(checkpoint.name, "weights"):
        for file, state in foreign.shards(checkpoint, config):
            save_file(state, folder / file, {"format": "pt"})
            weight_map |= dict.fromkeys(state, file)
            total += sum(tensor.nbytes for tensor in state.values())
    if set(weight_map.values()) != {"model.safetensors"}:
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
