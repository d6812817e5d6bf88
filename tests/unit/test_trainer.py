"""A step's loss and gradients are those of its whole batch, whatever the micro-batches, processes and workers it is spread over."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from transformers import TrainingArguments

from demask import trainer
from demask.chat_format import IGNORE, ChatFormat
from demask.runs import read_run
from demask.types import InputError
from tests.tokenizers import llama3
from tests.training import BATCH, CASES, MASK, SEED, STEPS, fit, model_of, schedule_of, train_stage, write_inputs

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*os.fork")

FOUR_DECIMALS = 5e-5


@cache
def reference(case: str) -> dict[str, Any]:
    """The run of one process whose micro-batch is the whole batch."""
    with TemporaryDirectory() as folder:
        return fit(case, folder, micro=BATCH, accumulation=1)


def assert_same(run: dict[str, Any], case: str) -> None:
    expected = reference(case)
    assert run["losses"] == pytest.approx(expected["losses"], abs=FOUR_DECIMALS)
    assert run["norms"] == pytest.approx(expected["norms"], rel=1e-3)
    assert set(run["weights"]) == set(expected["weights"])
    for name, weight in run["weights"].items():
        torch.testing.assert_close(weight, expected["weights"][name], rtol=0, atol=FOUR_DECIMALS, msg=name)


@cache
def by_hand(case: str) -> tuple[list[float], dict[str, torch.Tensor]]:
    """(losses, weights) of plain PyTorch: rows alone and unpadded, all logits, the targets' nll over the batch's targets.

    Diffusion, whose masks are exact and weights 1/t: the mean over the rows of the mean nll of a row's hidden tokens.
    """
    model, schedule, objective = model_of(case), schedule_of(case), CASES[case][0]
    decayed = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    optimiser = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}], lr=1e-3)
    losses = []
    for step in range(STEPS):
        rows = [schedule[step * BATCH + slot] for slot in range(BATCH)]
        batches = [objective.collate([row], ChatFormat(llama3()), SEED) for row in rows]
        targets = sum(int((batch["labels"] != IGNORE).sum()) for batch in batches)
        loss = torch.tensor(0.0)
        for batch in batches:
            logits_LV = model(input_ids=batch["input_ids"]).logits[0]
            labels_L = batch["labels"][0]
            if case == "diffusion":
                loss = loss + functional.cross_entropy(logits_LV, labels_L, ignore_index=IGNORE) / BATCH
            else:
                loss = loss + functional.cross_entropy(logits_LV[:-1], labels_L[1:], ignore_index=IGNORE, reduction="sum") / targets
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        losses.append(loss.item())
    return losses, {name: weight.detach() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_a_run_equals_plain_pytorch(case):
    losses, weights = by_hand(case)
    run = reference(case)
    assert run["losses"] == pytest.approx(losses, abs=FOUR_DECIMALS)
    assert len(set(losses)) == STEPS
    for name, weight in weights.items():
        torch.testing.assert_close(run["weights"][name], weight, rtol=0, atol=FOUR_DECIMALS, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_weights_move_much_more_than_the_tolerance(case):
    start = model_of(case).state_dict()
    moved = max((weight - start[name]).abs().max().item() for name, weight in reference(case)["weights"].items())
    assert moved > 50 * FOUR_DECIMALS


@pytest.mark.parametrize(("micro", "accumulation"), [(1, 8), (4, 2)])
@pytest.mark.parametrize("case", CASES)
def test_accumulation_changes_nothing(case, micro, accumulation, tmp_path):
    run = fit(case, tmp_path, micro, accumulation)
    assert run["rows"] == reference(case)["rows"]
    assert_same(run, case)


def test_a_resumed_diffusion_run_changes_nothing(tmp_path):
    """Two steps, a checkpoint, and from there on in other micro-batches."""
    fit("diffusion", tmp_path, 8, 1, save_strategy="steps", save_steps=2)
    run = fit("diffusion", tmp_path, 2, 4, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert run["rows"] == [row for row in reference("diffusion")["rows"] if row[0] >= 2]
    assert_same(run, "diffusion")


def own_trainer(model: Any, args: TrainingArguments) -> trainer.ObjectiveTrainer:
    objective, chat = CASES["demask"][0], ChatFormat(llama3())
    return trainer.ObjectiveTrainer(model=model, args=args, objective=objective, chat=chat, schedule=schedule_of("demask"))


@pytest.mark.parametrize("attribute", ["is_fsdp_enabled", "is_deepspeed_enabled", None])
def test_the_vocabularys_gradient_is_made_in_place_where_the_model_is_whole(attribute, tmp_path, monkeypatch):
    """FSDP and DeepSpeed replace the weights, whose gradients then are elsewhere, in one process too."""
    entered = []
    monkeypatch.setattr(trainer, "rows_added_in_place", lambda model: entered.append(model) or contextlib.nullcontext())
    monkeypatch.setattr(trainer.Trainer, "train", lambda self: None)
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    own = own_trainer(model_of("demask"), args)
    if attribute:
        setattr(own, attribute, True)
    own.train()
    assert len(entered) == (attribute is None)


def test_a_model_without_layers_is_not_compiled(tmp_path):
    model = model_of("demask")
    model.model.layers = torch.nn.ModuleList()
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, torch_compile=True)
    with pytest.raises(InputError, match=r"^torch_compile: LlamaForCausalLM has no layers that can be compiled one by one$"):
        own_trainer(model, args)


def test_micro_batches_are_very_different():
    """Else the tests above would prove little: a mean of micro-batch means would pass them too."""
    targets = [sum(label != IGNORE for label in row[3]) for row in reference("demask")["rows"]]
    assert max(targets) > 10 * min(targets)
    targets = [sum(label != IGNORE for label in row[3]) for row in reference("pairs")["rows"]]
    assert min(targets) == 0


def test_replayed_rows_are_ready_made():
    """The last two of the eight slots: prompt/response pairs with loss on the whole response, none of it masked."""
    rows = reference("replay")["rows"]
    assert [row[:2] for row in rows] == [[step, slot] for step in range(STEPS) for slot in range(BATCH)]
    prompt = ChatFormat(llama3()).prompt(llama3().encode("Who keeps bees?", add_special_tokens=False))
    for _, slot, ids, labels in rows:
        assert (ids[: len(prompt)] == prompt) == (slot >= 6)
        if slot >= 6:
            assert labels == [IGNORE] * len(prompt) + ids[len(prompt) :]
            assert MASK not in ids


@pytest.mark.parametrize("case", ["autoregressive", "replay"])
def test_workers_change_nothing(case, tmp_path):
    run = fit(case, tmp_path, 4, 2, dataloader_num_workers=4)
    assert_same(run, case)
    assert run["losses"] == fit(case, tmp_path, 4, 2)["losses"]  # here to the last bit


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    write_inputs(folder)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tests.training", str(folder)]
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.parametrize("case", CASES)
def test_two_processes_change_nothing(case, two_processes):
    """2 rows x 2 micro-batches x 2 processes: the same masks, losses and weights as 8 rows in one process, on both."""
    runs = []
    for rank in (0, 1):
        runs.append(json.loads((two_processes / f"{case}-{rank}.json").read_text()))
        runs[rank]["weights"] = torch.load(two_processes / f"{case}-{rank}.pt")
    assert {len(run["rows"]) for run in runs} == {STEPS * BATCH // 2}
    assert sorted(runs[0]["rows"] + runs[1]["rows"]) == reference(case)["rows"]
    assert_same(runs[0], case)
    for name, weight in runs[1]["weights"].items():
        assert torch.equal(weight, runs[0]["weights"][name])


def test_the_train_stage_in_two_processes(two_processes):
    """One of them writes the folder, which holds what one process alone would have written."""
    one = train_stage(two_processes, "one", 2, 2)
    two = read_run(two_processes / "two")
    assert two["status"] == "finished"
    assert two["plan"]["batch_size"] == 4
    assert {name: two["plan"][name] for name in ("steps", "tokens", "target_tokens")} == {
        name: one["plan"][name] for name in ("steps", "tokens", "target_tokens")
    }
    assert two["curve"] == one["curve"]
    assert two["results"] == one["results"] | {"settings": two["results"]["settings"]}
    left, right = (load_file(two_processes / name / "model.safetensors") for name in ("one", "two"))
    assert set(left) == set(right)
    for name in left:
        torch.testing.assert_close(right[name], left[name], rtol=0, atol=FOUR_DECIMALS, msg=name)
