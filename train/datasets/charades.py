"""Charades-Ego: videos with several actions for tests, trimmed actions for training, as the original reads them."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.errors import InputError, VideoError
from lavila_fast.train.datasets.ego4d import Narrated, read_narrations
from lavila_fast.train.datasets.samples import (
    Folder,
    FrameRead,
    Generator,
    Look,
    Opened,
    Place,
    Sample,
    choose_frames,
    filled_lines,
    leads_out,
    lines_of,
)
from lavila_fast.train.datasets.windows import window_frames
from lavila_fast.video.clips import whole_file_indices
from lavila_fast.video.seconds import MOST_SECONDS


class Classes(NamedTuple):
    """Codes such as ``c000`` → class, and the classes' names: up to the first comma."""

    codes: dict[str, int]
    names: tuple[str, ...]


def read_classes(path: Path) -> Classes:
    """Of ``Charades_v1_classes.txt``.

    Raises:
        InputError: a line has no code, or one that another line has.
        OSError: as the system gives it.
    """
    codes: dict[str, int] = {}
    names: list[str] = []
    for number, line in filled_lines(path):
        code, _, name = line.partition(" ")
        if not name:
            raise InputError(f"{path}: line {number}: not a code and the name of a class")
        if code in codes:
            raise InputError(f"{path}: line {number}: {code} is the code of a class above; fetch the file again")
        codes[code] = len(names)
        names.append(name.partition(",")[0].strip())
    return Classes(codes, tuple(names))


class Labelled(NamedTuple):
    """A video's file, 1 for each class that is shown in it, and the seconds that it lasts by its annotation."""

    file: str
    classes: tuple[float, ...]
    seconds: float


def read_videos(path: Path, classes: Classes) -> list[Labelled]:
    """Of ``CharadesEgo_v1_test_only1st.csv``; videos without an action stay.

    Raises:
        InputError: a column is missing, or an action is unknown; names the line.
        OSError: as the system gives it.
    """
    reader = csv.DictReader(lines_of(path))
    try:
        for name in ("id", "actions", "length"):
            if name not in (reader.fieldnames or ()):
                raise InputError(f"{path}: has no column {name}; give the annotations of Charades-Ego")
        return [_video(row, classes, f"{path}: line {reader.line_num}") for row in reader]
    except csv.Error as error:
        raise InputError(f"{path}: no CSV ({error}); fetch the file again") from error


def _video(row: Mapping[str, Any], classes: Classes, where: str) -> Labelled:
    shown = [0.0] * len(classes.names)
    if row["actions"] is None or row["length"] is None or leads_out(row["id"] or ""):
        raise InputError(f"{where}: ends too early, or names no video; fetch it again")
    for action in filter(str.strip, row["actions"].split(";")):
        code = action.split()[0]
        if code not in classes.codes:
            raise InputError(f"{where}: {code} is no class of Charades_v1_classes.txt")
        shown[classes.codes[code]] = 1.0
    try:
        seconds = float(row["length"])
        if not 0 < seconds <= MOST_SECONDS:  # nor NaN
            raise ValueError
    except ValueError:
        raise InputError(f"{where}: length {row['length']!r} is not the seconds that a video lasts") from None
    return Labelled(f"{row['id']}.mp4", tuple(shown), seconds)


@dataclass(frozen=True)
class CharadesVideos:
    """Whole videos and all their actions; a video is as long as its annotation says, not quite a number of frames.

    Attributes:
        videos: Videos.
        look: See `Look`.
        frames: Of a view.
        stride: From one of its frames to the next; of no account where `sparse`.
        views: How many.
        sparse: Frames of all views come from equal segments of the whole video; else views are windows.
    """

    videos: Sequence[Labelled]
    look: Look
    frames: int
    stride: int = 4
    views: int = 1
    sparse: bool = True

    def __len__(self) -> int:
        """How many."""
        return len(self.videos)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`."""
        one = self.videos[index]
        there, fps = self.look(one.file)
        length = one.seconds * fps
        if self.sparse:
            ids, black, views = choose_frames(0, length, self.frames * self.views, random), 0, self.views
        else:
            views = 1 if random else self.views
            ids, black = window_frames(length, self.frames, self.stride, views, random)
        kept = tuple(min(i, there - 1) for i in ids)
        return Sample((FrameRead(one.file, kept),), black, label=one.classes, views=views)


@dataclass(frozen=True)
class TrimmedVideos:
    """Rows (video, start, end, text) of whole files ``VIDEO.mp4``, at their own rates."""

    rows: Sequence[Narrated]
    look: Look
    frames: int

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`."""
        row = self.rows[index]
        file = f"{row.video}.mp4"
        length, fps = self.look(file)

        def choose(first: int, stop: int, count: int) -> list[int]:
            return choose_frames(first, stop, count, random)

        if min(row.end, length / fps) <= row.start:
            what = f"ends at {length / fps:.3f} s, before a clip from {row.start:g} to {row.end:g} s begins"
            raise VideoError(file, what, "mend the annotation or the video")
        ids = whole_file_indices(length, fps, row.start, row.end, self.frames, choose=choose)
        return Sample((FrameRead(file, tuple(ids)),), text=row.texts[0])


def open_charades(
    place: Place,
    train: str = "CharadesEgo/metadata_filtered_train.pkl",
    validation: str = "CharadesEgo/metadata_filtered_val.pkl",
) -> Opened:
    """Charades-Ego's trimmed actions as they lie in a folder, and videos in ``CharadesEgo_v1_480``."""
    return _trimmed(place, place.folder("CharadesEgo_v1_480"), train, validation)


def open_htm_aa(place: Place, train: str = "htm_aa_train.pkl", validation: str = "") -> Opened:
    """HTM-AA as rows (video, start, end, text) of whole files in ``videos``."""
    return _trimmed(place, place.folder("videos"), train, validation)


def _trimmed(place: Place, videos: Path, train: str, validation: str) -> Opened:
    look = Folder(videos)
    learnt = TrimmedVideos(read_narrations(place.file(train)), look, place.frames)
    held = TrimmedVideos(read_narrations(place.file(validation)), look, place.frames) if validation else None
    return Opened(learnt, videos, held)
