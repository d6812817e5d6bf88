"""Questions from the documents themselves, without a language model: names, dates and numbers are left out of their sentences.

Good enough to measure what was learnt in either direction, not to be read aloud. A worked row, the questions of one document::

    "Ann Ash kept bees in Oslo. She sold 40 boats to the Harbour Board."
    forward   "What belongs in the gap? Ann Ash kept bees in ____."                -> "Oslo"
    forward   "What belongs in the gap? Ann Ash sold ____."                        -> "40"
    forward   "What belongs in the gap? Ann Ash sold 40 boats to the ____."        -> "Harbour Board"
    backward  "Who or what kept bees in Oslo?"                                     -> "Ann Ash"
    backward  "Who or what sold 40 boats to the Harbour Board?"                    -> "Ann Ash"
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from demask.corpora.splitting import sentences
from demask.types import DIRECTIONS, Document, InputError, Question
from demask.writing.checks import drop_ambiguous, filter_questions
from demask.writing.facts import Fact, content_words, direction, facts

AUTO = "auto"  # in place of a questions file: make them
_LIMIT = 1000  # questions that a training asks of its own making: enough for intervals of a few hundredths
WORDS_PER_SHARE = 200  # a document gets its number of questions for every so many words begun
_PRONOUN = re.compile(r"(?:He|She) ")  # opens a sentence about the document's subject, as far as can be told
_LEAST_CUE, _PHRASE = 2, 5  # content words that a cue needs at least; words of an answer that is no name, date or number


@dataclass(frozen=True)
class _Sentence:
    text: str
    facts: tuple[Fact, ...]  # their places are those in the sentence


def cloze_questions(documents: Iterable[Document], n: int = 2, seed: int = 0, limit: int | None = None) -> list[Question]:
    """At most `n` forward and `n` backward questions for every 200 words of a document, drawn by the seed; pairs are passed over.

    A question that two documents would answer differently is left out. With a `limit`, documents are drawn until they have given so many
    questions: the others are not looked at. The questions are in the documents' order.
    """
    return _questions([document for document in documents if document.prompt is None], n, seed, limit)


def _questions(texts: Sequence[Document], n: int, seed: int, limit: int | None) -> list[Question]:
    rng = random.Random(f"cloze/{seed}")
    found: dict[int, list[Question]] = {}
    left = limit
    for place in range(len(texts)) if left is None else rng.sample(range(len(texts)), len(texts)):
        questions = _choose(texts[place], n, random.Random(f"cloze/{seed}/{texts[place].id}"))
        if left is not None:
            questions = _draw(questions, left, rng)
            left -= len(questions)
        found[place] = questions
        if left == 0:
            break
    return drop_ambiguous([question for place in sorted(found) for question in found[place]])[0]


def questions_of(texts: Sequence[Document], seed: int) -> list[Question]:
    """The questions that "auto" stands for: at most 1,000, of documents that are no pairs. InputError where none can be made."""
    questions = _questions(texts, 2, seed, _LIMIT)
    if not questions:
        raise InputError("questions: none could be made of these documents, which hold no names, dates or numbers to ask for")
    return questions


def _choose(document: Document, n: int, rng: random.Random) -> list[Question]:
    found, _ = filter_questions(document, candidates(document))
    most = n * -(-len(document.text.split()) // WORDS_PER_SHARE)
    chosen: list[Question] = []
    for way in DIRECTIONS:
        chosen += _draw([question for question in found if question.direction == way], most, rng)
    return chosen


def _draw(questions: Sequence[Question], most: int, rng: random.Random) -> list[Question]:
    """At most so many of the questions, in their order."""
    kept = sorted(rng.sample(range(len(questions)), min(most, len(questions))))
    return [questions[i] for i in kept]


def candidates(document: Document) -> Iterator[tuple[str, str]]:
    """Every question that can be made of a document, and its answer."""
    found = [_Sentence(text, tuple(facts(text))) for text in sentences(document.text)]
    subject = next((fact.text for sentence in found[:2] for fact in sentence.facts if fact.kind == "name"), "")
    asked = set()
    for sentence in found:
        for text, answer in _of_sentence(sentence, subject):
            asked.add(direction(document.text, text, answer))
            yield text, answer
    for sentence in found:  # a direction that no name, date or number can be asked in
        for text, answer, way in _about_facts(sentence):
            if way not in asked:
                yield text, answer


def _of_sentence(sentence: _Sentence, subject: str) -> Iterator[tuple[str, str]]:
    text = sentence.text
    pronoun = _PRONOUN.match(text) if subject else None
    for fact in sentence.facts:
        before, after = text[: fact.start].strip(), text[fact.end :]
        if pronoun:
            yield f"What belongs in the gap? {subject} {before[pronoun.end() :]} ____.", fact.text
        elif (
            before
            and subject
            and fact.text != subject
            and not any(other.kind == "name" and other.end <= fact.start for other in sentence.facts)
        ):
            yield f"About {subject}: what belongs in the gap? {before} ____.", fact.text
        elif len(content_words(before)) >= _LEAST_CUE:
            yield f"What belongs in the gap? {before} ____.", fact.text
        if fact.kind == "name" and len(content_words(after)) >= _LEAST_CUE:
            starts = not before and after.startswith(" ")
            yield _who(after.strip()) if starts else f"What belongs in the gap? ____{after}", fact.text
    if subject and subject not in text and sentence.facts and len(content_words(text)) >= _LEAST_CUE:
        yield _who(text[pronoun.end() :]) if pronoun else f"Who or what is this about? {text}", subject


def _who(predicate: str) -> str:
    return f"Who or what {predicate.rstrip('.!')}?"


def _about_facts(sentence: _Sentence) -> Iterator[tuple[str, str, str]]:
    """The words beside a name as the answer, the name as the cue."""
    for fact in sentence.facts:
        if fact.kind != "name":
            continue
        before, after = (_words(part) for part in (sentence.text[: fact.start], sentence.text[fact.end :]))
        for words, way in ((after[-_PHRASE:], "forward"), (before[-_PHRASE:], "backward")):
            if len(content_words(" ".join(words))) >= 2:
                yield f"What is said about {fact.text}?", " ".join(words), way


def _words(text: str) -> list[str]:
    """The words of the part of a sentence, up to the marks at its ends."""
    return re.sub(r"^\W+|\W+$", "", text).split()
