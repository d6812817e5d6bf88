"""In which precision, and with how many threads, a run computes: a resumed one goes on in the same."""

from __future__ import annotations

from typing import Any

import torch


def weights_dtype(settings: Any, args: Any) -> torch.dtype:
    """Of the weights in training: fp32 for full fine-tuning; under LoRA the base's, bf16 where that is native."""
    if settings.dtype != "auto":
        return getattr(torch, settings.dtype)
    return torch.bfloat16 if settings.use_peft and args.bf16 else torch.float32


def how_computed(settings: Any, args: Any) -> dict[str, Any]:
    """What the plan's numbers say of it. Products are in the compute dtype; on a CPU the order of sums hangs on threads x processes."""
    weights = "4 bits" if settings.load_in_4bit else _name(weights_dtype(settings, args))
    compute = "bfloat16" if args.bf16 else "float16" if args.fp16 else _name(weights_dtype(settings, args))
    numbers: dict[str, Any] = {"torch_compile": bool(args.torch_compile), "compute_dtype": compute, "weights_dtype": weights}
    return numbers | {"processes": args.world_size, "threads": torch.get_num_threads()}


def take_threads_of(before: dict[str, Any] | None, args: Any) -> list[str]:
    """On a CPU, go on with the threads an earlier record of the run names, for as many processes; returns the line that says so."""
    was = (before or {}).get("plan", {})
    threads = was.get("threads", torch.get_num_threads())
    if not args.use_cpu or was.get("processes") != args.world_size or threads == torch.get_num_threads():
        return []
    line = f"threads: {threads}, as the run began, not {torch.get_num_threads()}: with others it would round differently"
    torch.set_num_threads(threads)
    return [line]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
