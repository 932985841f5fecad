"""What a data set says of one item: which frames of which files, and what belongs to them. No file is decoded here.

A training item draws each frame from its segment, an evaluation item takes the segment's middle. A random generator of
the item's own decides, so that an item is the same whoever asks for it and however often.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from lavila_fast.errors import InputError, VideoError
from lavila_fast.video.clips import frame_indices, segment_borders
from lavila_fast.video.kept import kept_files

if TYPE_CHECKING:
    from lavila_fast.text.tokenizer import Tokenizer
    from lavila_fast.train.batch import TrainingBatch

Generator = np.random.Generator


class Footage(NamedTuple):
    """A file's number of frames, and how many it shows a second."""

    frames: int
    fps: float


Look = Callable[[str], Footage]
"""The footage of a file by its name below the data's folder; VideoError if it cannot be read."""


@dataclass(frozen=True, slots=True)
class FrameRead:
    """Frames of one file.

    Attributes:
        file: Its name below the data's folder.
        frames: Which, as they come in the clip; they may repeat.
    """

    file: str
    frames: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sample:
    """One item.

    Attributes:
        reads: Frames in the order of the clip.
        black: Frames that follow those of each view, or all of the clip, and are black.
        views: Of how many views, of as many frames each, the clip is made.
        text: What belongs to it.
        label: Its class; its class of each head; or, as numbers with a point, 0 and 1 for each class.
        relevancy: How well text and clip fit.
        human: Whether a person wrote the text.
    """

    reads: tuple[FrameRead, ...]
    black: int = 0
    text: str = ""
    label: int | tuple[int, ...] | tuple[float, ...] | None = None
    relevancy: float = 0.0
    human: bool = True
    views: int = 1


class AnnotatedSet(Protocol):
    """A data set: its items by number."""

    def __len__(self) -> int:
        """How many."""
        ...

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """An item; drawn by `random` for training, in the middle without.

        Raises:
            VideoError: a file of it cannot be read.
        """
        ...


class Source(Protocol):
    """Batches of a run, and what is said of them.

    Attributes:
        missing: What could not be read so far.
    """

    missing: list[str]

    @property
    def epoch(self) -> int:
        """Batches of an epoch."""
        ...

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """One process's share of the batch with this number, whatever came before."""
        ...

    def names(self, step: int, rank: int = 0, world: int = 1) -> list[str]:
        """Where the clips of such a share come from, to read."""
        ...


class OwnBatches(ABC):
    """A data set that makes its batches itself, because its clips are no videos to decode."""

    @abstractmethod
    def __len__(self) -> int:
        """How many clips."""

    @abstractmethod
    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """What is said of a clip; it reads nothing."""

    @abstractmethod
    def prepare(self) -> None:
        """Do what takes long before the first batch; called before processes wait for one another."""

    @abstractmethod
    def batches(self, tokenizer: Tokenizer | None, size: int, seed: int) -> Source:
        """Batches of `size` clips, over all processes, to learn from."""

    @abstractmethod
    def items(self, tokenizer: Tokenizer | None) -> Any:
        """Items as `items.Items` has them, seen as in tests."""


def choose_frames(first: int, stop: float, count: int, random: Generator | None) -> list[int]:
    """A frame of each of `count` segments of ``[first, stop)``: its middle, or any, its end included."""
    if random is None:
        return frame_indices(first, stop, count)
    borders = segment_borders(first, stop, count)
    last = np.maximum(np.minimum(borders[1:], stop), borders[:-1])
    return [int(i) for i in random.integers(borders[:-1], last, endpoint=True)]


def draw_text(texts: Sequence[str], random: Generator | None) -> str:
    """One of several texts, any of them alike; the first without a generator."""
    return texts[0 if random is None else int(random.integers(len(texts)))]


@dataclass(frozen=True)
class Place:
    """Where a data set lies, and what is wanted of it.

    Attributes:
        data: Its folder, or its list.
        videos: Folder of its videos, where it is another one than usual.
        frames: Of a clip.
        workers: Processes that may make what is missing, where a data set makes something.
    """

    data: Path
    frames: int
    videos: Path | None = None
    workers: int = 1

    def file(self, *names: str) -> Path:
        """A file below `data`.

        Raises:
            InputError: it is not there.
        """
        path = self.data.joinpath(*names)
        if not path.is_file():
            raise InputError(f"{path}: no such file; --data is to be the data set's folder, or see --set data.…")
        return path

    def folder(self, usual: str) -> Path:
        """The folder of the videos.

        Raises:
            InputError: it is not there.
        """
        path = self.videos or self.data / usual
        if not path.is_dir():
            raise InputError(f"{path}: no such folder of videos; give it with --videos")
        return path


def lines_of(path: Path) -> list[str]:
    """The lines of an annotation file.

    Raises:
        InputError: it is not UTF-8.
        OSError: as the system gives it.
    """
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"{path}: not UTF-8 text; fetch the file again") from None


def filled_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Its lines that are not blank, without blanks at their ends, and the number of each; errors as for `lines_of`."""
    return ((number, line.strip()) for number, line in enumerate(lines_of(path), 1) if line.strip())


def leads_out(name: str) -> bool:
    """Whether a video's name leads out of the data's folder, or is no name at all."""
    path = PurePath(name)
    return not name.strip() or path.is_absolute() or ".." in path.parts or "\0" in name


class Opened(NamedTuple):
    """A data set, ready for training.

    Attributes:
        train: What is learnt from.
        videos: Folder of its files.
        validation: What is looked at now and then; None: nothing.
        classes: How many classes each head has; none without labels.
        names: Of the classes of the last head, where they are known.
        vocabularies: Kind of tokenizer → file, where the data have vocabularies of their own.
    """

    train: AnnotatedSet
    videos: Path
    validation: AnnotatedSet | None = None
    classes: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    vocabularies: Mapping[str, Path] = MappingProxyType({})


class Folder:
    """Looks at the files of a data folder, each once."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Footage] = {}

    def __call__(self, file: str) -> Footage:
        """See `Look`."""
        if file not in self._known:
            path = self.root / file
            if not path.is_file():
                raise VideoError(path, "does not exist", "check --data, and that all videos were fetched")
            info = kept_files().info(path)  # which who reads the frames finds open
            self._known[file] = Footage(info.frames, info.fps)
        return self._known[file]
