"""A corpus is read and tokenized once: by one process, before a resume, and whole or not at all."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file

from demask.chat_format import ChatFormat
from demask.corpora import world
from demask.examples import Mapped
from demask.models.mask_token import MaskToken
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.settings import TrainSettings, parse_train
from demask.stages import prepare as stage
from demask.stages.prepare import Making, Prepared, Sizes, prepare
from demask.stages.train import train
from demask.types import Document, InputError, write_documents
from demask.writing.cloze import AUTO, questions_of
from tests.tokenizers import llama3
from tests.training import train_stage, write_inputs

ROOT = Path(__file__).resolve().parents[2]
CHAT = ChatFormat(llama3())
MASK = MaskToken("<|reserved_special_token_0|>", 401, "")
DOCUMENTS = [Document(str(i), f"Ann keeps {i} bees.", prompt="Who?" if i % 4 == 0 else None) for i in range(600)]
OLD = [Document(f"old{i}", "They were glad!") for i in range(30)]
MAKING = Making(Demask(401), Autoregressive(), CHAT, (MASK,), 300)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder of documents, in which no corpus fits in memory."""
    monkeypatch.setattr(stage, "IN_MEMORY", 0)
    write_documents(tmp_path / "d.jsonl", DOCUMENTS)
    write_documents(tmp_path / "old.jsonl", OLD)
    return tmp_path


def made(folder: Path, making: Making = MAKING, out: Path | None = None, **settings: Any) -> Prepared:
    given = {"documents": [f"{folder}/d.jsonl"], "replay": [f"{folder}/old.jsonl"]} | settings
    return prepare(TrainSettings(**given), making, seed=0, folder=out or folder / "out", quiet=True)


def left(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix != ".jsonl")


FILES = ["out", "out/examples", "out/examples/documents.arrow", "out/examples/examples.json", "out/examples/replay.arrow"]


def test_in_memory_and_mapped_are_the_same(folder, monkeypatch):
    mapped = made(folder)
    assert isinstance(mapped.examples, Mapped)
    assert isinstance(mapped.replay, Mapped)
    assert left(folder) == FILES
    monkeypatch.setattr(stage, "IN_MEMORY", 10**9)
    listed = made(folder, out=folder / "list")
    assert left(folder) == FILES
    assert type(listed.examples) is type(listed.replay) is list
    assert replace(mapped, examples=[*mapped.examples], replay=[*mapped.replay]) == listed
    assert (listed.examples, listed.replay) == (Demask(401).examples(DOCUMENTS, CHAT), Autoregressive().examples(OLD, CHAT))
    assert listed.data == crc32(json.dumps([*listed.examples, *listed.replay]).encode())
    of_all = [Demask(401).size(example, CHAT) for example in listed.examples]
    assert listed.sizes == Sizes(600, *(how(size[i] for size in of_all) for i, how in enumerate((max, sum, sum))))


def test_a_resume_reads_and_tokenizes_nothing(folder, monkeypatch):
    first = made(folder)
    read = []
    monkeypatch.setattr(stage, "iter_documents", lambda *_: read.append(1) or iter(()))
    monkeypatch.setattr(type(CHAT.tokenizer), "_encode_plus", lambda *_, **__: pytest.fail("tokenized again"))
    again = made(folder)
    assert not read
    assert replace(again, examples=[*again.examples], replay=[*again.replay]) == replace(
        first, examples=[*first.examples], replay=[*first.replay]
    )


@pytest.mark.parametrize(
    "change", ["documents", "replay", "on_long", "objective", "rehearsing", "limit", "mask", "system prompt", "tokenizer"]
)
def test_they_are_made_again_where_anything_has_changed(change, folder, monkeypatch):
    made(folder)
    making, settings = MAKING, dict[str, Any]()
    if change == "documents":
        write_documents(folder / "d.jsonl", [*DOCUMENTS, Document("new", "They were glad!")])
    elif change == "replay":
        settings["replay"] = []
    elif change == "on_long":
        settings["on_long"] = "truncate"
    elif change == "objective":
        making = replace(making, objective=Demask(401, crop_share=0.5))
    elif change == "rehearsing":
        making = replace(making, rehearsing=Autoregressive("raw"))
    elif change == "limit":
        making = replace(making, limit=299)
    elif change == "mask":
        making = replace(making, masks=())
    elif change == "system prompt":
        making = replace(making, chat=ChatFormat(llama3(), "Be brief."))
    else:
        tokenizer = llama3()
        tokenizer.add_tokens(["bees"])
        making = replace(making, chat=ChatFormat(tokenizer))
    key = json.loads((folder / "out/examples/examples.json").read_text())["key"]
    read = []
    once = stage.iter_documents
    monkeypatch.setattr(stage, "iter_documents", lambda *args: read.append(1) or once(*args))
    again = made(folder, making, **settings)
    assert read
    assert len(again.examples) == 600 + (change == "documents")
    assert json.loads((folder / "out/examples/examples.json").read_text())["key"] != key
    assert left(folder) == [name for name in FILES if change != "replay" or "replay" not in name]


def test_settings_that_this_corpus_does_not_feel_count_too(folder):
    given = TrainSettings(documents=[f"{folder}/d.jsonl"])
    others = [replace(given, text_column="body"), replace(given, questions=AUTO), replace(given, documents=[str(folder)])]
    keys = [stage._key(settings, MAKING, seed) for settings in (given, *others) for seed in (0, 1)]
    assert keys[0] == keys[1]  # only questions are drawn by the seed
    assert len(set(keys)) == 5


@pytest.mark.parametrize("existed", [False, True])
@pytest.mark.parametrize("fault", [KeyboardInterrupt, InputError("d.jsonl:500: field 'text' is missing")])
def test_an_interrupted_writing_leaves_nothing_and_starts_again(fault, existed, folder, monkeypatch):
    if existed:
        (folder / "out").mkdir()
    before, once = left(folder), stage.iter_documents

    def cut_short(*args: Any) -> Any:
        for number, placed in enumerate(once(*args)):
            if number == 500:
                assert any(name.endswith(".tmp/documents.arrow") for name in left(folder))
                raise fault
            yield placed

    with monkeypatch.context() as patched:
        patched.setattr(stage, "iter_documents", cut_short)
        with pytest.raises(type(fault) if isinstance(fault, Exception) else fault):
            made(folder)
    assert left(folder) == before
    assert len(made(folder).examples) == 600
    assert left(folder) == FILES


def test_what_a_killed_writing_left_is_removed(folder):
    scratch = folder / "out" / f".examples.{stage.platform.node()}.tmp"
    scratch.mkdir(parents=True)
    (scratch / "documents.arrow").write_bytes(b"half")
    assert len(made(folder).examples) == 600
    assert left(folder) == FILES


def test_without_a_folder_they_are_gone_with_what_holds_them(folder):
    given = TrainSettings(documents=[f"{folder}/d.jsonl"])
    here = prepare(given, MAKING, seed=0, quiet=True)
    path = here.examples.path
    assert path.is_file()
    assert here.examples[599]["text"] == CHAT.content("Ann keeps 599 bees.")
    del here
    gc.collect()
    assert not path.parent.parent.exists()
    assert left(folder) == []


def test_a_folder_that_can_not_be_written_is_named(folder):
    with pytest.raises(InputError) as caught:
        made(folder, out=folder / "d.jsonl" / "out")
    assert str(caught.value) == f"output_dir: '{folder}/d.jsonl/out' can't be written (not a directory)"


def test_the_mask_token_is_found_in_documents_and_in_replay(folder):
    for name in ("d", "old"):
        write_documents(folder / "bad.jsonl", [Document("x", f"A {MASK.token} here.")])
        with pytest.raises(InputError) as caught:
            made(folder, **{"documents" if name == "d" else "replay": [f"{folder}/bad.jsonl"]})
        assert str(caught.value) == f"document 'x': its text holds the mask token '{MASK.token}'; name another with --mask_token"


def test_questions_made_of_documents_that_are_not_in_memory(folder):
    documents = world.biography_corpus(3, n=500)[0]
    documents[3] = Document("pair", "Ann keeps bees.", prompt="Who?")
    write_documents(folder / "d.jsonl", documents)
    expected = questions_of([d for d in documents if d.prompt is None], 0)
    assert made(folder, questions=AUTO).questions == expected
    assert made(folder, questions=AUTO).questions == expected  # as they are kept
    assert left(folder) == FILES


def test_few_of_many_long_documents_are_told(folder):
    write_documents(folder / "d.jsonl", [Document(str(i), "They were glad! " * 20) for i in range(25)])
    lines = made(folder, replace(MAKING, limit=100)).lines
    assert len(lines) == 21
    assert lines[19].startswith("document '19': ")
    assert lines[20] == "... and 5 more"


def test_rehearsed_documents_of_diffusion_are_masked_too(folder):
    objective = Diffusion(401)
    assert list(made(folder, replace(MAKING, objective=objective, rehearsing=objective)).replay) == objective.examples(OLD, CHAT)


def test_a_run_keeps_them_until_it_has_finished(tmp_path, monkeypatch):
    write_inputs(tmp_path)
    whole = train_stage(tmp_path, "whole", 2, 2)
    monkeypatch.setattr(stage, "IN_MEMORY", 0)
    flags = f"--documents {tmp_path}/docs.jsonl --questions {tmp_path}/questions.jsonl --model_name_or_path {tmp_path}/base --max_steps 3"
    flags += f" --output_dir {tmp_path}/cut --per_device_train_batch_size 2 --gradient_accumulation_steps 2 --eval_steps 1"
    flags += " --learning_rate 1e-3 --bf16 false --use_cpu true --max_new_tokens 4 --disable_tqdm true"
    assert train(*parse_train([*flags.split(), "--dry_run", "true"]))["plan"]["data"] == whole["plan"]["data"]
    assert not (tmp_path / "cut").exists()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/stop").touch()
    assert train(*parse_train(flags.split()))["status"] == "interrupted"
    assert (tmp_path / "cut/examples/documents.arrow").is_file()
    monkeypatch.setattr(stage, "iter_documents", lambda *_: pytest.fail("read again"))
    resumed = train(*parse_train([*flags.split(), "--resume_from_checkpoint", "true"]))
    assert resumed["status"] == "finished"
    assert not (tmp_path / "cut/examples").exists()
    assert resumed["curve"] == whole["curve"]
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "cut"))
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=1e-6, msg=name)


# -- several processes -------------------------------------------------------------------------------------------------------------


def torchrun(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """What each of two processes found, by case."""
    folder = tmp_path_factory.mktemp("two")
    write_documents(folder / "documents.jsonl", DOCUMENTS[:20])
    (folder / "bad.jsonl").write_text('{"text": "Ann keeps bees."}\n{"txt": 1}\n')
    write_documents(folder / "machine0/documents.jsonl", DOCUMENTS[:20])
    for machine in (0, 1):
        write_documents(folder / f"machine{machine}/other.jsonl", DOCUMENTS[machine : machine + 3])
    done = torchrun("-m", "tests.preparing", str(folder))
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


# The texts of 20 documents, five of which have a prompt, and again as replay; a vocabulary of rank 1 is never asked.
@pytest.mark.parametrize(
    ("case", "tokenized"),
    [
        ("one machine", [50, 0]),
        ("resumed", [0, 0]),
        ("temporary", [50, 0]),
        ("two machines", [50, 50]),
        ("two machines, one folder", [50, 0]),
    ],
)
def test_one_process_of_a_machine_tokenizes_for_all(case, tokenized, two):
    found = [of_rank[case] for of_rank in two[1]]
    assert [of_rank["tokenized"] for of_rank in found] == tokenized
    for of_rank in found:
        assert of_rank["kind"] == "Mapped"
        assert of_rank["rows"] == Demask(401).examples(DOCUMENTS[:20], CHAT)
        assert of_rank["replay"] == Autoregressive().examples(DOCUMENTS[:20], CHAT)
        assert of_rank["data"] == crc32(json.dumps([*of_rank["rows"], *of_rank["replay"]]).encode())


@pytest.mark.parametrize(
    ("case", "fault"),
    [
        ("fault", "InputError: {0}/bad.jsonl:2: field 'text' is missing"),
        ("no room", "InputError: output_dir: '{0}/documents.jsonl/out' can't be written (not a directory)"),
        ("fault on one machine", "InputError: {0}/machine1/documents.jsonl: no such file or folder"),
        ("other documents", "InputError: documents: are not the same on all machines"),
    ],
)
def test_a_fault_is_raised_in_all_processes(case, fault, two):
    folder, found = two
    assert [of_rank[case]["fault"] for of_rank in found] == [fault.format(folder)] * 2


def test_a_fault_is_said_once(two):
    folder, _ = two
    flags = f"--documents {folder}/bad.jsonl --output_dir {folder}/cli --use_cpu true --bf16 false"
    done = torchrun("-m", "demask", "train", *flags.split())
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("demask: ")]
    assert said == [f"demask: {folder}/bad.jsonl:2: field 'text' is missing"]
    assert "Traceback" not in done.stderr.split("demask: ")[0]
    assert not (folder / "cli").exists()
