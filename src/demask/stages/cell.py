"""One cell of a study: train it, or ask without training, into a folder that holds its record and its answers."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path

from demask.corpora.files import read_documents
from demask.decoding import Sampling
from demask.runs import Run, read_run, record_failure
from demask.stages.eval import evaluate
from demask.stages.grid import CLOSED_BOOK, RECORDED, Cell
from demask.stages.train import train
from demask.types import read_questions
from demask.workers import StepReporter, stopping


def run_cell(cell: Cell, folder: Path, keep_model: bool = False) -> str:
    """Bring a cell's `folder` to its end, from its newest checkpoint where it was begun; returns the status its record has.

    What it prints, and a failure's traceback, go to log.txt; the record of a failed one says why in `error`. Weights and checkpoints of a
    finished cell are removed unless `keep_model`. A cell that another process is at is waited for.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / ".lock"), open(folder / "log.txt", "a", encoding="utf-8") as log:
        before = read_run(folder)
        if before is None or before["status"] != "finished":
            if stopping():
                return "interrupted"
            with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
                try:
                    status = _ask(cell, folder) if cell.context else _train(cell, folder, resume=before is not None)
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
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, and released by its end, however it comes."""
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _train(cell: Cell, folder: Path, resume: bool) -> str:
    settings, args = cell.train_settings(folder)
    args.resume_from_checkpoint = "true" if resume else None
    args.disable_tqdm = True
    return train(settings, args, callbacks=[StepReporter(cell.hash)])["status"]


def _ask(cell: Cell, folder: Path) -> str:
    """Closed book, with the right document in the prompt, or with what BM25 finds: the base model as it is."""
    settings, args = cell.train_settings(folder)
    run = Run(folder, {"settings": dict(cell.flags), "context": cell.context})
    results = evaluate(
        settings.model_name_or_path,
        settings.questions or "",
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
        quiet=True,
    )
    known = results.pop("retention", None)
    run.finish("finished", results=results, **({"retention": {"after": known}} if known else {}))
    return "finished"
