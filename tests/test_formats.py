"""A format is one row: a toy one, registered only in the table, goes the whole way through the command line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import pytest
from test_video_coded import write_video

from lavila_fast.archive.formats import FORMATS, Format, offered, suffixes
from lavila_fast.archive.formats.writer import Writer, encode
from lavila_fast.archive.sources.inputs import find_videos
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError
from lavila_fast.records import Narration


class Toy(Writer):
    """A line a clip: its first second, and how many sentences there are."""

    header = b"TOY\n"

    def clip(self, rows: Sequence[Narration]) -> bytes:
        return encode(f"{rows[0].start:g} {len(rows)}\n")


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMATS, "toy", Format(Toy, ".toys", printable=True))


@pytest.fixture
def narrate(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", 40, Fraction(10))
    start = ["narrate", "--model", str(tiny_bundle), "--threads", "1", "--no-isolate"]
    return lambda *words: run([*start, "--temperature", "0", "--samples", "2", *words])


EXPECTED = "TOY\n0 2\n2 2\n"


@pytest.mark.usefixtures("toy")
def test_one_row_is_a_format(narrate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate("a.mp4", "-o", "by_suffix.TOYS") == 0
    assert narrate("a.mp4", "-o", "named.out", "--format", "toy") == 0
    assert narrate("a.mp4", "--format", "toy") == 0
    assert narrate("a.mp4", "-o", "folder/", "--format", "toy") == 0
    for path in ("by_suffix.TOYS", "named.out", "narrations.toys", "folder/a.toys"):
        assert Path(path).read_text() == EXPECTED
    capsys.readouterr()
    assert narrate("a.mp4", "-o", "-", "--format", "toy") == 0
    assert capsys.readouterr().out == EXPECTED
    assert narrate("a.mp4", "narrations.toys", "-o", "again.toys") == 0  # as from a pattern: not taken for an input
    assert Path("again.toys").read_text() == EXPECTED


@pytest.mark.usefixtures("toy")
def test_messages_and_help_name_it(narrate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate", "--help"]) == 0
    assert f"[{'|'.join(offered())}]" in " ".join(capsys.readouterr().out.split())
    assert narrate("a.mp4", "-o", "x.txt") == 2
    said = capsys.readouterr().err
    assert all(FORMATS[name].suffix in said for name in offered())
    assert "toy" in offered()
    assert narrate("a.mp4", "--format", "nonesuch") == 2
    assert "'toy'" in capsys.readouterr().err


@pytest.mark.usefixtures("toy")
def test_what_a_row_says_is_kept_to(
    narrate: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("b.mp4").write_bytes(Path("a.mp4").read_bytes())
    monkeypatch.setitem(FORMATS, "toy", Format(Toy, ".toys", one_video=True))
    assert narrate(".", "-o", "both.toys") == 2
    assert "one file a video" in capsys.readouterr().err
    assert narrate("a.mp4", "-o", "-", "--format", "toy") == 2
    assert "cannot be printed" in capsys.readouterr().err
    assert narrate(".", "--format", "toy") == 0
    assert Path("a.toys").read_text() == Path("b.toys").read_text() == EXPECTED
    monkeypatch.setitem(FORMATS, "toy", Format(Toy, ".toys", offered=False))
    assert narrate("a.mp4", "--format", "toy") == 2


def test_without_the_row_there_is_no_such_format(
    narrate: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrate("a.mp4", "-o", "a.toys") == 2
    assert narrate("a.mp4", "--format", "toy") == 2
    assert [str(job.source.path) for job in find_videos(["a.mp4", "x.toys"]).jobs] == ["a.mp4", "x.toys"]


def test_every_row_is_one_of_a_kind() -> None:
    assert len(suffixes()) == sum(bool(row.suffix) for row in FORMATS.values())
    assert set(suffixes().values()) == set(offered())
    assert all(row.printable for row in FORMATS.values() if not row.suffix)
    for suffix in suffixes():
        with pytest.raises(InputError, match="not a video"):
            find_videos([f"out{suffix}"])
