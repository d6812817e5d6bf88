"""Two processes, plain and sharded, train, ask, stop and go on as one does (tests/sharded.py is what they run)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from demask.chat_format import ChatFormat
from demask.cli import app
from demask.models.load import EMBEDDED, load_model, load_tokenizer
from demask.runs import read_run
from demask.stages.eval import ask
from tests.sharded import ASKED, ASKING, CUT, CUT_AGAIN, FSDP2, OBJECTIVES, STEPS, flags_of, run, write_inputs

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*os.fork"),
    pytest.mark.timeout(600),  # on a busy machine: the first test starts processes three times, each of which imports torch
]

CURVE = 1e-4  # the losses of two processes and of one, in fp32
WEIGHTS = 5e-5  # they move by up to 6e-3
KINDS = [f"{objective}-{kind}" for objective in OBJECTIVES for kind in ("ddp", "fsdp")]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]


def launch(processes: int, *command: str, launcher: Sequence[str] = (), when: str | None = None, then: Path | None = None) -> str:
    """What the processes printed, and the launcher's exit code; they end with it, also where the test's patience does.

    Once `when` was printed, the file `then` is made, or (None) the launcher is interrupted.
    """
    root = Path(__file__).resolve().parents[2]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": f"{root / 'src'}"}
    with subprocess.Popen(
        [*(launcher or [*LAUNCHER, str(processes)]), *command],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests run in a shell's background, Ctrl-C is ignored, and so it would be in the launcher.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as program:
        patience = threading.Timer(180, program.terminate)  # at which a launcher ends its processes
        patience.start()
        said = ""
        assert program.stdout is not None
        for line in program.stdout:
            if when and when in line and when not in said:
                then.touch() if then else program.send_signal(signal.SIGINT)
            said += line
        patience.cancel()
    return f"{said}\nexit code {program.returncode}"


def by_config(name: str) -> list[str]:
    """accelerate's launcher of two processes, by a file of configs/accelerate."""
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FSDP2.with_name(f"{name}.yaml"))]
    return [*launcher, "--num_processes", "2", "--main_process_port", "0"]


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
    for file in ("answers.jsonl", "before.jsonl", "known_before.jsonl", "known.jsonl"):
        rows = (folder / kind / file).read_text()
        assert len(rows.splitlines()) == (3 if file in ("answers.jsonl", "before.jsonl") else 6)
        assert rows == (one / file).read_text()
    ours, theirs = read_run(folder / kind), read_run(one)
    assert {**ours["results"], "settings": None} == {**theirs["results"], "settings": None}
    for when in ("before", "after"):
        assert ours["retention"][when]["questions"] == theirs["retention"][when]["questions"]
        assert ours["retention"][when]["text"] == pytest.approx(theirs["retention"][when]["text"], abs=CURVE)


def test_a_model_in_shards_answers_as_a_whole_one(folder: Path) -> None:
    """Five answers of 4 to 16 tokens, in batches of two: a process that is done goes on computing with the one that is not."""
    model = load_model(str(EMBEDDED["tiny/causal"]))
    whole = [answer.prediction for answer in ask(model, ChatFormat(load_tokenizer(str(EMBEDDED["tiny/causal"]))), ASKED, **ASKING)]
    assert len({len(prediction.split()) for prediction in whole}) > 2
    for rank in (0, 1):
        assert json.loads((folder / f"asked-{rank}.json").read_text()) == whole


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


@pytest.mark.slow
def test_the_best_of_sharded_checkpoints_is_kept(resumed_in_shards: Path) -> None:
    """All checkpoints score alike (0), the first of them is the best: its weights are those of the run that was stopped there."""
    assert read_run(resumed_in_shards / "best-fsdp")["best_step"] == CUT
    assert [entry["loss"] for entry in log(resumed_in_shards / "best-fsdp") if "loss" in entry] == pytest.approx(
        [entry["loss"] for entry in log(resumed_in_shards / "demask-one") if "loss" in entry], abs=CURVE
    )
    best, last = (load_file(resumed_in_shards / name / "model.safetensors") for name in ("best-fsdp", "demask-one"))
    assert max((best[name] - last[name]).abs().max().item() for name in best) > 10 * WEIGHTS


def test_a_mistake_is_told_once(tmp_path: Path) -> None:
    said = launch(2, "-m", "demask", "train", "--documents", str(tmp_path / "nowhere"), "--output_dir", str(tmp_path / "out"))
    lines = [line for line in said.splitlines() if line.startswith("demask: ")]
    assert lines == [f"demask: {tmp_path / 'nowhere'}: no such file or folder"]
    assert said.endswith("exit code 1")  # the launcher's own
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_evaluate_as_one_does(folder: Path) -> None:
    flags = [
        "eval",
        "--questions",
        str(folder / "questions.jsonl"),
        "--model_name_or_path",
        str(folder / "lora-one"),
        "--max_new_tokens",
        "6",
    ]
    said = launch(2, "-m", "demask", *flags, "--output_dir", str(folder / "asked-by-two"))
    assert said.endswith("exit code 0"), said[-3000:]
    assert said.count("answers and scores in") == said.count("ROUGE-1 recall") == 1
    app([*flags, "--output_dir", str(folder / "asked-by-one")], standalone_mode=False)
    for file in ("answers.jsonl", "results.json"):
        assert (folder / "asked-by-two" / file).read_text() == (folder / "asked-by-one" / file).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["Ctrl-C", "file"])
def test_an_interrupted_launcher_lets_its_processes_save(how: str, folder: Path) -> None:
    """Lines are printed once, a checkpoint is there, and the record says how it went."""
    out = folder / f"interrupted-{how}"
    flags = ["--documents", str(folder / "docs.jsonl"), "--model_name_or_path", str(folder / "base"), "--output_dir", str(out)]
    flags += ["--max_steps", "100000", "--save_steps", "100000", "--batch_size", "4", "--logging_steps", "1", "--disable_tqdm", "true"]
    said = launch(2, "-m", "demask", "train", *flags, when="'loss'", then=out / "stop" if how == "file" else None)
    record = read_run(out)
    assert record["status"] == "interrupted"
    assert (out / f"checkpoint-{record['trained_steps']}" / "trainer_state.json").is_file()
    assert not (out / "stop").exists()
    assert said.count("interrupted: finishing the step") == (how == "Ctrl-C")
    assert said.count("continue with: demask train") == 1
    assert said.count("\nplan: ") == 1


@pytest.mark.slow
def test_accelerate_launches_its_config_on_a_cpu(folder: Path) -> None:
    """By ddp.yaml, and what fsdp2.yaml asks for is passed over there, which a line says."""
    for config in ("ddp", "fsdp2"):
        flags = f"--documents {folder}/docs.jsonl --model_name_or_path {folder}/base --output_dir {folder}/launched-{config} --max_steps 2"
        flags += " --batch_size 8 --per_device_train_batch_size 2 --learning_rate 1e-3 --bf16 false --use_cpu --disable_tqdm true"
        said = launch(0, "-m", "demask", "train", *flags.split(), launcher=by_config(config))
        assert said.endswith("exit code 0"), said[-3000:]
        assert said.count(f"saved to {folder}/launched-{config}") == 1
        assert said.count("note: accelerate shards on GPUs only: here every process holds the whole model") == (config == "fsdp2")
        assert read_run(folder / f"launched-{config}")["config"]["training"]["per_device_train_batch_size"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["all", "lora"])
def test_deepspeed_learns_what_one_process_does(stage: int, kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its configuration; stopped after a step by a file, and gone on with."""
    pytest.importorskip("deepspeed", reason="needs DeepSpeed (pip install deepspeed)")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    out = folder / f"zero{stage}-{kind}"
    out.mkdir()
    (out / "stop").touch()
    for code, steps in ((1, 1), (0, STEPS)):
        flags = [*flags_of(folder, out.name), *(["--use_peft"] if kind == "lora" else [])]
        said = launch(0, "-m", "demask", "train", *flags, launcher=by_config(f"deepspeed_zero{stage}"))
        assert said.endswith(f"exit code {code}"), said[-3000:]
        assert read_run(out)["trained_steps"] == steps
    if kind == "lora":
        assert_resumed(out, folder / "lora-one", "adapter_model.safetensors")
    else:
        assert_resumed(out, folder / "demask-one")
        assert (out / "answers.jsonl").read_text() == (folder / "demask-one" / "answers.jsonl").read_text()
