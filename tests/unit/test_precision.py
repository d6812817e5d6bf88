"""What a plan says of precision and threads, and what a resumed run goes on with."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from demask.settings import TrainArguments, TrainSettings
from demask.stages.precision import how_computed, take_threads_of
from demask.stages.train import _refuse_changed
from demask.types import InputError


@pytest.mark.parametrize(
    ("settings", "arguments", "compute", "weights"),
    [
        ({}, {"bf16": True}, "bfloat16", "float32"),
        ({}, {"bf16": False}, "float32", "float32"),
        ({"use_peft": True}, {"bf16": True}, "bfloat16", "bfloat16"),
        ({"use_peft": True}, {"bf16": False}, "float32", "float32"),
        ({"dtype": "bfloat16"}, {"bf16": False}, "bfloat16", "bfloat16"),
        ({"use_peft": True, "load_in_4bit": True}, {"bf16": True}, "bfloat16", "4 bits"),
    ],
)
def test_the_plans_numbers(settings, arguments, compute, weights):
    args = TrainArguments(output_dir="out", use_cpu=True, **arguments)
    expected = {"torch_compile": False, "compute_dtype": compute, "weights_dtype": weights, "processes": 1, "threads": 1}
    assert how_computed(TrainSettings(**settings), args) == expected
    args.torch_compile = True
    assert how_computed(TrainSettings(**settings), args)["torch_compile"] is True


SAME = dict.fromkeys(("objective", "seed", "steps", "batch_size", "learning_rate", "tokens", "data"), 1)
NOW = {**SAME, "torch_compile": True, "compute_dtype": "float32", "weights_dtype": "float32"}


@pytest.mark.parametrize(
    ("name", "was", "told"),
    [
        ("torch_compile", False, "torch_compile was False and is now True"),
        ("compute_dtype", "bfloat16", "compute_dtype was bfloat16 and is now float32"),
        ("weights_dtype", "4 bits", "weights_dtype was 4 bits and is now float32"),
    ],
)
def test_a_resume_that_computes_otherwise_is_refused(name, was, told):
    with pytest.raises(InputError, match=rf"^resume_from_checkpoint: {told}; a run continues only as it began$"):
        _refuse_changed({"plan": {**NOW, name: was}}, SimpleNamespace(numbers=NOW))
    _refuse_changed({"plan": SAME}, SimpleNamespace(numbers=NOW))  # an older record says nothing of it


@pytest.fixture
def _threads():
    yield
    torch.set_num_threads(1)


@pytest.mark.usefixtures("_threads")
def test_a_resume_takes_the_threads_the_run_began_with():
    cpu = SimpleNamespace(use_cpu=True, world_size=1)
    for before in (None, {}, {"plan": {}}, {"plan": {"threads": 1, "processes": 1}}, {"plan": {"threads": 2, "processes": 2}}):
        assert take_threads_of(before, cpu) == []
    began = {"plan": {"threads": 2, "processes": 1}}
    assert take_threads_of(began, SimpleNamespace(use_cpu=False, world_size=1)) == []
    assert torch.get_num_threads() == 1
    assert take_threads_of(began, cpu) == ["threads: 2, as the run began, not 1: with others it would round differently"]
    assert torch.get_num_threads() == 2
