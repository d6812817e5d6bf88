"""Two processes, plain and sharded, train, ask, stop and go on as one does (tests/sharded.py is what they run)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demask.runs import read_run
from tests.sharded import CUT, CUT_AGAIN, OBJECTIVES, STEPS, run, write_inputs

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*os.fork")

CURVE = 1e-4  # the losses of two processes and of one, in fp32
WEIGHTS = 5e-5  # they move by up to 6e-3
KINDS = [f"{objective}-{kind}" for objective in OBJECTIVES for kind in ("ddp", "fsdp")]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def launch(processes: int, *command: str) -> str:
    """What the processes printed; they end with the launcher, also where the test's patience does."""
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{root / 'src'}"}
    with subprocess.Popen(
        [*LAUNCHER, str(processes), *command],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests run in a shell's background, Ctrl-C is ignored, and so it would be in the launcher.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as launcher:
        try:
            said, _ = launcher.communicate(timeout=130)
        except BaseException:
            launcher.terminate()
            launcher.communicate(timeout=45)
            raise
    return f"{said}\nexit code {launcher.returncode}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run: by one process; by two; and by two, then one, then two again, stopped in between."""
    folder = tmp_path_factory.mktemp("many")
    write_inputs(folder)
    for objective in OBJECTIVES:
        run(folder, f"{objective}-one", objective)
    run(folder, "lora-one", more="--use_peft")
    spread(folder, 2, "begin")
    for objective in OBJECTIVES:
        assert run(folder, f"{objective}-ddp-resumed", objective, stop=CUT_AGAIN)["trained_steps"] == CUT_AGAIN
    spread(folder, 2, "end")
    return folder


@pytest.fixture(scope="module")
def resumed_in_shards(folder: Path) -> Path:
    for processes, phase in ((2, "sharded_begin"), (1, "sharded_middle"), (2, "sharded_end")):
        spread(folder, processes, phase)
    return folder


def spread(folder: Path, processes: int, phase: str) -> None:
    said = launch(processes, "-m", "tests.sharded", str(folder), phase)
    assert said.endswith("exit code 0"), said[-3000:]


def log(run: Path) -> list[dict[str, Any]]:
    """The log of the run's last checkpoint, which holds all steps, also of those that were before a resume."""
    return json.loads((run / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())["log_history"]


def assert_same(found: Path, expected: Path, weights: str = "model.safetensors") -> None:
    ours, theirs = log(found), log(expected)
    losses = [entry["loss"] for entry in theirs if "loss" in entry]
    assert len(losses) == STEPS
    assert [entry["loss"] for entry in ours if "loss" in entry] == pytest.approx(losses, abs=CURVE)
    assert read_run(found)["curve"] == read_run(expected)["curve"]
    assert len(read_run(found)["curve"]) == STEPS // 2
    left, right = load_file(found / weights), load_file(expected / weights)
    assert set(left) == set(right)
    for name, weight in left.items():
        assert weight.dtype == right[name].dtype
        torch.testing.assert_close(weight, right[name], rtol=0, atol=WEIGHTS, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_learn_what_one_does(kind: str, folder: Path) -> None:
    assert_same(folder / kind, folder / f"{kind.split('-')[0]}-one")


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_run_goes_on_with_another_number_of_processes(objective: str, folder: Path) -> None:
    """Two steps by two processes, two by one, two by two: the weights of the uninterrupted run."""
    assert_resumed(folder / f"{objective}-ddp-resumed", folder / f"{objective}-one")


@pytest.mark.slow
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_sharded_run_goes_on_with_another_number_of_processes(objective: str, resumed_in_shards: Path) -> None:
    assert_resumed(resumed_in_shards / f"{objective}-fsdp-resumed", resumed_in_shards / f"{objective}-one")
    assert json.loads((resumed_in_shards / f"{objective}-fsdp-resumed.json").read_text())["modules"] > 0


@pytest.mark.slow
def test_an_adapter_in_shards_goes_on(resumed_in_shards: Path) -> None:
    assert_resumed(resumed_in_shards / "lora-fsdp-resumed", resumed_in_shards / "lora-one", "adapter_model.safetensors")


def assert_resumed(found: Path, expected: Path, weights: str = "model.safetensors") -> None:
    record = read_run(found)
    assert (record["status"], record["trained_steps"]) == ("finished", STEPS)
    assert_same(found, expected, weights)


def test_an_adapter_is_saved_from_shards(folder: Path) -> None:
    assert_same(folder / "lora-fsdp", folder / "lora-one", "adapter_model.safetensors")


def test_the_runs_moved(folder: Path) -> None:
    """Else weights would be the same for another reason."""
    for objective, base in (("demask", "base"), ("diffusion", "both")):
        before, after = load_file(folder / base / "model.safetensors"), load_file(folder / f"{objective}-one" / "model.safetensors")
        assert max((after[name] - before[name]).abs().max().item() for name in after) > 50 * WEIGHTS


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_one_process(kind: str, folder: Path) -> None:
    """Three questions of different lengths, in shares of two: one is asked twice, and told once."""
    one = folder / f"{kind.split('-')[0]}-one"
    for file in ("answers.jsonl", "known_before.jsonl", "known.jsonl"):
        rows = (folder / kind / file).read_text()
        assert len(rows.splitlines()) == (3 if file == "answers.jsonl" else 6)
        assert rows == (one / file).read_text()
    ours, theirs = read_run(folder / kind), read_run(one)
    assert {**ours["results"], "settings": None} == {**theirs["results"], "settings": None}
    for when in ("before", "after"):
        assert ours["retention"][when]["questions"] == theirs["retention"][when]["questions"]
        assert ours["retention"][when]["text"] == pytest.approx(theirs["retention"][when]["text"], abs=CURVE)


def test_the_model_was_in_shards(folder: Path) -> None:
    """Two layers, the embedding with its tied head, the last norm, and the rest; and under bfloat16 gradients are summed in float32."""
    modules = {kind: json.loads((folder / f"{kind}.json").read_text())["modules"] for kind in [*KINDS, "lora-fsdp"]}
    assert modules == {"demask-ddp": 0, "diffusion-ddp": 0, "demask-fsdp": 6, "diffusion-fsdp": 6, "lora-fsdp": 5}
    assert json.loads((folder / "bf16-fsdp.json").read_text())["dtypes"] == ["(torch.bfloat16, torch.float32)"]
    parts = folder / "demask-fsdp" / f"checkpoint-{STEPS}" / "pytorch_model_fsdp_0"
    assert sorted(path.name for path in parts.glob("*.distcp")) == ["__0_0.distcp", "__1_0.distcp"]


def test_bfloat16_in_shards_learns_about_the_same(folder: Path) -> None:
    losses = [[entry["loss"] for entry in log(folder / name) if "loss" in entry] for name in ("bf16-fsdp", "demask-one")]
    assert losses[0] == pytest.approx(losses[1], abs=0.05)
    assert losses[0] != losses[1]


def test_the_best_of_sharded_checkpoints_is_kept(folder: Path) -> None:
    """All checkpoints score alike (0), the first of them is the best: its weights are those of the run that was stopped there."""
    assert read_run(folder / "best-fsdp")["best_step"] == CUT
    assert [entry["loss"] for entry in log(folder / "best-fsdp") if "loss" in entry] == pytest.approx(
        [entry["loss"] for entry in log(folder / "demask-one") if "loss" in entry], abs=CURVE
    )
    best, last = (load_file(folder / name / "model.safetensors") for name in ("best-fsdp", "demask-one"))
    assert max((best[name] - last[name]).abs().max().item() for name in best) > 10 * WEIGHTS
