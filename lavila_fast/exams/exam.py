"""What a benchmark asks of a model: its clips, its texts, what is right, and the tables that answers are scored in.

A table has a row for each thing that is asked; all figures are computed from tables (`figures`), so that two runs can
be compared row by row, and a figure's interval comes from drawing rows again.

Shape suffixes: N clips, V views, D dimensions, M texts, C classes, Q questions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32
from lavila_fast.exams.footage import Library
from lavila_fast.exams.protocols import Protocol
from lavila_fast.train.datasets.samples import AnnotatedSet

Tables = dict[str, dict[str, Any]]
Embed = Callable[[Sequence[str]], F32]
E = TypeVar("E", bound="Exam")


@dataclass(frozen=True)
class Facts:
    """What was found out about the annotations.

    Attributes:
        files: Name of each file → what is known of it.
        notes: For the reader.
        odd: Why figures cannot be compared with published ones.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What a model gave for the clips.

    Attributes:
        values: (N, V, D) embeddings; of a classifier, logits of all heads one after the other; of a narrator, (N,) what
            it wrote, as JSON.
        heads: Classes of each head; empty for embeddings.
        embed: Embeds texts; None for a classifier.
    """

    values: NDArray[Any]
    heads: tuple[int, ...] = ()
    embed: Embed | None = None

    def logits(self) -> list[F32]:
        """Those of each head, (N, V, C)."""
        ends = np.cumsum(self.heads)[:-1]
        return list(np.split(self.values, ends, axis=2))

    def text(self, texts: Sequence[str]) -> F32:
        """Embeddings (M, D) of texts."""
        assert self.embed is not None
        return self.embed(texts)


@dataclass(frozen=True)
class Exam:
    """Base of exams.

    Attributes:
        clips: What is seen.
        ids: Of the clips.
        videos: File of each clip, or the folder of its chunks.
        library: Where they lie.
        facts: About the annotations.
    """

    clips: AnnotatedSet
    ids: tuple[str, ...]
    videos: tuple[str, ...]
    library: Library
    facts: Facts

    def of(self: E, places: Sequence[int]) -> E:
        """The exam about some of the clips, by their places in `ids`."""
        raise NotImplementedError

    def first(self: E, count: int) -> E:
        """The exam about the first so many clips."""
        return self.of(range(min(count, len(self.ids))))

    def check(self, heads: tuple[int, ...]) -> None:
        """See whether a classifier's heads fit; for other models and exams there is nothing to see.

        Raises:
            InputError: they have other numbers of classes.
        """

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """How well each thing that is asked was answered."""
        raise NotImplementedError

    def part(self, places: Sequence[int]) -> dict[str, Any]:
        """What every exam about some of the clips has."""
        ids, videos = (tuple(names[i] for i in places) for names in (self.ids, self.videos))
        return {"clips": Chosen(self.clips, tuple(places)), "ids": ids, "videos": videos}


@dataclass(frozen=True)
class Chosen:
    """Some items of a data set."""

    whole: AnnotatedSet
    places: tuple[int, ...]

    def __len__(self) -> int:
        """How many."""
        return len(self.places)

    def sample(self, index: int, random: Any = None) -> Any:
        """See `AnnotatedSet`."""
        return self.whole.sample(self.places[index], random)
