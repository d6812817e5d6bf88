"""Paraphrases of documents and questions about them, written by a language model and checked: over files."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar

import yaml
from tqdm import tqdm

from demask.corpora.files import Notes, read_documents
from demask.splits import assign_splits
from demask.types import (
    DIRECTIONS,
    SPLITS,
    Document,
    InputError,
    Question,
    document_record,
    question_record,
    read_text,
    replacing,
    write_jsonl,
)
from demask.writing.cache import Cache
from demask.writing.checks import ORDERS, Order, drop_ambiguous
from demask.writing.cloze import cloze_questions
from demask.writing.endpoint import NOT_ASKED, Endpoint, EndpointSettings
from demask.writing.paraphrase import Written, paraphrase, per_request
from demask.writing.questions import ask_for_questions

Sources = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
Result = TypeVar("Result")
_CHARACTERS_PER_TOKEN = 4  # of English; a rough rule that needs no tokenizer
_CHARACTERS_PER_PAIR = 240  # of two questions with their answers, as JSON


@dataclass(frozen=True)
class Job:
    """What both stages are given besides their documents. Prices are per million tokens, in whatever money."""

    output_dir: str
    endpoint: EndpointSettings
    cache: str | None = None
    dry_run: bool = False
    price_in: float | None = None
    price_out: float | None = None

    def run(
        self,
        documents: Sequence[Document],
        write: Callable[[Document, Endpoint], Awaitable[Result]],
        left: Callable[[Document, Result], tuple[int, int]],
    ) -> tuple[list[Result] | None, Endpoint]:
        """Tell what it will cost, then write about every document; None instead of the results where it was to stop before the end.

        `left`: requests and characters of answers that are left to be made for a document that was not finished.
        """
        path = Path(self.cache or Path(self.output_dir) / "cache.sqlite")
        cache = Cache(path if path.exists() or not self.dry_run else None)
        try:
            planned, plan = asyncio.run(_each(documents, write, self.endpoint, cache, offline=True))
            rests = [left(document, result) for document, result in zip(documents, planned, strict=True)]
            print(_estimate(plan, sum(n for n, _ in rests), sum(size for _, size in rests), self.price_in, self.price_out), flush=True)
            if self.dry_run:
                return None, plan
            results, endpoint = asyncio.run(_each(documents, write, self.endpoint, cache))
        finally:
            cache.close()
        if endpoint.unasked:
            finished = sum(left(document, result) == (0, 0) for document, result in zip(documents, results, strict=True))
            far = f"{finished:,} of {len(documents):,} documents are finished, nothing is written yet"
            print(f"stopped after {_n(endpoint.requests, 'request')} (--max_requests): {far}; the same command continues")
            return None, endpoint
        return results, endpoint


def write_paraphrases(sources: Sources, job: Job, *, order: Order = "same", n: int = 10) -> dict[str, Any]:
    """Write `n` paraphrases of every document to `<output_dir>/documents.jsonl`, which holds the documents too; return what came of it.

    Its "status" is "finished", "planned" (a dry run), "stopped" (max_requests) or "nothing" (no paraphrase passed: nothing is written).
    Raises InputError, before any request, for pairs, an id that a paraphrase would need, and an output that something else has made.
    """
    if order not in ORDERS:
        raise InputError(f"order: must be one of {', '.join(ORDERS)}, found '{order}'")
    documents = _read(sources)
    taken = {document.id for document in documents}
    for document in documents:
        for k in range(1, n + 1):
            if f"{document.id}-p{k}" in taken:
                raise InputError(
                    f"documents: id '{document.id}-p{k}' is a document's, and would be that of a paraphrase of '{document.id}'"
                )
    output = Path(job.output_dir) / "documents.jsonl"
    made_by = _made_by("paraphrase", documents, job, order=order, n=n)
    _refuse_other(output, made_by)

    def left(document: Document, written: Written) -> tuple[int, int]:
        missing = n - len(written.kept) if written.failed == NOT_ASKED else 0
        return -(-missing // per_request(document.text)), missing * len(document.text)

    results, endpoint = job.run(documents, lambda document, endpoint: paraphrase(document, order, n, endpoint), left)
    if results is None:
        return _ended(job, endpoint)
    dropped: Counter[str] = sum((written.dropped for written in results), Counter())
    failed = Counter(written.failed for written in results if written.failed)
    fewer = {document.id: len(w.kept) for document, w in zip(documents, results, strict=True) if len(w.kept) < n}
    total = sum(len(written.kept) for written in results)
    if total:
        found = []
        for document, written in zip(documents, results, strict=True):
            origin = {"paraphrase_of": document.id, "order": order}
            found += [document, *(Document(f"{document.id}-p{k}", text, metadata=origin) for k, text in enumerate(written.kept, start=1))]
        _write(output, map(document_record, found), made_by)
        print(f"{output}: {_n(len(documents), 'document')} and {_n(total, 'paraphrase')}; {_used(endpoint)}")
    else:
        print(f"no paraphrase passed, nothing is written; {_used(endpoint)}")
    _print_lost(dropped, failed, endpoint)
    _print_some(f"documents with fewer than {n}", [f"{name} ({count})" for name, count in fewer.items()])
    return _ended(job, endpoint, total) | {"kept": total, "dropped": dict(dropped), "failed": dict(failed), "fewer": fewer}


def write_questions(sources: Sources, job: Job, *, n: int = 4, seed: int = 0) -> dict[str, Any]:
    """Write at most `n` questions of either direction about every document to `<output_dir>/questions.jsonl`; return what came of it.

    Paraphrases among the documents (`metadata.paraphrase_of`) are passed over. Splits are those of `assign_splits`, by the seed.
    Status and errors as of `write_paraphrases`.
    """
    documents = [document for document in _read(sources) if "paraphrase_of" not in document.metadata]
    if not documents:
        raise InputError("documents: all of them are paraphrases; questions are about what was paraphrased")
    output = Path(job.output_dir) / "questions.jsonl"
    made_by = _made_by("questions", documents, job, n=n, seed=seed)
    _refuse_other(output, made_by)

    def left(document: Document, result: tuple[list[Question], Counter[str], str]) -> tuple[int, int]:
        return (1, n * _CHARACTERS_PER_PAIR) if result[2] == NOT_ASKED else (0, 0)

    results, endpoint = job.run(documents, lambda document, endpoint: ask_for_questions(document, n, endpoint), left)
    if results is None:
        return _ended(job, endpoint)
    questions, ambiguous = drop_ambiguous([question for found, _, _ in results for question in found])
    dropped: Counter[str] = sum((lost for _, lost, _ in results), ambiguous)
    failed = Counter(reason for _, _, reason in results if reason)
    questions = assign_splits(questions, seed)
    asked = {question.document for question in questions}
    if questions:
        _write(output, map(question_record, questions), made_by)
        print(f"{output}: {_counted(questions)} about {len(asked):,} of {len(documents):,} documents; {_used(endpoint)}")
    else:
        print(f"no question passed, nothing is written; {_used(endpoint)}")
    _print_lost(dropped, failed, endpoint)
    _print_some("documents without a question", [document.id for document in documents if document.id not in asked])
    return _ended(job, endpoint, len(questions)) | {"kept": len(questions), "dropped": dict(dropped), "failed": dict(failed)}


def make_questions(sources: Sources, output_dir: str, *, n: int = 4, seed: int = 0) -> dict[str, Any]:
    """Write questions that are made of the documents themselves (`writing.cloze`) to `<output_dir>/questions.jsonl`; no model is asked.

    At most `n` of either direction for every 200 words of a document. Splits, errors and the "status" are those of `write_questions`.
    """
    documents = [document for document in _read(sources) if "paraphrase_of" not in document.metadata]
    output = Path(output_dir) / "questions.jsonl"
    made_by = _made_by("questions", documents, n=n, seed=seed)
    _refuse_other(output, made_by)
    questions = assign_splits(cloze_questions(documents, n, seed), seed)
    if questions:
        _write(output, map(question_record, questions), made_by)
        asked = {question.document for question in questions}
        print(f"{output}: {_counted(questions)} about {len(asked):,} of {len(documents):,} documents")
    else:
        print("no question could be made, nothing is written: these documents hold no names, dates or numbers to ask for")
    return {"status": "finished" if questions else "nothing", "kept": len(questions)}


async def _each(
    documents: Sequence[Document],
    write: Callable[[Document, Endpoint], Awaitable[Result]],
    settings: EndpointSettings,
    cache: Cache,
    offline: bool = False,
) -> tuple[list[Result], Endpoint]:
    endpoint = Endpoint(settings, cache, offline=offline)
    progress = tqdm(total=len(documents), unit=" documents", disable=True if offline else None)  # None: shown on a terminal only

    async def one(document: Document) -> Result:
        result = await write(document, endpoint)
        progress.update()
        return result

    try:
        async with asyncio.TaskGroup() as group:  # the first fault of all requests ends the others
            tasks = [group.create_task(one(document)) for document in documents]
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    finally:
        progress.close()
        await endpoint.close()
    return [task.result() for task in tasks], endpoint


def _read(sources: Sources) -> list[Document]:
    notes = Notes()
    documents = read_documents(sources, notes=notes)
    for line in notes.lines():
        print(line)
    for document in documents:
        if document.prompt is not None:
            raise InputError(f"documents: '{document.id}' is a prompt/response pair; paraphrases and questions are of documents")
    return documents


def _made_by(command: str, documents: Iterable[Document], job: Job | None = None, **settings: Any) -> dict[str, Any]:
    """What an output depends on. Not the address: the same model may have moved."""
    model = {"model": job.endpoint.model, **job.endpoint.sampling} if job else {}
    digest = sha256("\n".join(repr(document_record(document)) for document in documents).encode()).hexdigest()
    return {"command": command, **model, **settings, "documents_sha256": digest}


def _refuse_other(output: Path, made_by: dict[str, Any]) -> None:
    """InputError where a file stands that another job has made, or nobody knows what. What made a file stands beside it, as YAML."""
    if output.parent.exists() and not output.parent.is_dir():
        raise InputError(f"output_dir: '{output.parent}' is a file, expected a folder")
    record = output.with_suffix(".yaml")
    if not output.exists():
        return
    try:
        known = yaml.safe_load(read_text(record)) if record.is_file() else None
    except yaml.YAMLError:
        known = None
    if known != made_by:
        raise InputError(f"{output}: exists, and was not made by this command with these settings; name another --output_dir")


def _write(output: Path, records: Iterable[dict[str, Any]], made_by: dict[str, Any]) -> None:
    with replacing(output.with_suffix(".yaml")) as file:  # first: alone it claims nothing
        yaml.safe_dump(made_by, file, sort_keys=False, allow_unicode=True)
    write_jsonl(output, records)


def _ended(job: Job, endpoint: Endpoint, kept: int = 0) -> dict[str, Any]:
    status = "planned" if job.dry_run else "stopped" if endpoint.unasked else "finished" if kept else "nothing"
    return {"status": status, "requests": endpoint.requests, "cached": endpoint.cached, "tokens": dict(endpoint.tokens)}


def _estimate(plan: Endpoint, requests: int, answer_characters: int, price_in: float | None, price_out: float | None) -> str:
    known = f"in the cache: {_n(plan.cached, 'answer')}"
    if not requests:
        return f"to ask: nothing; {known}"
    sizes = [sum(len(message["content"]) for message in messages) for messages in plan.unasked]
    tokens_in = round(sum(sizes) / len(sizes) * requests / _CHARACTERS_PER_TOKEN)
    tokens_out = round(answer_characters / _CHARACTERS_PER_TOKEN)
    line = f"to ask: {_n(requests, 'request')}, about {tokens_in:,} prompt and {tokens_out:,} completion tokens"
    if price_in is not None or price_out is not None:
        price = (tokens_in * (price_in or 0) + tokens_out * (price_out or 0)) / 1e6
        line += f", {price:,.{2 if price >= 0.1 else 4}f} at the prices given"
    return f"{line}; more where answers are malformed or dropped; {known}"


def _used(endpoint: Endpoint) -> str:
    tokens = endpoint.tokens
    counted = f" ({tokens['prompt']:,} prompt and {tokens['completion']:,} completion tokens)" if tokens.total() else ""
    return f"{_n(endpoint.requests, 'request')}{counted}, {_n(endpoint.cached, 'answer')} from the cache"


def _counted(questions: Sequence[Question]) -> str:
    ways = ", ".join(f"{sum(q.direction == way for q in questions):,} {way}" for way in DIRECTIONS)
    splits = ", ".join(f"{sum(q.split == split for q in questions):,} {split}" for split in SPLITS)
    return f"{_n(len(questions), 'question')} ({ways}; {splits})"


def _print_lost(dropped: Counter[str], failed: Counter[str], endpoint: Endpoint) -> None:
    if dropped:
        print("dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common()))
    if failed:
        said = {reason: f" ({endpoint.said[reason]})" if endpoint.said.get(reason) else "" for reason in failed}
        print("documents that failed: " + ", ".join(f"{count:,} {reason}{said[reason]}" for reason, count in failed.most_common()))
        if any("JSON" not in reason for reason in failed):
            print("the same command asks again where the server failed")


def _n(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _print_some(what: str, names: Sequence[str], shown: int = 10) -> None:
    if names:
        more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
        print(f"{what}: {', '.join(names[:shown])}{more}")
