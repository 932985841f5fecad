"""Resize, crop and normalise against PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.video.transforms import normalise, preprocess

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

SIZES = [(240, 426), (427, 241), (224, 224), (1080, 1920), (97, 33), (31, 200), (225, 224), (568, 320), (2160, 3840)]


@pytest.mark.parametrize("size", [224, 336, 63])
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_like_interpolate_and_crop(shape: tuple[int, int], size: int) -> None:
    frame = np.random.default_rng(1).integers(0, 256, (*shape, 3), np.uint8)
    h, w = shape
    target = (size, int(size * w / h)) if h <= w else (int(size * h / w), size)
    image = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    image = torch.nn.functional.interpolate(image, size=target, mode="bilinear", align_corners=False)
    top, left = (round((side - size) / 2.0) for side in target)
    expected = image[0, :, top : top + size, left : left + size].permute(1, 2, 0).numpy()
    ours = preprocess(frame, size)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.float32)
    np.testing.assert_allclose(ours, expected, atol=1e-3, rtol=0)


def test_an_image_of_the_right_size_is_untouched() -> None:
    frame = np.random.default_rng(2).integers(0, 256, (224, 224, 3), np.uint8)
    np.testing.assert_array_equal(preprocess(frame, 224), frame.astype(np.float32))


def test_normalise() -> None:
    frames = np.random.default_rng(3).integers(0, 256, (4, 6, 5, 3), np.uint8)
    ours = normalise(frames, CLIP_MEAN, CLIP_STD)
    video = torch.from_numpy(frames).float().permute(3, 0, 1, 2)
    expected = (video - torch.tensor(CLIP_MEAN).view(3, 1, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1, 1)
    assert (ours.shape, ours.dtype, ours.flags.c_contiguous) == ((3, 4, 6, 5), np.float32, True)
    np.testing.assert_allclose(ours, expected.numpy(), atol=1e-6)
