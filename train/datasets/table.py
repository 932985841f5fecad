"""Data sets by name: how each is opened where it lies. A new one is a file beside this and a row here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

from lavila_fast.errors import InputError
from lavila_fast.train.datasets.charades import open_charades, open_htm_aa
from lavila_fast.train.datasets.ego4d import open_ego4d
from lavila_fast.train.datasets.egtea import open_egtea
from lavila_fast.train.datasets.ek100 import open_classes, open_retrieval
from lavila_fast.train.datasets.kitchen import open_kitchen
from lavila_fast.train.datasets.listed import open_listed
from lavila_fast.train.datasets.samples import Opened, Place
from lavila_fast.train.typed import fits, hints_of, said


class DataRow(NamedTuple):
    """A data set.

    Attributes:
        open: From where it lies and the options of a recipe, by name.
        layout: What ``--data`` is to be.
    """

    open: Callable[..., Opened]
    layout: str


DATASETS: Mapping[str, DataRow] = MappingProxyType(
    {
        "ego4d": DataRow(open_ego4d, "a folder with ego4d_train.pkl and video_5min_chunks_288px/VIDEO.mp4/0.mp4 …"),
        "htm_aa": DataRow(open_htm_aa, "a folder with htm_aa_train.pkl and videos/VIDEO.mp4"),
        "ek100_mir": DataRow(open_retrieval, "a folder with epic-kitchens-100-annotations and video_ht256px/P01/…"),
        "ek100_cls": DataRow(open_classes, "a folder with epic-kitchens-100-annotations and video_ht256px/P01/…"),
        "egtea": DataRow(open_egtea, "a folder with action_idx.txt, train_split1.txt, … and cropped_clips/"),
        "charades_ego": DataRow(open_charades, "a folder with CharadesEgo/ and CharadesEgo_v1_480/"),
        "listed": DataRow(open_listed, "a CSV or JSONL of video, start, end, text or label; videos beside it"),
        "kitchen": DataRow(open_kitchen, "a folder that keeps the miniature kitchen's clips; drawn if it lacks them"),
    }
)


def open_data(name: str, options: Mapping[str, Any], place: Place) -> Opened:
    """A data set by its row.

    Raises:
        InputError: there is no such row or option, or what lies there is not the data set.
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, 1) or list(DATASETS)
        raise InputError(f"no data set is called {name}; take {' or '.join(near)}")
    row = DATASETS[name]
    check_options(f"data set {name}", row.open, options, given=1)
    try:
        return row.open(place, **options)
    except OSError as error:
        raise InputError(f"{error.filename}: {error.strerror}; --data is to be {row.layout}") from error


def check_options(what: str, function: Callable[..., Any], options: Mapping[str, Any], given: int) -> None:
    """Compare options with a function's arguments behind the first `given`.

    Raises:
        InputError: it has none of this name, or one of another kind.
    """
    known, hints = list(inspect.signature(function).parameters)[given:], hints_of(function)
    for name, value in options.items():
        if name not in known:
            raise InputError(f"{what} has no option {name}; it has {', '.join(known) or 'none'}")
        if not fits(value, hints.get(name, Any)):
            raise InputError(f"{what}: {name} {value!r} is of another kind than it can be; give {said(hints[name])}")
