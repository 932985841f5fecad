"""How a player turns and mirrors the pictures of a file: its display matrix, to the nearest right angle."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Orientation(NamedTuple):
    """What makes a decoded picture upright: first it is turned, then mirrored.

    Attributes:
        turn: Degrees counter-clockwise: 0, 90, 180 or 270.
        mirrored: Left and right change places after turning.
    """

    turn: int = 0
    mirrored: bool = False

    def apply(self, image: NDArray[Any], axes: tuple[int, int] = (0, 1)) -> NDArray[Any]:
        """The upright picture, a view; `axes` are those of its rows and columns."""
        turned = np.rot90(image, self.turn // 90, axes)
        return np.flip(turned, axes[1]) if self.mirrored else turned


UPRIGHT = Orientation()


def orientation(frame: Any) -> Orientation:
    """How this decoded frame is to be shown."""
    found = frame.side_data.get("DISPLAYMATRIX")
    if found is None:
        return UPRIGHT
    # A pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y), up to a shift and a scale.
    a, b, _, c, d = (int(value) for value in np.frombuffer(found, np.int32)[:5])
    if not (a or b or c or d):
        return UPRIGHT
    mirrored = a * d - b * c < 0
    across = -a if mirrored else a
    return Orientation(round(-math.degrees(math.atan2(b, across)) / 90) * 90 % 360, mirrored)
