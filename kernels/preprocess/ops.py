"""Preprocessing, chosen here: native where it serves, else the definition itself.

The narrating road asks for ``native`` by name and goes by PyAV's own conversion where that cannot be
(`video.transforms`); ``reference`` is for comparison, not for speed.

    frame_3SS = preprocess(Picture("nv12", 1920, 1080, planes), 224, mean, std, 0)
"""

from __future__ import annotations

from lavila_fast.kernels.choice import Implementation, Op, always
from lavila_fast.kernels.preprocess import native, reference

preprocess = Op(
    "preprocess",
    [
        Implementation("native", native.why_not, native.preprocess),
        Implementation("reference", always, reference.preprocess),
    ],
)
