"""What would be trained on: documents by kind of file, tokens, what is too long, what is there twice, and what was passed over."""

from __future__ import annotations

import heapq
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from demask.chat_format import RECOVER_ANSWER, RECOVER_PASSAGE, RECOVERED, ChatFormat
from demask.corpora.duplicates import Duplicates
from demask.corpora.files import Notes, Placed, batches, iter_documents
from demask.types import Document, InputError

SHOWN = 5  # of the longest documents, and of pairs of duplicates
_TINY = Path(__file__).resolve().parent.parent / "tiny" / "causal"


@dataclass
class Kind:
    """One row of the table."""

    files: int = 0
    documents: int = 0
    tokens: int = 0
    longest: int = 0


@dataclass
class Check:
    """What `check` found. Documents of `exact` and `near` pairs, the later first, are named by where they stand."""

    model: str
    limit: int  # tokens of the longest training example
    near_duplicates: float  # the similarity from which on two are, 0: not looked for
    kinds: dict[str, Kind] = field(default_factory=dict)
    longest: list[tuple[int, str, str]] = field(default_factory=list)  # (tokens, id, where)
    split: int = 0  # documents that would be split
    long_pairs: int = 0  # pairs that are too long, and can't be split
    exact: int = 0
    near: int = 0
    exact_pairs: list[tuple[str, str]] = field(default_factory=list)
    near_pairs: list[tuple[str, str, float]] = field(default_factory=list)
    notes: Notes = field(default_factory=Notes)


def check(
    sources: Sequence[str],
    model_name_or_path: str | None = None,
    *,
    text_column: str = "text",
    max_length: int | None = None,
    near_duplicates: float = 0.8,
    progress: Callable[[Iterator[Placed]], Iterator[Placed]] = lambda placed: placed,
) -> Check:
    """Read all documents once, one batch in memory at a time, and count. Raises InputError as training would for them.

    Tokens are those of the model's tokenizer, without the chat template. What is too long is told as the objective `demask` would, whose
    training example holds a text twice.
    """
    if not 0 <= near_duplicates <= 1:
        raise InputError(f"near_duplicates: expected a number from 0 to 1, found {near_duplicates:g}")
    if max_length is not None and max_length < 1:
        raise InputError(f"max_length: expected a number at least 1, found {max_length}")
    chat, context = _tokenizer(model_name_or_path)
    found = Check(model_name_or_path or "", min(context, max_length or context), near_duplicates)
    around = _around(chat)
    duplicates = Duplicates(near_duplicates)
    ends = array("q", [0])  # where the place of document i is written in `places`: from [i] to [i + 1]
    places = bytearray()
    source = None
    for batch in batches(progress(iter_documents(sources, text_column, found.notes))):
        tokens = _tokens(chat, [placed.document.text for placed in batch])
        prompts = iter(_tokens(chat, [placed.document.prompt for placed in batch if placed.document.prompt is not None]))
        for placed, count in zip(batch, tokens, strict=True):
            pair = placed.document.prompt is not None
            prompt = next(prompts) if pair else 0
            kind = found.kinds.setdefault(_kind(placed.source), Kind())
            kind.files += placed.source != source
            source = placed.source
            kind.documents += 1
            kind.tokens += prompt + count
            kind.longest = max(kind.longest, prompt + count)
            if around[pair] + prompt + 2 * count > found.limit:
                found.split += not pair
                found.long_pairs += pair
            push = heapq.heappush if len(found.longest) < SHOWN else heapq.heappushpop
            push(found.longest, (prompt + count, placed.document.id, placed.where))
            duplicates.add(_whole(placed.document))
            places += placed.where.encode()
            ends.append(len(places))
    found.longest.sort(key=lambda entry: -entry[0])

    def place(number: int) -> str:
        return places[ends[number] : ends[number + 1]].decode()

    found.exact, found.near = len(duplicates.exact_pairs), len(duplicates.near_pairs)
    found.exact_pairs = [(place(a), place(b)) for a, b in duplicates.exact_pairs[:SHOWN]]
    found.near_pairs = [(place(a), place(b), similarity) for a, b, similarity in duplicates.near_pairs[:SHOWN]]
    return found


def _tokenizer(name: str | None) -> tuple[ChatFormat, int]:
    """The model's tokenizer and the tokens of its context; the embedded model's without torch, which takes seconds to import."""
    if name is None:
        from transformers import PreTrainedTokenizerFast

        tokenizer = PreTrainedTokenizerFast.from_pretrained(_TINY)
        positions = json.loads((_TINY / "config.json").read_text())["max_position_embeddings"]
        return ChatFormat(tokenizer), min(positions, tokenizer.model_max_length)
    from demask.models.load import context_length, load_config, load_tokenizer, model_folder

    folder = model_folder(name)
    tokenizer = load_tokenizer(folder)
    return ChatFormat(tokenizer), context_length(load_config(folder), tokenizer)


def _around(chat: ChatFormat) -> tuple[int, int]:
    """The tokens of a training example of `objectives.demask` that are no text: of a document, and of a pair."""
    template = len(chat.prompt([])) + 1
    document = len(chat.piece(f"\n{RECOVER_PASSAGE}")) + len(chat.content(RECOVERED))
    pair = len(chat.piece("\n")) + len(chat.piece(f"\n{RECOVER_ANSWER}"))
    return template + document, template + pair


def _tokens(chat: ChatFormat, texts: Sequence[str]) -> list[int]:
    """The number of tokens of each text, as `ChatFormat.content` makes them."""
    return [len(ids) for ids in chat.contents(texts)]


def _kind(source: str) -> str:
    return Path(source).suffix.lower() if os.path.exists(source) else "data set"


def _whole(document: Document) -> str:
    return document.text if document.prompt is None else f"{document.prompt}\n{document.text}"


def print_check(found: Check, console: Console) -> None:
    """The table, which fits 80 columns, and under it a line for each thing to know."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("kind")
    for column in ("files", "documents", "tokens", "longest"):
        table.add_column(column, justify="right")
    for name, kind in sorted(found.kinds.items()):
        table.add_row(name, *(f"{value:,}" for value in (kind.files, kind.documents, kind.tokens, kind.longest)))
    if len(found.kinds) > 1:
        kinds = found.kinds.values()
        sums = [sum(getattr(kind, name) for kind in kinds) for name in ("files", "documents", "tokens")]
        table.add_section()
        table.add_row("all", *(f"{value:,}" for value in (*sums, max(kind.longest for kind in kinds))))
    console.print(table)
    for line in lines(found):
        console.print(" ".join(line.splitlines()), markup=False, highlight=False, soft_wrap=True)


def lines(found: Check) -> list[str]:
    """What there is to know besides the table."""
    if found.model:
        said = [f"tokens: by the tokenizer of {found.model}"]
    else:
        said = ["tokens: by the embedded model's tokenizer; --model_name_or_path names another"]
    said.append("longest documents:")
    said += [f"  {tokens:,} tokens  {name!r} ({where})" for tokens, name, where in found.longest]
    room = f"a training example of {found.limit:,} tokens"
    long = f"too long for {room}, which holds the text twice (--objective demask)"
    said.append(f"{long}: {found.split:,} of the documents, which --on_long splits" if found.split else f"no document is {long}")
    if found.long_pairs:
        said.append(f"{long}: {found.long_pairs:,} of the pairs, which only --on_long truncate makes fit")
    said.append(f"exact duplicates: {found.exact:,}")
    said += [f"  {later} = {earlier}" for later, earlier in found.exact_pairs]
    if found.near_duplicates:
        said.append(f"near duplicates (at least {found.near_duplicates:g} of their word triples shared): {found.near:,}")
        said += [f"  {later} ~ {earlier} ({similarity:.2f})" for later, earlier, similarity in found.near_pairs]
    others = found.notes.others
    if others:
        said.append(f"files of other kinds, not read: {', '.join(f'{count:,} {suffix}' for suffix, count in others.most_common())}")
    if found.notes.skipped:
        said.append(f"passed over: {len(found.notes.skipped):,}")
    said += [f"  {line}" for line in found.notes.skipped]
    return said + found.notes.remarks
