"""What makes two runs the same: the one place that says which rows may stand in one file.

A row depends on its clip and on what `Identity` holds, and on nothing else: not on batch, threads, workers, or how the
path of the model is spelt. A journal keeps `Identity.settings` beside it; `difference` compares with them later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lavila_fast.video.nearby import EXACT


@dataclass(frozen=True)
class Identity:
    """Of a run.

    Attributes:
        model: Name or path as given, for people.
        fingerprint: `ClipModel.fingerprint`: of weights, vocabulary and what computes with them.
        options: A dataclass of how rows are made, see `work.Work`; of narrations, how sentences are written.
        clips: Which clips a video is cut into: `describe_windows`, or `LISTED`.
        decoder: What decodes video, where that changes a row; None where it does not.
        frames: How exactly the model sees the frames that a clip wants, see `video.nearby`.
        shard: Which share of the videos the run works on; None: all.
        still: What is done about windows in which nothing moves, see `still`; None: nothing.
    """

    model: str
    fingerprint: str
    options: Any
    clips: str
    decoder: str | None = None
    frames: str = EXACT
    shard: str | None = None
    still: str | None = None

    def settings(self) -> dict[str, Any]:
        """As they stand beside a journal, for `json`."""
        values = asdict(self.options)
        values |= values.pop("warp", {})
        if self.decoder is not None:
            values["decoder"] = self.decoder
        if self.frames != EXACT:
            values["frames"] = self.frames
        if self.shard is not None:
            values["shard"] = self.shard
        if self.still is not None:
            values["still"] = self.still
        return {"model": f"{self.model} ({self.fingerprint})", "clips": self.clips, **values}


LISTED = "a list"
_USUAL = {"task": "narrate", "frames": EXACT, "shard": "1/1", "still": "off"}  # settings that are not noted


def describe_windows(clip_seconds: float, stride_seconds: float, ranged: bool = False) -> str:
    """How clips that slide over whole videos are told, or over stretches that a manifest names."""
    return f"{clip_seconds:g} s every {stride_seconds:g} s" + ", in stretches of a manifest" * ranged


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first setting in which a journal's run differs from this one, told in half a sentence; None: they are one.

    A setting that one of them lacks counts as None: versions differ in what they note.
    """
    before, now = {**_USUAL, **before}, {**_USUAL, **now}
    for name in {"task": None, **now, **before}:  # what else differs follows from the task
        old, new = before.get(name), now.get(name)
        if _essence(name, old) == _essence(name, new):
            continue
        if name == "model" and _names_engine(new) and not _names_engine(old):
            return f"was begun by another version, with model {old}, and now it is {new}"
        if name not in before:
            return f"was begun by a version that noted no {name}, and now it is {new}"
        return f"was begun with {name} {old}, and now it is {new}"
    return None


def _names_engine(model: Any) -> bool:
    """Whether a model is told with its engine, as all versions but the first do."""
    return isinstance(model, str) and re.search(r"\([0-9a-f]{16}, .*\)$", model) is not None


def _essence(name: str, value: Any) -> Any:
    """What counts of a setting: of a model its fingerprint, wherever it lies."""
    told = re.search(r"\(([0-9a-f]{16}.*)\)$", value) if name == "model" and isinstance(value, str) else None
    return told[1] if told else value
