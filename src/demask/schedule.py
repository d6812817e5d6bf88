"""The order in which examples are visited, as a data set: row i is always the same, however it is reached.

Which tokens are hidden depends on (seed, example, visit), what is drawn once for a batch on (seed, optimiser step). Both stand in the row,
so masks are the same with any number of workers, processes and micro-batches, and after a resume. Train on it for one epoch, in order::

    TrainingArguments(num_train_epochs=1, train_sampling_strategy="sequential", remove_unused_columns=False, ...)
    SFTConfig(the same, dataset_kwargs={"skip_prepare_dataset": True}) with train_dataset=schedule.as_dataset()

The global batch (per-device batch x accumulation x processes) must equal `batch_size`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from torch.utils.data import Dataset

from demask.masking import generator

_ORDER, _REPLAY_ORDER = 1, 2  # streams of the seed


class Schedule(Dataset):
    """`steps` batches of `batch_size` rows over `examples`, each visit in a new order.

    In every batch the last round(replay_share x batch_size) slots (at least one, if that share is not 0) come from `replay`, in their own
    order; the others from `examples`. A row is its example's dict plus `example`, `visit`, `step` of `steps` and `slot` of `slots`;
    replayed examples are numbered after the others.
    """

    def __init__(
        self,
        examples: Sequence[dict[str, Any]],
        *,
        steps: int,
        batch_size: int,
        seed: int = 0,
        replay: Sequence[dict[str, Any]] = (),
        replay_share: float = 0.0,
    ) -> None:
        if not len(examples):
            raise ValueError("no examples to schedule")
        if steps < 1 or batch_size < 1 or not 0 <= replay_share < 1:
            raise ValueError("steps and batch_size must be at least 1, replay_share in [0, 1)")
        self.examples, self.replay = examples, replay
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        self.replay_slots = max(1, round(replay_share * batch_size)) if len(replay) and replay_share else 0
        if self.replay_slots >= batch_size:
            raise ValueError(f"replay_share {replay_share} of a batch of {batch_size} leaves no room for the documents")
        self._order = lru_cache(maxsize=4)(self._permutation)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._order = lru_cache(maxsize=4)(self._permutation)

    def __len__(self) -> int:
        return self.steps * self.batch_size

    @property
    def visits(self) -> float:
        """How often each example is seen."""
        return self.steps * (self.batch_size - self.replay_slots) / len(self.examples)

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        step, slot = divmod(index, self.batch_size)
        own_slots = self.batch_size - self.replay_slots
        if slot < own_slots:
            source, offset, stream, place = self.examples, 0, _ORDER, step * own_slots + slot
        else:
            source, offset, stream = self.replay, len(self.examples), _REPLAY_ORDER
            place = step * self.replay_slots + slot - own_slots
        visit, place = divmod(place, len(source))
        example = int(self._order(stream, visit, len(source))[place])
        position = {"example": offset + example, "visit": visit, "step": step, "steps": self.steps}
        position |= {"slot": slot, "slots": self.batch_size}
        return {**source[example], **position}

    def as_dataset(self) -> Any:
        """The same rows, made when they are read, as a `datasets.Dataset`: the only kind that TRL's SFTTrainer takes."""
        from datasets import Dataset as HubDataset

        def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            made = [self[index] for index in batch["index"]]
            return {name: [row.get(name) for row in made] for name in {name: None for row in made for name in row}}

        return HubDataset.from_dict({"index": range(len(self))}).with_transform(rows)

    def _permutation(self, stream: int, visit: int, n: int) -> Any:
        return generator(self.seed, stream, visit).permutation(n)
