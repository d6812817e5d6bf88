"""What `demask data check` takes: time a document and peak memory, as the number of documents grows.

    python benchmarks/data_check.py [--documents 1000 10000 100000]

Generated biographies (corpora/world.py), in one .jsonl and as a folder of .txt files, each checked in a process of its own with exact and
near duplicates, and once without looking for near ones. Bytes a document are the growth of the peak from the smallest number to the
largest, which leaves out what the program itself takes; a document's text is told beside it. Writes benchmarks/results/data_check.json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from demask.corpora import world
from demask.types import Document, write_documents, write_json

RESULT = Path(__file__).parent / "results" / "data_check.json"
A_SEED = 1000  # people of one seed of the world


def biographies(n: int) -> Iterator[Document]:
    """n different biographies."""
    for start in range(0, n, A_SEED):
        yield from world.biography_corpus(1 + start // A_SEED, n=min(A_SEED, n - start))[0]


def check(source: Path, options: Sequence[str]) -> dict[str, Any]:
    """Seconds and peak memory (MiB) of one check, as the operating system counts them for its process."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "demask", "data", "check", str(source), *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    said = process.stdout.read().decode()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, said
    unit = 2**20 if sys.platform == "darwin" else 2**10
    near = [line for line in said.splitlines() if line.startswith("near duplicates")]
    return {"seconds": round(time.perf_counter() - start, 2), "peak_mib": round(usage.ru_maxrss / unit, 1), "said": near}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        for n in args.documents:
            lines, folder = Path(scratch, f"{n}.jsonl"), Path(scratch, f"{n}")
            write_documents(lines, biographies(n))
            folder.mkdir()
            size = 0
            for i, document in enumerate(biographies(n)):
                size += (folder / f"{i}.txt").write_text(document.text)
            cases = {"jsonl": (lines, []), "jsonl, exact duplicates only": (lines, ["--near_duplicates", "0"]), "folder": (folder, [])}
            for case, (source, options) in cases.items():
                row = {"source": case, "documents": n, "characters": round(size / n), **check(source, options)}
                row["ms_a_document"] = round(1000 * row["seconds"] / n, 3)
                results.append(row)
                print(f"{case:30} {n:>9,} documents  {row['seconds']:8.1f} s  {row['peak_mib']:8.1f} MiB", flush=True)
    few, many = min(args.documents), max(args.documents)
    growth = {}
    for case in dict.fromkeys(row["source"] for row in results):
        peak = {row["documents"]: row["peak_mib"] for row in results if row["source"] == case}
        growth[case] = round((peak[many] - peak[few]) * 2**20 / max(1, many - few))
        print(f"{case:30} {growth[case]:,} bytes a document")
    from demask.runs import environment  # not before: Linux counts what this process has in memory as its children's as well

    write_json(RESULT, {"results": results, "bytes_a_document": growth, "environment": environment()})


if __name__ == "__main__":
    main()
