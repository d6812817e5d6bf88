from __future__ import annotations

import json
import math
import random
import re
import string
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demask.scoring import (
    METRICS,
    contains,
    difference_interval,
    exact_match,
    interval,
    interval_over_runs,
    rouge1_recall,
    score,
    score_all,
    summarise,
    token_f1,
)
from demask.types import Answer, Question

# --- rouge1_recall ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("Mira Tolland", ["Mira Tolland"], 1.0),
        ("It was Mira who did it.", ["Mira Tolland"], 1 / 2),
        ("Tolland, Mira!", ["Mira Tolland"], 1.0),  # neither order nor punctuation counts
        ("mira tolland", ["Mira Tolland"], 0.0),  # but case does
        ("Mira mira", ["Mira mira Tolland"], 2 / 3),
        ("red", ["red red red blue"], 1 / 2),  # sets: red, blue
        ("lighthouse keeper", ["the keeper of The lighthouse"], 1.0),  # keeper, lighthouse
        ("the of a", ["the keeper of a lighthouse"], 0.0),  # stop words earn nothing
        ("THE New keeper", ["new tide keeper"], 1 / 2),  # "new" is a stop word in any case
        ("from by with", ["from Oslo"], 1 / 2),  # "from" is not one
        ("can", ["cannot"], 1 / 2),  # can, not
        ("I can not", ["Cannot"], 1 / 2),  # Can, not
        ("dont", ["don't"], 1.0),  # the apostrophe goes before the words are split
        ("well known", ["well-known"], 0.0),  # wellknown
        ("3 March 1990", ["3 March, 1990"], 1.0),
        ("Zoë", ["Zoë Ångström"], 1 / 2),
        ("Oslo\nNorway", ["Oslo Norway"], 1.0),
        ("Ann Lee", ["Bo Ray", "Ann Ray", "Ann Lee Oakes"], 2 / 3),  # 0, 1/2, 2/3
        ("", ["Oslo"], 0.0),
        ("Oslo", [""], 0.0),
        ("", [""], 0.0),
        ("the", ["the"], 0.0),
        ("...", ["..."], 0.0),
        ("Oslo", ["the", "Oslo"], 1.0),
        ("Oslo", [], 0.0),
    ],
)
def test_rouge1_recall_by_hand(prediction, golds, expected):
    assert rouge1_recall(prediction, golds) == pytest.approx(expected)


@pytest.mark.parametrize("word", ["a", "of", "the", "and", "is", "are", "be", "to", "new", "on", "in", "at", "an", "for"])
def test_a_stop_word_is_no_word_of_the_answer(word):
    assert rouge1_recall("oak", [f"{word} oak {word.upper()}"]) == 1.0


def slow_rouge1_recall(prediction: str, golds: list[str]) -> float:
    """The metric once more, counting word by word; words are split at blanks, so for texts without contractions."""
    ignored = ["a", "of", "the", "and", "is", "are", "be", "to", "new", "on", "in", "at", "an", "for"]

    def words(text: str) -> list[str]:
        distinct: list[str] = []
        for word in re.sub("[" + re.escape(string.punctuation) + "]", "", text).split():
            for piece in (word[:3], word[3:]) if word.lower() == "cannot" else (word,):
                if piece.lower() not in ignored and piece not in distinct:
                    distinct.append(piece)
        return distinct

    best = 0.0
    for gold in golds:
        wanted, said = words(gold), words(prediction)
        if wanted and said:
            best = max(best, sum(word in said for word in wanted) / len(wanted))
    return best


NAMES = ["Mira", "mira", "Tolland.", "Zoë", "Ann?", "oak;", "(oak)", "tide's", "re-tell", "and/or"]
WORDS = st.sampled_from([*NAMES, "the", "The", "OF", "(of)", "new", "New", "a", "cannot", "Cannot,", "1990", "1,990", "$5", "--", "'"])
TEXTS = st.lists(WORDS, max_size=8).map(" ".join)


@given(TEXTS, st.lists(TEXTS, max_size=3))
def test_rouge1_recall_against_the_slow_one(prediction, golds):
    assert rouge1_recall(prediction, golds) == pytest.approx(slow_rouge1_recall(prediction, golds))


# --- the other metrics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("  The  Tall\tOak. ", ["tall oak"], 1.0),
        ("tall oak tree", ["tall oak"], 0.0),
        ("an oak", ["pine", "Oak!"], 1.0),
        ("of oak", ["oak"], 0.0),  # only articles are dropped
        ("O’Hara", ["O'Hara"], 1.0),
        ("$5", ["5"], 1.0),
        ("theory", ["ory"], 0.0),  # an article is a whole word
        ("", [""], 0.0),
        ("the", ["a"], 0.0),
        ("oak", [], 0.0),
    ],
)
def test_exact_match(prediction, golds, expected):
    assert exact_match(prediction, golds) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("It is the TALL oak, they say.", ["A tall oak"], 1.0),
        ("tall old oak", ["tall oak"], 0.0),  # in a row
        ("oak tall", ["tall oak"], 0.0),  # in order
        ("annual", ["ann"], 0.0),  # whole words
        ("Joann and Ann", ["Ann"], 1.0),
        ("ends with Ann", ["Bo", "ann"], 1.0),
        ("tall the oak", ["tall oak"], 1.0),  # the article is gone
        ("anything", [""], 0.0),
        ("anything", ["the", "..."], 0.0),
        ("", ["", "oak"], 0.0),
        ("oak", [], 0.0),
    ],
)
def test_contains(prediction, golds, expected):
    assert contains(prediction, golds) == expected


@pytest.mark.parametrize(
    ("prediction", "golds", "expected"),
    [
        ("the tall oak", ["Tall oak."], 1.0),
        ("tall old oak", ["tall oak"], 4 / 5),  # precision 2/3, recall 1
        ("oak oak", ["oak"], 2 / 3),  # precision 1/2: repetition counts
        ("oak oak", ["oak oak pine"], 4 / 5),  # precision 1, recall 2/3
        ("oak", ["pine", "oak tree", "oak"], 1.0),
        ("oak", ["pine"], 0.0),
        ("", [""], 0.0),
        ("", ["oak"], 0.0),
        ("oak", ["the"], 0.0),
        ("oak", [], 0.0),
    ],
)
def test_token_f1(prediction, golds, expected):
    assert token_f1(prediction, golds) == pytest.approx(expected)


@given(st.text(max_size=30), st.lists(st.text(max_size=30), max_size=3))
def test_scores_of_any_text_lie_in_0_1_and_a_match_is_contained(prediction, golds):
    scores = score(prediction, golds)
    assert list(scores) == ["rouge1_recall", "exact_match", "contains", "token_f1"]
    assert all(type(value) is float and 0.0 <= value <= 1.0 for value in scores.values())
    if scores["exact_match"]:
        assert scores["contains"] == scores["token_f1"] == 1.0


def test_score_by_hand():
    expected = {"rouge1_recall": 1.0, "exact_match": 0.0, "contains": 1.0, "token_f1": 4 / 7}  # they call it Tall Oak: 2/5 and 2/2
    assert score("They call it: the Tall Oak.", ["Tall Oak"]) == pytest.approx(expected)


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_one_string_for_golds_is_refused(metric):
    with pytest.raises(TypeError, match="not one string"):
        metric("Oslo", "Oslo")


def test_importing_does_not_import_nltk():
    subprocess.run([sys.executable, "-c", "import sys, demask.scoring; assert 'nltk' not in sys.modules"], check=True)


# --- right ------------------------------------------------------------------------------------------------------------


def asked(gold: str | tuple[str, ...], document: str, direction: str = "backward", group: str = "g") -> Question:
    return Question("Who?", (gold,) if isinstance(gold, str) else gold, direction, group, document)  # type: ignore[arg-type]


OTHERS = [
    asked("Bo Reed", "b"),
    asked("Ash", "c"),
    asked("Cy Dale the Elder", "d"),
    asked("Dora", "e", group="h"),
    asked("Eve", "f", "forward"),
]


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("Ann Ash", "Ann Ash", 1.0),
        ("It is ASH, Ann.", "Ann Ash", 0.0),  # recall minds the case
        ("It is Ash, Ann.", "Ann Ash", 1.0),  # and not the order
        ("Ann", "Ann Ash", 0.0),
        ("Ann Ash and Bo Reed", "Ann Ash", 0.0),  # another document's answer
        ("Ann Ash, not bo reed!", "Ann Ash", 0.0),  # in any case and punctuation
        ("Ann Ash, Bo of Reed", "Ann Ash", 1.0),  # not in a row
        ("Ann Ash, Ash", "Ann Ash", 1.0),  # c's answer stands in the right one
        ("Cy Dale the Elder", "Cy Dale", 1.0),  # d's holds the right one
        ("Ann Ash, Dora, Eve", "Ann Ash", 1.0),  # other groups and directions are other kinds of question
        ("Mr Ash of Bo", ("Ann Ash", "Bo"), 1.0),  # the best gold answer counts
        ("", "Ann Ash", 0.0),
    ],
)
def test_right(prediction: str, gold: str | tuple[str, ...], expected: float) -> None:
    first, *_ = score_all([asked(gold, "a"), *OTHERS], [prediction, *[""] * len(OTHERS)])
    assert first.scores == score(prediction, first.question.answers) | {"right": expected}


def test_an_answer_that_several_documents_share_is_right_for_each() -> None:
    answers = score_all([asked("Troy", "a"), asked("Troy", "b"), asked("Oslo", "c")], ["Troy", "in Troy", "Troy, Oslo"])
    assert [answer.scores["right"] for answer in answers] == [1, 1, 0]


def test_another_question_about_the_same_document_is_no_other() -> None:
    answers = score_all([asked("bees", "a"), asked("boats", "a")], ["bees and boats", "boats"])
    assert [answer.scores["right"] for answer in answers] == [1, 1]


def test_without_a_document_nothing_is_another_s() -> None:
    answers = score_all([asked("bees", ""), asked("boats", ""), asked("mills", "a")], ["bees and mills", "boats", "mills, bees"])
    assert [answer.scores["right"] for answer in answers] == [1, 1, 1]


# --- interval ---------------------------------------------------------------------------------------------------------


def test_interval_of_two_clusters_by_hand():
    # Draws of two clusters with means 0 and 1: mean 0 in a quarter, 1/2 in a half, 1 in a quarter of the draws.
    assert interval([0, 1], ["a", "b"]) == (0.0, 1.0)
    assert interval([0, 1], ["a", "b"], level=0.4) == (0.5, 0.5)


def test_interval_weighs_clusters_by_their_questions():
    # Clusters 1,1,1 and 0: the half of the draws that hold both have mean 3/4, the ratio of the sums.
    assert interval([1, 1, 0, 1], ["a", "a", "b", "a"], level=0.4) == (0.75, 0.75)


def test_more_questions_about_the_same_documents_do_not_narrow_the_interval():
    values = [0.0, 1.0, 1.0, 0.5, 0.0, 1.0, 0.25]
    assert interval(values * 9, list(range(7)) * 9) == pytest.approx(interval(values, range(7)))
    assert interval(values * 9, range(63)) != pytest.approx(interval(values, range(7)), abs=0.1)


def loop_interval(values, clusters, draws=4000):
    """A cluster bootstrap as its definition reads, with another generator."""
    rng = random.Random(5)
    members = {cluster: [v for v, c in zip(values, clusters, strict=True) if c == cluster] for cluster in clusters}
    means = []
    for _ in range(draws):
        drawn = [value for cluster in rng.choices(list(members), k=len(members)) for value in members[cluster]]
        means.append(sum(drawn) / len(drawn))
    means.sort()
    return means[round(0.025 * draws)], means[round(0.975 * draws)]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_interval_against_a_loop(seed):
    rng = np.random.default_rng(seed)
    clusters = [str(c) for c in rng.integers(12, size=50)]  # of different sizes
    values = (rng.random(50) < 0.3 + 0.05 * np.array([int(c) for c in clusters])).astype(float)
    assert interval(values, clusters) == pytest.approx(loop_interval(values, clusters), abs=0.02)


Z2 = 1.959963984540054**2


@pytest.mark.parametrize("n", [1, 5, 60])
def test_wilson_where_all_are_wrong_or_right(n):
    # Wilson's formula for a share of 0 reduces to 0 .. z^2 / (n + z^2); three questions a document change nothing.
    clusters = list(range(n)) * 3
    assert interval([0.0] * len(clusters), clusters) == pytest.approx((0.0, Z2 / (n + Z2)))
    assert interval([1.0] * len(clusters), clusters) == pytest.approx((n / (n + Z2), 1.0))


def test_wilson_is_known_for_ten_and_half():
    # p = 1/2, n = 10: the centre is 1/2 and the half width z/2 / sqrt(n + z^2).
    half = math.sqrt(Z2) / 2 / math.sqrt(10 + Z2)
    assert interval([0.5] * 10, range(10)) == pytest.approx((0.5 - half, 0.5 + half))
    # Equal cluster means leave the bootstrap without width too, though the values differ.
    assert interval([0, 1] * 10, [i // 2 for i in range(20)]) == pytest.approx((0.5 - half, 0.5 + half))


@given(st.sampled_from([0.0, 0.1, 1 / 3, 0.7, 1.0]), st.integers(1, 40))
def test_wilson_encloses_the_mean_exactly(value, n):
    values = [value] * n
    low, high = interval(values, range(n))
    assert 0.0 <= low <= float(np.mean(values)) <= high <= 1.0
    assert high - low > 0.05


def test_interval_of_one_document_with_mixed_answers_says_nothing():
    assert interval([0, 1, 1], ["a", "a", "a"]) == (0.0, 1.0)


def test_interval_is_deterministic_and_hangs_on_the_seed():
    values, clusters = np.random.default_rng(0).random(40).tolist(), [i // 4 for i in range(40)]
    assert interval(values, clusters) == interval(values, clusters)
    assert interval(values, clusters, seed=1) != interval(values, clusters)
    assert all(type(end) is float for end in interval(values, clusters))


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 4)), min_size=1, max_size=20))
@settings(max_examples=50)
def test_interval_lies_in_0_1(pairs):
    values, clusters = zip(*pairs, strict=True)
    low, high = interval(values, clusters, resamples=150)  # no whole number of blocks
    assert 0.0 <= low <= high <= 1.0


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 40 documents, three questions each, right with a chance drawn per document, 0.6 on average (Beta(3, 2)).
    rng = np.random.default_rng(7)
    clusters = np.repeat(np.arange(40), 3).tolist()
    hits = 0
    for _ in range(300):
        chance = np.repeat(rng.beta(3, 2, size=40), 3)
        low, high = interval((rng.random(120) < chance).astype(float), clusters, resamples=300)
        hits += low <= 0.6 <= high
    assert 0.90 <= hits / 300 <= 0.99


@pytest.mark.parametrize(("values", "clusters"), [([], []), ([1.0], []), ([1.0], ["a", "b"])])
def test_interval_refuses_what_does_not_pair_up(values, clusters):
    with pytest.raises(ValueError, match="one cluster for each value"):
        interval(values, clusters)


# --- summarise --------------------------------------------------------------------------------------------------------


def answer(right: float, direction: str, group: str = "", document: str = "", split: str = "") -> Answer:
    question = Question("Who?", ("Ann",), direction, group, document, split)  # type: ignore[arg-type]
    return Answer(question, "Ann", {"contains": right, "token_f1": right / 2})


ANSWERS = [
    answer(1.0, "backward", "names", "d1", "validation"),
    answer(1.0, "forward", "names", "d1", "test"),
    answer(0.0, "forward", "names", "d1", "test"),
    answer(1.0, "forward", "towns", "d2", "test"),
    answer(1.0, "forward"),
    answer(0.0, "backward"),
    answer(0.0, "backward", "names", "d3", "test"),
]


def shape(cell):
    return cell["n"], cell["documents"], cell["contains"]["mean"], cell["token_f1"]["mean"]


def test_summarise_a_small_list():
    table = summarise(ANSWERS)
    assert list(table) == ["n", "overall", "by_direction", "by_group", "by_split", "mean_of_directions"]
    assert table["n"] == 7
    assert shape(table["overall"]) == pytest.approx((7, 5, 4 / 7, 2 / 7))  # d1, d2, d3 and two questions of no document
    assert list(table["by_direction"]) == ["forward", "backward"]
    assert shape(table["by_direction"]["forward"]) == pytest.approx((4, 3, 3 / 4, 3 / 8))
    assert shape(table["by_direction"]["backward"]) == pytest.approx((3, 3, 1 / 3, 1 / 6))
    assert {name: list(cells) for name, cells in table["by_group"].items()} == {"names": ["forward", "backward"], "towns": ["forward"]}
    assert shape(table["by_group"]["names"]["forward"]) == pytest.approx((2, 1, 1 / 2, 1 / 4))
    assert shape(table["by_group"]["names"]["backward"]) == pytest.approx((2, 2, 1 / 2, 1 / 4))
    assert shape(table["by_group"]["towns"]["forward"]) == pytest.approx((1, 1, 1, 1 / 2))
    assert {name: list(cells) for name, cells in table["by_split"].items()} == {"validation": ["backward"], "test": ["forward", "backward"]}
    assert shape(table["by_split"]["test"]["forward"]) == pytest.approx((3, 2, 2 / 3, 1 / 3))
    assert table["mean_of_directions"] == pytest.approx({"contains": 13 / 24, "token_f1": 13 / 48})  # (3/4 + 1/3) / 2
    assert json.loads(json.dumps(table)) == table


def test_summarise_gives_intervals_over_documents():
    table = summarise(ANSWERS)
    forward = table["by_direction"]["forward"]["contains"]
    low, high = interval([1, 0, 1, 1], ["d1", "d1", "d2", "alone"])
    assert forward == {"mean": 0.75, "low": low, "high": high}
    mixed = table["by_group"]["names"]["forward"]["contains"]
    assert mixed == {"mean": 0.5, "low": 0.0, "high": 1.0}
    town = table["by_group"]["towns"]["forward"]["contains"]
    assert town == pytest.approx({"mean": 1.0, "low": 1 / (1 + Z2), "high": 1.0})


def test_summarise_lists_only_what_occurs():
    table = summarise([answer(1.0, "forward")])
    assert list(table) == ["n", "overall", "by_direction", "by_group", "by_split"]
    assert list(table["by_direction"]) == ["forward"]
    assert table["by_group"] == table["by_split"] == {}


def test_summarise_nothing():
    assert summarise([]) == {"n": 0, "overall": {"n": 0, "documents": 0}, "by_direction": {}, "by_group": {}, "by_split": {}}


# --- over runs


def test_one_run_is_the_interval_over_documents():
    values, clusters = [0.0, 1.0, 1.0, 0.0, 1.0], list("aabbc")
    assert interval_over_runs([values], [clusters]) == interval(values, clusters)


def test_runs_that_disagree_make_it_wide():
    """Of two runs, all wrong and all right, a draw holds twice the same in half of the cases: a quarter each at 0 and at 1."""
    assert interval_over_runs([[0.0] * 40, [1.0] * 40], [list(range(40))] * 2) == (0.0, 1.0)


def test_documents_and_runs_add_their_variances():
    """Each draw is a mean over R runs, of variance (variance of the runs' means + mean variance of a run's mean) / R."""
    rng = np.random.default_rng(5)
    runs = [rng.random(400) < share for share in (0.5, 0.6, 0.55, 0.7, 0.45, 0.65)]
    low, high = interval_over_runs([run.astype(float).tolist() for run in runs], [list(range(400))] * 6, resamples=20000)
    means = np.array([run.mean() for run in runs])
    sd = math.sqrt((means.var() + np.mean(means * (1 - means) / 400)) / 6)
    assert low == pytest.approx(means.mean() - 1.96 * sd, abs=0.1 * sd)
    assert high == pytest.approx(means.mean() + 1.96 * sd, abs=0.1 * sd)


def test_runs_that_agree_in_everything_get_wilson_s():
    assert interval_over_runs([[0.0] * 5, [0.0] * 3], [list(range(5)), list(range(3))]) == interval([0.0] * 8, list(range(8)))


# --- of a difference


def wilson_ends(right, n):
    """Mean and ends of Wilson's interval: the shares p with (right / n - p)^2 = z^2 p (1 - p) / n."""
    share = right / n
    low, high = sorted(np.roots([1 + Z2 / n, -2 * share - Z2 / n, share**2]).real)
    return share, low, high


@pytest.mark.parametrize(
    ("first", "second", "published"),
    [
        ((56, 70), (48, 80), (0.0524, 0.3339)),
        ((9, 10), (3, 10), (0.1705, 0.8090)),
        ((6, 7), (2, 7), (0.0582, 0.8062)),
        ((5, 56), (0, 29), (-0.0381, 0.1926)),
        ((10, 10), (0, 10), (0.6075, 1.0000)),
    ],
)
def test_difference_interval_as_newcombe_published_it(first, second, published):
    """Table II of his paper (1998), method 10."""
    assert difference_interval(wilson_ends(*first), wilson_ends(*second)) == pytest.approx(published, abs=5e-5)
    low, high = difference_interval(wilson_ends(*second), wilson_ends(*first))
    assert (-high, -low) == pytest.approx(published, abs=5e-5)


def test_difference_interval_by_hand():
    """Distances of 0.3 and 0.4 add up to 0.5, also where the ends of either side differ."""
    assert difference_interval((0.5, 0.2, 0.9), (0.5, 0.2, 0.9)) == pytest.approx((-0.5, 0.5))
    assert difference_interval((0.5, 0.2, 0.5), (0.1, 0.1, 0.5)) == pytest.approx((0.4 - 0.5, 0.4))
    assert difference_interval((0.7, 0.7, 0.7), (0.2, 0.2, 0.2)) == pytest.approx((0.5, 0.5))


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted), st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted))
def test_difference_interval_lies_in_minus_1_to_1(first, second):
    low, high = difference_interval((first[1], first[0], first[2]), (second[1], second[0], second[2]))
    assert -1 - 1e-9 <= low <= first[1] - second[1] <= high <= 1 + 1e-9
