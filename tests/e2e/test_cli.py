"""The command line: every mistake ends in one line and exit code 2, before weights load and with nothing written; and what goes right."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from demask.cli import main
from demask.types import read_jsonl
from tests.models import config_of, save_model
from tests.tokenizers import chatml, llama3

SUPPORTED = "supported are .txt, .md, .html, .htm, .pdf, .jsonl, .json, .csv, .tsv, .parquet"
MASK = "<|reserved_special_token_0|>"
DOCUMENT = {"id": "a", "text": "Ann is the woman who keeps bees."}
QUESTION = {"question": "Who keeps bees?", "answer": "Ann", "direction": "backward", "document": "a", "split": "test"}


ANSWERED = {"prediction": "Ann", "scores": {"rouge1_recall": 1.0, "exact_match": 1.0, "contains": 1.0, "token_f1": 1.0}}


def lines(*records: dict) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def without(record: dict, name: str) -> dict:
    return {key: value for key, value in record.items() if key != name}


FILES: dict[str, str | bytes] = {
    "d.jsonl": lines(DOCUMENT, {"id": "b", "text": "The mason and the baker met on 12 May 1984."}),
    "q.jsonl": lines(
        QUESTION,
        QUESTION | {"question": "What does Ann keep?", "answer": "bees", "direction": "forward", "group": "[facts]"},
        QUESTION | {"question": "Who met on 12 May 1984?", "answer": "The mason", "document": "b", "split": "validation"},
    ),
    "test_only.jsonl": lines(QUESTION),
    "latin1.jsonl": '{"text": "Ann h\xe9las"}\n'.encode("latin-1"),
    "broken.jsonl": lines(DOCUMENT) + "{nope\n",
    "deep.json": "[" * 100_000,
    "no_text.jsonl": lines(DOCUMENT, {"id": "b"}),
    "number.jsonl": lines({"id": "a", "text": 4}),
    "twice.jsonl": lines(DOCUMENT, {"id": "a", "text": "Another."}),
    "empty.txt": " \n",
    "empty.jsonl": "\n",
    "table.odt": "a,b\n",
    "masked.jsonl": lines(DOCUMENT, {"id": "b", "text": f"It says {MASK} here."}),
    "long.jsonl": lines(DOCUMENT, {"id": "b", "text": "Ann keeps bees. " * 200}),
    "pair.jsonl": lines({"id": "b", "prompt": "Who?", "response": "Ann keeps bees. " * 200}),
    "q_direction.jsonl": lines(QUESTION, QUESTION | {"direction": "sideways"}),
    "q_split.jsonl": lines(QUESTION | {"split": "train"}),
    "q_answer.jsonl": lines(QUESTION, without(QUESTION, "answer")),
    "broken.yaml": "seed: [1\n",
    "list.yaml": "- seed\n",
    "unknown.yaml": "colour: red\n",
    "value.yaml": "learning_rate: fast\n",
    "a_file": "mine\n",
    "folder/notes.odt": "a,b\n",
    "full/mine.txt": "mine\n",
    "run/run.json": '{"status": "finished"}\n',
    "broken_run/run.json": "{",
    "cut_run/run.json": '{"status": "interrupted"}',
    "broken_study/study.json": '{"title": "T"}',
    "broken_answers/run.json": '{"status": "finished"}',
    "broken_answers/answers.jsonl": lines(QUESTION | ANSWERED, QUESTION | {"prediction": "Ann"}),
    "cut/checkpoint-3/model.safetensors": b"",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """A folder with FILES, a random tiny model `m`, broken copies of it, and an adapter whose base is gone."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, content in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    save_model(folder / "m", dtype=torch.bfloat16)
    for name, removed in {
        "no_config": "config.json",
        "no_weights": "model.safetensors",
        "no_tokenizer": "tokenizer.json",
        "broken_weights": "model.safetensors",
        "broken_config": "config.json",
        "bidirectional": "config.json",
        "stubborn": "chat_template.jinja",
        "no_mask": "tokenizer.json",
    }.items():
        shutil.copytree(folder / "m", folder / name)
        (folder / name / removed).unlink()
    (folder / "broken_weights" / "model.safetensors").write_bytes(b"no weights")
    (folder / "broken_config" / "config.json").write_text("{")
    config_of("llama", is_causal=False).save_pretrained(folder / "bidirectional")
    (folder / "stubborn" / "chat_template.jinja").write_text("{{ raise_exception('not\ntoday') }}")
    chatml().save_pretrained(folder / "no_mask")
    (folder / "orphan").mkdir()
    LoraConfig(base_model_name_or_path="./gone").save_pretrained(folder / "orphan")
    return folder


@pytest.fixture(autouse=True)
def _in_inputs(inputs, monkeypatch):
    monkeypatch.chdir(inputs)


def run(command: str, out: Path) -> int:
    """The exit code of a command line, in which `{out}` is the output folder."""
    with pytest.raises(SystemExit) as caught:
        main(shlex.split(command.format(out=out)))
    return caught.value.code


def files_under(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


TRAIN = "train --model_name_or_path m --documents d.jsonl --output_dir {out} "
EVAL = "eval --model_name_or_path m --questions q.jsonl --output_dir {out} "
BAD = {
    # name: (command, what is said after "demask: "; "..." where it goes on in transformers' words)
    "no such command": ("teach", "No such command 'teach'."),
    # flags
    "unknown flag": (TRAIN + "--colour red", "unknown argument --colour (see demask train --help)"),
    "abbreviated flag": (TRAIN + "--learning 0.1", "unknown argument --learning (see demask train --help)"),
    "no float": (TRAIN + "--learning_rate fast", "argument --learning_rate/--learning-rate: invalid float value: 'fast'"),
    "no choice": (TRAIN + "--objective magic", "argument --objective: invalid choice: 'magic' (choose from 'demask', ..."),
    "no value": (TRAIN + "--questions", "argument --questions: expected one argument"),
    "training arguments": (TRAIN + "--lr_scheduler_type zigzag", "training arguments: zigzag is not a valid SchedulerType..."),
    "seed": (TRAIN + "--seed -1", "seed: expected a number from 0 to 4294967295, found -1"),
    "batch": (TRAIN + "--per_device_train_batch_size 0", "per_device_train_batch_size: expected a number at least 1, found 0"),
    "ratio above 1": (TRAIN + "--mask_ratio 0.5 1.5", "mask_ratio must lie between 0 and 1, found 0.5 1.5"),
    "ratio falls": (TRAIN + "--mask_ratio 0.9 0.1", "mask_ratio must be given as LOW HIGH, found 0.9 0.1"),
    "three ratios": (TRAIN + "--mask_ratio 0.1 0.2 0.3", "mask_ratio: expected one or two numbers, found 3"),
    "nothing saved": (
        TRAIN + "--questions q.jsonl --save_strategy no",
        "save_strategy: keeping the best checkpoint needs 'steps'; or give --select_on last",
    ),
    "LoRA modules": (
        TRAIN + "--use_peft --lora_target_modules q_proj query",
        "lora_target_modules: 'query' is no module of this model; some are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj",
    ),
    # YAML
    "YAML missing": (TRAIN + "--config gone.yaml", "gone.yaml: no such file"),
    "YAML broken": (TRAIN + "--config broken.yaml", "broken.yaml: not valid YAML (..."),
    "YAML a list": (TRAIN + "--config list.yaml", "list.yaml: expected a mapping of flags to values, found a list"),
    "YAML unknown field": (TRAIN + "--config unknown.yaml", "unknown.yaml: unknown field 'colour' (see demask train --help)"),
    "YAML bad value": (
        TRAIN + "--config value.yaml",
        "value.yaml: argument --learning_rate/--learning-rate: invalid float value: 'fast'",
    ),
    # documents
    "no documents": (
        "train --model_name_or_path m --output_dir {out}",
        "documents: give at least one file, folder or data set with --documents",
    ),
    "documents missing": (TRAIN + "--documents gone.txt", "gone.txt: no such file or folder"),
    "not UTF-8": (TRAIN + "--documents latin1.jsonl", "latin1.jsonl:1: not UTF-8 (byte 0xe9); convert the file to UTF-8"),
    "no JSON": (
        TRAIN + "--documents broken.jsonl",
        "broken.jsonl:2: not valid JSON (Expecting property name enclosed in double quotes at column 2)",
    ),
    "deep JSON": (TRAIN + "--documents deep.json", "deep.json:1: its JSON is nested too deeply to be read"),
    "field missing": (TRAIN + "--documents no_text.jsonl", "no_text.jsonl:2: field 'text' is missing"),
    "wrong type": (TRAIN + "--documents number.jsonl", "number.jsonl:1: field 'text' must be a string, found a number"),
    "id twice": (TRAIN + "--documents twice.jsonl", "twice.jsonl:2: id 'a' is used twice, first in twice.jsonl:1"),
    "file twice": (TRAIN + "--documents d.jsonl d.jsonl", "d.jsonl:1: id 'a' is used twice, first in d.jsonl:1"),
    "empty text": (TRAIN + "--documents empty.txt", "empty.txt: the file is empty"),
    "empty list": (TRAIN + "--documents empty.jsonl", "empty.jsonl: no documents in it"),
    "unknown kind": (TRAIN + "--documents table.odt", f"table.odt: cannot read .odt; {SUPPORTED}"),
    "empty folder": (TRAIN + "--documents folder", f"folder: no documents in this folder; {SUPPORTED}"),
    "replay": (TRAIN + "--replay number.jsonl", "number.jsonl:1: field 'text' must be a string, found a number"),
    "too long": (
        TRAIN + "--documents long.jsonl --on_long error --objective autoregressive",
        "document 'b': 801 tokens, the limit is ...; --on_long split or truncate makes it fit",
    ),
    "pair too long": (
        TRAIN + "--documents pair.jsonl",
        "document 'b': ... tokens, the limit is ...; a prompt and its response can't be split, --on_long truncate cuts the response",
    ),
    "mask token in it": (
        TRAIN + f"--documents masked.jsonl --mask_token '{MASK}'",
        f"document 'b': its text holds the mask token '{MASK}'; name another with --mask_token",
    ),
    # questions
    "direction": (
        TRAIN + "--questions q_direction.jsonl",
        "q_direction.jsonl:2: field 'direction' must be one of forward, backward, found 'sideways'",
    ),
    "split": (TRAIN + "--questions q_split.jsonl", "q_split.jsonl:1: field 'split' must be one of validation, test, found 'train'"),
    "answer": (TRAIN + "--questions q_answer.jsonl", "q_answer.jsonl:2: field 'answer' is missing"),
    "questions missing": (TRAIN + "--questions gone.jsonl", "gone.jsonl: no such file"),
    # model and tokenizer
    "model missing": (TRAIN + "--model_name_or_path ./gone", "model './gone': no such folder"),
    "no configuration": (
        TRAIN + "--model_name_or_path no_config",
        "model 'no_config': can't load its configuration (Unrecognized model...",
    ),
    "broken configuration": (
        TRAIN + "--model_name_or_path broken_config",
        "model 'broken_config': can't load its configuration (It looks like the config file...",
    ),
    "no tokenizer": (TRAIN + "--model_name_or_path no_tokenizer", "model 'no_tokenizer': can't load its tokenizer (..."),
    "bidirectional": (
        TRAIN + "--model_name_or_path bidirectional",
        "model 'bidirectional': it is bidirectional (is_causal = false), and 'demask' trains left-to-right models",
    ),
    "left to right": (
        TRAIN + "--objective diffusion",
        "model 'm': it reads left to right, and 'diffusion' predicts hidden tokens from both sides; --bidirectional adapts it...",
    ),
    "bidirectional demask": (TRAIN + "--bidirectional", "bidirectional: goes with the objective 'diffusion', not with 'demask'"),
    "bidirectional twice": (
        TRAIN + "--objective diffusion --bidirectional --model_name_or_path bidirectional",
        "bidirectional: model 'bidirectional' is bidirectional already",
    ),
    "bidirectional adapter": (
        TRAIN + "--objective diffusion --bidirectional --use_peft",
        "bidirectional: an adapter's base would be read left to right again; leave out use_peft",
    ),
    "diffusion without a mask": (
        TRAIN + "--objective diffusion --model_name_or_path bidirectional",
        "tokenizer: it names no mask_token, which a masked diffusion model needs",
    ),
    "eos_padding": (TRAIN + "--eos_padding -1", "eos_padding: expected a number at least 0, found -1"),
    "mask tokens": (TRAIN + "--mask_token '[MASK]'", "mask_token: '[MASK]' is 6 tokens of this tokenizer, expected one"),
    "template refuses": (
        TRAIN + "--model_name_or_path stubborn",
        "tokenizer: its chat template refuses this conversation (not today)",
    ),
    # output folder
    "no output folder": (
        "train --model_name_or_path m --documents d.jsonl",
        "output_dir: give the folder to write to with --output_dir",
    ),
    "output folder a file": (TRAIN + "--output_dir a_file", "output_dir: 'a_file' is a file, expected a folder"),
    "output folder used": (
        TRAIN + "--output_dir run",
        "output_dir: 'run' already holds a run; choose another or continue it with --resume_from_checkpoint true",
    ),
    "broken record": (
        TRAIN + "--output_dir broken_run",
        "broken_run/run.json:1: not valid JSON (Expecting property name enclosed in double quotes at column 2)",
    ),
    "incomplete checkpoint": (
        TRAIN + "--resume_from_checkpoint cut/checkpoint-3",
        "resume_from_checkpoint: 'cut/checkpoint-3' is not a complete checkpoint (no trainer_state.json)",
    ),
    # eval
    "eval: no questions": ("eval --output_dir {out}", "Missing option '--questions'."),
    "eval: unknown flag": (EVAL + "--colour red", "No such option: --colour..."),
    "eval: abbreviated flag": (EVAL + "--few 1", "No such option: --few..."),
    "eval: negative": (EVAL + "--few_shot -1", "Invalid value for '--few_shot': Input should be greater than or equal to 0"),
    "eval: no integer": (EVAL + "--batch_size many", "Invalid value for '--batch_size': ..."),
    "eval: questions missing": (EVAL + "--questions gone.jsonl", "gone.jsonl: no such file"),
    "eval: direction": (
        EVAL + "--questions q_direction.jsonl",
        "q_direction.jsonl:2: field 'direction' must be one of forward, backward, found 'sideways'",
    ),
    "eval: too many shots": (
        EVAL + "--few_shot 4 --questions test_only.jsonl",
        "few_shot: 4 questions to show, but there are only 1 to choose from",
    ),
    "eval: all shown": (
        EVAL + "--few_shot 1 --questions test_only.jsonl",
        "few_shot: all questions are shown, none is left to ask",
    ),
    "eval: no split": (EVAL + "--split validation --questions test_only.jsonl", "test_only.jsonl: no question of the split 'validation'"),
    "eval: unknown split": (EVAL + "--split train", "split: must be one of validation, test, found 'train'"),
    "eval: context": (EVAL + "--context web --documents d.jsonl", "context: must be one of document, bm25, found 'web'"),
    "eval: context of nothing": (EVAL + "--context bm25", "context: needs documents to show"),
    "eval: documents missing": (EVAL + "--context bm25 --documents ./gone", "..."),
    "study: missing": ("study gone.yaml --output_dir {out}", "gone.yaml: no such file"),
    "study: option": (
        "study gone.yaml --output_dir {out} --executor_option partition",
        "executor_option: expected NAME=VALUE, found 'partition'",
    ),
    # report
    "report: no folder": ("report", "Missing argument 'PATH...'."),
    "report: missing": ("report gone --output_dir {out}", "gone: no such folder"),
    "report: a file": ("report a_file --output_dir {out}", "a_file: is a file, expected a folder of results"),
    "report: no runs": ("report folder", "folder: holds no finished run (run.json, results.json or study.json)"),
    "report: interrupted": ("report cut_run", "cut_run: its run is interrupted, not finished"),
    "report: several without a place": ("report run full", "output_dir: say where a report about several folders is to be written"),
    "report: one of them without runs": (
        "report run full --output_dir {out}",
        "full: holds no finished run (run.json, results.json or study.json)",
    ),
    "report: broken record": (
        "report broken_run --output_dir {out}",
        "broken_run/run.json:1: not valid JSON (Expecting property name enclosed in double quotes at column 2)",
    ),
    "report: broken study": ("report broken_study", "broken_study/study.json: field 'cells' must be a list, found null"),
    "report: broken answers": ("report broken_answers", "broken_answers/answers.jsonl:2: field 'scores' is missing"),
    "report: output folder a file": ("report run --output_dir a_file", "output_dir: 'a_file' is a file, expected a folder"),
    "report: unknown flag": ("report run --colour red", "No such option: --colour..."),
    "few shots": (TRAIN + "--questions q.jsonl --few_shot 99", "few_shot: 99 questions to show, but there are only ..."),
    "retention missing": (TRAIN + "--retention_questions gone.jsonl", "gone.jsonl: no such file"),
    "eval: model missing": (EVAL + "--model_name_or_path ./gone", "model './gone': no such folder"),
    "eval: bidirectional": (
        EVAL + "--model_name_or_path bidirectional",
        "tokenizer: it names no mask_token, which a masked diffusion model needs",
    ),
    "eval: template refuses": (
        EVAL + "--model_name_or_path stubborn",
        "tokenizer: its chat template refuses this conversation (not today)",
    ),
    "eval: output folder a file": (EVAL + "--output_dir a_file", "output_dir: 'a_file' is a file, expected a folder"),
    "eval: adapter of nothing": (EVAL + "--model_name_or_path orphan", "model 'orphan': can't load its ..."),
    # merge
    "merge: no adapter": ("merge m --output_dir {out}", "adapter 'm': holds no adapter_config.json"),
    "merge: folder missing": ("merge gone --output_dir {out}", "adapter 'gone': holds no adapter_config.json"),
    "merge: output folder used": ("merge orphan --output_dir full", "output_dir: 'full' exists and is not an empty folder"),
    "merge: nothing to merge": ("merge --output_dir {out}", "Missing argument 'adapter'."),
    # quickstart
    "quickstart: no documents": (
        "quickstart --questions q.jsonl --output_dir {out}",
        "questions: --questions go with the --documents they are about",
    ),
    "quickstart: documents": (
        "quickstart --documents no_text.jsonl --questions q.jsonl --output_dir {out}",
        "no_text.jsonl:2: field 'text' is missing",
    ),
    "quickstart: questions": (
        "quickstart --documents d.jsonl --questions q_answer.jsonl --output_dir {out}",
        "q_answer.jsonl:2: field 'answer' is missing",
    ),
    "quickstart: seed": (
        "quickstart --seed 1000 --output_dir {out}",
        "Invalid value for '--seed': Input should be less than or equal to 999",
    ),
    "quickstart: output folder a file": ("quickstart --output_dir a_file", "output_dir: 'a_file' is a file, expected a folder"),
}


def assert_one_line(said: str, message: str) -> None:
    """The whole of stderr is "demask: " and the message, in which "..." stands for anything on the line."""
    assert said.endswith("\n")
    assert said.count("\n") == 1
    rest = said.removesuffix("\n")
    parts = f"demask: {message}".split("...")
    assert rest.startswith(parts[0])
    for part in parts:
        assert part in rest
        rest = rest[rest.index(part) + len(part) :]
    assert not rest or message.endswith("...")


@pytest.mark.parametrize("fault", BAD)
def test_a_mistake_is_one_line_before_weights_load_and_nothing_is_written(fault, inputs, tmp_path, monkeypatch, capsys):
    def refuse(*args, **kwargs):
        raise AssertionError("weights were loaded")

    for module in ("stages.train", "decoding", "models.merge"):
        monkeypatch.setattr(f"demask.{module}.load_model", refuse)
    command, message = BAD[fault]
    before = files_under(tmp_path, inputs)
    assert run(command, tmp_path / "out") == 2
    assert_one_line(capsys.readouterr().err, message)
    assert files_under(tmp_path, inputs) == before


BROKEN_WEIGHTS = {
    "no_weights": "model 'no_weights': can't load its weights (Error no file named model.safetensors...",
    "broken_weights": "model 'broken_weights': can't load its weights (Error while deserializing header...",
}


@pytest.mark.parametrize("model", BROKEN_WEIGHTS)
def test_weights_that_cannot_be_loaded(model, inputs, tmp_path, capsys):
    before = files_under(tmp_path, inputs)
    assert run(EVAL + f"--model_name_or_path {model}", tmp_path / "out") == 2
    assert_one_line(capsys.readouterr().err, BROKEN_WEIGHTS[model])
    assert files_under(tmp_path, inputs) == before
    assert run(TRAIN + f"--model_name_or_path {model}", tmp_path / "out") == 2
    assert_one_line(capsys.readouterr().err, BROKEN_WEIGHTS[model])


# -- what goes right -----------------------------------------------------------------------------------------------------------


def test_train_from_yaml_with_flags_that_override_it(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(
        "model_name_or_path: m\ndocuments: [d.jsonl]\nquestions: q.jsonl\nmax_new_tokens: 2\nmax_steps: 50\nlearning_rate: 0.5\n"
        "per_device_train_batch_size: 2\ngradient_accumulation_steps: 1\nmask_ratio: 0.5\nbf16: false\n"
    )
    assert run(f"train --config {tmp_path}/c.yaml --output_dir {{out}} --max_steps 2 --learning_rate 1e-3", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert f"mask token: {MASK} " in said
    assert "plan: 2 steps of 2 rows, 2.0 visits of each document, learning rate 0.001;" in said
    assert f"saved to {tmp_path}/out" in said
    assert "ROUGE-1 recall" in said

    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["trained_steps"] == 2
    assert (record["config"]["training"]["max_steps"], record["config"]["training"]["learning_rate"]) == (2, 1e-3)
    assert record["config"]["settings"]["mask_ratio"] == [0.5]
    answers = [answer for _, answer in read_jsonl(tmp_path / "out" / "answers.jsonl")]
    assert [answer["question"] for answer in answers] == ["Who keeps bees?", "What does Ann keep?"]  # the test split
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_eval_prints_its_table(tmp_path, capsys):
    assert run(EVAL + "--max_new_tokens 2 --split test", tmp_path / "out") == 0
    said = capsys.readouterr().out
    rows = [line.split("│")[1:5] for line in said.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[:3]] for row in rows] == [
        ["all", "forward", "1"],
        ["all", "backward", "1"],
        ["[facts]", "forward", "1"],
    ]
    assert "ROUGE-1 recall" in said
    assert f"answers and scores in {tmp_path}/out; an answer has at most 2 tokens" in said
    assert json.loads((tmp_path / "out" / "results.json").read_text())["n"] == 2


def test_merge_writes_a_plain_model(tmp_path, capsys):
    model = get_peft_model(AutoModelForCausalLM.from_pretrained("m"), LoraConfig(r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "adapter")
    llama3().save_pretrained(tmp_path / "adapter")
    assert run(f"merge {tmp_path}/adapter --output_dir {{out}}", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"merged model in {tmp_path}/out\n"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype is torch.bfloat16


def test_report_of_one_run_and_of_two(tmp_path, capsys):
    """One is written into its own folder unless told otherwise."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text('{"status": "finished"}')
        (tmp_path / name / "answers.jsonl").write_text(lines(QUESTION | ANSWERED))
    assert run(f"report {tmp_path}/one", tmp_path) == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/one/report.html\n"
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["answers.jsonl", "report.csv", "report.html", "run.json"]
    assert run(f"report {tmp_path}/one {tmp_path}/two --output_dir {{out}}", tmp_path / "out") == 0
    assert capsys.readouterr().out == f"report: {tmp_path}/out/report.html\n"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["report.csv", "report.html"]
    assert "over 2 finished runs" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["answers.jsonl", "run.json"]


@pytest.mark.parametrize("objective", ["demask", "autoregressive"])
def test_a_dry_run_prints_the_plan_and_writes_nothing(objective, inputs, tmp_path, capsys):
    before = files_under(tmp_path, inputs)
    assert run(TRAIN + f"--objective {objective} --questions q.jsonl --dry_run", tmp_path / "out") == 0
    said = capsys.readouterr().out
    assert "plan: " in said
    assert "questions: 1 validation, 2 test" in said
    assert "rough estimate: " in said
    assert files_under(tmp_path, inputs) == before


def test_the_help_of_train_lists_our_flags_and_transformers(tmp_path, capsys):
    assert run("train --help", tmp_path) == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert said.out.startswith("usage: demask train ")
    for flag in ("--documents", "--mask_ratio", "--config", "--use_peft", "--learning_rate", "--gradient_accumulation_steps", "--fsdp"):
        assert f"\n  {flag}" in said.out


@pytest.mark.parametrize("command", ["--help", ""])
def test_the_help_names_the_commands(command, tmp_path, capsys):
    assert run(command, tmp_path) == 0
    said = capsys.readouterr().out
    assert all(f"\n  {name} " in said for name in ("train", "eval", "study", "report", "merge", "quickstart"))


# -- as a program --------------------------------------------------------------------------------------------------------------


def program(*argv: str) -> subprocess.CompletedProcess:
    return subprocess.run([Path(sys.executable).with_name("demask"), *argv], capture_output=True, text=True, timeout=120)


def test_the_installed_program():
    helped = program("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "quickstart" in helped.stdout
    wrong = program("eval", "--output_dir", "out")
    assert (wrong.returncode, wrong.stdout, wrong.stderr) == (2, "", "demask: Missing option '--questions'.\n")


def test_the_command_line_imports_nothing_heavy():
    code = "import sys, demask.cli; print([name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "[]\n"
