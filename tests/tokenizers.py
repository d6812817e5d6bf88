"""Small tokenizers of five families, trained in-process on a few sentences: no files, no hub.

Each has its family's trap: tokens that swallow a seam (llama3), a default system prompt (chatml), a system role that is refused and
byte fallback (gemma), a word boundary written before every text (mistral), no template at all (base).
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "Ann is the woman who keeps bees.\n",
    "Who keeps bees? The woman is called Ann.\n\n",
    "Tell me a fact.\n",
    "Here is the recovered text:\n",
    "Return the recovered masked passage. Return the recovered masked answer.\n",
    "user\nassistant\nsystem\n[] [] [] [INST] [/INST]",
    "The mason and the baker met on 12 May 1984, near the old mill...\n\nThey were glad!\n",
    "A list: one, two, three; then 45, 678 and 9.\n",
] * 4

LLAMA3_TEMPLATE = (
    "{{ bos_token }}"
    "{% if date_string is not defined %}"
    "{% if strftime_now is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% else %}{% set date_string = 'unknown' %}{% endif %}"
    "{% endif %}"
    "{% set system = '' %}{% set turns = messages %}"
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set turns = messages[1:] %}{% endif %}"
    "<|start_header_id|>system<|end_header_id|>\n\nToday: {{ date_string }}\n\n{{ system }}<|eot_id|>"
    "{% for turn in turns %}"
    "<|start_header_id|>{{ turn.role }}<|end_header_id|>\n\n{{ turn.content | trim }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
CHATML_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou answer questions.<|im_end|>\n{% endif %}"
    "{% for turn in messages %}<|im_start|>{{ turn.role }}\n{{ turn.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA_TEMPLATE = (
    "{{ bos_token }}"
    "{% for turn in messages %}"
    "{% if turn.role == 'system' %}{{ raise_exception('no system\nrole here') }}{% endif %}"
    "<start_of_turn>{{ 'model' if turn.role == 'assistant' else turn.role }}\n{{ turn.content | trim }}<end_of_turn>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL_TEMPLATE = (
    "{{ bos_token }}"
    "{% for turn in messages %}"
    "{% if turn.role == 'user' %}[INST] {{ turn.content }} [/INST]"
    "{% elif turn.role == 'assistant' %} {{ turn.content }}{{ eos_token }}"
    "{% else %}{{ raise_exception('only user and assistant') }}{% endif %}"
    "{% endfor %}"
)


def _wrap(tokenizer: Tokenizer, template: str | None, **options: Any) -> PreTrainedTokenizerFast:
    bos = options.get("bos_token")
    if bos is not None:  # as the real ones: `encode` puts a BOS before a text unless told not to
        ids = [(bos, tokenizer.token_to_id(bos))]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=ids)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **options)
    wrapped.chat_template = template
    return wrapped


def _byte_level(special: list[str], merges: int = 160) -> Tokenizer:
    """Byte-level BPE whose words, as Llama 3's, may be punctuation with the line ends after it: ".\\n" can be one token."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r" ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(pattern, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=256 + merges,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    tokenizer.add_special_tokens(special)
    return tokenizer


def _sentencepiece(special: list[str], dummy_prefix: bool) -> Tokenizer:
    """BPE over "▁"-words that falls back to <0x..> byte tokens; `dummy_prefix` puts a "▁" before every text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first" if dummy_prefix else "never", split=True)
    lines = [sentence.replace("\n", "") for sentence in SENTENCES]
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=200, special_tokens=["<unk>"], show_progress=False))
    learnt = json.loads(tokenizer.to_str())["model"]
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *(piece for piece in learnt["vocab"] if piece != "<unk>")]
    if "▁" not in pieces:
        pieces.append("▁")
    tokenizer.model = models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(merge) for merge in learnt["merges"]],
        unk_token="<unk>",
        byte_fallback=True,
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy_prefix:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        steps.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", *special])
    return tokenizer


def made_once(make: Callable[[], PreTrainedTokenizerFast]) -> Callable[[], PreTrainedTokenizerFast]:
    """Train the tokenizer once, and give every caller a copy: what one test sets (a mask token), no other one sees."""
    original = functools.cache(make)
    return functools.wraps(make)(lambda: copy.deepcopy(original()))


@made_once
def llama3() -> PreTrainedTokenizerFast:
    """Llama-3-like: ".\\n" is one token, the template trims contents and prints a date, reserved tokens wait for a use."""
    names = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    names += [f"<|reserved_special_token_{i}|>" for i in range(10)]
    return _wrap(_byte_level(names), LLAMA3_TEMPLATE, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>")


@made_once
def chatml() -> PreTrainedTokenizerFast:
    """Qwen-like: no BOS, a default system prompt, and "[]" as an ordinary token."""
    tokenizer = _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    return _wrap(tokenizer, CHATML_TEMPLATE, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@made_once
def gemma() -> PreTrainedTokenizerFast:
    """Gemma-like: SentencePiece with byte fallback and no dummy prefix; EOS is not what ends a turn; a system role raises."""
    tokenizer = _sentencepiece(["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"], dummy_prefix=False)
    return _wrap(tokenizer, GEMMA_TEMPLATE, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>")


@made_once
def mistral() -> PreTrainedTokenizerFast:
    """Mistral-like: SentencePiece that writes a word boundary before every text; the template writes spaces of its own around it."""
    tokenizer = _sentencepiece(["<s>", "</s>"], dummy_prefix=True)
    return _wrap(tokenizer, MISTRAL_TEMPLATE, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


@made_once
def base() -> PreTrainedTokenizerFast:
    """A base model's: no chat template, no BOS, one special token."""
    return _wrap(_byte_level(["<|endoftext|>"]), None, eos_token="<|endoftext|>")


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "llama3": llama3,
    "chatml": chatml,
    "gemma": gemma,
    "mistral": mistral,
    "base": base,
}
