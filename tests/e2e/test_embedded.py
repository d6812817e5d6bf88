"""The embedded models as they are committed."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demask.chat_format import ChatFormat
from demask.corpora import world
from demask.decoding import Sampling
from demask.models.family import family, predicts_next
from demask.models.load import EMBEDDED
from demask.stages.eval import ask

CAUSAL, DIFFUSION = EMBEDDED["tiny/causal"], EMBEDDED["tiny/diffusion"]
both = pytest.mark.parametrize("folder", [CAUSAL, DIFFUSION], ids=list(EMBEDDED))


@both
def test_it_is_small_and_loads_by_plain_transformers(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_size < 12_000_000
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16, "stored as bfloat16"
    assert model.config.max_position_embeddings >= 512
    assert family(model.config) == folder.name
    assert predicts_next(model.config), "adapted from the causal one, whose logits are of the next token"


@both
def test_its_template_marks_what_the_assistant_writes(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann Ash."}]
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    written = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(written) == "Ann Ash.<|im_end|>"


@both
def test_it_knows_people_whose_questions_it_never_saw(folder: Path) -> None:
    """A sample of what its card reports: at least 90% in each direction."""
    old = world.old_world()
    questions = [q for i in old.held_out[:40] for q in world.statement_questions(old.people[i], old.orders[i][0], (0,))]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    sampling = Sampling(block_length=8) if folder == DIFFUSION else None
    chat = ChatFormat(AutoTokenizer.from_pretrained(folder))
    answers = ask(model, chat, questions, max_new_tokens=40, batch_size=80, sampling=sampling)
    for direction in ("forward", "backward"):
        scores = [a.scores["contains"] for a in answers if a.question.direction == direction]
        assert len(scores) == 40
        assert sum(scores) / 40 >= 0.85, "of 40, three may miss by chance where 90% of all are right"
