"""Documents of every format, what a folder's faults come to, and that no bytes at all do more than be refused in one line."""

from __future__ import annotations

import json
import logging
from collections import Counter
from io import BytesIO
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pypdf import PdfWriter

from demask.corpora import formats
from demask.corpora.files import Notes, iter_documents, read_documents
from demask.corpora.html import page
from demask.types import Document, InputError
from tests.pdf import pdf


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def read(name: str, content: str | bytes, **options) -> Document:
    write({name: content})
    (document,) = read_documents(name, **options)
    return document


def fault(source: str, **options) -> str:
    with pytest.raises(InputError) as caught:
        read_documents(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# -- Markdown ----------------------------------------------------------------------------------------------------------


def test_front_matter_gives_title_id_and_metadata():
    source = "---\ntitle: The amber bees\nid: 7\nyear: 1984\nday: 1984-05-12\ntags: [a, b]\n---\n\nAnn keeps them.\n"
    assert read("a.md", source) == Document(
        "7", "The amber bees\n\nAnn keeps them.", None, {"title": "The amber bees", "year": 1984, "day": "1984-05-12", "tags": ["a", "b"]}
    )


@pytest.mark.parametrize(
    "body", ["The amber bees\n\nAnn keeps them.", "# The amber bees\nAnn keeps them.", "the Amber Bees: Ann keeps them."]
)
def test_a_title_that_opens_the_text_is_not_written_twice(body):
    assert read("a.md", f"---\ntitle: The amber bees\n---\n{body}").text == body


def test_a_longer_word_is_not_the_title():
    assert read("a.md", "---\ntitle: An\n---\nAnts dig.").text == "An\n\nAnts dig."


def test_a_leading_heading_is_the_title_and_stays_where_it_is():
    assert read("a.md", "# Kilns #\n\nThey are hot.") == Document("a", "# Kilns #\n\nThey are hot.", None, {"title": "Kilns"})
    assert read("b.md", "## Kilns\n\nThey are hot.").metadata == {}
    assert read("c.md", "They are hot.\n# Kilns").metadata == {}


@pytest.mark.parametrize("source", ["---\nAnn keeps bees.\n---\nBo mends boats.", "---\nAnn keeps bees.", "----\ntitle: x\n----\nAnn"])
def test_rules_are_no_front_matter(source):
    assert read("a.md", source) == Document("a", source)


def test_empty_front_matter():
    assert read("a.md", "---\n---\nAnn") == Document("a", "Ann")


# -- HTML --------------------------------------------------------------------------------------------------------------

SMALL_PAGE = """<!doctype html><html><head><title>Amber  bees</title><style>p {}</style></head><body>
<nav><a href="/">Home</a></nav>
<h1>Amber bees</h1><p>Ann Ash keeps the <b>amber</b>
bees.<br>Since 1984.</p>
<ul><li>Bo Reed mends boats.</li><li>Cy Dow paints.</li></ul>
<table><tr><th>Name</th><th>Year</th></tr><tr><td>Ann</td><td>1984</td></tr></table>
<script>var no = 1;</script><footer>Dee Fox, 12 Elm Road &amp; sons</footer></body></html>"""


def test_a_small_page_loses_no_fact():
    text = (
        "Amber bees\n\nAnn Ash keeps the amber bees.\nSince 1984.\n\n- Bo Reed mends boats.\n- Cy Dow paints.\n\n"
        "Name | Year\nAnn | 1984\n\nDee Fox, 12 Elm Road & sons"
    )
    assert read("a.html", SMALL_PAGE) == Document("a", text, None, {"title": "Amber bees"})


def test_a_bare_paragraph_is_a_page():
    assert read("a.htm", "<p>Ann keeps bees.") == Document("a", "Ann keeps bees.")
    assert read("b.htm", "<title>Bees</title><p>Ann keeps them.").text == "Bees\n\nAnn keeps them."


def large_page(article: str) -> str:
    menu = "".join(f"<li><a href='/{i}'>Read more about the thing number {i}</a></li>" for i in range(80))
    return f"<html><head><title>Bees</title></head><body><div class='sidebar'><ul>{menu}</ul></div>{article}</body></html>"


def test_a_large_page_is_left_without_its_lists_of_links():
    facts = [f"Ann Ash has kept hive {i} of the amber bees in the old garden of the town since {1900 + i}." for i in range(80)]
    title, text = page(large_page("<article><h1>Bees</h1>" + "".join(f"<p>{fact}</p>" for fact in facts) + "</article>"))
    assert title == "Bees"
    assert all(fact in text for fact in facts)
    assert "Read more" not in text


def test_a_large_page_of_scattered_facts_is_kept_whole():
    cells = "".join(f"<div><div><span>Hive {i} since {1900 + i}</span></div></div>" for i in range(400))
    _, text = page(large_page(cells))
    assert all(f"Hive {i} since {1900 + i}" in text for i in range(400))


# -- PDF ---------------------------------------------------------------------------------------------------------------


def test_lines_of_a_pdf_are_paragraphs_again():
    lines = [
        "The amber bees",
        "Ann Ash, who has kept the amber bees for as long as any-",
        "one in the town remembers, was born near the Anglo-",
        "Saxon church (of Elmbridge) and has never left the vil-",
        "lage.",
        "Bo Reed mends the boats that come up the river, and sells",
        "them again in May.",
    ]
    assert read("a.pdf", pdf([lines], "The amber bees")) == Document(
        "a",
        "The amber bees\nAnn Ash, who has kept the amber bees for as long as anyone in the town remembers, was born near the "
        "Anglo-Saxon church (of Elmbridge) and has never left the village.\n\n"
        "Bo Reed mends the boats that come up the river, and sells them again in May.",
        None,
        {"title": "The amber bees"},
    )


def test_what_runs_along_on_pages_is_left_out_and_a_paragraph_goes_on_over_them():
    pages = [
        ["Town book", "Ann keeps the amber bees and Bo mends the", "boats, which is told in the town as the", "Page 1 of 3"],
        ["Town book", "story of the two, and no one knows who has", "told it first. Cy paints them both, and Dee", "Page 2 of 3"],
        ["Town book", "sings of it in the old garden of the town.", "Year 1984", "Page 3 of 3"],
    ]
    assert read("a.pdf", pdf(pages, "Another title")) == Document(
        "a",
        "Ann keeps the amber bees and Bo mends the boats, which is told in the town as the story of the two, and no one knows who has "
        "told it first. Cy paints them both, and Dee sings of it in the old garden of the town. Year 1984",
    )


def test_lines_that_only_look_alike_are_kept():
    pages = [[f"Born in {year}", "Ann keeps bees.", "Bo mends boats.", "The end"] for year in (1984, 1950, 2001)]
    assert [f"Born in {year}" in read("a.pdf", pdf(pages)).text for year in (1984, 1950, 2001)] == [True] * 3


def test_a_pdf_without_text_encrypted_or_broken():
    write({"scan.pdf": pdf([[], []]), "no.pdf": "%PDF-1.4\n", "half.pdf": pdf([["Ann"]])[:200], "empty.pdf": b""})
    writer = PdfWriter()
    writer.add_blank_page(100, 100)
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write("locked.pdf")
    assert fault("scan.pdf") == "scan.pdf: no text in it (a scan? run OCR first)"
    assert fault("locked.pdf") == "locked.pdf: encrypted; save it without a password first"
    for name in ("no.pdf", "half.pdf", "empty.pdf"):
        assert fault(name).startswith(f"{name}: can't be read as PDF (")


def test_a_pdf_that_opens_without_a_password_is_read():
    writer = PdfWriter(clone_from=BytesIO(pdf([["Ann keeps bees."]])))
    writer.encrypt("", "owner", algorithm="RC4-128")
    writer.write("a.pdf")
    assert read_documents("a.pdf")[0].text == "Ann keeps bees."


def test_pages_without_text_are_told_and_the_log_is_quiet(caplog, capfd):
    write({"a.pdf": pdf([["Ann keeps bees."], []]).replace(b"startxref\n", b"startxref\n9")})
    notes = Notes()
    read_documents("a.pdf", notes=notes)
    assert notes == Notes(remarks=["a.pdf: 1 of 2 pages hold no text"])
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


# -- encodings ---------------------------------------------------------------------------------------------------------

RUSSIAN = "Анна держит пчёл в старом саду, а Борис чинит лодки у реки. Никто в городе не помнит, когда это началось. " * 5


@pytest.mark.parametrize(
    ("name", "raw", "text", "encoding"),
    [
        ("a.txt", "Ann hélas — “no”".encode("cp1252"), "Ann hélas — “no”", "cp1252"),
        ("a.txt", "René".encode("latin-1"), "René", "cp1252"),
        ("a.txt", "Ann hélas".encode("utf-16"), "Ann hélas", "utf-16"),
        ("a.md", b"\xfe\xff" + "Ann".encode("utf-16-be"), "Ann", "utf-16"),
        ("a.txt", RUSSIAN.encode("cp1251"), RUSSIAN.strip(), "cp1251"),
        ("a.html", "<p>Größe".encode("latin-1"), "Größe", "cp1252"),
        ("a.html", "<meta charset='iso-8859-2'><p>Łódź".encode("iso-8859-2"), "Łódź", "iso-8859-2"),
        ("a.html", "<meta charset=utf-8><p>Größe".encode("latin-1"), "Größe", "cp1252"),
        ("a.html", "<meta charset=nonsense><p>Größe".encode("latin-1"), "Größe", "cp1252"),
        ("a.csv", "text\nGröße\n".encode("latin-1"), "Größe", "cp1252"),
    ],
)
def test_text_that_is_not_utf8_is_read_and_told(name, raw, text, encoding):
    notes = Notes()
    assert read(name, raw, notes=notes).text == text
    assert notes.remarks == [f"{name}: not UTF-8: read as {encoding}"]


def test_a_few_letters_do_not_tell_their_encoding():
    write({"a.txt": "Анна".encode("cp1251")})
    assert fault("a.txt") == "a.txt: neither UTF-8 nor another encoding that can be told; convert the file to UTF-8"


def test_utf8_is_not_told_and_wins_over_what_a_page_declares():
    notes = Notes()
    assert read("a.html", "<meta charset=latin1><p>Größe", notes=notes).text == "Größe"
    assert read("a.txt", "\ufeffGröße", notes=notes).text == "Größe"
    assert notes == Notes()


# -- tables ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_by_its_delimiter(delimiter):
    rows = ["\ufefftext,id,year", '"Ann, who keeps ""bees"";', 'since 1984.",a,1984', "", "Bo mends boats.,,"]
    write({"a.csv": "\r\n".join(rows).replace(",", delimiter).replace(f"Ann{delimiter} who", "Ann, who")})
    assert read_documents("a.csv") == [
        Document("a", 'Ann, who keeps "bees";\r\nsince 1984.', None, {"year": "1984"}),
        Document("a-5", "Bo mends boats."),
    ]


def test_csv_of_one_column_with_commas_in_its_texts_and_of_pairs():
    write({"a.csv": 'text\n"Ann, Bo"\n', "b.tsv": "prompt\tresponse\n2+2?\t4\n", "c.csv": ",body\n0,Ann\n"})
    assert read_documents(["a.csv", "b.tsv"]) == [Document("a-2", "Ann, Bo"), Document("b-2", "4", "2+2?")]
    assert read_documents("c.csv", "body") == [Document("c-2", "Ann")]


def test_a_long_field_is_read():
    assert len(read("a.csv", f'text\n"{"bees " * 100_000}"\n').text) == 500_000


def test_parquet_rows_over_batches():
    n = 2 * formats.ROWS + 3
    table = pa.table({"text": [f"Fact {i}." for i in range(n)], "id": range(n), "title": ["T"] * n, "picture": [b"\0"] * n})
    pq.write_table(table, "a.parquet", row_group_size=100)
    documents = read_documents("a.parquet")
    assert documents == [Document(str(i), f"Fact {i}.", None, {"title": "T"}) for i in range(n)]


def test_parquet_faults():
    write({"broken.parquet": b"PAR1"})
    pq.write_table(pa.table({"body": ["Ann"], "year": [1]}), "a.parquet")
    pq.write_table(pa.table({"text": ["Ann", None]}), "null.parquet")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), "none.parquet")
    assert fault("broken.parquet").startswith("broken.parquet: can't be read as parquet (ArrowInvalid: ")
    assert fault("a.parquet") == "a.parquet: column 'text' is missing; the columns are body, year"
    assert fault("null.parquet") == "null.parquet: row 2: field 'text' is null"
    assert fault("none.parquet") == "none.parquet: no documents in it"


# -- streams and folders -----------------------------------------------------------------------------------------------


def test_documents_come_one_by_one():
    write({"a.jsonl": '{"text": "Ann"}\n{"text": "Bo"}\n{broken\n'})
    found = iter_documents("a.jsonl", "text", Notes())
    assert next(found) == (Document("a-1", "Ann"), "a.jsonl:1", "a.jsonl")
    assert next(found).where == "a.jsonl:2"
    with pytest.raises(InputError, match=r"^a\.jsonl:3: not valid JSON"):
        next(found)


FOLDER = {
    "in/a.jsonl": '{"text": "Ann"}\n{"txt": "no"}\n[]\n{"text": "Bo"}\n',
    "in/b.txt": "",
    "in/c.pdf": "%PDF",
    "in/d.csv": "text,id\nCy\nDee,d\n",
    "in/e.html": "<p>caf\xe9".encode("latin-1"),
    "in/f.json": '["Fay", 3]',
    "in/g.jsonl": b'{"text": "Gus"}\n\xff\n{"text": "never"}\n',
    "in/h.docx": "PK",
    "in/i.docx": "PK",
    "in/LICENSE": "x",
}
SKIPPED = [
    "in/a.jsonl:2: field 'text' is missing",
    "in/a.jsonl:3: expected a JSON object, found a list",
    "in/b.txt: the file is empty",
    "in/c.pdf: can't be read as PDF (...",
    "in/d.csv:2: expected 2 fields as in the header, found 1",
    "in/f.json: item 2: expected a JSON object or a string, found a number",
    "in/g.jsonl:2: not UTF-8 (byte 0xff); convert the file to UTF-8; the documents before it are kept, 1 of them",
]


def test_what_a_folder_holds_that_is_no_document_is_passed_over_and_told():
    write(FOLDER)
    notes = Notes()
    documents = read_documents("in", notes=notes)
    assert [document.text for document in documents] == ["Ann", "Bo", "Dee", "café", "Fay", "Gus"]
    assert [line.partition(" (Pdf")[0] if "c.pdf" in line else line for line in notes.skipped] == [
        line.removesuffix(" (...") for line in SKIPPED
    ]
    assert notes.remarks == ["in/e.html: not UTF-8: read as cp1252"]
    assert notes.others == Counter({".docx": 2, "without a suffix": 1})
    said = notes.lines()
    assert said[0] == f"passed over: {SKIPPED[0]}"
    assert said[5:] == ["in/e.html: not UTF-8: read as cp1252", "... and 2 more passed over (demask data check lists them)"]


def test_nothing_is_passed_over_in_silence(caplog):
    write({"in/a.txt": "Ann", "in/b.txt": ""})
    with caplog.at_level(logging.WARNING):
        assert read_documents("in") == [Document("a", "Ann")]
    assert [record.getMessage() for record in caplog.records] == ["passed over: in/b.txt: the file is empty"]


def test_an_id_used_twice_is_an_error_in_a_folder_too():
    write({"in/a.txt": "Ann", "in/b.csv": "id,text\na,Bo\n"})
    assert fault("in", notes=Notes()) == "in/b.csv:2: id 'a' is used twice, first in in/a.txt"


def test_files_that_differ_in_their_suffix_only_have_ids_of_their_own():
    write({"in/a.txt": "Ann", "in/a.html": "<p>Bo", "in/a.jsonl": '{"text": "Cy"}', "in/b/a.md": "Di"})
    assert [(d.id, d.text) for d in read_documents("in")] == [("a", "Bo"), ("a.jsonl-1", "Cy"), ("a.txt", "Ann"), ("b/a", "Di")]


def test_a_file_that_is_named_must_be_readable():
    write({"a.jsonl": '{"text": "Ann"}\n{}\n'})
    assert fault("a.jsonl", notes=Notes()) == "a.jsonl:2: field 'text' is missing"


def test_pipes_and_names_that_are_no_text():
    import os

    os.mkdir("in")
    os.mkfifo("in/a.txt")
    write({"in/b.txt": "Bo"})
    with open(b"in/c\xff.txt", "wb") as file:
        file.write(b"Cy")
    notes = Notes()
    assert read_documents("in", notes=notes) == [Document("b", "Bo")]
    assert notes.skipped == ["in/a.txt: is no regular file", "in/c\\xff.txt: its name is not UTF-8; rename the file"]


def test_a_title_of_a_record_or_a_column_is_metadata():
    write({"a.jsonl": json.dumps({"title": "Bees", "text": "Ann keeps them."}), "b.csv": "title,text\nBoats,Bo mends them.\n"})
    assert read_documents(["a.jsonl", "b.csv"]) == [
        Document("a-1", "Ann keeps them.", None, {"title": "Bees"}),
        Document("b-2", "Bo mends them.", None, {"title": "Boats"}),
    ]


# -- anything at all ---------------------------------------------------------------------------------------------------


def parquet(rows: dict) -> bytes:
    out = BytesIO()
    pq.write_table(pa.table(rows), out)
    return out.getvalue()


SEEDS = {
    ".md": b"---\ntitle: x\n---\n# y\ntext",
    ".html": SMALL_PAGE.encode(),
    ".pdf": pdf([["Ann keeps bees."], ["Bo."]], "Ann"),
    ".csv": b'text,id\n"Ann",1\nBo,2\n',
    ".jsonl": b'{"text": "Ann"}\n{"prompt": "a", "response": "b"}\n',
    ".json": b'["Ann", {"text": "Bo"}]',
    ".parquet": parquet({"text": ["Ann", "Bo"]}),
}


def refused_or_read(suffix: str, raw: bytes) -> None:
    Path(f"x{suffix}").write_bytes(raw)
    try:
        documents = read_documents(f"x{suffix}", notes=Notes())
    except InputError as error:
        said = str(error)
    else:
        said = f"x{suffix}"
        assert documents
        for document in documents:
            assert document.text.strip()
            json.dumps([document.text, document.metadata], ensure_ascii=False).encode()
    assert said.startswith(f"x{suffix}")
    assert "\n" not in said


@settings(deadline=None, max_examples=60)
@given(raw=st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@pytest.mark.parametrize("suffix", sorted(formats.READERS))
def test_any_bytes_are_read_or_refused_in_one_line(suffix, raw):
    refused_or_read(suffix, raw)


@settings(deadline=None, max_examples=80)
@given(data=st.data())
@pytest.mark.parametrize("suffix", sorted(SEEDS))
def test_damaged_files_are_read_or_refused_in_one_line(suffix, data):
    raw = bytearray(SEEDS[suffix])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(0, len(raw) - 1)))
        raw[place : place + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    refused_or_read(suffix, bytes(raw))
