"""Greedy answers from an autoregressive model, in batches."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import GenerationConfig

from demask.batching import pad_id
from demask.distributed import is_sharded, place
from demask.models.family import family
from demask.types import InputError


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
    """The greedy continuation of each prompt (ids), decoded without special tokens, in the order given.

    Prompts are batched longest first, with padding on the left, and a batch ends when all its rows have ended. In fp32 the text of
    a prompt does not depend on its neighbours. `progress` is called with the number of prompts just finished. Raises InputError for a
    bidirectional model (config.is_causal = False), on which left-to-right generation would run and mean nothing.
    """
    refuse_bidirectional(model.config)
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    texts = [""] * len(prompts)
    pad, joint = pad_id(tokenizer), is_sharded(model) and place()[1] > 1
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        length = len(prompts[rows[0]])
        input_ids = torch.full((len(rows), length), pad)
        attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
        for row, i in enumerate(rows):
            input_ids[row, length - len(prompts[i]) :] = torch.tensor(list(prompts[i]))
            attention_mask[row, length - len(prompts[i]) :] = 1
        with _plain(model):
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop_ids),
                pad_token_id=pad,
                synced_gpus=joint,
            )
        for i, text in zip(rows, tokenizer.batch_decode(output[:, length:], skip_special_tokens=True), strict=True):
            texts[i] = text.strip()
        if progress:
            progress(len(rows))
    return texts


@contextlib.contextmanager
def _plain(model: Any) -> Iterator[None]:
    """The model without dropout and without its checkpoint's own defaults: a repetition penalty (Qwen's) would also count the padding."""
    was_training, own_defaults = model.training, model.generation_config
    model.eval()
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.train(was_training)
        model.generation_config = own_defaults
