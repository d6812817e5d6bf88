"""Every file in configs/ parses, and says what it is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

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


def test_accelerate_takes_the_fsdp_config() -> None:
    """What its own reader makes of the file, and what its launcher would tell the processes."""
    path = CONFIGS[0].parent / "accelerate" / "fsdp2.yaml"
    config = load_config_from_file(str(path))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == (DistributedType.FSDP, 4, "bf16")
    parser = launch_command_parser()
    args = parser.parse_args(["--config_file", str(path), "-m", "demask", "train", "--max_steps", "3"])
    assert set(config.fsdp_config) <= set(vars(args)), "a name that the launcher does not know would be passed over"
    assert (args.module, args.training_script, args.training_script_args) == (True, "demask", ["train", "--max_steps", "3"])
