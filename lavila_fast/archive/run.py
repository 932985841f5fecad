"""A run over many videos: decode in threads, narrate in this one, write each clip as it comes, go on where one fails.

Narrating stands here for whatever `work` is done with the clips.

A row depends on its clip alone, so neither the number of workers, nor the batch, nor where an earlier run was cut off
can change it.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any, Protocol

from lavila_fast.archive.accounts.alone import Alone, Bare, See
from lavila_fast.archive.accounts.stages import BESIDE, ENGINE, STORING, WAITING
from lavila_fast.archive.decoding import Decoders
from lavila_fast.archive.faults import PASSING
from lavila_fast.archive.journals.videos import DONE, FAILED
from lavila_fast.archive.outputs import Output, Sink
from lavila_fast.archive.plan import Windows
from lavila_fast.archive.progress import Progress
from lavila_fast.archive.signals import DeferredSignals, Stopped
from lavila_fast.archive.sources.inputs import FoundInputs
from lavila_fast.archive.stretches import EndOfVideo
from lavila_fast.records import Row
from lavila_fast.remote.path import Place
from lavila_fast.shown import many
from lavila_fast.video.reader import DecodedClip

HEARD_SECONDS = 30.0
Heard = Callable[["Summary"], None]


class Beside(Protocol):
    """Somebody else who wants to see the clips of a run."""

    def see(self, clip: DecodedClip, path: Place) -> list[Row]:
        """Make rows of a clip of the video that lies at `path`; none where there is nothing to do."""
        ...

    def write(self, rows: list[Row], path: Place, decoded: int) -> None:
        """Take these rows; `decoded` frames of the video were decoded until then."""
        ...

    def again(self, clip: DecodedClip) -> None:
        """Do with a clip what `see` does, and forget it."""
        ...


@dataclass
class Summary:
    """What a run did: videos looked at, clips done before it, clips narrated now, lines about what failed.

    Attributes:
        frames: That the narrated clips showed the model.
        decoded: Frames that were decoded for them.
        cpu: Seconds of processor time, all in all.
        decode_cpu: Of these, for reading, decoding and scaling.
        skipped: Of the clips, how many the model did not see, for nothing moves in them.
        stages: Seconds of the main thread in each of `stages.STAGES`.
        bare: What the engine does alone, if it was asked.
        statuses: Videos that were closed, by what became of them.
        segments: That were written beside the output, of all its windows; None: nobody asked.
    """

    videos: int
    done_before: int
    clips: int = 0
    seconds: float = 0.0
    video_seconds: float = 0.0
    damaged: int = 0
    copied: int = 0
    frames: int = 0
    decoded: int = 0
    cpu: float = 0.0
    decode_cpu: float = 0.0
    skipped: int = 0
    failed: list[str] = field(default_factory=list)
    stopped: int | None = None
    try_again: bool = False
    stages: dict[str, float] = field(default_factory=dict)
    bare: Bare | None = None
    statuses: Counter[str] = field(default_factory=Counter)
    segments: int | None = None

    @property
    def of_bare(self) -> float | None:
        """Clips a second, as a share of what the engine does alone."""
        return self.clips / self.seconds / self.bare.clips_per_second if self.bare and self.seconds else None

    @property
    def exit_code(self) -> int:
        """0; 1 if anything failed; 3 if of several videos none could be narrated, and not for want of a disk that
        reads; or 128 + the signal that ended the run.
        """
        if self.stopped is not None:
            return self.stopped
        nothing = self.videos > 1 and not (self.clips or self.copied or self.done_before or self.try_again)
        return 3 if self.failed and nothing else int(bool(self.failed))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "videos": self.videos,
            "clips": self.clips,
            "done_before": self.done_before,
            "damaged": self.damaged,
            "still": self.skipped,
            "copied": self.copied,
            "segments": self.segments,
            "failed": self.failed,
            "stopped": self.stopped is not None,
            "seconds": round(self.seconds, 3),
            "clips_per_second": round(self.clips / self.seconds, 3) if self.seconds else 0.0,
            "times_real_time": round(self.video_seconds / self.seconds, 3) if self.seconds else 0.0,
            "frames_wanted": self.frames,
            "frames_decoded": self.decoded,
            "cpu_seconds": round(self.cpu, 3),
            "decode_cpu_seconds": round(self.decode_cpu, 3),
            "stages": {name: round(seconds, 3) for name, seconds in self.stages.items()},
            "of_bare_engine": round(self.of_bare, 3) if self.of_bare is not None else None,
        }

    def costs(self) -> str:
        """A line about speed and what it went into; empty where that is not known, or nothing was narrated."""
        if not (self.frames and self.decoded and self.cpu and self.seconds):
            return ""
        speed = f"{self.video_seconds / self.seconds:.1f}x real time"
        frames = f"{self.decoded / self.frames:.1f} frames decoded for each wanted"
        bare = f", {self.of_bare:.0%} of the engine alone" if self.of_bare is not None else ""
        share = min(self.decode_cpu / self.cpu, 1.0)
        decoding = f", {share:.0%} of CPU time on decoding" if share else ""  # workers do not tell
        return f"{speed}{bare}, {frames}{decoding}"

    def sentence(self, output: Output) -> str:
        """The last line of a run, for people."""
        before = f" ({self.done_before} done before)" if self.done_before else ""
        damaged = f" ({self.damaged} of them damaged)" if self.damaged else ""
        skipped = f" ({self.skipped} of them still)" if self.skipped else ""
        copied = f" ({self.copied} more copied)" if self.copied else ""
        clips = f"{many(self.clips, 'clip')}{skipped}{damaged}{copied}{before}"
        counts = f"{many(self.videos, 'video')}, {clips}, {len(self.failed)} failed"
        if self.stopped is not None:
            again = "" if output.kind == "stream" else "; run the same command again to go on"
            return f"stopped: {many(self.clips, 'clip')} written to {output}{again}"
        joined = "" if self.segments is None else f"; {many(self.segments, 'segment')}: {output.segments}"
        return f"done: {counts}: {output}{joined}"


def _cpu() -> tuple[float, float]:
    """Seconds of processor time of this process, and of its children that have ended."""
    spent = os.times()
    return spent.user + spent.system, spent.children_user + spent.children_system


class Run:
    """One run. `go` does it all."""

    def __init__(
        self,
        see: See,
        found: FoundInputs,
        sink: Sink,
        plan: Windows,
        progress: Progress,
        decoders: Decoders,
        finished: Sequence[str] = (),
        beside: Beside | None = None,
        hushed: tuple[str, ...] = (),
        alone: Alone | None = None,
        failed_before: Sequence[str] = (),
    ) -> None:
        """`see` makes rows of clips; `finished` names videos of which nothing is to be done, besides those `found`.

        Of `finished` some failed before; `failed_before` are lines about these.
        `beside` sees all clips, too; of failures whose lines begin like one of `hushed` nothing is said. `alone` is
        asked at the end what the engine does alone.
        """
        self._hushed, self._alone, self._stages = hushed, alone, progress.stages
        self._beside = beside
        self._paths = {job.source.name: job.source.path for job in found.jobs} if beside is not None else {}
        self.see, self.sink, self.plan, self.progress = see, sink, plan, progress
        self.books = plan.books
        before = sum(sink.count(name) for name in (*finished, *(job.source.name for job in found.jobs)))
        self.summary = Summary(len(found.jobs) + len(found.failed) + len(finished), before)
        self.signals = DeferredSignals()
        self._early, self._finished = [*found.failed, *failed_before], finished
        self._decoders = decoders
        self._in_flight: Counter[str] = Counter()
        self._frames: dict[str, int] = {}
        self._ended: dict[str, EndOfVideo] = {}
        self._statuses = Counter({FAILED: len(self._early)})
        self._heard: Heard | None = None
        self._told = time.monotonic()
        self._own, self._others = _cpu()

    def go(self, heard: Heard | None = None) -> Summary:
        """Narrate everything; `heard` is told now and then how far it is, and if it breaks, what was done until then.

        Raises:
            StorageError: the output cannot be written; what was written before is whole.
        """
        self._heard = heard
        try:
            with self.signals.installed():
                self._narrate()
                self.summary = self.so_far()
                self._ask_alone()
        except Stopped as stop:
            self.summary = replace(self.so_far(), stopped=stop.exit_code)
        except BaseException:
            self.summary = self.so_far()
            if heard:
                heard(self.summary)
            raise
        finally:
            self.progress.close()
        return self.summary

    def so_far(self) -> Summary:
        """What was done until now; another thread may ask."""
        own, others = _cpu()
        others += self._decoders.children_cpu() - self._others
        return replace(
            self.summary,
            clips=self.progress.clips,
            seconds=self.progress.elapsed,
            copied=self.books.copied if self.books else 0,
            video_seconds=self.progress.video_seconds,
            cpu=own - self._own + others,
            decode_cpu=self._decoders.cpu_so_far() + others if self._decoders.tells_cpu else 0.0,
            stages=self._stages.spent(),
            statuses=Counter(dict(self._statuses)) + Counter(dict(self.books.statuses) if self.books else {}),
        )

    @property
    def planned(self) -> int:
        """Clips that are to be done, as far as is known."""
        return self._decoders.total

    @property
    def waiting(self) -> int:
        """Clips that are decoded and wait for the model."""
        return self._decoders.waiting

    def _ask_alone(self) -> None:
        """What the engine does alone, now that nothing decodes any more."""
        if self._alone:
            stages = self.summary.stages
            more = self._beside.again if self._beside else None
            self.summary.bare = self._alone.measure(self.summary.seconds, stages[ENGINE] + stages[BESIDE], more)

    def _narrate(self) -> None:
        stop: Stopped | None = None
        try:
            for line in self._early:
                self._fail(line)
            for video in self._finished:
                with self.signals():
                    self._write_out(video)
            clips = self._decoded()
            # The first clip goes alone: somebody may be waiting to see whether this is of any use.
            self._stages.to(ENGINE)
            for rows in chain(self.see(islice(clips, 1)), self.see(clips)):
                self._stages.to(STORING)
                with self.signals():
                    if self.books:
                        self.books.begin(rows[0], self._frames.get(rows[0].video, 0))
                    self.sink.write(rows)
                    self._count(rows[0])
                self._stages.to(ENGINE)
            self._stages.to(STORING)
        except (Stopped, Exception):
            stop = self.signals.stopped
            if not stop:
                raise
        finally:
            self._decoders.stop()
        self.sink.close()
        if stop:
            raise stop

    def _decoded(self) -> Iterator[DecodedClip]:
        """Clips for the narrator; the ends of videos are taken note of on the way."""
        self._stages.to(WAITING)
        for event in self._decoders:
            if isinstance(event, EndOfVideo):
                if event.failure:
                    self.summary.try_again |= event.code in PASSING
                    self._fail(event.failure, event)
                self._ended[event.video] = event
                self._stages.to(STORING)
                with self.signals():
                    self._finish(event.video)
                self._stages.to(WAITING)
            else:
                video = event.clip.video
                self._in_flight[video] += 1
                self.summary.frames += len(event.times)
                self.summary.decoded += event.decoded - self._frames.get(video, 0)
                self._frames[video] = event.decoded
                if self._alone:
                    self._alone.keep(event)
                self._show(event)
                self._stages.to(ENGINE)
                yield event
                self._stages.to(WAITING)
        self._stages.to(ENGINE)

    def _show(self, clip: DecodedClip) -> None:
        """Let whoever stands beside see a clip."""
        if self._beside is not None:
            self._stages.to(BESIDE)
            path = self._paths[clip.clip.video]
            if rows := self._beside.see(clip, path):
                with self.signals():
                    self._beside.write(rows, path, clip.decoded)

    def _count(self, row: Row) -> None:
        self._in_flight[row.video] -= 1
        self.summary.damaged += row.damaged
        self.summary.skipped += row.skipped is not None
        self.progress.advance(self.plan.covers(row), self._decoders.total)
        if self._heard and time.monotonic() - self._told > HEARD_SECONDS:
            self._told = time.monotonic()
            self._heard(self.so_far())
        self._finish(row.video)

    def _finish(self, video: str) -> None:
        """Close a video that has ended, once its last clip is written."""
        if video in self._ended and not self._in_flight[video]:
            ended = self._ended.pop(video)
            del self._in_flight[video]
            self._frames.pop(video, None)
            told = {"video": video, "seconds": round(ended.seconds, 3), "error.type": ended.code}
            self.progress.note(video, "lavila.video.ended", told)
            for name in self._close(ended):
                self._write_out(name)

    def _close(self, ended: EndOfVideo) -> Iterator[str]:
        """Write down the ends of a video and its twins; gives their names."""
        if self.books is None:
            self._statuses[FAILED if ended.failure else DONE] += 1
            yield ended.video
            return
        if ended.twin_of:
            twins = [twin] if (twin := self.books.twin(ended)) else []
        else:
            twins = list(self.books.end(ended))
            yield ended.video
        for twin in twins:
            if twin.failure:
                self._fail(twin.failure, twin)
            yield twin.video

    def _write_out(self, video: str) -> None:
        if line := self.sink.finish(video):
            self._fail(line)

    def _fail(self, line: str, ended: EndOfVideo | None = None) -> None:
        if line.startswith(self._hushed):
            return
        self.summary.failed.append(line)
        told = {"video": ended.video, "error.type": ended.code, "stage": ended.stage} if ended else {}
        self.progress.say(line, "ERROR", "lavila.video.failed", told)
