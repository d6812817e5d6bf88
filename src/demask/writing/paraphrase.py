"""Paraphrases of documents by a language model, kept only where they pass `checks`.

The paper's paraphrases keep the order of a document's facts, or change it (SPEC: data); the prompts are our own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from demask.types import Document
from demask.writing.checks import Order, paraphrase_fault, words
from demask.writing.endpoint import Endpoint, Unanswered
from demask.writing.facts import facts
from demask.writing.prompts import delimited
from demask.writing.replies import Reply

ROUNDS = 3  # a document is asked for in full, then for what is missing, so many times in all
WORDS_PER_REQUEST = 2000  # long documents: fewer paraphrases a request, so that an answer stays within a model's limits
_SHOWN = 5  # of those kept already, to the model that is to write others

_ORDER = {
    "same": "State the facts in the order of the document: what comes first there comes first in each rewrite.",
    "permuted": "State the facts in another order than the document: what comes first there comes later in each rewrite.",
}


class Paraphrases(Reply):
    """What the model is asked for."""

    paraphrases: list[str]


@dataclass
class Written:
    """What came of one document: the paraphrases that passed, how many did not, by reason, and why it failed ("": it did not)."""

    kept: list[str] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    failed: str = ""


async def paraphrase(document: Document, order: Order, n: int, endpoint: Endpoint) -> Written:
    """Ask for `n` paraphrases of a document until so many have passed, or the rounds are over, or the endpoint fails."""
    written, each = Written(), per_request(document.text)
    for attempt in range(-(-n // each) + ROUNDS - 1):
        missing = n - len(written.kept)
        if not missing:
            break
        try:
            reply = await endpoint.ask(prompt(document.text, order, min(missing, each), written.kept), Paraphrases, attempt)
        except Unanswered as error:
            written.failed = str(error)
            break
        for text in map(str.strip, reply.paraphrases):
            full = len(written.kept) == n
            fault = "more than asked for" if full else paraphrase_fault(document.text, text, order, written.kept)
            if fault:
                written.dropped[fault] += 1
            else:
                written.kept.append(text)
    return written


def per_request(text: str) -> int:
    return max(1, WORDS_PER_REQUEST // max(1, len(words(text))))


def prompt(text: str, order: Order, n: int, kept: Iterable[str] = ()) -> str:
    """The request for `n` paraphrases that differ from those `kept`."""
    given = list(dict.fromkeys(fact.text for fact in facts(text)))
    lines = [
        f"Rewrite the document below in other words, {n} {'time' if n == 1 else 'times'}.",
        "- Each rewrite says all that the document says, and nothing else.",
        f"- {_ORDER[order]}",
        "- Each rewrite is about as long as the document, and differs from the others in wording and sentence structure.",
    ]
    if given:
        lines.append(f"- Every rewrite holds each of these exactly as written here: {'; '.join(given)}.")
    if shown := list(kept)[-_SHOWN:]:
        lines.append("- These exist already; write others:")
        lines += [f"  {' '.join(each.split())}" for each in shown]
    answer = 'Answer with one JSON object and nothing else: {"paraphrases": ["first rewrite", "second rewrite"]}, with ' + (
        "one string in the list." if n == 1 else f"{n} strings in the list."
    )
    return delimited(lines, answer, text)
