"""The PyTorch reference models as a runtime: for checkpoints not exported yet, and to compare engines with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.engines.host.state import HostRuntime, StepInputs
from lavila_fast.errors import MissingExtraError
from lavila_fast.machine import torch_threads

if TYPE_CHECKING:
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
