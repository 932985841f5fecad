"""Clips get the likeliest of some labels: the work of ``lavila-fast classify``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lavila_fast.archive.journals.kinds import LABELS, Kind
from lavila_fast.arrays import F32, F64
from lavila_fast.errors import InputError, NotFiniteError
from lavila_fast.records import ClipEmbedding, ClipLabels, ClipLogits, Row
from lavila_fast.video.reader import DecodedClip
from lavila_fast.zero_shot import ZeroShot, checked_labels, checked_temperature, digest_of, softmax

if TYPE_CHECKING:
    from lavila_fast.classifier import Classifier
    from lavila_fast.dual_encoder import DualEncoder


@dataclass(frozen=True)
class LabelOptions:
    """What labels and scores depend on besides clip and model.

    Attributes:
        labels: Those of every head in a word, see `zero_shot.digest_of`.
        templates: How they are put into words.
        temperature: By which cosines or logits are divided.
        top_k: How many of a clip are kept.
        task: Tells these settings from those of other works.
    """

    labels: str = ""
    templates: str = ""
    temperature: float = 1.0
    top_k: int = 5
    task: str = "classify"


@dataclass(frozen=True, eq=False)
class Labelling:
    """Clips get the likeliest of some labels, from a dual encoder or a classifier.

    Attributes:
        options: See there.
        heads: The labels of each head; a dual encoder has one.
        words: Those of a dual encoder; None: the model is a classifier.
    """

    options: LabelOptions = LabelOptions()
    heads: tuple[tuple[str, ...], ...] = ((),)
    words: ZeroShot | None = None
    kind: Kind = LABELS

    @classmethod
    def in_words(
        cls,
        model: DualEncoder,
        labels: Sequence[str],
        templates: Sequence[str] = (),
        temperature: float | None = None,
        top_k: int = 5,
    ) -> Labelling:
        """By a dual encoder; arguments and errors as of `ZeroShot.of`."""
        words = ZeroShot.of(model, labels, templates, temperature)
        told = str(list(templates)) if templates else "as usual"
        options = LabelOptions(digest_of([words.labels]), told, words.temperature, top_k)
        return cls(options, (words.labels,), words)

    @classmethod
    def of_classifier(
        cls, model: Classifier, labels: Sequence[Sequence[str]] = (), temperature: float | None = None, top_k: int = 5
    ) -> Labelling:
        """By a classifier, whose classes have these names, or where there are none, numbers.

        Raises:
            InputError: other numbers of labels than the heads have classes, or a temperature that makes no sense.
        """
        sizes = model.config.num_classes
        if labels and [len(some) for some in labels] != list(sizes):
            heads = "its head has" if len(sizes) == 1 else "its heads have"
            counts = (" and ".join(str(size) for size in some) for some in ([len(one) for one in labels], sizes))
            given, wanted = counts
            raise InputError(f"--labels: {given} labels, but {heads} {wanted} classes; give a list of as many for each")
        names = labels or [[str(number) for number in range(size)] for size in sizes]
        heads_of = tuple(checked_labels(some) for some in names)
        found = 1.0 if temperature is None else checked_temperature(temperature)
        return cls(LabelOptions(digest_of(heads_of), "", found, top_k), heads_of)

    @property
    def samples(self) -> int:
        """See `Work`: one row a head."""
        return len(self.heads)

    def see(self, model: Any, clips: Iterator[DecodedClip], batch: int, frame_times: bool) -> Iterator[list[Row]]:
        """See `Work`.

        Raises:
            NotFiniteError: scores are no numbers.
        """
        if self.words is not None:
            for row in model.embed_clips(clips, batch, frame_times=frame_times):
                yield self._rows(row, [row.embedding], self.words.scores)
        else:
            for row in model.classify_clips(clips, batch, frame_times=frame_times):
                yield self._rows(row, row.logits, lambda logits: softmax(logits, self.options.temperature))

    def _rows(self, row: ClipEmbedding | ClipLogits, heads: Sequence[F32], scores: Callable[[F32], F64]) -> list[Row]:
        where, told = (row.video, row.start, row.end), (row.damaged, row.frames)
        try:
            found = [scores(values).reshape(-1) for values in heads]
        except NotFiniteError as error:
            raise error.of(f"{row.video}, {row.start:g} to {row.end:g} s") from error
        best = [np.argsort(-share, kind="stable")[: self.options.top_k] for share in found]
        return [
            ClipLabels(*where, tuple(labels[i] for i in top), tuple(share[top].tolist()), head, *told)
            for head, (labels, share, top) in enumerate(zip(self.heads, found, best, strict=True))
        ]
