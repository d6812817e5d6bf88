"""Which token stands for a hidden one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from demask.types import Document, InputError

# Special tokens that a tokenizer keeps for its users: Llama 3's <|reserved_special_token_5|>, Gemma's <unused7>, Mistral's [control_8], ...
_RESERVED = re.compile(r"(reserved|unused|control|extra)[\w ]*\d+", re.IGNORECASE)
# Rare ordinary tokens for families whose tokenizers reserve none (Qwen: arXiv 2510.09885).
_FALLBACKS = ("[]",)


@dataclass(frozen=True)
class MaskToken:
    """The token, its id, and the reason it was chosen (for the log)."""

    token: str
    id: int
    reason: str


def choose_mask_token(tokenizer: Any, name: str | None = None) -> MaskToken:
    """The token `name`, else the tokenizer's own mask token, else an unused reserved special token, else a known rare token.

    Raises InputError where `name` is not one token of the vocabulary, or none can be found.
    """
    if name is not None:
        ids = tokenizer.encode(name, add_special_tokens=False)
        if len(ids) != 1:
            raise InputError(f"mask_token: '{name}' is {len(ids)} tokens of this tokenizer, expected one")
        if ids[0] == tokenizer.unk_token_id:
            raise InputError(f"mask_token: '{name}' is not in this tokenizer's vocabulary")
        return MaskToken(name, ids[0], "named by the user")
    if tokenizer.mask_token_id is not None:
        return MaskToken(tokenizer.mask_token, tokenizer.mask_token_id, "the tokenizer's own mask token")
    used = set(tokenizer.all_special_ids)
    template = tokenizer.chat_template or ""
    for token_id, token in sorted(tokenizer.added_tokens_decoder.items()):
        text = str(token)
        if _RESERVED.search(text) and token_id not in used and text not in template:
            return MaskToken(text, token_id, "an unused reserved token of the tokenizer")
    for text in _FALLBACKS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if len(ids) == 1 and ids[0] != tokenizer.unk_token_id:
            return MaskToken(text, ids[0], "a rare token: the tokenizer reserves none")
    raise InputError(
        "mask_token: this tokenizer has no mask token and reserves none; name a rare token of its vocabulary with --mask_token"
    )


def refuse_mask_in_documents(mask: MaskToken, documents: Iterable[Document], encode: Any) -> None:
    """Raise InputError naming the first document whose ids (`encode(text)`) hold the mask token: it could not be told from a hidden one."""
    for document in documents:
        for text in (document.prompt, document.text):
            if text is not None and (mask.id in encode(text) or mask.token in text):
                raise InputError(f"document '{document.id}': its text holds the mask token '{mask.token}'; name another with --mask_token")
