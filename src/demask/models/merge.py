"""Fold a LoRA adapter into its base model."""

from __future__ import annotations

from pathlib import Path

import torch

from demask.models.load import adapter_base, load_model, load_tokenizer, save_model, stored_dtype
from demask.types import InputError


def merge(adapter: str, output_dir: str) -> None:
    """Write base + adapter as one plain model in the base's dtype, with the tokenizer. The sum is taken in fp32.

    Raises InputError where the folder holds no adapter, or the output folder is not empty.
    """
    if adapter_base(adapter) is None:
        raise InputError(f"adapter '{adapter}': holds no adapter_config.json")
    target = Path(output_dir).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"output_dir: '{output_dir}' exists and is not an empty folder")
    tokenizer, dtype = load_tokenizer(adapter), stored_dtype(adapter)
    merged = load_model(adapter, torch.float32).merge_and_unload()
    # Written beside the target and renamed, so that an interruption leaves no half-written model under its name.
    temporary = target.with_name(f".{target.name}.tmp")
    save_model(merged, temporary, dtype)
    tokenizer.save_pretrained(temporary)
    if target.exists():
        target.rmdir()
    temporary.rename(target)
