"""One cell of a study: train it, or ask without training, into a folder that holds its record and its answers."""

from __future__ import annotations

import contextlib
import fcntl
import re
import shutil
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from demask.corpora.files import read_documents
from demask.decoding import Sampling
from demask.models.load import load_config, model_folder
from demask.runs import STOP, Run, read_run, record_failure
from demask.settings import TrainSettings, as_flags
from demask.stages.benchmarks import benchmarks, check_tasks
from demask.stages.eval import evaluate
from demask.stages.grid import CLOSED_BOOK, RECORDED, Cell
from demask.stages.train import train
from demask.types import InputError, read_questions
from demask.workers import StepReporter, report_steps, run_program, stopping

_ERROR = re.compile(r"^(?:\[\w+\]: ?)?((?:demask: |[\w.]*(?:Error|Exception)\b).*)", re.MULTILINE)
_OF_LAUNCHERS = ("ChildFailedError", "CalledProcessError", "ProcessRaisedException")


def run_cell(cell: Cell, folder: Path, keep_model: bool = False, launcher: Sequence[str] = (), batch_size: int | None = None) -> str:
    """Bring a cell's `folder` to its end, from its newest checkpoint where it was begun; returns the status its record has.

    What it prints, and a failure's traceback, go to log.txt; the record of a failed one says why in `error`. Weights and checkpoints of a
    finished cell are removed unless `keep_model`. A cell that another process is at is waited for. With the words of a `launcher` training
    is a program of its own, in as many processes as that starts; `batch_size` is its global batch, whatever their number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / ".lock") as lock, open(folder / "log.txt", "a", encoding="utf-8") as log:
        before = read_run(folder)
        if before is None or before["status"] != "finished":
            if stopping():
                return "interrupted"
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    if cell.context:
                        status = _ask(cell, folder)
                    elif launcher:
                        status = _launch(cell, folder, launcher, batch_size, before is not None, log, lock)
                    else:
                        status = _train(cell, folder, resume=before is not None)
                except Exception as error:  # one cell's failure must not end the others
                    traceback.print_exc()
                    record_failure(folder, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
                    return "failed"
            if status != "finished":
                return status
        if not keep_model:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name not in RECORDED and not path.name.startswith("."):
                    path.unlink()
    return "finished"


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[int]:
    """Held by one process at a time, and released by its end, however it comes."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def _train(cell: Cell, folder: Path, resume: bool) -> str:
    settings, args = cell.train_settings(folder)
    args.resume_from_checkpoint = "true" if resume else None
    args.disable_tqdm = True
    shared = folder.parents[1] / "base_answers"
    return train(settings, args, callbacks=[StepReporter(cell.hash)], base_answers=shared)["status"]


def _launch(cell: Cell, folder: Path, launcher: Sequence[str], batch_size: int | None, resume: bool, log: Any, lock: int) -> str:
    """Train by `<launcher> -m demask train ...`, which torchrun and accelerate launch take; returns the status that its record has.

    A wish to stop is passed on as a file: an interrupted launcher would kill its processes before a large model is saved. The program holds
    the cell's lock, so that nobody else is at the cell while it lives. Raises RuntimeError where it ended without an outcome.
    """
    (folder / STOP).unlink(missing_ok=True)
    if resume:
        record_failure(folder, "its process died")  # until it says otherwise
    own = {"output_dir": str(folder), "disable_tqdm": True, "batch_size": batch_size, "gradient_accumulation_steps": None}
    flags = as_flags({**cell.flags, **own, "resume_from_checkpoint": "true" if resume else None})

    def while_it_runs() -> None:
        newest = max((int(path.name.rpartition("-")[2]) for path in folder.glob("checkpoint-*[0-9]")), default=0)
        report_steps(cell.hash, newest)
        if stopping():
            (folder / STOP).touch()

    log.flush()
    start = log.tell()
    code = run_program([*launcher, "-m", "demask", "train", *flags], log, while_it_runs, (lock,))
    (folder / STOP).unlink(missing_ok=True)
    status = (read_run(folder) or {}).get("status")
    if status in ("finished", "interrupted"):
        return status
    with open(folder / "log.txt", encoding="utf-8", errors="replace") as said:
        said.seek(start)
        errors = [line for line in _ERROR.findall(said.read()) if not any(name in line for name in _OF_LAUNCHERS)]
    raise RuntimeError(f"{launcher[0]} ended with code {code}{': ' + errors[-1] if errors else ''}")


def check_untrained(settings: TrainSettings) -> dict[str, Any]:
    """Raise InputError where an untrained cell can't be asked what it should be; returns its plan, which is empty."""
    if not settings.questions and not settings.lm_eval_tasks:
        raise InputError("questions: a method that trains nothing needs some to ask")
    if settings.lm_eval_tasks:
        check_tasks(settings.lm_eval_tasks, settings.lm_eval_include_path, load_config(model_folder(settings.model_name_or_path)))
    return {}


def _ask(cell: Cell, folder: Path) -> str:
    """Closed book, with the right document in the prompt, or with what BM25 finds: the base model as it is."""
    settings, args = cell.train_settings(folder)
    run = Run(folder, {"settings": dict(cell.flags), "context": cell.context})
    found: dict[str, Any] = {"results": {}}
    if settings.lm_eval_tasks:
        found["lm_eval"] = benchmarks(settings, args, settings.model_name_or_path, "after")
    if not settings.questions:
        run.finish("finished", **found)
        return "finished"
    results = evaluate(
        settings.model_name_or_path,
        settings.questions,
        folder,
        few_shot=settings.few_shot,
        split="test",
        documents=read_documents(settings.documents, settings.text_column) if cell.context != CLOSED_BOOK else (),
        context=cell.context if cell.context != CLOSED_BOOK else None,
        context_size=cell.context_size,
        retention_questions=read_questions(settings.retention_questions) if settings.retention_questions else (),
        retention_documents=read_documents(settings.retention_documents, settings.text_column) if settings.retention_documents else (),
        max_new_tokens=settings.max_new_tokens,
        batch_size=args.per_device_eval_batch_size,
        sampling=Sampling(block_length=settings.block_length) if "block_length" in cell.flags else None,
        seed=args.seed,
        system_prompt=settings.system_prompt,
        dtype=getattr(torch, settings.eval_dtype),
        quiet=True,
    )
    known = results.pop("retention", None)
    run.finish("finished", **found | {"results": results}, **({"retention": {"after": known}} if known else {}))
    return "finished"
