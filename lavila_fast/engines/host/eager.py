"""The PyTorch reference models as runtimes: for checkpoints not exported yet, and to compare engines with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lavila_fast.arrays import F32, I64
from lavila_fast.engines.embed_inputs import check_video, cut_texts, finite_rows
from lavila_fast.engines.host.state import HostRuntime, StepInputs
from lavila_fast.errors import MissingExtraError
from lavila_fast.machine import torch_threads

if TYPE_CHECKING:
    from lavila_fast.models.classifier import Classifier
    from lavila_fast.models.dual_encoder import DualEncoder
    from lavila_fast.models.narrator import NarratorModel


class TorchRuntime(HostRuntime):
    """Runs a `models.narrator.NarratorModel` eagerly on the CPU, float32; its caches are shared with torch."""

    identity = "torch"

    def __init__(self, model: NarratorModel, threads: int | None = None) -> None:
        """Keep `model` (eval mode); `threads` sets torch's process-wide intra-op threads."""
        try:
            import torch
        except ImportError as error:
            raise MissingExtraError("torch", "torch") from error
        super().__init__(model.config)
        self.model, self._torch = model.float().eval(), torch
        torch.set_num_threads(torch_threads(threads, torch.get_num_threads()))

    def _encode(self, video: F32) -> list[F32]:
        with self._torch.inference_mode():
            tokens = self.model.visual_tokens(self._torch.from_numpy(video))
            pairs = self.model.text_decoder.keys_values(tokens)
            return [np.ascontiguousarray(t.numpy()) for pair in pairs for t in pair]

    def _step(self, inputs: StepInputs) -> tuple[F32, F32]:
        t = self._torch.from_numpy
        with self._torch.inference_mode():
            logits, new = self.model.text_decoder.step(
                t(inputs.ids),
                t(inputs.lengths),
                t(inputs.grid),
                t(inputs.place),
                [t(x) for x in inputs.past],
                [t(x) for x in inputs.cross],
            )
        return logits.numpy(), new.numpy()


class TorchDualEncoder:
    """Runs a `models.dual_encoder.DualEncoder` eagerly on the CPU, float32: a `DualEncoderRuntime`."""

    identity, device = "torch", "cpu"

    def __init__(self, model: DualEncoder, threads: int | None = None) -> None:
        """Keep `model` (eval mode); `threads` sets torch's process-wide intra-op threads."""
        import torch

        self.config, self.model, self._torch = model.config, model.float().eval(), torch
        torch.set_num_threads(torch_threads(threads, torch.get_num_threads()))

    def video(self, video: F32) -> F32:
        """See `DualEncoderRuntime.video`; T may be less than the model's."""
        video = check_video(video, self.config.vision, fewer=True)
        with self._torch.inference_mode():
            rows = [self.model.embed_video(self._torch.from_numpy(video[i : i + 1])).numpy() for i in range(len(video))]
        return finite_rows(rows, self.config.embed, "video encoder")

    def text(self, ids: I64, mask: I64 | None = None) -> F32:
        """See `DualEncoderRuntime.text`."""
        texts = cut_texts(ids, mask, self.config.text)
        with self._torch.inference_mode():
            rows = [self.model.embed_text(self._torch.from_numpy(row[None].copy())).numpy() for row in texts]
        return finite_rows(rows, self.config.embed, "text encoder")


class TorchClassifier:
    """Runs a `models.classifier.Classifier` eagerly on the CPU, float32: a `ClassifierRuntime`."""

    identity, device = "torch", "cpu"

    def __init__(self, model: Classifier, threads: int | None = None) -> None:
        """Keep `model` (eval mode); `threads` sets torch's process-wide intra-op threads."""
        import torch

        self.config, self.model, self._torch = model.config, model.float().eval(), torch
        torch.set_num_threads(torch_threads(threads, torch.get_num_threads()))

    def logits(self, video: F32) -> list[F32]:
        """See `ClassifierRuntime.logits`; T may be less than the model's."""
        video = check_video(video, self.config.vision, fewer=True)
        found: list[list[F32]] = [[] for _ in self.config.num_classes]
        with self._torch.inference_mode():
            for i in range(len(video)):
                out = self.model(self._torch.from_numpy(video[i : i + 1]))
                for head, one in zip(found, out if isinstance(out, tuple) else (out,), strict=True):
                    head.append(one.numpy())
        return [
            finite_rows(head, classes, "classifier")
            for head, classes in zip(found, self.config.num_classes, strict=True)
        ]
