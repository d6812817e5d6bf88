"""`transformers.Trainer` with an objective's own collation, loss normalisation and questions."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DynamoBackend
from transformers import Trainer, TrainerCallback
from transformers.modeling_layers import GradientCheckpointingLayer

from demask.chat_format import ChatFormat
from demask.distributed import is_main
from demask.embedding_gradient import rows_added_in_place
from demask.lean_layers import lean_layers
from demask.losses import target_nll, weighted_sum
from demask.models.family import family, predicts_next
from demask.norms import lean_norms
from demask.packing import NAME as PADDING_FREE
from demask.packing import pack
from demask.schedule import Schedule
from demask.types import InputError


class ObjectiveTrainer(Trainer):
    """Trains on a `Schedule` of an objective's examples, in its order, with loss sum(weight x nll) / sum(normaliser).

    `ask`, where given, is called with the model at every evaluation and returns numbers for the log by name ("mean", "forward", ...).
    """

    def __init__(
        self,
        *,
        model: Any,
        args: Any,
        objective: Any,
        chat: ChatFormat,
        schedule: Schedule,
        ask: Callable[[Any], dict[str, float]] | None = None,
    ) -> None:
        self.ask = ask
        self.weights_changed: Callable[[], None] = lambda: None
        self.next_token = predicts_next(model.config)
        self.causal = family(model.config) == "causal"
        self.packs = model.config._attn_implementation == PADDING_FREE
        self.adapts = hasattr(model, "peft_config")
        # Compiled one by one: that is done once for all layers that are alike, and what is before and behind them stays as it is.
        self.compiled = (
            [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)] if args.torch_compile else []
        )
        if args.torch_compile and not self.compiled:
            raise InputError(f"torch_compile: {type(model).__name__} has no layers that can be compiled one by one")
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # every loss depends on all that is trained; looking for more costs a pass of the graph
        super().__init__(
            model=model,
            args=args,
            data_collator=partial(objective.collate, chat=chat, seed=schedule.seed),
            train_dataset=schedule,
            eval_dataset=[{}],  # the Trainer wants one; the questions are asked in evaluate()
            processing_class=chat.tokenizer,
            callbacks=[],
        )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        # FSDP and DeepSpeed replace a model's weights also where one process holds all of them.
        whole = self.args.world_size == 1 and not self.is_deepspeed_enabled and not self.is_fsdp_enabled
        for layer in self.compiled:
            layer.compile(dynamic=True, backend=self.args.torch_compile_backend, mode=self.args.torch_compile_mode)
        with contextlib.ExitStack() as stack:
            if whole:
                stack.enter_context(rows_added_in_place(self.model))
            if not self.compiled:  # a compiler makes as few passes by itself
                stack.enter_context(lean_norms(self.model))
                if whole:
                    self.weights_changed = stack.enter_context(lean_layers(self.model))
            return super().train(*args, **kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        """As the Trainer does it; but `train` compiles, FSDP2 sums gradients in fp32 also under bfloat16, and adapters keep their names."""
        super().create_accelerator_and_postprocess()
        # TrainingArguments leave the wish to compile in the environment, where trainers find it that were not asked to.
        self.accelerator.state.dynamo_plugin.backend = DynamoBackend.NO
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is None or plugin.fsdp_version != 2:
            return
        if plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = dataclasses.replace(plugin.mixed_precision_policy, reduce_dtype=torch.float32)
        if plugin.activation_checkpointing and self.adapts:
            # FSDP wraps the layers for it, where PEFT finds no weights: checkpoints would lack the adapter. The model does it as well.
            plugin.activation_checkpointing, self.args.activation_checkpointing = False, True

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        """The micro-batches of one optimiser step, and the sum of their normalisers over all processes."""
        self.weights_changed()
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        total = sum((batch["normaliser"].sum() for batch in batches), torch.tensor(0)).to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            total = self.accelerator.gather(total).sum() // self.get_tp_size()
        return batches, total.clamp(min=1)

    def compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """The micro-batch's share of the step's loss: shares add up, so nothing is divided by the number of micro-batches."""
        if self.packs:
            inputs = pack(inputs, share_prefix=self.causal)
        loss = weighted_sum(target_nll(model, inputs, self.next_token), inputs) / num_items_in_batch
        self.loss_is_scaled_for_ga = True
        if self.args.average_tokens_across_devices:
            # Gradients are averaged over processes, but these shares must add up there too.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        return loss

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:
        """Ask the questions. On every process: each answers a share of them, and a sharded model's forward is a joint one."""
        assert self.ask is not None
        with torch.compiler.set_stance("force_eager"):  # prompts and caches come in shapes of their own
            metrics = {f"{metric_key_prefix}_{name}": value for name, value in self.ask(self.model).items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


class StopOnRequest(TrainerCallback):
    """Finish the step, save a checkpoint and stop, once `requested` is set (by Ctrl-C), or `file` exists.

    The file reaches training where a signal does not come through whole: a launcher kills its processes soon after it was interrupted.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.requested = False
        self.file = file

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self.requested = self.requested or (self.file is not None and self.file.exists())
        if args.world_size > 1:  # the processes hear of it at different steps, and must all stop after the same one
            requested = torch.tensor(int(self.requested), device=args.device)
            torch.distributed.all_reduce(requested, op=torch.distributed.ReduceOp.MAX)
            self.requested = bool(requested)
        if self.requested:
            control.should_save = True
            control.should_training_stop = True
        return control


class Patience(TrainerCallback):
    """Stop after `patience` evaluations in a row without a better mean.

    They are counted in the log, which a checkpoint holds: transformers' own callback begins anew after a resume. A run that is resumed for
    the questions at its end alone ends again after a step.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        by_step = {entry["step"]: entry["eval_mean"] for entry in state.log_history if "eval_mean" in entry}
        means = [mean for step, mean in by_step.items() if step]  # the base, before the first step, is no checkpoint
        if means and len(means) - 1 - means.index(max(means)) >= self.patience:
            control.should_training_stop = True
        return control

    on_step_end = on_evaluate


@contextlib.contextmanager
def stop_on_ctrl_c(stop: StopOnRequest) -> Iterator[None]:
    """The first Ctrl-C asks for a checkpoint and an orderly end, the second one ends the program."""

    def handle(signum: int, frame: Any) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, previous)
        if is_main():
            print("\ninterrupted: finishing the step and saving a checkpoint (Ctrl-C again to stop at once)", flush=True)

    try:
        previous = signal.signal(signal.SIGINT, handle)
    except ValueError:  # not in the main thread, where signals can't be handled
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
