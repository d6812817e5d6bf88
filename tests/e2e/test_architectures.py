"""Four families, each with a tokenizer of its kind: training, questions, and answers that do not depend on the batch."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from demask.chat_format import ChatFormat
from demask.decoding.causal import generate
from demask.models.load import load_model, load_tokenizer
from demask.settings import parse_train
from demask.stages.eval import evaluate
from demask.stages.train import train
from demask.types import read_jsonl
from tests.models import ARCHITECTURES, save_model

DOCUMENTS = [{"text": "Ann is the woman who keeps bees."}, {"text": "The mason and the baker met on 12 May 1984, near the old mill."}]
QUESTIONS = [
    {"question": "Who keeps bees?", "answer": "Ann", "direction": "backward", "split": "validation"},
    {"question": "What does Ann keep?", "answer": "bees", "direction": "forward", "split": "validation"},
    {"question": "Whom did the mason meet?", "answer": "The baker", "direction": "forward", "split": "test"},
    {"question": "Who met the baker on 12 May 1984?", "answer": "The mason", "direction": "backward", "split": "test"},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, rows in {"docs": DOCUMENTS, "questions": QUESTIONS}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for arch in ARCHITECTURES:
        save_model(folder / arch, arch)
    return folder


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("objective", ["autoregressive", "demask"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_two_steps_and_an_evaluation(arch, objective, attention, files, tmp_path):
    """The files of the questions, the loss, and weights that moved and load as transformers' own."""
    flags = f"--documents {files}/docs.jsonl --questions {files}/questions.jsonl --model_name_or_path {files}/{arch} --max_steps 2"
    flags += f" --objective {objective} --attn_implementation {attention} --output_dir {tmp_path} --per_device_train_batch_size 2"
    flags += " --gradient_accumulation_steps 1 --learning_rate 1e-3 --max_new_tokens 6 --logging_steps 1 --bf16 false --disable_tqdm true"
    record = train(*parse_train(flags.split()), say=[].append)
    assert record["status"] == "finished"
    assert [point["step"] for point in record["curve"]] == [1, 2]
    state = json.loads((tmp_path / "checkpoint-2" / "trainer_state.json").read_text())
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
    assert [row["question"] for _, row in read_jsonl(tmp_path / "answers.jsonl")] == [q["question"] for q in QUESTIONS[2:]]
    before, after = load_file(files / arch / "model.safetensors"), load_file(tmp_path / "checkpoint-2" / "model.safetensors")
    assert set(before) == set(after)  # each tied weight once
    assert not any(torch.equal(before[name], after[name]) for name in before)
    _, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_eager_and_sdpa_train_alike(arch, files):
    """The same logits of a padded batch, at its real tokens."""
    ids = torch.randint(5, 300, (2, 30), generator=torch.Generator().manual_seed(0))
    real = torch.tensor([[1] * 30, [1] * 17 + [0] * 13])
    found = []
    for attention in ("eager", "sdpa"):
        model = load_model(str(files / arch), attn_implementation=attention)
        assert model.config._attn_implementation == attention
        with torch.no_grad():
            found.append(model(input_ids=ids, attention_mask=real).logits[real.bool()])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


PROMPTS = [
    "Who keeps bees?",
    "The mason and the baker met on 12 May 1984, near the old mill. Whom did the mason meet, and when, and where was it?",
    "Ann",
    "A list: one, two, three; then 45, 678 and 9. " * 3,
    "Tell me a fact.",
]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_batch_answers_as_single_prompts_do(arch, attention, files):
    """In float32, for prompts much shorter and longer than a sliding window."""
    model, tokenizer = load_model(str(files / arch), attn_implementation=attention), load_tokenizer(str(files / arch))
    chat = ChatFormat(tokenizer)
    prompts = [chat.prompt(chat.content(text)) for text in PROMPTS]
    alone = [generate(model, tokenizer, [prompt], stop_ids=chat.stop_ids(), max_new_tokens=24)[0] for prompt in prompts]
    for batch_size in (2, 5):
        assert generate(model, tokenizer, prompts, stop_ids=chat.stop_ids(), max_new_tokens=24, batch_size=batch_size) == alone
    assert len(set(alone)) > 2  # what a random model says depends on its prompt


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_batch_answers_as_plain_greedy_search(arch, files):
    """Against a loop of whole forward passes without padding, cache or `generate`."""
    model, tokenizer = load_model(str(files / arch)), load_tokenizer(str(files / arch))
    chat = ChatFormat(tokenizer)
    prompts = [chat.prompt(chat.content(text)) for text in PROMPTS[:3]]
    expected = []
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + 12 and (len(ids) == len(prompt) or ids[-1] not in chat.stop_ids()):
            with torch.no_grad():
                ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip())
    assert generate(model, tokenizer, prompts, stop_ids=chat.stop_ids(), max_new_tokens=12) == expected


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_evaluation_by_any_batch_size(arch, files, tmp_path):
    questions = files / "questions.jsonl"
    results = [evaluate(str(files / arch), questions, tmp_path / str(n), max_new_tokens=6, batch_size=n, quiet=True) for n in (1, 4)]
    assert results[0] == results[1]
    assert (tmp_path / "1" / "answers.jsonl").read_text() == (tmp_path / "4" / "answers.jsonl").read_text()
