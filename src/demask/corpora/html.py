"""The title and the text of an HTML page: its main content where a page is large, all of it where it is small or the content is spread."""

from __future__ import annotations

import re
from typing import Any

from demask.corpora.encoding import without_control

SMALL = 5_000  # characters of a page's text below which nothing of it is left out
KEPT = 0.8  # of what is no link, in characters, the main content has to hold

_DROPPED = {"head", "script", "style", "template", "noscript", "svg", "nav", "select", "button", "iframe", "object"}
_LINES = {"li", "tr", "dt", "dd", "caption", "figcaption", "legend", "summary"}
_BLOCKS = {"body", "p", "h1", "h2", "h3", "h4", "h5", "h6", "ul", "ol", "dl", "table", "blockquote", "pre", "figure", "section", "article"}
_BLOCKS |= {"header", "footer", "main", "div", "aside", "address", "fieldset", "details", "form", "hr"}
_LINE, _BLOCK, _BREAK = _MARKS = "\x01\x02\x03"  # ends of lines and blocks, and <br>, in text that has none of these characters


def page(source: str) -> tuple[str, str]:
    """(title, text) of a page, each perhaps empty; raises what lxml and trafilatura raise.

    trafilatura's extraction leaves out menus and lists of links, and of hand-written pages facts as well (a heading with a short paragraph,
    a table, a footer). So it counts only on pages with much text, and where it holds most of what is no link.
    """
    import lxml.etree
    import lxml.html

    tree = lxml.html.document_fromstring(source.encode(), parser=lxml.html.HTMLParser(encoding="utf-8"))
    title = " ".join(without_control(tree.xpath("string(//title[not(ancestor::svg)])")).split())
    whole = _text(tree, _DROPPED)
    text = whole
    if len(whole) >= SMALL:
        import trafilatura

        found = trafilatura.extract(source, favor_recall=True, include_tables=True, include_comments=False, output_format="markdown") or ""
        if len(_letters(found)) >= KEPT * len(_letters(_text(tree, _DROPPED | {"a"}))):
            text = found
    return title, without_control(text).strip()


def _letters(text: str) -> str:
    return "".join(re.findall(r"\w", text))


def _text(tree: Any, dropped: set[str]) -> str:
    """The text as it is laid out: blocks a blank line apart, list items and table rows on lines, cells with bars between them."""
    import lxml.etree

    pieces: list[str] = []
    preformatted = 0

    def add(text: str | None) -> None:
        if text:
            pieces.append(without_control(text) if preformatted else re.sub(r"\s+", " ", without_control(text)))

    def end_line(tag: str) -> None:
        if tag in _BLOCKS or tag in _LINES:
            pieces.append(_BLOCK if tag in _BLOCKS else _LINE)

    walk = lxml.etree.iterwalk(tree, events=("start", "end", "comment", "pi"))
    for event, element in walk:
        tag = element.tag if isinstance(element.tag, str) else ""
        if event == "start" and tag in dropped:
            walk.skip_subtree()  # its end comes all the same, and with it the text that follows
        elif event == "start":
            end_line(tag)
            preformatted += tag == "pre"
            if tag in ("li", "br"):
                pieces.append("- " if tag == "li" else _BREAK)
            elif tag in ("td", "th") and element.getprevious() is not None:
                pieces.append(" | ")
            add(element.text)
        else:
            if event == "end" and tag not in dropped:
                preformatted -= tag == "pre"
                end_line(tag)
            add(element.tail)
    text = re.sub(rf"[ {_MARKS}]*[{_MARKS}][ {_MARKS}]*", _ends, "".join(pieces))
    lines = [re.sub(r"[ \t]+", " ", line).strip() for line in text.split("\n")]
    return "\n".join("" if line in ("-", "|") else line for line in lines).strip()


def _ends(marks: re.Match[str]) -> str:
    return "\n\n" if _BLOCK in marks[0] or marks[0].count(_BREAK) > 1 else "\n"
