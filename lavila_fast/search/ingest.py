"""From the outputs of a run, narrations and embeddings of the same windows, to the table of an index.

What is in the table is asked of the table itself, so that a killed run leaves nothing to repair: a video whose windows
are not all there, or whose file was moved or touched since, is taken out and put in again, one that is gone or has
another content is taken out.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path

from lavila_fast.archive.finished.merge import Part, read_part
from lavila_fast.archive.journals.spans import Span
from lavila_fast.archive.journals.videos import VideoRecord
from lavila_fast.records import ClipEmbedding, Narration
from lavila_fast.search.store import BATCH, Held, Store, Window


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
    there, told = store.held(), Ingested()
    wanted = {_key(one): Held(len(vectors.done.get(name, ())), 0, *_file(one)) for name, one in vectors.records.items()}
    for key in [key for key, one in wanted.items() if "still" in vectors.run and there.get(key) != one]:
        still = vectors.skipped(key[1])
        wanted[key], told.still = wanted[key]._replace(windows=wanted[key].windows - still), told.still + still
    wanted = {
        key: one._replace(said=_said(texts, vectors.done.get(key[1], ()), key[1], there.get(key)))
        for key, one in wanted.items()
    }
    wanted = {key: one for key, one in wanted.items() if one.windows}
    stale = [key for key, one in there.items() if wanted.get(key) != one]
    store.drop(stale)
    told.dropped = len(stale)
    fresh = [key for key, one in wanted.items() if there.get(key) != one]
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


def _said(texts: Part | None, shown: Container[Span], name: str, held: Held | None) -> int:
    """How many windows of a video have sentences; where nobody narrated, as many as have them by now."""
    if held is None or texts is None:
        return held.said if held else 0
    clips = texts.done.get(name, ())
    if held.said == len(clips):  # as nearly all: no row is read
        return held.said
    own = texts.done[name].in_order() if clips else ()
    return sum(bool(_best(texts, offset).text) for span, offset in own if span in shown)


def _key(record: VideoRecord) -> tuple[str, str]:
    return record.id or f"name {record.video}", record.video


def _file(record: VideoRecord) -> tuple[str, float | None]:
    """Where it lies, and when it was last changed."""
    return record.path, record.mtime / 1e9 if record.mtime > 0 else None


def _windows(vectors: Part, texts: Part | None, name: str) -> Iterator[Window]:
    record = vectors.records[name]
    (key, _), (path, date) = _key(record), _file(record)
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
            key,
            path,
            row.start,
            row.end,
            best.text if best else "",
            best.perplexity if best and best.perplexity == best.perplexity else None,
            row.frames[len(row.frames) // 2] if row.frames else (row.start + row.end) / 2,
            date,
            record.duration,
            row.embedding,
        )


def _best(texts: Part, offset: int) -> Narration:
    """The surest sentence of a clip."""
    rows = [row for row in texts.rows(offset) if isinstance(row, Narration)]
    return min(rows, key=lambda row: row.perplexity if row.perplexity == row.perplexity else float("inf"))
