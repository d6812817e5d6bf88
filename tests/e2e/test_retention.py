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
from demask.stages import grid
from demask.stages.eval import ask, evaluate, retention
from demask.stages.train import train
from demask.types import InputError, read_jsonl, read_questions
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


def test_a_resume_that_asks_otherwise_asks_the_base_again() -> None:
    """Before and after are told by the same questions with the same settings, whichever of them a resume has changed."""
    more = [*MEASURED, "--questions", "questions.jsonl"]
    with pytest.raises(PowerCutError):
        run("out", *more, callbacks=[At(3, power_cut)])
    resumed = run("out", *more, "--max_new_tokens", "3", "--resume_from_checkpoint", "true")
    assert resumed["before"] == base_by_hand("questions.jsonl", max_new_tokens=3)[0]
    assert resumed["before"]["settings"] == resumed["results"]["settings"] | {"model": "base"}
    Path("others.jsonl").write_text(json.dumps(QUESTIONS[0] | {"question": "Who keeps all the bees?"}) + "\n")
    expected, lines = base_by_hand("others.jsonl")
    assert run("out", *more, "--questions", "others.jsonl", "--resume_from_checkpoint", "true")["before"] == expected
    assert [line for _, line in read_jsonl("out/before.jsonl")] == lines


# --- the test questions, before and after -----------------------------------------------------------------------------------------


BEES = " ".join(["bees"] * 9)


def base_by_hand(questions: str, max_new_tokens: int = 4) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results and lines of the base, asked by itself."""
    options: dict[str, Any] = {"split": "test", "max_new_tokens": max_new_tokens, "quiet": True}
    return evaluate("base", questions, "by_hand", **options), [line for _, line in read_jsonl("by_hand/answers.jsonl")]


def test_the_base_is_asked_the_test_questions_first() -> None:
    record = run("out", "--questions", "questions.jsonl")
    expected, lines = base_by_hand("questions.jsonl")
    assert record["before"] == expected
    assert [line for _, line in read_jsonl("out/before.jsonl")] == lines
    assert set(record["before"]) == set(record["results"])
    assert record["before"]["settings"] == record["results"]["settings"] | {"model": "base"}
    assert read_run("out") == record
    assert "before" not in run("unasked")
    assert not Path("unasked/before.jsonl").exists()


def test_asking_the_base_changes_nothing_of_the_training() -> None:
    run("with", "--questions", "questions.jsonl", "--select_on", "last")
    run("without")
    with_it, without = (load_file(f"{name}/model.safetensors") for name in ("with", "without"))
    assert all(torch.equal(with_it[name], without[name]) for name in without)


def test_a_resumed_run_does_not_ask_the_base_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PowerCutError):
        run("out", "--questions", "questions.jsonl", callbacks=[At(3, power_cut)])
    before, lines = (read_run("out") or {})["before"], Path("out/before.jsonl").read_bytes()
    monkeypatch.setattr("demask.stages.asking.load_model", lambda *args, **kwargs: pytest.fail("the base was loaded"))
    resumed = run("out", "--questions", "questions.jsonl", "--resume_from_checkpoint", "true")
    assert resumed["before"] == before
    assert Path("out/before.jsonl").read_bytes() == lines


def test_a_run_begun_without_it_asks_the_base_when_it_goes_on() -> None:
    with pytest.raises(PowerCutError):
        run("out", "--questions", "questions.jsonl", callbacks=[At(3, power_cut)])
    record = read_run("out") or {}
    before = record.pop("before")
    Path("out/run.json").write_text(json.dumps(record))
    assert run("out", "--questions", "questions.jsonl", "--resume_from_checkpoint", "true")["before"] == before


def test_nothing_is_written_where_the_training_can_not_begin() -> None:
    with pytest.raises(InputError, match=r"^training arguments: "):
        run("out", "--questions", "questions.jsonl", "--report_to", "no_such_tracker")
    assert not Path("out/before.jsonl").exists()


def test_an_answer_is_as_long_as_the_right_ones_allow() -> None:
    """16 tokens for short ones, else three times the longest, which the longest of all questions sets, whatever their split."""
    said: list[str] = []
    more = QUESTIONS[0] | {"question": "Who?", "answer": BEES, "split": "validation"}
    Path("long.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*QUESTIONS, more]))
    chat = ChatFormat(load_tokenizer("base"))
    length = len(chat.content(BEES))
    assert length > 6
    for questions, expected in (("questions.jsonl", 16), ("long.jsonl", 3 * length)):
        flags = "--documents docs.jsonl --model_name_or_path base --bf16 false --max_steps 2 --disable_tqdm true --select_on last"
        parsed = parse_train([*flags.split(), "--questions", questions, "--output_dir", f"out-{expected}"])
        record = train(*parsed, say=said.append)
        assert [record[name]["settings"]["max_new_tokens"] for name in ("before", "results")] == [expected] * 2
        assert f"answers: at most {expected} tokens, by the longest right one; --max_new_tokens gives another number" in said
        assert evaluate("base", questions, "eval", split="test", quiet=True)["settings"]["max_new_tokens"] == expected
    assert run("given", "--questions", "questions.jsonl")["results"]["settings"]["max_new_tokens"] == 4


def test_runs_of_a_study_share_the_answers_of_their_base(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def counting(model: Any, chat: Any, questions: Any, **options: Any) -> Any:
        asked.append(len(questions))
        return ask(model, chat, questions, **options)

    monkeypatch.setattr("demask.stages.asking.ask", counting)
    flags = "--documents docs.jsonl --model_name_or_path base --bf16 false --max_steps 1 --disable_tqdm true --select_on last"
    shared = [*flags.split(), "--questions", "questions.jsonl", "--max_new_tokens"]
    results = []
    for out, limit, seed in (("a", 4, 1), ("b", 4, 2), ("c", 5, 1)):
        argv = [*shared, str(limit), "--seed", str(seed), "--output_dir", out]
        results.append(train(*parse_train(argv), say=[].append, base_answers=Path("shared"))["before"])
    assert len(asked) == 2, "the third asks for other answers"
    assert len(list(Path("shared").glob("*.jsonl"))) == 2
    assert results[1] == results[0] | {"settings": results[0]["settings"] | {"seed": 2}}
    assert Path("a/before.jsonl").read_bytes() == Path("b/before.jsonl").read_bytes()
    save_model(Path("base"), seed=1)
    grid.model_content.cache_clear()
    train(*parse_train([*shared, "4", "--output_dir", "d"]), say=[].append, base_answers=Path("shared"))
    assert len(asked) == 3, "another model under the same name"


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
