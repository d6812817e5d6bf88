"""Training examples as a sequence of dicts: a list where they are few, else a memory-mapped Arrow file.

kept = Collector(Path("documents.arrow"))
kept.add({"text": [521, 88], "units": None, "pair": False})
kept.finish()[0]    # -> {"text": [521, 88], "units": None, "pair": False}, from either
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from demask.types import Document

IN_MEMORY = 500_000  # token ids of a list of examples, some 40 bytes each
ROWS = 256  # of a record batch; the larger, the longer it takes to find a row in it


class Mapped(Sequence[dict[str, Any]]):
    """The rows of a finished file, read when they are asked for; the system keeps in memory what it has room for.

    It is pickled as its path, so a data loader's worker maps the file itself. `owner` lives as long as this (a temporary folder).
    """

    def __init__(self, path: Path, owner: Any = None) -> None:
        self.path, self.owner = path, owner
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = self._reader.num_record_batches
        self._length = (batches - 1) * ROWS + self._reader.get_batch(batches - 1).num_rows

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        batch, place = divmod(index % self._length, ROWS)
        return self._reader.get_batch(batch).slice(place, 1).to_pylist()[0]

    def __reduce__(self) -> Any:
        return Mapped, (self.path,)


class Collector:
    """Takes rows, all with the same fields, one by one: a list until they hold more than `limit` ids, from then on the file `path`.

    A field is a bool, an int, a string, a list of ids (int32), a dict of these, or None; what is None in the first row is a list in others.
    """

    def __init__(self, path: Path, limit: int = IN_MEMORY) -> None:
        self.path, self.limit = path, limit
        self._rows: list[dict[str, Any]] = []
        self._held = 0
        self._file: Any = None

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if self._file is None:
            self._held += sum(len(value) for value in row.values() if isinstance(value, (list, str)))
        if self._held > self.limit and len(self._rows) >= ROWS:
            self._write()

    def finish(self) -> list[dict[str, Any]] | Mapped:
        """The rows. No more can be added."""
        if (not self._rows and self._file is None) or self._held <= self.limit:
            return self._rows
        self._write(rest=True)
        self._file[0].close()
        self._file[1].close()
        return Mapped(self.path)

    def _write(self, rest: bool = False) -> None:
        """Write the rows that fill a record batch; with `rest` also the others."""
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._schema = pa.schema([(name, _type(value)) for name, value in self._rows[0].items()])
            sink = pa.OSFile(str(self.path), "wb")
            self._file = pa.ipc.new_file(sink, self._schema), sink
        while len(self._rows) >= ROWS or (rest and self._rows):
            rows, self._rows = self._rows[:ROWS], self._rows[ROWS:]
            assert all(row.keys() == set(self._schema.names) for row in rows)
            self._file[0].write_batch(pa.RecordBatch.from_pylist(rows, schema=self._schema))


class Texts(Sequence[Document]):
    """Rows of `id` and `text` as documents."""

    def __init__(self, rows: Sequence[dict[str, Any]]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        return Document(**self.rows[index])


def _type(value: Any) -> pa.DataType:
    if isinstance(value, dict):
        return pa.struct([(name, _type(part)) for name, part in value.items()])
    for kind, arrow in ((bool, pa.bool_()), (int, pa.int64()), (str, pa.string())):
        if isinstance(value, kind):
            return arrow
    return pa.list_(pa.int32())
