"""What a worker gets of the machine."""

from __future__ import annotations

import sys
import time

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
