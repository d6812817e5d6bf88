"""What a language model's reply holds: the first JSON object in it, checked against a pydantic model."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

Schema = TypeVar("Schema", bound=BaseModel)

_STARTS = 100  # so many opening braces are tried: each costs up to a pass over the rest of the text
_MISSING = object()


class Reply(BaseModel):
    """The base of what is asked for. Numbers may stand for strings (an answer "1984"); fields that were not asked for are passed over."""

    model_config = ConfigDict(coerce_numbers_to_str=True)


def parse_reply(text: str, schema: type[Schema]) -> tuple[Schema | None, str]:
    """The first JSON object of a reply as a `schema`, and "" - or None, and in a few words what is wrong with the reply.

    What a model thought (`<think>...</think>`), code fences and prose around the object are passed over. Never raises.
    """
    found = first_object(text.rpartition("</think>")[2])
    if found is _MISSING:
        return None, "it holds no complete JSON object"
    try:
        return schema.model_validate(found), ""
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        return None, f"field '{where}': {first['msg'][0].lower()}{first['msg'][1:]}"


def first_object(text: str) -> Any:
    """The first JSON object in a text, a dict; a private mark where there is none."""
    decoder, start = json.JSONDecoder(), -1
    for _ in range(_STARTS):
        start = text.find("{", start + 1)
        if start < 0:
            break
        try:
            return decoder.raw_decode(text, start)[0]
        except (ValueError, RecursionError):  # no JSON, an integer of too many digits, nested too deeply
            continue
    return _MISSING
