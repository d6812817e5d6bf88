"""How much of a document is hidden, and which tokens: pure functions of sizes, a ratio and a random generator.

Generators are numpy's, seeded by a tuple, so that a draw depends on nothing but that tuple (see schedule.py).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Pattern = Literal["independent", "window", "mix"]
Unit = Literal["token", "word"]


def generator(*key: int) -> np.random.Generator:
    """A generator that is a function of the key (non-negative integers), whatever was drawn before."""
    return np.random.default_rng(np.random.SeedSequence(key))


@dataclass(frozen=True)
class MaskRatio:
    """The share of tokens to hide: U(low, high) anew for each draw, fixed where low = high; "high" draws more of the high ones, with a
    density that rises linearly from 0 at low; "linear" moves from low to high over training.

    Raises ValueError outside 0 <= low <= high <= 1 (a linear schedule may also fall).
    """

    low: float = 0.05
    high: float = 0.95
    schedule: Literal["uniform", "high", "linear"] = "uniform"

    def __post_init__(self) -> None:
        if not (0 <= self.low <= 1 and 0 <= self.high <= 1):
            raise ValueError(f"mask_ratio must lie between 0 and 1, found {self.low} {self.high}")
        if self.schedule != "linear" and self.low > self.high:
            raise ValueError(f"mask_ratio must be given as LOW HIGH, found {self.low} {self.high}")

    def draw(self, rng: np.random.Generator, progress: float = 0.0) -> float:
        """One ratio; `progress` in [0, 1] is how far training is."""
        if self.schedule == "linear":
            return self.low + (self.high - self.low) * progress
        if self.schedule == "high":
            return self.low + (self.high - self.low) * math.sqrt(rng.random())
        return float(rng.uniform(self.low, self.high))

    @property
    def mean(self) -> float:
        """The ratio in expectation."""
        return self.low + (self.high - self.low) * (2 / 3 if self.schedule == "high" else 1 / 2)


def independent_mask(n: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: each hidden with probability `ratio`, independently (arXiv 2510.09885, masked fine-tuning)."""
    return rng.random(n) < ratio


def exact_count(n: int, ratio: float) -> int:
    """How many of n tokens to hide: ceil(ratio n), at least one. For ratio U(0, 1) it is uniform over 1..n."""
    return max(1, math.ceil(ratio * n))


def exact_mask(n: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: `count` tokens hidden at random."""
    mask = np.zeros(n, dtype=bool)
    mask[rng.permutation(n)[:count]] = True
    return mask


def stratified(ratio: MaskRatio, slot: int, slots: int, rng: np.random.Generator) -> float:
    """The ratio of one of a batch's `slots`: each from its own stratum of [low, high], in random order, one random shift for all.

    `rng` must be the same for all slots of a batch. (Low-discrepancy sampling: Kingma et al., arXiv 2107.00630, appendix I.1.)
    """
    shift, order = rng.random(), rng.permutation(slots)
    return ratio.low + (ratio.high - ratio.low) * (order[slot] + shift) / slots


def window_mask(n: int, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """(n,) bool: one contiguous window of round((1 - ratio) n) at a uniform place stays visible, the rest is hidden."""
    visible = round((1 - ratio) * n)
    start = int(rng.integers(0, n - visible + 1))
    mask = np.ones(n, dtype=bool)
    mask[start : start + visible] = False
    return mask


def draw_mask(n: int, ratio: float, rng: np.random.Generator, pattern: Pattern = "independent", window_share: float = 0.5) -> np.ndarray:
    """(n,) bool by `pattern`; "mix" draws a window with probability `window_share` and independent tokens else."""
    if pattern == "window" or (pattern == "mix" and rng.random() < window_share):
        return window_mask(n, ratio, rng)
    return independent_mask(n, ratio, rng)


def word_units(tokenizer: Any, text: str) -> list[int]:
    """For each token of `text` the number of its word, from 0; words are what whitespace separates.

    A token that is only whitespace goes with the word after it (at the end: before it). Needs a tokenizer that gives offsets;
    raises ValueError for one that does not.
    """
    if not tokenizer.is_fast:
        raise ValueError("mask_unit 'word' needs a fast tokenizer (one that gives character offsets)")
    starts = [i for i, character in enumerate(text) if not character.isspace() and (i == 0 or text[i - 1].isspace())]
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    units = []
    for start, end in encoded["offset_mapping"]:
        visible = next((i for i in range(start, end) if not text[i].isspace()), None)
        word = bisect_left(starts, start) if visible is None else bisect_right(starts, visible) - 1
        units.append(min(word, max(0, len(starts) - 1)))
    return units
