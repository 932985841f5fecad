"""The journal: a JSONL file that grows by one whole clip at a time and says which clips are done.

With JSONL output it *is* the output; other formats are written from it, whole or not at all. Beside it lies
``NAME.run.json``: which model and options it was begun with, so that narrations of two kinds never mix.

All sentences of a clip go out in one write, so whatever stops the process leaves at most the last clip torn. Opening
the journal again cuts that off (and drops any other line that is not part of a whole clip), and what is left counts as
done. The file is locked while it is open, by ``.NAME.lock`` beside it (see `files.locked`); rows go to its end, and
whatever else changes it meanwhile (another program, or its removal) is noticed: at each clip, each sync and at the end.
Which files its videos are is told by the records beside it (see `videos`).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavila_fast.archive.journals import index
from lavila_fast.archive.journals.identity import difference
from lavila_fast.archive.journals.kinds import NARRATIONS, Kind
from lavila_fast.archive.journals.rows import whole_clips
from lavila_fast.archive.journals.spans import Done, span_of
from lavila_fast.errors import InputError, StorageError
from lavila_fast.files import locked, replacing, storage_error, sync, warn
from lavila_fast.records import Clip, Row

SUFFIX, SIDECAR, ACCOUNT = ".journal", ".run.json", ".report.json"
"""Of a journal that is not the output itself, and of what lies beside each."""
SEGMENTS = ".segments"
"""Before the suffix of a file of segments beside an output."""
FSYNC_SECONDS = 5.0
_LARGE = 10  # times as many clips as make an index worth while, after which it is written anew
_OTHER_TEXT = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"{\0", b"\0{", b"\0\0\0{")  # marks, UTF-16 and UTF-32
_AGAIN = "rows may be lost: leave it alone and run the same command again"
BEGIN_ANEW = "--overwrite to begin anew"
_WAY_OUT = f"give another --output, or {BEGIN_ANEW}"


class Journal:
    """An open, locked journal.

    Attributes:
        path: The file.
        begun: Whether it held anything when it was opened; `new`: whether there was no such file.
        done: Video → its clips.
        run: What it was begun with.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        samples: int,
        overwrite: bool = False,
        kind: Kind = NARRATIONS,
        compact: bool = False,
    ) -> None:
        """Open or begin a journal.

        Args:
            path: The file.
            run: What must be the same for narrations to stand in one file.
            samples: Sentences a clip, or rows of another kind.
            overwrite: Forget what is there.
            kind: Of its rows.
            compact: It is no output that people read.

        Raises:
            InputError: it is in use, was begun with other settings, or is no journal.
            StorageError: it cannot be written.
        """
        self.path, self.samples = Path(os.path.realpath(path)), samples
        self.sidecar = self.path.with_name(self.path.name + SIDECAR)
        self.done, self.run, self._kind = Done(), dict(run), kind
        self._writer = kind.journal(compact)
        self._synced = time.monotonic()
        self._lost, self._indexed, self._new = False, 0, 0
        with contextlib.ExitStack() as undo, storage_error(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            way_out = "wait for it or give another --output"
            taken = StorageError(f"{self.path}: another lavila-fast is writing it; {way_out}")
            if not undo.enter_context(locked(self.path, taken)):
                warn(f"{self.path}: this disk has no locks; a file beside it keeps other runs away")
            self.new = not self.path.exists()
            self._fd = _open(self.path)
            undo.callback(lambda: os.close(self._fd))
            if overwrite:
                os.ftruncate(self._fd, 0)
            self.begun = os.fstat(self._fd).st_size > 0
            self._check_run(self.run)
            self._recover()
            self._held = undo.pop_all()

    def _check_run(self, run: dict[str, Any]) -> None:
        """Compare with the settings the journal was begun with, or note them down."""
        if not self.begun:
            with replacing(self.sidecar) as file:
                file.write((json.dumps(run, indent=1) + "\n").encode())
            return
        try:
            before = dict(json.loads(self.sidecar.read_bytes()))
        except FileNotFoundError:
            foreign = f"exists, but was not written by lavila-fast {self._kind.command}"
            raise InputError(f"{self.path}: {foreign}; {_WAY_OUT}") from None
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.sidecar}: damaged ({error}); {_WAY_OUT}") from error
        if told := difference(before, run):
            again = "" if " version" in told else "repeat the first settings, "
            raise InputError(f"{self.path}: {told}; {again}{_WAY_OUT}")
        with self.path.open("rb") as file:
            if file.read(4).startswith(_OTHER_TEXT):
                what = "another program has saved it in UTF-16 or behind a byte-order mark"
                raise InputError(f"{self.path}: {what}; save it as UTF-8 without a mark, {_WAY_OUT}")

    def _recover(self) -> None:
        """Find the clips that are done, and cut off or drop what is no part of one."""
        self.done, known = index.load(self.path, self.samples) or (Done(), 0)
        kept, found = [(0, known)] if known else [], 0
        with self.path.open("rb") as file:
            file.seek(known)
            for begin, end, rows in whole_clips(file, self.samples, known, self._kind.parse):
                if not self.done.add_read(rows[0].video, span_of(rows[0]), begin):
                    continue
                found += 1
                if kept and kept[-1][1] == begin:
                    begin = kept.pop()[0]
                kept.append((begin, end))
        self.done.settle()
        self._size = kept[-1][1] if kept else 0
        if len(kept) > 1 or (kept and kept[0][0] > 0):
            self._keep_only(kept)
            return
        if os.fstat(self._fd).st_size > self._size:
            os.ftruncate(self._fd, self._size)
        self._indexed, self._new = known, found
        if found > index.WORTH * (_LARGE if known else 1):  # a large one takes longer to write than rows to read
            self._save_index()

    def _save_index(self) -> None:
        self.done.settle()  # what was added takes ten times the room until then
        index.save(self.path, self._size, self.samples, self.done)
        self._indexed, self._new = self._size, 0

    def _keep_only(self, kept: list[tuple[int, int]]) -> None:
        """Rewrite the file without what lies between whole clips."""

        def blocks() -> Iterator[bytes]:
            with self.path.open("rb") as old:
                for begin, end in kept:
                    old.seek(begin)
                    while begin < end and (block := old.read(min(1 << 20, end - begin))):
                        begin += len(block)
                        yield block

        self._replace_by(blocks())

    def rewrite(self, names: Mapping[str, Sequence[str]], sound: Collection[str] = ()) -> None:
        """Give videos other names, one name or more or none, which drops them; the file is the old one or the new one.

        Args:
            names: Name of a video → the names its rows are to have; others keep their own.
            sound: Names, the old ones, of videos whose damaged clips are to be dropped.

        Raises:
            StorageError: it cannot be written.
        """

        def blocks() -> Iterator[bytes]:
            with self.path.open("rb") as old:
                for _, _, rows in whole_clips(old, self.samples, parse=self._kind.parse):
                    video = rows[0].video
                    if rows[0].damaged and video in sound:
                        continue
                    for name in names.get(video, (video,)):
                        yield self._writer.clip([replace(row, video=name) for row in rows])

        with storage_error(self.path):
            self._replace_by(blocks())

    def _replace_by(self, blocks: Iterator[bytes]) -> None:
        try:
            with replacing(self.path) as new:
                for block in blocks:
                    new.write(block)
                self._reopen(Path(os.devnull))  # Windows replaces no open file
        finally:
            self._reopen(self.path)
        self._recover()

    def _reopen(self, path: Path) -> None:
        before, self._fd = self._fd, _open(path)
        os.close(before)

    def has(self, clip: Clip) -> bool:
        """Whether a clip is done."""
        clips = self.done.get(clip.video)
        return clips is not None and span_of(clip) in clips

    def lacking(self, video: str, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Those of a video's clips that are not done."""
        done = self.done.get(video)
        return iter(clips) if done is None else done.lacking(clips)

    def append(self, rows: list[Row]) -> None:
        """Write a clip's sentences, all or none.

        Raises:
            StorageError: they could not be written; the file ends with the clip before.
        """
        block = memoryview(self._writer.clip(rows))
        begin, end = self._size, self._size + len(block)
        with storage_error(self.path):
            try:
                while block:
                    block = block[os.write(self._fd, block) :]
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, begin)
                raise
            self._size = end
            self._check(os.fstat(self._fd))
            if time.monotonic() - self._synced > FSYNC_SECONDS:
                self.sync()
        self._new += self.done.add(rows[0].video, span_of(rows[0]), begin)
        if self._new > _LARGE * index.WORTH:  # a run that is killed leaves the next one little to read
            self._save_index()

    def _check(self, own: os.stat_result) -> None:
        if own.st_size != self._size:
            self._lost = True
            what = "another program has cut or written it" if own.st_nlink else "it was removed"
            raise StorageError(f"{self.path}: {what} while this run did; {_AGAIN}")

    def rows(self, video: str) -> Iterator[list[Row]]:
        """A video's rows, clip by clip in order of time."""
        if video not in self.done:
            return
        with storage_error(self.path), self.path.open("rb") as file:
            for _, offset in self.done[video].in_order():
                file.seek(offset)
                rows = [self._kind.parse(file.readline()) for _ in range(self.samples)]
                yield [row for row in rows if row is not None]

    def sync(self) -> None:
        """Have the disk keep what was written, and see that it still is where it was.

        Raises:
            OSError: the disk fails.
            StorageError: the file was removed, replaced, cut or written to.
        """
        sync(self._fd)
        own = os.fstat(self._fd)
        try:
            there = os.path.samestat(own, self.path.stat())
        except FileNotFoundError:
            there = False
        if not there:
            self._lost = True
            raise StorageError(f"{self.path}: it was removed or replaced while this run wrote it; {_AGAIN}")
        self._check(own)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Sync, unlock and close."""
        try:
            if not self._lost:
                with storage_error(self.path):
                    self.sync()
                if self._new > index.WORTH or not self._indexed:
                    self._save_index()
        finally:
            self._held.close()


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
