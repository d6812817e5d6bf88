"""Padding-free training: a batch's tokens as one long row, so that no layer computes on padding. Attention alone sees the rows again.

    padded     [a b c .]      packed  [a b c d e f g]     positions  0 1 2 0 1 2 3
               [d e f g]

For its one product of tokens with tokens the attention lays them out as rows again, so that nothing can leak from one row into another,
and the same code serves causal and bidirectional models on any device. Shapes: B rows of at most L tokens, T tokens in all, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "padding_free"
# Families whose packed logits are compared with padded ones in tests/unit/test_packing.py; others are trained on padded rows.
FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", "olmo2", "smollm3")
# On a CPU, plain products are quicker than torch's fused kernel up to this length; they keep B x H x L x L probabilities a layer.
SHORT = 512


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
    # Under autocast, which multiplies in the dtype of the values, rotary embeddings leave queries and keys in fp32.
    query, key, value = (
        _Lay.apply(states[0].to(value.dtype).transpose(0, 1), packed_places, rows, length).transpose(1, 2) for states in (query, key, value)
    )
    if query.device.type == "cpu" and length <= SHORT and not dropout:
        output = PlainAttention.apply(query, key, value, mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
    else:
        output, _ = sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=causal)
    return _Gather.apply(output.contiguous(), packed_places)[None], None


class PlainAttention(torch.autograd.Function):
    """softmax(scale x query key) value by plain products, for H heads that share K heads of keys and values: (B, L, H, D).

    For the backward pass the probabilities are kept, in the dtype of the values. `mask` (B or 1, 1, L, L) is True where a token sees
    another; without one a token sees those before it and itself.
    """

    @staticmethod
    def forward(
        ctx: Any, query_BHLD: torch.Tensor, key_BKLD: torch.Tensor, value_BKLD: torch.Tensor, mask: torch.Tensor | None, scale: float
    ) -> torch.Tensor:
        rows, heads, length, _ = query_BHLD.shape
        query_BKGD = _by_shared_head(query_BHLD, key_BKLD)
        scores = (query_BKGD @ key_BKLD.transpose(2, 3)).view(rows, heads, length, length).float().mul_(scale)
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
        scores.masked_fill_(~mask, -torch.inf)
        weights_BKGL = _by_shared_head(torch.softmax(scores, -1).to(value_BKLD.dtype), key_BKLD)
        output_BHLD = (weights_BKGL @ value_BKLD).view(query_BHLD.shape)
        ctx.save_for_backward(query_BKGD, key_BKLD, value_BKLD, weights_BKGL, output_BHLD)
        ctx.scale = scale
        return output_BHLD.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient_BLHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """A score's gradient is its weight x (that weight's gradient - their mean); the mean is gradient x output (arXiv 2205.14135)."""
        query_BKGD, key_BKLD, value_BKLD, weights_BKGL, output_BHLD = ctx.saved_tensors
        gradient_BHLD = gradient_BLHD.transpose(1, 2)
        mean_BKG1 = _by_shared_head((gradient_BHLD * output_BHLD).sum(-1, keepdim=True, dtype=torch.float32), key_BKLD)
        gradient_BKGD = _by_shared_head(gradient_BHLD, key_BKLD)
        of_weights = (gradient_BKGD @ value_BKLD.transpose(2, 3)).float()
        of_scores_BKGL = of_weights.sub_(mean_BKG1).mul_(weights_BKGL).mul_(ctx.scale).to(query_BKGD.dtype)
        of_key, of_value = of_scores_BKGL.transpose(2, 3) @ query_BKGD, weights_BKGL.transpose(2, 3) @ gradient_BKGD
        return (of_scores_BKGL @ key_BKLD).view(output_BHLD.shape), of_key, of_value, None, None


def _by_shared_head(of_heads: torch.Tensor, key_BKLD: torch.Tensor) -> torch.Tensor:
    """(B, K, G, ...) of (B, H, L, ...): the G = H / K x L queries that share a head of keys, as rows of one matrix."""
    return of_heads.reshape(key_BKLD.shape[0], key_BKLD.shape[1], -1, of_heads.shape[-1])


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
