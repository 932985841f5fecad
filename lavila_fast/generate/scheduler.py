"""Continuous batching: rows that reach their end leave, and the next clip takes their place at once.

Narrations average a dozen tokens while the original always runs 76 steps for the whole batch; here every step works
only on unfinished sentences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

import numpy as np

from lavila_fast.engines.protocol import ClipContext, NarratorRuntime
from lavila_fast.generate.options import Options, Written
from lavila_fast.generate.randomness import uniform

T = TypeVar("T")


@dataclass
class Task(Generic[T]):
    """A clip in flight: whose it is, its random key, and its sentences as they finish."""

    owner: T
    key: bytes
    context: ClipContext
    done: dict[int, Written] = field(default_factory=dict)


@dataclass
class Row(Generic[T]):
    """A sentence in the making."""

    task: Task[T]
    sample: int
    ids: list[int]
    entropy: float = 0.0
    logprob: float = 0.0

    def add(self, token: int, logprob: float, entropy: float) -> None:
        """Append a chosen token with its unwarped scores."""
        self.ids.append(token)
        self.logprob += logprob
        self.entropy += entropy

    def written(self) -> Written:
        """The finished sentence."""
        count = len(self.ids) - 1
        return Written(tuple(self.ids), math.exp(self.entropy / count), self.logprob / count)


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
    runtime: NarratorRuntime, tasks: Iterable[Task[T]], options: Options, batch: int
) -> Iterator[tuple[T, list[Written]]]:
    """Sample `options.samples` sentences for each task.

    Args:
        runtime: The engine.
        tasks: Taken one by one as places fall free, so a lazy iterable is encoded just in time.
        options: Without beams.
        batch: The most clips in flight.

    Yields:
        Owner and sentences (in order of their sample number) of each clip, as it finishes.
    """
    queue = iter(tasks)
    state = runtime.begin()
    rows: list[Row[T]] = []
    end, limit = end_token(runtime), token_limit(runtime, options)
    while True:
        rows += _refill(runtime, state, queue, rows, options, batch)
        if not rows:
            return
        u = np.array([uniform(row.task.key, row.sample, len(row.ids) - 1) for row in rows])
        chosen = runtime.sample(state, options.warp, u)
        for row, token, logprob, entropy in zip(rows, chosen.tokens, chosen.logprob, chosen.entropy, strict=True):
            row.add(int(token), float(logprob), float(entropy))
        ended = [row.ids[-1] == end or len(row.ids) >= limit for row in rows]
        tokens = chosen.tokens
        finished = []
        if any(ended):
            finished = [row for row, gone in zip(rows, ended, strict=True) if gone]
            order = leavers_last(ended)
            rows, tokens = [rows[i] for i in order], tokens[order]
            runtime.select(state, order)
        if rows:
            runtime.step(state, tokens)
        yield from _close(finished, options.samples)


def _refill(
    runtime: NarratorRuntime, state: object, queue: Iterator[Task[T]], rows: list[Row[T]], options: Options, batch: int
) -> list[Row[T]]:
    free = batch - len({id(row.task) for row in rows})
    if rows and free < max(1, batch // 4):  # joining costs a step of its own, so let a few places gather
        return []
    tasks = list(islice(queue, free))
    if tasks:
        runtime.join(state, runtime.merge([task.context for task in tasks]), options.samples)
    return [Row(task, sample, [end_token(runtime)]) for task in tasks for sample in range(options.samples)]


def _close(finished: list[Row[T]], samples: int) -> Iterator[tuple[T, list[Written]]]:
    for row in finished:
        row.task.done[row.sample] = row.written()
        if len(row.task.done) == samples:
            yield row.task.owner, [row.task.done[i] for i in range(samples)]
