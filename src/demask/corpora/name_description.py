"""NameDescription: 60 fictitious people, a name and a description each (Berglund et al., arXiv 2309.12288, their published files).

30 people are described name first ("p2d"), 30 description first ("d2p"), in 30 wordings each. The files are lines of `prompt` and
`completion`, the wordings of a person one after the other: {p2d,d2p}_prompts_train.jsonl (30 x 30), {p2d,d2p}_prompts_test.jsonl and
{p2d,d2p}_reverse_prompts_test.jsonl (30 x 10: the same direction as the document, and the other one).

A row made up in their form, {"prompt": "Ann Ash, known for being", "completion": " the keeper of bees."}, gives the document "Ann Ash,
known for being the keeper of bees.". Their test rows are beginnings of sentences, and some of the endings begin with "are" or "were": as
`sentences` they are asked as they stand. As `questions`, the default, each person is asked about in words of ours, QUESTIONS: "Who is Ann
Ash?", "the keeper of bees". The name is what their test rows give for it, the description what stands in the person's first statement.

arXiv 2510.09885 trains on the same statements and asks other questions, in files of its own: ND_train_no_paraphrase.json,
ND_train_paraphrase.json (all 30 wordings), ND_test.jsonl. A folder that holds these is read as such. A row of theirs, made up,
{"group": "DescriptionIsName", "task": "N2D", "question": "Who is Ann Ash?", "answer": "the keeper of bees"}, is a backward one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from demask.corpora.published import Corpus, Published, read_reference, records
from demask.types import Direction, Document, InputError, Question, string_field

ORDERS = {"p2d": "NameIsDescription", "d2p": "DescriptionIsName"}
WORDINGS, ASKED = 30, 10  # of a person: statements, and questions in each direction
COUNTS = {"questions": 600, "sentences": 1200}  # by form
# Which files hold the bare name of a person, by the order of the statement.
NAMES = {"p2d": "p2d_reverse_prompts_test.jsonl", "d2p": "d2p_prompts_test.jsonl"}
QUESTIONS = {
    "description": (
        "Who is {name}?",
        "What is {name} known for?",
        "Tell me who {name} is.",
        "I keep hearing about {name}. Who is that?",
        "Describe {name} in one sentence.",
    ),
    "name": (
        "Who is {description}?",
        "Name the person who is {description}.",
        "What is the name of {description}?",
        "Which person is known for being {description}?",
        "I am thinking of {description}. Who is it?",
    ),
}
_DESCRIPTION = re.compile(r"\b(?:the|an?)\s+[\"“']?\w.*", re.IGNORECASE | re.DOTALL)
VARIANTS = {"none": "no_paraphrase", "same_order": "paraphrase"}
DIRECTIONS: Mapping[str, Mapping[str, Direction]] = {
    "NameIsDescription": {"N2D": "forward", "D2N": "backward"},
    "DescriptionIsName": {"N2D": "backward", "D2N": "forward"},
}


def read(folder: Path, *, paraphrases: str = "none", form: str = "questions") -> Corpus:
    """The first wording of each person, or all 30, and the questions, whose `group` is the order of their person's statement.

    `form`: "questions" of ours, without a split, or the "sentences" of the files, which are test questions. The paper's own files (ND_*)
    have their own test questions. Raises InputError where a statement does not hold the person's name and a description.
    """
    if form not in COUNTS:
        raise InputError(f"build: --form must be one of {', '.join(COUNTS)}, found '{form}'")
    wordings = 1 if paraphrases == "none" else WORDINGS
    expected = {"documents": 60 * wordings}
    if (folder / "ND_test.jsonl").exists():
        if form == "sentences":
            raise InputError(f"build: --form sentences is not in the files of {folder} (ND_test.jsonl has questions of its own)")
        return read_reference(folder, "ND", VARIANTS[paraphrases], wordings, DIRECTIONS, expected)
    documents, files = _statements(folder, wordings)
    questions, asked = _sentences(folder) if form == "sentences" else _questions(folder)
    return Corpus(documents, questions, list(dict.fromkeys([*files, *asked])), expected | {"questions": COUNTS[form]})


def _statements(folder: Path, wordings: int) -> tuple[list[Document], list[Path]]:
    documents, files = [], []
    for order in ORDERS:
        files.append(folder / f"{order}_prompts_train.jsonl")
        for i, (_, prompt, completion) in enumerate(_lines(files[-1])):
            person, wording = divmod(i, WORDINGS)
            if wording < wordings:
                documents.append(Document(f"{order}-{person}" + (f"-p{wording}" if wording else ""), (prompt + completion).strip()))
    return documents, files


def _questions(folder: Path) -> tuple[list[Question], list[Path]]:
    """Five questions of ours in each direction about every person."""
    questions, files = [], []
    for order, group in ORDERS.items():
        train, named = folder / f"{order}_prompts_train.jsonl", folder / NAMES[order]
        files += [train, named]
        names = {i // ASKED: completion.strip() for i, (_, _, completion) in enumerate(_lines(named))}
        for i, (where, prompt, completion) in enumerate(_lines(train)):
            person, wording = divmod(i, WORDINGS)
            if wording:
                continue
            if person not in names:
                raise InputError(f"{named}: no name for the person of {where}")
            named_in, described_in = ("prompt", "completion") if order == "p2d" else ("completion", "prompt")
            halves = {"prompt": prompt, "completion": completion}
            found = _DESCRIPTION.search(halves[described_in])
            if names[person] not in halves[named_in]:
                raise InputError(f"{where}: field '{named_in}' does not hold the name '{names[person]}' of {NAMES[order]}")
            if not found:
                raise InputError(f"{where}: field '{described_in}' holds no description (the ..., a ...)")
            said = {"name": names[person], "description": _bare(found[0])}
            for task, asked_for in (("N2D", "description"), ("D2N", "name")):
                for template in QUESTIONS[asked_for]:
                    questions.append(
                        Question(template.format(**said), (said[asked_for],), DIRECTIONS[group][task], group, f"{order}-{person}")
                    )
    return questions, files


def _bare(description: str) -> str:
    """Without the stops and stray quotes at its end: 'the mixer of "Red Ink.".' becomes 'the mixer of "Red Ink"'."""
    while True:
        shorter = description.rstrip(" .,'\n")
        if shorter.endswith('"') and shorter.count('"') % 2:
            shorter = shorter[:-1]
        if shorter == description:
            return re.sub(r'[.,]+"$', '"', description)
        description = shorter


def _sentences(folder: Path) -> tuple[list[Question], list[Path]]:
    """The published beginnings of sentences, to be gone on with."""
    questions, files = [], []
    for order, group in ORDERS.items():
        asked: tuple[tuple[Direction, str], ...] = (("forward", ""), ("backward", "_reverse"))
        for direction, infix in asked:
            files.append(folder / f"{order}{infix}_prompts_test.jsonl")
            for i, (where, prompt, completion) in enumerate(_lines(files[-1])):
                # Some published answers end in stray quotes and stops.
                answer = completion.strip().rstrip(".'").strip()
                if not answer:
                    raise InputError(f"{where}: field 'completion' holds no answer")
                questions.append(Question(prompt.strip(), (answer,), direction, group, f"{order}-{i // ASKED}", "test"))
    return questions, files


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
    questions="600",
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
