"""The run directory: its record, and its checkpoints."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from demask.types import InputError, json_type, parse_json, read_text, write_json

BEFORE = "before.jsonl"  # the base model's answers to the test questions, as answers.jsonl has the trained one's
# The answers to the questions about what was known already: of the base model, and of the trained (or only) one.
KNOWN_BEFORE, KNOWN_AFTER = "known_before.jsonl", "known.jsonl"
STOP = "stop"  # a file of this name in an output folder asks the run in it to save and stop
PACKAGES = ("demask", "torch", "transformers", "accelerate", "peft", "datasets", "numpy")


def environment() -> dict[str, Any]:
    """What a result depends on besides its configuration: package versions, the source's git commit, and the hardware."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    hardware: dict[str, Any] = {"machine": platform.machine(), "cpu_count": os.cpu_count(), "threads": torch.get_num_threads()}
    if torch.cuda.is_available():
        hardware["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    elif torch.accelerator.is_available():
        hardware["gpus"] = [str(torch.accelerator.current_accelerator())]
    return {"python": platform.python_version(), "versions": versions, "commit": git_commit(), "hardware": hardware}


def git_commit() -> str | None:
    """The commit of the checkout this package is imported from, "-dirty" if changed since; None for an installed package."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(source), "describe", "--always", "--dirty", "--abbrev=12"], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


class Run:
    """`run.json` of an output folder: written at the start, at each change of status ("running", "finished", "interrupted", "failed")."""

    def __init__(self, folder: str | os.PathLike[str], config: dict[str, Any]) -> None:
        self.path = Path(folder) / "run.json"
        self.record: dict[str, Any] = {"status": "running", "started": _now(), "config": config, **environment()}
        self.update()

    def update(self, **changes: Any) -> None:
        self.record |= changes
        write_json(self.path, self.record)

    def finish(self, status: str, **changes: Any) -> None:
        self.update(status=status, ended=_now(), **changes)


def record_failure(folder: str | os.PathLike[str], reason: str) -> None:
    """Say in a run's record, which is begun where there is none, that it failed, and why."""
    write_json(Path(folder) / "run.json", {**(read_run(folder) or {}), "status": "failed", "ended": _now(), "error": reason})


def read_run(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The record of a run directory, or None without one; InputError where it is broken, or `folder` a file."""
    if Path(folder).exists() and not Path(folder).is_dir():
        raise InputError(f"output_dir: '{folder}' is a file, expected a folder")
    path = Path(folder) / "run.json"
    if not path.is_file():
        return None
    record = parse_json(read_text(path), path)
    if not isinstance(record, dict):
        raise InputError(f"{path}: not a run's record (expected a JSON object, found {json_type(record)})")
    return record


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def newest_checkpoint(folder: str | os.PathLike[str]) -> tuple[Path | None, list[str]]:
    """The newest complete checkpoint in a folder, or None; incomplete ones are removed, with a line for each.

    The Trainer writes trainer_state.json last: a checkpoint without it was cut short, and resuming from it would silently start at step 0.
    """
    lines, complete = [], []
    for path in Path(folder).glob("checkpoint-*"):
        number = path.name.removeprefix("checkpoint-")
        if not path.is_dir() or not number.isdecimal():
            continue
        if (path / "trainer_state.json").is_file():
            complete.append((int(number), path))
        else:
            shutil.rmtree(path, ignore_errors=True)  # another process of this run may be removing it too
            lines.append(f"{path}: an incomplete checkpoint (its saving was interrupted), removed")
    return (max(complete)[1] if complete else None), lines
