"""``lavila-fast demo``: the clip that comes with the package, narrated by the model that comes with it."""

from __future__ import annotations

import json

import click

from lavila_fast.errors import InputError


@click.command()
def demo() -> None:
    """Narrate the clip that comes with this package."""
    from lavila_fast.engines.sampling import Warp
    from lavila_fast.generate.options import Options
    from lavila_fast.narrator import Narrator
    from lavila_fast.pretrained import ASSETS
    from lavila_fast.video.lists import read_list
    from lavila_fast.video.sources import VideoSource

    video, truth = ASSETS / "kitchen.mp4", ASSETS / "kitchen.jsonl"
    if not (video.is_file() and truth.is_file()):
        raise InputError(f"{video}: the demo's clip is missing from this installation; install lavila-fast again")
    narrator = Narrator.from_pretrained("nano")
    clips = list(read_list(truth))
    shown = [json.loads(line)["text"] for line in truth.read_text(encoding="utf-8").split("\n") if line]
    decoded = narrator.read(VideoSource(clips[0].video, video), clips)
    right = 0
    for (row,), text in zip(narrator.narrate_clips(decoded, Options(warp=Warp(0.0))), shown, strict=True):
        right += row.text == text
        click.echo(
            f"{row.start:5.1f} - {row.end:4.1f} s  {row.text}{'' if row.text == text else f'   (shown: {text})'}"
        )
    click.echo(
        f"{right} of {len(shown)} as shown. This small model knows only its miniature kitchen: {video}", err=True
    )
