"""One loss for every objective: sum(weight x nll) / normaliser, with logits computed at target positions only.

Shapes: B rows, L tokens, N targets in the batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from demask.chat_format import IGNORE


def target_nll(model: Any, batch: dict[str, torch.Tensor], next_token: bool = True) -> torch.Tensor:
    """(N,) fp32 negative log-likelihoods, in nats, of the targets in `labels` (B, L), none of which stands at position 0.

    Each is predicted at the position before it (`next_token`) or at its own (a diffusion model whose logits are not shifted).
    The model's head runs on those N positions only (`logits_to_keep` as a (B, L) bool mask): half of the logits for demask. Without
    any target the result is one zero that depends on the model, so that every process still has a gradient to reduce.
    """
    targets_BL = batch["labels"][:, 1:]
    keep_BL = torch.zeros_like(batch["labels"], dtype=torch.bool)
    (keep_BL[:, :-1] if next_token else keep_BL[:, 1:]).copy_(targets_BL != IGNORE)
    targets_N = targets_BL[targets_BL != IGNORE]
    if not len(targets_N):
        keep_BL[0, 0] = True
    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], logits_to_keep=keep_BL, use_cache=False)
    logits_NV = output.logits.flatten(0, -2).float()
    if not len(targets_N):
        return logits_NV.sum(dim=-1) * 0.0
    return functional.cross_entropy(logits_NV, targets_N, reduction="none")


def weighted_sum(nll_N: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The batch's sum of weight x nll; `loss_weights` (B, L), where the batch has them, stand at the targets' own positions."""
    weights_BL = batch.get("loss_weights")
    if weights_BL is None:
        return nll_N.sum()
    return (nll_N * weights_BL[:, 1:][batch["labels"][:, 1:] != IGNORE]).sum()
