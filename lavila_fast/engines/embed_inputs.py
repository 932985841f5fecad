"""What every engine checks of the clips and texts that it is to embed, and how texts are cut out of their padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lavila_fast.arrays import F32, I64
from lavila_fast.config import ClipTextConfig, DistilBertConfig, VisionConfig
from lavila_fast.engines.host.state import require_finite
from lavila_fast.errors import InputError


def video_shape(vision: VisionConfig) -> tuple[int | None, ...]:
    """Shape of a batch of clips, None for their number."""
    return None, 3, vision.frames, vision.img, vision.img


def check_video(video: F32, vision: VisionConfig, fewer: bool = False) -> F32:
    """Normalised clips (B, 3, T, H, W) as contiguous float32; with `fewer`, T may be less than the model's.

    Raises:
        InputError: another shape.
        NotFiniteError: values that are no numbers.
    """
    wanted = (3, *video_shape(vision)[2:])
    good = video.ndim == 5 and video.shape[1] == 3 and video.shape[3:] == wanted[2:]
    frames = video.shape[2] if good else 0
    if not good or not (1 <= frames <= vision.frames if fewer else frames == vision.frames):
        raise InputError(f"video has shape {video.shape}; expected (B, {', '.join(map(str, wanted))})")
    video = np.ascontiguousarray(video, np.float32)
    require_finite(video)
    return video


def finite_rows(rows: Sequence[F32], width: int, where: str) -> F32:
    """Rows (1, width) of an engine as one array, (N, width).

    Raises:
        NotFiniteError: they are no numbers.
    """
    found = np.concatenate([np.empty((0, width), np.float32), *rows])
    require_finite(found, f"the numbers of the {where}")
    return found


def cut_texts(ids: I64, mask: I64 | None, text: ClipTextConfig | DistilBertConfig) -> list[I64]:
    """The tokens of each text, without what stands behind its last one.

    Args:
        ids: (B, L); CLIP's texts end with their highest id, which is the end token's where a text was not cut off.
        mask: (B, L), 1 for tokens and 0 behind them; None: all are tokens. CLIP needs none.
        text: The text tower's sizes.

    Raises:
        InputError: ids of another rank, too long, or beyond the vocabulary; a mask with gaps or of another shape.
    """
    clip = isinstance(text, ClipTextConfig)
    most = text.context if isinstance(text, ClipTextConfig) else text.max_positions
    if ids.ndim != 2 or not 0 < ids.shape[1] <= most:
        raise InputError(f"text ids have shape {ids.shape}; expected (B, L) with L from 1 to {most}")
    if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < text.vocab:
        raise InputError(f"text ids go from {ids.min()} to {ids.max()}; this model has words 0 to {text.vocab - 1}")
    ids = ids.astype(np.int64, copy=False)
    if clip:
        return [row[: 1 + int(row.argmax())] for row in ids]
    if mask is None:
        return list(ids)
    lengths = mask.astype(bool).sum(axis=1)
    if mask.shape != ids.shape or (mask.astype(bool) != (np.arange(ids.shape[1]) < lengths[:, None])).any():
        raise InputError(f"the mask of ids {ids.shape} must have their shape, ones on tokens and zeros behind them")
    return [row[: max(1, n)] for row, n in zip(ids, lengths, strict=True)]
