"""The commands of `demask data`: what goes into a training. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import typer

data_app = typer.Typer(
    help="Documents and questions: look at them, build published sets, write paraphrases and questions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
