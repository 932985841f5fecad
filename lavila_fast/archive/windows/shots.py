"""Windows that do not run over cuts: each shot is divided into equal windows of about a length.

    shots = Shots(2.0, read, Path("narrations.jsonl.shots.jsonl"))
    for start, end in shots.windows(source, extent, content): ...

Cuts are found by PySceneDetect's adaptive detector, on all frames, small, as our own reader decodes them: so in a child
where others are, and of chunk folders, too. A frame after which a shot begins is the first of its window. What was
found is kept beside a run by the content of the videos, and found again, the same, where that is lost.
"""

from __future__ import annotations

import itertools
import json
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import MissingExtraError, VideoError
from lavila_fast.files import storage_error
from lavila_fast.records import Clip
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import Extent, VideoSource, chunk_files
from lavila_fast.video.transforms import FrameTransform

SMALL = FrameTransform(64, (0.0,) * 3, (1.0,) * 3)
FRAMES = 16  # that are read together
_FASTEST = 60.0  # frames a second that are looked at
_SHORTEST = 0.5  # seconds of a shot
_RATIO = 3.0  # by how much a cut stands out of the frames around it; PySceneDetect's own
_STRETCH = 1024  # pieces that are asked for together
_REMEMBERED = 4096  # videos
ENDING = ".shots.jsonl"

Read = Callable[[VideoSource, Sequence[Clip]], Iterator[DecodedClip]]
"""Decodes pieces of a video by `SMALL`, `FRAMES` of each."""


def require_shots() -> None:
    """See that cuts can be found.

    Raises:
        MissingExtraError: they cannot.
    """
    try:
        import scenedetect  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("scenedetect-headless", "shots") from error


def describe_shots(clip_seconds: float) -> str:
    """How these windows are told among the settings of a run."""
    return f"about {clip_seconds:g} s within shots (adaptive {_RATIO:g}, at least {_SHORTEST:g} s)"


def divided(begin: float, end: float, cuts: Sequence[float], clip_seconds: float) -> Iterator[tuple[float, float]]:
    """Windows within shots, in milliseconds as all windows are, so that they can serve as keys."""
    borders = [begin, *(cut for cut in cuts if begin < cut < end), end]
    for first, last in itertools.pairwise(borders):
        count = max(1, round((last - first) / clip_seconds))
        times = [round(first + (last - first) * i / count, 3) for i in range(count + 1)]
        yield from (pair for pair in itertools.pairwise(times) if pair[1] > pair[0])


@dataclass
class Shots:
    """The cuts of videos.

    Attributes:
        clip_seconds: About the length of a window.
        read: See `Read`.
        path: Where they are kept; None: nowhere.
    """

    clip_seconds: float
    read: Read
    path: Path | None = None
    _places: dict[str, int] = field(default_factory=dict)
    _recent: ClassVar[OrderedDict[str, array[float]]] = OrderedDict()  # shared by all runs of a process

    def __post_init__(self) -> None:
        """Find out which videos are known."""
        if self.path is None or not self.path.is_file():
            return
        with storage_error(self.path), self.path.open("rb") as file:
            at = 0
            for line in file:
                if (known := _parse(line)) is not None:
                    self._places[known[0]] = at
                at += len(line)

    def windows(self, source: VideoSource, seen: Extent, content: str = "") -> Iterator[tuple[float, float]]:
        """Begins and ends of the windows of a video that lasts like this.

        Args:
            source: The video.
            seen: Where it begins and ends.
            content: Its identity, by which its cuts are remembered; "": they are not kept beyond this process.

        Raises:
            VideoError: it cannot be read.
        """
        key = content or f"path {source.path}"
        cuts = self._recent.get(key)
        if cuts is None:
            cuts = self._kept(content)
        if cuts is None:
            cuts, whole = find_cuts(source, seen, self.read)
            if whole and content:
                self._keep(content, cuts)
        self._recent[key] = cuts
        while len(self._recent) > _REMEMBERED:
            self._recent.popitem(last=False)
        return divided(seen.begin, round(seen.end, 3), cuts, self.clip_seconds)

    def _kept(self, content: str) -> array[float] | None:
        if self.path is None or content not in self._places:
            return None
        with storage_error(self.path), self.path.open("rb") as file:
            file.seek(self._places[content])
            known = _parse(file.readline())
        return known[1] if known and known[0] == content else None

    def _keep(self, content: str, cuts: array[float]) -> None:
        if self.path is None:
            return
        line = json.dumps({"id": content, "cuts": cuts.tolist()}).encode() + b"\n"
        with storage_error(self.path), self.path.open("a+b") as file:
            file.seek(0, 2)
            if (at := file.tell()) and (file.seek(at - 1), file.read(1))[1] != b"\n":  # torn by a crash
                line, at = b"\n" + line, at + 1
            file.write(line)
        self._places[content] = at


def _parse(line: bytes) -> tuple[str, array[float]] | None:
    try:
        values = json.loads(line)
        return str(values["id"]), array("d", (float(cut) for cut in values["cuts"]))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def find_cuts(source: VideoSource, seen: Extent, read: Read) -> tuple[array[float], bool]:
    """Seconds at which shots begin, but the first, and whether all of the video could be read.

    Raises:
        VideoError: nothing of it could be.
    """
    from scenedetect import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    rate = min(_rate(source), _FASTEST)
    detector = AdaptiveDetector(adaptive_threshold=_RATIO, min_scene_len=max(1, round(_SHORTEST * rate)))
    cuts, times, count = array("d"), dict[int, float](), 0
    try:
        for second, picture in _frames(source, seen, rate, read):
            times[count] = second
            times.pop(count - 100, None)
            for cut in detector.process_frame(FrameTimecode(count, fps=rate), picture):
                cuts.append(round(times[cut.frame_num], 3))
            count += 1
    except VideoError:
        if not count:
            raise
        return cuts, False
    return cuts, True


def _rate(source: VideoSource) -> float:
    first = next(iter(chunk_files(source.path).values())) if source.is_chunked else source.path
    info = source.info(first)
    return float(info.rate or info.fps)


def _frames(source: VideoSource, seen: Extent, rate: float, read: Read) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    """All frames, each once, (64, 64, 3) BGR, and the second from which each is shown."""
    length, latest, trouble = FRAMES / rate, -1.0, None
    count = max(1, int(np.ceil((seen.end - seen.begin) / length)))
    for first in range(0, count, _STRETCH):
        starts = [seen.begin + i * length for i in range(first, min(first + _STRETCH, count))]
        pieces = [Clip(source.name, start, min(start + length, seen.end)) for start in starts if start < seen.end]
        try:
            for piece in read(source, pieces):
                frames: Any = np.rint(piece.frames[::-1]).clip(0, 255).astype(np.uint8)
                for second, picture in zip(piece.times, frames.transpose(1, 2, 3, 0), strict=True):
                    if second > latest:
                        latest = second
                        yield second, np.ascontiguousarray(picture)
        except VideoError as error:
            trouble = error
    if trouble is not None:
        raise trouble
