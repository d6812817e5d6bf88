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

import torch
from transformers import TrainerCallback, set_seed

from demask.decoding import Sampling
from demask.models.family import family
from demask.models.load import load_model, save_model, stored_dtype
from demask.runs import KNOWN_AFTER, KNOWN_BEFORE, STOP, Run, newest_checkpoint, read_run
from demask.scoring import summarise
from demask.settings import TrainArguments, TrainSettings
from demask.stages.benchmarks import benchmarks
from demask.stages.eval import ask, choose_shots, evaluate, refuse_folder, refuse_long_questions, retention
from demask.stages.plan import Plan, checkpoint_to_resume, make_plan
from demask.stages.prepare import discard
from demask.trainer import ObjectiveTrainer, StopOnRequest, stop_on_ctrl_c
from demask.types import InputError, write_questions
from demask.writing.cloze import AUTO

# What a resumed run must share with its beginning, or its data would no longer be those of one run.
_SAME_AFTER_RESUME = ("objective", "seed", "steps", "batch_size", "learning_rate", "tokens", "data")


def train(
    settings: TrainSettings, args: TrainArguments, say: Callable[[str], None] = print, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any]:
    """Run `settings` and return the record that stands in `<output_dir>/run.json`.

    The output folder gets the model (or adapter) and tokenizer in the standard layout, in the base's dtype; `checkpoint-*` folders; and,
    with questions, `answers.jsonl` and `results.json` of the test questions, asked once in fp32 of the model reloaded from disk.
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
    newest, lines = newest_checkpoint(folder) if resuming and not settings.dry_run else (None, [])
    checkpoint = checkpoint_to_resume(args, newest)
    plan = make_plan(settings, args, None if settings.dry_run else folder)
    if resuming and not settings.dry_run:
        lines.append(f"resuming from {checkpoint}" if checkpoint else "no complete checkpoint to resume from: starting at step 0")
    if resuming:
        _refuse_changed(before, plan)
    main = args.process_index == 0
    if main:
        for line in [*lines, *plan.lines, *_warnings(settings, args)]:
            say(line)
    if settings.dry_run:
        return {"status": "planned", "plan": plan.numbers}
    shots = choose_shots(plan.questions, settings.few_shot, args.seed)[0] if plan.questions else []
    refuse_long_questions(plan.questions, plan.chat, plan.config, settings.max_new_tokens, shots)
    refuse_long_questions(plan.known[0], plan.chat, plan.config, settings.max_new_tokens)
    refuse_folder(folder)
    tasks = _tasks_before(settings, args, plan, before) if main and settings.lm_eval_tasks else {}
    known = _known_before(settings, args, plan, before) if main and any(plan.known) else {}
    trainer, stop = _trainer(settings, args, plan, callbacks)
    if args.distributed_state is not None:
        args.distributed_state.wait_for_everyone()  # a process that has yet to look into the folder would refuse it
    run = Run(folder, _config(settings, args)) if main else None
    if run:
        if settings.questions == AUTO:
            write_questions(folder / "questions.jsonl", plan.questions)
        run.update(plan=plan.numbers, **({"retention": known} if known else {}), **({"lm_eval": tasks} if tasks else {}))
    status, record = "failed", dict[str, Any]()
    try:
        outcome, record = _fit(trainer, stop, plan, checkpoint)
        for name in ("train_seconds", "cpu_seconds"):
            record[name] = round(record[name] + (before or {}).get(name, 0.0) * bool(checkpoint), 2)
        # The trained model need not lie in memory beside the reloaded one; it and the trainer refer to each other.
        del trainer
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        if outcome == "finished" and main:
            record |= _final_questions(settings, args, plan, known)
            if tasks:
                record["lm_eval"] = benchmarks(settings, args, args.output_dir, "after", tasks)
        if outcome == "finished" and args.local_process_index == 0:
            discard(folder)
        status = outcome
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
            ask=_asker(settings, args, plan) if plan.questions else None,
        )
    except (ImportError, RuntimeError) as error:  # a tracker or optimiser that is not installed
        raise InputError(f"training arguments: {' '.join(str(error).split())[:300]}") from None
    for callback in (stop, *callbacks):
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
    """The base model as it is trained: fp32 weights for full fine-tuning; under LoRA a bf16 base (where native) with fp32 adapters."""
    options: dict[str, Any] = {"attn_implementation": settings.attn_implementation} if settings.attn_implementation else {}
    dtype = torch.bfloat16 if settings.use_peft and args.bf16 else torch.float32
    if settings.dtype != "auto":
        dtype = getattr(torch, settings.dtype)
    if settings.bidirectional:
        options["config"] = plan.config
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


def _sampling(settings: TrainSettings) -> Sampling | None:
    """A diffusion model's exact mode, one token a forward pass."""
    return Sampling(block_length=settings.block_length) if settings.objective == "diffusion" else None


def _asker(settings: TrainSettings, args: TrainArguments, plan: Plan) -> Callable[[Any], dict[str, float]]:
    split = "test" if settings.select_on == "test" else "validation"
    questions = [q for q in plan.questions if q.split == split]

    def asker(model: Any) -> dict[str, float]:
        answers = ask(
            model,
            plan.chat,
            questions,
            max_new_tokens=settings.max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
            sampling=_sampling(settings),
        )
        by_direction = summarise(answers)["by_direction"]
        metrics = {
            f"{direction}_{name}": leaf[name]["mean"] for direction, leaf in by_direction.items() for name in ("rouge1_recall", "contains")
        }
        means = [leaf["rouge1_recall"]["mean"] for leaf in by_direction.values()]
        return metrics | {"mean": sum(means) / len(means)}

    return asker


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
    model = trainer.accelerator.unwrap_model(trainer.model)
    state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.args.should_save:
        return
    assert trainer.args.output_dir is not None
    if hasattr(model, "peft_config"):
        model.save_pretrained(trainer.args.output_dir, state_dict=state)
    else:
        save_model(model, trainer.args.output_dir, stored_dtype(plan.base), state)
    plan.chat.tokenizer.save_pretrained(trainer.args.output_dir)


def _known_before(settings: TrainSettings, args: TrainArguments, plan: Plan, before: dict[str, Any] | None) -> dict[str, Any]:
    """What the base model knows, as `{"before": retention's}`; a resumed run has it in its record."""
    if before and "before" in before.get("retention", {}):
        return {"before": before["retention"]["before"]}
    return {"before": _ask_known(settings, args, plan, plan.base, KNOWN_BEFORE)}


def _tasks_before(settings: TrainSettings, args: TrainArguments, plan: Plan, before: dict[str, Any] | None) -> dict[str, Any]:
    """What lm-eval finds of the base model; a resumed run has it in its record."""
    return (before or {}).get("lm_eval") or benchmarks(settings, args, plan.base, "before")


def _ask_known(settings: TrainSettings, args: TrainArguments, plan: Plan, folder: str, answers_file: str) -> dict[str, Any]:
    """`retention` of the model in a folder, in fp32; the answers go to `answers_file` in the output folder."""
    assert args.output_dir is not None
    model = load_model(folder).to(args.device)
    sampling = _sampling(settings) if family(model.config) == "diffusion" else None
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "sampling": sampling}
    options["answers_file"] = Path(args.output_dir) / answers_file
    return retention(model, plan.chat, *plan.known, batch_size=args.per_device_eval_batch_size, seed=args.seed, **options)


def _final_questions(settings: TrainSettings, args: TrainArguments, plan: Plan, known: dict[str, Any]) -> dict[str, Any]:
    """Ask the test questions, and those about what was known, of the saved model; returns `results` and `retention` for the record."""
    test = [q for q in plan.questions if q.split == "test"]
    assert args.output_dir is not None
    if not test:
        found: dict[str, Any] = {"results": {}} if plan.questions else {}
        return found | ({"retention": known | {"after": _ask_known(settings, args, plan, args.output_dir, KNOWN_AFTER)}} if known else {})
    shots = [q for q in plan.questions if q.split == "validation"] if settings.few_shot else []
    results = evaluate(
        args.output_dir,
        [*shots, *test],
        args.output_dir,
        few_shot=settings.few_shot,
        split="test",
        retention_questions=plan.known[0],
        retention_documents=plan.known[1],
        max_new_tokens=settings.max_new_tokens,
        batch_size=args.per_device_eval_batch_size,
        sampling=_sampling(settings),
        seed=args.seed,
        system_prompt=settings.system_prompt,
        quiet=bool(args.disable_tqdm),
    )
    after = results.pop("retention", None)
    return {"results": results} | ({"retention": known | {"after": after}} if known else {})


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
    if settings.select_on == "test":
        lines.append("note: the best checkpoint is selected on the test questions (the paper's protocol): its test score is optimistic")
    return lines


def _refuse_changed(before: dict[str, Any] | None, plan: Plan) -> None:
    was = (before or {}).get("plan", {})
    for name in _SAME_AFTER_RESUME:
        now = plan.numbers[name]
        if was.get(name, now) != now:
            raise InputError(f"resume_from_checkpoint: {name} was {was[name]} and is now {now}; a run continues only as it began")
