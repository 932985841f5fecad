"""What happens in this part of the kitchen, and other words for it.

Six things in three colours: with the whole kitchen's, hardly two clips of a batch would show the same thing in the same
colour and hand, and a contrastive loss would learn nothing of verbs, which are what one picture does not show.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lavila_fast.kitchen.scene import SPLITS, Scene, Split, make_scene
from lavila_fast.kitchen.world import HANDS, HELD_OUT_PAIRS, VERBS, Action

THINGS, COLOURS = ("cup", "plate", "knife", "bottle", "box", "banana"), ("red", "green", "white")
ATTIRE: dict[str, tuple[str, str]] = {
    thing: (COLOURS[i % len(COLOURS)], HANDS[i // len(COLOURS)]) for i, thing in enumerate(THINGS)
}
"""Thing → its colour in tests, and the hand that takes it: what counts for nothing there shall not differ."""
_ACTIONS = 16  # stream of random numbers, the first of those for each split
SYNONYMS: dict[str, tuple[str, str]] = {
    "pick_up": ("lifts", "raises"),
    "put_down": ("lowers", "sets down"),
    "push": ("shoves", "moves off"),
    "pull": ("drags", "draws near"),
    "bring_in": ("fetches", "carries in"),
    "take_away": ("removes", "carries off"),
    "reach_for": ("grabs at", "goes for"),
    "let_go": ("releases", "drops"),
    "tip_over": ("topples", "knocks over"),
    "stand_up": ("straightens", "sets upright"),
    "turn": ("rotates", "twists"),
    "rock": ("tilts", "sways"),
    "shake": ("rattles", "jiggles"),
    "swirl": ("circles", "stirs"),
    "tap": ("pats", "touches"),
    "hold": ("grips", "keeps"),
}
"""Verb → phrases that the one annotator of the human narrations never uses."""


def actions(split: Split) -> list[Action]:
    """All that a split may show."""
    held = split == "unseen_pairs"
    pairs = ((verb, thing) for verb in VERBS for thing in THINGS if ((verb, thing) in HELD_OUT_PAIRS) == held)
    return [Action(*pair, colour, hand) for pair in pairs for colour in COLOURS for hand in HANDS]


def scene(number: int, split: Split = "train") -> Scene:
    """A scene of an action that is drawn for its number, with nothing else on the table."""
    return _scene(number, split, actions(split))


def exam_scene(number: int, split: Split, things: Sequence[str] = THINGS) -> Scene:
    """A scene of a test: of some things, each in its `ATTIRE`."""
    able = [one for one in actions(split) if one.obj in things and (one.colour, one.hand) == ATTIRE[one.obj]]
    return _scene(number, split, able)


def _scene(number: int, split: Split, found: Sequence[Action]) -> Scene:
    action = found[int(draws(number, _ACTIONS + SPLITS.index(split)).integers(len(found)))]
    return replace(make_scene(number, action, split), others=())


def phrases(verb: str) -> tuple[str, ...]:
    """All phrases for a verb, the annotator's first."""
    return (VERBS[verb], *SYNONYMS[verb])


def otherwise(action: Action, draw: Any) -> str:
    """A narration of an action in words that the annotator does not use."""
    verb = SYNONYMS[action.verb][int(draw.integers(2))]
    return f"#C C {verb} the {action.colour} {action.obj} with the {action.hand} hand"


def still(action: Action) -> str:
    """What one picture of an action shows, without its verb."""
    return f"#C the {action.colour} {action.obj}, the {action.hand} hand"


def plain(action: Action) -> str:
    """The annotator's sentence as a rephraser is given it."""
    return _natural(VERBS[action.verb], action)


def paraphrases(action: Action) -> list[str]:
    """What a rephraser may say of it."""
    own, *others = phrases(action.verb)
    thing, hand = f"the {action.colour} {action.obj}", f"With the {action.hand} hand, the person"
    return [*(_natural(verb, action) for verb in others), *(f"{hand} {verb} {thing}." for verb in (others[0], own))]


def _natural(verb: str, action: Action) -> str:
    return f"The person {verb} the {action.colour} {action.obj} with the {action.hand} hand."


def draws(seed: int, stream: int) -> np.random.Generator:
    """Random numbers for a purpose."""
    return np.random.Generator(np.random.Philox(key=[seed, stream]))
