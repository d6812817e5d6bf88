"""Duplicates: exact ones, near ones beside a brute-force count, and the bands of the index."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demask.corpora.duplicates import Digests, Duplicates, bands


def shingles(text: str) -> set[tuple[str, ...]]:
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


def test_exact_duplicates_are_told_apart_from_near_ones():
    found = Duplicates(0.5)
    # triples: abc bcd cde def | abc bcd cde deg: 3 shared of 5; the first text once more, with other white space; one of another kind
    for text in ["a b c d e f", "a b c d e g", "a  b c d\ne f", "x y z"]:
        found.add(text)
    assert found.exact_pairs == [(2, 0)]
    assert found.near_pairs == [(1, 0, pytest.approx(3 / 5))]


def test_case_makes_near_duplicates_only():
    found = Duplicates(1.0)
    found.add("Ann digs here")
    found.add("ann digs here")
    assert (found.exact_pairs, found.near_pairs) == ([], [(1, 0, 1.0)])


def test_without_near_duplicates():
    found = Duplicates(0)
    for text in ["a b c d", "a b c d", "a b c e"]:
        found.add(text)
    assert (found.exact_pairs, found.near_pairs) == ([(1, 0)], [])


def test_texts_shorter_than_a_triple():
    found = Duplicates(0.8)
    for text in ["a", "b", "a b", "", "A"]:
        found.add(text)
    assert found.near_pairs == [(4, 0, 1.0)]


def test_as_many_as_by_comparing_all():
    rng = random.Random(3)
    vocabulary = [f"w{i}" for i in range(500)]
    texts: list[str] = []
    for _ in range(100):
        words = rng.choices(vocabulary, k=60)
        for changes in (0, 1, 2, 6):  # similarities about 1, .9, .82, .53 with the first
            other = list(words)
            for place in rng.sample(range(60), changes):
                other[place] = "new"
            texts.append(" ".join(other))
    found = Duplicates(0.8)
    for text in texts:
        found.add(text)
    firsts, expected = [], []
    for number, text in enumerate(texts):
        own = shingles(text)
        close = [other for other, theirs in firsts if len(own & theirs) / len(own | theirs) >= 0.8]
        if close:
            expected.append(number)
        else:
            firsts.append((number, own))
    assert not found.exact_pairs
    assert all(
        similarity >= 0.8 and len(shingles(texts[a]) & shingles(texts[b])) / len(shingles(texts[a]) | shingles(texts[b])) == similarity
        for a, b, similarity in found.near_pairs
    )
    assert {a for a, _, _ in found.near_pairs} == set(expected)


def test_bands_by_threshold():
    # .8: 1 - (1 - .8^6)^20 = .998, but of 8 rows 1 - (1 - .8^8)^15 = .94; .9: 10 rows .994, 12 rows .96; .5: 3 rows .995, 4 rows .86
    assert [bands(s) for s in (1.0, 0.9, 0.8, 0.5, 0.01)] == [1, 12, 20, 40, 120]


# -- strings that were met before --------------------------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=2)))
def test_digests_know_what_was_added(texts):
    digests, met = Digests(), set()
    for text in texts:
        assert digests.add(text) == (text not in met)
        met.add(text)


def test_digests_as_their_table_grows():
    digests = Digests()
    names = [f"w{i % 7}-{i}" for i in range(5000)]  # from 1,024 places to 8,192
    assert all(digests.add(name) for name in names)
    assert not any(digests.add(name) for name in names)
    assert len(digests._table) == 8192
