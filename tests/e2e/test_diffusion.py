"""Masked diffusion from files to files: a causal model adapted, trained on, asked, and its adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from demask.decoding import Sampling
from demask.models.merge import merge
from demask.settings import parse_train
from demask.stages.eval import evaluate
from demask.stages.train import train
from tests.models import save_model

TEXTS = ["Ann is the woman who keeps bees.", "The mason met the baker.", "They were glad!", "The baker keeps a list: one, two, three."]
QUESTIONS = [
    {"question": "Who keeps bees?", "answer": "Ann", "direction": "backward", "document": "0", "split": "test"},
    {"question": "Who is Ann?", "answer": "the woman who keeps bees", "direction": "forward", "document": "0", "split": "validation"},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "docs.jsonl").write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    (folder / "pairs.jsonl").write_text(json.dumps({"id": "p", "prompt": "Who keeps bees?", "response": "Ann."}) + "\n")
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    save_model(folder / "causal")
    return folder


@pytest.fixture(autouse=True)
def _in_files(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(files)


def run(out: Path | str, *more: str) -> dict[str, Any]:
    flags = "--documents docs.jsonl --objective diffusion --bf16 false --per_device_train_batch_size 2 --gradient_accumulation_steps 2"
    flags += " --max_steps 4 --learning_rate 1e-3 --save_steps 2 --save_total_limit 9 --max_new_tokens 4 --disable_tqdm true"
    return train(*parse_train([*flags.split(), "--output_dir", str(out), *more]), say=[].append)


ADAPT = ("--model_name_or_path", "causal", "--bidirectional")


@pytest.fixture(scope="module")
def adapted(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model after four steps of masked diffusion."""
    out = tmp_path_factory.mktemp("adapted") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        run(out, *ADAPT, "--questions", "questions.jsonl", "--select_on", "last")
    return out


def both_ways(folder: Path) -> bool:
    """Whether a plain reload of the model sees what follows."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        return not torch.equal(*(model(torch.tensor([[5, last]])).logits[0, 0] for last in (6, 7)))


def test_an_adapted_model_reloads_bidirectional_with_its_mask_token(adapted: Path, files: Path) -> None:
    config = json.loads((adapted / "config.json").read_text())
    assert (config["is_causal"], config["shifted_logits"]) == (False, True)
    assert both_ways(adapted)
    assert not both_ways(files / "causal")
    assert AutoTokenizer.from_pretrained(adapted).mask_token == "<|reserved_special_token_0|>"
    assert load_file(adapted / "model.safetensors").keys() == load_file(files / "causal" / "model.safetensors").keys()


def test_its_questions_are_asked_by_the_diffusion_decoder(adapted: Path, tmp_path: Path) -> None:
    results = json.loads((adapted / "results.json").read_text())
    assert results["n"] == 1
    assert results["settings"]["sampling"]["block_length"] == 32
    answer = json.loads((adapted / "answers.jsonl").read_text())["prediction"]
    asked = {"max_new_tokens": 4, "split": "test", "quiet": True}
    evaluate(str(adapted), "questions.jsonl", tmp_path / "same", sampling=Sampling(block_length=32), **asked)
    assert json.loads((tmp_path / "same" / "answers.jsonl").read_text())["prediction"] == answer


def test_a_diffusion_model_trains_on_documents_and_pairs_without_being_adapted(adapted: Path, tmp_path: Path) -> None:
    more = ("--replay", "pairs.jsonl", "--replay_share", "0.25", "--eos_padding", "2", "--loss_weights", "uniform", "--mask_pattern", "mix")
    record = run(tmp_path, "--model_name_or_path", str(adapted), *more)
    assert record["status"] == "finished"
    assert both_ways(tmp_path)
    assert "shifted_logits" in (tmp_path / "config.json").read_text()


def test_a_resumed_run_ends_as_an_uninterrupted_one(adapted: Path, tmp_path: Path) -> None:
    run(tmp_path / "whole", *ADAPT)
    run(tmp_path / "parts", *ADAPT)
    for name in ("model.safetensors", "checkpoint-4/trainer_state.json"):
        (tmp_path / "parts" / name).unlink()  # as if it had been killed while it saved its last checkpoint
    run(tmp_path / "parts", *ADAPT, "--resume_from_checkpoint", "true")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert both_ways(tmp_path / "parts")


def test_an_adapter_of_a_diffusion_model_stays_bidirectional_when_merged(adapted: Path, tmp_path: Path) -> None:
    run(tmp_path / "adapter", "--model_name_or_path", str(adapted), "--use_peft", "--questions", "questions.jsonl")
    merge(str(tmp_path / "adapter"), str(tmp_path / "merged"))
    assert both_ways(tmp_path / "merged")
    asked = {"max_new_tokens": 4, "split": "test", "quiet": True}
    for name in ("adapter", "merged"):
        evaluate(str(tmp_path / name), "questions.jsonl", tmp_path / f"{name}-answers", **asked)
    answers = [(tmp_path / f"{name}-answers" / "answers.jsonl").read_text() for name in ("adapter", "merged")]
    assert answers[0] == answers[1]
