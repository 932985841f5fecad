"""What can happen in the miniature kitchen: verbs, objects, colours, hands and the one sentence that says each action.

Grammar, always: ``#C C {verb phrase} the {colour} {object} with the {left|right} hand``. Every verb goes with every
object, so the sentence cannot be guessed from the object; a fixed tenth of the verb-object pairs is never shown in
training, so that what is learnt about a verb can be tried on objects it was never seen with.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass

VERBS: dict[str, str] = {
    "pick_up": "picks up",
    "put_down": "puts down",
    "push": "pushes",
    "pull": "pulls",
    "bring_in": "brings in",
    "take_away": "takes away",
    "reach_for": "reaches for",
    "let_go": "lets go of",
    "tip_over": "tips over",
    "stand_up": "stands up",
    "turn": "turns",
    "rock": "rocks",
    "shake": "shakes",
    "swirl": "swirls",
    "tap": "taps",
    "hold": "holds",
}
OBJECTS: tuple[str, ...] = (
    *("cup", "bowl", "plate", "pan", "knife", "fork", "spoon", "scissors"),
    *("bottle", "glass", "kettle", "box", "apple", "banana", "carrot", "mushroom"),
)
COLOURS: tuple[str, ...] = ("red", "yellow", "green", "blue", "purple", "white")
HANDS: tuple[str, ...] = ("left", "right")

_SENTENCE = re.compile(r"#C C ([a-z ]+?) the ([a-z]+) ([a-z]+) with the ([a-z]+) hand")
_KEYS = {phrase: key for key, phrase in VERBS.items()}


@dataclass(frozen=True)
class Action:
    """One thing done: `verb` is a key of `VERBS`, the others members of `OBJECTS`, `COLOURS` and `HANDS`."""

    verb: str
    obj: str
    colour: str
    hand: str

    @property
    def sentence(self) -> str:
        """The narration, e.g. ``#C C picks up the red cup with the left hand``."""
        return f"#C C {VERBS[self.verb]} the {self.colour} {self.obj} with the {self.hand} hand"


def parse_sentence(text: str) -> Action | None:
    """The action that `text` says, or None when it is not a sentence of this kitchen."""
    match = _SENTENCE.fullmatch(text.strip())
    if match is None:
        return None
    phrase, colour, obj, hand = match.groups()
    known = phrase in _KEYS and obj in OBJECTS and colour in COLOURS and hand in HANDS
    return Action(_KEYS[phrase], obj, colour, hand) if known else None


def all_actions() -> list[Action]:
    """Every action, in a fixed order."""
    return [Action(*parts) for parts in itertools.product(VERBS, OBJECTS, COLOURS, HANDS)]


def _held_out() -> frozenset[tuple[str, str]]:
    # 5 and 16 have no common factor: every verb and every object loses one or two partners, none more.
    n = len(OBJECTS)
    first = {(verb, OBJECTS[(5 * i + 3) % n]) for i, verb in enumerate(VERBS)}
    second = {(verb, OBJECTS[(5 * i + 10) % n]) for i, verb in enumerate(VERBS) if i % 2 == 0}
    return frozenset(first | second)


HELD_OUT_PAIRS: frozenset[tuple[str, str]] = _held_out()
"""(verb, object) pairs that are never shown in training."""
