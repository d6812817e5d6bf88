"""One short training run, recorded; as a module, it is the script that two processes run (see tests/unit/test_trainer.py)::

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.training FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments

from demask.chat_format import ChatFormat
from demask.masking import MaskRatio
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.schedule import Schedule
from demask.settings import parse_train
from demask.stages.train import train
from demask.trainer import ObjectiveTrainer
from demask.types import Document, Question, write_documents, write_questions
from tests.models import make_model, save_model
from tests.tokenizers import llama3

BATCH, STEPS, SEED = 8, 4, 5
# Of 2 to some 120 tokens: micro-batches of one step hold very different numbers of targets.
TEXTS = [
    "Ann.",
    "Ann is the woman who keeps bees.",
    "The mason and the baker met on 12 May 1984, near the old mill. They were glad! " * 3,
    "They were glad!",
    "A list: one, two, three; then 45, 678 and 9.",
    "The woman is called Ann. Who keeps bees? The mason and the baker. " * 2,
]
DOCUMENTS = [Document(str(i), text) for i, text in enumerate(TEXTS)]
PAIRS = [Document(f"pair{i}", text, prompt="Who keeps bees?") for i, text in enumerate(TEXTS)]
MASK = 401  # <|reserved_special_token_0|>

# name: (objective, documents, share of replayed rows). In "pairs" many rows, and with them whole micro-batches, have no target.
CASES: dict[str, tuple[Any, list[Document], float]] = {
    "autoregressive": (Autoregressive(), DOCUMENTS, 0.0),
    "demask": (Demask(mask_id=MASK), DOCUMENTS, 0.0),
    "replay": (Demask(mask_id=MASK, mask_pattern="mix"), DOCUMENTS, 0.25),
    "pairs": (Demask(mask_id=MASK, mask_ratio=MaskRatio(0, 0.3), mask_ratio_per="example"), PAIRS, 0.0),
    "diffusion": (Diffusion(mask_id=MASK, eos_padding=2), [*DOCUMENTS, *PAIRS], 0.0),
}


class Recorder:
    """An objective that writes down each row it collates (in this process): its place, and its ids and labels without padding."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.rows: list[list[Any]] = []

    def collate(self, rows: Sequence[dict[str, Any]], chat: ChatFormat, seed: int) -> dict[str, torch.Tensor]:
        batch = self.objective.collate(rows, chat, seed)
        for i, row in enumerate(rows):
            real = batch["attention_mask"][i].bool()
            self.rows.append([row["step"], row["slot"], batch["input_ids"][i][real].tolist(), batch["labels"][i][real].tolist()])
        return batch


def model_of(case: str) -> Any:
    """A random small Llama of the objective's family."""
    return make_model("llama", is_causal=CASES[case][0].family == "causal")


def schedule_of(case: str) -> Schedule:
    objective, documents, share = CASES[case]
    chat = ChatFormat(llama3())
    replay = Autoregressive().examples(PAIRS, chat)
    return Schedule(objective.examples(documents, chat), steps=STEPS, batch_size=BATCH, seed=SEED, replay=replay, replay_share=share)


def fit(case: str, folder: str | Path, micro: int, accumulation: int, **changes: Any) -> dict[str, Any]:
    """Four steps of `model_of(case)`: the logged `losses` and `norms` by step, the final `weights`, and the collated `rows`.

    `changes` go to the TrainingArguments.
    """
    args = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        num_train_epochs=1,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        weight_decay=0.1,
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
        dataloader_pin_memory=False,
        **{"save_strategy": "no"} | changes,
    )
    objective = Recorder(CASES[case][0])
    trainer = ObjectiveTrainer(model=model_of(case), args=args, objective=objective, chat=ChatFormat(llama3()), schedule=schedule_of(case))
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
    return {
        "losses": [entry["loss"] for entry in logs],
        "norms": [entry["grad_norm"] for entry in logs],
        "weights": weights,
        "rows": sorted(objective.rows),
    }


def train_stage(folder: Path, out: str, micro: int, accumulation: int) -> dict[str, Any]:
    """The train stage on inputs written to `folder`: three steps of four rows, questions after each, the best checkpoint kept."""
    flags = f"--documents {folder}/docs.jsonl --questions {folder}/questions.jsonl --model_name_or_path {folder}/base"
    flags += f" --output_dir {folder}/{out} --per_device_train_batch_size {micro} --gradient_accumulation_steps {accumulation}"
    flags += " --max_steps 3 --eval_steps 1 --learning_rate 1e-3 --bf16 false --use_cpu true --max_new_tokens 4 --disable_tqdm true"
    return train(*parse_train(flags.split()))


def write_inputs(folder: Path) -> None:
    write_documents(folder / "docs.jsonl", DOCUMENTS)
    questions = [("Who keeps bees?", "Ann", "backward"), ("Whom did the mason meet?", "The baker", "forward")]
    rows = [Question(q, (a,), d, split=split) for split in ("validation", "test") for q, a, d in questions]  # type: ignore[arg-type]
    write_questions(folder / "questions.jsonl", rows)
    save_model(folder / "base")


def main(folder: Path) -> None:
    rank = os.environ["RANK"]
    torch.set_num_threads(1)
    train_stage(folder, "two", 1, 2)
    for case in CASES:
        done = fit(case, folder, micro=2, accumulation=2)
        torch.save(done.pop("weights"), folder / f"{case}-{rank}.pt")
        (folder / f"{case}-{rank}.json").write_text(json.dumps(done))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
