"""Jobs side by side in processes of their own, which tell how far they are and end in good order."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.managers import SyncManager
from typing import Any

from transformers import TrainerCallback

from demask.orphans import end_with

_steps: Any = None  # in a worker: the queue to which it reports its steps
_stop: Any = None  # in a worker: set once the user wants an end
_programs: list[subprocess.Popen] = []  # in a worker: what it waits for


def side_by_side(
    run: Callable[..., Any], jobs: Mapping[str, tuple[Any, ...]], workers: int, on_tick: Callable[[dict[str, int]], None]
) -> Iterator[tuple[str, Future]]:
    """Call `run(*jobs[name])` for every name in `workers` processes, and yield (name, its future) as they end.

    `on_tick` is called twice a second with the steps that `StepReporter`s counted since ({name: step}). On a CPU every process has one
    thread; GPUs are dealt out among the processes. After Ctrl-C no further job begins, those that run are asked to save and stop,
    their futures are yielded too, and KeyboardInterrupt is raised at the end.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        manager = SyncManager(ctx=context)
        manager.start(end_with, (os.getpid(),))  # else it would outlive a main process that is killed
        stack.callback(manager.shutdown)
        steps, stop, gpus = manager.Queue(), manager.Event(), manager.Queue()
        for share in shares(visible_gpus(), workers):
            gpus.put(",".join(share))
        pool = stack.enter_context(ProcessPoolExecutor(workers, context, _start, (os.getpid(), steps, stop, gpus)))
        names = {pool.submit(run, *arguments): name for name, arguments in jobs.items()}
        running, interrupted = set(names), False
        while running:
            try:
                done, running = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                if interrupted:
                    os._exit(130)  # the workers see that their parent is gone
                interrupted = True
                stop.set()
                running -= {future for future in running if future.cancel()}
                continue
            on_tick(_drain(steps))
            for future in done:
                yield names[future], future
        if interrupted:
            raise KeyboardInterrupt


def visible_gpus() -> list[str]:
    """The GPUs this process may use, by the names that CUDA_VISIBLE_DEVICES takes; none without any."""
    import torch

    if not torch.cuda.is_available():
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    return chosen.split(",") if chosen else [str(i) for i in range(torch.cuda.device_count())]


def cores() -> int:
    """The CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def shares(gpus: Sequence[str], workers: int) -> list[Sequence[str]]:
    """The GPUs of each worker: all are dealt out, and workers share one where there are too few. Without GPUs: no shares."""
    return [gpus[place::workers] or [gpus[place % len(gpus)]] for place in range(workers if gpus else 0)]


def _drain(steps: Any) -> dict[str, int]:
    latest: dict[str, int] = {}
    with contextlib.suppress(queue.Empty):
        while True:
            name, step = steps.get_nowait()
            latest[name] = step
    return latest


def _start(parent: int, steps: Any, stop: Any, gpus: Any) -> None:
    global _steps, _stop
    _steps, _stop = steps, stop
    # Ctrl-C reaches the whole process group. The parent decides what follows, and tells by `stop`.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with(parent, _end_programs)
    with contextlib.suppress(queue.Empty):
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus.get_nowait()  # in time: CUDA starts at its first use
    import torch

    # Models small enough for a CPU gain little from a second thread, and processes that share cores lose by waiting for each other's.
    torch.set_num_threads(1)


def stopping() -> bool:
    """In a worker: whether the user wants an end."""
    return _stop is not None and _stop.is_set()


def _end_programs() -> None:
    for program in _programs:
        program.terminate()  # a launcher hands it on to its processes


def run_program(command: Sequence[str], log: Any, while_it_runs: Callable[[], None], keep_open: Sequence[int] = ()) -> int:
    """In a worker: run another program to its end, its output to the file `log`, and return its exit code.

    `while_it_runs` is called twice a second. The program is out of reach of the terminal's Ctrl-C, holds the file descriptors `keep_open`,
    and is ended when the main process is killed. Raises OSError where it can't be started.
    """
    with subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, pass_fds=keep_open, start_new_session=True) as program:
        _programs.append(program)
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return program.wait(timeout=0.5)
                while_it_runs()
        finally:
            program.terminate()  # nothing where it has ended
            _programs.remove(program)


def report_steps(name: str, step: int) -> None:
    """In a worker: tell how far the job `name` is."""
    if _steps is not None:
        _steps.put((name, step))


class StepReporter(TrainerCallback):
    """In a worker: reports the optimiser steps of the job `name`, and passes on the wish to stop as a Ctrl-C, which training handles."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % 5 and state.global_step != state.max_steps:
            return
        report_steps(self.name, state.global_step)
        if not self.asked and stopping():
            self.asked = True
            os.kill(os.getpid(), signal.SIGINT)
