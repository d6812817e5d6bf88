"""The training step on a CPU with and without huge pages (`THP_MEM_ALLOC_ENABLE`, which the `demask` command sets): seconds and memory.

    python benchmarks/huge_pages.py [--rounds 3] [--steps 3]

Demask's step of benchmarks/train_step.py, in a process of its own each time, with and without in turns, on one thread. Seconds are
processor time; a ratio is that of one round, shown as median [lowest, highest]. Linux, where
/sys/kernel/mm/transparent_hugepage/enabled says "madvise" or "always". Writes benchmarks/results/huge_pages.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from demask.runs import environment
from demask.types import write_json

HERE = Path(__file__).resolve().parent
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
SHAPES = [("100m", "statements", 16), ("100m", "articles", 8), ("5m", "statements", 16)]
CHILD = """
import json, logging, sys, warnings
import torch
import train_step
warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)
torch.set_num_threads(1)
size, kind, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
seconds, memory, _ = train_step.Case("demask", size, kind, batch, batch, steps, "cpu").run("ours", seed=0)
print(json.dumps([sum(seconds) / steps, memory / 2**20]))
"""


def step(shape: tuple[str, str, int], steps: int, huge: bool) -> list[float]:
    """[seconds a step, MiB of peak memory above weights and optimiser state]"""
    values = os.environ | {"THP_MEM_ALLOC_ENABLE": str(int(huge)), "PYTHONPATH": f"{HERE}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    command = [sys.executable, "-c", CHILD, *map(str, shape), str(steps)]
    return json.loads(subprocess.run(command, env=values, stdout=subprocess.PIPE, text=True, check=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    for shape in SHAPES:
        rounds = [{huge: step(shape, args.steps, huge) for huge in ((True, False) if n % 2 else (False, True))} for n in range(args.rounds)]
        ratios = sorted(found[False][0] / found[True][0] for found in rounds)
        name = " ".join(map(str, shape))
        results[name] = {
            "seconds": {kind: [round(found[huge][0], 4) for found in rounds] for kind, huge in (("without", False), ("with", True))},
            "speed": {"median": round(median(ratios), 3), "range": [round(ratios[0], 3), round(ratios[-1], 3)]},
            "memory_mib": {kind: round(median(found[huge][1] for found in rounds)) for kind, huge in (("without", False), ("with", True))},
        }
        print(name, json.dumps(results[name]), flush=True)
        settings = {"rounds": args.rounds, "steps": args.steps, "kernel": KERNEL.read_text().strip() if KERNEL.exists() else None}
        write_json(HERE / "results" / "huge_pages.json", {"settings": settings, "results": results, **environment()})


if __name__ == "__main__":
    main()
