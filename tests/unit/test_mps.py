"""Apple's GPUs, which no test has: the choices made for them, and that torch has a kernel there for all that training and asking call."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchgen
from torch.utils._python_dispatch import TorchDispatchMode
from torchgen.gen import parse_native_yaml
from torchgen.model import DispatchKey

from demask import packing, shortage
from demask.decoding.diffusion import _generators
from demask.recipes import recipe
from demask.settings import TrainArguments, TrainSettings, native_bf16
from demask.stages import study
from demask.stages.plan import fill_in
from demask.stages.train import train
from demask.types import Document, Question, write_documents, write_questions
from tests.models import config_of, save_model
from tests.tokenizers import llama3

MPS = torch.device("mps")


@pytest.fixture
def _mps(monkeypatch):
    """An Apple GPU, as far as questions about it go."""
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: MPS)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(TrainArguments, "device", property(lambda self: self._setup_devices and MPS))


@pytest.mark.usefixtures("_mps")
def test_it_is_used_in_float32_without_pinned_memory(monkeypatch):
    args = TrainArguments(output_dir="out")
    assert (args.use_cpu, args.bf16, native_bf16(args.use_cpu)) == (False, False, False)
    fill_in(args, TrainSettings(), config_of("llama"), recipe("demask", 10**6, False), 60, asks=False, replays=False)
    assert args.dataloader_pin_memory is False
    assert study._default_jobs() == 1  # they would share the one there is
    freed = []
    monkeypatch.setattr(torch.mps, "empty_cache", lambda: freed.append(True))
    shortage.empty_cache()
    assert freed == [True]


def test_what_needs_float64_is_drawn_on_the_cpu():
    assert [g.device.type for g in _generators([[1], [2]], 0, MPS)] == ["cpu", "cpu"]


class Called(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func.namespace == "aten":
            self.names.add(func.name().removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def test_torch_has_every_kernel(monkeypatch, tmp_path):
    """By torch's own table of operators (native_functions.yaml). A CPU's attention kernels have counterparts with names of their own."""
    monkeypatch.setattr(packing, "SHORT", 0)  # as on any other device, not the plain products of a CPU
    table = Path(torchgen.__file__).parent / "packaged" / "ATen" / "native"
    parsed = parse_native_yaml(str(table / "native_functions.yaml"), str(table / "tags.yaml"))
    there = {str(name) for name in parsed.backend_indices[DispatchKey.MPS].index}
    for function in parsed.native_functions:
        composite = function.has_composite_implicit_autograd_kernel or function.has_composite_explicit_autograd_kernel
        composite = composite or function.has_composite_explicit_autograd_non_functional_kernel
        if composite or str(function.structured_delegate) in there:
            there.add(str(function.func.name))
    assert "index_copy_" in there
    assert "_linalg_eigh" not in there, "the table tells what is missing"

    write_documents(tmp_path / "d.jsonl", [Document("a", "Ann keeps bees."), Document("b", "The mason met the baker.")])
    write_questions(tmp_path / "q.jsonl", [Question("Who keeps bees?", ("Ann",), "backward", split=s) for s in ("validation", "test")])
    both_ways, tokenizer = save_model(tmp_path / "both_ways", is_causal=False), llama3()
    tokenizer.mask_token = "<|reserved_special_token_0|>"
    tokenizer.save_pretrained(both_ways)
    called = Called()
    for objective, model in (("demask", save_model(tmp_path / "m")), ("diffusion", both_ways)):
        settings = TrainSettings([str(tmp_path / "d.jsonl")], str(tmp_path / "q.jsonl"), model, objective, max_new_tokens=4)
        args = TrainArguments(output_dir=str(tmp_path / objective), max_steps=2, bf16=False, use_cpu=True, disable_tqdm=True)
        with called:
            train(settings, args, say=[].append)
    assert called.names - there <= {f"_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")}
