"""The journal: a JSONL file that grows by one whole clip at a time and says which clips are done.

With JSONL output it *is* the output; other formats are written from it, whole or not at all. Beside it lies
``NAME.run.json``: which model and options it was begun with, so that narrations of two kinds never mix.

All sentences of a clip go out in one write, so whatever stops the process leaves at most the last clip torn. Opening
the journal again cuts that off (and drops any other line that is not part of a whole clip), and what is left counts as
done. The file is locked while it is open, by ``.NAME.lock`` beside it (see `files.locked`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.archive.identity import difference
from lavila_fast.errors import InputError, StorageError
from lavila_fast.files import locked, replacing, storage_error
from lavila_fast.records import Clip, Narration

SUFFIX, SIDECAR = ".journal", ".run.json"
"""Of a journal that is not the output itself, and of what lies beside each."""
FSYNC_SECONDS = 5.0
_FIELDS: dict[str, Any] = {"video": str, "start": (int, float), "end": (int, float), "sample": int, "text": str}
_SCORES = ("perplexity", "logprob")


def span_key(clip: Clip | Narration) -> int:
    """Start and end in milliseconds as one number; it sorts by start, then end."""
    return round(clip.start * 1000) << 40 | round(clip.end * 1000)


def parse(line: bytes) -> Narration | None:
    """A row of the journal, or None for anything else."""
    try:
        values = json.loads(line)
        if not all(isinstance(values[name], kind) for name, kind in _FIELDS.items()):
            return None
        scores = [float("nan") if values[name] is None else float(values[name]) for name in _SCORES]
        row = Narration(*(values[name] for name in _FIELDS), *scores)
        if values.get("frames") is not None:
            row = replace(row, frames=tuple(float(time) for time in values["frames"]))
        return row if row.start >= 0 and span_key(row) >= 0 else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def whole_clips(file: BinaryIO, samples: int) -> Iterator[tuple[int, int, list[Narration]]]:
    """Clips that have all their `samples` lines one after the other: first byte, one past the last, rows."""
    rows: list[Narration] = []
    begin = offset = 0
    for line in file:
        row = parse(line) if line.endswith(b"\n") else None
        if rows and (row is None or row.sample != len(rows) or (row.video, span_key(row)) != _name(rows[0])):
            rows = []
        if row is not None and row.sample == len(rows):
            begin = begin if rows else offset
            rows.append(row)
        offset += len(line)
        if len(rows) == samples:
            yield begin, offset, rows
            rows = []


def _name(row: Narration) -> tuple[str, int]:
    return row.video, span_key(row)


class Journal:
    """An open, locked journal.

    Attributes:
        path: The file.
        done: Video → key of a clip's span → where its rows begin in the file.
    """

    def __init__(self, path: Path, run: Mapping[str, Any], samples: int, overwrite: bool = False) -> None:
        """Open or begin a journal.

        Args:
            path: The file.
            run: What must be the same for narrations to stand in one file.
            samples: Sentences a clip.
            overwrite: Forget what is there.

        Raises:
            InputError: it is in use, was begun with other settings, or is no journal.
            StorageError: it cannot be written.
        """
        self.path, self.samples = Path(os.path.realpath(path)), samples
        self.sidecar = self.path.with_name(self.path.name + SIDECAR)
        self.done: dict[str, dict[int, int]] = {}
        self._writer = JsonLines()
        self._synced = time.monotonic()
        with contextlib.ExitStack() as undo, storage_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            way_out = "wait for it or give another --output"
            undo.enter_context(
                locked(self.path, StorageError(f"{self.path}: another lavila-fast is writing it; {way_out}"))
            )
            self._fd = _open(self.path)
            undo.callback(lambda: os.close(self._fd))
            if overwrite:
                os.ftruncate(self._fd, 0)
            self._check_run(dict(run))
            self._recover()
            self._held = undo.pop_all()

    def _check_run(self, run: dict[str, Any]) -> None:
        """Compare with the settings the journal was begun with, or note them down."""
        if os.fstat(self._fd).st_size == 0:
            with replacing(self.sidecar) as file:
                file.write((json.dumps(run, indent=1) + "\n").encode())
            return
        way_out = "give another --output, or --overwrite to begin anew"
        try:
            before = dict(json.loads(self.sidecar.read_bytes()))
        except FileNotFoundError:
            raise InputError(f"{self.path}: exists, but was not written by lavila-fast narrate; {way_out}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.sidecar}: damaged ({error}); {way_out}") from error
        if told := difference(before, run):
            raise InputError(f"{self.path}: {told}; repeat the first settings, {way_out}")

    def _recover(self) -> None:
        """Find the clips that are done, and cut off or drop what is no part of one."""
        kept: list[tuple[int, int]] = []
        self.done.clear()
        with self.path.open("rb") as file:
            for begin, end, rows in whole_clips(file, self.samples):
                keys = self.done.setdefault(rows[0].video, {})
                if span_key(rows[0]) in keys:
                    continue
                keys[span_key(rows[0])] = begin
                if kept and kept[-1][1] == begin:
                    begin = kept.pop()[0]
                kept.append((begin, end))
        self._size = kept[-1][1] if kept else 0
        if len(kept) > 1 or (kept and kept[0][0] > 0):
            self._keep_only(kept)
        elif os.fstat(self._fd).st_size > self._size:
            os.ftruncate(self._fd, self._size)
        os.lseek(self._fd, self._size, os.SEEK_SET)

    def _keep_only(self, kept: list[tuple[int, int]]) -> None:
        """Rewrite the file without what lies between whole clips."""
        with replacing(self.path) as new:
            with self.path.open("rb") as old:
                for begin, end in kept:
                    old.seek(begin)
                    while begin < end and (block := old.read(min(1 << 20, end - begin))):
                        begin += new.write(block)
            self._reopen(Path(os.devnull))  # Windows replaces no open file
        self._reopen(self.path)
        self._recover()

    def _reopen(self, path: Path) -> None:
        before, self._fd = self._fd, _open(path)
        os.close(before)

    def has(self, clip: Clip) -> bool:
        """Whether a clip is done."""
        return span_key(clip) in self.done.get(clip.video, ())

    def append(self, rows: list[Narration]) -> None:
        """Write a clip's sentences, all or none.

        Raises:
            StorageError: they could not be written; the file ends with the clip before.
        """
        block = memoryview(self._writer.clip(rows))
        begin = self._size
        with storage_error(self.path):
            try:
                while block:
                    block = block[os.write(self._fd, block) :]
                self._size = os.lseek(self._fd, 0, os.SEEK_CUR)
                if time.monotonic() - self._synced > FSYNC_SECONDS:
                    self.sync()
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, begin)
                    os.lseek(self._fd, begin, os.SEEK_SET)
                raise
        self.done.setdefault(rows[0].video, {})[span_key(rows[0])] = begin

    def rows(self, video: str) -> Iterator[list[Narration]]:
        """A video's narrations, clip by clip in order of time."""
        with storage_error(self.path), self.path.open("rb") as file:
            for _, offset in sorted(self.done.get(video, {}).items()):
                file.seek(offset)
                rows = [parse(file.readline()) for _ in range(self.samples)]
                yield [row for row in rows if row is not None]

    def sync(self) -> None:
        """Have the disk keep what was written."""
        os.fsync(self._fd)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, unlock and close."""
        try:
            with storage_error(self.path):
                self.sync()
        finally:
            self._held.close()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
