"""Wiki: the first sections of 94 articles about events of 2025, with questions of both directions (files of arXiv 2510.09885).

10 wordings of each section in the paraphrase files, in the order of the original or in another one.

A row made up in the form of wiki_train_no_paraphrase.json, {"text": "The Bee Fair is a fair held in Troy on 4 May 2025."}, is a document;
of wiki_test.jsonl, {"group": "", "task": "backward", "question": "What was held on 4 May 2025?", "answer": "The Bee Fair"}, a question
with its direction as given.
"""

from __future__ import annotations

from pathlib import Path

from demask.corpora.published import REFERENCE_HOME, REFERENCE_LICENCE, REFERENCE_VARIANTS, Corpus, Published, read_reference

ARTICLES, WORDINGS = 94, 10


def read(folder: Path, *, paraphrases: str = "none") -> Corpus:
    """A section each, or its ten wordings, and all questions; how many there are is not published."""
    wordings = 1 if paraphrases == "none" else WORDINGS
    directions = {"*": {"forward": "forward", "backward": "backward"}}
    return read_reference(folder, "wiki", REFERENCE_VARIANTS[paraphrases], wordings, directions, {"documents": ARTICLES * wordings})  # type: ignore[arg-type]


SET = Published(
    read,
    home=REFERENCE_HOME,
    licence=REFERENCE_LICENCE,
    documents="94",
    questions="not counted",
    paraphrases=tuple(REFERENCE_VARIANTS),
)
