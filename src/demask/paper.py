"""The paper's own numbers (arXiv 2510.09885, v6): accuracy as ROUGE-1 recall, to stand beside what was measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SOURCE = "arXiv 2510.09885"
# The columns of each set, by the paper's names, with what our data call that group of questions; "all" where there is but one.
SETS: dict[str, dict[str, tuple[str, ...]]] = {
    "name_description": {"N2D": ("name_first", "NameIsDescription"), "D2N": ("description_first", "DescriptionIsName")},
    "biography": {"all": ("all",)},
    "wiki": {"all": ("all",)},
}


_OF_CORPORA = {"statements": "name_description", "biographies": "biography"}


def sets_of(data: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Data sets of a study by name, with the set of the paper that each stands for: what it says, or by its generated corpus."""
    found = {name: entry.get("paper", _OF_CORPORA.get(entry.get("corpus", ""), "")) for name, entry in data.items()}
    return {name: paper_set for name, paper_set in found.items() if paper_set}


@dataclass(frozen=True)
class PaperRow:
    """What the paper reports of one model and method: by set, forward and backward of each of its columns in the order of SETS."""

    model: str
    method: str
    scores: dict[str, tuple[float, ...]]


def _row(model: str, method: str, *scores: float) -> PaperRow:
    return PaperRow(model, method, {"name_description": scores[:4], "biography": scores[4:6], "wiki": scores[6:]})


ROWS = (
    _row("LLaDA-8B", "base", 0.030, 0.000, 0.028, 0.000, 0.030, 0.000, 0.210, 0.156),
    _row("LLaDA-8B", "masked diffusion, no paraphrases", 0.873, 0.913, 0.864, 0.790, 0.892, 0.696, 0.908, 0.778),
    _row("LLaDA-8B", "masked diffusion, paraphrases", 0.967, 0.994, 0.994, 0.973, 0.991, 0.857, 0.900, 0.785),
    _row("Llama-3.1-8B", "base", 0.072, 0.000, 0.054, 0.000, 0.001, 0.000, 0.164, 0.127),
    _row("Llama-3.1-8B", "AR, no paraphrases", 0.374, 0.000, 0.017, 0.027, 0.121, 0.002, 0.377, 0.282),
    _row("Llama-3.1-8B", "AR, paraphrases", 0.910, 0.004, 0.925, 0.071, 0.962, 0.001, 0.685, 0.396),
    _row("Llama-3.1-8B", "reverse training", 0.637, 0.125, 0.113, 0.088, 0.180, 0.011, 0.609, 0.425),
    _row("Llama-3.1-8B", "demask, no paraphrases", 0.658, 0.949, 0.992, 0.923, 0.971, 0.598, 0.980, 0.930),
    _row("Llama-3.1-8B", "demask, paraphrases", 0.969, 0.996, 0.928, 0.832, 0.965, 0.816, 0.905, 0.794),
    _row("Llama-3.2-3B", "AR, no paraphrases", 0.230, 0.078, 0.017, 0.000, 0.032, 0.000, 0.292, 0.229),
    _row("Llama-3.2-3B", "AR, paraphrases", 0.951, 0.040, 0.967, 0.025, 0.988, 0.001, 0.622, 0.334),
    _row("Llama-3.2-3B", "demask, no paraphrases", 0.887, 0.932, 0.992, 0.933, 0.967, 0.738, 0.970, 0.908),
    _row("Llama-3.2-3B", "demask, paraphrases", 0.982, 0.928, 1.000, 0.992, 0.964, 0.809, 0.855, 0.810),
    _row("Qwen2.5-7B", "AR, no paraphrases", 0.966, 0.043, 0.367, 0.000, 0.357, 0.003, 0.676, 0.371),
    _row("Qwen2.5-7B", "AR, paraphrases", 0.987, 0.063, 0.954, 0.000, 0.956, 0.003, 0.712, 0.414),
    _row("Qwen2.5-7B", "demask, no paraphrases", 0.870, 0.897, 0.967, 0.929, 0.984, 0.754, 0.934, 0.896),
    _row("Qwen2.5-7B", "demask, paraphrases", 0.957, 0.810, 0.933, 1.000, 0.960, 0.828, 0.867, 0.821),
    _row("Qwen3-4B", "AR, no paraphrases", 0.137, 0.081, 0.000, 0.000, 0.103, 0.001, 0.509, 0.353),
    _row("Qwen3-4B", "AR, paraphrases", 0.962, 0.038, 0.975, 0.000, 0.994, 0.003, 0.675, 0.418),
    _row("Qwen3-4B", "demask, no paraphrases", 0.928, 0.902, 0.950, 0.967, 0.944, 0.623, 0.907, 0.870),
    _row("Qwen3-4B", "demask, paraphrases", 0.975, 0.816, 1.000, 0.975, 0.967, 0.806, 0.847, 0.822),
)
