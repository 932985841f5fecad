"""Journal, writers, inputs, outputs and decoding threads, without a model."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scribe import narrate
from test_video_coded import write_video

from lavila_fast.archive.decoding import Crew, Decoders
from lavila_fast.archive.formats import FORMATS
from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.archive.journals.identity import LISTED, Identity, describe_windows, difference
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.journals.rows import parse_row
from lavila_fast.archive.names import name_files
from lavila_fast.archive.outputs import Output, choose_output
from lavila_fast.archive.sources.inputs import Job, find_clips, find_videos
from lavila_fast.archive.stretches import EndOfVideo
from lavila_fast.errors import InputError, StorageError, VideoError
from lavila_fast.generate.options import Options
from lavila_fast.records import Clip, Narration
from lavila_fast.video.clips import windows
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import Extent, VideoSource, extent

RUN = {"model": "m", "seed": 0}


def sentences(video: str, start: float, samples: int = 2) -> list[Narration]:
    return [
        Narration(video, start, start + 2, i, f'#C C "cuts", é {start:g}\n&<b>', 12.3456789, -1.0 / 3)
        for i in range(samples)
    ]


CLIPS = [sentences(video, start) for video in ("a.mp4", "b é.mp4") for start in (0.0, 2.0, 4.0)]


def open_journal(path: Path, **changes: object) -> Journal:
    return Journal(path, {**RUN, **changes}, samples=2)


def fill(path: Path) -> bytes:
    journal = open_journal(path)
    for rows in CLIPS:
        if not journal.has(Clip(rows[0].video, rows[0].start, rows[0].end)):
            journal.append(rows)
    journal.close()
    return path.read_bytes()


# --- journal ---------------------------------------------------------------------------------------------------------


def test_a_file_cut_at_any_byte_is_continued_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # a thousand of them take ten seconds
    path = tmp_path / "out.jsonl"
    whole = fill(path)
    assert whole.count(b"\n") == 12
    last_clip = whole.index(b'"start": 4.0', len(whole) // 2)
    for cut in [*range(0, last_clip, 7), *range(last_clip, len(whole))]:
        path.write_bytes(whole[:cut])
        assert fill(path) == whole, cut


def test_rows_are_as_promised(tmp_path: Path) -> None:
    row = json.loads(fill(tmp_path / "out.jsonl").splitlines()[1])
    assert list(row) == ["video", "start", "end", "sample", "text", "perplexity", "logprob"]
    assert (row["sample"], row["perplexity"], row["logprob"]) == (1, 12.3457, -0.333333)


@pytest.mark.parametrize("damage", ["junk line", "zeros", "lost sample", "second copy"])
def test_damage_in_the_middle_costs_only_the_clip_it_hit(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "out.jsonl"
    lines = fill(path).splitlines(keepends=True)
    good = sorted(lines)
    if damage == "junk line":
        lines.insert(4, b"junk\n")
    elif damage == "zeros":
        lines[2] = b"\0" * len(lines[2])
    elif damage == "lost sample":
        del lines[7]
    else:
        lines += lines[:2]
    path.write_bytes(b"".join(lines))
    journal = open_journal(path)
    assert sum(map(len, journal.done.values())) == (5 if damage in ("zeros", "lost sample") else 6)
    journal.close()
    assert sorted(fill(path).splitlines(keepends=True)) == good


def test_other_settings_are_refused_and_named(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = fill(path)
    with pytest.raises(InputError, match=r"seed 0, and now it is 1.*--overwrite"):
        open_journal(path, seed=1)
    assert path.read_bytes() == whole
    Journal(path, {**RUN, "seed": 1}, 2, overwrite=True).close()
    assert path.read_bytes() == b""
    open_journal(path, seed=1).close()
    open_journal(path, seed=2).close()  # nothing was written, so nothing mixes


OLD = {
    "model": "nano (0123456789abcdef)",
    "clips": "2 s every 2 s",
    **{"samples": 2, "beams": 1, "groups": 1, "length_penalty": 1.0, "seed": 0, "max_tokens": None},
    **{"temperature": 0.7, "top_k": None, "top_p": 0.95},
}
"""What stood beside a journal before `identity` was."""


def identity(**changes: Any) -> dict[str, Any]:
    same = Identity("nano", "0123456789abcdef", Options(samples=2), describe_windows(2, 2))
    return replace(same, **changes).settings()


def test_a_journal_begun_before_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    whole = fill(path)
    (tmp_path / "out.jsonl.run.json").write_text(json.dumps(OLD))
    for now in ({}, {"model": "folder (1)/nano"}, {"decoder": None}):
        journal = Journal(path, identity(**now), samples=2)
        assert sum(map(len, journal.done.values())) == 6
        journal.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("now", "what"),
    [
        (
            {"fingerprint": "0123456789abcdef, native avx2"},
            r"another version, with model nano \(0123456789abcdef\), and now it is nano .*avx2",
        ),
        ({"fingerprint": "f" * 16}, "was begun with model nano"),
        ({"options": Options(samples=2, seed=1)}, "seed 0, and now it is 1"),
        ({"clips": LISTED}, "clips 2 s every 2 s, and now it is a list"),
        ({"decoder": "dali"}, "noted no decoder, and now it is dali"),
    ],
)
def test_a_journal_begun_before_by_another_run_is_refused(tmp_path: Path, now: dict[str, Any], what: str) -> None:
    path = tmp_path / "out.jsonl"
    whole = fill(path)
    (tmp_path / "out.jsonl.run.json").write_text(json.dumps(OLD))
    with pytest.raises(InputError, match=what) as caught:
        Journal(path, identity(**now), samples=2)
    assert "\n" not in str(caught.value)
    assert "--overwrite" in str(caught.value)
    assert path.read_bytes() == whole


def test_a_setting_that_is_no_more_makes_a_difference() -> None:
    assert difference({**OLD, "decoder": "dali"}, identity()) == "was begun with decoder dali, and now it is None"
    assert difference(OLD, identity()) is None
    assert identity() == OLD  # an older version reads what this one writes


def test_a_stranger_s_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.jsonl"
    path.write_text("my notes\n")
    with pytest.raises(InputError, match="not written by lavila-fast"):
        open_journal(path)
    assert path.read_text() == "my notes\n"


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    fill(path)
    path.write_bytes(b"junk\n" + path.read_bytes())  # opening rewrites the file; the lock must survive that
    first = open_journal(path)
    with pytest.raises(StorageError, match="another lavila-fast"):
        open_journal(path)
    first.close()
    open_journal(path).close()


def test_rows_come_back_in_order_of_time(tmp_path: Path) -> None:
    journal = open_journal(tmp_path / "j")
    for rows in reversed(CLIPS):
        journal.append(rows)
    back = list(journal.rows("a.mp4"))
    assert [rows[0].start for rows in back] == [0.0, 2.0, 4.0]
    assert back[1][1].text == CLIPS[1][1].text
    journal.close()


def test_a_file_name_that_is_not_utf8_survives() -> None:
    video = os.fsdecode(b"caf\xe9.mp4")
    row = parse_row(JsonLines().clip(sentences(video, 0.0, 1)))
    assert row is not None
    assert row.video == video


# --- writers ---------------------------------------------------------------------------------------------------------


def written(format: str, clips: Sequence[Sequence[Narration]] = tuple(CLIPS)) -> bytes:
    file = io.BytesIO()
    FORMATS[format].writer().write(clips, file)
    return file.getvalue()


def test_csv() -> None:
    rows = list(csv.DictReader(io.StringIO(written("csv").decode(), newline="")))
    assert [(row["video"], float(row["start"]), int(row["sample"]), row["text"]) for row in rows] == [
        (one.video, one.start, one.sample, one.text) for clip in CLIPS for one in clip
    ]
    assert rows[0]["perplexity"] == "12.3457"


def test_damage_is_told_in_jsonl_and_leaves_csv_s_columns_alone() -> None:
    clip = [[replace(row, damaged=True) for row in CLIPS[0]]]
    values = json.loads(written("jsonl", clip).splitlines()[0])
    assert list(values)[-1] == "damaged"
    assert values["damaged"] is True
    assert written("csv", clip) == written("csv", CLIPS[:1])
    back = parse_row(written("jsonl", clip).splitlines(keepends=True)[0])
    assert back is not None
    assert back.damaged


def test_srt_and_vtt() -> None:
    clip = [sentences("a", 3661.5, 2)]
    line = '#C C "cuts", é 3661.5 &<b>'
    assert written("srt", clip).decode() == f"1\n01:01:01,500 --> 01:01:03,500\n{line}\n{line}\n\n"
    escaped = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert written("vtt", clip).decode() == f"WEBVTT\n\n01:01:01.500 --> 01:01:03.500\n{escaped}\n{escaped}\n\n"


def test_pickle_is_the_original_s() -> None:
    many = pickle.loads(written("pkl"))
    assert many[1] == ("a.mp4", 2.0, 4.0, [one.text for one in CLIPS[1]], [12.3456789] * 2)
    one = pickle.loads(written("pkl", [sentences("a", 0.0, 1)]))
    assert one == [("a", 0.0, 2.0, '#C C "cuts", é 0\n&<b>', 12.3456789)]


# --- inputs ----------------------------------------------------------------------------------------------------------


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(*inputs: str) -> list[str]:
    return [job.source.name for job in find_videos(inputs).jobs]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    touch(
        tmp_path, "v/b.MP4", "v/a.mkv", "v/notes.txt", "v/out.jsonl", "v/sub/c.mov", "v/.hidden.mp4", "v/UID.mp4/0.mp4"
    )
    touch(tmp_path, "v/UID.mp4/300.mp4", "v/numbers/1.mp4", "v/numbers/2.mp4", "v/odd[1].mp4", "empty/readme.txt")
    return tmp_path


def test_folders_are_walked_and_chunks_are_one_video(folder: Path) -> None:
    assert names("v") == [
        "v/a.mkv",
        "v/b.MP4",
        "v/odd[1].mp4",
        "v/UID.mp4",
        "v/numbers/1.mp4",
        "v/numbers/2.mp4",
        "v/sub/c.mov",
    ]
    assert names("v/UID.mp4") == ["v/UID.mp4"]


def test_patterns_files_and_doubles(folder: Path) -> None:
    (folder / "link.mp4").symlink_to("v/b.MP4")
    assert names("v/*.m*", "./v/a.mkv", "link.mp4", str(folder / "v/a.mkv")) == [
        "v/UID.mp4",
        "v/a.mkv",
        "v/odd[1].mp4",
        "link.mp4",
    ]
    assert names("v/odd[1].mp4", "v/out.jsonl", "v/notes.txt") == ["v/odd[1].mp4", "v/notes.txt"]


def test_nothing_found(folder: Path) -> None:
    for word, what in (("empty", "no videos"), ("*.mp4", "matches no file"), ("v/out.jsonl", "not a video")):
        with pytest.raises(InputError, match=what):
            find_videos([word])
    found = find_videos(["empty", "v/*.avi", "missing.mp4"])
    assert [job.source.name for job in found.jobs] == ["missing.mp4"]  # opening it says what is the matter
    assert len(found.failed) == 2


def test_clip_lists(folder: Path) -> None:
    (folder / "list.csv").write_text(
        "video,start,end\nb.MP4,0,2\nsub/c,1,3\nb.MP4,0,2\nnone,0,1\n../x,0,1\nb.MP4,4,6\n"
    )
    found = find_clips(["v"], folder / "list.csv")
    assert [(str(job.source.path), [clip.start for clip in job.clips or ()]) for job in found.jobs] == [
        ("v/b.MP4", [0.0, 4.0]),
        ("v/sub/c.mov", [1.0]),
    ]
    assert len(found.failed) == 2
    with pytest.raises(InputError, match="one INPUT, the folder"):
        find_clips(["v/b.MP4"], folder / "list.csv")


# --- outputs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "format", "videos", "one", "expected"),
    [
        (None, None, 1, True, Output("text", "stream")),
        (None, None, 3, False, Output("jsonl", "file", Path("narrations.jsonl"))),
        (None, "csv", 1, True, Output("csv", "file", Path("narrations.csv"))),
        (None, "srt", 2, False, Output("srt", "folder", Path())),
        ("-", None, 2, False, Output("jsonl", "stream")),
        ("/dev/full", None, 2, False, Output("jsonl", "stream", Path("/dev/full"))),
        ("x.pkl", None, 2, False, Output("pkl", "file", Path("x.pkl"))),
        ("x.out", "csv", 2, False, Output("csv", "file", Path("x.out"))),
        ("new", "vtt", 2, False, Output("vtt", "folder", Path("new"))),
        ("x.srt", None, 1, True, Output("srt", "file", Path("x.srt"))),
    ],
)
def test_output_choices(output: str, format: str, videos: int, one: bool, expected: Output) -> None:
    assert choose_output(output, format, videos, one) == expected


@pytest.mark.parametrize(("output", "format"), [("x.srt", None), ("x.out", None), ("-", "pkl"), ("-", "srt")])
def test_output_errors(output: str, format: str | None) -> None:
    with pytest.raises(InputError):
        choose_output(output, format, 2, False)


def test_names_of_files_never_collide() -> None:
    videos = ["a/x.mp4", "a/x.mkv", "b/x.mp4", "y.mp4", "/a/x.mp4", "X.MKV.mp4"]
    files = name_files(videos, ".srt")
    assert files["y.mp4"] == "y.srt"
    assert files["X.MKV.mp4"] == "X.MKV.srt"
    assert files["a/x.mkv"] == "a_x.mkv.srt"
    assert files["b/x.mp4"] == "b_x.mp4.srt"
    assert len({name.lower() for name in files.values()}) == len(files) == 6


@pytest.mark.parametrize("output", ["-", "out.jsonl"])
def test_a_limit_on_pixels_reaches_each_video(output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("v.mp4"), 10, size=(64, 32))
    anew = output != "-"
    allowed, _ = narrate("v.mp4", output=output, max_pixels=64 * 32, overwrite=anew)
    assert (allowed.clips, allowed.failed) == (1, [])
    refused, _ = narrate("v.mp4", output=output, max_pixels=64 * 32 - 1, overwrite=anew)
    assert "more than the 2047 allowed" in refused.failed[0]


def test_copied_and_renamed_rows_keep_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_video(Path("a.mp4"), 100, size=(64, 32))
    Path("b.mp4").write_bytes(Path("a.mp4").read_bytes())
    told = [0.24, 0.72, 1.2, 1.72]
    for names in (["a.mp4", "b.mp4"], ["moved.mp4", "b.mp4"]):
        if "moved.mp4" in names:
            Path("a.mp4").rename("moved.mp4")
        narrate(*names, output="out.jsonl", frame_times=True)
        found = [parse_row(line) for line in Path("out.jsonl").read_bytes().splitlines(keepends=True)]
        assert {row.video for row in found if row} == set(names)
        assert [row.frames for row in found if row and row.start == 0] == [pytest.approx(told)] * 2


# --- decoding threads ------------------------------------------------------------------------------------------------


class Plan:
    """Three clips a video."""

    def measure(self, job: Job) -> float:
        if "unmeasurable" in job.source.name:
            raise VideoError(job.source.path, "is odd", "leave it")
        return 3.0

    def clips(self, job: Job, seconds: float) -> list[Clip]:
        return [] if "done" in job.source.name else [Clip(job.source.name, i, i + 1) for i in range(int(seconds))]

    def count(self, job: Job, seconds: float) -> int:
        return len(self.clips(job, seconds))


def read(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
    for clip in clips:
        if source.name == "bug" and clip.start == 1:
            raise ZeroDivisionError("oh")
        if source.name == "huge":
            raise MemoryError
        yield DecodedClip(clip, np.zeros(1))


def events(videos: Sequence[str], workers: int) -> list[DecodedClip | EndOfVideo]:
    jobs = [Job(VideoSource(name, Path(name))) for name in videos]
    decoders = Decoders(jobs, Plan(), read, Crew(workers, workers, in_order=workers == 1), room=2)
    try:
        return list(decoders)
    finally:
        decoders.stop()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_video_ends_once_after_its_clips(workers: int) -> None:
    videos = ["a", "bug", "done", "unmeasurable", "b", "c"]
    seen = events(videos, workers)
    ends = {e.video: e.failure for e in seen if isinstance(e, EndOfVideo)}
    assert set(ends) == set(videos)
    assert len(seen) == len(videos) + 3 * 3 + 1
    assert ends["a"] is ends["done"] is None
    assert "bug: unexpected ZeroDivisionError: oh" in (ends["bug"] or "")
    assert "is odd" in (ends["unmeasurable"] or "")
    for video in "abc":
        mine = [e for e in seen if (e.video if isinstance(e, EndOfVideo) else e.clip.video) == video]
        assert [e.clip.start for e in mine[:-1] if isinstance(e, DecodedClip)] == [0, 1, 2]
        assert isinstance(mine[-1], EndOfVideo)


class Film:
    """Windows of a second over whole films."""

    def measure(self, job: Job) -> Extent:
        return extent(job.source)

    def clips(self, job: Job, seen: Extent) -> Iterator[Clip]:
        return (Clip(job.source.name, *time) for time in windows(seen.end, 1.0, 1.0, seen.begin))

    def count(self, job: Job, seen: Extent) -> int:
        return len(list(self.clips(job, seen)))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("crew", [Crew(), Crew(3, 3), Crew(1, 4), Crew(3, 3, in_order=False)])
def test_threads_that_share_a_film_show_what_one_shows(tmp_path: Path, suffix: str, crew: Crew) -> None:
    videos = [VideoSource(name, tmp_path / f"{name}.{suffix}") for name in "ab"]
    for video, options in zip(videos, [{"bf": "2", "g": "250"}, {"bf": "0", "g": "12"}], strict=True):
        write_video(video.path, 700, 25, size=(64, 32), options=options)
    served: list[str] = []

    def tell(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
        served.append(source.name)
        yield from read_clips(source, clips, 4)

    decoders = Decoders([Job(video) for video in videos], Film(), tell, crew, room=4)
    seen = list(decoders)
    decoders.stop()
    for video in videos:
        whole = list(read_clips(video, list(Film().clips(Job(video), extent(video))), 4))
        mine = [one for one in seen if isinstance(one, DecodedClip) and one.clip.video == video.name]
        assert [one.clip for one in mine] == [one.clip for one in whole]
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(mine, whole, strict=True))
        assert [one.decoded for one in mine] == sorted(one.decoded for one in mine)
    ends = [one for one in seen if isinstance(one, EndOfVideo)]
    assert [end.failure for end in ends] == [None, None]
    if crew.in_order:
        assert [one.clip.video for one in seen if isinstance(one, DecodedClip)] == ["a"] * 28 + ["b"] * 28
        assert (len(served) > 2) == (suffix != "ts" and crew.most > 1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_stretches_begin_where_decoding_does(tmp_path: Path, suffix: str) -> None:
    """Groups of 10 s, stretches of about 12 clips: little more is decoded than by one thread."""
    path = write_video(tmp_path / f"v.{suffix}", 5000, 25, size=(64, 32), options={"bf": "2", "g": "250"})
    decoded: dict[int, int] = {}
    for most in (1, 3):
        source = VideoSource("v", path)
        decoders = Decoders([Job(source)], Film(), partial(read_clips, frames_per_clip=4), Crew(most, most), room=12)
        seen = [one for one in decoders if isinstance(one, DecodedClip)]
        decoders.stop()
        assert [one.clip.start for one in seen] == list(range(200))
        assert all(abs(at - 10 * i) < 0.1 for i, at in enumerate(source.entries))
        assert len(source.entries) == 20
        decoded[most] = seen[-1].decoded
    assert decoded[3] < 1.05 * decoded[1]


def test_entries_that_are_near_to_each_other_are_not_kept(tmp_path: Path) -> None:
    source = VideoSource("v", write_video(tmp_path / "v.mp4", 500, 25, size=(64, 32), options={"g": "25"}))
    extent(source)
    assert source.can_seek
    assert not source.entries


class Seekable(VideoSource):
    """A video that threads may share."""

    can_seek = True


@dataclass
class Long(Plan):
    """A clip a second."""

    seconds: float

    def measure(self, job: Job) -> float:
        return self.seconds


def test_help_comes_when_the_model_waits() -> None:
    """One thread is too slow: others take the next stretches, and leave them in order."""
    threads: set[int] = set()

    def slow(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
        for clip in clips:
            threads.add(threading.get_ident())
            time.sleep(0.1)
            yield DecodedClip(clip, np.zeros(1), decoded=1)

    decoders = Decoders([Job(Seekable("a", Path("a")))], Long(80.0), slow, Crew(1, 3), room=4)
    began = time.monotonic()
    seen = [one.clip.start for one in decoders if isinstance(one, DecodedClip)]
    assert seen == list(range(80))
    assert len(threads) == 3
    assert time.monotonic() - began < 7  # of 8 that one thread takes
    decoders.stop()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_failure_in_a_stretch_is_told_once(workers: int) -> None:
    def broken(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
        for clip in clips:
            if 10 <= clip.start < 30:
                raise VideoError(source.path, f"ends at {clip.start} s", "leave it")
            yield DecodedClip(clip, np.zeros(1))

    decoders = Decoders([Job(Seekable("a", Path("a")))], Long(40.0), broken, Crew(workers, 3), room=4)
    seen = list(decoders)
    decoders.stop()
    (end,) = [one for one in seen if isinstance(one, EndOfVideo)]
    assert (end.code, end.stage) == ("truncated", "read")
    assert "ends at 10 s" in (end.failure or "")
    assert {one.clip.start for one in seen if isinstance(one, DecodedClip)} >= {*range(10)}


def test_what_endangers_its_reader_is_not_tried_again() -> None:
    tried = []

    def deadly(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
        tried.append(clips[0].start)
        yield DecodedClip(clips[0], np.zeros(1))
        raise VideoError(source.path, "no frame for 60 s", "leave it")

    decoders = Decoders([Job(Seekable("a", Path("a")))], Long(400.0), deadly, Crew(1, 3), room=4)
    *clips, end = list(decoders)
    decoders.stop()
    assert (len(tried), len(clips)) == (1, 1)
    assert isinstance(end, EndOfVideo)
    assert end.code == "hung"


def test_clips_of_a_film_that_was_cut_short_are_counted_over_all_stretches(tmp_path: Path) -> None:
    whole, path = write_video(tmp_path / "w.mkv", 1000, 25, size=(64, 32)), tmp_path / "a.mkv"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    video = VideoSource("a", path)

    class Promised(Film):
        def measure(self, job: Job) -> Extent:
            extent(job.source)
            return Extent(0.0, 40.0)

    ends = {}
    for crew in (Crew(), Crew(2, 2)):
        decoders = Decoders([Job(video)], Promised(), partial(read_clips, frames_per_clip=4), crew, room=4)
        *clips, end = list(decoders)
        decoders.stop()
        ends[crew.most] = len(clips), getattr(end, "code", None), str(getattr(end, "failure", "")).split(":")[0]
        assert f"{40 - len(clips)} of 40 clips could not be read" in end.failure
    assert ends[1] == ends[2]


def test_running_out_of_memory_ends_the_run() -> None:
    with pytest.raises(MemoryError):
        events(["huge", "a"], 1)


def test_decoding_waits_for_room_and_stops_when_told() -> None:
    taken: list[Clip] = []

    def endless(source: VideoSource, clips: Sequence[Clip]) -> Iterator[DecodedClip]:
        while True:
            taken.append(clips[0])
            yield DecodedClip(clips[0], np.zeros(1))

    before = threading.active_count()
    decoders = Decoders([Job(VideoSource("a", Path("a")))], Plan(), endless, Crew(), room=2)
    next(iter(decoders))
    time.sleep(0.3)
    assert len(taken) <= 5
    decoders.stop()
    assert threading.active_count() == before
