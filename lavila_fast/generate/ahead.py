"""Continuous batching that runs ahead of the device: the host queues steps and hears of tokens some steps later.

What `generate.scheduler` does, for `engines.torch_cuda`: the same sentences with the same scores (as far as the engine
computes the same numbers), but no step waits for the host. That is possible because the host knows beforehand all that
a step needs but tokens, which never leave the device's side: uniform numbers depend on seed, clip, sample and step. A
slot falls free when the host hears that its last sentence ended; what was queued for it meanwhile changes nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options, Written
from lavila_fast.generate.randomness import uniforms
from lavila_fast.generate.scheduler import end_token, token_limit

if TYPE_CHECKING:  # it needs torch
    from lavila_fast.engines.torch_cuda.decode_loop import Flight, Heard, Rules
    from lavila_fast.engines.torch_cuda.encoder import Stage
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime

T = TypeVar("T")
SPREAD = 12  # steps over which the clips of a full flight are uploaded: about what a sentence takes


@dataclass(frozen=True)
class Coming(Generic[T]):
    """A clip to be narrated: whose it is, its random key, and its frames as `torch_gpu_encoder.Stage` takes them."""

    owner: T
    key: bytes
    frames: Any


class Cabin(Generic[T]):
    """What the host knows of B slots with R rows: who sits there, and the sentences as far as they were heard.

    Attributes:
        clips: The clip of each slot, or None.
        steps: Steps queued for it.
        live: (B, R) rows whose end was not heard yet.
    """

    def __init__(self, slots: int, rows: int, limit: int, end: int) -> None:
        self.limit, self.end = limit, end
        self.clips: list[Coming[T] | None] = [None] * slots
        self.steps, self._since = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self.live = np.zeros((slots, rows), bool)
        self._ids = np.zeros((slots, rows, limit), np.int64)
        self._counts = np.zeros((slots, rows), np.int64)
        self._logprob, self._entropy = np.zeros((slots, rows)), np.zeros((slots, rows))

    def free(self) -> NDArray[np.int64]:
        """Empty slots, in order."""
        return np.array([slot for slot, clip in enumerate(self.clips) if clip is None], np.int64)

    def seat(self, slot: int, clip: Coming[T], number: int) -> None:
        """A clip takes a slot; step `number` will be its first."""
        self.clips[slot], self.steps[slot], self._since[slot] = clip, 0, number
        self.live[slot], self._counts[slot], self._ids[slot, :, 0] = True, 1, self.end
        self._logprob[slot], self._entropy[slot] = 0, 0

    def waiting(self) -> NDArray[np.bool_]:
        """Slots for whose sentences another step must be queued, as far as is known, (B,)."""
        hungry: NDArray[np.bool_] = self.live.any(1) & (self.steps < self.limit - 1)
        return hungry

    def hear(self, heard: Heard) -> list[int]:
        """Add one step's tokens to the sentences: the slots that it completed."""
        chosen = heard.chosen
        n = len(chosen.tokens)
        mine = self.live[:n] & (self._since[:n] <= heard.number)[:, None]
        slot, row = np.nonzero(mine)
        place = self._counts[slot, row]
        tokens = chosen.tokens[slot, row]
        self._ids[slot, row, place] = tokens
        self._logprob[slot, row] += chosen.logprob[slot, row]
        self._entropy[slot, row] += chosen.entropy[slot, row]
        self._counts[slot, row] += 1
        self.live[slot, row] = (tokens != self.end) & (place + 1 < self.limit)
        return np.flatnonzero(mine.any(1) & ~self.live[:n].any(1)).tolist()

    def leave(self, slot: int) -> tuple[T, list[Written]]:
        """The clip's owner and its sentences; the slot is empty then."""
        clip = self.clips[slot]
        assert clip is not None
        self.clips[slot] = None
        return clip.owner, [self._written(slot, row) for row in range(self.live.shape[1])]

    def _written(self, slot: int, row: int) -> Written:
        count = int(self._counts[slot, row])
        ids = tuple(self._ids[slot, row, :count].tolist())
        mean = self._entropy[slot, row] / (count - 1), self._logprob[slot, row] / (count - 1)
        return Written(ids, math.exp(mean[0]), float(mean[1]))


def write_ahead(
    runtime: TorchGpuRuntime, clips: Iterable[Coming[T]], options: Options
) -> Iterator[tuple[T, list[Written]]]:
    """Sample `options.samples` sentences for each clip.

    Args:
        runtime: The engine; one writer at a time.
        clips: Taken lazily, at most the engine's slots and two of its encoder's batches ahead of what was yielded.
        options: Without beams.

    Yields:
        Owner and sentences (in order of their sample number) of each clip, as it finishes.

    Raises:
        InputError: beams, or another writer has the engine.
    """
    from lavila_fast.engines.torch_cuda.decode_loop import Rules

    if options.beams > 1:
        raise InputError("beams cannot run ahead of the device; take write_beams")
    rules = Rules(options.warp, min(token_limit(runtime, options), runtime.capacity + 1))
    flight = runtime.flight(options.samples)
    flight.take()
    try:
        flight.prepare(rules)
        cabin: Cabin[T] = Cabin(flight.slots, flight.rows, rules.limit, end_token(runtime))
        yield from _fly(_Gate(runtime, clips, flight.lanes // flight.rows), flight, cabin, rules)
    finally:
        flight.land()


class _Gate(Generic[T]):
    """Clips on their way to a slot: each stage of the encoder holds a batch, and the oldest boards first."""

    def __init__(self, runtime: TorchGpuRuntime, clips: Iterable[Coming[T]], seats: int) -> None:
        self._queue, self._batch = iter(clips), runtime.encode_batch
        # The host must be back from uploading before the queued steps are done.
        self._portion = -(-seats // SPREAD)
        self._idle = deque(runtime.stages())
        for stage in self._idle:
            stage.clear()
        self.batches: deque[tuple[Stage, deque[Coming[T]]]] = deque()
        self._filling: deque[Coming[T]] = deque()
        self._open = True

    def call(self, busy: bool) -> None:
        """Upload some clips, if the encoder has room: what a step hides, or a batch if none is under way."""
        for _ in range(self._portion if busy else self._batch):
            if not self._open or not self._idle:
                return
            clip = next(self._queue, None)
            if clip is None:
                self._open = False
            else:
                self._idle[0].put(clip.frames)
                self._filling.append(clip)
            if self._filling and (clip is None or len(self._filling) == self._batch):
                self._idle[0].start()
                self.batches.append((self._idle.popleft(), self._filling))
                self._filling = deque()

    def board(self, flight: Flight, cabin: Cabin[T], hurry: bool) -> None:
        """Seat clips that are encoded, as far as there are lanes; with `hurry`, the device waits for the encoder."""
        free = cabin.free()[: (flight.lanes - int(cabin.live.sum())) // flight.rows]
        while len(free) and self.batches and (hurry or self.batches[0][0].done.reached()):
            stage, clips = self.batches[0]
            slots, free = free[: len(clips)], free[len(clips) :]
            flight.board(slots, stage, stage.clips - len(clips))
            for slot in slots.tolist():
                cabin.seat(slot, clips.popleft(), flight.number)
            if not clips:
                self.batches.popleft()
                stage.clear()
                self._idle.append(stage)


def _fly(gate: _Gate[T], flight: Flight, cabin: Cabin[T], rules: Rules) -> Iterator[tuple[T, list[Written]]]:
    while True:
        busy = bool(cabin.waiting().any())
        gate.call(busy)
        gate.board(flight, cabin, hurry=not busy)
        waiting = cabin.waiting()
        if waiting.any():
            if not rules.warp.greedy:
                _draw(flight, cabin, waiting)
            flight.launch(int(np.flatnonzero(waiting)[-1]) + 1, rules)
            cabin.steps[waiting] += 1
        elif not flight.flying:
            if gate.batches:
                continue
            return
        if flight.flying > (flight.lag if waiting.any() else 0):
            for slot in cabin.hear(flight.read()):
                yield cabin.leave(slot)


def _draw(flight: Flight, cabin: Cabin[T], waiting: NDArray[np.bool_]) -> None:
    """Send the uniform numbers of the next steps to the slots that have used up theirs."""
    slots = np.flatnonzero(waiting & (cabin.steps % flight.drawn == 0))
    if not len(slots):
        return
    u = np.zeros((len(slots), flight.rows, flight.drawn))
    for place, slot in enumerate(slots.tolist()):
        clip, first = cabin.clips[slot], int(cabin.steps[slot])
        assert clip is not None
        steps = range(first, min(first + flight.drawn, cabin.limit - 1))
        rows = np.flatnonzero(cabin.live[slot])
        u[place, rows, : len(steps)] = uniforms(clip.key, rows.tolist(), steps)
    flight.draw(slots, u)
