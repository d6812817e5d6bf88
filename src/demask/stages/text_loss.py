"""How well a model predicts a text it is not trained on: what rises when it forgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from demask.chat_format import ChatFormat
from demask.corpora.splitting import split_long
from demask.distributed import in_shares
from demask.losses import target_nll, weighted_sum
from demask.models.family import family, predicts_next
from demask.models.load import context_length
from demask.models.mask_token import mask_id
from demask.objectives.autoregressive import Autoregressive
from demask.objectives.diffusion import Diffusion
from demask.types import Document

VISITS = 8  # of a text by a diffusion model, whose loss is an estimate


@torch.no_grad()
def text_loss(model: Any, chat: ChatFormat, documents: Sequence[Document], *, batch_size: int = 8, seed: int = 0) -> dict[str, float]:
    """`{"tokens": predicted tokens, "nll": nats a token}` over whole documents, each raw (BOS text EOS).

    Causal models: the mean next-token loss. Diffusion models: the estimate, from VISITS seeded masks of each text at stratified ratios, of
    the bound on it (LLaDA, eq. 3); compare it with itself only. A text that exceeds the model's context is split at sentence ends.
    """
    room = context_length(model.config, chat.tokenizer) - 2
    texts, _ = split_long([Document(d.id, d.text) for d in documents], lambda text: len(chat.content(text)), room)
    diffusion = family(model.config) == "diffusion"
    mask = mask_id(chat.tokenizer)
    assert mask is not None or not diffusion
    objective: Any = Autoregressive(format="raw") if mask is None or not diffusion else Diffusion(mask)
    examples = objective.examples(texts, chat)
    examples.sort(key=lambda example: objective.size(example, chat)[0])  # rows of a batch are about as long
    visits = VISITS if diffusion else 1
    training = model.training
    model.eval()

    def measure(start: int) -> tuple[float, int]:
        """(nats, tokens) of the rows from `start` on."""
        nats, tokens, rows = 0.0, 0, examples[start : start + batch_size]
        for visit in range(visits):
            step = start * visits + visit
            placed = [
                {**row, "example": start + i, "visit": visit, "step": step, "steps": 1, "slot": i, "slots": len(rows)}
                for i, row in enumerate(rows)
            ]
            batch = {name: value.to(model.device) for name, value in objective.collate(placed, chat, seed).items()}
            if diffusion:  # weights 1 / (t n) times n: a row's loss in nats, not in nats a token
                lengths = torch.tensor([[len(row["written"])] for row in rows], device=model.device)
                batch["loss_weights"] = batch["loss_weights"] * lengths
                tokens += int(lengths.sum())
            else:
                tokens += int(batch["normaliser"].sum())
            nats += weighted_sum(target_nll(model, batch, predicts_next(model.config)), batch).item()
        return nats, tokens

    starts = range(0, len(examples), batch_size)
    sums = in_shares(lambda numbers: [measure(starts[i]) for i in numbers], [objective.size(examples[start], chat)[0] for start in starts])
    nats, tokens = sum(nats for nats, _ in sums), sum(tokens for _, tokens in sums)
    model.train(training)
    return {"tokens": tokens // visits, "nll": nats / max(1, tokens)}
