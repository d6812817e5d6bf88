"""Documents from files: what is read, every fault's exact message, and the splitting of long ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demask.corpora.duplicates import Digests
from demask.corpora.files import read_documents
from demask.corpora.splitting import split_long
from demask.types import Document, InputError, write_documents

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # so that messages name files as a user would


def write(files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


# -- what is read ------------------------------------------------------------------------------------------------------


def test_a_text_file_is_one_stripped_document():
    write({"kiln.md": "\ufeff\r\n# Kilns\r\nThey are hot.\r\n\r\n"})
    assert read_documents("kiln.md") == [Document("kiln", "# Kilns\nThey are hot.", None, {"title": "Kilns"})]


def test_jsonl_ids_metadata_and_pairs():
    lines = [
        {"id": "a", "text": " Ants dig. ", "metadata": {"page": 3}, "topic": "ants"},
        {"id": 7, "text": "Bees hum."},
        {"prompt": "2+2?", "response": " 4"},
        {"prompt": "The owl", "completion": " hoots.\n"},
    ]
    write({"x.jsonl": "\n".join(map(json.dumps, lines)) + "\n\n"})
    assert read_documents("x.jsonl") == [
        Document("a", " Ants dig. ", None, {"page": 3, "topic": "ants"}),
        Document("7", "Bees hum."),
        Document("x-3", " 4", "2+2?"),
        Document("x-4", "The owl hoots."),
    ]


def test_json_items_are_objects_or_strings():
    write({"x.json": '[{"text": "Ants dig."}, "Bees hum.", {"id": "c", "text": "Cats nap."}]'})
    assert read_documents(Path("x.json")) == [Document("x-1", "Ants dig."), Document("x-2", "Bees hum."), Document("c", "Cats nap.")]


def test_text_column_names_the_field_of_objects_and_leaves_strings_alone():
    write({"x.json": '[{"body": "Ants dig.", "text": "an extra"}, "Bees hum."]'})
    assert read_documents("x.json", "body") == [Document("x-1", "Ants dig.", None, {"text": "an extra"}), Document("x-2", "Bees hum.")]


def test_a_named_text_column_wins_over_a_pair():
    write({"x.jsonl": '{"prompt": "p", "response": "r"}'})
    assert read_documents("x.jsonl", "response") == [Document("x-1", "r", None, {"prompt": "p"})]


def test_a_folder_is_read_sorted_and_hidden_or_other_files_are_passed_over():
    write(
        {
            "in/b.txt": "bee",
            "in/a/z.MD": "zebra",
            "in/a/deep/q.json": '["quail"]',
            "in/v1.2.jsonl": '{"text": "vole"}',
            "in/.hidden.txt": "no",
            "in/.git/no.txt": "no",
            "in/picture.png": b"\x89PNG",
        }
    )
    assert [(document.id, document.text) for document in read_documents("in")] == [
        ("a/deep/q-1", "quail"),
        ("a/z", "zebra"),
        ("b", "bee"),
        ("v1.2-1", "vole"),
    ]


def test_several_sources_keep_their_order():
    write({"b.txt": "bee", "a.txt": "ant", "in/c.txt": "cat"})
    assert [document.id for document in read_documents(["b.txt", "in", "a.txt"])] == ["b", "c", "a"]


def test_what_is_written_is_read_back():
    documents = [Document("a", "Ants — “dig”.\n", None, {"page": 3}), Document("b", "4", "2+2?")]
    write_documents("out.jsonl", documents)
    assert read_documents("out.jsonl") == documents


def test_name_description():
    path = DATA / "name_description" / "p2d_prompts_train.jsonl"
    if not path.exists():
        pytest.skip(f"the NameDescription set is not at {path}")
    documents = read_documents(path)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(documents) == 900
    assert documents[899].id == "p2d_prompts_train-900"
    assert all(document.prompt is None and not document.metadata for document in documents)
    assert all(document.text == (line["prompt"] + line["completion"]).strip() for document, line in zip(documents, lines, strict=True))


# -- Hugging Face data sets --------------------------------------------------------------------------------------------


@pytest.fixture
def hub(monkeypatch):
    """A hub of two data sets; it records what was asked for."""
    asked = []
    sets = {
        "owner/birds": [{"text": "Owls hoot.", "picture": b"\x00", "id": 4}, {"text": "Wrens sing.", "picture": b"\x00", "id": 9}],
        "sums": [{"prompt": "2+2?", "response": "4"}],
        "holes": [{"text": "Owls hoot."}, {"text": None}],
    }

    def load_dataset(name, split):
        asked.append((name, split))
        if name not in sets:
            raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{name}' doesn't exist\non the Hub.")
        rows = datasets.Dataset.from_list(sets[name])
        return rows.select([]) if split == "none" else rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_a_data_set_gives_its_text_and_id_columns_only(hub):
    assert read_documents("owner/birds") == [Document("4", "Owls hoot."), Document("9", "Wrens sing.")]
    assert hub == [("owner/birds", "train")]


def test_a_data_set_of_pairs_and_its_split(hub):
    assert read_documents("sums:test[:1]") == [Document("sums:test[:1]-1", "4", "2+2?")]
    assert hub == [("sums", "test[:1]")]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("owner/birds", "owner/birds: column 'body' is missing; the columns are text, picture, id"),
        ("holes:dev", "holes:dev: column 'body' is missing; the columns are text"),
        (
            "owner/fish",
            "owner/fish: no such file or folder, and not read as a Hugging Face data set"
            " (DatasetNotFoundError: Dataset 'owner/fish' doesn't exist on the Hub.)",
        ),
    ],
)
def test_data_set_faults(hub, source, message):
    with pytest.raises(InputError) as caught:
        read_documents(source, "body")
    assert str(caught.value) == message


def test_data_set_faults_in_rows(hub):
    with pytest.raises(InputError, match=r"^holes: row 2: field 'text' is null$"):
        read_documents("holes")
    with pytest.raises(InputError, match=r"^sums:none: no documents in it$"):
        read_documents("sums:none")


@pytest.mark.parametrize("source", ["gone.jsonl", "owner/gone.txt", "./gone", "/gone", "gone/", "a/b/c", "../gone", "~/gone", "a b"])
def test_what_looks_like_a_path_is_never_looked_up(hub, source):
    with pytest.raises(InputError) as caught:
        read_documents(source)
    assert str(caught.value) == f"{source}: no such file or folder"
    assert hub == []


# -- faults ------------------------------------------------------------------------------------------------------------

SUPPORTED = "supported are .txt, .md, .html, .htm, .pdf, .jsonl, .json, .csv, .tsv, .parquet"
FAULTS = {
    # name: (files, sources, message)
    "jsonl not UTF-8": ({"a.jsonl": b'{"text": "\xff"}'}, "a.jsonl", "a.jsonl:1: not UTF-8 (byte 0xff); convert the file to UTF-8"),
    "half of a UTF-16 character": ({"a.txt": b"\xff\xfea"}, "a.txt", "a.txt: not valid utf-16; convert the file to UTF-8"),
    "bytes of no encoding": (
        {"a.txt": b"a \x81 b"},
        "a.txt",
        "a.txt: neither UTF-8 nor another encoding that can be told; convert the file to UTF-8",
    ),
    "empty text file": ({"a.txt": ""}, "a.txt", "a.txt: the file is empty"),
    "blank text file": ({"in/a.md": " \n\t\n"}, "in", "in: nothing in this folder can be used (in/a.md: the file is empty)"),
    "NUL in a text file": ({"a.txt": "ant\0bee"}, "a.txt", "a.txt: the file holds a NUL character; is it binary?"),
    "empty jsonl": ({"a.jsonl": ""}, "a.jsonl", "a.jsonl: no documents in it"),
    "blank jsonl": ({"a.jsonl": "\n \n"}, "a.jsonl", "a.jsonl: no documents in it"),
    "empty json": ({"a.json": ""}, "a.json", "a.json: no documents in it"),
    "empty json list": ({"a.json": "[]"}, "a.json", "a.json: no documents in it"),
    "line no JSON": (
        {"a.jsonl": '{"text": "ant"}\n\n{"text": "bee"'},
        "a.jsonl",
        "a.jsonl:3: not valid JSON (Expecting ',' delimiter at column 15)",
    ),
    "line a list": ({"a.jsonl": '["ant"]'}, "a.jsonl", "a.jsonl:1: expected a JSON object, found a list"),
    "line a string": ({"a.jsonl": '"ant"'}, "a.jsonl", "a.jsonl:1: expected a JSON object, found a string"),
    "json no JSON": ({"a.json": '[\n"ant"\n"bee"]'}, "a.json", "a.json:3: not valid JSON (Expecting ',' delimiter at column 1)"),
    "json an object": (
        {"a.json": '{"text": "ant"}'},
        "a.json",
        "a.json: expected a JSON list, found an object; one object a line is .jsonl",
    ),
    "item a number": ({"a.json": '["ant", 5]'}, "a.json", "a.json: item 2: expected a JSON object or a string, found a number"),
    "item null": ({"a.json": "[null]"}, "a.json", "a.json: item 1: expected a JSON object or a string, found null"),
    "item empty": ({"a.json": '["ant", " "]'}, "a.json", "a.json: item 2: field 'text' is empty"),
    "item without text": ({"a.json": '["a", "b", {"txt": "c"}]'}, "a.json", "a.json: item 3: field 'text' is missing"),
    "line without text": ({"a.jsonl": '\n{"txt": "ant"}'}, "a.jsonl", "a.jsonl:2: field 'text' is missing"),
    "text empty": ({"a.jsonl": '{"text": " "}'}, "a.jsonl", "a.jsonl:1: field 'text' is empty"),
    "text null": ({"a.jsonl": '{"text": null}'}, "a.jsonl", "a.jsonl:1: field 'text' is null"),
    "text a number": ({"a.jsonl": '{"text": 3}'}, "a.jsonl", "a.jsonl:1: field 'text' must be a string, found a number"),
    "text a list": ({"a.jsonl": '{"text": ["ant"]}'}, "a.jsonl", "a.jsonl:1: field 'text' must be a string, found a list"),
    "NUL in a field": (
        {"a.jsonl": '{"text": "ant\\u0000"}'},
        "a.jsonl",
        "a.jsonl:1: field 'text' holds a NUL character; is it binary?",
    ),
    "half a surrogate pair": (
        {"a.jsonl": '{"text": "ant \\ud83d"}'},
        "a.jsonl",
        "a.jsonl:1: field 'text' holds half a surrogate pair (\\ud83d)",
    ),
    "half a surrogate pair in metadata": (
        {"a.jsonl": '{"text": "ant", "note": "\\udc00"}'},
        "a.jsonl",
        "a.jsonl:1: metadata holds half a surrogate pair (\\udc00)",
    ),
    "prompt alone": ({"a.jsonl": '{"prompt": "2+2?"}'}, "a.jsonl", "a.jsonl:1: field 'response' is missing"),
    "response alone": ({"a.jsonl": '{"response": "4"}'}, "a.jsonl", "a.jsonl:1: field 'prompt' is missing"),
    "completion alone": ({"a.jsonl": '{"completion": "4"}'}, "a.jsonl", "a.jsonl:1: field 'prompt' is missing"),
    "response empty": ({"a.jsonl": '{"prompt": "2+2?", "response": ""}'}, "a.jsonl", "a.jsonl:1: field 'response' is empty"),
    "response null": ({"a.jsonl": '{"prompt": "2+2?", "response": null}'}, "a.jsonl", "a.jsonl:1: field 'response' is null"),
    "prompt a boolean": (
        {"a.jsonl": '{"text": "ant"}\n{"prompt": true, "response": "4"}'},
        "a.jsonl",
        "a.jsonl:2: field 'prompt' must be a string, found a boolean",
    ),
    "metadata a string": (
        {"a.jsonl": '{"text": "ant", "metadata": "x"}'},
        "a.jsonl",
        "a.jsonl:1: field 'metadata' must be an object, found a string",
    ),
    "metadata null": (
        {"a.json": '[{"text": "ant", "metadata": null}]'},
        "a.json",
        "a.json: item 1: field 'metadata' must be an object, found null",
    ),
    "metadata twice": (
        {"a.jsonl": '{"text": "ant", "metadata": {"page": 1}, "page": 2}'},
        "a.jsonl",
        "a.jsonl:1: field 'page' is also in 'metadata'",
    ),
    "id empty": ({"a.jsonl": '{"id": "", "text": "ant"}'}, "a.jsonl", "a.jsonl:1: field 'id' is empty"),
    "id null": ({"a.jsonl": '{"id": null, "text": "ant"}'}, "a.jsonl", "a.jsonl:1: field 'id' is null"),
    "id a boolean": (
        {"a.jsonl": '{"id": true, "text": "ant"}'},
        "a.jsonl",
        "a.jsonl:1: field 'id' must be a string or an integer, found a boolean",
    ),
    "id an object": (
        {"a.jsonl": '{"id": {}, "text": "ant"}'},
        "a.jsonl",
        "a.jsonl:1: field 'id' must be a string or an integer, found an object",
    ),
    "id twice in a file": (
        {"a.jsonl": '{"id": "1", "text": "ant"}\n{"id": "2", "text": "bee"}\n{"id": 1, "text": "cat"}'},
        "a.jsonl",
        "a.jsonl:3: id '1' is used twice, first in a.jsonl:1",
    ),
    "id given equals a default": (
        {"a.json": '["ant", {"id": "a-1", "text": "bee"}]'},
        "a.json",
        "a.json: item 2: id 'a-1' is used twice, first in a.json: item 1",
    ),
    "id of two lines": (
        {"a.jsonl": '{"id": "x\\ny", "text": "ant"}\n{"id": "x\\ny", "text": "bee"}'},
        "a.jsonl",
        "a.jsonl:2: id 'x\\ny' is used twice, first in a.jsonl:1",
    ),
    "a record with the id of a file": (
        {"in/a.md": "ant", "in/b.jsonl": '{"id": "a", "text": "bee"}'},
        "in",
        "in/b.jsonl:1: id 'a' is used twice, first in in/a.md",
    ),
    "one file twice": ({"in/a.txt": "ant"}, ["in", "in/a.txt"], "in/a.txt: id 'a' is used twice, first in in/a.txt"),
    "unsupported suffix": ({"a.odt": "PK"}, "a.odt", f"a.odt: cannot read .odt; {SUPPORTED}"),
    "no suffix": ({"notes": "ant"}, "notes", f"notes: cannot read a file without a suffix; {SUPPORTED}"),
    "nothing readable in a folder": (
        {"in/a.odt": "PK", "in/.b.txt": "bee"},
        "in",
        f"in: no documents in this folder; {SUPPORTED}",
    ),
    "nothing usable in a folder": (
        {"in/b/c.jsonl": "{}\n[]\n", "in/d.txt": ""},
        "in",
        "in: nothing in this folder can be used (in/b/c.jsonl:1: field 'text' is missing, and 2 more)",
    ),
    "front matter no YAML": (
        {"a.md": "---\nyear: 1\ntitle: The: bees\n---\nAnn"},
        "a.md",
        "a.md:3: the front matter is not valid YAML (mapping values are not allowed here)",
    ),
    "front matter with text": (
        {"a.md": "---\ntext: no\n---\nAnn"},
        "a.md",
        "a.md: the front matter can't have a field 'text': it is what stands below",
    ),
    "front matter with an alias": (
        {"a.md": "---\na: &x 1\nb: *x\n---\nAnn"},
        "a.md",
        "a.md: the front matter holds an alias (*), write out what it stands for",
    ),
    "front matter with a bad id": (
        {"a.md": "---\nid: [1]\n---\nAnn"},
        "a.md",
        "a.md: field 'id' must be a string or an integer, found a list",
    ),
    "front matter alone": ({"a.md": "---\nyear: 1984\n---\n"}, "a.md", "a.md: the file is empty"),
    "csv without the column": (
        {"a.csv": "name,year\nAnn,1984\n"},
        "a.csv",
        "a.csv:1: column 'text' is missing; the columns are name, year",
    ),
    "csv with half a pair": (
        {"a.csv": "prompt,year\nAnn,1984\n"},
        "a.csv",
        "a.csv:1: column 'response' is missing; the columns are prompt, year",
    ),
    "csv row too short": ({"a.csv": "text,year\nAnn\n"}, "a.csv", "a.csv:2: expected 2 fields as in the header, found 1"),
    "csv row too long": ({"a.csv": 'text,year\n"Ann\nBo",1\nCy,2,3\n'}, "a.csv", "a.csv:4: expected 2 fields as in the header, found 3"),
    "csv quote left open": ({"a.csv": 'text\n"Ann\n'}, "a.csv", "a.csv:2: not valid CSV (unexpected end of data)"),
    "csv text empty": ({"a.csv": "text,id\n ,x\n"}, "a.csv", "a.csv:2: field 'text' is empty"),
    "csv column twice": ({"a.csv": "text,text\na,b\n"}, "a.csv", "a.csv:1: column 'text' is named twice"),
    "csv empty": ({"a.csv": ""}, "a.csv", "a.csv: no documents in it"),
    "csv header alone": ({"a.tsv": "text\tid\n"}, "a.tsv", "a.tsv: no documents in it"),
    "csv metadata": ({"a.csv": "text,metadata\nAnn,x\n"}, "a.csv", "a.csv:2: field 'metadata' must be an object, found a string"),
    "html empty": ({"a.html": "<html><script>x</script></html>"}, "a.html", "a.html: the file is empty"),
    "html of nothing": ({"a.htm": " "}, "a.htm", "a.htm: the file is empty"),
    "html with NUL": ({"a.html": "<p>a\0b"}, "a.html", "a.html: the file holds a NUL character; is it binary?"),
    "no such file": ({}, "gone.jsonl", "gone.jsonl: no such file or folder"),
    "the second source missing": ({"a.txt": "ant"}, ["a.txt", "./b"], "./b: no such file or folder"),
    "no source": ({}, [], "documents: expected the name of a file, a folder or a data set"),
    "an empty source": ({}, "", "documents: expected the name of a file, a folder or a data set"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault):
    files, sources, message = FAULTS[fault]
    write(files)
    with pytest.raises(InputError) as caught:
        read_documents(sources)
    assert str(caught.value) == message
    assert "\n" not in message


def test_an_empty_folder():
    Path("in").mkdir()
    with pytest.raises(InputError, match=rf"^in: no documents in this folder; {SUPPORTED}$"):
        read_documents("in")


def test_a_missing_text_column_is_named():
    write({"a.jsonl": '{"text": "ant"}'})
    with pytest.raises(InputError, match=r"^a.jsonl:1: field 'body' is missing$"):
        read_documents("a.jsonl", "body")


# -- long documents ----------------------------------------------------------------------------------------------------


def words(text: str) -> int:
    return len(text.split())


def texts(documents: list[Document]) -> list[str]:
    return [document.text for document in documents]


def split(text: str, limit: int, length=words) -> list[str]:
    return texts(split_long([Document("x", text)], length, limit, "split")[0])


def test_split_packs_whole_sentences_and_says_so():
    documents = [
        Document("short", "Ants dig."),
        Document("x", "Ants dig here. Bees hum. Do cats nap? Dogs bark at night!", None, {"page": 1}),
    ]
    assert split_long(documents, words, 5, "split") == (
        [
            documents[0],
            Document("x#1", "Ants dig here. Bees hum.", None, {"page": 1}),
            Document("x#2", "Do cats nap?", None, {"page": 1}),
            Document("x#3", "Dogs bark at night!", None, {"page": 1}),
        ],
        ["document 'x': 12 tokens, split into 3 parts"],
    )


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("It cost 2.5 crowns. 3 men paid... and left.", ["It cost 2.5 crowns.", "3 men paid... and left."]),
        ('She said "Go." “Why?” he asked. (Nobody knew.) Then', ['She said "Go."', "“Why?” he asked.", "(Nobody knew.)", "Then"]),
        ("a heading\n\n- one item\n  another  \n", ["a heading", "- one item", "another"]),
        ("Élan grew. Été came, e.g. in Łódź. Ölpreise fell.", ["Élan grew.", "Été came, e.g. in Łódź.", "Ölpreise fell."]),
        ("蚂蚁挖土。蜜蜂飞舞！", ["蚂蚁挖土。", "蜜蜂飞舞！"]),
    ],
)
def test_sentence_ends(text, sentences):
    whole = [re.sub(r"\s+", " ", sentence) for sentence in sentences]
    # a length by which any two sentences together are too long
    assert split(text, 1, lambda part: 1 if re.sub(r"\s+", " ", part) in whole else 2) == sentences


def test_a_long_sentence_is_cut_at_words_and_its_rest_shares_a_part():
    assert split("One two three four five six seven. Eight nine. Ten.", 4) == ["One two three four", "five six seven.", "Eight nine. Ten."]
    assert split("One two three four five. Six seven. Eight.", 4) == ["One two three four", "five. Six seven. Eight."]


def test_a_long_word_is_cut_at_characters():
    assert split("ab cdefghij k", 3, len) == ["ab", "cde", "fgh", "ij", "k"]
    assert split("ab cdefghij k", 4, len) == ["ab", "cdef", "ghij", "k"]


def test_split_keeps_the_space_inside_a_part():
    assert split("  One\n\ttwo  three.\n\nFour five.  ", 3) == ["One\n\ttwo  three.", "Four five."]


def test_truncate_cuts_after_the_last_word_that_fits():
    documents = [Document("x", "word " * 1234, None, {"page": 1}), Document("y", "abcdef", None)]
    assert split_long(documents[:1], words, 3, "truncate") == (
        [Document("x", "word word word", None, {"page": 1})],
        ["document 'x': 1,234 tokens, truncated to 3"],
    )
    assert split_long([Document("x", "ab cd ef")], len, 7, "truncate")[1] == ["document 'x': 8 tokens, truncated to 5"]
    assert texts(split_long(documents[1:], len, 4, "truncate")[0]) == ["abcd"]


def test_truncate_cuts_a_pairs_response_and_counts_its_prompt():
    pair = Document("x", "four five six", "one two three")
    assert split_long([pair], words, 6, "error") == ([pair], [])
    assert split_long([pair], words, 5, "truncate") == (
        [Document("x", "four five", "one two three")],
        ["document 'x': 6 tokens, truncated to 5"],
    )


@pytest.mark.parametrize(
    ("document", "limit", "on_long", "message"),
    [
        (
            Document("x", "word " * 1234),
            1000,
            "error",
            "document 'x': 1,234 tokens, the limit is 1,000; --on_long split or truncate makes it fit",
        ),
        (
            Document("x", "a b c", "p"),
            3,
            "split",
            "document 'x': 4 tokens, the limit is 3; a prompt and its response can't be split, --on_long truncate cuts the response",
        ),
        (
            Document("x", "a b c", "p q r"),
            3,
            "truncate",
            "document 'x': 6 tokens, the limit is 3, in which not one character of its text fits",
        ),
        (Document("x", "a b"), 0, "split", "document 'x': 2 tokens, the limit is 0, in which not one character of its text fits"),
    ],
)
def test_refusals(document, limit, on_long, message):
    with pytest.raises(InputError) as caught:
        split_long([document], words, limit, on_long)
    assert str(caught.value) == message


def test_a_part_must_not_take_another_documents_id():
    with pytest.raises(InputError, match=r"^document 'x#1': a part of a split document needs this id; rename this document$"):
        split_long([Document("x#1", "Ants."), Document("x", "Ants dig. Bees hum.")], words, 2, "split")


COUNTERS = {
    "words": words,
    "characters": len,
    "two for each call": lambda text: len(re.findall(r"\w{1,3}|\S", text)) + 2,  # like a tokenizer that adds its own ends
    "shrinking": lambda text: len(text) - 2 * text.count("ab"),  # joined text may count less, like merges
}
PROSE = st.text(st.sampled_from("abAB.!?\"'1 \n\té。") | st.characters(exclude_categories=["Cs"]), max_size=120)


@settings(deadline=None, max_examples=300)
@given(text=PROSE, limit=st.integers(3, 40), counter=st.sampled_from(sorted(COUNTERS)))
def test_split_and_truncate_fit_and_lose_nothing_but_space(text, limit, counter):
    length = COUNTERS[counter]
    documents = [Document("x", text)]
    parts, notes = split_long(documents, length, limit, "split")
    if length(text) <= limit:
        assert (parts, notes) == (documents, [])
        return
    assert "".join("".join(texts(parts)).split()) == "".join(text.split())
    assert all(length(part.text) <= limit and part.text == part.text.strip() for part in parts)
    assert [part.id for part in parts] == [f"x#{number}" for number in range(1, len(parts) + 1)]
    if parts:
        (cut,), _ = split_long(documents, length, limit, "truncate")
        assert length(cut.text) <= limit
        assert text.lstrip().startswith(cut.text)


def test_few_calls_of_length():
    calls = []

    def length(text):
        calls.append(len(text))
        return words(text)

    sentence = "One two three four five six seven eight nine ten. "
    assert texts(split_long([Document("x", sentence * 200)], length, 100, "split")[0]) == [(sentence * 10).strip()] * 20
    # once the whole; for each part 1, 2, 4, 8, 16, 12, 10, 11 sentences; for the last, which has no more than ten, 1, 2, 4, 8, 9, 10
    assert len(calls) == 1 + 19 * 8 + 6
    assert sorted(calls)[-2] <= 16 * len(sentence)


def test_an_id_is_looked_for_only_where_its_digest_was_met(monkeypatch):
    """Two ids of one digest, which chance brings once in 2^64, are no fault: the documents before are read again, and it is not there."""
    write({"a.jsonl": "".join(f'{{"id": "{i}", "text": "ant"}}\n' for i in range(5))})
    monkeypatch.setattr(Digests, "add", lambda self, text: False)
    assert [document.id for document in read_documents("a.jsonl")] == ["0", "1", "2", "3", "4"]
    write({"b.jsonl": '{"id": "9", "text": "bee"}\n{"id": "3", "text": "bee"}\n'})
    with pytest.raises(InputError, match=r"^b.jsonl:2: id '3' is used twice, first in a.jsonl:4$"):
        read_documents(["a.jsonl", "b.jsonl"])
