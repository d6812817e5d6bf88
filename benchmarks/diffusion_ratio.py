"""What the way of drawing mask ratios does to masked diffusion's accuracy at equal steps.

    python benchmarks/diffusion_ratio.py --output_dir runs/ratio [--seeds 4 5] [--steps 300]

The quickstart's masked diffusion (comparison.py) with its ratios stratified over the batch, one an example (LLaDA) and one a batch (the
paper), in as many steps; exact containment on the test questions. Finished runs are kept, so the command can be repeated.
Writes benchmarks/results/diffusion_ratio.json.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from demask.comparison import METHODS, METRIC, QuickstartSettings
from demask.corpora import world
from demask.runs import environment, read_run
from demask.types import write_documents, write_json, write_questions

RESULT = Path(__file__).parent / "results" / "diffusion_ratio.json"
VARIANTS = {
    "stratified, 1/t": {"mask_ratio_per": "stratified", "loss_weights": "1/t"},
    "example, 1/t": {"mask_ratio_per": "example", "loss_weights": "1/t"},
    "batch, 1/t": {"mask_ratio_per": "batch", "loss_weights": "1/t"},
}


def run(variant: str, seed: int, steps: int, folder: Path) -> dict[str, float]:
    """Accuracy by direction of one fine-tuning, in a process of one thread."""
    import torch

    from demask.settings import TrainArguments, TrainSettings
    from demask.stages.train import train

    torch.set_num_threads(1)
    quickstart, method = QuickstartSettings(seed=seed), METHODS["diffusion"]
    target = folder / f"{variant.replace(', ', '-').replace('/', '')}-{seed}-{steps}"
    record = read_run(target)
    if not record or record["status"] != "finished":
        documents, questions = world.statement_corpus(seed)
        write_documents(target / "documents.jsonl", documents)
        write_questions(target / "questions.jsonl", [q for q in questions if q.split == "test"])
        write_documents(target / "rehearsal.jsonl", world.rehearsal(2000, seed))
        (target / "run.json").unlink(missing_ok=True)
        settings: dict[str, Any] = method.settings | VARIANTS[variant]
        record = train(
            TrainSettings(
                documents=[str(target / "documents.jsonl")],
                questions=str(target / "questions.jsonl"),
                replay=[str(target / "rehearsal.jsonl")],
                replay_share=quickstart.replay_share,
                select_on="last",
                max_new_tokens=quickstart.max_new_tokens,
                attn_implementation="eager",
                **settings,
            ),
            TrainArguments(
                output_dir=str(target),
                max_steps=steps,
                per_device_train_batch_size=quickstart.batch_size,
                gradient_accumulation_steps=1,
                learning_rate=method.learning_rate,
                lr_scheduler_type=quickstart.lr_scheduler_type,
                seed=seed,
                per_device_eval_batch_size=128,
                save_strategy="no",
                disable_tqdm=True,
            ),
            say=lambda line: None,
        )
    return {direction: cell[METRIC]["mean"] for direction, cell in record["results"]["by_direction"].items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[4, 5])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with ProcessPoolExecutor(args.workers, multiprocessing.get_context("spawn")) as pool:
        # By seeds, so that an interrupted benchmark has all variants of the first ones.
        futures = {
            (seed, variant): pool.submit(run, variant, seed, args.steps, args.output_dir) for seed in args.seeds for variant in VARIANTS
        }
        scores = {key: future.result() for key, future in futures.items()}
    results = []
    for variant in VARIANTS:
        by_direction = {d: [scores[seed, variant][d] for seed in args.seeds] for d in ("forward", "backward")}
        results.append({"variant": variant} | {d: [round(value, 4) for value in values] for d, values in by_direction.items()})
        means = "  ".join(f"{d} {sum(v) / len(v):.3f} ({', '.join(f'{value:.2f}' for value in v)})" for d, v in by_direction.items())
        print(f"{variant:20} {means}")
    write_json(RESULT, {"seeds": args.seeds, "steps": args.steps, "metric": METRIC, "results": results, "environment": environment()})


if __name__ == "__main__":
    main()
