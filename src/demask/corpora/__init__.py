"""The generated corpora by name: (seed, options) -> (documents, questions)."""

from collections.abc import Callable
from typing import Any

from demask.corpora import world
from demask.corpora.arithmetic import arithmetic_corpus

CORPORA: dict[str, Callable[..., Any]] = {
    "statements": world.statement_corpus,
    "biographies": world.biography_corpus,
    "arithmetic": arithmetic_corpus,
}
