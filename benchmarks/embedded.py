"""Fine-tuning the embedded model with this version and with an earlier one: seconds a step, and the losses.

    git worktree add /tmp/earlier 3d5dd09
    python benchmarks/embedded.py /tmp/earlier [--rounds 5] [--steps 40]

Both train on 60 statements of the embedded world as the quickstart does (windows under demask, a fifth of rehearsal, 32 rows), each in a
process of its own, in turns, on one thread. Seconds are processor time of a step, without the first five; a ratio is that of one round,
shown as median [lowest, highest]. Writes benchmarks/results/embedded.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from demask.corpora import world
from demask.runs import environment
from demask.types import write_documents, write_json

HERE = Path(__file__).resolve().parent.parent
OBJECTIVES = {"autoregressive": [], "demask": ["--mask_pattern", "window", "--mask_ratio_per", "example"]}
# Runs in either version, of which it uses the command line and what transformers calls.
CHILD = """
import json, sys, time
import torch, transformers.trainer
from transformers import TrainerCallback
torch.set_num_threads(1)
found = {"seconds": [], "losses": []}
class Timer(TrainerCallback):
    def on_step_begin(self, *args, **kwargs):
        self.start = time.process_time()
    def on_step_end(self, *args, **kwargs):
        found["seconds"].append(time.process_time() - self.start)
    def on_log(self, args, state, control, logs=None, **kwargs):
        found["losses"] += [logs["loss"]] if "loss" in logs else []
transformers.trainer.DEFAULT_CALLBACKS.append(Timer)
from demask.cli import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert not end.code, end.code
json.dump(found, open(sys.argv[1], "w"))
"""


def run(code: Path, objective: str, data: Path, steps: int) -> dict[str, Any]:
    """{"seconds": each step's, "losses": those logged} of a run by the version in the folder `code`."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        flags = ["--documents", str(data / "documents.jsonl"), "--replay", str(data / "rehearsal.jsonl"), "--replay_share", "0.2"]
        flags += ["--objective", objective, *OBJECTIVES[objective], "--seed", "1", "--max_steps", str(steps), "--learning_rate", "3e-4"]
        flags += ["--per_device_train_batch_size", "32", "--gradient_accumulation_steps", "1", "--lr_scheduler_type", "linear"]
        flags += ["--logging_steps", "10", "--save_strategy", "no", "--disable_tqdm", "true", "--output_dir", str(out / "run")]
        command = [sys.executable, "-c", CHILD, str(out / "found.json"), "train", *flags]
        path = {**os.environ, "PYTHONPATH": str(code / "src")}
        subprocess.run(command, env=path, cwd=folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return json.loads((out / "found.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("earlier", type=Path, help="folder of the earlier version")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--output", type=Path, default=HERE / "benchmarks" / "results" / "embedded.json")
    args = parser.parse_args()
    versions = {"earlier": args.earlier.resolve(), "ours": HERE}
    commit = subprocess.run(
        ["git", "-C", str(args.earlier), "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        write_documents(data / "documents.jsonl", world.statement_corpus(1, 60)[0][:60])
        write_documents(data / "rehearsal.jsonl", world.statement_corpus(2, 200)[0])
        for objective in OBJECTIVES:
            seconds: dict[str, list[float]] = {name: [] for name in versions}
            losses: dict[str, list[float]] = {}
            for round_ in range(args.rounds):
                for name in list(versions)[:: 1 if round_ % 2 else -1]:
                    found = run(versions[name], objective, data, args.steps)
                    seconds[name].append(sum(found["seconds"][5:]) / (args.steps - 5))
                    losses[name] = found["losses"]
            ratios = sorted(a / b for a, b in zip(seconds["earlier"], seconds["ours"], strict=True))
            results[objective] = {
                "seconds_per_step": {name: round(median(values), 4) for name, values in seconds.items()},
                "speed_over_earlier": {"median": round(median(ratios), 3), "range": [round(ratios[0], 3), round(ratios[-1], 3)]},
                "losses": losses,
            }
            print(objective, json.dumps(results[objective]), flush=True)
    settings = {"rounds": args.rounds, "steps": args.steps, "earlier": commit}
    write_json(args.output, {"settings": settings, "results": results, **environment()})


if __name__ == "__main__":
    main()
