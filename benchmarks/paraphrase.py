"""Seconds that 600 paraphrases of 60 documents take from an endpoint that answers in 0.2 s and fails every twentieth time.

    python benchmarks/paraphrase.py [--seconds 0.2] [--faults 0.05] [--concurrency 16]

`demask data paraphrase` in a process of its own against the scripted server of `tests/endpoint.py`, which writes valid paraphrases by
template; its faults, at places drawn by a seed, are rate limits (Retry-After: 1), errors 500, cut connections, bodies cut short, prose
instead of JSON and a wrong schema, in turn. Then the same command once more, which must ask nothing. Documents: 30 statements and 30
biographies of the generated world. Writes benchmarks/results/paraphrase.json.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for tests/endpoint.py

from demask.corpora import world
from demask.corpora.files import read_documents
from demask.runs import environment
from demask.types import Document, write_documents, write_json
from demask.writing.checks import paraphrase_fault
from tests.endpoint import completion, serving

FAULTS: dict[str, tuple[Any, ...]] = {
    "429": ("status", 429, {"retry-after": "1"}, '{"error": {"message": "slow down"}}'),
    "500": ("status", 500, {}, "oh no"),
    "cut": ("cut",),
    "short body": ("short_body",),
    "prose": ("body", completion("I would rather not.")),
    "wrong schema": ("body", completion('{"rewrites": []}')),
}


def faults(share: float, drawn: Counter[str]) -> Iterator[tuple[Any, ...] | None]:
    rng, names = random.Random(1), cycle(FAULTS)
    while True:
        name = next(names) if rng.random() < share else None
        if name:
            drawn[name] += 1
        yield FAULTS[name] if name else None


def valid(originals: list[Document], found: list[Document]) -> int:
    """How many of the paraphrases that were written pass every check, beside those of the same document before them."""
    passed = 0
    for document in originals:
        own = [other.text for other in found if other.metadata.get("paraphrase_of") == document.id]
        passed += sum(not paraphrase_fault(document.text, text, "same", own[:i]) for i, text in enumerate(own))
    return passed


def measure(seconds: float, share: float, concurrency: int) -> dict[str, Any]:
    documents = world.statement_corpus(11, 30)[0] + world.biography_corpus(12, 30)[0]
    drawn: Counter[str] = Counter()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, serving(faults=faults(share, drawn), seconds=seconds) as server:
        folder = Path(name)
        write_documents(folder / "d.jsonl", documents)
        command = [sys.executable, "-m", "demask", "data", "paraphrase", str(folder / "d.jsonl"), "--n", "10", "--model", "scripted"]
        command += ["--base_url", server.base_url, "--output_dir", str(folder / "out"), "--concurrency", str(concurrency)]
        for run in ("first", "repeat"):
            before, start = len(server.requests), time.perf_counter()
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            results[run] = {"seconds": round(time.perf_counter() - start, 2), "requests": len(server.requests) - before}
            results[run]["load_average"] = round(os.getloadavg()[0], 1)  # most of the time is Python's start where others use the cores
            results[run]["said"] = done.stdout.replace(f"{folder}/", "").splitlines()
        found = read_documents(str(folder / "out" / "documents.jsonl"))
    written = [document for document in found if "paraphrase_of" in document.metadata]
    return results | {"faults": dict(drawn), "paraphrases": len(written), "valid": valid(documents, written)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "paraphrase.json")
    args = parser.parse_args()
    results = measure(args.seconds, args.faults, args.concurrency)
    settings = {"seconds": args.seconds, "faults": args.faults, "concurrency": args.concurrency, "documents": 60, "n": 10}
    write_json(args.output, {"settings": settings, **results, **environment()})
    for run in ("first", "repeat"):
        print(f"{run:8} {results[run]['seconds']:.2f} s, {results[run]['requests']} requests, load average {results[run]['load_average']}")
    print(f"{results['paraphrases']} paraphrases, {results['valid']} valid; faults: {results['faults']}")


if __name__ == "__main__":
    main()
