"""Masked diffusion decoding against a naive sampler: one prompt at a time, no padding, no early end, attention spelled out.

As a module, it is what two processes run with a sharded model (see the last test)::

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.unit.test_diffusion_decoding FOLDER
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig

from demask import decoding
from demask.decoding import Sampling, causal, check_decoding
from demask.decoding.diffusion import _generators, commits, generate
from demask.types import InputError
from tests.models import make_model
from tests.tokenizers import llama3

VOCABULARY = 96
MASK = 95
ENDS = list(range(4, 90, 8))
EVERY = list(range(VOCABULARY - 1))
LENGTH = 13


class Spelled:
    """A tokenizer whose texts are the ids themselves, so that equal texts are equal tokens."""

    mask_token_id, pad_token_id, eos_token_id = MASK, 0, None
    init_kwargs: ClassVar[dict[str, Any]] = {}

    @staticmethod
    def decode(ids: Any, skip_special_tokens: bool) -> str:
        return " ".join(map(str, ids.tolist()))


def random_prompts(*lengths: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(3)
    return [torch.randint(0, VOCABULARY - 1, (length,), generator=draw).tolist() for length in lengths]


PROMPTS = random_prompts(3, 31, 9, 14, 1)


@functools.cache
def model_of(arch: str, shifted: bool = False, layers: int = 2) -> Any:
    """A random bidirectional model whose logits are far apart, so that choices hang on the prompt and not on rounding."""
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    own = {"vocab_size": VOCABULARY, "initializer_range": 0.3, "num_hidden_layers": layers}
    return make_model(arch, is_causal=False, shifted_logits=shifted, **ids, **own)


def answers(model: Any, prompts: Any = PROMPTS, *, stop_ids: Any = ENDS, batch_size: int = 64, length: int = LENGTH, **sampling: Any):
    options = {"stop_ids": stop_ids, "batch_size": batch_size, "max_new_tokens": length}
    return generate(model, Spelled, prompts, sampling=Sampling(**{"block_length": 5, **sampling}), **options)


@contextlib.contextmanager
def shapes(model: Any) -> Iterator[list[tuple[int, int]]]:
    """(rows, length) of the ids at each forward pass."""
    seen: list[tuple[int, int]] = []
    hook = model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    yield seen
    hook.remove()


# --- The naive sampler


def visible(config: Any, queries: range, keys: range) -> torch.Tensor:
    """(1, 1, queries, keys): every token sees every other, or those as near as the sliding window is long."""
    window = getattr(config, "sliding_window", None) or math.inf
    return torch.tensor([[[[abs(q - k) <= window for k in keys] for q in queries]]])


class Forwards:
    """Logits of all positions from one prompt's canvas. With a cache, each later pass of a block gets a fresh copy of the first one's
    keys and values, up to what the block's own logits start from."""

    def __init__(self, model: Any, cached: bool) -> None:
        self.model, self.cached, self.kept = model, cached, None

    def __call__(self, ids: list[int], begin: int, first_pass: bool) -> np.ndarray:
        if first_pass or not self.cached:
            begin, cache = 0, DynamicCache()
        else:
            cache = DynamicCache()
            for layer, (keys, values) in enumerate(self.kept):
                cache.update(keys.clone(), values.clone(), layer)
        with torch.no_grad():
            out = self.model(
                input_ids=torch.tensor([ids[begin:]]),
                position_ids=torch.arange(begin, len(ids))[None],
                attention_mask=visible(self.model.config, range(begin, len(ids)), range(len(ids))),
                past_key_values=cache,
                use_cache=True,
            ).logits[0]
        if first_pass:
            self.layers = [(layer.keys, layer.values) for layer in cache.layers]
        return np.concatenate([np.full((begin, VOCABULARY), np.nan), out.double().numpy()])

    def keep(self, begin: int) -> None:
        self.kept = [(keys[:, :, :begin], values[:, :, :begin]) for keys, values in self.layers]


def chosen(ranked: list[tuple[float, int, int]], quota: int, threshold: float | None, factor: float | None) -> int:
    """How many of the (confidence, place, token), best first, to commit."""
    if threshold is not None:
        return max(1, sum(confidence >= threshold for confidence, _, _ in ranked))
    if factor is not None:
        return max([1, *(n for n, (confidence, _, _) in enumerate(ranked, 1) if (n + 1) * (1 - confidence) < factor)])
    return quota


def naive(
    model: Any,
    prompt: list[int],
    quotas: list[list[int]],
    *,
    shifted: bool = False,
    stop_ids: Any = ENDS,
    length: int = LENGTH,
    block_length: int = 5,
    threshold: float | None = None,
    factor: float | None = None,
    guidance_scale: float = 0.0,
    prefix_cache: bool = False,
) -> tuple[str, int]:
    """(the text, the forward passes); `quotas` is how many tokens to commit at each pass of each block, worked out by hand."""
    ids, passes = prompt + [MASK] * length, 0
    given, free = Forwards(model, prefix_cache), Forwards(model, prefix_cache)
    for block, start in enumerate(range(0, length, block_length)):
        places = [len(prompt) + place for place in range(start, min(start + block_length, length))]
        begin, step = places[0] - shifted, 0
        while any(ids[place] == MASK for place in places):
            logits = given(ids, begin, step == 0)
            if guidance_scale:
                unprompted = free([MASK] * len(prompt) + ids[len(prompt) :], begin, step == 0)
                logits = (1 + guidance_scale) * logits - guidance_scale * unprompted
            if step == 0:
                given.keep(begin)
                if guidance_scale:
                    free.keep(begin)
            ranked = []
            for place in places:
                if ids[place] == MASK:
                    scores = np.exp(logits[place - shifted][:MASK] - logits[place - shifted][:MASK].max())
                    ranked.append((scores.max() / scores.sum(), place, int(scores.argmax())))
            ranked.sort(key=lambda choice: (-choice[0], choice[1]))
            quota = quotas[block][step] if quotas else 0
            for _, place, token in ranked[: chosen(ranked, quota, threshold, factor)]:
                ids[place] = token
            passes, step = passes + 1, step + 1
    written = ids[len(prompt) :]
    ends = [place for place, token in enumerate(written) if token in stop_ids]
    return " ".join(map(str, written[: ends[0]] if ends else written)), passes


ONE_BY_ONE = [[1] * 5, [1] * 5, [1] * 3]
SETTINGS: dict[str, tuple[dict[str, Any], list[list[int]]]] = {
    "exact": ({}, ONE_BY_ONE),
    "one block": ({"block_length": 13}, [[1] * 13]),
    "a block longer than the canvas": ({"block_length": 32}, [[1] * 13]),
    "a token a block": ({"block_length": 1}, [[1]] * 13),
    # 6 passes over 13 places: after 5 places round(30/13) = 2 of them, after 10 round(60/13) = 5.
    "steps": ({"steps": 6}, [[3, 2], [2, 2, 1], [3]]),
    # After 4, 8, 12 places round(2.5, 4.9, 7.4), so 2, 3, 2, 1.
    "other steps": ({"steps": 8, "block_length": 4}, [[2, 2], [2, 1, 1], [2, 2], [1]]),
    "fewer steps than blocks": ({"steps": 1}, [[5], [5], [3]]),
    "more steps than tokens": ({"steps": 40}, ONE_BY_ONE),
    "threshold": ({"threshold": 0.25}, []),
    "factor": ({"factor": 2.2, "block_length": 7}, []),
    "guidance": ({"guidance_scale": 0.7}, ONE_BY_ONE),
    "guidance and threshold": ({"guidance_scale": 1.5, "threshold": 0.3, "block_length": 13}, []),
    "cache": ({"prefix_cache": True}, ONE_BY_ONE),
    "cache, one block": ({"prefix_cache": True, "block_length": 13}, [[1] * 13]),
    "cache and threshold": ({"prefix_cache": True, "threshold": 0.25}, []),
    "cache and guidance": ({"prefix_cache": True, "guidance_scale": 0.7, "steps": 6}, [[3, 2], [2, 2, 1], [3]]),
}


@pytest.mark.parametrize("shifted", [False, True], ids=["unshifted", "shifted"])
@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_batch_gives_the_texts_of_the_naive_sampler(setting, arch, shifted):
    """Five prompts of 1 to 31 tokens; mistral's sliding window is shorter than most. Rows end at different passes, some never."""
    options, quotas = SETTINGS[setting]
    model = model_of(arch, shifted)
    expected = [naive(model, prompt, quotas, shifted=shifted, **{k: v for k, v in options.items() if k != "steps"}) for prompt in PROMPTS]
    assert answers(model, **options) == [text for text, _ in expected]


@functools.cache
def exact(arch: str = "llama", shifted: bool = False) -> list[str]:
    """What the naive sampler answers to the prompts at one token a pass."""
    return [naive(model_of(arch, shifted), prompt, ONE_BY_ONE, shifted=shifted)[0] for prompt in PROMPTS]


def test_the_naive_sampler_tries_something():
    lengths = set()
    for arch in ("llama", "qwen3", "mistral"):
        for shifted in (False, True):
            texts = exact(arch, shifted)
            assert len(set(texts)) == len(PROMPTS)
            lengths |= {len(text.split()) for text in texts}
    assert min(lengths) < 3
    assert LENGTH in lengths
    for name in ("threshold", "factor"):
        passes = [naive(model_of("llama"), prompt, [], **SETTINGS[name][0])[1] for prompt in PROMPTS]
        assert 3 < min(passes) < 12
    assert len({tuple(answers(model_of("llama"), **SETTINGS[name][0])) for name in ("exact", "guidance", "cache", "steps")}) == 4


def test_everything_is_seen_from_everywhere():
    model = model_of("llama")
    logits = [model(torch.tensor([[5, 6, 7, last]])).logits[0, 0] for last in (8, 9)]
    assert not torch.allclose(logits[0], logits[1], atol=1e-3)


# --- Which tokens one forward pass commits


def logits_of(*confidences: float) -> torch.Tensor:
    """(1, K, 2) logits of two tokens; at each place the second one has this probability."""
    return torch.tensor([[[math.log(1 - p), math.log(p)] for p in confidences]])


def committed(confidences: list[float], count: int = 1, closed: tuple[int, ...] = (), **sampling: Any) -> list[int]:
    """The places committed, all with the more probable token."""
    open_BK = torch.tensor([[place not in closed for place in range(len(confidences))]])
    generators = [torch.Generator().manual_seed(0)]
    tokens_BK, commit_BK = commits(logits_of(*confidences), open_BK, count, Sampling(**sampling), generators)
    assert tokens_BK.tolist() == [[int(p > 0.5) for p in confidences]]
    return commit_BK[0].nonzero()[:, 0].tolist()


def test_as_many_as_are_due_the_most_confident_first():
    confidences = [0.7, 0.95, 0.6, 0.9]
    assert [committed(confidences, count) for count in (1, 2, 3, 4, 5)] == [[1], [1, 3], [0, 1, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert committed([0.2, 0.3, 0.75]) == [0]  # confident (0.8) of the first token


def test_ties_go_to_the_left():
    assert committed([0.6, 0.9, 0.9, 0.9], 2) == [1, 2]
    assert committed([0.9] * 40, 3) == [0, 1, 2]


def test_what_stands_already_is_never_committed():
    for sampling in ({}, {"threshold": 0.0}, {"factor": 1000.0}, {"remasking": "random"}):
        assert committed([0.7, 0.95, 0.6, 0.9], 4, closed=(1, 2), **sampling) == [0, 3]
        assert committed([0.7, 0.95], 4, closed=(0, 1), **sampling) == []


def test_the_threshold_takes_all_above_it_and_at_least_one():
    confidences = [0.7, 0.95, 0.6, 0.9]
    for threshold, places in ((0.96, [1]), (1.0, [1]), (0.92, [1]), (0.8, [1, 3]), (0.65, [0, 1, 3]), (0.0, [0, 1, 2, 3])):
        assert committed(confidences, 0, threshold=threshold) == places
    assert committed([0.5, 0.75], 0, threshold=0.5) == [0, 1]  # not only above it
    assert committed(confidences, 0, closed=(1,), threshold=0.92) == [3]


def test_the_factor_rule_by_hand():
    """Sorted 0.95, 0.9, 0.7, 0.6: (n + 1) (1 - confidence) is 2 x 0.05 = 0.1, 3 x 0.1 = 0.3, 4 x 0.3 = 1.2, 5 x 0.4 = 2.0."""
    confidences = [0.7, 0.95, 0.6, 0.9]
    for factor, places in ((0.0, [1]), (0.05, [1]), (0.2, [1]), (0.35, [1, 3]), (1.1, [1, 3]), (1.3, [0, 1, 3]), (2.1, [0, 1, 2, 3])):
        assert committed(confidences, 0, factor=factor) == places
    # Without the best, 0.9, 0.7, 0.6: 2 x 0.1 = 0.2, 3 x 0.3 = 0.9.
    assert committed(confidences, 0, closed=(1,), factor=0.35) == [3]
    assert committed(confidences, 0, closed=(1,), factor=1.0) == [0, 3]


def test_rows_are_decided_each_on_its_own():
    logits_BKV = torch.cat([logits_of(0.9, 0.6, 0.8), logits_of(0.6, 0.7, 0.55)])
    open_BK = torch.tensor([[True, True, True], [True, False, True]])
    for sampling, places in (({}, [[0], [0]]), ({"threshold": 0.7}, [[0, 2], [0]]), ({"factor": 0.7}, [[0, 2], [0]])):
        _, commit_BK = commits(logits_BKV, open_BK, 1, Sampling(**sampling), [])
        assert [row.nonzero()[:, 0].tolist() for row in commit_BK] == places


def test_confidence_is_compared_in_float64():
    """1 - 1e-9 and 1 - 1e-10 are both 1 in float32."""
    logits = torch.tensor([[[0.0, 20.72], [0.0, 23.03]]])
    assert commits(logits, torch.ones(1, 2, dtype=torch.bool), 1, Sampling(), [])[1].tolist() == [[False, True]]


def test_random_remasking_hangs_on_the_generator_alone():
    open_BK = torch.tensor([[True, False, True, True]])
    counts = [0] * 4
    for seed in range(300):
        places = []
        for confidences in ([0.7, 0.9, 0.6, 0.9], [0.6, 0.6, 0.95, 0.7]):
            generators = [torch.Generator().manual_seed(seed)]
            tokens_BK, commit_BK = commits(logits_of(*confidences), open_BK, 1, Sampling(remasking="random"), generators)
            assert tokens_BK.tolist() == [[1, 1, 1, 1]]
            places.append(int(commit_BK[0].nonzero()))
        assert places[0] == places[1]
        counts[places[0]] += 1
    assert counts[1] == 0
    assert all(abs(counts[place] - 100) < 33 for place in (0, 2, 3))  # 4 standard deviations


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_tokens_are_drawn_from_the_tempered_distribution(temperature):
    logits = torch.tensor([1.0, 0.0, -0.5, 2.0, -torch.inf])
    draws = 20_000
    open_BK = torch.ones(1, draws, dtype=torch.bool)
    tokens_BK, _ = commits(logits.expand(1, draws, 5), open_BK, 1, Sampling(temperature=temperature), [torch.Generator().manual_seed(1)])
    expected = draws * (logits / temperature).softmax(-1)
    counts = tokens_BK[0].bincount(minlength=5)
    assert counts[4] == 0
    assert float(((counts - expected)[:4] ** 2 / expected[:4]).sum()) < 16.3  # chi-square, 3 degrees of freedom: one in a thousand


def test_gumbel_noise_is_float64_and_confidence_is_without_it():
    logits_BKV = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(5))
    open_BK = torch.ones(2, 7, dtype=torch.bool)
    sampling = Sampling(temperature=1.7)
    tokens_BK, commit_BK = commits(logits_BKV, open_BK, 2, sampling, [torch.Generator().manual_seed(seed) for seed in (3, 4)])
    for row, seed in enumerate((3, 4)):
        uniform = torch.rand(7, 9, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).numpy()
        logits = logits_BKV[row].double().numpy()
        tokens = (logits / 1.7 - np.log(-np.log(uniform))).argmax(-1)
        assert tokens_BK[row].tolist() == tokens.tolist()
        confidence = np.exp(logits[np.arange(7), tokens]) / np.exp(logits).sum(-1)
        assert sorted(commit_BK[row].nonzero()[:, 0].tolist()) == sorted(np.argsort(-confidence)[:2].tolist())


# --- Batches


BY_CHANCE = [{"temperature": 0.8}, {"remasking": "random"}, {"temperature": 1.5, "remasking": "random", "steps": 6, "prefix_cache": True}]


@pytest.mark.parametrize("sampling", [{}, {"threshold": 0.25, "prefix_cache": True}, *BY_CHANCE], ids=str)
def test_neighbours_and_order_change_nothing(sampling):
    model = model_of("llama", shifted=True)
    alone = [answers(model, [prompt], **sampling)[0] for prompt in PROMPTS]
    for batch_size in (2, 5):
        assert answers(model, batch_size=batch_size, **sampling) == alone
        assert answers(model, PROMPTS[::-1], batch_size=batch_size, **sampling) == alone[::-1]


def test_chance_hangs_on_the_seed_and_on_how_often_a_prompt_came_before():
    model = model_of("llama")
    options: dict[str, Any] = {"temperature": 1.0, "stop_ids": []}
    first = answers(model, [PROMPTS[0]] * 3, **options)
    assert len(set(first)) == 3
    assert answers(model, [PROMPTS[1], PROMPTS[0], PROMPTS[2], PROMPTS[0]], **options)[1::2] == first[:2]
    assert answers(model, [PROMPTS[0]], **options, seed=1) != first[:1]
    # Different prompts do not share their noise.
    assert len({float(torch.rand((), generator=one)) for one in _generators([*PROMPTS, PROMPTS[0]], 0, torch.device("cpu"))}) == 6


def test_without_chance_the_seed_changes_nothing():
    assert answers(model_of("llama"), [PROMPTS[0]] * 2, seed=9) == [exact()[0]] * 2


def test_other_attention():
    model = copy.deepcopy(model_of("llama"))
    model.set_attn_implementation("eager")
    assert answers(model) == exact()


def test_progress_counts_every_prompt_once_and_none_give_none():
    done: list[int] = []
    options: dict[str, Any] = {"stop_ids": [], "max_new_tokens": 1, "batch_size": 2}
    generate(model_of("llama"), Spelled, PROMPTS, progress=done.append, **options)
    assert done == [2, 2, 1]
    assert generate(model_of("llama"), Spelled, [], **options) == []
    assert answers(model_of("llama"), length=0) == [""] * len(PROMPTS)


def test_the_text_is_without_special_tokens():
    tokenizer = copy.deepcopy(llama3())
    tokenizer.mask_token = "<|reserved_special_token_0|>"
    bos, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    written = [
        bos,
        *tokenizer.encode(" Ann keeps bees. ", add_special_tokens=False),
        bos,
        end,
        *tokenizer.encode("Bees", add_special_tokens=False),
    ]
    model = Scripted({1: [(token, 99 - place) for place, token in enumerate(written)]}, vocabulary=len(tokenizer))
    assert generate(model, tokenizer, [[1]], stop_ids=[end], max_new_tokens=len(written)) == ["Ann keeps bees."]


# --- The end of a row, with a model that says what a script says


class Scripted(torch.nn.Module):
    """To a prompt that starts with an id of the script it answers those tokens, with those logits; it notes how many rows it computes."""

    def __init__(self, script: dict[int, list[tuple[int, float]]], vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.config = LlamaConfig(is_causal=False)
        self.device = torch.device("cpu")
        self.script, self.vocabulary = script, vocabulary
        self.rows: list[int] = []

    def forward(self, input_ids: Any, attention_mask: Any, logits_to_keep: Any, **_: Any) -> Any:
        self.rows.append(len(input_ids))
        logits_BLV = torch.zeros(*input_ids.shape, self.vocabulary)
        for row, ids in enumerate(input_ids):
            said = self.script[int(ids[attention_mask[row].bool()][0])]
            for place, (token, logit) in enumerate(said, start=len(ids) - len(said)):
                logits_BLV[row, place, token] = logit
        return SimpleNamespace(logits=logits_BLV[logits_to_keep][None])


END = 90
LEFT_TO_RIGHT = [(5, 9.0), (6, 8.0), (END, 7.0), (7, 6.0), (8, 5.0)]
RIGHT_TO_LEFT = [(5, 5.0), (6, 6.0), (END, 7.0), (7, 8.0), (8, 9.0)]


def scripted(said: list[list[tuple[int, float]]], **sampling: Any) -> tuple[list[str], list[int]]:
    """(texts, rows computed at each forward pass) of prompts of different lengths to which the model says these."""
    model = Scripted({40 + i: row for i, row in enumerate(said)})
    prompts = [[40 + i] * (1 + 3 * i) for i in range(len(said))]
    return answers(model, prompts, stop_ids=[END], length=len(said[0]), **sampling), model.rows


def test_a_row_stops_at_its_end_once_nothing_before_it_is_masked():
    assert scripted([LEFT_TO_RIGHT]) == (["5 6"], [1, 1, 1])
    assert scripted([RIGHT_TO_LEFT]) == (["5 6"], [1, 1, 1, 1, 1])
    assert scripted([[(END, 9.0), (5, 8.0), (6, 7.0)]]) == ([""], [1])


def test_rows_that_stop_leave_the_batch():
    assert scripted([RIGHT_TO_LEFT, LEFT_TO_RIGHT, RIGHT_TO_LEFT]) == (["5 6"] * 3, [3, 3, 3, 2, 2])


def test_a_text_is_cut_at_its_first_end_whichever_came_first():
    assert scripted([[(5, 8.0), (END, 5.0), (6, 7.0), (END, 9.0), (7, 6.0)]]) == (["5"], [1] * 5)
    assert scripted([[(5, 8.0), (END, 6.5), (6, 7.0), (END, 9.0), (7, 6.0)]]) == (["5"], [1] * 4)


def test_a_row_that_ended_in_a_block_has_no_further_blocks():
    said = [LEFT_TO_RIGHT, [(5, 9.0), (6, 8.0), (7, 7.0), (8, 6.0), (9, 5.0)]]
    assert scripted(said, block_length=3) == (["5 6", "5 6 7 8 9"], [2, 2, 2, 1, 1])
    # An end that comes first waits for its block only.
    assert scripted([[(5, 1.0), (6, 2.0), (END, 3.0), (7, 4.0), (8, 5.0)]], block_length=3) == (["5 6"], [1, 1, 1])


def test_an_end_among_many_tokens_of_one_pass():
    assert scripted([LEFT_TO_RIGHT, RIGHT_TO_LEFT], threshold=0.0) == (["5 6"] * 2, [2])
    assert scripted([LEFT_TO_RIGHT, RIGHT_TO_LEFT], steps=2) == (["5 6"] * 2, [2, 1])


def test_guidance_doubles_the_rows_that_are_open():
    with shapes(model_of("llama")) as seen:
        answers(model_of("llama"), guidance_scale=0.5)
    rows = [count for count, _ in seen]
    assert rows[0] == 2 * len(PROMPTS)
    assert rows == sorted(rows, reverse=True)
    assert all(count % 2 == 0 for count in rows)


@pytest.mark.parametrize(
    "sampling", [{}, {"temperature": 3.0}, {"remasking": "random"}, {"guidance_scale": 1.0}, {"prefix_cache": True}], ids=str
)
def test_the_mask_token_is_never_written(sampling):
    """Even where the model is all but certain of it."""
    model = copy.deepcopy(model_of("llama"))
    before = answers(model, **sampling)

    def prefer_masks(module: Any, args: Any, output: Any) -> None:
        output.logits[..., MASK] += 1000

    model.register_forward_hook(prefer_masks)
    assert answers(model, **sampling) == before
    assert not any(str(MASK) in text.split() for text in before)


# --- The prefix cache


@pytest.mark.parametrize("arch", ["llama", "mistral"])
@pytest.mark.parametrize("shifted", [False, True], ids=["unshifted", "shifted"])
def test_the_cache_changes_nothing_where_keys_hang_on_their_own_token_alone(arch, shifted):
    """So in a model of one layer, where they are made of the embeddings; and in any, if a block takes one pass."""
    one = model_of(arch, shifted, layers=1)
    for sampling in ({}, {"threshold": 0.25}, {"guidance_scale": 0.7, "steps": 6}, {"block_length": 13}):
        assert answers(one, **sampling, prefix_cache=True) == answers(one, **sampling)
    two = model_of(arch, shifted)
    assert answers(two, steps=3, prefix_cache=True) == answers(two, steps=3)


def test_the_cache_saves_what_stands_before_the_block():
    """Prompts of 1 to 31 tokens, 13 places in blocks of 5: after a block's first pass, only the block and what follows is computed."""
    for shifted in (False, True):
        with shapes(model_of("llama", shifted)) as seen:
            answers(model_of("llama", shifted), stop_ids=[], prefix_cache=True)
        assert [length for _, length in seen] == [44, *[13 + shifted] * 4, 44, *[8 + shifted] * 4, 44, *[3 + shifted] * 2]


# --- What is refused


def test_a_causal_checkpoint_is_refused():
    with pytest.raises(InputError, match=r"^this checkpoint is left-to-right \(is_causal is not false in its config\)"):
        answers(make_model("llama"))


def test_a_tokenizer_without_a_mask_token_is_refused():
    with pytest.raises(InputError, match=r"^tokenizer: it names no mask_token"):
        generate(model_of("llama"), llama3(), PROMPTS, stop_ids=[1])
    with pytest.raises(InputError, match=r"^tokenizer: it names no mask_token"):
        check_decoding(model_of("llama").config, llama3(), None)
    check_decoding(model_of("llama").config, Spelled, Sampling(threshold=0.9))


def test_the_decoder_is_that_of_the_checkpoint():
    options: dict[str, Any] = {"stop_ids": ENDS, "max_new_tokens": LENGTH}
    diffusion = decoding.generate(model_of("llama"), Spelled, PROMPTS, sampling=Sampling(block_length=5), **options)
    assert diffusion == exact()
    assert decoding.generate(model_of("llama"), Spelled, PROMPTS, **options) == answers(model_of("llama"), block_length=32)
    model = make_model("llama")
    written = causal.generate(model, llama3(), PROMPTS, **options)
    for sampling in (None, Sampling()):
        assert decoding.generate(model, llama3(), PROMPTS, sampling=sampling, **options) == written
    with pytest.raises(InputError, match=r"^this checkpoint is bidirectional"):
        causal.generate(model_of("llama"), Spelled, PROMPTS, **options)


@pytest.mark.parametrize("sampling", [{"threshold": 0.9}, {"block_length": 4}, {"prefix_cache": True}, {"seed": 1}], ids=str)
def test_options_of_the_sampler_are_refused_for_a_causal_checkpoint(sampling):
    model = make_model("llama")
    message = f"^{next(iter(sampling))}: is for masked diffusion models, and this checkpoint writes left to right$"
    with pytest.raises(InputError, match=message):
        decoding.generate(model, llama3(), PROMPTS, sampling=Sampling(**sampling), stop_ids=ENDS)
    with pytest.raises(InputError, match=message):
        check_decoding(model.config, llama3(), Sampling(**sampling))


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"block_length": 0}, "^block_length must be at least 1, found 0$"),
        ({"steps": 0}, "^steps must be at least 1, found 0$"),
        ({"threshold": -0.1}, "^threshold must be a number of at least 0, found -0.1$"),
        ({"threshold": 90}, "^threshold must be from 0 to 1, found 90$"),
        ({"factor": -1}, "^factor must be a number of at least 0, found -1$"),
        ({"temperature": math.nan}, "^temperature must be a number of at least 0, found nan$"),
        ({"temperature": math.inf}, "^temperature must be a number of at least 0, found inf$"),
        ({"guidance_scale": -1.0}, "^guidance_scale must be a number of at least 0, found -1.0$"),
        ({"steps": 3, "threshold": 0.9}, "^steps, threshold and factor exclude each other$"),
        ({"factor": 1.0, "threshold": 0.9}, "^steps, threshold and factor exclude each other$"),
        ({"threshold": 0.9, "remasking": "random"}, "^threshold and factor go by confidence"),
        ({"factor": 0.0, "remasking": "random"}, "^threshold and factor go by confidence"),
        ({"remasking": "none"}, "^remasking: must be one of low_confidence, random, found 'none'$"),
    ],
)
def test_values_that_mean_nothing_are_refused(sampling, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**sampling)


# --- The model's own state


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_answers_are_given_without_dropout(training):
    model = copy.deepcopy(model_of("llama"))
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    model.train(training)
    assert answers(model) == exact()
    assert model.training is training

    def fail(*_: Any) -> None:
        raise RuntimeError

    model.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError):
        answers(model)
    assert model.training is training


def test_no_gradient_is_kept():
    model = copy.deepcopy(model_of("llama"))
    kept = []
    model.register_forward_hook(lambda module, args, output: kept.append(output.logits.requires_grad))
    answers(model)
    assert set(kept) == {False}
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("sampling", [{}, {"prefix_cache": True, "guidance_scale": 0.5, "temperature": 0.5}], ids=str)
def test_under_autocast(sampling):
    seen = []
    hook = model_of("llama").register_forward_hook(lambda module, args, output: seen.append(output.logits.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        texts = answers(model_of("llama"), stop_ids=[], **sampling)
    hook.remove()
    assert set(seen) == {torch.bfloat16}
    assert {len(text.split()) for text in texts} == {LENGTH}


# --- Sharded over processes


SHARDED = {"exact": Sampling(block_length=5), "cache": Sampling(block_length=5, threshold=0.25, prefix_cache=True)}
# The first process's rows end at almost any token, those of the second at none.
STOPS = [EVERY[:80], []]
SHARES = [random_prompts(4, 9, 2, 6), random_prompts(21, 3, 7, 2)]


def of_share(model: Any, rank: int, sampling: Sampling) -> tuple[list[str], int]:
    """(the texts of this process's prompts in two batches, the forward passes)"""
    with shapes(model) as seen:
        texts = generate(model, Spelled, SHARES[rank], stop_ids=STOPS[rank], max_new_tokens=LENGTH, batch_size=2, sampling=sampling)
    return texts, len(seen)


@pytest.mark.parametrize("sampling", [{}, {"prefix_cache": True}, {"prefix_cache": True, "guidance_scale": 0.5}], ids=str)
def test_going_on_for_the_others_changes_nothing(sampling, monkeypatch):
    """Two passes more for each block, whichever rows the last pass was for."""
    stops = [[], ENDS, EVERY[:60]]
    expected = [answers(model_of("llama"), stop_ids=stop, **sampling) for stop in stops]
    more = iter([])

    def two_more(here: bool, jointly: bool, device: torch.device) -> bool:
        nonlocal more
        if here:
            more = iter([True, True])
        return here or next(more, False)

    monkeypatch.setattr(decoding.diffusion, "anywhere", two_more)
    assert [answers(model_of("llama"), stop_ids=stop, **sampling) for stop in stops] == expected


def main(folder: Path) -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
    from torch.distributed.fsdp.wrap import ModuleWrapPolicy

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    done: dict[str, Any] = {}
    for kind in ("FSDP1", "FSDP2"):
        model = copy.deepcopy(model_of("qwen3", shifted=True))
        if kind == "FSDP1":
            policy = ModuleWrapPolicy({type(model.model.layers[0])})
            model = FullyShardedDataParallel(model, auto_wrap_policy=policy, use_orig_params=True, device_id=torch.device("cpu"))
        else:
            for layer in (*model.model.layers, model):
                fully_shard(layer)
        for name, sampling in SHARDED.items():
            done[f"{kind} {name}"] = of_share(model, rank, sampling)
        model(input_ids=torch.tensor([PROMPTS[1]]), use_cache=False).logits.sum().backward()  # it can be trained afterwards
    (folder / f"{rank}.json").write_text(json.dumps(done))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_models_processes_wait_for_each_other(tmp_path):
    module = "tests.unit.test_diffusion_decoding"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    sharded = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for name, sampling in SHARDED.items():
        alone = [of_share(model_of("qwen3", shifted=True), rank, sampling) for rank in (0, 1)]
        assert alone[0][1] < alone[1][1] - 3
        for kind in ("FSDP1", "FSDP2"):
            assert [share[f"{kind} {name}"][0] for share in sharded] == [texts for texts, _ in alone]
            assert len({share[f"{kind} {name}"][1] for share in sharded}) == 1


if __name__ == "__main__":
    main(Path(sys.argv[1]))
