"""Padding-free training: a batch's tokens as one long row, so that no layer computes on padding. Attention alone sees the rows again.

    padded     [a b c .]      packed  [a b c d e f g]     positions  0 1 2 0 1 2 3
               [d e f g]

For its one product of tokens with tokens the attention lays them out as rows again, so that nothing can leak from one row into another,
and the same code serves causal and bidirectional models on any device. Shapes: B rows of at most L tokens, T tokens in all, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "padding_free"
# Families whose packed logits are compared with padded ones in tests/unit/test_packing.py; others are trained on padded rows.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "smollm3")
# On a CPU, plain products are quicker than torch's fused kernel up to this length, and hold B x H x L x L probabilities a layer.
SHORT = 256


def packable(config: Any) -> bool:
    """Whether models of this configuration may be trained on packed rows: every layer attends to tokens as `attention` does."""
    config = config.get_text_config()
    windows = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention", "sliding_attention"}
    bidirectional = getattr(config, "is_causal", True) is False
    return config.model_type in FAMILIES and not kinds and not (bidirectional and windows)


def pack(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A padded batch (see `batching.pad_right`) without its padding, on the same device.

    `input_ids`, `labels`, `loss_weights` (where there are some) and `position_ids` are (1, T), `attention_mask` is (B, 1, 1, L) bool, and
    `packed_places` (T,) says where the tokens stand among B x L. The first token of a row is no target, so that a target's predecessor
    in the long row is its own; `normaliser` stays.
    """
    mask_BL = batch["attention_mask"].bool()
    positions_BL = mask_BL.cumsum(1) - 1
    packed: dict[str, torch.Tensor] = {name: batch[name] for name in ("normaliser",) if name in batch}
    packed |= {name: batch[name][mask_BL][None] for name in ("input_ids", "labels", "loss_weights") if name in batch}
    packed["position_ids"] = positions_BL[mask_BL][None]
    packed["packed_places"] = mask_BL.flatten().nonzero()[:, 0]
    packed["attention_mask"] = mask_BL[:, None, None]  # a 4-D mask reaches the attention as it is
    return packed


def attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packed_places: torch.Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' attention by the name `padding_free`: (1, T, H, D) from (1, H, T, D) of a packed batch, sdpa's for any other."""
    if packed_places is None:
        options = {"scaling": scaling, "dropout": dropout, "sliding_window": sliding_window, **kwargs}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    assert attention_mask is not None
    rows, length = attention_mask.shape[0], attention_mask.shape[-1]
    causal = getattr(module.config, "is_causal", True)
    # Padding comes after a row's tokens, so a causal row needs no mask for it.
    mask = None if causal else attention_mask.expand(rows, 1, length, length)
    if causal and sliding_window is not None and sliding_window < length:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)[None, None]
    query, key, value = (
        _Lay.apply(states[0].transpose(0, 1), packed_places, rows, length).transpose(1, 2) for states in (query, key, value)
    )
    if query.device.type == "cpu" and length <= SHORT:
        output = _plain(module, query, key, value, mask, scaling, dropout)
    else:
        output, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=causal)
    return _Gather.apply(output.contiguous(), packed_places)[None], None


def _plain(
    module: Any,
    query_BHLD: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
) -> torch.Tensor:
    """(B, L, H, D): softmax(q k / sqrt(D)) v by plain products, as transformers' "eager"."""
    groups = getattr(module, "num_key_value_groups", 1)
    length = query_BHLD.shape[2]
    if mask is None:
        mask = torch.ones(length, length, dtype=torch.bool, device=query_BHLD.device).tril()
    scores_BHLL = query_BHLD @ repeat_kv(key, groups).transpose(2, 3) * (query_BHLD.shape[-1] ** -0.5 if scaling is None else scaling)
    scores_BHLL = scores_BHLL.masked_fill(~mask, torch.finfo(scores_BHLL.dtype).min)
    weights_BHLL = functional.dropout(torch.softmax(scores_BHLL, -1, dtype=torch.float32).to(value.dtype), dropout, module.training)
    return (weights_BHLL @ repeat_kv(value, groups)).transpose(1, 2)


class _Lay(torch.autograd.Function):
    """(B, L, ...) with the (T, ...) tokens at their places and zeros elsewhere. As every place is another, the gradient is a look-up."""

    @staticmethod
    def forward(ctx: Any, tokens_T: torch.Tensor, places_T: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        ctx.save_for_backward(places_T)
        return tokens_T.new_zeros(rows * length, *tokens_T.shape[1:]).index_copy_(0, places_T, tokens_T).unflatten(0, (rows, length))

    @staticmethod
    def backward(ctx: Any, gradient_BL: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return gradient_BL.flatten(0, 1).index_select(0, ctx.saved_tensors[0]), None, None, None


class _Gather(torch.autograd.Function):
    """The (T, ...) tokens of (B, L, ...), `_Lay` undone."""

    @staticmethod
    def forward(ctx: Any, states_BL: torch.Tensor, places_T: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(places_T)
        ctx.shape = states_BL.shape
        return states_BL.flatten(0, 1).index_select(0, places_T)

    @staticmethod
    def backward(ctx: Any, gradient_T: torch.Tensor) -> tuple[torch.Tensor, None]:
        rows, length, *rest = ctx.shape
        laid = gradient_T.new_zeros(rows * length, *rest).index_copy_(0, ctx.saved_tensors[0], gradient_T)
        return laid.view(ctx.shape), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
