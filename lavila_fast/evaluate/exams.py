"""What a benchmark asks of a model: its clips, its texts, what is right, and the tables that answers are scored in.

A table has a row for each thing that is asked; all figures are computed from tables (`figures`), so that two runs can
be compared row by row, and a figure's interval comes from drawing rows again.

Shape suffixes: N clips, V views, D dimensions, M texts, C classes, Q questions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.errors import InputError
from lavila_fast.evaluate import metrics, scores
from lavila_fast.evaluate.cider import cider
from lavila_fast.evaluate.footage import Library
from lavila_fast.evaluate.meteor import meteor_counts
from lavila_fast.evaluate.meteor_tables import find_tables
from lavila_fast.evaluate.protocols import Protocol
from lavila_fast.evaluate.sentences import bleu_counts, by_blanks, rouge_l, spelt
from lavila_fast.train.datasets.samples import AnnotatedSet

Tables = dict[str, dict[str, Any]]
Embed = Callable[[Sequence[str]], F32]
E = TypeVar("E", bound="Exam")
VERBS, NOUNS = 97, 300


@dataclass(frozen=True)
class Facts:
    """What was found out about the annotations.

    Attributes:
        files: Name of each file → what is known of it.
        notes: For the reader.
        odd: Why figures cannot be compared with published ones.
    """

    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Seen:
    """What a model gave for the clips.

    Attributes:
        values: (N, V, D) embeddings; of a classifier, logits of all heads one after the other; of a narrator, (N,) what
            it wrote, as JSON.
        heads: Classes of each head; empty for embeddings.
        embed: Embeds texts; None for a classifier.
    """

    values: NDArray[Any]
    heads: tuple[int, ...] = ()
    embed: Embed | None = None

    def logits(self) -> list[F32]:
        """Those of each head, (N, V, C)."""
        ends = np.cumsum(self.heads)[:-1]
        return list(np.split(self.values, ends, axis=2))

    def text(self, texts: Sequence[str]) -> F32:
        """Embeddings (M, D) of texts."""
        assert self.embed is not None
        return self.embed(texts)


@dataclass(frozen=True)
class Exam:
    """Base of exams.

    Attributes:
        clips: What is seen.
        ids: Of the clips.
        videos: File of each clip, or the folder of its chunks.
        library: Where they lie.
        facts: About the annotations.
    """

    clips: AnnotatedSet
    ids: tuple[str, ...]
    videos: tuple[str, ...]
    library: Library
    facts: Facts

    primary: ClassVar[str] = ""

    def of(self: E, places: Sequence[int]) -> E:
        """The exam about some of the clips, by their places in `ids`."""
        raise NotImplementedError

    def first(self: E, count: int) -> E:
        """The exam about the first so many clips."""
        return self.of(range(min(count, len(self.ids))))

    def check(self, heads: tuple[int, ...]) -> None:
        """See whether a classifier's heads fit; for other models and exams there is nothing to see.

        Raises:
            InputError: they have other numbers of classes.
        """

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """How well each thing that is asked was answered."""
        raise NotImplementedError

    def _part(self, places: Sequence[int]) -> dict[str, Any]:
        ids, videos = (tuple(names[i] for i in places) for names in (self.ids, self.videos))
        return {"clips": Chosen(self.clips, tuple(places)), "ids": ids, "videos": videos}


@dataclass(frozen=True)
class Chosen:
    """Some items of a data set."""

    whole: AnnotatedSet
    places: tuple[int, ...]

    def __len__(self) -> int:
        """How many."""
        return len(self.places)

    def sample(self, index: int, random: Any = None) -> Any:
        """See `AnnotatedSet`."""
        return self.whole.sample(self.places[index], random)


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

    primary: ClassVar[str] = "map"

    def of(self, places: Sequence[int]) -> Retrieval:
        """See `Exam`; sentences that fit none of the clips fully go with the rest."""
        relevancy = self.relevancy[list(places)]
        fits = np.flatnonzero((relevancy == 1).any(axis=0))
        kept: dict[str, Any] = {
            "sentences": tuple(self.sentences[i] for i in fits),
            "sentence_ids": tuple(self.sentence_ids[i] for i in fits),
            "relevancy": relevancy[:, fits],
        }
        return replace(self, **self._part(places), **kept)

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`."""
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

    primary: ClassVar[str] = "top1"

    def of(self, places: Sequence[int]) -> Classes:
        """See `Exam`; all classes stay."""
        return replace(self, **self._part(places), labels=self.labels[list(places)])

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`; verbs and nouns are those of a classifier."""
        if not seen.heads:
            return {"clips": self._row("", self._by_texts(protocol, seen), self.labels)}
        heads = [scores.join_views(one, protocol.join, protocol.softmax) for one in seen.logits()]
        found = self._row("", heads[-1], self.labels)
        if self.pairs:
            pairs = np.array(self.pairs)
            parts = (
                heads[:2]
                if len(heads) == 3
                else [
                    scores.marginals(heads[0], pairs[:, i].tolist(), max(most, 1 + int(pairs[:, i].max())))
                    for i, most in enumerate((VERBS, NOUNS))
                ]
            )
            for i, name in enumerate(("verb_", "noun_")):
                found |= self._row(name, parts[i], pairs[self.labels, i])
        return {"clips": found}

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

    primary: ClassVar[str] = "map"

    def of(self, places: Sequence[int]) -> Several:
        """See `Exam`; all classes stay."""
        return replace(self, **self._part(places), shown=self.shown[list(places)])

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`: a row a class, as the figure is a mean over classes."""
        vectors = class_vectors(self.names, protocol.template, seen)
        found = scores.join_views(scores.class_cosines(seen.values, vectors), protocol.join, protocol.softmax)
        ap = scores.average_precisions(found, self.shown)
        told = {"id": [name for name, *_ in self.names], "videos": self.shown.sum(axis=0).astype(np.int64), "ap": ap}
        return {"classes": told}


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

    primary: ClassVar[str] = "intra"

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
        return replace(kept, **self._part(places), options=new[kept.options])

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

    primary: ClassVar[str] = "cider"

    def of(self, places: Sequence[int]) -> Narrations:
        """See `Exam`."""
        return replace(self, **self._part(places), references=tuple(self.references[i] for i in places))

    def tables(self, protocol: Protocol, seen: Seen) -> Tables:
        """See `Exam`: a row a sentence, as each of several samples is scored by itself against the one reference."""
        told = [json.loads(str(one)) for one in seen.values]
        ids = [f"{name}#{i}" for name, one in zip(self.ids, told, strict=True) for i in range(len(one["said"]))]
        raw = [text for one in told for text in one["said"]]
        people = [text for one, text in zip(told, self.references, strict=True) for _ in one["said"]]
        said, references = [spelt(text) for text in raw], [spelt(text) for text in people]
        pairs = list(zip(said, references, strict=True))
        sentences = {
            "id": ids,
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
