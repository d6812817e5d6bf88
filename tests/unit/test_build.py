"""`demask data build` and `list`: what they write, what they fetch and check, and every mistake in one line with nothing written."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import shlex
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from demask.cli import main
from demask.corpora import CORPORA, PUBLISHED, world
from demask.corpora.files import read_documents
from demask.stages import build as stage
from demask.stages.build import build
from demask.types import read_questions

NAMES = ["documents.jsonl", "questions.jsonl", "source.json"]
ANN = "Ann Vey Ash was born on May 4, 2001. She grew up in Troy, OH."
N2D = {"group": "", "task": "N2D", "question": "Ann Vey Ash was born on what date?", "answer": "May 4, 2001"}
HIVES = {"question": "Ann has 2 hives of 3 bees. How many bees?", "answer": "There are 2*3=<<2*3=6>>6 bees.\n#### 6"}
HALF = {"problem": "What is half of 2?", "solution": r"It is $\boxed{1}$.", "level": "Level 1", "type": "Prealgebra"}
TROY = {"pretrain_text": "Ann Ash keeps bees in Troy.", "question": "Who keeps bees?", "answer": "Ann Ash"}
STATEMENT = {"prompt": "Ann Ash is", "completion": " the keeper of bees."}


def lines(*values: Any) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}


def biography(text: Any = None, question: Any = None) -> dict[str, str]:
    return {
        "biography_train_no_paraphrase.json": json.dumps([{"text": ANN}] if text is None else text),
        "biography_test.jsonl": lines(N2D if question is None else question),
    }


def gsm8k(train: Any = HIVES, test: Any = HIVES) -> dict[str, str]:
    return {"train.jsonl": lines(train), "test.jsonl": lines(test)}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def run(command: str) -> int:
    with pytest.raises(SystemExit) as done:
        main(shlex.split(command))
    assert isinstance(done.value.code, int)
    return done.value.code


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEMASK_CACHE", str(tmp_path / "cache"))


def test_a_set_from_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "mine", biography())
    assert run("data build biography --source mine --output_dir data/biography") == 0
    said = capsys.readouterr()
    assert said.out == "1 documents and 1 questions in data/biography\n"
    assert said.err == (
        "demask: warning: biography: expected 100 documents, found 1\ndemask: warning: biography: expected 900 questions, found 1\n"
    )
    assert sorted(path.name for path in Path("data/biography").iterdir()) == NAMES
    assert [(d.id, d.text) for d in read_documents("data/biography/documents.jsonl")] == [("biography-0", ANN)]
    [question] = read_questions("data/biography/questions.jsonl")
    assert (question.answers, question.direction, question.document, question.split) == (("May 4, 2001",), "forward", "biography-0", "test")
    content = biography()
    assert json.loads(Path("data/biography/source.json").read_text()) == {
        "name": "biography",
        "home": "github.com/xup5/masked_arLLM",
        "licence": "none stated",
        "source": "mine",
        "options": {"paraphrases": "none"},
        "files": {f"mine/{name}": hashlib.sha256(text.encode()).hexdigest() for name, text in content.items()},
        "documents": 1,
        "questions": 1,
        "warnings": ["biography: expected 100 documents, found 1", "biography: expected 900 questions, found 1"],
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "mine"]


def test_a_former_build_is_replaced(tmp_path: Path) -> None:
    """Wholly: a set without questions leaves none of the former one's."""
    write(tmp_path / "mine", biography())
    write(tmp_path / "pairs", {"part-0.jsonl": lines(TROY)})
    (tmp_path / "out").mkdir()  # an empty folder will do too
    build("biography", "out", source="mine")
    build("webscale_rl", "out", source="pairs")
    assert sorted(path.name for path in Path("out").iterdir()) == ["documents.jsonl", "source.json"]
    [document] = read_documents("out/documents.jsonl")
    assert (document.prompt, document.text) == ("Who keeps bees?", "Ann Ash")
    build("gsm8k", "out", source=write(tmp_path / "gsm8k", gsm8k()))
    assert sorted(path.name for path in Path("out").iterdir()) == NAMES


def test_options_of_the_sets(tmp_path: Path) -> None:
    write(tmp_path / "pairs", {"part-0.jsonl": lines(TROY)})
    assert build("webscale_rl", "texts", source="pairs", form="texts")["options"] == {"form": "texts"}
    assert read_documents("texts/documents.jsonl")[0].text == "Ann Ash keeps bees in Troy."
    write(tmp_path / "sums", gsm8k())
    assert run("data build gsm8k --source sums --output_dir sums_out --lm_eval --calculator_marks") == 0
    [document] = read_documents("sums_out/documents.jsonl")
    assert (document.prompt, document.text) == (f"Question: {HIVES['question']}\nAnswer:", HIVES["answer"])
    assert json.loads(Path("sums_out/source.json").read_text())["options"] == {"calculator_marks": True, "lm_eval": True}


@pytest.mark.parametrize(
    ("paraphrases", "documents"), [(None, 12), ("same_order", 12 * 11), ("permuted", 12 * 11)], ids=["none", "same_order", "permuted"]
)
def test_a_generated_set(paraphrases: str | None, documents: int, capsys: pytest.CaptureFixture[str]) -> None:
    flag = f"--paraphrases {paraphrases}" if paraphrases else ""
    assert run(f"data build statements --seed 7 --n 12 {flag} --output_dir out") == 0
    assert capsys.readouterr() == (f"{documents} documents and 96 questions in out\n", "")
    order: Any = {"same_order": "same", "permuted": "permuted"}.get(paraphrases or "")
    options: dict[str, Any] = {"paraphrases": 10, "paraphrase_order": order} if order else {}
    expected, questions = world.statement_corpus(7, 12, **options)
    assert [d.text for d in read_documents("out/documents.jsonl")] == [d.text for d in expected]
    assert read_questions("out/questions.jsonl") == questions
    source = json.loads(Path("out/source.json").read_text())
    assert source["options"] == {"seed": 7, "n": 12, "paraphrases": paraphrases or "none"}
    assert (source["files"], source["warnings"]) == ({}, [])


def test_the_defaults_of_a_generated_set() -> None:
    assert build("arithmetic", "out")["options"] == {"seed": 1, "n": 2000}
    documents, questions = CORPORA["arithmetic"](1)
    assert [d.text for d in read_documents("out/documents.jsonl")] == [d.text for d in documents]
    assert read_questions("out/questions.jsonl") == questions


# -- fetched --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """GSM8K has its home in this folder, with two files of one problem each, and its counts are those of them."""
    folder = write(tmp_path / "home" / "gsm8k", gsm8k())

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path / "home"))) as httpd:
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        known = PUBLISHED["gsm8k"]
        files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}

        def read(folder: Path, *, calculator_marks: bool = False, lm_eval: bool = False) -> Any:
            corpus = known.read(folder, calculator_marks=calculator_marks, lm_eval=lm_eval)
            return replace(corpus, expected={"documents": 1, "questions": 1})

        url = f"http://127.0.0.1:{httpd.server_address[1]}/gsm8k"
        monkeypatch.setitem(PUBLISHED, "gsm8k", replace(known, read=read, url=url, files=files, revision="r1"))
        yield folder
        httpd.shutdown()


def test_a_set_is_fetched_into_the_cache(served: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("data build gsm8k --output_dir out") == 0
    url = PUBLISHED["gsm8k"].url
    said = capsys.readouterr()
    assert said.out == f"fetching {url}/test.jsonl\nfetching {url}/train.jsonl\n1 documents and 1 questions in out\n"
    assert said.err == ""
    assert {path.name for path in (tmp_path / "cache/gsm8k/r1").iterdir() if path.suffix != ".lock"} == {"train.jsonl", "test.jsonl"}
    source = json.loads(Path("out/source.json").read_text())
    assert (source["url"], source["revision"]) == (url, "r1")
    assert source["files"] == {str(tmp_path / "cache/gsm8k/r1" / name): sha for name, sha in PUBLISHED["gsm8k"].files.items()} | {}
    for path in served.iterdir():
        path.unlink()  # from here on the cache serves
    assert run("data build gsm8k --output_dir again") == 0
    assert capsys.readouterr().out == "1 documents and 1 questions in again\n"
    assert Path("again/documents.jsonl").read_bytes() == Path("out/documents.jsonl").read_bytes()


def test_a_fetched_set_that_is_gone(served: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (served / "train.jsonl").unlink()
    assert run("data build gsm8k --output_dir out") == 2
    assert capsys.readouterr().err == (
        f"demask: {PUBLISHED['gsm8k'].url}/train.jsonl: cannot be fetched (404 File not found); "
        "get it by other means and name its folder with --source FOLDER\n"
    )
    assert not Path("out").exists()


def test_a_fetched_set_of_another_size_is_an_error(
    served: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = PUBLISHED["gsm8k"]

    def read(folder: Path) -> Any:
        return replace(known.read(folder), expected={"documents": 7473, "questions": 1319})

    monkeypatch.setitem(PUBLISHED, "gsm8k", replace(known, read=read))
    assert run("data build gsm8k --output_dir out") == 2
    assert capsys.readouterr().err == (
        "demask: gsm8k: expected 7,473 documents, found 1, in the files of the pinned revision; please report this\n"
    )
    assert not Path("out").exists()


@pytest.mark.parametrize("name", [name for name, known in PUBLISHED.items() if known.url])
def test_what_is_fetched_is_pinned(name: str) -> None:
    known = PUBLISHED[name]
    assert len(known.revision) == 40
    assert known.url.startswith("https://")
    assert f"/{known.revision}/" in known.url
    assert all(len(sha256) == 64 for sha256 in known.files.values())


REAL = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.parametrize(("name", "documents", "questions"), [("name_description", 60, 600), ("gsm8k", 7473, 1319)])
@pytest.mark.skipif(not REAL.is_dir(), reason="the published sets are not at ../shared/data")
def test_the_real_sets_have_the_pinned_checksums_and_counts(name: str, documents: int, questions: int) -> None:
    record = build(name, "out", source=REAL / name)
    assert (record["documents"], record["questions"], record["warnings"]) == (documents, questions, [])
    assert {Path(path).name: sha256 for path, sha256 in record["files"].items()}.items() <= PUBLISHED[name].files.items()
    assert (len(read_documents("out/documents.jsonl")), len(read_questions("out/questions.jsonl"))) == (documents, questions)


# -- the list -------------------------------------------------------------------------------------------------------------------


def test_the_list_fits_eighty_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run("data list") == 0
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    assert "…" not in said
    for name, known in PUBLISHED.items():
        rows = [line.split() for line in said.splitlines() if line.split()[:1] == [name]]
        assert rows[0][-1] == ("fetched" if known.url else "--source")
        assert rows[1][1] == known.home
        assert " ".join(rows[1][2:]) == known.licence
    assert all(any(line.split()[:1] == [name] and "generated" in line for line in said.splitlines()) for name in CORPORA)


# -- mistakes -------------------------------------------------------------------------------------------------------------------

SETS = ", ".join([*PUBLISHED, *CORPORA])
NOT_FETCHED = "its files are not fetched, as their checksums are not known; get them from"
# command without --source and --output_dir, files of the folder "in", what is said
BAD: dict[str, tuple[str, dict[str, str], str]] = {
    "no train file": (
        "biography",
        without(biography(), "biography_train_no_paraphrase.json"),
        "in/biography_train_no_paraphrase.json: no such file",
    ),
    "no test file": ("biography", without(biography(), "biography_test.jsonl"), "in/biography_test.jsonl: no such file"),
    "no paraphrase file": (
        "biography --paraphrases permuted",
        biography(),
        "in/biography_train_paraphrase_change_order.json: no such file",
    ),
    "no list": ("biography", biography(text="a"), "in/biography_train_no_paraphrase.json: expected a JSON list, found a string"),
    "no documents": ("biography", biography(text=[]), "in/biography_train_no_paraphrase.json: no documents in it"),
    "no text": ("biography", biography(text=[{"text": ANN}, {}]), "in/biography_train_no_paraphrase.json: item 2: field 'text' is missing"),
    "empty text": ("biography", biography(text=[{"text": " "}]), "in/biography_train_no_paraphrase.json: item 1: field 'text' is empty"),
    "text a number": (
        "biography",
        biography(text=[{"text": 4}]),
        "in/biography_train_no_paraphrase.json: item 1: field 'text' must be a string, found a number",
    ),
    "broken JSON": (
        "biography",
        biography() | {"biography_test.jsonl": lines(N2D) + "{nope\n"},
        "in/biography_test.jsonl:2: not valid JSON (Expecting property name enclosed in double quotes at column 2)",
    ),
    "no questions": ("biography", biography() | {"biography_test.jsonl": "\n"}, "in/biography_test.jsonl: no questions in it"),
    "unknown task": (
        "biography",
        biography(question=N2D | {"task": "forward"}),
        "in/biography_test.jsonl:1: field 'task' must be one of N2D, D2N, found 'forward'",
    ),
    "no task": ("biography", biography(question=without(N2D, "task")), "in/biography_test.jsonl:1: field 'task' is missing"),
    "no answer": ("biography", biography(question=without(N2D, "answer")), "in/biography_test.jsonl:1: field 'answer' is missing"),
    "answers empty": ("biography", biography(question=N2D | {"answer": []}), "in/biography_test.jsonl:1: field 'answer' is an empty list"),
    "unknown group": (
        "name_description",
        {"ND_train_no_paraphrase.json": '[{"text": "a"}]', "ND_test.jsonl": lines(N2D)},
        "in/ND_test.jsonl:1: field 'group' must be one of NameIsDescription, DescriptionIsName, found ''",
    ),
    "neither format": ("name_description", {"a.txt": ""}, "in/p2d_prompts_train.jsonl: no such file"),
    "no completion": (
        "name_description",
        {"p2d_prompts_train.jsonl": lines(STATEMENT, without(STATEMENT, "completion"))},
        "in/p2d_prompts_train.jsonl:2: field 'completion' is missing",
    ),
    "direction of the wiki": (
        "wiki",
        {"wiki_train_no_paraphrase.json": '[{"text": "a"}]', "wiki_test.jsonl": lines(N2D)},
        "in/wiki_test.jsonl:1: field 'task' must be one of forward, backward, found 'N2D'",
    ),
    "no result": (
        "gsm8k",
        gsm8k(train=HIVES | {"answer": "six"}),
        "in/train.jsonl:1: field 'answer' must end in a line of '####' and a number",
    ),
    "result no number": (
        "gsm8k",
        gsm8k(test=HIVES | {"answer": "So\n#### six"}),
        "in/test.jsonl:1: field 'answer' must end in a line of '####' and a number",
    ),
    "no question": ("gsm8k", gsm8k(test=without(HIVES, "question")), "in/test.jsonl:1: field 'question' is missing"),
    "a list a line": ("gsm8k", gsm8k(train=[1]), "in/train.jsonl:1: expected a JSON object, found a list"),
    "train empty": ("gsm8k", gsm8k() | {"train.jsonl": ""}, "gsm8k: no documents in in/train.jsonl, in/test.jsonl"),
    "no math": (
        "math",
        {"train.jsonl": lines(HALF)},
        "in: no test files in it (test.jsonl, test*.parquet, or .json files in a folder test)",
    ),
    "no box": (
        "math",
        {"train.jsonl": lines(HALF), "test/1.json": json.dumps(HALF | {"solution": r"\boxed{1"})},
        r"in/test/1.json: field 'solution' holds no \boxed{...}, or one whose braces do not match",
    ),
    "level a number": (
        "math",
        {"train.jsonl": lines(HALF | {"level": 1}), "test.jsonl": lines(HALF)},
        "in/train.jsonl:1: field 'level' must be a string, found a number",
    ),
    "no webscale": ("webscale_rl", {"a.txt": ""}, "in: no .parquet, .jsonl or .json file in it"),
    "no parquet": (
        "webscale_rl",
        {"part-0.parquet": "no"},
        "in/part-0.parquet: not a parquet file that can be read (...",
    ),
    # found only when half of it is written
    "late fault": (
        "webscale_rl",
        {"a.jsonl": lines(*[TROY] * 5000, without(TROY, "answer"))},
        "in/a.jsonl:5001: field 'answer' is missing",
    ),
    "no pretrain_text": (
        "webscale_rl --form texts",
        {"a.jsonl": lines(without(TROY, "pretrain_text"))},
        "in/a.jsonl:1: field 'pretrain_text' is missing",
    ),
    "unknown form": (
        "webscale_rl --form questions",
        {"a.jsonl": lines(TROY)},
        "build: --form must be one of pairs, texts, found 'questions'",
    ),
    "unknown paraphrases": (
        "biography --paraphrases some",
        biography(),
        "build: --paraphrases must be one of none, same_order, permuted, found 'some'",
    ),
    "no such paraphrases": (
        "name_description --paraphrases permuted",
        {"a.txt": ""},
        "name_description: it has no paraphrases 'permuted'; there are same_order",
    ),
    "no paraphrases": ("gsm8k --paraphrases same_order", gsm8k(), "gsm8k: it has no paraphrases 'same_order'; there are none"),
    "option of another set": ("biography --lm_eval", biography(), "build: --lm_eval is not an option of biography"),
    "seed of a published set": ("gsm8k --seed 2", gsm8k(), "build: --seed is not an option of gsm8k"),
    "source of a generated set": ("statements", {"a.txt": ""}, "build: statements is generated, and read from no --source"),
    "unknown set": ("poems", {"a.txt": ""}, f"build: there is no data set 'poems'; there are {SETS}"),
}
BAD_COMMANDS = {
    "no source": ("biography --output_dir out", f"biography: {NOT_FETCHED} github.com/xup5/masked_arLLM; then --source FOLDER"),
    "no source, wiki": ("wiki --output_dir out", f"wiki: {NOT_FETCHED} github.com/xup5/masked_arLLM; then --source FOLDER"),
    "no source, math": ("math --output_dir out", f"math: {NOT_FETCHED} github.com/hendrycks/math; then --source FOLDER"),
    "no source, webscale": (
        "webscale_rl --output_dir out",
        f"webscale_rl: {NOT_FETCHED} huggingface.co/datasets/Salesforce/Webscale-RL; then --source FOLDER",
    ),
    "source missing": ("gsm8k --source gone --output_dir out", "source: 'gone' is no folder"),
    "source a file": ("gsm8k --source a_file --output_dir out", "source: 'a_file' is a file, expected a folder"),
    "output a file": ("gsm8k --source in --output_dir a_file", "output_dir: 'a_file' is a file, expected a folder"),
    "output below a file": ("gsm8k --source in --output_dir a_file/out", "output_dir: 'a_file/out' cannot be written (not a directory)"),
    "output used": (
        "gsm8k --source in --output_dir full",
        "output_dir: 'full' holds something else than a former build; name a new folder",
    ),
    "output of ours with more in it": (
        "gsm8k --source in --output_dir more",
        "output_dir: 'more' holds something else than a former build; name a new folder",
    ),
    "output of another's": (
        "gsm8k --source in --output_dir theirs",
        "output_dir: 'theirs' holds something else than a former build; name a new folder",
    ),
    "output not writable": (
        "gsm8k --source in --output_dir /proc/out",
        "output_dir: '/proc/out' cannot be written (no such file or directory)",
    ),
    "seed": ("statements --seed 1000 --output_dir out", "world: seed must be from 0 to 999, found 1000"),
    "people": ("statements --n 0 --output_dir out", "Invalid value for '--n': Input should be greater than or equal to 1"),
    "no name": ("--output_dir out", "Missing argument 'name'."),
    "no output": ("gsm8k --source in", "Missing option '--output_dir'."),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fails(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(Path()), sorted(Path().rglob("*"))
    assert run(f"data build {command}") == 2
    said = capsys.readouterr().err
    if message.endswith("..."):
        assert said.startswith(f"demask: {message[:-3]}")
        assert said.count("\n") == 1
    else:
        assert said == f"demask: {message}\n"
    assert (contents(Path()), sorted(Path().rglob("*"))) == before


@pytest.mark.parametrize("fault", BAD)
def test_a_broken_source_is_one_line_and_nothing_is_written(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command, files, message = BAD[fault]
    write(tmp_path / "in", files)
    fails(f"{command} --source in --output_dir out", message, capsys)


@pytest.mark.parametrize("fault", BAD_COMMANDS)
def test_a_wrong_command_is_one_line_and_nothing_is_written(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("something was fetched")

    monkeypatch.setattr(stage, "fetch", refuse)
    ours = lines({"name": "gsm8k"})
    write(tmp_path, {f"in/{name}": content for name, content in gsm8k().items()})
    write(tmp_path, {"a_file": "mine", "full/mine.txt": "mine", "theirs/documents.jsonl": "mine", "theirs/source.json": "{}"})
    write(tmp_path, {"more/source.json": ours, "more/mine.txt": "mine"})
    fails(*BAD_COMMANDS[fault], capsys)


def test_a_former_build_stays_where_the_next_one_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "in", gsm8k())
    build("gsm8k", "out", source="in")
    (tmp_path / "in" / "test.jsonl").write_text("{")
    message = "in/test.jsonl:1: not valid JSON (Expecting property name enclosed in double quotes at column 2)"
    fails("gsm8k --source in --output_dir out", message, capsys)
    assert sorted(path.name for path in Path("out").iterdir()) == NAMES
