"""Crops, flips and views: the original's pixels, given what it drew."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_preprocess import noise

from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.errors import InputError
from lavila_fast.kernels import native as library
from lavila_fast.train.augment import Box, Crop, Part, PartTransform, training_clip, views
from lavila_fast.video.transforms import normalise, preprocess, upright

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_TRAIN_DIR") or Path(__file__).parent / "data" / "golden-train")
FILE = GOLDEN / "transforms.npz"
TOLD: dict[str, Any] = json.loads((GOLDEN / "transforms.json").read_text()) if FILE.is_file() else {}
ARRAYS = dict(np.load(FILE)) if FILE.is_file() else {}
NAMES = sorted(name.partition(".")[0] for name in ARRAYS if name.endswith(".frames") and not name.startswith("real"))

pytestmark = pytest.mark.skipif(not TOLD, reason=f"no recordings in {GOLDEN}")


def statistics(name: str) -> tuple[list[float], list[float]]:
    told = TOLD[TOLD["normalisation"].get(name, name)]
    return told["mean"], told["std"]


def close(found: np.ndarray, expected: np.ndarray, what: str) -> None:
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5, err_msg=what)


@pytest.mark.parametrize("name", NAMES)
def test_training_sees_the_originals_pixels(name: str) -> None:
    frames, size = ARRAYS[f"{name}.frames"], TOLD["size"]
    draws = [key for key in ARRAYS if key.startswith(f"{name}.train_") and key.count(".") == 1]
    assert draws
    for key in draws:
        box, flipped = Box(*map(int, ARRAYS[f"{key}.top_left_height_width"])), bool(ARRAYS[f"{key}.flipped"])
        close(training_clip(frames, size, *statistics(name), box, flipped), ARRAYS[key], key)


@pytest.mark.parametrize("name", NAMES)
def test_tests_see_the_originals_pixels(name: str) -> None:
    frames, size = ARRAYS[f"{name}.frames"], TOLD["size"]
    mean, std = statistics(name)
    middle = normalise(np.stack([preprocess(frame, size) for frame in frames]), mean, std)
    close(middle, ARRAYS[f"{name}.eval"], name)
    for count in (1, 3, 6):
        # The original's views are of one frame each, all views of a frame after one another.
        ours = np.stack(
            [clip[:, t : t + 1] for t in range(len(frames)) for clip in views(frames, size, mean, std, count)]
        )
        close(ours, ARRAYS[f"{name}.views_{count}"], f"{name}, {count} views")


def test_crops_are_drawn_as_the_original_draws_them() -> None:
    torch = pytest.importorskip("torch")

    class Torch:
        def uniform(self, low: float, high: float) -> float:
            return float(torch.empty(1).uniform_(low, high))

        def integers(self, below: int) -> int:
            return int(torch.randint(0, below, size=(1,)))

    for height, width, seed, *box in ARRAYS["crop_draws"].tolist():
        torch.manual_seed(seed)
        assert Crop().draw(height, width, Torch()) == Box(*box), (height, width, seed)


def test_real_sizes() -> None:
    frames = ARRAYS["real.frames"]
    for key, expected in ARRAYS.items():
        if key.startswith("real.") and key.endswith("val.every_16th_pixel") and expected.ndim == 4:
            _, _, kind, *_ = key.split(".")
            size, told = (336 if "336px" in kind else 224), TOLD[kind.partition("_")[0]]
            seen = normalise(np.stack([preprocess(frame, size) for frame in frames]), told["mean"], told["std"])
            close(seen[:, :, 5::16, 3::16], expected, key)


@pytest.mark.skipif(not library.available(), reason=library.why_not())
@pytest.mark.parametrize("pixels", ["yuv420p", "nv12", "yuv420p10le"])
def test_parts_in_one_pass_are_numpys_to_the_bit(pixels: str) -> None:
    frame = noise(pixels, 130, 96)
    whole, random = upright(frame), np.random.default_rng(0)
    for size in (33, 64, 224):
        for height, width, flipped in ((96, 130, False), (2, 2, True), (50, 77, True), (95, 3, False)):
            top, left = int(random.integers(96 - height + 1)), int(random.integers(130 - width + 1))
            part = Part(Box(top, left, height, width), flipped)
            transform = PartTransform(size, CLIP_MEAN, CLIP_STD, part=lambda h, w, part=part: part)
            fused = transform.of_file()(frame)
            assert transform.window(130, 96, 0, False) is not None  # not by numpy
            np.testing.assert_array_equal(fused, transform(whole), err_msg=f"{part} to {size}")
            expected = training_clip(whole[None], size, CLIP_MEAN, CLIP_STD, *part)[:, 0]
            np.testing.assert_array_equal(fused, expected, err_msg=f"{part} to {size}")


def test_what_the_library_cannot_do_goes_by_numpy() -> None:
    for pixels, height in (("yuv444p", 96), ("yuv420p", 97)):
        frame = noise(pixels, 64, height)
        part = Part(Box(5, 7, 40, 30), True)
        transform = PartTransform(16, CLIP_MEAN, CLIP_STD, part=lambda h, w, part=part: part)
        expected = training_clip(upright(frame)[None], 16, CLIP_MEAN, CLIP_STD, *part)[:, 0]
        np.testing.assert_array_equal(transform.of_file()(frame), expected)
    assert PartTransform(16, CLIP_MEAN, CLIP_STD).window(64, 48, 90, False) is None
    one_row = PartTransform(16, CLIP_MEAN, CLIP_STD, part=lambda h, w: Part(Box(3, 0, 1, w)))
    assert one_row.window(64, 48, 0, False) is None


def test_other_numbers_of_views_are_refused() -> None:
    with pytest.raises(InputError, match="2 views: take 1, 3 or 6"):
        views(np.zeros((1, 8, 8, 3), np.uint8), 4, (0.0,) * 3, (1.0,) * 3, 2)
