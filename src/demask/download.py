"""One file from the web into a cache: checked by its checksum, resumed where it was cut, and never half there under its own name."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path

from demask.types import InputError

TRIES = 4  # of a download that is cut, or that the server puts off
WAIT_S = 1.0  # before the second try, twice as much before each further one
TIMEOUT_S = 30.0  # to connect, and between two pieces
PIECE = 1 << 16  # bytes
OTHER_WAYS = "get it by other means and name its folder with --source FOLDER"


class _Again(Exception):
    """A failure that may be gone next time."""


def cache_folder() -> Path:
    """$DEMASK_CACHE, else demask in $XDG_CACHE_HOME, else in ~/.cache."""
    own = os.environ.get("DEMASK_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "demask"


def checksum(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(url: str, path: Path, sha256: str) -> Path:
    """`path`, which then holds the bytes at `url` that have this sha256; nothing is fetched where it holds them already.

    What has arrived stands in `path`.part, and the next call goes on from there. Raises InputError, one line with the url, where it can't
    be fetched (after some tries) or written, or where other bytes come; those are deleted.
    """
    from filelock import FileLock

    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            if not path.exists() or checksum(path) != sha256:
                print(f"fetching {url}")
                _checked(url, part, sha256)
                os.replace(part, path)
    except OSError as error:  # of files: those of the network are InputErrors by now
        with suppress(OSError):
            part.unlink(missing_ok=True)
        reason = (error.strerror or str(error)).lower()
        raise InputError(f"{url}: cannot be kept in {path.parent} ({reason}); set DEMASK_CACHE, or {OTHER_WAYS}") from None
    return path


def _checked(url: str, part: Path, sha256: str) -> None:
    """Bring `part` to the whole file; it is deleted where that has another checksum."""
    resumed = part.exists()
    _whole(url, part)
    if resumed and checksum(part) != sha256:  # what lay there may have been the beginning of something else
        part.unlink()
        _whole(url, part)
    found = checksum(part)
    if found != sha256:
        part.unlink()
        raise InputError(f"{url}: what came has the sha256 {found[:16]}..., not {sha256[:16]}..., and was deleted; {OTHER_WAYS}")


def _whole(url: str, part: Path) -> None:
    """Bring `part` to its full length, in as many tries as it takes and TRIES allows."""
    for number in range(TRIES):
        if number:
            time.sleep(WAIT_S * 2 ** (number - 1))
        try:
            return _go_on(url, part)
        except _Again as error:
            reason = str(error)
    raise InputError(f"{url}: cannot be fetched ({reason}, {TRIES} times); try again later, or {OTHER_WAYS}")


def _go_on(url: str, part: Path) -> None:
    """One request, for what `part` lacks; all of it where the server knows no ranges."""
    import requests

    start = part.stat().st_size if part.exists() else 0
    # Compressed on the way, a range would count other bytes than those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            if start and response.status_code == 416:  # nothing lies behind it: all there, or not a beginning of it
                return
            if response.status_code == 429 or response.status_code >= 500:
                raise _Again(f"{response.status_code} {response.reason}")
            if response.status_code not in (200, 206):
                raise InputError(f"{url}: cannot be fetched ({response.status_code} {response.reason}); {OTHER_WAYS}")
            goes_on = response.status_code == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
            with open(part, "ab" if goes_on else "wb") as file:
                for piece in response.iter_content(PIECE):
                    file.write(piece)
    except requests.Timeout:
        raise _Again("no answer in time") from None
    except requests.exceptions.ChunkedEncodingError:
        raise _Again("the connection was cut") from None
    except requests.ConnectionError as error:
        if not _was_connected(error):
            raise InputError(f"{url}: cannot be fetched (no connection to the server); {OTHER_WAYS}") from None
        raise _Again("the connection was cut") from None
    except requests.RequestException as error:
        raise InputError(f"{url}: cannot be fetched ({' '.join(str(error).split())}); {OTHER_WAYS}") from None


def _was_connected(error: Exception) -> bool:
    """Whether the server was reached: there is no use in asking again at once where the network, the name or the certificate fails."""
    from requests.exceptions import ProxyError, SSLError
    from urllib3.exceptions import NewConnectionError

    reason = getattr(error.args[0], "reason", None) if error.args else None
    return not isinstance(error, (ProxyError, SSLError)) and not isinstance(reason, NewConnectionError)
