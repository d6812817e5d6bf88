"""Answers from a model of either family: the decoder is chosen by the checkpoint's configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from demask.decoding import causal, diffusion
from demask.decoding.diffusion import Sampling
from demask.models.family import family
from demask.types import InputError

DECODERS = {"causal": causal.generate, "diffusion": diffusion.generate}


def generate(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], *, sampling: Sampling | None = None, **options: Any
) -> list[str]:
    """The model's answer to each prompt (ids); `options` as in `causal.generate` and `diffusion.generate`.

    Raises InputError where `sampling` is given for a causal model, which is always decoded greedily.
    """
    if family(model.config) == "diffusion":
        options["sampling"] = sampling
    else:
        refuse_sampling(model.config, sampling)
    return DECODERS[family(model.config)](model, tokenizer, prompts, **options)


def check_decoding(config: Any, tokenizer: Any, sampling: Sampling | None) -> None:
    """Raise InputError, before weights load, for what `generate` would refuse."""
    refuse_sampling(config, sampling)
    if family(config) == "diffusion":
        diffusion.refuse_maskless(tokenizer)


def refuse_sampling(config: Any, sampling: Sampling | None) -> None:
    """Raise InputError where a causal model is given options of the diffusion sampler."""
    if family(config) == "causal" and sampling not in (None, Sampling()):
        changed = next(name for name in vars(Sampling()) if getattr(sampling, name) != getattr(Sampling(), name))
        raise InputError(f"{changed}: is for masked diffusion models, and this checkpoint writes left to right")
