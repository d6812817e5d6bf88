"""What faster decoding of a masked diffusion model costs and saves: passes, seconds, accuracy, each beside plain LLaDA sampling.

    python benchmarks/decoding.py --model quickstart/diffusion --questions quickstart/data/questions.jsonl

Two parts (`--parts`):

questions     the test questions, asked of a model that learnt their facts (the quickstart's). Plain LLaDA is one token a forward pass on
              the whole canvas, whatever was already answered, as its authors' sampler does it; the others are `Sampling`s.
long_prompts  seconds an answer with and without the prefix cache, in equally many passes, on 100 M random parameters.

A pass is one row in one forward call; positions are the tokens that went in, padding too. Variants take turns on every batch, each turn
starting with another one; seconds are medians over batches, and the ratio to the first variant is the median of the batches' own ratios.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, quantiles
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, LlamaConfig, set_seed

from demask.batching import pad_id
from demask.chat_format import ChatFormat
from demask.decoding.diffusion import Sampling, generate, refuse_maskless
from demask.models.family import family, make_bidirectional, predicts_next
from demask.models.load import load_config, load_model, load_tokenizer, model_folder, parameter_counts
from demask.runs import environment
from demask.scoring import contains
from demask.settings import native_bf16
from demask.types import DIRECTIONS, InputError, Question, read_questions, write_json

PARTS = ("questions", "long_prompts")
PLAIN = "plain LLaDA"
WHOLE, CACHED = "whole canvas", "prefix cache"
MILLIONS: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "vocab_size": 32000,
}

Prompts = Sequence[Sequence[int]]
Decoder = Callable[[Prompts], list[str]]


@dataclass
class Tally:
    """What one variant took: seconds an answer by batch; forward passes and positions in total; the texts, in the prompts' order."""

    seconds: list[float] = field(default_factory=list)
    passes: int = 0
    positions: int = 0
    texts: list[str] = field(default_factory=list)


@torch.no_grad()
def plain_llada(
    model: Any, tokenizer: Any, prompts: Prompts, *, stop_ids: Sequence[int], max_new_tokens: int, block_length: int
) -> list[str]:
    """Answers by low-confidence remasking without shortcuts: every row takes `max_new_tokens` passes, each of which commits one token.

    Written apart from the package's sampler, whose exact mode must say the same. Like it, and unlike LLaDA's own code, it computes logits
    for the block only, so that the seconds differ by the passes alone.
    """
    start, shift = max(map(len, prompts)), int(predicts_next(model.config))
    padding = [start - len(prompt) for prompt in prompts]
    rows = [
        [pad_id(tokenizer)] * n + list(prompt) + [tokenizer.mask_token_id] * max_new_tokens
        for n, prompt in zip(padding, prompts, strict=True)
    ]
    ids = torch.tensor(rows, device=model.device)
    attention = (torch.arange(ids.shape[1]) >= torch.tensor(padding)[:, None]).long().to(model.device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    every_row = torch.arange(len(ids), device=model.device)
    for first in range(start, ids.shape[1], block_length):
        last = min(first + block_length, ids.shape[1])
        keep = torch.zeros_like(ids, dtype=torch.bool)
        keep[:, first - shift : last - shift] = True
        for _ in range(first, last):
            output = model(input_ids=ids, attention_mask=attention, position_ids=positions, logits_to_keep=keep, use_cache=False)
            logits = output.logits.view(len(ids), last - first, -1).double()
            logits[..., tokenizer.mask_token_id] = -torch.inf
            confidence, tokens = logits.softmax(-1).max(-1)
            place = confidence.masked_fill(ids[:, first:last] != tokenizer.mask_token_id, -1).argmax(-1)
            ids[every_row, first + place] = tokens[every_row, place]
    return [_text(tokenizer, row, stop_ids) for row in ids[:, start:].tolist()]


def _text(tokenizer: Any, written: list[int], stop_ids: Sequence[int]) -> str:
    end = next((place for place, token in enumerate(written) if token in stop_ids), len(written))
    return tokenizer.decode(torch.tensor(written[:end]), skip_special_tokens=True).strip()


@contextlib.contextmanager
def counted(model: Any, tally: Tally) -> Iterator[None]:
    """Add the model's forward passes and positions to the tally."""

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        tally.passes += kwargs["input_ids"].shape[0]
        tally.positions += kwargs["input_ids"].numel()

    hook = model.register_forward_pre_hook(count, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def race(model: Any, variants: dict[str, Decoder], batches: Sequence[Prompts]) -> dict[str, Tally]:
    """Every variant on every batch, in turn; who starts changes with the batch. The first batch is run once before, to warm up."""
    tallies = {name: Tally() for name in variants}
    names = list(variants)
    for name in names:
        variants[name](batches[0])
    for number, batch in enumerate(batches):
        offset = number % len(names)
        for name in names[offset:] + names[:offset]:
            tally = tallies[name]
            with counted(model, tally):
                start = time.perf_counter()
                texts = variants[name](batch)
                tally.seconds.append((time.perf_counter() - start) / len(batch))
            tally.texts += texts
    return tallies


def cost(tally: Tally, base: Tally) -> dict[str, Any]:
    """Passes, positions and seconds of an answer, and their ratios to the base's; of the seconds' ratio also the quartiles."""
    answers = len(tally.texts)
    found: dict[str, Any] = {"passes": tally.passes / answers, "positions": tally.positions / answers, "seconds": median(tally.seconds)}
    ratios = [own / other for own, other in zip(tally.seconds, base.seconds, strict=True)]
    found["passes_ratio"], found["positions_ratio"] = tally.passes / base.passes, tally.positions / base.positions
    found["seconds_ratio"] = median(ratios)
    low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {name: round(value, 4) for name, value in (found | {"seconds_ratio_low": low, "seconds_ratio_high": high}).items()}


# --- The quickstart's questions


def ask_questions(name: str, questions: Sequence[Question], *, max_new_tokens: int, block_length: int, batch_size: int) -> dict[str, Any]:
    """The settings, and for each variant its cost, accuracy by direction, what it lost against plain LLaDA, and how many texts agree."""
    folder = model_folder(name)
    chat = ChatFormat(load_tokenizer(folder))
    if family(load_config(folder)) != "diffusion":
        raise InputError(f"model '{name}': left-to-right; this benchmark is for masked diffusion models")
    refuse_maskless(chat.tokenizer)
    model = load_model(folder).to(_device()).eval()
    prompt_of = {q: chat.prompt(chat.content(q.question)) for q in questions}
    ordered = sorted(questions, key=lambda q: -len(prompt_of[q]))
    prompts = [prompt_of[q] for q in ordered]
    batches = [prompts[first : first + batch_size] for first in range(0, len(prompts), batch_size)]
    options: dict[str, Any] = {"stop_ids": chat.stop_ids(), "max_new_tokens": max_new_tokens}
    samplings = {
        "exact": Sampling(block_length),
        "threshold 0.9": Sampling(block_length, threshold=0.9),
        "threshold 0.9, cache": Sampling(block_length, threshold=0.9, prefix_cache=True),
        "factor 1.0": Sampling(block_length, factor=1.0),
        "steps = length / 4": Sampling(block_length, steps=max(1, max_new_tokens // 4)),
    }
    variants: dict[str, Decoder] = {PLAIN: lambda batch: plain_llada(model, chat.tokenizer, batch, block_length=block_length, **options)}
    variants |= {name: _decoder(model, chat.tokenizer, sampling, **options) for name, sampling in samplings.items()}
    tallies = race(model, variants, batches)
    plain, found = tallies[PLAIN], dict[str, Any]()
    for variant, tally in tallies.items():
        right = accuracy(ordered, tally.texts)
        lost = accuracy(ordered, plain.texts)["accuracy"] - right["accuracy"]
        same = mean(own == other for own, other in zip(tally.texts, plain.texts, strict=True))
        found[variant] = cost(tally, plain) | {key: round(x, 4) for key, x in (right | {"accuracy_lost": lost, "same_text": same}).items()}
    settings = {
        "model": Path(folder).name,
        "parameters": parameter_counts(model.config)[0],
        "dtype": "float32",
        "questions": len(questions),
    }
    settings |= {"max_new_tokens": max_new_tokens, "block_length": block_length, "batch_size": batch_size, "batches": len(batches)}
    return {"settings": settings, "variants": found}


def accuracy(questions: Sequence[Question], texts: Sequence[str]) -> dict[str, float]:
    """Exact containment by direction, and its mean over the directions."""
    by_direction: dict[str, float] = {}
    for direction in DIRECTIONS:
        right = [contains(text, q.answers) for q, text in zip(questions, texts, strict=True) if q.direction == direction]
        if right:
            by_direction[direction] = mean(right)
    return {"accuracy": mean(by_direction.values()), **by_direction}


def _decoder(model: Any, tokenizer: Any, sampling: Sampling, **options: Any) -> Decoder:
    return lambda batch: generate(model, tokenizer, batch, batch_size=len(batch), sampling=sampling, **options)


# --- Long prompts


def long_prompts(
    shape: dict[str, Any] = MILLIONS,
    *,
    lengths: Sequence[int] = (64, 512),
    max_new_tokens: int = 64,
    block_length: int = 32,
    steps: int = 16,
    repeats: int = 5,
) -> dict[str, Any]:
    """The settings, and for each prompt length the cost of an answer with and without the prefix cache.

    Random weights are never confident and nothing ends an answer here, so both take `steps` passes: a quarter of plain LLaDA's.
    """
    device = _device()
    dtype = torch.bfloat16 if native_bf16(device.type == "cpu") else torch.float32
    config = LlamaConfig(**shape, max_position_embeddings=max(lengths) + max_new_tokens, tie_word_embeddings=True)
    make_bidirectional(config, shifted_logits=False)
    set_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype).to(device).eval()
    mask = config.vocab_size - 1
    tokenizer = SimpleNamespace(
        init_kwargs={}, mask_token_id=mask, pad_token_id=0, eos_token_id=None, decode=lambda ids, **_: str(ids.tolist())
    )
    common: dict[str, Any] = {"stop_ids": (), "max_new_tokens": max_new_tokens}
    variants = {
        name: _decoder(model, tokenizer, Sampling(block_length, steps=steps, prefix_cache=name == CACHED), **common)
        for name in (WHOLE, CACHED)
    }
    found = {}
    for length in lengths:
        batches = [torch.randint(1, mask, (1, length)).tolist() for _ in range(repeats)]
        tallies = race(model, variants, batches)
        found[str(length)] = {name: cost(tally, tallies[WHOLE]) for name, tally in tallies.items()}
    settings = {"parameters": parameter_counts(config)[0], "dtype": str(dtype).removeprefix("torch."), "device": device.type}
    settings |= {"max_new_tokens": max_new_tokens, "block_length": block_length, "steps": steps, "batch_size": 1, "repeats": repeats}
    return {"settings": settings, "prompt_lengths": found}


def _device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


# --- On the terminal


def print_questions(part: dict[str, Any], console: Console) -> None:
    settings = part["settings"]
    title = f"{settings['questions']} questions, canvas {settings['max_new_tokens']} in blocks of {settings['block_length']}"
    table = _table(title, "variant", "passes", "positions", "seconds", "accuracy", "lost")
    for name, found in part["variants"].items():
        table.add_row(name, *_cost_cells(found), f"{found['accuracy']:.3f}", f"{found['accuracy_lost']:.3f}")
    console.print(table)


def print_long_prompts(part: dict[str, Any], console: Console) -> None:
    settings = part["settings"]
    title = f"{settings['parameters'] / 1e6:.0f} M random parameters ({settings['dtype']}), canvas {settings['max_new_tokens']}"
    table = _table(title, "prompt", "variant", "passes", "positions", "seconds")
    for length, variants in part["prompt_lengths"].items():
        for name, found in variants.items():
            table.add_row(length, name, *_cost_cells(found))
    console.print(table)


def _table(title: str, *columns: str) -> Table:
    return Table(*columns, title=title, caption="per answer (ratio to the first variant)", box=None, pad_edge=False)


def _cost_cells(found: dict[str, Any]) -> list[str]:
    numbers = {"passes": f"{found['passes']:.1f}", "positions": f"{found['positions']:.0f}", "seconds": f"{found['seconds']:.3f}"}
    return [f"{number} ({found[f'{name}_ratio']:.2f})" for name, number in numbers.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--model", help="a masked diffusion model that learnt the questions' facts")
    parser.add_argument("--questions", help="questions.jsonl, of which the test questions are asked")
    parser.add_argument("--max_new_tokens", type=int, default=32)
    parser.add_argument("--block_length", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=24)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "decoding.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    console, record = Console(), dict[str, Any]()
    if "questions" in args.parts:
        if not (args.model and args.questions):
            parser.error("the part 'questions' needs --model and --questions")
        try:
            asked = [q for q in read_questions(args.questions) if q.split == "test"]
            if not asked:
                raise InputError(f"{args.questions}: no test questions in it")
            options = {"max_new_tokens": args.max_new_tokens, "block_length": args.block_length, "batch_size": args.batch_size}
            record["questions"] = ask_questions(args.model, asked, **options)
        except InputError as error:
            parser.error(str(error))
        print_questions(record["questions"], console)
    if "long_prompts" in args.parts:
        record["long_prompts"] = long_prompts()
        print_long_prompts(record["long_prompts"], console)
    write_json(args.output, record | environment())


if __name__ == "__main__":
    main()
