"""From one process to many (torchrun, accelerate launch): who this one is, work in shares, models in shards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import distributed
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from transformers.integrations import deepspeed, is_deepspeed_zero3_enabled

from demask.types import InputError

Result = TypeVar("Result")


def join() -> torch.device:
    """This process's device, once it has met the others that a launcher started with it."""
    accelerator = torch.accelerator.current_accelerator()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return PartialState(cpu=accelerator is None).device  # of a training that has met already: as it is
    return accelerator or torch.device("cpu")


def place() -> tuple[int, int]:
    """(this process's number, how many they are)."""
    return (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)


def is_main() -> bool:
    """Whether this process is the one that prints and writes."""
    return place()[0] == 0


def in_shares(work: Callable[[list[int]], Sequence[Result]], sizes: Sequence[float]) -> list[Result]:
    """The results of `work(numbers)` for the numbers of all `sizes`, in order, on every process; each works at a share of them.

    Shares are of about the same total size, and of exactly as many numbers, for which a few are done twice: models whose forward is a
    joint one (`runs_jointly`) need equally many batches. Every process must call it, with the same sizes.
    """
    (rank, processes), n = place(), len(sizes)
    if processes == 1 or not n:
        return list(work(list(range(n))))
    order = sorted(range(n), key=lambda i: -sizes[i])
    mine = [order[i % n] for i in range(rank, share_of(n) * processes, processes)]
    shares: list[Any] = [None] * processes
    distributed.all_gather_object(shares, list(zip(mine, work(mine), strict=True)))
    results = {i: result for share in shares for i, result in share}
    return [results[i] for i in range(n)]


def share_of(n: int) -> int:
    """How many of n pieces of work each process does."""
    return -(-n // place()[1])


def runs_jointly(model: Any) -> bool:
    """Whether each of several processes holds a part of the model's weights only, so that all must call its forward equally often."""
    if place()[1] == 1:
        return False
    # Any module, since only what is inside of an adapter or a wrapper may be sharded. transformers' own look misses accelerate's FSDP2.
    return is_deepspeed_zero3_enabled() or any(isinstance(module, FSDPModule | FullyShardedDataParallel) for module in model.modules())


@contextlib.contextmanager
def whole_models() -> Iterator[None]:
    """In here a model is made or loaded whole in every process, also where the one in training is in shards from the beginning."""
    was, efficient = deepspeed._hf_deepspeed_config_weak_ref, os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING")
    deepspeed._hf_deepspeed_config_weak_ref = None  # else from_pretrained deals the weights out (ZeRO-3)
    if efficient is not None:
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"  # else only the first process reads them
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = was
        if efficient is not None:
            os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = efficient


def sharding(use_cpu: bool) -> str | None:
    """What the launcher asks for: "FSDP", "DeepSpeed" or None. On CPUs accelerate passes over the first."""
    if parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        return "DeepSpeed"
    return "FSDP" if parse_flag_from_env("ACCELERATE_USE_FSDP") and not use_cpu else None


def refuse_other_layout(checkpoint: str | Path, now: str | None) -> None:
    """Raise InputError for a checkpoint that was saved under another `sharding` than this run's, or by DeepSpeed in other processes."""
    folder = Path(checkpoint)
    was = "DeepSpeed" if any(folder.glob("global_step*")) else "FSDP" if any(folder.glob("pytorch_model_fsdp*")) else None
    if was != now:
        raise InputError(
            f"resume_from_checkpoint: '{folder}' was saved {f'under {was}' if was else 'whole'}, and this run trains "
            f"{f'under {now}' if now else 'with whole weights'}; start it with the launcher's configuration it began with"
        )
    parts, processes = len(list(folder.glob("global_step*/*zero_pp_rank_*optim_states.pt"))), place()[1]
    if parts not in (0, processes):
        raise InputError(
            f"resume_from_checkpoint: '{folder}' was saved by {parts} processes of DeepSpeed, which must be as many now, not {processes}"
        )
