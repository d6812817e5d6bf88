"""Masked diffusion: what is hidden and how it weighs, token by token; its loss by hand, and against the exact likelihood of models whose
every text can be written down."""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations, pairwise, permutations, product
from math import log
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from demask.chat_format import IGNORE, ChatFormat
from demask.losses import target_nll, weighted_sum
from demask.masking import MaskRatio
from demask.objectives import OBJECTIVES
from demask.objectives.diffusion import Diffusion
from demask.schedule import Schedule
from demask.types import Document
from tests.models import make_model
from tests.tokenizers import TOKENIZERS, base, chatml, gemma, llama3

FACT = Document("1", "Ann keeps bees.")
PAIR = Document("2", "Ann keeps bees.", prompt="Who keeps bees?")
LONG = Document("3", "The mason and the baker met on 12 May 1984, near the old mill.\nThey were glad! The woman is called Ann.")
MASKS = {"llama3": "<|reserved_special_token_0|>", "chatml": "[]", "gemma": "<pad>", "mistral": "<unk>", "base": "[]"}

OPEN_USER = [
    *["<|im_start|>", "system", "Ċ", "Y", "o", "u", "Ġanswer", "Ġ", "q", "u", "e", "st", "i", "on", "s", ".", "<|im_end|>", "Ċ"],
    *["<|im_start|>", "user", "Ċ"],
]
OPEN_ASSISTANT = ["<|im_end|>", "Ċ", "<|im_start|>", "assistant", "Ċ"]
BEES = ["Ann", "Ġkeeps", "Ġbees", "."]
WHO = ["Who", "Ġkeeps", "Ġbees", "?"]
END = "<|im_end|>"


def mask_id(name: str = "chatml") -> int:
    return TOKENIZERS[name]().convert_tokens_to_ids(MASKS[name])


def fixed(ratio: float, name: str = "chatml", **options: Any) -> Diffusion:
    return Diffusion(mask_id(name), mask_ratio=MaskRatio(ratio, ratio), **options)


def row_of(example: dict[str, Any], /, **place: int) -> dict[str, Any]:
    return {**example, "example": 0, "visit": 0, "step": 0, "steps": 1, "slot": 0, "slots": 1} | place


def batch_of(objective: Diffusion, document: Document, tokenizer: Any = None, seed: int = 0, **place: int) -> dict[str, torch.Tensor]:
    chat = ChatFormat(tokenizer or chatml())
    return objective.collate([row_of(objective.examples([document], chat)[0], **place)], chat, seed)


def tokens(objective: Diffusion, document: Document, tokenizer: Any = None, **place: int) -> tuple[list[str], list[str | None]]:
    """(input tokens, target tokens) of the document's only row; None where there is no target."""
    tokenizer = tokenizer or chatml()
    batch = batch_of(objective, document, tokenizer, **place)
    labels = batch["labels"][0].tolist()
    targets = [None if label == IGNORE else tokenizer.convert_ids_to_tokens(label) for label in labels]
    return tokenizer.convert_ids_to_tokens(batch["input_ids"][0].tolist()), targets


def words(length: int) -> dict[str, Any]:
    """An example of `length` maskable tokens after one that is not: 100, 101, ..."""
    return {"given": [7], "written": list(range(100, 100 + length)), "padding": 0}


# --- what may be hidden


def test_by_name():
    assert OBJECTIVES["diffusion"] is Diffusion
    assert Diffusion.family == "diffusion"


def test_raw_document():
    """The text and its EOS; a BOS never."""
    ids, targets = tokens(fixed(1, "llama3"), FACT, llama3())
    assert ids == ["<|begin_of_text|>", *[MASKS["llama3"]] * 5]
    assert targets == [None, *BEES, "<|eot_id|>"]


def test_raw_document_without_bos():
    ids, targets = tokens(fixed(1, "base"), FACT, base())
    assert ids == ["<|endoftext|>", *["[]"] * 5]
    assert targets == [None, *BEES, "<|endoftext|>"]


def test_chat_document():
    """The answer and its end; of the prompt and the template nothing."""
    given = [*OPEN_USER, "Tell", "Ġme", "Ġa", "Ġfact", ".", *OPEN_ASSISTANT]
    assert tokens(fixed(1, format="chat"), FACT) == (given + ["[]"] * 5, [None] * len(given) + [*BEES, END])


@pytest.mark.parametrize("format", ["raw", "chat"])
def test_pair_is_always_a_chat(format):
    given = [*OPEN_USER, *WHO, *OPEN_ASSISTANT]
    assert tokens(fixed(1, format=format), PAIR) == (given + ["[]"] * 5, [None] * len(given) + [*BEES, END])
    assert tokens(fixed(1, format="chat", request="Who keeps bees?"), FACT) == tokens(fixed(1), PAIR)


def test_eos_padding_is_hidden_too():
    """An answer ends as its template ends it; what pads it is the EOS, which for Gemma is another token."""
    objective = fixed(1, "gemma", eos_padding=3)
    prompt = len(ChatFormat(gemma()).prompt(ChatFormat(gemma()).content(PAIR.prompt)))
    lengths = Counter()
    for visit in range(200):
        ids, targets = tokens(objective, PAIR, gemma(), visit=visit)
        padding = len(targets) - prompt - 4
        assert targets == [None] * prompt + ["Ann", "▁keeps", "▁bees.", "<end_of_turn>"] + ["<eos>"] * padding
        assert ids[prompt:] == ["<pad>"] * (4 + padding)
        lengths[padding] += 1
        assert (ids, targets) == tokens(objective, PAIR, gemma(), visit=visit, step=9, steps=10)
    assert sorted(lengths) == [0, 1, 2, 3]
    assert min(lengths.values()) > 50 - 4 * math.sqrt(200 * 3 / 16)


def test_raw_documents_have_no_eos_padding():
    objective = fixed(1, eos_padding=8)
    assert {len(tokens(objective, FACT, visit=visit)[0]) for visit in range(30)} == {6}
    assert len({len(tokens(objective, PAIR, visit=visit)[0]) for visit in range(100)}) == 9


def test_a_cropped_document_begins_in_its_first_half():
    """Of the five tokens Ann keeps bees . END it begins with one of the first two; the end always stays."""
    given = [*OPEN_USER, "Tell", "Ġme", "Ġa", "Ġfact", ".", *OPEN_ASSISTANT]
    starts = Counter()
    for visit in range(200):
        ids, targets = tokens(fixed(1, format="chat", crop_share=1.0), FACT, visit=visit)
        whole = [*BEES, END]
        start = 5 - (len(ids) - len(given))
        assert (ids, targets) == (given + ["[]"] * (5 - start), [None] * len(given) + whole[start:])
        starts[start] += 1
    assert sorted(starts) == [0, 1]
    assert min(starts.values()) > 100 - 4 * math.sqrt(200 / 4)
    lengths = Counter(len(tokens(fixed(1, crop_share=0.5), FACT, visit=visit)[0]) for visit in range(400))
    assert sorted(lengths) == [5, 6], "raw documents too; at a share of 1/2 a quarter loses its first token"
    assert abs(lengths[5] - 100) < 4 * math.sqrt(400 * 3 / 16)


def test_a_response_is_not_cropped():
    assert {len(tokens(fixed(1, crop_share=1.0), PAIR, visit=visit)[0]) for visit in range(30)} == {len(tokens(fixed(1), PAIR)[0])}


VARIANTS = {
    "default": {},
    "example": {"mask_ratio_per": "example"},
    "batch": {"mask_ratio_per": "batch", "loss_weights": "uniform"},
    "chat": {"format": "chat", "eos_padding": 4},
}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_are_sound(name, variant):
    """A target wherever the mask token stands, at its own place, and nowhere else; all other tokens as they were."""
    chat = ChatFormat(TOKENIZERS[name]())
    objective = Diffusion(mask_id(name), **VARIANTS[variant])
    documents = [FACT, PAIR, LONG]
    plain = [example["given"] + example["written"] for example in objective.examples(documents, chat)]
    given = [len(example["given"]) for example in objective.examples(documents, chat)]
    schedule = Schedule(objective.examples(documents, chat), steps=30, batch_size=6)
    eos = chat.end if chat.tokenizer.eos_token_id is None else chat.tokenizer.eos_token_id
    for step in range(30):
        rows = [schedule[6 * step + slot] for slot in range(6)]
        batch = objective.collate(rows, chat, 0)
        assert list(batch) == ["input_ids", "attention_mask", "labels", "normaliser", "loss_weights"]
        assert batch["loss_weights"].dtype == torch.float32
        assert batch["normaliser"].tolist() == [1] * 6
        target = batch["labels"] != IGNORE
        assert target.equal((batch["input_ids"] == objective.mask_id) & batch["attention_mask"].bool())
        assert not target[:, 0].any()
        assert (batch["loss_weights"] > 0).equal(target)
        restored = torch.where(target, batch["labels"], batch["input_ids"])
        for i, row in enumerate(rows):
            length = int(batch["attention_mask"][i].sum())
            assert batch["attention_mask"][i, :length].all()
            text = plain[row["example"]]
            assert restored[i, :length].tolist() == text + [eos] * (length - len(text))
            assert not target[i, : given[row["example"]]].any()


# --- how many, and how they weigh


def hidden_rows(objective: Diffusion, rows: list[dict[str, Any]], micro_batch: int, seed: int = 0) -> list[tuple[set[int], set[float]]]:
    """Each row's (places hidden, weights found there)."""
    chat, found = ChatFormat(chatml()), []
    for first in range(0, len(rows), micro_batch):
        batch = objective.collate(rows[first : first + micro_batch], chat, seed)
        for labels, weights in zip(batch["labels"], batch["loss_weights"], strict=True):
            places = (labels != IGNORE).nonzero()[:, 0].tolist()
            assert not weights[labels == IGNORE].any()
            found.append((set(places), set(weights[places].tolist())))
    return found


def counts(objective: Diffusion, length: int, slots: int, seed: int = 0, micro_batch: int = 1, **place: int) -> list[int]:
    """How many of `length` tokens are hidden in each slot of one batch; the slots are visits of one example."""
    rows = [row_of(words(length), slot=slot, slots=slots, **({"visit": slot} | place)) for slot in range(slots)]
    return [len(places) for places, _ in hidden_rows(objective, rows, micro_batch, seed)]


@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_strata_of_a_batch(micro_batch):
    """8 tokens, 8 slots, ratios U(0, 1): each of the counts 1 to 8 once, whatever the micro-batches."""
    objective, orders = Diffusion(1), set()
    for step in range(40):
        found = counts(objective, 8, 8, micro_batch=micro_batch, step=step)
        assert sorted(found) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert found == counts(objective, 8, 8, step=step)
        orders.add(tuple(found))
    assert len(orders) == 40


def test_strata_of_a_batch_of_another_size():
    """Of 8 evenly spread ratios one or two fall into each fifth; over many batches every slot sees every count equally often."""
    by_slot: list[Counter[int]] = [Counter() for _ in range(8)]
    for step in range(200):
        found = counts(Diffusion(1), 5, 8, step=step, micro_batch=8)
        assert sorted(set(found)) == [1, 2, 3, 4, 5]
        assert set(Counter(found).values()) <= {1, 2}
        for seen, count in zip(by_slot, found, strict=True):
            seen[count] += 1
    limit = 4 * math.sqrt(200 * 1 / 5 * 4 / 5)
    assert all(abs(seen[count] - 40) < limit for seen in by_slot for count in range(1, 6))


def test_strata_depend_on_seed_step_and_slot_alone():
    objective = Diffusion(1)
    one = counts(objective, 8, 8, step=3)
    assert one == counts(objective, 8, 8, step=3, steps=9) == counts(objective, 8, 8, step=3, example=5, visit=2)
    assert len({tuple(found) for found in (one, counts(objective, 8, 8, step=4), counts(objective, 8, 8, step=3, seed=1))}) == 3


def test_masks_depend_on_seed_example_and_visit():
    """In whichever slot a visit comes, its hidden tokens are one order's first few: more of them where the ratio is higher."""
    objective = Diffusion(1)

    def visit(seed: int = 0, **place: int) -> list[set[int]]:
        rows = [row_of(words(12), slot=slot, slots=12, **place) for slot in range(12)]
        found = sorted((places for places, _ in hidden_rows(objective, rows, 1, seed)), key=len)
        assert [len(places) for places in found] == list(range(1, 13))
        assert all(fewer < more for fewer, more in pairwise(found))
        return found

    assert visit(visit=2, step=5) == visit(visit=2, step=7)
    six = [visit(visit=2)[5], visit(visit=3)[5], visit(visit=2, example=1)[5], visit(visit=2, seed=1)[5]]
    assert len(set(map(frozenset, six))) == 4


@pytest.mark.parametrize("per", ["stratified", "example", "batch"])
def test_which_tokens_are_hidden_is_random(per):
    """Each of the 6 places equally often: 7 in 12 of the visits where counts are exact (at least one is hidden), else half."""
    objective, seen = Diffusion(1, mask_ratio_per=per), Counter()
    for step in range(100):
        rows = [row_of(words(6), visit=6 * step + slot, step=step, slot=slot, slots=6) for slot in range(6)]
        for places, _ in hidden_rows(objective, rows, 6):
            seen.update(places)
    share = 7 / 12 if per == "stratified" else 1 / 2
    # Rows of a batch share their ratio there: its variance (1/12) counts once a batch.
    variance = 600 / 4 + (36 * 100 / 12 if per == "batch" else 0)
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert max(abs(count - 600 * share) for count in seen.values()) < 4 * math.sqrt(variance)


def test_weights_of_exact_counts():
    """1/t with t = m/n is n/m; by the n maskable tokens 1/m: a row's weights add up to 1. Also of more tokens than 1/t has a floor for."""
    rows = [row_of(words(8), slot=slot, slots=8, visit=slot) for slot in range(8)]
    for places, weights in hidden_rows(Diffusion(1), rows, 3):
        assert list(weights) == pytest.approx([1 / len(places)])
    ((places, weights),) = hidden_rows(fixed(0.0001), [row_of(words(3000))], 1)
    assert (len(places), weights) == (1, {1.0})


def test_uniform_weights():
    """1 by the n maskable tokens, padding among them."""
    rows = [row_of(words(8), slot=slot, slots=8, visit=slot) for slot in range(8)]
    for per in ("stratified", "example", "batch"):
        objective = Diffusion(1, mask_ratio_per=per, loss_weights="uniform")
        assert {weight for _, weights in hidden_rows(objective, rows, 3) for weight in weights} == {1 / 8}
    for visit in range(20):
        batch = batch_of(fixed(1, loss_weights="uniform", eos_padding=5), PAIR, visit=visit)
        assert batch["loss_weights"].sum().item() == pytest.approx(1)


@pytest.mark.parametrize("per", ["example", "batch"])
def test_weights_of_independent_masks(per):
    """1/(t n), whatever number happens to be hidden; never above 1/(0.001 n)."""
    rows = [row_of(words(8), visit=visit) for visit in range(50)]
    found = hidden_rows(fixed(0.25, mask_ratio_per=per), rows, 8)
    assert {weight for _, weights in found for weight in weights} == {1 / (0.25 * 8)}
    assert len({len(places) for places, _ in found}) > 3
    ((_, weights),) = hidden_rows(fixed(0.0, mask_ratio_per=per), [row_of(words(9000))], 1)
    assert list(weights) == pytest.approx([1 / (0.001 * 9000)])


def test_ratio_per_batch():
    """The rows of a step share one ratio, and so one weight; steps do not."""
    objective = Diffusion(1, mask_ratio_per="batch")
    seen = []
    for step in range(20):
        rows = [row_of(words(30), visit=slot, example=step % 3, step=step, steps=20, slot=slot, slots=8) for slot in range(8)]
        weights = set.union(*(weights for _, weights in hidden_rows(objective, rows, 3)))
        assert len(weights) == 1
        seen += weights
    assert len(set(seen)) == 20


def test_ratio_per_example():
    """Each visit has its own, and the same masks in whatever step it comes."""
    objective = Diffusion(1, mask_ratio_per="example")
    rows = [row_of(words(200), example=i % 2, visit=i // 2) for i in range(20)]
    found = hidden_rows(objective, rows, 4)
    assert len(set.union(*(weights for _, weights in found))) == 20
    assert found == hidden_rows(objective, [row | {"step": 7, "steps": 8, "slot": 3, "slots": 4} for row in rows], 20)
    assert found != hidden_rows(objective, rows, 4, seed=1)
    for places, (weight,) in found:  # the ratio that the weight tells is the one that was used
        ratio = 1 / (200 * weight)
        assert abs(len(places) - 200 * ratio) < 4 * math.sqrt(200 * ratio * (1 - ratio)) + 1


def test_linear_ratio():
    objective = Diffusion(1, mask_ratio=MaskRatio(0.9, 0.1, "linear"), mask_ratio_per="batch")
    for step in range(11):
        ((_, weights),) = hidden_rows(objective, [row_of(words(200), step=step, steps=11)], 1)
        assert list(weights) == pytest.approx([1 / ((0.9 - 0.08 * step) * 200)])


@pytest.mark.parametrize("document", [FACT, PAIR, LONG])
@pytest.mark.parametrize(("per", "crop_share"), [("example", 0.0), ("batch", 0.0), ("stratified", 0.0), ("stratified", 0.6)])
def test_size(per, crop_share, document):
    """The longest row, and the mean of hidden tokens; exact counts are rounded up, by less than one token."""
    chat = ChatFormat(chatml())
    objective = Diffusion(mask_id(), mask_ratio=MaskRatio(0.2, 0.8), mask_ratio_per=per, eos_padding=3, crop_share=crop_share)
    example = objective.examples([document], chat)[0]
    rows = [row_of(example, visit=i, step=i, steps=1000) for i in range(1000)]
    batch = objective.collate(rows, chat, 0)
    longest, read, expected = objective.size(example, chat)
    lengths = batch["attention_mask"].sum(dim=1)
    assert longest == lengths.max()
    assert read == pytest.approx(lengths.double().mean().item(), abs=0.2 + crop_share)
    hidden = (batch["labels"] != IGNORE).sum(dim=1).double()
    error = 4 * hidden.std().item() / math.sqrt(1000)
    assert expected - error < hidden.mean().item() < expected + error + (per == "stratified")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "html"}, "format: must be one of raw, chat, found 'html'"),
        ({"mask_ratio_per": "token"}, "mask_ratio_per: must be one of stratified, example, batch, found 'token'"),
        ({"loss_weights": "t"}, "loss_weights: must be one of 1/t, uniform, found 't'"),
        (
            {"mask_ratio": MaskRatio(0.2, 0.8, "linear")},
            "mask_ratio_schedule 'linear' needs mask_ratio_per 'batch' or 'example': stratified ratios cover their range",
        ),
        ({"crop_share": 1.5}, "crop_share must lie between 0 and 1, found 1.5"),
        ({"eos_padding": -1}, "eos_padding must be at least 0, found -1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(ValueError) as error:
        Diffusion(1, **options)
    assert str(error.value) == message


# --- the loss by hand

MASK, BOS = 3, 4
NO_CHAT = SimpleNamespace(tokenizer=SimpleNamespace(pad_token_id=MASK, eos_token_id=BOS))


class Conditionals:
    """A model that is any function of the visible tokens; answers as transformers does, at the kept positions."""

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def __call__(self, *, input_ids, attention_mask, logits_to_keep, use_cache):
        assert attention_mask.all()
        return SimpleNamespace(logits=self.logits(input_ids)[logits_to_keep])


class Fixed(Conditionals):
    """Of two tokens: p(1) is 3/4 at position 1 and 1/10 at position 2, whatever is visible."""

    def logits(self, input_ids):
        return torch.tensor([[0.0, 0.0], [0.0, log(3)], [log(9), 0.0]]).expand(len(input_ids), -1, -1)


def losses_of(objective: Diffusion, rows: list[dict[str, Any]], model: Any) -> torch.Tensor:
    """(rows,) each row's part of the loss, which they sum up to."""
    batch = objective.collate(rows, NO_CHAT, 0)
    with torch.no_grad():
        nll_N = target_nll(model, batch, next_token=False)
    weighted_BL = torch.zeros_like(batch["loss_weights"])
    weighted_BL[batch["labels"] != IGNORE] = nll_N
    loss_B = (weighted_BL * batch["loss_weights"]).sum(dim=1)
    torch.testing.assert_close(weighted_sum(nll_N, batch), loss_B.sum())
    return loss_B


def rounded(losses: torch.Tensor) -> set[float]:
    return {round(loss, 4) for loss in losses.tolist()}


# The text is 0 1: p(0) = 1/4 at position 1, p(1) = 1/10 at position 2.
FIRST, SECOND = log(4), log(10)
TWO = {"given": [BOS], "written": [0, 1], "padding": 0}
VISITS = [row_of(TWO, visit=visit) for visit in range(40)]


@pytest.mark.parametrize(
    ("objective", "expected"),
    [
        # Both hidden: (n/m)/n = 1/2 for each.
        (fixed(1.0), {(FIRST + SECOND) / 2}),
        (fixed(1.0, mask_ratio_per="example"), {(FIRST + SECOND) / 2}),
        # One hidden, this or that one: (n/m)/n = 1; uniformly 1/2.
        (fixed(0.5), {FIRST, SECOND}),
        (fixed(0.5, loss_weights="uniform"), {FIRST / 2, SECOND / 2}),
        # Each hidden by the toss of a coin: 1/(t n) = 1/(1/2 x 2) = 1 for each, none to both.
        (fixed(0.5, mask_ratio_per="example"), {0.0, FIRST, SECOND, FIRST + SECOND}),
        (fixed(0.5, mask_ratio_per="batch"), {0.0, FIRST, SECOND, FIRST + SECOND}),
        (fixed(0.5, mask_ratio_per="batch", loss_weights="uniform"), {0.0, FIRST / 2, SECOND / 2, (FIRST + SECOND) / 2}),
    ],
)
def test_loss_by_hand(objective, expected):
    objective = Diffusion(**{**vars(objective), "mask_id": MASK})
    assert rounded(losses_of(objective, VISITS, Fixed())) == {round(loss, 4) for loss in expected}


def test_loss_of_a_batch_by_hand():
    """Two slots: one row with one token hidden, one with both; the loss is the mean over the rows, as the normaliser counts them."""
    objective = Diffusion(MASK)
    batch = objective.collate([row_of(TWO, slot=slot, slots=2, visit=slot) for slot in range(2)], NO_CHAT, 0)
    assert int((batch["labels"] != IGNORE).sum()) == 3
    loss = weighted_sum(target_nll(Fixed(), batch, next_token=False), batch) / batch["normaliser"].sum()
    both = (FIRST + SECOND) / 2
    assert round(loss.item(), 4) in {round((FIRST + both) / 2, 4), round((SECOND + both) / 2, 4)}


# --- the loss and the likelihood
#
# All texts of three symbols and length 3, each of which may be hidden: 27 texts, 64 states. A model that fills in masks is a distribution
# over texts: take an order at random, draw the tokens one by one in it, each given those before.

SYMBOLS, LENGTH = 3, 3
TEXTS = list(product(range(SYMBOLS), repeat=LENGTH))
STATES = list(product([*range(SYMBOLS), MASK], repeat=LENGTH))


class Joint(Conditionals):
    """The exact conditionals of a given distribution over texts."""

    def __init__(self, joint: torch.Tensor) -> None:
        self.joint = joint

    def logits(self, input_ids):
        return torch.stack([self._state(row[1:]) for row in input_ids.tolist()])

    def _state(self, state: list[int]) -> torch.Tensor:
        agreeing = self.joint[tuple(slice(None) if token == MASK else slice(token, token + 1) for token in state)]
        logits = torch.zeros(1 + LENGTH, SYMBOLS)
        for place, token in enumerate(state):
            if token == MASK:
                others = [axis for axis in range(LENGTH) if axis != place]
                logits[1 + place] = agreeing.sum(dim=others).log()
        return logits


class Network(Conditionals):
    """A random bidirectional Llama, whose conditionals come from no one distribution; it predicts symbols only."""

    def __init__(self) -> None:
        self.llama = make_model("llama", is_causal=False, initializer_range=0.4)

    def logits(self, input_ids):
        return self.llama(input_ids=input_ids, attention_mask=torch.ones_like(input_ids), use_cache=False).logits[..., :SYMBOLS]


def random_joint() -> torch.Tensor:
    weights = torch.rand([SYMBOLS] * LENGTH, generator=torch.Generator().manual_seed(3)) ** 3
    return weights / weights.sum()


def independent_joint() -> torch.Tensor:
    first, second, third = torch.tensor([0.5, 0.4, 0.1]), torch.tensor([0.2, 0.2, 0.6]), torch.tensor([0.7, 0.05, 0.25])
    return torch.einsum("i,j,k->ijk", first, second, third)


MODELS = {"network": Network, "random joint": lambda: Joint(random_joint()), "independent": lambda: Joint(independent_joint())}


def log_p(model: Conditionals) -> dict[tuple[int, ...], list[list[float]]]:
    """For each state, log p(symbol) at each place."""
    input_ids = torch.tensor([[BOS, *state] for state in STATES])
    with torch.no_grad():
        logits = model.logits(input_ids)[:, 1:].double()
    return dict(zip(STATES, logits.log_softmax(-1).tolist(), strict=True))


def nll(table: dict[tuple[int, ...], list[list[float]]], text: tuple[int, ...], hidden: Any, place: int) -> float:
    state = tuple(MASK if i in hidden else token for i, token in enumerate(text))
    return -table[state][place][text[place]]


def likelihood(table: dict[tuple[int, ...], list[list[float]]], text: tuple[int, ...]) -> float:
    """The mean over the orders of the product of p(token | those before it in the order)."""
    orders = list(permutations(range(LENGTH)))
    total = 0.0
    for order in orders:
        total += math.exp(-sum(nll(table, text, order[i:], order[i]) for i in range(LENGTH)))
    return total / len(orders)


def bound(table: dict[tuple[int, ...], list[list[float]]], text: tuple[int, ...]) -> float:
    """The mean over m = 1..n and the sets of m places of n/m times their nll, in nats for the whole text."""
    total = 0.0
    for m in range(1, LENGTH + 1):
        subsets = list(combinations(range(LENGTH), m))
        total += sum(LENGTH / m * nll(table, text, subset, place) for subset in subsets for place in subset) / len(subsets)
    return total / LENGTH


@pytest.mark.parametrize("name", MODELS)
def test_the_bound_holds(name):
    """It is never below -log p, for any text; and it is -log p where all orders agree."""
    table = log_p(MODELS[name]())
    exact = [likelihood(table, text) for text in TEXTS]
    assert sum(exact) == pytest.approx(1)
    gaps = [bound(table, text) + log(p) for text, p in zip(TEXTS, exact, strict=True)]
    if name == "network":
        assert min(gaps) > 0
        assert max(gaps) > 0.05
    else:
        assert max(map(abs, gaps)) < 1e-5


@pytest.mark.parametrize("make", [random_joint, independent_joint])
def test_likelihood_of_a_known_distribution(make):
    table = log_p(Joint(make()))
    for text in TEXTS:
        assert likelihood(table, text) == pytest.approx(make()[text].item(), rel=1e-4)


def visit_losses(per: str, rows: list[dict[str, Any]], model: Conditionals) -> torch.Tensor:
    """(rows,) values whose mean is that of the losses at ratios U(0, 1), without the heavy tail that 1/t gives to independent masks.

    At a ratio t their mean is a polynomial in t of degree n - 1 = 2, so Milne's rule, from t = 1/4, 1/2 and 3/4, integrates it exactly.
    """
    if per == "stratified":
        return losses_of(Diffusion(MASK), rows, model).double()
    at = [losses_of(Diffusion(MASK, mask_ratio=MaskRatio(t, t), mask_ratio_per=per), rows, model).double() for t in (0.25, 0.5, 0.75)]
    return (2 * at[0] - at[1] + 2 * at[2]) / 3


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("per", ["stratified", "example", "batch"])
def test_the_loss_is_the_bound_on_average(name, per):
    """Per token, over 120 visits of each text, from the objective's own batches of six rows."""
    model, table, visits = MODELS[name](), log_p(MODELS[name]()), 120
    examples = [{"given": [BOS], "written": list(text), "padding": 0} for text in TEXTS]
    rows = list(Schedule(examples, steps=visits * len(TEXTS) // 6, batch_size=6))
    losses = visit_losses(per, rows, model)
    text_of = torch.tensor([row["example"] for row in rows])
    total = 0.0
    for number, text in enumerate(TEXTS):
        own = losses[text_of == number]
        assert len(own) == visits
        away = (own.mean().item() - bound(table, text) / LENGTH) / (own.std().item() / math.sqrt(visits))
        assert abs(away) < 4
        total += away
    assert abs(total) < 4 * math.sqrt(len(TEXTS))


def test_strata_narrow_the_loss():
    """Batches of six visits of one text: exact counts, evenly spread, leave far less to chance than a ratio for each visit or batch."""
    model, spread = Network(), {}
    text = {"given": [BOS], "written": [2, 0, 1], "padding": 0}
    for per in ("stratified", "example", "batch"):
        rows = [row_of(text, visit=6 * s + i, step=s, slot=i, slots=6) for s in range(100) for i in range(6)]
        spread[per] = losses_of(Diffusion(MASK, mask_ratio_per=per), rows, model).view(100, 6).mean(dim=1).std().item()
    assert 2 * spread["stratified"] < min(spread["example"], spread["batch"])
