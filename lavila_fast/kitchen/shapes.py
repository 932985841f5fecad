"""Outlines of the objects and of a hand, as polygons in a unit square centred on 0, y down.

Polygons only, so that any rotation, mirroring and size is one matrix product. A part is a tone and its points: ``main``
is the object's colour, ``dark`` and ``light`` shades of it, ``deep`` near black, and fixed colours are written out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Points = np.ndarray[tuple[int, int], np.dtype[np.float32]]
Tone = str | tuple[int, int, int]
Part = tuple[Tone, Points]

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (214, 36, 40),
    "yellow": (246, 208, 36),
    "green": (46, 158, 62),
    "blue": (36, 98, 222),
    "purple": (158, 52, 178),
    "white": (244, 244, 242),
}
WOOD, LEAF = (112, 74, 44), (60, 112, 44)


def _poly(*xy: tuple[float, float]) -> Points:
    return np.asarray(xy, np.float32)


def _at(x: float, y: float) -> Points:
    return np.array([[x, y]], np.float32)


def _rect(x0: float, y0: float, x1: float, y1: float) -> Points:
    return _poly((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def _arc(cx: float, cy: float, rx: float, ry: float, a0: float = 0, a1: float = 360, n: int = 20) -> Points:
    """Points of an elliptic arc, degrees clockwise from the right."""
    a = np.deg2rad(np.linspace(a0, a1, n, endpoint=abs(a1 - a0) < 360))
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], 1).astype(np.float32)


def _band(cx: float, cy: float, outer: float, inner: float, a0: float, a1: float) -> Points:
    """A curved strip between two radii."""
    return np.concatenate([_arc(cx, cy, outer, outer, a0, a1), _arc(cx, cy, inner, inner, a1, a0)])


def _join(*pieces: Points | Sequence[tuple[float, float]]) -> Points:
    return np.concatenate([np.asarray(p, np.float32) for p in pieces])


def _spun(points: Points, degrees: float) -> Points:
    a = np.deg2rad(degrees)
    return (points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]], np.float32)).astype(np.float32)


_BLADE = _poly((-0.07, 0.06), (-0.09, -0.3), (0.0, -0.56), (0.09, -0.2), (0.07, 0.1))

SHAPES: dict[str, list[Part]] = {
    "cup": [
        ("main", _band(0.2, -0.06, 0.31, 0.17, -100, 100)),
        ("main", _join(_arc(-0.12, 0.38, 0.3, 0.1, 180, 0, 9), [(0.18, -0.42), (-0.42, -0.42)])),
        ("dark", _arc(-0.12, -0.42, 0.3, 0.1)),
        ("light", _rect(-0.33, -0.24, -0.25, 0.3)),
    ],
    "bowl": [
        ("dark", _rect(-0.18, 0.26, 0.18, 0.36)),
        ("main", _arc(0, -0.14, 0.54, 0.44, 0, 180)),
        ("dark", _arc(0, -0.14, 0.54, 0.13)),
        ("light", _poly((-0.4, 0.02), (-0.3, 0.02), (-0.2, 0.2), (-0.26, 0.2))),
    ],
    "plate": [
        ("main", _arc(0, 0, 0.58, 0.4)),
        ("dark", _arc(0, 0, 0.4, 0.26)),
        ("main", _arc(0, 0.015, 0.35, 0.215)),
        ("light", _arc(-0.08, -0.02, 0.12, 0.06)),
    ],
    "pan": [
        ((58, 56, 60), _rect(0.1, -0.08, 0.66, 0.08)),
        ("main", _arc(-0.2, 0, 0.38, 0.38)),
        ((58, 56, 60), _arc(-0.2, 0, 0.23, 0.23)),
    ],
    "knife": [
        ("main", _poly((-0.13, -0.66), (0.1, -0.5), (0.17, -0.25), (0.17, 0.14), (-0.13, 0.14))),
        ("light", _rect(-0.08, -0.45, -0.02, 0.08)),
        (WOOD, _rect(-0.12, 0.14, 0.12, 0.6)),
    ],
    "fork": [
        (
            "main",
            _join(
                [(-0.32, -0.64), (-0.18, -0.64), (-0.18, -0.24), (-0.07, -0.24), (-0.07, -0.64), (0.07, -0.64)],
                [(0.07, -0.24), (0.18, -0.24), (0.18, -0.64), (0.32, -0.64), (0.32, -0.12), (0.09, 0.02)],
                [(0.1, 0.62), (-0.1, 0.62), (-0.09, 0.02), (-0.32, -0.12)],
            ),
        ),
    ],
    "spoon": [
        ("main", _rect(-0.075, -0.2, 0.075, 0.62)),
        ("main", _arc(0, -0.36, 0.26, 0.3)),
        ("dark", _arc(0, -0.34, 0.16, 0.19)),
    ],
    "scissors": [
        ("main", _spun(_BLADE, 22) + _at(0, -0.04)),
        ("main", _spun(_BLADE, -22) + _at(0, -0.04)),
        ("main", _band(-0.2, 0.28, 0.24, 0.12, 0, 359)),
        ("main", _band(0.2, 0.28, 0.24, 0.12, 0, 359)),
        ("deep", _arc(0, 0.0, 0.05, 0.05, n=8)),
    ],
    "bottle": [
        ("deep", _rect(-0.09, -0.66, 0.09, -0.56)),
        (
            "main",
            _join(
                [(-0.08, -0.56), (0.08, -0.56), (0.08, -0.3), (0.22, -0.12), (0.22, 0.56)],
                [(-0.22, 0.56), (-0.22, -0.12), (-0.08, -0.3)],
            ),
        ),
        ("dark", _rect(-0.22, 0.08, 0.22, 0.34)),
        ("light", _rect(-0.15, -0.08, -0.09, 0.5)),
    ],
    "glass": [
        ("main", _arc(0, 0.5, 0.3, 0.09)),
        ("main", _rect(-0.05, 0.0, 0.05, 0.5)),
        ("main", _join([(-0.3, -0.56), (0.3, -0.56)], _arc(0, -0.22, 0.34, 0.32, 0, 180, 12))),
        ("dark", _arc(0, -0.56, 0.3, 0.08)),
        ("light", _rect(-0.22, -0.4, -0.15, -0.1)),
    ],
    "kettle": [
        ((58, 56, 60), _band(0.04, -0.16, 0.42, 0.31, 180, 360)),
        ("main", _poly((-0.26, 0.28), (-0.62, -0.2), (-0.5, -0.28), (-0.2, -0.02))),
        ("main", _join(_arc(0.05, 0.1, 0.42, 0.38, 150, 390), [(0.38, 0.42), (-0.28, 0.42)])),
        ("deep", _arc(0.05, -0.28, 0.08, 0.06, n=10)),
        ("light", _arc(-0.12, 0.06, 0.07, 0.14)),
    ],
    "box": [
        ("light", _poly((-0.46, -0.24), (-0.28, -0.44), (0.46, -0.44), (0.3, -0.24))),
        ("dark", _poly((0.3, -0.24), (0.46, -0.44), (0.46, 0.24), (0.3, 0.44))),
        ("main", _rect(-0.46, -0.24, 0.3, 0.44)),
        ("dark", _rect(-0.46, 0.02, 0.3, 0.14)),
    ],
    "apple": [
        ("main", _join(_arc(0.17, 0.04, 0.27, 0.42, -110, 90, 12), _arc(-0.17, 0.04, 0.27, 0.42, 90, 290, 12))),
        (WOOD, _poly((-0.035, -0.24), (0.0, -0.56), (0.07, -0.54), (0.035, -0.24))),
        (LEAF, _poly((0.04, -0.4), (0.2, -0.58), (0.38, -0.5), (0.2, -0.38))),
        ("light", _arc(-0.22, -0.06, 0.07, 0.13)),
    ],
    "banana": [
        ("main", _join(_arc(0, -0.3, 0.62, 0.66, 5, 175, 16), _arc(0, -0.36, 0.42, 0.34, 165, 15, 14))),
        (WOOD, _poly((-0.64, -0.34), (-0.5, -0.36), (-0.46, -0.24), (-0.61, -0.2))),
        (WOOD, _poly((0.64, -0.34), (0.5, -0.36), (0.46, -0.24), (0.61, -0.2))),
    ],
    "carrot": [
        (
            LEAF,
            _poly(
                (-0.04, -0.28), (-0.3, -0.62), (-0.1, -0.48), (0.0, -0.72), (0.1, -0.48), (0.3, -0.62), (0.04, -0.28)
            ),
        ),
        ("main", _join(_arc(0, -0.22, 0.25, 0.12, 180, 360, 8), [(0.06, 0.62), (-0.06, 0.62)])),
        ("dark", _rect(-0.2, -0.08, 0.02, -0.03)),
        ("dark", _rect(-0.02, 0.12, 0.14, 0.17)),
        ("dark", _rect(-0.11, 0.3, 0.02, 0.35)),
    ],
    "mushroom": [
        ((232, 220, 198), _join([(-0.13, -0.06), (0.13, -0.06)], _arc(0, 0.42, 0.19, 0.1, 0, 180, 8))),
        ("main", _join(_arc(0, 0.0, 0.5, 0.48, 180, 360, 16), _arc(0, 0.0, 0.5, 0.12, 0, 180, 10))),
        ("light", _arc(-0.22, -0.2, 0.09, 0.08, n=10)),
        ("light", _arc(0.08, -0.32, 0.08, 0.07, n=10)),
        ("light", _arc(0.27, -0.1, 0.08, 0.07, n=10)),
    ],
}
"""The parts of every object, back to front."""


def _finger(x: float, length: float, lean: float) -> Points:
    tip = _arc(0, -length, 0.085, 0.085, 180, 360, 6)
    return _spun(_join(tip, [(0.085, 0.1), (-0.085, 0.1)]), lean) + _at(x, -0.12)


# A left hand seen from above, fingers up, thumb to the right; the tips are near (0, -0.5).
HAND: list[Part] = [
    (
        "main",
        _spun(_join(_arc(0, -0.3, 0.09, 0.09, 180, 360, 6), [(0.11, 0.1), (-0.11, 0.1)]), 48) + _at(0.2, 0.16),
    ),
    ("main", _finger(-0.24, 0.26, -16)),
    ("main", _finger(-0.09, 0.36, -6)),
    ("main", _finger(0.07, 0.38, 3)),
    ("main", _finger(0.22, 0.32, 12)),
    ("main", _arc(0, 0.14, 0.33, 0.34)),
]
