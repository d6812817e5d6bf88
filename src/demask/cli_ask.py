"""The commands that ask a model: `demask eval`, `demask chat`. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from demask.cli_data import OptionalBool, OptionalFloat, OptionalInt, OptionalStr, OptionalStrs

# The sampler of masked diffusion models; None: not given.
BlockLength = Annotated[OptionalInt, typer.Option("--block_length", help="diffusion: tokens of a block (default: 32).")]
Steps = Annotated[OptionalInt, typer.Option("--steps", help="diffusion: forward passes for the whole answer (default: one a token).")]
Threshold = Annotated[OptionalFloat, typer.Option("--threshold", help="diffusion: write all tokens at least so confident.")]
Factor = Annotated[OptionalFloat, typer.Option("--factor", help="diffusion: the more confident, the more tokens at a time (Fast-dLLM).")]
Remasking = Annotated[OptionalStr, typer.Option("--remasking", help="diffusion: low_confidence (default) or random.")]
Temperature = Annotated[OptionalFloat, typer.Option("--temperature", help="diffusion: above 0, tokens are drawn (default: 0).")]
GuidanceScale = Annotated[OptionalFloat, typer.Option("--guidance_scale", help="diffusion: classifier-free guidance (default: 0).")]
PrefixCache = Annotated[OptionalBool, typer.Option("--prefix_cache", help="diffusion: keep keys and values: faster, a little less exact.")]


def evaluate(
    questions: Annotated[str, typer.Option("--questions", help="questions.jsonl; 'general' names general questions of ours.")],
    output_dir: Annotated[str, typer.Option("--output_dir", help="Folder for answers.jsonl and results.json.")],
    model_name_or_path: Annotated[
        OptionalStr, typer.Option("--model_name_or_path", help="Model or adapter (default: the embedded one).")
    ] = None,
    documents: Annotated[OptionalStrs, typer.Option("--documents", help="Documents for --context; may be repeated.")] = None,
    context: Annotated[
        OptionalStr,
        typer.Option("--context", help="Show documents before each question: 'document' the one it names, 'bm25' the best found."),
    ] = None,
    context_size: Annotated[int, typer.Option("--context_size", min=1, help="bm25: so many documents.")] = 3,
    few_shot: Annotated[int, typer.Option("--few_shot", min=0, help="Answered questions shown before each.")] = 0,
    split: Annotated[OptionalStr, typer.Option("--split", help="Ask only this split: validation or test.")] = None,
    max_new_tokens: Annotated[
        OptionalInt,
        typer.Option("--max_new_tokens", min=1, help="Of the longest answer (default: three times the longest right one, at least 16)."),
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch_size", min=1, help="Questions at a time.")] = 64,
    backend: Annotated[
        str, typer.Option("--backend", help="transformers; or continuous (continuous batching), vllm: left-to-right models.")
    ] = "transformers",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the weights: float32 or bfloat16, which is faster.")] = "float32",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Draws the few-shot questions, and what diffusion draws.")] = 0,
    system_prompt: Annotated[OptionalStr, typer.Option("--system_prompt")] = None,
    block_length: BlockLength = None,
    steps: Steps = None,
    threshold: Threshold = None,
    factor: Factor = None,
    remasking: Remasking = None,
    temperature: Temperature = None,
    guidance_scale: GuidanceScale = None,
    prefix_cache: PrefixCache = None,
) -> None:
    from dataclasses import replace

    import torch

    from demask.corpora.files import read_documents
    from demask.printing import print_results
    from demask.shortage import advice_when_out_of_memory
    from demask.stages.eval import evaluate as run
    from demask.types import InputError

    if dtype not in ("float32", "bfloat16"):
        raise InputError(f"dtype: must be one of float32, bfloat16, found '{dtype}'")
    sampling = _sampling(
        block_length=block_length,
        steps=steps,
        threshold=threshold,
        factor=factor,
        remasking=remasking,
        temperature=temperature,
        guidance_scale=guidance_scale,
        prefix_cache=prefix_cache,
    )
    with advice_when_out_of_memory("while asking questions", f"try --batch_size {max(1, batch_size // 2)}, --dtype bfloat16"):
        results = run(
            model_name_or_path,
            questions,
            output_dir,
            documents=read_documents(documents) if documents else (),
            context=context,
            context_size=context_size,
            few_shot=few_shot,
            split=split,
            max_new_tokens=max_new_tokens,
            batch_size=batch_size,
            sampling=sampling and replace(sampling, seed=seed),
            backend=backend,
            dtype=getattr(torch, dtype),
            seed=seed,
            system_prompt=system_prompt,
        )
    print_results(results)
    typer.echo(f"answers and scores in {output_dir}; an answer has at most {results['settings']['max_new_tokens']} tokens")


def chat(
    model_name_or_path: Annotated[
        OptionalStrs,
        typer.Option("--model_name_or_path", help="Model or adapter (default: the embedded one); given twice, both answer."),
    ] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show the model it was trained from beside it.")] = False,
    history: Annotated[
        OptionalBool,
        typer.Option("--history/--no-history", help="Ask a question together with those before it (default: not of an embedded model)."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max_new_tokens", min=1)] = 128,
    system_prompt: Annotated[OptionalStr, typer.Option("--system_prompt")] = None,
    block_length: BlockLength = None,
    steps: Steps = None,
    threshold: Threshold = None,
    factor: Factor = None,
    remasking: Remasking = None,
    temperature: Temperature = None,
    guidance_scale: GuidanceScale = None,
    prefix_cache: PrefixCache = None,
    seed: Annotated[OptionalInt, typer.Option("--seed", min=0, help="diffusion: of the temperature and of random remasking.")] = None,
) -> None:
    from demask.chat import chat as run

    sampling = _sampling(
        block_length=block_length,
        steps=steps,
        threshold=threshold,
        factor=factor,
        remasking=remasking,
        temperature=temperature,
        guidance_scale=guidance_scale,
        prefix_cache=prefix_cache,
        seed=seed,
    )
    run(
        model_name_or_path or (),
        compare=compare,
        history=history,
        max_new_tokens=max_new_tokens,
        system_prompt=system_prompt,
        sampling=sampling,
    )


def _sampling(**flags: Any) -> Any:
    """The `decoding.Sampling` of the flags that are given; None where none is."""
    from demask.decoding import Sampling
    from demask.types import InputError

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return Sampling(**given) if given else None
    except ValueError as error:
        raise InputError(str(error)) from None
