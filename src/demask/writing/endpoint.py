"""Asks a language model behind any OpenAI-compatible endpoint for JSON, many requests at a time, and keeps every answer.

    cache ──► stored answer ──► first JSON object ──► schema ──► value
      └─ not there: request (retried) ─┘        └─ malformed: told what is wrong, asked again (3 times in all)

What goes wrong with one item (server errors, rate limits, timeouts, cut connections, unusable replies) is tried again a bounded number
of times, then that item fails with a reason and the others go on. What would go wrong with all of them (the key, the model's name, the
address) ends the job at once in one line.
"""

from __future__ import annotations

import asyncio
import os
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import openai
from openai import AsyncOpenAI, DefaultAsyncHttpx2Client
from pydantic import BaseModel, ValidationError

from demask.types import InputError
from demask.writing.cache import Cache, Stored, answer_key
from demask.writing.replies import Schema, parse_reply

NOT_ASKED = "not asked"  # the reason of a LimitReached
TRIES = 3  # times one thing is asked for in all, where the reply is malformed
# The client retries 408, 409, 429, 5xx, timeouts and lost connections; it waits as Retry-After says (up to two minutes), else 0.5, 1, 2, 4
# and 8 seconds, less up to a quarter by chance.
RETRIES = 5
_SHOWN = 2000  # characters of a malformed reply that are shown to the model again

Message = Mapping[str, str]


@dataclass(frozen=True)
class EndpointSettings:
    """Which model is asked, where, and how."""

    model: str
    base_url: str
    concurrency: int = 16
    timeout: float = 300.0
    """Seconds the server may be silent before a request counts as lost."""
    max_requests: int | None = None
    """So many real requests at most, retries included."""
    temperature: float | None = None
    max_tokens: int | None = None
    """None for either: not sent, so that the server's own default holds."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.base_url)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:  # a port that is no number, a bracket without its other
            usable = False
        if not usable:
            raise InputError(f"base_url: expected an address like http://127.0.0.1:8000/v1, found '{self.base_url}'")
        if not self.model.strip():
            raise InputError("model: is empty")

    @property
    def sampling(self) -> dict[str, Any]:
        given = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def place(self) -> str:
        """The endpoint as messages name it, without a password in the address."""
        parts = urlsplit(self.base_url)
        return f"base_url {parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()}, model '{self.model}'"


class Unanswered(Exception):
    """One item that got no usable answer. Its text is the reason, in words that are the same for all items that failed alike."""


class LimitReached(Unanswered):
    """No request may be made any more (`max_requests`; in a plan, none at all)."""


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Usage(BaseModel):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Completion(BaseModel):
    choices: list[_Choice]
    usage: _Usage | None = None


class Endpoint:
    """One job's requests. Counts what was asked (`requests`), found (`cached`), used of tokens (`tokens`), and left unasked (`unasked`)."""

    def __init__(self, settings: EndpointSettings, cache: Cache, *, offline: bool = False) -> None:
        self.settings, self.cache = settings, cache
        self.requests = self.cached = self.answered = 0
        self.tokens: Counter[str] = Counter()
        self.unasked: list[Sequence[Message]] = []
        self.said: dict[str, str] = {}
        """What the server said first, by reason, for the summary."""
        self._limit = 0 if offline else settings.max_requests
        self._slots = asyncio.Semaphore(settings.concurrency)
        self._key = _api_key()
        self._client = AsyncOpenAI(
            api_key=self._key,
            base_url=settings.base_url,
            timeout=openai.Timeout(settings.timeout, connect=min(10.0, settings.timeout)),
            max_retries=RETRIES,
            http_client=DefaultAsyncHttpx2Client(event_hooks={"request": [self._count]}),
        )

    async def close(self) -> None:
        await self._client.close()

    async def ask(self, prompt: str, schema: type[Schema], attempt: int = 0) -> Schema:
        """The model's answer to a prompt, valid by `schema`. `attempt` tells equal prompts apart. Raises Unanswered."""
        messages: list[Message] = [{"role": "user", "content": prompt}]
        fault = ""
        for again in range(TRIES):
            stored = await self._answer(messages, attempt * TRIES + again)
            value, fault = parse_reply(stored.content, schema)
            if value is not None:
                return value
            if stored.finish_reason == "length":
                fault = "it was cut off before its end, so be shorter"
            complaint = f"That reply cannot be used: {fault}. Write the JSON object that was asked for, and nothing else."
            shown = stored.content[:_SHOWN].strip() or "(empty)"  # some servers refuse an empty turn
            messages = [messages[0], {"role": "assistant", "content": shown}, {"role": "user", "content": complaint}]
        raise Unanswered("no valid JSON" + (" (cut off)" if "cut off" in fault else ""))

    async def _answer(self, messages: Sequence[Message], attempt: int) -> Stored:
        key = answer_key(self.settings.model, messages, self.settings.sampling, attempt)
        async with self._slots:
            if stored := self.cache.get(key):
                self.cached += 1
                return stored
            if self._limit is not None and self.requests >= self._limit:
                self.unasked.append(messages)
                raise LimitReached(NOT_ASKED)
            try:
                answer = await self._request(messages)
            except LimitReached:
                self.unasked.append(messages)
                raise
        self.answered += 1
        self.tokens.update(prompt=answer.prompt_tokens, completion=answer.completion_tokens)
        return self.cache.put(key, self.settings.model, answer)

    async def _request(self, messages: Sequence[Message]) -> Stored:
        create = self._client.chat.completions.with_raw_response.create
        for _ in range(TRIES):
            try:
                response = await create(model=self.settings.model, messages=messages, stream=False, **self.settings.sampling)  # type: ignore
            except openai.APIError as error:
                raise self._failure(error) from None
            if answer := _completion(response.content):
                return answer
        # A page of a proxy, an error under status 200, a body that is cut short: no retry of the client's, and no answer of the model's.
        raise Unanswered("no chat completion in the reply")

    async def _count(self, request: Any) -> None:
        """Called before each real request, retries and redirects included."""
        if self._limit is not None and self.requests >= self._limit:
            raise LimitReached(NOT_ASKED)
        self.requests += 1

    def _failure(self, error: openai.APIError) -> Exception:
        """What an error of the client means: the end of the job (InputError) or of one item (Unanswered)."""
        place = self.settings.place
        if isinstance(error, openai.APIConnectionError):
            cause = type(error.__cause__).__name__
            if cause in ("ConnectError", "ConnectTimeout") and not self.answered:
                return InputError(f"{place}: no connection; is the server running, and the address right?")
            return Unanswered("timed out" if isinstance(error, openai.APITimeoutError) else "connection lost")
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return InputError(f"{place}: the server refuses the key ({status}); set OPENAI_API_KEY")
        if status == 404:
            return InputError(f"{place}: not found (404); check both")
        if error.code == "insufficient_quota":
            return InputError(f"{place}: the account's quota is spent ({status})")
        reason = f"status {status}"
        said = error.message.removeprefix(f"Error code: {status}").removeprefix(" - ") or str(error.body or "")
        self.said.setdefault(reason, textwrap.shorten(said.replace(self._key, "***"), 200))
        return Unanswered(reason)


def _api_key() -> str:
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not (key.isascii() and key.isprintable()):  # the client's error would show it
        raise InputError("OPENAI_API_KEY: holds characters that no key has")
    return key or "no-key"


def _completion(body: bytes) -> Stored | None:
    try:
        completion = _Completion.model_validate_json(body)
    except ValidationError:
        return None
    if not completion.choices:
        return None
    choice, usage = completion.choices[0], completion.usage or _Usage()
    return Stored(choice.message.content or "", choice.finish_reason or "", usage.prompt_tokens, usage.completion_tokens)
