"""A grid of runs as one command: plan it, run what is missing side by side or on a cluster, and report what came out."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from demask.printing import print_summary
from demask.runs import read_run, record_failure
from demask.stages.cell import run_cell
from demask.stages.grid import Cell, Study, expand, paper_sets, read_study
from demask.stages.plan import make_plan
from demask.stages.report import write_report
from demask.stages.results import INDEX, SEED, as_text, read_index
from demask.stages.table import accuracy, summarise_runs, write_summary, write_table
from demask.types import InputError, write_json
from demask.workers import side_by_side, visible_gpus

# Peak rate of dense bfloat16 products (TFLOP/s) and memory (GB), from the makers' data sheets.
GPUS = {
    "T4": (65, 16),  # float16: it has no bfloat16
    "L4": (121, 24),
    "RTX4090": (165, 24),
    "L40S": (362, 48),
    "A100-40GB": (312, 40),
    "A100-80GB": (312, 80),
    "H100": (989, 80),
    "H200": (989, 141),
    "B200": (2250, 192),
}
UTILISATION = 0.3  # of the peak rate, as in stages/estimate.py


def study(
    path: str | Path,
    output_dir: str | Path | None = None,
    *,
    dry_run: bool = False,
    gpu: str | None = None,
    jobs: int | None = None,
    executor: str = "local",
    executor_options: dict[str, Any] | None = None,
    keep_models: bool = False,
    console: Console | None = None,
) -> dict[str, Any]:
    """Run the cells of the study at `path` that `output_dir` (runs/<name of the file>) does not hold yet; write its tables and report.

    A finished cell is kept, an interrupted one continues, a failed one is told of at the end and tried again by the next call. `jobs`
    processes run side by side (None: one a core, or a GPU); `executor` "slurm" submits every cell as a job of its own through submitit,
    with its `executor_options`, and waits. `dry_run` only plans; the time is this machine's or the `gpu`'s. Returns the counts by status.
    Raises InputError, before anything runs, for a fault in the file or in any cell's input.
    """
    console = console or Console()
    read = read_study(path)
    folder = Path(output_dir) if output_dir else Path("runs") / Path(path).stem
    if gpu and gpu not in GPUS:
        raise InputError(f"gpu: must be one of {', '.join(GPUS)}, found '{gpu}'")
    if executor not in EXECUTORS:
        raise InputError(f"executor: must be one of {', '.join(EXECUTORS)}, found '{executor}'")
    if executor == "local" and executor_options:
        raise InputError("executor_option: goes with --executor slurm")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir: '{folder}' is a file, expected a folder")
    with _only_one(folder):
        cells = expand(read, folder)
        if dry_run:
            plans = _plans(cells, folder, console)
            _print_plan(read, cells, plans, gpu, console)
            return {"planned": len(plans)}
        todo = {cell.hash: cell for cell in cells if (read_run(folder / "cells" / cell.hash) or {}).get("status") != "finished"}
        plans = _plans(list(todo.values()), folder, console)
        write_json(folder / INDEX, _index(read, cells))
        interrupted = False
        try:
            _run_all(todo, plans, folder, executor, jobs or _default_jobs(), executor_options or {}, keep_models, console)
        except KeyboardInterrupt:
            interrupted = True
        statuses = {cell.hash: (read_run(folder / "cells" / cell.hash) or {"status": "missing"})["status"] for cell in cells}
        rows = _write_results(folder, console)
    print_summary(read.metric, [axis for axis in axes_of(cells) if axis != SEED], rows, console)
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


def _default_jobs() -> int:
    return len(visible_gpus()) or len(os.sched_getaffinity(0))


def axes_of(cells: list[Cell]) -> list[str]:
    """What sets the cells apart, in order of first appearance."""
    return list(dict.fromkeys(axis for cell in cells for axis in cell.axes))


def _index(study: Study, cells: list[Cell]) -> dict[str, Any]:
    """What study.json holds (see stages/results.py)."""
    labels = {
        axis: {name: entry.get("label") or name for name, entry in entries.items()}
        for axis, entries in (("data", study.data), ("method", study.methods))
    }
    settings = {"all runs": study.settings}
    for axis, entries in (("data", study.data), ("method", study.methods)):
        settings |= {f"{axis} {name}": {k: v for k, v in entry.items() if k != "label"} for name, entry in entries.items()}
    listed = [{"hash": c.hash, "axes": c.axes, "folder": f"cells/{c.hash}"} for c in cells]
    index = {"title": study.title, "about": study.about, "metric": study.metric, "labels": labels, "paper": paper_sets(study)}
    return index | {"settings": settings, "cells": listed}


def _write_results(folder: Path, console: Console) -> list[dict[str, Any]]:
    """Both tables and the report, of what is finished; returns the summary's rows."""
    results = read_index(folder)
    write_table(folder / "table.csv", [run for c in results.configurations for run in c.runs])
    scores = [accuracy([run.answers() for run in c.runs], results.metric) for c in results.configurations]
    rows = [summarise_runs(c, results.metric, of_one) for c, of_one in zip(results.configurations, scores, strict=True)]
    write_summary(folder / "summary.csv", rows)
    if rows:
        console.print(f"report: {write_report(folder, results)}", markup=False, highlight=False, soft_wrap=True)
    return rows


# --- planning -----------------------------------------------------------------------------------------------------------


def _plans(cells: list[Cell], folder: Path, console: Console) -> dict[str, dict[str, Any]]:
    """What each trained cell will cost, by its hash (an untrained one: nothing); cells that differ in their seed share one plan.

    Raises InputError for a fault in any cell's input.
    """
    plans: dict[str, dict[str, Any]] = {}
    shared: dict[str, dict[str, Any]] = {}
    with console.status(f"checking {len(cells)} cells"):
        for cell in cells:
            key = repr({name: value for name, value in cell.axes.items() if name != "seed"})
            if key not in shared:
                settings, args = cell.train_settings(folder / "cells" / cell.hash)
                try:
                    shared[key] = {} if cell.context else make_plan(settings, args).numbers
                except InputError as error:
                    raise InputError(f"cell {cell.name}: {error}") from None
            plans[cell.hash] = shared[key]
    return plans


def _print_plan(study: Study, cells: list[Cell], plans: dict[str, dict[str, Any]], gpu: str | None, console: Console) -> None:
    """A line for each configuration, with its seeds taken together, and the sum."""
    table = Table("cells", *(axis for axis in axes_of(cells) if axis != "seed"), "parameters", "steps", "tokens", "FLOPs", "GiB", "time")
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(repr({name: value for name, value in cell.axes.items() if name != "seed"}), []).append(cell)
    for alike in rows.values():
        plan = plans[alike[0].hash]
        axes = (as_text(alike[0].axes.get(axis, "")) for axis in axes_of(cells) if axis != "seed")
        if not plan:
            table.add_row(str(len(alike)), *axes, *["not trained"], *[""] * 5)
            continue
        table.add_row(
            str(len(alike)),
            *axes,
            f"{plan['parameters'] / 1e6:,.1f} M",
            f"{plan['steps']:,}",
            f"{plan['tokens']:,}",
            f"{plan['flops']:.2e}",
            f"{plan['memory_gib']:.1f}" + (" (!)" if gpu and plan["memory_gib"] > GPUS[gpu][1] else ""),
            _time(_seconds(plan, gpu)),
        )
    console.print(table)
    hours = sum(_seconds(plan, gpu) for plan in plans.values()) / 3600
    where = f"GPU-hours on {gpu}" if gpu else f"hours on this machine ({hours * len(os.sched_getaffinity(0)):.1f} core-hours)"
    flops = sum(plan.get("flops", 0) for plan in plans.values())
    total = f"{study.title}: {len(plans)} cells, {flops:.2e} FLOPs, about {hours:.1f} {where}; rough, and without the questions"
    console.print(total, markup=False, highlight=False, soft_wrap=True)


def _seconds(plan: dict[str, Any], gpu: str | None) -> float:
    return plan.get("flops", 0) / (UTILISATION * GPUS[gpu][0] * 1e12) if gpu else plan.get("seconds", 0)


def _time(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


# --- running ------------------------------------------------------------------------------------------------------------


def _run_all(
    todo: dict[str, Cell],
    plans: dict[str, dict[str, Any]],
    folder: Path,
    executor: str,
    jobs: int,
    options: dict[str, Any],
    keep_models: bool,
    console: Console,
) -> None:
    """Run the cells, the longest first, with a bar of the estimated work and a line for each that ends."""
    work = {name: max(_seconds(plans[name], None), 1.0) for name in todo}
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

        arguments = {name: (todo[name], folder / "cells" / name, keep_models) for name in order}
        start = time.monotonic()
        for name, status in EXECUTORS[executor](arguments, folder, jobs, options, on_tick):
            if status == "failed" and (read_run(folder / "cells" / name) or {}).get("status") != "failed":
                record_failure(folder / "cells" / name, "its process died")
            done += status == "finished"
            failed += status == "failed"
            begun[name] = work[name]
            on_tick({})
            line = _line(todo[name], folder / "cells" / name, status)
            progress.console.print(f"{_time(time.monotonic() - start)}  {done + failed}/{len(todo)}  {line}", markup=False, highlight=False)


def _line(cell: Cell, folder: Path, status: str) -> str:
    record = read_run(folder) or {}
    if status != "finished":
        return f"{status}: {cell.name} {record.get('error', '')}"
    directions = record.get("results", {}).get("by_direction", {})
    return " ".join([f"{cell.name}:", *(f"{name} {leaf['contains']['mean']:.3f}" for name, leaf in directions.items())])


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
