"""The quickstart over several seeds: what docs/results.md and the README show.

    python studies/quickstart_seeds.py --seeds 1 2 3 --output_dir runs/seeds --csv studies/results/quickstart_seeds.csv

Every row of the CSV is a method, kind of statement and direction on one seed: questions, exact containment with its 95% interval, tokens
and processor seconds. Finished seeds are kept, so the command can be repeated.
"""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

from demask.comparison import METRIC, QuickstartSettings
from demask.quickstart import quickstart
from demask.types import replacing


def rows(seed: int, comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines of one seed's comparison: all questions, then by kind of statement."""
    lines = []
    for method in comparison["methods"]:
        results = method["results"]
        for group, directions in {"all": results["by_direction"], **results["by_group"]}.items():
            for direction, cell in directions.items():
                line = {"seed": seed, "method": method["name"], "group": group, "direction": direction, "n": cell["n"]}
                line |= {key: round(cell[METRIC][key], 4) for key in ("mean", "low", "high")}
                lines.append(line | {"steps": method["steps"], "tokens": method["tokens"], "cpu_seconds": method["seconds"]})
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--csv", type=Path, required=True)
    args = parser.parse_args()
    lines = []
    for seed in args.seeds:
        comparison = quickstart(args.output_dir / str(seed), QuickstartSettings(seed=seed))
        if comparison.get("status") == "interrupted":
            raise SystemExit(130)
        lines += rows(seed, comparison)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    with replacing(args.csv) as file:
        file.write(text.getvalue())
    for method in dict.fromkeys(line["method"] for line in lines):
        for group in dict.fromkeys(line["group"] for line in lines):
            means = []
            for direction in ("forward", "backward"):
                found = [line["mean"] for line in lines if (line["method"], line["group"], line["direction"]) == (method, group, direction)]
                means.append(f"{direction} {sum(found) / len(found):.3f} ({', '.join(f'{value:.2f}' for value in found)})")
            print(f"{method:8} {group:18} {'  '.join(means)}")


if __name__ == "__main__":
    main()
