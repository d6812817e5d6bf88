"""One loss for every objective: sum(weight x nll) / normaliser, with logits computed at target positions only.

Shapes: B rows, L tokens, N targets in the batch, V vocabulary, C targets of one chunk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

import torch
from accelerate.utils import extract_model_from_parallel, is_compiled_module

from demask.chat_format import IGNORE

# What a model reads of a batch (the last two of a packed one, see packing.py).
_READ = ("input_ids", "attention_mask", "position_ids", "packed_places")
# Models found to change what their head gives (softcapping, scaling), whose logits must be waited for.
_ADJUSTING: WeakSet[Any] = WeakSet()
# Logits in fp32 at a time, by device: a GPU wants few large kernels.
CHUNK = {"cpu": 2**20, "cuda": 2**26}


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
    none = not len(targets_N)
    if none:
        keep_BL[0, 0] = True
        targets_N = targets_BL.new_zeros(1)
    inputs: dict[str, Any] = {name: batch[name] for name in _READ if name in batch}
    inputs |= {"logits_to_keep": keep_BL, "use_cache": False}
    nll_N = _nll_at_the_head(model, inputs, targets_N)
    if nll_N is None:
        nll_N = TargetNll.apply(model(**inputs).logits.flatten(0, -2), targets_N)
    return nll_N * 0.0 if none else nll_N


def _nll_at_the_head(model: Any, inputs: dict[str, Any], targets_N: torch.Tensor) -> torch.Tensor | None:
    """The targets' nll, taken by a hook where the head has just made its logits; None where that can't be done.

    What leaves a model's forward is converted to fp32 on the way (accelerate, under mixed precision), which would be a second and larger
    copy of all logits. The hook needs no weights, so that sharded, quantised, tied and LoRA-wrapped heads are all the same to it.
    """
    if not isinstance(model, torch.nn.Module) or isinstance(model, torch.nn.DataParallel) or is_compiled_module(model):
        return None
    causal_lm = extract_model_from_parallel(model)
    head = causal_lm.get_output_embeddings()
    if head is None or causal_lm in _ADJUSTING:
        return None
    found = []

    def hook(module: Any, args: Any, logits: torch.Tensor) -> torch.Tensor:
        found.append(TargetNll.apply(logits.flatten(0, -2), targets_N))
        return found[0]

    handle = head.register_forward_hook(hook)
    try:
        given = model(**inputs).logits
    finally:
        handle.remove()
    # What a model gives as its logits must be what the hook returned, but for the dtype (FSDP casts it).
    if given is not found[0] and not torch.equal(given.detach(), found[0].detach().to(given.dtype)):
        _ADJUSTING.add(causal_lm)
        return None
    return found[0]


class TargetNll(torch.autograd.Function):
    """(N,) fp32 cross-entropy of (N, V) logits with (N,) targets, in nats: computed in fp32, while the logits stay in their own dtype.

    The backward pass writes the gradient over the logits. So of N x V numbers there is one copy, of 2 bytes each in bfloat16, where
    `cross_entropy(logits.float(), ...)` holds up to 16 bytes. A second backward pass through the same graph is refused by autograd.
    """

    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        nll = []
        for space_CV, logits_CV, targets_C in TargetNll._chunks(logits_NV, targets_N):
            below_CV = TargetNll._difference(logits_CV, logits_CV.amax(1, keepdim=True).float(), space_CV)
            target_C = below_CV.gather(1, targets_C[:, None])[:, 0]
            nll.append(below_CV.exp_().sum(1).log_().sub_(target_C))
        nll_N = torch.cat(nll)
        ctx.save_for_backward(logits_NV, targets_N, nll_N)
        return nll_N

    @staticmethod
    def backward(ctx: Any, gradient_N: torch.Tensor) -> tuple[torch.Tensor, None]:
        """(softmax - one-hot) x gradient; the softmax is exp(logit - log total), and log total = nll + the target's logit."""
        logits_NV, targets_N, nll_N = ctx.saved_tensors
        log_total_N = nll_N + logits_NV.gather(1, targets_N[:, None])[:, 0].float()
        for space_CV, logits_CV, *of_C in TargetNll._chunks(logits_NV, targets_N, log_total_N, gradient_N):
            targets_C1, log_total_C1, gradient_C1 = (values_C[:, None] for values_C in of_C)
            p_CV = TargetNll._difference(logits_CV, log_total_C1, space_CV).exp_()
            p_CV.scatter_add_(1, targets_C1, torch.full_like(log_total_C1, -1.0))
            if p_CV.is_cpu:
                logits_CV.copy_(p_CV.mul_(gradient_C1))
            else:
                torch.mul(p_CV, gradient_C1, out=logits_CV)
        return logits_NV, None

    @staticmethod
    def _chunks(logits_NV: torch.Tensor, *of_N: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
        """Pieces of all, each behind (C, V) fp32 to compute it in, the same for all: new memory costs a CPU more than the arithmetic."""
        rows = max(1, min(len(logits_NV), CHUNK.get(logits_NV.device.type, 2**23) // logits_NV.shape[1]))
        space = logits_NV.new_empty(rows, logits_NV.shape[1], dtype=torch.float32)
        for pieces in zip(*(tensor.split(rows) for tensor in (logits_NV, *of_N)), strict=True):
            yield space[: len(pieces[0])], *pieces

    @staticmethod
    def _difference(logits_CV: torch.Tensor, values_C1: torch.Tensor, space_CV: torch.Tensor) -> torch.Tensor:
        """logits - values in `space_CV`. A GPU casts on the way, which spares a pass; a CPU would need new memory for that."""
        return space_CV.copy_(logits_CV).sub_(values_C1) if space_CV.is_cpu else torch.sub(logits_CV, values_C1, out=space_CV)


def weighted_sum(nll_N: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The batch's sum of weight x nll; `loss_weights` (B, L), where the batch has them, stand at the targets' own positions."""
    weights_BL = batch.get("loss_weights")
    if weights_BL is None:
        return nll_N.sum()
    return (nll_N * weights_BL[:, 1:][batch["labels"][:, 1:] != IGNORE]).sum()
