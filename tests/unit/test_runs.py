"""The run directory: its record at each status, what stands in it, and which checkpoint counts as the newest."""

from __future__ import annotations

import json
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from demask.runs import PACKAGES, Run, environment, git_commit, newest_checkpoint, read_run
from demask.types import InputError


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("status", ["finished", "interrupted", "failed"])
def test_a_record_goes_from_running_to_its_end(status):
    run = Run("out", {"seed": 3})
    begun = read_run("out")
    assert begun["status"] == "running"
    assert begun["config"] == {"seed": 3}
    assert "ended" not in begun

    run.update(plan={"steps": 2})
    assert read_run("out")["plan"] == {"steps": 2}
    assert read_run("out")["status"] == "running"

    run.finish(status, trained_steps=2)
    ended = read_run("out")
    assert ended == run.record
    assert (ended["status"], ended["trained_steps"], ended["plan"]) == (status, 2, {"steps": 2})
    assert datetime.fromisoformat(ended["ended"]) >= datetime.fromisoformat(ended["started"])
    assert [path.name for path in Path("out").iterdir()] == ["run.json"]


def test_a_record_says_what_the_result_depends_on():
    record = environment()
    assert set(record["versions"]) == set(PACKAGES)
    assert all(record["versions"].values())
    assert record["hardware"]["threads"] == 1  # tests/conftest.py
    assert record["python"].count(".") == 2


def test_a_package_that_is_not_installed_is_said_to_be(monkeypatch):
    monkeypatch.setattr("demask.runs.PACKAGES", ("torch", "no-such-package-here"))
    assert environment()["versions"]["no-such-package-here"] == "not installed"


def test_the_commit_is_the_checkouts(monkeypatch):
    commit = git_commit()
    source = Path(__file__).resolve().parents[2]
    if (source / ".git").exists():
        head = subprocess.run(["git", "-C", source, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout
        assert head.startswith(commit.removesuffix("-dirty"))
    monkeypatch.setattr("demask.runs.__file__", str(Path("lib/python/demask/runs.py").absolute()))
    assert git_commit() is None


def test_a_folder_without_a_record_has_none():
    assert read_run("gone") is None
    Path("empty").mkdir()
    assert read_run("empty") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"status": ', "out/run.json:1: not valid JSON (Expecting value at column 12)"),
        ("", "out/run.json:1: not valid JSON (Expecting value at column 1)"),
        ("[1]", "out/run.json: not a run's record (expected a JSON object, found a list)"),
        (b"\xff", "out/run.json:1: not UTF-8 (byte 0xff); convert the file to UTF-8"),
    ],
)
def test_a_broken_record(content, message):
    Path("out").mkdir()
    Path("out/run.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(InputError) as caught:
        read_run("out")
    assert str(caught.value) == message


def test_an_output_folder_that_is_a_file():
    Path("out").write_text("mine")
    with pytest.raises(InputError, match=r"^output_dir: 'out' is a file, expected a folder$"):
        read_run("out")


def checkpoint(name: str, complete: bool = True) -> Path:
    path = Path("out", name)
    path.mkdir(parents=True)
    (path / "model.safetensors").write_text("weights")
    if complete:
        (path / "trainer_state.json").write_text(json.dumps({"global_step": 1}))
    return path


def test_the_newest_checkpoint_is_the_one_of_the_largest_step():
    for step in (9, 100, 20):
        checkpoint(f"checkpoint-{step}")
    assert newest_checkpoint("out") == (Path("out/checkpoint-100"), [])


def test_an_incomplete_checkpoint_is_removed_and_said():
    checkpoint("checkpoint-1")
    cut = checkpoint("checkpoint-2", complete=False)
    newest, lines = newest_checkpoint("out")
    assert newest == Path("out/checkpoint-1")
    assert lines == ["out/checkpoint-2: an incomplete checkpoint (its saving was interrupted), removed"]
    assert not cut.exists()


def test_without_a_complete_checkpoint_there_is_none():
    assert newest_checkpoint("gone") == (None, [])
    checkpoint("checkpoint-5", complete=False)
    newest, lines = newest_checkpoint("out")
    assert newest is None
    assert len(lines) == 1


def test_what_is_no_checkpoint_is_left_alone():
    foreign = [checkpoint(name, complete=False) for name in ("checkpoint-best", "checkpoint-", "my-checkpoint-3", "data", "checkpoint-7b")]
    Path("out/checkpoint-8").write_text("a file")
    assert newest_checkpoint("out") == (None, [])
    assert all((path / "model.safetensors").exists() for path in foreign)
    assert Path("out/checkpoint-8").exists()
