"""The embedded model as it is committed."""

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from demask.chat_format import ChatFormat
from demask.corpora import world
from demask.models.load import EMBEDDED
from demask.stages.eval import ask


def test_it_is_small_and_loads_by_plain_transformers() -> None:
    assert (EMBEDDED / "model.safetensors").stat().st_size < 12_000_000
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED)
    assert model.dtype == torch.bfloat16, "stored as bfloat16"
    assert model.config.max_position_embeddings >= 512


def test_its_template_marks_what_the_assistant_writes() -> None:
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    messages = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ann Ash."}]
    encoded = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    written = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(written) == "Ann Ash.<|im_end|>"


def test_it_knows_people_whose_questions_it_never_saw() -> None:
    """A sample of what its card reports: at least 90% in each direction."""
    old = world.old_world()
    questions = [q for i in old.held_out[:40] for q in world.statement_questions(old.people[i], old.orders[i][0], (0,))]
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    answers = ask(model, ChatFormat(AutoTokenizer.from_pretrained(EMBEDDED)), questions, max_new_tokens=40, batch_size=80)
    for direction in ("forward", "backward"):
        scores = [a.scores["contains"] for a in answers if a.question.direction == direction]
        assert len(scores) == 40
        assert sum(scores) / 40 >= 0.85, "of 40, three may miss by chance where 90% of all are right"
