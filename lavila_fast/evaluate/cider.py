"""CIDEr-D, how much a sentence has in common with what people said (Vedantam, Zitnick, Parikh, CVPR 2015).

Own code, because the known package brings Java archives of 100 MB along. It counts as that package does: n-grams of 1
to 4 words weighed by their rarity among the clips, matches clipped to what the reference has, a Gaussian penalty on the
difference in length (sigma 6), times 10.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Gram = tuple[str, ...]
LONGEST, SIGMA = 4, 6.0


def tokens(sentence: str) -> list[str]:
    """Lower-case words; punctuation goes, apart from apostrophes within a word."""
    return re.findall(r"\w+(?:'\w+)*", sentence.lower())


def _grams(said: list[str]) -> list[Counter[Gram]]:
    return [Counter(zip(*(said[i:] for i in range(n)), strict=False)) for n in range(1, LONGEST + 1)]


def cider(
    said: Sequence[str], references: Sequence[Sequence[str]], split: Callable[[str], list[str]] = tokens
) -> NDArray[np.float64]:
    """CIDEr-D of each sentence, (N,), 0 to 10; its mean is the figure.

    Args:
        said: One sentence a clip.
        references: What people said about each clip, one sentence at least. Rarity is counted over these clips, so the
            score of one clip depends on the others, and that of a single clip is 0.
        split: Makes words of a sentence.
    """
    told = [[_grams(split(sentence)) for sentence in some] for some in references]
    clips_with = Counter(gram for some in told for gram in {g for one in some for grams in one for g in grams})
    everywhere = np.log(len(references))

    def weigh(grams: Counter[Gram]) -> dict[Gram, float]:
        return {gram: count * (everywhere - np.log(max(1, clips_with[gram]))) for gram, count in grams.items()}

    def score(mine: list[Counter[Gram]], theirs: list[Counter[Gram]]) -> float:
        gap = mine[0].total() - theirs[0].total()
        parts = [_cosine(weigh(a), weigh(b)) for a, b in zip(mine, theirs, strict=True)]
        return float(np.mean(parts) * np.exp(-(gap**2) / (2 * SIGMA**2)))

    pairs = zip((_grams(split(one)) for one in said), told, strict=True)
    return np.array([10 * np.mean([score(mine, theirs) for theirs in some]) for mine, some in pairs])


def _cosine(mine: dict[Gram, float], theirs: dict[Gram, float]) -> float:
    """Cosine of two weighed bags, where no word counts more often than in the reference."""
    common = sum(min(value, theirs[gram]) * theirs[gram] for gram, value in mine.items() if gram in theirs)
    norm = np.linalg.norm(list(mine.values())) * np.linalg.norm(list(theirs.values()))
    return float(common / norm) if norm else 0.0
