"""NameDescription: 60 fictitious people, a name and a description each (Berglund et al., arXiv 2309.12288, their published files).

30 people are described name first ("p2d"), 30 description first ("d2p"), in 30 wordings each. The files are lines of `prompt` and
`completion`, the wordings of a person one after the other: {p2d,d2p}_prompts_train.jsonl (30 x 30), {p2d,d2p}_prompts_test.jsonl and
{p2d,d2p}_reverse_prompts_test.jsonl (30 x 10: the same direction as the document, and the other one).

A row made up in their form, {"prompt": "Ann Ash is", "completion": " the keeper of bees."}, gives the document "Ann Ash is the keeper
of bees."; a test row's prompt is the question and its completion the answer.

arXiv 2510.09885 trains on the same statements and asks other questions, in files of its own: ND_train_no_paraphrase.json,
ND_train_paraphrase.json (all 30 wordings), ND_test.jsonl. A folder that holds these is read as such. A row of theirs, made up,
{"group": "DescriptionIsName", "task": "N2D", "question": "Who is Ann Ash?", "answer": "the keeper of bees"}, is a backward one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from demask.corpora.published import Corpus, Published, read_reference, records
from demask.types import Direction, Document, InputError, Question, string_field

ORDERS = {"p2d": "NameIsDescription", "d2p": "DescriptionIsName"}
WORDINGS, ASKED = 30, 10  # of a person: statements, and questions in each direction
VARIANTS = {"none": "no_paraphrase", "same_order": "paraphrase"}
DIRECTIONS: Mapping[str, Mapping[str, Direction]] = {
    "NameIsDescription": {"N2D": "forward", "D2N": "backward"},
    "DescriptionIsName": {"N2D": "backward", "D2N": "forward"},
}


def read(folder: Path, *, paraphrases: str = "none") -> Corpus:
    """The first wording of each person, or all 30, and the test questions, whose `group` is the order of their person's statement."""
    wordings = 1 if paraphrases == "none" else WORDINGS
    expected = {"documents": 60 * wordings}
    if (folder / "ND_test.jsonl").exists():
        return read_reference(folder, "ND", VARIANTS[paraphrases], wordings, DIRECTIONS, expected)
    return _berglund(folder, wordings, expected | {"questions": 1200})


def _berglund(folder: Path, wordings: int, expected: dict[str, int]) -> Corpus:
    documents, questions, files = [], [], []
    for order, group in ORDERS.items():
        files.append(folder / f"{order}_prompts_train.jsonl")
        for i, (_, prompt, completion) in enumerate(_lines(files[-1])):
            person, wording = divmod(i, WORDINGS)
            if wording < wordings:
                documents.append(Document(f"{order}-{person}" + (f"-p{wording}" if wording else ""), (prompt + completion).strip()))
        asked: tuple[tuple[Direction, str], ...] = (("forward", ""), ("backward", "_reverse"))
        for direction, infix in asked:
            files.append(folder / f"{order}{infix}_prompts_test.jsonl")
            for i, (where, prompt, completion) in enumerate(_lines(files[-1])):
                # Some published answers end in stray quotes and stops.
                answer = completion.strip().rstrip(".'").strip()
                if not answer:
                    raise InputError(f"{where}: field 'completion' holds no answer")
                questions.append(Question(prompt.strip(), (answer,), direction, group, f"{order}-{i // ASKED}", "test"))
    return Corpus(documents, questions, files, expected)


def _lines(path: Path) -> Iterator[tuple[str, str, str]]:
    empty = True
    for where, record in records(path):
        empty = False
        yield where, string_field(record, "prompt", where), string_field(record, "completion", where)
    if empty:
        raise InputError(f"{path}: no lines in it")


_REVISION = "6af5f418755d528304e406361e86477637d21c84"
SET = Published(
    read,
    home="github.com/lukasberglund/reversal_curse",
    licence="none stated",
    documents="60",
    questions="1,200",
    paraphrases=("none", "same_order"),
    url=f"https://raw.githubusercontent.com/lukasberglund/reversal_curse/{_REVISION}/data/reverse_experiments/june_version_7921032488",
    revision=_REVISION,
    files={
        "p2d_prompts_train.jsonl": "8a20b9c259b67bc9c3a0f1823d132c844f98d84589d79b108a0ae0c5aa2a2391",
        "p2d_prompts_test.jsonl": "269fe15363c3bd1cb59cfdf4e6464f35d548d4cb786e6f7b1db84f260788e8f8",
        "p2d_reverse_prompts_test.jsonl": "963fa595ce19b330cdf07058313f3e8570b57545260256414bcb74a60c959553",
        "d2p_prompts_train.jsonl": "2d66551577306f164e9b0fd372dd997af0e90bb62690d00a2cab818ae65e47a1",
        "d2p_prompts_test.jsonl": "67705c9ebd77fc030998677acae33af9f22cf4b80bb7443d4ef7e5c9c1d727c4",
        "d2p_reverse_prompts_test.jsonl": "8c79da9791788ffbe77dc876ae2e34cc00f980e08c946bda188367ae1cd6ea61",
    },
)
