"""What a GPU decoder is asked for."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lavila_fast.errors import MissingExtraError
from lavila_fast.video.facts import VideoFacts
from lavila_fast.video.transforms import Region


@dataclass(frozen=True, slots=True)
class UnitRequest:
    """Frames of one unit.

    Attributes:
        data: The unit as an MP4 file.
        ordinals: Numbers of the frames, rising.
        region: What becomes the whole output.
        facts: Facts of the file it comes from.
    """

    data: bytes
    ordinals: list[int]
    region: Region
    facts: VideoFacts


class UnitDecoder(Protocol):
    """A library that decodes units."""

    name: str

    def why_not(self, facts: VideoFacts) -> str:
        """Why this decoder cannot take a file, or an empty string."""
        ...

    def decode(self, requests: Sequence[UnitRequest]) -> list[Any]:
        """Frames of each request, (n, size, size, 3) float32 on 0..255, on the decoder's device."""
        ...


def require(module: str, package: str, extra: str) -> None:
    """Raise MissingExtraError unless `module` can be found; it is not imported."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # nor is the package that it would lie in
        found = False
    if not found:
        raise MissingExtraError(package, extra)


def capability(device: str) -> tuple[int, int] | None:
    """Compute capability of a GPU; None for the CPU."""
    if device == "cpu":
        return None
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return major, minor


def gpu_missing() -> str:
    """Why there is no GPU to decode on, or an empty string."""
    if importlib.util.find_spec("torch") is None:
        return "frames are handed over to PyTorch, which is not installed"
    import torch

    return "" if torch.cuda.is_available() else "there is no GPU that PyTorch can use"
