"""Every grid in studies/ parses, and its cells are what `demask train` would take."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console

from demask.stages.grid import expand, read_study
from demask.stages.study import study

STUDIES = sorted((Path(__file__).resolve().parents[2] / "studies").glob("*.yaml"))


def test_there_are_studies() -> None:
    assert {path.stem for path in STUDIES} >= {"tiny", "tiny_ratio", "tiny_scale", "tiny_design", "paper_main", "paper_math"}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_cells(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = read_study(path)
    monkeypatch.chdir(tmp_path)  # the paper's data are not there: their names stand for them
    cells = expand(read, tmp_path)
    assert len({cell.hash for cell in cells}) == len(cells), "no cell twice"
    used = {cell.axes["method"] for cell in cells}
    assert used == set(read.methods), "no method that no cell uses"
    assert {cell.axes["data"] for cell in cells} == set(read.data)
    assert read.about.endswith(("?", "."))


@pytest.mark.parametrize("path", [path for path in STUDIES if path.stem.startswith("tiny")], ids=lambda path: path.stem)
def test_dry_run(path: Path, tmp_path: Path) -> None:
    """What it will cost is written down in FLOPs: here, at some 1e11 a second on each of two cores, at most an hour and a half."""
    console = Console(record=True, width=200, quiet=True)
    counts = study(path, tmp_path, dry_run=True, console=console)
    assert counts["planned"] == len(expand(read_study(path), tmp_path))
