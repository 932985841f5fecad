"""A journal on disks and beside programs as they are: no locks, no fsync, meddlers, other texts, millions of rows."""

from __future__ import annotations

import errno
import fcntl
import io
import os
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from test_archive import CLIPS, RUN, fill, open_journal, sentences

from lavila_fast import files
from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.archive.journals import index, journal, spans
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.journals.rows import parse_row
from lavila_fast.archive.journals.spans import Columns, Done, DoneClips, span_of
from lavila_fast.errors import InputError, StorageError
from lavila_fast.pretrained import ASSETS
from lavila_fast.records import Clip, Narration

STRACE = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
FILM = ASSETS / "kitchen.mp4"


def refusing(number: int) -> Callable[..., None]:
    def call(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_told_and_still_has_one_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", refusing(number))
    path = tmp_path / "out.jsonl"
    first = open_journal(path)
    assert "no locks" in capsys.readouterr().err
    with pytest.raises(StorageError, match="another lavila-fast is writing it") as caught:
        open_journal(path)
    assert "\n" not in str(caught.value)
    first.append(CLIPS[0])
    first.close()
    again = open_journal(path)
    assert again.has(Clip("a.mp4", 0.0, 2.0))
    again.close()
    assert not list(tmp_path.glob(".*.owner"))


HOLDER = """
import errno, fcntl, sys, time
def flock(*given): raise OSError(errno.ENOLCK, "No locks available")
fcntl.flock = flock
from pathlib import Path
from lavila_fast.archive.journals.journal import Journal
Journal(Path(sys.argv[1]), {}, 1)
print("held", flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_left_on_a_disk_without_locks_is_cleared_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    monkeypatch.setattr(fcntl, "flock", refusing(errno.ENOLCK))
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with pytest.raises(StorageError, match=r"if none is running, remove .*\.out\.jsonl\.owner"):
            Journal(path, {}, 1)
        process.kill()
    Journal(path, {}, 1).close()


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_fsync_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    files._say_no_sync.cache_clear()
    monkeypatch.setattr(os, "fsync", refusing(number))
    monkeypatch.setattr(journal, "FSYNC_SECONDS", 0.0)
    fill(tmp_path / "out.jsonl")
    assert capsys.readouterr().err.count("no fsync") == 1


def test_a_warning_never_goes_to_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Dead(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    for stderr in (None, Dead()):
        monkeypatch.setattr(sys, "stderr", stderr)
        files.warn("something")
    assert capsys.readouterr().out == ""


def test_a_disk_that_fails_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    fill(path)
    one = open_journal(path)
    monkeypatch.setattr(os, "fsync", refusing(errno.EIO))
    with pytest.raises(StorageError, match="input/output error"):
        one.close()


def strace(tmp_path: Path, calls: str, error: str, *words: object) -> subprocess.CompletedProcess[str]:
    faults = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}"]
    narrate = [sys.executable, "-m", "lavila_fast", "narrate", "--threads", "1", "--temperature", "0"]
    return subprocess.run([*faults, *narrate, *map(str, words)], capture_output=True, text=True, cwd=tmp_path)


@STRACE
@pytest.mark.parametrize(
    ("calls", "error", "code", "said"),
    [
        ("flock", "ENOSYS", 0, "no locks"),
        ("flock", "ENOLCK", 0, "no locks"),
        ("fsync,fdatasync", "EINVAL", 0, "no fsync"),
        ("fsync,fdatasync", "EIO", 1, "input/output error"),
    ],
)
def test_calls_that_the_system_refuses(tmp_path: Path, calls: str, error: str, code: int, said: str) -> None:
    done = strace(tmp_path, calls, error, FILM, "-o", "out.jsonl")
    if "PTRACE" in done.stderr:
        pytest.skip("strace is not here: this system forbids it")
    assert (done.returncode, done.stderr.count(said), "Traceback" in done.stderr) == (code, 1, False), done.stderr
    if not code:
        assert len((tmp_path / "out.jsonl").read_bytes().splitlines()) == 12


@STRACE
def test_two_runs_where_there_are_no_locks_lose_nothing(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(3):
            data = FILM.read_bytes() + f"{name}{number}".encode()
            (tmp_path / name / f"{number}.mp4").write_bytes(data)
    runs = []
    for name in ("a", "b"):
        faults = "strace -f -o /dev/null -e trace=flock -e inject=flock:error=ENOLCK"
        words = [*faults.split(), sys.executable, "-m", "lavila_fast", "narrate", name, "-q", "-o", "out.jsonl"]
        runs.append(subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True))
    said = [one.communicate()[1] for one in runs]
    if any("PTRACE" in one for one in said):
        pytest.skip("strace is not here: this system forbids it")
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert all(parse_row(line) for line in lines)
    good = [one.returncode == 0 for one in runs]
    assert any(good)
    for name, ended in zip("ab", good, strict=True):
        rows = [line for line in lines if line.startswith(f'{{"video": "{name}/'.encode())]
        assert len(rows) == 36 or not ended


# --- meddlers --------------------------------------------------------------------------------------------------------


def remove(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    path.write_bytes(b"")


def replaced(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"a line of somebody else\n")


@pytest.mark.parametrize("meddle", [remove, truncate, replaced, grown])
@pytest.mark.parametrize("when", ["at the end", "at a sync", "at a clip"])
def test_an_output_that_others_touch_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddle: Callable[[Path], None], when: str
) -> None:
    path = tmp_path / "out.jsonl"
    one = open_journal(path)
    one.append(CLIPS[0])
    one.append(CLIPS[1])
    meddle(path)
    if when == "at a sync":
        monkeypatch.setattr(journal, "FSYNC_SECONDS", -1.0)
    sees = when == "at a sync" or (when == "at a clip" and meddle in (truncate, grown))
    notice = partial(one.append, CLIPS[2]) if sees else one.close
    with pytest.raises(StorageError, match="while this run") as caught:
        notice()
    assert "\n" not in str(caught.value)
    if when != "at the end":
        one.close()
    assert len(fill(path).splitlines()) == 12  # the next run makes good what was lost


def test_a_writer_that_comes_between_two_clips_tears_no_line(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    one = open_journal(path)
    one.append(CLIPS[0])
    with path.open("ab") as other:
        other.write(one._writer.clip(CLIPS[1]))
    with pytest.raises(StorageError, match="another program"):
        one.append(CLIPS[2])
    one.close()
    again = open_journal(path)
    assert sum(map(len, again.done.values())) == 3
    again.close()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_a_journal_saved_by_an_editor_in_another_text_is_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "out.jsonl"
    text = fill(path).decode()
    path.write_bytes(text.encode(encoding))
    before = path.read_bytes()
    with pytest.raises(InputError, match="UTF-16 or behind a byte-order mark"):
        open_journal(path)
    assert path.read_bytes() == before


def test_lines_in_another_text_are_no_rows() -> None:
    row = JsonLines().clip(sentences("a", 0.0, 1)).decode()
    assert parse_row(row.encode())
    for encoding in ("utf-16", "utf-16-le", "utf-32", "utf-8-sig"):
        assert parse_row(row.encode(encoding)) is None


# --- the index -------------------------------------------------------------------------------------------------------


@pytest.fixture
def worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH", 1)


def contents(one: Journal) -> dict[str, list[Any]]:
    return {video: list(clips.in_order()) for video, clips in one.done.items()}


def test_an_index_says_what_the_journal_says(tmp_path: Path, worth_it: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.jsonl"
    fill(path)
    assert index.index_path(path).is_file()
    plain = open_journal(path)
    expected = contents(plain)
    plain.close()
    seen: list[int] = []
    real = journal.whole_clips

    def counted(*given: Any) -> Iterator[Any]:
        for one in real(*given):
            seen.append(one[0])
            yield one

    monkeypatch.setattr(journal, "whole_clips", counted)
    one = open_journal(path)
    assert (contents(one), seen) == (expected, [])
    one.append(sentences("c", 0.0))
    one._held.close()  # as a killed process leaves it: the index speaks of less
    one = open_journal(path)
    assert len(seen) == 1
    assert contents(one) == {**expected, "c": [((0, 2000), seen[0])]}
    assert [rows[0].start for rows in one.rows("b é.mp4")] == [0.0, 2.0, 4.0]
    one.close()


def test_a_killed_run_leaves_an_index(tmp_path: Path, worth_it: None) -> None:
    path = tmp_path / "out.jsonl"
    one = open_journal(path)
    for start in range(15):
        one.append(sentences("v", 2.0 * start))
    one._held.close()
    found = index.load(path, 2)
    assert found is not None
    assert 10 < len(found[0]["v"]) < 15
    one = open_journal(path)
    assert len(one.done["v"]) == 15
    one.close()


def test_what_a_long_run_remembers_is_settled_now_and_then(tmp_path: Path, worth_it: None) -> None:
    one = open_journal(tmp_path / "out.jsonl")
    for film in range(40):
        for start in range(3):
            one.append(sentences(f"v{film}", 2.0 * start))
        assert sum(len(clips.added) for clips in one.done._touched.values()) <= 10 * index.WORTH + 1
    assert [len(clips) for clips in one.done.values()] == [3] * 40
    assert list(one.done) == [f"v{film}" for film in range(40)]
    one.close()


@pytest.mark.parametrize("change", ["bytes", "shorter", "index torn", "index of another", "index flipped", "samples"])
def test_an_index_that_does_not_fit_is_not_believed(tmp_path: Path, worth_it: None, change: str) -> None:
    path, beside = tmp_path / "out.jsonl", tmp_path / ".out.jsonl.index"
    whole = fill(path)
    if change == "bytes":
        path.write_bytes(whole.replace(b'"start": 2.0', b'"start": 1.0'))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    elif change == "shorter":
        path.write_bytes(whole[: len(whole) // 2])
    elif change == "index torn":
        beside.write_bytes(beside.read_bytes()[:-9])
    elif change == "index of another":
        fill(tmp_path / "x.jsonl")
        one = open_journal(tmp_path / "x.jsonl")
        one.append(sentences("z", 0.0))
        one.close()
        shutil.copy(tmp_path / ".x.jsonl.index", beside)
    elif change == "index flipped":
        data = bytearray(beside.read_bytes())
        data[-40] ^= 1
        beside.write_bytes(data)
    one = Journal(path, RUN, 1 if change == "samples" else 2)
    found = contents(one)
    one._held.close()
    beside.unlink(missing_ok=True)
    one = Journal(path, RUN, 1 if change == "samples" else 2)
    assert found == contents(one)
    one.close()


def test_clips_lie_in_the_index_until_they_are_asked_for(tmp_path: Path, worth_it: None) -> None:
    path = tmp_path / "out.jsonl"
    fill(path)
    plain = open_journal(path)
    expected = contents(plain)
    one = plain.done
    plain.close()
    assert [one.count(video) for video in one] == [len(one[video]) for video in one]
    assert one.count("of no such name") == 0
    index.index_path(path).write_bytes(b"")  # not replaced, as all of ours is: cut by somebody while it is held open
    with pytest.raises(StorageError, match="another program has cut it"):
        next(iter(one.values()))
    fresh = open_journal(path)
    assert contents(fresh) == expected
    for video in expected:  # some in an old place, some in a new one
        fresh.append([replace(row, video=video, start=50.0, end=52.0) for row in sentences(video, 0.0)])
        fresh.done.settle()
        assert fresh.done.count(video) == len(expected[video]) + 1
        assert list(fresh.done) == list(expected)
        assert [span for span, _ in fresh.done[video].in_order()][-1] == (50_000, 2000)
    fresh.close()
    fresh = open_journal(path)
    assert {video: clips[:-1] for video, clips in contents(fresh).items()} == expected
    fresh.close()


def test_few_clips_more_are_read_again_sooner_than_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "WORTH", 4)
    path = tmp_path / "out.jsonl"
    one = open_journal(path)
    for start in range(6):
        one.append(sentences("v", 2.0 * start))
    one.close()
    before = index.index_path(path).read_bytes()
    for start in range(6, 9):
        one = open_journal(path)
        one.append(sentences("v", 2.0 * start))
        one.close()
    assert len(open_and_close(path)["v"]) == 9
    assert index.index_path(path).read_bytes() == before
    one = open_journal(path)
    for start in range(9, 11):
        one.append(sentences("v", 2.0 * start))
    one.close()
    assert index.index_path(path).read_bytes() != before
    assert len(open_and_close(path)["v"]) == 11


def open_and_close(path: Path) -> dict[str, list[Any]]:
    one = open_journal(path)
    found = contents(one)
    one.close()
    return found


def test_odd_clips_have_no_index_and_are_known(tmp_path: Path, worth_it: None) -> None:
    path = tmp_path / "out.jsonl"
    for _ in range(2):
        one = open_journal(path)
        if not one.done:
            one.append([Narration("a", 0.0, 5e9, i, "x", 1.0, 1.0) for i in range(2)])
            one.append([Narration("a", 0.0, 2.0, i, "x", 1.0, 1.0) for i in range(2)])
        assert one.has(Clip("a", 0.0, 5e9))
        assert one.has(Clip("a", 0.0, 2.0))
        assert not one.has(Clip("a", 0.0, 3.0))
        one.close()
    assert not index.index_path(path).exists()


def test_lacking_is_what_is_not_there() -> None:
    spans = {(start * 10, 20): start for start in range(0, 9000, 3)}
    clips = DoneClips(Columns.of(spans))
    clips.add((5, 7), 1)
    wanted = [Clip("v", start / 100, start / 100 + 0.02) for start in range(9000)] + [Clip("v", 1e10, 1e10 + 1)]
    expected = [clip for clip in wanted if span_of(clip) not in spans]
    assert list(clips.lacking(wanted)) == expected
    assert list(DoneClips(Columns.of({})).lacking(wanted)) == wanted
    assert all(span in clips for span in [*spans, (5, 7)])
    assert (5, 8) not in clips


def test_seconds_covered_count_once() -> None:
    assert DoneClips(Columns.of({(0, 2000): 0, (1000, 2000): 1, (5000, 500): 2})).seconds() == 3.5


def test_millions_of_rows_take_little_memory_and_no_time(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    open_journal(path).close()
    videos, each = 50, 8_000
    done, place = Done(), 0
    with path.open("wb") as file:
        for video in range(videos):
            line = f'{{"video": "v{video}", "start": %d.0, "end": %d.0, "sample": %d, "text": "", '
            line += '"perplexity": 1.0, "logprob": -1.0}\n'
            for start in range(each):
                block = "".join(line % (2 * start, 2 * start + 2, i) for i in range(2)).encode()
                done.add(f"v{video}", (2000 * start, 2000), place)
                place += file.write(block)
    index.save(path, place, 2, done)
    del done
    begun = time.perf_counter()
    tracemalloc.start()
    one = open_journal(path)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    taken = time.perf_counter() - begun
    count = sum(map(len, one.done.values()))
    assert count == videos * each
    assert held / count <= 20.5, held / count
    assert 2 * count / taken > 2_000_000, taken
    assert not one.has(Clip("v7", 1.0, 3.0))
    assert one.has(Clip("v49", 2.0, 4.0))
    one.close()


def test_reading_the_rows_of_many_short_videos_takes_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spans, "_LOOSE", 2000)
    clips = [(f"v{i // 50 % 400}", (1000 * (i % 50) + i // 20_000, 1000), i) for i in range(40_000)]  # each twice
    clips.append(clips[7])
    tracemalloc.start()
    done = Done()
    new = [done.add_read(*one) for one in clips]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    plain = Done()
    assert new == [plain.add(*one) for one in clips] == [True] * 40_000 + [False]
    assert list(done) == list(plain)
    assert all(list(done[video].in_order()) == list(plain[video].in_order()) for video in plain)
    assert most / len(clips) < 100, most / len(clips)
