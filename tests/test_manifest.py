"""Manifests: which videos a table names, which stretches of them, and what is said of rows that make no sense."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from scribe import narrate, rows
from test_video_coded import write_video

from lavila_fast.archive.journals.videos import read_records
from lavila_fast.archive.sources import manifest as module
from lavila_fast.archive.sources.inputs import FoundInputs
from lavila_fast.archive.sources.manifest import find_manifest
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        write_video(folder / f"{number}.mp4", 40, Fraction(2), start=1000 * number)  # 20 seconds
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def table(text: str, name: str = "m.csv") -> str:
    Path(name).write_text(text, "utf-8")
    return name


def told(found: FoundInputs) -> list[tuple[str, str, tuple[tuple[float, float], ...]]]:
    return [(job.source.name, job.source.path.name, job.ranges) for job in found.jobs]


def test_names_ids_and_stretches_of_all_kinds_of_tables(films: Path) -> None:
    wanted = [("0.mp4", "0.mp4", ()), ("garden", "1.mp4", ((2.0, 6.5), (10.0, 14.0))), ("2", "2.mp4", ((3.0, 1e12),))]
    csv = table("Video,ID,Start,end,note\n0.mp4,,,,x\n1.mp4,garden,10,0:00:14,\n1.mp4,garden,2,6.5\n2,,3,\n")
    assert told(find_manifest([str(films)], csv)) == wanted
    lines = [
        {"video": "0.mp4"},
        {"video": "1.mp4", "id": "garden", "start": 2, "end": 6.5},
        {"video": "1.mp4", "id": "garden", "start": "10", "end": 14.0},
        {"video": "2", "start": 3, "end": None},
    ]
    jsonl = table("\n".join(map(json.dumps, lines)), "m.jsonl")
    assert told(find_manifest([str(films)], jsonl)) == wanted
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {name: [line.get(name) for line in lines] for name in ("video", "id", "end")}
    columns["start"] = [None, 2.0, 10.0, 3.0]
    pq.write_table(pa.table({**columns, "note": ["a"] * 4}), "m.parquet")
    assert told(find_manifest([str(films)], "m.parquet")) == wanted


def test_each_bad_row_is_a_line_with_its_number_and_the_others_go_on(films: Path) -> None:
    bad = [
        "1.mp4,,nan,5",
        "1.mp4,,-1,5",
        "1.mp4,,5,5",
        "1.mp4,,7,5",
        "1.mp4,,soon,5",
        ",x,1,2",
        "../0.mp4,,,",
        "/etc/passwd,,,",
        "s3://other/0.mp4,,,",
        "gone.mp4,,,",
        "0.mp4,again,,",
        "0.mp4,,,",
        "2.mp4,kitchen,,",
        "1.mp4,,1,5",
        "1.mp4,,,",
        "1.mp4,,1,5,6,7",
    ]
    csv = table("video,id,start,end\n0.mp4,,,\n2.mp4,kitchen,1,5\n1.mp4,,1,5\n" + "\n".join(bad) + "\n1.mp4,,8,9\n")
    found = find_manifest([str(films)], csv)
    assert told(found) == [
        ("0.mp4", "0.mp4", ()),
        ("kitchen", "2.mp4", ((1.0, 5.0),)),
        ("1.mp4", "1.mp4", ((1.0, 5.0), (8.0, 9.0))),
    ]
    numbers = [int(line.partition("line ")[2].partition(":")[0]) for line in found.failed]
    assert sorted(numbers) == list(range(5, 5 + len(bad)))
    assert all("\n" not in line and "; " in line and line.startswith("m.csv, line ") for line in found.failed)
    said = "\n".join(found.failed)
    for part in ("is the file of 0.mp4", "0.mp4 is in line 2 already", "leads out of", "does not exist", "soon and 5"):
        assert part in said
    assert "gone.mp4" in found.missing


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("film,start\na.mp4,1\n", "m.csv", "no column 'video' among film, start"),
        ("", "m.csv", "empty"),
        ("video\n", "m.csv", "names no videos"),
        ("video\nnothing.mp4\n", "m.csv", "does not exist"),
        ("{}\n", "m.jsonl", "line 1: the video's name is missing"),
        ("[1]\n", "m.jsonl", "line 1: not an object"),
        ("x", "m.parquet", "not a Parquet file"),
        ("x", "m.xlsx", "a manifest is a .csv, .jsonl or .parquet"),
        ('video\n"a\n', "m.csv", "not CSV"),
    ],
)
def test_tables_that_are_none(text: str, name: str, said: str, films: Path) -> None:
    with pytest.raises(InputError, match=said):
        find_manifest([str(films)], table(text, name))


def test_a_table_without_videos_is_not_called_damaged(films: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"film": ["0.mp4"]}), "other.parquet")
    with pytest.raises(InputError, match=r"^other\.parquet: no column 'video' among film; name one so$"):
        find_manifest([str(films)], "other.parquet")


def test_without_input_names_are_paths_or_beside_the_table(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (films / "here.csv").write_text(f"video\n0.mp4\n{films / '1.mp4'}\n{(films / '2.mp4').as_uri()}\n../x.mp4\n")
    found = find_manifest([], str(films / "here.csv"))
    assert [job.source.path for job in found.jobs] == [films / f"{number}.mp4" for number in range(3)]
    assert "line 5" in found.failed[0]
    monkeypatch.setattr(module, "MOST_ROWS", 2)
    with pytest.raises(InputError, match="more than 2 rows"):
        find_manifest([], str(films / "here.csv"))
    with pytest.raises(InputError, match="one INPUT"):
        find_manifest(["a", "b"], str(films / "here.csv"))
    with pytest.raises(InputError, match="folder"):
        find_manifest([str(films / "0.mp4")], str(films / "here.csv"))


def test_windows_begin_where_a_stretch_does_and_stay_in_it(films: Path) -> None:
    csv = table("video,id,start,end\n0.mp4,a,3.5,9\n1.mp4,,15,\n2.mp4,,,\n0.mp4,a,5.5,7.5\n")
    summary, scribe = narrate(films, output="out.jsonl", manifest=csv)
    assert (summary.exit_code, scribe.written) == (0, 3 + 3 + 10)
    starts: dict[str, list[float]] = {}
    for video, start, _ in rows("out.jsonl"):
        starts.setdefault(video, []).append(start)
    assert starts["a"] == [3.5, 5.5, 7.5]  # the second stretch is a window of the first
    assert starts["1.mp4"] == [15.0, 17.0, 19.0]
    assert len(starts["2.mp4"]) == 10
    record = read_records(Path("out.jsonl.videos.jsonl"))["a"]
    assert (record.status, record.clips) == ("done", 3)
    whole = {text.partition(" ")[0] for _, _, text in rows("out.jsonl")}
    assert len(whole) == 3  # contents

    again, scribe = narrate(films, output="out.jsonl", manifest=csv)
    assert (again.exit_code, scribe.written, again.done_before) == (0, 0, 16)
    more = table("video,id,start,end\n0.mp4,a,3.5,9\n0.mp4,a,12,16\n1.mp4,,30,40\n", "more.csv")
    summary, scribe = narrate(films, output="out.jsonl", manifest=more)
    assert scribe.written == 2
    (failed,) = summary.failed
    assert "ends at 20.0 s, before its stretch at 30 s begins" in failed
    with pytest.raises(InputError, match="in stretches of a manifest"):
        narrate(films, output="out.jsonl")  # whole videos are another run


def test_the_command_line(films: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate"]) == 2
    assert "Missing argument 'INPUT...'" in capfd.readouterr().err
    csv = table("video,start,end\n0.mp4,0,4\n9.mp4,,\n")
    assert run(["narrate", "--manifest", csv, "--clips", csv, str(films)]) == 2
    assert run(["narrate", str(films), "--manifest", csv, "-o", "out.jsonl", "--temperature", "0", "--no-isolate"]) == 1
    assert "m.csv, line 3" in capfd.readouterr().err
    assert [start for _, start, _ in rows("out.jsonl")] == [0.0, 2.0]
    assert run(["plan", str(films), "--manifest", csv, "--json", "--seconds", "0.1"]) == 1
    plan = json.loads(capfd.readouterr().out)
    assert (plan["videos"], plan["windows"], round(plan["hours"] * 3600)) == (2, 2, 4)
