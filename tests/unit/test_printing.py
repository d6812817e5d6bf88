"""Results on the terminal."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from demask.printing import print_by_data, print_new, print_results, print_retention, print_summary


def printed(rows: list[dict[str, Any]], labels: list[tuple[str, str]]) -> list[list[str]]:
    """The cells of the table's lines that hold any; columns are two spaces or more apart."""
    console = Console(file=StringIO(), width=200)
    print_summary("contains", labels, rows, console)
    title, *lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert title.strip() == "contains, with 95% intervals over runs and documents"
    return [re.split(r" {2,}", line.strip()) for line in lines if line.strip(" ─")]


SCORES = {"forward": 0.5, "forward_low": 0.25, "forward_high": 0.754}
ROW = {"runs": 2, **SCORES, "retained_before": 0.9, "retained": 0.8, "flops": 1.31e12, "selected_on": "last"}


def test_a_line_for_each_configuration_below_its_data_set() -> None:
    untrained = {"runs": 1, "retained": 0.7, "flops": 0.0, "selected_on": ""}
    labels = [("statements", "[bold]ar"), ("[red]wiki", "book"), ("statements", "demask, mask_ratio 0.1 0.9")]
    assert printed([ROW, untrained, ROW], labels) == [
        ["method", "runs", "forward", "backward", "retained", "FLOPs"],
        ["statements"],
        ["[bold]ar", "2", "0.50 (0.25-0.75)", "0.90 -> 0.80", "1.3e+12"],
        ["demask, mask_ratio 0.1 0.9", "2", "0.50 (0.25-0.75)", "0.90 -> 0.80", "1.3e+12"],
        ["[red]wiki"],
        ["book", "1", "0.70"],
    ]


def test_what_is_kept_has_a_column_where_it_was_measured() -> None:
    shown = printed([ROW | {"kept": 0.987}, ROW | {"retained": 0.25}], [("d", "m")] * 2)
    assert shown[0][-3:] == ["retained", "kept", "FLOPs"]
    assert [line[3:5] for line in shown[2:]] == [["0.90 -> 0.80", "0.99"], ["0.90 -> 0.25", "1.3e+12"]]


def test_what_a_run_knew(capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        when: {"questions": {"n": 9, "contains": {"mean": mean, "low": 0.5, "high": 0.75}}}
        for when, mean in (("before", 0.9), ("after", 0.6))
    }
    print_retention(parts | {"kept": {"n": 8, "mean": 0.625, "low": 0.25, "high": 1.0}})
    assert capsys.readouterr().out.splitlines() == [
        "what it knew: 0.90 of 9 questions before, 0.60 (0.50-0.75) after",
        "kept: 0.62 (0.25-1.00) of the 8 questions that it answered right before",
    ]


def test_selection_is_told_only_where_it_was_on_test() -> None:
    labels = [("d", "m")] * 4
    rows = [ROW | {"selected_on": on} for on in ("validation", "last", "")]
    assert printed(rows, labels[:3])[0][-1] == "FLOPs"
    shown = printed([*rows, ROW | {"selected_on": "test"}], labels)
    assert [line[-1] for line in shown] == ["selected on", "d", "validation", "last", "1.3e+12", "test"]


def test_before_and_after_stand_in_the_summary() -> None:
    told = ROW | {"forward_before": 0.1, "forward_new": 0.45, "backward_new": 0.3}
    assert printed([told, ROW], [("d", "m"), ("d", "n")]) == [
        ["method", "runs", "forward", "backward", "not known before", "retained", "FLOPs"],
        ["d"],
        ["m", "2", "0.10 -> 0.50 (0.25-0.75)", "0.45 0.30", "0.90 -> 0.80", "1.3e+12"],
        ["n", "2", "0.50 (0.25-0.75)", "0.90 -> 0.80", "1.3e+12"],
    ]


def test_before_and_after_of_a_training(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def results(mean: float) -> dict[str, Any]:
        cell = {"n": 4, **{key: {"mean": mean, "low": 0.25, "high": 1.0} for key in ("rouge1_recall", "contains")}}
        return {"by_direction": {"forward": cell}, "by_group": {"g": {"forward": cell}}}

    monkeypatch.setenv("COLUMNS", "120")
    print_results(results(0.75), results(0.125))
    said = capsys.readouterr().out
    assert said.count("0.12 -> 0.75 (0.25-1.00)") == 4
    print_results(results(0.75))
    assert "->" not in capsys.readouterr().out
    print_new({"forward": 0.5, "forward_new": 0.25, "forward_new_n": 4, "backward_new": 1.0, "backward_new_n": 1200})
    print_new({"forward": 0.5})
    assert (
        capsys.readouterr().out
        == "of the questions that the base could not answer: forward 0.25 of 4, backward 1.00 of 1,200 (ROUGE-1 recall)\n"
    )


def test_what_it_knew(capsys: pytest.CaptureFixture[str]) -> None:
    """By what is right; records of an earlier version have containment alone."""
    old = {"questions": {"n": 4, "contains": {"mean": 0.5, "low": 0.2, "high": 0.8}}}
    new = {"questions": {**old["questions"], "right": {"mean": 0.25, "low": 0.1, "high": 0.4}}}
    print_retention({"before": new, "after": new})
    print_retention({"before": old, "after": new})
    assert capsys.readouterr().out.splitlines() == [
        "what it knew: 0.25 of 4 questions before, 0.25 (0.10-0.40) after",
        "what it knew: 0.50 of 4 questions before, 0.50 (0.20-0.80) after",
    ]


def test_numbers_are_not_broken_on_a_narrow_terminal() -> None:
    console = Console(file=StringIO(), width=40)
    print_by_data(("method", "tokens", "time"), [("d", ["a method with a long name", "1,234,567", "12.5 min"])], console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1,234,567" in said
    assert "12.5 min" in said
    assert max(map(len, said.splitlines())) <= 40
