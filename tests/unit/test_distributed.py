"""Work in shares, whole models among sharded ones, and checkpoints that a run can't go on from, without other processes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_enabled

from demask import cli, distributed, orphans
from demask.settings import parse_train
from demask.types import InputError


def shares_of(sizes: Sequence[float], processes: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[list[int]], list[list[str]]]:
    """(the numbers each process works at, the results each gets), one process after another."""
    worked: list[list[int]] = []

    def work(numbers: list[int]) -> list[str]:
        worked.append(numbers)
        return [f"result {i}" for i in numbers]

    def all_gather_object(into: list[Any], mine: Any) -> None:
        order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
        for rank in range(processes):
            numbers = [order[i % len(order)] for i in range(rank, -(-len(order) // processes) * processes, processes)]
            into[rank] = [(i, f"result {i}") for i in numbers]
        assert mine in into

    results = []
    monkeypatch.setattr(distributed.distributed, "all_gather_object", all_gather_object)
    for rank in range(processes):
        monkeypatch.setattr(distributed, "place", lambda rank=rank: (rank, processes))
        results.append(distributed.in_shares(work, sizes))
    return worked, results


def test_shares_are_even_in_number_and_about_in_size(monkeypatch: pytest.MonkeyPatch) -> None:
    worked, results = shares_of([3, 9, 1, 7, 5], 2, monkeypatch)
    assert worked == [[1, 4, 2], [3, 0, 1]]  # by size 9 7 5 3 1: every other one, and the first once more
    assert results == [[f"result {i}" for i in range(5)]] * 2


def test_more_processes_than_work(monkeypatch: pytest.MonkeyPatch) -> None:
    worked, results = shares_of([1, 2], 5, monkeypatch)
    assert worked == [[1], [0], [1], [0], [1]]
    assert results == [["result 0", "result 1"]] * 5


def test_one_process_does_all_in_order() -> None:
    assert distributed.place() == (0, 1)
    assert distributed.is_main()
    assert distributed.in_shares(lambda numbers: [i * i for i in numbers], [5, 1, 7]) == [0, 1, 4]
    assert distributed.in_shares(lambda numbers: [], []) == []
    assert distributed.share_of(7) == 7
    assert distributed.join() == (torch.accelerator.current_accelerator() or torch.device("cpu"))


class Zero3:
    """What transformers asks DeepSpeed's configuration."""

    def is_zero3(self) -> bool:
        return True


def test_models_are_whole_where_they_are_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    zero3 = Zero3()  # kept alive here: transformers refers to it weakly
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", lambda: zero3)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setattr("transformers.distributed.fsdp._is_torch_distributed_initialized", lambda: True)
    model = torch.nn.Linear(1, 1)

    def parts() -> list[bool]:
        return [is_deepspeed_zero3_enabled(), is_fsdp_enabled(), distributed.runs_jointly(model)]

    assert parts() == [True, True, False]  # one process
    monkeypatch.setattr(distributed, "place", lambda: (0, 2))
    assert parts() == [True, True, True]
    with distributed.whole_models():
        assert parts() == [False, False, False]
    with pytest.raises(ZeroDivisionError), distributed.whole_models():
        1 / 0  # noqa: B018
    assert parts() == [True, True, True]


def test_what_the_launcher_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert distributed.sharding(use_cpu=False) is None
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert distributed.sharding(use_cpu=False) == "FSDP"
    assert distributed.sharding(use_cpu=True) is None
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert distributed.sharding(use_cpu=False) == "DeepSpeed"


def checkpoint(folder: Path, kind: str | None, processes: int = 2) -> Path:
    """The files by which a checkpoint of this kind is known."""
    folder.mkdir()
    if kind == "FSDP":
        (folder / "pytorch_model_fsdp_0").mkdir()
    elif kind == "DeepSpeed":
        (folder / "global_step4").mkdir()
        for rank in range(processes):
            (folder / "global_step4" / f"bf16_zero_pp_rank_{rank}_mp_rank_00_optim_states.pt").touch()
    else:
        (folder / "model.safetensors").touch()
    return folder


@pytest.mark.parametrize("was", ["FSDP", "DeepSpeed", None])
@pytest.mark.parametrize("now", ["FSDP", "DeepSpeed", None])
def test_a_checkpoint_goes_on_as_it_was_saved(was: str | None, now: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "place", lambda: (0, 2))
    folder = checkpoint(tmp_path / "checkpoint-4", was)
    if was == now:
        distributed.refuse_other_layout(folder, now)
        return
    with pytest.raises(InputError) as caught:
        distributed.refuse_other_layout(folder, now)
    said = {"FSDP": "under FSDP", "DeepSpeed": "under DeepSpeed"}
    assert str(caught.value) == (
        f"resume_from_checkpoint: '{folder}' was saved {said.get(was or '', 'whole')}, and this run trains "
        f"{said.get(now or '', 'with whole weights')}; start it with the launcher's configuration it began with"
    )


def test_deepspeed_goes_on_with_as_many_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = checkpoint(tmp_path / "checkpoint-4", "DeepSpeed", processes=4)
    monkeypatch.setattr(distributed, "place", lambda: (0, 2))
    with pytest.raises(InputError) as caught:
        distributed.refuse_other_layout(folder, "DeepSpeed")
    assert str(caught.value) == (
        f"resume_from_checkpoint: '{folder}' was saved by 4 processes of DeepSpeed, which must be as many now, not 2"
    )


def test_deepspeed_is_for_the_launcher() -> None:
    with pytest.raises(InputError) as caught:
        parse_train(["--documents", "docs", "--output_dir", "out", "--deepspeed", "zero2.json"])
    assert str(caught.value) == (
        "deepspeed: give it to the launcher (accelerate launch --config_file configs/accelerate/deepspeed_zero2.yaml -m demask ...)"
    )


def test_without_deepspeed_its_launcher_s_wish_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr("accelerate.utils.dataclasses.is_deepspeed_available", lambda: False, raising=False)
    monkeypatch.setattr(deepspeed, "_hf_deepspeed_config_weak_ref", None)  # what it is set to goes with this test
    with pytest.raises(InputError, match=r"^training arguments: .*deepspeed.*") as caught:
        parse_train(["--documents", "docs", "--output_dir", "out"])
    assert "\n" not in str(caught.value)


def test_one_process_prints_and_tells_a_mistake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """The first at once; another only where the first has not ended it by then."""
    waited: list[float] = []
    monkeypatch.setattr(orphans.time, "sleep", waited.append)
    for rank, expected in ((0, []), (1, [5])):
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        with pytest.raises(SystemExit) as caught:
            cli.main(["eval", "--questions", "nowhere.jsonl", "--output_dir", "out"])
        assert caught.value.code == 2
        assert capsys.readouterr().err == "demask: nowhere.jsonl: no such file\n"
        assert waited == expected
        assert (getattr(sys.stdout, "name", None) == os.devnull) == (rank > 0)
        if rank:
            sys.stdout.close()
