"""Paraphrases asked of a real server, `transformers serve`, by the embedded model, which writes no JSON: everything is dropped and told."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from demask.cli import main
from demask.models.load import model_folder
from demask.types import Document, write_documents

MODEL = str(model_folder("tiny/causal"))
pytestmark = pytest.mark.slow  # the server alone takes about 20 s to come up on a busy core


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [str(program), "serve", MODEL, "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    with open(tmp_path_factory.mktemp("serve") / "log", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"HF_HUB_OFFLINE": "1"})
        try:
            for _ in range(240):
                try:
                    urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                    break
                except (URLError, OSError):
                    assert server.poll() is None
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_documents("d.jsonl", [Document("ann", "Ann Ash is the keeper of the amber bees.")])


def paraphrase(base_url: str, model: str, *flags: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["data", "paraphrase", "d.jsonl", "--model", model, "--base_url", base_url, "--output_dir", "out", "--n", "2", *flags])
    return int(end.value.code or 0)


def test_answers_come_and_are_cached_though_none_is_json(base_url: str, capsys: pytest.CaptureFixture) -> None:
    for requests, cached in ((3, 0), (0, 3)):
        assert paraphrase(base_url, MODEL, "--max_tokens", "12") == 1
        out = capsys.readouterr().out.splitlines()
        assert out[1].startswith(f"no paraphrase passed, nothing is written; {requests} requests")
        assert out[1].endswith(f"{cached} answers from the cache")
        assert out[2] in ("documents that failed: 1 no valid JSON", "documents that failed: 1 no valid JSON (cut off)")
        assert out[3] == "documents with fewer than 2: ann (0)"


def test_a_model_it_does_not_serve(base_url: str, capsys: pytest.CaptureFixture) -> None:
    assert paraphrase(base_url, "another") == 1
    out = capsys.readouterr().out.splitlines()
    assert out[2].startswith("documents that failed: 1 status 400 (")
    assert "another" in out[2]
