"""Questions about documents in both directions by a language model, kept only where they pass `checks`."""

from __future__ import annotations

from collections import Counter

from demask.types import Document, Question
from demask.writing.checks import ANSWER_WORDS, filter_questions
from demask.writing.endpoint import Endpoint, Unanswered
from demask.writing.prompts import delimited
from demask.writing.replies import Reply


class Asked(Reply):
    question: str
    answer: str


class Pair(Reply):
    forward: Asked
    backward: Asked


class Pairs(Reply):
    """What the model is asked for. Which of two is forward is looked up in the document afterwards."""

    pairs: list[Pair]


async def ask_for_questions(document: Document, n: int, endpoint: Endpoint) -> tuple[list[Question], Counter[str], str]:
    """At most `n` questions of either direction about a document; how many were dropped, by reason; and why none came ("": they came)."""
    try:
        reply = await endpoint.ask(prompt(document.text, n), Pairs)
    except Unanswered as error:
        return [], Counter(), str(error)
    candidates = [(asked.question, asked.answer) for pair in reply.pairs for asked in (pair.forward, pair.backward)]
    return *filter_questions(document, candidates, most=n), ""


def prompt(text: str, n: int) -> str:
    """The request for `n` pairs of questions."""
    lines = [
        f"Write {n} {'pair' if n == 1 else 'pairs'} of questions about facts of the document below.",
        "- The forward question of a pair names what the document mentions first and asks for what it mentions later.",
        "- The backward question names what the document mentions later and asks for what it mentions first.",
        f"- Each answer is at most {ANSWER_WORDS} words, copied from the document letter for letter, and is not in its question.",
        "- Who is asked does not see the document: name people, places and things, use no 'he', 'it' or 'the document'.",
        "- Each question has one right answer. Prefer names, dates, numbers and places.",
    ]
    answer = (
        "Answer with one JSON object and nothing else: "
        '{"pairs": [{"forward": {"question": "...", "answer": "..."}, "backward": {"question": "...", "answer": "..."}}]}, with '
        + ("one pair in the list." if n == 1 else f"{n} pairs in the list.")
    )
    return delimited(lines, answer, text)
