"""Continuous batching: rows that reach their end leave, and the next clip takes their place at once.

Narrations average a dozen tokens while the original always runs 76 steps for the whole batch; here every step works
only on unfinished sentences.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Generic

import numpy as np

from lavila_fast.arrays import I64
from lavila_fast.engines.protocol import ClipContext, NarratorRuntime
from lavila_fast.generate.options import Options, Owner, Written
from lavila_fast.generate.randomness import uniform
from lavila_fast.generate.sentences import SentenceTable


@dataclass(frozen=True)
class EncodedClip(Generic[Owner]):
    """A clip to be narrated: whose it is, its random key, and what the engine made of its frames."""

    owner: Owner
    key: bytes
    context: ClipContext


def end_token(runtime: NarratorRuntime) -> int:
    """The begin and end token: the last of the vocabulary."""
    return runtime.config.text.vocab - 1


def token_limit(runtime: NarratorRuntime, options: Options) -> int:
    """The most tokens a sentence may have, begin and end included."""
    config = runtime.config
    return min(options.max_tokens or config.max_tokens, config.max_tokens, config.text.n_positions)


def leavers_last(ended: list[bool]) -> np.ndarray:
    """An order of the rows that stay in which only the holes are refilled, from the back: the least is moved."""
    stay = [i for i, gone in enumerate(ended) if not gone]
    order = np.arange(len(stay))
    from_back = [i for i in stay if i >= len(stay)]
    for hole in np.flatnonzero(ended[: len(stay)]):
        order[hole] = from_back.pop()
    return order


def write_samples(
    runtime: NarratorRuntime, clips: Iterable[EncodedClip[Owner]], options: Options, batch: int
) -> Iterator[tuple[Owner, list[Written]]]:
    """Sample `options.samples` sentences for each clip.

    Args:
        runtime: The engine.
        clips: Taken one by one as places fall free, so a lazy iterable is encoded just in time.
        options: Without beams.
        batch: The most clips in flight.

    Yields:
        Owner and sentences (in order of their sample number) of each clip, as it finishes.
    """
    queue, state = iter(clips), runtime.begin()
    table: SentenceTable[Owner] = SentenceTable(
        batch, options.samples, token_limit(runtime, options), end_token(runtime)
    )
    slot, sample = np.empty(0, np.int64), np.empty(0, np.int64)  # of each row of the engine, in its order
    while True:
        joined = _refill(runtime, state, queue, table, batch)
        slot = np.append(slot, np.repeat(joined, options.samples))
        sample = np.append(sample, np.tile(np.arange(options.samples), len(joined)))
        if not len(slot):
            return
        steps = table.counts[slot, sample] - 1
        places = zip(map(table.key, slot.tolist()), sample.tolist(), steps.tolist(), strict=True)
        chosen = runtime.sample(state, options.warp, np.array([uniform(*place) for place in places]))
        ended = table.add(slot, sample, chosen)
        tokens = chosen.tokens
        if ended.any():
            order = leavers_last(ended.tolist())
            slot, sample, tokens = slot[order], sample[order], tokens[order]
            runtime.select(state, order)
        if len(slot):
            runtime.step(state, tokens)
        if ended.any():
            yield from [table.release(done) for done in table.completed()]


def _refill(
    runtime: NarratorRuntime,
    state: object,
    queue: Iterator[EncodedClip[Owner]],
    table: SentenceTable[Owner],
    batch: int,
) -> I64:
    """Let clips join where there is room for them: the slots they took."""
    free = table.free()
    if len(free) < max(1, batch // 4):  # joining costs a step of its own, so let a few places gather
        return free[:0]
    clips = list(islice(queue, len(free)))
    if clips:
        runtime.join(state, runtime.merge([clip.context for clip in clips]), table.live.shape[1])
    for slot, clip in zip(free.tolist(), clips, strict=False):
        table.admit(slot, clip.owner, clip.key)
    return free[: len(clips)]
