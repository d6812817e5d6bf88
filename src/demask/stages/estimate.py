"""What a run will cost, before it starts: counted exactly where that is possible, and roughly else."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from demask.models.load import parameter_counts
from demask.schedule import Schedule
from demask.types import Question


def estimate(schedule: Schedule, sizes: Any, replayed: Any, config: Any, settings: Any, args: Any) -> dict[str, Any]:
    """Steps, visits, tokens read and trained on, FLOPs, and rough peak memory (GiB) and time (s).

    FLOPs: 6 per parameter and token (4 with frozen weights), the head at targets only. Memory: weights, gradients and AdamW's moments, and
    of one micro-batch of the longest rows 50 bytes of activations per layer and width, as Llama-like models of 1 to 8 B keep
    (benchmarks/results/train_step_gpu.json), and one copy of the targets' logits. Time: the FLOPs at 30% of this device's rate of matrix
    products, measured for a moment. `sizes` and `replayed` are those of the schedule's examples and of its replay
    (`stages.prepare.Sizes`).
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
    seconds = flops / args.world_size / (0.3 * matmul_rate(bool(args.bf16), args.use_cpu))
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


@cache
def matmul_rate(bf16: bool, cpu: bool) -> float:
    """FLOP/s of this device on a square product in the compute dtype; measured once, so that plans can be compared.

    On a CPU that of one thread times their number: several would wait for each other where others use the machine.
    """
    device, size = ("cpu", 512) if cpu else (torch.accelerator.current_accelerator(), 4096)
    threads = torch.get_num_threads() if cpu else 1
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    rates = []
    if cpu:
        torch.set_num_threads(1)
    for _ in range(20):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        rates.append(2 * size**3 / (time.perf_counter() - start))
    if cpu:
        torch.set_num_threads(threads)
    return threads * max(rates)


def describe(numbers: dict[str, Any], n_documents: int, questions: Sequence[Question]) -> list[str]:
    """The plan in words."""
    n = numbers
    asked = {split: sum(q.split == split for q in questions) for split in ("validation", "test")}
    minutes = n["seconds"] / 60
    lines = [
        f"data: {n_documents:,} documents, the longest example {n['longest']:,} tokens"
        + (f"; questions: {asked['validation']:,} validation, {asked['test']:,} test" if questions else "; no questions"),
        f"plan: {n['steps']:,} steps of {n['batch_size']} rows, {n['visits']:,} visits of each document, "
        f"learning rate {n['learning_rate']:g}; {n['tokens']:,} tokens read, {n['target_tokens']:,} trained on",
        f"rough estimate: {n['memory_gib']:.1f} GiB of memory, "
        + (f"{minutes:,.0f} minutes" if minutes >= 2 else f"{n['seconds']:.0f} seconds")
        + " on this machine, without asking questions",
    ]
    return lines
