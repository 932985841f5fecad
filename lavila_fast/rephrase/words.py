"""What a sentence is about, as far as a list of small words and a light stemmer can tell.

No dictionary is asked: words that carry meaning are those that are not in `SMALL`, and two forms of one word are the
same if what is left of them without their endings is.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*|\d+(?:[.,]\d+)*")
_SMALL = """
a about above across after again all along also an and another any apart are around as at away back be been before
behind being below beneath beside besides between beyond both but by can could did do does doing done down during
each either every few for forward from further get gets getting got had has have having he her here hers herself him
himself his how i if in inside into is it its itself just like made make makes making many me more most my near next
no nor not now of off on once one onto or other our out outside over own past quite rather same she should so some
such than that the their theirs them themselves then there these they this those through to together too toward
towards under until up upon us use used uses using very via was we were what when where which while who whom whose
why will with within without would you your
"""
SMALL = frozenset(_SMALL.split())
"""Words that carry no meaning of their own here."""
_IRREGULAR = {
    form: root
    for root, forms in {
        "bring": "brought",
        "buy": "bought",
        "break": "broke broken",
        "choose": "chose chosen",
        "draw": "drew drawn",
        "drink": "drank drunk",
        "drive": "drove driven",
        "eat": "ate eaten",
        "fall": "fell fallen",
        "feed": "fed",
        "fold": "folded",
        "give": "gave given",
        "go": "goes went gone",
        "grind": "ground",
        "hang": "hung",
        "hide": "hid hidden",
        "hold": "held",
        "knife": "knives",
        "lay": "laid",
        "leaf": "leaves",
        "leave": "left",
        "man": "men",
        "put": "putting",
        "read": "reading",
        "say": "said",
        "see": "saw seen",
        "shake": "shook shaken",
        "sit": "sat",
        "speak": "spoke spoken",
        "stand": "stood",
        "stick": "stuck",
        "sweep": "swept",
        "swing": "swung",
        "take": "took taken",
        "tear": "tore torn",
        "throw": "threw thrown",
        "tooth": "teeth",
        "wear": "wore worn",
        "wind": "wound",
        "woman": "women",
        "write": "wrote written",
    }.items()
    for form in forms.split()
}
_VOWELS = set("aeiouy")


def words(text: str) -> list[str]:
    """Words and numbers in small letters, in order; marks and punctuation are left out."""
    return [found[0].lower().replace("’", "'") for found in _WORD.finditer(text)]


def plain(text: str) -> str:
    """What two sentences have in common that differ only in capitals, spaces and punctuation."""
    return " ".join(words(text))


def stem(word: str) -> str:
    """A word without its ending: *slices*, *sliced* and *slicing* are one, so are *knives* and *knife*."""
    word = word.removesuffix("'s")
    word = _IRREGULAR.get(word, word)
    for ending in ("ing", "ed", "es", "s"):
        rest = word.removesuffix(ending)
        if rest != word and len(rest) > 2 and _VOWELS & set(rest) and not word.endswith(("ss", "us")):
            word = rest
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    if len(word) > 2 and word[-1] in "iy":
        return word[:-1] + "i"
    return word.removesuffix("e") if len(word) > 3 else word


def content(text: str) -> list[str]:
    """Stems of the words that carry meaning, each once, in order."""
    return list(dict.fromkeys(stem(word) for word in words(text) if word not in SMALL))
