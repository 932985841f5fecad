"""Data sets of the original, recorded on small annotation files: the same frames of the same files, texts and labels.

What is drawn at random is compared with the range that the original draws it from.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila_fast.errors import InputError, VideoError
from lavila_fast.train.datasets import charades, egtea
from lavila_fast.train.datasets.charades import CharadesVideos, TrimmedVideos
from lavila_fast.train.datasets.ego4d import Ego4D, read_narrations
from lavila_fast.train.datasets.egtea import Egtea
from lavila_fast.train.datasets.ek100 import (
    EK100Classes,
    EK100Retrieval,
    Segment,
    actions_of,
    read_segments,
    read_sentences,
)
from lavila_fast.train.datasets.samples import AnnotatedSet, Footage, Sample
from lavila_fast.video.pickled import read_matrix

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_TRAIN_DIR") or Path(__file__).parent / "data" / "golden-train") / "datasets"
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text()) if GOLDEN.is_dir() else {}
VIDEOS: dict[str, Any] = json.loads((GOLDEN / "videos.json").read_text()) if GOLDEN.is_dir() else {}
EK100 = GOLDEN / "EK100" / "epic-kitchens-100-annotations"
CHARADES = GOLDEN / "CharadesEgo" / "CharadesEgo"

pytestmark = pytest.mark.skipif(not EXPECTED, reason=f"no recordings in {GOLDEN}")


def under(folder: str) -> Callable[[str], Footage]:
    def look(file: str) -> Footage:
        if f"{folder}/{file}" not in VIDEOS:
            raise VideoError(Path(file), "does not exist", "fetch it")
        return Footage(*VIDEOS[f"{folder}/{file}"])

    return look


def ego4d(name: str) -> AnnotatedSet:
    _, _, rest = name.partition("_")
    kind, _, more = rest.partition(".")
    stem, _, choice = more.partition(".")
    file = GOLDEN / "Ego4D" / f"ego4d_{kind}{f'.{stem}' if stem in ('rephraser', 'narrator') else ''}.pkl"
    rows = read_narrations(file)
    every = 3 if stem == "every_3rd" else 1
    return Ego4D(rows, under("ego4d"), 4, len(rows), "concat" if choice == "concat" else "random", every)


def ek100(name: str) -> AnnotatedSet:
    task, part = name.split("_")[1:]
    look = under("ek100")
    if task == "mir":
        folder = EK100 / "retrieval_annotations"
        segments = read_segments(folder / f"EPIC_100_retrieval_{part}.csv")
        if part == "test":
            return EK100Retrieval(segments, look, 4)
        sentences = [text for _, text in read_sentences(folder / "EPIC_100_retrieval_train_sentence.csv")]
        return EK100Retrieval(segments, look, 4, sentences, relevancy())
    both = [read_segments(EK100 / f"EPIC_100_{which}.csv") for which in ("train", "validation")]
    return EK100Classes(both[part == "val"], actions_of([*both[0], *both[1]]), look, 4)


def relevancy() -> np.ndarray:
    folder = EK100 / "retrieval_annotations" / "relevancy"
    return read_matrix(folder / "caption_relevancy_EPIC_100_retrieval_train.pkl")


def windows(name: str) -> AnnotatedSet:
    kind, *rest = name.split(".")
    numbers = rest[-1].split("_")
    views, frames, stride = int(numbers[1]), int(numbers[3]), int(numbers[5])
    if kind.startswith("egtea"):
        classes, _ = egtea.read_classes(GOLDEN / "EGTEA" / "action_idx.txt")
        clips = egtea.read_split(GOLDEN / "EGTEA" / f"{kind.partition('_')[2]}_split1.txt", classes)
        return Egtea(clips, under("egtea"), frames, stride, views)
    names = charades.read_classes(CHARADES / "Charades_v1_classes.txt")
    videos = charades.read_videos(CHARADES / "CharadesEgo_v1_test_only1st.csv", names)
    return CharadesVideos(videos, under("charades"), frames, stride, views, sparse=rest[0] == "sparse")


def trimmed(name: str) -> AnnotatedSet:
    rows = read_narrations(CHARADES / f"metadata_filtered_{name.rpartition('_')[2]}.pkl")
    return TrimmedVideos(rows, under("charades"), 4)


def open_set(name: str) -> tuple[AnnotatedSet, str]:
    """A recorded data set and the folder of its videos."""
    for beginning, opener, folder in (
        ("ego4d", ego4d, "ego4d"),
        ("ek100", ek100, "ek100"),
        ("egtea", windows, "egtea"),
        ("charades_test", windows, "charades"),
        ("charades_trimmed", trimmed, "charades"),
    ):
        if name.startswith(beginning):
            return opener(name), folder
    raise AssertionError(name)


SETS = [name for name, told in EXPECTED.items() if isinstance(told, dict) and "items" in told and name != "egomcq"]


@pytest.mark.parametrize("name", SETS)
def test_items_are_the_originals(name: str) -> None:
    found, folder = open_set(name)
    assert len(found) == EXPECTED[name]["length"]
    training = any("drawn_uniformly_from_inclusive" in told for told in EXPECTED[name]["items"])
    for told in EXPECTED[name]["items"]:
        random = np.random.default_rng(told["seed"]) if training else None
        if "error" in told:  # a video shorter than its window: the original fails, here it is filled up
            sample = found.sample(told["index"], random)
            assert sum(len(read.frames) for read in sample.reads) + sample.black == 16
            continue
        sample = found.sample(told["index"], random)
        what = f"{name} {told['index']}"
        check_frames(sample, told, folder, what)
        if "label" in told:
            label = list(sample.label) if isinstance(sample.label, tuple) else sample.label
            assert label == told["label"], what
        if "caption" in told:
            check_text(sample, told, name, what, random is not None)


def check_frames(sample: Sample, told: dict[str, Any], folder: str, what: str) -> None:
    ours = [(f"{folder}/{read.file}", list(read.frames)) for read in sample.reads]
    count = told["frames_shape"][0]
    if len(told["black_frames"]) == count:
        assert (ours, sample.black) == ([], count), what
        return
    # What the original read in vain, before it chose again, is among its reads, too.
    theirs = [(file, ids) for file, ids in told["reads"] if ids]
    ranges = told.get("drawn_uniformly_from_inclusive")
    if ranges is None:
        views = max(len(told["black_frames"]) // max(sample.black, 1), 1) if sample.black else 1
        if sample.black:  # its short file is read whole, once
            assert len(told["black_frames"]) == sample.black * views, what
            assert set(ours[0][1]) <= set(theirs[0][1]), what
            assert len(ours[0][1]) + views * sample.black == count, what
        elif len(theirs) == 1 and len(theirs[0][1]) != len(ours[0][1]):
            assert set(ours[0][1]) <= set(theirs[0][1]), what
        else:
            assert ours == theirs[-len(ours) :], what
        return
    assert [file for file, _ in ours] == [file for file, _ in theirs[-len(ours) :]], what
    drawn = [i for _, ids in ours for i in ids]
    if len(ranges) == 1:  # where its window begins
        assert ranges[0][0] <= drawn[0] <= ranges[0][1], what
        return
    lengths = VIDEOS[theirs[-1][0]][0], VIDEOS[theirs[0][0]][0]
    for i, (low, high) in zip(drawn, ranges[-count:], strict=True):
        fits = low <= i <= high
        beyond = any(low <= i + length <= high for length in lengths)  # counted on from the chunk before
        last = i == lengths[0] - 1 and high >= lengths[0] - 1
        assert fits or beyond or last, f"{what}: {i} is not in {low}..{high}"


def check_text(sample: Sample, told: dict[str, Any], name: str, what: str, training: bool) -> None:
    if "possible" in EXPECTED[name] and training:
        fitting = EXPECTED[name]["possible"][told["index"]]
        assert [sample.text, pytest.approx(sample.relevancy)] in fitting, what
    elif name.endswith("random"):
        rows = read_narrations(GOLDEN / "Ego4D" / f"ego4d_train.{name.split('.')[1]}.pkl")
        assert told["caption"] in rows[told["index"]].texts, what
        assert sample.text in rows[told["index"]].texts, what
    else:
        assert (sample.text, sample.relevancy) == (told["caption"], told["relevancy"]), what


def test_people_come_first_and_others_in_order() -> None:
    folder = GOLDEN / "Ego4D"
    both = Ego4D.read(folder / "ego4d_train.pkl", under("ego4d"), 4, [folder / "ego4d_train.narrator.pkl"])
    order = EXPECTED["metadata_aux_order"]
    kinds = [both.sample(i).human for i in range(len(both))]
    assert kinds == [bool(human) for human, which in order if not which.startswith("second")]


def test_classes_are_the_originals() -> None:
    both = [read_segments(EK100 / f"EPIC_100_{which}.csv") for which in ("train", "validation")]
    actions = actions_of([*both[0], *both[1]])
    told = EXPECTED["label_maps"]["ek100_cls"]
    assert [f"{verb}:{noun}" for verb, noun in actions.pairs] == list(told["mapping"])
    assert [sorted(texts) for texts in actions.texts] == [sorted(texts) for texts in told["labels"]]
    assert [list(pair) for pair in actions.pairs] == EXPECTED["ek100_action_to_verb_noun"]
    assert list(egtea.read_classes(GOLDEN / "EGTEA" / "action_idx.txt")[1]) == EXPECTED["label_maps"]["egtea"]["labels"]
    names = charades.read_classes(CHARADES / "Charades_v1_classes.txt")
    assert list(names.names) == EXPECTED["label_maps"]["charades_ego"]["labels"]
    assert names.codes == EXPECTED["label_maps"]["charades_ego"]["mapping"]


@pytest.mark.parametrize("name", SETS)
def test_an_item_is_the_same_whoever_asks(name: str) -> None:
    found, _ = open_set(name)
    for index in range(len(found)):
        assert found.sample(index, np.random.default_rng(3)) == found.sample(index, np.random.default_rng(3))


def test_bad_annotations_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("narration_id,participant_id\nx,y\n")
    with pytest.raises(InputError, match=r"a\.csv: has no column video_id"):
        read_segments(path)
    good = (EK100 / "EPIC_100_train.csv").read_text().splitlines()
    path.write_text("\n".join([good[0], good[1].replace("00:00:15.32", "soon")]))
    with pytest.raises(InputError, match=r"a\.csv: line 2: times are not HH:MM:SS\.ss"):
        read_segments(path)
    path.write_text("Open fridge\n")
    with pytest.raises(InputError, match="line 1: does not end with the number"):
        egtea.read_classes(path)
    path.write_text("P07-R03-BaconAndEggs-1 9 1\n")
    with pytest.raises(InputError, match="line 1: not a clip and the number"):
        egtea.read_split(path, {1: 0})
    with pytest.raises(InputError, match=r"relevancy of \(2, 2\) for 0 clips"):
        EK100Retrieval([], under("ek100"), 4, ["a"], np.zeros((2, 2)))


def test_a_matrix_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    for value, why in (
        (np.zeros(3), "holds no matrix"),
        ([1, 2], "holds no matrix"),
        (np.array([["a"]]), "other things than numbers"),
        (np.array([[{}]], object), "other things than numbers"),
        (Path("x"), "is not loaded for safety"),
    ):
        path.write_bytes(pickle.dumps(value, protocol=2))
        with pytest.raises(InputError, match=why):
            read_matrix(path)
    good = np.arange(6.0).reshape(2, 3)
    for one in (good, np.asfortranarray(good), good.astype(np.float32), good.astype(">f8")):
        path.write_bytes(pickle.dumps(one, protocol=2))
        np.testing.assert_array_equal(read_matrix(path), good)
    path.write_bytes(pickle.dumps(good, protocol=2)[:-20])
    with pytest.raises(InputError, match="not a readable matrix"):
        read_matrix(path)


@pytest.mark.parametrize("name", ["ek100_mir_train", "ek100_cls_train"])
@pytest.mark.parametrize(("seconds", "fps"), [(1, 60000 / 1001), (2, 25.0)])
def test_ek100_in_chunks_asks_for_the_same_frames(name: str, seconds: int, fps: float) -> None:
    """Frames by their numbers in the whole video, and black where the whole file has too few."""
    rate, total = Fraction(fps).limit_denominator(1001), 2000
    begins = [round(number * seconds * rate) for number in range(200)]

    def whole(file: str) -> Footage:
        return Footage(total, fps)

    def in_chunks(file: str) -> Footage:
        number = int(Path(file).stem) // seconds
        there = min(begins[number + 1], total) - begins[number]
        if there <= 0:
            raise VideoError(file, "does not exist", "fetch it")
        return Footage(there, fps)

    rows = [Segment(f"n{i}", "P01/P01_01.MP4", 0.31 * i, 0.31 * i + 1.7, "cut", 0, 0) for i in range(60)]
    kind = EK100Retrieval if "mir" in name else partial(EK100Classes, actions=actions_of(rows))
    plain = kind(rows, look=whole, frames=4)
    cut = kind(rows, look=in_chunks, frames=4, chunk=seconds)
    for index in range(len(rows)):
        for seed in (None, index):
            expected, found = (
                one.sample(index, None if seed is None else np.random.default_rng(seed)) for one in (plain, cut)
            )
            ids = [begins[int(Path(read.file).stem) // seconds] + i for read in found.reads for i in read.frames]
            assert ids == [i for read in expected.reads for i in read.frames], index
            assert found.black == expected.black
    with pytest.raises(InputError, match="chunk -1: give the seconds"):
        kind(rows, look=whole, frames=4, chunk=-1)
