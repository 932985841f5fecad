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

    def to_dict(self) -> dict[str, Any]:
        """The row as it is written, keys in the order of the fields; `damaged` where it is, `frames` where known."""
        values = asdict(self)
        if not self.damaged:
            del values["damaged"]
        if self.frames is None:
            del values["frames"]
        return values


@dataclass(frozen=True, slots=True, eq=False)
class ClipEmbedding:
    """What a dual encoder makes of one clip.

    Attributes:
        video: Name of the video.
        start: First second of the clip.
        end: Last second of the clip.
        embedding: (E,) float32, of unit length.
        damaged: As of `Narration`.
        frames: As of `Narration`.
    """

    video: str
    start: float
    end: float
    embedding: F32
    damaged: bool = False
    frames: tuple[float, ...] | None = None


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
