"""Rows as Parquet, for DuckDB, pandas, `datasets` and whatever else reads tables.

Every table begins with the columns of `SHARED` and goes on with its own; those of `extras` come last, where the run's
rows have them. A file's metadata holds `METADATA`, the settings
that its rows were made with as JSON, and `VERSION`, which grows when a column changes its meaning or goes away.

    pyarrow.parquet.read_table("narrations.parquet").schema.metadata[b"lavila_fast"]
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from lavila_fast.archive.formats.writer import ClipRows, Unclosed, Writer, encode, extras
from lavila_fast.errors import MissingExtraError
from lavila_fast.records import ClipEmbedding, ClipLabels, Narration

METADATA, VERSION = "lavila_fast", "lavila_fast_schema"
SCHEMA = "1"
SHARED = ("video", "video_id", "start", "end", "damaged", "frames")
_GROUP = 8192  # rows of a row group


def require_parquet() -> None:
    """See that Parquet can be written and read.

    Raises:
        MissingExtraError: it cannot.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error


class ParquetTable(Writer):
    """Columns of `SHARED`: names and ids are strings, times seconds, `frames` a list of seconds; then a kind's own."""

    def __init__(self) -> None:
        require_parquet()
        self.run: dict[str, Any] = {}

    def add_run(self, run: Mapping[str, Any]) -> None:
        """See `Writer.add_run`."""
        self.run = dict(run)

    def own(self, pyarrow: Any) -> list[tuple[str, Any]]:
        """Names and types of the kind's own columns."""
        raise NotImplementedError

    def values(self, rows: Sequence[Any], pyarrow: Any) -> list[Any]:
        """The kind's own columns of some rows, each what `pyarrow.array` takes, or an array."""
        raise NotImplementedError

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`; row group by row group."""
        import pyarrow
        import pyarrow.parquet

        schema = self._schema(pyarrow)
        made: dict[str, Any] = {"compression": "zstd"}
        with (
            pyarrow.PythonFile(Unclosed(file), "w") as out,
            pyarrow.parquet.ParquetWriter(out, schema, **made) as table,
        ):
            rows = itertools.chain.from_iterable(clips)
            while some := list(itertools.islice(rows, _GROUP)):
                columns = [*self._shared(some), *self.values(some, pyarrow), *self._extras(some)]
                arrays = [
                    one if isinstance(one, pyarrow.Array) else pyarrow.array(one, field.type)
                    for one, field in zip(columns, schema, strict=True)
                ]
                table.write_batch(pyarrow.record_batch(arrays, schema=schema))

    def _schema(self, pyarrow: Any) -> Any:
        text, seconds = pyarrow.string(), pyarrow.float64()
        types = (text, text, seconds, seconds, pyarrow.bool_(), pyarrow.list_(seconds))
        more = {"motion": seconds, "skipped": text, "windows": pyarrow.int32(), "unsure": pyarrow.bool_()}
        own = [*self.own(pyarrow), *((name, more[name]) for name in extras(self.run))]
        columns = [*zip(SHARED, types, strict=True), *own]
        return pyarrow.schema(columns, metadata={METADATA: json.dumps(self.run), VERSION: SCHEMA})

    def _shared(self, rows: Sequence[Any]) -> Iterator[list[Any]]:
        yield [as_text(row.video) for row in rows]
        yield [self.videos.id(row.video) for row in rows]
        for name in ("start", "end", "damaged"):
            yield [getattr(row, name) for row in rows]
        yield [None if row.frames is None else list(row.frames) for row in rows]

    def _extras(self, rows: Sequence[Any]) -> list[list[Any]]:
        return [[getattr(row, name) for row in rows] for name in extras(self.run)]


def as_text(name: str) -> str:
    """A name as a column holds it, see `encode`."""
    return encode(name).decode()


class NarrationTable(ParquetTable):
    """And sample, text, perplexity, logprob; a row a sentence."""

    def own(self, pyarrow: Any) -> list[tuple[str, Any]]:
        """See `ParquetTable.own`."""
        number = pyarrow.float64()
        return [
            ("sample", pyarrow.int32()),
            ("text", pyarrow.string()),
            ("perplexity", number),
            ("logprob", number),
        ]

    def values(self, rows: Sequence[Narration], pyarrow: Any) -> list[Any]:
        """See `ParquetTable.values`."""
        numbers = [[_or_none(getattr(row, name)) for row in rows] for name in ("perplexity", "logprob")]
        return [[row.sample for row in rows], [as_text(row.text) for row in rows], *numbers]


class LabelTable(ParquetTable):
    """And head, labels and scores; a row a head, the likeliest label first."""

    def own(self, pyarrow: Any) -> list[tuple[str, Any]]:
        """See `ParquetTable.own`."""
        lists = pyarrow.list_(pyarrow.string()), pyarrow.list_(pyarrow.float64())
        return [("head", pyarrow.int32()), ("labels", lists[0]), ("scores", lists[1])]

    def values(self, rows: Sequence[ClipLabels], pyarrow: Any) -> list[Any]:
        """See `ParquetTable.values`."""
        return [
            [row.head for row in rows],
            [[as_text(label) for label in row.labels] for row in rows],
            [list(row.scores) for row in rows],
        ]


class EmbeddingTable(ParquetTable):
    """And embedding, a fixed-size list of E halves, of which ``dim`` in the run's settings says how many.

    It is null where the window was skipped.
    """

    def own(self, pyarrow: Any) -> list[tuple[str, Any]]:
        """See `ParquetTable.own`."""
        return [("embedding", pyarrow.list_(pyarrow.float16(), int(self.run["dim"])))]

    def values(self, rows: Sequence[ClipEmbedding], pyarrow: Any) -> list[Any]:
        """See `ParquetTable.values`."""
        import numpy as np

        dim = int(self.run["dim"])
        skipped = np.array([bool(row.skipped) for row in rows])
        every = [np.zeros(dim) if row.skipped else row.embedding for row in rows]
        flat = pyarrow.array(np.stack(every).astype(np.float16).reshape(-1))
        mask = {"mask": pyarrow.array(skipped)} if skipped.any() else {}
        return [pyarrow.FixedSizeListArray.from_arrays(flat, dim, **mask)]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None
