"""The tables of METEOR 1.5, read without Java: they come with ``pip install pycocoevalcap``, in a jar and beside it.

They are four: function words, words before whose dot no sentence ends, WordNet's synonyms, and a table of paraphrases,
of whose five million rows only those are kept whose both sides occur in the sentences at hand.
"""

from __future__ import annotations

import gzip
import importlib.util
import io
import re
import zipfile
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from lavila_fast.errors import InputError

_JAR, _PARAPHRASES = "meteor-1.5.jar", "data/paraphrase-en.gz"
LONGEST = 7
"""Words of a phrase, at most."""
Phrase = tuple[str, ...]
_SUFFIXES = (
    *(
        ("s", ""),
        ("ses", "s"),
        ("xes", "x"),
        ("zes", "z"),
        ("ches", "ch"),
        ("shes", "sh"),
        ("men", "man"),
        ("ies", "y"),
    ),
    *(("s", ""), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"), ("ing", "")),
    *(("er", ""), ("est", ""), ("er", "e"), ("est", "e")),
)
"""Endings of words and of their base forms, as WordNet's morphology has them: nouns, verbs, adjectives."""


@dataclass(frozen=True)
class MeteorTables:
    """What METEOR knows about English.

    Attributes:
        function_words: Words that count less.
        prefixes: Words before whose dot no sentence ends → whether only where a number follows.
        synsets: Sets of synonyms that a word is in.
        bases: Base forms of irregular words.
        paraphrases: Phrases that mean the same as a phrase.
    """

    function_words: frozenset[str]
    prefixes: dict[str, bool]
    synsets: dict[str, frozenset[int]]
    bases: dict[str, tuple[str, ...]]
    paraphrases: dict[Phrase, list[Phrase]] = field(default_factory=dict)

    def meanings(self, word: str) -> frozenset[int]:
        """Sets of synonyms that a word or its base form is in."""
        own = self.synsets.get(word, frozenset())
        bases = self.bases.get(word) or (self._base(word),)
        return own.union(*(self.synsets.get(base, frozenset()) for base in bases))

    def _base(self, word: str) -> str:
        if word.endswith("ss") or len(word) <= 2:
            return word
        for ending, instead in _SUFFIXES:
            if word.endswith(ending) and (base := word[: -len(ending)] + instead) in self.synsets:
                return base
        return ""


def find_tables() -> Path | None:
    """The folder that the tables lie in, of an installed pycocoevalcap; None: there is none."""
    found = importlib.util.find_spec("pycocoevalcap")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "meteor"
        if (folder / _JAR).is_file() and (folder / _PARAPHRASES).is_file():
            return folder
    return None


def read_tables(folder: Path, phrases: Collection[Phrase]) -> MeteorTables:
    """The tables in a folder.

    Args:
        folder: With ``meteor-1.5.jar`` and ``data/paraphrase-en.gz``.
        phrases: All that occur in the sentences; paraphrases of others are left out. Without any the table is not read.

    Raises:
        InputError: they are damaged.
    """
    try:
        with zipfile.ZipFile(folder / _JAR) as jar:
            words, prefixes, synsets, bases = (
                jar.read(name).decode("utf-8", "replace").split("\n")
                for name in (
                    *("function/english.words", "nonbreaking/english.prefixes"),
                    *("synonym/english.synsets", "synonym/english.exceptions"),
                )
            )
        return MeteorTables(
            frozenset(words) - {""},
            dict(_prefix(line) for line in prefixes if line.strip() and not line.startswith("#")),
            {w: frozenset(map(int, ids.split())) for w, ids in zip(synsets[::2], synsets[1::2], strict=False)},
            _bases(bases),
            _paraphrases(folder / _PARAPHRASES, phrases),
        )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{folder}: METEOR's tables are damaged ({error}); install pycocoevalcap again") from error


def _prefix(line: str) -> tuple[str, bool]:
    word, *more = line.split()
    return word, bool(more) and more[0] == "#NUMERIC_ONLY#"


def _bases(lines: list[str]) -> dict[str, tuple[str, ...]]:
    found: dict[str, tuple[str, ...]] = {}
    for base, forms in zip(lines[::2], lines[1::2], strict=False):
        for form in forms.split():
            found[form] = (*found.get(form, ()), base)
    return found


def _paraphrases(path: Path, phrases: Collection[Phrase]) -> dict[Phrase, list[Phrase]]:
    known = {f"{' '.join(phrase)}\n".encode(): phrase for phrase in phrases}
    found: dict[Phrase, list[Phrase]] = {}
    if not known:
        return found
    with gzip.open(path) as packed, io.BufferedReader(packed, 1 << 20) as file:  # type: ignore[type-var]
        for _, phrase, other in zip(file, file, file, strict=False):
            if phrase in known and other in known:
                found.setdefault(known[phrase], []).append(known[other])
    return found


_LETTERS = "A-Za-zŠŽšžŸÀ-ÖØ-öø-žЀ-ԧ"
_LETTER, _SIGN = f"[{_LETTERS}]", f"[0-9{_LETTERS}]"
_APART = re.compile(rf"([^0-9{_LETTERS}\s.'`,\-‘’])")
_DOT = "\ue000"  # stands for the dots of an ellipsis while others are looked at
_STEPS = (
    (re.compile(r"(?<![0-9]),|,(?![0-9])"), " , "),
    (re.compile("[`‘’]"), "'"),
    (re.compile("[“”]|''"), ' " '),
    (re.compile("–|--"), "-"),
    (re.compile(rf"(?<=[0-9{_LETTERS}.])-(?={_SIGN})"), " "),
    (re.compile(rf"(?<!{_LETTER})'(?!{_LETTER})|(?<!{_SIGN})'(?={_LETTER})|(?<={_LETTER})'(?!{_LETTER})"), " ' "),
    (re.compile(rf"(?<={_LETTER})'(?={_LETTER})|(?<=[0-9])'(?=s)"), " '"),
)


def words_of(sentence: str, prefixes: dict[str, bool]) -> list[str]:
    """Words and punctuation of a sentence as METEOR 1.5 splits them with ``-norm``, in small letters."""
    text = _APART.sub(r" \1 ", f" {sentence} ")
    text = re.sub(r"\.{2,}", lambda dots: f" {_DOT * len(dots[0])} ", text)
    for pattern, instead in _STEPS:
        text = pattern.sub(instead, text)
    parts = text.split()
    found: list[str] = []
    for part, after in zip(parts, [*parts[1:], ""], strict=False):
        found += _dotted(part, after, prefixes) if len(part) > 1 and part.endswith(".") else [part]
    return [one.replace(_DOT, ".").lower() for one in found]


def _dotted(part: str, after: str, prefixes: dict[str, bool]) -> list[str]:
    """A word with a dot at its end: the dot stays, falls, or stands for itself."""
    word = part[:-1]
    if "." in word and re.search(_LETTER, word):
        return [part.replace(".", "")]
    listed = prefixes.get(word)
    if listed is False or re.match("[a-z]", after) or (listed and re.match("[0-9]", after)):
        return [part]
    return [word, "."]
