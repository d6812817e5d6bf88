"""`stages.train` from files to files: what it writes, that a resumed run ends as an uninterrupted one, and which checkpoint it keeps."""

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
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback

from demask.chat_format import ChatFormat
from demask.cli import main
from demask.models.load import load_model
from demask.models.merge import merge
from demask.runs import read_run
from demask.scoring import score_all
from demask.settings import parse_train
from demask.stages import eval as evaluation
from demask.stages.eval import evaluate
from demask.stages.plan import make_plan
from demask.stages.train import train
from demask.trainer import ObjectiveTrainer
from demask.types import Answer, InputError, read_jsonl
from tests.models import save_model
from tests.tokenizers import llama3

TEXTS = ["Ann is the woman who keeps bees.", "The mason met the baker.", "They were glad!", "The baker keeps a list: one, two, three."]
OLD = ["A mill near the old mason.", "Three bees."]
SENTENCE = "The mason and the baker met on 12 May 1984, near the old mill. "
QUESTIONS = [
    *[{"question": f"Who {i}?", "answer": "Ann", "direction": "forward", "document": "a", "split": "validation"} for i in range(3)],
    {"question": "What does Ann keep?", "answer": "bees", "direction": "backward", "document": "a", "split": "validation"},
    {"question": "Who met the baker?", "answer": "The mason", "direction": "backward", "document": "b", "split": "test"},
    {"question": "Whom did he meet?", "answer": ["The baker", "Him"], "direction": "forward", "document": "b", "split": "test"},
]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    """Documents, questions, a float32 and a bfloat16 base with tied weights."""
    folder = tmp_path_factory.mktemp("files")
    records = {
        "docs": [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)],
        "pairs": [{"id": f"p{i}", "prompt": "Who keeps bees?", "response": text} for i, text in enumerate(TEXTS)],
        "old": [{"id": f"o{i}", "text": text} for i, text in enumerate(OLD)],
        "long": [{"id": "long", "text": (SENTENCE * 4).strip()}, {"id": "short", "text": "Three bees."}],
        "questions": QUESTIONS,
    }
    for name, rows in records.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    save_model(folder / "base")
    save_model(folder / "bf16", dtype=torch.bfloat16)
    save_model(folder / "short_context", max_position_embeddings=160)
    return folder


@pytest.fixture(autouse=True)
def _in_files(files, monkeypatch):
    """Names on the command line are those in `files`."""
    monkeypatch.chdir(files)


def flags(out: Path | str, *more: str) -> list[str]:
    """Two documents a micro-batch, two micro-batches a step, six steps; later flags override earlier ones."""
    settled = (
        "--documents docs.jsonl --model_name_or_path base --bf16 false --per_device_train_batch_size 2 --gradient_accumulation_steps 2"
    )
    settled += " --max_steps 6 --learning_rate 1e-3 --save_steps 2 --save_total_limit 9 --logging_steps 1 --max_new_tokens 4"
    return [*settled.split(), "--disable_tqdm", "true", "--output_dir", str(out), *more]


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    """At a rate of 0 the second evaluation is no better than the first."""
    more = ("--questions", "questions.jsonl", "--eval_steps", "1", "--learning_rate", "0", "--patience", "1")
    record = train(*parse_train(flags(tmp_path / "out", *more)), say=lambda line: None)
    assert record["status"] == "finished"
    assert (record["plan"]["steps"], record["trained_steps"], record["best_step"]) == (6, 2, 1)
    with pytest.raises(InputError, match=r"^patience: needs validation questions"):
        train(*parse_train(flags(tmp_path / "other", "--patience", "1")), say=lambda line: None)


def test_patience_counts_on_after_a_resume(tmp_path):
    """At a rate of 0 no evaluation is better than that of step 1, the power fails after that of step 2, and that of step 3 is the last. The
    finished run goes no further, but with more patience."""
    more = ("--questions", "questions.jsonl", "--eval_steps", "1", "--learning_rate", "0", "--patience", "2")
    with pytest.raises(PowerCutError):
        run(tmp_path, *more, callbacks=[At(3, power_cut)])
    resume = (*more, "--resume_from_checkpoint", "true")
    record = run(tmp_path, *resume)
    assert (record["status"], record["trained_steps"], record["best_step"]) == ("finished", 3, 1)
    with pytest.raises(InputError, match=r"^resume_from_checkpoint: patience ended the run in '.*' at step 3 of 6, and it is finished$"):
        run(tmp_path, *resume)
    assert run(tmp_path, *resume, "--patience", "3")["trained_steps"] == 4


def test_a_run_that_was_out_of_patience_is_not_evaluated_again(monkeypatch, tmp_path):
    """It dies when its training is over: the resume trains for a step, asks no more validation questions, and keeps the same checkpoint."""
    more = ("--questions", "questions.jsonl", "--eval_steps", "2", "--learning_rate", "0", "--patience", "1")
    with monkeypatch.context() as patch:
        patch.setattr("demask.stages.train.final_questions", lambda *args: power_cut(None))
        with pytest.raises(PowerCutError):
            run(tmp_path, *more)
    record = run(tmp_path, *more, "--resume_from_checkpoint", "true")
    assert (record["status"], record["trained_steps"], record["best_step"]) == ("finished", 5, 2)
    assert [point["step"] for point in record["curve"]] == [2, 4]


def run(out: Path | str, *more: str, callbacks: Any = (), said: list[str] | None = None) -> dict[str, Any]:
    settings, args = parse_train(flags(out, *more))
    return train(settings, args, say=[].append if said is None else said.append, callbacks=callbacks)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert set(left) == set(right)
    assert all(torch.equal(left[name], right[name]) for name in left)


class At(TrainerCallback):
    """Calls `action` at the end of a step, before anything is saved there."""

    def __init__(self, step: int, action: Any) -> None:
        self.step, self.action = step, action

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step == self.step:
            self.action(model)


class PowerCutError(Exception):
    pass


def power_cut(model: Any) -> None:
    raise PowerCutError


@pytest.fixture(scope="module")
def uninterrupted(files, tmp_path_factory) -> Path:
    """The output of a whole run, six steps."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        run(out)
    return out


# --- what a run leaves behind


def test_output_is_a_standard_checkpoint(uninterrupted):
    model, found = AutoModelForCausalLM.from_pretrained(uninterrupted, output_loading_info=True)
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert model.lm_head.weight is model.model.embed_tokens.weight
    with safe_open(uninterrupted / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.embed_tokens.weight" in names
    assert "lm_head.weight" not in names
    assert not torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained("base").lm_head.weight)
    assert {"config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= {p.name for p in uninterrupted.iterdir()}
    assert_equal(weights(uninterrupted), weights(uninterrupted / "checkpoint-6"))


def test_the_record(uninterrupted):
    record = read_run(uninterrupted)
    assert record["status"] == "finished"
    assert record["trained_steps"] == 6
    assert record["config"]["settings"]["documents"] == ["docs.jsonl"]
    assert "mask_ratio=MaskRatio(low=0.05, high=0.95, schedule='uniform')" in record["plan"]["objective"], "the objective's own"
    assert record["config"]["training"]["learning_rate"] == 1e-3
    assert record["config"]["training"]["seed"] == 0
    assert {"torch", "transformers", "demask"} <= set(record["versions"])
    assert "commit" in record
    assert "hardware" in record
    assert (record["plan"]["steps"], record["plan"]["batch_size"], record["plan"]["visits"]) == (6, 4, 6)
    assert record["curve"] == []  # no questions
    assert record["train_seconds"] > 0
    assert record["ended"] >= record["started"]


def test_saved_in_the_bases_dtype_but_trained_in_float32(tmp_path):
    """At this rate a bfloat16 master weight would never move: half of its last place is some 0.2 %, a step is 1e-6."""
    seen = {}
    look = At(6, lambda model: seen.update({name: p.detach().clone() for name, p in model.named_parameters()}))
    run(tmp_path, "--model_name_or_path", "bf16", "--learning_rate", "1e-6", callbacks=[look])
    assert {value.dtype for value in seen.values()} == {torch.float32}
    before, saved = weights(Path("bf16")), weights(tmp_path)
    assert {value.dtype for value in saved.values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert "lm_head.weight" not in saved
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(seen[name], before[name].float())
    assert_equal(saved, {name: seen[name].bfloat16() for name in saved})


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_computes_in_bfloat16_where_that_is_native(native, dtype, monkeypatch, tmp_path):
    """Without a flag; the weights are float32 either way."""
    monkeypatch.setattr("demask.settings.native_bf16", lambda cpu: native)
    seen = set()

    class Look(TrainerCallback):
        def on_train_begin(self, args, state, control, model, **kwargs):
            head = model.get_output_embeddings()  # layers may be computed without calling their modules
            head.register_forward_hook(lambda module, inputs, output: seen.add((module.weight.dtype, output.dtype)))

    argv = flags(tmp_path)
    del argv[argv.index("--bf16") : argv.index("--bf16") + 2]
    settings, args = parse_train(argv)
    record = train(settings, args, say=[].append, callbacks=[Look()])
    assert seen == {(torch.float32, dtype)}
    assert record["config"]["training"]["bf16"] is native


def test_warns_of_pure_bfloat16(tmp_path):
    def warned(*more: str) -> bool:
        said: list[str] = []
        run(tmp_path, "--dry_run", *more, said=said)
        return "warning: full fine-tuning of bfloat16 weights loses updates at this learning rate; use --dtype float32" in said

    assert warned("--dtype", "bfloat16", "--learning_rate", "1e-5")
    assert not warned("--dtype", "bfloat16", "--learning_rate", "1e-3")
    assert not warned("--learning_rate", "1e-5")
    assert not warned("--dtype", "bfloat16", "--learning_rate", "1e-5", "--use_peft")


def test_the_same_seed_gives_the_same_weights(uninterrupted, tmp_path):
    run(tmp_path / "again")
    assert_equal(weights(tmp_path / "again"), weights(uninterrupted))
    run(tmp_path / "other", "--seed", "1")
    assert not torch.equal(weights(tmp_path / "other")["model.embed_tokens.weight"], weights(uninterrupted)["model.embed_tokens.weight"])


def test_a_dry_run_writes_nothing_and_needs_no_weights(tmp_path):
    base = Path(save_model(tmp_path / "base"))
    (base / "model.safetensors").unlink()
    before = sorted(tmp_path.rglob("*"))
    said: list[str] = []
    record = run(tmp_path / "out", "--model_name_or_path", str(base), "--dry_run", said=said)
    assert record["status"] == "planned"
    assert record["plan"]["steps"] == 6
    assert any(line.startswith("plan: 6 steps of 4 rows, 6.0 visits of each document, learning rate 0.001") for line in said)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_dry_run_over_a_cut_short_run_removes_nothing(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    said: list[str] = []
    run(tmp_path, "--dry_run", "--resume_from_checkpoint", "true", said=said)
    assert not any("checkpoint" in line for line in said)
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint-2"]


def test_an_output_folder_that_holds_a_run_is_refused(uninterrupted):
    before = weights(uninterrupted)
    with pytest.raises(InputError, match="already holds a run; choose another or continue it with --resume_from_checkpoint true"):
        run(uninterrupted)
    assert_equal(weights(uninterrupted), before)
    assert read_run(uninterrupted)["status"] == "finished"


# --- the plan


@pytest.mark.parametrize(
    "more",
    [
        ["--objective", "autoregressive"],
        ["--objective", "autoregressive", "--format", "raw"],
        ["--objective", "autoregressive", "--documents", "pairs.jsonl"],
        [],
        ["--corruption", "random", "--instruction", "", "--answer_prefix", "So:"],
        ["--documents", "pairs.jsonl", "--loss_on", "all", "--system_prompt", "You answer."],
        ["--documents", "pairs.jsonl", "--mask_ratio", "1"],
        ["--replay", "old.jsonl", "--replay_share", "0.5"],
    ],
    ids=" ".join,
)
def test_planned_tokens_are_those_of_the_batches(more):
    """Six steps of four rows visit each document six times (or, with two replayed rows a step, three times and each old one six times)."""
    plan = make_plan(*parse_train(flags("out", *more)))
    tokens = targets = longest = 0
    for i in range(len(plan.schedule)):
        batch = plan.objective.collate([plan.schedule[i]], plan.chat, 0)
        tokens += int(batch["attention_mask"].sum())
        targets += int((batch["labels"] != -100).sum())
        longest = max(longest, batch["labels"].shape[1])
    assert (plan.numbers["tokens"], plan.numbers["target_tokens"], plan.numbers["longest"]) == (tokens, targets, longest)


def test_planned_targets_of_masked_pairs_are_an_expectation():
    """Of the responses' tokens half are hidden on average; 300 batches come within 5 % of that."""
    plan = make_plan(*parse_train(flags("out", "--documents", "pairs.jsonl", "--max_steps", "300")))
    content = sum(len(ChatFormat(llama3()).content(text)) for text in TEXTS)
    assert plan.numbers["target_tokens"] == 300 * content / 2
    seen = sum(int((plan.objective.collate([row], plan.chat, 0)["labels"] != -100).sum()) for row in plan.schedule)
    assert seen == pytest.approx(300 * content / 2, rel=0.05)


# --- what is trained on


class Lengths(TrainerCallback):
    """Notes how long the longest row of each batch is, packed or padded."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        def note(module, inputs, options):
            self.seen.append(options["attention_mask"].shape[-1])

        model.register_forward_pre_hook(note, with_kwargs=True)


@pytest.mark.parametrize(
    ("on_long", "line", "visits"),
    [("split", "document 'long': 76 tokens, split into 2 parts", 8), ("truncate", "document 'long': 76 tokens, truncated to 54", 12)],
)
def test_long_documents(on_long, line, visits, tmp_path):
    """The context of 160 holds 54 tokens twice, with what stands around them: two sentences of 19 and a part of the third."""
    said: list[str] = []
    lengths = Lengths()
    more = ["--documents", "long.jsonl", "--model_name_or_path", "short_context", "--on_long", on_long]
    record = run(tmp_path, *more, said=said, callbacks=[lengths])
    assert line in said
    assert record["status"] == "finished"
    assert record["plan"]["visits"] == visits
    assert record["plan"]["longest"] == max(lengths.seen) <= 160


def test_long_documents_may_be_refused(tmp_path):
    with pytest.raises(InputError, match=r"^document 'long': 76 tokens, the limit is 54; --on_long split or truncate makes it fit$"):
        run(tmp_path / "out", "--documents", "long.jsonl", "--model_name_or_path", "short_context", "--on_long", "error")
    assert not (tmp_path / "out").exists()


def test_masked_pairs_train(tmp_path):
    record = run(tmp_path, "--documents", "pairs.jsonl", "--mask_ratio_per", "example", "--mask_pattern", "mix")
    assert record["status"] == "finished"
    assert not torch.equal(weights(tmp_path)["model.norm.weight"], weights(Path("base"))["model.norm.weight"])


def test_replay_trains(uninterrupted, tmp_path):
    record = run(tmp_path, "--replay", "old.jsonl", "--replay_share", "0.5")
    assert (record["status"], record["plan"]["visits"]) == ("finished", 3)
    assert not torch.equal(weights(tmp_path)["model.norm.weight"], weights(uninterrupted)["model.norm.weight"])


# --- resuming


def test_a_resumed_run_ends_as_an_uninterrupted_one(uninterrupted, tmp_path):
    """The power fails in step 5, and while a checkpoint is written: that one is removed, and the run goes on from step 4."""
    with pytest.raises(PowerCutError):
        run(tmp_path, callbacks=[At(5, power_cut)])
    assert read_run(tmp_path)["status"] == "failed"
    assert not (tmp_path / "model.safetensors").exists()
    cut = tmp_path / "checkpoint-5"
    cut.mkdir()
    (cut / "model.safetensors").write_bytes((tmp_path / "checkpoint-2" / "model.safetensors").read_bytes())

    said: list[str] = []
    record = run(tmp_path, "--resume_from_checkpoint", "true", said=said)
    assert f"{cut}: an incomplete checkpoint (its saving was interrupted), removed" in said
    assert f"resuming from {tmp_path / 'checkpoint-4'}" in said
    assert not cut.exists()
    assert (record["status"], record["trained_steps"]) == ("finished", 6)
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_resuming_from_a_named_checkpoint_and_other_micro_batches(uninterrupted, tmp_path):
    """One row a micro-batch instead of two, in the same global batch: the same run to four decimals."""
    with pytest.raises(PowerCutError):
        run(tmp_path, callbacks=[At(5, power_cut)])
    micro = ["--per_device_train_batch_size", "1", "--gradient_accumulation_steps", "4"]
    run(tmp_path, "--resume_from_checkpoint", str(tmp_path / "checkpoint-2"), *micro)
    for name, weight in weights(uninterrupted).items():
        torch.testing.assert_close(weights(tmp_path)[name], weight, rtol=0, atol=5e-5, msg=name)


def test_a_resume_without_any_checkpoint_starts_at_step_0(uninterrupted, tmp_path):
    said: list[str] = []
    run(tmp_path, "--resume_from_checkpoint", "true", said=said)
    assert "no complete checkpoint to resume from: starting at step 0" in said
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_resuming_a_finished_run_changes_nothing(uninterrupted, tmp_path):
    run(tmp_path)
    record = run(tmp_path, "--resume_from_checkpoint", "true")
    assert (record["status"], record["trained_steps"]) == ("finished", 6)
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_an_incomplete_checkpoint_that_is_named_is_refused(tmp_path):
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(InputError, match=r"checkpoint-2' is not a complete checkpoint \(no trainer_state.json\)"):
        run(tmp_path / "out", "--resume_from_checkpoint", str(tmp_path / "checkpoint-2"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--gradient_accumulation_steps", "4"], "batch_size was 4 and is now 8"),
        (["--learning_rate", "1e-4"], "learning_rate was 0.001 and is now 0.0001"),
        (["--max_steps", "8"], "steps was 6 and is now 8"),
        (["--seed", "3"], "seed was 0 and is now 3"),
        (["--objective", "autoregressive"], r"objective was Demask\(.*\) and is now Autoregressive\(.*\)"),
        (["--mask_ratio", "0.5"], r"objective was .*low=0.05.* and is now .*low=0.5, high=0.5.*"),
        (["--bf16", "true", "--use_cpu", "true"], "compute_dtype was float32 and is now bfloat16"),
    ],
    ids=["batch", "rate", "steps", "seed", "objective", "ratio", "precision"],
)
def test_a_resume_that_changes_the_run_is_refused(more, message, uninterrupted):
    before = read_run(uninterrupted)
    with pytest.raises(InputError, match=rf"^resume_from_checkpoint: {message}; a run continues only as it began$"):
        run(uninterrupted, "--resume_from_checkpoint", "true", *more)
    assert read_run(uninterrupted) == before


CTRL_C = """
import os, signal, sys, torch
torch.set_num_threads(1)
from demask.cli import main
from demask.stages.train import StopOnRequest
whole = StopOnRequest.on_step_end
def on_step_end(self, args, state, control, **kwargs):
    if state.global_step == 3:
        os.kill(os.getpid(), signal.SIGINT)
    return whole(self, args, state, control, **kwargs)
StopOnRequest.on_step_end = on_step_end
main(["train", *sys.argv[1:]])
"""


def test_ctrl_c_saves_a_checkpoint_and_the_run_can_go_on(uninterrupted, tmp_path):
    command = [sys.executable, "-c", CTRL_C, *flags(tmp_path)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240)
    assert done.returncode == 130, done.stderr[-3000:]
    assert "finishing the step and saving a checkpoint" in done.stdout
    assert "--resume_from_checkpoint true" in done.stdout.splitlines()[-1]
    record = read_run(tmp_path)
    assert record["status"] == "interrupted"
    assert record["trained_steps"] == 3
    assert not (tmp_path / "model.safetensors").exists()
    said: list[str] = []
    assert run(tmp_path, "--resume_from_checkpoint", "true", said=said)["status"] == "finished"
    assert f"resuming from {tmp_path / 'checkpoint-3'}" in said
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_ctrl_c_is_given_back_after_a_run(uninterrupted):
    assert signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_IGN), "as Python or the shell set it"


# --- the clock and the memory


def test_a_run_may_end_by_the_clock(monkeypatch, tmp_path):
    """After the first step: it is evaluated, the best checkpoint is kept, the test questions are asked, and nothing goes on from there."""
    monkeypatch.setattr("demask.stages.asking.ask", Script(ROUNDS[0]))
    said: list[str] = []
    more = ["--questions", "questions.jsonl", "--eval_steps", "2", "--max_minutes", "0"]
    record = run(tmp_path, *more, said=said)
    assert (record["status"], record["ended_by_clock"], record["trained_steps"]) == ("finished", {"step": 1, "of": 6}, 1)
    assert "max_minutes: 0 minutes are used up, ended at step 1 of 6" in said
    assert [point["step"] for point in record["curve"]] == [1]
    assert record["best_step"] == 1
    assert_equal(weights(tmp_path), weights(tmp_path / "checkpoint-1"))
    assert record["results"]["overall"]["n"] == 2
    with pytest.raises(InputError, match=r"^resume_from_checkpoint: max_minutes ended the run in '.*' at step 1 of 6, and it is finished$"):
        run(tmp_path, *more, "--resume_from_checkpoint", "true")


def test_time_used_before_a_resume_counts(tmp_path):
    """The power fails in step 5, after the checkpoint of step 4: the record has the time until then, which the test makes an hour."""
    with pytest.raises(PowerCutError):
        run(tmp_path, "--max_minutes", "30", callbacks=[At(5, power_cut)])
    record = read_run(tmp_path)
    assert record["train_seconds"] > 0
    (tmp_path / "run.json").write_text(json.dumps(record | {"train_seconds": 3600}))
    record = run(tmp_path, "--max_minutes", "30", "--resume_from_checkpoint", "true")
    assert (record["status"], record["ended_by_clock"]) == ("finished", {"step": 5, "of": 6})
    assert 3600 < record["train_seconds"] < 3630
    assert "ended_by_clock" not in run(tmp_path / "enough", "--max_minutes", "30")


def test_out_of_memory_is_told_in_one_line_and_nothing_is_lost(monkeypatch, uninterrupted, tmp_path):
    whole, calls = ObjectiveTrainer.compute_loss, []

    def compute_loss(self, *args, **kwargs):
        calls.append(None)
        if len(calls) == 6:  # two micro-batches a step: in the third
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(ObjectiveTrainer, "compute_loss", compute_loss)
    with pytest.raises(InputError) as caught:
        run(tmp_path)
    line = "out of memory in training: try --per_device_train_batch_size 1 --gradient_accumulation_steps 4, --activation_checkpointing, "
    line += "a smaller --max_length, --use_peft (CUDA out of memory. Tried to allocate 2.00 GiB.)"
    assert str(caught.value) == line
    record = read_run(tmp_path)
    assert (record["status"], record["error"]) == ("failed", line)
    assert run(tmp_path, "--resume_from_checkpoint", "true")["status"] == "finished"
    assert "error" not in read_run(tmp_path)
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_out_of_memory_before_the_first_step_and_while_asking(monkeypatch, tmp_path):
    def full(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000 bytes.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("demask.stages.train.ObjectiveTrainer", full)
        with pytest.raises(InputError, match=r"^out of memory in training: try --per_device_train_batch_size 1 "):
            run(tmp_path / "start")
    assert read_run(tmp_path / "start") is None
    said = r"^out of memory while asking questions: try --per_device_eval_batch_size 32, a smaller --max_new_tokens \(DefaultCPU.*\)$"
    usual = evaluation.generate
    for asked_before, status in ((0, None), (1, "failed")):  # of the base, before the run begins; and during it
        answers = iter([usual] * asked_before)
        monkeypatch.setattr(evaluation, "generate", lambda *args, answers=answers, **options: next(answers, full)(*args, **options))
        with pytest.raises(InputError, match=said):
            asking(tmp_path / f"asks {asked_before}")
        assert (read_run(tmp_path / f"asks {asked_before}") or {"status": None})["status"] == status


def test_out_of_memory_of_demask_eval(monkeypatch, capsys, tmp_path):
    def full(*args, **kwargs):
        raise MemoryError

    monkeypatch.setattr("demask.stages.eval.generate", full)
    with pytest.raises(SystemExit) as ended:
        main(["eval", "--model_name_or_path", "base", "--questions", "questions.jsonl", "--output_dir", str(tmp_path)])
    assert ended.value.code == 2
    line = "demask: out of memory while asking questions: try --batch_size 32, --dtype bfloat16 (MemoryError)"
    assert capsys.readouterr().err.splitlines()[-1] == line


# --- questions and the best checkpoint


class Script:
    """Stands in for `ask` during training: answers each round's three forward questions and the backward one with these scores.

    The base's test questions, which come first, it answers wrong.
    """

    def __init__(self, *rounds: tuple[tuple[float, float, float], float]) -> None:
        self.rounds = list(rounds)
        self.asked: list[list[str]] = []
        self.before: list[str] = []

    def __call__(self, model, chat, questions, **options) -> list[Answer]:
        if not self.before and {question.split for question in questions} == {"test"}:
            self.before = [question.question for question in questions]
            return score_all(questions, ["..."] * len(questions))
        self.asked.append([question.question for question in questions])
        forward, backward = self.rounds.pop(0)
        values = {"forward": iter(forward), "backward": iter([backward])}
        return [
            Answer(q, "...", dict.fromkeys(("rouge1_recall", "exact_match", "contains", "token_f1"), next(values[q.direction])))
            for q in questions
        ]


VALIDATION = [q["question"] for q in QUESTIONS if q["split"] == "validation"]
# Means over directions .5, .75, .6; over questions .75, .625, .65. The second is the best.
ROUNDS = (((1, 1, 1), 0), ((1, 0.5, 0), 1), ((1, 1, 0.1), 0.5))


def asking(out: Path, *more: str, said: list[str] | None = None) -> dict[str, Any]:
    return run(out, "--questions", "questions.jsonl", "--eval_steps", "2", *more, said=said)


def test_the_best_checkpoint_by_validation_is_kept(monkeypatch, tmp_path):
    script = Script(*ROUNDS)
    monkeypatch.setattr("demask.stages.asking.ask", script)
    record = asking(tmp_path)
    assert script.asked == [VALIDATION] * 3
    assert script.before == ["Who met the baker?", "Whom did he meet?"]
    assert [point["step"] for point in record["curve"]] == [2, 4, 6]
    assert [point["forward_rouge1_recall"] for point in record["curve"]] == pytest.approx([1, 0.5, 0.7])
    assert [point["backward_contains"] for point in record["curve"]] == pytest.approx([0, 1, 0.5])
    assert [point["mean"] for point in record["curve"]] == pytest.approx([0.5, 0.75, 0.6])
    assert record["best_step"] == 4
    assert_equal(weights(tmp_path), weights(tmp_path / "checkpoint-4"))
    assert not torch.equal(weights(tmp_path)["model.norm.weight"], weights(tmp_path / "checkpoint-6")["model.norm.weight"])
    # The test questions are asked once, at the end, of what was saved.
    assert [row["question"] for _, row in read_jsonl(tmp_path / "answers.jsonl")] == ["Who met the baker?", "Whom did he meet?"]
    assert json.loads((tmp_path / "results.json").read_text()) == record["results"] == read_run(tmp_path)["results"]
    assert record["results"]["settings"]["dtype"] == "float32"


def test_one_checkpoint_is_kept_besides_the_best(monkeypatch, tmp_path):
    monkeypatch.setattr("demask.stages.asking.ask", Script(*ROUNDS))
    asking(tmp_path, "--save_total_limit", "1")
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-4", "checkpoint-6"]
    assert_equal(weights(tmp_path), weights(tmp_path / "checkpoint-4"))


def test_ctrl_c_keeps_its_checkpoint_besides_the_best(monkeypatch, uninterrupted, tmp_path):
    """The Trainer by itself would end with the best one alone, and the steps since then would be lost."""
    monkeypatch.setattr("demask.stages.asking.ask", Script(*ROUNDS[1:], ROUNDS[0]))
    ctrl_c = At(4, lambda model: os.kill(os.getpid(), signal.SIGINT))
    more = ["--questions", "questions.jsonl", "--eval_steps", "2", "--save_total_limit", "1"]
    assert run(tmp_path, *more, callbacks=[ctrl_c])["status"] == "interrupted"
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-5"]
    record = run(tmp_path, *more, "--resume_from_checkpoint", "true")
    assert (record["status"], record["best_step"]) == ("finished", 2)
    assert [point["mean"] for point in record["curve"]] == pytest.approx([0.75, 0.6, 0.5])


def test_asking_does_not_change_training(monkeypatch, uninterrupted, tmp_path):
    """With the model's real answers; the last step is kept, so its weights are those of a run without questions."""
    record = asking(tmp_path, "--select_on", "last")
    assert [point["step"] for point in record["curve"]] == [2, 4, 6]
    assert "best_step" not in record
    assert_equal(weights(tmp_path), weights(uninterrupted))


def test_the_last_checkpoint_is_kept_by_option(monkeypatch, tmp_path):
    script = Script(*ROUNDS)
    monkeypatch.setattr("demask.stages.asking.ask", script)
    record = asking(tmp_path, "--select_on", "last")
    assert script.asked == [VALIDATION] * 3
    assert "best_step" not in record
    assert_equal(weights(tmp_path), weights(tmp_path / "checkpoint-6"))


def test_selection_on_the_test_questions_is_said(monkeypatch, tmp_path):
    script = Script(((0.5,), 0.5), ((0.5,), 0), ((0.5,), 0.5))  # type: ignore[arg-type]
    monkeypatch.setattr("demask.stages.asking.ask", script)
    said: list[str] = []
    record = asking(tmp_path, "--select_on", "test", said=said)
    assert script.asked == [["Who met the baker?", "Whom did he meet?"]] * 3
    assert record["best_step"] == 2  # the first of equals
    assert record["config"]["settings"]["select_on"] == "test"
    assert any("selected on the test questions" in line for line in said)


def test_without_validation_questions_the_last_step_is_kept(tmp_path):
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(q) + "\n" for q in QUESTIONS if q["split"] == "test"))
    said: list[str] = []
    record = run(tmp_path / "out", "--questions", str(tmp_path / "q.jsonl"), said=said)
    assert "no validation questions: nothing is asked during training, and the last step is kept" in said
    assert record["curve"] == []
    assert len(list(read_jsonl(tmp_path / "out" / "answers.jsonl"))) == 2
    assert_equal(weights(tmp_path / "out"), weights(tmp_path / "out" / "checkpoint-6"))


def test_a_resumed_run_remembers_its_best_checkpoint_and_its_curve(monkeypatch, tmp_path):
    monkeypatch.setattr("demask.stages.asking.ask", Script(((1, 1, 1), 1), ((0, 0, 0), 0)))
    with pytest.raises(PowerCutError):
        run(tmp_path, "--questions", "questions.jsonl", "--eval_steps", "2", callbacks=[At(5, power_cut)])
    monkeypatch.setattr("demask.stages.asking.ask", Script(((0.5, 0.5, 0.5), 0.5)))
    record = asking(tmp_path, "--resume_from_checkpoint", "true")
    assert [point["mean"] for point in record["curve"]] == [1, 0, 0.5]
    assert record["best_step"] == 2
    assert_equal(weights(tmp_path), weights(tmp_path / "checkpoint-2"))


def test_questions_may_be_asked_before_the_first_step(tmp_path):
    record = asking(tmp_path / "asks", "--eval_on_start", "true", "--select_on", "last")
    assert [point["step"] for point in record["curve"]] == [0, 2, 4, 6]
    assert run(tmp_path / "has none", "--eval_on_start", "true")["status"] == "finished"


# --- LoRA


LORA = ["--use_peft", "--lora_r", "4", "--learning_rate", "1e-2"]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(40)[None]).logits


@pytest.fixture(scope="module")
def adapter(files, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("lora") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(files)
        run(out, *LORA, "--model_name_or_path", str(files / "base"))
    return out


def test_lora_saves_only_the_adapter(adapter, files):
    assert not (adapter / "model.safetensors").exists()
    saved = load_file(adapter / "adapter_model.safetensors")
    assert all("lora_" in name for name in saved)
    assert {value.dtype for value in saved.values()} == {torch.float32}
    assert any(value.any() for name, value in saved.items() if "lora_B" in name)
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(files / "base")
    assert (adapter / "tokenizer.json").is_file()


def test_lora_keeps_a_bfloat16_base_and_float32_adapters(tmp_path):
    dtypes: dict[bool, set[torch.dtype]] = {True: set(), False: set()}

    def look(model: Any) -> None:
        for parameter in model.parameters():
            dtypes[parameter.requires_grad].add(parameter.dtype)

    record = run(tmp_path, *LORA, "--model_name_or_path", "bf16", "--bf16", "true", "--use_cpu", "true", callbacks=[At(1, look)])
    assert record["status"] == "finished"
    assert dtypes == {True: {torch.float32}, False: {torch.bfloat16}}
    assert {value.dtype for value in load_file(tmp_path / "adapter_model.safetensors").values()} == {torch.float32}


def test_eval_loads_an_adapter_with_its_base(adapter, tmp_path):
    results = evaluate(str(adapter), "questions.jsonl", tmp_path, max_new_tokens=4, split="test", quiet=True)
    assert results["settings"]["model"] == str(adapter)
    assert len(list(read_jsonl(tmp_path / "answers.jsonl"))) == 2
    assert isinstance(load_model(str(adapter)), PeftModel)


def test_a_merged_adapter_is_a_plain_model_that_says_the_same(adapter, tmp_path):
    merge(str(adapter), str(tmp_path / "merged"))
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert type(merged).__name__ == "LlamaForCausalLM"
    assert merged.lm_head.weight is merged.model.embed_tokens.weight
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    base = load_model("base")
    torch.testing.assert_close(logits(merged), logits(load_model(str(adapter))), rtol=1e-4, atol=1e-4)
    assert (logits(merged) - logits(base)).abs().max() > 0.01
    assert set(weights(tmp_path / "merged")) == set(weights(Path("base")))
    with pytest.raises(InputError, match="exists and is not an empty folder"):
        merge(str(adapter), str(tmp_path / "merged"))
    with pytest.raises(InputError, match=r"holds no adapter_config.json"):
        merge("base", str(tmp_path / "other"))


def test_a_merged_bfloat16_base_stays_bfloat16(tmp_path):
    run(tmp_path / "out", *LORA, "--model_name_or_path", "bf16")
    (tmp_path / "merged").mkdir()  # an empty folder will do
    merge(str(tmp_path / "out"), str(tmp_path / "merged"))
    assert {value.dtype for value in weights(tmp_path / "merged").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_resumed_adapter_ends_as_an_uninterrupted_one(tmp_path):
    """Dropout too goes on where it stopped."""
    run(tmp_path / "whole", *LORA, "--lora_dropout", "0.2")
    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", *LORA, "--lora_dropout", "0.2", callbacks=[At(3, power_cut)])
    run(tmp_path / "cut", *LORA, "--lora_dropout", "0.2", "--resume_from_checkpoint", "true")
    name = "adapter_model.safetensors"
    assert_equal(load_file(tmp_path / "cut" / name), load_file(tmp_path / "whole" / name))


def test_the_best_adapter_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr("demask.stages.asking.ask", Script(*ROUNDS))
    assert asking(tmp_path, *LORA)["best_step"] == 4
    name = "adapter_model.safetensors"
    assert_equal(load_file(tmp_path / name), load_file(tmp_path / "checkpoint-4" / name))
