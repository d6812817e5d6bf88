"""What LLaDA-8B's shape takes on one GPU: memory, and tokens a second, of a full forward, of decoding and of LoRA steps.

    python benchmarks/llada_8b.py [--batch_size 8] [--gradient_checkpointing off on]

The weights are random, bf16, and made on the device: nothing is downloaded, and neither memory nor speed depends on their values. Only
decoding by confidence does, since random weights have none: in place of a threshold the fast setting takes a quarter of the passes. What
takes turns is repeated, after a round to warm up; times are medians, peak memory includes the weights. `--small` runs the same
in seconds on a tiny shape, also on a CPU, to see that it runs; its numbers mean nothing and are written only where `--output` says.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from demask.decoding.diffusion import Sampling, generate
from demask.losses import target_nll, weighted_sum
from demask.models.family import make_bidirectional, predicts_next
from demask.objectives.diffusion import Diffusion
from demask.runs import environment
from demask.schedule import Schedule
from demask.types import write_json

GIB = 2**30


@dataclass(frozen=True)
class Size:
    """A model's shape, its special ids, and how much of it is measured: token counts, and `repeats` of everything."""

    shape: dict[str, Any]
    bos: int
    eos: int
    mask: int
    length: int
    prompt_length: int
    max_new_tokens: int
    block_length: int
    repeats: int = 3


LLADA = Size(
    shape={
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "vocab_size": 126464,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        "tie_word_embeddings": False,
    },
    bos=126080,
    eos=126081,
    mask=126336,
    length=512,
    prompt_length=256,
    max_new_tokens=128,
    block_length=32,
)
SMALL = Size(
    shape={
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "vocab_size": 512,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
    },
    bos=508,
    eos=509,
    mask=510,
    length=32,
    prompt_length=16,
    max_new_tokens=16,
    block_length=4,
    repeats=1,
)


def build(size: Size, device: torch.device) -> Any:
    """The bidirectional model, in bf16, its random weights drawn on the device."""
    config = LlamaConfig(**size.shape, bos_token_id=size.bos, eos_token_id=size.eos, pad_token_id=size.eos)
    make_bidirectional(config, shifted_logits=False)
    set_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def measure(device: torch.device, works: Mapping[str, Callable[[], Any]], tokens: int, repeats: int) -> dict[str, dict[str, Any]]:
    """For each work, which reads or writes `tokens` tokens: seconds, tokens a second, and peak memory in GiB (None without a GPU).

    The works take turns. One that does not fit the memory is reported as that, and not tried again.
    """
    rounds: dict[str, list[tuple[float, int]]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name in list(rounds):
            try:
                rounds[name].append(timed(device, works[name]))
            except torch.OutOfMemoryError:
                del rounds[name]
            if name not in rounds:  # no longer inside of the exception, which holds on to the tensors
                torch.cuda.empty_cache()
    found: dict[str, dict[str, Any]] = {name: {"out_of_memory": True} for name in works}
    for name, taken in rounds.items():
        seconds, peak = median(time for time, _ in taken[1:]), max(peak for _, peak in taken)
        found[name] = {"seconds": round(seconds, 4), "tokens_per_second": round(tokens / seconds, 1)}
        found[name]["peak_memory_gib"] = round(peak / GIB, 2) if device.type == "cuda" else None
    return found


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[float, int]:
    """(seconds, most bytes allocated on the GPU meanwhile)."""
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    work()
    if gpu:
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) if gpu else 0


def forward(model: Any, size: Size, batch_size: int) -> dict[str, Any]:
    """One forward pass, with the logits of every token."""
    ids = torch.randint(size.bos, (batch_size, size.length), device=model.device)

    @torch.no_grad()
    def work() -> None:
        model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)

    return measure(model.device, {"forward": work}, ids.numel(), size.repeats)


def decode(model: Any, size: Size) -> dict[str, Any]:
    """Eight answers, which nothing ends: one token a pass, and in a quarter of the passes with the prefix cache."""
    prompts = torch.randint(size.bos, (8, size.prompt_length)).tolist()
    tokenizer = SimpleNamespace(
        init_kwargs={}, mask_token_id=size.mask, pad_token_id=size.eos, eos_token_id=size.eos, decode=lambda ids, **_: str(len(ids))
    )
    steps = size.max_new_tokens // 4
    samplings = {
        f"decode, exact ({size.max_new_tokens} passes)": Sampling(size.block_length),
        f"decode, prefix cache ({steps} passes)": Sampling(size.block_length, steps=steps, prefix_cache=True),
    }
    works = {
        name: partial(generate, model, tokenizer, prompts, stop_ids=(), max_new_tokens=size.max_new_tokens, sampling=sampling)
        for name, sampling in samplings.items()
    }
    return measure(model.device, works, len(prompts) * size.max_new_tokens, size.repeats)


def lora_steps(model: Any, size: Size, batch_size: int, checkpointing: Sequence[str]) -> dict[str, Any]:
    """Optimiser steps of fp32 adapters of rank 16 on all linear layers, on documents of random ids, by the diffusion objective.

    The first loss is recorded: of random weights it is about ln(vocabulary) nats a token.
    """
    written = torch.randint(size.bos, (batch_size, size.length - 1)).tolist()
    examples = [{"given": [size.bos], "written": ids, "padding": 0} for ids in written]
    schedule = Schedule(examples, steps=1, batch_size=batch_size)
    ids_only: Any = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=size.eos, eos_token_id=size.eos))
    batch = Diffusion(size.mask).collate([schedule[slot] for slot in range(batch_size)], ids_only, seed=0)
    batch = {name: values.to(model.device) for name, values in batch.items()}
    model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    optimizer = torch.optim.AdamW([weights for weights in model.parameters() if weights.requires_grad], lr=1e-4)
    losses: list[float] = []

    def work(switch: str) -> None:
        if switch == "on":
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            model.activation_checkpointing_disable()
        optimizer.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = weighted_sum(target_nll(model, batch, predicts_next(model.config)), batch) / batch["normaliser"].sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

    works = {f"LoRA step, checkpointing {switch}": partial(work, switch) for switch in checkpointing}
    found = measure(model.device, works, batch["input_ids"].numel(), size.repeats)
    return found | {"first_loss": round(losses[0], 3) if losses else None}


def run(size: Size, device: torch.device, batch_size: int, checkpointing: Sequence[str]) -> dict[str, Any]:
    """The record that is written: settings, surroundings, and what every part took."""
    start = time.perf_counter()
    model = build(size, device).eval()
    parameters = sum(weights.numel() for weights in model.parameters())
    settings: dict[str, Any] = {"shape": size.shape, "parameters": parameters, "dtype": "bfloat16", "device": device_name(device)}
    settings |= {"build_seconds": round(time.perf_counter() - start, 1), "batch_size": batch_size, "length": size.length}
    settings |= {"decode": {"batch_size": 8, **{key: getattr(size, key) for key in ("prompt_length", "max_new_tokens", "block_length")}}}
    parts = forward(model, size, batch_size) | decode(model, size)
    lora = lora_steps(model, size, batch_size, checkpointing)
    settings |= {"repeats": size.repeats, "first_loss": lora.pop("first_loss")}
    return {"settings": settings, "parts": parts | lora, **environment()}


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def print_record(record: dict[str, Any]) -> None:
    settings = record["settings"]
    title = f"{settings['parameters'] / 1e9:.2f} B random parameters on {settings['device']}, batch {settings['batch_size']}"
    table = Table("part", "seconds", "tokens/s", "peak memory, GiB", title=title)
    for name, found in record["parts"].items():
        if "out_of_memory" in found:
            table.add_row(name, "-", "-", "too large")
            continue
        memory = found["peak_memory_gib"]
        table.add_row(name, f"{found['seconds']:.3f}", f"{found['tokens_per_second']:,.0f}", "-" if memory is None else f"{memory:.1f}")
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8, help="of the forward pass and the LoRA steps")
    parser.add_argument("--gradient_checkpointing", nargs="+", choices=("off", "on"), default=["off", "on"])
    parser.add_argument("--small", action="store_true", help="a tiny shape, on a CPU too")
    parser.add_argument("--output", type=Path, help="default: results/llada_8b_<device>.json beside this script; with --small nothing")
    args = parser.parse_args()
    if not (args.small or torch.cuda.is_available()):
        parser.error("this needs a GPU of about 24 GB or more; --small tries it on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record = run(SMALL if args.small else LLADA, device, args.batch_size, args.gradient_checkpointing)
    print_record(record)
    slug = re.sub(r"[^a-z0-9]+", "_", device_name(device).lower())
    output = args.output or (None if args.small else Path(__file__).parent / "results" / f"llada_8b_{slug}.json")
    if output:
        write_json(output, record)


if __name__ == "__main__":
    main()
