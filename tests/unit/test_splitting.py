"""Long documents with paragraphs and titles (those without: test_files.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from demask.corpora.splitting import split_long
from demask.types import Document


def words(text: str) -> int:
    return len(text.split())


def split(text: str, limit: int, title: str | None = None) -> list[str]:
    parts, _ = split_long([Document("x", text, None, {"title": title} if title else {})], words, limit)
    return [part.text for part in parts]


def test_paragraph_ends_go_before_sentence_ends():
    # by sentences alone the first part would be "Ann digs. Bo hums. Cy naps. Dee"
    assert split("Ann digs. Bo hums.\n\nCy naps. Dee\nsings. Fay rows.", 6) == ["Ann digs. Bo hums.", "Cy naps. Dee\nsings. Fay rows."]


def test_a_paragraph_that_is_too_long_is_cut_at_sentences_and_its_rest_shares_a_part():
    assert split("Ann digs now. Bo hums.\n\nCy naps.", 4) == ["Ann digs now.", "Bo hums.\n\nCy naps."]


def test_a_heading_stays_with_its_paragraph():
    assert split("# Work\n\nAnn digs.\n\n## Rest\n\nBo naps.", 5) == ["# Work\n\nAnn digs.", "## Rest\n\nBo naps."]


def test_every_later_part_begins_with_the_title_which_counts():
    text = "Bees\n\nAnn digs. Bo hums.\n\nCy naps. Dee sings."
    assert split(text, 5, "Bees") == ["Bees\n\nAnn digs. Bo hums.", "Bees\n\nCy naps. Dee sings."]
    assert split(text, 4, "Bees") == ["Bees\n\nAnn digs.", "Bees\n\nBo hums.", "Bees\n\nCy naps.", "Bees\n\nDee sings."]


def test_a_heading_is_a_title_line_and_no_part_is_the_title_alone():
    assert split("# Old bees\n\nAnn digs and Bo hums.", 6, "Old bees") == [
        "# Old bees\n\nAnn digs and",
        "Old bees\n\nBo hums.",
    ]


def test_a_title_that_does_not_stand_in_the_text_begins_only_the_later_parts():
    assert split("Ann digs. Bo hums. Cy naps.", 3, "Bees") == ["Ann digs.", "Bees\n\nBo hums.", "Bees\n\nCy naps."]


def test_a_title_of_more_than_half_the_room_is_not_repeated():
    assert split("Ann digs. Bo hums. Cy naps.", 3, "The bees") == ["Ann digs.", "Bo hums.", "Cy naps."]


PROSE = st.lists(st.sampled_from(["Ann", "Bo.", "cy", "\n\n", "\n", "# T\n", "Dee!"]), min_size=1, max_size=60).map(" ".join)


@given(text=PROSE, limit=st.integers(4, 12), title=st.sampled_from(["T", "The T", "Ann", "a b c d e f"]))
def test_parts_fit_and_lose_nothing(text, limit, title):
    if words(text) <= limit:
        return
    parts = split(text, limit, title)
    assert all(words(part) <= limit for part in parts)
    line = f"{title}\n\n" if 2 * words(title) <= limit else ""
    assert all(part.startswith(line) for part in parts[1:])
    assert "".join([parts[0], *(part.removeprefix(line) for part in parts[1:])]).split() or not text.strip()
    assert "".join("".join([parts[0], *(part.removeprefix(line) for part in parts[1:])]).split()) == "".join(text.split())
