"""Runs of the train stage in several processes, plain (DDP) and sharded (FSDP2), for tests/unit/test_many_processes.py::

python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.sharded FOLDER PHASE

accelerate shards on accelerators only; `fsdp2` lets it do the same on CPUs, as configs/accelerate/fsdp2.yaml says.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_multi_gpu_env
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import TrainerCallback

import demask.stages.train
from demask.chat_format import ChatFormat
from demask.models.load import EMBEDDED, load_model, load_tokenizer
from demask.settings import parse_train
from demask.stages.eval import ask
from demask.stages.train import train
from demask.types import Document, Question, write_documents, write_json, write_questions
from tests.models import save_model

FSDP2 = Path(__file__).resolve().parents[1] / "configs" / "accelerate" / "fsdp2.yaml"
STEPS, CUT, CUT_AGAIN = 6, 2, 4  # of a run, and those after which it is stopped
DOCUMENTS = ["Ann is the woman who keeps bees.", "The mason met the baker on 12 May 1984.", "They were glad! " * 5, "Who keeps bees? Ann."]
OBJECTIVES = {"demask": "base", "diffusion": "both --objective diffusion --mask_token <|reserved_special_token_0|> --block_length 4"}

ASKED = [
    Question(question, ("",), "forward")
    for question in ("Who?", "Tell me a fact.", "Who is Ann Ash?", "Who is the keeper of the amber bees?", "Where was Ann Ash born?")
]
ASKING: dict[str, Any] = {"max_new_tokens": 40, "batch_size": 2}


def write_inputs(folder: Path) -> None:
    write_documents(folder / "docs.jsonl", [Document(str(i), text) for i, text in enumerate(DOCUMENTS)])
    asked = ["Who keeps bees?", "Whom did the mason meet on 12 May 1984, near the old mill?", "Glad?"]
    rows = [Question(q, ("Ann",), "forward", split=split) for split in ("validation", "test") for q in asked]
    write_questions(folder / "questions.jsonl", rows)
    save_model(folder / "base")
    save_model(folder / "both", is_causal=False)


class Stop(TrainerCallback):
    """Asks for an end after `step`, as a user does: by the file named `stop`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step - 1 and state.is_world_process_zero:
            (Path(args.output_dir) / "stop").touch()


class Look(TrainerCallback):
    """Writes down how the model is sharded: the number of its FSDP modules, and the dtypes that they compute and sum gradients in."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        policies = [module._get_fsdp_state()._mp_policy for module in shards]
        found = {str((policy.param_dtype, policy.reduce_dtype)) for policy in policies}
        if state.is_world_process_zero:
            write_json(self.file, {"modules": len(shards), "dtypes": sorted(found)})


def flags_of(folder: Path, out: str, objective: str = "demask") -> list[str]:
    """What `demask train` is told, for a run in `folder/out` or to go on with the one there. A batch is 8 rows in any case."""
    flags = f"--documents {folder}/docs.jsonl --questions {folder}/questions.jsonl --retention_questions {folder}/questions.jsonl"
    flags += f" --retention_documents {folder}/docs.jsonl --model_name_or_path {folder}/{OBJECTIVES[objective]} --output_dir {folder}/{out}"
    flags += f" --max_steps {STEPS} --batch_size 8 --per_device_train_batch_size 2 --eval_steps 2 --logging_steps 1 --learning_rate 1e-3"
    flags += " --bf16 false --use_cpu true --max_new_tokens 6 --disable_tqdm true --select_on last"
    if (folder / out / "run.json").exists():
        flags += " --resume_from_checkpoint true"
    return flags.split()


def run(folder: Path, out: str, objective: str = "demask", stop: int | None = None, more: str = "") -> dict[str, Any]:
    """Train `objective` into `folder/out`, or go on with what is there, until after step `stop`."""
    callbacks = [Look(folder / f"{out}.json"), *([Stop(stop)] if stop else [])]
    return train(*parse_train([*flags_of(folder, out, objective), *more.split()]), callbacks=callbacks)


@contextlib.contextmanager
def fsdp2() -> Iterator[None]:
    """In here training is sharded as the launcher's configuration says, on CPUs."""
    environment = dict(os.environ)
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(["--config_file", str(FSDP2), "script"]))
    asked = prepare_multi_gpu_env(args)
    os.environ.update({name: asked[name] for name in asked if name.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))})
    begin, sharding = AcceleratorState.__init__, demask.stages.train.sharding

    def begin_sharded(self: Any, *arguments: Any, fsdp_plugin: Any = None, **options: Any) -> None:
        new = not AcceleratorState._shared_state
        begin(self, *arguments, fsdp_plugin=fsdp_plugin, **options)
        if new:  # what it does for a GPU
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState._reset_state()
    AcceleratorState.__init__ = begin_sharded  # type: ignore[method-assign]
    demask.stages.train.sharding = lambda use_cpu: sharding(False)
    try:
        yield
    finally:
        AcceleratorState.__init__ = begin  # type: ignore[method-assign]
        demask.stages.train.sharding = sharding
        AcceleratorState._reset_state()
        if PartialState._shared_state:
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_CPU
        os.environ.clear()
        os.environ.update(environment)


def plain(folder: Path) -> None:
    for objective in OBJECTIVES:
        run(folder, f"{objective}-ddp", objective)


def plain_resumed(folder: Path, stop: int | None) -> None:
    for objective in OBJECTIVES:
        run(folder, f"{objective}-ddp-resumed", objective, stop)


def sharded(folder: Path) -> None:
    with fsdp2():
        for objective in OBJECTIVES:
            run(folder, f"{objective}-fsdp", objective)
        run(folder, "bf16-fsdp", more="--bf16 true")
        os.environ["FSDP_ACTIVATION_CHECKPOINTING"] = "true"  # not so in the configuration, but in one of a user
        run(folder, "lora-fsdp", more="--use_peft")


def ask_in_shards(folder: Path) -> None:
    """ASKED of the embedded model, sharded as the Trainer does it."""
    name = str(EMBEDDED["tiny/causal"])
    with fsdp2():
        model = load_model(name)
        model, _ = Accelerator(cpu=True).prepare(model, torch.optim.SGD(model.parameters()))
        register_fsdp_forward_method(model, "generate")
        answers = ask(model, ChatFormat(load_tokenizer(name)), ASKED, **ASKING)
    write_json(folder / f"asked-{os.environ['RANK']}.json", [answer.prediction for answer in answers])


def sharded_resumed(folder: Path, stop: int | None) -> None:
    with fsdp2():
        for objective in OBJECTIVES:
            run(folder, f"{objective}-fsdp-resumed", objective, stop)
        run(folder, "lora-fsdp-resumed", stop=stop, more="--use_peft")
        if stop == CUT:
            run(folder, "best-fsdp", more="--select_on validation --activation_checkpointing true")


def main(folder: Path, phase: str) -> None:
    torch.set_num_threads(1)
    if phase == "begin":
        plain(folder)
        plain_resumed(folder, CUT)
        sharded(folder)
        ask_in_shards(folder)
    elif phase == "end":
        plain_resumed(folder, None)
    else:
        sharded_resumed(folder, {"sharded_begin": CUT, "sharded_middle": CUT_AGAIN, "sharded_end": None}[phase])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
