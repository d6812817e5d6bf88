"""What a training run will do, worked out from the input alone: every fault of the input is found here, before weights load."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from transformers.trainer_utils import IntervalStrategy

from demask.chat_format import ChatFormat
from demask.corpora.files import read_documents, split_long
from demask.masking import MaskRatio, generator
from demask.models.load import context_length, load_config, load_tokenizer, model_folder, module_names, parameter_counts
from demask.models.mask_token import choose_mask_token, refuse_mask_in_documents
from demask.objectives import Autoregressive, Demask
from demask.schedule import Schedule
from demask.settings import TrainArguments, TrainSettings, recipe
from demask.types import Document, InputError, Question, read_questions

_SPLIT = 21  # stream of the seed
_TINY = 5e7


@dataclass
class Plan:
    """Everything a run needs but the weights; `lines` is what to tell the user, `numbers` what the record keeps."""

    base: str
    chat: ChatFormat
    objective: Any
    schedule: Schedule
    questions: list[Question]
    lines: list[str]
    numbers: dict[str, Any]


def make_plan(settings: TrainSettings, args: TrainArguments) -> Plan:
    """Read and check documents, questions and the model's configuration, and fill in `args` from the recipe table.

    Raises InputError for anything wrong in them.
    """
    lines: list[str] = []
    if not settings.documents:
        raise InputError("documents: give at least one file, folder or data set with --documents")
    documents = read_documents(settings.documents, settings.text_column)
    replay = read_documents(settings.replay, settings.text_column) if settings.replay else []
    questions = assign_splits(read_questions(settings.questions), args.seed) if settings.questions else []
    base = model_folder(settings.model_name_or_path)
    if settings.model_name_or_path is None:
        lines.append("model: the embedded one (a small Llama that knows a generated world); --model_name_or_path names another")
    config, tokenizer = load_config(base), load_tokenizer(base)
    if getattr(config, "is_causal", True) is False:
        raise InputError(
            f"model '{settings.model_name_or_path}': it is bidirectional, and '{settings.objective}' trains left-to-right models"
        )
    chat = ChatFormat(tokenizer, settings.system_prompt)
    objective, more = make_objective(settings, chat, [*documents, *replay])
    documents, long_lines = fit(documents, objective, chat, context_length(config, tokenizer), settings.on_long)
    replay, replay_lines = fit(replay, Autoregressive(), chat, context_length(config, tokenizer), settings.on_long)
    lines += more + long_lines + replay_lines
    examples = objective.examples(documents, chat)
    check_lora(settings, config)
    split = "test" if settings.select_on == "test" else "validation"
    asked = [q for q in questions if q.split == split]
    if questions and not asked:
        lines.append(f"no {split} questions: nothing is asked during training, and the last step is kept")
    steps = fill_in(args, settings, config, len(documents), bool(asked), bool(replay))
    try:
        schedule = Schedule(
            examples,
            steps=steps,
            batch_size=global_batch(args),
            seed=args.seed,
            replay=Autoregressive().examples(replay, chat),
            replay_share=settings.replay_share if replay else 0.0,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    numbers = estimate(schedule, objective, chat, config, settings, args)
    lines += describe(numbers, len(documents), questions)
    return Plan(base, chat, objective, schedule, questions, lines, numbers)


def make_objective(settings: TrainSettings, chat: ChatFormat, documents: Sequence[Document]) -> tuple[Any, list[str]]:
    """The objective, and the line that says which mask token it uses."""
    if settings.objective == "autoregressive":
        return Autoregressive(format=settings.format), []
    ratio = settings.mask_ratio * 2 if len(settings.mask_ratio) == 1 else settings.mask_ratio
    if len(ratio) != 2:
        raise InputError(f"mask_ratio: expected one or two numbers, found {len(ratio)}")
    mask = choose_mask_token(chat.tokenizer, settings.mask_token)
    refuse_mask_in_documents(mask, documents, chat.content)
    try:
        objective = Demask(
            mask_id=mask.id,
            mask_ratio=MaskRatio(ratio[0], ratio[1], settings.mask_ratio_schedule),
            mask_ratio_per=settings.mask_ratio_per,
            mask_pattern=settings.mask_pattern,
            mask_pattern_share=settings.mask_pattern_share,
            mask_unit=settings.mask_unit,
            corruption=settings.corruption,
            loss_on=settings.loss_on,
            instruction=settings.instruction,
            answer_prefix=settings.answer_prefix,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    return objective, [f"mask token: {mask.token} (id {mask.id}; {mask.reason})"]


def check_lora(settings: TrainSettings, config: Any) -> None:
    """Refuse names of modules that the model does not have (a name stands for all modules whose own name it is)."""
    if not settings.use_peft or settings.lora_target_modules in (None, [], ["all-linear"]):
        return
    names = module_names(config)
    for target in settings.lora_target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in names):
            linear = sorted({name.rsplit(".", 1)[-1] for name in names if name.endswith("_proj")})
            raise InputError(f"lora_target_modules: '{target}' is no module of this model; some are {', '.join(linear) or names[-1]}")


def assign_splits(questions: list[Question], seed: int) -> list[Question]:
    """Questions without a split get one by their document: a fifth of the documents, by seeded hash, is validation, the rest is test."""

    def split(question: Question) -> str:
        key = crc32((question.document or question.question).encode())
        return "validation" if generator(seed, _SPLIT, key).random() < 0.2 else "test"

    return [question if question.split else replace(question, split=split(question)) for question in questions]


def fit(documents: list[Document], objective: Any, chat: ChatFormat, context: int, on_long: Any) -> tuple[list[Document], list[str]]:
    """The documents, each short enough for its whole training example to fit the context, and a line for each that was not."""

    def size(document: Document) -> int:
        return objective.size(objective.examples([document], chat)[0], chat)[0]

    def length(text: str) -> int:
        return len(chat.content(text))

    fitting: list[Document] = []
    lines: list[str] = []
    for document in documents:
        whole = size(document)
        if whole <= context:
            fitting.append(document)
            continue
        around = size(replace(document, text=""))  # template, instruction, and a pair's prompt
        copies = (whole - around) // length(document.text)
        prompt = 0 if document.prompt is None else length(document.prompt)
        parts, notes = split_long([document], length, prompt + (context - around) // copies, on_long)
        fitting += parts
        lines += notes
    return fitting, lines


def fill_in(args: TrainArguments, settings: TrainSettings, config: Any, n_documents: int, asks: bool, replays: bool) -> int:
    """Set what the user left to the recipe table, and what the schedule needs of the Trainer; returns the optimiser steps."""
    for flag in ("label_smoothing_factor", "auto_find_batch_size"):
        if getattr(args, flag):
            raise InputError(f"{flag}: has no place here (the objective computes the loss, and the schedule fixes the batch)")
    total, _ = parameter_counts(config)
    default = recipe(settings.objective, total, settings.use_peft)
    if args.learning_rate is None:
        args.learning_rate = default.learning_rate
    if args.per_device_train_batch_size is None:
        args.per_device_train_batch_size = default.batch_size if total <= _TINY else 8
    if args.gradient_accumulation_steps is None:
        rows = args.per_device_train_batch_size * args.world_size
        args.gradient_accumulation_steps = max(1, round(default.batch_size / rows))
    if args.max_steps <= 0:
        visits = default.visits if args.num_train_epochs is None else args.num_train_epochs
        batch = global_batch(args)
        own = batch - max(1, round(settings.replay_share * batch)) if replays and settings.replay_share else batch
        args.max_steps = max(1, -(-round(visits * n_documents) // max(1, own)))
    args.num_train_epochs = 1
    args.use_cpu = args.use_cpu or not torch.cuda.is_available()
    if args.bf16 is None:
        args.bf16 = not args.fp16 and native_bf16(args.use_cpu)
        if args.bf16:
            args.mixed_precision = "bf16"  # TrainingArguments has taken the missing flag for a no
    args.dataloader_pin_memory = not args.use_cpu
    args.train_sampling_strategy = "sequential"
    args.remove_unused_columns = False
    tenth = max(1, args.max_steps // 10)
    args.save_steps = args.save_steps or args.eval_steps or tenth
    args.eval_steps = args.eval_steps or tenth
    args.eval_strategy = IntervalStrategy.STEPS if asks else IntervalStrategy.NO
    args.eval_on_start = args.eval_on_start and asks
    selects = asks and settings.select_on != "last"
    if selects and args.save_strategy != "steps":
        raise InputError("save_strategy: keeping the best checkpoint needs 'steps'; or give --select_on last")
    if selects:
        args.save_steps = args.eval_steps
        if args.save_total_limit == 1:  # the Trainer would end an interrupted run by deleting its newest checkpoint for the best
            args.save_total_limit = 2
    args.load_best_model_at_end = selects
    args.metric_for_best_model = "eval_mean" if selects else None
    args.greater_is_better = True if selects else None
    return args.max_steps


def global_batch(args: TrainArguments) -> int:
    assert args.per_device_train_batch_size is not None
    assert args.gradient_accumulation_steps is not None
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def native_bf16(cpu: bool) -> bool:
    """Whether this machine's CPU or GPU multiplies bfloat16 matrices in hardware."""
    if not cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def estimate(
    schedule: Schedule, objective: Any, chat: ChatFormat, config: Any, settings: TrainSettings, args: TrainArguments
) -> dict[str, Any]:
    """Steps, visits, tokens read and trained on, FLOPs, and rough peak memory (GiB) and time (s).

    FLOPs: 6 per parameter and token (4 with frozen weights), the head at targets only. Memory: weights, gradients and AdamW's moments, and
    the activations of one micro-batch. Time: the FLOPs at 30% of this device's rate of matrix products, measured for a moment.
    """
    sizes = [objective.size(example, chat) for example in schedule.examples]
    replayed = [Autoregressive().size(example, chat) for example in schedule.replay]
    own_rows, replay_rows = schedule.steps * (schedule.batch_size - schedule.replay_slots), schedule.steps * schedule.replay_slots
    tokens = sum(s[0] for s in sizes) / len(sizes) * own_rows + (
        sum(s[0] for s in replayed) / len(replayed) * replay_rows if replayed else 0
    )
    targets = sum(s[1] for s in sizes) / len(sizes) * own_rows + (
        sum(s[1] for s in replayed) / len(replayed) * replay_rows if replayed else 0
    )
    total, multiplied = parameter_counts(config)
    text_config = config.get_text_config()
    head = text_config.vocab_size * text_config.hidden_size
    flops = (4 if settings.use_peft else 6) * ((multiplied - head) * tokens + head * targets)
    longest = max(s[0] for s in [*sizes, *replayed])
    micro = longest * (args.per_device_train_batch_size or 1)
    weight_bytes = (2.2 if settings.use_peft else 16) * total
    activation_bytes = micro * text_config.num_hidden_layers * text_config.hidden_size * 40 + micro / 2 * text_config.vocab_size * 10
    seconds = flops / args.world_size / (0.3 * matmul_rate(bool(args.bf16), args.use_cpu))
    return {
        "parameters": total,
        "steps": schedule.steps,
        "visits": round(schedule.visits, 2),
        "batch_size": schedule.batch_size,
        "learning_rate": args.learning_rate,
        "tokens": round(tokens),
        "target_tokens": round(targets),
        "longest": longest,
        "flops": flops,
        "memory_gib": round((weight_bytes + activation_bytes) / 2**30, 2),
        "seconds": round(seconds, 1),
    }


def matmul_rate(bf16: bool, cpu: bool) -> float:
    """FLOP/s of this device on a square product in the compute dtype."""
    device, size = ("cpu", 512) if cpu else ("cuda", 4096)
    a = torch.ones(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    rates = []
    for _ in range(8):
        start = time.perf_counter()
        (a @ a)[0, 0].item()
        rates.append(2 * size**3 / (time.perf_counter() - start))
    return max(rates)


def describe(numbers: dict[str, Any], n_documents: int, questions: Sequence[Question]) -> list[str]:
    """The plan in words."""
    n = numbers
    asked = {split: sum(q.split == split for q in questions) for split in ("validation", "test")}
    minutes = n["seconds"] / 60
    lines = [
        f"data: {n_documents:,} documents, the longest example {n['longest']:,} tokens"
        + (f"; questions: {asked['validation']:,} validation, {asked['test']:,} test" if questions else "; no questions"),
        f"plan: {n['steps']:,} steps of {n['batch_size']} rows, {n['visits']:,} visits of each document, "
        f"learning rate {n['learning_rate']:g}; {n['tokens']:,} tokens read, {n['target_tokens']:,} trained on",
        f"rough estimate: {n['memory_gib']:.1f} GiB of memory, "
        + (f"{minutes:,.0f} minutes" if minutes >= 2 else f"{n['seconds']:.0f} seconds")
        + " on this machine, without asking questions",
    ]
    return lines


def checkpoint_to_resume(args: TrainArguments, newest: Path | None) -> str | None:
    """The checkpoint to continue from: the newest for "true", or the one named; None to start anew. InputError for an incomplete one."""
    wish = args.resume_from_checkpoint
    if wish is None or str(wish).lower() == "false":
        return None
    if str(wish).lower() == "true":
        return str(newest) if newest else None
    if not (Path(wish) / "trainer_state.json").is_file():
        raise InputError(f"resume_from_checkpoint: '{wish}' is not a complete checkpoint (no trainer_state.json)")
    return str(wish)
