"""How right an answer is, and how sure a mean over many answers is."""

from __future__ import annotations

import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any

import numpy as np

from demask.types import DIRECTIONS, Answer, Question

RIGHT = "right"  # the score by which a fact counts as learnt or known
Words = tuple[str, ...]

STOP_WORDS = frozenset(("a", "the", "of", "and", "is", "are", "be", "to", "new", "on", "in", "at", "an", "for"))
ARTICLES = frozenset(("a", "an", "the"))
_DROP_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_RESAMPLES_AT_ONCE = 100


def rouge1_recall(prediction: str, golds: Sequence[str]) -> float:
    """Share of a gold answer's distinct words that the prediction holds, for the gold answer with the largest share.

    This is the "accuracy" of the masked fine-tuning paper (arXiv 2510.09885): ASCII punctuation is removed, what is left is
    split by NLTK's word tokenizer ("cannot" is two words), STOP_WORDS are dropped in any case, and the rest is compared as
    sets, case-sensitively. Nothing left of the gold or of the prediction scores 0.
    """
    said = _content_words(prediction)
    return _best(golds, lambda gold: _share(_content_words(gold), said))


def exact_match(prediction: str, golds: Sequence[str]) -> float:
    """1.0 where the prediction is one of the gold answers, but for case, punctuation, articles and spacing; else 0.0."""
    said = _normalise(prediction)
    return _best(golds, lambda gold: float(bool(said) and _normalise(gold) == said))


def contains(prediction: str, golds: Sequence[str]) -> float:
    """1.0 where one of the gold answers stands in the prediction as whole words in a row, both normalised as in `exact_match`."""
    padded = f" {_normalise(prediction)} "

    def found(gold: str) -> float:
        wanted = _normalise(gold)
        return float(bool(wanted) and f" {wanted} " in padded)

    return _best(golds, found)


def token_f1(prediction: str, golds: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words, counted with repetition and normalised as in `exact_match`; the best gold counts.

    The measure is SQuAD's (arXiv 1606.05250), except that an empty gold or prediction always scores 0.
    """
    said = Counter(_normalise(prediction).split())

    def f1(gold: str) -> float:
        wanted = Counter(_normalise(gold).split())
        return 2 * (said & wanted).total() / max(1, said.total() + wanted.total())

    return _best(golds, f1)


METRICS: dict[str, Callable[[str, Sequence[str]], float]] = {
    "rouge1_recall": rouge1_recall,
    "exact_match": exact_match,
    "contains": contains,
    "token_f1": token_f1,
}


def score(prediction: str, golds: Sequence[str]) -> dict[str, float]:
    """Every metric of METRICS by name, each in [0, 1]."""
    return {name: metric(prediction, golds) for name, metric in METRICS.items()}


def score_all(questions: Sequence[Question], predictions: Sequence[str]) -> list[Answer]:
    """The answers with every metric of METRICS, and RIGHT: 1.0 where a fact counts as learnt or known, else 0.0.

    That asks for ROUGE-1 recall 1.0, and that no other document's answer to the same kind of question (direction and group) stands in the
    prediction as whole words in a row: a model that names everybody knows nobody. Answers that hold a gold one or stand in it ("Ash" of
    "Ann Ash") count for neither side. Where a question names no document, nothing tells which answers are others'.
    """
    answers = [Answer(q, text, score(text, q.answers)) for q, text in zip(questions, predictions, strict=True)]
    for answer, right in zip(answers, right_of(answers), strict=True):
        answer.scores[RIGHT] = right
    return answers


def right_of(answers: Sequence[Answer]) -> list[float]:
    """RIGHT of each of these answers, by their ROUGE-1 recall and the gold answers of them all (see `score_all`)."""
    holders: dict[tuple[str, str], dict[Words, set[str]]] = {}  # kind of question -> gold answer -> documents with it
    for question in (answer.question for answer in answers):
        for gold in question.answers if question.document else ():
            holders.setdefault((question.direction, question.group), {}).setdefault(_words(gold), set()).add(question.document)
    lengths = {kind: sorted({len(words) for words in golds} - {0}) for kind, golds in holders.items()}

    def right(answer: Answer) -> float:
        kind, own = (answer.question.direction, answer.question.group), answer.question.document
        if answer.scores["rouge1_recall"] < 1:
            return 0.0
        if not own:
            return 1.0
        said, golds = _words(answer.prediction), [_words(gold) for gold in answer.question.answers]
        for length in lengths[kind]:
            for start in range(len(said) - length + 1):
                found = said[start : start + length]
                if holders[kind].get(found, {own}) != {own} and not any(_within(found, gold) or _within(gold, found) for gold in golds):
                    return 0.0
        return 1.0

    return [right(answer) for answer in answers]


def _words(text: str) -> Words:
    return tuple(_normalise(text).split())


def _within(part: Words, whole: Words) -> bool:
    return f" {' '.join(part)} " in f" {' '.join(whole)} "


def _best(golds: Sequence[str], compare: Callable[[str], float]) -> float:
    if isinstance(golds, str):  # a string is a sequence too: its letters would pass as answers
        raise TypeError("golds must be a sequence of strings, not one string")
    return max(map(compare, golds), default=0.0)


def _share(wanted: set[str], said: set[str]) -> float:
    return len(wanted & said) / len(wanted) if wanted else 0.0


def _content_words(text: str) -> set[str]:
    words = _word_tokenizer()(text.translate(_DROP_ASCII_PUNCTUATION))
    return {word for word in words if word.lower() not in STOP_WORDS}


@cache
def _word_tokenizer() -> Callable[[str], list[str]]:
    from nltk.tokenize.destructive import NLTKWordTokenizer  # costs 0.4 s, so only where an answer is scored

    return NLTKWordTokenizer().tokenize


def _normalise(text: str) -> str:
    kept = "".join(character for character in text.lower() if not _is_punctuation(character))
    return " ".join(word for word in kept.split() if word not in ARTICLES)


def _is_punctuation(character: str) -> bool:
    # Unicode files some ASCII marks ("$", "+") under symbols; a typographic apostrophe must go like the plain one.
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def interval(
    values: Sequence[float], clusters: Sequence[Hashable], seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """Confidence interval (low, high) of the mean of `values`, each in [0, 1], whose `clusters` say which belong together.

    Questions about one document are right or wrong together, so what is drawn anew is documents, not questions: each of the
    `resamples` draws takes as many clusters as there are, with replacement, and divides the sum of their values by their
    number; the interval spans the middle `level` of these means. The same arguments give the same interval.

    Two cases say nothing that way. Where all clusters have the same mean (say, every answer is wrong), every draw has that
    mean too, and a width of zero would claim certainty; the Wilson score interval for that share of n = number of clusters
    takes its place. Within a single cluster whose values differ nothing tells how documents differ: the result is (0, 1).

    Raises ValueError where `values` is empty or `clusters` is not as long.
    """
    if len(values) == 0 or len(values) != len(clusters):
        raise ValueError(f"interval needs one cluster for each value and at least one, got {len(values)} and {len(clusters)}")
    index_of: dict[Hashable, int] = {}
    index = [index_of.setdefault(cluster, len(index_of)) for cluster in clusters]
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    if len(counts) == 1 and np.ptp(values) > 0:
        return 0.0, 1.0
    if np.ptp(sums / counts) < 1e-9:
        return _wilson(float(np.mean(values)), len(counts), level)
    low, high = np.quantile(_resampled_means(sums, counts, seed, resamples), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def interval_over_runs(
    values: Sequence[Sequence[float]], clusters: Sequence[Sequence[Hashable]], seed: int = 0, level: float = 0.95, resamples: int = 2000
) -> tuple[float, float]:
    """`interval` of the mean over several runs' means, by the `values` and `clusters` of each: runs are drawn anew, documents in each.

    A run is one seed: of the training, and of what is drawn by it. One run gives `interval`; where all clusters of all runs have the same
    mean, Wilson's interval for their number takes its place. Few runs say little about how runs differ: the interval is then too narrow.
    """
    if len(values) == 1:
        return interval(values[0], clusters[0], seed, level, resamples)
    counted = []
    for run, names in zip(values, clusters, strict=True):
        index_of: dict[Hashable, int] = {}
        index = [index_of.setdefault(name, len(index_of)) for name in names]
        counted.append((np.bincount(index, weights=run), np.bincount(index)))
    if np.ptp(np.concatenate([sums / counts for sums, counts in counted])) < 1e-9:
        return _wilson(float(np.mean(values[0])), sum(len(counts) for _, counts in counted), level)
    runs = len(counted)
    # Every slot of a draw takes documents of its own, also where two slots hold the same run.
    drawn_RKD = np.array([[_resampled_means(*counted[i], [seed, i, slot], resamples) for slot in range(runs)] for i in range(runs)])
    chosen_KD = np.random.default_rng(seed).integers(runs, size=(runs, resamples))
    means = drawn_RKD[chosen_KD, np.arange(runs)[:, None], np.arange(resamples)].mean(axis=0)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def difference_interval(first: tuple[float, float, float], second: tuple[float, float, float]) -> tuple[float, float]:
    """Confidence interval of first - second, each given as (mean, low, high): the distances of the ends add up as squares.

    Newcombe's hybrid score interval (1998) for two shares that vary independently; where the two rise and fall together, as the
    directions of one document may, it is too wide.
    """
    (a, a_low, a_high), (b, b_low, b_high) = first, second
    return a - b - ((a - a_low) ** 2 + (b_high - b) ** 2) ** 0.5, a - b + ((a_high - a) ** 2 + (b - b_low) ** 2) ** 0.5


def _resampled_means(sums: np.ndarray, counts: np.ndarray, seed: int | Sequence[int], resamples: int) -> np.ndarray:
    """Mean over the clusters of each draw, (resamples,); in blocks, as thousands of documents would fill the memory at once."""
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        block = means[start : start + _RESAMPLES_AT_ONCE]
        drawn = rng.integers(len(sums), size=(len(block), len(sums)))
        block[:] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def _wilson(share: float, n: int, level: float) -> tuple[float, float]:
    """Wilson's score interval (1927) for a share seen in n independent trials."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5 / scale
    # Exactly, both ends lie in [0, 1] and enclose the share; rounding may miss that by an ulp.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def summarise(answers: Sequence[Answer]) -> dict[str, Any]:
    """The scoring table of `answers` (all scored by the same metrics) as nested dicts, ready for JSON.

    Keys: `n` (questions), `overall`, `by_direction`[direction], `by_group`[group][direction], `by_split`[split][direction],
    and, where both directions occur, `mean_of_directions`[metric], in which each direction weighs half whatever its number
    of questions. Only directions, groups and splits that occur are listed. A cell is `{"n": questions, "documents": clusters,
    metric: {"mean", "low", "high"}, ...}` with 95% intervals; a question that names no document is a cluster of its own.
    """
    by_direction = _by_direction(answers)
    table = {
        "n": len(answers),
        "overall": _cell(answers),
        "by_direction": by_direction,
        "by_group": {name: _by_direction(part) for name, part in _parts(answers, "group").items() if name},
        "by_split": {name: _by_direction(part) for name, part in _parts(answers, "split").items() if name},
    }
    if len(by_direction) == len(DIRECTIONS):
        cells = by_direction.values()
        table["mean_of_directions"] = {name: sum(cell[name]["mean"] for cell in cells) / len(cells) for name in answers[0].scores}
    return table


def _parts(answers: Sequence[Answer], field: str) -> dict[str, list[Answer]]:
    """The answers by one field of their question, in order of first appearance."""
    parts: dict[str, list[Answer]] = {}
    for answer in answers:
        parts.setdefault(getattr(answer.question, field), []).append(answer)
    return parts


def _by_direction(answers: Sequence[Answer]) -> dict[str, dict[str, Any]]:
    parts = _parts(answers, "direction")
    return {direction: _cell(parts[direction]) for direction in DIRECTIONS if direction in parts}


def _cell(answers: Sequence[Answer]) -> dict[str, Any]:
    clusters = [answer.question.document or number for number, answer in enumerate(answers)]
    cell: dict[str, Any] = {"n": len(answers), "documents": len(set(clusters))}
    for name in answers[0].scores if answers else ():
        values = [answer.scores[name] for answer in answers]
        low, high = interval(values, clusters)
        cell[name] = {"mean": float(np.mean(values)), "low": low, "high": high}
    return cell
