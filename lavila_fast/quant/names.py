"""What a bundle can be made for and in: names, for those who list them without loading torch."""

from __future__ import annotations

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "mixed")
TARGETS = ("cpu", "cuda", "tensorrt", "jetson", "rtx")
