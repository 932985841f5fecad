"""Ego4D's marks: taken off before a model reads a sentence, put back on what it writes.

``#C C picks up the cup`` says that C, who wears the camera, acts; ``#O a man X talks to C`` that another does, and
people are single capital letters. A model that has read books knows neither. It reads *The person picks up the cup.*,
and in its paraphrases the person is C again; the letters of others stay as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from lavila_fast.rephrase.words import words

PERSON = "the person"
MOST_WORDS = 200
_UNASKABLE = re.compile("#\\s*unsure|[\ud800-\udfff]", re.IGNORECASE)
_MARK = re.compile(r"\s*(#\s*[A-Za-z]+)\b\s*")
_WEARER = re.compile(r"\bC\b")
_LETTER = re.compile(r"\b[A-Z]\b")
_LETTER_FIRST = re.compile(r"(?!A )[A-Z]\b")
_BACK = re.compile(r"\b(?:(?:the|this|that)\s+(?:person|individual)|a\s+person)\b", re.IGNORECASE)
_OTHERS = """
he she him her his hers they them someone somebody man men woman women boy girl lady guy people
"""
OTHERS = frozenset(_OTHERS.split())
"""Words for people: one that the sentence has not changes who acts, but for *his*, *her* and *their* own hands."""
_OWN = {"his", "her"}


@dataclass(frozen=True)
class Marked:
    """A narration, taken apart.

    Attributes:
        mark: ``#C`` or ``#O`` as it was written, or "".
        said: What follows.
    """

    mark: str
    said: str

    @classmethod
    def parse(cls, text: str) -> Marked:
        """Of a narration; lines and blanks become single blanks."""
        text = " ".join(text.split())
        found = _MARK.match(text)
        if found and found[1].replace(" ", "").lower() in ("#c", "#o"):
            return cls(found[1], text[found.end() :])
        return cls("", text)

    @property
    def askable(self) -> bool:
        """Whether it says something that a model can read.

        That is no text without words, of more than `MOST_WORDS`, with halves of characters, or with ``#unsure``, which
        stands for what its narrator could not tell.
        """
        return 0 < len(words(self.said)) <= MOST_WORDS and not _UNASKABLE.search(self.said)

    @property
    def wearer(self) -> bool:
        """Whether C is spoken of."""
        return bool(self.mark and _WEARER.search(_upper_wearer(self)))

    def natural(self) -> str:
        """The sentence as a model reads it: a capital first, a full stop last."""
        text = _WEARER.sub(PERSON, _upper_wearer(self)) if self.mark else self.said
        text = text.strip().rstrip(" .")
        return f"{text[:1].upper()}{text[1:]}." if text and text[-1] not in "!?" else text[:1].upper() + text[1:]

    def restore(self, candidate: str) -> str:
        """A paraphrase of `natural` as a narration: C for the person, the mark before it, no full stop behind it."""
        text = " ".join(candidate.split()).rstrip(" .")
        if self.wearer:
            text = _BACK.sub("C", text)
        if not _begins_large(self.said) and not _LETTER_FIRST.match(text):
            text = text[:1].lower() + text[1:]
        if self.said.rstrip().endswith(".") and text:
            text += "."
        return f"{self.mark} {text}" if self.mark and text else text

    def people(self) -> set[str]:
        """Who is spoken of: letters, and words for people."""
        return people_in(_upper_wearer(self))


def _upper_wearer(one: Marked) -> str:
    """Some narrators write the wearer small: ``#c c walks``."""
    return re.sub(r"^c\b", "C", one.said) if one.mark else one.said


def _begins_large(said: str) -> bool:
    """Whether a sentence begins with a large letter that does not stand for a person."""
    return said[:1].isupper() and not _LETTER_FIRST.match(said)


def people_in(text: str) -> set[str]:
    """Letters that stand for people, and words for people other than their own (*his hands*)."""
    letters = {found[0] for found in _LETTER.finditer(text)} - {"A", "I"}
    return letters | ({word.lower() for word in re.findall(r"[A-Za-z]+", text)} & (OTHERS - _OWN))
