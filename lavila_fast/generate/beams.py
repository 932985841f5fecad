"""Beam sampling and group beam search with the original's rules, over the cached step.

The rules (which Hugging Face's beam scorer of early 2023 defines): a group of g beams looks at its 2g best
continuations; one that ends is kept as a hypothesis if it is among the first g; the first g that do not end go on. A
clip is done when it has as many hypotheses as beams and none still running can beat the worst. LaViLa applies no
diversity penalty, and warps the *accumulated* scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lavila_fast.arrays import F32, I64
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.engines.sampling import Warp, kept
from lavila_fast.errors import NotFiniteError
from lavila_fast.generate.options import Options, Owner, Written
from lavila_fast.generate.randomness import uniform
from lavila_fast.generate.scheduler import EncodedClip, end_token, token_limit


@dataclass
class Beam:
    """A running hypothesis: tokens, accumulated (warped) score and plain log-probability."""

    ids: tuple[int, ...]
    score: float
    logprob: float = 0.0


@dataclass
class Search:
    """The beams of one clip (group search) or of one of its samples (beam sampling).

    Attributes:
        groups: Running beams, group by group.
        limit: Hypotheses to hold: the number of all beams.
        penalty: Exponent of the length.
        early: Done as soon as there are `limit` hypotheses, even if one still running could beat them.
    """

    groups: list[list[Beam]]
    limit: int
    penalty: float
    hypotheses: list[tuple[float, Beam]] = field(default_factory=list)
    done: bool = False
    early: bool = False

    @property
    def beams(self) -> list[Beam]:
        """All running beams, in row order."""
        return [beam for group in self.groups for beam in group]

    def keep(self, beam: Beam, ids: tuple[int, ...]) -> None:
        """Offer a hypothesis; only the best `limit` stay. The length counts the tokens before the end."""
        value = beam.score / len(beam.ids) ** self.penalty
        if len(self.hypotheses) < self.limit or value > self.hypotheses[-1][0]:
            self.hypotheses.append((value, Beam(ids, beam.score, beam.logprob)))
            self.hypotheses.sort(key=lambda pair: -pair[0])
            del self.hypotheses[self.limit :]

    def advance(self, group: int, candidates: list[tuple[float, int, int, float]], end: int) -> list[int]:
        """Continue one group from its best continuations, best first.

        Args:
            group: Which.
            candidates: (score, beam within the group, token, plain log-probability of the token), 2g of them.
            end: The end token.

        Returns:
            For each new beam of the group, the number of the old one it continues.
        """
        old = self.groups[group]
        new: list[Beam] = []
        parents: list[int] = []
        for rank, (score, parent, token, logprob) in enumerate(candidates):
            before = old[parent]
            beam = Beam((*before.ids, token), score, before.logprob + logprob)
            if token == end:
                if rank < len(old):
                    self.keep(Beam(before.ids, score, beam.logprob), beam.ids)
            elif len(new) < len(old):
                new.append(beam)
                parents.append(parent)
        self.groups[group] = new
        self._check_done(max(score for score, *_ in candidates), len(old[0].ids))
        return parents

    def _check_done(self, best: float, length: int) -> None:
        if len(self.hypotheses) >= self.limit:
            self.done = self.done or self.early or self.hypotheses[-1][0] >= best / length**self.penalty

    def finish(self, count: int) -> list[Written]:
        """The best `count` hypotheses, those still running included unless the search is done."""
        if not self.done:
            for beam in self.beams:
                self.keep(beam, beam.ids)
        return [_written(value, beam) for value, beam in self.hypotheses[:count]]


def _written(value: float, beam: Beam) -> Written:
    return Written(beam.ids, math.exp(min(-value, 700.0)), beam.logprob / (len(beam.ids) - 1), value)


def write_beams(
    runtime: NarratorRuntime, tasks: Iterable[EncodedClip[Owner]], options: Options
) -> Iterator[tuple[Owner, list[Written]]]:
    """Search `options.samples` sentences for each task with `options.beams` beams, one clip after another.

    Yields:
        Owner and sentences of each clip: the best first (group search), or one search's best a sample (sampling).
    """
    for task in tasks:
        yield task.owner, _search_clip(runtime, task, options)


def _search_clip(runtime: NarratorRuntime, task: EncodedClip[Any], options: Options) -> list[Written]:
    end = end_token(runtime)
    grouped = options.groups > 1
    searches = [_new_search(options, end) for _ in range(1 if grouped else options.samples)]
    state = runtime.begin()
    runtime.join(state, task.context, len(searches) * options.beams)
    live = list(enumerate(searches))
    last = token_limit(runtime, options) - 2
    for step in range(last + 1):
        lines = runtime.logprobs(state).reshape(len(live), options.beams, -1)
        if not np.isfinite(lines.sum()):
            raise NotFiniteError(task.owner)
        rows = []
        for place, (number, search) in enumerate(live):
            draws = None if grouped else _draws(task.key, number, step, 2 * options.beams)
            parents = _advance(search, lines[place], options.warp, draws, end)
            rows += [] if search.done else [place * options.beams + parent for parent in parents]
        live = [(number, search) for number, search in live if not search.done]
        if not live or step == last:  # nobody asks what would follow, and an engine's caches may be full
            break
        runtime.select(state, np.array(rows))
        runtime.step(state, np.array([beam.ids[-1] for _, search in live for beam in search.beams]))
    return [one for s in searches for one in s.finish(options.samples if grouped else 1)]


def _new_search(options: Options, end: int) -> Search:
    size = options.beams // options.groups
    # In a group search only the first beam of a group counts at the start: all are equal.
    start = [0.0] + [-1e9 if options.groups > 1 else 0.0] * (size - 1)
    groups = [[Beam((end,), score) for score in start] for _ in range(options.groups)]
    return Search(groups, options.beams, options.length_penalty)


def _advance(search: Search, lines: F32, warp: Warp, draws: list[float] | None, end: int) -> list[int]:
    """Advance one search by log-probabilities (beams, V): the number of the old beam that each new one continues."""
    parents: list[int] = []
    first = 0
    for number, group in enumerate(search.groups):
        if search.done:
            break
        candidates = continuations(lines[first : first + len(group)], group, warp, draws)
        parents += [first + parent for parent in search.advance(number, candidates, end)]
        first += len(group)
    return parents


def _draws(key: bytes, search: int, step: int, count: int) -> list[float]:
    return [uniform(key, search, step * count + i) for i in range(count)]


def continuations(
    logprobs: F32, beams: list[Beam], warp: Warp, draws: list[float] | None
) -> list[tuple[float, int, int, float]]:
    """The 2g continuations of a group's g beams: the best (`draws` None) or drawn without replacement, best first.

    Args:
        logprobs: (g, V), unwarped.
        beams: The group.
        warp: Applied to the accumulated scores, at least two words a beam staying.
        draws: 2g uniform numbers.

    Returns:
        (score, beam, token, plain log-probability of the token).
    """
    pool: list[tuple[F32, int, I64]] = []
    for number, (line, beam) in enumerate(zip(logprobs, beams, strict=True)):
        total = line + np.float32(beam.score)
        ids = np.flatnonzero(kept(total, warp, least=2)[0])
        pool.append((total[ids] / np.float32(warp.temperature), number, ids))
    scores = np.concatenate([p[0] for p in pool])
    owner = np.concatenate([np.full(len(p[2]), p[1]) for p in pool])
    tokens = np.concatenate([p[2] for p in pool])
    count = min(2 * len(beams), len(scores))
    picked = _highest(scores, count) if draws is None else _drawn(scores, draws[:count])
    return [(float(scores[i]), int(owner[i]), int(tokens[i]), float(logprobs[owner[i], tokens[i]])) for i in picked]


def _highest(scores: F32, count: int) -> I64:
    among = np.argpartition(-scores, count - 1)[:count] if count < len(scores) else np.arange(len(scores))
    return among[np.lexsort((among, -scores[among]))]


def _drawn(scores: F32, draws: list[float]) -> I64:
    left = scores.astype(np.float64)
    picked: list[int] = []
    for u in draws:
        # Weighed against the best that is left, so that the last picks do not underflow to nothing.
        cumulative = np.cumsum(np.exp(left - left.max()))
        picked.append(int(np.searchsorted(cumulative, u * cumulative[-1], side="right")))
        left[picked[-1]] = -np.inf
    among = np.array(picked, np.int64)
    return among[np.argsort(-scores[among], kind="stable")]
