"""What passes before something happens: imports, help, a dry run, the first training step.

    python benchmarks/startup.py [--repeats 5]

Each is a new process, one after the other, `repeats` times behind a first time that does not count (files are read from the disk once);
seconds of the processor (median and range; other programs' turns do not count) and elapsed ones, and the processor's over those of
`import torch, transformers` in the same turn. Training is that of the embedded model on 60 statements; its first step ends the process.
One thread, no network. Writes benchmarks/results/startup.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from demask.corpora import world
from demask.runs import environment
from demask.types import write_documents, write_json

BASE = "import torch, transformers"
FIRST_STEP = """
import os, sys
from demask.cli import main
from transformers.trainer_callback import DefaultFlowCallback
DefaultFlowCallback.on_step_end = lambda *args, **kwargs: os._exit(0)
main(sys.argv[1:])
"""


def commands(folder: str) -> dict[str, list[str]]:
    train = ["train", "--documents", f"{folder}/documents.jsonl", "--output_dir"]
    return {
        BASE: ["-c", BASE],
        "import demask": ["-c", "import demask"],
        "demask --help": ["-m", "demask", "--help"],
        "demask eval --help": ["-m", "demask", "eval", "--help"],
        "demask train --help": ["-m", "demask", "train", "--help"],
        "demask train --dry_run": ["-m", "demask", *train, f"{folder}/dry", "--dry_run"],
        "demask train, first step": ["-c", FIRST_STEP, *train, f"{folder}/{{turn}}"],
    }


def seconds(command: list[str]) -> tuple[float, float]:
    """(the processor's, elapsed) of a process and what it waits for. Raises RuntimeError where it fails."""
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    with tempfile.TemporaryFile() as said:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *command], stdout=said, stderr=said, env=variables)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{command} ended with {process.returncode}: {said.read().decode()[-2000:]}")
    return usage.ru_utime + usage.ru_stime, elapsed


def measure(repeats: int) -> dict[str, Any]:
    """By command: its seconds, and its processor's over the base's in the same turn."""
    taken: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        write_documents(Path(folder) / "documents.jsonl", world.statement_corpus(1, 60)[0])
        for turn in range(repeats + 1):
            for name, command in commands(folder).items():
                spent = seconds([part.replace("{turn}", str(turn)) for part in command])
                if turn:
                    taken.setdefault(name, []).append(spent)
    base = [processor for processor, _ in taken[BASE]]
    return {
        name: {
            "processor_seconds": _spread([processor for processor, _ in spent]),
            "elapsed_seconds": _spread([elapsed for _, elapsed in spent]),
            "over_imports": _spread([processor / other for (processor, _), other in zip(spent, base, strict=True)]),
        }
        for name, spent in taken.items()
    }


def _spread(values: list[float]) -> dict[str, Any]:
    return {"median": _round(median(values)), "range": [_round(min(values)), _round(max(values))]}


def _round(value: float) -> float:
    return float(f"{value:.3g}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "startup.json")
    args = parser.parse_args()
    found = measure(args.repeats)
    for name, spent in found.items():
        processor, elapsed, over = (spent[key] for key in ("processor_seconds", "elapsed_seconds", "over_imports"))
        print(
            f"{name:28} {processor['median']:6.2f} s {processor['range']} (elapsed {elapsed['median']:.2f}), {over['median']:.2f} x imports"
        )
    write_json(args.output, {"settings": {"repeats": args.repeats, "threads": 1}, "commands": found, **environment()})


if __name__ == "__main__":
    main()
