"""What decoders share: where an answer ends, and the end of work that processes do together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def text_of(written: Sequence[int], tokenizer: Any, stop_ids: Sequence[int]) -> str:
    """The text of the ids up to the first that ends an answer, without special tokens."""
    end = next((number for number, token in enumerate(written) if token in stop_ids), len(written))
    return tokenizer.decode(torch.tensor(written[:end]), skip_special_tokens=True).strip()


def anywhere(here: bool, jointly: bool, device: torch.device) -> bool:
    """Whether it is so here, or, where processes run a model jointly, in any of them."""
    if not jointly:
        return here
    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
