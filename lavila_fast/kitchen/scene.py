"""A scene: everything about one two-second action as plain numbers drawn from a seed.

Counter-based randomness (Philox keyed by seed and split), and of it only uniform numbers and integers: the same seed
is the same scene on every platform and numpy. Coordinates: the central square of the picture is [0, 1] x [0, 1],
x to the right, y down; time t goes from 0 to 1 over the clip.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from lavila_fast.errors import InputError
from lavila_fast.kitchen.motion import Style, pose_at
from lavila_fast.kitchen.world import COLOURS, HANDS, HELD_OUT_PAIRS, OBJECTS, VERBS, Action

Split = Literal["train", "unseen_seeds", "unseen_pairs"]
SPLITS: tuple[Split, ...] = ("train", "unseen_seeds", "unseen_pairs")
RGB = tuple[int, int, int]

SKINS: tuple[RGB, ...] = (
    (241, 205, 178),
    (226, 176, 142),
    (200, 146, 108),
    (160, 108, 76),
    (118, 76, 52),
    (82, 54, 40),
)
SLEEVES: tuple[RGB, ...] = ((70, 74, 84), (44, 52, 74), (120, 116, 110), (92, 70, 60), (158, 150, 140), (58, 80, 76))
TABLES: tuple[RGB, ...] = (
    *((176, 130, 88), (140, 98, 66), (104, 74, 54), (202, 172, 132)),
    *((150, 150, 148), (196, 190, 180), (112, 116, 120), (168, 160, 140)),
)
TEXTURES: tuple[str, ...] = ("planks", "tiles", "speckle", "cloth", "plain")


@dataclass(frozen=True)
class Thing:
    """An object lying somewhere: centre, size (1 = side of the central square), angle in degrees, mirrored or not."""

    obj: str
    colour: str
    x: float
    y: float
    size: float
    angle: float
    mirror: bool


@dataclass(frozen=True)
class Scene:
    """One clip as data. `thing` is what is acted on (where it is at rest), `others` lie still, `style` moves it."""

    seed: int
    split: Split
    action: Action
    thing: Thing
    others: tuple[Thing, ...]
    style: Style
    table: RGB
    wall: RGB
    horizon: float
    texture: str
    texture_seed: int
    mat: tuple[float, float, float, float] | None
    skin: RGB
    sleeve: RGB
    idle_hand: bool
    light: tuple[float, float, float]
    shade: tuple[float, float]
    sway: tuple[float, ...]


T = TypeVar("T")


class _Draw:
    """Uniform draws from one Philox stream."""

    def __init__(self, seed: int, stream: int) -> None:
        self.rng = np.random.Generator(np.random.Philox(key=(stream << 64) | seed))

    def span(self, low: float, high: float) -> float:
        return low + (high - low) * float(self.rng.random())

    def one(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def yes(self, chance: float) -> bool:
        return float(self.rng.random()) < chance


def _action(draw: _Draw, split: Split) -> Action:
    while True:
        action = Action(draw.one(tuple(VERBS)), draw.one(OBJECTS), draw.one(COLOURS), draw.one(HANDS))
        if ((action.verb, action.obj) in HELD_OUT_PAIRS) == (split == "unseen_pairs"):
            return action


def _style(draw: _Draw) -> Style:
    return Style(
        start=draw.span(0.0, 0.1),
        stop=draw.span(0.9, 1.0),
        amount=draw.span(0.88, 1.15),
        sign=draw.one((-1.0, 1.0)),
        phase=draw.span(0.0, 2 * math.pi),
        lift=draw.span(0.03, 0.16) if draw.yes(0.5) else 0.0,
        drift=(draw.span(0.0, 0.012), draw.span(0.0, 2 * math.pi)),
    )


def _thing(draw: _Draw, action: Action, style: Style) -> Thing:
    # The middle of its path is near the middle of the picture, whatever the verb: place alone says little.
    poses = [pose_at(action, style, i / 8) for i in range(9)]
    x = draw.span(0.42, 0.58) - sum(p.x for p in poses) / 9
    y = draw.span(0.46, 0.58) - sum(p.y - p.lift for p in poses) / 9
    return Thing(action.obj, action.colour, x, y, draw.span(0.4, 0.48), draw.span(-16, 16), draw.yes(0.5))


def _others(draw: _Draw, scene_thing: Thing, action: Action, style: Style) -> tuple[Thing, ...]:
    poses = [pose_at(action, style, i / 8) for i in range(9)]
    path = [(scene_thing.x + p.x, scene_thing.y + p.y - p.lift) for p in poses]
    kept: list[Thing] = []
    wanted = int(draw.rng.integers(2, 6))
    for _ in range(60):
        x, y = draw.span(-0.15, 1.15), draw.span(0.2, 0.85)
        obj, colour = draw.one(OBJECTS), draw.one(COLOURS)
        size, angle, mirror = draw.span(0.24, 0.32), draw.span(-60, 60), draw.yes(0.5)
        clear = min(math.hypot(x - a, y - b) for a, b in path) > 0.36
        apart = all(math.hypot(x - o.x, y - o.y) > 0.22 for o in kept)
        if clear and apart and len(kept) < wanted and (obj, colour) != (action.obj, action.colour):
            kept.append(Thing(obj, colour, x, y, size, angle, mirror))
    return tuple(kept)


def _rgb(draw: _Draw, base: RGB, spread: int) -> RGB:
    gain = draw.span(0.88, 1.1)
    r, g, b = (max(0, min(255, int(c * gain) + int(draw.rng.integers(-spread, spread + 1)))) for c in base)
    return r, g, b


def _light(draw: _Draw) -> tuple[float, float, float]:
    gain, warm = draw.span(0.78, 1.14), draw.span(-0.06, 0.06)
    return gain * (1 + warm), gain, gain * (1 - warm)


def _mat(draw: _Draw) -> tuple[float, float, float, float] | None:
    box = (draw.span(0.0, 0.3), draw.span(0.32, 0.5), draw.span(0.7, 1.0), draw.span(0.75, 0.95))
    return box if draw.yes(0.4) else None


def make_scene(seed: int, action: Action | None = None, split: Split = "train") -> Scene:
    """The scene number `seed` of a split.

    Args:
        seed: 0 .. 2**62 - 1. The three splits draw from disjoint random streams.
        action: What shall happen; drawn from the actions the split may show when None.
        split: ``train`` and ``unseen_seeds`` never show a pair of `HELD_OUT_PAIRS`, ``unseen_pairs`` only those.

    Raises:
        InputError: a seed out of range, an unknown split, or an action that the split may not show.
    """
    if split not in SPLITS:
        raise InputError(f"unknown split {split!r}: expected one of {', '.join(SPLITS)}")
    if not 0 <= seed < 2**62:
        raise InputError(f"seed {seed} is not in 0 .. 2**62 - 1")
    draw = _Draw(seed, SPLITS.index(split) + 1)
    drawn = _action(draw, split)
    action = action or drawn
    if ((action.verb, action.obj) in HELD_OUT_PAIRS) != (split == "unseen_pairs"):
        raise InputError(f"split {split} may not show {action.sentence!r}: see HELD_OUT_PAIRS")
    style = _style(draw)
    thing = _thing(draw, action, style)
    return Scene(
        seed=seed,
        split=split,
        action=action,
        thing=thing,
        others=_others(draw, thing, action, style),
        style=style,
        table=_rgb(draw, draw.one(TABLES), 8),
        wall=_rgb(draw, draw.one(((206, 204, 196), (166, 176, 180), (190, 176, 156), (120, 126, 130))), 8),
        horizon=draw.span(-0.05, 0.2),
        texture=draw.one(TEXTURES),
        texture_seed=int(draw.rng.integers(2**31)),
        mat=_mat(draw),
        skin=_rgb(draw, draw.one(SKINS), 5),
        sleeve=_rgb(draw, draw.one(SLEEVES), 10),
        idle_hand=draw.yes(0.5),
        light=_light(draw),
        shade=(draw.span(-0.12, 0.12), draw.span(-0.12, 0.12)),
        sway=tuple(draw.span(0.0, 1.0) for _ in range(12)),
    )
