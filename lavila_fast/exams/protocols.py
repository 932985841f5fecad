"""How a benchmark is put to a model: the published protocols, and what may be changed about them.

A protocol is data. `seen` is the part of it that decides what the model sees: features are kept by that, and shared by
protocols that only differ in what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from lavila_fast.errors import InputError
from lavila_fast.exams.scores import TEMPLATES, Join, Softmax

_CROPS = (1, 3, 6)


@dataclass(frozen=True)
class Protocol:
    """One way to ask.

    Attributes:
        name: ``zero-shot`` or ``fine-tuned``.
        frames: Of a view.
        stride: From one frame of a view to the next, where views are windows of a video.
        clips: Views along the video.
        crops: Views along the longer side: 1, 3, or 6 with the mirrored ones.
        sparse: Frames of all views come from equal segments of the whole video; else views are windows.
        centre_first: Pictures are cut to their centre before the crops are taken, which are then all the same.
        template: How classes are put into words, a row of `scores.TEMPLATES`.
        join: How the views of a clip become one.
        softmax: When it follows.
        normalised: Whether embeddings are scaled to unit length.
        every: Only every so many-th clip of the data is asked.
        samples: Sentences of a clip.
        temperature: Of sampling; 0 takes the likeliest word.
        top_p: Of sampling.
        max_tokens: Of a sentence, begin token included.
        seed: Of sampling.
    """

    name: str
    frames: int = 4
    stride: int = 2
    clips: int = 1
    crops: int = 1
    sparse: bool = False
    centre_first: bool = False
    template: str = "plain"
    join: Join = "max"
    softmax: Softmax = "several"
    normalised: bool = True
    every: int = 1
    samples: int = 1
    temperature: float = 0.7
    top_p: float = 0.95
    max_tokens: int = 77
    seed: int = 0

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: a number out of range, or a template that there is not.
        """
        for name in ("frames", "stride", "clips", "every", "samples"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.crops not in _CROPS:
            raise InputError(f"{self.crops} crops: take 1, 3 or 6")
        if self.template not in TEMPLATES:
            raise InputError(f"template {self.template}: take {' or '.join(TEMPLATES)}")

    @property
    def views(self) -> int:
        """Different views of a clip that a model sees."""
        return self.clips * (1 if self.centre_first else self.crops)

    def seen(self) -> dict[str, Any]:
        """What decides the pictures that a model sees."""
        names = ("frames", "stride", "clips", "crops", "sparse", "centre_first")
        return {name: getattr(self, name) for name in names}

    def written(self) -> dict[str, Any]:
        """What decides the sentences that a narrator writes of them."""
        names = ("samples", "temperature", "top_p", "max_tokens", "seed")
        return {name: getattr(self, name) for name in names}

    def changed(self, **given: Any) -> Protocol:
        """With other values; None leaves one as it is."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})

    def differences(self, other: Protocol) -> list[str]:
        """In words, what is otherwise here than there."""
        mine, theirs = asdict(self), asdict(other)
        return [f"{name} {mine[name]}, published with {theirs[name]}" for name in mine if mine[name] != theirs[name]]


def _both(zero_shot: Mapping[str, Any], fine_tuned: Mapping[str, Any] | None) -> dict[str, Protocol]:
    found = {"zero-shot": Protocol("zero-shot", **zero_shot)}
    if fine_tuned is not None:
        found["fine-tuned"] = Protocol("fine-tuned", **fine_tuned)
    return found


_TUNED: dict[str, Any] = {"join": "mean", "softmax": "always"}
_WINDOWS: dict[str, Any] = {"frames": 16, "stride": 2, "crops": 3, "clips": 10}
PROTOCOLS: Mapping[str, Mapping[str, Protocol]] = {
    "ek100_mir": _both({}, {"frames": 16}),
    "ek100_cls": _both({}, {"frames": 16, "centre_first": True, **_TUNED}),
    "egtea": _both(_WINDOWS, {**_WINDOWS, "centre_first": True, **_TUNED}),
    "charades_ego": _both({"frames": 16, "sparse": True}, {"frames": 16, "sparse": True, **_TUNED}),
    "ego_mcq": _both({"normalised": False}, None),
    "narration": _both({"every": 10_000}, None),
}
"""Those of LaViLa's model zoo, by benchmark and name."""


def find_protocol(benchmark: str, name: str | None, classifier: bool) -> Protocol:
    """A benchmark's protocol.

    Args:
        benchmark: Its name.
        name: Of the protocol; None: a classifier's is ``fine-tuned``, else ``zero-shot``.
        classifier: Whether the model is one.

    Raises:
        InputError: the benchmark has no such protocol.
    """
    rows = PROTOCOLS[benchmark]
    wanted = name or ("fine-tuned" if classifier else "zero-shot")
    if wanted not in rows:
        raise InputError(f"{benchmark} has no protocol {wanted}; it has {' and '.join(rows)}")
    return rows[wanted]
