"""Decoding by PyNvVideoCodec (NVDEC, frames as NV12 on the GPU) or torchcodec, for machines without DALI.

PyNvVideoCodec's frames become the model's input by our CUDA kernel in one pass where it is compiled; everything else is
resized and cropped in PyTorch. PyNvVideoCodec: written to its documentation, never run yet. torchcodec: run on CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavila_fast.errors import InputError
from lavila_fast.video.facts import VideoFacts, to_rgb
from lavila_fast.video.gpu.unit_requests import UnitRequest, capability, require
from lavila_fast.video.transforms import Region, centre


def resample(frames_NHW3: Any, region: Region, size: int) -> Any:
    """Bilinear, half-pixel centres, no antialiasing: `region` of uint8 frames as (N, size, size, 3) float32."""
    import torch

    def taps(length: int, start: float, stop: float) -> tuple[Any, Any, Any]:
        steps = torch.arange(size, dtype=torch.float64, device=frames_NHW3.device) + 0.5
        where = (start + steps * ((stop - start) / size) - 0.5).clamp(0, length - 1).float()
        low = where.long().clamp(max=length - 1)
        return low, (low + 1).clamp(max=length - 1), where - low

    top, left, bottom, right = region
    y0, y1, wy = taps(frames_NHW3.shape[1], top, bottom)
    x0, x1, wx = taps(frames_NHW3.shape[2], left, right)
    wy, wx = wy[:, None, None], wx[:, None]
    rows = (frames_NHW3[:, y].float() for y in (y0, y1))
    above, below = (row[:, :, x0] * (1 - wx) + row[:, :, x1] * wx for row in rows)
    return above * (1 - wy) + below * wy


def nv12_to_rgb(nv12_N3W: Any, facts: VideoFacts) -> Any:
    """NV12 frames (N, 3/2 H, W) uint8 to RGB (N, H, W, 3) uint8, chroma repeated, with the file's own colour matrix."""
    import torch

    height = nv12_N3W.shape[1] * 2 // 3
    luma = nv12_N3W[:, :height, :, None].float() - (0 if facts.full_range else 16)
    chroma = nv12_N3W[:, height:].unflatten(2, (-1, 2)).float() - 128
    chroma = chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)
    matrix = luma.new_tensor(to_rgb(facts.luma(), facts.full_range).T)
    return (torch.cat([luma, chroma], 3) @ matrix).round_().clamp_(0, 255).byte()


def preprocessed(nv12_N3W: Any, facts: VideoFacts, size: int) -> Any:
    """NV12 frames (N, 3/2 H, W) uint8, resized and cropped in the middle: (N, size, size, 3) float32 on 0..255.

    U and V are taken apart first: PyAV's decoders give them so, and swscale has other colours for NV12.
    """
    import torch

    from lavila_fast.kernels.preprocess import cuda

    out_13NSS = torch.empty(1, 3, len(nv12_N3W), size, size, device=nv12_N3W.device)
    chroma_2Nhw = nv12_N3W[:, facts.height :].unflatten(2, (-1, 2)).movedim(3, 0).contiguous()
    surfaces = [
        cuda.Surface("yuv420p", facts.width, facts.height, (y[: facts.height], u, v), facts.matrix, facts.full_range)
        for y, u, v in zip(nv12_N3W, *chroma_2Nhw, strict=True)
    ]
    cuda.preprocess(surfaces, [(0, place) for place in range(len(surfaces))], out_13NSS, (0.0,) * 3, (1.0,) * 3)
    return out_13NSS[0].permute(1, 2, 3, 0)


class NvCodecDecoder:
    """Decodes units with PyNvVideoCodec, one after the other."""

    name = "pynvvideocodec"

    def __init__(self, size: int, device: str) -> None:
        if device == "cpu":
            raise InputError("decoder pynvvideocodec: gives frames on a GPU only; take pyav")
        require("PyNvVideoCodec", "PyNvVideoCodec", self.name)
        from lavila_fast.kernels.preprocess import cuda

        self._size, self._gpu, self._nvdec = size, int(device.partition(":")[2] or 0), capability(device)
        self._one_pass = not cuda.why_not()

    def why_not(self, facts: VideoFacts) -> str:
        """Why this decoder cannot take a file, or an empty string."""
        odd = facts.width % 2 or facts.height % 2
        return facts.why_not(self._nvdec) or ("odd sizes" if odd else "")

    def decode(self, requests: Sequence[UnitRequest]) -> list[Any]:
        """Frames of each request, (n, size, size, 3) float32 on 0..255."""
        return [self._one(request) for request in requests]

    def _one(self, request: UnitRequest) -> Any:
        import PyNvVideoCodec as nvc
        import torch
        from torch.utils.dlpack import from_dlpack

        source = nvc.SimpleDecoder(request.data, gpu_id=self._gpu, use_device_memory=True)
        # A frame's surface is used again for later ones: copy it.
        nv12 = torch.stack([from_dlpack(f) for f in source.get_batch_frames_by_index(request.ordinals)])
        facts, size = request.facts, self._size
        if self._one_pass and request.region == centre(facts.width, facts.height, size):
            return preprocessed(nv12, facts, size)
        return resample(nv12_to_rgb(nv12, facts), request.region, size)


class TorchCodecDecoder:
    """Decodes units with torchcodec, one after the other; on a GPU it takes to the CPU by itself what NVDEC lacks."""

    name = "torchcodec"

    def __init__(self, size: int, device: str) -> None:
        require("torchcodec", "torchcodec", self.name)
        self._size, self._device, self._nvdec = size, device, capability(device)

    def why_not(self, facts: VideoFacts) -> str:
        """Why this decoder cannot take a file, or an empty string."""
        return facts.why_not(self._nvdec)

    def decode(self, requests: Sequence[UnitRequest]) -> list[Any]:
        """Frames of each request, (n, size, size, 3) float32 on 0..255."""
        frames = [self._one(request) for request in requests]
        return [one.numpy() for one in frames] if self._device == "cpu" else frames

    def _one(self, request: UnitRequest) -> Any:
        from torchcodec.decoders import VideoDecoder

        source = VideoDecoder(request.data, dimension_order="NHWC", device=self._device)
        frames = source.get_frames_at(indices=request.ordinals).data
        return resample(frames, request.region, self._size)
