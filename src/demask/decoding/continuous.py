"""Greedy answers by transformers' continuous batching: an answer that has ended gives its place to the next prompt (`generate_batch`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from transformers import GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from demask.batching import pad_id
from demask.decoding.common import text_of
from demask.types import InputError


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
    """As `causal.generate`, with at most `batch_size` prompts in work at a time; `progress` is called once, at the end.

    Raises InputError for an architecture that has no paged attention, and RuntimeError where a prompt was not answered, for instance for
    want of memory.
    """
    if not prompts:
        return []
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not whole._can_set_attn_implementation():  # transformers would warn, and go on without what the model has read
        raise InputError(f"backend: 'continuous' can't take this architecture ({type(whole).__name__})")
    settings = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=list(stop_ids), pad_token_id=pad_id(tokenizer))
    # Keys and values of that many prompts: by default they would get nearly all memory there is.
    batching = ContinuousBatchingConfig(max_requests_per_batch=batch_size)
    batching.num_blocks = batch_size * -(-(max(map(len, prompts)) + max_new_tokens) // batching.page_size)
    was_training = model.training
    model.eval()
    try:
        outputs = model.generate_batch(list(map(list, prompts)), generation_config=settings, continuous_batching_config=batching)
    except ValueError as refusal:  # of layers without keys and values
        raise InputError(f"backend: 'continuous' can't take this architecture ({refusal})") from None
    finally:
        model.train(was_training)
    answers = list(outputs.values())  # in the prompts' order
    error = next((answer.error for answer in answers if answer.error), None)
    if error or len(answers) < len(prompts):
        raise RuntimeError(f"continuous batching answered {len(answers)} of {len(prompts)} prompts ({error})")
    if progress:
        progress(len(prompts))
    return [text_of(answer.generated_tokens, tokenizer, stop_ids) for answer in answers]
