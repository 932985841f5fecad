"""What counts as done: videos known by content, records of what became of them, outputs that others meddle with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from random import Random
from typing import Any

import pytest
from scribe import narrate, rows
from test_identity import fail_at, noisy
from test_video_coded import write_video

from lavila_fast.archive.faults import LASTING, fault_code
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.journals.videos import Records, VideoRecord, find_records, parse_record, read_records
from lavila_fast.archive.recognise import Wishes
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError, StorageError, VideoError
from lavila_fast.records import Narration
from lavila_fast.video import opening
from lavila_fast.video.content import content_id
from lavila_fast.video.disk import disk_error

OUT = "out.jsonl"
TABLE = Path("out.jsonl.videos.jsonl")


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 4, 6 and 8 seconds."""
    folder = tmp_path_factory.mktemp("films")
    for number, name in enumerate("abc"):
        write_video(folder / f"{name}.mp4", 40 + 20 * number, Fraction(10), start=1000 * number)
    return folder


@pytest.fixture
def place(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one's own with ``v/`` in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(films, "v")
    return tmp_path


def fresh(*inputs: object, **how: Any) -> list[tuple[str, float, str]]:
    """The rows of a run that knows nothing, sorted."""
    Path("fresh").mkdir(exist_ok=True)
    narrate(*inputs, output="fresh/fresh.jsonl", overwrite=True, **how)
    return sorted(rows("fresh/fresh.jsonl"))


def records() -> dict[str, VideoRecord]:
    return read_records(TABLE)


# --- which video it is -----------------------------------------------------------------------------------------------


def test_moved_and_renamed_videos_are_not_narrated_again(place: Path) -> None:
    narrate("v", output=OUT)
    Path("w").mkdir()
    Path("v/a.mp4").rename("w/other.mp4")
    Path("v/b.mp4").rename("v/renamed.mp4")
    summary, scribe = narrate("v", "w", output=OUT)
    assert (summary.clips, summary.done_before, summary.exit_code, scribe.read_of) == (0, 9, 0, [])
    assert sorted(rows(OUT)) == fresh("v", "w")
    assert set(records()) == {"v/renamed.mp4", "v/c.mp4", "w/other.mp4"}
    whole = Path(OUT).read_bytes()
    assert narrate("v", "w", output=OUT)[0].done_before == 9
    assert Path(OUT).read_bytes() == whole


def test_a_file_that_was_touched_or_copied_over_itself_is_the_same(place: Path) -> None:
    narrate("v", output=OUT)
    os.utime("v/a.mp4", (1, 1))
    shutil.copy("v/b.mp4", "x")
    Path("x").replace("v/b.mp4")
    assert narrate("v", output=OUT)[1].read_of == []
    assert records()["v/a.mp4"].mtime == 10**9  # looked at closely once


def test_a_replaced_video_is_narrated_anew_and_no_other(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrate("v", output=OUT)
    shutil.copy("v/c.mp4", "v/a.mp4")
    write_video(Path("v/b.mp4"), 90, Fraction(10), start=5)
    summary, scribe = narrate("v", output=OUT)
    assert scribe.read_of == ["b.mp4"]
    assert summary.exit_code == 0
    assert sorted(rows(OUT)) == fresh("v")
    assert "v/b.mp4: has changed since it was narrated" in capsys.readouterr().err


@pytest.mark.parametrize("format", ["jsonl", "srt"])
def test_a_recording_that_grows_keeps_no_last_window(place: Path, format: str) -> None:
    whole = write_video(Path("whole.ts"), 150, Fraction(10)).read_bytes()
    Path("r").mkdir()
    for share in (0.4, 0.7, 1.0):
        Path("r/rec.ts").write_bytes(whole[: int(share * len(whole)) // 188 * 188])
        assert narrate("r", output="out/", format=format)[0].exit_code == 0
    journal = sorted(rows("out/narrations.journal"))
    assert journal == fresh("r")
    assert [start for _, start, _ in journal] == list(range(0, 15, 2))
    if format == "srt":
        assert Path("out/rec.srt").read_text().count("-->") == 8


def test_names_that_change_places(place: Path) -> None:
    narrate("v", output=OUT)
    Path("v/a.mp4").rename("x")
    Path("v/b.mp4").rename("v/a.mp4")
    Path("x").rename("v/b.mp4")
    summary, scribe = narrate("v", output=OUT)
    assert (summary.clips, scribe.read_of) == (0, [])
    assert sorted(rows(OUT)) == fresh("v")


def test_names_that_move_up_one_place(place: Path) -> None:
    """As a camera does that calls its newest film 1."""
    narrate("v/a.mp4", "v/b.mp4", output=OUT)
    Path("v/b.mp4").rename("v/x.mp4")
    Path("v/a.mp4").rename("v/b.mp4")
    Path("v/c.mp4").rename("v/a.mp4")
    summary, scribe = narrate("v", output=OUT)
    assert scribe.read_of == ["a.mp4"]
    assert (summary.clips, summary.done_before) == (4, 5)
    assert sorted(rows(OUT)) == fresh("v")


def test_a_copy_gets_copied_rows(place: Path) -> None:
    shutil.copy("v/c.mp4", "v/d.mp4")
    shutil.copy("v/c.mp4", "v/e.mp4")
    summary, scribe = narrate("v", output=OUT, workers=3)
    assert sorted(scribe.read_of) == ["a.mp4", "b.mp4", "c.mp4"]
    assert (scribe.written, summary.exit_code, summary.copied) == (9, 0, 8)
    expected = fresh("v")
    assert sorted(rows(OUT)) == expected
    assert len(expected) == 17
    shutil.copy("v/b.mp4", "v/later.mp4")
    _, scribe = narrate("v/later.mp4", output=OUT)
    assert scribe.written == 0
    assert sorted(rows(OUT)) == fresh("v")
    assert {one.status for one in records().values()} == {"done"}


def test_copies_of_a_broken_video_fail_with_it(place: Path) -> None:
    Path("v/x.mp4").write_text("no video\n" * 50)
    shutil.copy("v/x.mp4", "v/y.mp4")
    summary, _ = narrate("v", output=OUT)
    assert len(summary.failed) == 2
    assert summary.exit_code == 1
    assert records()["v/y.mp4"].status == "failed"
    assert [line.split(":")[0] for line in summary.failed] == ["v/x.mp4", "v/y.mp4"]
    assert summary.failed[0].replace("x.mp4", "y.mp4") == summary.failed[1]


def test_one_relative_name_in_two_folders_is_two_videos(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, film in (("one", "a"), ("two", "b")):
        Path(name).mkdir()
        shutil.copy(f"v/{film}.mp4", f"{name}/film.mp4")
        monkeypatch.chdir(place / name)
        narrate("film.mp4", output="../out.jsonl")
        monkeypatch.chdir(place)
    assert {video for video, _, _ in rows(OUT)} == {"film.mp4", str(place / "two/film.mp4")}
    assert len(rows(OUT)) == 5
    monkeypatch.chdir(place / "two")
    assert narrate("film.mp4", output="../out.jsonl")[0].done_before == 3


def test_a_whole_folder_that_moves_keeps_its_relative_names(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place / "v")
    narrate(".", output="../out.jsonl")
    before = (place / OUT).read_bytes()
    (place / "v").rename(place / "moved")
    monkeypatch.chdir(place / "moved")
    assert narrate(".", output="../out.jsonl")[0].done_before == 9
    assert (place / OUT).read_bytes() == before


def test_a_file_with_all_bytes_hashed_is_known_where_the_fast_hash_sees_nothing(place: Path) -> None:
    path, pad = Path("v/a.mp4"), b"\0\0\x40\0free" + bytes((1 << 22) - 8)  # a box that players pass over
    path.write_bytes(path.read_bytes() + pad)
    seen = path.stat()
    narrate("v/a.mp4", output=OUT, wishes=Wishes(full=True))
    assert narrate("v/a.mp4", output=OUT, wishes=Wishes(full=True))[1].written == 0
    data = bytearray(path.read_bytes())
    data[(1 << 20) + 50_000] = 1
    path.write_bytes(data)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    assert narrate("v/a.mp4", output=OUT)[1].written == 0
    assert narrate("v/a.mp4", output=OUT, wishes=Wishes(full=True))[1].written == 2


def test_rows_of_a_version_without_records_are_believed_by_name(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrate("v", output=OUT)
    before = Path(OUT).read_bytes()
    TABLE.unlink()
    capsys.readouterr()
    summary, _ = narrate("v", output=OUT)
    assert (summary.clips, summary.done_before) == (0, 9)
    assert capsys.readouterr().err.count("knew videos by name only") == 1
    assert Path(OUT).read_bytes() == before
    assert records()["v/a.mp4"].id == content_id(Path("v/a.mp4"))


def test_rows_without_a_record_are_made_again(place: Path) -> None:
    """A crash may leave rows whose record the disk never got."""
    narrate("v", output=OUT)
    lines = TABLE.read_bytes().splitlines(keepends=True)
    TABLE.write_bytes(b"".join(lines[1:]) + b'{"id": "torn')
    _, scribe = narrate("v", output=OUT)
    assert scribe.read_of == ["a.mp4"]
    assert sorted(rows(OUT)) == fresh("v")


@pytest.mark.parametrize("where", ["replace 1", "rewrite", "replace 2", "put"])
def test_a_crash_while_names_change_never_gives_rows_to_another_film(
    place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    narrate("v", output=OUT)
    Path("v/a.mp4").rename("x")
    Path("v/b.mp4").rename("v/a.mp4")
    Path("x").rename("v/b.mp4")
    shutil.copy("v/b.mp4", "v/c.mp4")
    left = [2 if where == "replace 2" else 1]

    def crash(real: Any) -> Any:
        def run(*given: Any, **named: Any) -> Any:
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
            return real(*given, **named)

        return run

    with monkeypatch.context() as patched:
        owner: type = Journal if where == "rewrite" else Records
        name = where.split()[0]
        patched.setattr(owner, name, crash(getattr(owner, name)))
        with pytest.raises(KeyboardInterrupt):
            narrate("v", output=OUT)
    assert narrate("v", output=OUT)[0].exit_code == 0
    assert sorted(rows(OUT)) == fresh("v")


def test_a_full_disk_while_names_change_costs_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    narrate("v", output=OUT)
    before = Path(OUT).read_bytes()
    Path("v/a.mp4").rename("v/x.mp4")
    with monkeypatch.context() as patched:

        def full(path: Path, todo: str | None = None) -> Any:
            raise StorageError(f"{path}: cannot be written (no space left on device)")

        patched.setattr("lavila_fast.archive.journals.journal.replacing", full)
        with pytest.raises(StorageError, match="no space"):
            narrate("v", output=OUT)
    assert Path(OUT).read_bytes() == before
    assert narrate("v", output=OUT)[1].written == 0
    assert sorted(rows(OUT)) == fresh("v")


def test_a_list_s_names_stay_and_its_files_are_known(place: Path) -> None:
    Path("list.csv").write_text("video,start,end\na,0,2\nb,1,3\n")
    narrate("v", output=OUT, clip_list=Path("list.csv"))
    Path("v").rename("w")
    assert narrate("w", output=OUT, clip_list=Path("list.csv"))[1].written == 0
    shutil.copy("w/c.mp4", "w/a.mp4")
    Path("list.csv").write_text("video,start,end\na,0,2\nb,1,3\nb,2,4\n")
    _, scribe = narrate("w", output=OUT, clip_list=Path("list.csv"))
    assert scribe.written == 2
    assert sorted(rows(OUT)) == fresh("w", clip_list=Path("list.csv"))


def test_a_video_that_a_list_names_in_vain_has_a_record(place: Path) -> None:
    Path("list.csv").write_text("video,start,end\na,0,2\ngone,0,2\n")
    for _ in range(2):
        assert narrate("v", output=OUT, clip_list=Path("list.csv"))[0].exit_code == 1
        assert (records()["gone"].status, records()["gone"].code) == ("failed", "missing")
    shutil.copy("v/c.mp4", "v/gone.mp4")
    assert narrate("v", output=OUT, clip_list=Path("list.csv"))[0].exit_code == 0
    assert records()["gone"].status == "done"


def test_a_list_s_failure_is_told_again(place: Path) -> None:
    cut(Path("v/cut.mp4"))
    Path("list.csv").write_text("video,start,end\na,0,2\ncut,0,2\ncut,10,13\n")
    first, _ = narrate("v", output=OUT, clip_list=Path("list.csv"))
    again, scribe = narrate("v", output=OUT, clip_list=Path("list.csv"))
    assert (first.exit_code, again.exit_code, scribe.written) == (1, 1, 0)


# --- damage and disks ------------------------------------------------------------------------------------------------


def damaged_rows(path: str = OUT) -> int:
    return Path(path).read_text().count('"damaged": true')


def torn(path: Path) -> bytes:
    """A noisy film with zeros in the middle; its whole bytes."""
    whole = noisy(path).read_bytes()
    at = len(whole) * 2 // 5
    path.write_bytes(whole[:at] + bytes(len(whole) // 5) + whole[at + len(whole) // 5 :])
    return whole


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_damaged_file_fetched_again_is_as_fresh(place: Path, suffix: str) -> None:
    film = Path(f"film.{suffix}")
    whole = torn(film)
    first = narrate(film, output=OUT)[0].exit_code
    assert first == 1 or suffix == "mkv"  # Matroska's demuxer finds its way over a hole without a word
    assert narrate(film, output=OUT)[0].exit_code == first
    film.write_bytes(whole)
    assert narrate(film, output=OUT)[0].exit_code == 0
    assert sorted(rows(OUT)) == fresh(film)
    assert (len(rows(OUT)), damaged_rows()) == (8, 0)


def cut(path: Path) -> None:
    """A video of which the last frames are missing, so that a clip gets substitutes."""
    whole = write_video(path, 200, Fraction(10), container_options={"movflags": "faststart"}).read_bytes()
    path.write_bytes(whole[: len(whole) * 12 // 20])


def test_clips_of_substitutes_are_marked_counted_and_made_again_if_asked(place: Path) -> None:
    cut(Path("cut.mp4"))
    summary, _ = narrate("cut.mp4", output=OUT)
    assert summary.damaged == damaged_rows() == records()["cut.mp4"].damaged == 1
    assert summary.to_dict()["damaged"] == 1
    count = len(rows(OUT))
    assert narrate("cut.mp4", output=OUT)[1].written == 0
    _, scribe = narrate("cut.mp4", output=OUT, wishes=Wishes(retry_damaged=True, retry_failed=True))
    assert (scribe.written, len(rows(OUT)), damaged_rows()) == (1, count, 1)
    assert records()["cut.mp4"].damaged == 1


def test_a_damaged_film_stays_one_though_what_failed_is_tried_again(place: Path) -> None:
    """All its windows have rows, so there is nothing to be read, and nothing is known to be better."""
    film = noisy(Path("film.mp4"))
    content = bytearray(film.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 20_000] = Random(3).randbytes(20_000)
    film.write_bytes(content)
    first, _ = narrate(film, output=OUT)
    record = records()["film.mp4"]
    assert (record.status, record.code, damaged_rows() > 0, record.coverage) == ("partial", "damaged", True, 1.0)
    for wishes in (Wishes(), Wishes(retry_failed=True)):
        again, scribe = narrate(film, output=OUT, wishes=wishes)
        assert (again.exit_code, scribe.written) == (1, 0)
        assert again.failed == [f"{first.failed[0]} (as before; --retry-damaged tries again)"]
    assert records()["film.mp4"] == record
    film.rename("moved.mp4")
    (told,) = narrate("moved.mp4", output=OUT)[0].failed
    assert told.startswith("moved.mp4: damaged pieces skipped")
    again, scribe = narrate("moved.mp4", output=OUT, wishes=Wishes(retry_damaged=True))
    assert (again.exit_code, scribe.written > 0, records()["moved.mp4"].code) == (1, True, "damaged")


def test_substitutes_of_a_run_that_was_killed_are_counted(place: Path) -> None:
    cut(Path("cut.mp4"))
    narrate("cut.mp4", output=OUT)
    lines = Path(OUT).read_bytes().splitlines(keepends=True)
    Path(OUT).write_bytes(b"".join(lines[1:]))
    kept = Records(Path(TABLE))
    kept.put(replace(records()["cut.mp4"], status="partial", damaged=0, clips=0))  # its counts were never written down
    kept.close()
    _, scribe = narrate("cut.mp4", output=OUT, wishes=Wishes(retry_failed=True))
    assert (scribe.written, damaged_rows(), records()["cut.mp4"].damaged) == (1, 1, 1)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("number", [2, 3, 5, 8, 12])
def test_a_disk_that_fails_once(place: Path, suffix: str, number: int, capsys: pytest.CaptureFixture[str]) -> None:
    film = noisy(Path(f"film.{suffix}"))
    with pytest.MonkeyPatch.context() as patch:
        fail_at(number, patch)
        summary, _ = narrate(film, output=OUT)
    assert summary.exit_code == 1
    assert "input/output error" in summary.failed[0]
    (record,) = records().values()
    assert (record.status != "done", record.code) == (True, "disk")
    assert set(rows(OUT)) <= set(fresh(film))
    assert narrate(film, output=OUT)[0].exit_code == 0
    assert sorted(rows(OUT)) == fresh(film)
    assert len(rows(OUT)) == 8


def test_a_file_that_cannot_be_read_now_keeps_its_rows_and_its_identity(place: Path) -> None:
    narrate("v", output=OUT)
    known = records()["v/a.mp4"]
    whole = sorted(rows(OUT))
    for change in ("gone", "changed and unreadable", "back"):
        with pytest.MonkeyPatch.context() as patch:
            if change == "gone":
                Path("v/a.mp4").rename("a.mp4")
            elif change == "changed and unreadable":
                shutil.copy("v/c.mp4", "v/a.mp4")

                def fail(path: Path, full: bool = False) -> str:
                    raise disk_error(path, OSError(5, "Input/output error"))

                patch.setattr("lavila_fast.archive.recognise.content_id", fail)
            else:
                Path("a.mp4").replace("v/a.mp4")
            summary, scribe = narrate("v/a.mp4", "v/b.mp4", output=OUT)
        assert (summary.exit_code, scribe.written) == (int(change != "back"), 0)
        assert sorted(rows(OUT)) == whole
        assert records()["v/a.mp4"].id == known.id
    shutil.copy("v/c.mp4", "v/a.mp4")
    assert narrate("v", output=OUT)[0].exit_code == 0
    assert sorted(rows(OUT)) == fresh("v")


def test_a_copy_on_a_better_disk_is_taken(place: Path) -> None:
    noisy(Path("a.mp4"))
    shutil.copy("a.mp4", "b.mp4")
    with pytest.MonkeyPatch.context() as patch:
        fail_at(5, patch)
        assert len(narrate("a.mp4", "b.mp4", output=OUT)[0].failed) == 2
    _, scribe = narrate("a.mp4", "b.mp4", output=OUT)
    assert scribe.read_of == ["b.mp4"]
    assert sorted(rows(OUT)) == fresh("a.mp4", "b.mp4")


def test_records_of_an_output_that_was_deleted_say_nothing(place: Path) -> None:
    Path("v/text.mp4").write_text("no video\n" * 50)
    narrate("v", output=OUT)
    Path(OUT).unlink()
    again, scribe = narrate("v", output=OUT)
    assert scribe.written == 9
    assert "as before" not in again.failed[0]
    last, _ = narrate("v", output=OUT)
    assert "as before" in last.failed[0]
    assert last.videos == again.videos == len(list(Path("v").iterdir()))  # what failed before is counted once


# --- records ---------------------------------------------------------------------------------------------------------


def test_a_record_says_what_became_of_a_video(place: Path) -> None:
    cut(Path("v/cut.mp4"))
    Path("v/text.mp4").write_text("no video\n" * 50)
    summary, _ = narrate("v", "missing.mp4", output=OUT)
    assert summary.exit_code == 1
    table = records()
    assert len(TABLE.read_bytes().splitlines()) == len(table) == 6
    whole = table["v/c.mp4"]
    assert (whole.status, whole.clips, whole.duration, whole.coverage) == ("done", 4, 8.0, 1.0)
    assert (whole.code, whole.error, whole.stage) == (None, None, None)
    assert whole.path == str(place / "v/c.mp4")
    assert 16 <= whole.frames <= 80  # of which 16 are wanted
    assert whole.seconds > 0
    part = table["v/cut.mp4"]
    assert (part.status, part.code, part.stage) == ("partial", "truncated", "read")
    assert part.coverage is not None
    assert 0.3 < part.coverage < 0.9
    assert (table["v/text.mp4"].status, table["v/text.mp4"].code, table["v/text.mp4"].stage) == (
        "failed",
        "not-a-video",
        "open",
    )
    assert table["missing.mp4"].code == "missing"
    assert "does not exist" in (table["missing.mp4"].error or "")


def test_what_failed_is_tried_again_when_it_changes_or_if_asked(place: Path) -> None:
    Path("v/text.mp4").write_text("no video\n" * 50)
    first, _ = narrate("v", output=OUT)
    again, scribe = narrate("v", output=OUT)
    assert (again.exit_code, len(again.failed), scribe.read_of) == (1, 1, [])
    assert first.failed[0] in again.failed[0]
    assert "--retry-failed" in again.failed[0]
    asked, _ = narrate("v", output=OUT, wishes=Wishes(retry_failed=True))
    assert asked.failed == first.failed
    shutil.copy("v/a.mp4", "v/text.mp4")
    assert narrate("v", output=OUT)[0].exit_code == 0


def test_resuming_opens_no_finished_video(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format in ("jsonl", "srt"):
        narrate("v", output=f"{format}/", format=format)
    before = Path("srt/a.srt").stat()
    Path("srt/b.srt").unlink()

    def refuse(*given: object) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(opening, "_check_file", refuse)
    monkeypatch.setattr("lavila_fast.archive.recognise.content_id", refuse)
    for format in ("jsonl", "srt"):
        assert narrate("v", output=f"{format}/", format=format)[0].done_before == 9
    assert Path("srt/b.srt").exists()
    assert Path("srt/a.srt").stat().st_ino == before.st_ino


def test_a_journal_that_lost_rows_is_completed_all_the_same(place: Path) -> None:
    narrate("v", output=OUT)
    whole = Path(OUT).read_bytes()
    Path(OUT).write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert narrate("v", output=OUT)[0].clips == 6
    assert Path(OUT).read_bytes() == whole


def test_exit_codes_tell_some_from_nothing(place: Path) -> None:
    for name in ("x", "y"):
        Path(f"{name}.mp4").write_text(f"no video {name}\n" * 50)
    assert narrate("x.mp4", "y.mp4", output="none.jsonl")[0].exit_code == 3
    assert narrate("x.mp4", "y.mp4", output="none.jsonl")[0].exit_code == 3
    assert narrate("x.mp4", "v/a.mp4", output="some.jsonl")[0].exit_code == 1
    assert narrate("x.mp4", "v/a.mp4", output="some.jsonl")[0].exit_code == 1
    assert narrate("x.mp4", output="one.jsonl")[0].exit_code == 1


def test_status_tells_it(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(Path("v/cut.mp4"))
    Path("v/te\x1b[31mxt.mp4").write_text("no video\n" * 50)
    narrate("v", output=OUT)
    narrate("v", output="folder/", format="srt")
    for output in (OUT, "folder", "folder/"):
        capsys.readouterr()
        assert run(["status", output]) == 1
        told = capsys.readouterr().out
        assert told.startswith("5 videos: 3 done, 1 partial, 1 failed\n")
        assert "not-a-video" in told
        assert "truncated" in told
        assert "\x1b" not in told
        assert "v/cut.mp4" in told.split("least narrated:")[1]
        assert run(["status", output, "--json"]) == 1
        values = json.loads(capsys.readouterr().out)
        assert (values["total"], values["done"], values["reasons"]["truncated"]["videos"]) == (5, 3, 1)
        assert values["worst"][0]["coverage"] == 0.0
        assert len(values["videos"]) == 5
    shutil.rmtree("v")
    assert run(["status", "nothing.jsonl"]) == 2
    assert "no records" in capsys.readouterr().err


def test_status_of_a_good_run_is_zero(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    narrate("v", output="out.csv")
    assert run(["status", "out.csv"]) == 0
    assert capsys.readouterr().out == "3 videos: 3 done\n9 clips\n"
    assert find_records("out.csv").name == "out.csv.videos.jsonl"
    with pytest.raises(InputError, match="an output without a name"):
        find_records("")


def test_hostile_records_are_no_records() -> None:
    good = VideoRecord("1", "v", "/v")
    assert parse_record(json.dumps({"id": "1", "video": "v", "path": "/v", "new": 1}).encode()) == good
    for line in (b"", b"null", b"[1]", b"{}", b'{"id":1,"video":"v","path":"/v"}', b"\xff\xfe", b"[" * 100_000):
        assert parse_record(line) is None
    assert parse_record(b'{"id":null,"video":"v","path":null}') is None


def test_a_stranger_s_table_is_not_overwritten(place: Path) -> None:
    for content in (b"my notes\n", "{}\n".encode("utf-16")):
        TABLE.write_bytes(content)
        for overwrite in (False, True):
            with pytest.raises(InputError, match="holds no records of videos"):
                narrate("v", output=OUT, overwrite=overwrite)
        assert TABLE.read_bytes() == content


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from scribe import narrate
print("here", flush=True)
narrate("v", output="out.jsonl", quiet=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_while_videos_change_places(place: Path, films: Path, seed: int) -> None:
    random = Random(seed)
    for _ in range(12):
        words = [sys.executable, "-c", KILLED, str(Path(__file__).parent)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(random.random() / 2)
            process.kill()
        here = sorted(Path("v").iterdir())
        one, other = random.sample(here, 2)
        change = random.choice(["swap", "replace", "rename", "copy"])
        if change == "swap":
            one.rename("x")
            other.rename(one)
            Path("x").rename(other)
        elif change == "rename":
            one.rename(f"v/{random.random()}.mp4")
        else:
            shutil.copy(other if change == "copy" else random.choice(sorted(films.iterdir())), one)
    assert narrate("v", output=OUT)[0].exit_code == 0
    now = {str(path) for path in Path("v").iterdir()}
    assert sorted(row for row in rows(OUT) if row[0] in now) == fresh("v")


def test_a_word_for_each_fault() -> None:
    assert fault_code(VideoError("x", "ends at 3.0 s of 9.0 s", "")) == "truncated"
    assert fault_code(VideoError("x", "something new", "")) not in LASTING
    assert fault_code(StorageError("x")) == "output"
    assert fault_code(InputError("x")) == "input"
    assert fault_code(ZeroDivisionError()) == "unexpected"


def test_rows_always_have_a_record_before_them(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = Journal.append, []

    def append(self: Journal, given: list[Narration]) -> None:
        seen.append(read_records(Path(f"{self.path}.videos.jsonl")).get(given[0].video))
        real(self, given)

    monkeypatch.setattr(Journal, "append", append)
    narrate("v", output=OUT)
    assert len(seen) == 9
    assert all(one is not None and one.id for one in seen)
    assert len({one.id for one in seen if one}) == 3
