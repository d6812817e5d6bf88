"""Padding-free training: a batch's tokens as one long sequence, so that no layer computes on padding, nor twice on a common beginning.

    padded     [s t a b c .]      packed  [s t a b c d e f g]     positions  0 1 2 3 4 2 3 4 5
               [s t d e f g]

What all sequences of a causal model begin with (the template's system prompt) has the same states in all of them: it is computed once.
For its one product of tokens with tokens the attention lays them out as padded sequences again, so that nothing can leak from one into
another, and the same code serves causal and bidirectional models on any device. Shapes: B sequences of at most L tokens, P tokens of a
common beginning, T tokens in all, H heads.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from demask.chat_format import IGNORE

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


def pack(batch: dict[str, torch.Tensor], share_prefix: bool = False) -> dict[str, torch.Tensor]:
    """A padded batch (see `batching.pad_right`) without its padding, on the same device.

    `input_ids`, `labels`, `loss_weights` (where there are some) and `position_ids` are (1, T), `attention_mask` is (B, 1, 1, L) bool, and
    `packed_places` (T - P,) says where the tokens behind the common beginning stand among B x L. The first token of a sequence is no
    target, so that a target's predecessor in the long one is its own; `normaliser` stays. `share_prefix` is for causal models only.
    """
    mask_BL = batch["attention_mask"].bool()
    positions_BL = mask_BL.cumsum(1) - 1
    prefix = _common_prefix(batch) if share_prefix else 0
    once_BL, behind_BL = mask_BL.clone(), mask_BL.clone()
    once_BL[1:, :prefix] = False
    behind_BL[:, :prefix] = False
    packed: dict[str, torch.Tensor] = {name: batch[name] for name in ("normaliser",) if name in batch}
    packed |= {name: batch[name][once_BL][None] for name in ("input_ids", "labels", "loss_weights") if name in batch}
    packed["position_ids"] = positions_BL[once_BL][None]
    packed["packed_places"] = behind_BL.flatten().nonzero()[:, 0]
    packed["attention_mask"] = mask_BL[:, None, None]  # a 4-D mask reaches the attention as it is
    return packed


def _common_prefix(batch: dict[str, torch.Tensor]) -> int:
    """How many tokens all sequences begin with, up to the one before the first target: its predictor must be each sequence's own."""
    ids_BL, labels_BL = batch["input_ids"], batch["labels"]
    if len(ids_BL) == 1:
        return 0
    common_L = (ids_BL == ids_BL[:1]).all(0) & batch["attention_mask"].bool().all(0)
    untrained_L = (labels_BL == IGNORE).all(0)
    common, untrained = (int(run_L.int().cumprod(0).sum()) for run_L in (common_L, untrained_L))
    return max(0, min(common, untrained - 1))


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
    tokens = query.shape[2]
    # Under autocast, which multiplies in the dtype of the values, rotary embeddings leave queries and keys in fp32.
    query, key, value = (
        lay(states[0].to(value.dtype).transpose(0, 1), packed_places, attention_mask).transpose(1, 2) for states in (query, key, value)
    )
    output_BLHD = attend(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, sliding_window=sliding_window)
    return gather(output_BLHD, packed_places, tokens)[None], None


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
) -> torch.Tensor:
    """(B, L, H, D) from (B, H, L, D) of padded sequences, whose `attention_mask` (B, 1, 1, L) is that of `pack`."""
    rows, length = attention_mask.shape[0], attention_mask.shape[-1]
    causal = getattr(module.config, "is_causal", True)
    # Padding comes after a sequence's tokens, so a causal one needs no mask for it.
    mask = None if causal else attention_mask.expand(rows, 1, length, length)
    if causal and sliding_window is not None and sliding_window < length:
        mask = torch.ones(length, length, dtype=torch.bool, device=query.device).tril().triu(1 - sliding_window)[None, None]
    if query.device.type == "cpu" and length <= SHORT and not dropout:
        return PlainAttention.apply(query, key, value, mask, query.shape[-1] ** -0.5 if scaling is None else scaling)
    return sdpa_attention_forward(module, query, key, value, mask, dropout=dropout, scaling=scaling, is_causal=causal)[0]


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
        query_BKGD = _by_shared_head(query_BHLD if scale == 1.0 else query_BHLD * scale, key_BKLD)
        scores = (query_BKGD @ key_BKLD.transpose(2, 3)).view(rows, heads, length, length)
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool, device=scores.device).tril()
        scores.add_(torch.zeros_like(mask, dtype=scores.dtype).masked_fill_(~mask, -torch.inf))
        weights_BKGL = _by_shared_head(torch.softmax(scores, -1), key_BKLD)  # in fp32 within
        output_BHLD = (weights_BKGL @ value_BKLD).view(query_BHLD.shape)
        ctx.save_for_backward(query_BKGD, key_BKLD, value_BKLD, weights_BKGL)
        ctx.scale, ctx.shape = scale, query_BHLD.shape
        return output_BHLD.transpose(1, 2)

    @staticmethod
    def backward(ctx: Any, gradient_BLHD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_BKGD, key_BKLD, value_BKLD, weights_BKGL = ctx.saved_tensors
        gradient_BKGD = _by_shared_head(gradient_BLHD.transpose(1, 2), key_BKLD)
        of_weights = gradient_BKGD @ value_BKLD.transpose(2, 3)
        of_scores_BKGL = torch._softmax_backward_data(of_weights, weights_BKGL, -1, weights_BKGL.dtype)
        of_query = (of_scores_BKGL @ key_BKLD).view(ctx.shape)
        of_key, of_value = of_scores_BKGL.transpose(2, 3) @ query_BKGD, weights_BKGL.transpose(2, 3) @ gradient_BKGD
        return of_query if ctx.scale == 1.0 else of_query.mul_(ctx.scale), of_key, of_value, None, None


def _by_shared_head(of_heads: torch.Tensor, key_BKLD: torch.Tensor) -> torch.Tensor:
    """(B, K, G, ...) of (B, H, L, ...): the G = H / K x L queries that share a head of keys, as rows of one matrix."""
    return of_heads.reshape(key_BKLD.shape[0], key_BKLD.shape[1], -1, of_heads.shape[-1])


def lay(tokens_T: torch.Tensor, places: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, L, ...) with the (T, ...) tokens at their places, the common beginning in all sequences, and zeros elsewhere."""
    return _Lay.apply(tokens_T, places, attention_mask.shape[0], attention_mask.shape[-1])


def gather(states_BL: torch.Tensor, places: torch.Tensor, tokens: int) -> torch.Tensor:
    """The (T, ...) tokens of (B, L, ...), `lay` undone."""
    return _Gather.apply(states_BL.contiguous(), places, tokens - len(places))


class _Lay(torch.autograd.Function):
    """As every place is another, the gradient is a look-up; the common beginning sums that of all sequences."""

    @staticmethod
    def forward(ctx: Any, tokens_T: torch.Tensor, places: torch.Tensor, rows: int, length: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.prefix = prefix = len(tokens_T) - len(places)
        laid_BL = tokens_T.new_zeros(rows, length, *tokens_T.shape[1:])
        laid_BL[:, :prefix] = tokens_T[:prefix]
        laid_BL.flatten(0, 1).index_copy_(0, places, tokens_T[prefix:])
        return laid_BL

    @staticmethod
    def backward(ctx: Any, gradient_BL: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        behind = gradient_BL.flatten(0, 1).index_select(0, ctx.saved_tensors[0])
        if not ctx.prefix:
            return behind, None, None, None
        return torch.cat([gradient_BL[:, : ctx.prefix].sum(0, dtype=torch.float32).to(behind.dtype), behind]), None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_BL: torch.Tensor, places: torch.Tensor, prefix: int) -> torch.Tensor:
        ctx.save_for_backward(places)
        ctx.shape, ctx.prefix = states_BL.shape, prefix
        behind = states_BL.flatten(0, 1).index_select(0, places)
        return torch.cat([states_BL[0, :prefix], behind]) if prefix else behind

    @staticmethod
    def backward(ctx: Any, gradient_T: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        laid_BL = gradient_T.new_zeros(ctx.shape)
        laid_BL[0, : ctx.prefix] = gradient_T[: ctx.prefix]
        laid_BL.flatten(0, 1).index_copy_(0, ctx.saved_tensors[0], gradient_T[ctx.prefix :])
        return laid_BL, None, None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
