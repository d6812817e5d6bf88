"""Answers of language models on disk, so that none is paid for twice.

One SQLite file in WAL mode: consistent whenever its process is killed, and shared by processes that run side by side. It holds what
was answered and a hash of what was asked, no keys and no addresses.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from demask.types import InputError

_TABLE = """CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY, model TEXT NOT NULL, content TEXT NOT NULL, finish_reason TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL)"""
_COLUMNS = "content, finish_reason, prompt_tokens, completion_tokens"


@dataclass(frozen=True)
class Stored:
    """One whole answer: its text, why it ended ("stop", "length", ...), and its tokens as the server counted them (0: it did not say)."""

    content: str
    finish_reason: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0


def answer_key(model: str, messages: Sequence[Mapping[str, str]], sampling: Mapping[str, Any], attempt: int) -> str:
    """The sha256 of all that an answer depends on; `attempt` tells equal requests apart that are meant to be asked again."""
    asked = json.dumps([model, list(messages), dict(sampling), attempt], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(asked.encode()).hexdigest()


class Cache:
    """Answers by key. None for a path: an empty one in memory, for a plan that must write nothing."""

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = path
        if path is not None:
            self._told(lambda: Path(path).parent.mkdir(parents=True, exist_ok=True))
        # A process waits so long for another that writes. Every statement is a transaction of its own.
        self._database = self._told(lambda: sqlite3.connect(path or ":memory:", timeout=60, isolation_level=None))
        self._told(self._prepare)

    def _prepare(self) -> None:
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=NORMAL")  # in WAL mode a power cut may cost the last answers, not the file
        self._database.execute(_TABLE)
        self._database.execute(f"SELECT key, {_COLUMNS} FROM answers LIMIT 1")

    def get(self, key: str) -> Stored | None:
        row = self._told(lambda: self._database.execute(f"SELECT {_COLUMNS} FROM answers WHERE key = ?", (key,)).fetchone())
        return Stored(*row) if row else None

    def put(self, key: str, model: str, answer: Stored) -> Stored:
        """Keep an answer, and return the one that is kept: the first, where two processes have asked the same at once."""
        row = (key, model, answer.content, answer.finish_reason, answer.prompt_tokens, answer.completion_tokens)
        self._told(lambda: self._database.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row))
        return self.get(key) or answer

    def close(self) -> None:
        self._database.close()

    def _told(self, use: Callable[[], Any]) -> Any:
        try:
            return use()
        except (sqlite3.Error, OSError) as error:  # not a database, of another kind, read-only, a full disk
            raise InputError(f"{self.path}: cannot be used as the cache of answers ({error})") from error
