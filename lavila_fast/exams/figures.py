"""Figures of a benchmark from its tables, and nothing else: who draws rows again gets an interval.

Per cent, but for METEOR, ROUGE-L, CIDEr and perplexities, which keep their usual scale.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.exams.meteor import meteor
from lavila_fast.exams.scores import mean_accuracy
from lavila_fast.exams.sentences import bleu

Table = Mapping[str, Any]
Tables = Mapping[str, Table]
Figures = dict[str, float]
INTRA, INTER = 1, 2


def _mean(values: Any) -> float:
    """Of those that are numbers; nan where there are none."""
    found = np.asarray(values, np.float64)
    found = found[~np.isnan(found)]
    return float(100 * found.mean()) if len(found) else float("nan")


def _retrieval(tables: Tables) -> Figures:
    found: Figures = {}
    for name, column in (("map", "ap"), ("ndcg", "ndcg")):
        both = [_mean(tables[way][column]) for way in ("video_to_text", "text_to_video")]
        found |= {name: sum(both) / 2, f"{name}_video_to_text": both[0], f"{name}_text_to_video": both[1]}
    return found


def _classes(tables: Tables) -> Figures:
    table, found = tables["clips"], {}
    for part in ("", "verb_", "noun_"):
        if f"{part}label" in table:
            label, told = (np.asarray(table[f"{part}{what}"]) for what in ("label", "told"))
            found[f"{part}top1"] = _mean(label == told)
            found[f"{part}top5"] = _mean(table[f"{part}in_5"])
            found[f"{part}mean_class"] = 100 * mean_accuracy(label, told) if len(label) else float("nan")
    return found


def _several(tables: Tables) -> Figures:
    return {"map": _mean(tables["classes"]["ap"])}


def _choice(tables: Tables) -> Figures:
    table = tables["questions"]
    right, kind = np.asarray(table["label"]) == np.asarray(table["told"]), np.asarray(table["type"])
    return {"inter": _mean(right[kind == INTER]), "intra": _mean(right[kind == INTRA])}


def _narration(tables: Tables) -> Figures:
    sentences, clips = tables["sentences"], tables["clips"]
    found: Figures = {f"bleu_{n}": value for n, value in enumerate(bleu(sentences["bleu"]), 1)}
    if "meteor" in sentences:
        found["meteor"] = meteor(sentences["meteor"])
    found |= {name: float(np.mean(sentences[name])) for name in ("rouge_l", "cider")}
    return found | {name: _mean(clips[name]) / 100 for name in ("perplexity", "free_perplexity")}


FIGURES: Mapping[str, Callable[[Tables], Figures]] = MappingProxyType(
    {
        "ek100_mir": _retrieval,
        "ek100_cls": _classes,
        "egtea": _classes,
        "charades_ego": _several,
        "ego_mcq": _choice,
        "narration": _narration,
    }
)
NAMES: Mapping[str, str] = MappingProxyType(
    {
        "map": "mAP",
        "map_video_to_text": "mAP, video to text",
        "map_text_to_video": "mAP, text to video",
        "ndcg": "nDCG",
        "ndcg_video_to_text": "nDCG, video to text",
        "ndcg_text_to_video": "nDCG, text to video",
        "top1": "top-1",
        "top5": "top-5",
        "mean_class": "mean of classes",
        **{f"{part}_top1": f"{part}s, top-1" for part in ("verb", "noun")},
        **{f"{part}_top5": f"{part}s, top-5" for part in ("verb", "noun")},
        **{f"{part}_mean_class": f"{part}s, mean of classes" for part in ("verb", "noun")},
        **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)},
        "meteor": "METEOR",
        "rouge_l": "ROUGE-L",
        "cider": "CIDEr-D",
        "perplexity": "perplexity of people's words",
        "free_perplexity": "the same, given its own words",
        "inter": "several videos (inter)",
        "intra": "one video (intra)",
    }
)
"""What figures are called for people."""
_SENTENCES = {*(f"bleu_{n}" for n in range(1, 5)), "meteor", "rouge_l", "cider", "perplexity", "free_perplexity"}
IN_POINTS = frozenset(NAMES) - _SENTENCES
"""Shares of what was ranked or told right, in per cent: of these a loss is told in points."""


def drawn(tables: Tables, rows: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, Any]]:
    """Tables of some rows, which may repeat, of each table."""
    return {
        name: {column: np.asarray(values)[rows[name]] for column, values in table.items()}
        for name, table in tables.items()
    }
