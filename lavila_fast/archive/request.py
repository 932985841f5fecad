"""What one command is asked to do with which videos, and the way from there to a run."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavila_fast.archive.accounts.alone import Alone, See
from lavila_fast.archive.accounts.history import History
from lavila_fast.archive.books import Books
from lavila_fast.archive.decoding import Crew, Decoders
from lavila_fast.archive.finished.joined import JoinedFiles
from lavila_fast.archive.finished.segments import Rules
from lavila_fast.archive.fleet.seen import STRETCH
from lavila_fast.archive.journals.identity import LISTED, Identity, describe_windows
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.journals.videos import Records, records_path
from lavila_fast.archive.outputs import Files, Output, Stream, choose_output, open_journal
from lavila_fast.archive.places import require_none_read
from lavila_fast.archive.plan import Windows
from lavila_fast.archive.progress import Progress
from lavila_fast.archive.recognise import Recognised, Wishes, recognise
from lavila_fast.archive.run import Beside, Run, Summary
from lavila_fast.archive.sources.downloads import Downloads
from lavila_fast.archive.sources.inputs import FoundInputs, Job, find_clips, find_videos
from lavila_fast.archive.sources.manifest import find_manifest
from lavila_fast.archive.sources.shards import Shard, marker_of, write_marker
from lavila_fast.archive.windows.shots import ENDING, FRAMES, SMALL, Shots, describe_shots
from lavila_fast.archive.windows.still import Still, StillGate
from lavila_fast.archive.work import Work
from lavila_fast.errors import InputError
from lavila_fast.machine import available_cpus
from lavila_fast.records import Clip
from lavila_fast.remote.path import RemotePath, place
from lavila_fast.remote.urls import is_url
from lavila_fast.shown import many
from lavila_fast.video.names import HARDWARE
from lavila_fast.video.nearby import in_words
from lavila_fast.video.opening import MOST_PIXELS
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource

if TYPE_CHECKING:
    from lavila_fast.archive.accounts.metrics import Metrics
    from lavila_fast.archive.fleet.crew import Fleet
    from lavila_fast.clip_model import ClipModel
    from lavila_fast.video.children.pool import Children

_AHEAD = 16  # clips that a decoder may be ahead, at least


@dataclass(frozen=True)
class Request:
    """Everything but the model.

    Attributes:
        inputs: Files, folders, patterns; with `clip_list` one folder.
        work: What is done with the clips.
        clip_list: File that names the clips; None cuts whole videos into windows.
        output: A file, a folder, ``-`` or nothing.
        format: One that the rows can be written in, or None to go by the suffix of `output`.
        clip_seconds: Length of a window; None takes the model's.
        stride_seconds: From one window's start to the next; None takes `clip_seconds`.
        batch: Clips that the model takes together.
        workers: Videos decoded at once, which then interleave; None: one after the other, each by as many as needed.
        decode_threads: Threads of each decoder.
        nearest: Seconds by which a frame may be off the wanted one, where another is cheaper.
        frame_times: Rows say when the frames that the model saw are shown.
        overwrite: Forget what the output holds.
        prints_summary: Standard output is for the summary, so rows go to a file.
        quiet: Only errors.
        max_pixels: Larger pictures are refused.
        csv_safe: No cell of a CSV shall be a formula.
        wishes: What to do again, and how closely to look at files.
        hushed: Nothing is said of failures whose lines begin like this.
        shard: The share of the videos that this run works on; None: all.
        still: What is done about windows in which nothing moves; None: nothing.
        shots: Windows do not run over cuts.
        reads: Files that are read besides videos and `clip_list`.
        manifest: Table that names the videos; `inputs` is their folder, or nothing.
        download: Bytes that films which lie elsewhere may take here, fetched whole; 0: they are read in ranges.
        metrics: Who is told how far it is, at any time.
        merge: How windows that say the same become one, in files beside the output; None: there are none.
    """

    inputs: tuple[str, ...]
    work: Work
    clip_list: Path | None = None
    output: str | None = None
    format: str | None = None
    clip_seconds: float | None = None
    stride_seconds: float | None = None
    batch: int = 8
    workers: int | None = None
    decode_threads: int = 1
    nearest: float = 0.0
    frame_times: bool = False
    overwrite: bool = False
    prints_summary: bool = False
    quiet: bool = False
    max_pixels: int = MOST_PIXELS
    csv_safe: bool = False
    wishes: Wishes = field(default_factory=Wishes)
    hushed: tuple[str, ...] = ()
    shard: Shard | None = None
    still: Still | None = None
    shots: bool = False
    reads: tuple[Path, ...] = ()
    manifest: str | None = None
    download: int = 0
    metrics: Metrics | None = None
    merge: Rules | None = None

    def __post_init__(self) -> None:
        """Check that windows are not asked for together with a list, and that there is one list at most."""
        if self.clip_list and self.manifest:
            raise InputError("--clips: names single clips, --manifest videos to cut; leave one of the two out")
        if self.clip_list and (self.clip_seconds or self.stride_seconds):
            name = "--clip-seconds" if self.clip_seconds else "--stride-seconds"
            raise InputError(f"{name}: --clips says where each clip begins and ends; leave one of the two out")
        if self.shots and (self.clip_list or self.stride_seconds):
            name = "--clips" if self.clip_list else "--stride-seconds"
            raise InputError(f"--windows shots: windows follow the cuts, one after the other; leave {name} out")
        if self.merge and self.shard:
            what = "windows that say the same may be of two shares"
            raise InputError(f"--merge: {what}; join these by lavila-fast merge, and then run lavila-fast segments")

    def find(self) -> FoundInputs:
        """The videos and their clips; those of other shards, too.

        Raises:
            InputError: there are none.
        """
        if self.manifest is not None:
            return find_manifest(self.inputs, self.manifest)
        return find_clips(self.inputs, self.clip_list) if self.clip_list else find_videos(self.inputs)

    def choose_output(self, found: FoundInputs) -> Output:
        """Where the rows of these videos go.

        Raises:
            InputError: output, format and number of videos do not fit each other, or it is a file that is read.
        """
        output = self._off_standard(self._choose_output(found))
        if self.csv_safe and output.rows.formats[output.format].safe is None:
            raise InputError(f"--csv-safe: of no use to {output.format}; leave it out, or give --format csv")
        if output.kind == "stream" and self.merge:
            raise InputError("--merge: segments go beside the rows of a file or folder; give -o FILE")
        if output.kind == "stream" and self.shard:
            raise InputError(f"--shard {self.shard}: a share goes to a file of its own; give -o FILE")
        if output.kind == "stream" and (self.overwrite or self.wishes != Wishes()):
            asked = "--overwrite" if self.overwrite else "--retry-failed, --retry-damaged and --identity"
            raise InputError(
                f"{asked}: of no use where {self.work.kind.name} are printed; leave it out, or give -o FILE"
            )
        lists = (self.clip_list,) if self.clip_list else ()
        tables = (Path(self.manifest),) if self.manifest and not is_url(self.manifest) else ()
        videos = (job.source.path for job in found.jobs)
        local = (path for path in videos if not isinstance(path, RemotePath))
        require_none_read(output, [*lists, *tables, *self.reads, *local])
        output = output.with_frame_times() if self.frame_times else output
        output.writer()  # what is missing to write it is said before the first video
        return replace(output, safe=self.csv_safe)

    def _choose_output(self, found: FoundInputs) -> Output:
        one = len(self.inputs) == len(found.jobs) == 1 and not self.manifest and self._is_input(found.jobs[0].source)
        return choose_output(self.output, self.format, len(found.jobs), one, self.work.kind)

    def _is_input(self, source: VideoSource) -> bool:
        """Whether a video is the one INPUT itself, not something in it."""
        if isinstance(source.path, RemotePath):
            return source.path == place(self.inputs[0])
        return Path(source.name) == Path(self.inputs[0])

    def _off_standard(self, output: Output) -> Output:
        """The same, or a file where standard output is for the summary."""
        if not (self.prints_summary and output.kind == "stream" and output.path is None):
            return output
        if self.output == "-":
            raise InputError(f"--json and {self.work.kind.name} cannot both be printed; give a file as --output")
        return choose_output(f"{self.work.kind.name}.jsonl", None, 1, True, self.work.kind)

    def run(
        self,
        model: ClipModel,
        name: str,
        found: FoundInputs,
        output: Output,
        children: Children | None = None,
        beside: Beside | None = None,
        fleet: Fleet | None = None,
    ) -> Summary:
        """Do the work on `found` and write `output`; `name` is the model's for people, `beside` sees all clips, too.

        Videos are opened and decoded by `children`, which end with the run; without them, by this process. With a
        `fleet`, its workers decode and do the work, and it ends with the run.

        Raises:
            InputError: the output was begun by a run that is not the same, or `nearest` is asked of a GPU.
            StorageError: it cannot be written; what was written before is whole.
        """
        if self.nearest:
            model.require_nearest(self.nearest)
        lengths, downloads = self.lengths(model), Downloads(self.download)
        progress = Progress(self.quiet, bar=not (output.kind == "stream" and sys.stdout.isatty()))
        see: See = fleet.see if fleet else self.see(model)
        alone = None if fleet else Alone.of(self.see, model, self.batch)
        if output.kind == "stream":
            stream = Stream(output, sys.stdout.buffer, {"still": self.still.settings} if self.still else {})
            try:
                self._note(progress, found.notes)
                shots = self._shots(lengths[0], None, children)
                plan = Windows(*lengths, stream, listed=bool(self.clip_list), shots=shots)
                left = replace(found, jobs=self._bounded(found.jobs, children, downloads))
                decoders = self._decoders(model, left, plan, children, downloads, fleet)
                return self._watched(Run(see, left, stream, plan, progress, decoders, (), beside, self.hushed)).go()
            finally:
                stream.release()
        every, found = found, self.shard.share(found) if self.shard else found
        with self.opened(model, name, found, output) as (journal, books, known):
            marker_of(journal.path).unlink(missing_ok=True)
            left = FoundInputs(self._bounded(books.jobs(), children, downloads), found.failed)
            names = [*known.finished, *(job.source.name for job in left.jobs)]
            sink = self._files(output, journal, names, books)
            self._note(progress, [*found.notes, *known.notes, *sink.notes])
            shots = self._shots(lengths[0], journal.path, children)
            plan = Windows(*lengths, sink, bool(self.clip_list), books, self.shard, shots)
            decoders = self._decoders(model, left, plan, children, downloads, fleet)
            more = beside, self.hushed, alone, known.failed
            run = Run(see, left, sink, plan, progress, decoders, known.finished, *more)
            with History.beside(journal.path, anew=self.overwrite or journal.new).keeping(model.fingerprint) as heard:
                summary = self._watched(run).go(heard)
                heard(summary)
            if isinstance(sink, JoinedFiles):
                summary.segments = sink.joined
            if fleet and fleet.died:
                how = ", ".join(sorted(set(fleet.died)))
                self._note(
                    progress, [f"{many(len(fleet.died), 'worker')} died ({how}); others have done what was left"]
                )
            if self.shard and summary.stopped is None:
                write_marker(journal.path, self.shard.told(every))
            return summary

    def _files(self, output: Output, journal: Journal, names: Sequence[str], books: Books) -> Files:
        if self.merge is None:
            return Files(output, journal, names, self.overwrite, books.known)
        return JoinedFiles(output, journal, names, self.merge, self.overwrite, books.known)

    def see(self, model: ClipModel) -> See:
        """What makes rows of clips."""
        look = partial(self.work.see, model, batch=self.batch, frame_times=self.frame_times)
        if self.still is None:
            return look
        kind = self.work.kind.name, self.work.samples
        return StillGate(self.still, look, model.config.vision, kind, self.nearest, self.frame_times).see

    def _shots(self, clip_seconds: float, journal: Path | None, children: Children | None) -> Shots | None:
        if not self.shots:
            return None

        def read(source: VideoSource, pieces: Sequence[Clip]) -> Iterator[DecodedClip]:
            look = children.read if children else read_clips
            return look(source, pieces, FRAMES, SMALL)

        return Shots(clip_seconds, read, journal and journal.with_name(journal.name + ENDING))

    def _watched(self, run: Run) -> Run:
        if self.metrics:
            self.metrics.watch(self.work.kind.name, run)
        return run

    def lengths(self, model: ClipModel) -> tuple[float, float]:
        """Of a window, and from one's start to the next."""
        clip = self.clip_seconds or model.clip_seconds
        return clip, self.stride_seconds or clip

    @contextlib.contextmanager
    def opened(
        self, model: ClipModel, name: str, found: FoundInputs, output: Output
    ) -> Iterator[tuple[Journal, Books, Recognised]]:
        """What an output in files holds already, open for writing; arguments and errors as of `run`."""
        identity = self._identity(model, name, self._cut(model, found.ranged))
        with contextlib.ExitStack() as held:
            journal = open_journal(output, identity.settings(), self.work.samples, self.overwrite)
            held.callback(journal.close)
            records = Records(records_path(journal.path), overwrite=self.overwrite or journal.new)
            held.callback(records.close)
            known = recognise(found, journal, records, self.wishes)
            books = Books(journal, records, known, self.wishes)
            books.miss(found.missing)
            yield journal, books, known

    def _cut(self, model: ClipModel, ranged: bool) -> str:
        """How videos are cut into clips."""
        lengths = self.lengths(model)
        if self.shots and ranged:
            what = "a manifest with start and end says where windows begin"
            raise InputError(f"--windows shots: {what}; leave one of the two out")
        return describe_shots(lengths[0]) if self.shots else describe_windows(*lengths, ranged)

    def _decoders(
        self,
        model: ClipModel,
        found: FoundInputs,
        plan: Windows,
        children: Children | None,
        downloads: Downloads,
        fleet: Fleet | None,
    ) -> Decoders:
        if fleet:
            crew = Crew(fleet.asks, fleet.asks)
        elif self.workers is not None:
            crew = Crew(min(self.workers, max(len(found.jobs), 1)), self.workers, in_order=self.workers == 1)
        else:
            crew = Crew(most=available_cpus() if model.device == "cpu" else 1)
        books = plan.books

        def read(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
            source = books.source(source) if books else source
            how: dict[str, Any] = {"threads": self.decode_threads, "nearest": self.nearest}
            with downloads.here(source) as here:
                yield from fleet.read(here, clips) if fleet else model.read(here, clips, children=children, **how)

        room = STRETCH if fleet else max(2 * self.batch, _AHEAD)
        return Decoders(found.jobs, plan, read, crew, room, fleet or children)

    def _note(self, progress: Progress, lines: Sequence[str]) -> None:
        for line in () if self.quiet else lines:
            progress.say(line)

    def _bounded(self, jobs: Sequence[Job], children: Children | None, downloads: Downloads) -> list[Job]:
        """The same videos, opened by children if there are any, and no larger than is allowed."""
        look = downloads.looking(children.look if children else None)
        bounds: dict[str, Any] = {"most_pixels": self.max_pixels, "look": look}
        return [replace(job, source=replace(job.source, **bounds)) for job in jobs]

    def _identity(self, model: ClipModel, name: str, clips: str) -> Identity:
        plain = model.device == "cpu" and model.decoder != HARDWARE  # a GPU's frames differ by a few levels
        decoder = None if plain else model.decoder
        clips = LISTED if self.clip_list else clips
        shard, still = (one.settings if one else None for one in (self.shard, self.still))
        frames = in_words(self.nearest)
        return Identity(name, model.fingerprint, self.work.options, clips, decoder, frames, shard, still)
