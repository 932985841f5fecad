"""Annotation files looked through before days are spent on them: what is in each, and what does not fit.

    for found in check_annotations("ek100", Path("epic-kitchens-100-annotations"), Videos(prepared)): ...

A benchmark is a row of patterns; each names a file as it is published, and who reads it. The readers are those of the
data sets, so that what passes here can be trained on.
"""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from lavila_fast.errors import InputError, LavilaError, VideoError
from lavila_fast.train.datasets import charades, egtea
from lavila_fast.train.datasets.ego4d import read_narrations
from lavila_fast.train.datasets.ek100 import LEAST, read_segments, read_sentences
from lavila_fast.train.datasets.listed import classes_of, read_listed
from lavila_fast.video.pickled import read_matrix

VERBS, NOUNS = 97, 300  # classes of EPIC-KITCHENS-100
_SLACK = 0.5  # seconds that an annotation may end behind its video: clocks of annotators are no better
_LISTED = 20  # of each kind of problem
KINDS = {
    "missing": "videos that are missing or cannot be read",
    "backwards": "rows that end before they begin",
    "ends_late": "rows that end after their video",
    "begins_late": "rows that begin after their video",
    "empty_text": "rows with an empty text",
    "wrong_label": "rows with a wrong label",
    "no_clip": "sentences of no clip",
    "no_sentence": "clips that no sentence fits",
}
"""Kinds of problems, in words."""


class Row(NamedTuple):
    """What is asked of a row: its video as it is prepared, when, and what is said.

    `end` is None for rows of whole videos; `wrong`: what else is the matter with its labels.
    """

    where: str
    video: str
    start: float = 0.0
    end: float | None = None
    texts: tuple[str, ...] = ()
    wrong: str = ""


@dataclass
class Videos:
    """How long videos last, by what they are prepared as.

    Attributes:
        seconds: Of those that are known.
        measure: Finds out about others; None: there are none.
    """

    seconds: dict[str, float]
    measure: Callable[[str], float] | None = None

    def lasts(self, video: str) -> float | None:
        """Seconds; None if there is no such video."""
        if video not in self.seconds and self.measure is not None:
            try:
                self.seconds[video] = self.measure(video)
            except VideoError:
                self.seconds[video] = -1.0
        found = self.seconds.get(video, -1.0)
        return None if found < 0 else found


@dataclass
class Checked:
    """What is in an annotation file.

    Attributes:
        file: Which.
        rows: How many, of `videos` different ones.
        problems: Kind (see `KINDS`) → how many rows have it.
        listed: Kind → the first of them, a line each.
        error: Why it cannot be used at all.
    """

    file: str
    rows: int = 0
    videos: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    listed: dict[str, list[str]] = field(default_factory=dict)
    error: str | None = None

    @property
    def good(self) -> bool:
        """Whether nothing is the matter with it."""
        return not self.problems and self.error is None

    def note(self, kind: str, line: str) -> None:
        """Count a problem, and list the first ones of its kind."""
        self.problems[kind] = self.problems.get(kind, 0) + 1
        if self.problems[kind] <= _LISTED:
            self.listed.setdefault(kind, []).append(line)

    def take(self, rows: Iterable[Row], videos: Videos) -> None:
        """Look at all rows."""
        seen: dict[str, float | None] = {}
        for row in rows:
            self.rows += 1
            if row.video not in seen:
                seen[row.video] = videos.lasts(row.video)
                if seen[row.video] is None:
                    self.note("missing", f"{row.where}: {row.video}")
            self._look_at(row, seen[row.video])
        self.videos = len(seen)
        if not self.rows:
            self.error = f"{self.file}: holds no rows; fetch it again"

    def _look_at(self, row: Row, seconds: float | None) -> None:
        if row.end is not None:
            told = f"{row.where}: {row.start:g}-{row.end:g} s"
            if row.start < 0 or row.end <= row.start:
                self.note("backwards", told)
            elif seconds is not None and row.end > seconds + _SLACK:
                kind = "begins_late" if row.start >= seconds else "ends_late"
                self.note(kind, f"{told} of {seconds:.2f} s ({row.video})")
        if row.texts and not all(text.strip() for text in row.texts):
            self.note("empty_text", row.where)
        if row.wrong:
            self.note("wrong_label", f"{row.where}: {row.wrong}")


def _narrated(path: Path) -> Iterator[Row]:
    for number, row in enumerate(read_narrations(path)):
        yield Row(f"row {number}", f"{row.video}.mp4", row.start, row.end, row.texts)


def _egomcq(path: Path) -> Iterator[Row]:
    try:
        questions = json.loads(path.read_text(encoding="utf-8"))
        for number, one in questions.items():
            choices = one["choices"]
            wrong = "" if str(one["answer"]) in choices else f"answer {one['answer']} is no choice"
            for option in choices.values():
                start, end = float(option["clip_start"]), float(option["clip_end"])
                texts = (str(one["query"]["clip_text"]), str(option["clip_text"]))
                yield Row(f"question {number}", f"{option['video_uid']}.mp4", start, end, texts, wrong)
                wrong = ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not the questions of EgoMCQ ({error}); fetch the file again") from error


def _ek100(path: Path) -> Iterator[Row]:
    for number, row in enumerate(read_segments(path), 2):
        wrong = [] if 0 <= row.verb < VERBS else [f"verb class {row.verb}"]
        wrong += [] if 0 <= row.noun < NOUNS else [f"noun class {row.noun}"]
        yield Row(f"line {number}", row.file, row.start, row.stop, (row.narration,), ", ".join(wrong))


def _egtea(path: Path) -> Iterator[Row]:
    numbers, names = egtea.read_classes(path.with_name("action_idx.txt"))
    for number, clip in enumerate(egtea.read_split(path, numbers), 1):
        yield Row(f"clip {number}", clip.file, texts=(names[clip.label],))


def _charades(path: Path) -> Iterator[Row]:
    classes = charades.read_classes(path.with_name("Charades_v1_classes.txt"))
    charades.read_videos(path, classes)
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            where, video = f"line {reader.line_num}", f"{row['id']}.mp4"
            yield Row(where, video, 0.0, float(row["length"]))
            for action in filter(None, row["actions"].split(";")):
                try:
                    code, start, end = action.split()
                    times = float(start), float(end)
                except ValueError:
                    yield Row(where, video, wrong=f"{action!r} is not a class, start and end")
                    continue
                yield Row(f"{where}: {code}", video, *times, (classes.names[classes.codes[code]],))


def _list(path: Path) -> Iterator[Row]:
    rows = read_listed(path)
    classes_of(rows)
    for row in rows:
        where = row.where.rpartition(", ")[2]
        end = row.end if row.end is not None or not row.start else row.start + 1e-3
        yield Row(where, str(Path(row.file).with_suffix(".mp4").as_posix()), row.start, end, row.texts)


Reader = Callable[[Path], Iterator[Row]]
BENCHMARKS: Mapping[str, Mapping[str, Reader]] = {
    "ego4d": {"ego4d_*.pkl": _narrated, "egomcq.json": _egomcq},
    "ek100": {
        "EPIC_100_train.csv": _ek100,
        "EPIC_100_validation.csv": _ek100,
        "EPIC_100_retrieval_train.csv": _ek100,
        "EPIC_100_retrieval_test.csv": _ek100,
    },
    "egtea": {"train_split[1-3].txt": _egtea, "test_split[1-3].txt": _egtea},
    "charades-ego": {"CharadesEgo_v1_*_only1st.csv": _charades, "metadata_filtered_*.pkl": _narrated},
    "list": {"*.csv": _list, "*.jsonl": _list},
}


def find_annotations(name: str, path: Path) -> list[tuple[Path, Reader]]:
    """A benchmark's files in a folder or below it; of a list, the file itself or those in the folder."""
    patterns = BENCHMARKS[name]
    if path.is_file():
        return [(path, reader) for pattern, reader in patterns.items() if path.match(pattern)]
    look = path.glob if name == "list" else path.rglob
    return [(one, reader) for pattern, reader in patterns.items() for one in sorted(look(pattern)) if one.is_file()]


def needed_annotations(name: str, path: Path) -> list[tuple[Path, Reader]]:
    """The same, at least one.

    Raises:
        InputError: there is none.
    """
    found = find_annotations(name, path)
    if not found:
        told = ", ".join(BENCHMARKS[name])
        raise InputError(f"{path}: holds no annotations of {name} ({told}); give their folder by --annotations")
    return found


def check_annotations(name: str, path: Path, videos: Videos) -> Iterator[Checked]:
    """Check a benchmark's files, one after the other.

    Raises:
        InputError: there are none.
    """
    found = needed_annotations(name, path)
    for file, reader in found:
        checked = Checked(str(file))
        with _noting(checked):
            checked.take(reader(file), videos)
        yield checked
    for file, _ in found:
        if file.match("EPIC_100_retrieval_*.csv"):
            yield _retrieval(file)


@contextlib.contextmanager
def _noting(checked: Checked) -> Iterator[None]:
    """An error becomes that of a file."""
    try:
        yield
    except LavilaError as error:
        checked.error = str(error)
    except UnicodeDecodeError:
        checked.error = f"{checked.file}: not UTF-8 text; fetch it again"
    except OSError as error:
        told = f"{error.filename or checked.file}: cannot be read ({error.strerror})"
        checked.error = f"{told}; fetch it, or give this user the right to read it"


def _retrieval(path: Path) -> Checked:
    """The sentences to retrieve, and how well each fits each clip."""
    sentences = path.with_name(f"{path.stem}_sentence.csv")
    matrix = path.parent / "relevancy" / f"caption_relevancy_{path.stem}.pkl"
    checked = Checked(str(matrix))
    with _noting(checked):
        clips, rows = read_segments(path), read_sentences(sentences)
        ids = {row.narration_id for row in clips}
        checked.rows = len(rows)
        for number, (narration, text) in enumerate(rows, 2):
            if narration not in ids:
                checked.note("no_clip", f"{sentences.name}: line {number}: {narration}")
            if not text.strip():
                checked.note("empty_text", f"{sentences.name}: line {number}")
        values = read_matrix(matrix)
        if values.shape != (len(clips), len(rows)):
            what = f"is of {values.shape[0]} x {values.shape[1]}, not of {len(clips)} clips x {len(rows)} sentences"
            checked.error = f"{matrix}: {what}; fetch the one of {path.name}"
        elif values.size and not (values.min() >= 0 and values.max() <= 1):
            checked.error = f"{matrix}: holds relevancies beyond 0 … 1; fetch it again"
        best = values.max(axis=1, initial=0.0)
        for clip in np.flatnonzero(best <= LEAST):
            checked.note("no_sentence", f"{path.name}: line {clip + 2}")
    return checked
