"""A grid of runs as one command: plan it, run what is missing side by side or on a cluster, and report what came out."""

from __future__ import annotations

import contextlib
import fcntl
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from demask import paper
from demask.printing import print_summary
from demask.runs import read_run, record_failure
from demask.stages.cell import check_untrained, run_cell
from demask.stages.costs import GPUS, duration, print_plan, seconds_of
from demask.stages.grid import Cell, Study, expand, read_study
from demask.stages.plan import make_plan
from demask.stages.report import write_report
from demask.stages.results import DATA, INDEX, METHOD, read_index
from demask.stages.table import accuracy, summarise_runs, write_benchmarks, write_summary, write_table
from demask.types import InputError, write_json
from demask.workers import cores, side_by_side, visible_gpus


def study(
    path: str | Path,
    output_dir: str | Path | None = None,
    *,
    dry_run: bool = False,
    gpu: str | None = None,
    jobs: int | None = None,
    executor: str = "local",
    executor_options: dict[str, Any] | None = None,
    launcher: str | None = None,
    keep_models: bool = False,
    settings: dict[str, Any] | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the cells of the study at `path` that `output_dir` (runs/<name of the file>) does not hold yet; write its tables and report.

    A finished cell is kept, an interrupted one continues, a failed one is told of at the end and tried again by the next call. `jobs`
    cells run side by side (None: one a core, or a GPU, or, with a `launcher`, one); `executor` "slurm" submits every cell as a job of its
    own through submitit, with its `executor_options`, and waits. `launcher` ("torchrun --nproc_per_node 4") trains each cell in several
    processes; its global batch stays that of one. `settings` take the place of the file's. `dry_run` only plans; the time is this
    machine's or the `gpu`'s.
    Returns the counts by status. Raises InputError, before anything runs, for a fault in the file or in any cell's input.
    """
    console = console or Console()
    read = read_study(path, settings)
    folder = Path(output_dir) if output_dir else Path("runs") / Path(path).stem
    if gpu and gpu not in GPUS:
        raise InputError(f"gpu: must be one of {', '.join(GPUS)}, found '{gpu}'")
    if executor not in EXECUTORS:
        raise InputError(f"executor: must be one of {', '.join(EXECUTORS)}, found '{executor}'")
    if executor == "local" and executor_options:
        raise InputError("executor_option: goes with --executor slurm")
    words = _words(launcher)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir: '{folder}' is a file, expected a folder")
    with _only_one(folder):
        cells = expand(read, folder)
        if dry_run:
            plans = _plans(cells, folder, console)
            print_plan(read.title, _labels(read), cells, plans, gpu, console)
            return {"planned": len(plans)}
        todo = {cell.hash: cell for cell in cells if (read_run(folder / "cells" / cell.hash) or {}).get("status") != "finished"}
        plans = _plans(list(todo.values()), folder, console)
        write_json(folder / INDEX, _index(read, cells))
        interrupted = False
        try:
            extra = {name: (keep_models, words, plans[name].get("batch_size")) for name in todo}
            _run_all(todo, plans, folder, executor, jobs or (1 if words else _default_jobs()), executor_options or {}, extra, console)
        except KeyboardInterrupt:
            interrupted = True
        statuses = {cell.hash: (read_run(folder / "cells" / cell.hash) or {"status": "missing"})["status"] for cell in cells}
        _write_results(folder, console)
    failed = [cell for cell in cells if statuses[cell.hash] == "failed"]
    for cell in {cell.hash: cell for cell in failed}.values():
        reason = (read_run(folder / "cells" / cell.hash) or {}).get("error", "")
        console.print(f"failed: {cell.name}: {reason} ({folder / 'cells' / cell.hash / 'log.txt'})", markup=False, highlight=False)
    counts = {status: list(statuses.values()).count(status) for status in dict.fromkeys(statuses.values())}
    return counts | ({"interrupted": counts.get("interrupted", 0)} if interrupted else {})


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Refuse to be at one study twice at the same time."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"output_dir: another process runs the study in '{folder}'") from None
        yield


def _words(launcher: str | None) -> list[str]:
    try:
        words = shlex.split(launcher or "")
    except ValueError as error:
        raise InputError(f"launcher: {error} ('{launcher}')") from None
    if words and not shutil.which(words[0]):
        raise InputError(f"launcher: no such program, '{words[0]}'")
    return words


def _default_jobs() -> int:
    """One for each GPU or core; an accelerator of another kind, as Apple's, they would have to share."""
    return len(visible_gpus()) or (1 if torch.accelerator.is_available() else cores())


def _index(study: Study, cells: list[Cell]) -> dict[str, Any]:
    """What study.json holds (see stages/results.py)."""
    settings = {"all runs": study.settings}
    for axis, entries in ((DATA, study.data), (METHOD, study.methods)):
        settings |= {f"{axis} {name}": {k: v for k, v in entry.items() if k != "label"} for name, entry in entries.items()}
    listed = [{"hash": c.hash, "axes": c.axes, "folder": f"cells/{c.hash}"} for c in cells]
    index = {
        "title": study.title,
        "about": study.about,
        "metric": study.metric,
        "labels": _labels(study),
        "paper": paper.sets_of(study.data),
    }
    return index | {"settings": settings, "cells": listed}


def _labels(study: Study) -> dict[str, dict[str, str]]:
    return {
        axis: {name: entry.get("label") or name for name, entry in entries.items()}
        for axis, entries in ((DATA, study.data), (METHOD, study.methods))
    }


def _write_results(folder: Path, console: Console) -> None:
    """Both tables and the report, of what is finished; prints the summary."""
    results = read_index(folder)
    runs = [run for c in results.configurations for run in c.runs]
    write_table(folder / "table.csv", runs)
    write_benchmarks(folder / "benchmarks.csv", runs)
    scores = [accuracy([run.answers() for run in c.runs], results.metric, [run.before() for run in c.runs]) for c in results.configurations]
    rows = [summarise_runs(c, results.metric, of_one) for c, of_one in zip(results.configurations, scores, strict=True)]
    write_summary(folder / "summary.csv", rows)
    if rows:
        print_summary(results.metric, [(c.data, c.label) for c in results.configurations], rows, console)
        console.print(f"report: {write_report(folder, results)}", markup=False, highlight=False, soft_wrap=True)


# --- planning -----------------------------------------------------------------------------------------------------------


def _plans(cells: list[Cell], folder: Path, console: Console) -> dict[str, dict[str, Any]]:
    """What each trained cell will cost, by its hash (an untrained one: nothing); cells that differ in their seed share one plan.

    Raises InputError for a fault in any cell's input.
    """
    plans: dict[str, dict[str, Any]] = {}
    shared: dict[str, dict[str, Any]] = {}
    with console.status(f"checking {len(cells)} cells"):
        for cell in cells:
            key = cell.configuration
            if key not in shared:
                settings, args = cell.train_settings(folder / "cells" / cell.hash)
                try:
                    shared[key] = check_untrained(settings) if cell.context else make_plan(settings, args).numbers
                except InputError as error:
                    raise InputError(f"cell {cell.name}: {error}") from None
            plans[cell.hash] = shared[key]
    return plans


# --- running ------------------------------------------------------------------------------------------------------------


def _run_all(
    todo: dict[str, Cell],
    plans: dict[str, dict[str, Any]],
    folder: Path,
    executor: str,
    jobs: int,
    options: dict[str, Any],
    extra: dict[str, tuple[Any, ...]],
    console: Console,
) -> None:
    """Run the cells, the longest first, each with its `extra` arguments; a bar of the estimated work, and a line for each that ends."""
    work = {name: max(seconds_of(plans[name], None), 1.0) for name in todo}
    order = sorted(todo, key=lambda name: -work[name])
    done, failed, begun = 0, 0, dict[str, float]()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:.0f}%"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task(f"0 of {len(todo)} cells", total=sum(work.values()) or 1)

        def on_tick(steps: dict[str, int]) -> None:
            for name, step in steps.items():
                begun[name] = work[name] * step / max(1, plans[name].get("steps", 1))
            running = min(jobs, len(todo) - done - failed)
            progress.update(
                bar, completed=sum(begun.values()), description=f"{done} of {len(todo)} cells, {running} running, {failed} failed"
            )

        arguments = {name: (todo[name], folder / "cells" / name, *extra[name]) for name in order}
        start = time.monotonic()
        for name, status in EXECUTORS[executor](arguments, folder, jobs, options, on_tick):
            if status == "failed" and (read_run(folder / "cells" / name) or {}).get("status") != "failed":
                record_failure(folder / "cells" / name, "its process died")
            done += status == "finished"
            failed += status == "failed"
            begun[name] = work[name]
            on_tick({})
            line = f"{done + failed}/{len(todo)}  {_line(todo[name], folder / 'cells' / name, status)}"
            progress.console.print(f"{duration(time.monotonic() - start)}  {line}", markup=False, highlight=False)


def _line(cell: Cell, folder: Path, status: str) -> str:
    record = read_run(folder) or {}
    if status != "finished":
        return f"{status}: {cell.name} {record.get('error', '')}"
    directions = record.get("results", {}).get("by_direction", {})
    scores = [f"{name} {leaf['contains']['mean']:.3f}" for name, leaf in directions.items()]
    for task, metrics in record.get("lm_eval", {}).get("after", {}).items():
        scores.append(f"{task} {next(iter(metrics.values()))['value']:.3f}")
    return " ".join([f"{cell.name}:", *scores])


def _locally(
    arguments: dict[str, tuple[Any, ...]], folder: Path, jobs: int, options: dict[str, Any], on_tick: Callable[[dict[str, int]], None]
) -> Iterator[tuple[str, str]]:
    for name, future in side_by_side(run_cell, arguments, max(1, min(jobs, len(arguments))), on_tick):
        yield name, _status(future.result)


def _on_slurm(
    arguments: dict[str, tuple[Any, ...]], folder: Path, jobs: int, options: dict[str, Any], on_tick: Callable[[dict[str, int]], None]
) -> Iterator[tuple[str, str]]:
    """Every cell as a job of its own; `jobs` limits how many run at once. Ctrl-C cancels them, and what they saved is continued."""
    import submitit

    cluster = options.pop("cluster", "slurm")  # submitit's "local" and "debug" stand in for it
    submitter = submitit.AutoExecutor(folder=folder / "jobs", cluster=cluster)
    limits = {"slurm_array_parallelism": jobs} if cluster == "slurm" else {}
    try:
        submitter.update_parameters(**{"name": "demask", **limits, **options})
    except (TypeError, ValueError, NameError) as error:
        raise InputError(f"executor_options: {' '.join(str(error).split())[:300]}") from None
    with submitter.batch():
        waiting = {name: submitter.submit(run_cell, *values) for name, values in arguments.items()}
    try:
        while waiting:
            on_tick({})
            for name in [name for name, job in waiting.items() if job.done()]:
                yield name, _status(waiting.pop(name).result)
            time.sleep(1)
    except KeyboardInterrupt:
        for job in waiting.values():
            job.cancel()
        raise


def _status(result: Callable[[], str]) -> str:
    """A cell's status; "failed" where its process died."""
    try:
        return result()
    except Exception:
        return "failed"


EXECUTORS: dict[str, Callable[..., Iterator[tuple[str, str]]]] = {"local": _locally, "slurm": _on_slurm}
