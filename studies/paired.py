"""How much each method of a study is ahead of one of them, question by question and seed by seed, as Markdown on the terminal.

The intervals draw runs and documents anew, of differences on the same questions: narrower than those of each method by itself.

python studies/paired.py runs/tiny_design --against paper
"""

from __future__ import annotations

import argparse
from pathlib import Path

from demask.scoring import interval_over_runs
from demask.stages.results import DATA, METHOD, SEED, Configuration, collect
from demask.types import DIRECTIONS


def difference(one: Configuration, other: Configuration, direction: str, metric: str) -> tuple[float, float, float, int] | None:
    """Mean of `one` minus `other` with its 95% interval, and the number of seeds that both have; None where there is none."""
    values, clusters = [], []
    for run in one.runs:
        for reference in other.runs:
            if run.axes[SEED] == reference.axes[SEED]:
                scores = {(a["document"], a["question"]): a["scores"][metric] for a in reference.answers() if a["direction"] == direction}
                own = [a for a in run.answers() if a["direction"] == direction]
                # interval_over_runs takes values from 0 to 1
                values.append([(1 + a["scores"][metric] - scores[a["document"], a["question"]]) / 2 for a in own])
                clusters.append([a["document"] for a in own])
    if not values:
        return None
    low, high = interval_over_runs(values, clusters)
    mean = sum(sum(run) / len(run) for run in values) / len(values)
    return 2 * mean - 1, 2 * low - 1, 2 * high - 1, len(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--against", required=True, help="the method to compare with")
    args = parser.parse_args()
    found = collect([args.folder])
    print(f"| data | method | seeds | {' | '.join(DIRECTIONS)} | FLOPs |\n|---|---|---|---|---|---|")
    for configuration in found.configurations:
        same = {name: value for name, value in configuration.axes.items() if name != METHOD}
        [reference] = [c for c in found.configurations if c.axes == {**same, METHOD: args.against}]
        if configuration is reference:
            continue
        gains = [gain for way in DIRECTIONS if (gain := difference(configuration, reference, way, found.metric))]
        if not gains:
            continue
        cells = [f"{mean:+.2f} ({low:+.2f} to {high:+.2f})" for mean, low, high, _ in gains]
        flops = [c.runs[0].record["plan"]["flops"] for c in (configuration, reference)]
        print(f"| {same[DATA]} | {configuration.label} | {gains[0][3]} | {' | '.join(cells)} | {flops[0] / flops[1]:.2f} |")


if __name__ == "__main__":
    main()
