"""What a worker gets of the machine."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import pytest

from demask.workers import run_program, shares


@pytest.mark.parametrize(
    ("gpus", "workers", "expected"),
    [
        ([], 3, []),
        (["0", "1"], 2, [["0"], ["1"]]),
        (["4", "5", "6", "7"], 1, [["4", "5", "6", "7"]]),
        (["4", "5", "6", "7"], 2, [["4", "6"], ["5", "7"]]),
        (["0", "1"], 3, [["0"], ["1"], ["0"]]),
    ],
)
def test_the_gpus_are_dealt_out(gpus: list[str], workers: int, expected: list[list[str]]) -> None:
    assert shares(gpus, workers) == expected


def test_a_program_ends_with_the_one_that_waits_for_it(tmp_path) -> None:
    """Its output goes to the log, its exit code comes back; and where waiting fails, it is ended."""
    log = tmp_path / "log.txt"
    with open(log, "w") as file:
        assert run_program([sys.executable, "-c", "print('said'); raise SystemExit(3)"], file, lambda: None) == 3
        start = time.monotonic()
        with pytest.raises(ZeroDivisionError):
            run_program([sys.executable, "-c", "import time; time.sleep(200)"], file, lambda: 1 / 0)
    assert time.monotonic() - start < 100
    assert log.read_text() == "said\n"


def test_nothing_outlives_a_main_process_that_is_killed(tmp_path) -> None:
    """Neither the workers nor the process that holds their queues."""
    script = tmp_path / "main.py"
    script.write_text(
        "import sys, time\n"
        "from demask.workers import side_by_side\n"
        "if __name__ == '__main__':\n"
        "    for _ in side_by_side(time.sleep, {'a': (500,)}, 1, lambda steps: print('up', flush=True)):\n"
        "        pass\n"
    )
    main = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert main.stdout
    assert main.stdout.readline() == "up\n"
    while len(group(main.pid)) < 3:  # itself, a worker, the manager; and multiprocessing's own tracker, which ends by itself
        time.sleep(0.2)
    main.kill()
    main.wait()
    deadline = time.monotonic() + 100
    while group(main.pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not group(main.pid)


def group(pid: int) -> list[int]:
    """The processes of a session, but for those that are gone and not yet waited for."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) == pid and state != "Z":
                found.append(int(path.parent.name))
    return found
