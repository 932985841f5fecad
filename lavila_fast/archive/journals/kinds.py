"""Kinds of rows that a run can make of windows: how each is written, read back, and called.

Everything else of a run (decoding, resuming, records, output places) is the same for all of them. What makes the rows
is in `work`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from lavila_fast.archive.formats import FORMATS, JSONL, TEXT, Format, Writer, offered, suffixes
from lavila_fast.archive.formats.embeddings import EmbeddingJournal, EmbeddingLines, Npz
from lavila_fast.archive.formats.labels import LabelCsv, LabelLines, LabelText, SafeLabelCsv
from lavila_fast.archive.formats.parquet import EmbeddingTable, LabelTable
from lavila_fast.archive.journals.rows import embedding_of, labels_of, narration_of, parse
from lavila_fast.records import Row


@dataclass(frozen=True)
class Kind:
    """A kind of rows.

    Attributes:
        name: What they are called, which is the stem of a file's name where nobody gave one.
        command: What makes them.
        formats: That they can be written in; ``jsonl`` among them, which journals are written in.
        read: The fields of a row, as JSON has them, back to the row, or None.
        usual: The format of files where nothing else is asked for.
        compact: Writes lines of a journal that is no output; None: they are as in an output.
    """

    name: str
    command: str
    formats: Mapping[str, Format]
    read: Callable[[Any], Row | None]
    usual: str = JSONL
    compact: type[Writer] | None = None

    def parse(self, line: bytes) -> Row | None:
        """A line of a journal back to a row, or None."""
        return cast("Row | None", parse(line, self.read))

    def journal(self, compact: bool) -> Writer:
        """What writes the lines of a journal."""
        return ((compact and self.compact) or self.formats[JSONL].writer)()

    def offered(self) -> tuple[str, ...]:
        """Names that ``--format`` takes."""
        return offered(self.formats)

    def suffixes(self) -> dict[str, str]:
        """Suffix of a file's name, with the dot → name of the format."""
        return suffixes(self.formats)


NARRATIONS = Kind("narrations", "narrate", FORMATS, narration_of)
LABELS = Kind(
    "labels",
    "classify",
    {
        JSONL: Format(LabelLines, ".jsonl", printable=True, frame_times=True, parts=True),
        "csv": Format(LabelCsv, ".csv", printable=True, safe=SafeLabelCsv, frame_times=True, parts=True),
        "parquet": Format(LabelTable, ".parquet", frame_times=True, parts=True),
        TEXT: Format(LabelText, "", printable=True, offered=False),
    },
    labels_of,
)
_EMBEDDINGS = {
    "parquet": Format(EmbeddingTable, ".parquet", frame_times=True, parts=True),
    "npz": Format(Npz, ".npz", frame_times=True),
    JSONL: Format(EmbeddingLines, ".jsonl", printable=True, frame_times=True, parts=True),
}


def features(dim: int | None = None) -> Kind:
    """Embeddings of `dim` numbers; rows of another length are none."""
    read = partial(embedding_of, dim=dim)
    return Kind("features", "embed", _EMBEDDINGS, read, "parquet", EmbeddingJournal)


KINDS = (NARRATIONS, LABELS, features())
"""All, for who looks for what runs have left."""
