"""From the outputs of a run, narrations and embeddings of the same windows, to the table of an index.

What is in the table is asked of the table itself, so that a killed run leaves nothing to repair: a video whose windows
are not all there is taken out and put in again, one that is gone or has another content is taken out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lavila_fast.archive.finished.merge import Part, read_part
from lavila_fast.archive.journals.videos import VideoRecord
from lavila_fast.records import ClipEmbedding, Narration
from lavila_fast.search.store import BATCH, Store, Window


@dataclass
class Ingested:
    """What changed.

    Attributes:
        added: Windows put in, of `videos`.
        dropped: Videos taken out, those put in again among them.
        still: Windows that are not in it, for nothing moves in them: of all videos.
    """

    added: int = 0
    videos: int = 0
    dropped: int = 0
    still: int = 0


def ingest(store: Store, embeddings: Path, narrations: Path | None) -> Ingested:
    """Bring the table up to what two outputs hold.

    Args:
        store: The table.
        embeddings: What `embed -o` was given.
        narrations: What `narrate -o` was given; None: windows have no sentences.
    """
    vectors, texts = read_part(embeddings), read_part(narrations) if narrations else None
    there, told = store.counts(), Ingested()
    wanted = {(_id(one), name): len(vectors.done.get(name, ())) for name, one in vectors.records.items()}
    for key in [key for key, count in wanted.items() if "still" in vectors.run and there.get(key, 0) != count]:
        still = vectors.skipped(key[1])
        wanted[key], told.still = wanted[key] - still, told.still + still
    wanted = {key: count for key, count in wanted.items() if count}
    stale = [key for key, count in there.items() if wanted.get(key) != count]
    store.drop(stale)
    told.dropped = len(stale)
    fresh = [key for key, count in wanted.items() if there.get(key) != count]
    told.videos = len(fresh)
    some: list[Window] = []
    for _, name in fresh:
        for window in _windows(vectors, texts, name):
            some.append(window)
            if len(some) >= BATCH:
                store.add(some)
                told.added, some = told.added + len(some), []
    if some:
        store.add(some)
        told.added += len(some)
    if told.added or told.dropped:
        store.settle()
    return told


def _id(record: VideoRecord) -> str:
    return record.id or f"name {record.video}"


def _windows(vectors: Part, texts: Part | None, name: str) -> Iterator[Window]:
    record = vectors.records[name]
    said = texts.done.get(name) if texts else None
    for span, offset in vectors.done[name].in_order():
        (row,) = vectors.rows(offset)
        assert isinstance(row, ClipEmbedding)
        if row.skipped:  # the model has not seen it
            continue
        at = said.find(span) if said is not None else None
        best = _best(texts, at) if texts and at is not None else None
        yield Window(
            name,
            _id(record),
            record.path,
            row.start,
            row.end,
            best.text if best else "",
            best.perplexity if best and best.perplexity == best.perplexity else None,
            row.frames[len(row.frames) // 2] if row.frames else (row.start + row.end) / 2,
            record.mtime / 1e9 if record.mtime > 0 else None,
            record.duration,
            row.embedding,
        )


def _best(texts: Part, offset: int) -> Narration:
    """The surest sentence of a clip."""
    rows = [row for row in texts.rows(offset) if isinstance(row, Narration)]
    return min(rows, key=lambda row: row.perplexity if row.perplexity == row.perplexity else float("inf"))
