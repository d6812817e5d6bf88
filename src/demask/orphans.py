"""Processes that end with the one they work for, however that ends: nobody would read what they go on to do."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable


def end_with(parent: int, before: Callable[[], None] = lambda: None) -> None:
    """Watch the process `parent`, which started this one, from a thread; once it is gone, call `before` and end this process."""
    threading.Thread(target=_watch, args=(parent, before), daemon=True).start()


def _watch(parent: int, before: Callable[[], None]) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    before()
    os._exit(1)
