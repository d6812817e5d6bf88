"""Masked fine-tuning in anyone's own trainer: a data collator for `transformers.Trainer` and TRL's `SFTTrainer`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from demask.chat_format import ChatFormat
from demask.models.mask_token import MaskSearch, MaskToken, mask_candidates
from demask.objectives.demask import Demask
from demask.types import Document


class DataCollatorForDemasking:
    """Masks documents anew at every visit and pads them; the batch holds `input_ids`, `attention_mask` and `labels` (B, L), int64.

    `options` are those of `objectives.demask.Demask` but the mask token: `mask_token` names it, else it is the one that `demask train`
    would choose, the first that none of the documents holds. These are seen by `examples`: call it for all of them before training.
    Wrap the examples in a `Schedule` to make every mask a function of (seed, example, visit), whatever the workers, processes and resumes;
    else masks follow torch's random state. The trainer needs `remove_unused_columns=False`; SFTTrainer
    also `dataset_kwargs={"skip_prepare_dataset": True}`, and its data as `schedule.as_dataset()`::

        >>> collator = DataCollatorForDemasking(tokenizer, mask_ratio=MaskRatio(0.5, 0.5))
        >>> data = Schedule(collator.examples(["Ann keeps bees."]), steps=100, batch_size=8)
        >>> collator([data[0]])
        {'input_ids': tensor([[ 5, 99,  2, 3877, 2, ...]]), 'attention_mask': ..., 'labels': tensor([[-100, ..., 521, 3877, 88, 18, 2]])}
    """

    def __init__(
        self, tokenizer: Any, *, seed: int = 0, mask_token: str | None = None, system_prompt: str | None = None, **options: Any
    ) -> None:
        self.chat = ChatFormat(tokenizer, system_prompt)
        self.seed = seed
        rendered = tokenizer.decode([*self.chat.head, *self.chat.middle, self.chat.end])
        around = (rendered, options.get("instruction"), options.get("answer_prefix"), system_prompt)
        self._search, self._collated = MaskSearch(tokenizer, mask_candidates(tokenizer, mask_token, around)), False
        self.mask: MaskToken = self._search.mask  # the token that stands for a masked one
        self.objective = Demask(mask_id=self.mask.id, **options)

    def examples(self, documents: Sequence[Document | str]) -> list[dict[str, Any]]:
        """The rows to train on, from documents or plain texts; a mask token that they hold gives way to the next candidate.

        Raises InputError for a document that holds the one that was named, or the one that batches were made with.
        """
        named = [Document(str(i), document) if isinstance(document, str) else document for i, document in enumerate(documents)]
        if self._collated:
            self._search = MaskSearch(self.chat.tokenizer, [self.mask])
        self._search.read(named, self.chat.content)
        self.mask = self._search.mask
        self.objective = replace(self.objective, mask_id=self.mask.id)
        return self.objective.examples(named, self.chat)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        self._collated = True
        # The rows of a data set share their columns: those that only rehearsed examples have are None in the others.
        rows = [{name: value for name, value in row.items() if name != "labels" or value is not None} for row in rows]
        if "visit" not in rows[0]:
            # A loader gives each of its workers, in each epoch, another torch seed.
            draw = int(torch.randint(2**31, ()))
            rows = [{**row, "example": i, "visit": draw, "step": draw, "steps": 1} for i, row in enumerate(rows)]
        batch = self.objective.collate(rows, self.chat, self.seed)
        # What a bare trainer divides by is the number of labels, which for this objective is the normaliser.
        del batch["normaliser"]
        return batch
