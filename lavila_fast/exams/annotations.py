"""EPIC-KITCHENS-100, EGTEA and Charades-Ego as they lie on disk: the published annotation files and folders of videos.

Each function opens one benchmark in the layout that LaViLa's `datasets/README.md` describes. Counts and checksums that
are known are compared; what differs is told, and keeps figures from being compared with published ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lavila_fast.arrays import F64
from lavila_fast.errors import InputError
from lavila_fast.exams.class_exams import Classes, Several
from lavila_fast.exams.data_folder import MATRIX, DataFolder, unique
from lavila_fast.exams.exam import Exam
from lavila_fast.exams.protocols import Protocol
from lavila_fast.exams.relevancy import relevancy_of
from lavila_fast.exams.segments import EK100Clips
from lavila_fast.exams.sentence_exams import Retrieval
from lavila_fast.train.datasets import charades, egtea
from lavila_fast.train.datasets.ek100 import Segment, actions_of, read_segments, read_sentences
from lavila_fast.video.pickled import read_matrix

_EK100, _RETRIEVAL, _EK100_VIDEOS = "epic-kitchens-100-annotations", "retrieval_annotations", "video_ht256px"


def _segments(folder: DataFolder, *names: str) -> list[Segment]:
    path = folder.path(_EK100, *names)
    found = read_segments(path)
    folder.note(path, len(found))
    if not found:
        raise InputError(f"{path}: holds no clips")
    if wrong := next((one for one in found if min(one.verb, one.noun) < 0), None):
        told = f"{wrong.verb} and {wrong.noun} are no numbers of a verb and a noun"
        raise InputError(f"{path}: {wrong.narration_id}: {told}; fetch the file again")
    return found


def open_ek100_mir(folder: DataFolder, protocol: Protocol) -> Exam:
    """EPIC-KITCHENS-100 multi-instance retrieval: the test half, each clip among all sentences."""
    segments = _segments(folder, _RETRIEVAL, "EPIC_100_retrieval_test.csv")
    path = folder.path(_EK100, _RETRIEVAL, "EPIC_100_retrieval_test_sentence.csv")
    sentences = read_sentences(path)
    folder.lengths([one.stop - one.start for one in segments])
    folder.note(path, len(sentences))
    if not sentences:
        raise InputError(f"{path}: holds no sentences")
    rows = sentence_rows(segments, sentences, path)
    library = folder.library(_EK100_VIDEOS)
    clips = EK100Clips(tuple(segments), library, protocol.frames)
    return Retrieval(
        clips,
        unique(one.narration_id for one in segments),
        clips.files(),
        library,
        folder.facts,
        sentences=tuple(segments[row].narration for row in rows),
        sentence_ids=unique(name for name, _ in sentences),
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
    path = base / "relevancy" / MATRIX
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
    if not (found.min() >= 0 and found.max() <= 1):  # nor NaN
        raise InputError(f"{path}: holds values that are none of 0 to 1; fetch it again, or move it away")
    folder.note(path, clips)
    folder.facts.notes.append(f"{path.name}: copies differ by some chance in their making, and so do figures")
    return found


def open_ek100_cls(folder: DataFolder, protocol: Protocol) -> Exam:
    """EPIC-KITCHENS-100 action recognition: the validation half."""
    train, held = (_segments(folder, f"EPIC_100_{part}.csv") for part in ("train", "validation"))
    actions = actions_of([*train, *held])
    folder.lengths([one.stop - one.start for one in held])
    place = {pair: i for i, pair in enumerate(actions.pairs)}
    library = folder.library(_EK100_VIDEOS)
    clips = EK100Clips(tuple(held), library, protocol.frames)
    return Classes(
        clips,
        unique(one.narration_id for one in held),
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
        unique(Path(one.file).stem for one in clips),
        tuple(one.file for one in clips),
        library,
        folder.facts,
        labels=np.array([one.label for one in clips]),
        names=tuple((name,) for name in names),
    )


def open_charades_ego(folder: DataFolder, protocol: Protocol) -> Exam:
    """Charades-Ego, the first-person videos of the test half."""
    path = folder.path("CharadesEgo", "Charades_v1_classes.txt")
    classes = charades.read_classes(path)
    if not classes.names:
        raise InputError(f"{path}: holds no classes")
    folder.note(path, len(classes.names))
    path = folder.path("CharadesEgo", "CharadesEgo_v1_test_only1st.csv")
    videos = charades.read_videos(path, classes)
    if videos and not any(any(one.classes) for one in videos):
        raise InputError(f"{path}: no video shows an action, so that there is nothing to score; fetch the file again")
    folder.note(path, len(videos))
    library = folder.library("CharadesEgo_v1_480")
    return Several(
        charades.CharadesVideos(videos, library, protocol.frames, protocol.stride, protocol.clips, protocol.sparse),
        unique(Path(one.file).stem for one in videos),
        tuple(one.file for one in videos),
        library,
        folder.facts,
        shown=np.array([one.classes for one in videos]),
        names=tuple((name,) for name in classes.names),
    )
