"""The commands of `demask data`: what goes into a training. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Optional

import typer

data_app = typer.Typer(
    help="Documents and questions: look at them, build published sets, write paraphrases and questions.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

OptionalStr = Optional[str]  # noqa: UP045 (typer reads this at run time)
OptionalInt = Optional[int]  # noqa: UP045
OptionalFloat = Optional[float]  # noqa: UP045
OptionalStrs = Optional[list[str]]  # noqa: UP045
OptionalBool = Optional[bool]  # noqa: UP045

# What the commands share that ask a language model.
Documents = Annotated[list[str], typer.Argument(metavar="DOCS...", help="Files, folders or data sets of documents.")]
OutputDir = Annotated[str, typer.Option("--output_dir", help="Folder for what is written.")]
Model = Annotated[OptionalStr, typer.Option("--model", help="Name of the model, as the endpoint knows it.")]
BaseUrl = Annotated[OptionalStr, typer.Option("--base_url", help="OpenAI-compatible endpoint (http://127.0.0.1:8000/v1).")]
Concurrency = Annotated[int, typer.Option("--concurrency", min=1, help="Requests at a time.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds the endpoint may be silent before a request is lost.")]
MaxRequests = Annotated[OptionalInt, typer.Option("--max_requests", min=1, help="Stop after so many requests, retries included.")]
SamplingTemperature = Annotated[OptionalFloat, typer.Option("--temperature", min=0.0, help="Of the model (default: the endpoint's).")]
MaxTokens = Annotated[OptionalInt, typer.Option("--max_tokens", min=1, help="Longest answer (default: the endpoint's).")]
CacheFile = Annotated[OptionalStr, typer.Option("--cache", help="File of answers (default: <output_dir>/cache.sqlite).")]
DryRun = Annotated[bool, typer.Option("--dry_run", help="Tell what it will cost, and stop.")]
PriceIn = Annotated[OptionalFloat, typer.Option("--price_in", min=0.0, help="Of a million prompt tokens, for the estimate.")]
PriceOut = Annotated[OptionalFloat, typer.Option("--price_out", min=0.0, help="Of a million completion tokens.")]


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
    form: Annotated[
        OptionalStr,
        typer.Option(
            "--form",
            help="name_description: questions (default) or the published sentences; webscale_rl: pairs (default) or their texts.",
        ),
    ] = None,
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


@data_app.command(help="Let a language model paraphrase documents; what loses a fact or the order that is asked for is dropped.")
def paraphrase(
    documents: Documents,
    output_dir: OutputDir,
    model: Model = None,
    base_url: BaseUrl = None,
    order: Annotated[str, typer.Option("--order", help="Of the facts: same or permuted.")] = "same",
    n: Annotated[int, typer.Option("--n", min=1, help="Paraphrases of each document.")] = 10,
    concurrency: Concurrency = 16,
    timeout: Timeout = 300.0,
    max_requests: MaxRequests = None,
    temperature: SamplingTemperature = None,
    max_tokens: MaxTokens = None,
    cache: CacheFile = None,
    dry_run: DryRun = False,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
) -> None:
    endpoint = _endpoint(model, base_url, concurrency, timeout, max_requests, temperature, max_tokens)
    from demask.stages.writing import Job, write_paraphrases

    job = Job(output_dir, endpoint, cache, dry_run, price_in, price_out)
    _finish(lambda: write_paraphrases(documents, job, order=order, n=n))  # type: ignore[arg-type]


@data_app.command(help="Write questions about documents in both directions: by a language model, or, without one, made of their own words.")
def questions(
    documents: Documents,
    output_dir: OutputDir,
    model: Model = None,
    base_url: BaseUrl = None,
    n: Annotated[int, typer.Option("--n", min=1, help="Questions of each direction about each document.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the split into validation and test.")] = 0,
    concurrency: Concurrency = 16,
    timeout: Timeout = 300.0,
    max_requests: MaxRequests = None,
    temperature: SamplingTemperature = None,
    max_tokens: MaxTokens = None,
    cache: CacheFile = None,
    dry_run: DryRun = False,
    price_in: PriceIn = None,
    price_out: PriceOut = None,
) -> None:
    if model is None and base_url is None:
        from demask.stages.writing import make_questions

        _finish(lambda: make_questions(documents, output_dir, n=n, seed=seed))
        return
    endpoint = _endpoint(model, base_url, concurrency, timeout, max_requests, temperature, max_tokens)
    from demask.stages.writing import Job, write_questions

    job = Job(output_dir, endpoint, cache, dry_run, price_in, price_out)
    _finish(lambda: write_questions(documents, job, n=n, seed=seed))


def _endpoint(model: str | None, base_url: str | None, *settings: Any) -> Any:
    from demask.types import InputError

    if model is None or base_url is None:
        raise InputError("a language model is asked: --model and --base_url are both needed")
    from demask.writing.endpoint import EndpointSettings

    return EndpointSettings(model, base_url, *settings)


def _finish(run: Callable[[], dict[str, Any]]) -> None:
    """Run a stage that asks a language model. Exit code 1 where it wrote nothing it was to write, 130 after Ctrl-C."""
    try:
        status = run()["status"]
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command continues")
        raise typer.Exit(130) from None
    if status in ("stopped", "nothing"):
        raise typer.Exit(1)
