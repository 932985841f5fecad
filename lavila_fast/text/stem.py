"""Stems of English words by the Snowball project's "english" rules (Martin Porter, 2001), which METEOR compares.

    stem("picks") == stem("picking") == "pick"

Words are lower case. R1 is what follows the first consonant behind a vowel, R2 the same within R1.
"""

from __future__ import annotations

import re
from functools import cache

_VOWELS = "aeiouy"
_WHOLE = {
    **{"skis": "ski", "skies": "sky", "dying": "die", "lying": "lie", "tying": "tie", "idly": "idl"},
    **{"gently": "gentl", "ugly": "ugli", "early": "earli", "only": "onli", "singly": "singl"},
    **{word: word for word in ("sky", "news", "howe", "atlas", "cosmos", "bias", "andes")},
}
_AFTER_PLURAL = {"inning", "outing", "canning", "herring", "earring", "proceed", "exceed", "succeed"}
_STEP_2 = {
    **{"ization": "ize", "ational": "ate", "fulness": "ful", "ousness": "ous", "iveness": "ive", "tional": "tion"},
    **{"biliti": "ble", "lessli": "less", "entli": "ent", "ation": "ate", "alism": "al", "aliti": "al"},
    **{"ousli": "ous", "iviti": "ive", "fulli": "ful", "enci": "ence", "anci": "ance", "abli": "able"},
    **{"izer": "ize", "ator": "ate", "alli": "al", "bli": "ble", "ogi": "og", "li": ""},
}
_STEP_3 = {"ational": "ate", "tional": "tion", "alize": "al", "icate": "ic", "iciti": "ic", "ative": "", "ical": "ic"}
_STEP_3 |= {"ness": "", "ful": ""}
_STEP_4 = (
    *("ement", "ance", "ence", "able", "ible", "ment", "ant", "ent", "ism", "ate", "iti", "ous", "ive", "ize"),
    *("ion", "al", "er", "ic"),
)
_DOUBLES = ("bb", "dd", "ff", "gg", "mm", "nn", "pp", "rr", "tt")


@cache
def stem(word: str) -> str:
    """The stem of a word; one of up to two letters is its own."""
    if len(word) <= 2 or word in _WHOLE:
        return _WHOLE.get(word, word)
    word = re.sub(r"^y|(?<=[aeiouy])y", "Y", word.removeprefix("'"))
    first = _regions(word)
    word = _plural(re.sub(r"('s'|'s|')$", "", word))
    if word in _AFTER_PLURAL:
        return word
    word = _participle(word, first[0])
    if len(word) > 2 and word[-1] in "yY" and word[-2] not in _VOWELS:
        word = word[:-1] + "i"
    return _endings(word, *first).replace("Y", "y")


def _regions(word: str) -> tuple[int, int]:
    """Where R1 and R2 begin."""
    special = re.match(r"gener|commun|arsen", word)
    r1 = special.end() if special else _behind(word, 0)
    return r1, _behind(word, r1)


def _behind(word: str, start: int) -> int:
    found = re.compile(r"[aeiouy][^aeiouy]").search(word, start)
    return found.end() if found else len(word)


def _plural(word: str) -> str:
    if word.endswith("sses"):
        return word[:-2]
    if word.endswith(("ied", "ies")):
        return word[:-2] if len(word) > 4 else word[:-1]
    if word.endswith("s") and not word.endswith(("us", "ss")) and re.search(r"[aeiouy].+s$", word):
        return word[:-1]
    return word


def _participle(word: str, r1: int) -> str:
    ending = next((one for one in ("eedly", "ingly", "edly", "eed", "ing", "ed") if word.endswith(one)), "")
    rest = word[: len(word) - len(ending)]
    if ending in ("eed", "eedly"):
        return f"{rest}ee" if len(rest) >= r1 else word
    if not ending or not re.search(r"[aeiouy]", rest):
        return word
    if rest.endswith(("at", "bl", "iz")):
        return f"{rest}e"
    if rest.endswith(_DOUBLES):
        return rest[:-1]
    return f"{rest}e" if len(rest) <= r1 and _ends_short(rest) else rest


def _ends_short(word: str) -> bool:
    """Whether the last syllable is short."""
    return bool(re.search(r"([^aeiouy][aeiouy][^aeiouywxY]|^[aeiouy][^aeiouy])$", word))


def _endings(word: str, r1: int, r2: int) -> str:
    word = _replaced(word, _STEP_2, r1, r2)
    word = _replaced(word, _STEP_3, r1, r2)
    ending = next((one for one in _STEP_4 if word.endswith(one)), "")
    rest = word[: len(word) - len(ending)]
    if ending and len(rest) >= r2 and (ending != "ion" or rest.endswith(("s", "t"))):
        word = rest
    if word.endswith("e") and (len(word) > r2 or (len(word) > r1 and not _ends_short(word[:-1]))):
        return word[:-1]
    return word[:-1] if word.endswith("ll") and len(word) > r2 else word


def _replaced(word: str, endings: dict[str, str], r1: int, r2: int) -> str:
    """With the longest ending that is there replaced, if it lies in R1 and what precedes it allows that."""
    ending = max((one for one in endings if word.endswith(one)), key=len, default="")
    rest = word[: len(word) - len(ending)]
    if not ending or len(rest) < r1:
        return word
    if ending == "li" and not re.search(r"[cdeghkmnrt]$", rest):
        return word
    if (ending == "ogi" and not rest.endswith("l")) or (ending == "ative" and len(rest) < r2):
        return word
    return rest + endings[ending]
