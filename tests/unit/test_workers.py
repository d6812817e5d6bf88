"""What a worker gets of the machine."""

from __future__ import annotations

import pytest

from demask.workers import shares


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
