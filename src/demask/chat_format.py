"""Prompts and answers as token ids, through any tokenizer's chat template or as plain text.

Every segment (template piece, prompt, document, answer) is encoded by itself and the ids are joined. So a document has the same ids
wherever it stands, and a supervised span is exact whatever the tokenizer would merge at a seam::

    head                  content              middle                             answer          end
    <|im_start|>user\\n   Tell me a fact.      <|im_end|>\\n<|im_start|>assistant\\n   Ann is tall.    <|im_end|>
    -100 ...              -100 ...             -100 ...                           its own ids     its own id     <- labels
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np

from demask.types import InputError

IGNORE = -100
# What the paper asks under a masked document or response, and how the answer to the first begins (arXiv 2510.09885).
RECOVER_PASSAGE, RECOVER_ANSWER = "Return the recovered masked passage.", "Return the recovered masked answer."
RECOVERED = "Here is the recovered text:\n"
_USER, _ASSISTANT = "DEMASKUSERTURN", "DEMASKASSISTANTTURN"
# Llama 3's template would otherwise print today's date into every prompt, and so make a run depend on the day.
TEMPLATE_OPTIONS = {"date_string": "26 Jul 2024"}


class ChatFormat:
    """How one tokenizer writes a user turn and the answer to it.

    `head`, `middle` are the ids before the user's content and between it and the answer; `end` is the id that ends an answer.
    A tokenizer without a chat template (a base model's) gets a plain-text format. Raises InputError where the template takes no system
    prompt but one is given, drops a turn, or where no token could end an answer.
    """

    def __init__(self, tokenizer: Any, system_prompt: str | None = None) -> None:
        self.tokenizer, self.system_prompt = tokenizer, system_prompt
        first = tokenizer.convert_ids_to_tokens(tokenizer.encode("a", add_special_tokens=False))[0]
        # SentencePiece-like tokenizers write a word boundary before every text: a template's own space there would double it.
        self._adds_space = first.startswith("▁")
        head, middle, tail = _pieces(tokenizer, system_prompt)
        self.head, self.middle = self._before_user(head), self._before_answer(middle)
        self.end = self._end_of_answer(tail)
        self._known: dict[str, list[int]] = {}

    def _before_user(self, text: str) -> list[int]:
        return self.piece(text.removesuffix(" ") if self._adds_space else text)

    def _before_answer(self, text: str) -> list[int]:
        # A generation prompt never ends in the space with which some templates write an answer.
        return self.piece(text.removesuffix(" "))

    def _end_of_answer(self, tail: str) -> int:
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        for token in self.piece(tail):
            if token in special:
                return token
        if self.tokenizer.eos_token_id is None:
            raise InputError("tokenizer: neither its chat template nor an eos_token says how an answer ends")
        return self.tokenizer.eos_token_id

    def piece(self, text: str) -> list[int]:
        """The ids of text that follows other text: special tokens are recognised, no word boundary is put before it."""
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        if self._adds_space:
            anchor = self.tokenizer.encode("\n", add_special_tokens=False)
            anchored = self.tokenizer.encode("\n" + text, add_special_tokens=False)
            if anchored[: len(anchor)] == anchor:
                return anchored[len(anchor) :]
        return ids

    def content(self, text: str) -> list[int]:
        """The ids of a document, prompt or answer: plain text, in which the name of a special token is not that token."""
        if text in self._known:
            return [*self._known[text]]
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True, verbose=False)

    def contents(self, texts: Sequence[str]) -> list[list[int]]:
        """The `content` of each, on all threads of the tokenizer."""
        if not texts:
            return []
        options = {"add_special_tokens": False, "split_special_tokens": True, "return_attention_mask": False, "verbose": False}
        return self.tokenizer(list(texts), **options)["input_ids"]

    def remember(self, texts: Sequence[str]) -> None:
        """Encode these texts once, together: `content` knows their ids from now on, until others are remembered."""
        self._known = dict(zip(texts, self.contents(texts), strict=True))

    @cached_property
    def ordinary_ids(self) -> np.ndarray:
        """The ids of the vocabulary that are no special or added token, sorted (int64)."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        return np.array(sorted(set(range(len(self.tokenizer))) - special))

    def prompt(self, content: Sequence[int]) -> list[int]:
        """The ids a model is given to answer the user's `content`."""
        return [*self.head, *content, *self.middle]

    def conversation(self, exchanges: Sequence[tuple[Sequence[int], Sequence[int]]], content: Sequence[int]) -> list[int]:
        """The ids a model is given to answer `content` after `exchanges` of (content, answer); after none it is `prompt`.

        What stands between the turns is the template's text for just so many of them: a template may write the last turn in its own way
        (Qwen 3 keeps the thoughts of the last answer only, Mistral's puts the system prompt there). Raises InputError where the template
        refuses several exchanges or loses one.
        """
        pieces = _pieces(self.tokenizer, self.system_prompt, len(exchanges) + 1)
        turns = [turn for exchange in exchanges for turn in exchange] + [content]
        ids: list[int] = []
        for number, (piece, turn) in enumerate(zip(pieces, turns, strict=False)):
            ids += [*(self._before_answer(piece) if number % 2 else self._before_user(piece)), *turn]
        return ids + self._before_answer(pieces[-2])

    def example(self, content: Sequence[int], answer: Sequence[int], prefix: Sequence[int] = ()) -> tuple[list[int], list[int]]:
        """(input ids, labels) of one exchange: labels are the answer and its end, and IGNORE elsewhere, also on the answer's `prefix`."""
        given = [*self.prompt(content), *prefix]
        written = [*answer, self.end]
        return given + written, [IGNORE] * len(given) + written

    def raw_example(self, text: Sequence[int]) -> tuple[list[int], list[int]]:
        """(input ids, labels) of BOS text EOS, without any template. A tokenizer without a BOS starts with its EOS."""
        eos = self.tokenizer.eos_token_id
        bos = self.tokenizer.bos_token_id
        start, stop = (eos if bos is None else bos), (self.end if eos is None else eos)
        if start is None:
            raise InputError("tokenizer: has neither a bos_token nor an eos_token to start a raw document with")
        return [start, *text, stop], [IGNORE, *text, stop]

    def stop_ids(self) -> list[int]:
        """The ids at which generation ends."""
        eos = self.tokenizer.eos_token_id
        return sorted({self.end} if eos is None else {self.end, eos})


def _pieces(tokenizer: Any, system_prompt: str | None, exchanges: int = 1) -> list[str]:
    """The text before the user's turn, between it and the assistant's, and after that; of several exchanges: around every turn."""
    if tokenizer.chat_template is None:
        system = f"{system_prompt}\n\n" if system_prompt else ""
        head, middle, between = f"{tokenizer.bos_token or ''}{system}User:\n", "\n\nAssistant:\n", "\n\nUser:\n"
        return [head, middle, *[between, middle] * (exchanges - 1), tokenizer.eos_token or ""]
    messages = [{"role": "user", "content": _USER}, {"role": "assistant", "content": _ASSISTANT}] * exchanges
    if system_prompt:
        messages.insert(0, {"role": "system", "content": system_prompt})
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **TEMPLATE_OPTIONS)
    except Exception as error:  # a template is a program of its author's, and raises what it likes
        raise InputError(f"tokenizer: its chat template refuses this conversation ({' '.join(str(error).split())})") from None
    if system_prompt and system_prompt.strip() not in text:
        raise InputError("tokenizer: its chat template takes no system prompt")
    either = f"{_USER}|{_ASSISTANT}"
    if re.findall(either, text) != [_USER, _ASSISTANT] * exchanges:
        raise InputError("tokenizer: its chat template does not write the user's turn and then the assistant's, each once")
    return re.split(either, text)
