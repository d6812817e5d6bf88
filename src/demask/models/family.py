"""Which family a checkpoint is of, as its configuration says: causal (left to right) or diffusion (bidirectional, fills in masks)."""

from __future__ import annotations

from typing import Any, Literal

Family = Literal["causal", "diffusion"]


def family(config: Any) -> Family:
    """Family "diffusion" where the configuration says `is_causal = false`, as transformers' own attention reads it."""
    return "diffusion" if getattr(config.get_text_config(), "is_causal", True) is False else "causal"


def predicts_next(config: Any) -> bool:
    """Whether the logits at a position are of the token after it: in a causal model, and in a diffusion model made from one (Dream)."""
    return family(config) == "causal" or bool(getattr(config.get_text_config(), "shifted_logits", False))


def make_bidirectional(config: Any, shifted_logits: bool) -> None:
    """Write into a configuration that its model is of the diffusion family; saved with it, a plain reload stays bidirectional."""
    text_config = config.get_text_config()
    text_config.is_causal = False
    text_config.shifted_logits = shifted_logits
