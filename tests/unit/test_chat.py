"""A conversation: what the models are given, what is printed where, and how it ends."""

from __future__ import annotations

import io
import json
import shutil
import unicodedata
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from rich.console import Console

from demask import chat as module
from demask.chat import base_of, chat
from demask.chat_format import ChatFormat
from demask.cli import main
from demask.decoding import Sampling, generate
from demask.models.load import load_model
from demask.types import InputError
from tests.models import config_of, save_model
from tests.tokenizers import CHATML_TEMPLATE, llama3

ONE = "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 26 Jul 2024\n\n<|eot_id|>"
HEARD = "The conversation is remembered.\n"


def user(text: str) -> str:
    return f"<|start_header_id|>user<|end_header_id|>\n\n{text}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """`causal` and `diffusion`, random; tokenizer and configuration alone of `tuned` and `adapter` (from causal) and of other folders."""
    folder = tmp_path_factory.mktemp("models")
    save_model(folder / "causal")
    save_model(folder / "diffusion", is_causal=False)
    tokenizer = shutil.copytree(folder / "causal", folder / "tuned") and llama3()
    tokenizer.save_pretrained(folder / "adapter")
    masked = type(tokenizer).from_pretrained(folder / "causal")
    masked.mask_token = "<|reserved_special_token_0|>"
    masked.save_pretrained(folder / "diffusion")
    LoraConfig(base_model_name_or_path="causal").save_pretrained(folder / "adapter")
    for name, settings in {
        "tuned": {"model_name_or_path": "causal"},
        "from_tiny": {"model_name_or_path": None, "objective": "demask"},
        "from_diffusion": {"model_name_or_path": None, "objective": "diffusion", "bidirectional": False},
        "adapted": {"model_name_or_path": None, "objective": "diffusion", "bidirectional": True},
        "quickstart": None,
    }.items():
        shutil.copytree(folder / "causal", folder / name, dirs_exist_ok=True)
        config = {"quickstart": {}} if settings is None else {"settings": settings}
        (folder / name / "run.json").write_text(json.dumps({"config": config}))
    shutil.copytree(folder / "causal", folder / "short")
    config_of("llama", max_position_embeddings=120).save_pretrained(folder / "short")
    shutil.copytree(folder / "causal", folder / "single")
    refusing = "{% if messages | length > 2 %}{{ raise_exception('one at a time') }}{% endif %}"
    (folder / "single" / "chat_template.jinja").write_text(refusing + CHATML_TEMPLATE.replace("im_end", "eot_id"))
    return folder


@pytest.fixture(autouse=True)
def _among_the_models(models, monkeypatch):
    monkeypatch.chdir(models)


@pytest.fixture
def prompts(monkeypatch) -> list[str]:
    """What would be generated from, as text; every answer is then "Ann keeps bees.". No weights are loaded."""
    given: list[str] = []

    def answer(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
        given.extend(tokenizer.decode(prompt) for prompt in prompts)
        return ["Ann keeps bees."]

    monkeypatch.setattr(module, "generate", answer)
    monkeypatch.setattr(module, "load_model", lambda folder, dtype: torch.nn.Identity())
    return given


class Keyboard(io.StringIO):
    """Typed at a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch):
    """Makes stdout a terminal of so many columns, without colours and what moves, at which something is typed."""

    def make(columns: int, typed: str) -> None:
        plain = partial(Console, width=columns, height=25, force_terminal=True, _environ={"TERM": "dumb"})
        monkeypatch.setattr(module, "Console", plain)
        monkeypatch.setattr("sys.stdin", Keyboard(typed))

    return make


@pytest.fixture
def pipe(monkeypatch):
    return lambda text: monkeypatch.setattr("sys.stdin", io.StringIO(text))


def said(capsys) -> list[str]:
    """The lines on stdout without the spaces a table ends them with."""
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


# -- what the models are given ---------------------------------------------------------------------------------------------------------


def test_a_question_comes_with_the_exchanges_before_it(prompts, pipe, capsys):
    pipe("Who keeps bees?\n\n   \n  And who else? \n<|eot_id|>\n")
    chat(["causal"])
    first = ONE + user("Who keeps bees?")
    second = first + "Ann keeps bees.<|eot_id|>" + user("And who else?")
    assert prompts == [first, second, second + "Ann keeps bees.<|eot_id|>" + user("<|eot_id|>")]
    printed = capsys.readouterr()
    assert printed.out == "Ann keeps bees.\n" * 3
    assert printed.err == "causal (causal)\n" + HEARD


def test_new_forgets(prompts, pipe, capsys):
    pipe("Who keeps bees?\n/new\nAnd who else?\n")
    chat(["causal"])
    assert prompts == [ONE + user("Who keeps bees?"), ONE + user("And who else?")]
    assert capsys.readouterr().err == "causal (causal)\n" + HEARD + "A new conversation.\n"


def test_quit_ends_and_other_commands_are_none(prompts, pipe, capsys):
    pipe("/help\n/new or old?\n/quit\nWho keeps bees?\n")
    chat(["causal"])
    assert prompts == [ONE + user("/new or old?")]
    assert "/help is no command; there are /new and /quit\n" in capsys.readouterr().err


def test_without_history(prompts, pipe, capsys):
    pipe("Who?\nWho?\n")
    chat(["causal"], history=False, system_prompt="Be brief.")
    assert prompts == [ONE.replace("2024\n\n", "2024\n\nBe brief.") + user("Who?")] * 2
    assert capsys.readouterr().err == "causal (causal)\nEvery question stands by itself.\n"


@pytest.mark.parametrize("name", [None, "tiny/causal", "from_tiny", "from_diffusion"])
def test_the_embedded_models_and_theirs_are_asked_single_questions(name, prompts, pipe, capsys):
    asked = "Who keeps bees?\nAnd who else?\n"
    pipe(asked)
    chat([name] if name else [])
    why = "Every question stands by itself: the embedded models know single ones only (--history gives them the earlier ones too).\n"
    assert capsys.readouterr().err == f"{name or 'tiny/causal'} (causal)\n{why}"
    assert "keeps bees" not in prompts[1]
    pipe(asked)
    chat([name] if name else [], history=True)
    assert capsys.readouterr().err.endswith(HEARD)
    assert "keeps bees" in prompts[3]


def test_a_template_of_single_exchanges(prompts, pipe, capsys):
    pipe("Who?\nWho?\n")
    chat(["single"], history=True)
    assert len(set(prompts)) == 1
    reason = "single: tokenizer: its chat template refuses this conversation (one at a time)"
    assert capsys.readouterr().err == f"single (causal)\nEvery question stands by itself ({reason}).\n"


def test_the_oldest_exchanges_make_room(prompts, pipe, capsys):
    """A context of 120 tokens, of which 20 are for the answer."""
    chat_format = ChatFormat(llama3())
    many, too_many = " ".join(["Who?"] * 20), " ".join(["Who?"] * 300)
    length = len(chat_format.prompt(chat_format.content(too_many)))
    pipe(f"Who keeps bees?\nTell me a fact.\n{many}\nWho keeps bees?\n{too_many}\nWho met?\n")
    chat(["short"], max_new_tokens=20)
    first = ONE + user("Who keeps bees?")
    after = "Ann keeps bees.<|eot_id|>"
    # The question that is too long takes no exchange away.
    expected = [first, first + after + user("Tell me a fact."), ONE + user(many), first, first + after + user("Who met?")]
    assert prompts == expected
    assert [len(llama3().encode(prompt, add_special_tokens=False)) for prompt in prompts[:4]] == [42, 63, 97, 42]
    assert capsys.readouterr().err.splitlines()[2:] == [
        "(short forgets the 2 oldest exchanges: no room)",
        "(short forgets the oldest exchange: no room)",
        f"too long: the question's {length} tokens and 20 for its answer (max_new_tokens) exceed the context of 120 of 'short'",
    ]


def test_no_room_for_any_question(models):
    with pytest.raises(InputError) as error:
        chat(["short"], max_new_tokens=110)
    around = len(ChatFormat(llama3()).prompt([]))
    reason = f"the question's {around} tokens and 110 for its answer (max_new_tokens) exceed the context of 120 of 'short'"
    assert str(error.value) == f"too long: {reason}"


# -- answers ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["causal", "diffusion"])
def test_answers_of_either_family(name, pipe, capsys):
    """Question by question as `generate` answers the whole conversation."""
    model, tokenizer = load_model(name), llama3()
    tokenizer = type(tokenizer).from_pretrained(name)
    chat_format = ChatFormat(tokenizer)
    expected, exchanges = [], []
    for question in ("Who keeps bees?", "And who else?"):
        prompt = chat_format.conversation(exchanges, chat_format.content(question))
        [answer] = generate(model, tokenizer, [prompt], stop_ids=chat_format.stop_ids(), max_new_tokens=6)
        exchanges.append((chat_format.content(question), chat_format.content(answer)))
        expected.append("".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in answer))
    pipe("Who keeps bees?\nAnd who else?\n")
    chat([name], max_new_tokens=6)
    printed = capsys.readouterr()
    assert printed.out == "".join(f"{answer}\n" for answer in expected)
    assert len(set(expected)) == 2
    assert printed.err.endswith(f"{name} ({name})\n" + HEARD)


def test_both_families_side_by_side(pipe, capsys):
    """The sampler's options are the diffusion model's; drawn from the seed, an answer comes again."""

    def answers(seed: int) -> list[str]:
        pipe("Who?\nWho?\n")
        chat(["causal", "diffusion"], history=False, max_new_tokens=6, sampling=Sampling(temperature=1.0, seed=seed))
        return capsys.readouterr().out.splitlines()

    lines = answers(3)
    assert [line.split(":")[0] for line in lines] == ["causal", "diffusion"] * 2
    assert lines[:2] == lines[2:]
    assert answers(3) == lines
    others = answers(4)
    assert others[0] == lines[0]
    assert others[1] != lines[1]


def test_the_sampling_is_said(prompts, pipe, capsys):
    pipe("")
    chat(["diffusion"], sampling=Sampling(steps=4, prefix_cache=True))
    assert "sampling: block_length 32, steps 4, remasking low_confidence, prefix_cache True, seed 0\n" in capsys.readouterr().err


# -- comparing -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tuned", "adapter"])
def test_compare_finds_the_base(name, prompts, pipe, capsys):
    pipe("Who?\n")
    chat([name], compare=True)
    assert capsys.readouterr().out == f"causal: Ann keeps bees.\n{name}: Ann keeps bees.\n"


def test_bases_that_are_embedded():
    assert [base_of(name) for name in ("from_tiny", "from_diffusion", "adapted")] == ["tiny/causal", "tiny/diffusion", "tiny/causal"]


@pytest.mark.parametrize("name", ["causal", "quickstart", "someone/model"])
def test_base_that_is_not_known(name):
    with pytest.raises(InputError) as error:
        base_of(name)
    assert str(error.value) == f"compare: '{name}' does not say what it was trained from; name both models with --model_name_or_path"


# -- on a terminal ---------------------------------------------------------------------------------------------------------------------


def test_side_by_side_where_there_is_room(prompts, terminal, capsys):
    terminal(64, "Who?\n/quit\n")
    chat(["causal", "tuned"])
    assert said(capsys) == [
        "causal (causal), tuned (causal)",
        HEARD.strip(),
        "/quit or Ctrl-D ends, /new forgets what was said",
        "> " + " causal".ljust(32) + "  tuned",
        "─" * 64,
        " Ann keeps bees.".ljust(32) + "  Ann keeps bees.",
        "",
        ">",
    ]


def test_one_under_the_other_where_there_is_not(prompts, terminal, capsys):
    terminal(50, "Who?\n")
    chat(["causal", "tuned"])
    assert said(capsys)[3:] == ["> causal", "Ann keeps bees.", "tuned", "Ann keeps bees.", "", ">"]


def test_answers_are_plain_text(prompts, terminal, monkeypatch, capsys):
    answers = iter(["[red]Ann[/red] 12 [/]", "", "\x1b[2JAnn\x07"])
    monkeypatch.setattr(module, "generate", lambda *args, **options: [next(answers)])
    terminal(50, "Who?\nWho?\nWho?\n/quit\n")
    chat(["causal"])
    assert said(capsys)[3:] == [
        "> [red]Ann[/red] 12 [/]",
        "",
        "> (no answer)",
        "",
        "> \N{REPLACEMENT CHARACTER}[2JAnn\N{REPLACEMENT CHARACTER}",
        "",
        ">",
    ]


def test_ctrl_c_stops_an_answer(prompts, terminal, pipe, monkeypatch, capsys):
    """At a terminal the conversation goes on as if the question had not been asked; a pipe ends."""
    answer = module.generate

    def interrupted(model: Any, tokenizer: Any, prompts: list[list[int]], **options: Any) -> list[str]:
        if "else" in tokenizer.decode(prompts[0]):
            raise KeyboardInterrupt
        return answer(model, tokenizer, prompts, **options)

    monkeypatch.setattr(module, "generate", interrupted)
    asked = "Who keeps bees?\nAnd who else?\nWho met?\n"
    terminal(80, asked)
    chat(["causal"])
    assert said(capsys)[3:] == ["> Ann keeps bees.", "", "> (stopped)", "> Ann keeps bees.", "", ">"]
    assert prompts[1] == prompts[0] + "Ann keeps bees.<|eot_id|>" + user("Who met?")
    pipe(asked)
    with pytest.raises(KeyboardInterrupt):
        chat(["causal"])


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["chat", *argv])
    return caught.value.code


def test_ctrl_c_at_the_prompt_ends(prompts, terminal, monkeypatch):
    def interrupt(prompt: str) -> str:
        raise KeyboardInterrupt

    terminal(80, "")
    monkeypatch.setattr("builtins.input", interrupt)
    assert run("--model_name_or_path", "causal") == 130


# -- the command -----------------------------------------------------------------------------------------------------------------------


def test_the_command(prompts, pipe, capsys):
    pipe("Who?\nWho?\n")
    assert run("--model_name_or_path", "tuned", "--compare", "--no-history", "--max_new_tokens", "9", "--system_prompt", "Be brief.") == 0
    assert capsys.readouterr().out == "causal: Ann keeps bees.\ntuned: Ann keeps bees.\n" * 2
    assert len(prompts) == 4
    assert len(set(prompts)) == 1
    assert "Be brief." in prompts[0]


def test_the_flags_of_the_sampler(monkeypatch, pipe):
    given = {}
    monkeypatch.setattr(module, "chat", lambda models, **options: given.update(options))
    flags = "--block_length 8 --factor 1.5 --temperature 0.5 --guidance_scale 2 --prefix_cache --seed 3"
    assert run(*flags.split()) == 0
    assert given["sampling"] == Sampling(block_length=8, factor=1.5, temperature=0.5, guidance_scale=2.0, prefix_cache=True, seed=3)
    assert run("--threshold", "0.9", "--remasking", "low_confidence") == 0
    assert given["sampling"] == Sampling(threshold=0.9)
    assert run() == 0
    assert given["sampling"] is None


BAD = {
    "--model_name_or_path ./gone": "model './gone': no such folder",
    "--compare": "compare: the embedded model was trained from no other; name a trained one with --model_name_or_path",
    "--model_name_or_path causal --steps 4": "steps: is for masked diffusion models, and this checkpoint writes left to right",
    "--model_name_or_path tuned --compare --seed 4": "seed: is for masked diffusion models, and this checkpoint writes left to right",
    "--model_name_or_path diffusion --steps 0": "steps must be at least 1, found 0",
    "--model_name_or_path diffusion --steps 4 --factor 1": "steps, threshold and factor exclude each other",
    "--model_name_or_path diffusion --remasking never": "remasking: must be one of low_confidence, random, found 'never'",
    "--model_name_or_path causal --max_new_tokens 0": "Invalid value for '--max_new_tokens': Input should be greater than or equal to 1",
}


@pytest.mark.parametrize("flags", BAD)
def test_a_mistake_is_one_line_before_weights_load(flags, monkeypatch, pipe, capsys):
    def refuse(*args: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(module, "load_model", refuse)
    pipe("Who?\n")
    assert run(*flags.split()) == 2
    assert capsys.readouterr() == ("", f"demask: {BAD[flags]}\n")


def test_input_that_is_not_utf8(prompts, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff?\n"), encoding="utf-8"))
    assert run("--model_name_or_path", "causal") == 2
    assert capsys.readouterr().err.splitlines()[-1] == "demask: stdin: not UTF-8 (byte 0xff)"
