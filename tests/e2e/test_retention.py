"""What a run says of what its model knew before: measured on the base and on what was saved, and nothing else changed by it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demask.chat_format import ChatFormat
from demask.corpora.files import read_documents
from demask.general import general_questions
from demask.models.load import load_model, load_tokenizer
from demask.runs import read_run
from demask.settings import parse_train
from demask.stages.eval import retention
from demask.stages.train import train
from demask.types import InputError, read_questions
from tests.e2e.test_train import At, PowerCutError, power_cut
from tests.models import save_model

QUESTIONS = [{"question": "Who keeps bees?", "answer": "Ann", "direction": "backward", "document": "0", "split": "test"}]
KNOWN = [{"question": f"What is {word}?", "answer": "a mill", "direction": "forward", "document": word} for word in ("old", "near", "red")]


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "base")
    for name, records in {
        "docs": [{"id": "0", "text": "Ann is the woman who keeps bees."}],
        "questions": QUESTIONS,
        "known": KNOWN,
        "text": [{"id": "t", "text": "The mason and the baker met near the old mill."}],
    }.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def run(out: str, *more: str, callbacks: Any = ()) -> dict[str, Any]:
    flags = "--documents docs.jsonl --model_name_or_path base --bf16 false --max_steps 4 --learning_rate 1e-2 --save_steps 2"
    flags += f" --max_new_tokens 4 --disable_tqdm true --output_dir {out}"
    return train(*parse_train([*flags.split(), *more]), say=[].append, callbacks=callbacks)


MEASURED = ("--retention_questions", "known.jsonl", "--retention_documents", "text.jsonl")


def read_questions_of(path: str) -> list[str]:
    return [json.loads(line)["question"] for line in Path(path).read_text().splitlines()]


def by_hand(folder: str) -> dict[str, Any]:
    chat = ChatFormat(load_tokenizer(folder))
    return retention(load_model(folder), chat, read_questions("known.jsonl"), read_documents(["text.jsonl"]), max_new_tokens=4)


def test_before_and_after() -> None:
    record = run("out", *MEASURED, "--questions", "questions.jsonl")
    assert record["retention"] == {"before": by_hand("base"), "after": by_hand("out")}
    assert record["retention"]["before"]["text"]["nll"] != record["retention"]["after"]["text"]["nll"]
    assert record["results"]["n"] == 1, "the questions about what was learnt stand apart"
    assert "retention" not in record["results"]
    assert read_run("out") == record


def test_what_is_kept_of_what_the_base_answered_right() -> None:
    """The base's own answers are right: what the trained model still says word for word is kept, which nothing else tells."""
    run("first", *MEASURED)
    said = [json.loads(line) for line in Path("first/known_before.jsonl").read_text().splitlines()]
    golds = [record["prediction"] if i else "nothing of this" for i, record in enumerate(said)]
    Path("known.jsonl").write_text("".join(json.dumps(old | {"answer": gold}) + "\n" for old, gold in zip(KNOWN, golds, strict=True)))
    kept = run("out", *MEASURED)["retention"]["kept"]
    after = [json.loads(line) for line in Path("out/known.jsonl").read_text().splitlines()]
    assert kept["n"] == 2
    assert kept["mean"] == sum(record["scores"]["rouge1_recall"] == 1 for record in after[1:]) / 2


def test_general_questions_in_place_of_a_file() -> None:
    record = run("out", "--retention_questions", "general")
    assert record["retention"]["before"]["questions"]["n"] == record["retention"]["after"]["questions"]["n"] == len(general_questions())
    asked = read_questions_of("out/known.jsonl")
    assert asked == [question.question for question in general_questions()]


def test_training_is_the_same_with_and_without_it() -> None:
    run("with", *MEASURED)
    assert "retention" not in run("without")
    with_it, without = (load_file(f"{name}/model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_a_resumed_run_keeps_what_was_measured_before(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PowerCutError):
        run("out", *MEASURED, callbacks=[At(3, power_cut)])
    before = read_run("out")
    assert before
    assert before["retention"] == {"before": by_hand("base")}
    resumed = run("out", *MEASURED, "--resume_from_checkpoint", "true")
    assert resumed["retention"] == {"before": before["retention"]["before"], "after": by_hand("out")}


def test_faults_are_found_before_weights_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("demask.stages.asking.load_model", lambda *args, **kwargs: pytest.fail("weights were loaded"))
    with pytest.raises(InputError, match=r"^nowhere.jsonl: no such file"):
        run("out", "--retention_questions", "nowhere.jsonl")
    with pytest.raises(InputError, match="nowhere"):
        run("out", "--retention_documents", "nowhere.txt")
    long = KNOWN[0] | {"question": "What? " * 400}
    Path("long.jsonl").write_text(json.dumps(long) + "\n")
    with pytest.raises(InputError, match="exceed the model's context"):
        run("out", "--retention_questions", "long.jsonl")
    assert not Path("out").exists()


def test_shots_before_the_test_questions() -> None:
    """The validation question is shown, and only the test question is asked."""
    records = [
        *QUESTIONS,
        {"question": "What does Ann keep?", "answer": "bees", "direction": "forward", "document": "1", "split": "validation"},
    ]
    Path("two.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    record = run("out", "--questions", "two.jsonl", "--few_shot", "1", "--select_on", "last")
    assert record["results"]["n"] == 1
    assert record["results"]["settings"]["few_shot"] == 1
