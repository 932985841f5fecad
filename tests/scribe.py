"""A narrator without a model, for tests of what happens around it: its sentence is the clip's content and start."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from lavila_fast.archive.recognise import Wishes
from lavila_fast.archive.request import Request
from lavila_fast.archive.run import Summary
from lavila_fast.archive.work import Narrating
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator
from lavila_fast.records import Clip, Narration
from lavila_fast.video.content import content_id
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource


@dataclass
class Scribe:
    """What a run needs of a `Narrator`; `read_of` are the names of what was read, `written` counts clips."""

    clip_seconds: float = 2.0
    device: str = "cpu"
    decoder: str = "auto"
    fingerprint: str = "0123456789abcdef, scribe"
    read_of: list[str] = field(default_factory=list)
    written: int = 0

    def read(
        self,
        source: VideoSource,
        clips: Sequence[Clip],
        threads: int = 1,
        children: object = None,
        nearest: float = 0.0,
    ) -> Iterator[DecodedClip]:
        self.read_of.append(source.path.name)
        content = source.content or content_id(source.path)
        for one in read_clips(source, clips, 4, threads=threads, nearest=nearest):
            yield replace(one, content=content)

    def require_nearest(self, nearest: float) -> None:
        pass

    def narrate_clips(
        self, decoded: Iterable[DecodedClip], options: Options, batch: int, *, frame_times: bool = False
    ) -> Iterator[list[Narration]]:
        for one in decoded:
            self.written += 1
            text, clip = f"{one.content[:8]} {one.clip.start:g}", one.clip
            told = one.damaged, one.times if frame_times else None
            samples = range(options.samples)
            yield [Narration(clip.video, clip.start, clip.end, i, text, 1.0, -1.0, *told) for i in samples]


def narrate(*inputs: object, output: str, wishes: Wishes | None = None, **how: Any) -> tuple[Summary, Scribe]:
    """One run, as the command line makes it."""
    scribe = Scribe()
    request = Request(tuple(map(str, inputs)), Narrating(Options()), output=output, wishes=wishes or Wishes(), **how)
    found = request.find()
    summary = request.run(cast("Narrator", scribe), "scribe", found, request.choose_output(found))
    return summary, scribe


def rows(path: str | Path) -> list[tuple[str, float, str]]:
    """Video, start and text of each row."""
    import json

    values = [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]
    return [(one["video"], one["start"], one["text"]) for one in values]
