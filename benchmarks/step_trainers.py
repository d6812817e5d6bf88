"""The trainers that benchmarks/train_step.py compares, and the callback that times their steps."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.models.llama import modeling_llama

from demask.chat_format import IGNORE, ChatFormat
from demask.losses import weighted_sum
from demask.schedule import Schedule
from demask.settings import LIGER
from demask.trainer import ObjectiveTrainer

VARIANTS = ("reference", "trl", "ours")
EXTRA = ("liger", "compiled", "plain_loss", "padded", "padded_eager", "transformers", "transformers_compiled")
PACKED = ("ours", "liger", "compiled")
ATTENTION = {"reference": "eager", "padded_eager": "eager"} | dict.fromkeys(PACKED, "padding_free")  # the others': sdpa
LLAMA = dict(vars(modeling_llama))  # as it is before Liger puts its own parts there


class Steps(TrainerCallback):
    """Times each optimiser step but the first, and notes the memory's peak above the level when the first one ended."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: list[float] = []
        self.memory = 0.0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.process_time() if self.device == "cpu" else time.perf_counter()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            self.level = _memory(self.device, reset=True)
        self.start = self.now()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step > 1:
            self.seconds.append(self.now() - self.start)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.memory = _memory(self.device) - self.level


def _memory(device: str, reset: bool = False) -> float:
    """Bytes: the peak since the last reset; with `reset` what is held now."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() if reset else torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    name = "VmRSS:" if reset else "VmHWM:"
    return 1024 * next(float(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))


class ReferenceTrainer(Trainer):
    """Plain transformers, which computes the loss from every token's logits; for diffusion, as LLaDA's guidelines print it."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        weights = inputs.pop("loss_weights", None)
        if weights is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")
        logits = model(**inputs).logits
        hidden = labels != IGNORE
        nll = functional.cross_entropy(logits[hidden], labels[hidden], reduction="none")
        return (nll * weights[hidden]).sum() / len(labels)


def loss_of_targets(model: Any, inputs: dict[str, Any], next_token: bool = True) -> torch.Tensor:
    """torch's cross-entropy of the targets' logits in fp32, summed."""
    targets = inputs["labels"][:, 1:]
    keep = torch.zeros_like(inputs["labels"], dtype=torch.bool)
    (keep[:, :-1] if next_token else keep[:, 1:]).copy_(targets != IGNORE)
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    logits = model(**read, logits_to_keep=keep, use_cache=False).logits.flatten(0, -2).float()
    return weighted_sum(functional.cross_entropy(logits, targets[targets != IGNORE], reduction="none"), inputs)


class PlainLossTrainer(ObjectiveTrainer):
    """Ours, but for the loss: torch's cross-entropy of the targets' logits in fp32."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return loss_of_targets(model, inputs, self.next_token) / num_items_in_batch


class TargetsTrainer(Trainer):
    """Plain transformers, but for logits at the targets only."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        return loss_of_targets(model, inputs) / num_items_in_batch


def trainer_of(
    variant: str, model: Any, schedule: Schedule, rows: int, objective: Any, chat: ChatFormat, device: str, folder: str
) -> Trainer:
    """A variant's trainer, which takes `rows` of a batch at a time."""
    options: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": schedule.batch_size // rows,
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "remove_unused_columns": False,
        "learning_rate": 1e-5,
        "bf16": True,
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }
    if variant == "liger":
        options |= {"use_liger_kernel": True, "liger_kernel_config": dict(LIGER)}
    options["torch_compile"] = variant in ("compiled", "transformers_compiled")
    if variant not in ("reference", "trl", "transformers", "transformers_compiled"):
        ours = PlainLossTrainer if variant == "plain_loss" else ObjectiveTrainer
        return ours(model=model, args=TrainingArguments(**options), objective=objective, chat=chat, schedule=schedule)

    def collate(rows: Any) -> dict[str, torch.Tensor]:
        batch = objective.collate(rows, chat, schedule.seed)
        del batch["normaliser"]
        return batch

    if variant != "trl":
        kind = ReferenceTrainer if variant == "reference" else TargetsTrainer
        return kind(model=model, args=TrainingArguments(**options), data_collator=collate, train_dataset=schedule)
    from trl import SFTConfig, SFTTrainer

    return SFTTrainer(
        model=model,
        args=SFTConfig(**options, dataset_kwargs={"skip_prepare_dataset": True}),
        data_collator=collate,
        train_dataset=schedule.as_dataset(),
        processing_class=chat.tokenizer,
    )


def undo(model: Any, forward: Any) -> None:
    """The next trainer finds the model as the last one did: without autocast, TRL's or Liger's parts, compiled layers or gradients.

    Nor the mark that accelerate leaves on it: it would not be given its autocast a second time.
    """
    for module in model.modules():
        for name in ("forward", "_original_forward", "_is_accelerate_prepared"):
            module.__dict__.pop(name, None)
        module._compiled_call_impl = None
    vars(modeling_llama).update(LLAMA)
    if forward is not None:
        model.forward = forward
    model.zero_grad(set_to_none=True)
