"""Exams about classes: clips of one class each, and clips in which several are shown.

Shape suffixes: N clips, C classes, D dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lavila_fast.arrays import F64, I64
from lavila_fast.errors import InputError
from lavila_fast.evaluate import metrics
from lavila_fast.exams import scores
from lavila_fast.exams.data_folder import unique
from lavila_fast.exams.exam import Exam, Seen, Tables
from lavila_fast.exams.protocols import Protocol

VERBS, NOUNS = 97, 300  # of EPIC-KITCHENS-100


@dataclass(frozen=True)
class Classes(Exam):
    """Clips of one class each.

    Attributes:
        labels: (N,).
        names: Of each class, all it is called.
        pairs: Verb and noun of each class, where it has them.
    """

    labels: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    names: tuple[tuple[str, ...], ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()

    def of(self, places: Sequence[int]) -> Classes:
        """See `Exam`; all classes stay."""
        return replace(self, **self.part(places), labels=self.labels[list(places)])

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`; verbs and nouns are those of a classifier."""
        if not seen.heads:
            return {"clips": self._row("", self._by_texts(protocol, seen), self.labels)}
        heads = [scores.join_views(one, protocol.join, protocol.softmax) for one in seen.logits()]
        found = self._row("", heads[-1], self.labels)
        if self.pairs:
            pairs = np.array(self.pairs)
            for i, name in enumerate(("verb_", "noun_")):
                found |= self._row(
                    name, heads[i] if len(heads) == 3 else self._sums(heads[0], i), pairs[self.labels, i]
                )
        return {"clips": found}

    def _sums(self, actions_NA: F64, part: int) -> F64:
        """Scores of verbs (0) or nouns (1) from those of actions."""
        parts = [pair[part] for pair in self.pairs]
        return scores.marginals(actions_NA, parts, max((VERBS, NOUNS)[part], 1 + max(parts)))

    def _by_texts(self, protocol: Protocol, seen: Seen) -> F64:
        vectors = class_vectors(self.names, protocol.template, seen)
        return scores.join_views(scores.class_cosines(seen.values, vectors), protocol.join, protocol.softmax)

    def check(self, heads: tuple[int, ...]) -> None:
        """See `Exam`."""
        wanted: tuple[int, ...] = (len(self.names),)
        if self.pairs and len(heads) == 3:
            verbs, nouns = (1 + max(pair[i] for pair in self.pairs) for i in range(2))
            wanted = (max(heads[0], verbs), max(heads[1], nouns), *wanted)
        if heads and heads != wanted:
            raise InputError(
                f"the model's heads have {' and '.join(map(str, heads))} classes, these annotations "
                f"{' and '.join(map(str, wanted))}; give the classifier that was trained for them"
            )

    def _row(self, name: str, found_NC: F64, labels_N: I64) -> dict[str, Any]:
        table: dict[str, Any] = {"id": self.ids} if not name else {}
        told = {f"{name}label": labels_N, f"{name}told": found_NC.argmax(axis=1)}
        return table | told | {f"{name}in_5": metrics.topk_hits(found_NC, labels_N, 5).astype(np.int64)}


def class_vectors(names: Sequence[Sequence[str]], template: str, seen: Seen) -> F64:
    """The vector of each class (C, D), of all that it is called."""
    texts = scores.class_texts(names, template)
    every = list(dict.fromkeys(text for some in texts for text in some))
    place = {text: i for i, text in enumerate(every)}
    return scores.class_vectors(seen.text(every), [[place[text] for text in some] for some in texts])


@dataclass(frozen=True)
class Several(Exam):
    """Clips in which several classes are shown.

    Attributes:
        shown: (N, C) of 0 and 1.
        names: Of each class.
    """

    shown: F64 = field(default_factory=lambda: np.zeros((0, 0)))
    names: tuple[tuple[str, ...], ...] = ()

    def of(self, places: Sequence[int]) -> Several:
        """See `Exam`; all classes stay."""
        return replace(self, **self.part(places), shown=self.shown[list(places)])

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`: a row a class, as the figure is a mean over classes."""
        vectors = class_vectors(self.names, protocol.template, seen)
        found = scores.join_views(scores.class_cosines(seen.values, vectors), protocol.join, protocol.softmax)
        ap = scores.average_precisions(found, self.shown)
        told = {
            "id": unique(name for name, *_ in self.names),
            "videos": self.shown.sum(axis=0).astype(np.int64),
            "ap": ap,
        }
        return {"classes": told}
