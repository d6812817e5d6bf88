"""The training step beside the reference's recipe and plain TRL: tokens a second, peak memory, share of the device's peak.

    python benchmarks/train_step.py [--rounds 3] [--steps 1]       the CPU's cases, or on a machine with a GPU that one's
    python benchmarks/train_step.py --sizes try --output try.json  the same code with small shapes, on whatever there is

Random weights in real trainers, AdamW, bfloat16 autocast over fp32 weights (8b: LoRA on bfloat16 weights), no activation checkpointing.
All read the same documents in the same order, right-padded to the longest row of a batch:

- reference  eager attention, logits of every token, the model's own loss (diffusion: cross-entropy over p, as in LLaDA)
- trl        TRL's SFTTrainer with DataCollatorForDemasking (AR: the same rows; it has no diffusion loss)
- ours       ObjectiveTrainer
- liger      ours with --use_liger_kernel (by default on a GPU only)
- compiled   ours with --torch_compile (by default on a GPU, and there for demask's full fine-tuning)

- transformers, transformers_compiled  its Trainer with logits at the targets only (where --variants names them)

and, where --variants names them, ours on padded rows with sdpa (padded) or eager attention (padded_eager), and the former with torch's
cross-entropy of the targets' logits in fp32 (plain_loss).

Speed: they take turns within a process, for `rounds` rounds of `steps` steps, behind a round, and in each round a step, that do not
count. A ratio is that of one round, shown as median [lowest, highest]. flops_of_reference is what the reference multiplies over what must
be (no padding, the head at targets): what the products alone could gain. Seconds are processor time on a CPU (one thread: other programs'
turns do not count) and elapsed time on a GPU.

Memory: the highest resident set (CPU: VmHWM, reset by /proc/self/clear_refs, in a process of its own) or allocation (GPU) above the level
after the first step, weights and optimiser state without gradients, over the steps behind it; gradients_mib of it are the gradients,
which all recipes hold. MFU: 6 FLOPs per parameter and token (LoRA 4), the head at targets only, over the peak of an H100 or
H200 (989e12), on a CPU over its measured rate of bfloat16 products.

Writes benchmarks/results/train_step_cpu.json or train_step_gpu.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import math
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from step_trainers import ATTENTION, EXTRA, VARIANTS, Steps, trainer_of, undo
from transformers import AutoModelForCausalLM, LlamaConfig, PrinterCallback, set_seed

from demask.chat_format import IGNORE, ChatFormat
from demask.corpora import world
from demask.models.load import load_config, load_tokenizer, model_folder, parameter_counts
from demask.models.mask_token import mask_candidates
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.runs import environment
from demask.schedule import Schedule
from demask.stages.estimate import matmul_rate
from demask.types import Document, write_json

OBJECTIVES = ("demask", "autoregressive", "diffusion")
PEAK = 989e12  # an H100's and H200's dense bfloat16 FLOP/s, as NVIDIA states it
VOCABULARY = 128_256
VOCABULARIES = {"135m": 49_152}  # where it is another
# name: (width, layers, heads, key/value heads, width of the MLP, tied head, LoRA)
SHAPES: dict[str, tuple[int, int, int, int, int, bool, bool]] = {
    "100m": (512, 10, 8, 8, 1536, True, False),
    "135m": (576, 30, 9, 3, 1536, True, False),  # SmolLM2's
    "1b": (2048, 16, 32, 8, 8192, True, False),
    "3b": (3072, 28, 24, 8, 8192, True, False),
    "8b": (4096, 32, 32, 8, 14336, False, True),
    "try": (64, 2, 4, 2, 128, True, False),
    "try_lora": (64, 2, 4, 2, 128, False, True),
}
# (size, documents, batch, rows at a time): statements of some 20 tokens, articles of some 120.
CASES = {
    "cpu": [("100m", "statements", 16, 16), ("100m", "articles", 8, 8), ("135m", "28", 8, 8), ("5m", "statements", 16, 16)],
    "cuda": [("1b", "articles", 64, 64), ("3b", "articles", 64, 32), ("8b", "articles", 64, 32)],
    "try": [("try", "statements", 4, 4), ("try_lora", "articles", 4, 2)],
}


def config_of(size: str) -> Any:
    if size == "5m":
        return load_config(model_folder("tiny/causal"))
    width, layers, heads, kv, mlp, tied, _ = SHAPES[size]
    return LlamaConfig(
        vocab_size=VOCABULARIES.get(size, VOCABULARY),
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv,
        intermediate_size=mlp,
        tie_word_embeddings=tied,
        max_position_embeddings=4096,
    )


def lora_of(size: str) -> bool:
    return size in SHAPES and SHAPES[size][-1]


def make_model(size: str, device: str) -> Any:
    """Random weights: fp32, or bfloat16 under fp32 LoRA adapters on all linear layers."""
    set_seed(0)
    dtype = torch.bfloat16 if lora_of(size) else torch.float32
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config_of(size), dtype=dtype)
    if lora_of(size):
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    return model


def documents_of(kind: str, chat: ChatFormat) -> list[Document]:
    """60 statements, or 60 articles: biographies joined and cut at 120 tokens, or at as many as `kind` says."""
    if kind == "statements":
        return world.statement_corpus(1, 60)[0][:60]
    texts = [document.text for document in world.biography_corpus(1, 180)[0]]
    joined = [" ".join(texts[3 * i : 3 * i + 3]) for i in range(60)]
    length = 120 if kind == "articles" else int(kind)
    return [Document(str(i), chat.tokenizer.decode(chat.content(text)[:length])) for i, text in enumerate(joined)]


class Case:
    """One objective on one model and kind of document; `run` trains it by a variant."""

    def __init__(self, objective: str, size: str, kind: str, batch: int, rows: int, steps: int, device: str) -> None:
        self.size, self.device, self.steps, self.batch, self.rows = size, device, steps, batch, rows
        self.chat = ChatFormat(load_tokenizer(model_folder("tiny/causal")))
        mask = mask_candidates(self.chat.tokenizer)[0].id
        made = {"autoregressive": Autoregressive(), "demask": Demask(mask), "diffusion": Diffusion(mask)}
        self.objective: Any = made[objective]
        self.examples = self.objective.examples(documents_of(kind, self.chat), self.chat)
        self.model = make_model(size, device)
        self.model.config.is_causal = objective != "diffusion"

    def run(self, variant: str, seed: int) -> tuple[list[float], float, list[dict[str, int]]]:
        """(seconds of each counted step, peak memory in bytes, the steps' tokens, targets and longest row)."""
        self.model.set_attn_implementation(ATTENTION.get(variant, "sdpa"))
        schedule = Schedule(self.examples, steps=self.steps + 1, batch_size=self.batch, seed=seed)
        timer = Steps(self.device)
        bare = self.model.__dict__.get("forward")
        with tempfile.TemporaryDirectory() as folder:
            try:
                trainer = trainer_of(variant, self.model, schedule, self.rows, self.objective, self.chat, self.device, folder)
                trainer.remove_callback(PrinterCallback)
                trainer.add_callback(timer)
                trainer.train()
            finally:
                undo(self.model, bare)
                trainer = None
                gc.collect()  # the trainer and its optimiser refer to each other
        sizes = []
        for step in range(1, self.steps + 1):
            rows = [schedule[step * self.batch + slot] for slot in range(self.batch)]
            batch = self.objective.collate(rows, self.chat, seed)
            counts = {"tokens": int(batch["attention_mask"].sum()), "targets": int((batch["labels"] != IGNORE).sum())}
            sizes.append(counts | {"longest": batch["input_ids"].shape[1]})
        return timer.seconds, timer.memory, sizes


def flops(size: str, tokens: int, targets: int) -> float:
    config = config_of(size)
    multiplied, head = parameter_counts(config)[1], config.vocab_size * config.hidden_size
    return (4 if lora_of(size) else 6) * ((multiplied - head) * tokens + head * targets)


def speed(objective: str, size: str, kind: str, batch: int, rows: int, args: argparse.Namespace) -> dict[str, Any]:
    """Every variant's rates (medians over rounds) and ratios to ours; on a GPU the highest memory too."""
    case = Case(objective, size, kind, batch, rows, args.steps, args.device)
    variants = [v for v in args.variants if v != "trl" or objective != "diffusion"]
    if objective != "demask" or lora_of(size):
        variants = [v for v in variants if v != "compiled"]
    peaks: dict[str, float] = {}
    seconds: dict[str, list[float]] = {v: [] for v in variants}
    rates: dict[str, list[dict[str, float]]] = {v: [] for v in variants}
    peak = PEAK if args.device == "cuda" else matmul_rate(True, True)
    for round_ in range(args.rounds + 1):
        for variant in variants if round_ % 2 else variants[::-1]:
            try:
                times, peak_memory, sizes = case.run(variant, seed=round_)
            except torch.OutOfMemoryError:
                peaks[variant] = math.inf
                continue
            peaks[variant] = max(peaks.get(variant, 0.0), peak_memory)
            if not round_:  # whatever comes first in a process is faster: its memory is fresh
                continue
            spent = sum(times)
            tokens, targets = (sum(s[name] for s in sizes) for name in ("tokens", "targets"))
            seconds[variant].append(spent)
            rate = {"tokens_per_second": tokens / spent, "target_tokens_per_second": targets / spent}
            rates[variant].append(rate | {"mfu": flops(size, tokens, targets) / spent / peak})
    failed = [v for v in variants if math.isinf(peaks[v])]
    variants = [v for v in variants if v not in failed]
    found: dict[str, Any] = {
        v: {name: _round(median(r[name] for r in rates[v])) for name in rates[v][0]}
        | {"seconds_per_step": [_round(s / args.steps) for s in seconds[v]]}
        | ({"peak_memory_mib": round(peaks[v] / 2**20)} if args.device == "cuda" else {})
        for v in variants
    }
    if failed:
        found["out_of_memory"] = failed
    for other in variants:
        if other != "ours":
            ratios = sorted(a / b for a, b in zip(seconds[other], seconds["ours"], strict=True))
            found[f"speed_over_{other}"] = {"median": _round(median(ratios)), "range": [_round(ratios[0]), _round(ratios[-1])]}
    padded = sum(s["longest"] for s in sizes) * batch
    found["flops_of_reference"] = _round(flops(size, padded, padded) / flops(size, tokens, targets))
    found["gradients_mib"] = round(sum(p.numel() * p.element_size() for p in case.model.parameters() if p.requires_grad) / 2**20, 1)
    return found | {"batch_tokens": tokens // args.steps, "batch_targets": targets // args.steps}


def memory(objective: str, size: str, kind: str, batch: int, rows: int, variant: str, args: argparse.Namespace) -> float:
    """MiB on a CPU, in a process of its own, over one step behind the first."""
    command = [sys.executable, __file__, "--device", args.device, "--threads", str(args.threads), "--memory_of"]
    done = subprocess.run([*command, objective, size, kind, str(batch), str(rows), variant], stdout=subprocess.PIPE, text=True, check=True)
    return round(json.loads(done.stdout.splitlines()[-1]) / 2**20, 1)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--sizes", choices=["all", "try"], default="all", help="try: small shapes, to see that it runs")
    parser.add_argument(
        "--only", nargs="*", default=[], help="sizes, kinds of documents or objectives to measure; others keep their numbers"
    )
    parser.add_argument("--variants", nargs="*", choices=[*VARIANTS, *EXTRA], help="with ours; on a CPU: reference trl ours")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1, help="counted steps of a round")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--memory_of", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    if args.memory_of:
        objective, size, kind, batch, rows, variant = args.memory_of
        print(json.dumps(Case(objective, size, kind, int(batch), int(rows), 1, args.device).run(variant, seed=0)[1]))
        return
    usual = [*VARIANTS, *(["liger", "compiled"] if args.device == "cuda" else [])]
    args.variants = args.variants or usual
    where = "gpu" if args.device == "cuda" else "cpu"
    output = args.output or Path(__file__).parent / "results" / f"train_step_{where}.json"
    cases: dict[str, Any] = json.loads(output.read_text())["cases"] if args.only and output.exists() else {}
    for objective in OBJECTIVES:
        for size, kind, batch, rows in CASES["try" if args.sizes == "try" else args.device]:
            if not {objective, size, kind} >= set(args.only):
                continue
            name = f"{size} {kind} {objective}" + ("" if args.variants == usual else f" ({', '.join(args.variants)})")
            found = speed(objective, size, kind, batch, rows, args)
            measured = [v for v in args.variants if v in found]
            if args.device == "cpu":
                for variant in measured:
                    found[variant]["peak_memory_mib"] = memory(objective, size, kind, batch, rows, variant, args)
            for other in [v for v in measured if v != "ours"]:
                found[f"memory_of_{other}"] = _round(found["ours"]["peak_memory_mib"] / found[other]["peak_memory_mib"])
            cases[name] = found | {"batch": batch, "rows": rows, "rounds": args.rounds}
            settings = {"steps": args.steps, "device": args.device, "dtype": "bfloat16", "vocabulary": VOCABULARY}
            write_json(output, {"settings": settings, "cases": cases, **environment()})
            print(_line(name, found), flush=True)


def _line(name: str, found: dict[str, Any]) -> str:
    ours = found["ours"]
    parts = [f"{name:32} {ours['target_tokens_per_second']:8.4g} targets/s, MFU {ours['mfu']:.3f}, {ours['peak_memory_mib']:.0f} MiB"]
    for other in (*VARIANTS, *EXTRA):
        if f"speed_over_{other}" in found:
            ratio, mfu = found[f"speed_over_{other}"], found[other]["mfu"]
            parts.append(f"{ratio['median']:.2f} {ratio['range']} x {other} ({mfu:.3f}), {found[f'memory_of_{other}']:.2f} of its memory")
    return "; ".join([*parts, *(f"{other} out of memory" for other in found.get("out_of_memory", []))])


if __name__ == "__main__":
    main()
