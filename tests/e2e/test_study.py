"""A study from its file to its table: cells side by side, one that fails, and what a second call does."""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from demask.cli import main
from demask.runs import read_run
from demask.stages import study as stage
from demask.stages.grid import RECORDED
from demask.stages.report import report
from demask.stages.study import study
from demask.types import InputError, read_jsonl
from tests.models import save_model

STUDY: dict[str, Any] = {
    "title": "A small study",
    "about": "Does it run?",
    "settings": {
        "model_name_or_path": "model",
        "max_steps": 4,
        "learning_rate": 0.001,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "max_new_tokens": 4,
        "bf16": False,
        "retention_questions": "{world}/questions.jsonl",
        "retention_documents": ["{world}/documents.jsonl"],
    },
    "data": {"few": {"label": "six facts", "corpus": "statements", "n": 6, "phrasings": [0]}},
    "methods": {
        "ar": {"label": "plain", "objective": "autoregressive"},
        "broken": {"objective": "demask", "attn_implementation": "flash_attention_2"},
        "book": {"context": "closed_book"},
        "bm25": {"context": "bm25", "context_size": 2},
    },
    "grid": [
        {"data": ["few"], "method": ["ar"], "learning_rate": [0.001, 0.002], "seed": [1]},
        {"data": ["few"], "method": ["broken", "book", "bm25"], "seed": [1]},
    ],
}


def write(folder: Path, **changes: Any) -> Path:
    save_model(folder / "model")
    (folder / "small.yaml").write_text(yaml.safe_dump(STUDY | changes, sort_keys=False))
    return folder / "small.yaml"


def rows(folder: Path, *left_out: str) -> list[dict[str, str]]:
    with open(folder / "table.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name not in left_out} for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A folder with the study in runs/small, and the command's exit code."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write(folder)
        with pytest.raises(SystemExit) as ended:
            main(["study", "small.yaml", "--jobs", "2"])
    return folder, ended.value.code  # type: ignore[return-value]


def test_what_fails_does_not_end_the_others(finished: tuple[Path, int], capfd: pytest.CaptureFixture) -> None:
    folder, code = finished
    assert code == 1
    index = json.loads((folder / "runs/small/study.json").read_text())
    statuses = {cell["axes"]["method"]: read_run(folder / "runs/small" / cell["folder"]) for cell in index["cells"]}
    assert {name: record and record["status"] for name, record in statuses.items()} == {
        "ar": "finished",
        "broken": "failed",
        "book": "finished",
        "bm25": "finished",
    }
    assert statuses["broken"]
    assert "flash" in statuses["broken"]["error"].lower()


def test_a_finished_cell_keeps_its_record_and_answers_only(finished: tuple[Path, int]) -> None:
    """Of an untrained one there is no before."""
    folder, _ = finished
    for path in (folder / "runs/small/cells").iterdir():
        record = read_run(path)
        assert record
        if record["status"] == "finished":
            kept = RECORDED if "plan" in record else RECORDED - {"before.jsonl", "known_before.jsonl"}
            assert {file.name for file in path.iterdir()} - {".lock"} == kept
            known = [line for _, line in read_jsonl(path / "known.jsonl")]
            right = [line["scores"]["contains"] for line in known]
            assert sum(right) / len(right) == pytest.approx(record["retention"]["after"]["questions"]["contains"]["mean"])


def test_the_base_is_asked_once_for_all_cells(finished: tuple[Path, int]) -> None:
    """And says what the untrained cell of the same questions says."""
    folder, _ = finished
    (shared,) = (folder / "runs/small/base_answers").glob("*.jsonl")
    cells = {path: read_run(path) or {} for path in (folder / "runs/small/cells").iterdir()}
    trained = [path for path, record in cells.items() if "plan" in record and record["status"] == "finished"]
    assert len(trained) == 2
    for path in trained:
        assert (path / "before.jsonl").read_bytes() == shared.read_bytes()
    (book,) = (path for path, record in cells.items() if record.get("config", {}).get("context") == "closed_book")
    assert shared.read_bytes() == (book / "answers.jsonl").read_bytes()
    assert cells[trained[0]]["before"]["by_direction"] == cells[book]["results"]["by_direction"]


def test_the_index(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    index = json.loads((folder / "runs/small/study.json").read_text())
    assert {name: index[name] for name in ("title", "about", "metric", "paper")} == {
        **{"title": "A small study", "about": "Does it run?", "metric": "contains"},
        "paper": {"few": "name_description"},
    }
    assert index["labels"] == {"data": {"few": "six facts"}, "method": {"ar": "plain", "broken": "broken", "book": "book", "bm25": "bm25"}}
    assert index["settings"]["all runs"] == STUDY["settings"]
    assert index["settings"]["data few"] == {"corpus": "statements", "n": 6, "phrasings": [0]}
    assert index["settings"]["method ar"] == {"objective": "autoregressive"}
    assert [cell["folder"] for cell in index["cells"]] == [f"cells/{cell['hash']}" for cell in index["cells"]]


def test_the_report(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    page = (folder / "runs/small/report.html").read_text()
    for text in ("A small study", "Does it run?", "six facts", "plain, learning_rate 0.001", "bm25", "1 more is not finished"):
        assert text in page
    assert "measured here" in page, "statements stand for a set of the paper"
    with open(folder / "runs/small/report.csv", newline="") as file:
        lines = [row for row in csv.DictReader(file) if row["group"] == "all"]
    with open(folder / "runs/small/summary.csv", newline="") as file:
        summary = list(csv.DictReader(file))
    for direction in ("forward", "backward"):
        of_one = [row for row in lines if row["direction"] == direction]
        assert [row["mean"] for row in of_one] == [row[direction] for row in summary]
        assert [row["retained"] for row in of_one] == [row["retained"] for row in summary]


def test_demask_report_makes_the_same_page(finished: tuple[Path, int], tmp_path: Path) -> None:
    folder, _ = finished
    assert report([folder / "runs/small"], tmp_path).read_bytes() == (folder / "runs/small/report.html").read_bytes()


def test_the_table(finished: tuple[Path, int]) -> None:
    folder, _ = finished
    table = rows(folder / "runs/small")
    assert {row["method"] for row in table} == {"ar", "book", "bm25"}
    trained = [row for row in table if row["method"] == "ar" and row["group"] == "all"]
    assert [(row["learning_rate"], row["direction"]) for row in trained] == [
        ("0.001", "forward"),
        ("0.001", "backward"),
        ("0.002", "forward"),
        ("0.002", "backward"),
    ]
    for row in trained:
        record = read_run(folder / "runs/small/cells" / row["cell"])
        assert record
        cell = record["results"]["by_direction"][row["direction"]]
        assert int(row["n"]) == cell["n"]
        assert float(row["contains_mean"]) == round(cell["contains"]["mean"], 4)
        assert float(row["text_nll"]) == round(record["retention"]["after"]["text"]["nll"], 4)
        assert float(row["text_nll_before"]) == round(record["retention"]["before"]["text"]["nll"], 4)
        assert int(row["steps"]) == 4
        assert float(row["contains_before"]) == round(record["before"]["by_direction"][row["direction"]]["contains"]["mean"], 4)
    base = next(row for row in table if row["method"] == "book")
    assert base["text_nll"] == trained[0]["text_nll_before"], "the base is the same one"
    assert base["steps"] == "0"
    record = read_run(folder / "runs/small/cells" / next(row["cell"] for row in table if row["method"] == "bm25"))
    assert record
    assert set(record["results"]["settings"]) >= {"context", "context_size", "recall"}


def test_the_summary_is_over_seeds(finished: tuple[Path, int]) -> None:
    """With one seed it holds what the cell's own results hold."""
    folder, _ = finished
    with open(folder / "runs/small/summary.csv", newline="") as file:
        summary = list(csv.DictReader(file))
    assert [(row["method"], row["learning_rate"]) for row in summary] == [("ar", "0.001"), ("ar", "0.002"), ("book", ""), ("bm25", "")]
    table = [row for row in rows(folder / "runs/small") if row["group"] == "all"]
    for i, row in enumerate(summary):
        forward, backward = table[2 * i : 2 * i + 2]
        assert row["runs"] == "1"
        for direction, cell in (("forward", forward), ("backward", backward)):
            assert float(row[direction]) == float(cell["contains_mean"])
            assert float(row[f"{direction}_low"]) == float(cell["contains_low"])
            assert float(row[f"{direction}_high"]) == float(cell["contains_high"])
            assert row[f"{direction}_n"] == cell["n"]
        assert float(row["gap"]) == pytest.approx(float(forward["contains_mean"]) - float(backward["contains_mean"]), abs=1e-4)
        assert float(row["retained"]) == float(forward["retained"])
        assert float(row["retained_low"]) <= float(row["retained"]) <= float(row["retained_high"])
        assert row["retained_n"] == "200", "of 100 people, in both directions"
        assert float(row["flops"]) == pytest.approx(float(forward["flops"]))


def test_a_second_call_runs_only_what_is_missing(
    finished: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    before = (folder / "runs/small/table.csv").read_bytes()
    asked: list[str] = []

    def none(jobs: dict[str, Any], *others: Any) -> Any:
        asked.extend(cell.axes["method"] for cell, *_ in jobs.values())
        return iter(())

    monkeypatch.setitem(stage.EXECUTORS, "local", none)
    assert study("small.yaml") == {"finished": 4, "failed": 1}
    assert asked == ["broken"]
    assert (folder / "runs/small/table.csv").read_bytes() == before
    assert "failed: data=few method=broken seed=1: " in capsys.readouterr().out


def test_dry_run(finished: tuple[Path, int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "200")
    assert study("small.yaml", "runs/planned", dry_run=True, gpu="H100") == {"planned": 5}
    out = capsys.readouterr().out
    assert "A small study: 5 cells" in out
    assert "GPU-hours on H100" in out
    assert "not trained" in out
    assert not (folder / "runs/planned/cells").exists()


def test_refusals(finished: tuple[Path, int], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = finished
    monkeypatch.chdir(folder)
    for options, message in (
        ({"gpu": "X1"}, "gpu: must be one of T4, "),
        ({"executor": "cloud"}, "executor: must be one of local, slurm, found 'cloud'"),
        ({"executor_options": {"slurm_partition": "gpu"}}, "executor_option: goes with --executor slurm"),
        ({"output_dir": "small.yaml"}, "output_dir: 'small.yaml' is a file, expected a folder"),
    ):
        with pytest.raises(InputError, match=message.replace("(", r"\(")):
            study("small.yaml", **options)  # type: ignore[arg-type]
    with stage._only_one(Path("runs/small")), pytest.raises(InputError, match="another process runs the study in 'runs/small'"):
        study("small.yaml")
    write(folder, settings=STUDY["settings"] | {"max_new_tokens": 0})
    with pytest.raises(
        InputError, match=r"^cell data=few method=ar learning_rate=0.001 seed=1: max_new_tokens: expected a number at least 1"
    ):
        study("small.yaml", "runs/other")


def test_every_cell_as_a_job_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through submitit's local executor, which stands in for SLURM."""
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, grid=[{"data": ["few"], "method": ["book", "ar"], "seed": [1]}])
    options = ["--executor_option", "cluster=local", "--executor_option", "timeout_min=5", "--launcher", sys.executable]
    with pytest.raises(SystemExit) as ended:
        main(["study", "small.yaml", "--executor", "slurm", *options])
    assert ended.value.code == 0
    assert "saved to runs/small/cells" in "".join(path.read_text() for path in Path("runs/small/cells").glob("*/log.txt")), "launched"
    assert {row["method"] for row in rows(tmp_path / "runs/small")} == {"book", "ar"}
    with pytest.raises(InputError, match="executor_options: "):
        study("small.yaml", "runs/again", executor="slurm", executor_options={"cluster": "local", "partitions": "x"})


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_anywhere_it_comes_to_the_same_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """SIGKILL to the main process at random moments, three times; its workers end by themselves."""
    monkeypatch.chdir(tmp_path)
    settings = STUDY["settings"] | {"max_steps": 60, "save_steps": 5}
    write(tmp_path, settings=settings, grid=[{"data": ["few"], "method": ["ar", "book"], "seed": [1, 2]}])
    assert study("small.yaml", "whole") == {"finished": 4}
    rng = random.Random(seed)
    for _ in range(3):
        running = subprocess.Popen(
            [sys.executable, "-m", "demask", "study", "small.yaml", "--output_dir", "killed"], stdout=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(8, 30))
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert study("small.yaml", "killed") == {"finished": 4}
    assert rows(Path("killed"), "cpu_seconds") == rows(Path("whole"), "cpu_seconds")
    assert os.path.exists("killed/table.csv")


# A launcher that starts one process, in two lines: `torchrun` and `accelerate launch` are called in the same way.
LAUNCHER = """import subprocess, sys
sys.exit(subprocess.run([sys.executable, *sys.argv[1:]]).returncode)"""
LAUNCHED: dict[str, Any] = {"methods": {"ar": STUDY["methods"]["ar"], "book": STUDY["methods"]["book"]}}
LAUNCHED["grid"] = [{"data": ["few"], "method": ["ar", "book"], "seed": [1]}]


def record_of(folder: Path, method: str) -> dict[str, Any]:
    index = json.loads((folder / "study.json").read_text())
    (cell,) = (cell for cell in index["cells"] if cell["axes"]["method"] == method)
    return read_run(folder / cell["folder"]) or {}


def test_a_launcher_trains_the_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are asked only run without it; the table is that of the study without a launcher."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path, **LAUNCHED)
    Path("launcher.py").write_text(f"print('launched', flush=True)\n{LAUNCHER}")
    with pytest.raises(SystemExit) as ended:
        main(["study", "small.yaml", "--output_dir", "with", "--launcher", f"{sys.executable} launcher.py"])
    assert ended.value.code == 0
    assert study("small.yaml", "without") == {"finished": 2}
    assert rows(Path("with"), "cpu_seconds") == rows(Path("without"), "cpu_seconds"), "and the cells have the same names"
    logs = {path.parent.name: path.read_text() for path in Path("with/cells").glob("*/log.txt")}
    assert sorted("launched" in log for log in logs.values()) == [False, True]
    for cell in Path("with/cells").iterdir():
        assert {file.name for file in cell.iterdir()} - {".lock"} <= RECORDED


def test_a_launched_cell_that_dies_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, methods={"ar": STUDY["methods"]["ar"]}, grid=[{"data": ["few"], "method": ["ar"], "seed": [1]}])
    Path("launcher.py").write_text("raise MemoryError('no room')")
    for _ in range(2):  # the second call finds the first one's record
        assert study("small.yaml", launcher=f"{sys.executable} launcher.py") == {"failed": 1}
        error = record_of(Path("runs/small"), "ar")["error"]
        assert error == f"RuntimeError: {sys.executable} ended with code 1: MemoryError: no room"
    for launcher, message in (
        ("'torchrun", "launcher: No closing quotation"),
        ("nosuchrun -n 2", "launcher: no such program, 'nosuchrun'"),
    ):
        with pytest.raises(InputError, match=message):
            study("small.yaml", launcher=launcher)


@pytest.mark.slow
def test_ctrl_c_lets_a_launched_cell_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second call continues it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    settings = STUDY["settings"] | {"max_steps": 400, "save_steps": 40, "retention_questions": None, "retention_documents": None}
    write(tmp_path, settings=settings, methods={"ar": STUDY["methods"]["ar"]}, grid=[{"data": ["few"], "method": ["ar"], "seed": [1]}])
    command = [sys.executable, "-m", "demask", "study", "small.yaml", "--launcher", f"{sys.executable}"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(Path("runs/small/cells").glob("*/checkpoint-*")) and running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.2)
    os.killpg(running.pid, signal.SIGINT)
    said, _ = running.communicate(timeout=120)
    assert running.returncode == 130
    assert "interrupted; the same command continues" in said
    record = record_of(Path("runs/small"), "ar")
    assert record["status"] == "interrupted"
    steps = record["trained_steps"]
    assert 40 <= steps < 400
    cell = next(Path("runs/small/cells").iterdir())
    assert (cell / f"checkpoint-{steps}").is_dir()
    assert not (cell / "stop").exists()
    assert study("small.yaml", launcher=sys.executable) == {"finished": 1}
    assert f"resuming from {cell}/checkpoint-{steps}" in (cell / "log.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "processes"),
    [
        ("torch.distributed.run --standalone --nproc_per_node 2", 2),
        ("accelerate.commands.launch --cpu --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no", 1),
    ],
)
def test_two_processes_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: str, processes: int) -> None:
    """A cell trained by two has the batch and the results of one; `python -m` stands for the scripts `torchrun` and `accelerate launch`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write(tmp_path, **LAUNCHED)
    assert study("small.yaml", "launched", launcher=f"{sys.executable} -m {launcher}") == {"finished": 2}
    assert study("small.yaml", "one") == {"finished": 2}
    launched, one = (record_of(Path(name), "ar") for name in ("launched", "one"))
    training = launched["config"]["training"]
    assert (training["per_device_train_batch_size"], training["gradient_accumulation_steps"]) == (4 // processes, 1)
    for name in ("batch_size", "steps", "tokens", "data"):
        assert launched["plan"][name] == one["plan"][name]
    assert launched["retention"]["after"]["text"]["nll"] == pytest.approx(one["retention"]["after"]["text"]["nll"], abs=1e-5)
    assert launched["results"]["by_direction"] == one["results"]["by_direction"]
