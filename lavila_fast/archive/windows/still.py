"""Windows in which nothing moves: measured on the frames that the model is about to see, so at hardly any cost.

    motion(frames_3THW, mean, std)  # 0.8: by so many of 255 levels the liveliest parts of it change

The picture is divided into at most `GRID` x `GRID` blocks of at least `LEAST` pixels. Of each the mean luma is taken,
which averages noise away; each frame is brought to the brightness of the first one, for flicker of the light is no
motion. By how much a block still changes between its darkest and its brightest frame is its motion. That of a window is
the mean over its liveliest part, one in `LIVELIEST` blocks, so that a hand in a corner counts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lavila_fast.clip_model import shown_at
from lavila_fast.config import VisionConfig
from lavila_fast.errors import InputError
from lavila_fast.records import ClipEmbedding, ClipLabels, Narration, Row
from lavila_fast.video.reader import DecodedClip

OFF, SCORE, SKIP = "off", "score", "skip"
STILL = "still"
"""Why a clip was skipped."""

GRID, LEAST, LIVELIEST = 16, 8, 32
_GAINS = 0.8, 1.25  # of brightness, which light may have from one frame to another
_BRIEF = 0.5  # seconds of a window in which little moves whatever happens
_LULL = 32  # windows skipped one after the other, after which those that are being seen are waited for
THRESHOLD = 2.0
"""Levels of 255: see docs/SEGMENTS.md for what real and generated films have."""
_LUMA = (0.299, 0.587, 0.114)


def motion(frames: Any, mean: Sequence[float], std: Sequence[float]) -> float:
    """By how much the liveliest parts of a window change.

    Args:
        frames: (3, T, S, S) RGB as a model takes it, an array or a tensor wherever it lies.
        mean: Of each channel on 0..255, by which it was normalised.
        std: Likewise.

    Returns:
        Levels of 255, to the hundredth.
    """
    size = frames.shape[-1]
    grid = max(1, min(GRID, size // LEAST))
    block = size // grid
    whole = frames[..., : grid * block, : grid * block]
    blocks = whole.reshape(3, -1, grid, block, grid, block).mean((3, 5))
    levels = np.asarray(blocks.cpu() if hasattr(blocks, "cpu") else blocks, np.float64)
    luma: Any = sum(share * (one * s + m) for share, one, m, s in zip(_LUMA, levels, mean, std, strict=True))
    luma = luma.reshape(len(luma), -1)
    luma /= np.median((luma + 1) / (luma[0] + 1), axis=1, keepdims=True).clip(*_GAINS)
    change = luma - luma[0]
    change -= np.median(change, axis=1, keepdims=True)
    spans = np.sort(change.max(0) - change.min(0))
    return round(float(spans[-max(1, len(spans) // LIVELIEST) :].mean()), 2)


@dataclass(frozen=True)
class Still:
    """What is done about windows in which nothing moves.

    Attributes:
        skips: The model does not see them; else all rows just say how much moves.
        threshold: Motion under which they are still.
    """

    skips: bool
    threshold: float = THRESHOLD

    @classmethod
    def parse(cls, mode: str, threshold: float | None = None) -> Still | None:
        """From options; None: ``off``.

        Raises:
            InputError: they do not fit each other.
        """
        if threshold is not None and mode != SKIP:
            raise InputError("--still-threshold: of no use without --still skip; leave one of the two out")
        if threshold is not None and not (math.isfinite(threshold) and 0 < threshold <= 255):
            raise InputError(f"--still-threshold {threshold:g}: give levels, over 0 and at most 255")
        return None if mode == OFF else cls(mode == SKIP, THRESHOLD if threshold is None else threshold)

    @property
    def settings(self) -> str:
        """What must be the same for rows to stand in one output."""
        return f"{SKIP} under {self.threshold:g}" if self.skips else SCORE

    def refuses(self, motion: float | None) -> bool:
        """Whether the model is not to see a window of that motion; None: nobody can say."""
        return self.skips and motion is not None and motion < self.threshold


@dataclass(frozen=True)
class StillGate:
    """Stands before a model, and lets pass what moves.

    Attributes:
        still: What is done.
        look: Makes rows of clips, in the order they come.
        vision: How the model takes frames.
        kind: Name of the rows' kind, and how many a clip has.
        nearest: Seconds by which a frame may be off the wanted one.
        frame_times: Rows say when the frames are shown.
    """

    still: Still
    look: Callable[[Iterator[DecodedClip]], Iterator[list[Row]]]
    vision: VisionConfig
    kind: tuple[str, int]
    nearest: float = 0.0
    frame_times: bool = False

    def see(self, clips: Iterator[DecodedClip]) -> Iterator[list[Row]]:
        """Rows of each clip, in the order they come; clips are taken lazily."""
        for clip in clips:
            motion = self._motion(clip)
            if self.still.refuses(motion):
                yield self._skipped(clip, motion)
            else:
                yield from self._seen(clip, motion, clips)

    def _seen(self, first: DecodedClip, motion: float | None, clips: Iterator[DecodedClip]) -> Iterator[list[Row]]:
        """Rows of this clip and those after it, until many in a row are skipped, which are not to wait any longer."""
        waiting: deque[tuple[float | None, list[Row] | None]] = deque()

        def moving() -> Iterator[DecodedClip]:
            waiting.append((motion, None))
            yield first
            lull = 0
            for clip in clips:
                own = self._motion(clip)
                if self.still.refuses(own):
                    waiting.append((own, self._skipped(clip, own)))
                    lull += 1
                    if lull == _LULL:
                        return
                else:
                    waiting.append((own, None))
                    lull = 0
                    yield clip

        for rows in self.look(moving()):
            while (skipped := waiting[0][1]) is not None:
                waiting.popleft()
                yield skipped
            own = waiting.popleft()[0]
            yield [replace(row, motion=own) for row in rows]
        yield from (rows for _, rows in waiting if rows is not None)

    def _motion(self, clip: DecodedClip) -> float | None:
        """Of a clip; None where frames stand for others, or too little time passes to say that nothing happens."""
        if clip.damaged or clip.clip.end - clip.clip.start < _BRIEF or (self.nearest and len(set(clip.times)) < 2):
            return None
        return motion(clip.frames, self.vision.mean, self.vision.std)

    def _skipped(self, one: DecodedClip, motion: float | None) -> list[Row]:
        """The rows of a clip that the model does not see."""
        name, count = self.kind
        clip, told = one.clip, {"frames": shown_at(one) if self.frame_times else None}
        rest: dict[str, Any] = {**told, "motion": motion, "skipped": STILL}
        at = clip.video, clip.start, clip.end
        if name == "features":
            return [ClipEmbedding(*at, np.zeros(0, np.float32), **rest)]
        if name == "labels":
            return [ClipLabels(*at, (), (), head, **rest) for head in range(count)]
        return [Narration(*at, sample, "", math.nan, math.nan, **rest) for sample in range(count)]
