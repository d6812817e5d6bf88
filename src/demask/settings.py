"""What `demask train` can be told: our own settings, and transformers' TrainingArguments with the method's defaults."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

import torch
import yaml
from transformers import HfArgumentParser, TrainingArguments
from transformers.hf_argparser import string_to_bool

from demask.recipes import CONSTANT
from demask.types import InputError, json_type, read_text

# Liger's own losses would replace the forward pass that takes logits at the targets only.
LIGER = {"cross_entropy": False, "fused_linear_cross_entropy": False}


@dataclass
class TrainSettings:
    """The model, the data and the objective. Every field is a flag of `demask train`."""

    documents: list[str] = field(
        default_factory=list,
        metadata={"help": "Folders or files (.txt .md .html .pdf .jsonl .json .csv .parquet), or a Hugging Face data set."},
    )
    questions: str | None = field(
        default=None,
        metadata={"help": "questions.jsonl to ask during training and at the end; 'auto' makes them of the documents themselves."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Folder, hub name or GGUF file; without it the small embedded model is used."}
    )
    objective: Literal["demask", "autoregressive", "diffusion", "reverse", "meap"] = field(
        default="demask", metadata={"help": "What to train on."}
    )
    bidirectional: bool = field(
        default=False, metadata={"help": "diffusion: adapt a left-to-right model, whose logits stay those of the next token."}
    )
    text_column: str = field(default="text", metadata={"help": "The documents' text field or column."})
    on_long: Literal["split", "truncate", "error"] = field(
        default="split",
        metadata={"help": "What to do with a document that is too long: split at paragraph and sentence ends, truncate, or stop."},
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens of the longest training example (default: the model's context); see on_long."}
    )
    batch_size: int | None = field(
        default=None, metadata={"help": "Examples of an optimiser step, over all devices and micro-batches (default: by the recipe table)."}
    )
    replay: list[str] = field(
        default_factory=list, metadata={"help": "Documents or prompt/response pairs to rehearse along with the new ones."}
    )
    replay_share: float = field(default=0.1, metadata={"help": "Their share of every batch, where --replay is given."})
    retention_questions: str | None = field(
        default=None,
        metadata={"help": "questions.jsonl about what the model already knows, asked before and after, or 'general': questions of ours."},
    )
    retention_documents: list[str] = field(
        default_factory=list, metadata={"help": "Documents it is not trained on, whose loss is measured before and after."}
    )
    lm_eval_tasks: list[str] = field(
        default_factory=list,
        metadata={"help": "Tasks of lm-evaluation-harness, asked of the base model before and of the saved one after."},
    )
    lm_eval_include_path: str | None = field(default=None, metadata={"help": "Folder with task files of your own for --lm_eval_tasks."})
    few_shot: int = field(default=0, metadata={"help": "Answered questions shown before each test question at the end."})
    select_on: Literal["validation", "test", "last"] = field(
        default="validation",
        metadata={"help": "Questions by which the best checkpoint is kept; 'test' is the paper's protocol, 'last' keeps the last step."},
    )
    patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations in a row without a better mean of both directions."}
    )
    max_minutes: float | None = field(
        default=None, metadata={"help": "End the run after so many minutes of training, at the end of a step, and keep its result."}
    )
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and stop."})
    system_prompt: str | None = field(default=None, metadata={"help": "System prompt of every exchange, for templates that take one."})
    mask_token: str | None = field(
        default=None,
        metadata={"help": "The token that stands for a hidden one (default: one that the documents do not hold)."},
    )
    format: Literal["chat", "raw"] | None = field(
        default=None,
        metadata={"help": "The document as a chat answer (autoregressive's default), or BOS text EOS (diffusion's)."},
    )
    mask_ratio: list[float] | None = field(
        default=None,
        metadata={"help": "LOW HIGH of the uniform mask ratio, or one fixed one (default: 0.05 0.95; diffusion: 0 1; meap: 0.15)."},
    )
    mask_ratio_schedule: Literal["uniform", "high", "linear"] = field(
        default="uniform", metadata={"help": "Draw the ratio evenly, draw more of the high ones, or move it from LOW to HIGH."}
    )
    mask_ratio_per: Literal["batch", "example", "stratified"] | None = field(
        default=None,
        metadata={"help": "Draw the ratio once a batch (the paper), per example, or spread it evenly (default: by the recipe table)."},
    )
    mask_pattern: Literal["independent", "window", "mix"] | None = field(
        default=None,
        metadata={"help": "Mask tokens independently (the paper), all but one window, or a mix of both (default: by the recipe table)."},
    )
    mask_pattern_share: float = field(default=0.5, metadata={"help": "The share of windows in the mix."})
    mask_unit: Literal["token", "word"] = field(default="token", metadata={"help": "Hide tokens or whole words."})
    corruption: Literal["mask", "random"] = field(
        default="mask", metadata={"help": "'random' is the control: every prompt token is random."}
    )
    loss_on: Literal["all", "masked"] | None = field(
        default=None,
        metadata={"help": "Train on all tokens or the hidden ones (default: all of a document, the hidden ones of a response)."},
    )
    loss_weights: Literal["1/t", "uniform"] = field(
        default="1/t", metadata={"help": "diffusion: weights of the hidden tokens; 1/t makes the loss a bound on the likelihood."}
    )
    eos_padding: int = field(
        default=0, metadata={"help": "diffusion: at most so many more ends after an answer's own, drawn at each visit."}
    )
    crop_share: float = field(
        default=0.0, metadata={"help": "So often a document is shown from a token of its first half on, not from its first."}
    )
    plain_share: float = field(default=0.0, metadata={"help": "demask: so often a document is shown as plain training shows it."})
    collapse_masks: bool = field(default=False, metadata={"help": "demask: a run of hidden tokens is one mask token in the prompt."})
    complementary: bool = field(default=False, metadata={"help": "demask: every other visit hides what the one before it showed."})
    block_length: int = field(default=32, metadata={"help": "diffusion: answers are written in blocks of so many tokens."})
    instruction: str | None = field(default=None, metadata={"help": "What stands after the masked text (default: the paper's)."})
    answer_prefix: str | None = field(
        default=None, metadata={"help": "What stands before the answer, without loss (default: the paper's)."}
    )
    attn_implementation: str | None = field(
        default=None,
        metadata={"help": "sdpa, eager, flash_attention_2, ... (default: padding-free rows where the model allows, else the model's)."},
    )
    dtype: Literal["auto", "float32", "bfloat16"] = field(
        default="auto", metadata={"help": "Of the weights while training: auto is float32 for full fine-tuning and bfloat16 under LoRA."}
    )
    use_peft: bool = field(default=False, metadata={"help": "Train a LoRA adapter instead of all weights."})
    load_in_4bit: bool = field(default=False, metadata={"help": "QLoRA: hold the adapter's base in 4 bits (bitsandbytes)."})
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale."})
    lora_dropout: float = field(default=0.0, metadata={"help": "LoRA dropout."})
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules to adapt (default: all linear layers but the head)."}
    )
    eval_dtype: Literal["float32", "bfloat16"] = field(
        default="float32", metadata={"help": "Of the weights while the questions before and after are answered; bfloat16 is faster."}
    )
    max_new_tokens: int | None = field(
        default=None,
        metadata={"help": "The longest answer to a question, in tokens (default: three times the longest right one, at least 16)."},
    )


@dataclass
class TrainArguments(TrainingArguments):
    """TrainingArguments with the method's defaults (arXiv 2510.09885); None is filled in from the recipe table."""

    num_train_epochs: float | None = field(default=None, metadata={"help": "Visits of every document (default: by the recipe table)."})  # type: ignore[assignment]
    learning_rate: float | None = field(default=None, metadata={"help": "Peak learning rate (default: by the recipe table)."})  # type: ignore[assignment]
    per_device_train_batch_size: int | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Rows of a device's micro-batch (default: 8, or the whole batch for the smallest models)."}
    )
    bf16: bool | None = field(default=None, metadata={"help": "Compute in bfloat16 (default: where the device does natively)."})  # type: ignore[assignment]
    gradient_accumulation_steps: int | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Micro-batches of an optimiser step (default: what reaches the recipe's batch)."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Questions asked at once."})
    lr_scheduler_type: str | None = field(default=None, metadata={"help": "Learning-rate schedule (default: by the recipe table)."})  # type: ignore[assignment]
    warmup_steps: float = field(default=0.02, metadata={"help": "Warm-up steps, or below 1 their share of all."})
    weight_decay: float = field(default=0.1, metadata={"help": "AdamW's weight decay (none on norms and biases)."})
    adam_beta2: float = field(default=0.95, metadata={"help": "AdamW's second beta."})
    eval_steps: float | None = field(default=None, metadata={"help": "Ask the questions every so many steps (default: ten times in all)."})
    save_steps: float = field(default=0, metadata={"help": "Save a checkpoint every so many steps (default: ten times in all)."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept, besides the best."})
    logging_steps: float = field(default=10, metadata={"help": "Log the loss every so many steps."})
    seed: int = field(default=0, metadata={"help": "Seed of every random choice."})

    def __post_init__(self) -> None:
        self.schedule_given = self.lr_scheduler_type is not None
        self.lr_scheduler_type = self.lr_scheduler_type or CONSTANT
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        if self.bf16 is None:
            self.bf16 = not self.fp16 and native_bf16(self.use_cpu)
        if self.use_liger_kernel and self.liger_kernel_config is None:
            self.liger_kernel_config = dict(LIGER)
        super().__post_init__()


def native_bf16(cpu: bool) -> bool:
    """Whether this machine's CPU or GPU multiplies bfloat16 matrices in hardware."""
    if cpu:
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)


class _Parser(HfArgumentParser):
    """Accepts whole flag names only, and says in one line what is wrong."""

    def __init__(self) -> None:
        types: Any = (TrainSettings, TrainArguments)
        super().__init__(types, prog="demask train", allow_abbrev=False)
        self.add_argument("--config", help="YAML file of these flags; those given on the command line override it.")
        for action in self._actions:
            if action.type is string_to_bool:  # also those whose default is None: `--bf16` alone means true
                action.nargs, action.const = "?", True

    def error(self, message: str) -> NoReturn:
        raise InputError(message)


def parse_train(argv: Sequence[str]) -> tuple[TrainSettings, TrainArguments]:
    """The settings of `demask train` from its flags, those of a `--config` file placed before them. InputError for a bad one."""
    parser = _Parser()
    namespace = _parse(parser, argv)
    if namespace.config is not None:
        from_file = _yaml_flags(namespace.config, parser)
        try:
            _parse(parser, from_file)
        except InputError as error:
            raise InputError(f"{namespace.config}: {error}") from None
        namespace = _parse(parser, [*from_file, *argv])
    values = {name: value for name, value in vars(namespace).items() if name != "config"}
    check_settings(values)
    try:
        settings, args, *_ = parser.parse_dict(values)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise InputError(f"training arguments: {' '.join(str(error).split())[:300]}") from None
    return settings, args


def _parse(parser: _Parser, argv: Sequence[str]) -> Namespace:
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        raise InputError(f"unknown argument {unknown[0]} (see demask train --help)")
    return namespace


# Numbers that would otherwise end in a traceback, some of them only after hours: flag to (lowest, highest).
_RANGES: dict[str, tuple[float, float | None]] = {
    "seed": (0, 2**32 - 1),
    "learning_rate": (0, None),
    "num_train_epochs": (0, None),
    "per_device_train_batch_size": (1, None),
    "per_device_eval_batch_size": (1, None),
    "gradient_accumulation_steps": (1, None),
    "max_new_tokens": (1, None),
    "max_length": (1, None),
    "batch_size": (1, None),
    "replay_share": (0, 0.99),
    "max_minutes": (0, None),
    "mask_pattern_share": (0, 1),
    "eos_padding": (0, None),
    "few_shot": (0, None),
    "patience": (1, None),
    "block_length": (1, None),
    "lora_r": (1, None),
    "lora_dropout": (0, 1),
}


def check_settings(values: dict[str, Any]) -> None:
    """Raise InputError for a number out of range, by the names of TrainSettings and TrainArguments."""
    for name, (low, high) in _RANGES.items():
        value = values[name]
        if value is not None and not (value >= low and (high is None or value <= high)):
            wanted = f"at least {low}" if high is None else f"from {low} to {high}"
            raise InputError(f"{name}: expected a number {wanted}, found {value}")
    if values["deepspeed"]:
        raise InputError(
            "deepspeed: give it to the launcher (accelerate launch --config_file configs/accelerate/deepspeed_zero2.yaml -m demask ...)"
        )
    if not values["output_dir"] and not values["dry_run"]:
        raise InputError("output_dir: give the folder to write to with --output_dir")


def _yaml_flags(path: str, parser: HfArgumentParser) -> list[str]:
    """A YAML mapping of flag names to values as the arguments it stands for; null leaves a flag at its default."""
    try:
        values = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a mapping of flags to values, found {json_type(values)}")
    known = {option for action in parser._actions for option in action.option_strings} - {"--help", "--config"}
    for name in values:
        if f"--{name}" not in known:
            raise InputError(f"{path}: unknown field '{name}' (see demask train --help)")
    return as_flags(values)


def as_flags(values: dict[str, Any]) -> list[str]:
    """A mapping of flag names to values as the arguments of `demask train` it stands for; None leaves a flag at its default."""
    flags: list[str] = []
    for name, value in values.items():
        if isinstance(value, list):
            flags += [f"--{name}", *map(_yaml_text, value)]
        elif value is not None:
            flags.append(f"--{name}={_yaml_text(value)}")  # in one piece, as a value may begin with a dash
    return flags


def _yaml_text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | bool) else str(value)
