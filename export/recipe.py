"""How one model is to be quantized, from what the user asked for and what its clips say.

INT8 with clips to measure on: scales migrate from activations into weights where that lowers the error (`smooth`),
static targets get ranges, but layers whose inputs reach far beyond the usual stay in half precision, as one step for
all of them would be too coarse (`OUTLYING`, docs/INT8.md), and ``mixed`` spares the most sensitive layers until the
budget holds. Without clips, a CPU's INT8 needs none, as ranges are measured as they come; everything else says that it
does.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from lavila_fast.errors import InputError
from lavila_fast.export.quantize.calibrate import calibrate, calibration_clips, state_key
from lavila_fast.export.quantize.sensitivity import Reference, by_block, by_layer, mixed, save_report, sensitivity
from lavila_fast.export.quantize.smooth import smooth
from lavila_fast.models.load import Model
from lavila_fast.quant.scheme import Scheme, layers

SMOOTH_CLIPS, TRIED_CLIPS = 32, 32
BUDGET = 0.5  # points
OUTLYING = 24.0  # times the root mean square
_LARGE = 50_000_000  # parameters: above, layers are tried a block at a time


def needs_clips(precision: str, target: str, keep: frozenset[str]) -> bool:
    """Whether a precision cannot be had without clips to measure on."""
    return (precision in ("int8", "mixed") and target != "cpu") or (precision == "mixed" and not keep)


def complete(
    model: Model,
    scheme: Scheme,
    clips: Path | None,
    max_drop: float | None,
    folder: Path,
    part: Path,
    say: Callable[[str], None],
) -> tuple[Model, Scheme, dict[str, Any]]:
    """Measure what a scheme lacks.

    Args:
        model: The float model.
        scheme: Precision, target and layers to keep.
        clips: Folder of videos.
        max_drop: Points that ``mixed`` may cost; None: `BUDGET`, unless the scheme says what to keep.
        folder: The bundle, which gets ranges and the sensitivity report.
        part: Folder for what is measured so far, which a later call with the same model and clips goes on from. It is
            made where it is needed; whoever gave it removes it once the bundle is there.
        say: Called with a line at each step.

    Returns:
        The model to quantize (smoothed: the same function), the scheme, and what was measured, for ``bundle.json``.

    Raises:
        InputError: no clips where some are needed, a folder without videos, a budget that cannot be met.
    """
    if not scheme.int8 or clips is None:
        if needs_clips(scheme.precision, scheme.target, scheme.keep):
            raise InputError(f"{scheme.precision} for {scheme.target} needs clips; give a folder: --calibration VIDEOS")
        return model, scheme, {}
    kind, asked = model.config.kind, scheme.keep
    video = calibration_clips(clips, model.config)
    say(f"{kind}: smoothing, measured on {min(SMOOTH_CLIPS, len(video))} clips")
    smoothed, report = smooth(model, video[:SMOOTH_CLIPS], scheme.target)
    told: dict[str, Any] = {"clips": len(video), "smoothed": sum(one.strength > 0 for one in report)}
    if scheme.target != "cpu":
        say(f"{kind}: measuring ranges on {len(video)} clips")
        ranges = calibrate(smoothed, video, state=part / f"{kind}-{state_key(smoothed, video)}.json")
        ranges.save(folder / f"{kind}_ranges.json")
        outlying = ranges.outlying(OUTLYING)
        if outlying:
            say(
                f"{kind}: {len(outlying)} layers stay in half precision, as their inputs reach {OUTLYING:g} × the usual"
            )
        scheme = Scheme(scheme.precision, scheme.target, scheme.keep | outlying, ranges.amax())
        told["ranges"] = "largest seen"
    if scheme.precision == "mixed" and (max_drop is not None or not asked):
        scheme = _spare(smoothed, scheme, video, BUDGET if max_drop is None else max_drop, folder, say)
    return smoothed, scheme, told | {"kept": sorted(scheme.keep)}


def _spare(
    model: Model, scheme: Scheme, video: Tensor, budget: float, folder: Path, say: Callable[[str], None]
) -> Scheme:
    reference = Reference(model, video[:TRIED_CLIPS])
    group = by_block if sum(p.numel() for p in model.parameters()) > _LARGE else by_layer
    say(f"{model.config.kind}: quantizing each of {len({group(name) for name in layers(model)})} parts alone")
    found = sensitivity(model, scheme, reference.divergence, group)
    save_report(found, folder, model.config.kind)
    chosen = mixed(model, scheme, reference.points, budget, found)
    say(f"{model.config.kind}: {len(chosen.keep)} layers stay in higher precision")
    return chosen
