"""Greedy decoding: a text does not depend on the batch, the order is kept, and a turn's end ends it.

As a module, it is what two processes run with a sharded model (see the last test)::

    python -m torch.distributed.run --standalone --nproc_per_node 2 -m tests.unit.test_causal_decoding FOLDER
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from demask.chat_format import ChatFormat
from demask.decoding import causal
from demask.decoding.causal import generate
from demask.types import InputError
from tests.models import ARCHITECTURES, make_model
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
    """Makes a model say these ids, whatever it is asked; row by row, each from its own list, at whose end the row must leave."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows, self.step = rows, 0

    def __call__(self, module, args, output):
        logits = torch.full_like(output.logits, -1.0)
        going = [ids for ids in self.rows if len(ids) > self.step]
        if not self.step and len(logits) < len(going):  # what the prompts begin with is read
            return output
        assert len(logits) == len(going)
        for row, ids in enumerate(going):
            logits[row, :, ids[self.step]] = 1.0
        self.step += 1
        output.logits = logits
        return output


def scripted(model, rows: list[list[int]], **options) -> tuple[list[str], int]:
    """(texts, steps taken) for as many equally long prompts as rows."""
    script = Scripted(rows)
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
    script = Scripted([[*short, chat.end], [*long, tokenizer.eos_token_id]])
    model.register_forward_hook(script)
    prompts = [chat.prompt(chat.content(text)) for text in ("Who?", "Ann?")]
    texts = generate(model, tokenizer, prompts, stop_ids=chat.stop_ids(), max_new_tokens=40)
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


# --- Any architecture, as transformers' own generate and as without a cache

# Of equal first tokens: none that are worth a pass of their own, and many. Any third token of the vocabulary ends an answer.
DRAW = torch.Generator().manual_seed(1)
COMMON = torch.randint(10, 300, (20,), generator=DRAW).tolist()
TAILS = [torch.randint(10, 300, (n,), generator=DRAW).tolist() for n in (3, 9, 5, 14, 2, 7)]
BEGINNINGS = {"a short beginning": COMMON[:3], "a long beginning": COMMON, "one prompt is the beginning of all": COMMON}
STOPS = range(0, 400, 3)
PLAIN = {"vocab_size": 400, "hidden_size": 32, "initializer_range": 0.3, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZES = {"intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}


class Spelled:
    """A tokenizer whose texts are the ids themselves, so that equal texts are equal tokens."""

    pad_token_id, eos_token_id = 0, None

    @staticmethod
    def decode(ids, skip_special_tokens: bool) -> str:
        return " ".join(str(int(token)) for token in ids)


def architecture(name: str):
    """One of tests/models.py, or with a state that is no keys and values, with attention sinks, or with another forward()."""
    torch.manual_seed(0)
    if name == "lfm2":
        return Lfm2ForCausalLM(Lfm2Config(**PLAIN, **SIZES, layer_types=["conv", "full_attention"])).eval()
    if name == "gpt_oss":
        own = {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}
        rope = {"rope_type": "default", "rope_theta": 10000.0}
        return GptOssForCausalLM(GptOssConfig(**PLAIN, **SIZES, **own, rope_parameters=rope)).eval()
    if name == "bloom":
        return BloomForCausalLM(BloomConfig(**PLAIN, n_layer=2, n_head=4)).eval()
    if name == "mamba":
        return MambaForCausalLM(MambaConfig(**PLAIN, num_hidden_layers=2)).eval()
    if name == "wide window":  # which holds the common beginning
        return make_model("gemma3", sliding_window=28)
    if name == "adapter":
        lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        return get_peft_model(make_model("qwen3"), lora).eval()
    return make_model(name)


def prompts_of(kind: str) -> list[list[int]]:
    begun = [[*BEGINNINGS[kind], *tail] for tail in TAILS]
    return [*begun, list(COMMON)] if kind.startswith("one") else begun


def spelled(model, prompts, **options) -> list[str]:
    return generate(model, Spelled, prompts, **{"stop_ids": STOPS, "max_new_tokens": 16, "batch_size": 4, **options})


@pytest.mark.parametrize("kind", BEGINNINGS)
@pytest.mark.parametrize("name", [*ARCHITECTURES, "wide window", "adapter", "lfm2", "gpt_oss", "bloom", "mamba"])
def test_the_tokens_are_those_of_generate_and_of_no_cache_at_all(name, kind, monkeypatch):
    model, prompts = architecture(name), prompts_of(kind)
    alone = []
    for prompt in prompts:
        ids = by_hand(model, prompt, 16, set(STOPS))
        alone.append(Spelled.decode(ids[:-1] if ids[-1] in STOPS else ids, True))
    assert len({len(text.split()) for text in alone}) > 1  # rows end at different times
    assert spelled(model, prompts) == alone
    assert spelled(model, prompts, batch_size=64) == alone
    monkeypatch.setattr(causal, "_takes_cache", lambda model: False)
    assert spelled(model, prompts) == alone


@contextlib.contextmanager
def shapes(model) -> Iterator[list[tuple[int, ...]]]:
    """The (rows, tokens) that go into each forward pass."""
    seen: list[tuple[int, ...]] = []
    hook = model.register_forward_pre_hook(lambda module, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True)
    try:
        yield seen
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("name", "kind", "first"),
    [
        ("llama", "a short beginning", [(6, 17)]),
        ("llama", "a long beginning", [(1, 20), (6, 14)]),
        ("llama", "one prompt is the beginning of all", [(1, 19), (7, 15)]),
        ("wide window", "a long beginning", [(1, 20), (6, 14)]),
        ("mistral", "a long beginning", [(1, 20), (6, 34)]),  # its window of 8 has forgotten the beginning's first tokens
    ],
)
def test_what_all_prompts_begin_with_is_read_once(name, kind, first):
    model = architecture(name)
    with shapes(model) as seen:
        spelled(model, prompts_of(kind), batch_size=64)
    assert seen[: len(first)] == first
    assert {tokens for _, tokens in seen[len(first) :]} == {1}


def test_a_single_prompt_is_read_in_one_pass():
    model = architecture("llama")
    with shapes(model) as seen:
        spelled(model, prompts_of("a long beginning")[:1])
    assert seen[0] == (1, 23)


def test_a_row_that_has_ended_is_computed_no_more():
    model, prompts = architecture("qwen3"), prompts_of("a short beginning")
    with shapes(model) as seen:
        texts = spelled(model, prompts, batch_size=64)
    # A row is there until it has written what ends it, or 16 tokens.
    there = [min(len(text.split()) + 1, 16) for text in texts]
    assert [rows for rows, _ in seen] == [sum(passes > step for passes in there) for step in range(max(there))]


# --- Sharded over processes

# The first process's rows end at almost any token, those of the second at none.
SHARE_STOPS = [range(10, 300), range(0)]
SHARES = [prompts_of("a long beginning")[:4], prompts_of("a short beginning")[:4]]


def of_share(model, rank: int) -> tuple[list[str], int]:
    """(the texts of this process's prompts in two batches, the forward passes)"""
    with shapes(model) as seen:
        texts = spelled(model, SHARES[rank], stop_ids=SHARE_STOPS[rank], batch_size=2)
    return texts, len(seen)


@pytest.mark.parametrize("stop_ids", [STOPS, range(10, 300)], ids=["some", "almost any"])
def test_going_on_for_the_others_changes_nothing(stop_ids, monkeypatch):
    model, prompts = architecture("llama"), prompts_of("a long beginning")
    expected = spelled(model, prompts, stop_ids=stop_ids)
    monkeypatch.setattr(causal, "runs_jointly", lambda model: True)
    monkeypatch.setattr(causal, "anywhere", lambda here, jointly, device: True)
    with shapes(model) as seen:
        assert spelled(model, prompts, stop_ids=stop_ids) == expected
    assert len(seen) == 2 * 16


def main(folder: Path) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = architecture("qwen3")
    for layer in (*model.model.layers, model):
        fully_shard(layer)
    done = of_share(model, rank)
    model(input_ids=torch.tensor([COMMON]), use_cache=False).logits.sum().backward()  # it can be trained afterwards
    (folder / f"{rank}.json").write_text(json.dumps(done))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_a_sharded_models_processes_wait_for_each_other(tmp_path):
    module = "tests.unit.test_causal_decoding"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", module, str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    sharded = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    alone = [of_share(architecture("qwen3"), rank) for rank in (0, 1)]
    assert alone[0][1] < alone[1][1] - 3
    assert [texts for texts, _ in sharded] == [texts for texts, _ in alone]
    assert sharded[0][1] == sharded[1][1] == 2 * 16


if __name__ == "__main__":
    main(Path(sys.argv[1]))
