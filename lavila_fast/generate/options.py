"""What is asked of the generator, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from lavila_fast.engines.sampling import Warp
from lavila_fast.errors import InputError

SAMPLING = Warp(temperature=0.7, top_p=0.95)
"""The original's."""
Owner = TypeVar("Owner")
"""Whose a clip is: whatever the caller wants to get back with its sentences."""


@dataclass(frozen=True)
class Options:
    """How to write.

    Attributes:
        samples: Sentences a clip. With beams: how many of the best are returned.
        warp: Temperature, top-k and top-p. The defaults are the original's.
        beams: 1 samples; more searches with this many beams.
        groups: 1 with beams is beam *sampling*; more is group beam search, which draws no random numbers.
        length_penalty: Exponent of the length by which a beam's log-probability is divided.
        seed: Of the random numbers.
        max_tokens: Begin token included; None takes the model's.
    """

    samples: int = 1
    warp: Warp = SAMPLING
    beams: int = 1
    groups: int = 1
    length_penalty: float = 1.0
    seed: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check what does not fit together."""
        if self.samples < 1:
            raise InputError(f"samples must be at least 1, not {self.samples}")
        if self.beams < 1 or self.groups < 1 or self.beams % self.groups:
            raise InputError(f"beams ({self.beams}) must be a positive multiple of groups ({self.groups})")
        if self.groups > 1 and self.samples > self.beams:
            raise InputError(f"group beam search returns at most its {self.beams} beams, not {self.samples} samples")
        if self.beams > 1 and self.warp.temperature == 0:
            raise InputError("beams need a temperature over 0; use 1 to leave the model's scores as they are")
        if self.max_tokens is not None and self.max_tokens < 2:
            raise InputError(f"max_tokens must be at least 2, not {self.max_tokens}")


@dataclass(frozen=True)
class Written:
    """One sentence as tokens.

    Attributes:
        ids: Begin token first, end token last where it was reached.
        perplexity: See `records.Narration`.
        logprob: Mean log-probability of the tokens after the first, unwarped.
        score: The beam's length-penalised score, or None when sampled.
    """

    ids: tuple[int, ...]
    perplexity: float
    logprob: float
    score: float | None = None
