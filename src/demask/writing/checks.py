"""What a paraphrase or a question must pass before anyone learns from it: the guard against whatever a writer (or a document) made up.

A paraphrase keeps every name, date and number, adds none, is about as long, says it in the order that is asked for, and is no copy. A
question has a short answer that stands in the document, does not give it away, and has a direction.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from demask.types import Document, Question
from demask.writing.facts import Fact, content_words, direction, facts, key, place

Order = Literal["same", "permuted"]
ORDERS: tuple[Order, ...] = ("same", "permuted")
ANSWER_WORDS = 5  # as the paper's own questions about articles (SPEC: data)

# A word, or one character of a script that is written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]+")
_CHARACTERS = re.compile("[\0\ud800-\udfff]")
_REFERS = re.compile(r"\b(?:the|this|that) (?:document|passage|text|article|excerpt|author|statement|sentence)s?\b", re.IGNORECASE)


def words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def paraphrase_fault(text: str, paraphrase: str, order: Order, others: Iterable[str] = ()) -> str:
    """Why a paraphrase of `text` must be dropped, in words fit to be counted; "" where it passes. `others`: those kept already."""
    said, meant = words(paraphrase), words(text)
    if not said or _CHARACTERS.search(paraphrase):
        return "empty, or not plain text"
    if said == meant or any(said == words(other) for other in others):
        return "a copy of the original or of another"
    if not 0.5 <= len(said) / max(1, len(meant)) <= 2:
        return "less than half or more than twice as long"
    own, theirs = _distinct(facts(text)), _distinct(facts(paraphrase))
    places = {fact: _place_in(fact, paraphrase, theirs) for fact in own}
    if None in places.values():
        return "lost a name, number or date"
    if any(_is_new(fact, text, own, meant) for fact in theirs):
        return "added a name, number or date"
    if not _about_the_same(meant, said):
        return "about something else"
    pairs = sorted((_place_in(fact, text, own) or 0, at or 0) for fact, at in places.items())
    if len(pairs) == 1:
        kept = not _other_side(text, paraphrase, *pairs[0])
    else:
        after = [at for _, at in pairs]
        kept = after == sorted(after)
    if order == "same" and not kept:
        return "changed the order"
    if order == "permuted" and kept and len(pairs) > 1:
        return "kept the order"
    return ""


def _distinct(found: Sequence[Fact]) -> list[Fact]:
    return list({(fact.kind, key(fact)): fact for fact in reversed(found)}.values())


def _place_in(fact: Fact, text: str, found: Sequence[Fact]) -> int | None:
    """Where a fact first stands in a text whose facts are `found`: a name word for word, a date or number by what it says."""
    if fact.kind == "name":
        return place(text, fact.text)
    return min((other.start for other in found if other.kind != "name" and key(other) == key(fact)), default=None)


def _is_new(fact: Fact, text: str, own: Sequence[Fact], meant: Sequence[str]) -> bool:
    if fact.kind == "name":  # a run of capitals may begin with an ordinary word: it is new only where each of its words is
        return place(text, fact.text) is None and not set(words(fact.text)) & set(meant)
    return _place_in(fact, text, own) is None


def _about_the_same(meant: Sequence[str], said: Sequence[str]) -> bool:
    """Whether a quarter of the original's longer words come again, endings aside: a text without facts has no other guard."""
    stems = {word[:5] for word in meant if len(word) > 3 or not word.isascii()}
    return 4 * len(stems & {word[:5] for word in said}) >= len(stems)


def _other_side(text: str, paraphrase: str, at: int, at_there: int) -> bool:
    """Whether most of the words that stand once in both texts have changed sides of their one fact."""
    once = [{m[0].casefold(): m.start() for m in _WORD.finditer(t) if len(m[0]) > 3} for t in (text, paraphrase)]
    counts = [Counter(words(t)) for t in (text, paraphrase)]
    shared = [word for word in once[0].keys() & once[1].keys() if counts[0][word] == counts[1][word] == 1]
    moved = sum((once[0][word] < at) != (once[1][word] < at_there) for word in shared)
    return 2 * moved > len(shared)


def filter_questions(
    document: Document, candidates: Iterable[tuple[str, str]], *, most: int | None = None, group: str = ""
) -> tuple[list[Question], Counter[str]]:
    """The questions of (question, answer) candidates that are fit to be asked about a document, and how many were dropped, by reason.

    Their direction is found in the text (`facts.direction`), whatever their writer meant. `most`: so many of either direction.
    """
    kept: list[Question] = []
    dropped: Counter[str] = Counter()
    asked: set[tuple[str, ...]] = set()
    for question, answer in candidates:
        question, answer = " ".join(question.split()), " ".join(answer.split())
        if answer.count(".") == 1:  # a sentence's stop, and no part of an abbreviation
            answer = answer.removesuffix(".")
        fault = question_fault(document.text, question, answer)
        way = direction(document.text, question, answer)
        if not fault and way is None:
            fault = "direction cannot be told"
        elif not fault and tuple(words(question)) in asked:
            fault = "asked twice"
        elif not fault and most is not None and sum(q.direction == way for q in kept) >= most:
            fault = "more than asked for"
        if fault or way is None:
            dropped[fault] += 1
            continue
        asked.add(tuple(words(question)))
        kept.append(Question(question, (answer,), way, group, document.id))
    return kept, dropped


def drop_ambiguous(questions: Sequence[Question]) -> tuple[list[Question], Counter[str]]:
    """Those that are not asked about another document too with another answer: closed-book, nobody could tell which is meant."""
    answers: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for question in questions:
        answers.setdefault(tuple(words(question.question)), set()).add(tuple(words(question.answers[0])))
    kept = [question for question in questions if len(answers[tuple(words(question.question))]) == 1]
    lost = len(questions) - len(kept)
    return kept, Counter({"asked of two documents with different answers": lost} if lost else {})


def question_fault(text: str, question: str, answer: str) -> str:
    """Why a question with its answer must be dropped, its direction aside; "" where it passes."""
    if not words(question) or not words(answer) or _CHARACTERS.search(question + answer):
        return "empty, or not plain text"
    if place(text, answer) is None:
        return "answer is not in the document"
    if len(answer.split()) > ANSWER_WORDS:
        return f"answer is longer than {ANSWER_WORDS} words"
    if place(question, answer) is not None or (content_words(answer) or set(words(answer))) <= content_words(question):
        return "gives its answer away"
    if _REFERS.search(question) and not _REFERS.search(text):
        return "speaks of the document"
    return ""
