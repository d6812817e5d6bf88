"""Fine-tune a model on documents, keep its best checkpoint, and ask the test questions of what was saved."""

from __future__ import annotations

import copy
import dataclasses
import gc
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from accelerate.utils import parse_flag_from_env
from transformers import BitsAndBytesConfig, TrainerCallback, set_seed
from transformers.utils.logging import disable_progress_bar

from demask.distributed import refuse_other_layout, sharding, whole_models
from demask.models.load import load_model, save_model, stored_dtype
from demask.packing import NAME as PADDING_FREE
from demask.packing import packable
from demask.runs import BEFORE, STOP, Run, newest_checkpoint, read_run
from demask.settings import TrainArguments, TrainSettings
from demask.shortage import advice_when_out_of_memory, empty_cache, is_out_of_memory, training_advice
from demask.stages.asking import asker, base_before, final_questions, limits, said_of_limit, tasks_before
from demask.stages.benchmarks import benchmarks
from demask.stages.clock import Clock
from demask.stages.eval import choose_shots, refuse_folder, refuse_long_questions
from demask.stages.plan import Plan, checkpoint_to_resume, make_plan
from demask.stages.precision import take_threads_of, weights_dtype
from demask.stages.prepare import discard
from demask.trainer import ObjectiveTrainer, Patience, StopOnRequest, stop_on_ctrl_c
from demask.types import InputError, answer_record, write_jsonl, write_questions
from demask.writing.cloze import AUTO

# What a resumed run must share with its beginning, or its data, or how they are rounded, would no longer be those of one run.
_SAME_AFTER_RESUME = (
    *("objective", "seed", "steps", "batch_size", "learning_rate", "tokens", "data"),
    *("torch_compile", "compute_dtype", "weights_dtype"),
)


def train(
    settings: TrainSettings,
    args: TrainArguments,
    say: Callable[[str], None] = print,
    callbacks: Sequence[TrainerCallback] = (),
    base_answers: Path | None = None,
) -> dict[str, Any]:
    """Run `settings` and return the record that stands in `<output_dir>/run.json`.

    The output folder gets the model (or adapter) and tokenizer in the standard layout, in the base's dtype; `checkpoint-*` folders; and,
    with questions, `answers.jsonl` and `results.json` of the test questions, asked once, in `eval_dtype`, of the model reloaded from
    disk, and `before.jsonl` of the same, asked of the base before the training (`base_answers`: a folder in which runs of a study share
    them).
    `select_on` "test" keeps the best checkpoint by the test questions themselves (the paper's protocol); the record says which was used.
    Ctrl-C, or a file named `stop` in the folder, saves a checkpoint and stops. `callbacks` go to the Trainer. Raises InputError, before
    anything is written but the examples of a corpus that does not fit in memory, for anything wrong in the input.
    """
    if not args.output_dir:
        raise InputError("output_dir: give the folder to write to with --output_dir")
    args = copy.copy(args)  # the plan fills it in, and the caller may use it again
    assert args.output_dir is not None
    folder = Path(args.output_dir)
    resuming = args.resume_from_checkpoint is not None and str(args.resume_from_checkpoint).lower() != "false"
    before = read_run(folder)
    if before and not resuming and not settings.dry_run:
        raise InputError(f"output_dir: '{folder}' already holds a run; choose another or continue it with --resume_from_checkpoint true")
    if resuming and before and not settings.dry_run:
        _refuse_ended(before, settings, folder)
    newest, lines = newest_checkpoint(folder) if resuming and not settings.dry_run else (None, [])
    checkpoint = checkpoint_to_resume(args, newest)
    lines += take_threads_of(before, args) if resuming else []
    with whole_models():
        plan = make_plan(settings, args, None if settings.dry_run else folder, (before or {}).get("plan") if resuming else None)
    if checkpoint:
        refuse_other_layout(checkpoint, sharding(args.use_cpu))
    if resuming and not settings.dry_run:
        lines.append(f"resuming from {checkpoint}" if checkpoint else "no complete checkpoint to resume from: starting at step 0")
    if resuming:
        _refuse_changed(before, plan)
    main = args.process_index == 0
    if not main:
        disable_progress_bar()
    if main:
        for line in [*lines, *plan.lines, *said_of_limit(settings, plan), *_warnings(settings, args)]:
            say(line)
    if settings.dry_run:
        return {"status": "planned", "plan": plan.numbers}
    shots = choose_shots(plan.questions, settings.few_shot, args.seed)[0] if plan.questions else []
    limit, known_limit = limits(settings, plan)
    refuse_long_questions(plan.questions, plan.chat, plan.config, limit, shots)
    refuse_long_questions(plan.known[0], plan.chat, plan.config, known_limit)
    refuse_folder(folder)
    tasks = tasks_before(settings, args, plan, before)
    asked, answers = base_before(settings, args, plan, before, base_answers)
    known = asked.get("retention", {})
    with advice_when_out_of_memory("in training", training_advice(settings, args)):
        trainer, stop = _trainer(settings, args, plan, callbacks)
    if args.distributed_state is not None:
        args.distributed_state.wait_for_everyone()  # a process that has yet to look into the folder would refuse it
    used = {name: (before or {}).get(name, 0.0) * bool(checkpoint) for name in ("train_seconds", "cpu_seconds")}
    run = Run(folder, _config(settings, args)) if main else None
    if run:
        if settings.questions == AUTO:
            write_questions(folder / "questions.jsonl", plan.questions)
        if answers:
            write_jsonl(folder / BEFORE, map(answer_record, answers))
        run.update(plan=plan.numbers, **used, **asked, **({"lm_eval": tasks} if tasks else {}))
    clock = Clock(settings.max_minutes, used["train_seconds"], *((say, run.update) if run else ()))
    trainer.add_callback(clock)
    status, record = "failed", dict[str, Any]()
    try:
        with advice_when_out_of_memory("in training", training_advice(settings, args)):
            outcome, record = _fit(trainer, stop, plan, checkpoint)
        record |= {name: round(record[name] + seconds, 2) for name, seconds in used.items()}
        if clock.ended and outcome == "finished":
            record["ended_by_clock"] = {"step": record["trained_steps"], "of": args.max_steps}
        # The trained model need not lie in memory beside the reloaded one; it and the trainer refer to each other.
        del trainer
        gc.collect()
        empty_cache()
        if outcome == "finished":
            record |= final_questions(settings, args, plan, known)
            if tasks:
                with whole_models():
                    record["lm_eval"] = benchmarks(settings, args, args.output_dir, "after", tasks)
        if outcome == "finished" and args.local_process_index == 0:
            discard(folder)
        status = outcome
    except InputError as error:
        record["error"] = str(error)
        raise
    finally:
        if run:
            run.finish(status, **record)
    return run.record if run else {"status": status, **record}


def _trainer(
    settings: TrainSettings, args: TrainArguments, plan: Plan, callbacks: Sequence[TrainerCallback]
) -> tuple[ObjectiveTrainer, StopOnRequest]:
    """The trainer with its model loaded, and the callback that stops it."""
    set_seed(args.seed)
    assert args.output_dir is not None
    model, stop = _load(settings, args, plan), StopOnRequest(Path(args.output_dir) / STOP)
    try:
        trainer = ObjectiveTrainer(
            model=model,
            args=args,
            objective=plan.objective,
            chat=plan.chat,
            schedule=plan.schedule,
            ask=asker(settings, args, plan) if plan.questions else None,
        )
    except (
        ImportError,
        RuntimeError,
        ValueError,
    ) as error:  # a tracker that is not installed, flags that go not together
        if is_out_of_memory(error):
            raise
        raise InputError(f"training arguments: {' '.join(str(error).split())[:300]}") from None
    patience = [Patience(settings.patience)] if settings.patience else []
    for callback in (stop, *patience, *callbacks):
        trainer.add_callback(callback)
    return trainer, stop


def _fit(trainer: ObjectiveTrainer, stop: StopOnRequest, plan: Plan, checkpoint: str | None) -> tuple[str, dict[str, Any]]:
    """Train and save; returns the status and what the record says of it."""
    start, cpu_start = time.perf_counter(), time.process_time()
    with stop_on_ctrl_c(stop):
        trainer.train(resume_from_checkpoint=checkpoint)
    if stop.file and trainer.is_world_process_zero():
        stop.file.unlink(missing_ok=True)
    state = trainer.state
    record: dict[str, Any] = {"trained_steps": state.global_step, "curve": _curve(state.log_history)}
    record["train_seconds"] = time.perf_counter() - start
    record["cpu_seconds"] = time.process_time() - cpu_start
    if stop.requested and state.global_step < trainer.args.max_steps:
        return "interrupted", record
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint:
        record["best_step"] = int(state.best_model_checkpoint.rsplit("-", 1)[1])
    _save(trainer, plan)
    return "finished", record


def _load(settings: TrainSettings, args: TrainArguments, plan: Plan) -> Any:
    """The base model as it is trained: fp32 weights for full fine-tuning; under LoRA a bf16 base (where native) with fp32 adapters.

    In 4 bits the base is held as QLoRA does (arXiv 2305.14314): normal floats, whose scales are quantised once more.
    """
    packed = PADDING_FREE if packable(plan.config) else None
    attention = settings.attn_implementation or packed
    options: dict[str, Any] = {"attn_implementation": attention} if attention else {}
    dtype = weights_dtype(settings, args)
    if settings.bidirectional:
        options["config"] = plan.config
    if settings.load_in_4bit:
        nf4 = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True, "bnb_4bit_compute_dtype": dtype}
        options["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, **nf4)
    model = load_model(plan.base, dtype, **options)
    if not settings.use_peft:
        return model
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules="all-linear" if settings.lora_target_modules in (None, ["all-linear"]) else settings.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    if args.gradient_checkpointing:
        model.enable_input_require_grads()
    try:
        return get_peft_model(model, lora)
    except ValueError as error:
        raise InputError(f"lora_target_modules: {' '.join(str(error).split())[:200]}") from None


def _curve(log_history: list[dict[str, Any]]) -> list[dict[str, float]]:
    """The log's evaluations, each with its step and without the Trainer's prefix."""
    points = []
    for entry in log_history:
        values = {key.removeprefix("eval_"): value for key, value in entry.items() if key.startswith("eval_")}
        if values:
            points.append({"step": entry["step"], **values})
    return points


def _save(trainer: ObjectiveTrainer, plan: Plan) -> None:
    """The model or adapter in the base's dtype, and the tokenizer. fp32 masters are for training only."""
    model, folder = trainer.accelerator.unwrap_model(trainer.model), trainer.args.output_dir
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped if trainer.is_deepspeed_enabled else trainer.model)
    assert folder is not None
    if trainer.args.should_save:  # ZeRO-3 gathers the weights for this process alone
        tied = getattr(model, "all_tied_weights_keys", None) or {}
        state |= {name: state[source] for name, source in tied.items() if name in state}  # what was gathered from shards is there twice
        if hasattr(model, "peft_config"):
            model.save_pretrained(folder, state_dict=state)
        else:
            save_model(model, folder, stored_dtype(plan.base), state)
        plan.chat.tokenizer.save_pretrained(folder)
    trainer.accelerator.wait_for_everyone()  # the others read it next


def _config(settings: TrainSettings, args: TrainArguments) -> dict[str, Any]:
    """The resolved configuration; tokens and keys are blanked by `to_sanitized_dict`."""
    theirs = json.loads(args.to_json_string())
    return {
        "settings": dataclasses.asdict(settings),
        "training": {k: v for k, v in theirs.items() if "token" not in k or isinstance(v, bool | int)},
    }


def _warnings(settings: TrainSettings, args: TrainArguments) -> list[str]:
    lines = []
    if settings.dtype == "bfloat16" and not settings.use_peft and (args.learning_rate or 0) < 1e-4:
        lines.append("warning: full fine-tuning of bfloat16 weights loses updates at this learning rate; use --dtype float32")
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and args.use_cpu:
        lines.append("note: accelerate shards on GPUs only: here every process holds the whole model")
    if settings.select_on == "test":
        lines.append("note: the best checkpoint is selected on the test questions (the paper's protocol): its test score is optimistic")
    return lines


def _refuse_ended(before: dict[str, Any], settings: TrainSettings, folder: Path) -> None:
    """A finished run that ended before its last step is not trained any further, unless with another patience than ended it."""
    step, steps = before.get("trained_steps"), before.get("plan", {}).get("steps")
    if before.get("status") != "finished" or step is None or steps is None or step >= steps:
        return
    ended_by = "max_minutes" if before.get("ended_by_clock") else "patience"
    if ended_by == "patience" and before.get("config", {}).get("settings", {}).get("patience") != settings.patience:
        return
    raise InputError(f"resume_from_checkpoint: {ended_by} ended the run in '{folder}' at step {step} of {steps}, and it is finished")


def _refuse_changed(before: dict[str, Any] | None, plan: Plan) -> None:
    was = (before or {}).get("plan", {})
    for name in _SAME_AFTER_RESUME:
        now = plan.numbers[name]
        if was.get(name, now) != now:
            raise InputError(f"resume_from_checkpoint: {name} was {was[name]} and is now {now}; a run continues only as it began")
