"""`DataCollatorForDemasking` in trainers that know nothing of it: transformers' own and TRL's SFTTrainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from trl import SFTConfig, SFTTrainer

from demask.chat_format import IGNORE, ChatFormat
from demask.collator import DataCollatorForDemasking
from demask.masking import MaskRatio
from demask.objectives import Autoregressive, Demask
from demask.schedule import Schedule
from demask.trainer import ObjectiveTrainer
from demask.types import Document, InputError
from tests.models import make_model
from tests.tokenizers import chatml, llama3

TEXTS = ["Ann keeps bees.", "The mason and the baker met on 12 May 1984, near the old mill.", "They were glad!", "The woman is called Ann."]
MASK = 401  # <|reserved_special_token_0|>
STEPS, BATCH, SEED = 3, 4, 6


class Recording:
    """The collator, and each row it made: ids and labels without padding."""

    def __init__(self, collator: Any) -> None:
        self.collator = collator
        self.rows: list[tuple[list[int], list[int]]] = []

    def __call__(self, rows: Any) -> dict[str, torch.Tensor]:
        batch = self.collator(rows)
        for ids, real, labels in zip(batch["input_ids"], batch["attention_mask"].bool(), batch["labels"], strict=True):
            self.rows.append((ids[real].tolist(), labels[real].tolist()))
        return batch


def options(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": STEPS,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "dataloader_pin_memory": False,
    }


def bare(data: Any, collator: Any, folder: Path) -> list[float]:
    trainer = Trainer(model=make_model("llama"), args=TrainingArguments(**options(folder)), data_collator=collator, train_dataset=data)
    return losses(trainer)


def sft(data: Any, collator: Any, folder: Path) -> list[float]:
    data = data.as_dataset() if isinstance(data, Schedule) else Dataset.from_list(list(data))
    args = SFTConfig(**options(folder), dataset_kwargs={"skip_prepare_dataset": True})
    trainer = SFTTrainer(model=make_model("llama"), args=args, data_collator=collator, train_dataset=data, processing_class=llama3())
    return losses(trainer)


def losses(trainer: Trainer) -> list[float]:
    trainer.train()
    found = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(found) == STEPS
    assert all(math.isfinite(loss) and loss > 0 for loss in found)
    return found


def own(folder: Path) -> tuple[list[float], list[Any]]:
    """The losses and rows of our own trainer."""
    chat = ChatFormat(llama3())
    objective = Demask(mask_id=MASK)
    record = Recording(lambda rows: objective.collate(rows, chat, SEED))

    class Recorded:
        collate = staticmethod(lambda rows, chat, seed: record(rows))

    schedule = Schedule(objective.examples([Document(text, text) for text in TEXTS], chat), steps=STEPS, batch_size=BATCH, seed=SEED)
    trainer = ObjectiveTrainer(
        model=make_model("llama"), args=TrainingArguments(**options(folder)), objective=Recorded, chat=chat, schedule=schedule
    )
    return losses(trainer), record.rows


@pytest.mark.parametrize("trainer", [bare, sft])
def test_with_a_schedule_masks_and_losses_are_those_of_our_trainer(trainer, tmp_path):
    collator = DataCollatorForDemasking(llama3(), seed=SEED)
    schedule = Schedule(collator.examples(TEXTS), steps=STEPS, batch_size=BATCH, seed=SEED)
    record = Recording(collator)
    found = trainer(schedule, record, tmp_path)
    expected, rows = own(tmp_path)
    assert record.rows == rows
    assert len({str(row) for row in rows}) == STEPS * BATCH  # each visit has its own mask
    assert found == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("trainer", [bare, sft])
def test_without_a_schedule(trainer, tmp_path):
    """In the data's own order, masked anew at each visit."""
    collator = DataCollatorForDemasking(llama3(), seed=SEED)
    data: Any = collator.examples(TEXTS)
    record = Recording(collator)
    trainer(data, record, tmp_path)
    whole = [llama3().encode(text, add_special_tokens=False) for text in TEXTS]
    assert [[label for label in labels if label != IGNORE][:-1] for _, labels in record.rows] == whole * STEPS
    for text in whole:
        shown = {str(ids) for ids, labels in record.rows if [label for label in labels if label != IGNORE][:-1] == text}
        assert len(shown) > 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_schedule_as_a_dataset_has_its_rows(workers):
    """Also rehearsed ones, which have other fields."""
    collator = DataCollatorForDemasking(llama3())
    replay = Autoregressive().examples([Document("old", "Three bees.")], collator.chat)
    schedule = Schedule(collator.examples(TEXTS), steps=3, batch_size=4, replay=replay, replay_share=0.25)
    data = schedule.as_dataset()
    assert list(data) == list(schedule)
    for batch, step in zip(DataLoader(data, batch_size=4, collate_fn=collator, num_workers=workers), range(3), strict=True):
        expected = collator([schedule[4 * step + slot] for slot in range(4)])
        assert all(torch.equal(batch[name], expected[name]) for name in expected)


def test_a_batch_holds_what_any_causal_model_takes():
    """Ratio 1 hides the whole of the document: 6 tokens in the prompt, and its 4 with the end of turn as targets."""
    tokenizer = chatml()
    collator = DataCollatorForDemasking(tokenizer, mask_ratio=MaskRatio(1, 1), instruction="", answer_prefix="")
    batch = collator(collator.examples([TEXTS[0]]))
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    chat = ChatFormat(tokenizer)
    mask, text = tokenizer.encode("[]"), tokenizer.encode(TEXTS[0])
    expected = [*chat.head, *mask * len(text), *chat.middle, *text, tokenizer.eos_token_id]
    assert batch["input_ids"].tolist() == [expected]
    assert batch["labels"].tolist() == [[IGNORE] * (len(expected) - len(text) - 1) + [*text, tokenizer.eos_token_id]]


def test_documents_and_texts_give_the_same_examples():
    collator = DataCollatorForDemasking(llama3())
    assert collator.examples([Document("a", TEXTS[0])]) == collator.examples([TEXTS[0]])


def test_a_pair_is_trained_on_what_was_hidden():
    collator = DataCollatorForDemasking(llama3(), mask_ratio=MaskRatio(0.5, 0.5))
    batch = collator(collator.examples([Document("a", TEXTS[1], prompt="Who met?")]))
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    n = len(llama3().encode(TEXTS[1], add_special_tokens=False))
    assert 0 < sum(label != IGNORE for label in labels) == ids.count(MASK) < n


def test_without_a_schedule_masks_follow_the_seeds():
    def three(seed: int, torch_seed: int = 0) -> list[list[list[int]]]:
        torch.manual_seed(torch_seed)
        collator = DataCollatorForDemasking(llama3(), seed=seed)
        rows = collator.examples(TEXTS)
        return [collator(rows)["input_ids"].tolist() for _ in range(3)]

    assert three(1) == three(1)
    assert three(1) != three(2)
    assert three(1) != three(1, torch_seed=1)


def test_without_a_schedule_workers_and_epochs_mask_anew():
    collator = DataCollatorForDemasking(llama3())
    loader = DataLoader(collator.examples(TEXTS * 4), batch_size=len(TEXTS), collate_fn=collator, num_workers=2)
    batches = [batch["input_ids"].tolist() for _ in range(2) for batch in loader]
    assert len({str(batch) for batch in batches}) == len(batches) == 8


def test_mask_token_and_system_prompt():
    collator = DataCollatorForDemasking(
        llama3(), mask_token="<|reserved_special_token_7|>", system_prompt="You answer.", mask_ratio=MaskRatio(1, 1)
    )
    ids = collator(collator.examples(TEXTS))["input_ids"][0].tolist()
    assert 408 in ids
    assert MASK not in ids
    assert "You answer." in llama3().decode(ids)
    with pytest.raises(InputError, match="mask_token: 'no such token' is"):
        DataCollatorForDemasking(llama3(), mask_token="no such token")


def test_a_mask_token_that_documents_hold_gives_way_before_training_and_is_refused_in_it():
    collator = DataCollatorForDemasking(llama3(), mask_ratio=MaskRatio(1, 1))
    first = collator.examples([TEXTS[0]])
    second = collator.examples([f"A {collator.mask.token} here."])
    assert collator.mask.id == MASK + 1
    assert MASK + 1 in collator(first)["input_ids"][0].tolist()
    assert collator.examples([f"A {llama3().convert_ids_to_tokens(MASK)} here."]) == second
    with pytest.raises(InputError, match=r"^document '0': its text holds the mask token '<\|reserved_special_token_1\|>'"):
        collator.examples([f"A {collator.mask.token} here."])
