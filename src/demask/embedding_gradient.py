"""A tied vocabulary's gradient held once: the embedding's few rows are added to the head's gradient in place."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def rows_added_in_place(model: Any) -> Iterator[None]:
    """While it lasts, a backward pass through a tied model makes one gradient of its vocabulary's size, V x D, not two.

    A tied weight is used twice. torch makes the embedding's gradient, which is zero but for a batch's tokens, as large as the head's,
    before it adds them. Here these tokens' rows are kept, and added when the head's gradient has arrived. The sum is the same but for
    rounding. Models that are not tied, are frozen there or do more in their embedding than looking up (scaling) are left as they are.

    For one process that holds the model whole: what reduces gradients over processes would take the head's before the rows are in it.
    """
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    weight = embeddings.weight
    plain = type(embeddings) is torch.nn.Embedding and embeddings.max_norm is None and not embeddings.scale_grad_by_freq
    if head is None or head.weight is not weight or not weight.requires_grad or not plain:
        yield
        return
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep_rows(module: Any, args: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor | None:
        return _KeepRows.apply(output.detach(), weight, args[0], embeddings.padding_idx, rows) if torch.is_grad_enabled() else None

    def add_rows(weight: torch.Tensor) -> None:
        assert weight.grad is not None
        for ids_N, gradient_ND in rows:
            weight.grad.index_add_(0, ids_N, gradient_ND.to(weight.grad.dtype))
        rows.clear()

    handles = [embeddings.register_forward_hook(keep_rows), weight.register_post_accumulate_grad_hook(add_rows)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _KeepRows(torch.autograd.Function):
    """The embedded tokens as they are. In the backward pass their ids and gradients go to `rows`.

    `weight` gets no gradient here, but as an input makes torch hold back its accumulation until this node is through.
    """

    @staticmethod
    def forward(
        ctx: Any, states: torch.Tensor, weight: torch.Tensor, ids: torch.Tensor, padding: int | None, rows: list[Any]
    ) -> torch.Tensor:
        ctx.save_for_backward(ids)
        ctx.padding, ctx.rows = padding, rows
        return states.view_as(states)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, ...]:
        ids_N, gradient_ND = ctx.saved_tensors[0].flatten(), gradient.flatten(0, -2)
        if ctx.padding is not None:  # torch's embedding trains no padding token either
            seen = ids_N != ctx.padding
            ids_N, gradient_ND = ids_N[seen], gradient_ND[seen]
        ctx.rows.append((ids_N, gradient_ND))
        return None, None, None, None, None
