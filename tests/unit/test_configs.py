"""Every file in configs/ parses, and says what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env

from demask.settings import parse_train

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs").glob("*.yaml"))


def test_there_are_configs() -> None:
    assert {path.stem for path in CONFIGS} >= {"autoregressive", "demask", "demask_full", "embedded", "masked_sft"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_line_of_a_config_takes_effect(path: Path) -> None:
    written: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings, args = parse_train(["--config", str(path)])
    parsed = {**vars(args), **vars(settings)}
    for name, value in written.items():
        if isinstance(parsed[name], list) and not isinstance(value, list):
            value = [value]
        assert parsed[name] == value, name


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_has_an_output_folder_of_its_own(path: Path) -> None:
    _, args = parse_train(["--config", str(path)])
    assert args.output_dir == f"runs/{path.stem}"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_flag_overrides_the_config(path: Path) -> None:
    settings, args = parse_train(["--config", str(path), "--documents", "a", "b", "--output_dir", "elsewhere", "--learning_rate", "0.25"])
    assert (settings.documents, args.output_dir, args.learning_rate) == (["a", "b"], "elsewhere", 0.25)


def test_the_baseline_differs_from_demask_in_the_objective_alone() -> None:
    folder = CONFIGS[0].parent
    demask, training = parse_train(["--config", str(folder / "demask.yaml")])
    baseline, its_training = parse_train(["--config", str(folder / "autoregressive.yaml")])
    assert {name for name, value in vars(demask).items() if vars(baseline)[name] != value} == {"objective"}
    for name in ("learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps"):
        assert getattr(training, name) == getattr(its_training, name), name


def test_the_embedded_config_names_no_model_and_no_documents() -> None:
    settings, _ = parse_train(["--config", str(CONFIGS[0].parent / "embedded.yaml")])
    assert settings.model_name_or_path is None
    assert settings.documents == []


ACCELERATE = {path.stem: path for path in sorted((CONFIGS[0].parent / "accelerate").glob("*.yaml"))}
KINDS = {
    "ddp": DistributedType.MULTI_GPU,
    "fsdp2": DistributedType.FSDP,
    "deepspeed_zero2": DistributedType.DEEPSPEED,
    "deepspeed_zero3": DistributedType.DEEPSPEED,
}


def test_there_is_a_config_of_every_kind() -> None:
    assert set(ACCELERATE) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_accelerate_takes_the_config(name: str) -> None:
    """What its own reader makes of the file, and what its launcher would start."""
    config = load_config_from_file(str(ACCELERATE[name]))
    assert (config.distributed_type, config.num_processes, config.num_machines) == (KINDS[name], 4, 1)
    assert config.mixed_precision in ("no", None), "--bf16 would have no say"
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(ACCELERATE[name]), "-m", "demask", "train", "--max_steps", "3"])
    options = {**config.fsdp_config, **config.deepspeed_config}
    assert set(options) <= set(vars(args)), "a name that the launcher does not know would be passed over"
    assert (args.module, args.training_script, args.training_script_args) == (True, "demask", ["train", "--max_steps", "3"])


def test_what_the_launcher_tells_the_processes_to_shard() -> None:
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(ACCELERATE["fsdp2"]), "-m", "demask"]))
    environment = prepare_multi_gpu_env(args)
    told = {name: environment[name] for name in environment if name.startswith("FSDP_")}
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    assert told["FSDP_VERSION"] == "2"
    assert told["FSDP_STATE_DICT_TYPE"] == "SHARDED_STATE_DICT"
    assert told["FSDP_AUTO_WRAP_POLICY"] == "TRANSFORMER_BASED_WRAP"
    assert told["FSDP_CPU_RAM_EFFICIENT_LOADING"] == told["FSDP_SYNC_MODULE_STATES"] == "true"
    assert told["FSDP_ACTIVATION_CHECKPOINTING"] == told["FSDP_OFFLOAD_PARAMS"] == "false"


@pytest.mark.parametrize("stage", [2, 3])
def test_the_deepspeed_files_leave_the_batch_to_the_run(stage: int) -> None:
    config = load_config_from_file(str(ACCELERATE[f"deepspeed_zero{stage}"])).deepspeed_config
    path = CONFIGS[0].parents[1] / config["deepspeed_config_file"]
    written = json.loads(path.read_text(encoding="utf-8"))
    assert path.parent == ACCELERATE["ddp"].parent
    assert written.pop("zero_optimization")["stage"] == stage
    assert written.pop("bf16") == {"enabled": "auto"}
    assert written.pop("communication_data_type") == "fp32"
    assert set(written.values()) == {"auto"}
