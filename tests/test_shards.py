"""Shares of an archive: who does what depends on contents alone, and what they make is what one run makes."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scribe import narrate, rows
from test_video_coded import write_video

from lavila_fast.archive.accounts.account import account, known
from lavila_fast.archive.finished.convert import videos_of
from lavila_fast.archive.finished.merge import merge, read_part
from lavila_fast.archive.finished.tables import read_table
from lavila_fast.archive.journals.videos import read_records
from lavila_fast.archive.outputs import Output
from lavila_fast.archive.recognise import Wishes
from lavila_fast.archive.sources.inputs import find_videos
from lavila_fast.archive.sources.shards import Shard, marker_of
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError

WHOLE = Output("jsonl", "file", Path("all.jsonl"))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(7):
        write_video(folder / f"{number}.mp4", 40 + 20 * number, Fraction(10), start=1000 * number)
    return folder


@pytest.fixture
def place(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(films, "v")
    narrate("v", output="one.jsonl")
    return tmp_path


def shares(of: int, folder: str = "v", **how: int) -> list[Path]:
    for number in range(1, of + 1):
        narrate(folder, output=f"s{number}.jsonl", shard=Shard(number, of, **how))
    return [Path(f"s{number}.jsonl") for number in range(1, of + 1)]


def joined(paths: list[Path], **how: bool) -> None:
    merge([read_part(path) for path in paths], WHOLE, overwrite=True, **how)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("of", [1, 3, 11])
def test_shares_make_up_what_one_run_makes(of: int) -> None:
    paths = shares(of)
    joined(paths)
    assert rows("all.jsonl") == sorted(rows("one.jsonl"))
    once = Counter(video for path in paths for video in read_records(Path(f"{path}.videos.jsonl")))
    assert set(once.values()) == {1}
    one, many = (read_records(Path(f"{name}.videos.jsonl")) for name in ("one.jsonl", "all.jsonl"))
    assert {name: (one[name].status, one[name].coverage, one[name].clips) for name in one} == {
        name: (many[name].status, many[name].coverage, many[name].clips) for name in many
    }
    summary, scribe = narrate("v", output="all.jsonl")  # goes on with it: there is nothing left to do
    assert (summary.exit_code, scribe.written) == (0, 0)


@pytest.mark.usefixtures("place")
def test_long_videos_are_divided_by_stretches() -> None:
    paths = shares(4, split_bytes=1, range_seconds=4)
    parts = [read_part(path) for path in paths]
    assert all(len(part.records) == 7 for part in parts)
    assert all(len({start for _, start, _ in rows(path)}) > 1 for path in paths)
    joined(paths)
    assert rows("all.jsonl") == sorted(rows("one.jsonl"))
    found = read_records(Path("all.jsonl.videos.jsonl")).values()
    assert {(one.status, one.coverage) for one in found} == {("done", 1.0)}
    ranges = {(video, start // 4): path for path in paths for video, start, _ in rows(path)}
    assert all(ranges[video, start // 4] == path for path in paths for video, start, _ in rows(path))


@pytest.mark.usefixtures("place")
def test_who_does_what_is_a_matter_of_contents() -> None:
    def division(folder: str) -> dict[bytes, int]:
        found = find_videos([folder])
        content = {job.source.path: Path(job.source.path).read_bytes() for job in found.jobs}
        mine = {number: Shard(number, 2).share(found).jobs for number in (1, 2)}
        return {content[job.source.path]: number for number, jobs in mine.items() for job in jobs}

    before = division("v")
    assert set(before.values()) == {1, 2}
    Path("w/deep").mkdir(parents=True)
    for number in range(7):
        Path(f"v/{number}.mp4").rename(f"w/deep/other {6 - number}.mp4")
    assert division("w") == before


@pytest.mark.usefixtures("place")
def test_a_bad_file_is_one_share_s(capsys: pytest.CaptureFixture[str]) -> None:
    Path("v/bad.mp4").write_bytes(b"no film")
    paths = shares(3)
    told = [name for path in paths for name, one in read_records(Path(f"{path}.videos.jsonl")).items() if one.error]
    assert told == ["v/bad.mp4"]
    joined(paths)
    assert rows("all.jsonl") == sorted(rows("one.jsonl"))
    assert read_records(Path("all.jsonl.videos.jsonl"))["v/bad.mp4"].status == "failed"


@pytest.mark.usefixtures("place")
def test_the_accounts_of_shares_go_along(capsys: pytest.CaptureFixture[str]) -> None:
    def of(*outputs: str) -> dict[str, object]:
        return {**account([known(one) for one in outputs], price=3.6), "outputs": None}

    Path("v/bad.mp4").write_bytes(b"no film")
    paths = shares(2)
    write_video(Path("v/more.mp4"), 40, Fraction(10), start=9000)
    shares(2)  # which go on
    names = [str(path) for path in paths]
    begun = json.loads(Path("s1.jsonl.report.json").read_text())
    begun["runs"][0]["ended"] = "goes on"  # as kill -9 leaves it
    Path("s1.jsonl.report.json").write_text(json.dumps(begun))
    joined(paths)
    whole, apart = of("all.jsonl"), of(*names)
    assert (whole["runs"], whole["unfinished"]) == (3, 1)
    history = [sorted(json.dumps(run) for run in one.pop("history")) for one in (whole, apart)]  # type: ignore[attr-defined]
    assert history[0] == history[1]
    assert whole == apart
    write_video(Path("v/last.mp4"), 40, Fraction(10), start=19000)
    narrate("v", output="all.jsonl")  # a run without shares, which goes on with it
    assert of("all.jsonl")["runs"] == 4
    Path("s2.jsonl.report.json").unlink()
    assert run(["merge", *names, "-o", "some.csv"]) == 0
    assert "; 1 part without an account" in capsys.readouterr().err
    Path("s2.jsonl.report.json").write_text("no account")
    assert run(["merge", *names, "-o", "none.csv"]) == 2
    assert "s2.jsonl.report.json: holds no account of runs; remove it" in capsys.readouterr().err
    assert not list(Path().glob("none.csv*"))


@pytest.mark.usefixtures("place")
def test_what_is_no_whole_is_refused() -> None:
    paths = shares(3)

    def refused(*parts: Path) -> str:
        with pytest.raises(InputError) as told:
            merge([read_part(path) for path in parts], WHOLE)
        assert not Path("all.jsonl").exists()
        return str(told.value)

    assert "share 2 is lacking" in refused(paths[0], paths[2])
    assert "give each once" in refused(*paths, paths[0])
    assert "is no share of anything" in refused(*paths, Path("one.jsonl"))
    marker = marker_of(paths[1].absolute())
    whole = marker.read_text()
    marker.unlink()
    assert "share 2/3 is not through" in refused(*paths)
    marker.write_text(json.dumps({**json.loads(whole), "digest": "of others"}))
    assert "not shares of the same videos" in refused(*paths)
    marker.write_text(whole)
    rowed = paths[1].read_bytes()
    paths[1].write_bytes(rowed[:-5])  # as a copy that was cut off
    assert re.search(r"s2\.jsonl: holds \d+ of the \d+ clips of .* copy it again", refused(*paths))
    paths[1].write_bytes(rowed)
    beside = Path("s2.jsonl.videos.jsonl")
    records = beside.read_bytes()
    beside.write_bytes(records[:-5])
    assert re.search(r"s2\.jsonl\.videos\.jsonl: says nothing of .*, of which there are rows; copy", refused(*paths))
    beside.unlink()
    with pytest.raises(InputError, match=r"^s2\.jsonl: .* s2\.jsonl\.videos\.jsonl did not come along; .* copy all"):
        read_part(paths[1])
    beside.write_bytes(records)
    with pytest.raises(InputError, match=r"^gone\.jsonl: does not exist"):
        read_part(Path("gone.jsonl"))
    narrate("v", output="other.jsonl", shard=Shard(2, 3), clip_seconds=1.0)
    assert "clips 2 s every 2 s, and now it is 1 s every 1 s" in refused(paths[0], Path("other.jsonl"), paths[2])
    narrate("v", output="half.jsonl", shard=Shard(2, 2))
    assert "shares of 2 and of 3" in refused(*paths, Path("half.jsonl"))
    with pytest.raises(InputError, match="is no output of a run"):
        read_part(Path("v/0.mp4"))
    before = paths[0].read_bytes()
    for output in (paths[0], Path("v/../s1.jsonl")):
        with pytest.raises(InputError, match="is one of the parts"):
            merge([read_part(path) for path in paths], Output("jsonl", "file", output), overwrite=True)
    assert paths[0].read_bytes() == before
    joined([paths[0], paths[2]], gaps=True)
    assert set(rows("all.jsonl")) < set(rows("one.jsonl"))
    with pytest.raises(InputError, match="holds rows already"):
        merge([read_part(path) for path in paths], WHOLE)


@pytest.mark.usefixtures("place")
def test_overlaps_are_refused() -> None:
    paths = shares(2, split_bytes=1, range_seconds=4)
    lines = Path(paths[0]).read_bytes().splitlines(keepends=True)
    with paths[1].open("ab") as file:
        file.write(lines[0])
    with pytest.raises(InputError, match=r"both in .*s1\.jsonl and in .*s2\.jsonl"):
        merge([read_part(path) for path in paths], WHOLE)
    assert not Path("all.jsonl").exists()


@pytest.mark.usefixtures("place")
def test_a_share_that_was_broken_off_goes_on_and_says_when_it_is_through() -> None:
    paths = shares(2)
    whole = paths[0].read_bytes()
    paths[0].write_bytes(whole[: len(whole) // 2])
    Path("s1.jsonl.videos.jsonl").unlink()
    narrate("v", output="s1.jsonl", shard=Shard(1, 2), wishes=Wishes())
    assert sorted(paths[0].read_bytes().splitlines()) == sorted(whole.splitlines())
    assert read_part(paths[0]).told is not None


def ids_in_a_table_alone(source: str) -> list[str | None]:
    """Of a table that was converted from another, beside which nothing told of its videos."""
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(["convert", source, "alone/1.parquet"]) == 0
    assert run(["convert", "alone/1.parquet", "alone/2.parquet"]) == 0
    assert parquet.read_table("alone/2.parquet").equals(parquet.read_table("alone/1.parquet"))
    found: list[str | None] = parquet.read_table("alone/2.parquet")["video_id"].to_pylist()
    return found


@pytest.mark.usefixtures("place")
def test_by_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"s{number}.jsonl" for number in (1, 2)]
    for number, path in enumerate(paths, 1):
        assert run(["narrate", "v", "--shard", f"{number}/2", "-o", path, "--threads", "1", "-q"]) == 0
    assert run(["narrate", "v", "--threads", "1", "-q", "-o", "real.jsonl"]) == 0
    assert run(["merge", *paths, "-o", "all.csv", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["clips"] == len(rows("real.jsonl"))
    assert run(["convert", "all.csv", "back.jsonl"]) == 0
    assert rows("back.jsonl") == sorted(rows("real.jsonl"))
    known, real = (videos_of(read_table(Path(name))) for name in ("all.csv", "real.jsonl"))
    assert known.id("v/0.mp4") == real.id("v/0.mp4") is not None
    assert ids_in_a_table_alone("real.jsonl") == [real.id(name) for name, *_ in rows("real.jsonl")]
    for bad in ("0/2", "3/2", "x", "1/", "1/100001"):
        assert run(["narrate", "v", "--shard", bad, "-o", "x.jsonl"]) == 2
    assert "give which of how many" in capsys.readouterr().err
    assert run(["narrate", "v/0.mp4", "--shard", "1/2"]) == 2
    assert "goes to a file of its own" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_vectors_and_labels_in_shares(capsys: pytest.CaptureFixture[str]) -> None:
    Path("labels.txt").write_text("#C C opens the drawer\n#C C waits\n")
    how = ["--threads", "1", "-q"]
    for number in (1, 2):
        share = ["--shard", f"{number}/2", *how]
        beside = ["--embed", f"e{number}.parquet"]
        assert run(["narrate", "v", "-o", f"n{number}.jsonl", *beside, *share]) == 0
        assert run(["classify", "v", "-o", f"l{number}.csv", "--labels", "labels.txt", *share]) == 0
    assert run(["embed", "v", "-o", "e.npz", "--frame-times", *how]) == 0
    assert run(["classify", "v", "-o", "l.csv", "--labels", "labels.txt", *how]) == 0
    assert run(["merge", "e1.parquet", "e2.parquet", "-o", "both.npz"]) == 0
    assert run(["merge", "l1.csv", "l2.csv", "-o", "both.csv"]) == 0
    assert run(["merge", "n1.jsonl", "l2.csv", "-o", "mixed.jsonl"]) == 2
    assert "merge outputs of the same settings" in capsys.readouterr().err
    with np.load("e.npz") as one, np.load("both.npz") as both:
        assert sorted(zip(one["video"], one["start"], one["embedding"].tolist(), strict=True)) == list(
            zip(both["video"], both["start"], both["embedding"].tolist(), strict=True)
        )
    assert sorted(Path("both.csv").read_text().splitlines()) == sorted(Path("l.csv").read_text().splitlines())
