"""Which magnitudes enter each layer, measured on real clips: what static INT8 (Q/DQ) needs.

Every layer's inputs go into a running histogram of their magnitudes, so that a range can be the largest value seen
(``max``) or one that all but a share of them fall below (``percentile``), chosen afterwards. A measurement is saved as
it goes and taken up again.

    video = calibration_clips(Path("videos"), narrator.config, 512)
    ranges = calibrate(narrator, video, state=Path("calibration.json"))
    recipe = Scheme("int8", "tensorrt", ranges=ranges.amax())

The text side of a narrator is fed words drawn from its own predictions, a dual encoder's the given or random ids.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lavila_fast.config import ClipTextConfig, ModelConfig
from lavila_fast.errors import InputError
from lavila_fast.evaluate.clips import FolderClips, stacked
from lavila_fast.files import write_text
from lavila_fast.models.checkpoint import tensors_digest
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.gpt2 import TiedEmbedding
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.quant.scheme import named_layers, open_copy
from lavila_fast.video.transforms import normalise

_LOG = logging.getLogger(__name__)
LEAST, BINS, WORDS, BATCH = 512, 2048, 12, 4
CALIBRATION_FORMAT = 1


@dataclass
class Histogram:
    """Counts of magnitudes in `BINS` equal bins over 0..limit; the limit doubles when a value passes it."""

    limit: float = 0.0
    largest: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    def add(self, values: Tensor) -> None:
        """Count the magnitudes of a float tensor of any shape."""
        magnitudes = values.detach().float().abs().flatten()
        top = float(magnitudes.max()) if magnitudes.numel() else 0.0
        if not np.isfinite(top):
            raise InputError("a layer's input is not finite on these clips; the model or a clip is broken")
        self.largest = max(self.largest, top)
        if not self.limit:
            if not top:
                self.counts[0] += magnitudes.numel()
                return
            self.limit = top
        while top > self.limit:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2, np.int64)])
            self.limit *= 2
        self.counts += torch.histc(magnitudes, BINS, 0, self.limit).numpy().astype(np.int64)

    def percentile(self, percent: float) -> float:
        """The magnitude that `percent` of all values do not pass, linear inside its bin."""
        below = np.concatenate([[0], self.counts.cumsum()])
        wanted = percent / 100 * below[-1]
        return min(float(np.interp(wanted, below, np.linspace(0, self.limit, BINS + 1))), self.largest)

    @property
    def rms(self) -> float:
        """Root mean square of all values, each taken as the middle of its bin."""
        middles = (np.arange(len(self.counts)) + 0.5) * self.limit / len(self.counts)
        return float(np.sqrt((middles**2 * self.counts).sum() / max(self.counts.sum(), 1)))


@dataclass
class Ranges:
    """What calibration knows: a histogram for each layer, and how many clips are in it."""

    clips: int = 0
    layers: dict[str, Histogram] = field(default_factory=dict)

    def amax(self, method: str = "max", percent: float = 99.999) -> dict[str, float]:
        """Range of each layer.

        Trained transformers compute with their few largest values: what a percentile cuts off costs them more than the
        finer steps give (docs/INT8.md).

        Args:
            method: ``max`` or ``percentile``.
            percent: Share of values inside the range, for ``percentile``.
        """
        if method not in ("max", "percentile"):
            raise InputError(f"calibration method {method!r} is neither max nor percentile")
        if not 50 <= percent <= 100:
            raise InputError(f"a percentile of {percent:g} makes no range; give one between 50 and 100, such as 99.999")
        if method == "max":
            return {name: one.largest for name, one in self.layers.items()}
        return {name: one.percentile(percent) for name, one in self.layers.items()}

    def outlying(self, times: float) -> frozenset[str]:
        """Layers whose largest input is more than so many times the root mean square of all that enter it."""
        return frozenset(name for name, one in self.layers.items() if one.largest > times * one.rms > 0)

    def save(self, path: Path) -> None:
        """Write to a JSON file, whole or not at all; its folder is made."""
        found = {
            name: {"limit": one.limit, "largest": one.largest, "counts": np.trim_zeros(one.counts, "b").tolist()}
            for name, one in self.layers.items()
        }
        write_text(path, json.dumps({"format": CALIBRATION_FORMAT, "clips": self.clips, "layers": found}))

    @classmethod
    def load(cls, path: Path) -> Ranges:
        """Read what `save` wrote.

        Raises:
            InputError: it is not such a file.
        """
        try:
            values = json.loads(path.read_bytes())
            if values["format"] != CALIBRATION_FORMAT:
                raise ValueError(f"format {values['format']}")
            return cls(int(values["clips"]), {name: _histogram(one) for name, one in values["layers"].items()})
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: not a calibration of this version ({error}); calibrate again") from error


def _histogram(values: dict[str, Any]) -> Histogram:
    counts = np.zeros(BINS, np.int64)
    counts[: len(values["counts"])] = values["counts"]
    return Histogram(float(values["limit"]), float(values["largest"]), counts)


def calibration_clips(folder: Path, config: ModelConfig, count: int = LEAST) -> Tensor:
    """Normalised windows (N, 3, T, H, W) from the videos in a folder, N at most `count`, in turn from each video.

    Raises:
        InputError: the folder holds no videos, or none that can be read.
    """
    if not folder.exists():
        raise InputError(f"{folder}: no such folder; give one with videos to calibrate with")
    vision, source = config.vision, FolderClips(folder, count)
    frames = source.stream(vision.frames, vision.img)
    # 512 clips of 336 pixels are 2.8 GB: each is normalised as it comes, into the one array there is.
    clips = stacked((normalise(one, vision.mean, vision.std) for one in frames), source.most)
    if len(clips) < count:
        _LOG.warning("%s: %d of %d clips to calibrate with; ranges may be too narrow", folder, len(clips), count)
    return torch.from_numpy(clips)


@torch.inference_mode()
def calibrate(
    model: nn.Module,
    video: Tensor,
    texts: Tensor | None = None,
    state: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Ranges:
    """Run clips through a float32 model and measure what enters each layer.

    Args:
        model: NarratorModel, DualEncoder or Classifier.
        video: Normalised clips (N, 3, T, H, W).
        texts: Ids (N, L) for a dual encoder's text side, or to be read by a narrator; else made up.
        state: JSON file to save to as it goes; what it holds already is not measured again.
        progress: Told how many clips are done.
    """
    ranges = Ranges.load(state) if state is not None and state.exists() else Ranges()
    with watching(model, lambda name, x: ranges.layers.setdefault(name, Histogram()).add(x)) as (watched, off):
        for start in range(ranges.clips, len(video), BATCH):
            some = slice(start, start + BATCH)
            feed(watched, video[some], None if texts is None else texts[some], start, off)
            ranges.clips = min(start + BATCH, len(video))
            if state is not None:
                ranges.save(state)
            if progress is not None:
                progress(ranges.clips)
    return ranges


@contextmanager
def watching(
    model: nn.Module, see: Callable[[str, Tensor], None]
) -> Iterator[tuple[nn.Module, Callable[[bool], None]]]:
    """A copy of a float model that shows `see` each layer's name and input, and a switch that blinds it (True)."""
    watched, blind = open_copy(model), [False]

    def look(name: str, x: Tensor) -> None:
        if not blind[0]:
            see(name, x)

    for name, layer in named_layers(watched):
        if isinstance(layer, TiedEmbedding):
            layer.logits = partial(_watched_logits, layer.logits, name, look)  # type: ignore[method-assign]
        else:
            layer.register_forward_pre_hook(lambda _, inputs, name=name: look(name, inputs[0]))
    yield watched, lambda value: blind.__setitem__(0, value)


def _watched_logits(logits: Callable[[Tensor], Tensor], name: str, look: Callable[..., None], x: Tensor) -> Tensor:
    look(name, x)
    return logits(x)


def state_key(model: nn.Module, video: Tensor) -> str:
    """What a calibration's state depends on, as 32 hexadecimal digits: weights, clips and the form of the file."""
    tensors = (*model.state_dict().items(), *((f"clip {i}", clip) for i, clip in enumerate(video)))
    return tensors_digest(tensors, f"{CALIBRATION_FORMAT} {BINS} {BATCH} {WORDS}")


def feed(model: nn.Module, video: Tensor, texts: Tensor | None, seed: int, blind: Callable[[bool], None]) -> None:
    """Send clips and words once through all of a model; `blind` is set while words are looked for."""
    noise = torch.Generator().manual_seed(seed)
    if isinstance(model, NarratorModel):
        seen = model.visual_tokens(video)
        blind(True)
        ids = drawn_ids(model, seen, noise) if texts is None else texts
        blind(False)
        model.logits(seen, ids)
    elif isinstance(model, DualEncoder):
        model.embed_video(video)
        model.embed_text(random_texts(model, len(video), noise) if texts is None else texts)
    else:
        model(video)


def batches(rows: Tensor) -> list[Tensor]:
    """Views of `BATCH` rows each."""
    return [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]


def drawn_ids(model: NarratorModel, seen_BQE: Tensor, noise: torch.Generator, count: int = WORDS) -> Tensor:
    """Ids (B, 1 + count) that a narrator writes about clips, drawn from its own predictions."""
    ids = torch.full((len(seen_BQE), 1), model.config.text.vocab - 1)
    for _ in range(min(count, model.config.text.n_positions - 1)):
        shares = model.logits(seen_BQE, ids)[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(shares, 1, generator=noise)], dim=1)
    return ids


def random_texts(model: DualEncoder, count: int, noise: torch.Generator) -> Tensor:
    """Random ids (count, L), CLIP's with their end token last."""
    text = model.config.text
    most = text.context if isinstance(text, ClipTextConfig) else text.max_positions
    ids = torch.randint(1, text.vocab - 1, (count, min(WORDS, most)), generator=noise)
    ids[:, -1] = text.vocab - 1
    return ids


def layer_inputs(model: nn.Module, video: Tensor, rows: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Up to `rows` inputs (rows, K) of each layer of `names`, evenly from what `video` gives."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    each = max(1, rows // -(-len(video) // BATCH))

    def keep(name: str, x: Tensor) -> None:
        if name in found:
            flat = x.flatten(0, -2)
            found[name].append(flat[torch.linspace(0, len(flat) - 1, min(each, len(flat))).long()].clone())

    with torch.inference_mode(), watching(model, keep) as (watched, blind):
        for number, some in enumerate(batches(video)):
            feed(watched, some, None, number, blind)
    return {name: torch.cat(parts) for name, parts in found.items() if parts}
