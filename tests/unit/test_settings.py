"""What `demask train` is told: flags, YAML, which of them wins, and the recipe table's choice by size."""

from __future__ import annotations

from pathlib import Path

import pytest

from demask.recipes import recipe
from demask.settings import native_bf16, parse_train
from demask.types import InputError


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def parse(*flags: str, yaml: str | None = None):
    """The settings of these flags, with a YAML file before them."""
    if yaml is not None:
        Path("c.yaml").write_text(yaml, encoding="utf-8")
    return parse_train(["--output_dir", "out", *flags, *(["--config", "c.yaml"] if yaml is not None else [])])


def refused(*flags: str, yaml: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        parse(*flags, yaml=yaml)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_are_the_papers():
    settings, args = parse()
    assert settings.objective == "demask"
    # None is the objective's own: U(0.05, 0.95) once a batch for demask (tests/unit/test_plan.py).
    assert settings.mask_ratio is None
    assert settings.mask_ratio_per is None
    assert (args.weight_decay, args.adam_beta1, args.adam_beta2, args.max_grad_norm, args.warmup_steps) == (0.1, 0.9, 0.95, 1.0, 0.02)
    assert args.lr_scheduler_type == "constant_with_warmup"
    assert (args.num_train_epochs, args.learning_rate, args.per_device_train_batch_size) == (None, None, None)
    assert args.bf16 == native_bf16(args.use_cpu)
    assert args.report_to == []


def test_two_parses_share_no_list():
    parse()[0].documents.append("a.txt")
    assert parse()[0].documents == []


YAML = """
documents: [a.txt, b.jsonl]
questions: q.jsonl
mask_ratio: 0.5
use_peft: true
dry_run: false
lora_target_modules: [q_proj, v_proj]
learning_rate: 1e-4
max_steps: 7
bf16: false
system_prompt: null
instruction: "--- write it out ---"
answer_prefix: ""
seed: 12
save_total_limit:
lr_scheduler_kwargs: {num_cycles: 2}
logging-steps: 3
"""


def test_yaml_lists_numbers_booleans_null_and_mappings():
    settings, args = parse(yaml=YAML)
    assert settings.documents == ["a.txt", "b.jsonl"]
    assert settings.questions == "q.jsonl"
    assert settings.mask_ratio == [0.5]
    assert settings.use_peft is True
    assert settings.dry_run is False
    assert settings.lora_target_modules == ["q_proj", "v_proj"]
    assert settings.system_prompt is None
    assert settings.instruction == "--- write it out ---"
    assert settings.answer_prefix == ""
    assert (args.learning_rate, args.max_steps, args.bf16, args.seed, args.logging_steps) == (1e-4, 7, False, 12, 3)
    assert args.save_total_limit == 1  # null leaves the default
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert args.output_dir == "out"


def test_flags_override_yaml_and_yaml_overrides_defaults():
    settings, args = parse("--mask_ratio", "0.1", "0.2", "--documents", "c.md", "--use_peft", "false", "--seed", "1", yaml=YAML)
    assert settings.mask_ratio == [0.1, 0.2]
    assert settings.documents == ["c.md"]
    assert settings.use_peft is False
    assert args.seed == 1
    assert args.learning_rate == 1e-4


def test_the_place_of_config_among_the_flags_does_not_matter():
    Path("c.yaml").write_text("seed: 5\noutput_dir: from-yaml\n")
    for argv in (["--config", "c.yaml", "--seed", "6"], ["--seed", "6", "--config", "c.yaml"], ["--seed=6", "--config=c.yaml"]):
        _, args = parse_train(argv)
        assert (args.seed, args.output_dir) == (6, "from-yaml")


def test_a_yaml_scalar_stands_for_a_list_of_one():
    assert parse(yaml="documents: a.txt\nreplay: b.txt\n")[0].documents == ["a.txt"]


@pytest.mark.parametrize("name", ["bf16", "use_peft", "dry_run", "gradient_checkpointing"])
def test_a_boolean_flag_needs_no_value(name):
    settings, args = parse(f"--{name}", "--use_cpu")
    assert {**vars(args), **vars(settings)}[name] is True
    settings, args = parse(f"--{name}", "false")
    assert {**vars(args), **vars(settings)}[name] is False


def test_hyphens_do_for_underscores():
    assert parse("--mask-ratio", "0.5", "--learning-rate", "0.1")[0].mask_ratio == [0.5]


def test_a_home_folder_is_expanded():
    assert parse("--output_dir", "~/out")[1].output_dir == str(Path("~/out").expanduser())


REFUSED = {
    "unknown": (["--colour", "red"], "unknown argument --colour (see demask train --help)"),
    "abbreviated": (["--learning", "0.1"], "unknown argument --learning (see demask train --help)"),
    "float": (["--learning_rate", "x"], "argument --learning_rate/--learning-rate: invalid float value: 'x'"),
    "no value": (["--questions"], "argument --questions: expected one argument"),
    "no values": (["--documents"], "argument --documents: expected at least one argument"),
    "seed negative": (["--seed", "-1"], "seed: expected a number from 0 to 4294967295, found -1"),
    "seed large": (["--seed", str(2**32)], "seed: expected a number from 0 to 4294967295, found 4294967296"),
    "rate negative": (["--learning_rate", "-0.1"], "learning_rate: expected a number at least 0, found -0.1"),
    "rate nan": (["--learning_rate", "nan"], "learning_rate: expected a number at least 0, found nan"),
    "batch 0": (["--per_device_train_batch_size", "0"], "per_device_train_batch_size: expected a number at least 1, found 0"),
    "questions 0": (["--per_device_eval_batch_size", "0"], "per_device_eval_batch_size: expected a number at least 1, found 0"),
    "accumulation 0": (["--gradient_accumulation_steps", "0"], "gradient_accumulation_steps: expected a number at least 1, found 0"),
    "tokens 0": (["--max_new_tokens", "0"], "max_new_tokens: expected a number at least 1, found 0"),
    "length 0": (["--max_length", "0"], "max_length: expected a number at least 1, found 0"),
    "whole batch 0": (["--batch_size", "0"], "batch_size: expected a number at least 1, found 0"),
    "share 2": (["--mask_pattern_share", "2"], "mask_pattern_share: expected a number from 0 to 1, found 2.0"),
    "replay 1": (["--replay_share", "1"], "replay_share: expected a number from 0 to 0.99, found 1.0"),
    "rank 0": (["--lora_r", "0"], "lora_r: expected a number at least 1, found 0"),
    "dropout": (["--lora_dropout", "1.5"], "lora_dropout: expected a number from 0 to 1, found 1.5"),
    "no folder": (["--output_dir", ""], "output_dir: give the folder to write to with --output_dir"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_bad_flags(fault):
    flags, message = REFUSED[fault]
    assert refused(*flags) == message


def test_a_choice_is_refused_with_the_choices():
    message = refused("--objective", "magic")
    assert "--objective" in message
    assert "'demask', 'autoregressive'" in message


def test_what_transformers_refuses_is_one_line():
    assert refused("--lr_scheduler_type", "zigzag").startswith("training arguments: ")


def test_no_output_folder_is_refused_but_for_a_dry_run():
    with pytest.raises(InputError, match=r"^output_dir: give the folder to write to with --output_dir$"):
        parse_train(["--documents", "a"])
    assert parse_train(["--documents", "a", "--dry_run"])[0].dry_run is True


YAML_FAULTS = {
    "unknown": ("colour: red", "c.yaml: unknown field 'colour' (see demask train --help)"),
    "abbreviated": ("learning: 0.1", "c.yaml: unknown field 'learning' (see demask train --help)"),
    "help": ("help: true", "c.yaml: unknown field 'help' (see demask train --help)"),
    "another file": ("config: d.yaml", "c.yaml: unknown field 'config' (see demask train --help)"),
    "a list": ("- seed", "c.yaml: expected a mapping of flags to values, found a list"),
    "empty": ("", "c.yaml: expected a mapping of flags to values, found null"),
    "float": ("learning_rate: fast", "c.yaml: argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
    "integer": ("lora_r: 1.5", "c.yaml: argument --lora_r/--lora-r: invalid int value: '1.5'"),
    "empty list": ("documents: []", "c.yaml: argument --documents: expected at least one argument"),
    "two for one": ("seed: [1, 2]", "c.yaml: unknown argument 2 (see demask train --help)"),
}


@pytest.mark.parametrize("fault", YAML_FAULTS)
def test_bad_yaml(fault):
    content, message = YAML_FAULTS[fault]
    assert refused(yaml=content) == message


def test_yaml_that_cannot_be_read():
    assert refused("--config", "gone.yaml") == "gone.yaml: no such file"
    assert refused(yaml="seed: [1").startswith("c.yaml: not valid YAML (")


def test_bad_flags_are_found_before_a_yaml_file_is_read():
    assert refused("--colour", "red", "--config", "gone.yaml").startswith("unknown argument --colour")


B = 10**9
RECIPES = [
    # parameters, LoRA, objective: passes, rate, batch. From 1e9 parameters on full fine-tuning's are the paper's.
    (3.4e6, False, "demask", (130, 3e-4, 32)),
    (3.4e6, False, "autoregressive", (130, 3e-4, 32)),
    (3.4e6, True, "demask", (300, 5e-3, 32)),
    (0.135 * B, False, "demask", (60, 3e-4, 8)),
    (0.135 * B, False, "diffusion", (300, 3e-4, 8)),
    (0.6 * B, False, "reverse", (60, 1e-4, 8)),
    (0.6 * B, True, "autoregressive", (60, 5e-4, 8)),
    (0.6 * B, True, "diffusion", (300, 5e-4, 32)),
    (3.2 * B, False, "demask", (3000, 5e-6, 64)),
    (7.6 * B, False, "demask", (3000, 5e-6, 64)),
    (7.6 * B, True, "demask", (300, 1e-4, 64)),
    (8.03 * B, False, "demask", (3000, 3e-6, 64)),
    (8.03 * B, False, "autoregressive", (3000, 5e-6, 64)),
    (70 * B, True, "demask", (300, 1e-4, 64)),
]


@pytest.mark.parametrize(("parameters", "lora", "objective", "expected"), RECIPES)
def test_recipes(parameters, lora, objective, expected):
    chosen = recipe(objective, int(parameters), lora)
    assert (chosen.passes, chosen.learning_rate, chosen.batch_size) == expected


def test_a_recipe_that_forgets_says_so():
    assert "--replay" in recipe("demask", 135_000_000, False).caution
    assert recipe("demask", 5_000_000, False).caution == recipe("demask", 3 * B, False).caution == ""
