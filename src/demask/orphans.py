"""Processes that work for another, or side by side under a launcher (torchrun, accelerate launch)."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable


def end_with(parent: int, before: Callable[[], None] = lambda: None) -> None:
    """Watch the process `parent`, which started this one, from a thread; once it is gone, call `before` and end this process: nobody
    would read what it goes on to do, however that other one ended."""
    threading.Thread(target=_watch, args=(parent, before), daemon=True).start()


def _watch(parent: int, before: Callable[[], None]) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    before()
    os._exit(1)


def only_the_first_prints() -> None:
    """A launcher starts a command several times over: what all but the first of these processes print goes nowhere."""
    if os.environ.get("RANK", "0") != "0":
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it is to stay open)


def let_the_first_tell() -> None:
    """Wait a little in all processes of a machine but the first: they find the same mistake, and end with it once it has told it."""
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(5)
