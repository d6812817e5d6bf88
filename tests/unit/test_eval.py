"""Questions put to a model: the prompts, the shots, and what is written about the answers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from demask.chat_format import ChatFormat
from demask.decoding import Sampling
from demask.models.load import load_model
from demask.scoring import score
from demask.stages import eval as stage
from demask.stages.eval import answer_limit, ask, choose_shots, evaluate, turns, with_shots
from demask.types import Document, InputError, Question, question_record, read_jsonl, write_questions
from tests.models import config_of, make_model, save_model
from tests.tokenizers import llama3

CHAT = ChatFormat(llama3())
FACTS = [("Ann", "bees", "a"), ("The mason", "the old mill", "b"), ("The baker", "12 May 1984", "c"), ("The woman", "a list", "d")]


def two(who: str, what: str, document: str, split: str = "") -> list[Question]:
    """A question in each direction about a document."""
    return [
        Question(f"What has {who}?", (what,), "forward", "facts", document, split),
        Question(f"Who has {what}?", (who, who.lower()), "backward", "facts", document, split),
    ]


QUESTIONS = [q for fact in FACTS for q in two(*fact)]
SPLIT = [q for i, fact in enumerate(FACTS) for q in two(*fact, split="validation" if i < 2 else "test")]


@pytest.fixture(scope="module")
def model() -> str:
    return make_model("llama")


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("eval") / "m")


# -- shots ---------------------------------------------------------------------------------------------------------------------------


def test_a_question_alone_is_the_whole_turn():
    assert with_shots(QUESTIONS[0], []) == "What has Ann?"


def test_the_prompt_with_shots_written_out():
    shots = [QUESTIONS[2], QUESTIONS[5]]
    assert with_shots(QUESTIONS[0], shots) == (
        "Question: What has The mason?\nAnswer: the old mill\n\nQuestion: Who has 12 May 1984?\nAnswer: The baker\n\n"
        "Question: What has Ann?\nAnswer:"
    )


def test_a_shot_about_the_same_document_is_not_shown():
    assert with_shots(QUESTIONS[0], [QUESTIONS[1]]) == "What has Ann?"
    assert with_shots(QUESTIONS[0], [QUESTIONS[1], QUESTIONS[2]]) == with_shots(QUESTIONS[0], [QUESTIONS[2]])
    unnamed = Question("Who?", ("Ann",), "backward")
    assert "Answer: Ann" in with_shots(Question("What?", ("bees",), "forward"), [unnamed])


@pytest.mark.parametrize("n", range(1, 8))
def test_shots_are_of_both_directions_in_turn(n):
    shots, rest = choose_shots(QUESTIONS, n, seed=0)
    assert [shot.direction for shot in shots] == (["backward", "forward"] * 4)[:n]
    assert sorted([*shots, *rest], key=QUESTIONS.index) == QUESTIONS
    assert rest == [q for q in QUESTIONS if q not in shots]  # in their order


def test_shots_hang_on_the_seed_alone():
    assert choose_shots(QUESTIONS, 2, seed=1) == choose_shots(QUESTIONS, 2, seed=1)
    assert len({str(choose_shots(QUESTIONS, 2, seed)[0]) for seed in range(8)}) > 1


def test_shots_come_from_the_validation_questions_where_there_are_some():
    for seed in range(5):
        shots, _ = choose_shots(SPLIT, 3, seed)
        assert {shot.split for shot in shots} == {"validation"}


def test_one_direction_runs_out_before_the_other():
    questions = [*QUESTIONS[:2], QUESTIONS[3], QUESTIONS[5]]
    shots, rest = choose_shots(questions, 3, seed=0)
    assert [shot.direction for shot in shots] == ["backward", "forward", "backward"]
    assert len(rest) == 1


def test_more_shots_than_there_are_to_choose_from():
    with pytest.raises(InputError, match=r"^few_shot: 5 questions to show, but there are only 4 to choose from$"):
        choose_shots(SPLIT, 5, seed=0)


# -- asking --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [2, 3, 64])
def test_answers_are_those_of_one_question_at_a_time_in_the_questions_order(model, batch_size):
    alone = [ask(model, CHAT, [q], max_new_tokens=8)[0] for q in QUESTIONS]
    assert len({answer.prediction for answer in alone}) > 1
    assert ask(model, CHAT, QUESTIONS, max_new_tokens=8, batch_size=batch_size) == alone
    assert [answer.question for answer in alone] == QUESTIONS


def test_each_answer_is_scored_against_its_own_golds(monkeypatch, model):
    monkeypatch.setattr(stage, "generate", lambda *args, **kwargs: ["It is the bees.", "ann!"])
    answers = ask(model, CHAT, QUESTIONS[:2])
    assert [answer.prediction for answer in answers] == ["It is the bees.", "ann!"]
    assert answers[0].scores == score("It is the bees.", ("bees",)) | {"right": 1.0}
    assert answers[0].scores["contains"] == 1.0
    assert answers[1].scores["exact_match"] == 1.0


def prompts_of(monkeypatch, **options) -> list[str]:
    """The prompts, as text, that `evaluate` would put to a model."""
    seen: list[str] = []

    def generate(model, tokenizer, prompts, **kwargs):
        seen.extend(tokenizer.decode(prompt) for prompt in prompts)
        return ["bees"] * len(prompts)

    monkeypatch.setattr(stage, "generate", generate)
    evaluate(options.pop("model"), options.pop("questions"), options.pop("out"), quiet=True, **options)
    return seen


def test_few_shot_prompts_through_the_template(monkeypatch, saved, tmp_path):
    prompts = prompts_of(monkeypatch, model=saved, questions=SPLIT, out=tmp_path, few_shot=2, split="test", seed=4)
    shots, _ = choose_shots(SPLIT, 2, seed=4)
    assert {shot.split for shot in shots} == {"validation"}
    asked = [q for q in SPLIT if q.split == "test"]
    assert prompts == [CHAT.tokenizer.decode(CHAT.prompt(CHAT.content(with_shots(q, shots)))) for q in asked]
    assert f"Answer: {shots[0].answers[0]}\n" in prompts[0]
    assert prompts[0].rstrip("\n").endswith("Answer:<|eot_id|><|start_header_id|>assistant<|end_header_id|>")


def test_a_system_prompt_is_in_every_prompt(monkeypatch, saved, tmp_path):
    prompts = prompts_of(monkeypatch, model=saved, questions=QUESTIONS, out=tmp_path, system_prompt="Be brief.")
    assert all("Be brief.<|eot_id|>" in prompt for prompt in prompts)


# -- how long an answer may be -------------------------------------------------------------------------------------------------------


def test_the_longest_answer_is_three_times_the_longest_right_one() -> None:
    """ "the old mill and the baker met" is t|he|old|mill|and|the|baker|met: 24 tokens, whatever the words of the question."""
    causal, diffusion = config_of("llama"), config_of("llama", is_causal=False)
    questions = [Question("Who met whom, and where? " * 9, ("a", "the old mill and the baker met"), "forward")]
    assert answer_limit(None, questions, CHAT, causal) == 24
    assert answer_limit(None, QUESTIONS[:1], CHAT, causal) == 16, "of three tokens nine would be few"
    assert answer_limit(None, [], CHAT, causal) == 16
    assert answer_limit(7, questions, CHAT, causal) == answer_limit(7, questions, CHAT, diffusion) == 7, "what is given"


def test_a_canvas_is_made_of_whole_blocks() -> None:
    diffusion = config_of("llama", is_causal=False)
    questions = [Question("What?", ("a",), "forward")]
    assert answer_limit(None, questions, CHAT, diffusion) == 32, "a block by default"
    for block, expected in ((1, 16), (4, 16), (5, 20), (16, 16), (24, 24)):
        assert answer_limit(None, questions, CHAT, diffusion, Sampling(block_length=block)) == expected
    assert answer_limit(None, questions, CHAT, config_of("llama"), Sampling(block_length=24)) == 16, "a causal model has no canvas"


# -- what is written -----------------------------------------------------------------------------------------------------------------


def test_the_answers_and_results_that_are_written(saved, tmp_path):
    write_questions(tmp_path / "q.jsonl", SPLIT)
    returned = evaluate(saved, tmp_path / "q.jsonl", tmp_path / "out", max_new_tokens=6, batch_size=3, quiet=True)

    expected = ask(load_model(saved), CHAT, SPLIT, max_new_tokens=6)
    written = [record for _, record in read_jsonl(tmp_path / "out" / "answers.jsonl")]
    assert written == [question_record(a.question) | {"prediction": a.prediction, "scores": a.scores} for a in expected]

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results == returned
    assert results["n"] == 8
    assert {direction: cell["n"] for direction, cell in results["by_direction"].items()} == {"forward": 4, "backward": 4}
    assert results["by_direction"]["forward"]["documents"] == 4
    assert set(results["by_split"]) == {"validation", "test"}
    recalls = [a.scores["rouge1_recall"] for a in expected if a.question.direction == "backward"]
    assert results["by_direction"]["backward"]["rouge1_recall"]["mean"] == pytest.approx(sum(recalls) / 4)
    assert results["settings"] == {
        "model": saved,
        "few_shot": 0,
        "split": None,
        "seed": 0,
        "max_new_tokens": 6,
        "dtype": "float32",
        "backend": "transformers",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["answers.jsonl", "results.json"]


def test_only_the_split_asked_for_is_asked(monkeypatch, saved, tmp_path):
    assert len(prompts_of(monkeypatch, model=saved, questions=SPLIT, out=tmp_path, split="validation")) == 4


def test_weights_are_read_in_fp32_unless_told_otherwise(monkeypatch, saved, tmp_path):
    seen = []

    def generate(model, tokenizer, prompts, **kwargs):
        seen.append(model.dtype)
        return [""] * len(prompts)

    monkeypatch.setattr(stage, "generate", generate)
    evaluate(saved, QUESTIONS, tmp_path, quiet=True)
    evaluate(saved, QUESTIONS, tmp_path, dtype=torch.bfloat16, quiet=True)
    assert seen == [torch.float32, torch.bfloat16]


def refused(monkeypatch, model: str, questions, out: Path, **options) -> str:
    """The message of the InputError, which must come before weights load and leave nothing behind."""

    def load(*args, **kwargs):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(stage, "load", load)
    with pytest.raises(InputError) as caught:
        evaluate(model, questions, out, quiet=True, **options)
    assert not out.exists()
    return str(caught.value)


def test_refusals_before_weights_load(monkeypatch, saved, tmp_path):
    out = tmp_path / "out"
    validation = [replace(question, split="validation") for question in QUESTIONS]
    assert refused(monkeypatch, saved, validation, out, split="test").endswith("no question of the split 'test'")
    assert refused(monkeypatch, saved, [], out) == "questions: there are none"
    assert refused(monkeypatch, saved, QUESTIONS, out, max_new_tokens=10**6).endswith("(max_new_tokens, few_shot, context_size)")
    assert refused(monkeypatch, saved, SPLIT, out, split="train") == "split: must be one of validation, test, found 'train'"
    assert refused(monkeypatch, saved, QUESTIONS, out, few_shot=8) == "few_shot: all questions are shown, none is left to ask"
    assert (
        refused(monkeypatch, saved, SPLIT, out, few_shot=4, split="validation") == "few_shot: all questions are shown, none is left to ask"
    )
    config_of("llama", is_causal=False).save_pretrained(tmp_path / "both_ways")
    llama3().save_pretrained(tmp_path / "both_ways")
    assert (
        refused(monkeypatch, str(tmp_path / "both_ways"), QUESTIONS, out)
        == "tokenizer: it names no mask_token, which a masked diffusion model needs"
    )


# -- context -------------------------------------------------------------------------------------------------------------------------


def test_documents_stand_before_shots_and_question():
    shown = [[Document("a", "Ann has bees.")], [Document("b", "Bo has cats."), Document("c", "Cy sings.")]]
    assert turns(QUESTIONS[:2], [], shown) == [
        "Ann has bees.\n\nWhat has Ann?",
        "Bo has cats.\n\nCy sings.\n\nWho has bees?",
    ]
    assert turns(QUESTIONS[:1], [QUESTIONS[2]], shown[:1]) == [f"Ann has bees.\n\n{with_shots(QUESTIONS[0], [QUESTIONS[2]])}"]
    assert turns(QUESTIONS[:1]) == ["What has Ann?"]


def test_what_is_shown_is_in_the_prompt(model, monkeypatch):
    """The prompts that reach the decoder are those of the turns."""
    prompts = []
    monkeypatch.setattr(stage, "generate", lambda model, tokenizer, given, **options: prompts.extend(given) or ["x"] * len(given))
    ask(model, CHAT, QUESTIONS[:1], shown=[[Document("a", "Ann has bees.")]])
    assert prompts == [CHAT.prompt(CHAT.content("Ann has bees.\n\nWhat has Ann?"))]


def test_results_say_what_was_shown(saved, tmp_path):
    documents = [Document(document, f"{who} has {what}.") for who, what, document in FACTS]
    options = {"max_new_tokens": 2, "quiet": True, "documents": documents}
    results = evaluate(saved, QUESTIONS, tmp_path / "right", context="document", **options)
    assert results["settings"]["context"] == "document"
    results = evaluate(saved, QUESTIONS, tmp_path / "found", context="bm25", context_size=1, **options)
    assert {name: results["settings"][name] for name in ("context", "context_size", "recall")} == {
        "context": "bm25",
        "context_size": 1,
        "recall": 1.0,
    }
    assert "context" not in evaluate(saved, QUESTIONS, tmp_path / "closed", **options)["settings"]


def test_a_context_that_does_not_fit_is_refused(monkeypatch, saved, tmp_path):
    long = [Document(document, "Ann keeps bees. " * 300) for _, _, document in FACTS]
    message = refused(monkeypatch, saved, QUESTIONS, tmp_path / "out", documents=long, context="document")
    assert message.endswith("exceed the model's context of 512 (max_new_tokens, few_shot, context_size)")
