"""The benchmarks run on tiny models, and count what they should."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import decoding, llada_8b, startup
from benchmarks import eval as evaluation
from demask.chat_format import ChatFormat
from demask.models.load import load_tokenizer
from demask.types import Question, write_questions
from tests.models import save_model

QUESTIONS = [
    Question("Who keeps bees?", ("Ann",), "backward", split="test"),
    Question("Who is Ann, the mason, and where did she meet the baker of the old mill?", ("a list",), "forward", split="test"),
    Question("What does Ann keep?", ("bees",), "forward", split="test"),
    Question("Is this asked?", ("no",), "forward", split="validation"),
]


def main_of(module: Any, monkeypatch: pytest.MonkeyPatch, *argv: str) -> None:
    monkeypatch.setattr(sys, "argv", [str(module.__file__), *argv])
    module.main()


@pytest.mark.parametrize("shifted", [False, True], ids=["own positions", "shifted logits"])
def test_questions_are_asked_in_every_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shifted: bool) -> None:
    model, questions, output = tmp_path / "model", tmp_path / "questions.jsonl", tmp_path / "decoding.json"
    save_model(model, is_causal=False, shifted_logits=shifted)
    tokenizer = load_tokenizer(str(model))
    tokenizer.mask_token = "<|reserved_special_token_0|>"
    tokenizer.save_pretrained(model)
    write_questions(questions, QUESTIONS)
    argv = ["--parts", "questions", "--model", str(model), "--questions", str(questions), "--output", str(output)]
    main_of(decoding, monkeypatch, *argv, "--max_new_tokens", "6", "--block_length", "4", "--batch_size", "2")
    text = output.read_text(encoding="utf-8")
    assert str(tmp_path) not in text
    record = json.loads(text)["questions"]
    assert record["settings"]["questions"] == 3
    plain, exact = record["variants"]["plain LLaDA"], record["variants"]["exact"]
    # Two batches, longest first: two rows as long as the longest question, then one; six passes of each.
    chat = ChatFormat(tokenizer)
    lengths = sorted(len(chat.prompt(chat.content(q.question))) for q in QUESTIONS[:3])
    assert plain["passes"] == 6
    assert plain["positions"] == pytest.approx(6 * (2 * (lengths[2] + 6) + (lengths[0] + 6)) / 3, abs=1e-3)
    assert plain["seconds_ratio"] == 1
    assert exact["same_text"] == 1
    assert exact["accuracy_lost"] == 0
    # One step for six tokens, but the canvas is a block of four and one of two: one pass each is the least.
    assert record["variants"]["steps = length / 4"]["passes"] <= 2
    assert all(found["passes"] <= 6 for found in record["variants"].values())


def test_accuracy_is_the_mean_over_directions() -> None:
    found = decoding.accuracy(QUESTIONS, ["It is Ann.", "none", "Bees!", "yes"])
    assert found == {"accuracy": pytest.approx((1 + 1 / 3) / 2), "forward": pytest.approx(1 / 3), "backward": 1}


def test_cost_by_hand() -> None:
    base = decoding.Tally(seconds=[2.0, 2.0, 2.0], passes=12, positions=240, texts=["a", "b", "c"])
    own = decoding.Tally(seconds=[1.0, 2.0, 4.0], passes=6, positions=60, texts=["a", "b", "c"])
    assert decoding.cost(own, base) == {
        "passes": 2,
        "positions": 20,
        "seconds": 2,
        "passes_ratio": 0.5,
        "positions_ratio": 0.25,
        "seconds_ratio": 1,
        "seconds_ratio_low": 0.75,
        "seconds_ratio_high": 1.5,
    }


def test_the_prefix_cache_saves_positions_not_passes() -> None:
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
    part = decoding.long_prompts(shape, lengths=(8,), max_new_tokens=8, block_length=4, steps=4, repeats=2)
    found = part["prompt_lengths"]["8"]
    assert [found[name]["passes"] for name in ("whole canvas", "prefix cache")] == [4, 4]
    assert found["whole canvas"]["positions"] == 4 * 16
    # Two passes a block: all 16, then what is not before the block.
    assert found["prefix cache"]["positions"] == (16 + 8) + (16 + 4)


def test_the_llada_benchmark_runs_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "small.json"
    main_of(llada_8b, monkeypatch, "--small", "--batch_size", "2", "--output", str(output))
    record = json.loads(output.read_text(encoding="utf-8"))
    assert len(record["parts"]) == 5
    assert all(found["tokens_per_second"] > 0 for found in record["parts"].values())
    assert record["settings"]["first_loss"] == pytest.approx(math.log(512), rel=0.1)
    assert str(tmp_path) not in json.dumps(record)


def test_the_llada_benchmark_asks_for_a_gpu(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main_of(llada_8b, monkeypatch)
    assert capsys.readouterr().err.endswith("this needs a GPU of about 24 GB or more; --small tries it on a CPU\n")


def test_questions_are_answered_alike_by_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "NEW_TOKENS", 20)
    monkeypatch.setattr(evaluation, "CASES", {"5m": (4, 3, 0, ("to_128", "stopping", "one"))})
    found = evaluation.measure("5m", rounds=2, device="cpu")
    assert found["settings"]["questions"] == 4
    for way in ("to_128", "stopping", "one"):
        assert found[way]["same_answers"] == 1
        ratios = [other / ours for other, ours in zip(found[way]["seconds"], found["ours"]["seconds"], strict=True)]
        assert found[way]["time_over_ours"]["range"] == pytest.approx(sorted(ratios), rel=0.01)


def test_a_process_is_timed_and_a_failure_told() -> None:
    processor, elapsed = startup.seconds(["-c", "sum(range(10**6))"])
    assert processor > 0
    assert elapsed > 0
    with pytest.raises(RuntimeError, match="ended with 3: no such thing"):
        startup.seconds(["-c", "import sys; print('no such thing'); sys.exit(3)"])
