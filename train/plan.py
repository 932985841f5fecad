"""What a run will do, before it does it: its data, steps, parameters, and what it needs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from lavila_fast.errors import ModelNotFoundError, VideoError
from lavila_fast.machine import computes_bfloat16
from lavila_fast.pretrained import find_start
from lavila_fast.train.build import task_row
from lavila_fast.train.cost import PEAKS, cost_of
from lavila_fast.train.datasets.samples import Place
from lavila_fast.train.inputs import batch_share, length_of, open_recipe
from lavila_fast.train.recipe import Recipe
from lavila_fast.train.watch import duration

_LOOKED_AT = 64  # clips whose files are opened
_REACHED = 0.4  # share of a device's peak that a run may reach; a guess
_SHOWN = ("H200", "A100", "A5000")


def plan_of(
    recipe: Recipe, place: Place, processes: int = 1, stage: int = 0, tokenizer: str | None = None
) -> dict[str, Any]:
    """A plan, JSON-ready; sizes in bytes, times in seconds.

    Raises:
        InputError: what would end the run at its beginning.
    """
    data = open_recipe(recipe, place, tokenizer)
    share, cost = batch_share(recipe, processes), cost_of(recipe, data.config)
    clips = len(data.opened.train)
    each, _, updates = length_of(recipe, clips)
    memory = cost.memory(recipe, share.chunk or share.micro, processes, stage)
    flops = cost.flops * (4 / 3 if share.chunk else 1.0) * recipe.batch_size * updates
    rates = {name: PEAKS[name] * _REACHED for name in _SHOWN} | {"this processor": _speed() * _REACHED}
    return {
        "recipe": recipe.name,
        "task": recipe.task.name,
        "learns from": list(task_row(recipe).needs),
        "clips": clips,
        "validation clips": 0 if data.opened.validation is None else len(data.opened.validation),
        "not there yet": _not_fetched(recipe),
        "slow": slow_precision(recipe),
        "unreadable": _unreadable(data.opened.train, _LOOKED_AT),
        "updates": updates,
        "updates an epoch": each,
        "batch": recipe.batch_size,
        "processes": processes,
        "clips a process takes at a time": share.chunk or share.micro,
        "clips that one loss compares": share.micro * processes if task_row(recipe).pairs else None,
        "micro-batches an update": share.accumulate,
        "parameters": cost.parameters,
        "trained": dict(cost.trained),
        "frozen": dict(cost.frozen),
        "operations a clip": cost.flops,
        "memory of a process": memory,
        "seconds, estimated": {name: round(flops / rate / processes) for name, rate in rates.items()},
    }


def slow_precision(recipe: Recipe) -> str | None:
    """A line where a recipe computes in what this machine only imitates; None where it does not."""
    if recipe.precision != "bfloat16" or torch.cuda.is_available() or computes_bfloat16() is not False:
        return None
    return (
        "this processor has no instructions for bfloat16, in which the recipe computes; imitated, it takes many "
        "times as long as float32: --set precision=float32"
    )


def _not_fetched(recipe: Recipe) -> list[str]:
    """What the run would begin with and is not on this machine."""
    found = []
    for start in recipe.starts:
        try:
            find_start(start.source)
        except ModelNotFoundError as error:
            found.append(str(error))
    return found


def _unreadable(clips: Any, most: int) -> list[str]:
    """What is the matter with the files of some clips at equal distances, each reason once."""
    found: dict[str, None] = {}
    for place in range(min(most, len(clips))):
        try:
            clips.sample(place * len(clips) // min(most, len(clips)))
        except VideoError as error:
            found[str(error)] = None
    return list(found)


def _speed() -> float:
    """Operations a second of this processor in a product of matrices, float32, as measured now."""
    a = torch.randn(1024, 1024)
    a @ a
    best = 0.0
    for _ in range(3):
        began = time.perf_counter()
        a @ a
        best = max(best, 2 * 1024**3 / (time.perf_counter() - began))
    return best


def plan_page(plan: Mapping[str, Any]) -> str:
    """A plan to read."""
    lines = []
    for name, value in plan.items():
        if value in (None, [], {}):
            continue
        lines.append(f"{name:<32} {_said(name, value)}")
    return "\n".join(lines)


def _said(name: str, value: Any) -> str:
    if name.startswith("memory"):
        total = f"{sum(value.values()) / 1e9:.2f} GB"
        return f"{total}: " + ", ".join(f"{what} {size / 1e9:.2f}" for what, size in value.items() if size)
    if name.startswith("seconds"):
        return ", ".join(f"{device} {duration(seconds)}" for device, seconds in value.items())
    if name in ("trained", "frozen"):
        total = sum(value.values())
        return f"{total:,}: " + ", ".join(f"{part} {count:,}" for part, count in value.items())
    if name.startswith("operations"):
        return f"{value / 1e9:,.0f} billion"
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)
