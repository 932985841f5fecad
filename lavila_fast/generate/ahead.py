"""Continuous batching that runs ahead of the device: the host queues steps and collects their tokens some steps later.

What `generate.scheduler` does, for `engines.torch_cuda`: the same sentences with the same scores (as far as the engine
computes the same numbers), but no step waits for the host. That is possible because the host knows beforehand all that
a step needs but tokens, which never leave the device's side: uniform numbers depend on seed, clip, sample and step. A
slot falls free when the host collects the end of its last sentence; what was queued for it meanwhile changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic

import numpy as np

from lavila_fast.arrays import I64, Mask
from lavila_fast.engines.sampling import Chosen
from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options, Owner, Written
from lavila_fast.generate.randomness import uniforms
from lavila_fast.generate.scheduler import end_token, token_limit
from lavila_fast.generate.sentences import SentenceTable

if TYPE_CHECKING:  # it needs torch
    from lavila_fast.engines.torch_cuda.decode_loop import DecodeLoop, SamplingParams, StepOutcome
    from lavila_fast.engines.torch_cuda.encoder import EncoderBatch
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime

SPREAD = 12  # steps over which the clips of a full table are uploaded: about what a sentence takes


@dataclass(frozen=True)
class PendingClip(Generic[Owner]):
    """A clip to be narrated: whose it is, its random key, and its frames as `encoder.EncoderBatch` takes them."""

    owner: Owner
    key: bytes
    frames: Any


class QueuedTable(SentenceTable[Owner]):
    """Sentences as far as they were collected, of slots for which steps are queued.

    Every step that is queued is one of each unfinished slot, so how many one has follows from its first one's number.
    """

    def __init__(self, slots: int, rows: int, limit: int, end: int) -> None:
        super().__init__(slots, rows, limit, end)
        self._first = np.zeros(slots, np.int64)

    def queue(self, slot: int, clip: PendingClip[Owner], number: int) -> None:
        """A clip takes a slot; step `number` will be its first."""
        self.admit(slot, clip.owner, clip.key)
        self._first[slot] = number

    def steps(self, number: int) -> I64:
        """Steps queued for each unfinished slot, `number` being that of the next step, (B,)."""
        steps: I64 = number - self._first
        return steps

    def unfinished(self, number: int) -> Mask:
        """Slots for whose sentences another step must be queued, as far as is known, (B,)."""
        unfinished: Mask = self.live.any(1) & (self.steps(number) < self.limit - 1)
        return unfinished

    def collect(self, outcome: StepOutcome) -> list[int]:
        """Add one step's tokens to the sentences: the slots that it completed."""
        chosen = outcome.chosen
        n = len(chosen.tokens)
        mine = self.live[:n] & (self._first[:n] <= outcome.number)[:, None]
        slot, row = np.nonzero(mine)
        self.add(slot, row, Chosen(chosen.tokens[mine], chosen.logprob[mine], chosen.entropy[mine]))
        return np.flatnonzero(mine.any(1) & ~self.live[:n].any(1)).tolist()


def write_ahead(
    runtime: TorchGpuRuntime, clips: Iterable[PendingClip[Owner]], options: Options
) -> Iterator[tuple[Owner, list[Written]]]:
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
    from lavila_fast.engines.torch_cuda.decode_loop import SamplingParams

    if options.beams > 1:
        raise InputError("beams cannot run ahead of the device; take write_beams")
    params = SamplingParams(options.warp, min(token_limit(runtime, options), runtime.capacity + 1))
    loop = runtime.decode_loop(options.samples)
    loop.reserve()
    try:
        loop.prepare(params)
        table: QueuedTable[Owner] = QueuedTable(loop.slots, loop.rows, params.limit, end_token(runtime))
        yield from _decode_ahead(_AdmissionQueue(runtime, clips, loop.lanes // loop.rows), loop, table, params)
    finally:
        loop.release()


class _AdmissionQueue(Generic[Owner]):
    """Clips that wait for a slot: each fills a batch of the encoder, and the oldest batch is admitted first."""

    def __init__(self, runtime: TorchGpuRuntime, clips: Iterable[PendingClip[Owner]], clips_at_once: int) -> None:
        self._queue, self._size = iter(clips), runtime.encode_batch
        # The host must be back from uploading before the queued steps are done.
        self._portion = -(-clips_at_once // SPREAD)
        self._idle = deque(runtime.encoder_batches())
        for batch in self._idle:
            batch.clear()
        self.batches: deque[tuple[EncoderBatch, deque[PendingClip[Owner]]]] = deque()
        self._filling: deque[PendingClip[Owner]] = deque()
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

    def admit(self, loop: DecodeLoop, table: QueuedTable[Owner], hurry: bool) -> None:
        """Admit clips that are encoded, as far as there are lanes; with `hurry`, the device waits for the encoder."""
        free = table.free()[: (loop.lanes - int(table.live.sum())) // loop.rows]
        while len(free) and self.batches and (hurry or self.batches[0][0].done.query()):
            batch, clips = self.batches[0]
            slots, free = free[: len(clips)], free[len(clips) :]
            loop.admit(slots, batch, batch.clips - len(clips))
            for slot in slots.tolist():
                table.queue(slot, clips.popleft(), loop.number)
            if not clips:
                self.batches.popleft()
                batch.clear()
                self._idle.append(batch)


def _decode_ahead(
    admissions: _AdmissionQueue[Owner], loop: DecodeLoop, table: QueuedTable[Owner], params: SamplingParams
) -> Iterator[tuple[Owner, list[Written]]]:
    while True:
        busy = bool(table.unfinished(loop.number).any())
        admissions.upload(busy)
        admissions.admit(loop, table, hurry=not busy)
        unfinished = table.unfinished(loop.number)
        if unfinished.any():
            if not params.warp.greedy:
                _draw(loop, table, unfinished)
            loop.launch(int(np.flatnonzero(unfinished)[-1]) + 1, params)
        elif not loop.queued:
            if admissions.batches:
                continue
            return
        if loop.queued > (loop.lag if unfinished.any() else 0):
            for slot in table.collect(loop.read()):
                yield table.release(slot)


def _draw(loop: DecodeLoop, table: QueuedTable[Owner], unfinished: Mask) -> None:
    """Send the uniform numbers of the next steps to the slots that have used up theirs."""
    queued = table.steps(loop.number)
    slots = np.flatnonzero(unfinished & (queued % loop.drawn == 0))
    if not len(slots):
        return
    u = np.zeros((len(slots), loop.rows, loop.drawn))
    for place, slot in enumerate(slots.tolist()):
        first = int(queued[slot])
        steps = range(first, min(first + loop.drawn, table.limit - 1))
        rows = np.flatnonzero(table.live[slot])
        u[place, rows, : len(steps)] = uniforms(table.key(slot), rows.tolist(), steps)
    loop.draw(slots, u)
