"""A folder as people have them: twenty files of six kinds, four of which are broken, empty, a scan, and in Latin-1. As a module::

python -m tests.mixed FOLDER
"""

from __future__ import annotations

import csv
import json
import sys
from html import escape
from pathlib import Path

from demask.corpora import world
from tests.pdf import pdf

PEOPLE = 30
SKIPPED = ("broken.pdf", "empty.txt", "scan.pdf")


def write_mixed(folder: Path, seed: int = 11) -> list[str]:
    """Write the folder; returns the sentences in it, each about another person, of which every one that can be read is to be learnt."""
    sentences = [document.text for document in world.statement_corpus(seed=seed, n=PEOPLE)[0]]
    left = iter(sentences)
    (folder / "people").mkdir(parents=True)
    for i in range(5):
        (folder / "people" / f"note-{i}.txt").write_text(next(left) + "\n")
    for i in range(3):
        (folder / f"page-{i}.md").write_text(f"---\nauthor: The town clerk\nyear: 199{i}\n---\n{next(left)}\n")
    for i in range(3):
        (folder / f"page-{i}.html").write_text(f"<html><body><nav><a href='/'>Home</a></nav><p>{escape(next(left))}</p></body></html>")
    for i in range(3):
        (folder / f"letter-{i}.pdf").write_bytes(pdf([[next(left)]]))
    with open(folder / "register.csv", "w", newline="") as file:
        rows = csv.writer(file, delimiter=";")
        rows.writerow(["id", "text", "shelf"])
        rows.writerows([f"r{i}", next(left), f"A{i}"] for i in range(7))
    (folder / "cards.jsonl").write_text("".join(json.dumps({"text": next(left)}) + "\n" for _ in range(8)))
    (folder / "broken.pdf").write_bytes(pdf([["Nobody reads this."]])[:-200].replace(b"obj", b"job"))
    (folder / "empty.txt").write_text("")
    (folder / "scan.pdf").write_bytes(pdf([[]]))
    (folder / "latin.txt").write_bytes(f"{next(left)} They say it in a café.".encode("latin-1"))
    assert not list(left)
    return sentences


if __name__ == "__main__":
    write_mixed(Path(sys.argv[1]))
