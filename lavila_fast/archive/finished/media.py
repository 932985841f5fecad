"""What a video shows in the clips of its rows, as bytes: clips cut out of it, or some frames of each.

for shown in Media("clip", folder=Path("films")).of("a.mp4", clips, known): ...  # shown.files: {"mp4": b"…"}
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal

from lavila_fast.archive.formats.writer import Videos
from lavila_fast.errors import VideoError
from lavila_fast.records import Clip
from lavila_fast.remote.path import Place
from lavila_fast.video.content import content_id
from lavila_fast.video.cut import copy_stretch, ending_of
from lavila_fast.video.jpeg import jpeg
from lavila_fast.video.probe import open_file
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource

FRAMES = 4
_GIVE = "give the folder of the videos as --videos DIR"


@dataclass(frozen=True)
class Shown:
    """A clip with what it shows.

    Attributes:
        clip: Which one.
        files: Ending, without its first dot → bytes.
        told: What a row says of them: ``clip_begin``, the second of the video at which a cut clip begins (a key frame
            at or before the row's start), or ``frame_times``, the second from which each frame is shown.
    """

    clip: Clip
    files: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Media:
    """What is asked for.

    Attributes:
        kind: ``none``, ``clip`` or ``frames``.
        frames: Of each clip, those that a model of so many sees.
        folder: Where videos lie; None: where they lay when their rows were made.
    """

    kind: Literal["none", "clip", "frames"] = "none"
    frames: int = FRAMES
    folder: Path | None = None

    def of(self, video: str, clips: Sequence[Clip], known: Videos) -> Iterator[Shown]:
        """Clips of a video with what they show, in order; frames in order of the clips' ends.

        Raises:
            VideoError: the video is not there, is another one now, or cannot be read; after the last good clip.
        """
        if self.kind == "none":
            return map(Shown, clips)
        path = self._find(video, known)
        return self._cut(path, clips) if self.kind == "clip" else self._frames(VideoSource(video, path), clips)

    def _find(self, video: str, known: Videos) -> Place:
        path = known.path(video) if self.folder is None else _below(self.folder, video)
        if isinstance(path, Path) and not path.exists():
            raise VideoError(path, "does not exist", "check --videos" if self.folder else _GIVE)
        if path.is_dir() and self.kind == "clip":
            raise VideoError(path, "is a folder of chunks, and clips are cut out of one file", "give --media frames")
        expected = known.id(video)
        if expected is not None and content_id(path) != expected:
            raise VideoError(path, "is not the video that these rows are about", f"{_GIVE}, or narrate it again")
        return path

    def _cut(self, path: Place, clips: Sequence[Clip]) -> Iterator[Shown]:
        ending = ending_of(path)
        with open_file(path) as file:
            for clip in clips:
                whole = io.BytesIO()
                begin = copy_stretch(file, whole, ending, clip.start, clip.end)
                yield Shown(clip, {ending[1:]: whole.getvalue()}, {"clip_begin": round(begin, 6)})

    def _frames(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Shown]:
        for one in read_clips(source, clips, self.frames):
            files = {f"{number:02}.jpg": jpeg(frame) for number, frame in enumerate(one.frames)}
            yield Shown(one.clip, files, {"frame_times": [round(time, 6) for time in one.times]})


def _below(folder: Path, video: str) -> Path:
    """Where a video lies in a folder: under its name, or under what is left of it without its first folders."""
    parts = [part for part in PurePath(video).parts if part not in (PurePath(video).anchor, "..", ".")]
    places = [folder.joinpath(*parts[first:]) for first in range(len(parts))]
    return next((path for path in places if path.exists()), places[0] if places else folder)
