"""The main job in a few minutes: new facts, a model taught in four ways, asked in both directions before and after.

documents + questions -> bases | plain AR | demask | random-token control | masked diffusion -> one table, one sentence, report.html
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from demask.comparison import BASES, METHODS, QuickstartSettings, compare, index
from demask.corpora import world
from demask.corpora.files import Notes, read_documents
from demask.models.load import EMBEDDED
from demask.runs import Run, read_run
from demask.settings import TrainArguments, TrainSettings
from demask.stages.plan import make_plan
from demask.stages.report import report
from demask.stages.results import INDEX
from demask.types import Document, InputError, Question, write_documents, write_json, write_questions
from demask.workers import StepReporter, side_by_side
from demask.writing.cloze import AUTO

_EVAL_BATCH = 128


def quickstart(
    output_dir: str | os.PathLike[str],
    settings: QuickstartSettings | None = None,
    *,
    documents: Sequence[str] = (),
    questions: str | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Compare the methods on 60 new statements of the generated world, or on the user's documents and questions (made of them by default).

    Writes `data/`, a run directory for each method, `study.json`, `report.html` and `report.csv` under `output_dir`, and returns the
    comparison. On a CPU the methods run side by side, one thread each. Interrupted, the same call continues: finished methods are
    kept, others resume. Raises InputError for bad input.
    """
    settings = settings or QuickstartSettings()
    folder = Path(output_dir)
    if questions and not documents:
        raise InputError("questions: --questions go with the --documents they are about")
    if documents:
        settings = replace(settings, max_new_tokens=None)  # by their own answers
        # Faults are found before anything is written, or a process starts.
        checked, training = _train_settings("demask", folder / "demask", settings)
        plan = make_plan(replace(checked, documents=list(documents), questions=questions or AUTO, replay=[]), training)
        if not any(question.split == "test" for question in plan.questions):
            raise InputError(f"{questions or 'questions made of the documents'}: no test questions to compare the methods by")
        for line in plan.lines[:-2]:  # all but the plan of a single method
            say(line)
        new, asked = read_documents(list(documents), notes=Notes()), plan.questions  # the plan has told what was passed over
    else:
        new, asked = world.statement_corpus(settings.seed)
    config = {"quickstart": asdict(settings), "inputs": _fingerprint(new, asked)}
    _same_as_before(folder, config)
    _write_data(folder / "data", settings, new, asked)
    n_documents = len(new)
    run = Run(folder, config)
    say(f"{n_documents} documents; asking the base model, then teaching it by {', '.join(m.label for m in METHODS.values())}")
    status = "failed"
    try:
        records = _run_all(folder, settings)
        status = "interrupted" if any(r["status"] == "interrupted" for r in records.values()) else "finished"
    except KeyboardInterrupt:
        status = "interrupted"
    finally:
        run.finish(status)
    if status == "interrupted":
        return {"status": status}
    comparison = compare(records, settings, n_documents, own_data=bool(documents))
    write_json(folder / INDEX, index(comparison, settings, own_data=bool(documents)))
    report([folder])
    return comparison


def _same_as_before(folder: Path, config: dict[str, Any]) -> None:
    """Refuse to mix two different comparisons in one folder."""
    before = read_run(folder)
    if before and before["config"] != config:
        raise InputError(f"output_dir: '{folder}' holds a quickstart with other settings; choose another folder or remove it")


def _fingerprint(documents: Sequence[Document], questions: Sequence[Question]) -> int:
    """A checksum of the facts, the questions and the base models."""
    checksum = crc32(repr((documents, questions)).encode())
    for _, base in BASES.values():
        checksum = crc32((EMBEDDED[base] / "model.safetensors").read_bytes(), checksum)
    return checksum


def _write_data(folder: Path, settings: QuickstartSettings, documents: Sequence[Document], questions: Sequence[Question]) -> None:
    write_documents(folder / "documents.jsonl", documents)
    write_questions(folder / "questions.jsonl", questions)
    write_documents(folder / "rehearsal.jsonl", world.rehearsal(2000, settings.seed))


def _run_all(folder: Path, settings: QuickstartSettings) -> dict[str, dict[str, Any]]:
    """Each method's record, and the base models' answers: side by side in processes of one thread on a CPU, in turn on a GPU."""
    jobs = {name: (name, str(folder), settings) for name in (*METHODS, *BASES)}
    workers = 1 if torch.accelerator.is_available() else len(jobs)
    columns = (TextColumn("{task.description:>22}"), BarColumn(), TextColumn("{task.completed}/{task.total} steps"), TimeRemainingColumn())
    with Progress(*columns) as bars:
        tasks = {name: bars.add_task(method.label, total=settings.steps * method.rounds) for name, method in METHODS.items()}

        def on_tick(steps: dict[str, int]) -> None:
            for name, step in steps.items():
                bars.update(tasks[name], completed=step)

        return {name: future.result() for name, future in side_by_side(_job, jobs, workers, on_tick)}


def _job(name: str, folder: str, settings: QuickstartSettings) -> dict[str, Any]:
    """One method (or a base model's answers) in a worker process; what it prints goes to its log."""
    target = Path(folder) / name
    before = read_run(target)
    if before and before["status"] == "finished":
        return before
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "log.txt", "a", encoding="utf-8") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if name in BASES:
            return _ask_base(name, target, settings)
        return _train_method(name, target, settings, resume=before is not None)


def _ask_base(name: str, target: Path, settings: QuickstartSettings) -> dict[str, Any]:
    from demask.decoding import Sampling
    from demask.stages.eval import evaluate

    run = Run(target, {"quickstart": asdict(settings)})
    block_length = METHODS["diffusion"].settings["block_length"]
    results = evaluate(
        BASES[name][1],
        target.parent / "data" / "questions.jsonl",
        target,
        split="test",
        max_new_tokens=settings.max_new_tokens,
        batch_size=_EVAL_BATCH,
        sampling=Sampling(block_length=block_length) if name == "diffusion_base" else None,
        seed=settings.seed,
        quiet=True,
    )
    run.finish("finished", results=results)
    return run.record


def _train_method(name: str, target: Path, settings: QuickstartSettings, resume: bool) -> dict[str, Any]:
    from demask.stages.train import train

    shared, training = _train_settings(name, target, settings)
    training.resume_from_checkpoint = "true" if resume else None
    return train(shared, training, callbacks=[StepReporter(name)], base_answers=target.parent / "base_answers")


def _train_settings(name: str, target: Path, settings: QuickstartSettings) -> tuple[TrainSettings, TrainArguments]:
    """What `demask train` would be told to run this method."""
    data, method = target.parent / "data", METHODS[name]
    steps = settings.steps * method.rounds
    training = TrainArguments(
        output_dir=str(target),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=1,
        learning_rate=method.learning_rate or settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        seed=settings.seed,
        eval_steps=max(1, steps // 6),
        per_device_eval_batch_size=_EVAL_BATCH,
        save_strategy="no",
        disable_tqdm=True,
    )
    shared: dict[str, Any] = {
        "documents": [str(data / "documents.jsonl")],
        "questions": str(data / "questions.jsonl"),
        "replay": [str(data / "rehearsal.jsonl")] if settings.replay_share else [],
        "replay_share": settings.replay_share,
        "select_on": "last",
        "max_new_tokens": settings.max_new_tokens,
    }
    return TrainSettings(**{**shared, **method.settings}), training
