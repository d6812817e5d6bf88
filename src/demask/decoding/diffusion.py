"""Answers from a masked diffusion model: a canvas of masks behind each prompt, filled in block by block (LLaDA, arXiv 2502.09992).

    Who keeps bees? | [M] [M] [M] [M] . [M] [M] [M]        one forward pass, the most confident tokens are committed,
    Who keeps bees? | Ann [M] [M] [M] . [M] [M] [M]        and so on; a row ends as soon as it has its end
    Who keeps bees? | Ann [M] bees [E] . [M] [M] [M]       and nothing masked stands before it
                      '--- block ----' '-- next --'

Shapes: B rows, L tokens, K positions of the block, V vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal
from zlib import crc32

import torch
from transformers import DynamicCache

from demask.batching import pad_id
from demask.decoding.common import anywhere, text_of
from demask.distributed import runs_jointly
from demask.models.family import family, predicts_next
from demask.models.mask_token import mask_id
from demask.types import InputError, check_choices


@dataclass(frozen=True)
class Sampling:
    """How a canvas is filled. The default is the exact mode: the most confident token of the block, one a forward pass.

    Faster, at most one of: `steps` forward passes for the whole canvas, spread evenly, at least one a block (LLaDA); `threshold`: all
    tokens at least so confident, and at least one; `factor`: the n most confident for the largest n with
    (n + 1) (1 - confidence of the nth) < factor (both Fast-dLLM, arXiv 2505.22618, as is `prefix_cache`: keys and values of what stands
    before a block are computed in its first forward pass only, which can change the answers a little).
    `remasking` "random" commits at random instead of by confidence. `temperature` samples tokens by Gumbel noise in float64, from `seed`
    and the prompt alone; `guidance_scale` w > 0 is classifier-free guidance against the prompt masked, (1 + w) cond - w uncond.
    Raises ValueError for a value out of range.
    """

    block_length: int = 32
    steps: int | None = None
    threshold: float | None = None
    factor: float | None = None
    remasking: Literal["low_confidence", "random"] = "low_confidence"
    temperature: float = 0.0
    guidance_scale: float = 0.0
    prefix_cache: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("block_length", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")
        for name in ("threshold", "factor", "temperature", "guidance_scale"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < inf:
                raise ValueError(f"{name} must be a number of at least 0, found {value}")
        if self.threshold is not None and self.threshold > 1:
            raise ValueError(f"threshold must be from 0 to 1, found {self.threshold}")
        if sum(value is not None for value in (self.steps, self.threshold, self.factor)) > 1:
            raise ValueError("steps, threshold and factor exclude each other")
        if self.remasking == "random" and (self.threshold is not None or self.factor is not None):
            raise ValueError("threshold and factor go by confidence: they exclude remasking 'random'")


@torch.no_grad()  # not inference_mode: weights that FSDP gathers there could not be trained on afterwards
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int = 128,
    batch_size: int = 64,
    sampling: Sampling | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[str]:
    """The answer to each prompt (ids), decoded up to its end without special tokens, in the order given.

    Prompts of any lengths are batched longest first, with padding on the left. In fp32 the text of a prompt does not depend on its
    neighbours. Under FSDP or ZeRO-3 every process must bring equally many batches. `progress` is called with the number of prompts just
    finished. Raises InputError for a causal model, or a tokenizer without a mask token.
    """
    if family(model.config) != "diffusion":
        raise InputError("this checkpoint is left-to-right (is_causal is not false in its config): it can't fill in masks")
    refuse_maskless(tokenizer)
    sampling = sampling or Sampling()
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    generators = _generators(prompts, sampling.seed, model.device)
    texts = [""] * len(prompts)
    was_training = model.training
    model.eval()
    try:
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            canvas = _Canvas(model, tokenizer, [prompts[i] for i in rows], max_new_tokens, stop_ids)
            canvas.fill(sampling, [generators[i] for i in rows])
            for i, text in zip(rows, canvas.texts(tokenizer), strict=True):
                texts[i] = text
            if progress:
                progress(len(rows))
    finally:
        model.train(was_training)
    return texts


def refuse_maskless(tokenizer: Any) -> None:
    """Raise InputError for a tokenizer without a mask token."""
    if mask_id(tokenizer) is None:
        raise InputError("tokenizer: it names no mask_token, which a masked diffusion model needs")


def commits(logits_BKV: torch.Tensor, open_BK: torch.Tensor, count: int, sampling: Sampling, generators: Sequence[torch.Generator]) -> Any:
    """(tokens (B, K), which of them to commit (B, K) bool) after one forward pass.

    `open_BK` are the positions still masked; `count` is how many to commit where neither a threshold nor a factor says so.
    """
    if (device := logits_BKV.device).type == "mps":  # it has no float64
        tokens_BK, commit_BK = commits(logits_BKV.cpu(), open_BK.cpu(), count, sampling, generators)
        return tokens_BK.to(device), commit_BK.to(device)
    logits_BKV = logits_BKV.double()
    noisy_BKV = logits_BKV
    if sampling.temperature:
        uniform = [torch.rand(logits_BKV.shape[1:], generator=g, dtype=torch.float64, device=logits_BKV.device) for g in generators]
        gumbel_BKV = -torch.log(-torch.log(torch.stack(uniform).clamp(1e-300, 1 - 1e-16)))
        noisy_BKV = logits_BKV + sampling.temperature * gumbel_BKV
    tokens_BK = noisy_BKV.argmax(-1)
    if sampling.remasking == "random":
        confidence_BK = torch.stack([torch.rand(open_BK.shape[1], generator=g, dtype=torch.float64, device=g.device) for g in generators])
    else:
        confidence_BK = logits_BKV.softmax(-1).gather(-1, tokens_BK[..., None])[..., 0]
    confidence_BK = confidence_BK.masked_fill(~open_BK, -1.0)
    # Stable: of equally confident tokens the leftmost comes first.
    sorted_BK, order_BK = torch.sort(confidence_BK, dim=-1, descending=True, stable=True)
    place_BK = order_BK.argsort(-1)
    if sampling.threshold is not None:
        commit_BK = (confidence_BK >= sampling.threshold) | (place_BK == 0)
    elif sampling.factor is not None:
        n_K = torch.arange(1, open_BK.shape[1] + 1, device=order_BK.device)
        passes_BK = (n_K + 1) * (1 - sorted_BK) < sampling.factor
        largest_B = torch.where(passes_BK, n_K, 1).amax(-1)
        commit_BK = place_BK < largest_B[:, None]
    else:
        commit_BK = place_BK < count
    return tokens_BK, commit_BK & open_BK


class _Canvas:
    """A batch of prompts on the left of their masks, and its filling."""

    def __init__(self, model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], length: int, stop_ids: Sequence[int]) -> None:
        mask = mask_id(tokenizer)
        assert mask is not None
        self.model, self.mask_id, self.shift = model, mask, int(predicts_next(model.config))
        self.start = max(len(prompt) for prompt in prompts)
        ids_BL = torch.full((len(prompts), self.start + length), self.mask_id)
        attention_BL = torch.ones_like(ids_BL)
        for row, prompt in enumerate(prompts):
            padding = self.start - len(prompt)
            ids_BL[row, :padding], attention_BL[row, :padding] = pad_id(tokenizer), 0
            ids_BL[row, padding : self.start] = torch.tensor(list(prompt))
        self.ids_BL, self.attention_BL = ids_BL.to(model.device), attention_BL.to(model.device)
        self.positions_BL = (self.attention_BL.cumsum(1) - 1).clamp(min=0)
        self.stop_ids = torch.tensor(list(stop_ids), dtype=torch.long, device=model.device)
        self.jointly = runs_jointly(model)

    def fill(self, sampling: Sampling, generators: Sequence[torch.Generator]) -> None:
        """Commit tokens, block by block, until every row has ended."""
        length = self.ids_BL.shape[1] - self.start
        for first in range(self.start, self.start + length, sampling.block_length):
            last = min(first + sampling.block_length, self.start + length)
            cache, step = None, 0
            steps = last - first
            if sampling.steps is not None:
                ends = [round(sampling.steps * (place - self.start) / length) for place in (first, last)]
                steps = max(1, ends[1] - ends[0])
            rows, computed = self._open_rows(first, last), torch.tensor([0], device=self.ids_BL.device)
            while anywhere(len(rows) > 0, self.jointly, self.ids_BL.device):
                # Under sharding a process that is done goes on computing with the others, and commits nothing.
                computed = rows if len(rows) else computed[:1]
                logits_BKV, cache = self._logits(computed, first, last, sampling, cache)
                if len(rows):
                    count = (last - first) // steps + (step < (last - first) % steps)
                    open_BK = self.ids_BL[rows, first:last] == self.mask_id
                    tokens_BK, commit_BK = commits(logits_BKV, open_BK, count, sampling, [generators[row] for row in rows.tolist()])
                    self.ids_BL[rows, first:last] = torch.where(commit_BK, tokens_BK, self.ids_BL[rows, first:last])
                rows, step = self._open_rows(first, last), step + 1

    def _open_rows(self, first: int, last: int) -> torch.Tensor:
        """The numbers of the rows that have not ended, and have something masked in the block."""
        written_BG = self.ids_BL[:, self.start :]
        masked_BG, stop_BG = written_BG == self.mask_id, torch.isin(written_BG, self.stop_ids)
        # Ended: nothing is masked up to the first end.
        ended_B = (stop_BG & (masked_BG.cumsum(1) == 0)).any(1)
        return (~ended_B & (self.ids_BL[:, first:last] == self.mask_id).any(1)).nonzero()[:, 0]

    def _logits(self, rows: torch.Tensor, first: int, last: int, sampling: Sampling, cache: Any) -> tuple[torch.Tensor, Any]:
        """(the block's logits (rows, K, V), fp32; the cache, if one is kept) from one forward pass."""
        ids_BL, attention_BL, positions_BL = self.ids_BL[rows], self.attention_BL[rows], self.positions_BL[rows]
        if sampling.guidance_scale:
            prompt_BL = (torch.arange(ids_BL.shape[1], device=ids_BL.device) < self.start) & attention_BL.bool()
            ids_BL = torch.cat([ids_BL, ids_BL.masked_fill(prompt_BL, self.mask_id)])
            attention_BL, positions_BL = attention_BL.repeat(2, 1), positions_BL.repeat(2, 1)
        # A model with shifted logits predicts the block's first token at the position before it.
        prefix, options = first - self.shift, dict[str, Any](use_cache=False)
        begin = 0
        if cache is not None:
            cache.select(rows, sampling.guidance_scale > 0)
            begin, options = prefix, {"use_cache": True, "past_key_values": cache.keys}
        elif sampling.prefix_cache:
            cache = _PrefixCache(rows)
            options = {"use_cache": True, "past_key_values": cache.keys}
        keep_BL = torch.zeros_like(ids_BL[:, begin:], dtype=torch.bool)
        keep_BL[:, prefix - begin : last - self.shift - begin] = True
        logits = self.model(
            input_ids=ids_BL[:, begin:],
            attention_mask=attention_BL,
            position_ids=positions_BL[:, begin:],
            logits_to_keep=keep_BL,
            **options,
        ).logits
        if cache is not None:
            cache.keys.crop(prefix - self.ids_BL.shape[1])  # negative: so many from the end
        logits_BKV = logits.reshape(len(ids_BL), last - first, -1).float()
        if sampling.guidance_scale:
            given_BKV, free_BKV = logits_BKV.chunk(2)
            logits_BKV = free_BKV + (sampling.guidance_scale + 1) * (given_BKV - free_BKV)
        logits_BKV[..., self.mask_id] = -torch.inf
        return logits_BKV, cache

    def texts(self, tokenizer: Any) -> list[str]:
        stop_ids = self.stop_ids.tolist()
        return [text_of(written, tokenizer, stop_ids) for written in self.ids_BL[:, self.start :].tolist()]


class _PrefixCache:
    """Keys and values of what stands before a block, for the rows it was computed for."""

    def __init__(self, rows: torch.Tensor) -> None:
        # Without the model's configuration it keeps everything, also where attention slides: a cropped window could not be used again.
        self.rows, self.keys = rows, DynamicCache()

    def select(self, rows: torch.Tensor, doubled: bool) -> None:
        """Keep these rows (some of those it has) only; `doubled` where each row has a twin for guidance."""
        if len(rows) == len(self.rows):
            return
        places = torch.isin(self.rows, rows).nonzero()[:, 0]
        self.keys.batch_select_indices(torch.cat([places, places + len(self.rows)]) if doubled else places)
        self.rows = rows


def _generators(prompts: Sequence[Sequence[int]], seed: int, device: torch.device) -> list[torch.Generator]:
    """One for each prompt, from the seed and the prompt alone (and how often it came before), whatever its neighbours are."""
    device = torch.device("cpu") if device.type == "mps" else device  # as `commits`
    seen: Counter[int] = Counter()
    generators = []
    for prompt in prompts:
        key = crc32(repr(list(prompt)).encode())
        generators.append(torch.Generator(device).manual_seed(crc32(repr((seed, key, seen[key])).encode())))
        seen[key] += 1
    return generators
