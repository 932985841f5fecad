"""How well models do in the miniature kitchen: sentences, retrieval, multiple choice. Any engine, no torch.

Functions that end in ``_items`` give one value a clip or query, so that two engines can be compared pair by pair;
those that end in ``_figures`` give means.

    contexts = (runtime.encode(video[np.newaxis]) for video in videos)  # each (3, T, H, W), normalised
    said = [tokenizer.decode(one.ids) for one in write_greedily(runtime, contexts)]
    sentence_figures(said, clips.labels)["sentence"]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32
from lavila_fast.engines.protocol import ClipContext, NarratorRuntime
from lavila_fast.engines.sampling import Warp
from lavila_fast.evaluate.cider import cider
from lavila_fast.evaluate.clips import PARTS, action_of, labels_of
from lavila_fast.evaluate.metrics import average_precision, ndcg, recall_at
from lavila_fast.generate.options import Options, Written
from lavila_fast.generate.scheduler import EncodedClip, write_samples
from lavila_fast.kitchen.world import all_actions, parse_sentence

Labels = NDArray[np.int64]
Items = dict[str, NDArray[np.float64]]


def write_greedily(runtime: NarratorRuntime, contexts: Iterable[ClipContext], batch: int = 8) -> list[Written]:
    """The likeliest next word, again and again: one sentence for each context of one clip, in their order."""
    tasks = (EncodedClip(i, b"", context) for i, context in enumerate(contexts))
    options = Options(warp=Warp(temperature=0.0))
    found = {i: one for i, (one,) in write_samples(runtime, tasks, options, batch)}
    return [found[i] for i in range(len(found))]


def sentence_items(said: list[str], labels: Labels) -> Items:
    """Of each clip: 1.0 where verb, object, colour, hand, verb and object, all are right; nonsense is wrong in all."""
    right = np.zeros((len(said), len(PARTS)), bool)
    for i, text in enumerate(said):
        action = parse_sentence(text)
        if action is not None:
            right[i] = np.array(labels_of(action)) == labels[i]
    items: Items = {part: right[:, i].astype(np.float64) for i, part in enumerate(PARTS)}
    whole = {"verb_and_object": right[:, :2], "sentence": right}
    return items | {name: some.min(axis=1).astype(np.float64) for name, some in whole.items()}


def sentence_figures(said: list[str], labels: Labels) -> dict[str, float]:
    """Shares (0..1) of right verbs, objects, colours, hands and whole sentences."""
    return means(sentence_items(said, labels))


def means(items: Items) -> dict[str, float]:
    """The figures that items add up to."""
    return {name: float(values.mean()) for name, values in items.items()}


def narrator_items(said: list[str], labels: Labels) -> Items:
    """`sentence_items`, and CIDEr-D (0..10) against the true sentence."""
    return {**sentence_items(said, labels), "cider": cider(said, [[action_of(row).sentence] for row in labels])}


def confusions(said: list[str], labels: Labels, most: int = 6) -> list[list[Any]]:
    """The most frequent mistakes in one part of the sentence: part, what was shown, what was said, how often."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for text, row in zip(said, labels, strict=True):
        action = parse_sentence(text)
        if action is not None:
            pairs = zip(PARTS.items(), row, labels_of(action), strict=True)
            counts.update((part, names[shown], names[told]) for (part, names), shown, told in pairs if shown != told)
    return [[*mistake, count] for mistake, count in counts.most_common(most)]


def ranking(scores: F32, fits: NDArray[np.bool_]) -> dict[str, float]:
    """Recall at 1, 5, 10 and mean average precision of each row's ranking of the columns."""
    figures = {f"recall_at_{k}": float(recall_at(k, scores, fits).mean()) for k in (1, 5, 10)}
    return {**figures, "map": float(average_precision(scores, fits).mean())}


def retrieval_figures(video_NE: F32, text_ME: F32, fits_NM: NDArray[np.bool_]) -> dict[str, Any]:
    """Ranking of M distinct sentences for N clips and of the clips for the sentences."""
    scores = video_NE @ text_ME.T
    return {
        "clips": len(video_NE),
        "sentences": len(text_ME),
        "video_to_text": ranking(scores, fits_NM),
        "text_to_video": ranking(scores.T, fits_NM.T),
    }


def distinct_sentences(labels: Labels) -> tuple[list[str], Labels, NDArray[np.int64]]:
    """The different sentences of clips, their labels (M, 4), and which of them each clip shows (N,)."""
    different, where = np.unique(labels, axis=0, return_inverse=True)
    return [action_of(row).sentence for row in different], different, where.reshape(-1)


def retrieval_items(video_NE: F32, text_ME: F32, labels_N4: Labels, labels_M4: Labels) -> Items:
    """Of each clip and each of M distinct sentences as a query: AP, nDCG and recall at 1.

    AP and recall look for the very sentence; nDCG's relevancy is the share of verb, object, colour and hand that agree.
    """
    scores = video_NE @ text_ME.T
    shared = (labels_N4[:, None] == labels_M4[None]).mean(-1)
    items: Items = {}
    for way, ranked, relevancy in (("video_to_text", scores, shared), ("text_to_video", scores.T, shared.T)):
        items[f"{way}_map"] = average_precision(ranked, relevancy == 1)
        items[f"{way}_ndcg"] = ndcg(ranked, relevancy)
        items[f"{way}_recall_at_1"] = recall_at(1, ranked, relevancy).astype(np.float64)
    return items


def choice_figures(video_NE: F32, text_NE: F32, labels_N4: Labels) -> dict[str, float]:
    """Which of five clips is meant by a sentence, as EgoMCQ asks: accuracy with any four others, and with near ones.

    Near clips share at least two of the four parts with the right one (EgoMCQ's questions within one video).
    """
    rng = np.random.Generator(np.random.Philox(key=5))
    shared = (labels_N4[:, None] == labels_N4[None]).sum(-1)
    figures = {}
    for name, least in (("any", 0), ("near", 2)):
        right = 0
        for i in range(len(labels_N4)):
            others = np.flatnonzero((shared[i] >= least) & (shared[i] < len(PARTS)))
            shown = np.concatenate([[i], rng.choice(others, 4, replace=False)])
            right += int(np.argmax(video_NE[shown] @ text_NE[i]) == 0)
        figures[name] = right / len(labels_N4)
    return figures


def dual_figures(video_NE: F32, embed_text: Any, labels_N4: Labels) -> dict[str, Any]:
    """Retrieval among all sentences of the kitchen and among those of the clips, and multiple choice.

    Args:
        video_NE: Embeddings of the clips, unit length.
        embed_text: Gives the embeddings (M, E) of a list of M sentences.
        labels_N4: What the clips show.
    """
    said = [action_of(row).sentence for row in labels_N4]
    distinct = sorted(set(said))
    text_ME = embed_text(distinct)
    where = np.array([distinct.index(one) for one in said])
    fits = where[:, None] == np.arange(len(distinct))
    every = [action.sentence for action in all_actions()]
    meant = np.array([every.index(one) for one in said])[:, None] == np.arange(len(every))
    return {
        "video_to_all_sentences": {"sentences": len(every), **ranking(video_NE @ embed_text(every).T, meant)},
        "retrieval": retrieval_figures(video_NE, text_ME, fits),
        "choice_of_5": choice_figures(video_NE, text_ME[where], labels_N4),
    }
