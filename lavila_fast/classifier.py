"""What is done in a video, as scores of classes: the classifier that people hold in their hands.

    from lavila_fast import Classifier
    for row in Classifier.from_pretrained("verbs-and-nouns-int8").classify("kitchen.mp4"):
        print(row.start, row.end, [int(head.argmax()) for head in row.logits])

From a bundle it needs no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.clip_model import ClipModel, Paths, bundle_fingerprint, in_batches, require_batch, shown_at
from lavila_fast.config import ClassifierConfig
from lavila_fast.engines.choose import open_classifier
from lavila_fast.engines.protocol import ClassifierRuntime
from lavila_fast.files import sha256
from lavila_fast.presets import CLIP_SECONDS
from lavila_fast.pretrained import find_model
from lavila_fast.records import ClipLogits
from lavila_fast.video.children.pool import Children
from lavila_fast.video.reader import DecodedClip


@dataclass(frozen=True)
class Classifier(ClipModel):
    """A classifier ready to run, in the process that opened it; pickled, it is opened again where it goes.

    Attributes:
        runtime: The engine.
        clip_seconds: Length of the windows that suit this model, seconds.
        fingerprint: Changes when weights, graphs or the engine's identity do.
        note: What a user should know before believing a score.
        decoder: What decodes video: one of `video.names.DECODERS`.
        opened: What `from_pretrained` was called with.
    """

    runtime: ClassifierRuntime
    clip_seconds: float = CLIP_SECONDS
    fingerprint: str = ""
    note: str = ""
    decoder: str = "auto"
    opened: tuple[str, dict[str, Any]] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        threads: int | None = None,
        engine: str = "auto",
        precision: str | None = None,
        decoder: str = "auto",
    ) -> Classifier:
        """Open a classifier.

        Args:
            source: A bundle folder that holds a classifier, a checkpoint (``.pth`` or ``.safetensors``; needs the
                ``[torch]`` extra), or the name of a checkpoint that `lavila-fast models pull` has fetched.
            threads: Threads of the engine; None takes all cores.
            engine: As of `DualEncoder.from_pretrained`.
            precision: Of an engine that has a choice; None takes its default.
            decoder: What decodes video; see `Narrator.from_pretrained`.

        Raises:
            InputError, BundleError, CheckpointError: with what to do.
        """
        how: dict[str, Any] = {"engine": engine, "threads": threads, "precision": precision}
        path = find_model(source)
        told = str(path.absolute()), {**how, "decoder": decoder}
        bundle = open_bundle(path) if path.is_dir() else None
        runtime = open_classifier(path, bundle, **how)
        source_of = bundle_fingerprint(bundle, runtime.config) if bundle else sha256(path)[:16]
        length, note = (bundle.clip_seconds, bundle.note) if bundle else (CLIP_SECONDS, "")
        model = cls(runtime, length, f"{source_of}, {runtime.identity}", note)
        return replace(model._with_decoder(decoder), opened=told)

    @property
    def config(self) -> ClassifierConfig:
        """The model's sizes."""
        return self.runtime.config

    def logits(self, frames: NDArray[np.uint8]) -> tuple[F32, ...]:
        """Logits (B, classes) of each head, of clips of RGB frames (B, T, H, W, 3) uint8.

        Frames of another size than the model's have their shorter side resized to it and are cropped to the centre.

        Raises:
            InputError: another shape or type, or another number of frames than the model takes.
        """
        return tuple(self.runtime.logits(self.prepare(frames)))

    def classify_clips(
        self, decoded: Iterable[DecodedClip], batch: int = 8, *, frame_times: bool = False
    ) -> Iterator[ClipLogits]:
        """Classify clips from `read` as they come, in their order.

        Args:
            decoded: Taken lazily, `batch` at a time.
            batch: Clips that are given to the engine together. It changes speed and memory, never a result.
            frame_times: Say when the frames that were seen are shown (`ClipLogits.frames`).

        Raises:
            InputError: a batch that makes no sense.
            NotFiniteError: what the engine makes of a clip are no numbers.
        """
        require_batch(batch)
        for clips, logits in in_batches(decoded, batch, self.runtime.logits):
            for one, heads in zip(clips, zip(*logits, strict=True), strict=True):
                clip, times = one.clip, shown_at(one) if frame_times else None
                yield ClipLogits(clip.video, clip.start, clip.end, heads, one.damaged, times)

    def classify(
        self,
        paths: Paths,
        *,
        clip_seconds: float | None = None,
        stride_seconds: float | None = None,
        batch: int = 8,
        frame_times: bool = False,
        children: Children | None = None,
        nearest: float = 0.0,
    ) -> Iterator[ClipLogits]:
        """Classify whole video files or chunk folders, window by window; arguments and errors as of `embed_video`."""
        require_batch(batch)
        self.require_nearest(nearest)
        read = partial(self.read, children=children, nearest=nearest)
        seen = self._windows(paths, clip_seconds, stride_seconds, read, children)
        return seen(partial(self.classify_clips, batch=batch, frame_times=frame_times))
