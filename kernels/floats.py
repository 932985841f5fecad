"""The types of numbers that our Triton kernels read and write."""

from __future__ import annotations

import torch

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
