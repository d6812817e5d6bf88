"""The names, dates and numbers of a text, where they stand, and the direction of a question about it.

Found by patterns alone, in any language that writes names with capitals; best in English. A worked row::

    "On 3 May 2025 Ann Ash sold 40 boats to the Harbour Board of Oslo."
    date "3 May 2025", name "Ann Ash", number "40", name "Harbour Board of Oslo"
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from demask.types import Direction

_MONTH = (
    "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?|"
    r"Dec(?:ember)?)\b\.?"
)
_DAY = r"\d{1,2}(?:st|nd|rd|th)?"
_DATE = (
    rf"\b(?:{_MONTH}\s+{_DAY}\b(?:,?\s+\d{{4}}\b)?|{_DAY}\s+(?:of\s+)?{_MONTH}(?:,?\s+\d{{4}}\b)?|{_MONTH}\s+\d{{4}}\b|\d{{4}}-\d\d-\d\d)"
)
_NUMBER = r"(?<![\w.])[$€£]?\d[\d,.]*(?:\d|\b)(?:\s?%)?"
_CAPITALISED = r"[^\W\d_a-zß-öø-ÿ][\w’'-]*"
_TITLE = r"(?:[^\W\d_a-zß-öø-ÿ]|Mrs?|Ms|Dr|St|Prof|Mt|Gen|Sen|Rev|Capt|Sgt|Lt|Col)\."
_LINK = r"\s+(?:(?:of|de|von|van|der|den|del|la|le|di|da|the)\s+){0,2}"
_NAME = rf"\b(?:{_TITLE}\s+)*{_CAPITALISED}(?:{_LINK}(?:{_TITLE}\s+)*{_CAPITALISED})*"
_FACT = re.compile(rf"(?P<date>{_DATE})|(?P<number>{_NUMBER})|(?P<name>{_NAME})")
_WORD = re.compile(r"\w+(?:['’]\w+)*")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")

# A sentence begins after a stop, a line's end or an opening quote or bracket: a capital there need not be a name.
_BEGINS = re.compile(r"(?:^|[.!?:;]['\"”’)\]]*\s+|\n\s*|[\"“‘(\[«*#>|-]\s*)$")

# Words that begin sentences and titles and are no names.
_NO_NAMES_TEXT = """
    a an the this that these those it its he she they we you i his her their our your my there here who whom whose which what when where
    why how if as at by for from in into of on to with without after before since until during while although though because but and or nor
    so yet not no yes all any both each every few many most much none one other some such two three four five six seven eight nine ten first
    second third last next then thus also however moreover meanwhile later earlier now today is are was were be been being has have had do
    does did will would can could may might must shall should ask tell call let see nobody everyone someone people
"""
_NO_NAMES = frozenset(_NO_NAMES_TEXT.split())
_MORE_FUNCTION_WORDS = "about than over under between through up down out off only just very more less own same too s"
_FUNCTION_WORDS = _NO_NAMES.union(_MORE_FUNCTION_WORDS.split())


@dataclass(frozen=True)
class Fact:
    """A name, a date or a number, and the characters [start, end) of its text."""

    text: str
    start: int
    end: int
    kind: Literal["name", "date", "number"]


def facts(text: str) -> list[Fact]:
    """The names, dates and numbers of a text in their order; they do not overlap.

    A name is a run of capitalised words. The words at a sentence's beginning count only where they can be told from an ordinary word:
    where two or more stand together, or where the same word is capitalised inside a sentence too.
    """
    found = []
    inside = {match[0] for match in re.finditer(rf"\b{_CAPITALISED}", text) if not _begins(text, match.start())}
    for match in _FACT.finditer(text):
        kind, start, end = match.lastgroup, match.start(), match.end()
        if kind == "name":
            start, end = _trim(text, start, end, inside)
        elif kind == "number":
            end = start + len(match[0].rstrip(".,"))
        if end > start:
            found.append(Fact(text[start:end], start, end, kind))  # type: ignore[arg-type]
    return found


def _begins(text: str, start: int) -> bool:
    return bool(_BEGINS.search(text, max(0, start - 8), start)) if start else True


def _trim(text: str, start: int, end: int, inside: set[str]) -> tuple[int, int]:
    """The part of a run of capitalised words that is a name; empty where none is."""
    words = list(_WORD.finditer(text, start, end))
    while words and words[0][0].lower() in _NO_NAMES:
        words.pop(0)
    if not words:
        return start, start
    # "s" of a possessive is no part of the name
    stop = words[-1].end()
    last = words[-1][0]
    if re.search(r"['’]s$", last):
        stop -= 2
    if len(words) == 1 and words[0].start() == start and _begins(text, start) and last not in inside:
        return start, start
    return words[0].start(), stop


def place(text: str, phrase: str) -> int | None:
    """Where a phrase first stands in a text as whole words, case and kind of white space aside; None where it does not."""
    words = phrase.split()
    if not words:
        return None
    pattern = r"\s+".join(map(re.escape, words))
    match = re.compile(rf"(?<!\w){pattern}(?!\w)", re.IGNORECASE).search(text)
    return match.start() if match else None


def key(fact: Fact) -> tuple[str, ...]:
    """What must be kept of a fact in other words: a date's day, month and year in any order, a number's digits, a name's words."""
    words = [word.lower() for word in _WORD.findall(fact.text)]
    if fact.kind == "number":
        return (re.sub(r"(?<=\d),(?=\d{3})", "", fact.text).replace(" ", ""),)
    if fact.kind == "date" and (iso := re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)", fact.text)) and 1 <= int(iso[2]) <= 12:
        words = [iso[1], _MONTHS[int(iso[2]) - 1], iso[3]]
    if fact.kind == "date":
        return tuple(sorted(_date_part(word) for word in words if word not in ("of",)))
    return tuple(words)


def _date_part(word: str) -> str:
    return word[:3] if word[:3] in _MONTHS else re.sub(r"(?<=\d)(?:st|nd|rd|th)$", "", word).lstrip("0")


def direction(text: str, question: str, answer: str) -> Direction | None:
    """Whether a question's cue stands before ("forward") or after ("backward") its answer in the text, by where each first appears.

    The cue is the names, dates and numbers that the question shares with the text; where it shares none, its other words that do more than
    hold a sentence together. None where the answer or any cue is missing from the text (SPEC: direction).
    """
    found = place(text, answer)
    if found is None:
        return None
    answered = {word.lower() for word in _WORD.findall(answer)}
    cues = [at for at in _cues(text, question, answered) if not found <= at < found + len(answer)]
    if not cues:
        return None
    return "forward" if min(cues) < found else "backward"


def content_words(text: str) -> set[str]:
    """The words of a text that do more than hold a sentence together, in lower case."""
    return {word.lower() for word in _WORD.findall(text)} - _FUNCTION_WORDS


def _cues(text: str, question: str, answered: set[str]) -> list[int]:
    def places(phrases: Iterator[str]) -> list[int]:
        return [at for at in (place(text, phrase) for phrase in phrases) if at is not None]

    named = places(fact.text for fact in facts(question) if not {word.lower() for word in _WORD.findall(fact.text)} <= answered)
    if named:
        return named
    words = (word for word in _WORD.findall(question) if word.lower() not in _FUNCTION_WORDS and word.lower() not in answered)
    return places(words)
