"""Which token stands for a masked one, for any tokenizer: the first of these that no document holds.

1. the one that an earlier run recorded beside its tokenizer      5. an added token that the chat template does not use
2. the tokenizer's own mask token                                 6. of the ordinary tokens that are written and read as one printable
3. an unused reserved special token, the lowest id first             text without spaces, the one with the highest id: merges are learnt
4. "[]", where it is one token (Qwen: arXiv 2510.09885)              in the order of their frequency, so the last tokens are the rarest
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from demask.chat_format import RECOVER_ANSWER, RECOVER_PASSAGE, RECOVERED
from demask.types import Document, InputError

# The entry of tokenizer_config.json. Not "..._token": transformers makes what stands under such a name a special token.
RECORD = "demask_mask"
# So many candidates are looked for in the documents, as text too, while these are read once.
_CANDIDATES = 32
# Special tokens that a tokenizer keeps for its users: Llama 3's <|reserved_special_token_5|>, Gemma's <unused7>, Mistral's [control_8],
# Phi's <|placeholder3|> and <|dummy_1|>, ...
_RESERVED = re.compile(r"(reserved|unused|control|extra|dummy|place.?holder)[\w ▁]*\d+", re.IGNORECASE)
# Rare ordinary tokens for families whose tokenizers reserve none.
_FALLBACKS = ("[]",)
# Added tokens with a part in conversations that this template or this conversation may not show, or in other media.
_PARTS = "system|user|human|assistant|tool|function|python|think|turn|start|end|im_|eo[st]|bos|pad|unk|sep|cls|image|img|vision|audio|video"
_HAS_A_PART = re.compile(_PARTS, re.IGNORECASE)
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


@dataclass(frozen=True)
class MaskToken:
    """The token as text, its id, and the reason it was chosen (printed and recorded)."""

    token: str
    id: int
    reason: str


def mask_candidates(tokenizer: Any, name: str | None = None, around: Iterable[str | None] = ()) -> list[MaskToken]:
    """The tokens that could stand for a masked one, best first: the token `name` alone, else the list above, at most 32.

    `around` are texts that stand around every document (instruction, system prompt, rendered template), which no candidate of 3 to 6 may
    stand in. Raises InputError where `name` is not one token of the vocabulary, or none can be found.
    """
    if name is not None:
        return [_named(tokenizer, name)]
    texts = [RECOVER_PASSAGE, RECOVER_ANSWER, RECOVERED, str(tokenizer.chat_template or ""), *filter(None, around)]
    others = (mask for mask in _others(tokenizer) if not any(mask.token in text for text in texts))
    found: dict[int, MaskToken] = {}
    for mask in chain(_recorded(tokenizer), _own(tokenizer), others):
        found.setdefault(mask.id, mask)
        if len(found) == _CANDIDATES:
            break
    if not found:
        raise InputError("mask_token: this tokenizer has no token that could stand for a masked one; name one with --mask_token")
    return list(found.values())


def _named(tokenizer: Any, name: str) -> MaskToken:
    ids = tokenizer.encode(name, add_special_tokens=False)
    if len(ids) != 1:
        raise InputError(f"mask_token: '{name}' is {len(ids)} tokens of this tokenizer, expected one")
    if ids[0] == tokenizer.unk_token_id:
        raise InputError(f"mask_token: '{name}' is not in this tokenizer's vocabulary")
    return MaskToken(name, ids[0], "named by the user")


def _recorded(tokenizer: Any) -> Iterator[MaskToken]:
    token = tokenizer.init_kwargs.get(RECORD)
    token_id = tokenizer.convert_tokens_to_ids(token) if isinstance(token, str) else None
    if token_id is not None and tokenizer.convert_ids_to_tokens(token_id) == token:  # else it was written for another vocabulary
        text = token if token_id in tokenizer.added_tokens_decoder else tokenizer.decode([token_id])
        yield MaskToken(text, token_id, "recorded by an earlier run")


def _own(tokenizer: Any) -> Iterator[MaskToken]:
    if tokenizer.mask_token_id is not None:
        yield MaskToken(tokenizer.mask_token, tokenizer.mask_token_id, "the tokenizer's own mask token")


def _others(tokenizer: Any) -> Iterator[MaskToken]:
    """Reserved, known, added and ordinary tokens, in this order; an id may come twice."""
    added = [(token_id, str(token)) for token_id, token in sorted(tokenizer.added_tokens_decoder.items())]
    special, roles = set(tokenizer.all_special_ids), {getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    for token_id, text in added:
        if _RESERVED.search(text) and token_id not in special:
            yield MaskToken(text, token_id, "an unused reserved token of the tokenizer")
    for text in _FALLBACKS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            yield MaskToken(text, ids[0], "a rare token: the tokenizer reserves none")
    for token_id, text in reversed(added):
        if token_id not in roles and _is_word(text) and not _HAS_A_PART.search(text):
            yield MaskToken(text, token_id, "an added token that nothing else uses")
    for token_id, text in _ordinary(tokenizer):
        if tokenizer.encode(text, add_special_tokens=False) == [token_id]:
            yield MaskToken(text, token_id, "the last ordinary token of the vocabulary that the documents do not hold")


def _ordinary(tokenizer: Any) -> Iterator[tuple[int, str]]:
    """(id, text) of the printable tokens that are neither special nor added, the highest id first."""
    ordinary = set(range(len(tokenizer))) - set(tokenizer.all_special_ids) - set(tokenizer.added_tokens_decoder)
    for token_id in sorted(ordinary, reverse=True):
        if _is_word(text := tokenizer.decode([token_id])):
            yield token_id, text


def _is_word(text: str) -> bool:
    return bool(text) and text.isprintable() and " " not in text and "\ufffd" not in text


class MaskSearch:
    """The first of the candidates that stands in no document, neither as text nor in its ids: a visible one could not be told from a masked
    token. Of documents that hold them all: the last printable token of the vocabulary whose id they do not hold.
    """

    def __init__(self, tokenizer: Any, candidates: Sequence[MaskToken]) -> None:
        self.tokenizer, self.left, self.only = tokenizer, list(candidates), len(candidates) == 1
        self.seen: set[int] = set()

    def read(self, documents: Iterable[Document], encode: Any) -> None:
        """Look for them in the texts and ids (`encode(text)`) of documents. Raises InputError for one that holds the only candidate."""
        for document in documents:
            for text in (document.prompt, document.text):
                if text is None:
                    continue
                self.seen.update(ids := set(encode(text)))
                held = [mask for mask in self.left if mask.token in text or mask.id in ids]
                if held and self.only:
                    token = held[0].token
                    raise InputError(f"document '{document.id}': its text holds the mask token '{token}'; name another with --mask_token")
                if held:
                    self.left = [mask for mask in self.left if mask not in held]

    @property
    def mask(self) -> MaskToken:
        """The token by all documents so far. Raises InputError where these hold the whole vocabulary."""
        if self.left:
            return self.left[0]
        for token_id, text in _ordinary(self.tokenizer):
            if token_id not in self.seen:
                return MaskToken(text, token_id, "the last ordinary token of the vocabulary whose id the documents do not hold")
        raise InputError("documents: hold every token that could stand for a masked one; name one with --mask_token")


def record_mask(tokenizer: Any, mask: MaskToken) -> None:
    """Write into the tokenizer which token is its mask: it is saved with it, and later runs and the decoder of a diffusion model read it.

    It does not become a special token: the text of an ordinary one would then be cut in another way.
    """
    tokenizer.init_kwargs[RECORD] = tokenizer.convert_ids_to_tokens(mask.id)


def mask_id(tokenizer: Any) -> int | None:
    """The id of the recorded mask token, else of the tokenizer's own; None without either."""
    recorded = next(_recorded(tokenizer), None)
    return recorded.id if recorded else tokenizer.mask_token_id
