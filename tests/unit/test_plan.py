"""What a run will do: splits, documents made to fit, the recipe and the Trainer's arguments filled in, and the estimate."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from demask.chat_format import ChatFormat
from demask.masking import MaskRatio
from demask.models.load import load_tokenizer, parameter_counts
from demask.models.mask_token import mask_id
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.recipes import recipe
from demask.settings import TrainArguments, TrainSettings
from demask.splits import assign_splits, by_document, said_of_splits
from demask.stages.plan import checkpoint_to_resume, fill_in, make_objective, make_plan
from demask.stages.prepare import fit as fit_examples
from demask.types import Document, InputError, Question, write_documents, write_questions
from tests.models import config_of, save_model
from tests.tokenizers import TOKENIZERS, chatml, llama3

CHAT = ChatFormat(llama3())


def question(number: int, document: str = "", split: str = "") -> Question:
    return Question(f"Question {number}?", ("Ann",), "forward" if number % 2 else "backward", document=document, split=split)


# -- splits ----------------------------------------------------------------------------------------------------------------------


def test_about_a_fifth_of_the_documents_is_validation_the_same_at_every_call():
    questions = [question(i, document=f"d{i // 4}") for i in range(4000)]
    split = assign_splits(questions, seed=0)
    assert split == assign_splits(questions, seed=0)
    assert [q.question for q in split] == [q.question for q in questions]
    by_document: dict[str, set[str]] = {}
    for q in split:
        by_document.setdefault(q.document, set()).add(q.split)
    assert {len(splits) for splits in by_document.values()} == {1}  # a document's questions stay together
    share = sum(splits == {"validation"} for splits in by_document.values()) / 1000
    assert abs(share - 0.2) < 0.04  # three standard deviations of 1000 draws


def test_a_documents_split_hangs_on_its_name_and_the_seed_alone():
    some = assign_splits([question(i, f"d{i}") for i in range(500)], seed=3)
    more = assign_splits([question(i, f"d{i}") for i in range(600)], seed=3)
    assert [q.split for q in some] == [q.split for q in more[:500]]
    seeds = {tuple(q.split for q in assign_splits([question(i, f"d{i}") for i in range(500)], seed)) for seed in range(5)}
    assert len(seeds) == 5


def people(n: int, each: int = 5) -> list[Question]:
    """So many questions in each direction about each of n documents."""
    directions = ("forward", "backward")
    return [Question(f"{d} {i}?", ("Ann",), d, document=f"d{p}") for p in range(n) for d in directions for i in range(each)]  # type: ignore[arg-type]


def test_few_documents_are_split_by_question():
    """60 people with five questions in each direction: one of these five is for validation, 120 in all."""
    split = assign_splits(people(60), seed=0)
    assert split == assign_splits(people(60), seed=0)
    assert split[10:20] == assign_splits(people(60)[10:20], seed=0), "whatever else is asked"
    chosen = [(q.document, q.direction) for q in split if q.split == "validation"]
    assert sorted(chosen) == sorted((f"d{p}", d) for p in range(60) for d in ("forward", "backward"))
    assert {q.question for q in split if q.split == "validation"} == {f"{d} {i}?" for d in ("forward", "backward") for i in range(5)}
    assert split != assign_splits(people(60), seed=1)


def test_a_single_question_about_a_document_is_drawn():
    split = assign_splits(people(400, each=1), seed=0)
    assert abs(sum(q.split == "validation" for q in split) - 160) < 34  # three standard deviations of 800 draws


def test_the_same_question_of_a_document_is_on_one_side():
    split = assign_splits(people(60) + people(60), seed=0)
    assert split[:600] == split[600:]


def test_which_split_it_is_is_said():
    assert said_of_splits(people(499)) == ["split: by question, a fifth of each document's is for validation (fewer than 500 documents)"]
    assert said_of_splits(people(500)) == ["split: by document, a fifth of the documents is for validation"]
    assert said_of_splits([question(0, "d", "test")]) == []
    assert by_document([question(i) for i in range(500)]), "one that names no document counts as one"
    assert not by_document([question(i, split="test") for i in range(500)] + people(60))


def test_splits_that_are_given_stay():
    given = [question(0, "d", "test"), question(1, "d", "validation"), question(2, "d", "test")]
    assert assign_splits(given, seed=0) == given


def test_questions_without_a_document_are_split_one_by_one():
    split = assign_splits([question(i) for i in range(100)], seed=0)
    assert [sum(q.split == "validation" and q.direction == d for q in split) for d in ("forward", "backward")] == [10, 10]
    split = assign_splits([question(i) for i in range(1000)], seed=0)
    assert abs(sum(q.split == "validation" for q in split) - 200) < 38  # three standard deviations of 1000 draws


# -- long documents --------------------------------------------------------------------------------------------------------------

LONG = ("The mason and the baker met on 12 May 1984, near the old mill. They were glad! " * 30).strip()
OBJECTIVES = {
    "autoregressive": Autoregressive(),
    "raw": Autoregressive(format="raw"),
    "demask": Demask(mask_id=5),
    "demask, words": Demask(mask_id=5, mask_unit="word"),
    "demask, no instruction": Demask(mask_id=5, instruction="", answer_prefix=""),
    "diffusion": Diffusion(mask_id=5),
    "diffusion, chat": Diffusion(mask_id=5, format="chat"),
}


def fit(documents, objective, chat, context, on_long) -> tuple[list[Document], list[str]]:
    lines: list[str] = []
    found = list(fit_examples(documents, objective, chat, context, on_long, lines))
    fitting = [document for document, _, _ in found]
    assert [example for _, example, _ in found] == objective.examples(fitting, chat)
    assert [size for _, _, size in found] == [objective.size(example, chat) for _, example, _ in found]
    return fitting, lines


def sizes(documents, objective, chat) -> list[int]:
    """The number of tokens of each document's collated row."""
    rows = [{**e, "example": 0, "visit": 0, "step": 0, "steps": 1, "slot": 0, "slots": 1} for e in objective.examples(documents, chat)]
    return [objective.collate([row], chat, 0)["input_ids"].shape[1] for row in rows]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("context", [160, 233, 300])
def test_split_documents_fit_with_everything_around_them(name, tokenizer, context):
    objective, chat = OBJECTIVES[name], ChatFormat(TOKENIZERS[tokenizer]())
    documents = [Document("short", "Ann keeps bees."), Document("long", LONG)]
    fitting, lines = fit(documents, objective, chat, context, "split")
    assert max(sizes(fitting, objective, chat)) <= context
    assert fitting[0] == documents[0]
    assert " ".join(part.text for part in fitting[1:]) == LONG
    assert len(lines) == 1
    assert lines[0].startswith("document 'long': ")
    # No part could be much longer: two of them would not fit in one.
    joined = [Document("", f"{a.text} {b.text}") for a, b in pairwise(fitting[1:])]
    assert not joined or min(sizes(joined, objective, chat)) > context


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_truncated_pair_fits_exactly(name):
    objective, prompt = OBJECTIVES[name], "Who met near the old mill? " * 3
    [pair], [line] = fit([Document("p", LONG, prompt)], objective, CHAT, 200, "truncate")
    assert pair.prompt == prompt
    assert LONG.startswith(pair.text)
    [size] = sizes([pair], objective, CHAT)
    assert 200 - 8 < size <= 200  # one more word would not fit
    assert "truncated to" in line


def test_a_pair_that_fits_is_left_alone_beside_a_document_that_does_not():
    # Its prompt stands in the example once, not twice like a text: 110 tokens of it fit in a context of 200.
    pair = Document("p", "Ann keeps bees.", "Who keeps bees? " * 27)
    objective = Demask(mask_id=5)
    assert 150 < sizes([pair], objective, CHAT)[0] <= 200
    fitting, lines = fit([pair, Document("long", LONG)], objective, CHAT, 200, "split")
    assert fitting[0] == pair
    assert len(lines) == 1


def test_documents_that_fit_to_the_token_are_not_touched():
    document = Document("d", "Ann is the woman who keeps bees.")
    for objective in OBJECTIVES.values():
        [size] = sizes([document], objective, CHAT)
        assert fit([document], objective, CHAT, size, "error") == ([document], [])
        with pytest.raises(InputError, match=f"^document 'd': {len(CHAT.content(document.text))} tokens, the limit is "):
            fit([document], objective, CHAT, size - 1, "error")
    assert fit([], Autoregressive(), CHAT, 10, "error") == ([], [])


def test_a_context_too_short_for_any_text_is_refused():
    with pytest.raises(InputError, match=r"in which not one character of its text fits$"):
        fit([Document("d", "Ann keeps bees.")], Demask(mask_id=5), CHAT, 20, "split")


# -- what is filled in -------------------------------------------------------------------------------------------------------------


def filled(asks: bool = False, replays: bool = False, n_documents: int = 60, **options) -> TrainArguments:
    names = TrainSettings.__dataclass_fields__
    settings = TrainSettings(**{k: v for k, v in options.items() if k in names})
    args = TrainArguments(output_dir="out", **{k: v for k, v in options.items() if k not in names})
    config = config_of("llama")
    default = recipe(settings.objective, parameter_counts(config)[0], settings.use_peft)
    steps = fill_in(args, settings, config, default, n_documents, asks, replays)
    assert steps == args.max_steps
    return args


def test_the_recipe_fills_in_what_the_user_left():
    args = filled()
    assert parameter_counts(config_of("llama"))[0] < 5e7
    assert (args.learning_rate, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (3e-4, 32, 1)
    assert args.max_steps == 244  # 130 visits of 60 documents in batches of 32, rounded up
    assert args.num_train_epochs == 1


def test_the_recipe_of_the_models_size_chooses_schedule_and_masks():
    """Measured on a model of 135 M parameters: linear to 0, half windows, a ratio an example; what the user says is kept."""
    small, plain = recipe("demask", 135_000_000, False), recipe("autoregressive", 135_000_000, False)
    assert (small.schedule, small.batch_size, dict(small.options)) == ("linear", 8, {"mask_ratio_per": "example", "mask_pattern": "mix"})
    assert (plain.schedule, dict(plain.options)) == ("linear", {})
    objective, _ = make_objective(TrainSettings(), CHAT, small)
    assert (objective.mask_ratio_per, objective.mask_pattern) == ("example", "mix")
    objective, _ = make_objective(TrainSettings(mask_pattern="independent"), CHAT, small)
    assert (objective.mask_ratio_per, objective.mask_pattern) == ("example", "independent")
    for given, expected in ((None, "linear"), ("cosine", "cosine")):
        args = TrainArguments(output_dir="out", lr_scheduler_type=given)
        fill_in(args, TrainSettings(), config_of("llama"), small, 60, False, False)
        assert args.lr_scheduler_type == expected


def test_what_the_user_sets_stays():
    args = filled(learning_rate=0.1, num_train_epochs=2, per_device_train_batch_size=4, gradient_accumulation_steps=3)
    assert (args.learning_rate, args.per_device_train_batch_size, args.gradient_accumulation_steps) == (0.1, 4, 3)
    assert args.max_steps == 10  # 120 visits, 12 rows a step
    assert filled(max_steps=7, num_train_epochs=50).max_steps == 7
    assert filled(bf16=False).bf16 is False


def test_accumulation_makes_up_the_recipes_batch():
    assert filled(per_device_train_batch_size=8).gradient_accumulation_steps == 4
    assert filled(per_device_train_batch_size=64).gradient_accumulation_steps == 1


@pytest.mark.parametrize(
    ("processes", "options", "micro", "accumulation"),
    [
        (1, {}, 24, 1),
        (4, {}, 6, 1),  # the smallest models take the whole batch at once, each device its share
        (2, {"per_device_train_batch_size": 3}, 3, 4),
        (8, {"per_device_train_batch_size": 24}, 3, 1),
        (1, {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 3}, 8, 3),
    ],
)
def test_the_batch_that_is_asked_for_is_that_of_all_processes(monkeypatch, processes, options, micro, accumulation):
    monkeypatch.setattr(TrainArguments, "world_size", processes)
    args = filled(batch_size=24, num_train_epochs=2, **options)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps, args.max_steps) == (micro, accumulation, 5)  # 120 visits


def test_a_batch_that_can_not_be_dealt_out_is_refused(monkeypatch):
    with pytest.raises(InputError, match=r"^batch_size: 24 is not 2 micro-batches of 8 rows \(gradient_accumulation_steps, per_device"):
        filled(batch_size=24, per_device_train_batch_size=8, gradient_accumulation_steps=2)
    monkeypatch.setattr(TrainArguments, "world_size", 5)
    with pytest.raises(InputError, match=r"^batch_size: 24 is not 1 micro-batches of 20 rows"):
        filled(batch_size=24)


def test_replayed_rows_take_no_visits_from_the_documents():
    # 32 rows of which round(0.25 * 32) = 8 are replayed: 24 a step for 600 visits.
    assert filled(replays=True, replay_share=0.25, num_train_epochs=10).max_steps == 25


def test_the_data_are_read_in_the_schedules_order():
    args = filled()
    assert (args.train_sampling_strategy, args.remove_unused_columns) == ("sequential", False)


def test_questions_are_asked_and_checkpoints_saved_about_ten_times():
    args = filled(asks=True, max_steps=205)
    assert (args.eval_strategy, args.eval_steps, args.save_strategy, args.save_steps) == ("steps", 20, "steps", 20)
    assert (args.load_best_model_at_end, args.metric_for_best_model, args.greater_is_better) == (True, "eval_mean", True)
    assert filled(asks=True, max_steps=205, eval_steps=50).save_steps == 50
    assert filled(asks=True, max_steps=3).eval_steps == 1


def test_without_questions_nothing_is_asked_or_selected():
    args = filled(max_steps=205)
    assert (args.eval_strategy, args.save_steps, args.load_best_model_at_end, args.metric_for_best_model) == ("no", 20, False, None)
    assert filled(max_steps=205, save_steps=5).save_steps == 5
    assert filled(asks=True, select_on="last", save_strategy="no").load_best_model_at_end is False


# -- the whole plan ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("plan") / "m")


def plan_of(model: str, tmp_path: Path, questions: list[Question] | None = None, args: dict | None = None, **settings):
    write_documents(tmp_path / "d.jsonl", [Document("a", "Ann keeps bees."), Document("b", "The mason met the baker.")])
    if questions:
        write_questions(tmp_path / "q.jsonl", questions)
        settings["questions"] = str(tmp_path / "q.jsonl")
    arguments = TrainArguments(output_dir=str(tmp_path / "out"), **{"max_steps": 4, "per_device_train_batch_size": 2, **(args or {})})
    arguments.gradient_accumulation_steps = 1
    return make_plan(TrainSettings(documents=[str(tmp_path / "d.jsonl")], model_name_or_path=model, **settings), arguments), arguments


def test_the_plans_numbers(model, tmp_path):
    plan, _ = plan_of(model, tmp_path)
    lengths = [len(CHAT.content(text)) for text in ("Ann keeps bees.", "The mason met the baker.")]
    around = len(CHAT.prompt([])) + sum(len(plan.schedule.examples[0][part]) for part in ("after", "prefix")) + 1
    numbers = plan.numbers
    assert (numbers["steps"], numbers["batch_size"], numbers["visits"]) == (4, 2, 4)
    assert numbers["tokens"] == 4 * sum(around + 2 * n for n in lengths)  # eight rows, four of each document
    assert numbers["target_tokens"] == 4 * sum(n + 1 for n in lengths)
    assert numbers["longest"] == around + 2 * max(lengths)
    # 6 operations a parameter and token, those of the (tied) head at the targets only.
    total, head = numbers["parameters"], len(llama3()) * 32
    assert numbers["flops"] == 6 * ((total - head) * numbers["tokens"] + head * numbers["target_tokens"])
    assert "mask token: <|reserved_special_token_0|> (id 401; an unused reserved token of the tokenizer)" in plan.lines
    assert any(line.startswith("data: 2 documents") and line.endswith("; no questions") for line in plan.lines)


def test_examples_are_no_longer_than_asked_for(model, tmp_path):
    """Two copies of the text, and what stands around them: with one token less than the longer document's it is split in two."""
    whole = plan_of(model, tmp_path)[0].numbers["longest"]
    assert plan_of(model, tmp_path, max_length=whole)[0].numbers["longest"] == whole
    plan, _ = plan_of(model, tmp_path, max_length=whole - 1)
    assert plan.numbers["longest"] < whole
    assert len(plan.schedule.examples) == 3
    assert any(line.startswith("document 'b': ") and line.endswith("split into 2 parts") for line in plan.lines)
    with pytest.raises(InputError, match=r"^document 'b': .* --on_long split or truncate makes it fit$"):
        plan_of(model, tmp_path, max_length=whole - 1, on_long="error")
    assert plan_of(model, tmp_path, max_length=10**6)[0].numbers["longest"] == whole, "the model's context is the limit above it"


def test_the_embedded_model_is_said_to_be_used(tmp_path):
    plan, _ = plan_of(None, tmp_path)
    assert plan.lines[0].startswith("model: the embedded one")
    assert Path(plan.base, "config.json").is_file()


def test_without_validation_questions_the_last_step_is_kept_and_said(model, tmp_path):
    plan, args = plan_of(model, tmp_path, [question(0, "a", "test")])
    assert "no validation questions: nothing is asked during training, and the last step is kept" in plan.lines
    assert (args.eval_strategy, args.load_best_model_at_end) == ("no", False)
    assert [q.split for q in plan.questions] == ["test"]
    plan, args = plan_of(model, tmp_path, [question(0, "a", "test")], select_on="test")
    assert (args.eval_strategy, args.load_best_model_at_end) == ("steps", True)


def test_replay_needs_room_in_the_batch(model, tmp_path):
    write_documents(tmp_path / "old.jsonl", [Document("o", "They were glad!")])
    replay = [str(tmp_path / "old.jsonl")]
    plan, _ = plan_of(model, tmp_path, replay=replay, replay_share=0.5)
    assert (plan.schedule.replay_slots, plan.numbers["visits"]) == (1, 2)
    with pytest.raises(InputError, match=r"^replay_share 0.9 of a batch of 2 leaves no room for the documents$"):
        plan_of(model, tmp_path, replay=replay, replay_share=0.9)


def test_a_mask_token_that_stands_in_any_text_gives_way_to_the_next(model, tmp_path):
    """Also in one that is replayed: <|reserved_special_token_0|> has id 401, the next 402."""
    write_documents(tmp_path / "old.jsonl", [Document("o", "A <|reserved_special_token_0|> here.")])
    plan, _ = plan_of(model, tmp_path, replay=[str(tmp_path / "old.jsonl")])
    assert plan.objective == Demask(mask_id=402)
    held = "an unused reserved token of the tokenizer; the documents hold <|reserved_special_token_0|>"
    assert f"mask token: <|reserved_special_token_1|> (id 402; {held})" in plan.lines
    reason = "an unused reserved token of the tokenizer"
    assert plan.numbers["mask_token"] == {"token": "<|reserved_special_token_1|>", "id": 402, "reason": reason}
    assert plan.chat.tokenizer.init_kwargs["demask_mask"] == "<|reserved_special_token_1|>"
    with pytest.raises(InputError, match=r"^document 'o': its text holds the mask token '<\|reserved_special_token_0\|>'; name another"):
        plan_of(model, tmp_path, replay=[str(tmp_path / "old.jsonl")], mask_token="<|reserved_special_token_0|>")


def test_a_resumed_run_goes_on_with_its_mask_token(model, tmp_path):
    began = {"mask_token": {"token": "<|reserved_special_token_4|>", "id": 405, "reason": "why not"}}
    write_documents(tmp_path / "d.jsonl", [Document("a", "Ann keeps bees.")])
    settings = TrainSettings(documents=[str(tmp_path / "d.jsonl")], model_name_or_path=model)
    plan = make_plan(settings, TrainArguments(output_dir=str(tmp_path / "out"), max_steps=4), None, began)
    assert (plan.objective.mask_id, plan.numbers["mask_token"]) == (405, began["mask_token"])
    settings.mask_token = "<|reserved_special_token_7|>"  # which the run then refuses, as any objective but its own
    plan = make_plan(settings, TrainArguments(output_dir=str(tmp_path / "out"), max_steps=4), None, began)
    assert plan.objective.mask_id == 408


def test_a_diffusion_model_keeps_its_mask_token(tmp_path):
    """It was trained with that one: what an automatic choice would go round is refused."""
    both_ways = save_model(tmp_path / "m", is_causal=False)
    tokenizer = llama3()
    tokenizer.mask_token = "<|reserved_special_token_0|>"
    tokenizer.save_pretrained(both_ways)
    write_documents(tmp_path / "old.jsonl", [Document("o", "A <|reserved_special_token_0|> here.")])
    with pytest.raises(InputError, match=r"^document 'o': its text holds the mask token"):
        plan_of(both_ways, tmp_path, objective="diffusion", replay=[str(tmp_path / "old.jsonl")])


def test_an_ordinary_mask_token_of_a_diffusion_model_is_recorded_and_does_not_become_special(tmp_path):
    both_ways = save_model(tmp_path / "m", arch="qwen3", is_causal=False)
    plan, _ = plan_of(both_ways, tmp_path, objective="diffusion", mask_token="[]")
    tokenizer = plan.chat.tokenizer
    ids = chatml().encode("A [] list", split_special_tokens=True)
    plan.chat.tokenizer.save_pretrained(tmp_path / "saved")
    for one in (tokenizer, load_tokenizer(str(tmp_path / "saved"))):
        assert one.mask_token is None
        assert one.encode("A [] list", split_special_tokens=True) == ids
        assert mask_id(one) == plan.objective.mask_id == chatml().convert_tokens_to_ids("[]")
    # A later run on what was saved need not name it again.
    tokenizer.save_pretrained(both_ways)
    again, _ = plan_of(both_ways, tmp_path, objective="diffusion")
    assert again.objective == plan.objective
    assert again.numbers["mask_token"]["reason"] == "recorded by an earlier run"


def test_checkpoint_to_resume(tmp_path):
    def chosen(wish: str | None, newest: Path | None = None) -> str | None:
        return checkpoint_to_resume(TrainArguments(output_dir="out", resume_from_checkpoint=wish), newest)

    assert chosen(None, tmp_path) is None
    assert chosen("false", tmp_path) is None
    assert chosen("true", tmp_path) == str(tmp_path)
    assert chosen("True") is None
    (tmp_path / "trainer_state.json").write_text("{}")
    assert chosen(str(tmp_path)) == str(tmp_path)
    (tmp_path / "trainer_state.json").unlink()
    with pytest.raises(InputError, match=r"is not a complete checkpoint \(no trainer_state.json\)$"):
        chosen(str(tmp_path))


# -- objectives and families -------------------------------------------------------------------------------------------------------


def test_every_objective_has_its_own_defaults(model, tmp_path):
    assert plan_of(model, tmp_path)[0].objective == Demask(mask_id=401, mask_ratio=MaskRatio(0.05, 0.95), mask_ratio_per="batch")
    assert plan_of(model, tmp_path, objective="autoregressive")[0].objective == Autoregressive(format="chat")
    diffusion = plan_of(model, tmp_path, objective="diffusion", bidirectional=True)[0].objective
    assert diffusion == Diffusion(mask_id=401, format="raw", mask_ratio=MaskRatio(0, 1), mask_ratio_per="stratified")
    given = {"mask_ratio": [0.5], "mask_ratio_per": "example", "format": "chat", "loss_weights": "uniform", "eos_padding": 3}
    diffusion = plan_of(model, tmp_path, objective="diffusion", bidirectional=True, **given)[0].objective
    assert diffusion == Diffusion(401, "chat", "Tell me a fact.", MaskRatio(0.5, 0.5), "example", loss_weights="uniform", eos_padding=3)
    with pytest.raises(InputError, match=r"^mask_ratio_per: must be one of batch, example, found 'stratified'$"):
        plan_of(model, tmp_path, mask_ratio_per="stratified")


def test_a_model_becomes_bidirectional_with_its_logits_shifted_and_its_mask_token_named(model, tmp_path):
    plan, _ = plan_of(model, tmp_path, objective="diffusion", bidirectional=True)
    assert (plan.config.is_causal, plan.config.shifted_logits) == (False, True)
    assert plan.chat.tokenizer.mask_token_id == 401


def test_rehearsed_rows_of_diffusion_are_masked_too(tmp_path):
    both_ways = save_model(tmp_path / "m", is_causal=False)
    tokenizer = llama3()
    tokenizer.mask_token = "<|reserved_special_token_0|>"
    tokenizer.save_pretrained(both_ways)
    write_documents(tmp_path / "old.jsonl", [Document("o", "They were glad!", prompt="Who was?")])
    replay = [str(tmp_path / "old.jsonl")]
    plan, _ = plan_of(both_ways, tmp_path, objective="diffusion", replay=replay, replay_share=0.5, eos_padding=2)
    assert plan.schedule.replay == Diffusion(401, eos_padding=2).examples([Document("o", "They were glad!", prompt="Who was?")], CHAT)
    # Four rows of the pair, with one more end on average; a raw document has none.
    texts = [len(CHAT.raw_example(CHAT.content(text))[0]) for text in ("Ann keeps bees.", "The mason met the baker.")]
    pair = len(CHAT.example(CHAT.content("Who was?"), CHAT.content("They were glad!"))[0])
    assert plan.numbers["tokens"] == 2 * sum(texts) + 4 * (pair + 1)


@pytest.mark.parametrize(
    ("objective", "settings", "message"),
    [
        (
            "autoregressive",
            {"mask_pattern": "window"},
            "mask_pattern: has no place in the objective 'autoregressive' (only in demask, diffusion)",
        ),
        ("demask", {"format": "raw"}, "format: has no place in the objective 'demask' (only in autoregressive, diffusion, meap, reverse)"),
        ("demask", {"eos_padding": 3}, "eos_padding: has no place in the objective 'demask' (only in diffusion)"),
        ("diffusion", {"corruption": "random"}, "corruption: has no place in the objective 'diffusion' (only in demask)"),
    ],
)
def test_settings_of_other_objectives_are_refused(objective, settings, message, model, tmp_path):
    with pytest.raises(InputError) as caught:
        plan_of(model, tmp_path, objective=objective, bidirectional=objective == "diffusion", **settings)
    assert str(caught.value) == message
