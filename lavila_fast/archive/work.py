"""What is done with the clips of a run: they are narrated, embedded, or labelled (see `labelling`).

A `Work` says what its rows are, and makes them with the model that a run is given; a run asks nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lavila_fast.archive.journals.kinds import NARRATIONS, Kind, features
from lavila_fast.errors import NotFiniteError
from lavila_fast.generate.options import Options
from lavila_fast.records import Row
from lavila_fast.video.reader import DecodedClip

if TYPE_CHECKING:
    from lavila_fast.dual_encoder import DualEncoder
    from lavila_fast.narrator import Narrator


class Work(Protocol):
    """What is done with clips."""

    @property
    def kind(self) -> Kind:
        """Of its rows."""
        ...

    @property
    def samples(self) -> int:
        """Rows a clip."""
        ...

    @property
    def options(self) -> Any:
        """A dataclass of all that rows depend on besides clip and model, in values that JSON has."""
        ...

    def see(self, model: Any, clips: Iterator[DecodedClip], batch: int, frame_times: bool) -> Iterator[list[Row]]:
        """Make the rows of each clip, in the order the clips come.

        Args:
            model: A `ClipModel`.
            clips: Taken lazily.
            batch: Clips in flight. It changes speed, never a row.
            frame_times: Rows say when the frames that were seen are shown.
        """
        ...


@dataclass(frozen=True)
class Narrating:
    """Sentences are written, with these options."""

    options: Options
    kind: Kind = NARRATIONS

    @property
    def samples(self) -> int:
        """See `Work`."""
        return self.options.samples

    def see(self, model: Narrator, clips: Iterator[DecodedClip], batch: int, frame_times: bool) -> Iterator[list[Row]]:
        """See `Work`."""
        for rows in model.narrate_clips(clips, options=self.options, batch=batch, frame_times=frame_times):
            yield list(rows)


@dataclass(frozen=True)
class EmbedOptions:
    """What embeddings depend on besides clip and model.

    Attributes:
        dim: E, the numbers of one; None before the model is open.
        task: Tells these settings from those of other works.
        dtype: Of the numbers in files.
    """

    dim: int | None = None
    task: str = "embed"
    dtype: str = "float16"


@dataclass(frozen=True)
class Embedding:
    """Clips become vectors of a dual encoder."""

    options: EmbedOptions = EmbedOptions()
    samples: int = 1

    @classmethod
    def of(cls, model: DualEncoder) -> Embedding:
        """By this model."""
        return cls(EmbedOptions(model.dim))

    @property
    def kind(self) -> Kind:
        """See `Work`."""
        return features(self.options.dim)

    def see(
        self, model: DualEncoder, clips: Iterator[DecodedClip], batch: int, frame_times: bool
    ) -> Iterator[list[Row]]:
        """See `Work`.

        Raises:
            NotFiniteError: an embedding is no numbers.
        """
        for row in model.embed_clips(clips, batch, frame_times=frame_times):
            if not np.isfinite(row.embedding).all():
                raise NotFiniteError(f"{row.video}, {row.start:g} to {row.end:g} s", "the numbers of its embedding")
            yield [row]
