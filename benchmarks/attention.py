"""Which attention trains short rows faster on a CPU: transformers' "eager", or torch's fused kernel ("sdpa").

    python benchmarks/attention.py [--batches 20]

A forward and backward pass in bfloat16 autocast over the quickstart's batches (32 statements), by each embedded model, one thread. Both
take turns on every batch; seconds are processor time, medians over batches, and the ratio is the median of the batches' own ratios.
Writes benchmarks/results/attention.json.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from demask.chat_format import ChatFormat
from demask.comparison import METHODS
from demask.corpora import world
from demask.losses import target_nll, weighted_sum
from demask.models.load import load_model, load_tokenizer, model_folder
from demask.models.mask_token import choose_mask_token
from demask.objectives import OBJECTIVES
from demask.runs import environment
from demask.schedule import Schedule
from demask.types import write_json

KINDS = ("sdpa", "eager")
MODELS = {"demask": "tiny/causal", "diffusion": "tiny/diffusion"}


def measure(method: str, batches: int, rows: int = 32) -> dict[str, Any]:
    """Seconds a batch with each attention, after one batch that does not count, and the ratio of sdpa's to eager's."""
    folder = model_folder(MODELS[method])
    chat = ChatFormat(load_tokenizer(folder))
    kind = OBJECTIVES[METHODS[method].settings["objective"]]
    options = {name: value for name, value in METHODS[method].settings.items() if name in kind.__dataclass_fields__}
    objective = kind(choose_mask_token(chat.tokenizer).id, **options)
    schedule = Schedule(objective.examples(world.statement_corpus(1)[0], chat), steps=batches + 1, batch_size=rows)
    models = {name: load_model(folder, attn_implementation=name).train() for name in KINDS}
    seconds: dict[str, list[float]] = {name: [] for name in KINDS}
    lengths = []
    for step in range(batches + 1):
        batch = objective.collate([schedule[step * rows + slot] for slot in range(rows)], chat, schedule.seed)
        lengths.append(batch["input_ids"].shape[1])
        for name in KINDS if step % 2 else KINDS[::-1]:
            start = time.process_time()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = weighted_sum(target_nll(models[name], batch), batch)
            loss.backward()
            models[name].zero_grad()
            seconds[name].append(time.process_time() - start)
    counted = {name: values[1:] for name, values in seconds.items()}
    ratios = sorted(a / b for a, b in zip(counted["sdpa"], counted["eager"], strict=True))
    found = {name: round(median(values), 4) for name, values in counted.items()}
    return found | {
        "longest_row": max(lengths),
        "ratio": round(median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {method: measure(method, args.batches) for method in MODELS}
    write_json(args.output, {"settings": {"batches": args.batches, "rows": 32, "dtype": "bfloat16"}, "methods": results, **environment()})
    for method, found in results.items():
        print(f"{method:10} sdpa {found['sdpa']:.3f} s, eager {found['eager']:.3f} s, ratio {found['ratio']:.2f} {found['ratio_range']}")


if __name__ == "__main__":
    main()
