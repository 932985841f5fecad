"""Files of an output folder: whose each is, in one run and in the next, and that no other is touched."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.names import RECORD, name_files
from lavila_fast.archive.outputs import Files, Output, open_journal
from lavila_fast.errors import InputError, LavilaError, StorageError
from lavila_fast.records import Clip, Narration

SRT = Output("srt", "folder", Path("out"))
CSV = Output("csv", "file", Path("out.csv"))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(
    output: Output, videos: Sequence[str], said: str = "says", clips: int = 1, overwrite: bool = False
) -> tuple[list[str], Files]:
    """Narrate videos as a run would; gives the lines about files that could not be written."""
    journal = open_journal(output, {"model": "m"}, 1, overwrite)
    try:
        files = Files(output, journal, videos, overwrite)
        failed = []
        for video in videos:
            for start in range(clips):
                row = Narration(video, float(start), start + 1.0, 0, f"{video} {said} {start}", 1.0, 1.0)
                if list(files.lacking(video, [Clip(video, row.start, row.end)])):
                    files.write([row])
            failed += [line] if (line := files.finish(video)) else []
        files.close()
        return failed, files
    finally:
        journal.close()


def texts(folder: str = "out", suffix: str = ".srt") -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(Path(folder).glob(f"*{suffix}"))}


def test_one_name_in_two_folders_in_two_runs() -> None:
    run(SRT, ["c/clip.mp4"])
    run(SRT, ["d/clip.mp4"], clips=2)
    before = texts()
    assert {name: text.count("-->") for name, text in before.items()} == {"clip.srt": 1, "clip.mp4.srt": 2}
    assert "c/clip.mp4 says" in before["clip.srt"]
    assert run(SRT, ["c/clip.mp4", "d/clip.mp4"])[0] == []
    assert texts() == before
    run(SRT, ["d/clip.mp4", "c/clip.mp4", "d/Clip.mov", "e/clip.mp4"], clips=3)
    assert {name: text.count("-->") for name, text in texts().items()} == {
        "clip.srt": 3,
        "clip.mp4.srt": 3,
        "Clip.mov.srt": 3,
        "e_clip.mp4.srt": 3,
    }
    vtt, _ = run(Output("vtt", "folder", Path("out")), ["c/clip.mp4"])
    assert vtt == []
    assert list(texts(suffix=".vtt")) == ["clip.vtt"]


def test_a_stranger_s_file_stays_and_a_line_says_so() -> None:
    Path("out").mkdir()
    Path("out/film.srt").write_text("by hand")
    Path("out/linked.srt").symlink_to(Path("out/film.srt").absolute())
    _, files = run(SRT, ["film.mp4", "linked.mp4", "other.mp4"])
    assert Path("out/film.srt").read_text() == "by hand"
    assert sorted(texts()) == ["film.mp4.srt", "film.srt", "linked.mp4.srt", "linked.srt", "other.srt"]
    assert list(files.notes) == [
        "out/film.srt: is not ours and stays; film.mp4 goes to film.mp4.srt",
        "out/linked.srt: is not ours and stays; linked.mp4 goes to linked.mp4.srt",
    ]
    assert run(SRT, ["film.mp4"])[1].notes == []


def test_what_somebody_has_changed_stays() -> None:
    run(SRT, ["a.mp4", "b.mp4"])
    Path("out/a.srt").write_text("put right by hand")
    (line,), _ = run(SRT, ["a.mp4", "b.mp4"], clips=2)
    assert line.startswith("out/a.srt: exists, and was changed since it was written; move it away")
    assert Path("out/a.srt").read_text() == "put right by hand"
    assert texts()["b.srt"].count("-->") == 2
    assert run(SRT, ["a.mp4"], overwrite=True)[0] == []
    assert texts()["a.srt"].count("-->") == 1
    Path("out/a.srt").unlink()
    assert run(SRT, ["a.mp4"])[0] == []
    assert texts()["a.srt"].count("-->") == 1


def test_a_file_that_is_as_it_should_be_is_not_written_again() -> None:
    run(SRT, ["a.mp4"])
    before = Path("out/a.srt").stat()
    run(SRT, ["a.mp4"])
    assert Path("out/a.srt").stat().st_ino == before.st_ino


@pytest.mark.parametrize("format", ["csv", "vtt", "pkl", "srt"])
def test_one_file_for_all_that_is_a_stranger_s(format: str) -> None:
    output = Output(format, "file", Path("film.out"))
    Path("film.out").write_text("mine")
    with pytest.raises(InputError, match=r"film\.out: exists, and was not written by this command; .* --overwrite it"):
        run(output, ["a.mp4"])
    with pytest.raises(InputError, match=r"film\.out: exists"):
        run(output, ["a.mp4"])
    assert Path("film.out").read_text() == "mine"
    run(output, ["a.mp4"], overwrite=True)
    assert Path("film.out").read_bytes() != b"mine"
    run(output, ["a.mp4", "b.mp4"], clips=2)
    Path("film.out").write_text("changed")
    with pytest.raises(InputError, match="was changed since"):
        run(output, ["a.mp4"])


def test_what_a_version_without_names_has_written_is_adopted() -> None:
    run(SRT, ["c/clip.mp4"])
    run(CSV, ["c/clip.mp4"])
    Path(f"out/narrations.journal{RECORD}").unlink()
    Path(f"out.csv.journal{RECORD}").unlink()
    assert run(SRT, ["c/clip.mp4", "d/clip.mp4"], clips=2)[0] == []
    assert {name: text.count("-->") for name, text in texts().items()} == {"clip.srt": 2, "clip.mp4.srt": 2}
    run(CSV, ["c/clip.mp4"], clips=2)
    assert Path("out.csv").read_text().count("\n") == 3
    Path("out/clip.srt").write_text("by hand")
    assert run(SRT, ["c/clip.mp4"], clips=3)[0] != []


def test_no_line_is_glued_to_a_torn_one() -> None:
    run(SRT, ["a.mp4"])
    with Path(f"out/narrations.journal{RECORD}").open("ab") as file:
        file.write(b'{"torn')
    run(SRT, ["b.mp4"])
    Path("out/b.srt").unlink()
    Path("out/b.srt").write_text("by hand")
    assert run(SRT, ["b.mp4"], clips=2)[0] != []
    assert len(texts()) == 2


def test_a_crash_at_any_byte_of_the_record_costs_nothing() -> None:
    run(SRT, ["c/clip.mp4"])
    record = Path(f"out/narrations.journal{RECORD}")
    whole = record.read_bytes()
    for cut in range(len(whole)):
        record.write_bytes(whole[:cut])
        _, files = run(SRT, ["c/clip.mp4"])
        assert (texts()["clip.srt"].count("-->"), len(texts())) in ((1, 1), (1, 2))
        if len(texts()) == 2:  # the name was lost: the file that is there stays, and a line says so
            assert files.notes
            Path("out/clip.mp4.srt").unlink()


@pytest.mark.parametrize(
    "videos",
    [
        [f"v/{'x' * 251}.mp4", "v/aa.mp4", f"v/{'x' * 250}y.mp4"],
        [f"v/{'é' * 125}.mp4", f"v/{'é' * 124}è.mp4"],
        [r"w/" + r"\udce9" * 60 + ".mp4", "w/🎬.mp4"],
        ["w/" + "\udce9" * 60 + ".mp4", "w/🎬.mp4"],
        ["a\n\x1b[31m.mp4", "b\u202e.mp4", "\ud800.mp4", ". .mp4", "..", "a/" * 100 + "b.mp4"],
    ],
)
@pytest.mark.parametrize("format", ["srt", "jsonl"])
def test_names_that_are_long_or_odd(videos: list[str], format: str) -> None:
    for _ in range(2):
        assert run(Output(format, "folder", Path("out")), videos)[0] == []
        found = texts(suffix=f".{format}")
        found = {name: text for name, text in found.items() if not name.endswith(RECORD)}
        assert len(found) == len(videos)
        for name in found:
            assert len(name.encode()) <= 255
            assert name.isprintable()


@given(
    st.lists(st.text(min_size=1).filter(lambda name: "\0" not in name), unique=True), st.sampled_from([60, 143, 255])
)
def test_names_are_unique_and_fit(videos: list[str], longest: int) -> None:
    taken = ["a.srt", "A.SRT", "é.srt"]
    names = name_files(videos, ".srt", taken, longest)
    assert set(names) == set(videos)
    assert len({name.casefold() for name in names.values()} | {"a.srt", "é.srt"}) == len(videos) + 2
    for name in names.values():
        assert len(name.encode()) <= longest
        assert "/" not in name
        assert not {c for c in name if ord(c) < 32}


def failing(monkeypatch: pytest.MonkeyPatch, number: int, which: Callable[[str], bool]) -> None:
    replace = Path.replace

    def replacing(self: Path, target: Path) -> Path:
        if which(Path(target).name):
            raise OSError(number, os.strerror(number))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replacing)


def test_a_file_that_cannot_be_written_is_its_video_s_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, errno.ENAMETOOLONG, lambda name: name == "a.srt")
    (line,), _ = run(SRT, ["a.mp4", "b.mp4"])
    assert line == "out/a.srt: cannot be written (file name too long); give a shorter name"
    assert list(texts()) == ["b.srt"]
    failing(monkeypatch, errno.ENOSPC, lambda name: name == "c.srt")
    with pytest.raises(StorageError, match="make room"):
        run(SRT, ["c.mp4", "d.mp4"])


def test_journals_stay_closed_after_a_refusal() -> None:
    Path("out.csv").write_text("mine")
    with pytest.raises(LavilaError):
        run(CSV, ["a.mp4"])
    Journal(Path("out.csv.journal"), {"model": "m"}, 1).close()


def test_a_video_that_was_moved_takes_its_file_along() -> None:
    run(SRT, ["c/clip.mp4", "c/other.mp4"])
    journal = Path("out/narrations.journal")
    journal.write_text(journal.read_text().replace("c/clip.mp4", "e/clip.mp4"))
    assert run(SRT, ["e/clip.mp4"])[0] == []
    assert sorted(texts()) == ["clip.srt", "other.srt"]
    assert "e/clip.mp4 says" in texts()["clip.srt"]
    run(SRT, ["c/clip.mp4"])  # another film that lies there now
    assert sorted(texts()) == ["clip.mp4.srt", "clip.srt", "other.srt"]
    assert "c/clip.mp4 says" in texts()["clip.mp4.srt"]
