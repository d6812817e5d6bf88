"""How the work grows with the data: time a document and memory at 10,000, 100,000 and 1,000,000 documents, a resume of 1,200,000, and
the training step by length of the documents and by batch.

    python benchmarks/scaling.py [--parts by_documents resume by_length by_batch] [--rounds 1]

Generated biographies (corpora/world.py), each with a number, in one .jsonl: read, tokenized by the embedded model's tokenizer and kept as
examples of `demask`, then visited in the schedule's order and collated. No model is loaded. Each count is measured in a process of its own.
Times are processor time. Memory is the peak of what is not a file's (RssAnon of /proc, sampled): the system drops pages of a mapped file
when it needs room.
The resume visits every document once, half of them in one process and half in another, and compares them with those of a third that visits
all; the second tokenizes nothing. Writes benchmarks/results/scaling.json (the parts that ran; others stay).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any
from zlib import crc32

import numpy as np

from demask.corpora import world
from demask.types import Document, write_documents, write_json

RESULT = Path(__file__).parent / "results" / "scaling.json"
ROWS, BATCH = 20_000, 100  # rows that are collated, and of a batch


def numbered(n: int) -> Iterator[Document]:
    """n different documents, alike in length whatever n: the biographies of one seed again and again, with a number of seven digits."""
    biographies = world.biography_corpus(1, n=1000)[0]
    for i in range(n):
        yield Document(f"{i}", f"{biographies[i % 1000].text} The number of this entry is {i:07d}.")


class Peak:
    """The largest RssAnon (MiB) of this process between `with` and its end."""

    def __enter__(self) -> Peak:
        self.mib, self._done = 0.0, Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while True:
            status = Path("/proc/self/status").read_text()
            self.mib = max(self.mib, int(status.split("RssAnon:")[1].split()[0]) / 1024)
            if self._done.wait(0.02):
                return

    def __exit__(self, *_: Any) -> None:
        self._done.set()
        self._thread.join()


def plan_of(file: str, folder: str, n: int) -> Any:
    """The plan of one visit of all documents; the texts tokenized for it, and the seconds that the examples took: processor, wall."""
    from demask.chat_format import ChatFormat
    from demask.settings import TrainArguments, TrainSettings
    from demask.stages import plan as stage
    from demask.stages.prepare import prepare

    tokenized, seconds = [], [0.0, 0.0]
    contents = ChatFormat.contents

    def counted(self: Any, texts: Any) -> Any:
        tokenized.append(len(texts))
        return contents(self, texts)

    def timed(*arguments: Any, **options: Any) -> Any:
        start, wall = time.process_time(), time.perf_counter()
        made = prepare(*arguments, **options)
        seconds[:] = time.process_time() - start, time.perf_counter() - wall
        return made

    ChatFormat.contents, stage.prepare = counted, timed  # type: ignore[method-assign]
    args = TrainArguments(output_dir=folder, max_steps=n // BATCH, per_device_train_batch_size=BATCH, use_cpu=True, bf16=False)
    args.gradient_accumulation_steps, args.disable_tqdm = 1, True
    plan = stage.make_plan(TrainSettings(documents=[file]), args, Path(folder))
    ChatFormat.contents = contents  # type: ignore[method-assign]
    return plan, sum(tokenized), seconds


def count(file: str, folder: str, n: int) -> dict[str, Any]:
    """In a process of its own: microseconds a document to prepare and a row to collate, and the peak of memory."""
    import torch

    torch.set_num_threads(1)
    write_documents(Path(folder) / "few.jsonl", numbered(10))
    plan_of(f"{folder}/few.jsonl", folder, BATCH)  # loads all that is loaded once, but for
    import pandas  # noqa: F401  # which pyarrow loads when it first writes a file: a quarter of a second

    with Peak() as before:
        pass
    with Peak() as peak:
        plan, _, (prepared, waited) = plan_of(file, folder, n)
        rows = min(ROWS, n) // BATCH * BATCH
        collate = plan.objective.collate
        collate([plan.schedule[i] for i in range(BATCH)], plan.chat, 0)
        start = time.process_time()
        for first in range(0, rows, BATCH):
            collate([plan.schedule[first + i] for i in range(BATCH)], plan.chat, 0)
        collated = time.process_time() - start
        start = time.process_time()
        for i in range(rows):
            plan.schedule[i]
        read = time.process_time() - start
    kept = list(Path(folder).rglob("*.arrow"))
    return {
        "stored": type(plan.schedule.examples).__name__,
        "prepare_us": prepared / n * 1e6,
        "prepare_wall_us": waited / n * 1e6,
        "collate_us": collated / rows * 1e6,
        "of_it_read_us": read / rows * 1e6,
        "before_mib": before.mib,
        "peak_mib": peak.mib,
        "file_bytes_a_document": sum(path.stat().st_size for path in kept) / n,
        "tokens_a_document": plan.numbers["tokens"] / n,
    }


def visit(file: str, folder: str, n: int, start: int, stop: int) -> dict[str, Any]:
    """In a process of its own: rows `start` to `stop` of a schedule of one visit; which they are goes to `rows-START.npy`."""
    with Peak() as peak:
        plan, tokenized, _ = plan_of(file, folder, n)
        seen = np.empty((stop - start, 2), np.int64)
        for i in range(start, stop):
            row = plan.schedule[i]
            seen[i - start] = row["example"], crc32(np.array(row["text"], np.int32).tobytes())
    np.save(Path(folder) / f"rows-{start}-{stop}.npy", seen)
    return {"tokenized": tokenized, "peak_mib": round(peak.mib, 1), "data": plan.numbers["data"]}


def child(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    command = [sys.executable, __file__, "--child", function.__name__, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def by_documents(options: Any) -> dict[str, Any]:
    """Prepare and collate at each count, in turn, so many rounds; ratios are to the smallest count of the same round."""
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in options.documents:
            write_documents(Path(scratch, f"{n}.jsonl"), numbered(n))
        for _ in range(options.rounds):
            found: dict[str, Any] = {}
            for n in options.documents:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    row = child(count, Path(scratch, f"{n}.jsonl"), folder, n)
                found[str(n)] = {name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}
                first = found[str(options.documents[0])]
                for name in ("prepare_us", "collate_us", "peak_mib"):
                    found[str(n)][f"{name}_ratio"] = round(row[name] / first[name], 3)
                print(f"{n:>9,} documents", found[str(n)], flush=True)
            rounds.append(found)
    return {"rounds": rounds}


def resume(options: Any) -> dict[str, Any]:
    """One visit of all documents, interrupted in the middle: no row again, none left out, none different."""
    n, middle = options.resume, options.resume // 2
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, "documents.jsonl")
        write_documents(file, numbered(n))
        runs = {}
        for name, folder, start, stop in (("first", "cut", 0, middle), ("second", "cut", middle, n), ("whole", "whole", 0, n)):
            Path(scratch, folder).mkdir(exist_ok=True)
            runs[name] = child(visit, file, Path(scratch, folder), n, start, stop)
            print(name, runs[name], flush=True)
        cut = np.concatenate([np.load(path) for path in (f"{scratch}/cut/rows-0-{middle}.npy", f"{scratch}/cut/rows-{middle}-{n}.npy")])
        whole = np.load(f"{scratch}/whole/rows-0-{n}.npy")
    assert runs["first"]["tokenized"] == runs["whole"]["tokenized"] == n
    assert runs["second"]["tokenized"] == 0
    assert len({run["data"] for run in runs.values()}) == 1
    assert np.array_equal(np.sort(cut[:, 0]), np.arange(n))
    assert np.array_equal(cut, whole)
    return {"documents": n, "runs": runs, "rows_repeated": 0, "rows_skipped": 0}


def by_length(args: Any) -> dict[str, Any]:
    """The embedded model's training step with 16 documents of so many tokens, of which a row of demask holds two copies."""
    return _steps([(length, 16) for length in (15, 30, 60, 120, 200)], args.rounds)


def by_batch(args: Any) -> dict[str, Any]:
    """The same with so many documents of 60 tokens."""
    return _steps([(60, batch) for batch in (1, 4, 16, 60)], args.rounds)


def _steps(shapes: list[tuple[int, int]], rounds: int) -> dict[str, Any]:
    """Tokens and targets a second and MFU of ours and the reference's recipe, as benchmarks/train_step.py measures them (which see)."""
    import logging
    import warnings

    import torch
    import train_step

    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    options = argparse.Namespace(steps=4, rounds=rounds, device="cpu", variants=["reference", "ours"])
    return {f"{length} tokens, {rows} rows": train_step.speed("demask", "5m", str(length), rows, rows, options) for length, rows in shapes}


PARTS: dict[str, Callable[[Any], dict[str, Any]]] = {
    "by_documents": by_documents,
    "resume": resume,
    "by_length": by_length,
    "by_batch": by_batch,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--documents", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--resume", type=int, default=1_200_000)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        name, file, folder, *numbers = args.child
        print(json.dumps({"count": count, "visit": visit}[name](file, folder, *map(int, numbers))))
        return
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    for part in args.parts:
        from demask.runs import environment  # not before: it takes torch

        results[part] = PARTS[part](args) | {"environment": environment()}
        write_json(RESULT, results)


if __name__ == "__main__":
    main()
