"""Questions a second, beside transformers' `generate` run for 128 tokens on one batch after the other.

    python benchmarks/eval.py [--rounds 3]

The embedded model answers questions about people it has read of, alone and behind three answered ones (few-shot), and a random model of
100 M parameters writes behind the same prompts. Random weights never end an answer by themselves: there one ends where the last token's
id and its position add up to a multiple of 16, which for every variant is at the same place and gives lengths like those of real answers.

- ours        `demask.decoding`: sorted by length, rows leave the batch as they end, what all prompts begin with is read once
- to_128      the baseline: `generate` on batches of the same size in the given order, padded, without an end: 128 tokens each
- stopping    the same `generate`, but ending with the last row of a batch
- one         `generate`, ending, one question at a time
- continuous  `--backend continuous`
- bfloat16    ours, weights in bfloat16 (where that is native)

They take turns within a process, `rounds` times, behind a few questions that do not count; a ratio is that of one round, shown as median
[lowest, highest]. Seconds are processor time on a CPU (one thread: other programs' turns do not count) and elapsed time on a GPU. All but
bfloat16 must give the same answers, which is checked. Writes benchmarks/results/eval.json.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, set_seed

from demask.batching import pad_id
from demask.chat_format import ChatFormat
from demask.corpora import world
from demask.decoding import causal, continuous
from demask.models.load import load_model, load_tokenizer, model_folder, parameter_counts
from demask.runs import environment
from demask.settings import native_bf16
from demask.stages.eval import turns
from demask.types import Question, write_json

NEW_TOKENS = 128
# (questions, batch, answered questions shown before each, variants beside ours)
CASES: dict[str, tuple[int, int, int, tuple[str, ...]]] = {
    "5m": (128, 64, 0, ("to_128", "stopping", "one", "continuous", "bfloat16")),
    "5m, 3 shots": (64, 64, 3, ("to_128", "stopping", "bfloat16")),
    "100m": (16, 16, 0, ("to_128", "stopping")),
}
BATCH_SIZES = (16, 256)
VOCABULARY = 128_256
END = 0  # what ends the random model's answers
Answers = Callable[[Sequence[Sequence[int]]], list[str]]


class Spelled:
    """A tokenizer for the random model: texts are the ids themselves, so that equal texts are equal tokens."""

    pad_token_id, eos_token_id = 0, None

    @staticmethod
    def decode(ids: torch.Tensor, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids.tolist()))


def questions_of(number: int) -> list[Question]:
    """About people the embedded model has read of, of statements and of biographies in turn, in a fixed order of any lengths."""
    statements, biographies = world.old_questions(number // 2), world.biography_corpus(0, 300)[1]
    return [q for pair in zip(statements[: number // 2], biographies, strict=False) for q in pair]


def by_generate(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], stop_ids: Sequence[int], batch: int, ends: bool) -> list[str]:
    """The answers, batch after batch in the given order; without `ends` every row of every batch gets all new tokens."""
    texts = []
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad_id(tokenizer))
    settings.eos_token_id = list(stop_ids) if ends else None
    model.generation_config = settings
    for first in range(0, len(prompts), batch):
        rows = prompts[first : first + batch]
        length = max(map(len, rows))
        ids = torch.tensor([[pad_id(tokenizer)] * (length - len(row)) + list(row) for row in rows], device=model.device)
        mask = torch.tensor([[0] * (length - len(row)) + [1] * len(row) for row in rows], device=model.device)
        written = model.generate(input_ids=ids, attention_mask=mask)[:, length:].tolist()
        texts += [text_of(ids, tokenizer, stop_ids) for ids in written]
    return texts


def text_of(written: list[int], tokenizer: Any, stop_ids: Sequence[int]) -> str:
    """The text up to its end, cut apart from the package's own way."""
    kept = []
    for token in written:
        if token in stop_ids:
            break
        kept.append(token)
    return tokenizer.decode(torch.tensor(kept), skip_special_tokens=True).strip()


class Case:
    """A model, its prompts, and what ends its answers; `run` answers them by a variant."""

    def __init__(self, name: str, device: str) -> None:
        number, self.batch, shots, self.variants = CASES[name]
        folder, self.device = model_folder("tiny/causal"), device
        chat = ChatFormat(load_tokenizer(folder))
        shown = world.statement_corpus(1, shots)[1][:shots] if shots else []
        self.prompts = [chat.prompt(chat.content(text)) for text in turns(questions_of(number), shown)]
        self.tokenizer, self.stop_ids = chat.tokenizer, chat.stop_ids()
        if name.startswith("5m"):
            self.model = load_model(folder).to(device).eval()
        else:
            self.tokenizer, self.stop_ids = Spelled(), [END]
            self.model = random_model(device)
        self.low = None
        if "bfloat16" in self.variants and not native_bf16(device == "cpu"):
            self.variants = tuple(v for v in self.variants if v != "bfloat16")
        elif "bfloat16" in self.variants:
            self.low = load_model(folder, torch.bfloat16).to(device).eval()

    def run(self, variant: str, prompts: Sequence[Sequence[int]], batch: int | None = None) -> tuple[list[str], float]:
        """(the answers, seconds)"""
        options: dict[str, Any] = {"stop_ids": self.stop_ids, "max_new_tokens": NEW_TOKENS, "batch_size": batch or self.batch}
        ways: dict[str, Answers] = {
            "ours": lambda prompts: causal.generate(self.model, self.tokenizer, prompts, **options),
            "bfloat16": lambda prompts: causal.generate(self.low, self.tokenizer, prompts, **options),
            "continuous": lambda prompts: continuous.generate(self.model, self.tokenizer, prompts, **options),
            "to_128": lambda prompts: by_generate(self.model, self.tokenizer, prompts, self.stop_ids, self.batch, ends=False),
            "stopping": lambda prompts: by_generate(self.model, self.tokenizer, prompts, self.stop_ids, self.batch, ends=True),
            "one": lambda prompts: by_generate(self.model, self.tokenizer, prompts, self.stop_ids, 1, ends=True),
        }
        clock = time.process_time if self.device == "cpu" else time.perf_counter
        start = clock()
        texts = ways[variant](prompts)  # on a GPU: their ids have come back
        return texts, clock() - start


def random_model(device: str) -> Any:
    """The 100 M shape of benchmarks/train_step.py, whose answers end at different places."""

    def end(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if "position_ids" in kwargs:  # not where only a common beginning is read
            ending = (kwargs["input_ids"][:, -1] + kwargs["position_ids"][:, -1]) % 16 == 0
            output.logits[ending, -1, END] = torch.inf

    set_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=512,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=8,
        intermediate_size=1536,
        tie_word_embeddings=True,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = AutoModelForCausalLM.from_config(config).to(device).eval()
    model.register_forward_hook(end, with_kwargs=True)
    return model


def measure(name: str, rounds: int, device: str) -> dict[str, Any]:
    """Of every variant the questions a second and its ratios, and how long prompts and answers are."""
    case = Case(name, device)
    variants = ["ours", *case.variants]
    seconds: dict[str, list[float]] = {variant: [] for variant in variants}
    texts: dict[str, list[str]] = {}
    for variant in variants:
        case.run(variant, case.prompts[:2])
    for number in range(rounds):
        for variant in variants[number % len(variants) :] + variants[: number % len(variants)]:
            texts[variant], spent = case.run(variant, case.prompts)
            seconds[variant].append(spent)
            assert variant == "bfloat16" or variant == "ours" or "ours" not in texts or texts[variant] == texts["ours"], variant
    found: dict[str, Any] = {
        variant: {"questions_per_second": _round(len(case.prompts) / median(spent)), "seconds": [_round(s) for s in spent]}
        for variant, spent in seconds.items()
    }
    for variant in variants[1:]:
        found[variant]["time_over_ours"] = _ratios(seconds[variant], seconds["ours"])
        same = sum(own == other for own, other in zip(texts[variant], texts["ours"], strict=True))
        found[variant]["same_answers"] = _round(same / len(case.prompts))
        assert variant == "bfloat16" or same == len(case.prompts), variant
    spelled = isinstance(case.tokenizer, Spelled)
    written = [len(text.split()) if spelled else len(case.tokenizer.encode(text, add_special_tokens=False)) for text in texts["ours"]]
    found["settings"] = {"questions": len(case.prompts), "batch": case.batch, "parameters": parameter_counts(case.model.config)[0]}
    found["settings"] |= {"prompt_tokens": _lengths(list(map(len, case.prompts))), "answer_tokens": _lengths(written)}
    return found


def batch_sizes(rounds: int, device: str) -> dict[str, Any]:
    """Ours on the embedded model in smaller and larger batches: their time over that of batches of 64."""
    case = Case("5m", device)
    seconds: dict[int, list[float]] = {size: [] for size in (64, *BATCH_SIZES)}
    for number in range(-1, rounds):
        for size, spent in seconds.items():
            taken = case.run("ours", case.prompts, size)[1]
            if number >= 0:
                spent.append(taken)
    return {str(size): _ratios(seconds[size], seconds[64]) for size in BATCH_SIZES}


def _ratios(own: list[float], other: list[float]) -> dict[str, Any]:
    ratios = sorted(a / b for a, b in zip(own, other, strict=True))
    return {"median": _round(median(ratios)), "range": [_round(ratios[0]), _round(ratios[-1])]}


def _lengths(lengths: list[int]) -> dict[str, int]:
    return {"least": min(lengths), "median": int(median(lengths)), "most": max(lengths)}


def _round(value: float) -> float:
    return float(f"{value:.4g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "eval.json")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    cases: dict[str, Any] = {}
    for name in args.only:
        cases[name] = measure(name, args.rounds, args.device)
        print(_line(name, cases[name]), flush=True)
    settings = {"rounds": args.rounds, "device": args.device, "dtype": "float32", "max_new_tokens": NEW_TOKENS, "threads": args.threads}
    sizes = batch_sizes(args.rounds, args.device)
    write_json(args.output, {"settings": settings, "cases": cases, "batch_sizes_time_over_64": sizes, **environment()})
    print("batches of", ", ".join(f"{size}: {found['median']:.2f} of the time of 64" for size, found in sizes.items()))


def _line(name: str, found: dict[str, Any]) -> str:
    parts = [f"{name:12} {found['ours']['questions_per_second']:7.4g} questions/s"]
    for variant, taken in found.items():
        if "time_over_ours" in taken:
            parts.append(f"{variant} {taken['time_over_ours']['median']:.2f} {taken['time_over_ours']['range']} x its time")
    return "; ".join(parts)


if __name__ == "__main__":
    main()
