"""Embeddings of windows as files: Parquet for tables, NumPy's archive, and JSON lines.

Numbers are float16 everywhere: an embedding is of unit length, and what that rounds away is far below what INT8 does.

    pyarrow.parquet.read_table("features.parquet").schema.metadata[b"lavila_fast"]  # model and settings, as JSON
    numpy.load("features.npz")["embedding"]  # (N, E) float16
"""

from __future__ import annotations

import base64
import io
import itertools
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lavila_fast.archive.formats.writer import ClipRows, Writer, encode, json_line
from lavila_fast.errors import MissingExtraError
from lavila_fast.records import ClipEmbedding

F16 = NDArray[np.float16]
METADATA = "lavila_fast"
"""Name of what a file says about its making: the settings of its run as JSON."""
_GROUP = 8192  # rows of a row group


class EmbeddingLines(Writer):
    """One JSON object a window: video, start, end, the times of its frames and `embedding`, a list of numbers."""

    def clip(self, rows: Sequence[ClipEmbedding]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(json_line(self._values(row)) for row in rows)

    def _values(self, row: ClipEmbedding) -> dict[str, Any]:
        values: dict[str, Any] = {"video": row.video, "start": row.start, "end": row.end}
        if row.damaged:
            values["damaged"] = True
        if row.frames is not None:
            values["frames"] = row.frames
        return values | {"embedding": self._numbers(np.asarray(row.embedding, np.float16))}

    def _numbers(self, embedding: F16) -> Any:
        return [float(f"{value:.5g}") for value in embedding.tolist()]  # as many digits as tell all halves apart


class EmbeddingJournal(EmbeddingLines):
    """The same with `embedding` in base64 (little-endian), a quarter as long: for journals that no one reads."""

    def _numbers(self, embedding: F16) -> Any:
        return base64.b64encode(embedding.astype("<f2").tobytes()).decode()


class _Table(Writer):
    """A format that says once what all rows were made with, and needs their length before the first one."""

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}

    def add_run(self, run: Mapping[str, Any]) -> None:
        """See `Writer.add_run`; ``dim`` is in it."""
        self.run = dict(run)

    def _some(self, clips: ClipRows) -> Iterator[list[ClipEmbedding]]:
        rows = itertools.chain.from_iterable(clips)
        while some := list(itertools.islice(rows, _GROUP)):
            yield some

    def _stacked(self, rows: Sequence[ClipEmbedding]) -> F16:
        return np.stack([row.embedding for row in rows]).astype(np.float16)


class Parquet(_Table):
    """Columns video, start, end, damaged, frames (a list of seconds) and embedding (a list of E halves)."""

    def __init__(self) -> None:
        super().__init__()
        require_parquet()

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`; row group by row group."""
        import pyarrow
        import pyarrow.parquet

        schema = self._schema(pyarrow)
        with pyarrow.PythonFile(_Open(file), "w") as out, pyarrow.parquet.ParquetWriter(out, schema) as table:
            for rows in self._some(clips):
                table.write_batch(self._batch(rows, schema, pyarrow))

    def _schema(self, pyarrow: Any) -> Any:
        columns = [
            ("video", pyarrow.string()),
            ("start", pyarrow.float64()),
            ("end", pyarrow.float64()),
            ("damaged", pyarrow.bool_()),
            ("frames", pyarrow.list_(pyarrow.float64())),
            ("embedding", pyarrow.list_(pyarrow.float16(), int(self.run["dim"]))),
        ]
        return pyarrow.schema(columns, metadata={METADATA: json.dumps(self.run)})

    def _batch(self, rows: Sequence[ClipEmbedding], schema: Any, pyarrow: Any) -> Any:
        flat = pyarrow.array(self._stacked(rows).reshape(-1))
        columns = [
            pyarrow.array([encode(row.video).decode() for row in rows], pyarrow.string()),
            *(
                pyarrow.array([getattr(row, name) for row in rows], schema.field(name).type)
                for name in ("start", "end")
            ),
            pyarrow.array([row.damaged for row in rows], pyarrow.bool_()),
            pyarrow.array(
                [None if row.frames is None else list(row.frames) for row in rows], schema.field("frames").type
            ),
            pyarrow.FixedSizeListArray.from_arrays(flat, int(self.run["dim"])),
        ]
        return pyarrow.record_batch(columns, schema=schema)


class _Open(io.RawIOBase):
    """A file that another one's end does not close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, data: Any) -> int:
        """See `io.RawIOBase`."""
        return self._file.write(data)


def require_parquet() -> None:
    """See that Parquet can be written.

    Raises:
        MissingExtraError: it cannot.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error


class Npz(_Table):
    """NumPy's archive of the same columns as arrays; frames (N, T), NaN where there are fewer; `METADATA` is JSON."""

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`; all rows are in memory, as they are for who reads it."""
        rows = [row for some in self._some(clips) for row in some]
        dim, frames = int(self.run["dim"]), max((len(row.frames or ()) for row in rows), default=0)
        times = np.full((len(rows), frames), np.nan)
        for row, own in zip(rows, times, strict=True):
            own[: len(row.frames or ())] = row.frames or ()
        arrays: dict[str, NDArray[Any]] = {
            "video": np.array([encode(row.video).decode() for row in rows], np.str_),
            "start": np.array([row.start for row in rows], np.float64),
            "end": np.array([row.end for row in rows], np.float64),
            "damaged": np.array([row.damaged for row in rows], np.bool_),
            "frames": times,
            "embedding": self._stacked(rows) if rows else np.empty((0, dim), np.float16),
            METADATA: np.array(json.dumps(self.run)),
        }
        _archive(arrays, file)


def _archive(arrays: Mapping[str, NDArray[Any]], file: BinaryIO) -> None:
    """Write an archive that is the same whenever it is written; `numpy.savez` puts the hour into it."""
    with zipfile.ZipFile(_Open(file), "w", zipfile.ZIP_STORED) as out:
        for name, array in arrays.items():
            whole = io.BytesIO()
            np.lib.format.write_array(whole, array, allow_pickle=False)
            out.writestr(zipfile.ZipInfo(f"{name}.npy"), whole.getvalue())
