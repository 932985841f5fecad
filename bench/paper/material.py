"""What the runs are given: films of the kitchen and annotation files, as Ego4D and EPIC-KITCHENS-100 have them.

An action takes half a second at 30 frames a second. Its annotation ends with its last frame: training draws frames up
to and with the end of a clip, as the original does, and the next one shows something else.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from pathlib import Path

from lavila_fast.bench.eval_nano import FPS, Row, annotate
from lavila_fast.bench.paper.sizes import Size
from lavila_fast.bench.paper.wordings import THINGS, draws, exam_scene, otherwise, scene, still
from lavila_fast.files import write_bytes
from lavila_fast.kitchen.film import Shown, film
from lavila_fast.kitchen.scene import Scene, Split

SECONDS, FRAMES = 0.5, 15
STILL_SECONDS, STILL_FRAMES = 0.1, 3
PICTURE = (96, 72)  # width and height, pixels
SPLITS: dict[str, Split] = {"seeds": "unseen_seeds", "pairs": "unseen_pairs", "others": "unseen_seeds"}
_STILLS, _TESTS = 1_000_000, 5_000_000  # number of the first scene
_CHOOSING, _WORDING = 1, 2  # streams of random numbers


@dataclass(frozen=True)
class Material:
    """Films and annotation files of a run below one folder.

    Attributes:
        work: The folder.
        size: How much there is of everything.
    """

    work: Path
    size: Size

    @property
    def data(self) -> Path:
        """What is learnt from, in Ego4D's layout."""
        return self.work / "data"

    @property
    def chunks(self) -> Path:
        """Its videos."""
        return self.data / "video_5min_chunks_288px"

    def test(self, name: str) -> Path:
        """Folder of a row of `sizes.TESTS`."""
        return self.work / "tests" / name

    def test_videos(self, name: str) -> Path:
        """Its videos; two tests share those of one split."""
        return self.work / "tests" / SPLITS[name] / "P01"

    def scenes(self, video: int) -> list[Scene]:
        """Of a film to learn from."""
        return [scene(video * self.size.clips + i) for i in range(self.size.clips)]

    def stills(self) -> list[Scene]:
        """Of which single pictures are learnt from; no other film has them."""
        return [scene(_STILLS + i) for i in range(self.size.stills)]

    def shoot(self, video: int) -> None:
        """A film to learn from."""
        self._film(self.scenes(video), self.chunk(f"v{video}"), SECONDS)

    def shoot_stills(self) -> None:
        """A film of moments, and what they show."""
        scenes = self.stills()
        self._film(scenes, self.chunk("stills"), STILL_SECONDS)
        rows = [("stills", *_times(i, STILL_SECONDS, STILL_FRAMES), still(one.action)) for i, one in enumerate(scenes)]
        self._write("stills.pkl", rows)

    def shoot_test(self, split: Split) -> None:
        """The films of a test, the last one last."""
        for number in range(self.size.test_films):
            self._film(self.test_scenes(split, number), self.test_film(split, number), SECONDS)

    def test_scenes(self, split: Split, number: int) -> list[Scene]:
        """Of one of a test's films: it shows one thing, whose verbs are all there is to tell apart; or any, of pairs.

        Of a thing's unseen pairs there are one or two, too few to choose among.
        """
        first, own = _TESTS + number * self.size.test_clips, THINGS[number % len(THINGS)]
        things = THINGS if split == "unseen_pairs" else (own,)
        return [exam_scene(first + i, split, things) for i in range(self.size.test_clips)]

    def chunk(self, video: str) -> Path:
        """The only chunk of a video to learn from."""
        return self.chunks / f"{video}.mp4" / "0.mp4"

    def test_films(self, split: Split) -> Path:
        """Folder of a test's films, below a person's."""
        return self.work / "tests" / split

    def test_film(self, split: Split, number: int) -> Path:
        """One of a test's films."""
        return self.test_films(split) / "P01" / f"{_test_video(number)}.MP4"

    def annotate_test(self, name: str) -> None:
        """Annotation files of a test, those of EPIC-KITCHENS-100 and of EgoMCQ."""
        draw, rows = draws(_TESTS, _WORDING), []
        for number in range(self.size.test_films):
            for i, one in enumerate(self.test_scenes(SPLITS[name], number)):
                text = otherwise(one.action, draw) if name == "others" else one.action.sentence
                rows.append(Row(_test_video(number), Shown(*_times(i), text), one))
        annotate(self.test(name), rows)

    def annotate(self, seed: int) -> None:
        """What a human narrated of the films, what is left for the narrator, and, for the ceiling, everything."""
        rows = [
            (f"v{video}", *_times(i), one.action.sentence)
            for video in range(self.size.videos)
            for i, one in enumerate(self.scenes(video))
        ]
        chosen = narrated(len(rows), self.size.share, seed)
        self._write(f"human_{seed}.pkl", [row for i, row in enumerate(rows) if i in chosen])
        self._write(f"rest_{seed}.pkl", [(*row[:3], "") for i, row in enumerate(rows) if i not in chosen])
        self._write(f"full_{seed}.pkl", rows)

    def _write(self, name: str, rows: list[tuple[str, float, float, str]]) -> None:
        self.data.mkdir(parents=True, exist_ok=True)
        write_bytes(self.data / name, pickle.dumps(rows))

    def _film(self, scenes: list[Scene], path: Path, seconds: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            film(scenes, path, *PICTURE, FPS, seconds)


def narrated(count: int, share: float, seed: int) -> set[int]:
    """Which of so many actions a human narrated: any, spread over all films."""
    return set(draws(seed, _CHOOSING).permutation(count)[: round(count * share)].tolist())


def _test_video(number: int) -> str:
    return f"P01_{number + 1:02}"


def _times(number: int, seconds: float = SECONDS, frames: int = FRAMES) -> tuple[float, float]:
    """Seconds from the first to the last frame of an action of a film."""
    return round(number * seconds, 6), round(number * seconds + (frames - 1) / FPS, 6)
