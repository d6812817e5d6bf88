"""The README's commands and code run as they stand there, and its links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest

from demask.settings import parse_train

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = re.findall(r"^    (demask .*?[^\\])$", README, re.MULTILINE | re.DOTALL)


def command(name: str) -> list[str]:
    [found] = [c for c in COMMANDS if c.startswith(f"demask {name}")]
    return shlex.split(found.replace("\\\n", " "))[2:]


def test_every_command_is_tested_here() -> None:
    assert sorted(shlex.split(c)[1] for c in COMMANDS) == ["eval", "merge", "report", "train"]
    assert re.findall(r"^    make (\S+)", README, re.MULTILINE) == ["quickstart", "test"]


@pytest.fixture
def my_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_documents").mkdir()
    Path("my_documents/bees.txt").write_text("Ann Ash is the keeper of the amber bees.")
    [line] = re.findall(r'^    (\{"question".*\})$', README, re.MULTILINE)
    questions = [json.loads(line), {"question": "Who is Ann Ash?", "answer": "keeper", "direction": "forward", "split": "validation"}]
    Path("my_questions.jsonl").write_text("".join(json.dumps(q | {"split": q.get("split", "test")}) + "\n" for q in questions))


@pytest.mark.usefixtures("my_files")
def test_train_report_eval_and_merge(capsys: pytest.CaptureFixture) -> None:
    from demask.cli import main

    argv = command("train")
    model = argv.index("--model_name_or_path")
    settings, _ = parse_train(argv)
    assert settings.model_name_or_path == argv[model + 1]
    # No hub here: the embedded model stands in for the one named, for two steps.
    del argv[model : model + 2]
    train = ["train", *argv, "--max_steps", "2", "--disable_tqdm", "true"]
    for run in (train, *([name, *command(name)] for name in ("report", "eval", "merge"))):
        with pytest.raises(SystemExit, match="0"):
            main(run)
    assert (Path("runs/mine") / "report.html").is_file()
    assert (Path("runs/mine-merged") / "model.safetensors").is_file()
    assert (Path("runs/mine/eval") / "answers.jsonl").is_file()


@pytest.mark.usefixtures("my_files")
def test_python(capsys: pytest.CaptureFixture) -> None:
    [code] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    code = code.replace('output_dir="runs/mine"', 'output_dir="runs/mine", max_steps=2, disable_tqdm=True')
    exec(compile(code, "README.md", "exec"), {})
    assert "backward" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))])
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text()):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
