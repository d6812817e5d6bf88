"""Too little memory, told in one line with what to change."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from demask.types import InputError

# Of CUDA, Apple's MPS and cuBLAS; of a CPU on Linux; of a CPU on macOS and Windows.
_SIGNS = ("out of memory", "cublas_status_alloc_failed", "can't allocate memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left: torch says so in several ways, some of them by words alone."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _SIGNS)


@contextlib.contextmanager
def advice_when_out_of_memory(during: str, advice: str) -> Iterator[None]:
    """Turn running out of memory in here into an InputError: "out of memory <during>: <advice> (<what torch says>)"."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"out of memory {during}: {advice} ({said[:200]})") from error


def training_advice(settings: Any, args: Any) -> str:
    """What makes a training smaller; first what a resume may change, with which its steps stay the same."""
    rows, batch = args.per_device_train_batch_size, args.per_device_train_batch_size * args.gradient_accumulation_steps
    ways = []
    if rows > 1:
        fewer = max(n for n in range(1, rows // 2 + 1) if batch % n == 0)
        ways.append(f"--per_device_train_batch_size {fewer} --gradient_accumulation_steps {batch // fewer}")
    ways += [] if args.gradient_checkpointing else ["--activation_checkpointing"]
    ways += ["a smaller --max_length"] + ([] if settings.use_peft else ["--use_peft"])
    return "try " + ", ".join(ways)


def empty_cache() -> None:
    """Give back the memory of an accelerator that nothing uses any more."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
