"""`demask data`: what it prints, and that every mistake ends in one line and exit code 2."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from demask.cli import main
from demask.stages import check as stage
from tests.pdf import pdf

FILES: dict[str, str | bytes] = {
    "good.txt": "Ann keeps bees.",
    "empty.txt": "",
    "nul.txt": "a\0b",
    "bytes.txt": b"a \x81",
    "odd.txt": b"\xff\xfea",
    "front.md": "---\na: [\n---\nx",
    "alias.md": "---\na: &x 1\nb: *x\n---\nx",
    "bare.md": "---\na: 1\n---\n",
    "script.html": "<script>x</script>",
    "scan.pdf": pdf([[]]),
    "table.csv": "a,b\n1,2\n",
    "short.csv": "text,b\n1\n",
    "open.csv": 'text\n"Ann\n',
    "twice.csv": "text,text\na,b\n",
    "header.tsv": "text\tid\n",
    "latin.jsonl": b'{"text": "\xe9"}\n',
    "broken.jsonl": '{"text": "Ann"}\n{\n',
    "list.jsonl": "[]\n",
    "no_text.jsonl": '{"txt": "Ann"}\n',
    "number.jsonl": '{"text": 4}\n',
    "id.jsonl": '{"id": {}, "text": "Ann"}\n',
    "same.jsonl": '{"id": 1, "text": "Ann"}\n{"id": 1, "text": "Bo"}\n',
    "half.jsonl": '{"prompt": "Ann"}\n',
    "object.json": "{}",
    "item.json": "[3]",
    "deep.json": "[" * 100_000,
    "blank.json": "",
    "notes.odt": "PK",
    "notes": "Ann",
    "bad/a.pdf": pdf([[]]),
    "bad/b.txt": "",
    "other/a.docx": "PK",
    "clash/a.txt": "Ann",
    "clash/b.jsonl": '{"id": "a", "text": "Ann"}\n',
}
SUPPORTED = "supported are .txt, .md, .html, .htm, .pdf, .jsonl, .json, .csv, .tsv, .parquet"
NO_ENCODING = "neither UTF-8 nor another encoding that can be told; convert the file to UTF-8"
BAD = {
    "": "Missing argument 'PATH...'.",
    "gone.txt": "gone.txt: no such file or folder",
    "empty.txt": "empty.txt: the file is empty",
    "nul.txt": "nul.txt: the file holds a NUL character; is it binary?",
    "bytes.txt": f"bytes.txt: {NO_ENCODING}",
    "odd.txt": "odd.txt: not valid utf-16; convert the file to UTF-8",
    "front.md": "front.md:3: the front matter is not valid YAML (expected the node content, but found '<stream end>')",
    "alias.md": "alias.md: the front matter holds an alias (*), write out what it stands for",
    "bare.md": "bare.md: the file is empty",
    "script.html": "script.html: the file is empty",
    "scan.pdf": "scan.pdf: no text in it (a scan? run OCR first)",
    "table.csv": "table.csv:1: column 'text' is missing; the columns are a, b",
    "table.csv --text_column c": "table.csv:1: column 'c' is missing; the columns are a, b",
    "short.csv": "short.csv:2: expected 2 fields as in the header, found 1",
    "open.csv": "open.csv:2: not valid CSV (unexpected end of data)",
    "twice.csv": "twice.csv:1: column 'text' is named twice",
    "header.tsv": "header.tsv: no documents in it",
    "latin.jsonl": "latin.jsonl:1: not UTF-8 (byte 0xe9); convert the file to UTF-8",
    "broken.jsonl": "broken.jsonl:2: not valid JSON (Expecting property name enclosed in double quotes at column 2)",
    "list.jsonl": "list.jsonl:1: expected a JSON object, found a list",
    "no_text.jsonl": "no_text.jsonl:1: field 'text' is missing",
    "number.jsonl": "number.jsonl:1: field 'text' must be a string, found a number",
    "id.jsonl": "id.jsonl:1: field 'id' must be a string or an integer, found an object",
    "same.jsonl": "same.jsonl:2: id '1' is used twice, first in same.jsonl:1",
    "half.jsonl": "half.jsonl:1: field 'response' is missing",
    "object.json": "object.json: expected a JSON list, found an object; one object a line is .jsonl",
    "item.json": "item.json: item 1: expected a JSON object or a string, found a number",
    "deep.json": "deep.json:1: its JSON is nested too deeply to be read",
    "blank.json": "blank.json: no documents in it",
    "notes.odt": f"notes.odt: cannot read .odt; {SUPPORTED}",
    "notes": f"notes: cannot read a file without a suffix; {SUPPORTED}",
    "bad": "bad: nothing in this folder can be used (bad/a.pdf: no text in it (a scan? run OCR first), and 1 more)",
    "other": f"other: no documents in this folder; {SUPPORTED}",
    "clash": "clash/b.jsonl:1: id 'a' is used twice, first in clash/a.txt",
    "good.txt good.txt": "good.txt: id 'good' is used twice, first in good.txt",
    "good.txt --near_duplicates 1.5": "near_duplicates: expected a number from 0 to 1, found 1.5",
    "good.txt --max_length 0": "max_length: expected a number at least 1, found 0",
    "good.txt --model_name_or_path ./gone": "model './gone': no such folder",
    "good.txt --colour red": "No such option: --colour",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


@pytest.fixture(autouse=True)
def _in_inputs(inputs, monkeypatch):
    monkeypatch.chdir(inputs)


def run(command: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(command))
    return caught.value.code


@pytest.mark.parametrize("arguments", BAD)
def test_mistakes(arguments, capsys):
    assert run(f"data check {arguments}") == 2
    said = capsys.readouterr()
    assert said.err.rstrip("\n").partition(" Did you mean")[0] == f"demask: {BAD[arguments]}"
    assert said.out == ""


def test_a_check(capsys):
    assert run("data check good.txt --max_length 10 --near_duplicates 0") == 0
    said = capsys.readouterr()
    assert said.err == ""
    long = "too long for a training example of 10 tokens, which holds the text twice (--objective demask)"
    assert f"{long}: 1 of the documents, which --on_long splits\n" in said.out
    assert "near duplicates" not in said.out


def test_ctrl_c(monkeypatch, capsys):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(stage, "iter_documents", interrupted)
    assert run("data check good.txt") == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_training_tells_what_it_passes_over(tmp_path, capsys):
    for i in range(8):
        (tmp_path / f"{i}.txt").write_text("")
    (tmp_path / "good.html").write_bytes("<p>Ann likes caf\xe9s.".encode("latin-1"))
    assert run(f"train --documents {tmp_path} --output_dir {tmp_path}/out --dry_run") == 0
    said = capsys.readouterr().out.splitlines()
    told = [line for line in said if "passed over" in line or "UTF-8" in line]
    assert told == [f"passed over: {tmp_path}/{i}.txt: the file is empty" for i in range(5)] + [
        f"{tmp_path}/good.html: not UTF-8: read as cp1252",
        "... and 3 more passed over (demask data check lists them)",
    ]
