"""METEOR 1.5 (Denkowski and Lavie, WMT 2014) for English, without Java: alignment of words by form, stem, meaning.

Words of a sentence and of its reference are aligned one to one: the same word, the same stem, a common set of synonyms,
or phrases that paraphrase each other. Of all alignments a beam search takes the one with the most words matched (exact
ones count twice), then the fewest chunks of consecutive words, then the least distance. Precision and recall weigh the
kinds of matches and count function words less; chunks are punished. Parameters are those for ranking, the default.

    counts = meteor_counts(pairs, find_tables())
    meteor(counts)       # of the corpus
    meteor([counts[0]])  # of a sentence
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lavila_fast.exams.meteor_tables import LONGEST, MeteorTables, Phrase, read_tables, words_of
from lavila_fast.text.stem import stem

ALPHA, BETA, GAMMA, DELTA = 0.85, 0.2, 0.6, 0.75
KINDS = (1.0, 0.6, 0.8, 0.6)  # weight of a match: the same word, stem, synonym, paraphrase
_SEARCHED = (1.0, 0.5, 0.5, 0.5)  # the same, while the best alignment is looked for
_BEAM = 40
Counts = list[float]
"""Lengths and function words of both; content and function words matched, of both, by kind; chunks; words matched."""


class Match(NamedTuple):
    """Words `place`, … of the reference are words `other`, … of the sentence."""

    kind: int
    place: int
    length: int
    other: int
    other_length: int


@dataclass(frozen=True)
class _Path:
    """A partial alignment, from left to right in the reference.

    Attributes:
        chosen: Match that begins at each word of the reference, if any.
        used: Words of the sentence that are taken.
        taken: Words of the reference that are taken.
        counts: Words matched on both sides, weighted, as whole numbers.
        chunks: Closed so far.
        place: Next word to look at.
        end: Where the last match ends in the sentence; -1 after a gap.
        distance: How far matched words lie apart.
    """

    chosen: tuple[Match | None, ...]
    used: frozenset[int] = frozenset()
    taken: frozenset[int] = frozenset()
    counts: tuple[int, int] = (0, 0)
    chunks: int = 0
    place: int = 0
    end: int = -1
    distance: int = 0

    @property
    def rank(self) -> tuple[int, int, int]:
        """Smaller is better."""
        return -sum(self.counts), self.chunks, self.distance

    def fits(self, match: Match) -> bool:
        """Whether all of its words are free."""
        return self.used.isdisjoint(_others(match)) and self.taken.isdisjoint(_places(match))

    def holding(self, match: Match) -> _Path:
        """With a match whose turn has not come yet."""
        chosen = (*self.chosen[: match.place], match, *self.chosen[match.place + 1 :])
        return replace(
            self, chosen=chosen, used=self.used.union(_others(match)), taken=self.taken.union(_places(match))
        )

    def passing(self, match: Match) -> _Path:
        """Behind a match that it holds; the distance is left to the caller."""
        weight = _SEARCHED[match.kind]
        counts = tuple(
            int(count + length * weight)
            for count, length in zip(self.counts, (match.other_length, match.length), strict=True)
        )
        broken = self.end != -1 and match.other != self.end
        behind = match.other + match.other_length
        return replace(
            self,
            counts=(counts[0], counts[1]),
            chunks=self.chunks + broken,
            place=match.place + match.length,
            end=behind,
        )


def _others(match: Match) -> range:
    return range(match.other, match.other + match.other_length)


def _places(match: Match) -> range:
    return range(match.place, match.place + match.length)


@dataclass
class _Matches:
    """All that could be aligned.

    Attributes:
        at: Matches by the word of the reference at which they begin.
        cover: How many matches touch each word of the reference.
        other_cover: The same of the sentence.
    """

    at: list[list[Match]]
    cover: list[int] = field(default_factory=list)
    other_cover: list[int] = field(default_factory=list)

    def add(self, match: Match) -> None:
        self.at[match.place].append(match)
        for i in _places(match):
            self.cover[i] += 1
        for i in _others(match):
            self.other_cover[i] += 1


def possible(said: Sequence[str], told: Sequence[str], tables: MeteorTables) -> _Matches:
    """All matches of a sentence and its reference; of two that are equal only those of equal words."""
    found = _Matches([[] for _ in told], [0] * len(told), [0] * len(said))
    keys = [(list(said), list(told))]
    if list(said) != list(told):
        keys.append(([stem(word) for word in said], [stem(word) for word in told]))
    for kind, (mine, theirs) in enumerate(keys):
        for j, one in enumerate(theirs):
            for i, other in enumerate(mine):
                if one == other and (kind == 0 or said[i] != told[j]):
                    found.add(Match(kind, j, 1, i, 1))
    if len(keys) > 1:
        _synonyms(found, said, told, tables)
        _phrases(found, said, told, tables)
    return found


def _synonyms(found: _Matches, said: Sequence[str], told: Sequence[str], tables: MeteorTables) -> None:
    mine = [tables.meanings(word) for word in said]
    for j, word in enumerate(told):
        meanings = tables.meanings(word)
        for i, other in enumerate(said):
            if other != word and not meanings.isdisjoint(mine[i]):
                found.add(Match(2, j, 1, i, 1))


def _phrases(found: _Matches, said: Sequence[str], told: Sequence[str], tables: MeteorTables) -> None:
    for j, length, words in _paraphrased(told, tables):
        for i in _places_of(words, said):
            found.add(Match(3, j, length, i, len(words)))
    for i, length, words in _paraphrased(said, tables):
        for j in _places_of(words, told):
            found.add(Match(3, j, len(words), i, length))


def _paraphrased(words: Sequence[str], tables: MeteorTables) -> list[tuple[int, int, Phrase]]:
    """(place, length, paraphrase) of each phrase that has one."""
    return [
        (i, length, other)
        for i in range(len(words))
        for length in range(1, min(LONGEST, len(words) - i) + 1)
        for other in tables.paraphrases.get(tuple(words[i : i + length]), ())
    ]


def _places_of(phrase: Phrase, words: Sequence[str]) -> list[int]:
    count = len(phrase)
    return [i for i in range(len(words) - count + 1) if tuple(words[i : i + count]) == phrase]


def aligned(matches: _Matches) -> list[Match]:
    """The best alignment."""
    start = _Path((None,) * len(matches.at))
    for some in matches.at:
        if len(some) == 1 and _alone(some[0], matches):
            start = start.holding(some[0])
    paths = [start]
    for place, some in enumerate(matches.at):
        following: list[_Path] = []
        for path in sorted(paths, key=lambda one: one.rank)[:_BEAM]:
            following += _steps(path, place, some)
        paths = following or paths[:1]
    closed = [
        replace(path, chunks=path.chunks + (path.end != -1)) for path in sorted(paths, key=lambda p: p.rank)[:_BEAM]
    ]
    best = min(closed, key=lambda one: one.rank)
    return [match for match in best.chosen if match is not None]


def _alone(match: Match, matches: _Matches) -> bool:
    """Whether no other match touches its words."""
    here, there = (matches.cover[i] for i in _places(match)), (matches.other_cover[i] for i in _others(match))
    return all(count == 1 for count in here) and all(count == 1 for count in there)


def _steps(path: _Path, place: int, some: list[Match]) -> list[_Path]:
    """What a path may become at a word of the reference."""
    if place in path.taken:
        if place < path.place:
            return [path]
        fixed = path.chosen[path.place]
        if fixed is None:
            return []
        return [replace(path.passing(fixed), distance=path.distance + abs(fixed.place - fixed.other))]
    found = []
    for match in some:
        if path.fits(match):
            found.append(path.holding(match).passing(match))
            # METEOR 1.5 adds the distance to the path that goes on without this match, and to later branches of it.
            path = replace(path, distance=path.distance + abs(match.place - match.other))
    gap = replace(path, chunks=path.chunks + (path.end != -1), end=-1, place=path.place + 1)
    return [*found, gap]


def meteor_counts(pairs: Sequence[tuple[str, str]], folder: Path) -> list[Counts]:
    """What METEOR needs of each pair of sentence and reference.

    Raises:
        InputError: the tables in `folder` are damaged.
    """
    plain = read_tables(folder, ())
    words = [[words_of(one, plain.prefixes) for one in pair] for pair in pairs]
    phrases = {
        tuple(some[i : i + n])
        for some in {tuple(one) for pair in words for one in pair}
        for n in range(1, LONGEST + 1)
        for i in range(len(some) - n + 1)
    }
    tables = read_tables(folder, phrases)
    return [_counts(said, told, tables) for said, told in words]


def _counts(said: Sequence[str], told: Sequence[str], tables: MeteorTables) -> Counts:
    matches = aligned(possible(said, told, tables))
    function = [{i for i, word in enumerate(some) if word in tables.function_words} for some in (said, told)]
    by_kind = np.zeros((4, 4))
    for match in matches:
        for side, places in enumerate((_others(match), _places(match))):
            for i in places:
                by_kind[match.kind, side + 2 * (i in function[side])] += 1
    chunks, end, behind = 0, -1, -1
    for match in matches:
        chunks += match.other != end or match.place != behind
        end, behind = match.other + match.other_length, match.place + match.length
    own = [len(said), len(told), len(function[0]), len(function[1])]
    return [*map(float, own), *by_kind.ravel().tolist(), float(chunks)]


def meteor(counts: Sequence[Counts]) -> float:
    """METEOR of a corpus from the `meteor_counts` of its sentences, 0 to 1."""
    rows = np.asarray(counts, np.float64)
    kinds = rows[:, 4:20].reshape(-1, 4, 4)
    matched = kinds.sum(axis=1)  # content of both, function words of both
    whole = (matched[:, 0] + matched[:, 2] == rows[:, 0]) & (matched[:, 1] + matched[:, 3] == rows[:, 1])
    chunks = float(np.where(whole & (rows[:, 20] == 1), 0.0, rows[:, 20]).sum())
    total, by_kind = rows.sum(axis=0), kinds.sum(axis=0)
    shares = []
    for side in range(2):
        weighted = float(np.dot(KINDS, DELTA * by_kind[:, side] + (1 - DELTA) * by_kind[:, side + 2]))
        length = DELTA * (total[side] - total[side + 2]) + (1 - DELTA) * total[side + 2]
        shares.append(weighted / length if length else 0.0)
    precision, recall = shares
    if not precision or not recall:
        return 0.0
    mean = 1 / ((1 - ALPHA) / precision + ALPHA / recall)
    return float(mean * (1 - GAMMA * (chunks / (matched.sum() / 2)) ** BETA))
