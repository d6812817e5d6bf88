"""How often documents are read, how fast, in which batches and under which masks, where the user does not say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

CONSTANT, LINEAR = "constant_with_warmup", "linear"


@dataclass(frozen=True)
class Recipe:
    """Passes over each document, peak learning rate, sequences a batch, the rate's schedule, the objective's own options, what the
    numbers rest on, and what to beware of."""

    passes: int
    learning_rate: float
    batch_size: int
    schedule: str = CONSTANT
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    basis: str = "a starting point, not measured"
    caution: str = ""  # printed where the learning rate is the recipe's and nothing is rehearsed


_MASKS = MappingProxyType({"mask_ratio_per": "example", "mask_pattern": "mix"})
_PAPER = "the paper's (arXiv 2510.09885)"
_BUNDLED = "measured on the bundled models (docs/results.md)"
_SMOLLM2 = "measured on SmolLM2-135M (docs/results.md)"
_FORGETS = "this recipe learns the documents and forgets most of what the model knew: rehearse other text with --replay, or lower the rate"


def _alike(recipe: Recipe, **of_demask: Any) -> dict[str, Recipe]:
    return {"autoregressive": recipe, "demask": replace(recipe, **of_demask), "diffusion": recipe}


# By (parameters up to, LoRA) and objective; the objectives that are not named train as autoregressive does.
_RECIPES: dict[tuple[float, bool], dict[str, Recipe]] = {
    (5e7, False): _alike(Recipe(130, 3e-4, 32, basis=_BUNDLED)) | {"diffusion": Recipe(260, 5e-4, 32, basis=_BUNDLED)},
    (5e7, True): _alike(Recipe(300, 5e-3, 32)),
    (3e8, False): _alike(Recipe(60, 3e-4, 8, LINEAR, basis=_SMOLLM2, caution=_FORGETS), options=_MASKS)
    | {"diffusion": Recipe(300, 3e-4, 8, LINEAR)},
    (3e8, True): _alike(Recipe(60, 2e-3, 8, LINEAR), options=_MASKS),
    (1e9, False): _alike(Recipe(60, 1e-4, 8, LINEAR), options=_MASKS) | {"diffusion": Recipe(300, 5e-5, 32)},
    (1e9, True): _alike(Recipe(60, 5e-4, 8, LINEAR), options=_MASKS) | {"diffusion": Recipe(300, 5e-4, 32)},
    (7.9e9, False): _alike(Recipe(3000, 5e-6, 64, basis=_PAPER)) | {"diffusion": Recipe(3000, 1e-5, 64, basis=_PAPER)},
    (7.9e9, True): _alike(Recipe(300, 1e-4, 64)),
    (float("inf"), False): _alike(Recipe(3000, 5e-6, 64, basis=_PAPER), learning_rate=3e-6)
    | {"diffusion": Recipe(3000, 1e-5, 64, basis=_PAPER)},
    (float("inf"), True): _alike(Recipe(300, 1e-4, 64)),
}


def recipe(objective: str, parameters: int, lora: bool) -> Recipe:
    """The defaults for an objective, a model's size, and LoRA or full fine-tuning."""
    size = min(limit for limit, with_lora in _RECIPES if with_lora == lora and parameters <= limit)
    rows = _RECIPES[size, lora]
    return rows.get(objective, rows["autoregressive"])
