"""The title and the text of a PDF: pages joined, lines joined to paragraphs again, what runs along on every page left out.

A line's end counts as a sentence's end where documents are split, and a word cut by a hyphen is no word, so both are undone.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from io import BytesIO
from itertools import pairwise
from typing import Any

from demask.corpora.encoding import without_control
from demask.types import InputError

_LIGATURES = {0xFB00: "ff", 0xFB01: "fi", 0xFB02: "fl", 0xFB03: "ffi", 0xFB04: "ffl", 0xFB05: "st", 0xFB06: "st"}
_EDGE = 2  # lines at the top and at the bottom of a page that may be a running header or footer
_SHORT = 0.85  # of the text's width: a line that leaves more room than its successor's first word needs ends a paragraph
_ITEM = re.compile(r"(?:[•◦▪‣–*-]|\(?\d{1,3}[.)]|\(?[a-z][.)])\s")
_WIDE = "[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]"  # writing without spaces


def document(raw: bytes) -> tuple[str, str, int, int]:
    """(title, text, number of pages, pages without text). The title is that of the metadata where it also stands on the first page.

    Raises InputError for an encrypted file, and whatever pypdf raises for a broken one.
    """
    from pypdf import PdfReader

    reader = PdfReader(BytesIO(raw))
    if reader.is_encrypted and not _opens(reader):
        raise InputError("encrypted; save it without a password first")
    pages = [_lines(page.extract_text()) for page in reader.pages]
    text = "" if not pages else paragraphs([line for page in without_running(pages) for line in page])
    title = _title(reader.metadata)
    if not title or title.casefold() not in " ".join(line for page in pages[:1] for line in page).casefold():
        title = ""
    return title, text, len(pages), sum(not any(page) for page in pages)


def _opens(reader: Any) -> bool:
    """Whether it opens without a password, as one does that only restricts printing (by AES: if the package cryptography is there)."""
    try:
        return bool(reader.decrypt(""))
    except Exception:  # of a broken file decryption raises as many kinds as reading; it stays closed then
        return False


def _title(metadata: Any) -> str:
    title = metadata.title if metadata is not None else None
    return " ".join(without_control(title).split()) if isinstance(title, str) else ""


def _lines(text: str) -> list[str]:
    """The lines of a page, "" for blank ones, none of which stand at its ends."""
    lines = without_control(text.replace("\r", "\n").translate(_LIGATURES)).strip().split("\n")
    return [" ".join(line.split()) for line in lines]


def without_running(pages: Sequence[list[str]]) -> list[list[str]]:
    """The pages without what runs along at their edges: on most pages (of three or more) the same line, or one that counts the pages."""
    places: dict[tuple[int, str], list[tuple[int, str]]] = defaultdict(list)  # (place on the page, its text without numbers) -> page, line
    for number, lines in enumerate(pages):
        for place in _edges(lines):
            places[place, re.sub(r"\d+", "0", lines[place])].append((number, lines[place]))
    dropped: dict[int, set[int]] = defaultdict(set)
    for (place, _), found in places.items():
        if len(found) > len(pages) / 2 and len(pages) > 2 and _runs(found):
            for number, _ in found:
                dropped[number].add(place % len(pages[number]))
    return [[line for i, line in enumerate(lines) if i not in dropped[number]] for number, lines in enumerate(pages)]


def _edges(lines: list[str]) -> list[int]:
    """Places of lines that may run along: from the top 0, 1, from the bottom -1, -2; a short page has no middle and keeps all but one."""
    depth = min(_EDGE, (len(lines) - 1) // 2)
    return [place for i in range(depth) for place in (i, -1 - i) if lines[place]]


def _runs(found: list[tuple[int, str]]) -> bool:
    """Whether lines that differ in numbers only are the same, or hold a number that grows by one from page to page."""
    if len({line for _, line in found}) == 1:
        return True
    numbers = [(page, [int(digits) for digits in re.findall(r"\d{1,9}", line)]) for page, line in found]
    width = min(len(values) for _, values in numbers)
    return any(len({values[i] - page for page, values in numbers}) == 1 for i in range(width))


def paragraphs(lines: Sequence[str]) -> str:
    """Lines joined to paragraphs. A paragraph ends at a blank line, before an item of a list, and with a line that has room left.

    Paragraphs are a blank line apart where the first of two ends like a sentence; else (headings, rows of tables) only a line's end.
    """
    widths = sorted(len(line) for line in lines if line)
    if not widths:
        return ""
    width = widths[(len(widths) - 1) * 9 // 10]
    text = lines[0]
    for line, following in pairwise(lines):
        if not following:
            continue
        if not line:
            text += ("\n\n" if text else "") + following
        elif _ITEM.match(following) or (not line.endswith("-") and len(line) + 1 + len(following.split()[0]) <= _SHORT * width):
            text += ("\n\n" if re.search(r"[.!?:。！？][\"'”’»)\]]*$", line) else "\n") + following
        else:
            text = _joined(text, following)
    return text


def _joined(text: str, line: str) -> str:
    """A line after the text of its paragraph; a hyphen or a soft hyphen at the text's end is undone before lower case."""
    if text.endswith("\u00ad"):
        return text[:-1] + line
    if re.search(r"\w-$", text):
        return (text[:-1] if line[0].islower() else text) + line
    between = "" if re.search(rf"{_WIDE}$", text) and re.match(_WIDE, line) else " "
    return text + between + line
