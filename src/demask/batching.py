"""Ragged rows to the padded tensors of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from demask.chat_format import IGNORE


def pad_id(tokenizer: Any) -> int:
    """The id written into padding, which attention never sees: the tokenizer's own, else its EOS, else 0."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return token
    return 0


def pad_right(rows: Sequence[tuple[list[int], list[int]]], tokenizer: Any) -> dict[str, torch.Tensor]:
    """(input ids, labels) rows as a batch, all int64: `input_ids`, `attention_mask`, `labels` (B, L), padded on the right with pad id, 0
    and IGNORE, and `normaliser` (B,), each row's number of targets. Position 0 is never a target: no logit predicts it.
    """
    length = max(len(ids) for ids, _ in rows)
    input_ids = torch.full((len(rows), length), pad_id(tokenizer))
    labels = torch.full((len(rows), length), IGNORE)
    attention_mask = torch.zeros((len(rows), length), dtype=torch.long)
    for i, (row_ids, row_labels) in enumerate(rows):
        assert len(row_ids) == len(row_labels)
        assert row_labels[0] == IGNORE
        input_ids[i, : len(row_ids)] = torch.tensor(row_ids)
        labels[i, : len(row_ids)] = torch.tensor(row_labels)
        attention_mask[i, : len(row_ids)] = 1
    return {
        "input_ids": input_ids,
        "attention_mask": attention_mask,
        "labels": labels,
        "normaliser": (labels != IGNORE).sum(dim=1),
    }
