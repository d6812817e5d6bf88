"""What every decoder needs: where an answer ends, and the company that sharded weights keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled
from transformers.integrations.fsdp import is_fsdp_managed_module


def text_of(written: Sequence[int], tokenizer: Any, stop_ids: Sequence[int]) -> str:
    """The text of the ids up to the first that ends an answer, without special tokens."""
    end = next((place for place, token in enumerate(written) if token in stop_ids), len(written))
    return tokenizer.decode(torch.tensor(written[:end]), skip_special_tokens=True).strip()


def is_sharded(model: Any) -> bool:
    """Whether processes hold the weights together: a forward pass is then a joint one, and all must make equally many."""
    # Any module, since only what is inside of an adapter or a wrapper may be sharded.
    return is_deepspeed_zero3_enabled() or any(map(is_fsdp_managed_module, model.modules()))


def anywhere(here: bool, sharded: bool, device: torch.device) -> bool:
    """Whether it is so here, or in any of the processes that must compute together with this one."""
    if not sharded:
        return here
    flag = torch.tensor(int(here), device=device)
    torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
    return bool(flag)
