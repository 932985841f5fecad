"""Clips of EPIC-KITCHENS-100, cut out of whole videos here or by somebody before."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lavila_fast.exams.footage import Library
from lavila_fast.train.datasets.ek100 import Segment, segment_reads
from lavila_fast.train.datasets.samples import FrameRead, Generator, Sample, choose_frames


@dataclass(frozen=True)
class EK100Clips:
    """Rows of an annotation file.

    A video that is not there may lie in pieces, one a row: ``P01/P01_11_0.MP4`` or ``P01_11_0.MP4``, whole clips.

    Attributes:
        segments: Rows.
        library: Videos.
        frames: Of a clip.
    """

    segments: tuple[Segment, ...]
    library: Library
    frames: int

    def __len__(self) -> int:
        """How many."""
        return len(self.segments)

    def files(self) -> tuple[str, ...]:
        """Where each clip lies: its video, or its own file."""
        whole = {file: self.library.holds(file) for file in dict.fromkeys(one.file for one in self.segments)}
        return tuple(one.file if whole[one.file] else self._trimmed(one) or one.file for one in self.segments)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `train.datasets.samples.AnnotatedSet`."""
        one = self.segments[index]
        trimmed = None if self.library.holds(one.file) else self._trimmed(one)
        if trimmed is None:
            reads, black = segment_reads(one, self.library, self.frames, random)
            return Sample(reads, black, one.narration)
        ids = choose_frames(0, self.library(trimmed).frames, self.frames, random)
        return Sample((FrameRead(trimmed, tuple(ids)),), 0, one.narration)

    def _trimmed(self, one: Segment) -> str | None:
        name = f"{one.narration_id}.MP4"
        places = (str(Path(one.file).parent / name), name, str(Path(one.file).with_suffix("") / name))
        return next((place for place in places if self.library.holds(place)), None)
