"""Sentences of a length that is decided beforehand, and where their time goes: two coats a runtime can wear.

With random weights a narrator never ends a sentence, and real ones end after a dozen tokens. `Controlled` leaves all of
the work as it is (the token is chosen from all logits) and then replaces the choice by the end token, or by another
where the end token came too early. Everything behind it, continuous batching above all, runs as in production.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import I64
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.protocol import ClipContext, NarratorRuntime, WriterKind
from lavila_fast.engines.sampling import Chosen, Warp
from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options
from lavila_fast.generate.scheduler import EncodedClip, write_samples

SHORTEST = 5


def draw_lengths(count: int, mean: int, longest: int, seed: int = 0) -> I64:
    """Tokens that each of `count` sentences takes, end token included, begin token not; their mean is exactly `mean`.

    None is below 5 (or the mean), the rest is geometric: many short ones and a few long ones, as narrations are, which
    is harder for a batch than equal lengths. Always the same for the same arguments.

    Args:
        count: Sentences.
        mean: At most `longest`; equal to it, all have that length.
        longest: The model's limit.
        seed: Of their order.

    Raises:
        InputError: `mean` is not between 1 and `longest`.
    """
    if not 1 <= mean <= longest:
        raise InputError(f"tokens must be between 1 and the model's {longest}, not {mean}")
    least = min(SHORTEST, mean)
    shares = (np.arange(count) + 0.5) / count
    extra = mean - least
    tail = np.floor(np.log1p(-shares) / np.log1p(-1 / (extra + 1))) if extra else np.zeros(count)
    lengths = np.minimum(least + tail, longest).astype(np.int64)
    lengths = np.random.default_rng(seed).permutation(lengths)
    while (missing := mean * count - int(lengths.sum())) != 0:
        able = np.flatnonzero(lengths < longest if missing > 0 else lengths > least)[: abs(missing)]
        lengths[able] += np.sign(missing)
    return lengths


@dataclass
class _State:
    """The engine's own state, and of each row how many tokens it has chosen and how many it shall."""

    inner: Any
    age: I64 = field(default_factory=lambda: np.empty(0, np.int64))
    goal: I64 = field(default_factory=lambda: np.empty(0, np.int64))


class Controlled:
    """A `NarratorRuntime` whose sentences have the lengths it was told, in the order in which clips join."""

    def __init__(self, runtime: NarratorRuntime, lengths: Iterable[int]) -> None:
        self.runtime, self.lengths = runtime, iter(lengths)
        self.config: NarratorConfig = runtime.config
        self.device, self.identity = runtime.device, runtime.identity
        self.writer: WriterKind = "steps"  # lengths are kept step by step

    def encode(self, video: NDArray[np.float32]) -> ClipContext:
        """See `NarratorRuntime`, here and below."""
        return self.runtime.encode(video)

    def merge(self, contexts: Sequence[Any]) -> ClipContext:
        """As the engine does."""
        return self.runtime.merge(contexts)

    def begin(self) -> _State:
        """A state with no rows."""
        return _State(self.runtime.begin())

    def join(self, state: _State, context: ClipContext, samples: int) -> None:
        """Join, and give every new row its length."""
        self.runtime.join(state.inner, context, samples)
        new = np.array([next(self.lengths) for _ in range(len(context) * samples)])
        state.age, state.goal = np.append(state.age, np.zeros_like(new)), np.append(state.goal, new)

    def sample(self, state: _State, warp: Warp, u: NDArray[np.float64]) -> Chosen:
        """Choose as ever; then the end token exactly where it is due."""
        chosen = self.runtime.sample(state.inner, warp, u)
        state.age = state.age + 1
        end = self.config.text.vocab - 1
        tokens = np.where(chosen.tokens == end, 1, chosen.tokens)
        return Chosen(np.where(state.age >= state.goal, end, tokens), chosen.logprob, chosen.entropy)

    def logprobs(self, state: _State) -> NDArray[np.float32]:
        """As the engine does."""
        return self.runtime.logprobs(state.inner)

    def step(self, state: _State, tokens: I64) -> None:
        """As the engine does."""
        self.runtime.step(state.inner, tokens)

    def select(self, state: _State, rows: I64) -> None:
        """Rows leave with their lengths."""
        self.runtime.select(state.inner, rows)
        state.age, state.goal = state.age[rows], state.goal[rows]


class Watched:
    """A `NarratorRuntime` that notes the seconds of every call, by the name of the method."""

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime
        self.config: NarratorConfig = runtime.config
        self.device, self.identity = str(runtime.device), str(runtime.identity)
        self.writer: WriterKind = runtime.writer
        self.spent: dict[str, list[float]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The engine's method, timed."""
        method = getattr(self.runtime, name)

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            result = method(*arguments)
            self.spent.setdefault(name, []).append(time.perf_counter() - start)
            return result

        return timed


def narrate_videos(
    runtime: Any, videos: Iterable[NDArray[np.float32]], options: Options, batch: int
) -> tuple[int, int]:
    """Encode and narrate clips, `batch` in flight: how many there were, and how many tokens were chosen.

    Args:
        runtime: An engine, `Controlled` or not.
        videos: Each (1, 3, T, H, W).
        options: Without beams.
        batch: The most clips in flight.
    """
    clips = tokens = 0
    for _, written in write_samples(runtime, _clip_tasks(runtime, videos), options, batch):
        clips += 1
        tokens += sum(len(one.ids) - 1 for one in written)
    return clips, tokens


def _clip_tasks(runtime: Any, videos: Iterable[NDArray[np.float32]]) -> Iterator[EncodedClip[int]]:
    for number, video in enumerate(videos):
        yield EncodedClip(number, number.to_bytes(8, "little"), runtime.encode(video))
