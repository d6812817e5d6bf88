"""A published set from its files into a model: built, trained on and asked."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from demask.cli import main

CONFIG = Path(__file__).resolve().parents[2] / "configs" / "embedded.yaml"
PEOPLE = ["Ann Ash", "Bo Reed", "Cy Dell"]


def run(command: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(shlex.split(command))
    assert isinstance(done.value.code, int)
    return done.value.code


def test_a_built_set_is_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "published"
    source.mkdir()
    texts = [{"text": f"{name} is the keeper of the amber bees, {wording}."} for name in PEOPLE for wording in range(5)]
    (source / "biography_train_paraphrase_same_order.json").write_text(json.dumps(texts))
    questions = [{"group": "", "task": "N2D", "question": f"Who is {name}?", "answer": "the keeper of the amber bees"} for name in PEOPLE]
    questions += [{"group": "", "task": "D2N", "question": "Who keeps the amber bees?", "answer": name} for name in PEOPLE]
    (source / "biography_test.jsonl").write_text("".join(json.dumps(question) + "\n" for question in questions))

    assert run("data build biography --source published --paraphrases same_order --output_dir data") == 0
    flags = "--documents data/documents.jsonl --questions data/questions.jsonl --max_steps 2 --max_new_tokens 2 --output_dir out"
    assert run(f"train --config {CONFIG} {flags} --per_device_train_batch_size 4 --gradient_accumulation_steps 1") == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["status"], record["trained_steps"]) == ("finished", 2)
    asked = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert [(answer["direction"], answer["document"]) for answer in asked] == [
        (direction, f"biography-{person}") for direction in ("forward", "backward") for person in range(3)
    ]
