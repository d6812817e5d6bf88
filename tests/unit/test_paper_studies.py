"""The paper's grids, planned without a hub: models of the published shapes without weights, and data of the described layout and size."""

from __future__ import annotations

import inspect
import shlex
from functools import cache
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from demask.corpora import PUBLISHED, world
from demask.stages import cell, plan
from demask.stages.grid import Cell, expand, read_study
from demask.stages.study import _plans, study
from demask.types import Document, Question, write_documents, write_questions
from tests.hub import PARAMETERS, write_hub

STUDIES = sorted((Path(__file__).resolve().parents[2] / "studies").glob("paper_*.yaml"))
LLAMA_8B, LLAMA_3B, QWEN_4B = "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen3-4B-Instruct-2507"
# (documents without paraphrases as published, wordings of each with them: fewer than published)
SETS = {"name_description": (60, 3), "biography": (100, 2), "wiki": (94, 2)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("paper")
    write_hub(folder)
    for name, (n, wordings) in SETS.items():
        documents, questions = world.statement_corpus(seed=1, n=n, phrasings=[0])
        write_documents(folder / "data" / name / "documents.jsonl", documents)
        repeated = [Document(f"{d.id}-{i}", d.text) for d in documents for i in range(wordings)]
        for order in ("same", "permuted"):
            write_documents(folder / "data" / f"{name}_{order}" / "documents.jsonl", repeated if order == "same" else repeated[::-1])
        asked = [Question(q.question, q.answers, q.direction, q.group, q.document, "test") for q in questions]
        write_questions(folder / "data" / name / "questions.jsonl", asked)
    pair = Document("p", "She kept 2 + 3 = 5 bees. #### 5", prompt="Question: How many bees did she keep?\nAnswer:")
    long = Document("l", "The mason and the baker met near the old mill. " * 100)
    write_documents(folder / "data/gsm8k/documents.jsonl", [Document(f"p{i}", pair.text, pair.prompt) for i in range(64)])
    write_documents(folder / "data/math/documents.jsonl", [pair, Document("l", long.text, pair.prompt)])
    write_documents(folder / "data/webscale_texts/documents.jsonl", [long])
    write_documents(folder / "data/webscale_pairs/documents.jsonl", [Document(f"p{i}", pair.text, pair.prompt) for i in range(400)])
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for module in (cell, plan):  # tests/e2e/test_lm_eval.py asks lm-eval for the tasks' names
        monkeypatch.setattr(module, "check_tasks", lambda *args: None)


def test_the_docs_say_how_all_data_are_built() -> None:
    """Every path of the grids is what a command in docs/studies.md writes; and all of these run, as far as their options go."""
    commands = [
        shlex.split(line)
        for line in (STUDIES[0].parents[1] / "docs" / "studies.md").read_text().splitlines()
        if line.startswith("    demask data build ")
    ]
    written = {command[command.index("--output_dir") + 1] for command in commands}
    named = set()
    for path in STUDIES:
        for data in yaml.safe_load(path.read_text())["data"].values():
            named |= {*data["documents"], *([data["questions"]] if "questions" in data else [])}
    assert {str(Path(name).parent) for name in named} == written
    assert {Path(name).name for name in named} == {"documents.jsonl", "questions.jsonl"}
    for command in commands:
        options = {"paraphrases": "none"} | {flag[2:]: "x" for flag in command[4:] if flag.startswith("--")}
        read = PUBLISHED[command[3]].read
        assert options.keys() - {"output_dir", "source", "paraphrases"} <= set(inspect.signature(read).parameters)
        if "--paraphrases" in command:
            assert command[command.index("--paraphrases") + 1] in PUBLISHED[command[3]].paraphrases
        assert ("--source" in command) or PUBLISHED[command[3]].url


def planned(name: str, **axes: Any) -> tuple[list[Cell], list[dict[str, Any]]]:
    """The cells of a study with these axes, and their plans."""
    cells, plans = everything(name)
    chosen = [c for c in cells if axes.items() <= c.axes.items()]
    return chosen, [plans[c.hash] for c in chosen]


@cache
def everything(name: str) -> tuple[list[Cell], dict[str, dict[str, Any]]]:
    cells = expand(read_study(next(path for path in STUDIES if path.stem == f"paper_{name}")), Path("out"))
    return cells, _plans(cells, Path("out"), Console(quiet=True))


@pytest.mark.parametrize(
    ("name", "cells", "trained"),
    [
        # 4 models on 3 sets asked, and trained in raw format and on reversals too; on 7 sets trained in 2 ways. LLaDA: 3 asked, 7 trained.
        ("main", 4 * 3 * 3 + 4 * 7 * 2 + 3 + 7, 4 * 3 * 2 + 4 * 7 * 2 + 7),
        ("ratio", 3 * 6 + 5, 23),
        ("control", 3 * 3, 9),
        ("fewshot", 3 * 2 * 2, 12),
        ("math", 2 * 2 * 3, 8),
        ("webscale", 5, 4),
    ],
)
def test_dry_run(name: str, cells: int, trained: int) -> None:
    path = next(path for path in STUDIES if path.stem == f"paper_{name}")
    console = Console(record=True, width=250, file=StringIO())
    assert study(path, "out", dry_run=True, gpu="H100", console=console) == {"planned": cells}
    said = console.export_text()
    assert f"{cells} cells, " in said
    assert "GPU-hours on H100" in said
    # What is not trained has a line without numbers.
    assert said.count(" not trained") == cells - trained


@pytest.mark.parametrize("model", PARAMETERS)
def test_the_models_have_their_published_sizes(model: str) -> None:
    """And full fine-tuning takes 16 bytes for each parameter, and a little for activations."""
    method = "diffusion" if "LLaDA" in model else "demask"
    _, [numbers] = planned("main", model_name_or_path=model, data="wiki", method=method)
    assert numbers["parameters"] == PARAMETERS[model]
    weights = 16 * PARAMETERS[model] / 2**30
    assert weights < numbers["memory_gib"] < 1.1 * weights + 5


def test_rates() -> None:
    cells, plans = planned("main")
    rates = {(c.flags["model_name_or_path"], c.axes["method"]): p["learning_rate"] for c, p in zip(cells, plans, strict=True) if p}
    for model in PARAMETERS:
        if "LLaDA" in model:
            assert rates[model, "diffusion"] == 1e-5
        else:
            assert {rates[model, method] for method in ("ar", "ar_raw", "reverse")} == {5e-6}
            assert rates[model, "demask"] == (3e-6 if model == LLAMA_8B else 5e-6)
    assert {p["batch_size"] for p in plans if p} == {64}
    assert {c.flags["select_on"] for c, p in zip(cells, plans, strict=True) if p} == {"test"}


@pytest.mark.parametrize(
    ("data", "steps"),
    [
        ("name_description", 3600),  # 60 documents x 3840 visits / 64
        ("name_description_same", 360),  # 180 x 128 / 64
        ("biography", 11063),  # 100 x 7080 / 64 = 11062.5
        ("biography_same", 3200),  # 200 x 1024 / 64
        ("wiki", 7520),  # 94 x 5120 / 64
        ("wiki_permuted", 1504),  # 188 x 512 / 64
    ],
)
def test_steps(data: str, steps: int) -> None:
    _, plans = planned("main", model_name_or_path=LLAMA_3B, data=data)
    assert {p["steps"] for p in plans if p} == {steps}


def test_mathematics() -> None:
    _, [asked, sft, masked] = planned("math", model_name_or_path=LLAMA_3B, data="gsm8k")
    assert asked == {}
    assert (sft["batch_size"], sft["steps"], sft["learning_rate"]) == (32, 14, 5e-6)  # 64 x 7 / 32
    assert (masked["batch_size"], masked["steps"], masked["learning_rate"]) == (32, 14, 5e-6)
    _, [asked, sft, masked] = planned("math", model_name_or_path=QWEN_4B, data="math")
    assert asked == {}
    assert (sft["batch_size"], masked["batch_size"]) == (16, 16)
    assert 500 <= sft["longest"] <= 512  # truncated, as is the answer that the masked example holds twice
    assert 1000 <= masked["longest"] <= 1024


def test_webscale() -> None:
    cells, plans = planned("webscale")
    found = {c.axes["method"]: p for c, p in zip(cells, plans, strict=True)}
    assert (found["cpt"]["batch_size"], found["cpt"]["longest"]) == (256, pytest.approx(514, abs=14))
    assert (found["cpt_masked"]["batch_size"], found["cpt_masked"]["longest"]) == (256, pytest.approx(1064, abs=28))
    assert (found["sft"]["batch_size"], found["sft"]["steps"]) == (80, 10)  # 400 x 2 / 80
    assert {p["learning_rate"] for p in plans if p} == {2e-6}


def test_shots_and_ratios() -> None:
    cells, _ = planned("fewshot", few_shot=2)
    assert {c.flags["few_shot"] for c in cells} == {2}
    assert {c.axes["method"] for c in cells} == {"ar", "demask"}
    cells, plans = planned("ratio", method="demask", data="wiki")
    assert [c.flags["mask_ratio"] for c in cells] == [[0, 0], [0.25, 0.25], [0.5, 0.5], [0.75, 0.75], [1, 1], [0.05, 0.95]]
    assert {p["steps"] for p in plans} == {7520}
