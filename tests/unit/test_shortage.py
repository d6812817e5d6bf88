"""Running out of memory is recognised by what torch raises on every kind of device, and told in one line."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from demask.shortage import advice_when_out_of_memory, is_out_of_memory, training_advice
from demask.types import InputError

CPU = "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2.00 GiB.\nmore"),
            "CUDA out of memory. Tried 2.00 GiB.",
        ),
        (RuntimeError(CPU), CPU),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), "MPS backend out of memory (MPS allocated: 9 GB)"),
        (MemoryError(), "MemoryError"),
    ],
)
def test_it_is_told_in_one_line(error, said):
    with pytest.raises(InputError) as caught, advice_when_out_of_memory("in training", "try less"):
        raise error
    assert str(caught.value) == f"out of memory in training: try less ({said})"


def test_a_real_shortage_of_a_cpu():
    with pytest.raises(InputError, match=r"^out of memory here: none \(.*can't allocate memory"), advice_when_out_of_memory("here", "none"):
        torch.empty(2**55)


def test_other_errors_pass():
    for error in (RuntimeError("shapes do not fit"), ValueError("out of memory"), KeyError("x")):
        assert not is_out_of_memory(error)
        with pytest.raises(type(error)), advice_when_out_of_memory("in training", "try less"):
            raise error


@pytest.mark.parametrize(
    ("rows", "micro", "checkpointing", "adapter", "ways"),
    [
        (
            8,
            4,
            False,
            False,
            ["--per_device_train_batch_size 4 --gradient_accumulation_steps 8", "--activation_checkpointing", "--use_peft"],
        ),
        (6, 1, True, False, [(3, 2), "--use_peft"]),
        (5, 1, True, True, [(1, 5)]),  # two would not divide the batch
        (1, 32, False, True, ["--activation_checkpointing"]),
    ],
)
def test_the_advice_keeps_the_batch_and_leaves_out_what_is_done(rows, micro, checkpointing, adapter, ways):
    args = SimpleNamespace(per_device_train_batch_size=rows, gradient_accumulation_steps=micro, gradient_checkpointing=checkpointing)
    advice = training_advice(SimpleNamespace(use_peft=adapter), args)
    flags = "--per_device_train_batch_size {} --gradient_accumulation_steps {}"
    ways = [flags.format(*way) if isinstance(way, tuple) else way for way in ways]
    assert [way for way in advice.removeprefix("try ").split(", ") if way != "a smaller --max_length"] == ways
    assert "a smaller --max_length" in advice
