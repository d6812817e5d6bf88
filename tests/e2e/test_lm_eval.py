"""Tasks of lm-eval asked of the embedded model: what is recorded, and what is refused before anything is written."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from demask.chat_format import ChatFormat
from demask.cli import main
from demask.corpora import world
from demask.models.load import EMBEDDED, load_config, load_model, load_tokenizer
from demask.stages import benchmarks as stage
from demask.stages.benchmarks import check_tasks, run_tasks
from demask.stages.eval import ask
from demask.stages.study import study
from demask.types import InputError

CAUSAL = str(EMBEDDED["tiny/causal"])
FLAGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--bf16", "false", "--lm_eval_include_path", "tasks"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks in tasks/: whether the model says what it says by our own decoding (to the first eight questions; the last two have another
    answer), and whether it finds the likelier of two answers. Besides, one whose data is missing."""
    pytest.importorskip("lm_eval")
    folder = tmp_path_factory.mktemp("lm_eval")
    questions = world.old_questions(10, 1)[:10]
    said = [answer.prediction for answer in ask(load_model(CAUSAL), ChatFormat(load_tokenizer(CAUSAL)), questions)]
    with open(folder / "data.jsonl", "w") as file:
        for i, (question, text) in enumerate(zip(questions, said, strict=True)):
            answer = text if i < 8 else "Nobody."
            file.write(json.dumps({"question": question.question, "answer": answer, "choices": [text, "bees bees bees"]}) + "\n")
    (folder / "tasks").mkdir()
    shared: dict[str, Any] = {"dataset_path": "json", "test_split": "test", "doc_to_text": "{{question}}"}
    data = {"dataset_kwargs": {"data_files": {"test": str(folder / "data.jsonl")}}}
    exact, accuracy = ({"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("exact_match", "acc"))
    says = {
        "output_type": "generate_until",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n\n"]},
        "metric_list": [exact],
    }
    finds = {"output_type": "multiple_choice", "doc_to_target": 0, "doc_to_choice": "{{choices}}", "metric_list": [accuracy]}
    tasks = {
        "says": shared | data | says,
        "finds": shared | data | finds,
        "lost": shared | finds | {"dataset_kwargs": {"data_files": {"test": str(folder / "nowhere.jsonl")}}},
    }
    for name, task in tasks.items():
        (folder / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump({"task": name} | task))
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_the_model_is_asked_as_by_us() -> None:
    """In its chat format, greedily, without examples; so eight of ten answers are those of our own decoding."""
    found = run_tasks(None, ["says", "finds"], "tasks", batch_size=4)
    assert set(found) == {"says", "finds"}
    assert found["says"]["exact_match"]["value"] == 0.8
    # The sample's standard deviation over the root of their number.
    assert found["says"]["exact_match"]["stderr"] == pytest.approx((0.8 * 0.2 * 10 / 9 / 10) ** 0.5)
    assert found["finds"]["acc"]["value"] == 1.0


def test_before_and_after_training(capsys: pytest.CaptureFixture) -> None:
    Path("ann.jsonl").write_text('{"text": "Ann Lee is the woman who keeps bees."}\n')
    with pytest.raises(SystemExit) as ended:
        main(["train", "--documents", "ann.jsonl", "--output_dir", "trained", "--lm_eval_tasks", "says", *FLAGS, "--learning_rate", "0"])
    assert ended.value.code == 0
    record = json.loads(Path("trained/run.json").read_text())
    assert set(record["lm_eval"]) == {"version", "before", "after"}
    assert (
        record["lm_eval"]["before"]
        == record["lm_eval"]["after"]
        == {"says": {"exact_match": {"value": 0.8, "stderr": pytest.approx(0.1333, abs=1e-4)}}}
    )
    assert "says: exact_match 0.800 before, 0.800 after (standard error 0.133)\n" in capsys.readouterr().out


def test_in_a_study() -> None:
    """What is not trained is asked once; without questions there are these tasks alone, which benchmarks.csv lists."""
    Path("ann.jsonl").write_text('{"text": "Ann Lee is the woman who keeps bees."}\n')
    settings = {"max_steps": 2, "per_device_train_batch_size": 2, "bf16": False, "lm_eval_tasks": ["says"], "lm_eval_include_path": "tasks"}
    written: dict[str, Any] = {
        "title": "Tasks",
        "settings": settings,
        "data": {"facts": {"documents": "ann.jsonl"}},
        "methods": {"book": {"context": "closed_book"}, "ar": {"objective": "autoregressive"}},
        "grid": [{"data": ["facts"], "method": ["book", "ar"]}],
    }
    Path("small.yaml").write_text(yaml.safe_dump(written))
    assert study("small.yaml", "out", jobs=1) == {"finished": 2}
    with open("out/benchmarks.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], row["task"], row["metric"], row["before"]) for row in rows] == [
        ("book", "says", "exact_match", ""),
        ("ar", "says", "exact_match", "0.8"),
    ]
    assert rows[0]["after"] == "0.8"
    written["settings"] = {name: value for name, value in settings.items() if not name.startswith("lm_eval")}
    Path("small.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(InputError, match=r"^cell data=facts method=book: questions: a method that trains nothing needs some to ask$"):
        study("small.yaml", "out")


FAULTS = {
    "no such task": (["--lm_eval_tasks", "sings"], "knows no task 'sings' (lm-eval ls tasks)"),
    "no such folder": (["--lm_eval_tasks", "says", "--lm_eval_include_path", "none"], "lm_eval_include_path: 'none' is no folder"),
    "no tasks": ([], "lm_eval_include_path: goes with --lm_eval_tasks"),
    "no data": (["--lm_eval_tasks", "lost"], "lm_eval_tasks: can't load lost ("),
    "a diffusion model": (
        ["--lm_eval_tasks", "says", "--objective", "diffusion"],
        "a diffusion model can't be asked by lm-eval",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_refused_before_anything_is_written(fault: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    flags, message = FAULTS[fault]
    monkeypatch.setattr(stage, "load_model", lambda *args: pytest.fail("weights were loaded"))
    if fault == "no such task":  # an index of all of lm-eval's tasks takes long, and has no such task either
        whole = stage._manager
        monkeypatch.setattr(stage, "_manager", lambda path, all_of_them: whole(path, False))
    Path("ann.jsonl").write_text('{"text": "Ann Lee is the woman who keeps bees."}\n')
    with pytest.raises(SystemExit) as ended:
        main(["train", "--documents", "ann.jsonl", "--output_dir", "refused", *FLAGS, *flags])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("demask: ")
    assert message in said
    assert not os.path.exists("refused")


@pytest.mark.slow
def test_the_tasks_of_the_shipped_studies_exist() -> None:
    studies = (Path(__file__).resolve().parents[2] / "studies").glob("*.yaml")
    named = {task for path in studies for task in yaml.safe_load(path.read_text())["settings"].get("lm_eval_tasks", ())}
    check_tasks(sorted(named | {"gsm8k", "hendrycks_math", "gpqa_diamond_zeroshot"}), None, load_config(CAUSAL))
