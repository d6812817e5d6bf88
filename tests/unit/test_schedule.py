"""Row i of a schedule is always the same, and with it the masks: whatever the workers, the micro-batches and the copies of it."""

from __future__ import annotations

import pickle
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from demask.chat_format import ChatFormat
from demask.masking import MaskRatio, generator
from demask.objectives.autoregressive import Autoregressive
from demask.objectives.demask import Demask
from demask.objectives.diffusion import Diffusion
from demask.schedule import Schedule
from demask.types import Document
from tests.tokenizers import llama3

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # four workers on a small machine

OWN = [{"name": f"own{i}"} for i in range(10)]
OLD = [{"name": f"old{i}"} for i in range(4)]


def test_each_visit_is_a_permutation():
    """10 examples in batches of 4: visit v is rows 10v to 10v + 9, over the bounds of batches."""
    schedule = Schedule(OWN, steps=15, batch_size=4, seed=3)
    rows = [schedule[i] for i in range(len(schedule))]
    assert len(rows) == 60
    assert schedule.visits == 6.0
    for visit in range(6):
        of_visit = rows[10 * visit : 10 * visit + 10]
        assert {row["visit"] for row in of_visit} == {visit}
        assert sorted(row["example"] for row in of_visit) == list(range(10))
    orders = [tuple(row["example"] for row in rows[10 * v : 10 * v + 10]) for v in range(6)]
    assert len(set(orders)) == 6
    assert orders[2] == tuple(generator(3, 1, 2).permutation(10))


def test_a_row_holds_its_example_and_its_place():
    schedule = Schedule(OWN, steps=15, batch_size=4)
    for i in range(len(schedule)):
        row = schedule[i]
        assert row == {
            "name": f"own{row['example']}",
            "example": row["example"],
            "visit": i // 10,
            "step": i // 4,
            "steps": 15,
            "slot": i % 4,
            "slots": 4,
        }
        assert type(row["example"]) is int
    assert OWN[0] == {"name": "own0"}  # the examples themselves are left alone


def test_last_visit_may_be_cut_short():
    schedule = Schedule(OWN, steps=3, batch_size=4)
    assert schedule.visits == 1.2
    counts = Counter(schedule[i]["example"] for i in range(12))
    assert sorted(counts.values()) == [1] * 8 + [2] * 2


def test_a_batch_larger_than_the_examples():
    schedule = Schedule(OWN[:3], steps=2, batch_size=8)
    assert [schedule[i]["visit"] for i in range(16)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5]


def test_seeds_differ():
    orders = [tuple(row["example"] for row in Schedule(OWN, steps=1, batch_size=10, seed=seed)) for seed in range(5)]
    assert len(set(orders)) == 5


@pytest.mark.parametrize(("share", "slots"), [(0.0, 0), (0.01, 1), (0.25, 2), (0.3, 2), (0.5, 4), (0.8, 6)])
def test_replay_slots(share, slots):
    """The last round(share x 8) slots of each batch are replayed, at least one."""
    schedule = Schedule(OWN, steps=5, batch_size=8, replay=OLD, replay_share=share)
    for i in range(len(schedule)):
        row = schedule[i]
        replayed = i % 8 >= 8 - slots
        assert row["name"] == (f"old{row['example'] - 10}" if replayed else f"own{row['example']}")
    assert schedule.visits == 5 * (8 - slots) / 10


def test_replay_has_an_order_of_its_own():
    schedule = Schedule(OWN, steps=10, batch_size=4, replay=OLD, replay_share=0.5, seed=1)
    rows = [schedule[i] for i in range(len(schedule))]
    own, old = ([row for row in rows if row["name"].startswith(kind)] for kind in ("own", "old"))
    assert (len(own), len(old)) == (20, 20)
    for visit in range(2):
        assert sorted(row["example"] for row in own if row["visit"] == visit) == list(range(10))
    for visit in range(5):
        assert sorted(row["example"] for row in old if row["visit"] == visit) == [10, 11, 12, 13]


@given(
    n=st.integers(1, 20),
    old=st.integers(1, 9),
    steps=st.integers(1, 9),
    batch=st.integers(2, 9),
    share=st.floats(0, 0.5),
    seed=st.integers(0, 99),
)
def test_examples_are_visited_equally_often(n, old, steps, batch, share, seed):
    schedule = Schedule([{}] * n, steps=steps, batch_size=batch, seed=seed, replay=[{}] * old, replay_share=share)
    visits = Counter(row["example"] for row in schedule)
    for numbers in (range(n), range(n, n + old)):
        assert max(visits[i] for i in numbers) - min(visits[i] for i in numbers) <= 1
    assert sum(visits.values()) == steps * batch == len(schedule)
    assert len({(row["example"], row["visit"]) for row in schedule}) == len(schedule)


def test_rows_do_not_depend_on_what_was_read_before():
    schedule = Schedule(OWN, steps=30, batch_size=4, replay=OLD, replay_share=0.25)
    forwards = [schedule[i] for i in range(120)]
    assert [Schedule(OWN, steps=30, batch_size=4, replay=OLD, replay_share=0.25)[i] for i in reversed(range(120))] == forwards[::-1]


@pytest.mark.parametrize("workers", [0, 4])
@pytest.mark.parametrize("micro_batch", [1, 3, 8])
def test_rows_are_the_same_through_a_data_loader(workers, micro_batch):
    schedule = Schedule(OWN, steps=3, batch_size=8, replay=OLD, replay_share=0.25)
    loader = DataLoader(schedule, batch_size=micro_batch, num_workers=workers, collate_fn=list)
    assert [row for batch in loader for row in batch] == [schedule[i] for i in range(24)]


def test_pickling():
    """Both before it was read and after, when it holds permutations."""
    schedule = Schedule(OWN, steps=9, batch_size=4, seed=5, replay=OLD, replay_share=0.25)
    unread = pickle.loads(pickle.dumps(schedule))
    rows = list(schedule)
    read = pickle.loads(pickle.dumps(schedule))
    assert rows == list(unread) == list(read)
    assert (len(read), read.visits, read.seed) == (36, 2.7, 5)


def test_ends_where_it_ends():
    schedule = Schedule(OWN, steps=2, batch_size=3)
    assert len(list(schedule)) == 6  # plain iteration stops at the IndexError
    for index in (-1, 6, 600):
        with pytest.raises(IndexError):
            schedule[index]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"examples": []}, "no examples to schedule"),
        ({"steps": 0}, "steps and batch_size must be at least 1, replay_share in [0, 1)"),
        ({"batch_size": 0}, "steps and batch_size must be at least 1, replay_share in [0, 1)"),
        ({"replay_share": 1.0}, "steps and batch_size must be at least 1, replay_share in [0, 1)"),
        ({"replay_share": -0.1}, "steps and batch_size must be at least 1, replay_share in [0, 1)"),
        ({"replay": OLD, "replay_share": 0.9}, "replay_share 0.9 of a batch of 4 leaves no room for the documents"),
        ({"replay": OLD, "replay_share": 0.2, "batch_size": 1}, "replay_share 0.2 of a batch of 1 leaves no room for the documents"),
    ],
)
def test_errors(options, message):
    settings = {"examples": OWN, "steps": 2, "batch_size": 4} | options
    with pytest.raises(ValueError) as error:
        Schedule(settings.pop("examples"), **settings)
    assert str(error.value) == message


DOCUMENTS = [
    Document(str(i), text) for i, text in enumerate(["Ann keeps bees.", "The baker met the mason near the old mill.", "12 May 1984."])
]
DOCUMENTS.append(Document("3", "The woman is called Ann.", prompt="Who keeps bees?"))
MASK = llama3().convert_tokens_to_ids("<|reserved_special_token_0|>")
OBJECTIVES = {
    "paper": Demask(MASK),
    "per_example_mix": Demask(MASK, mask_ratio_per="example", mask_pattern="mix"),
    "linear_words": Demask(MASK, mask_ratio=MaskRatio(0.9, 0.1, "linear"), mask_unit="word"),
    "random": Demask(MASK, corruption="random"),
    "diffusion": Diffusion(MASK, eos_padding=3),
    "diffusion_per_batch": Diffusion(MASK, format="chat", mask_ratio_per="batch"),
}


def unpadded(batches) -> list[tuple[list[int], list[int], int]]:
    """(ids, labels, normaliser) of each row, without its padding."""
    rows = []
    for batch in batches:
        for ids, mask, labels, normaliser in zip(
            *(batch[name] for name in ("input_ids", "attention_mask", "labels", "normaliser")), strict=True
        ):
            real = mask.bool()
            assert (labels[~real] == -100).all()
            rows.append((ids[real].tolist(), labels[real].tolist(), int(normaliser)))
    return rows


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
def test_masks_are_the_same_however_they_are_loaded(objective):
    chat = ChatFormat(llama3())
    rehearsing = objective if objective.family == "diffusion" else Autoregressive()
    replay = rehearsing.examples(DOCUMENTS[:2], chat)
    schedule = Schedule(objective.examples(DOCUMENTS, chat), steps=4, batch_size=8, seed=7, replay=replay, replay_share=0.25)
    collate = partial(objective.collate, chat=chat, seed=7)
    reference = unpadded([collate([schedule[i] for i in range(32)])])
    assert len({str(row) for row in reference}) > 10  # not all the same anyhow
    for micro_batch in (1, 2, 8):
        for workers in (0, 4):
            loader = DataLoader(schedule, batch_size=micro_batch, num_workers=workers, collate_fn=collate)
            assert unpadded(loader) == reference


@pytest.mark.parametrize("objective", [OBJECTIVES["paper"], OBJECTIVES["diffusion"]])
def test_masks_are_the_same_after_a_resume(objective):
    """A resumed run starts in the middle, in a new process with copies of everything."""
    chat = ChatFormat(llama3())
    schedule = Schedule(objective.examples(DOCUMENTS, chat), steps=6, batch_size=2)
    whole = unpadded(objective.collate([schedule[i], schedule[i + 1]], chat, 0) for i in range(0, 12, 2))
    objective, schedule, chat = pickle.loads(pickle.dumps((objective, schedule, chat)))
    torch.manual_seed(99)
    resumed = unpadded(objective.collate([schedule[i], schedule[i + 1]], chat, 0) for i in range(6, 12, 2))
    assert resumed == whole[6:]


def test_masks_change_with_visit_step_and_seed():
    chat = ChatFormat(llama3())
    objective = Demask(mask_id=5)
    row = {**objective.examples(DOCUMENTS[1:2], chat)[0], "example": 1, "visit": 2, "step": 3, "steps": 9}

    def collated(seed: int = 0, **changed: int) -> str:
        return str(unpadded([objective.collate([row | changed], chat, seed)]))

    assert collated() == collated(slot=7) == collated(steps=10)  # where in its batch it stands does not matter
    assert len({collated(), collated(visit=3), collated(example=0), collated(step=5), collated(seed=1)}) == 5
