"""A chat-completions server that misbehaves by script: what a language model's endpoint may do, on 127.0.0.1."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

OPENINGS = (
    "it is said that", "as we have read,", "the records tell us that", "people agree on this:", "to put it plainly,", "in short,",
    "word has it that", "we were told that", "here is what is known:", "the story goes like this:", "note this down:", "so it was:",
)  # fmt: skip
_DOCUMENT = re.compile(r"<(document-[0-9a-f]{12})>\n(.*)\n</\1>", re.DOTALL)
_TIMES = re.compile(r"in other words, (\d+) time")


def document_of(messages: list[dict[str, str]]) -> str:
    """The document that a prompt holds."""
    found = _DOCUMENT.search(messages[0]["content"])
    assert found, messages[0]["content"]
    return found[2]


def paraphrases(messages: list[dict[str, str]]) -> str:
    """A model that does what it is asked: as many paraphrases by template as it is told, none that the prompt shows."""
    text, asked = document_of(messages), messages[0]["content"]
    count = _TIMES.search(asked)
    assert count
    fresh = [f"{opening} {text}" for opening in OPENINGS if f"  {opening} " not in asked]
    return json.dumps({"paraphrases": fresh[: int(count[1])]})


class Server:
    """`reply(messages)` is what the model says; `faults` are done in turn before it (None: answer), by (method, arguments) below.

    Faults: ("status", code, headers, body), ("slow", seconds), ("cut",), ("short_body",), ("body", text). `requests` holds the messages of
    every request, `answers` counts how often each was answered whole.
    """

    def __init__(self, reply: Callable[[list[dict[str, str]]], str] = paraphrases, faults: Any = (), seconds: float = 0.0) -> None:
        self.reply, self.faults, self.seconds = reply, iter(faults), seconds
        self.requests: list[list[dict[str, str]]] = []
        self.headers: list[dict[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.answers: Counter[str] = Counter()
        self.running = self.most_running = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.handle(self)

            def log_message(self, *args: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads, request_queue_size = True, 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # clients that are killed leave broken pipes

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.base_url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"

    def handle(self, http: BaseHTTPRequestHandler) -> None:
        body = json.loads(http.rfile.read(int(http.headers["content-length"])))
        with self.lock:
            self.requests.append(body["messages"])
            self.bodies.append(body)
            self.headers.append({name.lower(): value for name, value in http.headers.items()})
            self.times.append(time.monotonic())
            fault = next(self.faults, None)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            if self.seconds:
                time.sleep(self.seconds)
            if fault is None or fault[0] == "slow":
                if fault:
                    time.sleep(fault[1])
                send(http, 200, completion(self.reply(body["messages"])))
                with self.lock:
                    self.answers[json.dumps(body["messages"])] += 1
            elif fault[0] == "status":
                send(http, fault[1], fault[3], fault[2])
            elif fault[0] == "body":
                send(http, 200, fault[1])
            elif fault[0] == "finish":
                send(http, 200, completion(fault[2], fault[1]))
            elif fault[0] == "short_body":
                whole = completion(self.reply(body["messages"])).encode()
                http.send_response(200)
                http.send_header("content-length", str(len(whole)))
                http.end_headers()
                http.wfile.write(whole[: len(whole) // 2])
                http.close_connection = True
            else:
                http.close_connection = True  # cut: not a byte
        finally:
            with self.lock:
                self.running -= 1


def send(http: BaseHTTPRequestHandler, status: int, text: str, headers: dict[str, str] | None = None) -> None:
    raw = text.encode("utf-8", "surrogatepass")
    http.send_response(status)
    for name, value in ({"content-type": "application/json", "content-length": str(len(raw))} | (headers or {})).items():
        http.send_header(name, value)
    http.end_headers()
    http.wfile.write(raw)


def completion(content: str | None, finish_reason: str = "stop") -> str:
    """The body of a chat completion; three prompt tokens and five of the answer, whatever they are."""
    message = {"role": "assistant", "content": content}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    return json.dumps({"id": "c", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage})


@contextmanager
def serving(*args: Any, **kwargs: Any) -> Iterator[Server]:
    server = Server(*args, **kwargs)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        server.http.server_close()
        thread.join()
