"""The flags that save memory and time train what a run without them trains: packed rows, checkpointing, 8 and 4 bits, compiling."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from transformers import TrainerCallback

from demask.models.load import load_model
from demask.packing import NAME
from demask.settings import parse_train
from demask.stages import plan
from demask.stages.eval import evaluate
from demask.stages.train import train
from demask.types import InputError, Question, write_questions
from tests.models import save_model

TEXTS = ["Ann is the woman who keeps bees.", "The mason met the baker.", "They were glad!", "The baker keeps a list: one, two, three."]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    (folder / "docs.jsonl").write_text("".join(json.dumps({"id": str(i), "text": text}) + "\n" for i, text in enumerate(TEXTS)))
    save_model(folder / "base")
    return folder


def run(files: Path, out: Path, *more: str, model: list[Any] | None = None) -> dict[str, Any]:
    """Four steps of four documents in fp32, the last of which hands the model to `model`."""

    class Look(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, **kwargs):
            seen.append(model)

    seen = [] if model is None else model
    flags = (
        f"--documents {files}/docs.jsonl --model_name_or_path {files}/base --output_dir {out} --bf16 false --max_steps 4 --logging_steps 1"
    )
    flags += " --per_device_train_batch_size 4 --gradient_accumulation_steps 1 --learning_rate 1e-3 --save_strategy no --disable_tqdm true"
    return train(*parse_train([*flags.split(), *more]), say=[].append, callbacks=[Look()])


@pytest.fixture(scope="module")
def plain(files, tmp_path_factory) -> dict[str, torch.Tensor]:
    """The weights of a run on padded rows."""
    out = tmp_path_factory.mktemp("plain") / "out"
    run(files, out, "--attn_implementation", "sdpa")
    return load_file(out / "model.safetensors")


@pytest.fixture(scope="module")
def lora(files, tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("lora") / "out"
    run(files, out, "--use_peft", "--attn_implementation", "sdpa")
    return load_file(out / "adapter_model.safetensors")


def assert_close(out: Path, expected: dict[str, torch.Tensor]) -> None:
    name = "adapter_model.safetensors" if (out / "adapter_config.json").exists() else "model.safetensors"
    torch.testing.assert_close(load_file(out / name), expected, atol=2e-5, rtol=1e-4)


def test_rows_are_packed_unless_another_attention_is_named(files, plain, tmp_path):
    packed: list[Any] = []
    run(files, tmp_path / "packed", model=packed)
    assert packed[0].config._attn_implementation == NAME
    assert_close(tmp_path / "packed", plain)
    assert NAME not in (tmp_path / "packed" / "config.json").read_text()
    eager: list[Any] = []
    run(files, tmp_path / "eager", "--attn_implementation", "eager", model=eager)
    assert eager[0].config._attn_implementation == "eager"
    assert_close(tmp_path / "eager", plain)


def test_activation_checkpointing(files, plain, lora, tmp_path):
    run(files, tmp_path / "full", "--activation_checkpointing")
    assert_close(tmp_path / "full", plain)
    run(files, tmp_path / "lora", "--use_peft", "--activation_checkpointing")
    assert_close(tmp_path / "lora", lora)


def test_packed_rows_under_lora(files, lora, tmp_path):
    run(files, tmp_path / "out", "--use_peft")
    assert_close(tmp_path / "out", lora)


def test_an_optimiser_of_8_bits(files, plain, tmp_path):
    """Small tensors, and all of this model's are small, keep moments of 32 bits, so the weights must be nearly the same."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install 'demask[gpu]')")
    run(files, tmp_path / "out", "--optim", "adamw_bnb_8bit")
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found, plain, atol=1e-3, rtol=0.05)
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_qlora(files, lora, tmp_path):
    bitsandbytes = pytest.importorskip("bitsandbytes", reason="needs bitsandbytes (pip install 'demask[gpu]')")
    model: list[Any] = []
    record = run(files, tmp_path / "out", "--use_peft", "--load_in_4bit", model=model)
    kinds = {name.rsplit(".", 1)[-1]: type(module.base_layer) for name, module in model[0].named_modules() if hasattr(module, "base_layer")}
    assert set(kinds) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert set(kinds.values()) == {bitsandbytes.nn.Linear4bit}
    assert record["status"] == "finished"
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {name: value.shape for name, value in found.items()} == {name: value.shape for name, value in lora.items()}
    assert all(value.isfinite().all() for value in found.values())
    # The adapter goes on the base as it is stored, not in 4 bits.
    assert load_model(str(tmp_path / "out")).get_base_model().model.layers[0].mlp.up_proj.base_layer.weight.dtype == torch.float32
    question = Question("Who keeps bees?", ("Ann",), "forward")
    assert evaluate(str(tmp_path / "out"), [question], tmp_path / "eval", max_new_tokens=2, quiet=True)["n"] == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("--load_in_4bit", "load_in_4bit: needs use_peft (weights of 4 bits can't be trained, only an adapter over them)"),
        ("--load_in_4bit --use_peft", "load_in_4bit: needs bitsandbytes (pip install 'demask[gpu]')"),
    ],
)
def test_4_bits_are_refused(more, message, files, monkeypatch, tmp_path):
    monkeypatch.setattr(plan, "is_bitsandbytes_available", lambda: False)
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        run(files, tmp_path / "out", *more.split())
    assert not (tmp_path / "out").exists()


def test_ligers_own_losses_are_left_out():
    def config_of(*flags):
        return parse_train(["--documents", "d", "--output_dir", "o", *flags])[1].liger_kernel_config

    assert config_of() is None
    assert config_of("--use_liger_kernel") == {"cross_entropy": False, "fused_linear_cross_entropy": False}


@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])  # the latter: minutes of compiling
def test_compiled_layers(backend, files, plain, tmp_path):
    """Packed rows too; and questions are asked of layers that are not compiled, whatever their lengths."""
    counters.clear()
    model: list[Any] = []
    questions = [Question("Who keeps bees?" * n, ("Ann",), "forward") for n in range(1, 4)]
    write_questions(tmp_path / "q.jsonl", questions)
    more = ("--questions", f"{tmp_path}/q.jsonl", "--eval_steps", "1", "--max_new_tokens", "3", "--select_on", "last")
    compiled = ("--torch_compile", "true", "--torch_compile_backend", backend)
    run(files, tmp_path / "out", *compiled, *more, model=model)
    assert_close(tmp_path / "out", plain)
    assert model[0].config._attn_implementation == NAME
    # One graph for all layers and steps, or one more for other lengths.
    assert counters["frames"]["ok"] == counters["stats"]["unique_graphs"] <= 2
    counters.clear()
    run(files, tmp_path / "later")
    assert not counters["frames"]
    for flags, expected in (("--use_peft", None), ("--activation_checkpointing", plain)):
        run(files, tmp_path / flags, *compiled, *flags.split())
        if expected:
            assert_close(tmp_path / flags, expected)
