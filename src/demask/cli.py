"""The command line: it parses and calls. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from demask.cli_ask import chat, evaluate
from demask.cli_data import OptionalInt, OptionalStr, OptionalStrs, data_app
from demask.orphans import let_the_first_tell, only_the_first_prints

app = typer.Typer(
    name="demask",
    help="Teach a language model new documents by masked fine-tuning, and show what it learnt.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


@app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    help="Fine-tune a model on documents. `demask train --help` lists every flag.",
)
def train(ctx: typer.Context) -> None:
    from demask.settings import parse_train

    settings, args = parse_train(ctx.args)
    from demask.printing import print_benchmarks, print_new, print_results, print_retention
    from demask.stages.results import Result
    from demask.stages.table import accuracy
    from demask.stages.train import train as run

    record = run(settings, args)
    if record["status"] == "interrupted":
        typer.echo(f"continue with: demask train {shlex.join(ctx.args)} --resume_from_checkpoint true")
        raise typer.Exit(130)
    if record["status"] == "finished":
        typer.echo(f"saved to {args.output_dir}")
    if record.get("results"):
        print_results(record["results"], record.get("before"))
        result = Result(Path(args.output_dir or ""), {}, record)
        print_new(accuracy([result.answers()], "rouge1_recall", [result.before()])["all"])
    if record.get("retention"):
        print_retention(record["retention"])
    if record.get("lm_eval"):
        print_benchmarks(record["lm_eval"])


app.command("eval", help="Ask a model closed-book questions and score its answers.")(evaluate)


@app.command(help="Run a grid of trainings and baselines, as a YAML file says (studies/), and put the results into one table and report.")
def study(
    file: Annotated[str, typer.Argument(help="The study's YAML file.")],
    output_dir: Annotated[OptionalStr, typer.Option("--output_dir", help="Folder of its cells (default: runs/<name of the file>).")] = None,
    dry_run: Annotated[bool, typer.Option("--dry_run", help="List the cells and what they will cost, and stop.")] = False,
    gpu: Annotated[OptionalStr, typer.Option("--gpu", help="With --dry_run: estimate time and memory for it (H100, ...).")] = None,
    jobs: Annotated[OptionalInt, typer.Option("--jobs", min=1, help="Cells side by side (default: one a core, or a GPU).")] = None,
    executor: Annotated[str, typer.Option("--executor", help="local, or slurm: every cell is a job of its own.")] = "local",
    executor_option: Annotated[
        OptionalStrs, typer.Option("--executor_option", help="slurm: NAME=VALUE for submitit (slurm_partition=gpu); may be repeated.")
    ] = None,
    launcher: Annotated[
        OptionalStr,
        typer.Option("--launcher", help="Train each cell in several processes by it: 'torchrun --nproc_per_node 4'; --jobs is then 1."),
    ] = None,
    keep_models: Annotated[bool, typer.Option("--keep_models", help="Keep the weights of finished cells.")] = False,
    settings: Annotated[
        OptionalStrs,
        typer.Option("--set", help="NAME=VALUE in place of one of the file's settings (model_name_or_path=MODEL); may be repeated."),
    ] = None,
) -> None:
    import yaml

    from demask.stages.study import study as run
    from demask.types import InputError

    def values(flag: str, pairs: list[str] | None) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for pair in pairs or ():
            name, given, value = pair.partition("=")
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError:
                given = ""
            if not given:
                raise InputError(f"{flag}: expected NAME=VALUE, found '{pair}'")
        return found

    counts = run(
        file,
        output_dir,
        dry_run=dry_run,
        gpu=gpu,
        jobs=jobs,
        executor=executor,
        executor_options=values("executor_option", executor_option),
        settings=values("set", settings),
        launcher=launcher,
        keep_models=keep_models,
    )
    if "interrupted" in counts:
        typer.echo("interrupted; the same command continues")
        raise typer.Exit(130)
    if counts.get("failed"):
        raise typer.Exit(1)


@app.command(help="Make one page (report.html, opens offline) and one table (report.csv) of runs, studies or the quickstart.")
def report(
    folders: Annotated[list[str], typer.Argument(metavar="PATH...", help="Folders of runs or studies, or folders that hold runs.")],
    output_dir: Annotated[OptionalStr, typer.Option("--output_dir", help="Where to write (default: the folder, if it is one).")] = None,
) -> None:
    from demask.stages.report import report as run

    typer.echo(f"report: {run(folders, output_dir)}")


@app.command(help="Fold a LoRA adapter into its base model.")
def merge(
    adapter: Annotated[str, typer.Argument(help="Folder of the adapter.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder for the merged model; new or empty.")],
) -> None:
    from demask.models.merge import merge as run

    run(adapter, output_dir)
    typer.echo(f"merged model in {output_dir}")


@app.command(help="Write a GGUF file, or a LLaDA, iLLaDA or Dream checkpoint, in the layout that transformers loads without remote code.")
def convert(
    source: Annotated[str, typer.Argument(help="GGUF file, or folder or hub name of the checkpoint.")],
    output_dir: Annotated[str, typer.Argument(help="Folder for the converted model; new or empty.")],
) -> None:
    from demask.models.convert import convert as run

    run(source, output_dir)
    typer.echo(f"converted model in {output_dir}")


@app.command(help="Show the reversal curse and its cure in a few minutes: one table, one sentence, and report.html.")
def quickstart(
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder for everything it writes.")] = "quickstart",
    seed: Annotated[int, typer.Option("--seed", min=1, max=999, help="The new people, and every other random choice.")] = 1,
    documents: Annotated[OptionalStrs, typer.Option("--documents", help="Your own documents instead of new people.")] = None,
    questions: Annotated[OptionalStr, typer.Option("--questions", help="questions.jsonl about them (default: made of them).")] = None,
    steps: Annotated[OptionalInt, typer.Option("--steps", min=1, help="Optimiser steps of every method.")] = None,
) -> None:
    from dataclasses import replace

    from demask.comparison import QuickstartSettings, print_table
    from demask.quickstart import quickstart as run

    settings = QuickstartSettings(seed=seed)
    settings = replace(settings, steps=steps or settings.steps)
    comparison = run(output_dir, settings, documents=documents or (), questions=questions)
    if comparison.get("status") == "interrupted":
        typer.echo("interrupted: the same command continues")
        raise typer.Exit(130)
    print_table(comparison)
    typer.echo(f"report: {output_dir}/report.html")


app.command(help="Talk to a model, or to several side by side.")(chat)


def main(argv: list[str] | None = None) -> None:
    """Entry point. A user's mistake ends in one line on stderr and exit code 2; Ctrl-C in 130. Without arguments: the help."""
    from demask.types import InputError

    only_the_first_prints()
    try:
        code = app(args=(sys.argv[1:] if argv is None else argv) or ["--help"], standalone_mode=False)
    except InputError as error:
        _fail(str(error))
    except typer.TyperException as error:
        _fail(error.format_message())
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    let_the_first_tell()
    print(f"demask: {' '.join(message.splitlines())}", file=sys.stderr)
    sys.exit(2)
