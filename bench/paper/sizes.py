"""How much of everything: a row for the table, one to choose by, and one to try the machinery with.

The table's sizes are a plan for 100 minutes of two cores with AVX-512, a command on each: films, first weights and the
rephraser 10, fifteen dual encoders 60, three narrators 20, what they narrate 4, exams 6. What it took is in the result.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

from lavila_fast.errors import InputError

CONDITIONS: Mapping[str, str] = MappingProxyType(
    {
        "human": "human narrations only",
        "rephraser": "+ rephraser",
        "narrator": "+ narrator",
        "both": "+ both",
        "full": "every action narrated by a human",
    }
)
"""Condition → how the table calls it."""
ROWS: Mapping[str, str] = MappingProxyType({"first": "first weights: single pictures, no verbs", **CONDITIONS})
"""Rows of the table."""
TESTS: Mapping[str, str] = MappingProxyType(
    {
        "seeds": "unseen scenes",
        "pairs": "unseen verb-object pairs",
        "others": "unseen scenes, others' words",
    }
)
"""Test → how the table calls it."""


@dataclass(frozen=True)
class Course:
    """How long something is trained: `steps` updates of `batch_size` clips."""

    steps: int
    batch_size: int = 128

    @property
    def clips(self) -> int:
        """That are seen in all."""
        return self.steps * self.batch_size


@dataclass(frozen=True)
class Size:
    """Sizes of a whole run.

    Attributes:
        name: Its option.
        seeds: A repetition each: which actions are narrated, first weights, order of clips, what the narrator draws.
        videos: Films to learn from, of `clips` actions each.
        clips: See `videos`; at most 600, a chunk of 300 s.
        stills: Scenes of which the first weights are learnt from single pictures.
        test_films: Films of a test, of `test_clips` actions each.
        test_clips: See `test_films`.
        tests: Rows of `TESTS`.
        share: Of the actions that a human narrated.
        samples: Sentences that the narrator says of a clip.
        surest: Share of those sentences that is learnt from, see `lavila-fast narrations --surest`.
        pseudo_temperature: Of pairs that no human narrated; a human's has 0.07.
        rephraser: Updates of the rephraser's training.
        image: Training of the first weights, on stills.
        narrator: Of each narrator.
        dual: Of each dual encoder, whatever it learns from.
        save: Updates from one checkpoint to the next.
    """

    name: str = "full"
    seeds: tuple[int, ...] = (1, 2, 3)
    videos: int = 16
    clips: int = 600
    stills: int = 1500
    test_films: int = 6
    test_clips: int = 84
    tests: tuple[str, ...] = tuple(TESTS)
    share: float = 0.125
    samples: int = 5
    surest: float = 0.1
    pseudo_temperature: float = 0.07
    rephraser: int = 1000
    image: Course = Course(800)
    narrator: Course = Course(1000)
    dual: Course = Course(600)
    save: int = 40

    @property
    def actions(self) -> int:
        """Of all films to learn from."""
        return self.videos * self.clips

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Size:
        """What `asdict` made, through JSON, too."""

        def value(one: Any) -> Any:
            return tuple(one) if isinstance(one, list) else Course(**one) if isinstance(one, Mapping) else one

        return cls(**{name: value(one) for name, one in told.items()})


def with_values(size: Size, settings: Iterable[str]) -> Size:
    """A size with some values replaced, ``surest=0.3`` or ``dual.steps=600``: to choose by.

    Raises:
        InputError: there is no such name, or the value is of another kind.
    """
    told: dict[str, Any] = json.loads(json.dumps(asdict(size)))
    for setting in settings:
        path, _, text = setting.partition("=")
        *outer, name = path.split(".")
        holder = told.get(outer[0], {}) if outer else told
        try:
            value = json.loads(text)
        except ValueError:
            raise InputError(f"--set {setting}: give NAME=VALUE, a number or a list of such") from None
        if name not in holder or type(value) not in (type(holder[name]), int):
            raise InputError(f"--set {setting}: no such value, or one of another kind; there are {', '.join(told)}")
        holder[name] = value
    return Size.from_dict(told)


FULL = Size()
TRIAL = replace(FULL, name="trial", seeds=(90,), tests=("seeds", "pairs"))
TOY = Size(
    name="toy",
    seeds=(1,),
    videos=2,
    clips=32,
    stills=24,
    test_films=2,
    test_clips=12,
    tests=("others",),
    samples=2,
    surest=1.0,
    rephraser=40,
    image=Course(4, 8),
    narrator=Course(4, 8),
    dual=Course(4, 8),
    save=2,
)
SIZES: Mapping[str, Size] = MappingProxyType({size.name: size for size in (FULL, TRIAL, TOY)})
