"""What the graphs of a bundle and their inputs and outputs are called: one place for those who write and who run them.

``encoder``: ``video`` → the cross-attention's keys and values. ``decoder``: ``ids lengths grid place``, the cache and
the keys and values → ``logits new``. ``dual_video``, ``dual_text``: ``video``, or ``ids`` (and ``mask``) →
``embedding``. ``classifier``: ``video`` → ``logits``, or ``logits_0`` … of several heads.
"""

from __future__ import annotations

from lavila_fast.config import ClassifierConfig

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
DUAL_VIDEO, DUAL_TEXT, CLASSIFIER = "dual_video.onnx", "dual_text.onnx", "classifier.onnx"
WEIGHTS = "weights.safetensors"
STEP = ["ids", "lengths", "grid", "place"]


def cross_names(gates: int) -> list[str]:
    """Key and value of each gated block in turn."""
    return [f"cross_{kind}_{i}" for i in range(gates) for kind in ("key", "value")]


def past_names(layers: int) -> list[str]:
    """Cached key and value of each block in turn."""
    return [f"past_{kind}_{i}" for i in range(layers) for kind in ("key", "value")]


def logits_names(config: ClassifierConfig) -> list[str]:
    """Outputs of a classifier's heads."""
    return [f"logits_{i}" for i in range(len(config.num_classes))] if config.multi_head else ["logits"]
