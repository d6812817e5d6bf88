"""What docs/results.md shows of a study: its pictures as SVG files, and its tables as Markdown on the terminal.

python studies/figures.py runs/tiny_ratio --output_dir docs --pictures ratios
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from demask.stages.results import collect
from demask.stages.view import view
from demask.types import DIRECTIONS, replacing

PICTURES = ("bars", "steps", "flops", "ratios")


def line(row: dict[str, Any]) -> str:
    """A row of the Markdown table."""

    def shown(name: str) -> str:
        if name not in row:
            return ""
        low, high = (f"{row[name + end]:.2f}".replace("0.", ".") for end in ("_low", "_high"))
        return f"{row[name]:.2f} ({low} to {high})".replace("0.", ".", 1)

    kept = f"{row['retained_before']:.2f} → {shown('retained')}".replace("0.", ".", 1) if "retained_before" in row else shown("retained")
    text = f"{row['text_nll_before']:.2f} → {row['text_nll']:.2f}" if "text_nll_before" in row else ""
    cost = f"{row['flops'] / 1e12:.1f}" if row["flops"] else ""
    return f"| {row['label']} | {row['runs']} | " + " | ".join([*map(shown, (*DIRECTIONS, "gap")), kept, text, cost]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--output_dir", type=Path, help="where the pictures go")
    parser.add_argument("--pictures", nargs="*", default=[], choices=PICTURES)
    args = parser.parse_args()
    for number, section in enumerate(view(collect([args.folder]))["sections"], start=1):
        print(f"\n{section['data']}: {section['verdict']}\n")
        print("| method | runs | forward | backward | gap | old knowledge | text loss | TFLOP |\n|---|---|---|---|---|---|---|---|")
        print("\n".join(map(line, section["rows"])))
        for name in args.pictures:
            if section[name] and args.output_dir:
                with replacing(args.output_dir / f"{args.folder.name}_{name}_{number}.svg") as file:
                    file.write(str(section[name]))


if __name__ == "__main__":
    main()
