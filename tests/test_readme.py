"""The README's commands and code run as they stand there, and its links lead somewhere."""

import json
import re
import shlex
from collections.abc import Callable
from html import unescape
from pathlib import Path

import pytest

from demask.cli import main
from demask.settings import parse_train
from demask.types import Document, parse_question, read_questions
from demask.writing.cloze import cloze_questions
from demask.writing.facts import facts
from tests.endpoint import document_of, serving
from tests.mixed import SKIPPED, write_mixed

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (demask .*?[^\\])$", README, re.MULTILINE | re.DOTALL)


def command(name: str) -> list[str]:
    """The arguments of the README's command `name`, which are those of `main`."""
    [found] = [c for c in COMMANDS if c.startswith(f"demask {name} ")]
    return shlex.split(found.replace("\\\n", " "))[1:]


def run(argv: list[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(argv)


def test_every_command_is_tested_here() -> None:
    names = [" ".join(shlex.split(c)[1 : 3 if " data " in c else 2]) for c in COMMANDS]
    assert sorted(names) == ["data check", "data paraphrase", "data questions", "eval", "merge", "report", "train"]
    assert re.findall(r"^    make (\S+)", README, re.MULTILINE) == ["quickstart", "test"]


@pytest.fixture
def my_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Twenty files of six kinds, and the sentences in them that can be read."""
    monkeypatch.chdir(tmp_path)
    return write_mixed(Path("my_documents"))


def test_from_a_folder_of_documents_to_a_report(my_documents: list[str], capsys: pytest.CaptureFixture) -> None:
    run(command("data check"))
    checked = capsys.readouterr().out
    assert re.search(r"all +17 +30 ", checked)
    assert all(f"my_documents/{name}: " in checked for name in (*SKIPPED, "latin.txt"))

    train = command("train")
    model = train.index("--model_name_or_path")
    assert parse_train(train[1:])[0].model_name_or_path == train[model + 1]
    # No hub here: the embedded model stands in for the one named, for two steps.
    del train[model : model + 2]
    run([*train, "--max_steps", "2", "--disable_tqdm", "true", "--max_new_tokens", "8"])
    told = capsys.readouterr().out
    assert "my_documents/latin.txt: not UTF-8: read as cp1252" in told
    assert all(f"passed over: my_documents/{name}: " in told for name in SKIPPED)
    asked = read_questions("runs/mine/questions.jsonl")
    assert len({question.document for question in asked}) == len(my_documents)
    assert {question.direction for question in asked} == {"forward", "backward"}

    run(command("report"))
    run([*command("eval"), "--max_new_tokens", "8"])
    run(command("merge"))
    page = Path("runs/mine/report.html").read_text()
    assert next(question.question for question in asked if question.split == "test") in unescape(page)
    assert Path("runs/mine-merged/model.safetensors").is_file()
    assert Path("runs/mine/eval/answers.jsonl").is_file()


def pairs(messages: list[dict[str, str]]) -> str:
    """A model that writes what cloze_questions makes of the document: the pair of its first forward and its first backward question."""
    found = {q.direction: q for q in reversed(cloze_questions([Document("d", document_of(messages))]))}
    return json.dumps({"pairs": [{way: {"question": q.question, "answer": q.answers[0]} for way, q in found.items()}]})


def turned(messages: list[dict[str, str]]) -> str:
    """A model that moves the name to the other end of its sentence, in ten ways."""
    text = document_of(messages)
    name = facts(text)[0]
    rest = f"{text[: name.start]} {text[name.end :]}".strip(" .")
    first = name.start > len(text) / 2
    return json.dumps({"paraphrases": [f"{name.text} {mark} {rest}." if first else f"{rest} {mark} {name.text}." for mark in MARKS]})


MARKS = ("is", "was", "it is", "it was", "none but", "always", "ever", "just", "surely", "truly")


@pytest.mark.usefixtures("my_documents")
@pytest.mark.parametrize(("name", "reply"), [("data questions", pairs), ("data paraphrase", turned)])
def test_a_language_model_writes_questions_and_paraphrases(name: str, reply: Callable, capsys: pytest.CaptureFixture) -> None:
    with serving(reply) as endpoint:
        argv = command(name)
        argv[argv.index("--base_url") + 1] = endpoint.base_url
        run(argv)
    told = capsys.readouterr().out
    assert "to ask: 30 requests" in told
    if name == "data questions":
        assert len({q.document for q in read_questions("data/mine/questions.jsonl")}) == 30
    else:
        assert "documents.jsonl: 30 documents and 300 paraphrases" in told


@pytest.mark.usefixtures("my_documents")
def test_python(capsys: pytest.CaptureFixture) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace('output_dir="runs/mine"', 'output_dir="runs/mine", max_steps=2, disable_tqdm=True')
    exec(compile(code, "README.md", "exec"), {})
    assert "backward" in capsys.readouterr().out


def test_the_line_of_questions_is_one() -> None:
    [line] = re.findall(r'^    (\{"question".*\})$', README, re.MULTILINE)
    assert parse_question(json.loads(line), "README.md").answers == ("Ann Ash",)


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
