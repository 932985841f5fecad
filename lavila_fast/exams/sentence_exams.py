"""Exams about clips and sentences: retrieval both ways, a choice of five, and sentences against people's.

Shape suffixes: N clips, M texts, Q questions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.errors import InputError
from lavila_fast.evaluate import metrics
from lavila_fast.evaluate.cider import cider
from lavila_fast.exams import scores
from lavila_fast.exams.exam import Exam, Seen, Tables
from lavila_fast.exams.meteor import meteor_counts
from lavila_fast.exams.meteor_tables import find_tables
from lavila_fast.exams.protocols import Protocol
from lavila_fast.exams.sentences import bleu_counts, by_blanks, rouge_l, spelt


@dataclass(frozen=True)
class Retrieval(Exam):
    """Clips and sentences that fit each other more or less.

    Attributes:
        sentences: M of them.
        sentence_ids: Theirs.
        relevancy: (N, M), 0 to 1.
    """

    sentences: tuple[str, ...] = ()
    sentence_ids: tuple[str, ...] = ()
    relevancy: F64 = field(default_factory=lambda: np.zeros((0, 0)))

    def of(self, places: Sequence[int]) -> Retrieval:
        """See `Exam`; sentences that fit none of the clips fully go with the rest."""
        relevancy = self.relevancy[list(places)]
        fits = np.flatnonzero((relevancy == 1).any(axis=0))
        kept: dict[str, Any] = {
            "sentences": tuple(self.sentences[i] for i in fits),
            "sentence_ids": tuple(self.sentence_ids[i] for i in fits),
            "relevancy": relevancy[:, fits],
        }
        return replace(self, **self.part(places), **kept)

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`."""
        if not self.sentences:
            raise InputError("none of the sentences fits any of these clips; take more of them: another --limit")
        found = scores.retrieval_scores(seen.values[:, 0], seen.text(self.sentences), protocol.normalised)
        best = [self.sentences[i] for i in found.argmax(axis=1)]
        first = [self.ids[i] for i in found.argmax(axis=0)]
        own = [self.sentences[i] for i in self.relevancy.argmax(axis=1)]
        return {
            "video_to_text": {"id": self.ids, "text": own, "first": best, **_ranked(found, self.relevancy)},
            "text_to_video": {
                "id": self.sentence_ids,
                "text": self.sentences,
                "first": first,
                **_ranked(found.T, self.relevancy.T),
            },
        }


def _ranked(scores_NM: F32, relevancy_NM: F64) -> dict[str, F64]:
    ap, gain = metrics.ranking_figures(scores_NM, relevancy_NM)
    return {"ap": ap, "ndcg": gain}


@dataclass(frozen=True)
class Choice(Exam):
    """Questions whose answer is one of five clips.

    Attributes:
        question_ids: Of Q questions.
        queries: Their texts.
        options: (Q, 5), which clips are to choose from.
        answers: (Q,), which of the five is right.
        kinds: (Q,): 1 within one video, 2 among several.
    """

    question_ids: tuple[str, ...] = ()
    queries: tuple[str, ...] = ()
    options: I64 = field(default_factory=lambda: np.zeros((0, 5), np.int64))
    answers: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    kinds: I64 = field(default_factory=lambda: np.zeros(0, np.int64))

    def first(self, count: int) -> Choice:
        """The first so many questions."""
        kept = self._questions(np.arange(min(count, len(self.queries))))
        return kept.of(np.unique(kept.options).tolist())

    def of(self, places: Sequence[int]) -> Choice:
        """See `Exam`; the questions of whose clips one is lacking go."""
        new = np.full(len(self.ids), -1, np.int64)
        new[list(places)] = np.arange(len(places))
        options = new[self.options]
        kept = self._questions(np.flatnonzero((options >= 0).all(axis=1)))
        return replace(kept, **self.part(places), options=new[kept.options])

    def _questions(self, which: NDArray[np.integer[Any]]) -> Choice:
        return replace(
            self,
            question_ids=tuple(self.question_ids[i] for i in which),
            queries=tuple(self.queries[i] for i in which),
            options=self.options[which],
            answers=self.answers[which],
            kinds=self.kinds[which],
        )

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`."""
        if not self.queries:
            raise InputError("each question lacks one of its clips; fetch the missing videos")
        different = list(dict.fromkeys(self.queries))
        place = {text: i for i, text in enumerate(different)}
        query, clips = seen.text(different), seen.values[:, 0]
        if protocol.normalised:
            query, clips = scores.unit(query).astype(np.float32), scores.unit(clips).astype(np.float32)
        told = [
            scores.choice_scores(query[[place[text] for text in self.queries[at]]], clips[self.options[at]])
            for at in metrics.blocks(len(self.queries), 5 * clips.shape[1])
        ]
        right = np.concatenate(told).argmax(axis=1)
        answers: dict[str, Any] = {"label": self.answers, "told": right}
        for name, one in (("right_clip", self.answers), ("told_clip", right)):
            answers[name] = [self.ids[i] for i in self.options[np.arange(len(one)), one]]
        return {"questions": {"id": self.question_ids, "text": self.queries, "type": self.kinds, **answers}}


@dataclass(frozen=True)
class Narrations(Exam):
    """Clips and what people said of them.

    Attributes:
        references: Of each clip.
    """

    references: tuple[str, ...] = ()

    def of(self, places: Sequence[int]) -> Narrations:
        """See `Exam`."""
        return replace(self, **self.part(places), references=tuple(self.references[i] for i in places))

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`: a row a sentence, as each of several samples is scored by itself against the one reference."""
        told = [json.loads(str(one)) for one in seen.values]
        ids = [f"{name}#{i}" for name, one in zip(self.ids, told, strict=True) for i in range(len(one["said"]))]
        raw = [text for one in told for text in one["said"]]
        people = [text for one, text in zip(told, self.references, strict=True) for _ in one["said"]]
        said, references = [spelt(text) for text in raw], [spelt(text) for text in people]
        pairs = list(zip(said, references, strict=True))
        sentences: dict[str, Any] = {
            "id": ids,
            "clip": [name for name, one in zip(self.ids, told, strict=True) for _ in one["said"]],
            "said": raw,
            "reference": people,
            "bleu": [bleu_counts(*pair) for pair in pairs],
            "rouge_l": [rouge_l(*pair) for pair in pairs],
            "cider": cider(said, [[one] for one in references], by_blanks),
        }
        folder = find_tables()
        if folder is None:
            self.facts.notes.append("METEOR is left out: its tables come with pip install pycocoevalcap (104 MB)")
        else:
            sentences["meteor"] = meteor_counts(pairs, folder)
        clips = {
            "id": self.ids,
            "perplexity": [one["perplexity"] for one in told],
            "free_perplexity": [float(np.mean(one["free_perplexity"])) for one in told],
        }
        return {"sentences": sentences, "clips": clips}
