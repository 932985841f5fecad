"""How each verb moves the object and the hand: a pose for every time.

Verbs come in time-reversed pairs or as oscillations, and what they share with each other (a lifted object, a tilted
one, an empty hand) is spread over several of them, so that one frame alone never tells the verb. Oscillations make two
cycles: the four frames that a narrator looks at fall on alternating half-waves.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from lavila_fast.kitchen.world import Action


@dataclass(frozen=True)
class Style:
    """How this one execution differs from another.

    Attributes:
        start: Time at which one-way motions begin; they end at `stop`.
        amount: Factor on all displacements.
        sign: +1 or -1: where an oscillation begins, which way a turn or tilt goes.
        phase: Where on its circle a swirl begins, radians.
        lift: Height above the table at which held objects are moved.
        drift: Amplitude and phase of an unsteady hand.
    """

    start: float
    stop: float
    amount: float
    sign: float
    phase: float
    lift: float
    drift: tuple[float, float]


@dataclass(frozen=True)
class Pose:
    """Where things are, relative to the object at rest.

    Attributes:
        x, y: Displacement on the table, in sides of the central square.
        lift: Height above the table, in the same unit.
        angle: Rotation in degrees, clockwise.
        zoom: Factor on the size (nearer is bigger).
        gap: Distance between the hand and its grip on the object.
    """

    x: float = 0.0
    y: float = 0.0
    lift: float = 0.0
    angle: float = 0.0
    zoom: float = 1.0
    gap: float = 0.0


Motion = Callable[[float, float, Style, float], Pose]
"""(progress 0..1, wave -1..1, style, side of the hand -1 | +1) → pose."""


def _pick_up(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(lift=0.32 * style.amount * s, zoom=1 + 0.12 * s)


def _push(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(y=-0.32 * style.amount * s, zoom=1.15 - 0.4 * s)


def _take_away(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(x=side * 0.5 * style.amount * s, lift=style.lift)


def _let_go(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(gap=0.34 * style.amount * s)


def _tip_over(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(angle=style.sign * 90 * s, lift=style.lift * 0.5)


def _turn(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(angle=style.sign * 150 * style.amount * (s - 0.5), lift=style.lift * 0.5)


def _rock(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(angle=42 * style.amount * wave, lift=style.lift * 0.5)


def _shake(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(x=0.12 * style.amount * wave, lift=style.lift)


def _tap(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(gap=0.12 * style.amount * (1 + wave))


def _hold(s: float, wave: float, style: Style, side: float) -> Pose:
    return Pose(lift=style.lift)


def _swirl(s: float, wave: float, style: Style, side: float) -> Pose:
    turn = style.phase + style.sign * 2 * math.pi * s
    return Pose(x=0.13 * style.amount * math.cos(turn), y=0.11 * style.amount * math.sin(turn), lift=style.lift)


MOTIONS: dict[str, tuple[Motion, bool]] = {
    "pick_up": (_pick_up, False),
    "put_down": (_pick_up, True),
    "push": (_push, False),
    "pull": (_push, True),
    "bring_in": (_take_away, True),
    "take_away": (_take_away, False),
    "reach_for": (_let_go, True),
    "let_go": (_let_go, False),
    "tip_over": (_tip_over, False),
    "stand_up": (_tip_over, True),
    "turn": (_turn, False),
    "rock": (_rock, False),
    "shake": (_shake, False),
    "swirl": (_swirl, False),
    "tap": (_tap, False),
    "hold": (_hold, False),
}
"""Motion of each verb, and whether it runs backwards."""


def pose_at(action: Action, style: Style, t: float) -> Pose:
    """The pose of `action` at time t in [0, 1], without the hand's unsteadiness."""
    motion, backwards = MOTIONS[action.verb]
    u = min(1.0, max(0.0, (t - style.start) / (style.stop - style.start)))
    s = 0.5 * u + 0.5 * u * u * (3 - 2 * u)
    # A softly squared wave: off-centre samples still see most of the swing.
    wave = style.sign * math.tanh(2.2 * math.sin(4 * math.pi * t)) / math.tanh(2.2)
    side = -1.0 if action.hand == "left" else 1.0
    return motion(1 - s if backwards else s, wave, style, side)
