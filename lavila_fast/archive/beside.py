"""One decode pass for two models: the clips that are narrated are embedded on their way, into an output of `embed`.

    beside = EmbeddedBeside(request.embedding(), dual, "nano", found, output)
    with beside.opened():
        summary = request.run(narrator, "nano", found, narrations, children, beside)
    features = beside.finish(summary, children)

The output is the very one that `embed` would write: `finish` is an `embed` that goes on with it. It decodes again only
what the narrator did not need, such as clips that were narrated before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from lavila_fast.archive.accounts.alone import See
from lavila_fast.archive.fleet.seen import Seen
from lavila_fast.archive.outputs import Files, Output
from lavila_fast.archive.request import Request
from lavila_fast.archive.run import Summary
from lavila_fast.archive.sources.inputs import FoundInputs
from lavila_fast.clip_model import ClipModel
from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Row
from lavila_fast.remote.path import Place
from lavila_fast.video.reader import DecodedClip

if TYPE_CHECKING:
    from lavila_fast.archive.books import Books
    from lavila_fast.archive.journals.journal import Journal
    from lavila_fast.dual_encoder import DualEncoder
    from lavila_fast.video.children.pool import Children


def require_same_frames(one: ClipModel, other: ClipModel) -> None:
    """See that two models take the same frames of a clip.

    Raises:
        InputError: they do not.
    """
    seen = [(model.config.vision, model.device, model.decoder) for model in (one, other)]
    same = [(v.img, v.frames, v.mean, v.std, device, decoder) for v, device, decoder in seen]
    if same[0] != same[1]:
        told = [f"{v.frames} frames of {v.img} pixels on {device}" for v, device, _ in seen]
        what = f"the narrator sees {told[0]}, the dual encoder {told[1]}"
        raise InputError(f"--embed: {what}, or otherwise prepared; run `lavila-fast embed` for itself")


@dataclass
class EmbeddedBeside:
    """A `run.Beside` that embeds.

    Attributes:
        request: Of the embeddings: the work is `Embedding`.
        model: What embeds.
        name: Its name for people.
        found: The videos.
        output: Where the embeddings go; no stream.
    """

    request: Request
    model: DualEncoder
    name: str
    found: FoundInputs
    output: Output
    _names: dict[Place, str] = field(default_factory=dict)
    _held: tuple[Journal, Books] | None = None
    _before: int = 0

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Hold the output while clips are seen; errors as of `Request.run`."""
        shard = self.request.shard
        found = shard.share(self.found) if shard else self.found
        with self.request.opened(self.model, self.name, found, self.output) as (journal, books, known):
            self._held = journal, books
            self._names = {job.source.path: job.source.name for job in books.jobs()}
            # Whose file lies there is settled now, not after hours of work.
            sink = Files(self.output, journal, [*known.finished, *self._names.values()], self.request.overwrite)
            self._before = sum(sink.count(name) for name in (*known.finished, *self._names.values()))
            try:
                yield
                books.pause()
            finally:
                self._held = None

    def see(self, clip: DecodedClip, path: Place) -> list[Row]:
        """See `run.Beside`: embed a clip that is not there yet, under the name that its video has in this output."""
        assert self._held is not None
        journal, books = self._held
        name = self._names.get(path)
        if name is None or journal.has(own := replace(clip.clip, video=name)):
            return []
        try:
            books.identify(name)
        except VideoError:  # it is gone since; `finish` says so
            return []
        if isinstance(clip, Seen):  # by a worker, which has embedded it, too
            return [replace(row, video=name) for row in clip.also]
        return next(self._see(iter([replace(clip, clip=own)])))

    @property
    def _see(self) -> See:
        return self.one_by_one.see(self.model)

    @property
    def one_by_one(self) -> Request:
        """How clips are embedded on their way."""
        return replace(self.request, batch=1, frame_times=True)

    def again(self, clip: DecodedClip) -> None:
        """See `run.Beside`."""
        next(self._see(iter([clip])))

    def write(self, rows: list[Row], path: Place, decoded: int) -> None:
        """See `run.Beside`."""
        assert self._held is not None
        journal, books = self._held
        books.begin(rows[0], decoded)
        journal.append(rows)

    def finish(self, summary: Summary, children: Children | None) -> Summary:
        """Embed what is left, and write the output; without another word about videos that failed before.

        Raises:
            StorageError: it cannot be written.
        """
        known = [f"{job.source.path}: " for job in self.found.jobs]
        hushed = tuple(path for path in known if any(line.startswith(path) for line in summary.failed))
        found = replace(self.found, failed=[], notes=[])
        with children.fresh() if children else contextlib.nullcontext() as pool:
            wishes = replace(self.request.wishes, retry_failed=False, retry_damaged=False)  # fulfilled by now
            request = replace(self.request, overwrite=False, wishes=wishes, hushed=hushed)
            own = request.run(self.model, self.name, found, self.output, pool)
        passed = own.done_before - self._before
        return replace(own, done_before=self._before, clips=own.clips + passed, seconds=own.seconds + summary.seconds)
