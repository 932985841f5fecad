"""Embeddings of windows as files: NumPy's archive and JSON lines; as tables see `parquet`.

Numbers are float16 everywhere: an embedding is of unit length, and what that rounds away is far below what INT8 does.

    numpy.load("features.npz")["embedding"]  # (N, E) float16
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from lavila_fast.archive.formats.parquet import METADATA
from lavila_fast.archive.formats.writer import ClipRows, Unclosed, Writer, encode, extras, json_line, told
from lavila_fast.arrays import F32
from lavila_fast.records import ClipEmbedding

F16 = NDArray[np.float16]


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
        values |= told(row)
        return values | {"embedding": self._numbers(np.asarray(row.embedding, np.float16))}

    def _numbers(self, embedding: F16) -> Any:
        return [float(f"{value:.5g}") for value in embedding.tolist()]  # as many digits as tell all halves apart


class EmbeddingJournal(EmbeddingLines):
    """The same with `embedding` in base64 (little-endian), a quarter as long: for journals that no one reads."""

    def _numbers(self, embedding: F16) -> Any:
        return base64.b64encode(embedding.astype("<f2").tobytes()).decode()


class Npz(Writer):
    """NumPy's archive of the same columns as arrays; frames (N, T), NaN where there are fewer; `METADATA` is JSON.

    The embedding of a window that was skipped is zeros; of what only rows of some runs have, there are columns then.
    """

    def __init__(self) -> None:
        self.run: dict[str, Any] = {}

    def add_run(self, run: Mapping[str, Any]) -> None:
        """See `Writer.add_run`; ``dim`` is in it."""
        self.run = dict(run)

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`; all rows are in memory, as they are for who reads it."""
        rows = [row for clip in clips for row in clip]
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
            "embedding": np.array([vector(row, dim) for row in rows], np.float16).reshape(len(rows), dim),
            **{name: _column(name, rows) for name in extras(self.run)},
            METADATA: np.array(json.dumps(self.run)),
        }
        _archive(arrays, file)


def vector(row: ClipEmbedding, dim: int) -> F32:
    """The embedding of a row, zeros of one that was skipped."""
    return np.zeros(dim, np.float32) if row.skipped else row.embedding


def _column(name: str, rows: Sequence[ClipEmbedding]) -> NDArray[Any]:
    values = [getattr(row, name) for row in rows]
    if name == "motion":
        return np.array([np.nan if value is None else value for value in values], np.float64)
    return np.array([value or "" for value in values], np.str_)


def _archive(arrays: Mapping[str, NDArray[Any]], file: BinaryIO) -> None:
    """Write an archive that is the same whenever it is written; `numpy.savez` puts the hour into it."""
    with zipfile.ZipFile(Unclosed(file), "w", zipfile.ZIP_STORED) as out:
        for name, array in arrays.items():
            whole = io.BytesIO()
            np.lib.format.write_array(whole, array, allow_pickle=False)
            out.writestr(zipfile.ZipInfo(f"{name}.npy"), whole.getvalue())
