"""Continuous batching that runs ahead of the device: the host queues steps and collects their tokens some steps later.

What `generate.scheduler` does, for `engines.torch_cuda`: the same sentences with the same scores (as far as the engine
computes the same numbers), but no step waits for the host. That is possible because the host knows beforehand all that
a step needs but tokens, which never leave the device's side: uniform numbers depend on seed, clip, sample and step. A
slot falls free when the host collects the end of its last sentence; what was queued for it meanwhile changes nothing.
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
    from lavila_fast.engines.torch_cuda.decode_loop import DecodeLoop, Rules, StepOutcome
    from lavila_fast.engines.torch_cuda.encoder import EncoderBatch
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime

T = TypeVar("T")
SPREAD = 12  # steps over which the clips of a full table are uploaded: about what a sentence takes


@dataclass(frozen=True)
class PendingClip(Generic[T]):
    """A clip to be narrated: whose it is, its random key, and its frames as `encoder.EncoderBatch` takes them."""

    owner: T
    key: bytes
    frames: Any


class SlotTable(Generic[T]):
    """What the host knows of B slots with R rows: the clip in each, and the sentences as far as they were collected.

    Attributes:
        clips: The clip of each slot, or None.
        steps: Steps queued for it.
        live: (B, R) rows whose end was not collected yet.
    """

    def __init__(self, slots: int, rows: int, limit: int, end: int) -> None:
        self.limit, self.end = limit, end
        self.clips: list[PendingClip[T] | None] = [None] * slots
        self.steps, self._since = np.zeros(slots, np.int64), np.zeros(slots, np.int64)
        self.live = np.zeros((slots, rows), bool)
        self._ids = np.zeros((slots, rows, limit), np.int64)
        self._counts = np.zeros((slots, rows), np.int64)
        self._logprob, self._entropy = np.zeros((slots, rows)), np.zeros((slots, rows))

    def free(self) -> NDArray[np.int64]:
        """Empty slots, in order."""
        return np.array([slot for slot, clip in enumerate(self.clips) if clip is None], np.int64)

    def admit(self, slot: int, clip: PendingClip[T], number: int) -> None:
        """A clip takes a slot; step `number` will be its first."""
        self.clips[slot], self.steps[slot], self._since[slot] = clip, 0, number
        self.live[slot], self._counts[slot], self._ids[slot, :, 0] = True, 1, self.end
        self._logprob[slot], self._entropy[slot] = 0, 0

    def unfinished(self) -> NDArray[np.bool_]:
        """Slots for whose sentences another step must be queued, as far as is known, (B,)."""
        unfinished: NDArray[np.bool_] = self.live.any(1) & (self.steps < self.limit - 1)
        return unfinished

    def collect(self, outcome: StepOutcome) -> list[int]:
        """Add one step's tokens to the sentences: the slots that it completed."""
        chosen = outcome.chosen
        n = len(chosen.tokens)
        mine = self.live[:n] & (self._since[:n] <= outcome.number)[:, None]
        slot, row = np.nonzero(mine)
        place = self._counts[slot, row]
        tokens = chosen.tokens[slot, row]
        self._ids[slot, row, place] = tokens
        self._logprob[slot, row] += chosen.logprob[slot, row]
        self._entropy[slot, row] += chosen.entropy[slot, row]
        self._counts[slot, row] += 1
        self.live[slot, row] = (tokens != self.end) & (place + 1 < self.limit)
        return np.flatnonzero(mine.any(1) & ~self.live[:n].any(1)).tolist()

    def release(self, slot: int) -> tuple[T, list[Written]]:
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
    runtime: TorchGpuRuntime, clips: Iterable[PendingClip[T]], options: Options
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
    loop = runtime.decode_loop(options.samples)
    loop.reserve()
    try:
        loop.prepare(rules)
        table: SlotTable[T] = SlotTable(loop.slots, loop.rows, rules.limit, end_token(runtime))
        yield from _decode_ahead(_AdmissionQueue(runtime, clips, loop.lanes // loop.rows), loop, table, rules)
    finally:
        loop.release()


class _AdmissionQueue(Generic[T]):
    """Clips that wait for a slot: each fills a batch of the encoder, and the oldest batch is admitted first."""

    def __init__(self, runtime: TorchGpuRuntime, clips: Iterable[PendingClip[T]], clips_at_once: int) -> None:
        self._queue, self._size = iter(clips), runtime.encode_batch
        # The host must be back from uploading before the queued steps are done.
        self._portion = -(-clips_at_once // SPREAD)
        self._idle = deque(runtime.encoder_batches())
        for batch in self._idle:
            batch.clear()
        self.batches: deque[tuple[EncoderBatch, deque[PendingClip[T]]]] = deque()
        self._filling: deque[PendingClip[T]] = deque()
        self._open = True

    def upload(self, busy: bool) -> None:
        """Upload some clips, if the encoder has room: what a step hides, or a batch if none is under way."""
        for _ in range(self._portion if busy else self._size):
            if not self._open or not self._idle:
                return
            clip = next(self._queue, None)
            if clip is None:
                self._open = False
            else:
                self._idle[0].put(clip.frames)
                self._filling.append(clip)
            if self._filling and (clip is None or len(self._filling) == self._size):
                self._idle[0].start()
                self.batches.append((self._idle.popleft(), self._filling))
                self._filling = deque()

    def admit(self, loop: DecodeLoop, table: SlotTable[T], hurry: bool) -> None:
        """Admit clips that are encoded, as far as there are lanes; with `hurry`, the device waits for the encoder."""
        free = table.free()[: (loop.lanes - int(table.live.sum())) // loop.rows]
        while len(free) and self.batches and (hurry or self.batches[0][0].done.reached()):
            batch, clips = self.batches[0]
            slots, free = free[: len(clips)], free[len(clips) :]
            loop.admit(slots, batch, batch.clips - len(clips))
            for slot in slots.tolist():
                table.admit(slot, clips.popleft(), loop.number)
            if not clips:
                self.batches.popleft()
                batch.clear()
                self._idle.append(batch)


def _decode_ahead(
    admissions: _AdmissionQueue[T], loop: DecodeLoop, table: SlotTable[T], rules: Rules
) -> Iterator[tuple[T, list[Written]]]:
    while True:
        busy = bool(table.unfinished().any())
        admissions.upload(busy)
        admissions.admit(loop, table, hurry=not busy)
        unfinished = table.unfinished()
        if unfinished.any():
            if not rules.warp.greedy:
                _draw(loop, table, unfinished)
            loop.launch(int(np.flatnonzero(unfinished)[-1]) + 1, rules)
            table.steps[unfinished] += 1
        elif not loop.queued:
            if admissions.batches:
                continue
            return
        if loop.queued > (loop.lag if unfinished.any() else 0):
            for slot in table.collect(loop.read()):
                yield table.release(slot)


def _draw(loop: DecodeLoop, table: SlotTable[T], unfinished: NDArray[np.bool_]) -> None:
    """Send the uniform numbers of the next steps to the slots that have used up theirs."""
    slots = np.flatnonzero(unfinished & (table.steps % loop.drawn == 0))
    if not len(slots):
        return
    u = np.zeros((len(slots), loop.rows, loop.drawn))
    for place, slot in enumerate(slots.tolist()):
        clip, first = table.clips[slot], int(table.steps[slot])
        assert clip is not None
        steps = range(first, min(first + loop.drawn, table.limit - 1))
        rows = np.flatnonzero(table.live[slot])
        u[place, rows, : len(steps)] = uniforms(clip.key, rows.tolist(), steps)
    loop.draw(slots, u)
