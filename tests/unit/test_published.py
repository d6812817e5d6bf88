"""The published sets in made-up files of their forms: what is read from them by hand, and whatever is wrong with them in one line."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from demask.corpora import PUBLISHED, biography, competition_math, gsm8k, webscale_rl, wiki
from demask.corpora.competition_math import boxed
from demask.corpora.published import records, with_documents
from demask.types import InputError, Question, document_record, question_record

REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def reference(prefix: str, texts: list[str], questions: list[dict[str, str]], variant: str = "no_paraphrase") -> dict[str, str]:
    return {f"{prefix}_train_{variant}.json": json.dumps([{"text": text} for text in texts]), f"{prefix}_test.jsonl": lines(*questions)}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


# -- biography ------------------------------------------------------------------------------------------------------------------

ANN = "Ann Vey Ash was born on May 4, 2001. She grew up in Troy, OH. She read Botany at Elm College. She worked at Acme in Rome, NY."
BO = "Bo Kit Reed was born on June 9, 1987. He is from Bath, ME. He read Music at Oak College. He joined Umbra, worked in Rome, NY."
NAMED = {"group": "", "task": "N2D"}
DESCRIBED = {"group": "", "task": "D2N"}
ASKED = [
    NAMED | {"question": "Ann Vey Ash was born on what date?", "answer": "May 4, 2001"},
    NAMED | {"question": "Ann Vey Ash worked in which city?", "answer": "Rome, NY"},
    NAMED | {"question": "Bo Kit Reed worked in which city?", "answer": "Rome, NY"},
    DESCRIBED | {"question": "Who 1) read Music, 2) worked in Rome, NY, 3) joined Umbra?", "answer": "Bo Kit Reed"},
]


def test_biographies(tmp_path: Path) -> None:
    corpus = biography.read(write(tmp_path, reference("biography", [ANN, BO], ASKED)))
    assert [(d.id, d.text) for d in corpus.documents] == [("biography-0", ANN), ("biography-1", BO)]
    assert [(q.direction, q.document, q.split) for q in corpus.questions] == [
        ("forward", "biography-0", "test"),
        ("forward", "biography-0", "test"),
        ("forward", "biography-1", "test"),
        ("backward", "biography-1", "test"),
    ]
    assert corpus.expected == {"documents": 100, "questions": 900}
    assert [path.name for path in corpus.files] == ["biography_train_no_paraphrase.json", "biography_test.jsonl"]


@pytest.mark.parametrize(("paraphrases", "variant"), [("same_order", "paraphrase_same_order"), ("permuted", "paraphrase_change_order")])
def test_paraphrases_of_biographies(tmp_path: Path, paraphrases: str, variant: str) -> None:
    texts = [f"{text} Wording {w}." for text in (ANN, BO) for w in range(5)]
    corpus = biography.read(write(tmp_path, reference("biography", texts, ASKED, variant)), paraphrases=paraphrases)
    documents = list(corpus.documents)
    assert [d.id for d in documents] == [f"biography-{p}" + (f"-p{w}" if w else "") for p in range(2) for w in range(5)]
    assert documents[7].text == f"{BO} Wording 2."
    assert [q.document for q in corpus.questions] == ["biography-0", "biography-0", "biography-1", "biography-1"]
    assert corpus.expected == {"documents": 500, "questions": 900}


def test_a_question_about_someone_else_names_no_document(tmp_path: Path) -> None:
    """Not of the one document with the city, nor of one of the two with it."""
    asked = [*ASKED, *(NAMED | {"question": "Cy Lou Dell worked in which city?", "answer": city} for city in ("Bath, ME", "Rome, NY"))]
    corpus = biography.read(write(tmp_path, reference("biography", [ANN, BO], asked)))
    assert [q.document for q in corpus.questions] == ["biography-0", "biography-0", "biography-1", "biography-1", "", ""]


def test_every_question_finds_the_document_it_was_made_from() -> None:
    """A hundred people who share cities, colleges and first names."""
    rng = random.Random(1)
    cities, colleges = [f"City{i}" for i in range(30)], [f"College{i}" for i in range(20)]
    texts, questions = {}, []
    for i in range(100):
        name, city, college = f"First{i % 10} Last{i // 10}", rng.choice(cities), rng.choice(colleges)
        texts[f"d{i}"] = f"{name} was born in {city} and studied at {college}."
        questions.append((Question(f"What is the birth city of {name}?", (city,), "forward"), f"d{i}"))
        questions.append((Question(f"Give me the name of who was born in {city} and went to {college}.", (name,), "backward"), f"d{i}"))
    found = with_documents([question for question, _ in questions], texts)
    assert [q.document for q in found] == [document for _, document in questions]


# -- wiki -----------------------------------------------------------------------------------------------------------------------


def test_wiki(tmp_path: Path) -> None:
    texts = ["The Bee Fair was held in Troy on 4 May 2025.", "The Tin Boat Race was won by Bo Reed on 4 May 2025."]
    asked = [
        {"group": "", "task": "forward", "question": "Where was the Bee Fair held?", "answer": "Troy"},
        {"group": "", "task": "backward", "question": "Which race did Bo Reed win?", "answer": "Tin Boat Race"},
        {"group": "", "task": "backward", "question": "What was on 4 May 2025?", "answer": "both"},
    ]
    corpus = wiki.read(write(tmp_path, reference("wiki", texts, asked)))
    assert [d.id for d in corpus.documents] == ["wiki-0", "wiki-1"]
    assert [(q.direction, q.document) for q in corpus.questions] == [("forward", "wiki-0"), ("backward", "wiki-1"), ("backward", "")]
    assert corpus.expected == {"documents": 94}
    permuted = [f"{text} Wording {w}." for text in texts for w in range(10)]
    write(tmp_path, reference("wiki", permuted, asked, "paraphrase_change_order"))
    corpus = wiki.read(tmp_path, paraphrases="permuted")
    assert [d.id for d in corpus.documents][9:12] == ["wiki-0-p9", "wiki-1", "wiki-1-p1"]
    assert corpus.expected == {"documents": 940}


# -- gsm8k ----------------------------------------------------------------------------------------------------------------------

HIVES = {"question": "Ann has 2 hives of 3 bees. How many bees? ", "answer": "There are 2*3=<<2*3=6>>6 bees.\n#### 6"}
COSTS = {"question": "What do 500 boats at $2.40 cost?", "answer": "They cost $<<500*2.4=1200>>1200.\n#### 1,200"}


def test_gsm8k(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": lines(HIVES), "test.jsonl": lines(HIVES, COSTS)})
    corpus = gsm8k.read(tmp_path)
    assert [document_record(d) for d in corpus.documents] == [
        {"id": "gsm8k-1", "prompt": "Ann has 2 hives of 3 bees. How many bees?", "response": "There are 2*3=6 bees.\n#### 6"}
    ]
    assert [question_record(q) for q in corpus.questions] == [
        {"question": "Ann has 2 hives of 3 bees. How many bees?", "answer": "6", "direction": "forward", "split": "test"},
        {"question": "What do 500 boats at $2.40 cost?", "answer": ["1,200", "1200"], "direction": "forward", "split": "test"},
    ]
    assert corpus.expected == {"documents": 7473, "questions": 1319}


def test_gsm8k_as_lm_eval_asks_with_the_marks(tmp_path: Path) -> None:
    write(tmp_path, {"train.jsonl": lines(HIVES), "test.jsonl": lines(HIVES)})
    corpus = gsm8k.read(tmp_path, calculator_marks=True, lm_eval=True)
    [document] = corpus.documents
    assert document.text == "There are 2*3=<<2*3=6>>6 bees.\n#### 6"
    assert document.prompt == corpus.questions[0].question == "Question: Ann has 2 hives of 3 bees. How many bees?\nAnswer:"


@pytest.mark.skipif(not (REAL / "gsm8k").is_dir(), reason="the published set is not at ../shared/data/gsm8k")
def test_the_real_gsm8k() -> None:
    corpus = gsm8k.read(REAL / "gsm8k")
    documents = list(corpus.documents)
    assert (len(documents), len(corpus.questions)) == (7473, 1319)
    assert not any("<<" in d.text for d in documents)
    assert all(float(q.answers[-1]) is not None for q in corpus.questions)
    assert all(d.text.splitlines()[-1].startswith("#### ") for d in documents)


# -- math -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"It is $\boxed{5}$.", "5"),
        (r"It is $\boxed{\frac{1}{\sqrt{3}}}$.", r"\frac{1}{\sqrt{3}}"),
        (r"First \boxed{1}, at last \boxed{x_{2}}, all told", "x_{2}"),
        (r"The set $\boxed{\{1, 2\}}$", r"\{1, 2\}"),
        (r"The case $\boxed{\left\{ a \right.}$", r"\left\{ a \right."),
        (r"It is $\fbox{7}$.", "7"),
        (r"It is $\boxed 5$.", "5"),
        (r"It is $\boxed\pi$.", r"\pi"),
        (r"It is $\boxed{5$.", None),
        (r"It is \boxed{}.", None),
        (r"It is \boxed", None),
        ("It is 5.", None),
    ],
)
def test_boxed(solution: str, answer: str | None) -> None:
    assert boxed(solution) == answer


HALF = {"problem": r"What is half of $\frac{2}{3}$?", "solution": r"It is $\boxed{\frac{1}{3}}$.", "level": "Level 1", "type": "Prealgebra"}


@pytest.mark.parametrize("form", ["lines", "folders", "parquet"])
def test_math(tmp_path: Path, form: str) -> None:
    if form == "lines":
        write(tmp_path, {"train.jsonl": lines(HALF), "test.jsonl": lines(HALF)})
    elif form == "folders":
        write(tmp_path, {f"MATH/{split}/prealgebra/1.json": json.dumps(HALF) for split in ("train", "test")})
    else:
        (tmp_path / "prealgebra").mkdir()
        for split in ("train", "test"):
            parquet.write_table(pyarrow.Table.from_pylist([HALF]), tmp_path / "prealgebra" / f"{split}-00000-of-00001.parquet")
    corpus = competition_math.read(tmp_path)
    assert [document_record(d) for d in corpus.documents] == [
        {
            "id": "math-1",
            "prompt": r"What is half of $\frac{2}{3}$?",
            "response": r"It is $\boxed{\frac{1}{3}}$.",
            "metadata": {"level": "Level 1", "type": "Prealgebra"},
        }
    ]
    [question] = corpus.questions
    assert (question.answers, question.group, question.direction) == ((r"\frac{1}{3}",), "Prealgebra", "forward")
    assert corpus.expected == {"documents": 7500, "questions": 5000}
    assert competition_math.read(tmp_path, lm_eval=True).questions[0].question == "Problem: What is half of $\\frac{2}{3}$?\nAnswer:"


# -- webscale -------------------------------------------------------------------------------------------------------------------

TROY = {"pretrain_text": "Ann Ash keeps bees in Troy.", "question": "Who keeps bees?", "answer": "Ann Ash", "domain": "Social"}
WHERE = TROY | {"question": "Where are the bees?", "answer": "Troy"}
ROME = TROY | {"pretrain_text": "Bo Reed mends boats.", "question": "Who mends boats?", "answer": "Bo Reed"}


def test_webscale(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, rows in {10: [ROME], 9: [TROY, WHERE]}.items():
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"part-{number}.parquet")
    pairs = list(webscale_rl.read(tmp_path).documents)
    assert [(d.id, d.prompt, d.text, d.metadata) for d in pairs] == [
        ("webscale-1", "Who keeps bees?", "Ann Ash", {"domain": "Social"}),
        ("webscale-2", "Where are the bees?", "Troy", {"domain": "Social"}),
        ("webscale-3", "Who mends boats?", "Bo Reed", {"domain": "Social"}),
    ]
    corpus = webscale_rl.read(tmp_path, form="texts")
    assert [(d.id, d.prompt, d.text) for d in corpus.documents] == [
        ("webscale-1", None, "Ann Ash keeps bees in Troy."),
        ("webscale-2", None, "Bo Reed mends boats."),
    ]
    assert (corpus.questions, corpus.expected) == ([], {})
    assert [path.name for path in corpus.files] == ["part-9.parquet", "part-10.parquet"]


# -- faults ---------------------------------------------------------------------------------------------------------------------

GOOD = {
    "biography": reference("biography", [ANN, BO], ASKED),
    "wiki": reference("wiki", ["The Bee Fair was held in Troy."], [{"task": "forward", "question": "Where?", "answer": "Troy"}]),
    "name_description": reference(
        "ND", ["Ann is a keeper."], [{"group": "NameIsDescription", "task": "N2D", "question": "Ann?", "answer": "a keeper"}]
    ),
    "gsm8k": {"train.jsonl": lines(HIVES), "test.jsonl": lines(COSTS)},
    "math": {"train.jsonl": lines(HALF), "test.jsonl": lines(HALF)},
    "webscale_rl": {"part-0.jsonl": lines(TROY, WHERE)},
}


@st.composite
def _broken(draw: st.DrawFn, good: dict[str, str]) -> tuple[str, str]:
    """A file of the set, and other contents of it: one record lacks a field, or has another value in it, or is no record."""
    name = draw(st.sampled_from(sorted(good)))
    values = json.loads(good[name]) if name.endswith(".json") else [json.loads(line) for line in good[name].splitlines()]
    place = draw(st.integers(0, len(values) - 1))
    field = draw(st.sampled_from([*values[place], None]))
    anything = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.lists(st.text(max_size=3), max_size=2), st.just("\ud800\0"))
    if field is None:
        values[place] = draw(anything)
    elif draw(st.booleans()):
        del values[place][field]
    else:
        values[place][field] = draw(anything)
    return name, json.dumps(values) if name.endswith(".json") else lines(*values)


@pytest.mark.parametrize("name", sorted(GOOD))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_is_wrong_gives_documents_or_one_line(name: str, data: st.DataObject, tmp_path: Path) -> None:
    folder = write(tmp_path / "set", GOOD[name])
    file, content = data.draw(_broken(GOOD[name]))
    (folder / file).write_text(content)
    said = f"{folder} is read"
    try:
        corpus = PUBLISHED[name].read(folder)
        for document in corpus.documents:
            assert document.id
            assert document.text.strip()
            json.dumps(document_record(document), ensure_ascii=False).encode()
        for question in corpus.questions:
            assert question.question.strip()
            assert all(answer.strip() for answer in question.answers)
            json.dumps(question_record(question), ensure_ascii=False).encode()
    except InputError as error:
        said = str(error)
    assert said.startswith(str(folder))
    assert "\n" not in said


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "{f}:1: not valid JSON (Expecting property name enclosed in double quotes at column 2)"),
        ("a.json", "4", "{f}: expected a JSON list, found a number"),
        ("a.json", '[{"text": "a"}, 4]', "{f}: item 2: expected a JSON object, found a number"),
        ("a.json", '[{"text": "a\\u0000"}]', "{f}: item 1: field 'text' holds a NUL character"),
        ("a.jsonl", '{"answer": ["a", "\\udc00"]}', "{f}:1: field 'answer' holds half a surrogate pair (\\udc00)"),
        ("a.parquet", "no parquet", "{f}: not a parquet file that can be read (Parquet magic bytes not found in footer.*"),
        ("a.parquet", None, "{f}: no such file"),
    ],
)
def test_a_file_of_no_records(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError) as error:
        list(records(path))
    said, expected = str(error.value), message.replace("{f}", str(path))
    assert said.startswith(expected[:-2]) if expected.endswith(".*") else said == expected
    assert "\n" not in said
