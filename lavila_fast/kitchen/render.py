"""Draws a scene at any time and size with Pillow.

The still part (wall, table, clutter) is painted once a scene and moved by the camera with one affine warp a frame; the
object and the hands are polygons, drawn at twice the size and averaged down. Only light and sensor noise are numpy.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lavila_fast.errors import MissingExtraError
from lavila_fast.kitchen.motion import Pose, pose_at
from lavila_fast.kitchen.scene import RGB, Scene, Thing
from lavila_fast.kitchen.shapes import HAND, PALETTE, SHAPES, Part, Points, Tone

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

Matrix = np.ndarray[tuple[int, int], np.dtype[np.float64]]
Frame = np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
Light = np.ndarray[tuple[int, int, int], np.dtype[np.float32]]

SUPERSAMPLING = 2
_MARGIN = 0.16


def _pillow() -> Any:
    try:
        import PIL.Image
        import PIL.ImageDraw
    except ImportError as error:
        raise MissingExtraError("pillow", "train") from error
    return PIL


def _affine(x: float, y: float, degrees: float = 0.0, sx: float = 1.0, sy: float | None = None) -> Matrix:
    """Scale, then rotate clockwise, then move: a 3x3 matrix for column vectors."""
    a, sy = math.radians(degrees), sx if sy is None else sy
    c, s = math.cos(a), math.sin(a)
    return np.array([[c * sx, -s * sy, x], [s * sx, c * sy, y], [0.0, 0.0, 1.0]])


def _project(width: float, height: float, unit: float) -> Matrix:
    """World (central square = [0, 1] x [0, 1]) to pixels."""
    return _affine(width / 2 - unit / 2, height / 2 - unit / 2, 0.0, unit)


def _camera(scene: Scene, t: float) -> Matrix:
    """The head's sway: a slow smooth wander, roll and breath, as a movement of the world."""
    w = scene.sway
    wave = [math.sin(2 * math.pi * (w[i] + (0.35 + 0.5 * w[i + 4]) * t)) for i in range(4)]
    dx, dy = 0.028 * (0.3 + w[8]) * wave[0], 0.024 * (0.3 + w[9]) * wave[1]
    turn = _affine(0.5 + dx, 0.5 + dy, 2.2 * w[10] * wave[2], 1 + 0.02 * wave[3] * w[11])
    return turn @ _affine(-0.5, -0.5)


def _shade(tone: Tone, base: RGB) -> RGB:
    if not isinstance(tone, str):
        return tone
    if tone == "deep":
        return (44, 42, 46)
    gain, lift = {"main": (1.0, 0), "dark": (0.66, 0), "light": (0.62, 97)}[tone]
    r, g, b = (min(255, int(c * gain) + lift) for c in base)
    return r, g, b


def _pixels(points: Points, matrix: Matrix) -> list[tuple[float, float]]:
    xy = points @ matrix[:2, :2].T + matrix[:2, 2]
    return list(map(tuple, xy.tolist()))


def _draw_parts(draw: ImageDraw, parts: list[Part], base: RGB, matrix: Matrix, edge: float) -> None:
    """Draw `parts` with a dark outline `edge` pixels wide around the whole."""
    drawn = [(_shade(tone, base), _pixels(points, matrix)) for tone, points in parts]
    dark = tuple(int(c * 0.3) for c in base)
    width = max(1, round(2 * edge))
    for _, xy in drawn:
        draw.line([*xy, xy[0], xy[1]], fill=dark, width=width)
    for fill, xy in drawn:
        draw.polygon(xy, fill=fill)


def _draw_thing(draw: ImageDraw, thing: Thing, pose: Pose, camera: Matrix, unit: float) -> None:
    size = thing.size * pose.zoom
    foot = thing.y + pose.y + 0.30 * size
    # The shadow stays on the table: its distance from the object is how a lift is seen.
    spot = _affine(thing.x + pose.x + 0.04 + 0.3 * pose.lift, foot, 0.0, 0.46 * size, 0.2 * size)
    draw.polygon(_pixels(_CIRCLE, camera @ spot), fill=(0, 0, 0, 70))
    flip = -1.0 if thing.mirror else 1.0
    place = _affine(thing.x + pose.x, thing.y + pose.y - pose.lift, thing.angle + pose.angle, flip * size, size)
    _draw_parts(draw, SHAPES[thing.obj], PALETTE[thing.colour], camera @ place, 0.008 * unit)


_CIRCLE: Points = np.array([(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * math.pi, 20)], np.float32)


def _draw_hand(
    draw: ImageDraw, scene: Scene, side: float, at: tuple[float, float], lean: float, view: Matrix, unit: float
) -> None:
    """A forearm from the lower corner of `side` to a hand at `at` that leans `lean` degrees."""
    size = 0.33
    place = _affine(at[0], at[1], lean, -side * size, size)
    wrist = (place @ np.array([0.0, 0.4, 1.0]))[:2]
    root = np.array([0.5 + side * 0.42, 1.35])
    along = (root - wrist) / np.hypot(*(root - wrist))
    across = np.array([-along[1], along[0]])
    cuff = wrist + 0.14 * along
    arm = np.array([wrist + 0.075 * across, wrist - 0.075 * across, cuff - 0.085 * across, cuff + 0.085 * across])
    sleeve = np.array([cuff + 0.11 * across, cuff - 0.11 * across, root - 0.15 * across, root + 0.15 * across])
    edge = 0.006 * unit
    _draw_parts(draw, [("main", arm.astype(np.float32))], scene.skin, view, edge)
    _draw_parts(draw, [("main", sleeve.astype(np.float32))], scene.sleeve, view, edge)
    _draw_parts(draw, HAND, scene.skin, view @ place, edge)


def _draw_texture(draw: ImageDraw, scene: Scene, camera: Matrix, unit: float) -> None:
    rng = np.random.Generator(np.random.Philox(key=scene.texture_seed))

    def quad(x0: float, y0: float, x1: float, y1: float, fill: tuple[int, ...]) -> None:
        draw.polygon(_pixels(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], np.float32), camera), fill=fill)

    def tint() -> tuple[int, int, int, int]:
        return (*((0, 0, 0) if rng.random() < 0.6 else (255, 255, 255)), int(rng.integers(6, 30)))

    low, pitch = scene.horizon, 0.14 + 0.16 * float(rng.random())
    if scene.texture in ("planks", "cloth"):
        for i in range(int(3.2 / pitch)):
            quad(-1.0, low + i * pitch, 2.0, low + (i + 1) * pitch, tint())
            quad(-1.0, low + i * pitch, 2.0, low + i * pitch + 0.008, (0, 0, 0, 60))
    if scene.texture in ("tiles", "cloth"):
        for i in range(int(3.0 / pitch)):
            quad(
                -1 + i * pitch,
                low,
                -1 + i * pitch + (0.012 if scene.texture == "tiles" else pitch / 2),
                2.0,
                (0, 0, 0, 34),
            )
            if scene.texture == "tiles":
                quad(-1.0, low + i * pitch, 2.0, low + i * pitch + 0.012, (0, 0, 0, 34))
    if scene.texture == "speckle":
        for x, y, r in rng.random((90, 3)):
            spot = _affine(-0.6 + 2.2 * x, low + 1.4 * y, 0.0, 0.008 + 0.02 * r)
            draw.polygon(_pixels(_CIRCLE[::3], camera @ spot), fill=tint())


@lru_cache(maxsize=8)
def _still(scene: Scene, width: int, height: int) -> tuple[Image, Matrix]:
    """The unmoving layer with a margin for the camera, and its world-to-pixel matrix. Treat it as read-only."""
    pil = _pillow()
    unit = min(width, height)
    wide, high = (int(side + 2 * _MARGIN * unit) for side in (width, height))
    image = pil.Image.new("RGB", (wide, high), scene.wall)
    draw = pil.ImageDraw.Draw(image, "RGBA")
    view = _project(wide, high, unit)
    top = float((view @ np.array([0.0, scene.horizon, 1.0]))[1])
    draw.rectangle((0, top, wide, high), fill=scene.table)
    _draw_texture(draw, scene, view, unit)
    draw.rectangle((0, top - 0.02 * unit, wide, top), fill=(0, 0, 0, 90))
    if scene.mat is not None:
        x0, y0, x1, y1 = scene.mat
        corners = np.array([(x0 + 0.06, y0), (x1 - 0.06, y0), (x1, y1), (x0, y1)], np.float32)
        draw.polygon(_pixels(corners, view), fill=(*scene.wall, 190))
    for thing in sorted(scene.others, key=lambda other: other.y):
        _draw_thing(draw, thing, Pose(), view, unit)
    return image, view


@lru_cache(maxsize=8)
def _gain(scene: Scene, width: int, height: int) -> Light:
    """Brightness and tint of the light at every pixel, (H, W, 3)."""
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    fall = 1 + scene.shade[0] * x[None, :] + scene.shade[1] * y[:, None] - 0.05 * (x[None, :] ** 2 + y[:, None] ** 2)
    gain: Light = fall[:, :, None] * np.asarray(scene.light, np.float32)
    return gain


def _expose(image: np.ndarray[Any, np.dtype[np.uint8]], scene: Scene, t: float) -> Frame:
    """Light and a little sensor noise."""
    height, width, _ = image.shape
    key = (scene.seed << 64) | (int(t * 2**31) << 8) | 255
    noise = np.random.Generator(np.random.Philox(key=key)).integers(-4, 5, (height, width, 1), np.int8)
    lit = image * _gain(scene, width, height) + noise
    frame: Frame = np.clip(lit, 0, 255).astype(np.uint8)
    return frame


def _steady(scene: Scene, t: float) -> Pose:
    """The pose at t with the hand's unsteadiness added."""
    pose, (size, phase) = pose_at(scene.action, scene.style, t), scene.style.drift
    dx, dy = size * math.sin(phase + 5 * t), size * math.cos(1.7 * phase + 4 * t)
    if scene.action.verb in ("tap", "reach_for", "let_go"):
        dx = dy = 0.0
    return Pose(pose.x + dx, pose.y + dy, pose.lift, pose.angle, pose.zoom, pose.gap)


def _draw_action(draw: ImageDraw, scene: Scene, t: float, view: Matrix, unit: float) -> None:
    thing, pose = scene.thing, _steady(scene, t)
    side = -1.0 if scene.action.hand == "left" else 1.0
    _draw_thing(draw, thing, pose, view, unit)
    if scene.idle_hand:
        _draw_hand(draw, scene, -side, (0.5 - side * 0.44, 0.97), side * 14, view, unit)
    # The grip turns with the object, by less: a wrist is stiffer than what it holds.
    reach = _affine(0, 0, 0.45 * pose.angle) @ np.array([side * 0.14, 0.26, 1.0])
    away = pose.gap * np.array([side * 0.62, 0.78])
    at = (thing.x + pose.x + reach[0] + away[0], thing.y + pose.y - pose.lift + reach[1] + away[1])
    _draw_hand(draw, scene, side, at, -side * 24 + 0.45 * pose.angle, view, unit)


def render_frame(scene: Scene, t: float, width: int, height: int) -> Frame:
    """The picture of `scene` at time `t` in [0, 1] of its two seconds: uint8 (height, width, 3), RGB.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    pil = _pillow()
    wide, high = width * SUPERSAMPLING, height * SUPERSAMPLING
    unit = min(wide, high)
    still, painted = _still(scene, wide, high)
    view = _project(wide, high, unit) @ _camera(scene, t)
    back = (painted @ np.linalg.inv(view))[:2].ravel()
    image = still.transform((wide, high), pil.Image.Transform.AFFINE, tuple(back), pil.Image.Resampling.BILINEAR)
    _draw_action(pil.ImageDraw.Draw(image, "RGBA"), scene, t, view, unit)
    return _expose(np.asarray(image.reduce(SUPERSAMPLING)), scene, t)
