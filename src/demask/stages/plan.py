"""What a training run will do, worked out from the input alone: every fault of the input is found here, before weights load."""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SchedulerType
from transformers.utils import is_bitsandbytes_available

from demask.chat_format import ChatFormat
from demask.corpora.files import Notes, read_documents
from demask.decoding.diffusion import refuse_maskless
from demask.general import questions_or_general
from demask.masking import MaskRatio
from demask.models.family import family, make_bidirectional
from demask.models.load import (
    adapter_base,
    context_length,
    convertible,
    load_config,
    load_tokenizer,
    model_folder,
    module_names,
    parameter_counts,
)
from demask.models.mask_token import MaskToken, mask_candidates, record_mask
from demask.objectives import OBJECTIVES, Autoregressive, Diffusion
from demask.recipes import Recipe, recipe
from demask.schedule import Schedule
from demask.settings import TrainArguments, TrainSettings, check_settings
from demask.splits import assign_splits, said_of_splits
from demask.stages.benchmarks import check_tasks
from demask.stages.estimate import describe, estimate
from demask.stages.precision import how_computed
from demask.stages.prepare import Making, prepare
from demask.types import Document, InputError, Question, check_choices, read_questions
from demask.writing.cloze import AUTO

_TINY = 5e7


@dataclass
class Plan:
    """Everything a run needs but the weights; `lines` is what to tell the user, `numbers` what the record keeps."""

    base: str
    config: Any
    chat: ChatFormat
    objective: Any
    schedule: Schedule
    questions: list[Question]
    known: tuple[list[Question], list[Document]]  # what the model knows already: questions, and text
    lines: list[str]
    numbers: dict[str, Any]


def make_plan(settings: TrainSettings, args: TrainArguments, folder: Path | None = None, began: dict[str, Any] | None = None) -> Plan:
    """Read and check documents, questions and the model's configuration, and fill in `args` from the recipe table.

    The examples of many documents are kept in `folder` (see stages/prepare.py), without it for as long as the plan is. `began` are the
    `numbers` of the run that is resumed, which goes on with its mask token. Raises InputError for anything wrong in the input.
    """
    lines: list[str] = []
    check_settings({**vars(settings), **vars(args)})
    try:
        check_choices(settings)
    except ValueError as error:
        raise InputError(str(error)) from None
    if not settings.documents:
        raise InputError("documents: give at least one file, folder or data set with --documents")
    notes = Notes()
    questions = read_questions(settings.questions) if settings.questions and settings.questions != AUTO else []
    known = (
        questions_or_general(settings.retention_questions) if settings.retention_questions else [],
        read_documents(settings.retention_documents, settings.text_column, notes) if settings.retention_documents else [],
    )
    wanted = OBJECTIVES[settings.objective].family
    base = model_folder(settings.model_name_or_path, "causal" if settings.bidirectional else wanted)
    if settings.model_name_or_path is None:
        lines.append(f"model: the embedded one, {Path(base).parent.name}/{Path(base).name}; --model_name_or_path names another")
    if adapter_base(base):
        raise InputError(f"model '{base}': is a LoRA adapter; fold it into its base first (demask merge)")
    config, tokenizer = load_config(base), load_tokenizer(base)
    check_family(settings, config)
    check_tasks(settings.lm_eval_tasks, settings.lm_eval_include_path, config)
    if args.n_gpu > 1:  # the Trainer would spread each micro-batch over all of them, and the schedule knows nothing of that
        lines.append(f"{args.n_gpu} GPUs are here and one is used; for all: torchrun --nproc_per_node {args.n_gpu} -m demask train ...")
        args._n_gpu = 1
    chat = ChatFormat(tokenizer, settings.system_prompt)
    default = recipe(settings.objective, parameter_counts(config)[0], settings.use_peft)
    if default.caution and args.learning_rate is None and not settings.replay:
        lines.append(f"caution: {default.caution}")
    objective, masks = make_objective(settings, chat, default)
    if masks and settings.mask_token is None and began and "mask_token" in began:
        first = MaskToken(**began["mask_token"])
        masks = [first, *(mask for mask in masks if mask.id != first.id)]
    rehearsing = objective if objective.family == "diffusion" else Autoregressive()
    check_lora(settings, config)
    if settings.load_in_4bit and convertible(base):
        raise InputError(f"load_in_4bit: '{base}' is not in the native format; write it in that first (demask convert)")
    longest = min(context_length(config, tokenizer), settings.max_length or 10**9)
    making = Making(objective, rehearsing, chat, masks, longest)
    quiet = bool(args.disable_tqdm)
    made = prepare(settings, making, seed=args.seed, folder=folder, state=args.distributed_state, quiet=quiet)
    if made.mask:
        objective = replace(objective, mask_id=made.mask.id)
        lines.append(name_mask(chat.tokenizer, made.mask, masks, objective.family))
    lines += made.lines + notes.lines()
    questions = questions or made.questions
    lines += said_of_splits(questions)
    questions = assign_splits(questions, args.seed)
    split = "test" if settings.select_on == "test" else "validation"
    asked = [q for q in questions if q.split == split]
    if questions and not asked:
        lines.append(f"no {split} questions: nothing is asked during training, and the last step is kept")
    steps = fill_in(args, settings, config, default, len(made.examples), bool(asked), bool(made.replay))
    try:
        schedule = Schedule(
            made.examples,
            steps=steps,
            batch_size=global_batch(args),
            seed=args.seed,
            replay=made.replay,
            replay_share=settings.replay_share if made.replay else 0.0,
        )
    except ValueError as error:
        raise InputError(str(error)) from None
    numbers: dict[str, Any] = {"objective": repr(objective), "data": made.data, "seed": args.seed}
    numbers |= {"mask_token": asdict(made.mask)} if made.mask else {}
    numbers |= how_computed(settings, args)
    numbers |= estimate(schedule, made.sizes, made.replayed, config, settings, args)
    lines += describe(numbers, len(made.examples), questions, settings.max_minutes)
    return Plan(base, config, chat, objective, schedule, questions, known, lines, numbers)


def check_family(settings: TrainSettings, config: Any) -> None:
    """Refuse an objective that the model's attention does not fit; with `bidirectional`, make the configuration fit."""
    model = f"model '{settings.model_name_or_path or 'embedded'}'"
    if settings.objective == "diffusion" and settings.bidirectional:
        if family(config) == "diffusion":
            raise InputError(f"bidirectional: {model} is bidirectional already")
        if settings.use_peft:
            raise InputError("bidirectional: an adapter's base would be read left to right again; leave out use_peft")
        make_bidirectional(config, shifted_logits=True)
    elif settings.bidirectional:
        raise InputError(f"bidirectional: goes with the objective 'diffusion', not with '{settings.objective}'")
    elif settings.objective == "diffusion" and family(config) == "causal":
        raise InputError(
            f"{model}: it reads left to right, and 'diffusion' predicts hidden tokens from both sides; --bidirectional adapts it, "
            "which takes far more training than a few documents"
        )
    elif settings.objective != "diffusion" and family(config) == "diffusion":
        raise InputError(f"{model}: it is bidirectional (is_causal = false), and '{settings.objective}' trains left-to-right models")


def make_objective(settings: TrainSettings, chat: ChatFormat, default: Recipe) -> tuple[Any, list[MaskToken]]:
    """The objective, and candidates for the mask token of one that has it. What is None takes the recipe's value, else its own default."""
    kind = OBJECTIVES[settings.objective]
    refuse_others_options(settings)
    given = {name: value for name, value in vars(settings).items() if name in kind.__dataclass_fields__ and value is not None}
    given = {**default.options, **given}
    given.pop("mask_ratio", None)
    candidates: list[MaskToken] = []
    if kind is Diffusion and not settings.bidirectional and settings.mask_token is None:
        refuse_maskless(chat.tokenizer)
    masks = "mask_id" in kind.__dataclass_fields__
    if masks:
        rendered = chat.tokenizer.decode([*chat.head, *chat.middle, chat.end])
        around = (rendered, settings.instruction, settings.answer_prefix, settings.system_prompt, getattr(kind, "request", None))
        candidates = mask_candidates(chat.tokenizer, settings.mask_token, around)
        given["mask_id"] = candidates[0].id
    if kind is Diffusion and not settings.bidirectional:
        candidates = candidates[:1]  # the model was trained with one token as its mask, and another must not be guessed
    try:
        if masks and (settings.mask_ratio or settings.mask_ratio_schedule != "uniform"):
            ratio = settings.mask_ratio or [kind(mask_id=0).mask_ratio.low, kind(mask_id=0).mask_ratio.high]
            if len(ratio) > 2:
                raise InputError(f"mask_ratio: expected one or two numbers, found {len(ratio)}")
            given["mask_ratio"] = MaskRatio(ratio[0], ratio[-1], settings.mask_ratio_schedule)
        return kind(**given), candidates
    except ValueError as error:
        raise InputError(str(error)) from None


def name_mask(tokenizer: Any, mask: MaskToken, candidates: list[MaskToken], family: str) -> str:
    """Write the mask token into the tokenizer; returns the line about it and about the better candidates, which the documents hold."""
    record_mask(tokenizer, mask)
    if family == "diffusion" and mask.id in tokenizer.added_tokens_decoder and tokenizer.added_tokens_decoder[mask.id].special:
        tokenizer.mask_token = mask.token  # other programs read it there; an ordinary token would become special by it
    held = [other.token for other in itertools.takewhile(lambda other: other.id != mask.id, candidates)]
    why = f"; the documents hold {', '.join(held[:3])}{' and others' if held[3:] else ''}" if held else ""
    return f"mask token: {mask.token} (id {mask.id}; {mask.reason}{why})"


def refuse_others_options(settings: TrainSettings) -> None:
    """Raise InputError for a setting that only other objectives have: it would change nothing."""
    for name, field in TrainSettings.__dataclass_fields__.items():
        owners = [other for other, kind in OBJECTIVES.items() if name in kind.__dataclass_fields__]
        if owners and settings.objective not in owners and getattr(settings, name) != field.default:
            raise InputError(f"{name}: has no place in the objective '{settings.objective}' (only in {', '.join(owners)})")


def check_lora(settings: TrainSettings, config: Any) -> None:
    """Refuse 4 bits where they can't be had, and names of modules that the model lacks (a name stands for all modules of that name)."""
    if settings.load_in_4bit and not settings.use_peft:
        raise InputError("load_in_4bit: needs use_peft (weights of 4 bits can't be trained, only an adapter over them)")
    if settings.load_in_4bit and not is_bitsandbytes_available():
        raise InputError("load_in_4bit: needs bitsandbytes (pip install 'demask[gpu]')")
    if not settings.use_peft or settings.lora_target_modules in (None, [], ["all-linear"]):
        return
    names = module_names(config)
    for target in settings.lora_target_modules or ():
        if not any(f".{name}".endswith(f".{target}") for name in names):
            linear = sorted({name.rsplit(".", 1)[-1] for name in names if name.endswith("_proj")})
            raise InputError(f"lora_target_modules: '{target}' is no module of this model; some are {', '.join(linear) or names[-1]}")


def fill_in(
    args: TrainArguments, settings: TrainSettings, config: Any, default: Recipe, n_documents: int, asks: bool, replays: bool
) -> int:
    """Set what the user left to the recipe table, and what the schedule needs of the Trainer; returns the optimiser steps."""
    for flag in ("label_smoothing_factor", "auto_find_batch_size"):
        if getattr(args, flag):
            raise InputError(f"{flag}: has no place here (the objective computes the loss, and the schedule fixes the batch)")
    total, _ = parameter_counts(config)
    # A handful of documents would fill a batch with themselves, and be done in a few steps.
    batch_size = settings.batch_size or min(default.batch_size, max(n_documents, 8 if replays else 1))
    if args.learning_rate is None:
        args.learning_rate = default.learning_rate
    if not args.schedule_given:
        args.lr_scheduler_type = SchedulerType(default.schedule)
    if args.per_device_train_batch_size is None:
        share = max(1, batch_size // args.world_size)
        args.per_device_train_batch_size = share if total <= _TINY else min(8, share)
    if settings.batch_size:  # what is given for one device may be more than the share of one of many
        args.per_device_train_batch_size = min(args.per_device_train_batch_size, max(1, settings.batch_size // args.world_size))
    rows = args.per_device_train_batch_size * args.world_size
    if args.gradient_accumulation_steps is None:
        args.gradient_accumulation_steps = max(1, round(batch_size / rows))
    if settings.batch_size and global_batch(args) != settings.batch_size:
        raise InputError(
            f"batch_size: {settings.batch_size} is not {args.gradient_accumulation_steps} micro-batches of {rows} rows "
            "(gradient_accumulation_steps, per_device_train_batch_size x processes)"
        )
    if args.max_steps <= 0:
        visits = default.passes if args.num_train_epochs is None else args.num_train_epochs
        batch = global_batch(args)
        own = batch - max(1, round(settings.replay_share * batch)) if replays and settings.replay_share else batch
        args.max_steps = max(1, -(-round(visits * n_documents) // max(1, own)))
    args.num_train_epochs = 1
    args.dataloader_pin_memory = args.device.type not in ("cpu", "mps")  # Apple's GPU shares the memory
    args.train_sampling_strategy = "sequential"
    args.remove_unused_columns = False
    tenth = max(1, args.max_steps // 10)
    args.save_steps = args.save_steps or args.eval_steps or tenth
    args.eval_steps = args.eval_steps or tenth
    args.eval_strategy = IntervalStrategy.STEPS if asks else IntervalStrategy.NO
    args.eval_on_start = args.eval_on_start and asks
    selects = asks and settings.select_on != "last"
    if settings.patience and not selects:
        raise InputError("patience: needs validation questions, and select_on 'validation' or 'test', to tell what is better")
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
