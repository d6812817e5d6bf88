"""Masks have the frequencies and shapes they promise. All draws are functions of fixed keys; bounds are five standard deviations wide."""

from __future__ import annotations

import math
import re
from collections import Counter
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demask.masking import MaskRatio, draw_mask, exact_count, exact_mask, generator, independent_mask, stratified, window_mask, word_units
from tests.tokenizers import TOKENIZERS, chatml, gemma, llama3, mistral

ratios = st.floats(0, 1)
sizes = st.integers(1, 60)
keys = st.integers(0, 2**32 - 1)


def sigmas(hits: int, trials: int, p: float) -> float:
    """How many standard deviations a binomial count lies from its mean."""
    return abs(hits - trials * p) / math.sqrt(trials * p * (1 - p))


def is_window(visible: np.ndarray) -> bool:
    """Whether the visible places are one contiguous run (or none)."""
    return len(re.findall("v+", "".join("v" if place else "." for place in visible))) <= 1


def test_generator_is_a_function_of_its_key():
    first = generator(3, 12, 5, 0).random(4)
    generator(3, 12, 5, 1).random(100)
    assert (generator(3, 12, 5, 0).random(4) == first).all()
    others = [generator(*key).random(4).tolist() for key in [(3, 12, 5, 1), (3, 12, 6, 0), (3, 11, 5, 0), (4, 12, 5, 0)]]
    assert len({*map(tuple, others), tuple(first)}) == 5
    reference = np.random.Generator(np.random.PCG64(np.random.SeedSequence([3, 12, 5, 0])))
    assert (reference.random(4) == first).all()


@pytest.mark.parametrize("ratio", [0.05, 0.3, 0.5, 0.95])
def test_independent_frequencies(ratio):
    """Each place has the ratio, so has the whole, and neighbours do not know of each other."""
    n, draws = 40, 2000
    masks = np.array([independent_mask(n, ratio, generator(1, draw)) for draw in range(draws)])
    assert masks.shape == (draws, n)
    assert masks.dtype == bool
    assert sigmas(int(masks.sum()), n * draws, ratio) < 5
    assert max(sigmas(int(hits), draws, ratio) for hits in masks.sum(axis=0)) < 5
    both = int((masks[:, :-1] & masks[:, 1:]).sum())
    # Pairs overlap, which widens a count of pairs at most by sqrt(3).
    assert sigmas(both, (n - 1) * draws, ratio**2) < 5 * math.sqrt(3)
    counts = masks.sum(axis=1)
    assert counts.var() == pytest.approx(n * ratio * (1 - ratio), rel=0.2)  # binomial, not a fixed share


@given(n=sizes, ratio=ratios, key=keys)
def test_exact_counts(n, ratio, key):
    count = exact_count(n, ratio)
    assert max(1, ratio * n) <= count <= n
    assert count == 1 or count - 1 < ratio * n
    mask = exact_mask(n, count, generator(key))
    assert (mask.shape, mask.dtype, mask.sum()) == ((n,), bool, count)


@pytest.mark.parametrize(
    ("n", "ratio", "hidden"),
    [(10, 0.5, 5), (10, 0.51, 6), (10, 0.41, 5), (5, 0.0, 1), (5, 0.2, 1), (5, 1.0, 5), (1, 0.3, 1), (3000, 1e-4, 1)],
)
def test_exact_counts_by_hand(n, ratio, hidden):
    assert exact_count(n, ratio) == hidden


def test_exact_masks_are_uniform():
    """Two of four tokens: six sets, equally often."""
    sets = Counter(tuple(np.flatnonzero(exact_mask(4, 2, generator(4, draw))).tolist()) for draw in range(3000))
    assert sorted(sets) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert max(sigmas(hits, 3000, 1 / 6) for hits in sets.values()) < 5


@given(low=ratios, high=ratios, slots=st.integers(1, 40), key=keys)
def test_strata(low, high, slots, key):
    """One ratio in each of `slots` equal parts of the range, all at the same place in their part."""
    low, high = sorted((low, high))
    drawn = [stratified(MaskRatio(low, high), slot, slots, generator(key)) for slot in range(slots)]
    assert drawn == [stratified(MaskRatio(low, high), slot, slots, generator(key)) for slot in range(slots)]
    width = (high - low) / slots
    for part, ratio in enumerate(sorted(drawn)):
        assert low + part * width - 1e-12 <= ratio <= low + (part + 1) * width + 1e-12
        assert ratio - min(drawn) == pytest.approx(part * width, abs=1e-12)


def test_each_slot_has_a_uniform_ratio():
    """Any one slot of four, over many batches: a tenth of its ratios in each tenth of U(0.05, 0.95), the others' order independent."""
    draws = np.array([[stratified(MaskRatio(), slot, 4, generator(5, batch)) for slot in range(4)] for batch in range(2000)])
    for slot in range(4):
        tenths = Counter(((draws[:, slot] - 0.05) / 0.09).astype(int).tolist())
        assert sorted(tenths) == list(range(10))
        assert max(sigmas(hits, 2000, 0.1) for hits in tenths.values()) < 5
    orders = Counter(tuple(np.argsort(batch).tolist()) for batch in draws)
    assert len(orders) == 24
    assert max(sigmas(hits, 2000, 1 / 24) for hits in orders.values()) < 5


@pytest.mark.parametrize("pattern", ["independent", "window", "mix"])
@given(n=sizes, key=keys)
def test_nothing_and_everything_hidden(pattern, n, key):
    assert not draw_mask(n, 0.0, generator(key), pattern).any()
    assert draw_mask(n, 1.0, generator(key), pattern).all()


@given(n=sizes, ratio=ratios, key=keys)
def test_window_is_one_span_of_the_right_length(n, ratio, key):
    visible = ~window_mask(n, ratio, generator(key))
    assert visible.shape == (n,)
    assert visible.sum() == round((1 - ratio) * n)
    assert is_window(visible)


def test_window_starts_are_uniform():
    """7 tokens at ratio 0.4: round(0.6 x 7) = 4 visible, which can start at 0, 1, 2 or 3."""
    draws = 4000
    masks = [window_mask(7, 0.4, generator(1, draw)) for draw in range(draws)]
    starts = Counter(int(np.argmin(mask)) for mask in masks)
    assert {(~mask).sum() for mask in masks} == {4}
    assert sorted(starts) == [0, 1, 2, 3]
    assert max(sigmas(hits, draws, 1 / 4) for hits in starts.values()) < 5


@pytest.mark.parametrize(
    ("n", "ratio", "visible"), [(10, 0.5, 5), (10, 0.26, 7), (10, 0.24, 8), (3, 0.95, 0), (1, 0.4, 1), (1, 0.6, 0), (200, 0.95, 10)]
)
def test_window_lengths_by_hand(n, ratio, visible):
    assert int((~window_mask(n, ratio, generator(0))).sum()) == visible


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_mix_share(share):
    """Of 60 tokens half hidden, independent draws practically never leave one span."""
    draws = 2000
    windows = sum(is_window(~draw_mask(60, 0.5, generator(2, draw), "mix", share)) for draw in range(draws))
    assert sigmas(windows, draws, share) < 5


@given(n=sizes, ratio=ratios, key=keys)
def test_patterns_are_what_they_are_called(n, ratio, key):
    assert (draw_mask(n, ratio, generator(key)) == independent_mask(n, ratio, generator(key))).all()
    assert (draw_mask(n, ratio, generator(key), "window") == window_mask(n, ratio, generator(key))).all()
    assert is_window(~draw_mask(n, ratio, generator(key), "mix", 1.0))
    rng = generator(key)
    rng.random()  # the draw that chose the pattern
    assert (draw_mask(n, ratio, generator(key), "mix", 0.0) == independent_mask(n, ratio, rng)).all()


@given(low=ratios, high=ratios, key=keys)
def test_uniform_ratio_lies_between_its_bounds(low, high, key):
    low, high = sorted((low, high))
    assert low <= MaskRatio(low, high).draw(generator(key)) <= high


def test_uniform_ratio_is_uniform():
    """The paper's U(0.05, 0.95): mean 0.5, standard deviation 0.9 / sqrt(12), a tenth of the draws in each tenth of the range."""
    draws = [MaskRatio().draw(generator(3, i)) for i in range(4000)]
    assert np.mean(draws) == pytest.approx(0.5, abs=5 * 0.9 / math.sqrt(12 * 4000))
    assert np.std(draws) == pytest.approx(0.9 / math.sqrt(12), rel=0.05)
    tenths = Counter(int((draw - 0.05) / 0.09) for draw in draws)
    assert sorted(tenths) == list(range(10))
    assert max(sigmas(hits, 4000, 0.1) for hits in tenths.values()) < 5


@pytest.mark.parametrize("ratio", [0.0, 0.15, 0.75, 1.0])
@pytest.mark.parametrize("schedule", ["uniform", "linear"])
def test_fixed_ratio(ratio, schedule):
    assert MaskRatio(ratio, ratio, schedule).draw(generator(9), progress=0.3) == ratio


@pytest.mark.parametrize(
    ("low", "high", "progress", "ratio"),
    [(0.2, 0.8, 0, 0.2), (0.2, 0.8, 1, 0.8), (0.2, 0.8, 0.25, 0.35), (0.9, 0.1, 0, 0.9), (0.9, 0.1, 1, 0.1), (0.9, 0.1, 0.75, 0.3)],
)
def test_linear_ratio(low, high, progress, ratio):
    assert MaskRatio(low, high, "linear").draw(generator(9), progress) == pytest.approx(ratio)


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0.5), (0.5, 1.1), (float("nan"), 0.5), (0.5, float("nan"))])
@pytest.mark.parametrize("schedule", ["uniform", "linear"])
def test_ratio_out_of_range(low, high, schedule):
    with pytest.raises(ValueError) as error:
        MaskRatio(low, high, schedule)
    assert str(error.value) == f"mask_ratio must lie between 0 and 1, found {low} {high}"


def test_ratio_upside_down():
    with pytest.raises(ValueError) as error:
        MaskRatio(0.9, 0.1)
    assert str(error.value) == "mask_ratio must be given as LOW HIGH, found 0.9 0.1"


def tokens_and_units(tokenizer, text):
    ids = tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    return list(zip(tokenizer.convert_ids_to_tokens(ids), word_units(tokenizer, text), strict=True))


def test_word_units_by_hand():
    assert tokens_and_units(llama3(), "Ann keeps honeybees, 12.") == [
        ("Ann", 0),
        ("Ġkeeps", 1),
        *[("Ġ", 2), ("h", 2), ("on", 2), ("e", 2), ("y", 2), ("b", 2), ("ee", 2), ("s", 2), (",", 2)],
        *[("Ġ", 3), ("12", 3), (".", 3)],
    ]


def test_word_units_of_a_dummy_prefix():
    assert tokens_and_units(mistral(), "Ann is called") == [("▁Ann", 0), ("▁is", 1), ("▁call", 2), ("ed", 2)]


def test_word_units_of_multi_byte_characters():
    """The bytes of a character share its place; several characters in a row are one word."""
    snow = [f"<0x{byte:02X}>" for byte in "雪".encode()]
    bee = [f"<0x{byte:02X}>" for byte in "🐝".encode()]
    assert tokens_and_units(gemma(), "Ann 🐝🐝 雪a") == [
        ("Ann", 0),
        ("▁", 1),
        *[(byte, 1) for byte in bee * 2],
        ("▁", 2),
        *[(byte, 2) for byte in snow],
        ("a", 2),
    ]
    assert word_units(chatml(), "🐝 🐝") == [0] * 4 + [1] * 5  # the space is a token of the second word


def test_word_units_of_a_special_tokens_name():
    """A document's "<|im_end|> x" is plain text, of two words."""
    units = word_units(chatml(), "<|im_end|> x")
    assert units == [0] * (len(units) - units.count(1)) + [1] * units.count(1)
    assert units.count(0) > 1


def test_word_units_after_a_token_that_ends_in_white_space():
    assert tokens_and_units(llama3(), "Ann is.\nAnn") == [("Ann", 0), ("Ġis", 1), (".Ċ", 1), ("Ann", 2)]


def words_of_tokens(tokenizer, text):
    """For each token the word of its first character that is not white space (None where it has none), and its unit."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    touched = []
    for start, end in encoded["offset_mapping"]:
        inside = [i for i, (a, b) in enumerate(words) if a < end and start < b]
        touched.append(inside[0] if inside else None)
    return list(zip(touched, word_units(tokenizer, text), strict=True))


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.sampled_from("abk.,\n 🐝雪9"), min_size=1, max_size=16))
def test_word_units_count_up_and_keep_words_whole(name, text):
    pairs = words_of_tokens(TOKENIZERS[name](), text)
    units = [unit for _, unit in pairs]
    assert units[0] == 0
    assert {after - before for before, after in pairwise(units)} <= {0, 1}
    unit_of_word: dict[int, int] = {}
    for word, unit in pairs:
        if word is not None:
            assert unit_of_word.setdefault(word, unit) == unit


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(st.sampled_from("abk.,\n 🐝雪9"), min_size=1, max_size=16))
def test_word_units_part_words(name, text):
    pairs = {(word, unit) for word, unit in words_of_tokens(TOKENIZERS[name](), text) if word is not None}
    assert len({unit for _, unit in pairs}) == len({word for word, _ in pairs})


def test_word_units_need_offsets():
    with pytest.raises(ValueError, match=r"^mask_unit 'word' needs a fast tokenizer"):
        word_units(SimpleNamespace(is_fast=False), "Ann")
