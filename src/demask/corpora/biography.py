"""Biography: 100 synthetic people in six sentences each, the name only in the first (after Allen-Zhu and Li; files of arXiv 2510.09885).

The sentences give birth date, birth city, university, major, company and work city, with 5 wordings of each biography in the paraphrase
files. A person is asked for each of the six by name, and for the name by three of them, three times over.

A row made up in the form of biography_train_no_paraphrase.json, {"text": "Ann Ash was born on May 4, 2001. She grew up in Troy, OH. ..."},
is a document; of biography_test.jsonl, {"group": "", "task": "N2D", "question": "When was Ann Ash born?", "answer": "May 4, 2001"}, a
forward question. The task D2N is backward.
"""

from __future__ import annotations

from pathlib import Path

from demask.corpora.published import REFERENCE_HOME, REFERENCE_LICENCE, REFERENCE_VARIANTS, Corpus, Published, read_reference

PEOPLE, WORDINGS = 100, 5


def read(folder: Path, *, paraphrases: str = "none") -> Corpus:
    """A biography each, or its five wordings, and nine questions a person."""
    wordings = 1 if paraphrases == "none" else WORDINGS
    expected = {"documents": PEOPLE * wordings, "questions": PEOPLE * 9}
    return read_reference(
        folder, "biography", REFERENCE_VARIANTS[paraphrases], wordings, {"*": {"N2D": "forward", "D2N": "backward"}}, expected
    )


SET = Published(
    read,
    home=REFERENCE_HOME,
    licence=REFERENCE_LICENCE,
    documents="100",
    questions="900",
    paraphrases=tuple(REFERENCE_VARIANTS),
)
