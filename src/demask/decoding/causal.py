"""Greedy answers from an autoregressive model, in batches.

    pad  pad  Who  keeps bees ?  | Ann  [E]            what all prompts begin with is read once; a row leaves the batch
    Who  is   the  cook  now  ?  | She  is   Bo   [E]  when it has ended, and a batch ends with its last row

Shapes: B rows, L tokens of the longest prompt, N new tokens, P tokens of the common beginning.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import Any

import torch
from transformers import DynamicCache, GenerationConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from demask.batching import pad_id
from demask.decoding.common import anywhere, text_of
from demask.distributed import runs_jointly
from demask.models.family import family
from demask.types import InputError

_PREFIX = 16  # a common beginning shorter than this is not worth a forward pass of its own


def refuse_bidirectional(config: Any) -> None:
    if family(config) == "diffusion":
        raise InputError("this checkpoint is bidirectional (is_causal = false in its config): it can't generate left to right")


@torch.no_grad()  # not inference_mode: weights that FSDP gathers there could not be trained on afterwards
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int = 128,
    batch_size: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The greedy continuation of each prompt (ids) up to its end, decoded without special tokens, in the order given.

    Prompts are batched longest first, with padding on the left. In fp32 the text of a prompt does not depend on its neighbours, and is
    that of `model.generate`. Under FSDP or ZeRO-3 every process must bring equally many batches. `progress` is called with the number of
    prompts just finished. Raises InputError for a bidirectional model (config.is_causal = False), on which left-to-right generation would
    run and mean nothing.
    """
    refuse_bidirectional(model.config)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    write = _write if _takes_cache(model) else _write_by_generate
    with _plain(model):
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            written = write(model, [prompts[i] for i in rows], pad_id(tokenizer), stop_ids, max_new_tokens)
            for i, ids in zip(rows, written.tolist(), strict=True):
                texts[i] = text_of(ids, tokenizer, stop_ids)
            if progress:
                progress(len(rows))
    return texts


def _write(model: Any, prompts: Sequence[Sequence[int]], pad: int, stop_ids: Sequence[int], max_new_tokens: int) -> torch.Tensor:
    """The tokens written behind each prompt (B, N); what stands behind a row's end means nothing."""
    ids_BL, mask_BL = _padded(prompts, pad, model.device)
    positions_BL = (mask_BL.cumsum(1) - 1).clamp(min=0)
    stop = torch.tensor(list(stop_ids), dtype=torch.long, device=model.device)
    written_BN = torch.full((len(prompts), max_new_tokens), pad, device=model.device)
    ended_B = torch.zeros(len(prompts), dtype=torch.bool, device=model.device)
    rows = torch.arange(len(prompts), device=model.device)  # those still in the batch
    jointly = runs_jointly(model)
    cache: Any = DynamicCache(config=model.config) if jointly else _read_prefix(model, mask_BL, prompts)
    read = cache.get_seq_length()
    ids_BL, positions_BL = ids_BL[:, read:], positions_BL[:, read:]
    for step in range(max_new_tokens):
        output = model(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            position_ids=positions_BL,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        tokens_B = output.logits[:, -1].float().argmax(-1)
        written_BN[rows, step] = tokens_B
        ended_B[rows] |= torch.isin(tokens_B, stop)
        kept = (~ended_B[rows]).nonzero()[:, 0]
        if not anywhere(len(kept) > 0, jointly, model.device):
            break
        if len(kept) < len(rows):
            # Under sharding a process that is done goes on computing with the others, by one row.
            kept = kept if len(kept) else rows.new_zeros(1)
            cache.reorder_cache(kept)
            rows, tokens_B, mask_BL, positions_BL = rows[kept], tokens_B[kept], mask_BL[kept], positions_BL[kept]
        ids_BL, positions_BL = tokens_B[:, None], positions_BL[:, -1:] + 1
        mask_BL = torch.cat([mask_BL, mask_BL.new_ones(len(rows), 1)], dim=1)
    return written_BN


def _read_prefix(model: Any, mask_BL: torch.Tensor, prompts: Sequence[Sequence[int]]) -> DynamicCache:
    """A cache of the batch's first P columns, where all its prompts begin with the same P tokens, which are computed once; else empty.

    Row by row the beginning is moved to where the row's padding ends, and what then stands behind column P is left to be read again::

        prompts  a b c x y     columns  a b c | x y
                 a b c z                - a b | c z
    """
    cache: Any = DynamicCache(config=model.config)
    common = sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, zip(*prompts, strict=False)))
    length = min(common, min(map(len, prompts)) - 1)
    if length < _PREFIX or len(prompts) == 1:
        return cache
    prefix = torch.tensor([prompts[0][:length]], device=model.device)
    model(input_ids=prefix, past_key_values=cache, use_cache=True, logits_to_keep=1)
    plain = [type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized for layer in cache.layers]
    if not all(plain) or any(layer.keys.shape[2] != length for layer in cache.layers):
        return DynamicCache(config=model.config)  # a recurrent state, or a window that the beginning has outgrown
    padding_B1 = (1 - mask_BL).sum(1, keepdim=True)
    source_BP = (torch.arange(length, device=model.device) - padding_B1).clamp(min=0)
    for layer in cache.layers:
        layer.keys, layer.values = (states[0][:, source_BP].transpose(0, 1) for states in (layer.keys, layer.values))
    return cache


def _padded(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask) of the prompts, (B, L), padded on the left."""
    length = max(map(len, prompts))
    ids_BL = torch.full((len(prompts), length), pad)
    mask_BL = torch.zeros_like(ids_BL)
    for row, prompt in enumerate(prompts):
        ids_BL[row, length - len(prompt) :] = torch.tensor(list(prompt))
        mask_BL[row, length - len(prompt) :] = 1
    return ids_BL.to(device), mask_BL.to(device)


def _takes_cache(model: Any) -> bool:
    """Whether the model's forward takes what `_write` gives it. A few do not: Mamba, BLOOM, MPT."""
    forward = model.get_base_model().forward if hasattr(model, "get_base_model") else model.forward
    return {"past_key_values", "position_ids", "logits_to_keep"} <= set(inspect.signature(forward).parameters)


def _write_by_generate(
    model: Any, prompts: Sequence[Sequence[int]], pad: int, stop_ids: Sequence[int], max_new_tokens: int
) -> torch.Tensor:
    """As `_write`, for any architecture: every row is computed until the last has ended."""
    ids_BL, mask_BL = _padded(prompts, pad, model.device)
    own_defaults = model.generation_config
    # The checkpoint's own defaults may be a repetition penalty (Qwen's), which would also count the padding.
    model.generation_config = GenerationConfig()
    try:
        output = model.generate(
            input_ids=ids_BL,
            attention_mask=mask_BL,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=list(stop_ids),
            pad_token_id=pad,
            synced_gpus=runs_jointly(model),
        )
    finally:
        model.generation_config = own_defaults
    return output[:, ids_BL.shape[1] :]


@contextlib.contextmanager
def _plain(model: Any) -> Iterator[None]:
    """The model without dropout."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
