"""The README's picture: frames of the shipped clip, and under them what the shipped model says.

python -m lavila_fast.bench.picture
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lavila_fast.engines.sampling import Warp
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator
from lavila_fast.pretrained import ASSETS
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows

OUTPUT = Path(__file__).resolve().parent.parent / "docs" / "kitchen.png"
CLIPS, WIDTH, HEIGHT, CAPTION = 3, 260, 195, 34


def strip(frames_THW3: np.ndarray, text: str) -> Image.Image:
    """One clip's frames side by side, its sentence below."""
    count, height, width = frames_THW3.shape[:3]
    image = Image.new("RGB", (count * width, height + CAPTION), "white")
    for i, frame in enumerate(frames_THW3):
        image.paste(Image.fromarray(frame), (i * width, 0))
    ImageDraw.Draw(image).text((6, height + 5), text, "black", ImageFont.load_default(20))
    return image


def main() -> None:
    """Write the picture."""
    narrator = Narrator.from_pretrained("nano")
    source = VideoSource("kitchen.mp4", ASSETS / "kitchen.mp4")
    clips = list(expand_windows(source, narrator.clip_seconds, narrator.clip_seconds))[:CLIPS]
    said = [rows[0].text for rows in narrator.narrate_clips(narrator.read(source, clips), Options(warp=Warp(0.0)))]

    def shrink(frame: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(frame).resize((WIDTH, HEIGHT)))

    shown = read_clips(source, clips, narrator.config.vision.frames, shrink)
    strips = [strip(one.frames, text) for one, text in zip(shown, said, strict=True)]
    page = Image.new("RGB", (strips[0].width, sum(s.height for s in strips)), "white")
    for i, one in enumerate(strips):
        page.paste(one, (0, i * one.height))
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(128).save(OUTPUT, optimize=True)


if __name__ == "__main__":
    main()
