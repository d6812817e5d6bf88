"""General benchmarks: the tasks of lm-evaluation-harness (the extra `lm-eval`), asked of a model in a folder."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from demask.chat_format import TEMPLATE_OPTIONS
from demask.models.family import family
from demask.models.load import context_length, load_model, load_tokenizer, model_folder, stored_dtype
from demask.types import InputError

_ANSWER = 256  # tokens of the longest answer, where a task does not say


def check_tasks(tasks: Sequence[str], include_path: str | None, config: Any) -> None:
    """Raise InputError for a task that is unknown, a package that is not installed, and a model of the diffusion family."""
    if include_path and not tasks:
        raise InputError("lm_eval_include_path: goes with --lm_eval_tasks")
    if not tasks:
        return
    if find_spec("lm_eval") is None:
        raise InputError("lm_eval_tasks: lm-eval is not installed (pip install 'demask[lm-eval]')")
    if family(config) == "diffusion":
        raise InputError("lm_eval_tasks: a diffusion model can't be asked by lm-eval, which writes from left to right")
    if include_path and not Path(include_path).is_dir():
        raise InputError(f"lm_eval_include_path: '{include_path}' is no folder")
    known = _index(tuple(tasks), include_path).all_tasks
    for task in tasks:
        if task not in known:
            raise InputError(f"lm_eval_tasks: lm-eval {metadata.version('lm_eval')} knows no task '{task}' (lm-eval ls tasks)")


@cache
def _index(tasks: tuple[str, ...], include_path: str | None) -> Any:
    """An index that has the tasks, if any has. lm-eval's own takes up to half a minute, which a user's own tasks alone don't need."""
    own = _manager(include_path, False) if include_path else None
    return own if own and set(tasks) <= set(own.all_tasks) else _manager(include_path, True)


@cache
def _manager(include_path: str | None, all_of_them: bool) -> Any:
    from lm_eval.tasks import TaskManager

    try:
        return TaskManager(include_path=include_path, include_defaults=all_of_them)
    except Exception as error:  # the user's own task files may be broken in any way
        raise InputError(f"lm_eval_include_path: {_line(error)}") from None


def run_tasks(
    model_name_or_path: str | None,
    tasks: Sequence[str],
    include_path: str | None = None,
    *,
    batch_size: int = 64,
    system_prompt: str | None = None,
) -> dict[str, dict[str, dict[str, float | None]]]:
    """`{task: {metric: {"value", "stderr"}}}` of a model or adapter (None: the embedded one); a task group has a line of its own.

    Without examples, greedily unless a task says else, through the chat template where the tokenizer has one. A metric is called as lm-eval
    calls it, "exact_match,strict-match", without a filter "acc". On a GPU the weights have the dtype they are stored in. Raises
    InputError, before weights load, where a task or its data can't be had.
    """
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    manager = _index(tuple(tasks), include_path)
    try:
        manager.load(list(tasks))
    except Exception as error:  # whatever a task's own code, its data set's reader or the hub raises
        raise InputError(f"lm_eval_tasks: can't load {', '.join(tasks)} ({_line(error)})") from None
    folder = model_folder(model_name_or_path)
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, torch.float32 if device.type == "cpu" else stored_dtype(folder)).to(device)
    context = context_length(model.config, tokenizer)
    found = simple_evaluate(
        HFLM(model, tokenizer=tokenizer, batch_size=batch_size, max_length=context, chat_template_args=dict(TEMPLATE_OPTIONS)),
        tasks=list(tasks),
        num_fewshot=0,
        system_instruction=system_prompt,
        apply_chat_template=tokenizer.chat_template is not None,
        fewshot_as_multiturn=False,
        gen_kwargs={"max_gen_toks": context // 2} if context < 2 * _ANSWER else None,  # lm-eval's own default is _ANSWER
        task_manager=manager,
        log_samples=False,
    )
    assert found is not None
    results = found["results"]
    asked = [name for name in results if name in tasks] or list(results)  # of a tag, which has no result of its own, all its tasks
    return {name: _metrics(results[name]) for name in asked}


def _metrics(result: dict[str, Any]) -> dict[str, dict[str, float | None]]:
    """lm-eval's flat {"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...} by metric."""
    metrics: dict[str, dict[str, float | None]] = {}
    for key, value in result.items():
        name, _, kind = key.partition(",")
        if isinstance(value, int | float) and kind and not name.endswith("_stderr"):
            stderr = result.get(f"{name}_stderr,{kind}")
            spread = stderr if isinstance(stderr, int | float) and stderr == stderr else None
            metrics[name if kind == "none" else key] = {"value": float(value), "stderr": spread}
    return metrics


def benchmarks(settings: Any, args: Any, folder: str | None, when: str, before: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a run's record holds of its `lm_eval_tasks`, with those of the model in `folder` under `when` ("before", "after")."""
    found = run_tasks(
        folder,
        settings.lm_eval_tasks,
        settings.lm_eval_include_path,
        batch_size=args.per_device_eval_batch_size,
        system_prompt=settings.system_prompt,
    )
    return {"version": metadata.version("lm_eval")} | (before or {}) | {when: found}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
