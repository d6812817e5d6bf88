"""Examples prepared by two processes; the script that they run (see tests/unit/test_prepare.py)::

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.preparing FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import PartialState

from demask.chat_format import ChatFormat
from demask.objectives import Autoregressive, Demask
from demask.settings import TrainSettings
from demask.stages.prepare import Making, prepare
from demask.types import InputError
from tests.tokenizers import llama3


class Counting(ChatFormat):
    """Counts the texts it tokenizes."""

    counted = 0

    def contents(self, texts: Any) -> list[list[int]]:
        self.counted += len(texts)
        return super().contents(texts)


def prepared(documents: str, folder: Path | None, state: Any) -> dict[str, Any]:
    """What a process gets, or the fault it raises, and how many documents it has tokenized."""
    chat = Counting(llama3())
    making = Making(Demask(401), Autoregressive(), chat, (), 300)
    try:
        made = prepare(TrainSettings(documents=[documents], replay=[documents]), making, seed=0, folder=folder, state=state)
    except (InputError, RuntimeError) as error:
        return {"fault": f"{type(error).__name__}: {error}", "tokenized": chat.counted}
    kind = type(made.examples).__name__
    return {"rows": list(made.examples), "replay": list(made.replay), "data": made.data, "kind": kind, "tokenized": chat.counted}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    rank = state.process_index
    # As if each of them were on a machine of its own.
    alone = SimpleNamespace(num_processes=2, process_index=rank, local_process_index=0, is_main_process=rank == 0)
    alone.is_local_main_process = True
    documents, own = f"{folder}/documents.jsonl", folder / f"machine{rank}"
    found = {
        "one machine": prepared(documents, folder / "out", state),
        "resumed": prepared(documents, folder / "out", state),
        "temporary": prepared(documents, None, state),
        "fault": prepared(f"{folder}/bad.jsonl", folder / "bad", state),
        "no room": prepared(documents, folder / "documents.jsonl" / "out", state),
        "two machines": prepared(documents, own / "out", alone),
        "two machines, one folder": prepared(documents, folder / "shared", alone),
        "fault on one machine": prepared(f"{own}/documents.jsonl", own / "new", alone),
        "other documents": prepared(f"{own}/other.jsonl", own / "other", alone),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
