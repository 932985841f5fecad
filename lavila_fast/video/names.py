"""What decoders are called, for those who list them without loading one; `video.decoders` has a row for each."""

from __future__ import annotations

GPU_DECODERS = ("dali", "pynvvideocodec", "torchcodec")
HARDWARE = "hwaccel"
DECODERS = ("auto", "pyav", HARDWARE, *GPU_DECODERS)
