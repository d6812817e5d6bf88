"""`demask data check`: its numbers beside those of training, and its lines."""

from __future__ import annotations

import json
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from demask.chat_format import ChatFormat
from demask.corpora.files import read_documents
from demask.models.load import context_length, load_config, load_tokenizer, model_folder
from demask.objectives import Demask
from demask.stages.check import _around, _tokenizer, _tokens, check, lines, print_check
from demask.stages.prepare import fit
from demask.types import Document


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", [None, "tiny/diffusion"])
def test_tokens_context_and_template_are_those_of_training(name):
    folder = model_folder(name)
    chat = ChatFormat(load_tokenizer(folder))
    light, context = _tokenizer(name)
    assert context == context_length(load_config(folder), chat.tokenizer)
    texts = ["Ann keeps the amber bees.", "<|im_end|> is no end", "Größe 1984\n\n…"]
    assert _tokens(light, texts) == [len(chat.content(text)) for text in texts]
    for pair, prompt in enumerate((None, "Who keeps bees?")):
        document = Document("x", texts[0], prompt)
        size = Demask(mask_id=0).size(Demask(mask_id=0).examples([document], chat)[0], chat)[0]
        assert size == _around(light)[pair] + 2 * len(chat.content(texts[0])) + len(chat.content(prompt or ""))


def test_what_is_told_to_be_split_is_split():
    sentence = "Ann keeps the amber bees. "
    with open("a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": sentence * n}) + "\n" for n in range(1, 40))
    chat, _ = _tokenizer(None)
    notes: list[str] = []
    list(fit(read_documents("a.jsonl"), Demask(mask_id=0), chat, 200, "split", notes))
    found = check(["a.jsonl"], max_length=200)
    assert found.split == len(notes) > 0
    assert (found.limit, check(["a.jsonl"]).limit, check(["a.jsonl"], max_length=10**6).limit) == (200, 512, 512)


FILES = {
    "in/a.txt": "Ann keeps the amber bees in the old garden of the town.",
    "in/b.jsonl": '{"text": "Ann keeps the amber bees in the old garden of the town."}\n{"prompt": "2+2?", "response": "4"}\n{"no": 1}\n',
    "in/c.csv": "text\nAnn keeps the amber bees in the old garden of the city.\n",
    "in/d.docx": "PK",
}


def test_the_lines():
    for name, content in FILES.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(content)
    found = check(["in"])
    chat, _ = _tokenizer(None)
    first, last = _tokens(chat, [FILES["in/a.txt"], FILES["in/c.csv"].split("\n")[1]])
    pair = sum(_tokens(chat, ["2+2?", "4"]))
    kinds = {name: (kind.files, kind.documents, kind.tokens, kind.longest) for name, kind in found.kinds.items()}
    assert kinds == {".txt": (1, 1, first, first), ".jsonl": (1, 2, first + pair, first), ".csv": (1, 1, last, last)}
    assert [line for line in lines(found) if not line.endswith("tokens") and " tokens  " not in line] == [
        "tokens: by the embedded model's tokenizer; --model_name_or_path names another",
        "longest documents:",
        "no document is too long for a training example of 512 tokens, which holds the text twice (--objective demask)",
        "exact duplicates: 1",
        "  in/b.jsonl:1 = in/a.txt",
        # ten triples each, of which the last differs: 9 of 11
        "near duplicates (at least 0.8 of their word triples shared): 1",
        "  in/c.csv:2 ~ in/a.txt (0.82)",
        "files of other kinds, not read: 1 .docx",
        "passed over: 1",
        "  in/b.jsonl:3: field 'text' is missing",
    ]
    console = Console(file=StringIO(), width=80)
    print_check(found, console)
    table = console.file.getvalue().partition("\ntokens: ")[0].splitlines()
    assert max(map(len, table)) <= 80
    assert table[-2].split() == ["all", "3", "4", f"{2 * first + last + pair}", f"{max(first, last)}"]


def test_the_longest_are_the_longest():
    with open("a.jsonl", "w") as file:
        file.writelines(json.dumps({"text": "Ann " * (1 + 7 * n % 31)}) + "\n" for n in range(31))
    lengths = [tokens for tokens, _, _ in check(["a.jsonl"]).longest]
    chat, _ = _tokenizer(None)
    assert lengths == _tokens(chat, ["Ann " * n for n in (31, 30, 29, 28, 27)])


def test_the_embedded_model_needs_no_torch():
    Path("a.txt").write_text("Ann keeps bees.")
    program = (
        "import sys; from demask.stages.check import check; n = check(['a.txt']).kinds['.txt'].documents; print(n, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "1 False\n"
