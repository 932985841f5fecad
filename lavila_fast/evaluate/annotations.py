"""Benchmarks as they lie on disk: the published annotation files and folders of videos, checked before anything runs.

Each function opens one benchmark in the layout that LaViLa's `datasets/README.md` describes. Counts and checksums that
are known are compared; what differs is told, and keeps figures from being compared with published ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.arrays import F64
from lavila_fast.errors import InputError, VideoError
from lavila_fast.evaluate.exams import Choice, Classes, Exam, Facts, Narrations, Retrieval, Several
from lavila_fast.evaluate.footage import Library
from lavila_fast.evaluate.protocols import Protocol
from lavila_fast.evaluate.relevancy import relevancy_of
from lavila_fast.evaluate.segments import EK100Clips
from lavila_fast.files import sha256
from lavila_fast.train.datasets import charades, egtea
from lavila_fast.train.datasets.ego4d import Ego4D, Narrated, read_narrations
from lavila_fast.train.datasets.ek100 import Segment, actions_of, read_segments, read_sentences
from lavila_fast.video.clips import CHUNK_SECONDS
from lavila_fast.video.pickled import read_matrix

_LARGEST_JSON = 1 << 30
_WHOLE = 1 << 30  # seconds of a chunk, where videos are not cut
SUMS = {
    "EPIC_100_retrieval_test.csv": "35f7932ba0a1127a96cac215a98d35398946f343e3cea9ad6688ed17eee9d75d",
    "EPIC_100_validation.csv": "35f7932ba0a1127a96cac215a98d35398946f343e3cea9ad6688ed17eee9d75d",
    "EPIC_100_retrieval_test_sentence.csv": "9ccf771a88ceb3e15f9a2842344ef2d7c13176f9e66af8c5c15b6935fd25c46c",
}
"""SHA-256 of epic-kitchens/epic-kitchens-100-annotations at commit ea8b404."""
COUNTS = {
    "EPIC_100_retrieval_test.csv": 9668,
    "EPIC_100_retrieval_test_sentence.csv": 3842,
    "EPIC_100_validation.csv": 9668,
    "EPIC_100_train.csv": 67217,
    "test_split1.txt": 2022,
    "action_idx.txt": 106,
    "Charades_v1_classes.txt": 157,
}
"""Rows of the published files."""


@dataclass
class DataFolder:
    """Where a benchmark lies, and what is found there.

    Attributes:
        root: What ``--data`` gives.
        videos: Folder of its videos, where it is another one than usual.
        facts: Filled while files are read.
    """

    root: Path
    videos: Path | None = None

    def __post_init__(self) -> None:
        self.facts = Facts()

    def path(self, *names: str) -> Path:
        """A file below `root`.

        Raises:
            InputError: it is not there.
        """
        path = self.root.joinpath(*names)
        if not path.is_file():
            raise InputError(f"{path}: no such file; --data is to be the benchmark's folder (docs/EVALUATION.md)")
        return path

    def library(self, *usual: str) -> Library:
        """The videos.

        Raises:
            InputError: there is no such folder.
        """
        places = [self.videos] if self.videos else [self.root / name for name in usual]
        found = next((path for path in places if path.is_dir()), None)
        if found is None:
            raise InputError(f"{places[0]}: no such folder of videos; give it with --videos")
        return Library(found)

    def note(self, path: Path, rows: int) -> None:
        """Remember a file that was read, and compare it with what was published."""
        told: dict[str, Any] = {"rows": rows, "sha256": sha256(path)}
        wanted, known = COUNTS.get(path.name), SUMS.get(path.name)
        if wanted is not None and rows != wanted:
            self.facts.odd.append(f"{path.name} has {rows:,} rows, the published one {wanted:,}")
        elif known is not None:
            told["published"] = told["sha256"] == known
            if not told["published"]:
                self.facts.odd.append(f"{path.name} has as many rows as the published file, but another content")
        if path.name not in COUNTS and path.name != _MATRIX:
            self.facts.notes.append(f"{path.name}: nothing is known here to compare its {rows:,} rows with")
        self.facts.files[path.name] = told


def _lengths(folder: DataFolder, seconds: Sequence[float]) -> None:
    mean = sum(seconds) / len(seconds)
    folder.facts.notes.append(f"clips last {mean:.1f} s on average, from {min(seconds):.1f} to {max(seconds):.1f} s")


def _segments(folder: DataFolder, *names: str) -> list[Segment]:
    path = folder.path(_EK100, *names)
    found = read_segments(path)
    folder.note(path, len(found))
    if not found:
        raise InputError(f"{path}: holds no clips")
    return found


_MATRIX = "caption_relevancy_EPIC_100_retrieval_test.pkl"
_EK100, _RETRIEVAL, _EK100_VIDEOS = "epic-kitchens-100-annotations", "retrieval_annotations", "video_ht256px"


def open_ek100_mir(folder: DataFolder, protocol: Protocol) -> Exam:
    """EPIC-KITCHENS-100 multi-instance retrieval: the test half, each clip among all sentences."""
    segments = _segments(folder, _RETRIEVAL, "EPIC_100_retrieval_test.csv")
    path = folder.path(_EK100, _RETRIEVAL, "EPIC_100_retrieval_test_sentence.csv")
    sentences = read_sentences(path)
    _lengths(folder, [one.stop - one.start for one in segments])
    folder.note(path, len(sentences))
    rows = sentence_rows(segments, sentences, path)
    library = folder.library(_EK100_VIDEOS)
    clips = EK100Clips(tuple(segments), library, protocol.frames)
    return Retrieval(
        clips,
        tuple(one.narration_id for one in segments),
        clips.files(),
        library,
        folder.facts,
        sentences=tuple(segments[row].narration for row in rows),
        sentence_ids=tuple(name for name, _ in sentences),
        relevancy=_relevancy(folder, rows),
    )


def sentence_rows(segments: Sequence[Segment], sentences: Sequence[tuple[str, str]], path: Path) -> list[int]:
    """The clip whose narration each sentence is: the first with its id.

    Raises:
        InputError: there is no such clip.
    """
    first: dict[str, int] = {}
    for i, one in enumerate(segments):
        first.setdefault(one.narration_id, i)
    lost = next((name for name, _ in sentences if name not in first), None)
    if lost is not None:
        raise InputError(f"{path}: {lost} is no clip of the test file; take both from one version of the annotations")
    return [first[name] for name, _ in sentences]


def _relevancy(folder: DataFolder, rows: Sequence[int]) -> F64:
    base = folder.root / _EK100 / _RETRIEVAL
    path = base / "relevancy" / _MATRIX
    annotated = base / "EPIC_100_retrieval_test.csv"
    if not path.is_file():
        folder.facts.notes.append(
            f"{path.name} is not there: relevancy is computed from verb and noun classes, (IoU of verbs + IoU of "
            "nouns) / 2, as the challenge's code has it"
        )
        return relevancy_of(annotated, rows)
    found = read_matrix(path)
    clips = folder.facts.files[annotated.name]["rows"]
    if found.shape != (clips, len(rows)):
        raise InputError(
            f"{path}: {found.shape[0]:,} × {found.shape[1]:,} values for {clips:,} clips and {len(rows):,} sentences; "
            "it belongs to other annotations; fetch the test half's, or move it away to have it computed"
        )
    folder.note(path, clips)
    folder.facts.notes.append(f"{path.name}: copies differ by some chance in their making, and so do figures")
    return found


def open_ek100_cls(folder: DataFolder, protocol: Protocol) -> Exam:
    """EPIC-KITCHENS-100 action recognition: the validation half."""
    train, held = (_segments(folder, f"EPIC_100_{part}.csv") for part in ("train", "validation"))
    actions = actions_of([*train, *held])
    _lengths(folder, [one.stop - one.start for one in held])
    place = {pair: i for i, pair in enumerate(actions.pairs)}
    library = folder.library(_EK100_VIDEOS)
    clips = EK100Clips(tuple(held), library, protocol.frames)
    return Classes(
        clips,
        tuple(one.narration_id for one in held),
        clips.files(),
        library,
        folder.facts,
        labels=np.array([place[one.verb, one.noun] for one in held]),
        names=actions.texts,
        pairs=actions.pairs,
    )


def open_egtea(folder: DataFolder, protocol: Protocol) -> Exam:
    """EGTEA Gaze+, test split 1."""
    path = folder.path("action_idx.txt")
    numbers, names = egtea.read_classes(path)
    folder.note(path, len(names))
    path = folder.path("test_split1.txt")
    clips = egtea.read_split(path, numbers)
    folder.note(path, len(clips))
    library = folder.library("cropped_clips")
    return Classes(
        egtea.Egtea(clips, library, protocol.frames, protocol.stride, protocol.clips),
        _unique(Path(one.file).stem for one in clips),
        tuple(one.file for one in clips),
        library,
        folder.facts,
        labels=np.array([one.label for one in clips]),
        names=tuple((name,) for name in names),
    )


def _unique(names: Any) -> tuple[str, ...]:
    """Ids that differ: a second one of a name gets a number."""
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return tuple(found)


def open_charades_ego(folder: DataFolder, protocol: Protocol) -> Exam:
    """Charades-Ego, the first-person videos of the test half."""
    path = folder.path("CharadesEgo", "Charades_v1_classes.txt")
    classes = charades.read_classes(path)
    folder.note(path, len(classes.names))
    path = folder.path("CharadesEgo", "CharadesEgo_v1_test_only1st.csv")
    videos = charades.read_videos(path, classes)
    folder.note(path, len(videos))
    library = folder.library("CharadesEgo_v1_480")
    return Several(
        charades.CharadesVideos(videos, library, protocol.frames, protocol.stride, protocol.clips, protocol.sparse),
        _unique(Path(one.file).stem for one in videos),
        tuple(one.file for one in videos),
        library,
        folder.facts,
        shown=np.array([one.classes for one in videos]),
        names=tuple((name,) for name in classes.names),
    )


def open_ego_mcq(folder: DataFolder, protocol: Protocol) -> Exam:
    """EgoMCQ: which of five clips of Ego4D a sentence is about."""
    path = folder.path("egomcq.json")
    told = _read_questions(path)
    folder.note(path, len(told))
    rows: dict[Narrated, int] = {}
    options = [[rows.setdefault(one, len(rows)) for one in question.options] for question in told]
    library = folder.library("video_5min_chunks_288px", "video_288px")
    chunk = chunk_seconds(library, [row.video for row in rows])
    _lengths(folder, [row.end - row.start for row in rows])
    return Choice(
        Ego4D(list(rows), library, protocol.frames, len(rows), chunk=chunk),
        _unique(f"{row.video} {row.start:g}-{row.end:g}" for row in rows),
        tuple(f"{row.video}.mp4" for row in rows),
        library,
        folder.facts,
        question_ids=tuple(one.name for one in told),
        queries=tuple(one.query for one in told),
        options=np.array(options, np.int64),
        answers=np.array([one.answer for one in told]),
        kinds=np.array([one.kind for one in told]),
    )


def open_narration(folder: DataFolder, protocol: Protocol) -> Exam:
    """Ego4D's narrations, the validation half: every so many-th clip, and the first text of several."""
    path = folder.path("ego4d_val.pkl")
    rows = read_narrations(path)
    folder.note(path, len(rows))
    chosen = rows[:: protocol.every]
    if not chosen:
        raise InputError(f"{path}: holds no narrations")
    library = folder.library("video_5min_chunks_288px", "video_288px")
    chunk = chunk_seconds(library, [row.video for row in chosen])
    _lengths(folder, [row.end - row.start for row in chosen])
    return Narrations(
        Ego4D(chosen, library, protocol.frames, len(chosen), chunk=chunk),
        _unique(f"{row.video} {row.start:g}-{row.end:g}" for row in chosen),
        tuple(f"{row.video}.mp4" for row in chosen),
        library,
        folder.facts,
        references=tuple(row.texts[0] for row in chosen),
    )


@dataclass(frozen=True)
class _Question:
    name: str
    query: str
    options: tuple[Narrated, ...]
    answer: int
    kind: int


def _read_questions(path: Path) -> list[_Question]:
    if path.stat().st_size > _LARGEST_JSON:
        raise InputError(f"{path}: larger than 1 GiB, so not EgoMCQ's questions")
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); fetch egomcq.json again") from error
    if not isinstance(told, dict) or not told:
        raise InputError(f"{path}: holds no questions; give EgoMCQ's egomcq.json")
    return [_question(name, value, path) for name, value in told.items()]


def _question(name: str, value: Any, path: Path) -> _Question:
    try:
        options = [value["choices"][str(i)] for i in range(len(value["choices"]))]
        clips = tuple(
            Narrated(str(one["video_uid"]), float(one["clip_start"]), float(one["clip_end"]), ("",)) for one in options
        )
        question = _Question(name, str(value["query"]["clip_text"]), clips, int(value["answer"]), int(value["types"]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: question {name}: no {error} as EgoMCQ has it") from error
    good = all(math.isfinite(one.start) and math.isfinite(one.end) for one in clips)
    if len(clips) != 5 or not 0 <= question.answer < 5 or question.kind not in (1, 2) or not good:
        raise InputError(f"{path}: question {name}: not five timed clips, an answer of 0 to 4 and a type of 1 or 2")
    return question


def chunk_seconds(library: Library, videos: Sequence[str]) -> int:
    """How Ego4D's videos are cut: in chunks of 300 s, or not at all; the first one that is there tells."""
    for video in videos:
        try:
            parts = library.parts(f"{video}.mp4")
        except VideoError:
            continue
        return CHUNK_SECONDS if parts[0].parent.name.endswith(".mp4") else _WHOLE
    return CHUNK_SECONDS
