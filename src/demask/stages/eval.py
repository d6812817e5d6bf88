"""Ask a model closed-book questions and score its answers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from demask.chat_format import ChatFormat
from demask.context import CONTEXTS, context_settings, passages, with_passages
from demask.decoding import Sampling, check_decoding, generate, load
from demask.distributed import in_shares, is_main, join, place, share_of
from demask.general import questions_or_general
from demask.masking import generator
from demask.models.family import family
from demask.models.load import context_length, load_config, load_tokenizer, model_folder
from demask.runs import KNOWN_AFTER
from demask.scoring import score_all, summarise
from demask.splits import assign_splits
from demask.stages.text_loss import text_loss
from demask.types import SPLITS, Answer, Document, InputError, Question, answer_record, write_json, write_jsonl

LIMIT, SHORTEST = 3, 16  # an answer may be so many times as long as the longest gold one; tokens that any may have
_SHOTS = 31  # stream of the seed


def ask(
    model: Any,
    chat: ChatFormat,
    questions: Sequence[Question],
    *,
    shots: Sequence[Question] = (),
    shown: Sequence[Sequence[Document]] | None = None,
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    sampling: Sampling | None = None,
    backend: str = "transformers",
    progress: Callable[[int], None] | None = None,
) -> list[Answer]:
    """The model's answers with their scores, in the questions' order; `shots` are shown, answered, before each question, and before them
    the documents that `shown` holds for it.

    A causal model answers greedily, by any of `decoding.BACKENDS` (the model is what `decoding.load` returns for it), a diffusion model by
    `sampling` (None: one token a forward pass). An answer ends with the model's turn, or after `max_new_tokens` (None: see
    `answer_limit`). Of several processes, all of which must call it, each answers a share of the questions, and all get all answers.
    """
    limit = answer_limit(max_new_tokens, questions, chat, model.config, sampling)
    prompts = [chat.prompt(chat.content(text)) for text in turns(questions, shots, shown)]

    def answer(numbers: list[int]) -> list[str]:
        return generate(
            model,
            chat.tokenizer,
            [prompts[i] for i in numbers],
            stop_ids=chat.stop_ids(),
            max_new_tokens=limit,
            batch_size=batch_size,
            sampling=sampling,
            backend=backend,
            progress=progress,
        )

    texts = in_shares(answer, [len(prompt) for prompt in prompts])
    return score_all(questions, texts)


def answer_limit(given: int | None, questions: Sequence[Question], chat: ChatFormat, config: Any, sampling: Sampling | None = None) -> int:
    """The tokens of the longest answer to these questions: `given`, else LIMIT times those of the longest gold one, at least SHORTEST.

    A diffusion model's canvas is then made of whole blocks (of the `sampling`).
    """
    if given is not None:
        return given
    golds = chat.contents(list(dict.fromkeys(gold for question in questions for gold in question.answers)))
    limit = max(SHORTEST, LIMIT * max(map(len, golds), default=0))
    block = (sampling or Sampling()).block_length if family(config) == "diffusion" else 1
    return -(-limit // block) * block


def turns(questions: Sequence[Question], shots: Sequence[Question] = (), shown: Sequence[Sequence[Document]] | None = None) -> list[str]:
    """What the user says to ask each question."""
    return [
        with_passages(with_shots(question, shots), documents)
        for question, documents in zip(questions, shown or [()] * len(questions), strict=True)
    ]


def retention(
    model: Any,
    chat: ChatFormat,
    questions: Sequence[Question],
    documents: Sequence[Document],
    *,
    batch_size: int = 64,
    seed: int = 0,
    answers_file: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """What the model (still) knows: its scores on `questions` and its loss on the text of `documents`; what is empty is left out.

    `{"questions": {"n", "documents", metric: {"mean", "low", "high"}, ...}, "text": {"tokens", "nll"}}`; `options` as of `ask`. The
    answers go to `answers_file`, if given.
    """
    known: dict[str, Any] = {}
    if questions:
        answers = ask(model, chat, questions, batch_size=batch_size, **options)
        known["questions"] = summarise(answers)["overall"]
        if answers_file and is_main():
            write_jsonl(answers_file, map(answer_record, answers))
    if documents:
        known["text"] = text_loss(model, chat, documents, batch_size=min(8, batch_size), seed=seed)
    return known


def with_shots(question: Question, shots: Sequence[Question]) -> str:
    """The user's turn: the question alone, or after answered ones of other documents."""
    others = [shot for shot in shots if not shot.document or shot.document != question.document]
    if not others:
        return question.question
    answered = [f"Question: {shot.question}\nAnswer: {shot.answers[0]}\n" for shot in others]
    return "\n".join([*answered, f"Question: {question.question}\nAnswer:"])


def choose_shots(questions: Sequence[Question], n: int, seed: int) -> tuple[list[Question], list[Question]]:
    """(n questions to show, the rest to ask), both directions in turn; the validation split, where there is one, is shown from."""
    pool = [i for i, q in enumerate(questions) if q.split == "validation"] or list(range(len(questions)))
    order = generator(seed, _SHOTS).permutation(len(pool))
    by_direction: dict[str, list[int]] = {}
    for number in order:
        by_direction.setdefault(questions[pool[number]].direction, []).append(pool[number])
    queues = [by_direction[direction] for direction in sorted(by_direction)]
    chosen: list[int] = []
    while len(chosen) < n and any(queues):
        chosen += [queue.pop(0) for queue in queues if queue]
    chosen = chosen[:n]
    if len(chosen) < n:
        raise InputError(f"few_shot: {n} questions to show, but there are only {len(pool)} to choose from")
    return [questions[i] for i in chosen], [q for i, q in enumerate(questions) if i not in set(chosen)]


def refuse_long_questions(
    questions: Sequence[Question],
    chat: ChatFormat,
    config: Any,
    limit: int,
    shots: Sequence[Question] = (),
    shown: Sequence[Sequence[Document]] | None = None,
) -> None:
    """Raise InputError for the first question that, with the `limit` of its answer, exceeds the model's context."""
    context = context_length(config, chat.tokenizer)
    for question, text in zip(questions, turns(questions, shots, shown), strict=True):
        length = len(chat.prompt(chat.content(text)))
        if length + limit > context:
            raise InputError(
                f"question '{question.question[:60]}': {length} tokens and {limit} for the answer exceed the model's context of "
                f"{context} (max_new_tokens, few_shot, context_size)"
            )


def refuse_folder(folder: Path) -> None:
    """Raise InputError, before long work, for an output folder that could not be made or written to."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"output_dir: '{folder}' is a file, expected a folder")
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise InputError(f"output_dir: '{folder}' can't be written ('{nearest}' is no folder that can be written to)")


def evaluate(
    model_name_or_path: str | None,
    questions: str | os.PathLike[str] | Sequence[Question],
    output_dir: str | os.PathLike[str],
    *,
    few_shot: int = 0,
    split: str | None = None,
    documents: Sequence[Document] = (),
    context: str | None = None,
    context_size: int = 3,
    retention_questions: Sequence[Question] = (),
    retention_documents: Sequence[Document] = (),
    max_new_tokens: int | None = None,
    batch_size: int = 64,
    sampling: Sampling | None = None,
    backend: str = "transformers",
    seed: int = 0,
    system_prompt: str | None = None,
    dtype: torch.dtype = torch.float32,
    quiet: bool = False,
) -> dict[str, Any]:
    """Ask a model (None: the embedded one) questions (file, list, "general"); write `answers.jsonl`, `results.json` and return the latter.

    `results.json` holds `scoring.summarise` of the answers. `split` asks only that split's questions, where
    questions without one get it by `seed` as in training. `few_shot` shows as many answered questions, drawn by `seed`, before each. With a
    `context` each question is shown some of `documents`: "document" the one it names, "bm25" the `context_size` best for it. With
    `retention_...`, `results["retention"]` says what the model knows besides, and `known.jsonl` has those answers. `max_new_tokens` None is
    the `answer_limit` of all the questions, whatever their split (it stands in the settings), and of `retention_questions` their own. Under
    a launcher of several processes all must call it: each answers a share, one writes. Raises InputError for anything wrong in the input,
    before weights load.
    """
    asked = questions_or_general(questions) if isinstance(questions, str | os.PathLike) else list(questions)
    if not asked:
        raise InputError("questions: there are none")
    if split and split not in SPLITS:
        raise InputError(f"split: must be one of {', '.join(SPLITS)}, found '{split}'")
    every = asked
    if split:
        asked = assign_splits(asked, seed)
    if split and not any(q.split == split for q in asked):
        raise InputError(f"{questions}: no question of the split '{split}'")
    shots, asked = choose_shots(asked, few_shot, seed) if few_shot else ([], asked)
    asked = [q for q in asked if not split or q.split == split]
    if not asked:
        raise InputError("few_shot: all questions are shown, none is left to ask")
    if context and context not in CONTEXTS:
        raise InputError(f"context: must be one of {', '.join(CONTEXTS)}, found '{context}'")
    if context and not documents:
        raise InputError("context: needs documents to show")
    shown = passages(asked, documents, context, context_size) if context else None
    folder = model_folder(model_name_or_path)
    config = load_config(folder)
    tokenizer = load_tokenizer(folder)
    check_decoding(config, tokenizer, sampling, backend)
    if backend == "vllm" and (retention_questions or retention_documents):
        raise InputError("backend: 'vllm' is for one set of questions (not with retention_questions, retention_documents)")
    chat = ChatFormat(tokenizer, system_prompt)
    limit = answer_limit(max_new_tokens, every, chat, config, sampling)
    kept_limit = answer_limit(max_new_tokens, retention_questions, chat, config, sampling)
    refuse_long_questions(asked, chat, config, limit, shots, shown)
    refuse_long_questions(retention_questions, chat, config, kept_limit)
    output = Path(output_dir)
    refuse_folder(output)
    device = join()
    if backend == "vllm" and place()[1] > 1:
        raise InputError("backend: 'vllm' is for a single process, without a launcher")
    model = load(folder, dtype, backend, device)
    with tqdm(total=share_of(len(asked)), desc="questions", disable=quiet or not is_main()) as bar:
        options: dict[str, Any] = {"batch_size": batch_size, "sampling": sampling, "backend": backend}
        answers = ask(model, chat, asked, shots=shots, shown=shown, max_new_tokens=limit, progress=bar.update, **options)
        options |= {"max_new_tokens": kept_limit, "seed": seed, "answers_file": output / KNOWN_AFTER}
        known = retention(model, chat, retention_questions, retention_documents, **options)
    results = summarise(answers)
    if known:
        results["retention"] = known
    results["settings"] = {"model": model_name_or_path or "embedded", "few_shot": few_shot, "split": split, "seed": seed}
    results["settings"] |= decoding_settings(config, limit, sampling, dtype, backend)
    results["settings"] |= context_settings(context, context_size, asked, shown or [])
    if is_main():
        write_jsonl(output / "answers.jsonl", map(answer_record, answers))
        write_json(output / "results.json", results)
    return results


def decoding_settings(
    config: Any, limit: int, sampling: Sampling | None, dtype: torch.dtype = torch.float32, backend: str = "transformers"
) -> dict[str, Any]:
    """How answers were written, as `results["settings"]` has it."""
    said: dict[str, Any] = {"max_new_tokens": limit, "dtype": str(dtype).removeprefix("torch."), "backend": backend}
    return said | ({"sampling": asdict(sampling or Sampling())} if family(config) == "diffusion" else {})
