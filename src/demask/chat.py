"""A conversation on the terminal with one model, or with several side by side.

On a terminal the answers are laid out in its width. From or into a pipe stdout holds the answers alone, and what else is to be said goes
to stderr.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console, RenderableType
from rich.table import Column, Table
from rich.text import Text

from demask.chat_format import ChatFormat
from demask.decoding import Sampling, check_decoding, generate, refuse_sampling
from demask.models.family import family
from demask.models.load import EMBEDDED, adapter_base, context_length, load_config, load_model, load_tokenizer, model_folder, stored_dtype
from demask.runs import read_run
from demask.types import InputError

_NARROWEST, _WIDEST = 30, 60  # characters of a column of answers
# What a terminal would take for a command: a random model's bytes must not move its cursor.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass
class Speaker:
    """A model in the conversation, and what was said to it and by it: (content, answer) pairs of ids."""

    name: str
    folder: str
    config: Any
    format: ChatFormat
    model: Any = None
    exchanges: list[tuple[list[int], list[int]]] = field(default_factory=list)

    def prompt(self, content: Sequence[int], max_new_tokens: int) -> tuple[list[int], int]:
        """(the ids to answer; how many of the oldest exchanges are left out of them to make room for the answer).

        Raises InputError where there is no room for the question alone.
        """
        context = context_length(self.config, self.format.tokenizer)
        for dropped in range(len(self.exchanges) + 1):
            ids = self.format.conversation(self.exchanges[dropped:], content)
            if len(ids) + max_new_tokens <= context:
                return ids, dropped
        raise InputError(
            f"too long: the question's {len(ids)} tokens and {max_new_tokens} for its answer (max_new_tokens) exceed the context of "
            f"{context} of '{self.name}'"
        )

    def answer(self, prompt: list[int], max_new_tokens: int, sampling: Sampling | None) -> str:
        sampling = sampling if family(self.config) == "diffusion" else None
        stop_ids, tokenizer = self.format.stop_ids(), self.format.tokenizer
        return generate(self.model, tokenizer, [prompt], sampling=sampling, stop_ids=stop_ids, max_new_tokens=max_new_tokens)[0]


def chat(
    models: Sequence[str] = (),
    *,
    compare: bool = False,
    history: bool | None = None,
    max_new_tokens: int = 128,
    system_prompt: str | None = None,
    sampling: Sampling | None = None,
) -> None:
    """Answer what is typed or piped in, line by line, until it ends. `models` are folders or hub names; none: the embedded model.

    `compare` puts the model that a single one was trained from beside it. With `history` a question is asked together with the exchanges
    before it; None: unless an embedded model, or one trained from it, is asked, which know single ones only. `sampling` is for models of
    the diffusion family. Raises InputError for a mistake in the input, before weights load, and KeyboardInterrupt for Ctrl-C at the prompt.
    """
    names: list[str | None] = list(models) or [None]
    if compare and len(names) == 1:
        names = [base_of(names[0]), *names]
    speakers = [_speaker(name, max_new_tokens, system_prompt, sampling) for name in names]
    if all(family(speaker.config) == "causal" for speaker in speakers):
        refuse_sampling(speakers[0].config, sampling)
    alone = _why_alone(speakers, history)
    console = Console()
    interactive = sys.stdin.isatty() and console.is_terminal
    for speaker in speakers:
        _load(speaker)
    _note(console, ", ".join(f"{speaker.name} ({family(speaker.config)})" for speaker in speakers))
    if sampling:
        _note(console, "sampling: " + ", ".join(f"{name} {value}" for name, value in vars(sampling).items() if value or name == "seed"))
    _note(console, "The conversation is remembered." if alone is None else f"Every question stands by itself{alone}.")
    if interactive:
        _note(console, "/quit or Ctrl-D ends" + (", /new forgets what was said" if alone is None else ""))
    for question in _lines(console, interactive):
        if question == "/quit":
            return
        if question == "/new":
            for speaker in speakers:
                speaker.exchanges.clear()
            _note(console, "A new conversation.")
        elif question.startswith("/") and " " not in question:
            _note(console, f"{question} is no command; there are /new and /quit")
        else:
            try:
                _exchange(console, speakers, question, max_new_tokens, sampling, remember=alone is None)
            except KeyboardInterrupt:
                if not interactive:
                    raise
                _note(console, "(stopped)")


def base_of(name: str | None) -> str:
    """The model that `name` was trained from. Raises InputError where its folder does not say so."""
    if name is None:
        raise InputError("compare: the embedded model was trained from no other; name a trained one with --model_name_or_path")
    base = _trained_from(model_folder(name))
    if base is None:
        raise InputError(f"compare: '{name}' does not say what it was trained from; name both models with --model_name_or_path")
    return base


def _trained_from(folder: str) -> str | None:
    """The model named in a folder's adapter_config.json or run.json, if there is one."""
    if base := adapter_base(folder):
        return base
    if Path(folder).is_file():  # GGUF
        return None
    settings = ((read_run(folder) or {}).get("config") or {}).get("settings") or {}
    if "model_name_or_path" not in settings:
        return None
    bidirectional = settings.get("objective") == "diffusion" and not settings.get("bidirectional")
    return settings["model_name_or_path"] or ("tiny/diffusion" if bidirectional else "tiny/causal")


def _speaker(name: str | None, max_new_tokens: int, system_prompt: str | None, sampling: Sampling | None) -> Speaker:
    """All of a speaker but its weights."""
    folder = model_folder(name)
    config, tokenizer = load_config(folder), load_tokenizer(folder)
    check_decoding(config, tokenizer, sampling if family(config) == "diffusion" else None)
    speaker = Speaker(name or "tiny/causal", folder, config, ChatFormat(tokenizer, system_prompt))
    speaker.prompt([], max_new_tokens)  # even an empty question must fit
    return speaker


def _load(speaker: Speaker) -> None:
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    # Half precision is slow on most processors, and fp32 may not fit on an accelerator.
    dtype = torch.float32 if device.type == "cpu" else stored_dtype(speaker.folder)
    speaker.model = load_model(speaker.folder, dtype).to(device)


def _why_alone(speakers: Sequence[Speaker], history: bool | None) -> str | None:
    """None where earlier exchanges are given with a question; else the reason why not, to be said."""
    for speaker in speakers:
        try:
            speaker.format.conversation([([], [])], [])
        except InputError as error:
            return f" ({speaker.name}: {error})"
    embedded = {*EMBEDDED, *map(str, EMBEDDED.values())}
    if history is None and any(embedded & {speaker.folder, _trained_from(speaker.folder)} for speaker in speakers):
        return ": the embedded models know single ones only (--history gives them the earlier ones too)"
    return "" if history is False else None


def _exchange(
    console: Console, speakers: Sequence[Speaker], question: str, max_new_tokens: int, sampling: Sampling | None, *, remember: bool
) -> None:
    """Put a question to all and show their answers; interrupted, it leaves no trace."""
    contents = [speaker.format.content(question) for speaker in speakers]
    try:
        prompts = [speaker.prompt(content, max_new_tokens) for speaker, content in zip(speakers, contents, strict=True)]
    except InputError as error:
        _note(console, str(error))
        return
    for speaker, (_, dropped) in zip(speakers, prompts, strict=True):
        if dropped:
            _note(console, f"({speaker.name} forgets the {'oldest exchange' if dropped == 1 else f'{dropped} oldest exchanges'}: no room)")
    with console.status("answering ...") if console.is_terminal else contextlib.nullcontext():
        answers = [speaker.answer(prompt, max_new_tokens, sampling) for speaker, (prompt, _) in zip(speakers, prompts, strict=True)]
    if remember:
        for speaker, content, (_, dropped), answer in zip(speakers, contents, prompts, answers, strict=True):
            speaker.exchanges = [*speaker.exchanges[dropped:], (content, speaker.format.content(answer))]
    _show(console, [speaker.name for speaker in speakers], answers)


def _lines(console: Console, interactive: bool) -> Iterator[str]:
    """What is typed at a prompt or comes from a pipe, without blank lines."""
    if interactive:
        with contextlib.suppress(ImportError):  # not on Windows
            import readline  # noqa: F401 (gives `input` its editing and its history)
    try:
        while True:
            line = input("> " if interactive else "")
            # A terminal may send bytes that are no text, which arrive as half characters.
            if line := line.encode(errors="replace").decode().strip():
                yield line
    except (EOFError, KeyboardInterrupt) as end:
        if interactive:
            console.print()
        if isinstance(end, KeyboardInterrupt):
            raise
    except UnicodeDecodeError as error:
        raise InputError(f"stdin: not UTF-8 (byte 0x{error.object[error.start]:02x})") from None


def _show(console: Console, names: Sequence[str], answers: Sequence[str]) -> None:
    """The answers as plain text, whatever is in them: side by side where the terminal is wide enough."""
    answers = [_CONTROL.sub("\N{REPLACEMENT CHARACTER}", answer) for answer in answers]
    if not console.is_terminal:
        for name, answer in zip(names, answers, strict=True):
            print(f"{name}: {answer}" if len(names) > 1 else answer, flush=True)
        return
    cells: list[RenderableType] = [Text(answer) if answer else Text("(no answer)", "dim") for answer in answers]
    if len(names) > 1 and console.width >= _NARROWEST * len(names):
        columns = [Column(Text(name), ratio=1, overflow="fold") for name in names]
        table = Table(*columns, box=box.SIMPLE_HEAD, show_edge=False, width=min(console.width, _WIDEST * len(names)))
        table.add_row(*cells)
        console.print(table)
    else:
        for name, cell in zip(names, cells, strict=True):
            if len(names) > 1:
                console.print(Text(name, "bold"))
            console.print(cell)
    console.print()


def _note(console: Console, text: str) -> None:
    if console.is_terminal:
        console.print(Text(text, "dim"))
    else:
        print(text, file=sys.stderr)
