"""Sentences against what people said: BLEU, ROUGE-L and CIDEr-D as nlg-eval computes them for LaViLa's narrator.

Both sentences are brought into one spelling first, as BERT's vocabulary has words: lower case, without accents,
punctuation apart, then set close again. After that a word is what stands between blanks.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from lavila_fast.text.clean import close_spaces

LONGEST = 4
_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x2FA1F))
_BETA = 1.2  # how much more recall counts than precision in ROUGE-L
_TINY, _SMALL = 1e-15, 1e-9  # nlg-eval's, against divisions by zero


def spelt(text: str) -> str:
    """A sentence as BERT's lower-case vocabulary spells it."""
    apart = []
    for character in unicodedata.normalize("NFD", text.lower()):
        kind = unicodedata.category(character)
        if character.isspace():
            apart.append(" ")
        elif kind == "Mn" or kind in ("Cc", "Cf") or character == "\ufffd":
            continue
        elif _is_punctuation(character, kind) or _is_ideograph(character):
            apart.append(f" {character} ")
        else:
            apart.append(character)
    return close_spaces(" ".join("".join(apart).split()))


def _is_punctuation(character: str, kind: str) -> bool:
    return kind.startswith("P") or (character.isascii() and character.isprintable() and not character.isalnum())


def _is_ideograph(character: str) -> bool:
    code = ord(character)
    return any(low <= code <= high for low, high in _IDEOGRAPHS)


def kept_ids(ids: Sequence[int], end: int, most: int) -> list[int]:
    """What of a written row becomes text: behind the first token, up to the first end token.

    Args:
        ids: First token and all that follow.
        end: The end token.
        most: Tokens that a row may have; of one that has so many and no end the last is dropped, as in the original.
    """
    rest = list(ids[1:])
    if end in rest:
        return rest[: rest.index(end)]
    return rest[:-1] if len(ids) >= most else rest


def bleu_counts(said: str, reference: str) -> list[int]:
    """What BLEU needs of a sentence: n-grams that match and n-grams there are, for n from 1 to 4, and both lengths."""
    mine, theirs = said.split(), reference.split()
    counts = []
    for n in range(1, LONGEST + 1):
        own, other = (Counter(zip(*(words[i:] for i in range(n)), strict=False)) for words in (mine, theirs))
        counts += [(own & other).total(), max(0, len(mine) - n + 1)]
    return [*counts, len(mine), len(theirs)]


def bleu(counts: Sequence[Sequence[int]]) -> list[float]:
    """BLEU-1 to 4 of a corpus from the `bleu_counts` of its sentences (Papineni et al., ACL 2002)."""
    *pairs, said, told = np.asarray(counts, np.float64).sum(axis=0)
    ratio = (said + _TINY) / (told + _SMALL)
    penalty = np.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    product, found = 1.0, []
    for n, (match, every) in enumerate(zip(pairs[::2], pairs[1::2], strict=True), 1):
        product *= (match + _TINY) / (every + _SMALL)
        found.append(float(product ** (1 / n) * penalty))
    return found


def rouge_l(said: str, reference: str) -> float:
    """ROUGE-L of a sentence: of the longest common subsequence of words (Lin, 2004)."""
    mine, theirs = said.split(" "), reference.split(" ")
    row = [0] * (len(theirs) + 1)
    for word in mine:
        before = 0
        for j, other in enumerate(theirs, 1):
            before, row[j] = row[j], before + 1 if word == other else max(row[j], row[j - 1])
    precision, recall = row[-1] / len(mine), row[-1] / len(theirs)
    if not precision or not recall:
        return 0.0
    return (1 + _BETA**2) * precision * recall / (recall + _BETA**2 * precision)


def by_blanks(sentence: str) -> list[str]:
    """Words between blanks."""
    return sentence.split()
