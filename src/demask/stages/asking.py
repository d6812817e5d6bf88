"""The questions of a training: of the base model before it, during it, and of the saved model after it."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch

from demask.decoding import Sampling
from demask.distributed import is_main, whole_models
from demask.models.family import family
from demask.models.load import load_config, load_model
from demask.runs import BEFORE, KNOWN_AFTER, KNOWN_BEFORE
from demask.scoring import score_all, summarise
from demask.settings import TrainArguments, TrainSettings
from demask.shortage import advice_when_out_of_memory, empty_cache
from demask.stages.benchmarks import benchmarks
from demask.stages.eval import answer_limit, ask, choose_shots, decoding_settings, evaluate, retention
from demask.stages.grid import model_content
from demask.stages.inputs import digest
from demask.stages.kept import kept_share
from demask.stages.plan import Plan
from demask.types import Answer, Question, answer_record, question_record, read_jsonl, write_jsonl


def _sampling(settings: TrainSettings) -> Sampling | None:
    """A diffusion model's exact mode, one token a forward pass."""
    return Sampling(block_length=settings.block_length) if settings.objective == "diffusion" else None


def _asking(args: TrainArguments) -> contextlib.AbstractContextManager[None]:
    """In here running out of memory ends in a line that says what to change."""
    at_once = args.per_device_eval_batch_size
    ways = [*([f"--per_device_eval_batch_size {at_once // 2}"] if at_once > 1 else []), "a smaller --max_new_tokens"]
    return advice_when_out_of_memory("while asking questions", "try " + ", ".join(ways))


def limits(settings: TrainSettings, plan: Plan) -> tuple[int, int]:
    """The tokens of the longest answer to the questions, and to those about what is known already (see `answer_limit`)."""
    asked, known = (
        answer_limit(settings.max_new_tokens, questions, plan.chat, plan.config, _sampling(settings))
        for questions in (plan.questions, plan.known[0])
    )
    return asked, known


def said_of_limit(settings: TrainSettings, plan: Plan) -> list[str]:
    """A line on how long an answer may be; none where nothing is asked, or it was given."""
    if not plan.questions or settings.max_new_tokens is not None:
        return []
    return [f"answers: at most {limits(settings, plan)[0]} tokens, by the longest right one; --max_new_tokens gives another number"]


def asker(settings: TrainSettings, args: TrainArguments, plan: Plan) -> Callable[[Any], dict[str, float]]:
    """What the trainer calls with its model at every evaluation: numbers for the log, from the questions that choose the checkpoint."""
    split = "test" if settings.select_on == "test" else "validation"
    questions, limit = [q for q in plan.questions if q.split == split], limits(settings, plan)[0]

    def answers_of(model: Any) -> dict[str, float]:
        with _asking(args):
            answers = ask(
                model,
                plan.chat,
                questions,
                max_new_tokens=limit,
                batch_size=args.per_device_eval_batch_size,
                sampling=_sampling(settings),
            )
        by_direction = summarise(answers)["by_direction"]
        metrics = {
            f"{direction}_{name}": leaf[name]["mean"] for direction, leaf in by_direction.items() for name in ("rouge1_recall", "contains")
        }
        means = [leaf["rouge1_recall"]["mean"] for leaf in by_direction.values()]
        return metrics | {"mean": sum(means) / len(means)}

    return answers_of


def base_before(
    settings: TrainSettings, args: TrainArguments, plan: Plan, record: dict[str, Any] | None, shared: Path | None = None
) -> tuple[dict[str, Any], list[Answer]]:
    """(what the base model answers before the training, for the record; its answers to the test questions, for before.jsonl).

    `before`: the results of the test questions, as `results` are those of the trained model. `retention`: `{"before": what it knows
    besides}`. What is not asked is missing. A resumed run has them in its `record`, and no new answers, unless it asks other questions, or
    with other settings. Runs of one study share the answers in the folder `shared`, where each base is asked the same questions once; only
    a run in a single process may have one.
    """
    found, answers = dict[str, Any](), list[Answer]()
    model, test = cache(lambda: _load(plan.base, settings, args)), [q for q in plan.questions if q.split == "test"]
    assert args.output_dir is not None
    folder, was = Path(args.output_dir), record if record and _asks_as(record, settings) else {}
    if "before" in was and _answered(folder / BEFORE) == list(map(question_record, test)):
        found["before"] = was["before"]
    elif test:
        found["before"], answers = _ask_before(settings, args, plan, model, shared)
    if any(plan.known):
        same = _answered(folder / KNOWN_BEFORE) == list(map(question_record, plan.known[0]))
        before = was.get("retention", {}).get("before") if same else None
        before = before or _ask_known(settings, args, plan, model(), KNOWN_BEFORE)
        found["retention"] = {"before": before}
    model.cache_clear()  # the model that is trained needs its place
    gc.collect()
    empty_cache()
    return found, answers


# What questions are asked with, besides their text: another value in a resumed run would compare two ways of asking, not two models.
_ASKED_WITH = ("few_shot", "max_new_tokens", "eval_dtype", "system_prompt", "block_length", "retention_documents", "text_column")


def _asks_as(record: dict[str, Any], settings: TrainSettings) -> bool:
    told = record.get("config", {}).get("settings", {})
    return all(told.get(name, getattr(settings, name)) == getattr(settings, name) for name in _ASKED_WITH)


def _answered(path: Path) -> list[dict[str, Any]]:
    """The questions of a file of answers, as records; none without the file."""
    lines = read_jsonl(path) if path.is_file() else ()
    return [{name: value for name, value in record.items() if name not in ("prediction", "scores")} for _, record in lines]


def _load(folder: str, settings: TrainSettings, args: TrainArguments) -> Any:
    with whole_models():
        return load_model(folder, getattr(torch, settings.eval_dtype)).to(args.device)


def _ask_before(
    settings: TrainSettings, args: TrainArguments, plan: Plan, model: Callable[[], Any], shared: Path | None
) -> tuple[dict[str, Any], list[Answer]]:
    """The base's results of the test questions and its answers: asked, or those that another run of the study has left in `shared`."""
    test = [q for q in plan.questions if q.split == "test"]
    shots = choose_shots(plan.questions, settings.few_shot, args.seed)[0] if settings.few_shot else []
    config, limit = load_config(plan.base), limits(settings, plan)[0]
    sampling = _sampling(settings) if family(config) == "diffusion" else None
    said = {"model": settings.model_name_or_path or "embedded", "few_shot": settings.few_shot, "split": "test", "seed": args.seed}
    said |= decoding_settings(config, limit, sampling, getattr(torch, settings.eval_dtype))

    def asked() -> list[Answer]:
        options: dict[str, Any] = {"max_new_tokens": limit, "batch_size": args.per_device_eval_batch_size, "sampling": sampling}
        with _asking(args):
            return ask(model(), plan.chat, test, shots=shots, **options)

    if shared is None:
        answers = asked()
    else:
        alike = [said | {"seed": None}, settings.system_prompt, *(list(map(question_record, questions)) for questions in (shots, test))]
        name = digest(json.dumps([model_content(plan.base), alike], sort_keys=True).encode())[:12]
        answers = _shared(shared / f"{name}.jsonl", test, asked)
    return summarise(answers) | {"settings": said}, answers


def _shared(path: Path, questions: list[Question], asked: Callable[[], list[Answer]]) -> list[Answer]:
    """The answers in a file, which is written first where there is none: by one process, while others wait for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(".lock")):
        if path.exists():
            return score_all(questions, [record["prediction"] for _, record in read_jsonl(path)])
        answers = asked()
        write_jsonl(path, map(answer_record, answers))
        return answers


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    with open(path, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tasks_before(settings: TrainSettings, args: TrainArguments, plan: Plan, before: dict[str, Any] | None) -> dict[str, Any]:
    """What lm-eval finds of the base model, on the main process while the others wait; a resumed run has it in its record."""
    if not is_main() or not settings.lm_eval_tasks:
        return {}
    with whole_models():
        return (before or {}).get("lm_eval") or benchmarks(settings, args, plan.base, "before")


def _ask_known(settings: TrainSettings, args: TrainArguments, plan: Plan, model: Any, answers_file: str) -> dict[str, Any]:
    """`retention` of a model; the answers go to `answers_file` in the output folder."""
    assert args.output_dir is not None
    sampling = _sampling(settings) if family(model.config) == "diffusion" else None
    options: dict[str, Any] = {"max_new_tokens": limits(settings, plan)[1], "sampling": sampling}
    options["answers_file"] = Path(args.output_dir) / answers_file
    with _asking(args):
        return retention(model, plan.chat, *plan.known, batch_size=args.per_device_eval_batch_size, seed=args.seed, **options)


def final_questions(settings: TrainSettings, args: TrainArguments, plan: Plan, known: dict[str, Any]) -> dict[str, Any]:
    """Ask the test questions, and those about what was `known`, of the saved model; returns `results` and `retention` for the record.

    Every process loads the whole model and answers a share; one writes.
    """
    assert args.output_dir is not None
    if not any(q.split == "test" for q in plan.questions):
        found: dict[str, Any] = {"results": {}} if plan.questions else {}
        after = _ask_known(settings, args, plan, _load(args.output_dir, settings, args), KNOWN_AFTER) if known else None
        return found | _retained(args.output_dir, known, after)
    with whole_models(), _asking(args):
        results = evaluate(
            args.output_dir,
            plan.questions,
            args.output_dir,
            few_shot=settings.few_shot,
            split="test",
            retention_questions=plan.known[0],
            retention_documents=plan.known[1],
            max_new_tokens=settings.max_new_tokens,
            batch_size=args.per_device_eval_batch_size,
            sampling=_sampling(settings),
            seed=args.seed,
            system_prompt=settings.system_prompt,
            dtype=getattr(torch, settings.eval_dtype),
            quiet=bool(args.disable_tqdm),
        )
    after = results.pop("retention", None)
    return {"results": results} | _retained(args.output_dir, known, after)


def _retained(folder: str, known: dict[str, Any], after: dict[str, Any] | None) -> dict[str, Any]:
    """`retention` for the record: before, after, and, where the base answered questions right, what is `kept` of them."""
    kept = kept_share(folder) if known and is_main() else {}
    return {"retention": known | {"after": after} | ({"kept": kept} if kept else {})} if known else {}
