"""Which tokens each objective shows and which it trains on, id by id, against expectations written by hand."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from demask.batching import pad_right
from demask.chat_format import IGNORE, ChatFormat
from demask.masking import MaskRatio
from demask.objectives import OBJECTIVES
from demask.objectives.autoregressive import Autoregressive
from demask.objectives.demask import Demask
from demask.types import Document
from tests.tokenizers import TOKENIZERS, base, chatml, gemma, llama3, mistral

FACT = Document("1", "Ann keeps bees.")
PAIR = Document("2", "Ann keeps bees.", prompt="Who keeps bees?")
LONG = Document("3", "The mason and the baker met on 12 May 1984, near the old mill.\nThey were glad! The woman is called Ann.")
TOKENIZER_AND_MASK = {
    "llama3": "<|reserved_special_token_0|>",
    "chatml": "[]",
    "gemma": "<pad>",
    "mistral": "<unk>",
    "base": "[]",
}

# chatml's turns, token by token.
OPEN_USER = [
    *["<|im_start|>", "system", "Ċ", "Y", "o", "u", "Ġanswer", "Ġ", "q", "u", "e", "st", "i", "on", "s", ".", "<|im_end|>", "Ċ"],
    *["<|im_start|>", "user", "Ċ"],
]
OPEN_ASSISTANT = ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"]
BEES = ["Ann", "Ġkeeps", "Ġbees", "."]
WHO = ["Who", "Ġkeeps", "Ġbees", "?"]
PASSAGE = ["Ċ", "Return", "Ġthe", "Ġrecovered", "Ġmasked", "Ġpassage", "."]
ANSWER = ["Ċ", "Return", "Ġthe", "Ġrecovered", "Ġmasked", "Ġanswer", "."]
PREFIX = ["Here", "Ġis", "Ġthe", "Ġrecovered", "Ġtext", ":Ċ"]
END = "<|im_end|>"


def mask_id(name: str = "chatml") -> int:
    token = TOKENIZERS[name]().convert_tokens_to_ids(TOKENIZER_AND_MASK[name])
    assert token is not None
    return token


def fixed(ratio: float, **options: Any) -> Demask:
    return Demask(mask_id=mask_id(), mask_ratio=MaskRatio(ratio, ratio), **options)


def row_of(ready: dict[str, Any], /, **place: int) -> dict[str, Any]:
    return {**ready, "example": 0, "visit": 0, "step": 0, "steps": 1, "slot": 0} | place


def batch_of(objective: Any, document: Document, tokenizer: Any, seed: int = 0, **place: int) -> dict[str, torch.Tensor]:
    chat = ChatFormat(tokenizer)
    return objective.collate([row_of(objective.examples([document], chat)[0], **place)], chat, seed)


def tokens(objective: Any, document: Document, tokenizer: Any = None, seed: int = 0, **place: int) -> tuple[list[str], list[str | None]]:
    """(input tokens, target tokens) of the document's only row; None where there is no target."""
    tokenizer = tokenizer or chatml()
    batch = batch_of(objective, document, tokenizer, seed, **place)
    assert batch["attention_mask"].tolist() == [[1] * batch["input_ids"].shape[1]]
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    targets = [None if label == IGNORE else tokenizer.convert_ids_to_tokens(label) for label in labels]
    assert batch["normaliser"].tolist() == [sum(target is not None for target in targets)]
    return tokenizer.convert_ids_to_tokens(ids), targets


def exchange(user: list[str], given: list[str], targets: list[str | None]) -> tuple[list[str], list[str | None]]:
    """What `tokens` must give: the answer's `given` part is no target; a target of None stands for BEES' token in its place."""
    before = [*OPEN_USER, *user, *OPEN_ASSISTANT, *given]
    return [*before, *BEES, END], [None] * len(before) + targets


def test_objectives_by_name():
    assert (OBJECTIVES["autoregressive"], OBJECTIVES["demask"]) == (Autoregressive, Demask)
    assert Autoregressive.family == Demask.family == "causal"


def test_autoregressive_raw():
    ids, targets = tokens(Autoregressive(format="raw"), FACT, llama3())
    assert ids == ["<|begin_of_text|>", *BEES, "<|eot_id|>"]
    assert targets == [None, *BEES, "<|eot_id|>"]


def test_autoregressive_raw_without_bos():
    ids, targets = tokens(Autoregressive(format="raw"), FACT, base())
    assert ids == ["<|endoftext|>", *BEES, "<|endoftext|>"]
    assert targets == [None, *BEES, "<|endoftext|>"]


def test_autoregressive_chat():
    assert tokens(Autoregressive(), FACT) == exchange(["Tell", "Ġme", "Ġa", "Ġfact", "."], [], [*BEES, END])


def test_autoregressive_request():
    assert tokens(Autoregressive(request="Who keeps bees?"), FACT) == exchange(WHO, [], [*BEES, END])


@pytest.mark.parametrize("format", ["chat", "raw"])
def test_autoregressive_pair_is_always_a_chat(format):
    assert tokens(Autoregressive(format=format), PAIR) == exchange(WHO, [], [*BEES, END])


def test_autoregressive_is_the_same_at_every_visit():
    assert tokens(Autoregressive(), FACT, seed=5, visit=3, step=8, steps=9) == tokens(Autoregressive(), FACT)


def test_demask_nothing_hidden():
    assert tokens(fixed(0.0), FACT) == exchange([*BEES, *PASSAGE], PREFIX, [*BEES, END])


def test_demask_everything_hidden():
    assert tokens(fixed(1.0), FACT) == exchange(["[]"] * 4 + PASSAGE, PREFIX, [*BEES, END])


def test_demask_other_families():
    """The same exchange, as Gemma's and Mistral's tokenizers and templates write it."""
    everything = MaskRatio(1, 1)
    ids, targets = tokens(Demask(mask_id("gemma"), everything), FACT, gemma())
    before = ["<bos>", "<start_of_turn>", "user", "<0x0A>", "<pad>", "<pad>", "<pad>"]
    before += ["<0x0A>", "Return", "▁the", "▁recovered", "▁masked", "▁pass", "age.", "<end_of_turn>", "<0x0A>"]
    before += ["<start_of_turn>", "m", "o", "d", "e", "l", "<0x0A>", "Here", "▁is", "▁the", "▁recovered", "▁tex", "t:", "<0x0A>"]
    assert ids == [*before, "Ann", "▁keeps", "▁bees.", "<end_of_turn>"]
    assert targets == [None] * len(before) + ["Ann", "▁keeps", "▁bees.", "<end_of_turn>"]

    ids, targets = tokens(Demask(mask_id("mistral"), everything), PAIR, mistral())
    before = ["<s>", "[", "INST]", "▁Who", "▁keeps", "▁bees?", "<0x0A>", "<unk>", "<unk>", "<unk>"]
    before += ["<0x0A>", "Ret", "urn", "▁the", "▁recovered", "▁masked", "▁answ", "er.", "▁[/INST]"]
    assert ids == [*before, "▁Ann", "▁keeps", "▁bees.", "</s>"]
    assert targets == [None] * len(before) + ["▁Ann", "▁keeps", "▁bees.", None]


def test_demask_pair_trains_on_hidden_tokens_only():
    """Masked SFT: nothing on what could be copied, nor on the end of turn, which has no copy."""
    assert tokens(fixed(1.0), PAIR) == exchange([*WHO, "Ċ", *["[]"] * 4, *ANSWER], [], [*BEES, None])
    assert tokens(fixed(0.0), PAIR) == exchange([*WHO, "Ċ", *BEES, *ANSWER], [], [None] * 5)


@pytest.mark.parametrize("visit", range(8))
def test_demask_pair_targets_follow_the_prompt(visit):
    ids, targets = tokens(fixed(0.5), PAIR, visit=visit)
    start = len(OPEN_USER) + len(WHO) + 1
    shown = ids[start : start + 4]
    assert all(token in ("[]", bee) for token, bee in zip(shown, BEES, strict=True))
    hidden = [bee if token == "[]" else None for token, bee in zip(shown, BEES, strict=True)]
    assert (ids, targets) == exchange([*WHO, "Ċ", *shown, *ANSWER], [], [*hidden, None])


@pytest.mark.parametrize("ratio", [0.0, 0.5, 1.0])
def test_demask_pair_loss_on_all(ratio):
    ids, targets = tokens(fixed(ratio, loss_on="all"), PAIR)
    start = len(OPEN_USER) + len(WHO) + 1
    assert (ids, targets) == exchange([*WHO, "Ċ", *ids[start : start + 4], *ANSWER], [], [*BEES, END])


def test_demask_document_loss_on_masked():
    assert tokens(fixed(1.0, loss_on="masked"), FACT) == exchange(["[]"] * 4 + PASSAGE, PREFIX, [*BEES, None])
    assert tokens(fixed(0.0, loss_on="masked"), FACT) == exchange([*BEES, *PASSAGE], PREFIX, [None] * 5)


def test_demask_instruction_and_prefix():
    objective = fixed(1.0, instruction="Who is Ann?", answer_prefix="Tell me:")
    assert tokens(objective, FACT) == exchange(["[]"] * 4 + ["Ċ", "Who", "Ġis", "ĠAnn", "?"], ["Tell", "Ġme", ":"], [*BEES, END])
    targets = [*BEES, None]
    assert tokens(objective, PAIR)[1][-5:] == targets
    assert tokens(objective, PAIR)[0][-8:-5] == ["Tell", "Ġme", ":"]


def test_demask_without_instruction_and_prefix():
    objective = fixed(1.0, instruction="", answer_prefix="")
    assert tokens(objective, FACT) == exchange(["[]"] * 4, [], [*BEES, END])
    assert tokens(objective, PAIR) == exchange([*WHO, "Ċ", *["[]"] * 4], [], [*BEES, None])


def test_demask_draws_by_hand():
    """The mask is rng.random(n) < ratio, rng a function of (seed, 12, example, visit), the ratio's of (seed, 11, step)."""
    seed, example, visit, step = 5, 3, 2, 7
    batch = batch_of(Demask(mask_id()), LONG, chatml(), seed, example=example, visit=visit, step=step, steps=20)
    text = np.array(ChatFormat(chatml()).content(LONG.text))
    ratio = np.random.default_rng(np.random.SeedSequence([seed, 11, step])).uniform(0.05, 0.95)
    hidden = np.random.default_rng(np.random.SeedSequence([seed, 12, example, visit])).random(len(text)) < ratio
    assert 0 < hidden.sum() < len(text)
    start = len(OPEN_USER)
    assert batch["input_ids"][0, start : start + len(text)].tolist() == [mask_id() if h else t for h, t in zip(hidden, text, strict=True)]


def hidden_of(objective: Demask, document: Document, tokenizer: Any, name: str, seed: int = 0, **place: int) -> np.ndarray:
    """(n,) bool: which of the document's tokens its prompt hides."""
    chat = ChatFormat(tokenizer)
    n, start = len(chat.content(document.text)), len(chat.head)
    ids = batch_of(objective, document, tokenizer, seed, **place)["input_ids"][0, start : start + n]
    hidden = (ids == mask_id(name)).numpy()
    assert [t for t, h in zip(ids.tolist(), hidden, strict=True) if not h] == [
        t for t, h in zip(chat.content(document.text), hidden, strict=True) if not h
    ]
    return hidden


@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_demask_window_leaves_one_span(ratio):
    n = len(ChatFormat(chatml()).content(LONG.text))
    starts = set()
    for visit in range(40):
        hidden = hidden_of(fixed(ratio, mask_pattern="window"), LONG, chatml(), "chatml", visit=visit)
        visible = np.flatnonzero(~hidden)
        assert len(visible) == round((1 - ratio) * n)
        assert visible.tolist() == list(range(visible[0], visible[0] + len(visible)))
        starts.add(int(visible[0]))
    assert len(starts) >= 4


@pytest.mark.parametrize(("share", "windows"), [(0.0, 0), (1.0, 40)])
def test_demask_mix(share, windows):
    objective = fixed(0.5, mask_pattern="mix", mask_pattern_share=share)
    found = 0
    for visit in range(40):
        visible = np.flatnonzero(~hidden_of(objective, LONG, chatml(), "chatml", visit=visit))
        found += int(visible[-1] - visible[0] + 1 == len(visible))
    assert found == windows


@pytest.mark.parametrize("name", ["gemma", "mistral"])
@pytest.mark.parametrize("pattern", ["independent", "window"])
def test_demask_whole_words(name, pattern):
    """Words, by splitting the text at white space, are hidden and shown whole, each at the ratio."""
    tokenizer = TOKENIZERS[name]()
    words = LONG.text.split()
    owner = []  # the word of each token, from the tokens' own spelling
    for token in tokenizer.convert_ids_to_tokens(ChatFormat(tokenizer).content(LONG.text)):
        new = not owner or token.startswith("▁") or token == "<0x0A>"  # a line end is counted to the word after it
        owner.append(owner[-1] + new if owner else 0)
    assert owner[-1] == len(words) - 1
    objective = Demask(mask_id(name), MaskRatio(0.5, 0.5), mask_unit="word", mask_pattern=pattern)
    count = np.zeros(len(words))
    for visit in range(200):
        hidden = hidden_of(objective, LONG, tokenizer, name, visit=visit)
        by_word = [{bool(h) for h, o in zip(hidden, owner, strict=True) if o == word} for word in range(len(words))]
        assert all(len(seen) == 1 for seen in by_word)
        word_hidden = np.array([seen.pop() for seen in by_word])
        count += word_hidden
        if pattern == "window":
            assert (~word_hidden).sum() == round(0.5 * len(words))
    if pattern == "independent":
        assert abs(count - 100).max() < 5 * np.sqrt(200) / 2
    assert len(owner) > len(words)  # some words do have several tokens


@pytest.mark.parametrize("name", TOKENIZERS)
def test_control_shows_random_ordinary_tokens(name):
    """No document token is left in the prompt but by chance; the answer and what surrounds it are demask's."""
    tokenizer = TOKENIZERS[name]()
    chat = ChatFormat(tokenizer)
    text, start = chat.content(LONG.text), len(chat.head)
    control = Demask(mask_id(name), corruption="random")
    unhidden = batch_of(Demask(mask_id(name), MaskRatio(0, 0)), LONG, tokenizer)
    shown = []
    for visit in range(30):
        batch = batch_of(control, LONG, tokenizer, visit=visit)
        assert batch["labels"].equal(unhidden["labels"])
        shown.append(batch["input_ids"][0, start : start + len(text)].tolist())
        batch["input_ids"][0, start : start + len(text)] = torch.tensor(text)
        assert batch["input_ids"].equal(unhidden["input_ids"])
    drawn = [token for row in shown for token in row]
    assert not set(drawn) & set(tokenizer.added_tokens_decoder)
    assert not set(drawn) & set(tokenizer.all_special_ids)
    same = sum(token == own for row in shown for token, own in zip(row, text, strict=True))
    assert same < 10 + len(drawn) * 3 / len(tokenizer)
    assert len(set(drawn)) > 0.8 * len(chat.ordinary_ids)  # all of the vocabulary is drawn from
    assert len({tuple(row) for row in shown}) == 30


def test_control_pair_trains_on_the_answer_without_its_end():
    ids, targets = tokens(fixed(0.0, corruption="random"), PAIR)
    start = len(OPEN_USER) + len(WHO) + 1
    assert (ids, targets) == exchange([*WHO, "Ċ", *ids[start : start + 4], *ANSWER], [], [*BEES, None])


def window_ratio(objective: Demask, **place: int) -> int:
    """How many tokens are hidden: with a window, a function of the ratio alone."""
    return int(hidden_of(objective, LONG, chatml(), "chatml", **place).sum())


def test_ratio_per_batch():
    """All rows of a step share one ratio; steps do not."""
    objective = Demask(mask_id(), mask_pattern="window")
    by_step = [{window_ratio(objective, example=e, visit=v, step=step, steps=50) for e in range(4) for v in range(2)} for step in range(12)]
    assert all(len(counts) == 1 for counts in by_step)
    assert len(set.union(*by_step)) > 6


def test_ratio_per_example():
    """Rows of one step differ, and the step changes nothing."""
    objective = Demask(mask_id(), mask_pattern="window", mask_ratio_per="example")
    counts = [window_ratio(objective, example=e, step=0, steps=50) for e in range(12)]
    assert len(set(counts)) > 6
    assert counts == [window_ratio(objective, example=e, step=9, steps=50) for e in range(12)]


@pytest.mark.parametrize("per", ["batch", "example"])
def test_linear_ratio_runs_from_the_first_step_to_the_last(per):
    n = len(ChatFormat(chatml()).content(LONG.text))
    objective = Demask(mask_id(), MaskRatio(0.9, 0.1, "linear"), mask_pattern="window", mask_ratio_per=per)
    counts = [window_ratio(objective, example=step, step=step, steps=11) for step in range(11)]
    assert counts == [n - round((1 - (0.9 - 0.08 * step)) * n) for step in range(11)]
    assert window_ratio(objective, step=0, steps=1) == counts[0]  # a run of one step


def test_a_rehearsed_example_passes_through():
    """Ready-made ids and labels stand in a batch beside masked ones, unchanged."""
    chat = ChatFormat(chatml())
    rehearsed, objective = Autoregressive().examples([FACT], chat)[0], fixed(1.0)
    batch = objective.collate([row_of(objective.examples([FACT], chat)[0]), row_of(rehearsed, example=1)], chat, 0)
    n = len(rehearsed["input_ids"])
    assert batch["input_ids"][1, :n].tolist() == rehearsed["input_ids"]
    assert batch["labels"][1, :n].tolist() == rehearsed["labels"]
    assert batch["attention_mask"][1].tolist() == [1] * n + [0] * (batch["input_ids"].shape[1] - n)
    assert batch["labels"][1, n:].tolist() == [IGNORE] * (batch["input_ids"].shape[1] - n)
    assert batch["normaliser"].tolist() == [5, 5]


ALL_OBJECTIVES = {
    "ar_chat": lambda mask: Autoregressive(),
    "ar_raw": lambda mask: Autoregressive(format="raw"),
    "demask": lambda mask: Demask(mask),
    "masked": lambda mask: Demask(mask, loss_on="masked"),
    "window": lambda mask: Demask(mask, mask_pattern="window", mask_ratio_per="example"),
    "control": lambda mask: Demask(mask, corruption="random"),
    "bare": lambda mask: Demask(mask, instruction="", answer_prefix="", loss_on="all"),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("objective", ALL_OBJECTIVES)
def test_batches_are_sound(name, objective):
    """Targets are the input's own tokens, never at position 0, counted in the normaliser, and of the size that was announced."""
    tokenizer = TOKENIZERS[name]()
    chat, objective = ChatFormat(tokenizer), ALL_OBJECTIVES[objective](mask_id(name))
    examples = objective.examples([FACT, PAIR, LONG], chat)
    batch = objective.collate([row_of(example, example=i) for i, example in enumerate(examples)], chat, 0)
    assert list(batch) == ["input_ids", "attention_mask", "labels", "normaliser"]
    assert {(value.dtype, len(value)) for value in batch.values()} == {(torch.int64, 3)}
    target = batch["labels"] != IGNORE
    assert not target[:, 0].any()
    assert batch["labels"][target].equal(batch["input_ids"][target])
    assert batch["normaliser"].tolist() == target.sum(dim=1).tolist()
    lengths = batch["attention_mask"].sum(dim=1)
    assert lengths.tolist() == [objective.size(example, chat)[0] for example in examples]
    assert int(lengths.max()) == batch["input_ids"].shape[1]
    for mask, ids in zip(batch["attention_mask"].bool(), batch["input_ids"], strict=True):
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)  # padding is on the right
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        assert set(ids[~mask].tolist()) <= {padding}


@pytest.mark.parametrize("document", [FACT, PAIR, LONG])
@pytest.mark.parametrize(
    "objective",
    [Autoregressive(), Autoregressive(format="raw"), fixed(0.3), fixed(0.3, loss_on="all"), fixed(0.3, corruption="random")],
)
def test_size_counts_the_targets(objective, document):
    """Exactly, where their number does not depend on the draw."""
    chat = ChatFormat(chatml())
    example = objective.examples([document], chat)[0]
    expected = objective.size(example, chat)[2]
    if objective == fixed(0.3) and document is PAIR:
        assert expected == pytest.approx(0.3 * 4)
    else:
        assert batch_of(objective, document, chatml())["normaliser"].tolist() == [expected]


@pytest.mark.parametrize("ratio", [MaskRatio(), MaskRatio(0.2, 0.2), MaskRatio(0.6, 0.2, "linear")])
def test_size_expects_the_mean_of_hidden_tokens(ratio):
    chat = ChatFormat(chatml())
    objective = Demask(mask_id(), ratio, loss_on="masked")
    example = objective.examples([LONG], chat)[0]
    rows = [row_of(example, visit=i, step=i, steps=400) for i in range(400)]
    mean = objective.collate(rows, chat, 0)["normaliser"].double().mean().item()
    assert objective.size(example, chat)[2] == pytest.approx(mean, rel=0.1)


def test_pad_right():
    batch = pad_right([([7, 8, 9], [IGNORE, 8, IGNORE]), ([5], [IGNORE]), ([4, 3], [IGNORE, 3])], chatml())
    pad = chatml().pad_token_id
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[7, 8, 9], [5, pad, pad], [4, 3, pad]],
        "attention_mask": [[1, 1, 1], [1, 0, 0], [1, 1, 0]],
        "labels": [[IGNORE, 8, IGNORE], [IGNORE, IGNORE, IGNORE], [IGNORE, 3, IGNORE]],
        "normaliser": [1, 0, 1],
    }


def test_padding_of_tokenizers_without_a_pad_token():
    rows = [([7, 8], [IGNORE, 8]), ([5], [IGNORE])]
    assert pad_right(rows, base())["input_ids"].tolist() == [[7, 8], [5, base().eos_token_id]]
    neither = copy.deepcopy(base())
    neither.eos_token = None
    assert pad_right(rows, neither)["input_ids"].tolist() == [[7, 8], [5, 0]]


def test_no_target_at_position_0():
    with pytest.raises(AssertionError):
        pad_right([([7, 8], [7, 8])], chatml())
