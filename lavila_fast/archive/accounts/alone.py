"""How fast the engine is alone, measured at the end of the run whose efficiency is in question, on clips of that run.

    alone = Alone.of(see, model, batch)
    alone.keep(clip)                                 # each clip that is decoded: some stay, drawn evenly over the run
    alone.measure(run_seconds, engine_seconds)       # when nothing decodes any more

The kept clips go round and round through the same work: first until a batch is full, and then the time of the next
ones counts, so that neither the beginning nor the end of a batch does, as in a long run. Sentences are as long as those
of the run are on average, for the clips are drawn from all of it. What that may cost is bounded: the fiftieth part of
the run, or half a second.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import cycle, islice
from random import Random
from typing import TYPE_CHECKING, Any

from lavila_fast.records import Row
from lavila_fast.video.reader import DecodedClip

if TYPE_CHECKING:
    pass

See = Callable[[Iterator[DecodedClip]], Iterator[list[Row]]]
_SHARE, _FREE = 0.02, 0.5  # of the run's seconds, and seconds that nobody minds
_MOST_BYTES = 1 << 28  # of kept clips
_ROUNDS = 2  # batches whose time counts


@dataclass(frozen=True)
class Bare:
    """What the engine does alone.

    Attributes:
        clips_per_second: With all that the run had the model do.
        clips: That were timed.
        encode_share: Of a narrator's time, for seeing clips; the rest is for writing. None where that is not known.
    """

    clips_per_second: float
    clips: int
    encode_share: float | None = None


class Alone:
    """Some clips of a run, and what takes them."""

    def __init__(self, see: See, batch: int, encoder: _Timed | None = None) -> None:
        """`see` makes rows of clips, `batch` of them at a time; `encoder` knows how long it took to see them."""
        self._see, self._batch, self._encoder = see, batch, encoder
        self._kept: list[DecodedClip] = []
        self._seen, self._random = 0, Random(0)

    @classmethod
    def of(cls, see: Callable[[Any], See], model: Any, batch: int) -> Alone:
        """For what `see` says is done by this model."""
        runtime = getattr(model, "runtime", None)
        writer, timed = getattr(runtime, "writer", None), None
        if writer == "ahead":
            batch = max(batch, runtime.slots)  # type: ignore[union-attr]
        elif writer == "steps":
            timed = _Timed(runtime)
            model = replace(model, runtime=timed)
        return cls(see(model), batch, timed)

    def keep(self, clip: DecodedClip) -> None:
        """See a clip of the run: each has the same chance to be among those that stay."""
        self._seen += 1
        size = max(int(getattr(clip.frames, "nbytes", 0)), 1)
        if len(self._kept) < max(min(_ROUNDS * self._batch, _MOST_BYTES // size), 1):
            self._kept.append(clip)
        elif (place := self._random.randrange(self._seen)) < len(self._kept):
            self._kept[place] = clip

    def measure(
        self, run_seconds: float, engine_seconds: float, more: Callable[[DecodedClip], object] | None = None
    ) -> Bare | None:
        """None where the run was too short to tell, or for measuring to be worth its time.

        Args:
            run_seconds: That the run took.
            engine_seconds: Of those, with the model at work.
            more: What the run did with each clip besides.
        """
        count = (1 + _ROUNDS) * self._batch
        if self._seen < count or engine_seconds / self._seen * count > max(_SHARE * run_seconds, _FREE):
            return None
        clips = cycle(self._kept)
        rows = self._see(clips)
        _take(rows, self._batch)
        encoding, began = self._encoder.seconds if self._encoder else 0.0, time.perf_counter()
        done = _take(rows, count - self._batch)
        if more is not None:
            for clip in islice(clips, done):
                more(clip)
        took = time.perf_counter() - began
        share = (self._encoder.seconds - encoding) / took if self._encoder and took else None
        return Bare(done / took, done, share) if took else None


def _take(rows: Iterator[list[Row]], count: int) -> int:
    return sum(1 for _ in islice(rows, count))


class _Timed:
    """An engine of narrators that counts the seconds for which it has seen clips."""

    def __init__(self, runtime: Any) -> None:
        self._runtime, self.seconds = runtime, 0.0

    def encode(self, video: Any) -> Any:
        """See `NarratorRuntime`."""
        began = time.perf_counter()
        try:
            return self._runtime.encode(video)
        finally:
            self.seconds += time.perf_counter() - began

    def __getattr__(self, name: str) -> Any:
        """Everything else is the engine's own."""
        return getattr(self._runtime, name)
