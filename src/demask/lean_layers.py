"""A Llama-like model's training step on a CPU, in as few products and passes over memory as it takes.

Queries, keys and values come from one product, gates and what they gate from another; rotations and gates are one step each; weights are
cast once per optimiser step, and their gradients are written where the last step's stood. Narrow models spend most of their time not on
products but on what stands between them: casts, copies, new memory and elementwise steps.

Shapes: T tokens of a packed batch (see packing.py), D width, F width of the MLP, H heads, K of them of keys and values, of E numbers each.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch.nn import functional

from demask.norms import rms_norm
from demask.packing import attend, gather, lay

# Families whose layer is norm, attention, sum, norm, silu(gate) x up, sum, with rotary embeddings over whole heads and no norm in between.
FAMILIES = ("llama", "mistral", "qwen2")
_LINEAR = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


@contextlib.contextmanager
def lean_layers(model: Any) -> Iterator[Callable[[], None]]:
    """While it lasts, a model of FAMILIES on a CPU trains on packed batches by `layer_forward` and `Product`; gives what to call when the
    weights have changed. A model with an adapter, frozen weights or dropout is left as it is, and so is all that is not a packed batch."""
    layers = list(model.get_decoder().layers) if _fits(model) else []
    products = [Layer(layer) for layer in layers]
    for layer, made in zip(layers, products, strict=True):
        layer.forward = partial(layer_forward, layer, layer.forward, made)
    head = model.get_output_embeddings() if layers else None
    last = Product([head]) if type(head) is torch.nn.Linear else None
    if head is not None and last:
        head.forward = partial(head_forward, head.forward, last)

    def weights_changed() -> None:
        for product in [product for layer in products for product in vars(layer).values()] + ([last] if last else []):
            product.current = False

    try:
        yield weights_changed
    finally:
        for module in [*layers, *([head] if last else [])]:
            del module.forward


def _fits(model: Any) -> bool:
    config = model.config
    if hasattr(model, "peft_config") or config.model_type not in FAMILIES or model.device.type != "cpu":
        return False
    linear = [layer.get_submodule(name) for layer in model.get_decoder().layers for name in _LINEAR]
    plain = all(type(module) is torch.nn.Linear and module.weight.requires_grad for module in linear)
    return plain and config.hidden_act == "silu" and not config.attention_dropout


class Layer:
    """A layer's four products."""

    def __init__(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.qkv = Product([attention.q_proj, attention.k_proj, attention.v_proj], pairs_of=attention.head_dim)
        self.output = Product([attention.o_proj])
        self.gate_and_up = Product([mlp.gate_proj, mlp.up_proj])
        self.down = Product([mlp.down_proj])


def layer_forward(
    layer: Any,
    usual: Any,
    products: Layer,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
    packed_places: torch.Tensor | None = None,
    **kwargs: Any,
) -> torch.Tensor:
    """The layer's (1, T, D) states of a packed batch; `usual` computes any other, such as a question's."""
    if packed_places is None:
        return usual(hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings, **kwargs)
    assert position_embeddings is not None
    assert attention_mask is not None
    states_TD, attention = hidden_states[0], layer.self_attn
    cos_TE, sin_TE = (values[0] for values in position_embeddings)

    qkv = products.qkv(rms_norm(layer.input_layernorm, states_TD)).unflatten(1, (-1, attention.head_dim))
    shared = qkv.shape[1] // (attention.num_key_value_groups + 2)
    heads = [shared * attention.num_key_value_groups, shared, shared]
    qkv = _Rotate.apply(qkv, cos_TE, sin_TE, heads[0], attention.scaling)
    laid_BHLE = lay(qkv, packed_places, attention_mask).transpose(1, 2).contiguous()
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    query, key, value = laid_BHLE.split(heads, 1)
    attended_BLHE = attend(attention, query, key, value, attention_mask, scaling=1.0, sliding_window=window)
    states_TD = states_TD + products.output(gather(attended_BLHE, packed_places, len(states_TD)).flatten(1))

    gated_TF = _Gate.apply(products.gate_and_up(rms_norm(layer.post_attention_layernorm, states_TD)))
    return (states_TD + products.down(gated_TF))[None]


def head_forward(usual: Any, product: Product, states: torch.Tensor) -> torch.Tensor:
    """Logits (1, N, V) of the N positions that are trained on."""
    if not torch.is_grad_enabled() or not states.requires_grad:
        return usual(states)
    device = states.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype
    return product(states.flatten(0, -2).to(dtype)).unflatten(0, states.shape[:-1])


class Product:
    """Linear layers that read the same states, as one product: (T, O) from (T, D), where O counts the outputs of all.

    Their weights stand in it in the states' dtype, cast again after `current` was set to False. Rows of all layers but the last are
    interleaved within each head of `pairs_of` numbers, so that those which are rotated together, e and e + E / 2, are neighbours.
    """

    def __init__(self, layers: Sequence[torch.nn.Linear], pairs_of: int = 0) -> None:
        self.layers, self.pairs_of = layers, pairs_of
        self.sizes = [layer.out_features for layer in layers]
        self.current = False
        self.cast: torch.Tensor | None = None
        self.storages: list[Any] = [None] * len(layers)

    def __call__(self, states_TD: torch.Tensor) -> torch.Tensor:
        weights = [layer.weight for layer in self.layers]
        self._cast(weights, states_TD.dtype)
        joined_TO = _Product.apply(states_TD, self, *weights)
        if self.layers[0].bias is not None:
            biases = [self._paired(i, layer.bias[:, None]).flatten() for i, layer in enumerate(self.layers)]
            joined_TO = joined_TO + torch.cat(biases).to(joined_TO.dtype)
        return joined_TO

    def _cast(self, weights: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        if self.cast is None or self.cast.dtype != dtype:
            self.cast, self.current = weights[0].new_empty(sum(self.sizes), weights[0].shape[1], dtype=dtype), False
        if not self.current:
            for i, (part, weight) in enumerate(zip(self.cast.split(self.sizes), weights, strict=True)):
                paired = self._paired(i, weight.detach())
                part.view(paired.shape).copy_(paired)
            self.current = True

    def _paired(self, i: int, weight_OD: torch.Tensor) -> torch.Tensor:
        """A view of the i-th layer's weight with its rows in the order of the product: (O / E, E / 2, 2, D), or as it is."""
        if not self.pairs_of or i == len(self.layers) - 1:
            return weight_OD
        return weight_OD.unflatten(0, (-1, 2, self.pairs_of // 2)).transpose(1, 2)

    def gradients(self, states_TD: torch.Tensor, gradient_TO: torch.Tensor) -> Iterator[torch.Tensor]:
        """Those of the weights, in their dtype, cast piece by piece into the memory of the last step's."""
        long = len(states_TD) >= _LONG
        states_DT = states_TD.t().contiguous() if long else None
        start = 0
        for i, layer in enumerate(self.layers):
            weight, size = layer.weight, self.sizes[i]
            if self.storages[i] is None or weight.grad is not None:  # the latter is another micro-batch's, and must not be written over
                gradient_OD = torch.empty_like(weight)
                self.storages[i] = gradient_OD.untyped_storage()
            else:
                gradient_OD = weight.new_empty(0).set_(self.storages[i], 0, weight.shape, weight.stride())
            rows = size if self.pairs_of else _ROWS
            for first in range(0, size, rows):
                of_part_TO = gradient_TO[:, start + first : start + min(first + rows, size)]
                part_OD = of_part_TO.t() @ states_TD if states_DT is None else (states_DT @ of_part_TO).t()
                paired = self._paired(i, gradient_OD[first : first + rows])
                paired.copy_(part_OD.unflatten(0, paired.shape[:-1]))
            start += size
            yield gradient_OD


# Of a vocabulary's gradient that many rows are made and cast at a time; from that many tokens on, its transpose is made faster.
_ROWS, _LONG = 4096, 1024


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states_TD: torch.Tensor, product: Product, *weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(states_TD)
        ctx.product, ctx.weight_OD = product, product.cast
        return functional.linear(states_TD, ctx.weight_OD)

    @staticmethod
    def backward(ctx: Any, gradient_TO: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (states_TD,) = ctx.saved_tensors
        return gradient_TO @ ctx.weight_OD, None, *ctx.product.gradients(states_TD, gradient_TO)


class _Rotate(torch.autograd.Function):
    """(T, H + 2 K, E) heads, those of queries and keys rotated by their positions, and the queries scaled, in fp32 within.

    Neighbouring numbers of a head are rotated together, as one complex number, by cos and sin (T, E), whose halves are alike (RoFormer,
    arXiv 2104.09864).
    """

    @staticmethod
    def forward(ctx: Any, qkv: torch.Tensor, cos_TE: torch.Tensor, sin_TE: torch.Tensor, queries: int, scale: float) -> torch.Tensor:
        half = cos_TE.shape[1] // 2
        turn = torch.complex(cos_TE[:, None, :half].float(), sin_TE[:, None, :half].float())
        ctx.save_for_backward(turn)
        ctx.queries, ctx.scale = queries, scale
        return _rotated(qkv, turn, queries, scale)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        return _rotated(gradient, ctx.saved_tensors[0].conj().resolve_conj(), ctx.queries, ctx.scale), None, None, None, None


def _rotated(heads: torch.Tensor, turn: torch.Tensor, queries: int, scale: float) -> torch.Tensor:
    """A new tensor in which all heads but the last are multiplied by `turn` (T, 1, E / 2), the first `queries` also by `scale`."""
    keys = (heads.shape[1] - queries) // 2
    turned = heads[:, : queries + keys].float()
    numbers = torch.view_as_complex(turned.unflatten(2, (-1, 2)))
    numbers[:, :queries].mul_(turn * scale)
    numbers[:, queries:].mul_(turn)
    result = torch.empty_like(heads)
    result[:, : queries + keys] = turned
    result[:, queries + keys :] = heads[:, queries + keys :]
    return result


class _Gate(torch.autograd.Function):
    """silu(gate) x up, (T, F), of (T, 2 F) whose first half are the gates (SwiGLU, arXiv 2002.05202)."""

    @staticmethod
    def forward(ctx: Any, gate_and_up: torch.Tensor) -> torch.Tensor:
        gate_TF, up_TF = gate_and_up.chunk(2, 1)
        opened_TF = functional.silu(gate_TF)
        ctx.save_for_backward(gate_and_up, opened_TF)
        return opened_TF * up_TF

    @staticmethod
    def backward(ctx: Any, gradient_TF: torch.Tensor) -> torch.Tensor:
        gate_and_up, opened_TF = ctx.saved_tensors
        gate_TF, up_TF = gate_and_up.chunk(2, 1)
        of_both = torch.empty_like(gate_and_up)
        of_gate, of_up = of_both.chunk(2, 1)
        torch.mul(gradient_TF, opened_TF, out=of_up)
        torch.mul(gradient_TF, up_TF, out=of_gate)
        torch.ops.aten.silu_backward.grad_input(of_gate, gate_TF, grad_input=of_gate)
        return of_both
