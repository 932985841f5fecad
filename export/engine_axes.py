"""What sizes an engine's axes may take: said once a bundle, by the axis's name, in ``engines.json``.

The profiles of all its graphs follow from it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavila_fast.bundle.manifest import PLAN
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, ModelConfig
from lavila_fast.errors import BundleError, InputError
from lavila_fast.files import write_json

Range = tuple[int, int, int]
AXES: dict[str, Range] = {
    "clips": (1, 4, 8),
    "rows_a_clip": (2, 10, 16),
    "rows": (2, 40, 128),
    "capacity": (16, 48, 96),
    "texts": (1, 8, 64),
    "tokens": (2, 77, 77),
}
_LARGEST_PLAN = 1 << 20


def check_axes(axes: Mapping[str, Range]) -> None:
    """Raises InputError for a range that is none."""
    for name, (least, likely, most) in axes.items():
        if not 0 < least <= likely <= most:
            raise InputError(f"axis {name}: {least}, {likely}, {most} is not smallest ≤ likeliest ≤ largest")


def _range(least: Any, likely: Any, most: Any) -> Range:
    return int(least), int(likely), int(most)


def shape_range(sizes: Sequence[int], names: Sequence[str | None], axes: Mapping[str, Range], what: str) -> Any:
    """Smallest, likeliest and largest shape of an input; an axis is named ``rows`` or, a multiple of it, ``12*rows``.

    Raises:
        InputError: a dynamic axis (size -1) has a name without a range.
    """

    def sized(size: int, name: str | None) -> Sequence[int]:
        if size >= 0:
            return (size,) * 3
        match = re.fullmatch(r"(?:(\d+)\*)?(\w+)", name or "")
        if not match or match[2] not in axes:
            raise InputError(f"{what}: axis {name!r} has no range; name it in {PLAN} or with --axis NAME=MIN,OPT,MAX")
        return tuple(int(match[1] or 1) * size for size in axes[match[2]])

    ranges = [sized(size, name) for size, name in zip(sizes, names, strict=True)]
    return tuple(tuple(one[i] for one in ranges) for i in range(3))


def write_plan(folder: Path, axes: Mapping[str, Range] = AXES) -> Path:
    """Write the ranges of a bundle's axes (see `axes_for`), for its user to edit."""
    path = folder / PLAN
    write_json(path, {"axes": dict(axes)})
    return path


def axes_for(models: Mapping[str, ModelConfig]) -> dict[str, Range]:
    """The usual ranges, texts as long as the models' text towers take them."""
    axes = dict(AXES)
    for config in models.values():
        if isinstance(config, DualEncoderConfig):
            text = config.text
            most = text.context if isinstance(text, ClipTextConfig) else text.max_positions
            axes["tokens"] = (2, min(axes["tokens"][1], most), most)
    return axes


def read_plan(folder: Path, models: Mapping[str, ModelConfig] | None = None) -> dict[str, Range]:
    """The ranges of a bundle's axes; the usual ones for its models where it names none.

    Raises:
        BundleError: the file is damaged.
    """
    path = folder / PLAN
    usual = axes_for(models or {})
    if not path.is_file():
        return usual
    try:
        if path.stat().st_size > _LARGEST_PLAN:
            raise ValueError("far too large")
        axes = json.loads(path.read_text(encoding="utf-8"))["axes"]
        given = {str(name): _range(*sizes) for name, sizes in axes.items()}
        check_axes(given)
        return {**usual, **given}
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise BundleError(f"{path}: damaged ({error}); export the bundle again") from error
