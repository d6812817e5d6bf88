"""What a run will cost, before it starts: counted exactly where that is possible, and roughly else."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch

from demask.models.load import parameter_counts
from demask.schedule import Schedule
from demask.types import Question

# Bytes that pass through memory in a step: for each token, layer and unit of its width, in all that is no product; for each weight, in
# AdamW, the norm and clipping of gradients, and casts. Steps of models of 5 and 135 million weights on a CPU, and of a billion on an
# H200, took what these say within a factor of 2.
PER_WIDTH, PER_WEIGHT = 1000, 60
LAUNCH = 1e-3  # seconds in which a layer's kernels are launched, forward and backward


def estimate(schedule: Schedule, sizes: Any, replayed: Any, config: Any, settings: Any, args: Any) -> dict[str, Any]:
    """Steps, visits, tokens read and trained on, FLOPs, and rough peak memory (GiB) and time (s).

    FLOPs: 6 per parameter and token (4 with frozen weights), the head at targets only. Memory: weights, gradients and AdamW's moments, and
    of one micro-batch of the longest rows 50 bytes of activations per layer and width, as Llama-like models of 1 to 8 B keep
    (benchmarks/results/train_step_gpu.json), and one copy of the targets' logits. Time: as `_seconds` has it. `sizes` and `replayed` are
    those of the schedule's examples and of its replay (`stages.prepare.Sizes`).
    """
    own_rows, replay_rows = schedule.steps * (schedule.batch_size - schedule.replay_slots), schedule.steps * schedule.replay_slots

    def expected(kind: str) -> float:
        once, again = getattr(sizes, kind), getattr(replayed, kind)
        return once / sizes.examples * own_rows + again / max(1, replayed.examples) * replay_rows

    tokens, targets = expected("tokens"), expected("targets")
    total, multiplied = parameter_counts(config)
    text_config = config.get_text_config()
    head = text_config.vocab_size * text_config.hidden_size
    flops = (4 if settings.use_peft else 6) * ((multiplied - head) * tokens + head * targets)
    longest = max(sizes.longest, replayed.longest)
    micro = longest * (args.per_device_train_batch_size or 1)
    weight_bytes = (0.8 if settings.load_in_4bit else 2.2 if settings.use_peft else 16) * total
    # Checkpointing keeps what goes into each layer, in fp32, and the activations of one.
    per_width = 50 + 4 * text_config.num_hidden_layers if args.gradient_checkpointing else 50 * text_config.num_hidden_layers
    logits = micro * targets / tokens * text_config.vocab_size
    activation_bytes = micro * text_config.hidden_size * per_width + logits * (2 if args.bf16 else 4)
    trained = 0 if settings.use_peft else total
    seconds = _seconds(flops, tokens, schedule.steps, own_rows + replay_rows, trained, text_config, args)
    return {
        "parameters": total,
        "steps": schedule.steps,
        "visits": round(schedule.visits, 2),
        "batch_size": schedule.batch_size,
        "learning_rate": args.learning_rate,
        "tokens": round(tokens),
        "target_tokens": round(targets),
        "longest": longest,
        "flops": flops,
        "memory_gib": round((weight_bytes + activation_bytes) / 2**30, 2),
        "seconds": round(seconds, 1),
    }


def _seconds(flops: float, tokens: float, steps: int, rows: int, trained: int, config: Any, args: Any) -> float:
    """The FLOPs, and those of attention, at the rate of products of the model's own shape; and what passes through memory, at its rate.

    That is, in bytes, PER_WIDTH for each token, layer and unit of width, and PER_WEIGHT for each trained weight and step. No layer takes
    less than LAUNCH a micro-batch.
    """
    layers, width = config.num_hidden_layers, config.hidden_size
    processes, micro = args.world_size, args.gradient_accumulation_steps or 1
    length, tokens, flops = tokens / rows, tokens / processes, flops / processes
    at_once = min(tokens / (steps * micro), 512 if args.use_cpu else 8192)
    products, bandwidth = matmul_rate(bool(args.bf16), args.use_cpu, _shape(at_once, config)), memory_rate(args.use_cpu)
    flops += 12 * layers * width * tokens * length
    of_layers = flops / products + PER_WIDTH * width * layers * tokens / bandwidth
    again = 4 / 3 if args.gradient_checkpointing else 1  # a second pass forward
    return max(again * of_layers, LAUNCH * layers * micro * steps) + PER_WEIGHT * trained * steps / bandwidth


def _shape(tokens: float, config: Any) -> tuple[int, int, int]:
    """(tokens, width, inner width) of a layer's largest product, cut so that timing it takes a moment, and rounded: plans share them."""
    rows = 2 ** round(math.log2(max(tokens, 16)))
    inner = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return rows, min(config.hidden_size, 4096), min(inner, 4096)


@cache
def matmul_rate(bf16: bool, cpu: bool, shape: tuple[int, int, int] = (512, 512, 512)) -> float:
    """FLOP/s of this device on the products of a linear layer forward and backward, in the compute dtype: `shape` is (tokens, in, out).

    Measured once, so that plans can be compared; the best of a few, since others may be using the machine.
    """
    device = torch.device("cpu") if cpu else torch.accelerator.current_accelerator()
    tokens, width, inner = shape
    dtype = torch.bfloat16 if bf16 else torch.float32
    x, weight, gradient = (torch.ones(n, m, device=device, dtype=dtype) for n, m in ((tokens, width), (inner, width), (tokens, inner)))

    def products() -> torch.Tensor:
        return (x @ weight.T)[0, 0] + (gradient @ weight)[0, 0] + (gradient.T @ x)[0, 0]

    return 6 * tokens * width * inner / _fastest(products)


@cache
def memory_rate(cpu: bool) -> float:
    """Bytes/s of this device in an addition that reads two and writes one."""
    device, n = (torch.device("cpu"), 2**24) if cpu else (torch.accelerator.current_accelerator(), 2**26)
    a, b = torch.zeros(n, device=device), torch.zeros(n, device=device)
    return 3 * 4 * n / _fastest(lambda: a.add_(b)[0])


def _fastest(work: Callable[[], torch.Tensor]) -> float:
    """Seconds of the fastest of up to 20 calls in a third of a second; the result is waited for."""
    begin, seconds = time.perf_counter(), list[float]()
    while len(seconds) < 3 or (len(seconds) < 20 and time.perf_counter() - begin < 0.3):
        start = time.perf_counter()
        work().item()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def fitting(max_minutes: float, fit: int, steps: int) -> str:
    """The line that says how many of the steps `max_minutes` are enough for."""
    plans = f"--max_steps {max(1, fit)} plans the run for them"
    return f"max_minutes: about {fit:,} of the {steps:,} steps fit in {max_minutes:g} minutes; {plans}"


def in_words(seconds: float) -> str:
    """In the unit that suits: "41 ms", "2.4 seconds", "25 minutes", "3.1 hours"."""
    if seconds < 120:
        return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2g} seconds" if seconds < 10 else f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"


def describe(numbers: dict[str, Any], n_documents: int, questions: Sequence[Question], max_minutes: float | None = None) -> list[str]:
    """The plan in words."""
    n = numbers
    asked = {split: sum(q.split == split for q in questions) for split in ("validation", "test")}
    lines = [
        f"data: {n_documents:,} documents, the longest example {n['longest']:,} tokens"
        + (f"; questions: {asked['validation']:,} validation, {asked['test']:,} test" if questions else "; no questions"),
        f"plan: {n['steps']:,} steps of {n['batch_size']} rows, {n['visits']:,} visits of each document, "
        f"learning rate {n['learning_rate']:g}; {n['tokens']:,} tokens read, {n['target_tokens']:,} trained on",
        f"rough estimate: {n['memory_gib']:.1f} GiB of memory, {in_words(n['seconds'])} on this machine, without asking questions",
    ]
    if max_minutes is not None and n["seconds"] > 60 * max_minutes:
        lines.append(fitting(max_minutes, int(n["steps"] * 60 * max_minutes / n["seconds"]), n["steps"]))
    return lines
