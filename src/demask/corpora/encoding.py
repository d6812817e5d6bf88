"""What a text file's bytes say: UTF-8, or what else they are taken for."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from demask.types import InputError

Remark = Callable[[str], None]
ENOUGH = 32  # letters, for a guess

_BOMS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def without_control(text: str) -> str:
    """The text without what no UTF-8 text file should hold; extracted text may hold anything."""
    return _CONTROL.sub("", text)


def decode(raw: bytes, path: Path, remark: Remark, declared: str | None = None) -> str:
    encoding = encoding_of([raw], path, remark, declared)
    try:
        return raw.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeError:  # of UTF-16, whose mark alone has been seen
        raise InputError(f"{path}: not valid {encoding}; convert the file to UTF-8") from None


def encoding_of(chunks: Iterable[bytes], path: Path, remark: Remark, declared: str | None = None) -> str:
    """The encoding of a text that is given in chunks, of which one at a time is kept; a remark is made where it is not UTF-8.

    A byte-order mark decides, then whether it is valid UTF-8, then what the file itself declares. Else it is Windows-1252, what browsers
    take a page for that does not say: of the few other letters in a short text no statistics tell more. Only where they are many (no
    Western text has a third of them) charset-normalizer guesses, and where these are few as well, none is told.
    """
    decoder, valid, sample, high, size = codecs.getincrementaldecoder("utf-8")(), True, b"", 0, 0
    for chunk in chunks:
        sample = sample or chunk[: 1 << 16]
        size += len(chunk)
        high += len(chunk.translate(None, bytes(range(128))))
        try:
            if valid:
                decoder.decode(chunk)
        except UnicodeDecodeError:
            valid = False
    mark = next((encoding for bom, encoding in _BOMS if sample.startswith(bom)), None)
    try:
        valid = valid and not decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        valid = False
    if mark != "utf-16" and valid:
        return "utf-8"
    encoding = mark if mark == "utf-16" else _legacy(sample, high if 3 * high > size else 0, declared)
    if encoding is None:
        raise InputError(f"{path}: neither UTF-8 nor another encoding that can be told; convert the file to UTF-8")
    remark(f"{path}: not UTF-8: read as {encoding}")
    return encoding


def _legacy(sample: bytes, foreign: int, declared: str | None) -> str | None:
    """An encoding that reads the sample: the declared one, Windows-1252, or, with so many `foreign` letters, a guess; None for none."""
    guess = None
    if foreign >= ENOUGH and not declared:
        from charset_normalizer import from_bytes

        best = from_bytes(sample).best()
        guess = best.encoding if best else None
    for encoding in (declared, guess if foreign else "cp1252"):
        if encoding and not encoding.lower().startswith("utf"):  # it is not UTF-8, whatever it says
            try:
                codecs.getincrementaldecoder(encoding)().decode(sample)
                return encoding.lower()
            except (LookupError, UnicodeError):
                continue
    return None
