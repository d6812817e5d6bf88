"""Long documents made to fit: split at paragraph ends first, then sentence ends, then words, under their title."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Literal

from demask.types import Document, InputError

OnLong = Literal["split", "truncate", "error"]

# A paragraph runs to a blank line; headings of Markdown belong to the paragraph they stand above.
_PARAGRAPH = re.compile(r"(?:#{1,6}[ \t][^\n]*\n\s*)*\S.*?(?=\n[ \t]*\n|\s*\Z)", re.DOTALL)
# A sentence runs from a non-space to a stop before space and a capital, digit or quote, to a CJK stop, to a line's end, or to the end.
# A stop may hide behind one closing quote or bracket. Lower case is spotted in Latin only; elsewhere a few more cuts do no harm.
_STOP = r"(?:(?<=[.!?])|(?<=[.!?][\"'”’»)\]]))\s+(?=[\"'“‘«(\[]?[^\Wa-zß-öø-ÿ_])|(?<=[。！？])|(?<=\S)\s*(?:\n|\Z)"
_SENTENCE = re.compile(rf"\S.*?(?={_STOP})", re.DOTALL)
_WORD = re.compile(r"\S+")
_CHARACTER = re.compile(r"\S")


def sentences(text: str) -> list[str]:
    """The sentences of a text, without the space between them."""
    return [match[0] for match in _SENTENCE.finditer(text)]


def split_long(
    documents: Iterable[Document], length: Callable[[str], int], limit: int, on_long: OnLong = "split"
) -> tuple[list[Document], list[str]]:
    """Make every document fit in `limit` tokens, as `length(text)` counts them; a pair's prompt and response count together.

    - "split": parts `id#1`, `id#2`, ... with as many whole paragraphs each as fit; a paragraph that is too long is cut between sentences,
      a sentence between words, and a word between characters. Only space at the cuts is lost. Where the metadata hold a `title`, every part
      after the first begins with it, on a line of its own that counts as well. A pair is refused.
    - "truncate": cut after the last word that fits (a pair: of its response).
    - "error": refuse.

    Returns the documents and, for the user, a line about each one that was changed. Raises InputError naming document, tokens and limit.
    """
    fitting: list[Document] = []
    notes = []
    for document in documents:
        prompt_tokens = 0 if document.prompt is None else length(document.prompt)
        tokens = prompt_tokens + length(document.text)
        if tokens <= limit:
            fitting.append(document)
            continue
        where = f"document {document.id!r}: {tokens:,} tokens"
        parts = _shorten(document, length, limit - prompt_tokens, on_long, f"{where}, the limit is {limit:,}")
        fitting += parts
        done = f"split into {len(parts)} parts" if on_long == "split" else f"truncated to {prompt_tokens + length(parts[0].text):,}"
        notes.append(f"{where}, {done}")
    for name, count in Counter(document.id for document in fitting).items():
        if count > 1:
            raise InputError(f"document {name!r}: a part of a split document needs this id; rename this document")
    return fitting, notes


def _shorten(document: Document, length: Callable[[str], int], limit: int, on_long: OnLong, too_long: str) -> list[Document]:
    """The documents that replace one whose text has more than `limit` tokens; `too_long` opens the message of an InputError."""
    if on_long == "error":
        raise InputError(f"{too_long}; --on_long split or truncate makes it fit")
    if on_long == "split" and document.prompt is not None:
        raise InputError(f"{too_long}; a prompt and its response can't be split, --on_long truncate cuts the response")
    text, levels = document.text, [_WORD, _CHARACTER]
    try:
        if on_long == "truncate":
            start, end = next(_pack(text, 0, levels, lambda start, end: length(text[start:end]) <= limit))
            return [replace(document, text=text[start:end])]
        above = _title_line(document, length, limit)
        first = len(text) - len(text.lstrip())
        body = first + _title_end(text[first:], above)
        if body > first and 2 * length(text[first:body]) > limit:  # it has to leave room for something under it
            body = first
        levels = [_SENTENCE, *levels] if len(_PARAGRAPH.findall(text, body)) == 1 else [_PARAGRAPH, _SENTENCE, *levels]

        def part(start: int, end: int) -> str:
            return text[first:end] if start == body else above + text[start:end]

        spans = _pack(text, body, levels, lambda start, end: length(part(start, end)) <= limit)
        return [replace(document, id=f"{document.id}#{number}", text=part(*span)) for number, span in enumerate(spans, start=1)]
    except _NothingFits:
        raise InputError(f"{too_long}, in which not one character of its text fits") from None


def _title_line(document: Document, length: Callable[[str], int], limit: int) -> str:
    """What every part after the first begins with: the title and a blank line; nothing where it would take more than half the room."""
    title = document.metadata.get("title")
    line = " ".join(title.split()) + "\n\n" if isinstance(title, str) and title.strip() else ""
    return line if line and 2 * length(line) <= limit else ""


def _title_end(text: str, title_line: str) -> int:
    """Where a text that begins with its title (perhaps as a heading of Markdown) goes on below it, so that no part is the title alone."""
    begins = re.match(rf"#*[ \t]*{re.escape(title_line.strip())}[ \t#]*\n\s*(?=\S)", text) if title_line else None
    return begins.end() if begins else 0


class _NothingFits(Exception):
    pass


def _pack(text: str, begin: int, levels: list[re.Pattern[str]], fits: Callable[[int, int], bool]) -> Iterator[tuple[int, int]]:
    """Cut a text, from `begin` on, to spans that fit.

    Each has as many of the first level's units as possible; units that are too long are cut by the levels below.

    The units go on a stack, the next one on top. One that doesn't fit alone makes way for its pieces, so that the last of them shares a
    span with what follows.
    """
    stack = [(*match.span(), 0) for match in levels[0].finditer(text, begin)][::-1]
    while stack:
        start, end, level = stack[-1]
        count = _most(len(stack), lambda count, start=start: fits(start, stack[-count][1]))  # type: ignore[misc]
        if count:
            yield start, stack[-count][1]
            del stack[-count:]
        elif level + 1 < len(levels):
            stack[-1:] = [(*match.span(), level + 1) for match in levels[level + 1].finditer(text, start, end)][::-1]
        else:
            raise _NothingFits


def _most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest count up to `limit` that fits, 0 for none: doubling, then halving, so that few and mostly small ones are tried.

    Token counts of joined texts are not sums and may even shrink as a text grows, so only a count that was tried is returned.
    """
    low, high = 0, 1
    while high <= limit and fits(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
