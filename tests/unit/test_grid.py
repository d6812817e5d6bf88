"""A study's file: what it expands to, what the name of a cell depends on, and what is refused."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from demask import paper
from demask.general import general_questions
from demask.stages.grid import RECORDED, Cell, expand, read_study
from demask.types import InputError, read_questions

STUDY: dict[str, Any] = {
    "title": "A study",
    "settings": {"max_steps": 6, "learning_rate": 0.001, "objective": "demask"},
    "data": {
        "few": {"corpus": "statements", "n": 4, "settings": {"max_steps": 8}},
        "mine": {"documents": "facts.jsonl", "questions": "questions.jsonl"},
    },
    "methods": {
        "ar": {"label": "plain", "objective": "autoregressive"},
        "demask": {"learning_rate": 0.002, "max_steps": 9},
        "book": {"context": "document"},
    },
    "grid": [{"data": ["few", "mine"], "method": ["ar", "demask"], "seed": [1, 2]}, {"data": ["few"], "method": ["book"], "seed": [1]}],
}


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("facts.jsonl").write_text('{"id": "ann", "text": "Ann keeps bees."}\n')
    Path("questions.jsonl").write_text('{"question": "Who keeps bees?", "answer": "Ann", "direction": "backward", "document": "ann"}\n')


def write(study: dict[str, Any]) -> Path:
    Path("study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    return Path("study.yaml")


def cells(**changes: Any) -> list[Cell]:
    return expand(read_study(write(STUDY | changes)), Path("out"))


def only(**changes: Any) -> Cell:
    """The one cell of demask on the user's documents, with changes to its settings."""
    grid = [{"data": ["mine"], "method": ["demask"], "seed": [1]}]
    return cells(grid=grid, settings=STUDY["settings"] | changes)[0]


def test_every_combination_is_a_cell() -> None:
    assert [tuple(cell.axes.values()) for cell in cells()] == [
        *[(data, method, seed) for data in ("few", "mine") for method in ("ar", "demask") for seed in (1, 2)],
        ("few", "book", 1),
    ]
    assert len({cell.hash for cell in cells()}) == 9


def test_the_later_setting_wins() -> None:
    found = {cell.name: cell.flags for cell in cells(grid=[{"data": ["few", "mine"], "method": ["ar", "demask"], "seed": [3]}])}
    assert {name: flags["max_steps"] for name, flags in found.items()} == {
        "data=few method=ar seed=3": 8,  # the data set's own
        "data=few method=demask seed=3": 9,  # the method's
        "data=mine method=ar seed=3": 6,
        "data=mine method=demask seed=3": 9,
    }
    (cell,) = cells(grid=[{"data": ["few"], "method": ["demask"], "max_steps": [10]}])
    assert cell.flags["max_steps"] == 10, "the grid's"
    assert cell.flags["seed"] == 0
    assert cell.flags["objective"] == "demask"
    assert cell.flags["learning_rate"] == 0.002


def test_a_generated_corpus_is_drawn_by_the_cell_s_seed() -> None:
    first, second = cells(grid=[{"data": ["few"], "method": ["ar"], "seed": [1, 2]}])
    texts = [Path(cell.flags["documents"][0]).read_text() for cell in (first, second)]
    assert texts[0] != texts[1]
    assert all(text.count("\n") == 4 for text in texts)
    assert {q.document for q in read_questions(first.flags["questions"])} == {f"w1-{i}" for i in range(4)}
    fixed = STUDY["data"] | {"few": STUDY["data"]["few"] | {"seed": 5}}
    again = cells(data=fixed, grid=[{"data": ["few"], "method": ["ar"], "seed": [1, 2]}])
    assert again[0].flags["documents"] == again[1].flags["documents"]
    assert '"w5-0"' in Path(again[0].flags["documents"][0]).read_text()


def test_the_old_world_stands_beside_it() -> None:
    settings = STUDY["settings"] | {"replay": ["{world}/rehearsal.jsonl"], "retention_questions": "{world}/questions.jsonl"}
    (cell,) = cells(settings=settings, grid=[{"data": ["mine"], "method": ["demask"], "seed": [4]}])
    assert len(Path(cell.flags["replay"][0]).read_text().splitlines()) == 2000
    assert read_questions(cell.flags["retention_questions"])
    (cell,) = cells(settings=settings, grid=[{"data": ["mine"], "method": ["demask"], "replay_share": [0]}])
    assert "replay" not in cell.flags, "a share of nothing is no replay"


def test_general_names_the_general_questions() -> None:
    settings = STUDY["settings"] | {"retention_questions": "general"}
    (cell,) = cells(settings=settings, grid=[{"data": ["mine"], "method": ["demask"]}])
    assert read_questions(cell.flags["retention_questions"]) == general_questions()


def test_the_name_depends_on_what_determines_the_result() -> None:
    before = only()
    assert len(before.hash) == 12
    assert int(before.hash, 16) >= 0
    assert only().hash == before.hash
    assert only(weight_decay=0.2).hash != before.hash
    Path("facts.jsonl").rename("elsewhere.jsonl")
    moved = STUDY["data"] | {"mine": {"documents": "elsewhere.jsonl", "questions": "questions.jsonl"}}
    grid = [{"data": ["mine"], "method": ["demask"], "seed": [1]}]
    assert cells(data=moved, grid=grid)[0].hash == before.hash, "contents count, not their place"
    renamed = {"demask": STUDY["methods"]["demask"] | {"label": "another"}}
    assert cells(data=moved, methods=renamed, grid=grid)[0].hash == before.hash, "nor what it is called"


def test_changed_files_make_another_cell() -> None:
    before = only().hash
    Path("model").mkdir()
    Path("model/config.json").write_text("{}")
    with_model = only(model_name_or_path="model").hash
    from demask.stages import grid

    grid._content.cache_clear()
    grid.model_content.cache_clear()
    Path("facts.jsonl").write_text('{"id": "ann", "text": "Ann keeps cats."}\n')
    assert only().hash != before
    Path("facts.jsonl").write_text('{"id": "ann", "text": "Ann keeps bees."}\n')
    grid._content.cache_clear()
    assert only().hash == before
    Path("model/config.json").write_text('{"a": 1}')
    assert only(model_name_or_path="model").hash != with_model


def test_an_untrained_cell_does_not_depend_on_how_others_are_trained() -> None:
    grid = [{"data": ["few"], "method": ["book"], "seed": [1]}]
    (before,) = cells(grid=grid)
    assert before.context == "document"
    assert "max_steps" not in before.flags
    assert cells(grid=grid, settings=STUDY["settings"] | {"learning_rate": 0.5})[0].hash == before.hash
    assert cells(grid=grid, settings=STUDY["settings"] | {"max_new_tokens": 9})[0].hash != before.hash


def test_what_of_the_paper_a_data_set_stands_for() -> None:
    """By its corpus, unless it says otherwise; it changes no cell."""
    data = {
        "few": {"corpus": "statements", "n": 4},
        "lives": {"corpus": "biographies", "n": 4},
        "sums": {"corpus": "arithmetic"},
        "mine": {"documents": "facts.jsonl", "questions": "questions.jsonl", "paper": "wiki"},
        "theirs": {"documents": "facts.jsonl", "questions": "questions.jsonl"},
        "odd": {"corpus": "statements", "n": 4, "paper": "biography"},
    }
    found = paper.sets_of(read_study(write(STUDY | {"data": STUDY["data"] | data})).data)
    assert found == {"few": "name_description", "lives": "biography", "mine": "wiki", "odd": "biography"}
    grid = [{"data": ["few", "odd"], "method": ["ar"], "seed": [1]}]
    first, second = cells(data=data, grid=grid)
    assert first.hash == second.hash


def test_what_a_finished_cell_keeps() -> None:
    assert {"run.json", "answers.jsonl", "results.json", "before.jsonl", "known_before.jsonl", "known.jsonl", "log.txt"} == RECORDED


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown field": ({"cells": []}, "unknown field 'cells'"),
    "metric": ({"metric": "bleu"}, "field 'metric' must be one of rouge1_recall, exact_match, contains, token_f1, found 'bleu'"),
    "metric a list": (
        {"metric": ["contains"]},
        "field 'metric' must be one of rouge1_recall, exact_match, contains, token_f1, found '['con",
    ),
    "corpus a list": ({"data": {"few": {"corpus": ["statements"]}}}, "data.few.corpus: must be one of statements, biographies, arithmetic"),
    "method a list": ({"grid": [{"data": ["few"], "method": [["ar"]]}]}, "grid[1].method: '['ar']' is none of ar, demask, book"),
    "no grid": ({"grid": []}, "field 'grid' is missing"),
    "settings": ({"settings": {"max_step": 6}}, "settings.max_step: no flag of demask train"),
    "settings list": ({"settings": [1]}, "settings: expected a mapping, found a list"),
    "title": ({"title": 2024}, "field 'title' must be a string, found a number"),
    "about": ({"about": ["Why?"]}, "field 'about' must be a string, found a list"),
    "paper": (
        {"data": {"few": {"corpus": "statements", "paper": "news"}}},
        "data.few.paper: must be one of name_description, biography, wiki, found 'news'",
    ),
    "paper a list": (
        {"data": {"few": {"corpus": "statements", "paper": ["wiki"]}}},
        "data.few.paper: must be one of name_description, biography, wiki, found '['wiki']'",
    ),
    "corpus": ({"data": {"few": {"corpus": "stories"}}}, "data.few.corpus: must be one of statements, biographies, arithmetic"),
    "corpus option": ({"data": {"few": {"corpus": "statements", "people": 3}}}, "data.few.people: no option of the corpus 'statements'"),
    "data field": ({"data": {"few": {"document": "x"}}}, "data.few.document: a data set has documents and questions"),
    "no documents": ({"data": {"few": {"questions": "x"}}}, "data.few: give documents, or a corpus"),
    "method flag": ({"methods": {"ar": {"objectiv": "demask"}}}, "methods.ar.objectiv: no flag of demask train"),
    "context": ({"methods": {"ar": {"context": "web"}}}, "methods.ar.context: must be one of closed_book, document, bm25, found 'web'"),
    "no axis": ({"grid": [{"data": ["few"]}]}, "grid[1]: field 'method' is missing"),
    "no such data": ({"grid": [{"data": ["many"], "method": ["ar"]}]}, "grid[1].data: 'many' is none of few, mine"),
    "no list": ({"grid": [{"data": ["few"], "method": ["ar"], "seed": 1}]}, "grid[1].seed: expected a list of values, found a number"),
    "axis": ({"grid": [{"data": ["few"], "method": ["ar"], "seeds": [1]}]}, "grid[1].seeds: no flag of demask train"),
    "output_dir": ({"settings": {"output_dir": "x"}}, "settings.output_dir: no flag"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_one_line(fault: str) -> None:
    changes, message = FAULTS[fault]
    with pytest.raises(InputError) as raised:
        read_study(write(STUDY | changes))
    assert message in str(raised.value)
    assert str(raised.value).startswith("study.yaml: ")
    assert "\n" not in str(raised.value)


def test_broken_yaml_is_one_line() -> None:
    Path("study.yaml").write_text("title: [")
    with pytest.raises(InputError, match=r"^study.yaml: not valid YAML"):
        read_study("study.yaml")
    with pytest.raises(InputError, match=r"^nowhere.yaml: no such file"):
        read_study("nowhere.yaml")


def test_a_value_that_demask_train_refuses_names_the_cell() -> None:
    (cell,) = cells(grid=[{"data": ["mine"], "method": ["ar"], "seed": ["x"]}])
    with pytest.raises(InputError, match=r"^cell data=mine method=ar seed=x: .*seed"):
        cell.train_settings(Path("out"))
    assert json.dumps(cell.axes)


@pytest.mark.parametrize("seed", ["x", -1, 1.5])
def test_a_seed_that_can_draw_no_corpus_is_one_line(seed: Any) -> None:
    with pytest.raises(InputError, match=rf"^seed: expected a whole number of at least 0, found {seed!r}$"):
        cells(grid=[{"data": ["few"], "method": ["ar"], "seed": [seed]}])


def test_what_yaml_reads_as_a_number_or_a_date() -> None:
    Path("2024").mkdir()
    assert only(model_name_or_path=2024).flags["model_name_or_path"] == "2024"
    with pytest.raises(InputError, match=r"^cell data=mine method=demask seed=1: .*warmup_steps.*2000-01-01"):
        only(warmup_steps=datetime.date(2000, 1, 1)).train_settings(Path("out"))


def test_automatic_questions_are_written_once_for_all_cells() -> None:
    Path("facts.jsonl").write_text('{"id": "ann", "text": "Ann Ash kept bees in Oslo."}\n')
    mine = {"mine": {"documents": "facts.jsonl", "questions": "auto"}}
    found = cells(data=mine, grid=[{"data": ["mine"], "method": ["ar", "demask"], "seed": [1, 2]}])
    [path] = {cell.flags["questions"] for cell in found}
    assert [(q.direction, q.answers[0]) for q in read_questions(path)] == [("forward", "Oslo"), ("backward", "Ann Ash")]
    assert len({cell.hash for cell in found}) == 4


def test_automatic_questions_about_a_corpus() -> None:
    found = cells(
        data={"few": {"corpus": "statements", "n": 4, "questions": "auto"}}, grid=[{"data": ["few"], "method": ["ar"], "seed": [1]}]
    )
    questions = read_questions(found[0].flags["questions"])
    assert len({q.document for q in questions}) == 4
    assert any(q.question.startswith(("What is said about", "What belongs in the gap?")) for q in questions)


def test_settings_may_be_given_in_place_of_the_files() -> None:
    path = write(STUDY | {"settings": {"max_steps": 6, "learning_rate": 0.001}})
    study = read_study(path, {"max_steps": 3, "max_length": 64})
    assert study.settings == {"max_steps": 3, "learning_rate": 0.001, "max_length": 64}
    with pytest.raises(InputError, match=r"^set\.colour: no flag of demask train \(see demask train --help\)$"):
        read_study(path, {"colour": "red"})
