"""What goes silently wrong with attention masks, packing, dtypes and `is_causal` in transformers: each test says why it matters.

Some assert that a wrong way is still wrong: should one fail after an upgrade, a limit of ours may be lifted.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from demask.chat_format import IGNORE, ChatFormat
from demask.losses import target_nll
from demask.masking import MaskRatio
from demask.models.family import family, make_bidirectional
from demask.models.load import load_model
from demask.objectives import Autoregressive, Demask, Diffusion
from demask.types import Document
from tests.models import make_model, save_model
from tests.tokenizers import TOKENIZERS

EXACT = 1e-5  # fp32; the logits are of size 3
WRONG = 0.1

ARCHS = pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral"])
ATTENTIONS = pytest.mark.parametrize("attention", ["eager", "sdpa"])

FIRST = torch.randint(5, 300, (1, 11), generator=torch.Generator().manual_seed(1))
SECOND = torch.randint(5, 300, (1, 13), generator=torch.Generator().manual_seed(2))
PACKED = torch.cat([FIRST, SECOND], dim=1)
RESTARTING = torch.cat([torch.arange(11), torch.arange(13)])[None]
SEEN = torch.ones_like(PACKED)
BLOCKS = torch.block_diag(torch.ones(11, 11), torch.ones(13, 13)).bool()[None, None]


@torch.no_grad()
def logits(model: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """(L, V) of the only row."""
    return model(input_ids=input_ids, **options).logits[0]


def apart(left: torch.Tensor, right: torch.Tensor) -> float:
    return (left - right).abs().max().item()


def separately(model: Any) -> torch.Tensor:
    """The logits of both documents, each in a row of its own."""
    return torch.cat([logits(model, FIRST, use_cache=False), logits(model, SECOND, use_cache=False)])


def added(seen: torch.Tensor) -> torch.Tensor:
    """A 4-D mask as it is added to attention scores."""
    return torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


# --- padding


@ARCHS
@ATTENTIONS
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_2d_mask_hides_padding_from_a_bidirectional_model(arch, attention, side):
    """Batches of unequal rows need nothing more; without a mask every token sees the padding after it, as no causal model does."""
    model = make_model(arch, is_causal=False, attn_implementation=attention)
    padding = torch.full((1, 6), 7)
    parts = [padding, FIRST] if side == "left" else [FIRST, padding]
    mask = torch.cat([torch.zeros_like(part) if part is padding else torch.ones_like(part) for part in parts], dim=1)
    real = mask[0].bool()
    padded = torch.cat(parts, dim=1)
    assert apart(logits(model, padded, attention_mask=mask)[real], logits(model, FIRST)) < EXACT
    assert apart(logits(model, padded)[real], logits(model, FIRST)) > WRONG


# --- packing


@ARCHS
@ATTENTIONS
@pytest.mark.parametrize("mask", [None, SEEN], ids=["no_mask", "2d_mask"])
def test_packing_leaks_in_a_bidirectional_model(arch, attention, mask):
    """Position ids that start again part documents in a causal model only: here each would read the other, with or without a 2-D mask."""
    model = make_model(arch, is_causal=False, attn_implementation=attention)
    packed = logits(model, PACKED, position_ids=RESTARTING, attention_mask=mask, use_cache=False)
    assert apart(packed[:11], separately(model)[:11]) > WRONG
    assert apart(packed[11:], separately(model)[11:]) > WRONG


@ARCHS
@ATTENTIONS
def test_a_4d_block_mask_parts_packed_documents(arch, attention):
    """The one way to pack there. The mask replaces the model's own, and with it Mistral's sliding window, which is off here."""
    window = {"sliding_window": None} if arch == "mistral" else {}
    model = make_model(arch, is_causal=False, attn_implementation=attention, **window)
    packed = logits(model, PACKED, position_ids=RESTARTING, attention_mask=added(BLOCKS), use_cache=False)
    assert apart(packed, separately(model)) < EXACT


def test_eager_attention_adds_a_4d_bool_mask_to_the_scores():
    """SDPA takes True for "may see"; eager adds 1 to those scores, and hides nothing. So a 4-D mask must be in added form."""
    expected = separately(make_model("llama", is_causal=False))
    for attention, right in (("sdpa", True), ("eager", False)):
        model = make_model("llama", is_causal=False, attn_implementation=attention)
        packed = logits(model, PACKED, position_ids=RESTARTING, attention_mask=BLOCKS, use_cache=False)
        assert (apart(packed, expected) < EXACT) is right
        assert (apart(packed, expected) > WRONG) is not right


@ARCHS
@ATTENTIONS
@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({"position_ids": RESTARTING, "use_cache": False}, True),
        ({"position_ids": RESTARTING, "use_cache": True}, False),
        ({"position_ids": RESTARTING}, False),
        ({"position_ids": RESTARTING, "attention_mask": SEEN, "use_cache": False}, False),
        ({"use_cache": False}, False),
    ],
    ids=["right", "cache", "cache_by_default", "mask_of_ones", "no_position_ids"],
)
def test_causal_packing_is_right_in_one_way_only(arch, attention, options, right):
    """Position ids that start again, no attention mask and no cache; with any of these missing the second document reads the first."""
    model = make_model(arch, attn_implementation=attention)
    packed = logits(model, PACKED, **options)
    assert apart(packed[:11], separately(model)[:11]) < EXACT  # nothing comes before it
    assert (apart(packed[11:], separately(model)[11:]) < EXACT) is right
    assert (apart(packed[11:], separately(model)[11:]) > WRONG) is not right


# --- dtypes


@pytest.mark.parametrize("arch", ["llama", "qwen3", "mistral", "gemma3"])
def test_loading_keeps_the_rotary_frequencies_in_fp32(arch, tmp_path):
    """`model.to(bfloat16)` rounds them too, and so changes what a model says; loading in that dtype does not."""
    folder = save_model(tmp_path, arch, is_causal=False)
    ids = torch.randint(5, 300, (1, 200), generator=torch.Generator().manual_seed(0))
    ours = load_model(folder, torch.bfloat16).eval()
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    cast = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(torch.bfloat16).eval()
    frequencies = {name: buffer for name, buffer in ours.named_buffers() if name.endswith("inv_freq")}
    assert frequencies
    assert {buffer.dtype for buffer in frequencies.values()} == {torch.float32}
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.bfloat16}
    assert logits(ours, ids).equal(logits(theirs, ids))
    assert not logits(cast, ids).equal(logits(ours, ids))
    for name, buffer in frequencies.items():  # it was the frequencies: with them in place again the two agree to the last bit
        module, _, own = name.rpartition(".")
        assert cast.get_submodule(module).get_buffer(own).dtype == torch.bfloat16
        setattr(cast.get_submodule(module), own, buffer)
    assert logits(cast, ids).equal(logits(ours, ids))


# --- is_causal


def sees_ahead(model: Any) -> bool:
    """Whether the last token changes what is said at the first."""
    changed = FIRST.clone()
    changed[0, -1] += 1
    return apart(logits(model, FIRST)[:1], logits(model, changed)[:1]) > EXACT


@ARCHS
@ATTENTIONS
def test_a_plain_reload_stays_bidirectional(arch, attention, tmp_path):
    """The family is read from the checkpoint, so it must be written there: `is_causal` in the configuration is."""
    window = {"sliding_window": None} if arch == "mistral" else {}  # else the first token does not see as far as the last
    causal = make_model(arch, **window)
    assert family(causal.config) == "causal"
    assert not sees_ahead(causal)
    make_bidirectional(causal.config, shifted_logits=True)
    causal.save_pretrained(tmp_path)
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention).eval()
    assert sees_ahead(reloaded)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.is_causal, config.shifted_logits, family(config)) == (False, True, "diffusion")


@ARCHS
def test_is_causal_on_modules_is_no_way_to_set_it(arch):
    """Eager attention ignores it without a word, and nothing of it is saved: the configuration is the one place."""
    model = make_model(arch, attn_implementation="eager")
    before = logits(model, FIRST)
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    assert logits(model, FIRST).equal(before)
    assert not sees_ahead(model)
    assert family(model.config) == "causal"


# --- position 0


HIDE_ALL = {"mask_id": 3, "mask_ratio": MaskRatio(1, 1)}
ALL_OBJECTIVES = [
    *[Autoregressive(format="raw"), Autoregressive(format="chat"), Demask(**HIDE_ALL)],
    *[Diffusion(**HIDE_ALL, format="raw"), Diffusion(**HIDE_ALL, format="chat", eos_padding=2)],
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("objective", ALL_OBJECTIVES)
def test_position_0_is_never_a_target(name, objective):
    """A Trainer counts the targets of a batch from position 1 on, and a shifted logit for it does not exist."""
    chat = ChatFormat(TOKENIZERS[name]())
    examples = objective.examples([Document("1", "Ann keeps bees."), Document("2", "Ann.", prompt="Who?")], chat)
    place = {"visit": 0, "step": 0, "steps": 1, "slots": 2}
    batch = objective.collate([{**example, **place, "example": i, "slot": i} for i, example in enumerate(examples)], chat, 0)
    assert (batch["labels"][:, 0] == IGNORE).all()
    assert (batch["labels"] != IGNORE).any(dim=1).all()


@pytest.mark.parametrize("next_token", [True, False])
def test_a_label_at_position_0_is_not_read(next_token):
    model = make_model("llama", is_causal=next_token)
    labels = torch.full_like(FIRST, IGNORE)
    labels[0, 4] = 9
    batch = {"input_ids": FIRST, "attention_mask": torch.ones_like(FIRST), "labels": labels}
    with torch.no_grad():
        expected = target_nll(model, batch, next_token)
        labels[0, 0] = 8
        assert target_nll(model, batch, next_token).equal(expected)
    assert len(expected) == 1
