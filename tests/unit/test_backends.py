"""Continuous batching and vLLM give the texts of the plain decoder. vLLM is a stand-in that records how it is called."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import BloomConfig, BloomForCausalLM, MambaConfig, MambaForCausalLM

from demask.chat_format import ChatFormat
from demask.cli import main
from demask.decoding import check_decoding, continuous, generate, vllm
from demask.models.load import load_config, load_model
from demask.stages import eval as stage
from demask.stages.eval import ask, evaluate
from demask.types import Document, InputError, Question, read_jsonl, write_questions
from tests.models import ARCHITECTURES, config_of, make_model, save_model
from tests.tokenizers import llama3

TOKENIZER = llama3()
CHAT = ChatFormat(TOKENIZER)
TEXTS = ["Who keeps bees? Ann?", "Ann", "A list: one, two, three; then 45, 678 and 9.", "Who met near the old mill?", "?"]
PROMPTS = [CHAT.prompt(CHAT.content(text)) for text in TEXTS]
STOPS = list(range(0, 400, 11))  # so that answers end at different places
QUESTIONS = [Question(text, ("Ann",), "forward", "facts", f"d{i}") for i, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("backends") / "m")


def refused(model: str, out: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        evaluate(model, QUESTIONS, out, quiet=True, **options)
    assert not out.exists()
    return str(caught.value)


# -- continuous batching -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", [*ARCHITECTURES, "adapter"])
def test_continuous_batching_gives_the_same_texts(arch):
    model = make_model("llama" if arch == "adapter" else arch, vocab_size=480)
    if arch == "adapter":
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(model, lora).eval()
    attention = model.config._attn_implementation
    options: dict[str, Any] = {"stop_ids": STOPS, "max_new_tokens": 12}
    expected = generate(model, TOKENIZER, PROMPTS, **options)
    assert len(set(expected)) > 1
    done: list[int] = []
    for batch_size in (2, 64):
        texts = generate(model, TOKENIZER, PROMPTS, backend="continuous", batch_size=batch_size, progress=done.append, **options)
        assert texts == expected
    assert done == [5, 5]
    assert model.config._attn_implementation == attention
    assert not model.training


def test_prompts_and_answers_longer_than_a_page(saved):
    model = load_model(saved)
    prompts = [CHAT.prompt(CHAT.content("Ann keeps bees. " * n)) for n in (60, 30)]
    assert max(map(len, prompts)) > 256
    options: dict[str, Any] = {"stop_ids": STOPS[:3], "max_new_tokens": 40, "batch_size": 1}
    assert generate(model, TOKENIZER, prompts, backend="continuous", **options) == generate(model, TOKENIZER, prompts, **options)


def test_no_prompts_and_the_training_mode(saved):
    model = load_model(saved).train()
    assert continuous.generate(model, TOKENIZER, [], stop_ids=STOPS) == []
    continuous.generate(model, TOKENIZER, PROMPTS[:1], stop_ids=STOPS, max_new_tokens=2)
    assert model.training


def test_a_prompt_without_an_answer_is_an_error():
    answers = {"a": SimpleNamespace(generated_tokens=[1], error=None), "b": SimpleNamespace(generated_tokens=[], error="no room")}
    model = SimpleNamespace(training=False, eval=lambda: None, train=lambda mode: None)
    model._can_set_attn_implementation = lambda: True
    model.generate_batch = lambda *args, **options: answers
    with pytest.raises(RuntimeError, match=r"^continuous batching answered 2 of 2 prompts \(no room\)$"):
        continuous.generate(model, TOKENIZER, PROMPTS[:2], stop_ids=STOPS)
    with pytest.raises(RuntimeError, match=r"^continuous batching answered 2 of 3 prompts \(no room\)$"):
        continuous.generate(model, TOKENIZER, PROMPTS[:3], stop_ids=STOPS)


def test_architectures_without_paged_attention_are_refused():
    plain: dict[str, Any] = {"vocab_size": 480, "hidden_size": 32, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    bloom = BloomForCausalLM(BloomConfig(**plain, n_layer=1, n_head=4))
    mamba = MambaForCausalLM(MambaConfig(**plain, num_hidden_layers=1))
    for model, why in ((bloom, "BloomForCausalLM"), (mamba, "Invalid layer type: linear_attention")):
        with pytest.raises(InputError) as caught:
            continuous.generate(model, TOKENIZER, PROMPTS, stop_ids=STOPS)
        assert str(caught.value) == f"backend: 'continuous' can't take this architecture ({why})"


def test_eval_by_continuous_batching(saved, tmp_path, capsys):
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    results = {}
    for backend in ("transformers", "continuous"):
        out = str(tmp_path / backend)
        command = ["eval", "--model_name_or_path", saved, "--questions", str(tmp_path / "q.jsonl"), "--output_dir", out]
        with pytest.raises(SystemExit) as ended:
            main([*command, "--backend", backend, "--max_new_tokens", "6"])
        assert ended.value.code == 0
        results[backend] = [record for _, record in read_jsonl(Path(out) / "answers.jsonl")]
        assert json.loads((Path(out) / "results.json").read_text())["settings"]["backend"] == backend
    assert results["continuous"] == results["transformers"]


# -- vLLM ----------------------------------------------------------------------------------------------------------------------------


@dataclass
class Calls:
    """What the stand-in was asked, and what it says to each prompt."""

    said: list[list[int]]
    engines: list[dict[str, Any]] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)


def stand_in(monkeypatch: pytest.MonkeyPatch, said: list[list[int]]) -> Calls:
    calls = Calls(said)

    class LLM:
        def __init__(self, **options: Any) -> None:
            calls.engines.append(options)

        def generate(self, prompts: list[dict[str, list[int]]], sampling: Any, **options: Any) -> list[Any]:
            calls.asked.append({"prompts": prompts, "sampling": sampling, **options})
            return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(ids))]) for ids in calls.said]

    module, request = ModuleType("vllm"), ModuleType("vllm.lora.request")
    module.LLM, module.SamplingParams = LLM, lambda **options: options  # type: ignore[attr-defined]
    request.LoRARequest = lambda *args: args  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    monkeypatch.setitem(sys.modules, "vllm.lora", ModuleType("vllm.lora"))
    monkeypatch.setitem(sys.modules, "vllm.lora.request", request)
    return calls


def test_what_vllm_is_asked(monkeypatch, saved, tmp_path):
    bees = CHAT.content("Ann keeps bees.")
    calls = stand_in(monkeypatch, [[*bees, CHAT.end], bees, [CHAT.end, *bees], [], bees[:1]])
    results = evaluate(saved, QUESTIONS, tmp_path, backend="vllm", dtype=torch.bfloat16, max_new_tokens=9, batch_size=7, quiet=True)
    longest = max(map(len, PROMPTS))
    assert calls.engines == [
        {
            "model": saved,
            "tokenizer": saved,
            "dtype": "bfloat16",
            "generation_config": "vllm",
            "max_model_len": longest + 9,
            "max_num_seqs": 7,
        }
    ]
    assert calls.asked == [
        {
            "prompts": [{"prompt_token_ids": prompt} for prompt in PROMPTS],
            "sampling": {"temperature": 0.0, "max_tokens": 9, "stop_token_ids": CHAT.stop_ids()},
            "use_tqdm": False,
        }
    ]
    said = [record["prediction"] for _, record in read_jsonl(tmp_path / "answers.jsonl")]
    assert said == ["Ann keeps bees.", "Ann keeps bees.", "", "", TOKENIZER.decode(bees[:1]).strip()]
    assert {name: results["settings"][name] for name in ("backend", "dtype")} == {"backend": "vllm", "dtype": "bfloat16"}


@pytest.mark.parametrize(("rank", "room"), [(4, 8), (16, 16), (33, 64)])
def test_an_adapter_is_applied_to_its_base(monkeypatch, saved, tmp_path, rank, room):
    adapter = str(tmp_path / "adapter")
    lora = LoraConfig(r=rank, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(load_model(saved), lora).save_pretrained(adapter)
    TOKENIZER.save_pretrained(adapter)
    calls = stand_in(monkeypatch, [[CHAT.end]] * len(QUESTIONS))
    evaluate(adapter, QUESTIONS, tmp_path / "out", backend="vllm", quiet=True)
    engine = calls.engines[0]
    assert {name: engine[name] for name in ("model", "tokenizer", "enable_lora", "max_lora_rank")} == {
        "model": saved,
        "tokenizer": adapter,
        "enable_lora": True,
        "max_lora_rank": room,
    }
    assert calls.asked[0]["lora_request"] == ("adapter", 1, adapter)


def test_no_prompts_start_no_engine(monkeypatch, saved):
    calls = stand_in(monkeypatch, [])
    assert vllm.generate(vllm.Checkpoint(saved, load_config(saved), torch.float32), TOKENIZER, [], stop_ids=STOPS) == []
    assert calls.engines == []


def test_what_vllm_says_of_a_checkpoint_is_one_line(monkeypatch, saved, tmp_path):
    stand_in(monkeypatch, [])

    def fail(**options: Any) -> None:
        raise ValueError("no such\narchitecture")

    monkeypatch.setattr(sys.modules["vllm"], "LLM", fail)
    message = refused(saved, tmp_path / "out", backend="vllm")
    assert message == f"model '{saved}': can't load its weights in vLLM (no such architecture)"


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_command_says_what_to_install(saved, tmp_path, capsys):
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    command = ["eval", "--model_name_or_path", saved, "--questions", str(tmp_path / "q.jsonl"), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--backend", "vllm"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "demask: backend: vllm is not installed (pip install 'demask[vllm]')\n"
    assert not (tmp_path / "out").exists()


def test_vllm_is_for_a_single_process(monkeypatch, saved, tmp_path):
    stand_in(monkeypatch, [])
    monkeypatch.setattr(stage, "place", lambda: (0, 2))
    assert refused(saved, tmp_path / "out", backend="vllm") == "backend: 'vllm' is for a single process, without a launcher"


def test_vllm_can_not_say_what_was_known_before(monkeypatch, saved, tmp_path):
    stand_in(monkeypatch, [])
    message = "backend: 'vllm' is for one set of questions (not with retention_questions, retention_documents)"
    assert refused(saved, tmp_path / "out", backend="vllm", retention_questions=QUESTIONS) == message
    assert refused(saved, tmp_path / "out", backend="vllm", retention_documents=[Document("a", "Ann.")]) == message


# -- what is refused -----------------------------------------------------------------------------------------------------------------


def test_an_unknown_backend_and_dtype(saved, tmp_path, capsys):
    message = "backend: must be one of transformers, continuous, vllm, found 'fast'"
    assert refused(saved, tmp_path / "out", backend="fast") == message
    with pytest.raises(InputError) as caught:
        ask(load_model(saved), CHAT, QUESTIONS, backend="fast")
    assert str(caught.value) == message
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--questions", "q.jsonl", "--output_dir", str(tmp_path / "out"), "--dtype", "float16"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "demask: dtype: must be one of float32, bfloat16, found 'float16'\n"


@pytest.mark.parametrize("backend", ["continuous", "vllm"])
def test_a_diffusion_model_is_asked_by_transformers_alone(backend):
    with pytest.raises(InputError) as caught:
        check_decoding(config_of("llama", is_causal=False), TOKENIZER, None, backend)
    assert str(caught.value) == f"backend: '{backend}' writes left to right, and this checkpoint is a masked diffusion model"
