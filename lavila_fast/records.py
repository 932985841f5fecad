"""The values that travel the main road's ends: which piece of which video, and what was said or found out about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lavila_fast.arrays import F32


@dataclass(frozen=True, slots=True)
class Clip:
    """A piece of a video to narrate.

    Attributes:
        video: Name of the video as it appears in the output (the path as given, or the uid of a clip list).
        start: First second.
        end: Last second, `end > start`.
    """

    video: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Narration:
    """One sentence about one clip.

    Attributes:
        video: Name of the video.
        start: First second of the clip.
        end: Last second of the clip.
        sample: 0-based number of this sentence among the clip's.
        text: The sentence, e.g. ``#C C picks up the cup``.
        perplexity: LaViLa's score, exp of the mean entropy of the unwarped distributions up to the end token
            (sampling), or exp of minus the length-penalised beam score (beams). Lower is surer.
        logprob: Mean natural-log probability of the chosen tokens, end token included, under the unwarped
            distribution.
        damaged: Some of the clip's frames could not be read, and their neighbours stand in for them.
        frames: Second, on the video's clock, from which each frame that the model saw is shown; None if nobody asked.
        motion: By how much the picture changes (`archive.windows.still.motion`); None if nobody asked, or can say.
        skipped: Why the model did not see the clip, ``still``; then the text is empty. None: it did.
        windows: Of a segment, how many windows it was made of; None: it is a window.
        unsure: Of a segment, that it is less sure than was asked for.
    """

    video: str
    start: float
    end: float
    sample: int
    text: str
    perplexity: float
    logprob: float
    damaged: bool = False
    frames: tuple[float, ...] | None = None
    motion: float | None = None
    skipped: str | None = None
    windows: int | None = None
    unsure: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The row as it is written, keys in the order of the fields; those with a default only where it is not that."""
        values = asdict(self)
        for name in ("damaged", "frames", "motion", "skipped", "windows", "unsure"):
            if values[name] is None or values[name] is False:
                del values[name]
        return values


@dataclass(frozen=True, slots=True, eq=False)
class ClipEmbedding:
    """What a dual encoder makes of one clip.

    Attributes:
        video: Name of the video.
        start: First second of the clip.
        end: Last second of the clip.
        embedding: (E,) float32, of unit length; (0,) where the clip was skipped.
        damaged: As of `Narration`.
        frames: As of `Narration`; `motion` and `skipped` likewise.
    """

    video: str
    start: float
    end: float
    embedding: F32
    damaged: bool = False
    frames: tuple[float, ...] | None = None
    motion: float | None = None
    skipped: str | None = None

    @property
    def sample(self) -> int:
        """Its number among the rows of its clip, which has one."""
        return 0


@dataclass(frozen=True, slots=True, eq=False)
class ClipLogits:
    """What a classifier makes of one clip.

    Attributes:
        video: Name of the video.
        start: First second of the clip.
        end: Last second of the clip.
        logits: (classes,) float32 of each head.
        damaged: As of `Narration`.
        frames: As of `Narration`.
    """

    video: str
    start: float
    end: float
    logits: tuple[F32, ...]
    damaged: bool = False
    frames: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class ClipLabels:
    """The likeliest labels of one clip.

    Attributes:
        video: Name of the video.
        start: First second of the clip.
        end: Last second of the clip.
        labels: From the likeliest down; none where the clip was skipped.
        scores: Of each, its share of all labels, those that are not listed here included.
        head: 0-based number of the head that gave them, of a classifier that has several.
        damaged: As of `Narration`.
        frames: As of `Narration`; `motion` and `skipped` likewise.
    """

    video: str
    start: float
    end: float
    labels: tuple[str, ...]
    scores: tuple[float, ...]
    head: int = 0
    damaged: bool = False
    frames: tuple[float, ...] | None = None
    motion: float | None = None
    skipped: str | None = None

    @property
    def sample(self) -> int:
        """Its number among the rows of its clip."""
        return self.head


Row = Narration | ClipEmbedding | ClipLabels
"""What a journal holds of a clip: one, or as many as `sample` counts."""
