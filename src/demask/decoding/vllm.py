"""Greedy answers by vLLM (the extra `vllm`), which loads the checkpoint itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from demask.decoding.common import text_of
from demask.models.load import adapter_base, convertible, model_folder, one_line
from demask.types import InputError


@dataclass(frozen=True)
class Checkpoint:
    """What stands for the model here: a folder or hub name, its configuration, and the dtype to load it in."""

    name: str
    config: Any
    dtype: torch.dtype


def refuse_missing() -> None:
    """Raise InputError where vLLM is not installed."""
    try:
        import vllm  # noqa: F401
    except ImportError:
        raise InputError("backend: vllm is not installed (pip install 'demask[vllm]')") from None


def generate(
    model: Checkpoint,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int = 128,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """As `causal.generate`, with at most `batch_size` prompts in work at a time; `progress` is called once, at the end.

    A LoRA adapter is applied by vLLM to its base. Raises InputError where vLLM can't load the checkpoint.
    """
    if not prompts:
        return []
    from vllm import LLM, SamplingParams

    if convertible(adapter_base(model.name) or model.name):
        raise InputError(f"model '{model.name}': vllm does not read its format as we do; write it in the native one first (demask convert)")
    base, adapter = adapter_base(model.name), {}
    options: dict[str, Any] = {"max_model_len": max(map(len, prompts)) + max_new_tokens, "max_num_seqs": batch_size}
    if base:
        from vllm.lora.request import LoRARequest

        options |= {"enable_lora": True, "max_lora_rank": _rank(model.name)}
        adapter["lora_request"] = LoRARequest("adapter", 1, model.name)
    with one_line(model.name, "weights in vLLM"):
        llm = LLM(
            model=model_folder(base) if base else model.name,
            tokenizer=model.name,
            dtype=str(model.dtype).removeprefix("torch."),
            generation_config="vllm",  # not the checkpoint's own defaults, such as a repetition penalty
            **options,
        )
    sampling = SamplingParams(temperature=0.0, max_tokens=max_new_tokens, stop_token_ids=list(stop_ids))
    outputs = llm.generate([{"prompt_token_ids": list(prompt)} for prompt in prompts], sampling, use_tqdm=False, **adapter)
    if progress:
        progress(len(prompts))
    return [text_of(list(output.outputs[0].token_ids), tokenizer, stop_ids) for output in outputs]


def _rank(adapter: str) -> int:
    """The adapter's rank, as vLLM takes it: a power of two from 8 on."""
    from peft import PeftConfig

    rank: int = PeftConfig.from_pretrained(adapter).r
    return max(8, 1 << (rank - 1).bit_length())
