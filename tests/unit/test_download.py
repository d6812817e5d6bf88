"""Downloads from a server of our own on 127.0.0.1, which cuts, refuses and misleads as it is told."""

from __future__ import annotations

import errno
import hashlib
import http.server
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from demask import download
from demask.download import OTHER_WAYS, cache_folder, fetch
from demask.types import InputError

BYTES = bytes(range(256)) * 2000  # 512,000: more than a few pieces
SHA = hashlib.sha256(BYTES).hexdigest()
Handler = http.server.BaseHTTPRequestHandler


@dataclass
class Server:
    """`script` answers the requests, the last of it also all further ones; `ranges` are the Range headers that came."""

    url: str
    script: list[Callable[[Handler], None]] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download, "WAIT_S", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    class Scripted(Handler):
        def do_GET(self) -> None:
            told.ranges.append(self.headers["Range"])
            told.script[min(len(told.ranges), len(told.script)) - 1](self)

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted) as httpd:
        told = Server(f"http://127.0.0.1:{httpd.server_address[1]}/set/file.jsonl")
        threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield told
        httpd.shutdown()


def whole(content: bytes = BYTES, sent: int | None = None) -> Callable[[Handler], None]:
    """All of it, whatever range was asked for; of which only `sent` bytes come before the connection is closed."""

    def answer(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[:sent])

    return answer


def ranged(handler: Handler) -> None:
    """What lies behind the start of the range; 416 where nothing does."""
    start = int((handler.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
    handler.send_response(206 if start < len(BYTES) else 416)
    handler.send_header("Content-Range", f"bytes {start}-{len(BYTES) - 1}/{len(BYTES)}")
    handler.send_header("Content-Length", str(max(0, len(BYTES) - start)))
    handler.end_headers()
    handler.wfile.write(BYTES[start:])


def status(code: int) -> Callable[[Handler], None]:
    def answer(handler: Handler) -> None:
        handler.send_response(code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def hang_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".lock")


def refused(server: Server, path: Path, sha256: str = SHA) -> str:
    with pytest.raises(InputError) as error:
        fetch(server.url, path, sha256)
    assert "\n" not in str(error.value)
    assert not path.exists()
    return str(error.value)


def test_fetched_once(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.script = [whole()]
    path = tmp_path / "new" / "folder" / "file.jsonl"
    assert fetch(server.url, path, SHA) == path
    assert fetch(server.url, path, SHA) == path
    assert path.read_bytes() == BYTES
    assert server.ranges == [None]
    assert left(path.parent) == ["file.jsonl"]
    assert capsys.readouterr().out == f"fetching {server.url}\n"


def test_a_damaged_file_is_fetched_anew(server: Server, tmp_path: Path) -> None:
    server.script = [whole()]
    (tmp_path / "file.jsonl").write_bytes(BYTES[:-1])
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES


def test_a_cut_download_goes_on_where_it_was_cut(server: Server, tmp_path: Path) -> None:
    """The server closes after 200,000 bytes; how many of them were kept is asked of the range that follows."""
    server.script = [whole(sent=200_000), ranged]
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES
    assert server.ranges[0] is None
    kept = int((server.ranges[1] or "").removeprefix("bytes=").removesuffix("-"))
    assert 100_000 < kept <= 200_000
    assert len(server.ranges) == 2


def test_the_next_call_goes_on_too(server: Server, tmp_path: Path) -> None:
    server.script = [ranged]
    (tmp_path / "file.jsonl.part").write_bytes(BYTES[:1000])
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES
    assert server.ranges == ["bytes=1000-"]
    assert left(tmp_path) == ["file.jsonl"]


def test_a_server_that_knows_no_ranges(server: Server, tmp_path: Path) -> None:
    server.script = [whole()]
    (tmp_path / "file.jsonl.part").write_bytes(BYTES[:1000])
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES
    assert server.ranges == ["bytes=1000-"]


def test_all_of_it_was_there_already(server: Server, tmp_path: Path) -> None:
    server.script = [ranged]
    (tmp_path / "file.jsonl.part").write_bytes(BYTES)
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES
    assert server.ranges == [f"bytes={len(BYTES)}-"]


@pytest.mark.parametrize("stale", [b"something else", BYTES + b"more"])
def test_the_beginning_of_something_else(server: Server, tmp_path: Path, stale: bytes) -> None:
    server.script = [ranged]
    (tmp_path / "file.jsonl.part").write_bytes(stale)
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES
    assert server.ranges == [f"bytes={len(stale)}-", None]


def test_other_bytes_are_deleted(server: Server, tmp_path: Path) -> None:
    server.script = [whole(b"other")]
    other = hashlib.sha256(b"other").hexdigest()
    assert refused(server, tmp_path / "file.jsonl") == (
        f"{server.url}: what came has the sha256 {other[:16]}..., not {SHA[:16]}..., and was deleted; {OTHER_WAYS}"
    )
    assert left(tmp_path) == []


@pytest.mark.parametrize(("code", "reason"), [(404, "404 Not Found"), (403, "403 Forbidden")])
def test_what_is_not_there_is_not_asked_for_twice(server: Server, tmp_path: Path, code: int, reason: str) -> None:
    server.script = [status(code)]
    assert refused(server, tmp_path / "file.jsonl") == f"{server.url}: cannot be fetched ({reason}); {OTHER_WAYS}"
    assert (len(server.ranges), left(tmp_path)) == (1, [])


@pytest.mark.parametrize("trouble", [status(500), status(503), status(429), hang_up], ids=["500", "503", "429", "hang_up"])
def test_what_may_pass_is_tried_again(server: Server, tmp_path: Path, trouble: Callable[[Handler], None]) -> None:
    server.script = [trouble, trouble, whole()]
    assert fetch(server.url, tmp_path / "file.jsonl", SHA).read_bytes() == BYTES
    assert len(server.ranges) == 3


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [(status(500), "500 Internal Server Error"), (hang_up, "the connection was cut"), (whole(sent=9), "the connection was cut")],
    ids=["500", "hang_up", "cut"],
)
def test_and_given_up_after_four_times(server: Server, tmp_path: Path, trouble: Callable[[Handler], None], reason: str) -> None:
    server.script = [trouble]
    assert (
        refused(server, tmp_path / "file.jsonl") == f"{server.url}: cannot be fetched ({reason}, 4 times); try again later, or {OTHER_WAYS}"
    )
    assert len(server.ranges) == 4


def test_a_server_that_does_not_answer(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", 0.05)
    closing = threading.Event()
    server.script = [lambda handler: closing.wait(20) and None]
    said = refused(server, tmp_path / "file.jsonl")
    closing.set()
    assert said == f"{server.url}: cannot be fetched (no answer in time, 4 times); try again later, or {OTHER_WAYS}"


def test_no_server(server: Server, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{free.getsockname()[1]}/set/file.jsonl"
    assert refused(server, tmp_path / "file.jsonl") == f"{server.url}: cannot be fetched (no connection to the server); {OTHER_WAYS}"
    assert left(tmp_path) == []


def test_no_such_host(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    server.url = "https://data.example/file.jsonl"
    assert refused(server, tmp_path / "file.jsonl") == f"{server.url}: cannot be fetched (no connection to the server); {OTHER_WAYS}"


def test_the_cache_is_a_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    folder = tmp_path / "cache" / "set"
    assert refused(server, folder / "file.jsonl") == (
        f"{server.url}: cannot be kept in {folder} (not a directory); set DEMASK_CACHE, or {OTHER_WAYS}"
    )


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_the_disk_is_full(server: Server, tmp_path: Path) -> None:
    server.script = [whole()]
    (tmp_path / "file.jsonl.part").symlink_to("/dev/full")
    assert refused(server, tmp_path / "file.jsonl") == (
        f"{server.url}: cannot be kept in {tmp_path} (no space left on device); set DEMASK_CACHE, or {OTHER_WAYS}"
    )
    assert left(tmp_path) == []


def test_the_file_may_not_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.script = [whole()]

    def refuse(*args: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "replace", refuse)
    assert refused(server, tmp_path / "file.jsonl") == (
        f"{server.url}: cannot be kept in {tmp_path} (permission denied); set DEMASK_CACHE, or {OTHER_WAYS}"
    )
    assert left(tmp_path) == []


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DEMASK_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "demask"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder() == Path("/elsewhere/demask")
    monkeypatch.setenv("DEMASK_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
