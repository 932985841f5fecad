"""A list of one's own: clips of any videos with what is said or seen in them, as CSV or JSONL.

    video,start,end,text
    holiday/beach.mp4,12.5,14,#C C throws the ball

Columns: `video`, a file below the data's folder, with or without its suffix; `start` and `end`, seconds or hh:mm:ss,
may be empty or missing: from the beginning, to the end; `text`, in JSONL also several, beside it what `lavila-fast
rephrase` made of it (`paraphrases`), and/or `label`, the name of a class or its number; `split`, train, val or test.
Without `split`, a tenth of the videos (`HELD_OUT`), chosen by a hash of their names, is for validation, whichever other
videos there are.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, NamedTuple

from lavila_fast.errors import InputError, VideoError
from lavila_fast.train.datasets.samples import (
    Folder,
    FrameRead,
    Generator,
    Look,
    Opened,
    Place,
    Sample,
    choose_frames,
    draw_text,
)
from lavila_fast.video.clips import whole_file_indices
from lavila_fast.video.kinds import has_video_suffix
from lavila_fast.video.lists import NamedRow, field_of, named_rows, seconds_in
from lavila_fast.video.seconds import MOST_SECONDS, quoted

HELD_OUT = 0.1
SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MOST_CLASSES = 100_000
_NUMBER = re.compile("-?[0-9]{1,12}")


class ListedClip(NamedTuple):
    """A row.

    Attributes:
        where: File and line, for messages.
        file: Below the data's folder.
        start: Seconds; `end`: None for that of the file.
        texts: What was said of it; any of them.
        label: Its class as it is called, or None.
        split: For what it is.
    """

    where: str
    file: str
    start: float
    end: float | None
    texts: tuple[str, ...]
    label: str | None
    split: str


def read_listed(path: Path) -> list[ListedClip]:
    """All rows of a list.

    Raises:
        InputError: it is empty, or something in it cannot be used; names the line, and the way out.
    """
    rows = [_listed(row) for row in named_rows(path)]
    if not rows:
        raise InputError(f"{path}: holds no clips; below a line video,start,end,text write a line a clip")
    return rows


def _listed(row: NamedRow) -> ListedClip:
    file = _file(row)
    start, end = _times(row)
    label, texts = _label(row), _texts(row)
    if label is None and not texts:
        known = ", ".join(row.fields)
        raise InputError(f"{row.where}: neither a text nor a label; give a column text or label (there are {known})")
    return ListedClip(row.where, file, start, end, texts or (str(label),), label, _split(row, file))


def _file(row: NamedRow) -> str:
    video = field_of(row, "video")
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"{row.where}: no video; name its file in the column or field 'video'")
    path = PurePath(video.strip())
    if path.is_absolute() or ".." in path.parts:
        raise InputError(f"{row.where}: {quoted(video)} leads out of the data's folder; name videos below it")
    return path.as_posix() if has_video_suffix(path.name) else f"{path.as_posix()}.mp4"


def _times(row: NamedRow) -> tuple[float, float | None]:
    found: list[float | None] = []
    for name in ("start", "end"):
        value = field_of(row, name)
        if value is None or (isinstance(value, str) and not value.strip()):
            found.append(None)
            continue
        try:
            found.append(seconds_in(value, row.comma))
        except (ValueError, OverflowError):
            raise InputError(f"{row.where}: {name} {quoted(value)} is not seconds or hh:mm:ss, such as 75.5") from None
    start, end = found[0] or 0.0, found[1]
    if not 0 <= start < (MOST_SECONDS if end is None else end) <= MOST_SECONDS:
        told = f"start {start:g} and end {'of the file' if end is None else f'{end:g}'}"
        raise InputError(f"{row.where}: {told} make no clip; 0 <= start < end is needed")
    return start, end


def _texts(row: NamedRow) -> tuple[str, ...]:
    value = row.fields.get("text")
    texts = value if isinstance(value, list) else [] if value is None else [value]
    more = row.fields.get("paraphrases")
    texts = [*texts, *more] if isinstance(more, list) else texts
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{row.where}: text {quoted(value)} is no text; write a sentence, or in JSONL a list of them")
    return tuple(text.strip() for text in texts if text.strip())


def _label(row: NamedRow) -> str | None:
    value = row.fields.get("label")
    if isinstance(value, bool) or not isinstance(value, (str, int, type(None))):
        raise InputError(f"{row.where}: label {quoted(value)} is neither a name nor a whole number; write one")
    name = "" if value is None else str(value).strip()
    return (str(int(name)) if _NUMBER.fullmatch(name) else name) or None


def _split(row: NamedRow, file: str) -> str:
    value: Any = row.fields.get("split")
    if value is None or value == "":
        digest = hashlib.blake2b(file.encode("utf-8", "surrogateescape"), digest_size=8).digest()
        return "val" if int.from_bytes(digest, "big") < HELD_OUT * 2**64 else "train"
    split = SPLITS.get(str(value).strip().lower())
    if split is None:
        raise InputError(f"{row.where}: split {quoted(value)} is none; write train, val or test")
    return split


def classes_of(rows: Sequence[ListedClip]) -> tuple[str, ...]:
    """The classes of a list, training and validation together: their names, sorted.

    Where all labels are numbers they are the classes themselves, from 0 to the largest.

    Raises:
        InputError: a number is negative or too large.
    """
    names = {row.label for row in rows if row.label is not None}
    if not names or not all(map(_NUMBER.fullmatch, names)):
        return tuple(sorted(names))
    for row in rows:
        if row.label is not None and not 0 <= int(row.label) < _MOST_CLASSES:
            told = f"label {quoted(row.label)} is out of range"
            raise InputError(f"{row.where}: {told}; number classes from 0 to at most {_MOST_CLASSES - 1}")
    return tuple(map(str, range(max(map(int, names)) + 1)))


@dataclass(frozen=True)
class Listed:
    """Clips of whole files, at the files' own rates.

    Attributes:
        rows: Clips.
        look: See `Look`.
        frames: Of a clip.
        classes: Names of classes; see `classes_of`. Empty if there are no labels.
    """

    rows: Sequence[ListedClip]
    look: Look
    frames: int
    classes: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path, look: Look, frames: int, split: str = "train") -> Listed:
        """The clips of a list that are for training, or for another purpose.

        Args:
            path: The list, .csv or .jsonl.
            look: See `Look`.
            frames: Of a clip.
            split: ``train``, ``val`` or ``test``.

        Raises:
            InputError: something in the list cannot be used, or there are no such clips, or only some have labels.
        """
        rows = read_listed(path)
        mine = [row for row in rows if row.split == SPLITS.get(split)]
        if not mine:
            told = f"none of its {len(rows)} clips is for {split}"
            raise InputError(f"{path}: {told}; write {split} into a column split, or list clips of more videos")
        classes = classes_of(rows)
        lacking = next((row for row in rows if row.label is None), None)
        if classes and lacking:
            raise InputError(f"{lacking.where}: no label, where other lines have one; give all clips one, or none")
        return cls(mine, look, frames, classes)

    def __len__(self) -> int:
        """How many."""
        return len(self.rows)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`."""
        row = self.rows[index]
        file, length, fps = self._footage(row.file)
        end = length / fps if row.end is None else row.end
        if min(end, length / fps) <= row.start:
            what = f"ends at {length / fps:.3f} s, before the clip of {row.where} begins"
            raise VideoError(file, what, "mend that line or the video")

        def choose(first: int, stop: int, count: int) -> list[int]:
            return choose_frames(first, stop, count, random)

        ids = whole_file_indices(length, fps, row.start, end, self.frames, choose=choose)
        label = self.classes.index(row.label) if row.label is not None else None
        return Sample((FrameRead(file, tuple(ids)),), text=draw_text(row.texts, random), label=label)

    def _footage(self, file: str) -> tuple[str, int, float]:
        """The file of a video, which `lavila-fast prepare` may have made an MP4, its frames and its rate."""
        try:
            return file, *self.look(file)
        except VideoError:
            prepared = PurePath(file).with_suffix(".mp4").as_posix()
            if prepared == file:
                raise
            return prepared, *self.look(prepared)

    def missing(self) -> Iterator[tuple[ListedClip, VideoError]]:
        """The first clip of each video that cannot be read, and why; every file is looked at."""
        first = {row.file: row for row in reversed(self.rows)}
        for file in sorted(first):
            try:
                self._footage(file)
            except VideoError as error:
                yield first[file], error

    def check(self) -> None:
        """Look at every file.

        Raises:
            InputError: one cannot be read; names the line of its first clip.
        """
        for row, error in self.missing():
            raise InputError(f"{row.where}: {error}") from error


def open_listed(place: Place, labels: bool = False) -> Opened:
    """A list, and videos beside it or in the folder that `place` names.

    Args:
        place: Its `data` is the list.
        labels: Whether classes are learnt; else texts.

    Raises:
        InputError: see `Listed.read`; or there are no labels.
    """
    if not place.data.is_file():
        raise InputError(f"{place.data}: no such list; give a CSV or JSONL of video, start, end, text or label")
    videos = place.folder(".") if place.videos else place.data.parent
    look = Folder(videos)
    train = Listed.read(place.data, look, place.frames)
    if labels and not train.classes:
        raise InputError(f"{place.data}: has no labels; write a column label with the name of each clip's class")
    held = [row for row in read_listed(place.data) if row.split == "val"]
    validation = Listed(held, look, place.frames, train.classes) if held else None
    return Opened(train, videos, validation, (len(train.classes),) if train.classes else (), train.classes)
