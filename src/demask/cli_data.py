"""The commands of `demask data`: what goes into a training. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated, Any, Optional

import typer

data_app = typer.Typer(
    help="Documents and questions: look at them, build published sets, write paraphrases and questions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

OptionalStr = Optional[str]  # noqa: UP045 (typer reads this at run time)
OptionalInt = Optional[int]  # noqa: UP045


@data_app.command("list", help="The data sets that `demask data build` knows: size, paraphrases, home and licence.")
def list_sets() -> None:
    from rich.console import Console

    from demask.stages.build import sets_tables

    Console().print(*sets_tables())


@data_app.command(help="Write a named data set as documents.jsonl and questions.jsonl, from its published files or by generating it.")
def build(
    name: Annotated[str, typer.Argument(help="Name of the set, as `demask data list` shows it.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder for the set; new, empty, or of a former build.")],
    source: Annotated[OptionalStr, typer.Option("--source", help="Folder of its published files (default: they are fetched).")] = None,
    paraphrases: Annotated[
        OptionalStr, typer.Option("--paraphrases", help="Wordings too: none (default), same_order or permuted, as far as published.")
    ] = None,
    form: Annotated[OptionalStr, typer.Option("--form", help="webscale_rl: pairs (default), or the texts they are made from.")] = None,
    calculator_marks: Annotated[bool, typer.Option("--calculator_marks", help="gsm8k: leave <<...>> in the worked answers.")] = False,
    lm_eval: Annotated[bool, typer.Option("--lm_eval", help="gsm8k, math: prompts as lm-eval's tasks ask them.")] = False,
    seed: Annotated[OptionalInt, typer.Option("--seed", min=0, help="Generated sets: which (default: 1).")] = None,
    n: Annotated[OptionalInt, typer.Option("--n", min=1, help="Generated sets: so many people or problems.")] = None,
) -> None:
    import sys

    from demask.stages.build import build as run

    given = {"paraphrases": paraphrases, "form": form, "seed": seed, "n": n}
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    options |= {key: True for key, value in {"calculator_marks": calculator_marks, "lm_eval": lm_eval}.items() if value}
    record = run(name, output_dir, source=source, **options)
    for warning in record["warnings"]:
        print(f"demask: warning: {warning}", file=sys.stderr)
    typer.echo(f"{record['documents']:,} documents and {record['questions']:,} questions in {output_dir}")
