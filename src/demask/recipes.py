"""How often documents are visited, how fast, and in which batches, where the user does not say."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """Visits of each document, peak learning rate, and global batch."""

    visits: int
    learning_rate: float
    batch_size: int


# Rates and visits of full fine-tuning from 1 B parameters on are the paper's (its NameDescription runs without paraphrases); the embedded
# size is measured here (docs/results.md); the others are starting points between them.
_RECIPE_OF = {"autoregressive": 0, "reverse": 0, "meap": 0, "demask": 1, "diffusion": 2}
_RECIPES = {
    # (up to so many parameters, LoRA): by the numbers of _RECIPE_OF
    (5e7, False): (Recipe(130, 3e-4, 32), Recipe(130, 3e-4, 32), Recipe(260, 5e-4, 32)),
    (5e7, True): (Recipe(300, 5e-3, 32), Recipe(300, 5e-3, 32), Recipe(300, 5e-3, 32)),
    (1e9, False): (Recipe(300, 5e-5, 32), Recipe(300, 5e-5, 32), Recipe(300, 5e-5, 32)),
    (1e9, True): (Recipe(300, 5e-4, 32), Recipe(300, 5e-4, 32), Recipe(300, 5e-4, 32)),
    (7.9e9, False): (Recipe(3000, 5e-6, 64), Recipe(3000, 5e-6, 64), Recipe(3000, 1e-5, 64)),
    (7.9e9, True): (Recipe(300, 1e-4, 64), Recipe(300, 1e-4, 64), Recipe(300, 1e-4, 64)),
    (float("inf"), False): (Recipe(3000, 5e-6, 64), Recipe(3000, 3e-6, 64), Recipe(3000, 1e-5, 64)),
    (float("inf"), True): (Recipe(300, 1e-4, 64), Recipe(300, 1e-4, 64), Recipe(300, 1e-4, 64)),
}


def recipe(objective: str, parameters: int, lora: bool) -> Recipe:
    """The default visits, rate and batch for an objective, a model's size and LoRA or full fine-tuning."""
    size = min(limit for limit, with_lora in _RECIPES if with_lora == lora and parameters <= limit)
    return _RECIPES[size, lora][_RECIPE_OF[objective]]
