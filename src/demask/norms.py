"""RMSNorm in fewer passes over memory, and its result cast once for the linear layers that read it.

Under autocast a Llama-like layer computes its norms in fp32, in steps that each keep a tensor for the backward pass, and every linear
layer behind casts the result to bfloat16 for itself. Here a norm keeps its input and gives bfloat16: the same numbers, made once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch.nn import functional

# Families whose norms of these names compute weight x states / sqrt(mean square + eps) for linear layers and nothing else.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "phi3", "smollm3")
BEFORE_LINEAR = ("input_layernorm", "post_attention_layernorm")


@contextlib.contextmanager
def lean_norms(model: Any) -> Iterator[None]:
    """While it lasts, the norms before linear layers of a model of FAMILIES are computed by `rms_norm`; others are left as they are."""
    norms = []
    if model.config.get_text_config().model_type in FAMILIES:
        named = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in BEFORE_LINEAR]
        norms = [norm for norm in named if type(norm).__name__.endswith("RMSNorm")]  # not what an adapter wraps
    before = [vars(norm).get("forward") for norm in norms]
    for norm in norms:
        norm.forward = partial(rms_norm, norm)
    try:
        yield
    finally:
        for norm, forward in zip(norms, before, strict=True):
            del norm.forward
            if forward is not None:  # a kernel library's
                norm.forward = forward


def rms_norm(norm: Any, states: torch.Tensor) -> torch.Tensor:
    """weight x states / sqrt(mean square + eps), in fp32 (arXiv 1910.07467), in the dtype that linear layers compute in; (..., D) both."""
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    if device == "cpu":
        return _RMSNorm.apply(states, norm.weight, norm.variance_epsilon, dtype)
    # One kernel each way on a GPU; on a CPU torch takes it apart into passes.
    return functional.rms_norm(states, norm.weight.shape, norm.weight, norm.variance_epsilon).to(dtype)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, weight_D: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
        states_32 = states.float()
        scale = torch.linalg.vector_norm(states_32, dim=-1, keepdim=True).square_().div_(states.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(states, weight_D, scale)
        return (states_32 * scale).mul_(weight_D).to(dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        states, weight_D, scale = ctx.saved_tensors
        normed = states.float() * scale
        gradient_32 = gradient.to(torch.float32, copy=True)
        product = gradient_32 * normed
        of_weight = product.flatten(0, -2).sum(0).to(weight_D.dtype) if ctx.needs_input_grad[1] else None
        mean = (product @ weight_D.float())[..., None].div_(states.shape[-1])
        of_states = gradient_32.mul_(weight_D).addcmul_(normed, mean, value=-1).mul_(scale)
        return of_states.to(states.dtype), of_weight, None, None
