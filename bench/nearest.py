"""What ``--frames nearest:SECONDS`` saves, and what it does to the shipped model's sentences.

    python -m lavila_fast.bench.nearest --output bench/results/nearest.json

Savings are those of `bench.decode`, on its films. Sentences are greedy, of films of the miniature kitchen, both splits,
encoded as here: an action of 2 s is a clip, which is as fast as actions get. The last line is one JSON object.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import click
import numpy as np

from lavila_fast.bench.decode import NEAREST, measured
from lavila_fast.bench.films import FILMS, SECONDS, made
from lavila_fast.bench.report import nearest_table
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.download import cache_dir
from lavila_fast.engines.sampling import Warp
from lavila_fast.evaluate.clips import FIRST_SEED, UNSEEN_SPLITS, kitchen_digest, labels_of
from lavila_fast.evaluate.kitchen import sentence_items
from lavila_fast.files import new_file, write_json
from lavila_fast.generate.options import Options
from lavila_fast.kitchen.film import ground_truth
from lavila_fast.kitchen.render import render_frame
from lavila_fast.kitchen.scene import Scene, make_scene
from lavila_fast.narrator import Narrator
from lavila_fast.records import Clip
from lavila_fast.video.nearby import in_words
from lavila_fast.video.sources import VideoSource

COMMAND_NEAREST = "python -m lavila_fast.bench.nearest"
_FPS, _SIZE = 15, (320, 240)
_FILMED = ("h264_1080p", "h264_1080p_gop1_b2", "h264_1080p_gop1_b0", "hevc_720p", "vp9_720p", "av1_720p")


@dataclass(frozen=True)
class Coding:
    """How a film is encoded by x264.

    Attributes:
        name: Of the file.
        what: In words.
        params: Beside ``crf`` 20 and the preset ``medium``.
    """

    name: str
    what: str
    params: str = ""


# Groups of 16 frames: those of a camera do not begin where actions do.
_CAMERA = "keyint=16:min-keyint=16:scenecut=0"
CODINGS = (
    Coding("default", "x264's defaults, a key frame at most cuts"),
    Coding("camera_b2", "groups of 1.07 s, 2 B", f"{_CAMERA}:bframes=2"),
    Coding("camera_b0", "groups of 1.07 s, no B", f"{_CAMERA}:bframes=0"),
)


def filmed(scenes: list[Scene], folder: Path) -> dict[Coding, Path]:
    """A film of scenes in each coding; drawn at the first call."""
    digest = kitchen_digest(repr(CODINGS).encode())
    paths = {coding: folder / f"kitchen-{coding.name}-{len(scenes)}-{digest}.mp4" for coding in CODINGS}
    lacking = [coding for coding in CODINGS if not paths[coding].is_file()]
    with contextlib.ExitStack() as stack:
        parts = [stack.enter_context(new_file(paths[coding])) for coding in lacking]
        writers = [stack.enter_context(_writer(*each)) for each in zip(parts, lacking, strict=True)]
        for scene, i in itertools.product(scenes if lacking else (), range(2 * _FPS)):
            picture = av.VideoFrame.from_ndarray(render_frame(scene, i / (2 * _FPS), *_SIZE), format="rgb24")
            for write in writers:
                write(picture)
    return paths


@contextlib.contextmanager
def _writer(path: Path, coding: Coding) -> Iterator[Callable[[Any], None]]:
    """Takes the frames of a film."""
    options = {"crf": "20", "preset": "medium", "x264-params": coding.params}
    with av.open(str(path), "w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=_FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *_SIZE, "yuv420p"
        yield lambda picture: container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class Told:
    """What the model says of clips, and when the frames that it saw are shown."""

    texts: list[str]
    times: list[tuple[float, ...]]

    @classmethod
    def of(cls, narrator: Narrator, path: Path, clips: list[Clip], nearest: float) -> Told:
        """Of the clips of a film."""
        decoded = narrator.read(VideoSource("film", path), clips, nearest=nearest)
        rows = [row for (row,) in narrator.narrate_clips(decoded, Options(warp=Warp(0.0)), frame_times=True)]
        return cls([row.text for row in rows], [row.frames or () for row in rows])


def kitchen_rows(narrator: Narrator, scenes: list[Scene], folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each coding and each value."""
    labels = np.array([labels_of(scene.action) for scene in scenes])
    clips = [Clip("film", shown.start, shown.end) for shown in ground_truth(scenes)]
    for coding, path in filmed(scenes, folder).items():
        exact = Told.of(narrator, path, clips, 0.0)
        for nearest in (0.0, *NEAREST):
            told = Told.of(narrator, path, clips, nearest) if nearest else exact
            off = np.abs(np.array(told.times) - np.array(exact.times))
            yield {
                "coding": coding.name,
                "what": coding.what,
                "frames": in_words(nearest),
                "clips": len(clips),
                "sentences_unchanged": _share([a == b for a, b in zip(told.texts, exact.texts, strict=True)]),
                "sentences_right": _share(sentence_items(told.texts, labels)["sentence"]),
                "mean_off_s": round(float(off.mean()), 3),
            }


def _share(found: Any) -> float:
    return round(float(np.mean(found)), 4)


def last_line(result: dict[str, Any]) -> dict[str, float]:
    """The figures that count, at half a second."""
    shares = {f"nearest_share_{film['film']}": film["nearest"][1]["share"] for film in result["films"]}
    half = [row for row in result["kitchen"] if row["frames"] == in_words(0.5)]
    return {**shares, **{f"nearest_unchanged_{row['coding']}": row["sentences_unchanged"] for row in half}}


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--repeats", default=5, show_default=True, help="Of which the median counts.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Of each film.")
@click.option("--only", multiple=True, default=_FILMED, help="Names of films.  [default: 1080p, and one of each codec]")
@click.option("--clips", default=100, show_default=True, help="Of the kitchen, of each split.")
def main(output: Path | None, repeats: int, seconds: int, only: tuple[str, ...], clips: int) -> None:
    """Time decoding of frames nearby, and compare what is said of them."""
    folder = cache_dir() / "bench-films"
    folder.mkdir(parents=True, exist_ok=True)
    films = [measured(film, made(film, folder, seconds), seconds, repeats) for film in FILMS if film.name in only]
    scenes = [make_scene(FIRST_SEED + i, split=split) for split in UNSEEN_SPLITS for i in range(clips)]
    kitchen = list(kitchen_rows(Narrator.from_pretrained("nano"), scenes, folder))
    command = " ".join([COMMAND_NEAREST, *sys.argv[1:]])
    result: dict[str, Any] = {"command": command, "machine": machine(), "films": films, "kitchen": kitchen}
    click.echo(nearest_table(result))
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps(last_line(result)))


if __name__ == "__main__":
    main()
