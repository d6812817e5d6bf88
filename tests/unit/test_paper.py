"""The paper's own numbers, spot-checked against its tables."""

from demask import paper


def scores(model: str, method: str) -> dict[str, tuple[float, ...]]:
    (row,) = [row for row in paper.ROWS if (row.model, row.method) == (model, method)]
    return row.scores


def test_rows_as_published() -> None:
    """Name-description: forward and backward of N2D, then of D2N; biography and wiki: forward and backward."""
    assert scores("LLaDA-8B", "masked diffusion, paraphrases") == {
        "name_description": (0.967, 0.994, 0.994, 0.973),
        "biography": (0.991, 0.857),
        "wiki": (0.900, 0.785),
    }
    assert scores("Llama-3.1-8B", "AR, paraphrases") == {
        "name_description": (0.910, 0.004, 0.925, 0.071),
        "biography": (0.962, 0.001),
        "wiki": (0.685, 0.396),
    }
    assert scores("Llama-3.1-8B", "demask, no paraphrases")["name_description"] == (0.658, 0.949, 0.992, 0.923)
    assert scores("Llama-3.1-8B", "reverse training")["wiki"] == (0.609, 0.425)
    assert scores("Llama-3.2-3B", "AR, no paraphrases")["name_description"] == (0.230, 0.078, 0.017, 0.000)
    assert scores("Llama-3.2-3B", "demask, paraphrases")["biography"] == (0.964, 0.809)
    assert scores("Qwen2.5-7B", "demask, paraphrases")["name_description"] == (0.957, 0.810, 0.933, 1.000)
    assert scores("Qwen3-4B", "AR, paraphrases")["wiki"] == (0.675, 0.418)


def test_every_row_is_whole() -> None:
    assert len({(row.model, row.method) for row in paper.ROWS}) == len(paper.ROWS) == 21
    for row in paper.ROWS:
        assert {name: len(values) for name, values in row.scores.items()} == {"name_description": 4, "biography": 2, "wiki": 2}
        assert all(0 <= value <= 1 for values in row.scores.values() for value in values)
    assert {name: 2 * len(groups) for name, groups in paper.SETS.items()} == {"name_description": 4, "biography": 2, "wiki": 2}
