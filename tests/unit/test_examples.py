"""Rows come back from the file as they went in, types and all, whichever way they are read."""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from demask.chat_format import ChatFormat
from demask.examples import ROWS, Collector, Mapped
from demask.masking import MaskRatio
from demask.objectives import Autoregressive, Demask, Diffusion, Meap, Reverse
from demask.schedule import Schedule
from demask.types import Document
from tests.tokenizers import llama3

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*os.fork")

CHAT = ChatFormat(llama3())
MASK = 401
OBJECTIVES = {
    "autoregressive": Autoregressive(),
    "raw": Autoregressive(format="raw"),
    "demask": Demask(MASK),
    "demask, every variant": Demask(MASK, mask_unit="word", plain_share=0.5, crop_share=0.5, mask_ratio=MaskRatio(0, 1)),
    "diffusion": Diffusion(MASK, eos_padding=3, crop_share=0.5),
    "meap": Meap(MASK),
    "reverse": Reverse(),
}
TEXTS = st.text(st.sampled_from("Ann keeps bees. é中\n"), min_size=1, max_size=60).filter(str.strip)
DOCUMENTS = st.builds(Document, TEXTS, TEXTS, st.none() | TEXTS)


def stored(rows, folder: Path | str, limit: int = -1):
    kept = Collector(Path(folder) / "rows.arrow", limit)
    for row in rows:
        kept.add(row)
    return kept.finish()


def types(value):
    """The value with every leaf's type beside it: 1 is True, and 1.0, but not here."""
    if isinstance(value, dict):
        return {name: types(part) for name, part in value.items()}
    return [types(part) for part in value] if isinstance(value, list) else (type(value), value)


@pytest.mark.parametrize("name", OBJECTIVES)
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_examples_of_every_objective_come_back_as_they_were(name, documents):
    rows = OBJECTIVES[name].examples(documents, CHAT)
    with TemporaryDirectory() as folder:
        mapped = stored(rows, folder)
        assert isinstance(mapped, Mapped)
        assert types(list(mapped)) == types(rows)
        assert list(mapped[0]) == list(rows[0])  # the fields' order too


@pytest.mark.parametrize("n", [1, ROWS - 1, ROWS, ROWS + 1, 3 * ROWS])
def test_every_row_is_found_over_the_bounds_of_batches(n, tmp_path):
    rows = [{"text": list(range(i % 7)), "units": None if i % 3 else [i], "pair": i % 2 == 0, "padding": i} for i in range(n)]
    mapped = stored(rows, tmp_path)
    assert len(mapped) == n
    assert [mapped[i] for i in reversed(range(n))] == rows[::-1]
    assert (mapped[-1], mapped[-n]) == (rows[-1], rows[0])
    assert mapped[n - 1 :] == rows[n - 1 :]
    for index in (n, -n - 1):
        with pytest.raises(IndexError):
            mapped[index]


def test_few_rows_stay_in_memory_and_no_file_is_made(tmp_path):
    assert stored([], tmp_path / "new") == []
    rows = [{"text": [1, 2, 3]}] * 4
    assert stored(rows, tmp_path / "new", limit=12) == rows
    assert not (tmp_path / "new").exists()
    assert isinstance(stored(rows, tmp_path / "new", limit=11), Mapped)


def test_the_file_is_arrow_for_any_program(tmp_path):
    stored([{"text": [1, 2], "pair": False}, {"text": [], "pair": True}], tmp_path)
    table = pa.ipc.open_file(str(tmp_path / "rows.arrow")).read_all()
    assert table.to_pydict() == {"text": [[1, 2], []], "pair": [False, True]}
    assert table.schema.field("text").type == pa.list_(pa.int32())


def test_strings_too(tmp_path):
    rows = [{"id": "a\nb", "text": "é中 \U0001f41d"}, {"id": "", "text": "x"}]
    assert list(stored(rows, tmp_path)) == rows


@pytest.mark.parametrize("name", ["demask, every variant", "diffusion", "reverse"])
@pytest.mark.parametrize("workers", [0, 2])
def test_masks_are_those_of_the_list_with_workers_and_after_a_resume(name, workers, tmp_path):
    objective = OBJECTIVES[name]
    documents = [Document(str(i), f"Ann keeps {i} bees near the old mill.", prompt="Who?" if i % 5 == 0 else None) for i in range(300)]
    rows = objective.examples(documents, CHAT)
    options = {"steps": 40, "batch_size": 10, "seed": 3}
    collate = partial(objective.collate, chat=CHAT, seed=3)
    listed = [{k: v.tolist() for k, v in batch.items()} for batch in DataLoader(Schedule(rows, **options), 10, collate_fn=collate)]
    schedule = pickle.loads(pickle.dumps(Schedule(stored(rows, tmp_path), **options)))
    assert isinstance(schedule.examples, Mapped)
    loader = DataLoader(schedule, 10, collate_fn=collate, num_workers=workers)
    assert [{k: v.tolist() for k, v in batch.items()} for batch in loader] == listed
    rest = DataLoader(schedule, 10, sampler=range(170, 400), collate_fn=collate, num_workers=workers)
    assert [{k: v.tolist() for k, v in batch.items()} for batch in rest] == listed[17:]
