"""A run over many videos: decode in threads, narrate in this one, write each clip as it comes, go on where one fails.

A row depends on its clip alone, so neither the number of workers, nor the batch, nor where an earlier run was cut off
can change it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lavila_fast.archive.decoding import Decoders, Ended
from lavila_fast.archive.inputs import Found
from lavila_fast.archive.outputs import Output, Sink
from lavila_fast.archive.plan import Windows
from lavila_fast.archive.progress import Progress
from lavila_fast.archive.signals import Shield, Stopped
from lavila_fast.generate.options import Options
from lavila_fast.records import Narration
from lavila_fast.video.reader import DecodedClip

if TYPE_CHECKING:
    from lavila_fast.narrator import Narrator


@dataclass
class Summary:
    """What a run did: videos looked at, clips done before it, clips narrated now, lines about what failed."""

    videos: int
    done_before: int
    clips: int = 0
    seconds: float = 0.0
    video_seconds: float = 0.0
    failed: list[str] = field(default_factory=list)
    stopped: int | None = None

    @property
    def exit_code(self) -> int:
        """0, 1 if anything failed, or 128 + the signal that ended the run."""
        return self.stopped if self.stopped is not None else int(bool(self.failed))

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "videos": self.videos,
            "clips": self.clips,
            "done_before": self.done_before,
            "failed": self.failed,
            "stopped": self.stopped is not None,
            "seconds": round(self.seconds, 3),
            "clips_per_second": round(self.clips / self.seconds, 3) if self.seconds else 0.0,
            "times_real_time": round(self.video_seconds / self.seconds, 3) if self.seconds else 0.0,
        }

    def sentence(self, output: Output) -> str:
        """The last line of a run, for people."""
        before = f" ({self.done_before} done before)" if self.done_before else ""
        counts = f"{_many(self.videos, 'video')}, {_many(self.clips, 'clip')}{before}, {len(self.failed)} failed"
        if self.stopped is not None:
            again = "" if output.kind == "stream" else "; run the same command again to go on"
            return f"stopped: {_many(self.clips, 'clip')} written to {output}{again}"
        return f"done: {counts}: {output}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


class Run:
    """One run. `go` does it all."""

    def __init__(
        self, narrator: Narrator, found: Found, sink: Sink, plan: Windows, progress: Progress, workers: int, batch: int
    ) -> None:
        self.narrator, self.sink, self.plan, self.progress, self.batch = narrator, sink, plan, progress, batch
        before = sum(sink.count(job.source.name) for job in found.jobs)
        self.summary = Summary(len(found.jobs) + len(found.failed), before)
        self.shield = Shield()
        self._early = found.failed
        self._decoders = Decoders(found.jobs, plan, narrator.read, workers, 2 * batch)
        self._in_flight: Counter[str] = Counter()
        self._ended: set[str] = set()

    def go(self, options: Options, frame_times: bool = False) -> Summary:
        """Narrate everything; with `frame_times` rows say when the frames that were seen are shown.

        Raises:
            StorageError: the output cannot be written; what was written before is whole.
        """
        try:
            with self.shield.installed():
                self._narrate(options, frame_times)
        except Stopped as stop:
            self.summary.stopped = stop.exit_code
        finally:
            self.progress.close()
            self.summary.clips, self.summary.seconds = self.progress.clips, self.progress.elapsed
            self.summary.video_seconds = self.progress.video_seconds
        return self.summary

    def _narrate(self, options: Options, frame_times: bool) -> None:
        stop: Stopped | None = None
        try:
            for line in self._early:
                self._fail(line)
            for rows in self.narrator.narrate_clips(self._decoded(), options, self.batch, frame_times=frame_times):
                with self.shield():
                    self.sink.write(rows)
                    self._count(rows[0])
        except (Stopped, Exception):
            stop = self.shield.stopped
            if not stop:
                raise
        finally:
            self._decoders.stop()
        self.sink.close()
        if stop:
            raise stop

    def _decoded(self) -> Iterator[DecodedClip]:
        """Clips for the narrator; the ends of videos are taken note of on the way."""
        for event in self._decoders:
            if isinstance(event, Ended):
                if event.failure:
                    self._fail(event.failure)
                self._ended.add(event.video)
                self._finish(event.video)
            else:
                self._in_flight[event.clip.video] += 1
                yield event

    def _count(self, row: Narration) -> None:
        self._in_flight[row.video] -= 1
        self.progress.advance(self.plan.covers(row), self._decoders.total)
        self._finish(row.video)

    def _finish(self, video: str) -> None:
        """Close a video that has ended, once its last clip is written."""
        if video in self._ended and not self._in_flight[video]:
            self._ended.remove(video)
            del self._in_flight[video]
            self.sink.finish(video)

    def _fail(self, line: str) -> None:
        self.summary.failed.append(line)
        self.progress.say(f"error: {line}")
