"""The data sets by name: the generated ones, (seed, options) -> (documents, questions), and the published ones."""

from collections.abc import Callable
from typing import Any

from demask.corpora import biography, competition_math, gsm8k, name_description, webscale_rl, wiki, world
from demask.corpora.arithmetic import arithmetic_corpus
from demask.corpora.published import Published

CORPORA: dict[str, Callable[..., Any]] = {
    "statements": world.statement_corpus,
    "biographies": world.biography_corpus,
    "arithmetic": arithmetic_corpus,
}

PUBLISHED: dict[str, Published] = {
    "name_description": name_description.SET,
    "biography": biography.SET,
    "wiki": wiki.SET,
    "gsm8k": gsm8k.SET,
    "math": competition_math.SET,
    "webscale_rl": webscale_rl.SET,
}
