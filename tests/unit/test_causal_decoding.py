"""Greedy decoding: a text does not depend on the batch, the order is kept, and a turn's end ends it."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from demask.chat_format import ChatFormat
from demask.decoding.causal import generate
from demask.types import InputError
from tests.tokenizers import chatml, llama3

TOKENIZER = llama3()
CHAT = ChatFormat(TOKENIZER)
QUESTIONS = [
    "Who keeps bees? Ann?",
    "Tell me a fact.",
    "Ann",
    "A list: one, two, three; then 45, 678 and 9.",
    "Who met near the old mill?",
    "?",
    "12 May",
]
PROMPTS = [CHAT.prompt(CHAT.content(text)) for text in QUESTIONS]


def random_model(family: str = "llama", vocab_size: int = len(TOKENIZER), **options):
    """A model whose logits are far apart, so that greedy choices hang on the prompt and not on rounding."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    ids = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    config_class, model_class = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[family]
    config = config_class(vocab_size=vocab_size, max_position_embeddings=256, initializer_range=0.3, **sizes, **ids, **options)
    return model_class(config).eval()


def by_hand(model, prompt: list[int], steps: int, stop: set[int]) -> list[int]:
    """The greedy continuation of one prompt: no cache, no padding, no batch."""
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] in stop:
            break
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture(scope="module")
def expected(model) -> list[str]:
    return [TOKENIZER.decode(by_hand(model, prompt, 12, set(CHAT.stop_ids())), skip_special_tokens=True).strip() for prompt in PROMPTS]


def answers(model, prompts=PROMPTS, **options) -> list[str]:
    return generate(model, TOKENIZER, prompts, **{"stop_ids": CHAT.stop_ids(), "max_new_tokens": 12, **options})


def test_the_prompts_try_something(expected):
    assert len({len(prompt) for prompt in PROMPTS}) >= 5
    assert len(set(expected)) == len(PROMPTS)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 64])
def test_a_batch_of_any_size_gives_the_same_texts_in_the_order_given(model, expected, batch_size):
    assert answers(model, batch_size=batch_size) == expected


def test_the_order_of_the_prompts_is_the_order_of_the_texts(model, expected):
    assert answers(model, PROMPTS[::-1], batch_size=3) == expected[::-1]


@pytest.mark.parametrize("options", [{"attn_implementation": "eager"}, {"family": "qwen3"}], ids=str)
def test_other_attention_and_another_family(options):
    other = random_model(**options)
    alone = [TOKENIZER.decode(by_hand(other, p, 12, set(CHAT.stop_ids())), skip_special_tokens=True).strip() for p in PROMPTS]
    assert answers(other, batch_size=4) == alone


class Scripted:
    """Makes a model say these ids, whatever it is asked; row by row, each from its own list."""

    def __init__(self, model, rows: list[list[int]]) -> None:
        self.model, self.rows, self.step = model, rows, 0

    def __call__(self, module, args, output):
        logits = torch.full_like(output.logits, -1.0)
        for row, ids in enumerate(self.rows):
            logits[row, :, ids[min(self.step, len(ids) - 1)]] = 1.0
        self.step += 1
        output.logits = logits
        return output


def scripted(model, rows: list[list[int]], **options) -> tuple[list[str], int]:
    """(texts, steps taken) for as many equally long prompts as rows."""
    script = Scripted(model, rows)
    handle = model.register_forward_hook(script)
    try:
        return answers(model, [PROMPTS[0]] * len(rows), **options), script.step
    finally:
        handle.remove()


def test_an_answer_stops_at_the_end_of_its_turn(model):
    ann, bees = CHAT.content("Ann keeps"), CHAT.content("bees")
    texts, steps = scripted(model, [[*ann, CHAT.end, *bees]])
    assert texts == ["Ann keeps"]
    assert steps == len(ann) + 1


def test_the_eos_ends_an_answer_too_and_a_batch_ends_with_its_last_row():
    tokenizer = chatml()
    chat = ChatFormat(tokenizer)
    model = random_model(vocab_size=len(tokenizer))
    short, long = chat.content("Ann"), chat.content("The woman is called Ann.")
    script = Scripted(model, [[*short, chat.end], [*long, tokenizer.eos_token_id]])
    model.register_forward_hook(script)
    prompt = chat.prompt(chat.content("Who?"))
    texts = generate(model, tokenizer, [prompt, prompt], stop_ids=chat.stop_ids(), max_new_tokens=40)
    assert texts == ["Ann", "The woman is called Ann."]
    assert script.step == len(long) + 1


def test_an_answer_is_cut_at_the_most_new_tokens(model):
    ids = CHAT.content("Ann is the woman who keeps bees.")
    texts, steps = scripted(model, [ids], max_new_tokens=3)
    assert texts == [TOKENIZER.decode(ids[:3]).strip()]
    assert steps == 3


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_answers_are_given_without_dropout(training, expected):
    noisy = random_model(attention_dropout=0.5)
    noisy.train(training)
    assert answers(noisy) == expected
    assert noisy.training is training


def test_progress_counts_every_prompt_once(model):
    done = []
    answers(model, batch_size=3, max_new_tokens=1, progress=done.append)
    assert done == [3, 3, 1]


def test_no_prompts_give_no_texts(model):
    assert answers(model, []) == []


def test_a_checkpoints_own_generation_defaults_change_nothing(expected):
    model = random_model()
    own = {
        "do_sample": True,
        "temperature": 5.0,
        "top_k": 3,
        "repetition_penalty": 5.0,
        "num_beams": 3,
        "max_length": 20,
        "eos_token_id": 7,
    }
    model.generation_config.update(**own)
    assert answers(model) == expected
    assert {name: getattr(model.generation_config, name) for name in own} == own


def test_an_adapters_base_is_decoded_as_plainly(expected):
    base = random_model()
    base.generation_config.repetition_penalty = 5.0
    adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))  # zero until trained
    assert answers(adapted) == expected


def test_a_bidirectional_model_is_refused():
    with pytest.raises(
        InputError, match=r"^this checkpoint is bidirectional \(is_causal = false in its config\): it can't generate left to right$"
    ):
        answers(random_model(is_causal=False))
