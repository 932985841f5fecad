"""The table of an index: a row a window, in LanceDB; what is searched, and what is known to be there.

store = Store.create(Path("index"), dim=256)
store.add(rows)
store.nearest(vector, 50), store.worded("onion", 50)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.errors import InputError
from lavila_fast.search.lance import (
    NEW,
    TABLE,
    TROUBLE,
    connect,
    mend,
    mode_of,
    open_table,
    patiently,
    put_in_place,
    sound,
    table_path,
)

BATCH = 20_000  # rows that are added at once: a table of small pieces is slow
LARGE = 100_000  # rows from which an index of vectors pays
_OUTSIDE, _MOST_PIECES, _BLOCK = 0.05, 64, 1 << 14  # share of rows, files of a table, rows that are copied at once
_LIST, _PROBES, _SHARE = 4096, 64, 2  # rows of a list; lists that a query looks at: so many, or one of so many of all
_REFINED = 3  # times as many are compared again, by the vectors themselves
_KEPT = timedelta(days=1)  # for who still reads what the table was before
T = TypeVar("T")
_COLUMNS = ("video", "video_id", "path", "start", "end", "text", "perplexity", "frame", "date", "length")


@dataclass(frozen=True, eq=False)
class Window:
    """A row.

    Attributes:
        video: Name of the video.
        video_id: Identity of its content.
        path: Where it lay.
        start: First second.
        end: Last second.
        text: What was said of it; "" if nothing.
        perplexity: Of the text.
        frame: Second of the frame that stands for it in pictures.
        date: When the video was last changed, seconds since 1970; None: not known.
        length: Seconds of the whole video; None: not known.
        vector: (E,), of unit length; None where it was not asked for.
    """

    video: str
    video_id: str
    path: str
    start: float
    end: float
    text: str = ""
    perplexity: float | None = None
    frame: float = 0.0
    date: float | None = None
    length: float | None = None
    vector: F32 | None = None


@dataclass(frozen=True)
class Hit:
    """A window that was found, and how well it fits: the larger, the better."""

    window: Window
    score: float


class Held(NamedTuple):
    """How many windows of a video are there, how many have sentences, and what they say of its file: see `Window`."""

    windows: int
    said: int
    path: str
    date: float | None


class Film(NamedTuple):
    """A video that windows are of; see `Window`."""

    video: str
    path: str
    length: float | None
    video_id: str


class Store:
    """An open table."""

    def __init__(self, table: Any, dim: int, folder: Path) -> None:
        self._table, self.dim, self._folder = table, dim, folder

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether there is a table that this version reads, once what a killed writer has left is put right.

        Raises:
            InputError: it is damaged.
        """
        with sound(folder):
            mend(folder)
            if not table_path(folder, TABLE).is_dir():
                return False
            return {*_COLUMNS, "vector"} <= set(open_table(folder).schema.names)

    @classmethod
    def create(cls, folder: Path, dim: int) -> Store:
        """A new table, for vectors of `dim` numbers, in place of any."""
        import pyarrow

        text, number = pyarrow.string(), pyarrow.float64()
        types = (text, text, text, number, number, text, number, number, number, number)
        columns = [*zip(_COLUMNS, types, strict=True), ("vector", pyarrow.list_(pyarrow.float16(), dim))]
        schema, mode = pyarrow.schema(columns), mode_of(folder, TABLE)
        with sound(folder):
            return cls(connect(folder).create_table(TABLE, schema=schema, mode=mode), dim, folder)

    @classmethod
    def open(cls, folder: Path, dim: int) -> Store:
        """The table that is there.

        Raises:
            InputError: there is none, it is damaged, or of other vectors.
        """
        with sound(folder):
            table = patiently(lambda: open_table(folder))
            there = table.schema.field("vector").type.list_size
        if not set(_COLUMNS) <= set(table.schema.names):
            raise InputError(f"{folder}: was made by an earlier version; run lavila-fast index again with the same -o")
        if there != dim:
            raise InputError(f"{folder}: its vectors have {there} numbers, the model's {dim}; index again")
        return cls(table, dim, folder)

    def _ask(self, question: Callable[[Any], T]) -> T:
        """What the table answers. Somebody may have made it anew since it was opened: then it is opened again.

        Raises:
            InputError: it is damaged.
        """

        def again() -> T:
            self._table = open_table(self._folder)
            return question(self._table)

        try:
            return question(self._table)
        except TROUBLE:
            with sound(self._folder):
                return patiently(again)

    def __len__(self) -> int:
        """How many windows."""
        return self._ask(lambda table: int(table.count_rows()))

    def held(self) -> dict[tuple[str, str], Held]:
        """(Identity, name) of each video that is there → what of it is."""
        found: dict[tuple[str, str], Held] = {}
        columns = {name: name for name in ("video_id", "video", "path", "date")} | {"said": "text != ''"}

        def add(table: Any) -> None:
            found.clear()
            for batch in table.search().select(columns).to_batches(1 << 16):
                for key, name, *file, said in zip(*(batch.column(one).to_pylist() for one in columns), strict=True):
                    windows, sentences, *_ = found.get((key, name), (0, 0))
                    found[key, name] = Held(windows + 1, sentences + said, *file)

        self._ask(add)
        return found

    def add(self, rows: Sequence[Window]) -> None:
        """Add rows, all or none."""
        import pyarrow

        schema = self._table.schema
        vectors = np.stack([row.vector for row in rows if row.vector is not None]).astype(np.float16)
        columns = [pyarrow.array([getattr(row, name) for row in rows], schema.field(name).type) for name in _COLUMNS]
        columns.append(pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(vectors.reshape(-1)), self.dim))
        with sound(self._folder):
            self._table.add(pyarrow.Table.from_arrays(columns, schema=schema))

    def drop(self, videos: Sequence[tuple[str, str]]) -> None:
        """Take videos out, by identity and name."""
        for some in _some(videos, 500):
            told = " OR ".join(f"(video_id = {quoted(one)} AND video = {quoted(name)})" for one, name in some)
            with sound(self._folder):
                self._table.delete(told)

    def settle(self) -> None:
        """Make what speeds searches up, after rows were added, and forget what the table was before.

        Of large tables, indexes are made anew only when enough rows lie outside them, which are compared one by one.
        """
        if len(self):
            with sound(self._folder):
                self._settle()

    def _settle(self) -> None:
        from lancedb.index import FTS, IvfSq

        large, words = len(self) >= LARGE, FTS(with_position=False)
        if not large or self._outdated("text"):
            self._table.create_index("text", config=words)
        if not large:
            self._table.optimize(cleanup_older_than=_KEPT)
            return
        pieces = self._table.stats()["fragment_stats"]["num_fragments"]
        if pieces > _MOST_PIECES + 2 * len(self) // BATCH:
            self.compact()
            self._table.create_index("text", config=words)
        if self._outdated("vector"):
            # Bytes, not products of codes: they are as exact as need be, and made a hundred times as fast.
            how = {"num_partitions": max(len(self) // _LIST, 16), "max_iterations": 20, "sample_rate": 128}
            self._table.create_index("vector", config=IvfSq(distance_type="cosine", **how))

    def _outdated(self, column: str) -> bool:
        """Whether there is no index of this column, or too much lies outside it."""
        name = next((one.name for one in self._table.list_indices() if one.columns == [column]), None)
        known = self._table.index_stats(name) if name else None
        return known is None or known.num_unindexed_rows > _OUTSIDE * len(self)

    def compact(self) -> None:
        """Write the rows of a table of many pieces into a new one, block by block, so that memory is bounded.

        LanceDB's own way takes memory with the size of the table. Indexes are to be made again. Whoever is killed
        meanwhile leaves the old table or the new one.
        """
        import pyarrow

        connection, schema = connect(self._folder), self._table.schema
        blocks = (block.select(schema.names) for block in self._table.search().to_batches(_BLOCK))
        reader = pyarrow.RecordBatchReader.from_batches(schema, blocks)
        connection.create_table(NEW, data=reader, schema=schema, mode=mode_of(self._folder, NEW))
        put_in_place(self._folder)
        self._table = connect(self._folder).open_table(TABLE)

    def nearest(self, vector: F32, limit: int, where: str | None = None, exact: bool = False) -> list[Hit]:
        """Windows whose vectors are nearest; scores are cosines. `exact` compares all, whatever the size."""
        rows = len(self)

        def ask(table: Any) -> list[Hit]:
            found = table.search(np.asarray(vector, np.float32), vector_column_name="vector", query_type="vector")
            found = found.distance_type("cosine")
            if exact:
                found = found.bypass_vector_index()
            elif rows >= LARGE:
                found = found.nprobes(max(_PROBES, rows // (_LIST * _SHARE))).refine_factor(_REFINED)
            return _hits(found, limit, where, "_distance", lambda distance: 1.0 - distance)

        return self._ask(ask)

    def worded(self, text: str, limit: int, where: str | None = None) -> list[Hit]:
        """Windows whose sentences have these words; scores are BM25's."""

        def ask(table: Any) -> list[Hit]:
            return _hits(table.search(text, query_type="fts", fts_columns="text"), limit, where, "_score", float)

        return self._ask(ask)

    def is_mute(self) -> bool:
        """Whether no window has a sentence."""
        return self._ask(lambda table: not table.count_rows("text != ''"))

    def vector_of(self, video: str, second: float) -> F32 | None:
        """The vector of the window that shows a second of a video."""
        where = f"video = {quoted(video)} AND start <= {second!r} AND end > {second!r}"
        rows = self._ask(lambda table: table.search().where(where).select(["vector"]).limit(1).to_list())
        return np.asarray(rows[0]["vector"], np.float32) if rows else None

    def videos(self, part: str) -> list[Film]:
        """Each video that has this in its name, in order of their names."""
        rows: dict[str, Film] = {}

        def add(table: Any) -> None:
            found = table.search().where(f"contains(video, {quoted(part)})").select([*Film._fields])
            for batch in found.to_batches(1 << 16):
                for one in zip(*(batch.column(name).to_pylist() for name in Film._fields), strict=True):
                    rows[one[0]] = Film(*one)

        self._ask(add)
        return [rows[name] for name in sorted(rows)]

    def sample(self, count: int) -> F32:
        """Vectors of some windows, spread over the table, (N, E)."""

        def ask(table: Any) -> Any:
            rows = table.count_rows()
            places = np.unique(np.linspace(0, rows - 1, min(count, rows)).astype(int)).tolist()
            return table.take_offsets(places).select(["vector"]).to_arrow()["vector"].combine_chunks() if rows else ()

        column = self._ask(ask)
        if not len(column):
            return np.empty((0, self.dim), np.float32)
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(len(column), self.dim)


def _hits(found: Any, limit: int, where: str | None, column: str, score: Any) -> list[Hit]:
    if where:
        found = found.where(where, prefilter=True)
    rows = found.limit(limit).select([*_COLUMNS, column]).to_list()
    return [Hit(Window(**{name: row[name] for name in _COLUMNS}), score(row[column])) for row in rows]


def quoted(text: str) -> str:
    """Text as SQL has it."""
    return "'" + text.replace("'", "''") + "'"


def _some(items: Sequence[Any], count: int) -> Iterator[Sequence[Any]]:
    for at in range(0, len(items), count):
        yield items[at : at + count]
