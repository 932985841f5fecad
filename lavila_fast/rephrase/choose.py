"""Which candidates stay, and why the others do not.

A candidate says the same in other words, as far as words can tell: it has the people of the sentence, most of its
content words behind the verb, and its verb or a new word that may stand for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lavila_fast.rephrase.marks import Marked, people_in
from lavila_fast.rephrase.words import content, plain, words

REASONS = ("empty", "long", "same", "repeated", "person", "verb", "object", "surplus")
"""Says nothing; more than twice as long; the sentence itself; another candidate; other people; see `fault`; one more
than wanted."""


def choose(source: Marked, candidates: Sequence[str], top: int, dropped: Counter[str]) -> list[str]:
    """The first `top` good candidates, as narrations.

    Args:
        source: The sentence.
        candidates: Paraphrases of `source.natural()`, the best first.
        top: How many at most.
        dropped: Counts those that do not stay, by `REASONS`.
    """
    kept: list[str] = []
    known = {plain(source.said)}
    for candidate in candidates:
        text = source.restore(candidate)
        said = Marked.parse(text).said if source.mark else text
        reason = fault(source, said)
        if not reason and plain(said) in known:
            reason = "repeated"
        if not reason and len(kept) == top:
            reason = "surplus"
        if reason:
            dropped[reason] += 1
            continue
        known.add(plain(said))
        kept.append(text)
    return kept


def fault(source: Marked, said: str) -> str:
    """The first of `REASONS` for which a candidate, without its mark, does not stay; "" if it may.

    The verb is the first content word, where the sentence has a mark and so begins with a person. A candidate without
    it must have a content word that the sentence has not, which may be another verb; and it must have half of the
    other content words.
    """
    new = words(said)
    if not new:
        return "empty"
    if len(new) > 2 * len(words(source.said)) + 4:
        return "long"
    if plain(said) == plain(source.said):
        return "same"
    if people_in(said) != source.people():
        return "person"
    return _lost(_content(source.said, source), _content(said, source), bool(source.mark))


def _content(said: str, source: Marked) -> list[str]:
    people = {one.lower() for one in source.people()}
    return [one for one in content(said) if one not in people]


def _lost(before: list[str], after: list[str], marked: bool) -> str:
    verb, rest = (before[:1], before[1:]) if marked else ([], before)
    if verb and verb[0] not in after and not set(after) - set(before):
        return "verb"
    if 2 * len(set(rest) & set(after)) < len(rest):
        return "object"
    return ""
