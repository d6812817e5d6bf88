"""Requests to a server that misbehaves: what is tried again, what fails alone, what ends the job; and the cache of answers."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from email.utils import formatdate
from pathlib import Path
from typing import Any

import openai._base_client
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demask.types import InputError
from demask.writing.cache import Cache, Stored, answer_key
from demask.writing.endpoint import Endpoint, EndpointSettings, Unanswered
from demask.writing.paraphrase import Paraphrases
from demask.writing.questions import Pairs
from demask.writing.replies import parse_reply
from tests.endpoint import Server, completion, serving

GOOD = '{"paraphrases": ["one"]}'
BUSY = ("status", 429, {"retry-after": "0.2"}, '{"error": {"message": "slow down"}}')
BROKEN = ("status", 500, {}, "<html>oh no</html>")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr(openai._base_client, "MAX_RETRY_DELAY", 0.02)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(server: Server, *prompts: str, cache: Cache | None = None, **settings: Any) -> tuple[list[Any], Endpoint]:
    """What came of each prompt: its paraphrases, or why there are none."""

    async def run() -> tuple[list[Any], Endpoint]:
        endpoint = Endpoint(EndpointSettings("m", server.base_url, **settings), cache or Cache(None))

        async def one(prompt: str) -> Any:
            try:
                return (await endpoint.ask(prompt, Paraphrases)).paraphrases
            except Unanswered as error:
                return str(error)

        try:
            return list(await asyncio.gather(*map(one, prompts))), endpoint
        finally:
            await endpoint.close()

    return asyncio.run(run())


def good(messages: Any) -> str:
    return GOOD


@pytest.mark.parametrize(
    "fault",
    [
        BUSY,
        BROKEN,
        ("status", 503, {"retry-after": formatdate(usegmt=True)}, ""),
        ("status", 408, {}, ""),
        ("slow", 3.0),
        ("cut",),
        ("short_body",),
        ("body", "<html>a proxy's page</html>"),
        ("body", '{"error": {"message": "overloaded"}}'),
        ("body", '{"choices": []}'),
        ("body", completion('{"paraphrases": ["' + "\ud800" + '"]}')),
        ("body", completion(GOOD)[:-1]),
    ],
    ids=lambda fault: f"{fault[0]} {fault[1] if len(fault) > 1 else ''}"[:30],
)
def test_a_fault_is_tried_again(fault: Any) -> None:
    with serving(good, faults=[fault]) as server:
        [found], endpoint = ask(server, "x", timeout=1.0 if fault[0] == "slow" else 60.0)
    assert found == ["one"]
    assert (len(server.requests), endpoint.requests, endpoint.cached) == (2, 2, 0)


def test_a_request_waits_as_long_as_the_server_says() -> None:
    with serving(good, faults=[BUSY]) as server:
        ask(server, "x")
    assert server.times[1] - server.times[0] >= 0.2


def test_too_long_a_wait_fails_at_once() -> None:
    with serving(good, faults=[("status", 429, {"retry-after": "121"}, '{"error": {"message": "come back tomorrow"}}')]) as server:
        found, endpoint = ask(server, "x")
    assert found == ["status 429"]
    assert endpoint.said == {"status 429": "come back tomorrow"}


@pytest.mark.parametrize(
    ("fault", "reason", "requests"),
    [
        (BROKEN, "status 500", 6),
        (("cut",), "connection lost", 6),
        (("slow", 1.5), "timed out", 6),
        (("status", 400, {}, '{"error": {"message": "too long"}}'), "status 400", 1),
        (("status", 422, {}, '{"detail": "no such field"}'), "status 422", 1),
        (("body", "{}"), "no chat completion in the reply", 3),
    ],
    ids=lambda value: str(value)[:20],
)
def test_one_item_fails_after_so_many_tries_and_the_others_go_on(fault: Any, reason: str, requests: int) -> None:
    with serving(good, faults=[None, *[fault] * requests]) as server:
        found, endpoint = ask(server, "x", "y", "z", concurrency=1, timeout=1.0 if fault[0] == "slow" else 60.0)
    assert found == [["one"], reason, ["one"]]
    assert (len(server.requests), endpoint.requests) == (requests + 2, requests + 2)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (("status", 401, {}, '{"error": {"message": "bad key sk-secret"}}'), "the server refuses the key (401); set OPENAI_API_KEY"),
        (("status", 403, {}, "{}"), "the server refuses the key (403); set OPENAI_API_KEY"),
        (("status", 404, {}, '{"error": {"message": "no such model"}}'), "not found (404); check both"),
    ],
    ids=["401", "403", "404"],
)
def test_what_is_wrong_with_all_ends_the_job(fault: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with serving(good, faults=[fault]) as server, pytest.raises(InputError) as error:
        ask(server, "x")
    assert str(error.value) == f"base_url {server.base_url}, model 'm': {message}"
    assert len(server.requests) == 1


def test_a_spent_quota_ends_the_job() -> None:
    body = '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}'
    with serving(good, faults=[("status", 429, {"x-should-retry": "false"}, body)]) as server, pytest.raises(InputError) as error:
        ask(server, "x")
    assert str(error.value) == f"base_url {server.base_url}, model 'm': the account's quota is spent (429)"


def test_no_server() -> None:
    with serving(good) as server:
        pass
    with pytest.raises(InputError) as error:
        ask(server, "x")
    assert str(error.value) == f"base_url {server.base_url}, model 'm': no connection; is the server running, and the address right?"


def test_the_key_is_sent_and_shown_nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", " sk-secret\n")
    cache = Cache(tmp_path / "c.sqlite")
    fault = ("status", 400, {}, '{"error": {"message": "no such thing for sk-secret"}}')
    with serving(good, faults=[None, fault]) as server:
        found, endpoint = ask(server, "x", "y", concurrency=1, cache=cache)
    cache.close()
    assert [headers["authorization"] for headers in server.headers] == ["Bearer sk-secret"] * 2
    assert found == [["one"], "status 400"]
    assert endpoint.said == {"status 400": "no such thing for ***"}
    assert b"sk-secret" not in (tmp_path / "c.sqlite").read_bytes()


def test_without_a_key_a_placeholder_is_sent_and_nothing_but_what_is_set() -> None:
    with serving(good) as server:
        ask(server, "x")
        ask(server, "x", temperature=0.5, max_tokens=7)
    assert server.headers[0]["authorization"] == "Bearer no-key"
    assert server.bodies[0] == {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": False}
    assert server.bodies[1] == server.bodies[0] | {"temperature": 0.5, "max_tokens": 7}


def test_a_key_that_cannot_be_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-schlüssel")
    with serving(good) as server, pytest.raises(InputError, match=r"^OPENAI_API_KEY: holds characters that no key has$"):
        ask(server, "x")


def test_malformed_replies_are_asked_again_and_told_why() -> None:
    replies = iter(["I'd rather not.", '{"rewrites": []}', f"<think>{{}}</think>Here:\n```json\n{GOOD}\n```"])
    with serving(lambda messages: next(replies)) as server:
        [found], _ = ask(server, "x")
    assert found == ["one"]
    end = "Write the JSON object that was asked for, and nothing else."
    assert server.requests[1] == [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "I'd rather not."},
        {"role": "user", "content": f"That reply cannot be used: it holds no complete JSON object. {end}"},
    ]
    assert server.requests[2][2]["content"] == f"That reply cannot be used: field 'paraphrases': field required. {end}"


def test_three_malformed_replies_are_a_failure_that_is_remembered(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c.sqlite")
    with serving(lambda messages: "") as server:
        first, endpoint = ask(server, "x", cache=cache)
        second, again = ask(server, "x", cache=cache)
    assert first == second == ["no valid JSON"]
    assert (len(server.requests), endpoint.requests, again.requests, again.cached) == (3, 3, 0, 3)


def test_an_answer_that_was_cut_off_is_told_so() -> None:
    with serving(good, faults=[("finish", "length", '{"paraphrases": ["o')]) as server:
        [found], _ = ask(server, "x")
    assert found == ["one"]
    assert "it was cut off before its end, so be shorter" in server.requests[1][2]["content"]


def test_concurrency_is_bounded_and_used() -> None:
    with serving(good, seconds=0.1) as server:
        found, _ = ask(server, *map(str, range(12)), concurrency=4)
    assert found == [["one"]] * 12
    assert server.most_running == 4


def test_max_requests_counts_retries_and_lets_those_under_way_end(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "c.sqlite")
    with serving(good, faults=[None, BROKEN], seconds=0.05) as server:
        found, endpoint = ask(server, *map(str, range(6)), concurrency=2, max_requests=4, cache=cache)
        assert (len(server.requests), endpoint.requests, len(endpoint.unasked)) == (4, 4, 3)
        assert (found.count(["one"]), found.count("not asked")) == (3, 3)
        found, endpoint = ask(server, *map(str, range(6)), cache=cache)
    assert found == [["one"]] * 6
    assert (endpoint.requests, endpoint.cached) == (3, 3)


def test_what_an_answer_depends_on() -> None:
    messages = [{"role": "user", "content": "x"}]
    one = answer_key("m", messages, {}, 0)
    others = [
        answer_key("n", messages, {}, 0),
        answer_key("m", [{"role": "user", "content": "y"}], {}, 0),
        answer_key("m", messages, {"temperature": 0.0}, 0),
        answer_key("m", messages, {}, 1),
    ]
    assert len({one, *others}) == 5
    assert one == answer_key("m", messages, {}, 0)


def test_the_first_of_two_answers_is_kept(tmp_path: Path) -> None:
    one, two = Cache(tmp_path / "c.sqlite"), Cache(tmp_path / "c.sqlite")
    assert two.get("k") is None
    assert one.put("k", "m", Stored("first", "stop", 1, 2)) == Stored("first", "stop", 1, 2)
    assert two.put("k", "m", Stored("second")) == one.get("k") == Stored("first", "stop", 1, 2)


@pytest.mark.parametrize("kind", ["text", "other", "folder"])
def test_a_file_that_is_no_cache(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("c.sqlite")
    if kind == "text":
        path.write_text("no data base at all, and long enough to be looked at as one" * 20)
    elif kind == "folder":
        path.mkdir()
    else:
        with sqlite3.connect(path) as database:
            database.execute("CREATE TABLE answers (other TEXT)")
    reasons = {"text": "file is not a database", "other": "no such column: key", "folder": "unable to open database file"}
    with pytest.raises(InputError) as error:
        Cache(path)
    assert str(error.value) == f"c.sqlite: cannot be used as the cache of answers ({reasons[kind]})"


NO_OBJECT = "it holds no complete JSON object"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", NO_OBJECT),
        ("[1, 2]", NO_OBJECT),
        ('["a string"]', NO_OBJECT),
        ('{"paraphrases": ["a"', NO_OBJECT),
        ("{paraphrases: ['a']}", NO_OBJECT),
        ('{"a":' * 5000, NO_OBJECT),
        ('{"paraphrases": ' + "9" * 5000 + "}", NO_OBJECT),
        ("<think>" + GOOD + "</think>", NO_OBJECT),
        ("{}", "field 'paraphrases': field required"),
        ('{"paraphrases": "a"}', "field 'paraphrases': input should be a valid list"),
        ('{"paraphrases": null}', "field 'paraphrases': input should be a valid list"),
        ('{"paraphrases": [{"text": "a"}]}', "field 'paraphrases.0': input should be a valid string"),
        ('{"paraphrases": ["a", null]}', "field 'paraphrases.1': input should be a valid string"),
        ('{"paraphrases": [true]}', "field 'paraphrases.0': input should be a valid string"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed(text: str, fault: str) -> None:
    assert parse_reply(text, Paraphrases) == (None, fault)


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        f"```json\n{GOOD}\n```",
        f"Sure! {GOOD} Anything else?",
        f"<think>hm {{}}</think>\n{GOOD}",
        f"hm</think>{GOOD}",
        f"{{x}} {GOOD}",
    ],
)
def test_well_formed(text: str) -> None:
    assert parse_reply(text, Paraphrases) == (Paraphrases(paraphrases=["one"]), "")


def test_a_number_is_an_answer() -> None:
    asked = '{"question": "When?", "answer": 1984}'
    pairs, _ = parse_reply(f'{{"pairs": [{{"forward": {asked}, "backward": {asked}, "why": "x"}}]}}', Pairs)
    assert pairs is not None
    assert pairs.pairs[0].forward.answer == "1984"


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["paraphrases", "pairs", "forward", "x"]), inner),
)
_TEXT = st.text(st.characters()) | st.text('{}[]":,\\ud80nul<think/> \n', max_size=60)


@given(st.lists(_TEXT | _JSON.map(json.dumps)).map("".join))
def test_any_reply_is_parsed_or_malformed(text: str) -> None:
    for schema in (Paraphrases, Pairs):
        value, fault = parse_reply(text, schema)
        assert (value is None) == bool(fault)
