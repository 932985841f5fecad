"""Group beam search over an encoder-decoder, many sentences at once.

The rules are those of Hugging Face's scorer of 2023 and 2024 (transformers 4.30 to 4.56; 5 no longer has it), of the
diverse beam search of Vijayakumar et al., arXiv 1610.02424: groups choose one after the other, and a word loses
`diversity` for each beam of the groups before that has chosen it at this place; what it lost stays in the beam's score.
Each group keeps hypotheses of its own and is done when it has as many as beams; `generate.beams.Search` keeps the books
of one group.

What makes it fast: the sentences of a batch go through the decoder together, a beam a row; the encoder and the first
step run once a sentence, not once a beam; rows of groups that are done are dropped; and only the few best words of a
row leave the device. With words w of a group's row lowered by the groups before, at most ``beams - g`` of them, its 2g
best are among its ``beams + g`` best before.

Shape suffixes: R rows, V vocabulary, K words that are looked at.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from lavila_fast.errors import NotFiniteError
from lavila_fast.generate.beams import Beam
from lavila_fast.generate.beams import Search as Books
from lavila_fast.generate.options import Written
from lavila_fast.rephrase.options import Search


class Decoder(Protocol):
    """Decodes rows in step; begins with a row a sentence."""

    def step(self, tokens_R: Tensor) -> Tensor:
        """Read one more token (R,) int64 a row; gives float32 scores (R, V) of the next, before softmax."""

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, of which some may be there several times."""


class Words(NamedTuple):
    """The best next words of a row, best first: log-probabilities and ids."""

    logprobs: list[float]
    ids: list[int]


@dataclass
class Group(Books):
    """A group of beams; `rows` of the decoder that they go on from."""

    rows: list[int] = field(default_factory=list)


@dataclass
class Sought:
    """A sentence whose paraphrases are looked for."""

    groups: list[Group]

    @property
    def open(self) -> list[Group]:
        """Groups that go on."""
        return [group for group in self.groups if not group.done]

    def best(self, count: int) -> list[Written]:
        """The best hypotheses of all groups, the highest score first."""
        for group in self.open:
            for beam in group.beams:  # the begin token counts for nothing here
                group.keep(Beam(beam.ids[1:], beam.score, beam.logprob), beam.ids)
            group.done = True
        found = [one for group in self.groups for one in group.finish(group.limit)]
        return sorted(found, key=lambda one: -(one.score or 0.0))[:count]

    def advance(self, words: list[Words], diversity: float, end: int) -> None:
        """One more word for each group, which loses what groups before have chosen."""
        chosen: Counter[int] = Counter()
        for group in self.open:
            found = continuations([words[row] for row in group.rows], group.beams, chosen, diversity)
            group.rows = [group.rows[parent] for parent in group.advance(0, found, end)]
            chosen.update(beam.ids[-1] for beam in group.beams)


def new_search(options: Search, start: int, row: int = 0) -> Sought:
    """Before the first word, at a row: only the first beam of a group counts, for all are equal."""
    size = options.beams // options.groups

    def group() -> Group:
        beams = [Beam((start,), score) for score in [0.0] + [-1e9] * (size - 1)]
        return Group([beams], limit=size, penalty=1.0, early=True, rows=[row] * size)

    return Sought([group() for _ in range(options.groups)])


def paraphrase_ids(decoder: Decoder, sentences: int, options: Search, start: int, end: int) -> list[list[Written]]:
    """Search candidates for all sentences of a batch.

    Args:
        decoder: Stands before the first word, with a row a sentence.
        sentences: How many.
        options: How to search.
        start: The token that a decoder begins with.
        end: The end token.

    Returns:
        For each sentence at most `options.samples` hypotheses, the best first; ids with `start`, and `end` if reached.

    Raises:
        NotFiniteError: scores are no numbers.
    """
    every = [new_search(options, start, row) for row in range(sentences)]
    tokens, live, look = [start] * sentences, every, options.beams + options.beams // options.groups
    for step in range(options.max_tokens - 1):
        words = best_words(decoder.step(torch.tensor(tokens)), look)
        for sought in live:
            sought.advance(words, options.diversity, end)
        live = [sought for sought in live if sought.open]
        if not live or step == options.max_tokens - 2:
            break
        running = [group for sought in live for group in sought.open]
        decoder.select([row for group in running for row in group.rows])
        tokens = [beam.ids[-1] for group in running for beam in group.beams]
        _place(running)
    return [sought.best(options.samples) for sought in every]


def _place(running: list[Group]) -> None:
    """Rows now lie one after the other."""
    place = 0
    for group in running:
        group.rows = list(range(place, place := place + len(group.rows)))


def continuations(
    words: list[Words], beams: list[Beam], chosen: Counter[int], diversity: float
) -> list[tuple[float, int, int, float]]:
    """The 2g best continuations of a group's g beams, best first: (score, beam, token, its log-probability)."""
    found = [
        (beam.score + logprob - diversity * chosen[token], number, token, logprob)
        for number, (line, beam) in enumerate(zip(words, beams, strict=True))
        for logprob, token in zip(*line, strict=True)
    ]
    found.sort(key=lambda one: (-one[0], one[1], one[2]))
    return found[: 2 * len(beams)]


def best_words(scores_RV: Tensor, count: int) -> list[Words]:
    """The best `count` words of each row.

    Raises:
        NotFiniteError: scores are no numbers.
    """
    best, ids_RK = scores_RV.topk(min(count, scores_RV.shape[1]), dim=-1)
    logprobs_RK = best - scores_RV.logsumexp(-1, keepdim=True)
    if not bool(logprobs_RK[:, 0].isfinite().all()):  # one that is no number comes first
        raise NotFiniteError("a sentence")
    return [Words(*pair) for pair in zip(logprobs_RK.tolist(), ids_RK.tolist(), strict=True)]
