"""What a batch costs before the model sees it: microseconds a row, and the collator's share of a training step.

    python benchmarks/collate.py [--repeats 30]

Documents of 30, 120 and 500 tokens, batches of 16 rows, a new mask at every visit; processor time of one thread (median and
quartiles over batches), of reading the rows from the schedule and collating them. The share is that of the same objective's step in
results/train_step_cpu.json (100 M parameters), whose rows have the length given there. Writes benchmarks/results/collate.json.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

import torch

from demask.chat_format import ChatFormat
from demask.corpora import world
from demask.models.load import load_tokenizer, model_folder
from demask.models.mask_token import mask_candidates
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.runs import environment
from demask.schedule import Schedule
from demask.types import Document, write_json

LENGTHS, ROWS, DOCUMENTS = (30, 120, 500), 16, 60
RESULTS = Path(__file__).parent / "results"
# The step that rows of about this length are part of (benchmarks/train_step.py), and its objective.
STEPS = {30: "100m statements", 120: "100m articles"}
OBJECTIVE_OF = {"demask": "demask", "demask, windows": "demask", "autoregressive": "autoregressive", "diffusion": "diffusion"}


def documents_of(length: int, chat: ChatFormat) -> list[Document]:
    """Documents of `length` tokens: biographies, joined."""
    ids = chat.content(" ".join(document.text for document in world.biography_corpus(1, 500)[0]))
    return [Document(str(i), chat.tokenizer.decode(ids[i * length : (i + 1) * length])) for i in range(DOCUMENTS)]


def microseconds_a_row(objective: Any, documents: list[Document], chat: ChatFormat, repeats: int) -> dict[str, float]:
    schedule = Schedule(objective.examples(documents, chat), steps=repeats + 1, batch_size=ROWS)
    spent = []
    for step in range(repeats + 1):
        start = time.process_time()
        objective.collate([schedule[step * ROWS + slot] for slot in range(ROWS)], chat, schedule.seed)
        spent.append((time.process_time() - start) / ROWS * 1e6)
    low, middle, high = quantiles(spent[1:], n=4)
    return {"median": round(middle, 1), "quartiles": [round(low, 1), round(high, 1)]}  # type: ignore[dict-item]


def share_of_step(name: str, length: int, microseconds: float) -> float | None:
    """Of the step of our trainer on the same batch; None without its result."""
    path = RESULTS / "train_step_cpu.json"
    cases = json.loads(path.read_text())["cases"] if path.exists() else {}
    case = cases.get(f"{STEPS.get(length)} {OBJECTIVE_OF[name]}")
    if case is None:
        return None
    seconds = sorted(case["ours"]["seconds_per_step"])[len(case["ours"]["seconds_per_step"]) // 2]
    return round(case["batch"] * microseconds / 1e6 / seconds, 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--output", type=Path, default=RESULTS / "collate.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    chat = ChatFormat(load_tokenizer(model_folder("tiny/causal")))
    mask = mask_candidates(chat.tokenizer)[0].id
    objectives = {
        "demask": Demask(mask),
        "demask, windows": Demask(mask, mask_pattern="window"),
        "autoregressive": Autoregressive(),
        "diffusion": Diffusion(mask),
    }
    found: dict[str, Any] = {}
    for name, objective in objectives.items():
        for length in LENGTHS:
            row = microseconds_a_row(objective, documents_of(length, chat), chat, args.repeats)
            found.setdefault(name, {})[str(length)] = row | {"share_of_step": share_of_step(name, length, row["median"])}
            share = found[name][str(length)]["share_of_step"]
            print(f"{name:16} {length:4} tokens {row['median']:8.1f} us a row" + (f", {share:.2%} of a step" if share else ""))
    write_json(args.output, {"settings": {"rows": ROWS, "repeats": args.repeats}, "microseconds_a_row": found, **environment()})


if __name__ == "__main__":
    main()
