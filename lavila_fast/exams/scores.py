"""From what a model gives to the scores that a benchmark ranks: views joined, classes described by texts, marginals.

As LaViLa's evaluation scripts do it, whose order of steps is part of the figure: zero-shot takes the largest of several
views and then a softmax, fine-tuned models take the mean; one view of a zero-shot model is ranked by bare cosines.

Shape suffixes: N clips, V views, D dimensions, C classes, M texts, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F64
from lavila_fast.errors import InputError
from lavila_fast.zero_shot import softmax

Floats = NDArray[np.floating[Any]]
Ids = NDArray[np.integer[Any]]
Join = Literal["max", "mean"]
Softmax = Literal["several", "always"]
TEMPLATES = {"plain": ("{}",), "ego4d": ("#C C {}", "#C {}")}
"""How a class is put into words; the second one as narrations of Ego4D are written."""


def unit(rows: Floats) -> F64:
    """Rows scaled to length 1; a row of zeros stays."""
    length = np.linalg.norm(rows.astype(np.float64), axis=-1, keepdims=True)
    return np.asarray(rows / np.maximum(length, 1e-12), np.float64)


def class_texts(names: Sequence[Sequence[str]], template: str) -> list[list[str]]:
    """All texts of each class, from its names.

    Raises:
        InputError: there is no such template.
    """
    if template not in TEMPLATES:
        raise InputError(f"template {template}: take {' or '.join(TEMPLATES)}")
    return [[form.format(name) for form in TEMPLATES[template] for name in some] for some in names]


def class_vectors(texts_MD: Floats, rows: Sequence[Sequence[int]]) -> F64:
    """The vector of each class, (C, D): the mean of its texts' unit vectors, of unit length.

    Args:
        texts_MD: Embeddings of all texts.
        rows: Which of them describe each class.
    """
    texts = unit(texts_MD)
    return unit(np.stack([texts[list(some)].mean(axis=0) for some in rows]))


def class_cosines(views_NVD: Floats, classes_CD: Floats) -> F64:
    """Cosine of each view and class, (N, V, C)."""
    return np.asarray(unit(views_NVD) @ classes_CD.T, np.float64)


def join_views(scores_NVC: Floats, join: Join, when: Softmax) -> F64:
    """Scores of each clip, (N, C), from those of its views.

    Args:
        scores_NVC: Cosines, or logits.
        join: The largest of the views, or their mean.
        when: Whether a softmax follows only where there are several views.
    """
    joined = np.asarray(scores_NVC.max(axis=1) if join == "max" else scores_NVC.mean(axis=1), np.float64)
    return softmax(joined) if when == "always" or scores_NVC.shape[1] > 1 else joined


def marginals(actions_NA: Floats, parts: Sequence[int], count: int) -> F64:
    """Scores of verbs, or of nouns, (N, count): sums over the actions that have them.

    A verb without an action gets the score of action 0, as in the original, whose figures count on it.

    Args:
        actions_NA: Probabilities of actions.
        parts: Verb of each action.
        count: How many verbs there are.
    """
    member = np.zeros((actions_NA.shape[1], count))
    member[np.arange(len(parts)), list(parts)] = 1
    member[0, member.sum(axis=0) == 0] = 1
    return np.asarray(actions_NA @ member, np.float64)


def retrieval_scores(video_ND: Floats, text_MD: Floats, normalised: bool = True) -> NDArray[np.float32]:
    """How well clips and sentences fit, (N, M): the dot product, moved to 0..1 for unit vectors."""
    video, text = (unit(video_ND), unit(text_MD)) if normalised else (video_ND, text_MD)
    scores = video.astype(np.float32) @ text.astype(np.float32).T
    scores += 1
    scores /= 2
    return np.asarray(scores, np.float32)


def average_precisions(scores_NC: Floats, shown_NC: Floats) -> F64:
    """Average precision of each class over the clips, (C,), as Charades' code has it; nan for a class never shown.

    Clips without any class are put last, in their order, whatever their scores.
    """
    scores = np.array(scores_NC, np.float64)
    scores[shown_NC.sum(axis=1) == 0] = -np.inf
    order = np.argsort(-scores, axis=0, kind="stable")
    hits = np.take_along_axis(np.asarray(shown_NC) > 0, order, axis=0)
    precision = hits.cumsum(axis=0) / np.arange(1, len(hits) + 1)[:, None]
    with np.errstate(invalid="ignore"):
        return np.asarray((precision * hits).sum(axis=0) / hits.sum(axis=0), np.float64)


def mean_accuracy(labels_N: Ids, predicted_N: Ids) -> float:
    """Mean accuracy, 0..1, of the classes that occur among labels or predictions; one only predicted counts 0."""
    size = 1 + int(max(labels_N.max(), predicted_N.max()))
    shown, told = (np.bincount(some, minlength=size) for some in (labels_N, predicted_N))
    right = np.bincount(labels_N[labels_N == predicted_N], minlength=size)
    return float((right / np.maximum(shown, 1))[(shown + told) > 0].mean())


def choice_scores(query_ND: Floats, options_NOD: Floats) -> F64:
    """Dot products of questions and their options, (N, options); of the vectors as they are, not of unit length."""
    return np.asarray(np.einsum("nd,nod->no", query_ND, options_NOD, dtype=np.float64), np.float64)
