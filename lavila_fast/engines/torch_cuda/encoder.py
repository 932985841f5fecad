"""The encoder on its own stream: batches of one fixed size, from frames on the host to cross-attention keys and values.

An `EncoderBatch` is one batch with memory of its own: while the decoder takes clips from one, the next is computed in
the other. A batch that is not full computes what was there before, and nobody reads it: no size of batch is ever seen
but one, so nothing compiles twice and a clip's numbers cannot depend on how many came with it. Never run on a GPU yet.

Shape suffixes: E clips a batch, T frames, H W pixels, h heads, d head size, Q visual tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lavila_fast.config import NarratorConfig
from lavila_fast.engines.torch_cuda.launch import Event, Launcher
from lavila_fast.errors import InputError
from lavila_fast.models.narrator import NarratorModel

BUFFERS = 2  # batches: one is read while the other is computed
Encode = Callable[[Tensor], Sequence[Tensor]]


def keys_values(model: NarratorModel) -> Encode:
    """From normalised video (E, 3, T, H, W): key (E, h, d, Q), value (E, h, Q, d) of each gated block in turn."""

    def encode(video: Tensor) -> list[Tensor]:
        pairs = model.text_decoder.keys_values(model.visual_tokens(video))
        return [tensor for pair in pairs for tensor in pair]

    return encode


class EncoderBatch:
    """A batch of clips.

    Attributes:
        clips: How many of it are real.
        cross: Key, value of each gated block in turn, (2 · gated blocks, E, h, Q, d).
        done: Reached when `cross` is computed.
        taken: Reached when the decoder has copied what it wanted of `cross`.
    """

    def __init__(
        self,
        config: NarratorConfig,
        encode: Encode,
        launcher: Launcher,
        batch: int,
        dtypes: tuple[torch.dtype, torch.dtype],
    ) -> None:
        """Make room for `batch` clips; `dtypes` of the video as the encoder reads it, and of keys and values."""
        vision, text = config.vision, config.text
        self.config, self.launcher, self.batch, self._encode = config, launcher, batch, encode
        self.shape = 3, vision.frames, vision.img, vision.img
        sizes = 2 * len(text.cross_layers), batch, text.n_head, config.queries, text.n_embd // text.n_head
        self.video = torch.zeros((batch, *self.shape), dtype=dtypes[0], device=launcher.device)
        self.cross = torch.zeros(sizes, dtype=dtypes[1], device=launcher.device)
        self._mean, self._std = (torch.tensor(c, device=launcher.device) for c in (vision.mean, vision.std))
        self.clips, self.done, self.taken = 0, Event(), Event()
        self._run = launcher.capture(self._compute, encoding=True)  # what this computes first is nobody's

    def clear(self) -> None:
        """Begin a new batch; the decoder wants nothing more of the old one."""
        self.clips = 0

    def put(self, clip: Any) -> None:
        """Upload one more clip, beside whatever is computed; see `normalised` for what a clip is."""
        made = self.launcher.record_event() if getattr(clip, "is_cuda", False) else Event()  # on the caller's stream
        with self.launcher.uploading(), torch.no_grad():
            made.wait()
            if not self.clips:
                self.done.wait()  # until then the old batch is read
            self.video[self.clips].copy_(self.normalised(clip))
        self.clips += 1

    def start(self) -> None:
        """Queue the batch's computation."""
        with self.launcher.uploading():
            loaded = self.launcher.record_event()
        with self.launcher.encoding():
            loaded.wait()
            self.taken.wait()
            self._run()
            self.done = self.launcher.record_event()

    def normalised(self, clip: Any) -> Tensor:
        """A clip on the device, (3, T, H, W) normalised.

        Args:
            clip: Array or tensor, here or on the device: frames (T, H, W, 3) on the scale 0..255, uint8 or float32, or
                (3, T, H, W) normalised already.

        Raises:
            InputError: it has another shape.
        """
        _, T, H, W = self.shape
        if tuple(clip.shape) not in ((T, H, W, 3), self.shape):
            raise InputError(f"a clip has shape {tuple(clip.shape)}; expected frames {(T, H, W, 3)} or {self.shape}")
        on_device = self.launcher.upload(clip)
        if tuple(clip.shape) == self.shape:
            return on_device
        return ((on_device.float() - self._mean) / self._std).permute(3, 0, 1, 2)

    @torch.no_grad()
    def _compute(self) -> None:
        for number, tensor in enumerate(self._encode(self.video)):
            self.cross[number].copy_(tensor if number % 2 else tensor.transpose(-1, -2))
