"""What runs, studies or the quickstart came to, as one page that opens offline, and as a table for a spreadsheet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from demask.stages.results import Collection, collect
from demask.stages.table import COSTS, KEPT, rounded
from demask.stages.view import plain, view
from demask.types import DIRECTIONS, InputError, replacing

_KEPT = ("retained_before", "retained", "retained_low", "retained_high", *KEPT, "text_nll_before", "text_nll")
# A direction's columns, with the end of its number's name in `table.accuracy`.
_SCORES = {"n": "_n", "mean": "", "low": "_low", "high": "_high", "before": "_before", "new": "_new", "n_new": "_new_n"}
_SHOWN = ("data", "label", "group", "direction", "runs", "n", "metric", "mean", "low", "high", "before", "new", "n_new")
CSV_COLUMNS = (*_SHOWN, *_KEPT, *COSTS, "selected_on")


def report(paths: Sequence[str | os.PathLike[str]], output_dir: str | os.PathLike[str] | None = None) -> Path:
    """Write report.html and report.csv about all finished runs in the folders `paths`, each whole or not at all; returns the page's path.

    A folder is that of a run, of a study, of the quickstart, or holds such of runs. `output_dir` is the folder itself where only one is
    given. Raises InputError for a folder without a finished run, or without a place to write to.
    """
    if not paths:
        raise InputError("report: give at least one folder")
    if output_dir is None and len(paths) > 1:
        raise InputError("output_dir: say where a report about several folders is to be written")
    return write_report(Path(output_dir if output_dir is not None else paths[0]), collect(paths))


def write_report(folder: Path, collection: Collection) -> Path:
    """`folder`/report.html and report.csv: a line for each configuration, group ("all" and each one) and direction."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir: '{folder}' is a file, expected a folder")
    shown = view(collection)
    page = _environment().get_template("report.html.j2").render(shown)
    lines = StringIO()
    table = csv.DictWriter(lines, CSV_COLUMNS, lineterminator="\n")
    table.writeheader()
    table.writerows(map(rounded, _csv_rows(shown)))
    try:
        for name, text in (("report.csv", lines.getvalue()), ("report.html", page)):
            with replacing(folder / name) as file:
                file.write(text.encode("utf-8", "replace").decode())  # JSON may hold half a character ("\\ud800"), a file can't
    except OSError as error:
        raise InputError(f"output_dir: '{folder}' can't be written ({error.strerror})") from None
    return folder / "report.html"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": _percent, "seconds": _seconds, "plain": plain, "scaled": _scaled}
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:z.1f}"  # a gap may round to zero from below


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f}" if seconds >= 10 or seconds == 0 else f"{seconds:.1f}"


def _scaled(number: float) -> str:
    """A count in three digits and a thousand's word: 13.4 T."""
    rounded = float(f"{number:.3g}")  # first, for 999,999 is 1 M
    for size, name in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if rounded >= size:
            return f"{rounded / size:.3g}\N{NO-BREAK SPACE}{name}"
    return f"{number:.0f}"


def _csv_rows(shown: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for section in shown["sections"]:
        for row in section["rows"]:
            shared = {"data": section["data"], "label": row["label"], "metric": shown["metric"], "runs": row["runs"]}
            shared |= {name: row[name] for name in (*_KEPT, *COSTS, "selected_on") if name in row}
            for group, scores in row["groups"].items():
                for direction in DIRECTIONS:
                    if direction in scores:
                        measured = {name: scores[direction + end] for name, end in _SCORES.items() if direction + end in scores}
                        yield shared | {"group": group, "direction": direction} | measured
