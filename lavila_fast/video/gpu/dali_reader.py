"""Decoding by NVIDIA DALI: NVDEC, resize and crop on the GPU; on a CPU for VP9 and MJPEG, which is how tests run it.

DALI's resize without antialiasing has half-pixel centres and reads outside the region of interest as `transforms` does,
so cropping is a region of the resize and only pixels that survive are computed. Its colours are BT.601 whatever the
file says; `VideoFacts.recolour_33` sets that right. DALI is imported when a decoder is made (seconds),
not before.

On a GPU: never run yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lavila_fast.video.facts import VideoFacts
from lavila_fast.video.gpu.unit_requests import UnitRequest, capability, require

_ON_CPU = ("vp9", "mjpeg")


class DaliDecoder:
    """Decodes units with DALI.

    Args:
        size: Side of the output, pixels.
        device: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        MissingExtraError: DALI is not installed.
    """

    name = "dali"

    def __init__(self, size: int, device: str) -> None:
        require("nvidia.dali", "NVIDIA DALI", "dali")
        import nvidia.dali.experimental.dynamic as ndd

        self._ndd, self._size, self._on_cpu = ndd, size, device == "cpu"
        self._device, self._nvdec = device.replace("cuda", "gpu"), capability(device)

    def why_not(self, facts: VideoFacts) -> str:
        """Why this decoder cannot take a file, or an empty string."""
        if self._on_cpu and facts.codec not in _ON_CPU:
            return f"DALI decodes {facts.codec} on GPUs only"
        return facts.why_not(self._nvdec)

    def decode(self, requests: Sequence[UnitRequest]) -> list[Any]:
        """Frames of each request, (n, size, size, 3) float32 on 0..255: numpy arrays, or tensors on the GPU."""
        with self._ndd.device(self._device):
            tensors = self._resized(requests).tensors
            return [self._finish(one, request.facts) for one, request in zip(tensors, requests, strict=True)]

    def _resized(self, requests: Sequence[UnitRequest]) -> Any:
        ndd = self._ndd
        coded = ndd.as_batch([np.frombuffer(request.data, np.uint8) for request in requests])
        wanted = ndd.as_batch([np.asarray(request.ordinals, np.int32) for request in requests])
        corners = np.asarray([request.region for request in requests], np.float32)
        video = ndd.decoders.video(coded, frames=wanted, device=self._device, affine=False)
        return ndd.resize(
            video,
            size=[self._size, self._size],
            roi_start=ndd.as_batch(list(corners[:, :2])),
            roi_end=ndd.as_batch(list(corners[:, 2:])),
            antialias=False,
            dtype=ndd.float32,
        )

    def _finish(self, frames: Any, facts: VideoFacts) -> Any:
        matrix = facts.recolour_33()
        if self._on_cpu:
            out = np.array(frames)
            return out if matrix is None else (out @ matrix.T).clip(0, 255)
        out = frames.torch()
        return out if matrix is None else (out @ out.new_tensor(matrix.T)).clamp(0, 255)
