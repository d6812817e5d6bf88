"""The commands of `demask data`: what goes into a training. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated, Optional

import typer

data_app = typer.Typer(
    help="Documents and questions: look at them, build published sets, write paraphrases and questions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

OptionalStr = Optional[str]  # noqa: UP045 (typer reads this at run time)
OptionalInt = Optional[int]  # noqa: UP045


@data_app.command(help="Say what would be trained on: documents and tokens, what is too long, what is there twice, what can't be read.")
def check(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Folders, files or Hugging Face data sets, as for --documents.")],
    model_name_or_path: Annotated[
        OptionalStr, typer.Option("--model_name_or_path", help="Whose tokens to count (default: the embedded model's).")
    ] = None,
    text_column: Annotated[str, typer.Option("--text_column", help="The documents' text field or column.")] = "text",
    max_length: Annotated[OptionalInt, typer.Option("--max_length", help="As in training (default: the model's context).")] = None,
    near_duplicates: Annotated[
        float,
        typer.Option("--near_duplicates", help="The share of common word triples that makes near duplicates; 0: exact ones only."),
    ] = 0.8,
) -> None:
    from rich.console import Console
    from tqdm import tqdm

    from demask.stages.check import check as run
    from demask.stages.check import print_check

    try:
        found = run(
            paths,
            model_name_or_path,
            text_column=text_column,
            max_length=max_length,
            near_duplicates=near_duplicates,
            progress=lambda placed: iter(tqdm(placed, unit=" documents", leave=False, disable=None)),  # None: only on a terminal
        )
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    print_check(found, Console())
