"""Finished runs read back from folders: what belongs together, what it is called, and every fault as one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from demask.scoring import METRICS
from demask.stages.results import Collection, Result, collect, configurations
from demask.types import InputError
from tests.results import PLAN, answered, pairs, write_lines, write_run, write_study


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(collection: Collection) -> list[tuple[str, str, int]]:
    """Of each configuration the data set, the label and the number of runs."""
    return [(c.data, c.label, len(c.runs)) for c in collection.configurations]


def with_right(lines: list[dict[str, Any]], *right: float) -> list[dict[str, Any]]:
    """The lines as they are read, of which the first ones' RIGHT is given and that of the others 0."""
    return [
        line | {"scores": line["scores"] | {"right": float(value)}}
        for line, value in zip(lines, [*right, *[0] * len(lines)][: len(lines)], strict=True)
    ]


# --- what is in a folder ------------------------------------------------------------------------------------------------------


def test_a_run() -> None:
    answers, known = pairs([1, 0], [0, 0]), [answered("old?", "mill", "mill")]
    training = {"learning_rate": 1e-3, "max_steps": 10, "seed": 0, "fp16": False}
    settings = {"objective": "demask", "questions": "q.jsonl", "documents": ["d.jsonl"], "replay": [], "select_on": "last", "dtype": None}
    write_run(Path("mine"), answers, known=known, config={"settings": settings, "training": training})
    found = collect(["mine"])
    assert (found.title, found.about, found.metric, found.verdict, found.unfinished) == ("mine", "", "contains", "", 0)
    assert told(found) == [("q.jsonl", "mine", 1)]
    # What is empty says nothing; of the Trainer's many arguments a few.
    assert found.settings == {
        "settings": {"objective": "demask", "questions": "q.jsonl", "documents": ["d.jsonl"], "select_on": "last"}
        | {"learning_rate": 1e-3, "max_steps": 10, "seed": 0}
    }
    (configuration,) = found.configurations
    (run,) = configuration.runs
    assert run.answers() == with_right(answers, 1, 0)
    assert run.known() == with_right(known, 1)
    assert run.before() == run.known_before() == []
    assert configuration.trained
    assert configuration.paper == ""


def test_a_run_is_named_by_its_folder_however_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(Path("mine"), settings={"documents": ["a.txt", "b.txt"]})
    monkeypatch.chdir("mine")
    assert told(collect(["."])) == [("a.txt, b.txt", "mine", 1)]


def test_questions_made_of_the_documents_are_named_by_them() -> None:
    write_run(Path("mine"), settings={"documents": ["a.txt"], "questions": "auto"})
    assert told(collect(["mine"])) == [("a.txt", "mine", 1)]


def test_a_run_that_was_asked_nothing() -> None:
    write_run(Path("mine"))
    (configuration,) = collect(["mine"]).configurations
    assert configuration.runs[0].answers() == configuration.runs[0].known() == []
    (Path("mine") / "answers.jsonl").write_text("\n")
    assert configuration.runs[0].answers() == []


def test_what_eval_writes_has_no_record() -> None:
    results = {"n": 1, "settings": {"model": "embedded"}, "retention": {"text": {"nll": 2.5}}}
    Path("asked").mkdir()
    Path("asked/results.json").write_text(json.dumps(results))
    write_lines(Path("asked/answers.jsonl"), [answered("who?", "Ann", "Ann")])
    found = collect(["asked"])
    assert told(found) == [("", "asked", 1)]
    assert found.settings == {"settings": {"model": "embedded"}}
    (run,) = found.configurations[0].runs
    assert not run.trained
    assert run.record["retention"] == {"after": {"text": {"nll": 2.5}}}
    assert "retention" not in run.record["results"]
    assert [line["prediction"] for line in run.answers()] == ["Ann"]


def test_a_study_with_cells_that_are_not_finished() -> None:
    cells: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
        ({"data": "few", "method": "ar", "seed": 1}, {"answers": pairs([1], [0])}),
        ({"data": "few", "method": "ar", "seed": 2}, None),
        ({"data": "few", "method": "demask", "seed": 1}, {"status": "running"}),
        ({"data": "few", "method": "ar", "seed": 3}, {}),
    ]
    labels = {"data": {"few": "six facts"}, "method": {"ar": "plain"}}
    said = {"title": "T", "about": "A", "verdict": "V", "metric": "token_f1", "settings": {"all runs": {"max_steps": 3}}}
    write_study(Path("s"), cells, labels=labels, paper={"few": "wiki"}, **said)
    found = collect(["s"])
    assert {name: getattr(found, name) for name in said} == said
    assert told(found) == [("six facts", "plain", 2)]
    assert found.unfinished == 2
    assert found.configurations[0].paper == "wiki"
    assert found.configurations[0].axes == {"data": "few", "method": "ar"}
    assert [run.axes["seed"] for run in found.configurations[0].runs] == ["1", "3"]


def test_a_folder_that_holds_runs() -> None:
    write_run(Path("runs/b"), settings={"documents": ["x"]})
    write_run(Path("runs/a"), plan=None)
    write_run(Path("runs/cut"), status="interrupted")
    write_lines(Path("runs/data/documents.jsonl"), [])
    Path("runs/notes.txt").write_text("mine")
    found = collect(["runs"])
    assert found.title == "runs"
    assert told(found) == [("", "a", 1), ("x", "b", 1)]
    assert found.unfinished == 1
    assert list(found.settings) == ["a: settings", "b: settings"]


def test_a_folder_that_holds_a_study() -> None:
    """The quickstart's has a record too, which has no answers of its own."""
    write_study(Path("runs/quick"), [({"data": "d", "method": "m"}, {}), ({"data": "d", "method": "n"}, None)], title="Q")
    write_run(Path("runs/quick"))
    write_run(Path("runs/single"))
    found = collect(["runs"])
    assert told(found) == [("Q: d", "m", 1), ("", "single", 1)]
    assert found.unfinished == 1


def test_several_folders() -> None:
    write_study(Path("s"), [({"data": "d", "method": m}, {}) for m in "mn"], settings={"all runs": {"a": 1}}, metric="token_f1")
    write_run(Path("one"), settings={"questions": "q.jsonl"})
    write_run(Path("two"), settings={"questions": "q.jsonl"})
    found = collect(["s", "one", "two", "one"])
    assert (found.title, found.metric) == ("3 results", "token_f1")  # one of them was given twice
    assert told(found) == [("A study: d", "m", 1), ("A study: d", "n", 1), ("q.jsonl", "one", 1), ("q.jsonl", "two", 1)]
    assert list(found.settings) == ["A study: all runs", "one: settings", "two: settings"]


def test_folders_of_one_name_are_told_by_their_path() -> None:
    for parent in ("x", "y"):
        write_run(Path(parent) / "run")
        write_study(Path(parent) / "s", [({"data": "d", "method": "m"}, {})])
    assert told(collect(["x/run", "y/run"])) == [("", "run (x/run)", 1), ("", "run (y/run)", 1)]
    assert told(collect(["x/s", "y/s"])) == [("A study (x/s): d", "m", 1), ("A study (y/s): d", "m", 1)]


# --- what runs are called -----------------------------------------------------------------------------------------------------


def labels(*axes: dict[str, str], named: dict[str, dict[str, str]] | None = None) -> list[str]:
    results = [Result(Path(str(i)), dict(one), {}) for i, one in enumerate(axes)]
    return [c.label for c in configurations(results, named or {}, {})]


def test_a_label_names_what_differs_within_its_data_set() -> None:
    base = {"data": "a", "method": "demask", "lr": "0.1", "steps": "9"}
    assert labels(base, base | {"lr": "0.2"}) == ["demask, lr 0.1", "demask, lr 0.2"]
    assert labels(base, base | {"method": "ar"}) == ["demask", "ar"]
    assert labels(base, base | {"seed": "2"}) == ["demask"]
    # Two learning rates, but in each data set one.
    assert labels(base, base | {"data": "b", "lr": "0.2"}) == ["demask", "demask"]
    # An untrained cell has no learning rate: there the others' is told.
    assert labels(base, {"data": "a", "method": "book"}) == ["demask, lr 0.1, steps 9", "book"]
    assert labels(base, named={"method": {"demask": "Masked fine-tuning"}, "data": {"demask": "no"}}) == ["Masked fine-tuning"]
    assert labels({"data": "a"}) == ["all runs"]


def test_values_of_axes_are_text() -> None:
    cells: list[Any] = [
        ({"data": "d", "method": "m", "mask_ratio": value, "bf16": True, "seed": 1}, {}) for value in (0.5, [0.1, 0.9], None, 0.5)
    ]
    write_study(Path("s"), cells)
    found = collect(["s"]).configurations
    assert [(c.label, len(c.runs)) for c in found] == [("m, mask_ratio 0.5", 2), ("m, mask_ratio 0.1 0.9", 1), ("m, mask_ratio None", 1)]
    assert found[0].axes["bf16"] == "True"


def test_labels_may_be_numbers() -> None:
    write_study(Path("s"), [({"data": "d", "method": "m"}, {})], labels={"data": {"d": 4}, "method": {"m": 5}})
    assert told(collect(["s"])) == [("4", "5", 1)]


# --- what a run says of itself ------------------------------------------------------------------------------------------------


def run(**record: Any) -> Result:
    return Result(Path("x"), {}, record)


def test_the_curve_counts_flops_by_steps() -> None:
    points = [{"step": 0, "forward_contains": 0.0}, {"step": 5, "forward_contains": 0.5}, {"epoch": 1.0}]
    assert run(plan={"flops": 2e12, "steps": 10}, curve=points).curve() == [
        {"flops": 0.0, "step": 0, "forward_contains": 0.0},
        {"flops": 1e12, "step": 5, "forward_contains": 0.5},
    ]
    assert run(plan={"flops": 2e12, "steps": 10}).curve() == []
    assert run(curve=points).curve() == run(plan={"flops": 1, "steps": 0}, curve=points).curve() == []


def test_how_the_checkpoint_was_selected() -> None:
    def selected(on: str, curve: list[Any], plan: dict[str, Any] | None = PLAN) -> str:
        config = {"settings": {"select_on": on}}
        return run(config=config, curve=curve, **({"plan": plan} if plan else {})).selected_on

    point = [{"step": 1}]
    assert [selected(on, point) for on in ("validation", "test", "last")] == ["validation", "test", "last"]
    assert selected("test", []) == "", "without a question asked during training there was nothing to select by"
    assert selected("test", point, plan=None) == "", "nothing was trained"


# --- faults -------------------------------------------------------------------------------------------------------------------

NO_JSON = "not valid JSON (Expecting property name enclosed in double quotes at column 2)"
CELL = {"axes": {"data": "d", "method": "m"}, "folder": "x"}
INDEX = {"title": "T", "cells": [CELL]}
FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    # name: (files below f and what they hold, what is said)
    "broken study": ({"study.json": "{nope"}, f"f/study.json:1: {NO_JSON}"),
    "study a list": ({"study.json": []}, "f/study.json: expected a JSON object, found a list"),
    "no title": ({"study.json": {"cells": []}}, "f/study.json: field 'title' is missing"),
    "title a number": ({"study.json": INDEX | {"title": 4}}, "f/study.json: field 'title' must be a string, found a number"),
    "about a list": ({"study.json": INDEX | {"about": ["x"]}}, "f/study.json: field 'about' must be a string, found a list"),
    "no cells": ({"study.json": {"title": "T"}}, "f/study.json: field 'cells' must be a list, found null"),
    "metric": (
        {"study.json": INDEX | {"metric": "bleu"}},
        "f/study.json: field 'metric' must be one of rouge1_recall, exact_match, contains, token_f1, found 'bleu'",
    ),
    "metric a list": (
        {"study.json": INDEX | {"metric": ["contains"]}},
        "f/study.json: field 'metric' must be one of rouge1_recall, exact_match, contains, token_f1, found '['contains']'",
    ),
    "paper": (
        {"study.json": INDEX | {"paper": {"d": "news"}}},
        "f/study.json: field 'paper.d' must be one of name_description, biography, wiki, found 'news'",
    ),
    "labels": ({"study.json": INDEX | {"labels": {"data": 4}}}, "f/study.json: labels: field 'data' must be an object, found a number"),
    "settings": ({"study.json": INDEX | {"settings": []}}, "f/study.json: field 'settings' must be an object, found a list"),
    "cell": ({"study.json": INDEX | {"cells": [CELL, 4]}}, "f/study.json: cells[2]: expected a JSON object, found a number"),
    "cell without a folder": ({"study.json": INDEX | {"cells": [{"axes": {}}]}}, "f/study.json: cells[1]: field 'folder' is missing"),
    "axes": (
        {"study.json": INDEX | {"cells": [CELL | {"axes": "d"}]}},
        "f/study.json: cells[1]: field 'axes' must be an object, found a string",
    ),
    "a cell's record": ({"study.json": INDEX, "x/run.json": "{nope"}, f"f/x/run.json:1: {NO_JSON}"),
    "nothing finished": ({"study.json": INDEX}, "f: none of the study's 1 runs is finished"),
    "broken record": ({"run.json": "{nope"}, f"f/run.json:1: {NO_JSON}"),
    "record a list": ({"run.json": []}, "f/run.json: not a run's record (expected a JSON object, found a list)"),
    "plan": ({"run.json": {"status": "finished", "plan": 4}}, "f/run.json: field 'plan' must be an object, found a number"),
    "interrupted": ({"run.json": {"status": "interrupted"}}, "f: its run is interrupted, not finished"),
    "results a list": ({"results.json": []}, "f/results.json: expected a JSON object, found a list"),
    "no runs": ({"notes/a.txt": "mine"}, "f: holds no finished run (run.json, results.json or study.json)"),
    "only interrupted ones": (
        {"a/run.json": {"status": "failed"}},
        "f: holds no finished run (run.json, results.json or study.json)",
    ),
    "a run in it": ({"a/run.json": "{nope"}, f"f/a/run.json:1: {NO_JSON}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str) -> None:
    files, message = FAULTS[fault]
    for name, content in files.items():
        path = Path("f") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError) as raised:
        collect(["f"])
    assert str(raised.value) == message


def test_no_folder() -> None:
    write_run(Path("mine"))
    Path("a_file").write_text("")
    for path, message in (("gone", "gone: no such folder"), ("a_file", "a_file: is a file, expected a folder of results")):
        with pytest.raises(InputError) as raised:
            collect(["mine", path])
        assert str(raised.value) == message


ANSWER = answered("who?", "Ann", "Ann", "backward")
SCORES = dict.fromkeys(METRICS, 1.0)
BROKEN: dict[str, tuple[Any, str]] = {
    "no object": (4, "expected a JSON object, found a number"),
    "no question": ({"prediction": "x"}, "field 'answer' is missing"),
    "direction": (ANSWER | {"direction": "up"}, "field 'direction' must be one of forward, backward, found 'up'"),
    "document": (ANSWER | {"document": 4}, "field 'document' must be a string, found a number"),
    "no prediction": ({k: v for k, v in ANSWER.items() if k != "prediction"}, "field 'prediction' is missing"),
    "prediction": (ANSWER | {"prediction": 4}, "field 'prediction' must be a string, found a number"),
    "scores": (ANSWER | {"scores": 1.0}, "field 'scores' must be an object, found a number"),
    "scores missing": ({k: v for k, v in ANSWER.items() if k != "scores"}, "field 'scores' is missing"),
    "no scores": (ANSWER | {"scores": {}}, "field 'scores.rouge1_recall' must be a number from 0 to 1, found null"),
    "score": (ANSWER | {"scores": SCORES | {"contains": "1"}}, "field 'scores.contains' must be a number from 0 to 1, found \"1\""),
    "large": (ANSWER | {"scores": SCORES | {"contains": 1.5}}, "field 'scores.contains' must be a number from 0 to 1, found 1.5"),
    "NaN": (ANSWER | {"scores": SCORES | {"contains": float("nan")}}, "field 'scores.contains' must be a number from 0 to 1, found NaN"),
}


@pytest.mark.parametrize("name", ["answers", "known"])
@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_line_is_named(fault: str, name: str) -> None:
    line, message = BROKEN[fault]
    (found,) = collect([write_run(Path("mine"))]).configurations[0].runs
    write_lines(Path(f"mine/{name}.jsonl"), [ANSWER | {"prediction": ""}, line])
    with pytest.raises(InputError) as raised:
        getattr(found, name)()
    assert str(raised.value) == f"mine/{name}.jsonl:2: {message}"


def test_what_the_base_answered() -> None:
    """before.jsonl is read as answers.jsonl is; a run of an earlier version has none."""
    write_run(Path("mine"), pairs([1], [1]), before=pairs([1], [0]), known_before=[answered("old?", "mill", "a mill, a barn")])
    run = collect(["mine"]).configurations[0].runs[0]
    assert run.before() == with_right(pairs([1], [0]), 1)
    assert run.known_before()[0]["scores"]["right"] == 1


def test_right_is_told_by_all_answers_of_a_run() -> None:
    """Who says both names knows neither."""
    lines = [
        answered("Who keeps bees?", "Ann Ash", "Ann Ash or Bo Reed", "backward", "g", "a"),
        answered("Who mends boats?", "Bo Reed", "Bo Reed", "backward", "g", "b"),
    ]
    write_run(Path("mine"), lines)
    (run,) = collect(["mine"]).configurations[0].runs
    assert [(line["scores"]["rouge1_recall"], line["scores"]["right"]) for line in run.answers()] == [(1, 0), (1, 1)]
