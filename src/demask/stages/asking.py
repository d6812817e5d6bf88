"""The questions of a training: of the base model before it, during it, and of the saved model after it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from demask.decoding import Sampling
from demask.distributed import is_main, whole_models
from demask.models.family import family
from demask.models.load import load_model
from demask.runs import KNOWN_AFTER, KNOWN_BEFORE
from demask.scoring import summarise
from demask.settings import TrainArguments, TrainSettings
from demask.stages.benchmarks import benchmarks
from demask.stages.eval import ask, evaluate, retention
from demask.stages.kept import kept_share
from demask.stages.plan import Plan


def _sampling(settings: TrainSettings) -> Sampling | None:
    """A diffusion model's exact mode, one token a forward pass."""
    return Sampling(block_length=settings.block_length) if settings.objective == "diffusion" else None


def asker(settings: TrainSettings, args: TrainArguments, plan: Plan) -> Callable[[Any], dict[str, float]]:
    """What the trainer calls with its model at every evaluation: numbers for the log, from the questions that choose the checkpoint."""
    split = "test" if settings.select_on == "test" else "validation"
    questions = [q for q in plan.questions if q.split == split]

    def answers_of(model: Any) -> dict[str, float]:
        answers = ask(
            model,
            plan.chat,
            questions,
            max_new_tokens=settings.max_new_tokens,
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


def known_before(settings: TrainSettings, args: TrainArguments, plan: Plan, before: dict[str, Any] | None) -> dict[str, Any]:
    """What the base model knows (empty where nothing is asked), as `{"before": retention's}`; a resumed run has it in its record."""
    if not any(plan.known):
        return {}
    if before and "before" in before.get("retention", {}):
        return {"before": before["retention"]["before"]}
    return {"before": _ask_known(settings, args, plan, plan.base, KNOWN_BEFORE)}


def tasks_before(settings: TrainSettings, args: TrainArguments, plan: Plan, before: dict[str, Any] | None) -> dict[str, Any]:
    """What lm-eval finds of the base model, on the main process while the others wait; a resumed run has it in its record."""
    if not is_main() or not settings.lm_eval_tasks:
        return {}
    with whole_models():
        return (before or {}).get("lm_eval") or benchmarks(settings, args, plan.base, "before")


def _ask_known(settings: TrainSettings, args: TrainArguments, plan: Plan, folder: str, answers_file: str) -> dict[str, Any]:
    """`retention` of the model in a folder, in fp32; the answers go to `answers_file` in the output folder."""
    assert args.output_dir is not None
    with whole_models():
        model = load_model(folder).to(args.device)
    sampling = _sampling(settings) if family(model.config) == "diffusion" else None
    options: dict[str, Any] = {"max_new_tokens": settings.max_new_tokens, "sampling": sampling}
    options["answers_file"] = Path(args.output_dir) / answers_file
    return retention(model, plan.chat, *plan.known, batch_size=args.per_device_eval_batch_size, seed=args.seed, **options)


def final_questions(settings: TrainSettings, args: TrainArguments, plan: Plan, known: dict[str, Any]) -> dict[str, Any]:
    """Ask the test questions, and those about what was known, of the saved model; returns `results` and `retention` for the record.

    Every process loads the whole model and answers a share; one writes.
    """
    test = [q for q in plan.questions if q.split == "test"]
    assert args.output_dir is not None
    if not test:
        found: dict[str, Any] = {"results": {}} if plan.questions else {}
        after = _ask_known(settings, args, plan, args.output_dir, KNOWN_AFTER) if known else None
        return found | _retained(args.output_dir, known, after)
    shots = [q for q in plan.questions if q.split == "validation"] if settings.few_shot else []
    with whole_models():
        results = evaluate(
            args.output_dir,
            [*shots, *test],
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
            quiet=bool(args.disable_tqdm),
        )
    after = results.pop("retention", None)
    return {"results": results} | _retained(args.output_dir, known, after)


def _retained(folder: str, known: dict[str, Any], after: dict[str, Any] | None) -> dict[str, Any]:
    """`retention` for the record: before, after, and, where the base answered questions right, what is `kept` of them."""
    kept = kept_share(folder) if known and is_main() else {}
    return {"retention": known | {"after": after} | ({"kept": kept} if kept else {})} if known else {}
