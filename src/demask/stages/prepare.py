"""Documents to training examples in one pass, however many there are: read, refused, made to fit, counted and kept.

Few examples are kept in memory, and made again when a run resumes. Many (`examples.IN_MEMORY`), and those of a run in several processes,
are kept in `<output folder>/examples`, which appears there when it is complete and is not made again for the same input.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

from accelerate.utils import gather_object
from tqdm import tqdm

from demask.chat_format import ChatFormat
from demask.corpora.files import Notes, batches, iter_documents, source_files
from demask.corpora.splitting import split_long
from demask.examples import IN_MEMORY, Collector, Mapped, Texts
from demask.models.mask_token import MaskSearch, MaskToken
from demask.types import Document, InputError, Question, parse_question, question_record, read_text, write_json
from demask.writing.cloze import AUTO, questions_of

_FOLDER, _RECORD = "examples", "examples.json"
_FORMAT = 2  # changes with what examples or their record hold
_SHOWN = 20  # lines about documents that were split or truncated
_PATIENCE = 5  # seconds until reading shows its progress


@dataclass(frozen=True)
class Making:
    """What an example is made by, besides its document; `limit` is the tokens of the longest.

    `masks` are the candidates for the mask token, best first. Examples do not depend on it: batches are masked when they are made.
    """

    objective: Any
    rehearsing: Any
    chat: ChatFormat
    masks: Sequence[MaskToken]
    limit: int


@dataclass
class Sizes:
    """What `objective.size` says of all examples: their number, the longest's tokens, tokens read and trained on at one visit of each."""

    examples: int = 0
    longest: int = 0
    tokens: float = 0
    targets: float = 0

    def add(self, size: tuple[int, float, float]) -> None:
        self.examples += 1
        self.longest = max(self.longest, size[0])
        self.tokens += size[1]
        self.targets += size[2]


@dataclass
class Prepared:
    """The examples; `data` is a checksum of them all, `questions` are those made of the documents, `lines` what to print, `mask` the mask
    token that no document holds."""

    examples: Sequence[dict[str, Any]]
    replay: Sequence[dict[str, Any]]
    sizes: Sizes
    replayed: Sizes
    data: int
    questions: list[Question]
    lines: list[str]
    mask: MaskToken | None


def prepare(settings: Any, making: Making, *, seed: int, folder: Path | None = None, state: Any = None, quiet: bool = False) -> Prepared:
    """The examples of `settings.documents` and `settings.replay`, and the questions if those are to be made of the documents.

    `folder` is the output folder; None stands for a temporary one, which is gone with what is returned. With several processes
    (`state`, accelerate's) one on each machine reads and tokenizes, and the others map what it has written. Raises InputError for a fault
    in a document, in all processes alike.
    """
    owner = None if folder else tempfile.TemporaryDirectory(prefix="demask-")
    home = (folder or Path(owner.name if owner else "")) / _FOLDER
    if state is None or state.num_processes == 1:
        return _find(home, lambda: _key(settings, making, seed), owner) or _make(settings, making, seed, home, "", IN_MEMORY, quiet, owner)

    def make(key: str) -> str:
        key = key or _key(settings, making, seed)
        if not _find(home, lambda: key):
            _make(settings, making, seed, home, key, -1, quiet)
        return key

    key, home = _in_turn(make, home, state)
    found = _find(home, lambda: key, owner)
    assert found is not None
    if len(set(gather_object([found.data]))) > 1:  # also waits until all have mapped what may be temporary
        raise InputError("documents: are not the same on all machines")
    return found


def _in_turn(make: Callable[[str], str], home: Path, state: Any) -> tuple[str, Path]:
    """`make(key)` on one process of each machine; returns the key and this machine's `home`. What one of them raises, all raise.

    The main process goes first, with no key yet: the machines may share the folder, and then the others find its files; where they do not,
    their documents may have other dates.
    """
    key = ""
    for turn in (state.is_main_process, state.is_local_main_process and not state.is_main_process):
        said: Any = None
        try:
            if turn:
                said = make(key), home
        except InputError as error:
            said = error
        except Exception as error:
            said = RuntimeError(f"process {state.process_index} could not prepare the examples ({type(error).__name__}: {error})")
        heard = gather_object([said])
        for fault in heard:
            if isinstance(fault, Exception):
                raise fault
        key = key or heard[0][0]
        here = heard[state.process_index - state.local_process_index]
        home = here[1] if here else home
    return key, home


def discard(folder: Path) -> None:
    """Remove the examples of a finished run."""
    shutil.rmtree(folder / _FOLDER, ignore_errors=True)


def _key(settings: Any, making: Making, seed: int) -> str:
    """A digest of all that decides what the examples are; of files their name, size and date, of a data set its name."""
    tokenizer = making.chat.tokenizer
    vocabulary = tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else json.dumps(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode())
    for source in [*settings.documents, "", *settings.replay]:
        files = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in source_files(source)] if source else []
        digest.update(json.dumps([source, files]).encode())
    chat = making.chat
    around = (chat.head, chat.middle, chat.end, tokenizer.bos_token_id, tokenizer.eos_token_id)
    objectives = [replace(o, mask_id=0) if hasattr(o, "mask_id") else o for o in (making.objective, making.rehearsing)]
    made = (_FORMAT, *objectives, sorted(mask.id for mask in making.masks), making.limit, around)
    asked = seed if settings.questions == AUTO else None
    digest.update(repr((made, settings.text_column, settings.on_long, asked)).encode())
    return digest.hexdigest()


def _find(home: Path, key: Callable[[], str], owner: Any = None) -> Prepared | None:
    """What an earlier call has left in `home`, if that was for the same input (`key()`)."""
    if not (home / _RECORD).is_file():
        return None
    record = json.loads(read_text(home / _RECORD))
    if record["key"] != key():
        return None
    own, replayed = Sizes(**record["sizes"]), Sizes(**record["replayed"])
    return Prepared(
        Mapped(home / "documents.arrow", owner),
        Mapped(home / "replay.arrow", owner) if replayed.examples else [],
        own,
        replayed,
        record["data"],
        [parse_question(question, _RECORD) for question in record["questions"]],
        record["lines"],
        MaskToken(**record["mask"]) if record["mask"] else None,
    )


def _make(settings: Any, making: Making, seed: int, home: Path, key: str, limit: int, quiet: bool, owner: Any = None) -> Prepared:
    """Read the documents; what is too large for memory (`limit`, in token ids) is written to `home`, whole or not at all."""
    scratch = home.with_name(f".{home.name}.{platform.node()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)  # of a program that was killed
    new = not home.parent.exists()
    try:
        made = _read(settings, making, seed, scratch, limit, quiet)
        if isinstance(made.examples, list) and isinstance(made.replay, list):
            return made
        for name, rows in (("documents", made.examples), ("replay", made.replay)):
            if isinstance(rows, list):
                written = Collector(scratch / f"{name}.arrow", limit=-1)
                for row in rows:
                    written.add(row)
                written.finish()
        key = key or _key(settings, making, seed)
        record: dict[str, Any] = {"key": key, "data": made.data, "lines": made.lines, "mask": made.mask and asdict(made.mask)}
        record |= {"sizes": asdict(made.sizes), "replayed": asdict(made.replayed), "questions": list(map(question_record, made.questions))}
        write_json(scratch / _RECORD, record)
        shutil.rmtree(home, ignore_errors=True)
        os.replace(scratch, home)
    except OSError as error:  # of writing: what can't be read is an InputError already
        raise InputError(f"output_dir: '{home.parent}' can't be written ({(error.strerror or str(error)).lower()})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if new and home.parent.exists() and not any(home.parent.iterdir()):
            home.parent.rmdir()
    found = _find(home, lambda: key, owner)
    assert found is not None
    return found


def _read(settings: Any, making: Making, seed: int, scratch: Path, limit: int, quiet: bool) -> Prepared:
    notes, changed = Notes(), list[str]()
    kept = [Collector(scratch / f"{name}.arrow", limit) for name in ("documents", "replay")]
    texts = Collector(scratch / "texts.arrow", IN_MEMORY)
    sizes = [Sizes(), Sizes()]
    search = MaskSearch(making.chat.tokenizer, making.masks)
    data = crc32(b"[")  # of json.dumps([*examples, *replay])
    sources = (settings.documents, making.objective), (settings.replay, making.rehearsing)
    for number, (names, objective) in enumerate(sources):
        if not names:
            continue
        documents = iter_documents(names, settings.text_column, notes)
        for placed in batches(tqdm(documents, "reading", unit=" documents", delay=_PATIENCE, leave=False, disable=quiet)):
            batch = [document for document, _, _ in placed]
            making.chat.remember([text for document in batch for text in (document.prompt, document.text) if text is not None])
            if making.masks:
                search.read(batch, making.chat.content)
            for _, example, size in fit(batch, objective, making.chat, making.limit, settings.on_long, changed):
                data = crc32((", " * bool(sizes[0].examples) + json.dumps(example)).encode(), data)
                kept[number].add(example)
                sizes[number].add(size)
            if settings.questions == AUTO and not number:
                for document in batch:
                    if document.prompt is None:
                        texts.add({"id": document.id, "text": document.text})
    making.chat.remember([])
    questions = questions_of(Texts(texts.finish()), seed) if settings.questions == AUTO else []
    texts.path.unlink(missing_ok=True)
    more = [f"... and {len(changed) - _SHOWN:,} more"] if len(changed) > _SHOWN else []
    lines = notes.lines() + changed[:_SHOWN] + more
    mask = search.mask if making.masks else None
    return Prepared(kept[0].finish(), kept[1].finish(), sizes[0], sizes[1], crc32(b"]", data), questions, lines, mask)


def fit(
    documents: Sequence[Document], objective: Any, chat: ChatFormat, context: int, on_long: Any, lines: list[str]
) -> Iterator[tuple[Document, dict[str, Any], tuple[int, float, float]]]:
    """Each document with its training example and that one's size, split or cut where it would not fit the context; `lines` says which."""

    def made(documents: Sequence[Document]) -> Iterator[tuple[Document, dict[str, Any], tuple[int, float, float]]]:
        for document, example in zip(documents, objective.examples(documents, chat), strict=True):
            yield document, example, objective.size(example, chat)

    def length(text: str) -> int:
        return len(chat.content(text))

    for document, example, size in made(documents):
        whole = size[0]
        if whole <= context:
            yield document, example, size
            continue
        around = next(made([replace(document, text="")]))[2][0]  # template, instruction, and a pair's prompt
        copies = (whole - around) // length(document.text)
        prompt = 0 if document.prompt is None else length(document.prompt)
        parts, notes = split_long([document], length, prompt + (context - around) // copies, on_long)
        lines += notes
        yield from made(parts)
