"""How much chance there is in the loss of one batch: mask ratios drawn once a batch, for each example, or stratified with exact counts.

    python benchmarks/diffusion_variance.py [--model FOLDER] [--output benchmarks/results/diffusion_variance.json]

The model, the rows (statements of the generated world) and the weights (1/t) stay the same, only masks and ratios are drawn anew for each
batch. All three estimate the same bound; the smaller the standard deviation, the less of a step is noise. Independent masks at small
ratios are rare and weigh much, which gives "batch" above all a heavy tail: its mean settles slowly, mostly from below, and its errors are
rough. A left-to-right model is read bidirectionally, with its logits shifted, as training would start from it.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any, Literal

import torch

from demask.chat_format import ChatFormat
from demask.corpora import world
from demask.losses import target_nll, weighted_sum
from demask.models.family import family, make_bidirectional, predicts_next
from demask.models.load import load_config, load_model, load_tokenizer, model_folder
from demask.models.mask_token import mask_candidates
from demask.objectives.diffusion import Diffusion
from demask.runs import environment
from demask.schedule import Schedule
from demask.types import write_json

METHODS: tuple[Literal["batch", "example", "stratified"], ...] = ("batch", "example", "stratified")


def losses(model: Any, chat: ChatFormat, objective: Diffusion, schedule: Schedule) -> torch.Tensor:
    """(steps,) float64: the loss of each batch, in nats a token."""
    size, values = schedule.batch_size, []
    for step in range(schedule.steps):
        rows = [schedule[step * size + slot] for slot in range(size)]
        batch = objective.collate(rows, chat, schedule.seed)
        with torch.no_grad():
            nll_N = target_nll(model, batch, predicts_next(model.config))
        values.append(weighted_sum(nll_N, batch).item() / int(batch["normaliser"].sum()))
    return torch.tensor(values, dtype=torch.float64)


def summary(values: torch.Tensor) -> dict[str, float]:
    """Mean and standard deviation with their standard errors; the latter's from the fourth moment, since these tails are heavy."""
    n, mean, std = len(values), values.mean().item(), values.std().item()
    kurtosis = ((values - mean) ** 4).mean().item() / std**4
    std_error = std * math.sqrt(max(kurtosis - 1, 0) / (4 * n))
    return {"mean": mean, "mean_error": std / math.sqrt(n), "std": std, "std_error": std_error}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record that is written: settings, surroundings and what was found by method."""
    name = model_folder(args.model)
    config, chat = load_config(name), ChatFormat(load_tokenizer(name))
    adapted = family(config) == "causal"
    if adapted:
        make_bidirectional(config, shifted_logits=True)
    model = load_model(name, config=config).eval()
    documents, _ = world.statement_corpus(0, n=args.batch_size)
    methods: dict[str, dict[str, float]] = {}
    for method in METHODS:
        objective = Diffusion(mask_candidates(chat.tokenizer)[0].id, mask_ratio_per=method)
        schedule = Schedule(objective.examples(documents, chat), steps=args.batches, batch_size=args.batch_size, seed=args.seed)
        start = time.perf_counter()
        methods[method] = summary(losses(model, chat, objective, schedule))
        methods[method]["seconds"] = round(time.perf_counter() - start, 1)
    for found in methods.values():
        found["std_to_example"] = found["std"] / methods["example"]["std"]
    settings: dict[str, Any] = {"model": args.model, "adapted": adapted}
    settings |= {"documents": "world statements, seed 0", "format": "raw", "mask_ratio": [0.0, 1.0], "loss_weights": "1/t"}
    settings |= {"batch_size": args.batch_size, "batches": args.batches, "seed": args.seed, "dtype": "float32"}
    return {"settings": settings, "methods": methods, **environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny/causal", help="folder, hub name or embedded model")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "diffusion_variance.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    record = measure(args)
    write_json(args.output, record)
    print(f"{'ratio per':12} {'mean':>16} {'std':>16} {'to example':>11} {'seconds':>8}")
    for method, found in record["methods"].items():
        mean, std = (f"{found[key]:.3f} ± {found[f'{key}_error']:.3f}" for key in ("mean", "std"))
        print(f"{method:12} {mean:>16} {std:>16} {found['std_to_example']:>11.2f} {found['seconds']:>8.1f}")


if __name__ == "__main__":
    main()
