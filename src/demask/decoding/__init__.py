"""Answers from a model of either family: the decoder is chosen by the checkpoint's configuration, for a causal one among backends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from demask.decoding import causal, continuous, diffusion, vllm
from demask.decoding.diffusion import Sampling
from demask.models.family import family
from demask.models.load import load_config, load_model
from demask.types import InputError

# Of causal models: our own loop, which is also what training asks by; transformers' continuous batching; vLLM.
BACKENDS = {"transformers": causal.generate, "continuous": continuous.generate, "vllm": vllm.generate}


def load(name: str, dtype: torch.dtype, backend: str, device: torch.device) -> Any:
    """The model, as `generate` takes it for a backend; vLLM finds its own device."""
    if backend == "vllm":
        return vllm.Checkpoint(name, load_config(name), dtype)
    return load_model(name, dtype).to(device)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    sampling: Sampling | None = None,
    backend: str = "transformers",
    **options: Any,
) -> list[str]:
    """The model's answer to each prompt (ids); `options` as in `causal.generate` and `diffusion.generate`.

    Raises InputError where `sampling` is given for a causal model, which is always decoded greedily, or another backend for a diffusion
    model.
    """
    refuse_backend(model.config, backend)
    if family(model.config) == "diffusion":
        return diffusion.generate(model, tokenizer, prompts, sampling=sampling, **options)
    refuse_sampling(model.config, sampling)
    return BACKENDS[backend](model, tokenizer, prompts, **options)


def check_decoding(config: Any, tokenizer: Any, sampling: Sampling | None, backend: str = "transformers") -> None:
    """Raise InputError, before weights load, for what `generate` would refuse."""
    refuse_backend(config, backend)
    refuse_sampling(config, sampling)
    if family(config) == "diffusion":
        diffusion.refuse_maskless(tokenizer)
    if backend == "vllm":
        vllm.refuse_missing()


def refuse_backend(config: Any, backend: str) -> None:
    """Raise InputError for a backend that is unknown or writes from left to right for a model that does not."""
    if backend not in BACKENDS:
        raise InputError(f"backend: must be one of {', '.join(BACKENDS)}, found '{backend}'")
    if backend != "transformers" and family(config) == "diffusion":
        raise InputError(f"backend: '{backend}' writes left to right, and this checkpoint is a masked diffusion model")


def refuse_sampling(config: Any, sampling: Sampling | None) -> None:
    """Raise InputError where a causal model is given options of the diffusion sampler."""
    if family(config) == "causal" and sampling not in (None, Sampling()):
        changed = next(name for name in vars(Sampling()) if getattr(sampling, name) != getattr(Sampling(), name))
        raise InputError(f"{changed}: is for masked diffusion models, and this checkpoint writes left to right")
