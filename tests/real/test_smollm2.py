"""SmolLM2-135M-Instruct itself, or another model that $DEMASK_REAL_MODEL names (a folder or a GGUF file): loading, mask token, answers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demask.chat_format import ChatFormat
from demask.decoding import generate
from demask.models import load
from demask.models.convert import convert
from demask.models.gguf import gguf_file
from demask.models.mask_token import mask_candidates
from demask.settings import parse_train
from demask.stages.train import train
from demask.types import Document, write_documents

MODEL = Path(os.environ.get("DEMASK_REAL_MODEL") or Path(__file__).resolve().parents[2] / "models" / "SmolLM2-135M-Instruct")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not MODEL.exists(), reason=f"no model at {MODEL}; make real gets it, DEMASK_REAL_MODEL names another"),
]
SMOLLM2 = pytest.mark.skipif("SmolLM2-135M" not in str(MODEL), reason="what is known of SmolLM2-135M-Instruct alone")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> str:
    """The model as an ordinary folder."""
    if gguf_file(str(MODEL)) is None:
        return str(MODEL)
    target = tmp_path_factory.mktemp("real") / "SmolLM2-135M-Instruct"
    convert(str(MODEL), str(target))
    return str(target)


@SMOLLM2
def test_what_it_is(folder):
    config, tokenizer = load.load_config(folder), load.load_tokenizer(folder)
    assert load.context_length(config, tokenizer) == 8192
    assert load.parameter_counts(config)[0] == 134_515_008
    assert load.stored_dtype(folder) is torch.float32
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    chat = ChatFormat(tokenizer)
    assert tokenizer.decode(chat.head).endswith("Hugging Face<|im_end|>\n<|im_start|>user\n")
    assert chat.stop_ids() == [2]
    assert tokenizer.tokenize("Born:\n\n1984") == ["Born", ":", "ĊĊ", "1", "9", "8", "4"]
    generation = AutoModelForCausalLM.from_pretrained(folder).generation_config
    assert (generation.eos_token_id, generation.pad_token_id) == (2, 2)


@SMOLLM2
def test_its_mask_token(folder):
    mask = mask_candidates(load.load_tokenizer(folder))[0]
    assert (mask.token, mask.id, mask.reason) == ("<empty_output>", 16, "an added token that nothing else uses")


def test_a_file_gives_transformers_own_logits(folder):
    file = gguf_file(str(MODEL))
    if file is None:
        pytest.skip(f"{MODEL} is no GGUF file")
    ids = torch.tensor([load.load_tokenizer(folder).encode("The capital of France is Paris.")])
    theirs = AutoModelForCausalLM.from_pretrained(str(file.parent), gguf_file=file.name, dtype=torch.float32)
    with torch.no_grad():
        assert torch.equal(load.load_model(folder)(ids).logits, theirs(ids).logits)


def test_it_answers_and_stops(folder):
    """By our decoder and by transformers' own, which stops by the folder's generation_config."""
    model, tokenizer = load.load_model(folder), load.load_tokenizer(folder)
    chat = ChatFormat(tokenizer)
    prompt = chat.prompt(chat.content("What is the capital of France?"))
    ours = generate(model, tokenizer, [prompt], stop_ids=chat.stop_ids(), max_new_tokens=64)[0]
    assert "Paris" in ours
    plain, words = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    given = words.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    written = plain.generate(**given, max_new_tokens=64, do_sample=False)[0]
    assert written[-1].item() in chat.stop_ids()
    assert words.decode(written[given["input_ids"].shape[1] : -1]) == ours


def test_a_step_of_training_and_what_it_records(folder, tmp_path):
    write_documents(tmp_path / "d.jsonl", [Document("a", "Ann Ash is the keeper of the amber bees."), Document("b", "Bo Birch sells tin.")])
    flags = f"--model_name_or_path {folder} --documents {tmp_path}/d.jsonl --output_dir {tmp_path}/out --max_steps 1 --bf16 false"
    record = train(*parse_train([*flags.split(), "--use_cpu", "true", "--disable_tqdm", "true", "--save_strategy", "no"]))
    assert record["status"] == "finished"
    again = mask_candidates(load.load_tokenizer(str(tmp_path / "out")))[0]
    assert (again.token, again.reason) == (record["plan"]["mask_token"]["token"], "recorded by an earlier run")
