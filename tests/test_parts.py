"""An archive's rows in parts of a size, straight from a run: each row once, whatever was there before."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from scribe import Scribe

from lavila_fast.archive import outputs
from lavila_fast.archive.finished.tables import read_table
from lavila_fast.archive.formats import parquet as tables
from lavila_fast.archive.request import Request
from lavila_fast.archive.work import Narrating
from lavila_fast.bench.soak.films import own_bytes, write_film
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError, StorageError
from lavila_fast.generate.options import Options

SIZE = 500  # bytes of a part, about ten rows of CSV


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", 8, 1).read_bytes()


@pytest.fixture
def films(film: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    for name in "abc":
        Path(f"films/{name}.mp4").write_bytes(own_bytes(film, name))
    return Path("films")


def narrate(format: str = "csv", size: int | None = SIZE, seconds: float = 0.5, **how: Any) -> None:
    request = Request(
        ("films",), Narrating(Options()), output="out/", format=format, clip_seconds=seconds, quiet=True, **how
    )
    found = request.find()
    output = request.choose_output(found)
    model: Any = Scribe()
    request.run(cast("Any", model), "scribe", found, output.in_parts(size) if size else output)


def parts(suffix: str = "csv") -> list[Path]:
    return sorted(Path("out").glob(f"part-*.{suffix}"))


def rows(paths: Sequence[Path]) -> list[tuple[str, float]]:
    return [(row.video, row.start) for path in paths for row in read_table(path).rows()]


def wanted(videos: str = "abc") -> list[tuple[str, float]]:
    return [(f"films/{name}.mp4", 0.5 * i) for name in videos for i in range(16)]


@pytest.mark.usefixtures("films")
def test_every_row_is_in_one_part() -> None:
    narrate()
    assert rows(parts()) == wanted()
    assert [path.name for path in parts()] == [f"part-{i:05}.csv" for i in range(len(parts()))]
    assert len(parts()) > 3
    assert all(SIZE <= path.stat().st_size < SIZE + 100 for path in parts()[:-1])


@pytest.mark.usefixtures("films")
def test_parquet_s_parts_are_read_as_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr(tables, "_GROUP", 8)
    narrate("parquet", 4000)
    assert len(parts("parquet")) > 1
    whole = table.read_table([str(path) for path in parts("parquet")])
    assert list(zip(whole["video"].to_pylist(), whole["start"].to_pylist(), strict=True)) == wanted()
    identity = json.loads(Path("out/narrations.journal.run.json").read_text())
    for path in parts("parquet"):
        told = table.ParquetFile(path)
        assert json.loads(told.schema_arrow.metadata[b"lavila_fast"]) == identity
        assert told.metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.usefixtures("films")
def test_duckdb_and_pandas_read_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    duckdb, pandas = pytest.importorskip("duckdb"), pytest.importorskip("pandas")
    monkeypatch.setattr(tables, "_GROUP", 8)
    narrate("parquet", 4000)
    told = duckdb.sql("SELECT video, start FROM 'out/*.parquet' ORDER BY video, start").fetchall()
    assert told == wanted()
    frame = pandas.concat(map(pandas.read_parquet, parts("parquet")))  # not the folder: the journal lies there, too
    assert list(zip(frame["video"], frame["start"], strict=True)) == wanted()


@pytest.mark.usefixtures("films")
def test_a_later_run_leaves_whole_parts_as_they_are(film: bytes) -> None:
    narrate()
    before = {path.name: path.read_bytes() for path in parts()}
    Path("films/d.mp4").write_bytes(own_bytes(film, "d"))
    narrate()
    assert rows(parts()) == wanted("abcd")
    assert all((Path("out") / name).read_bytes() == before[name] for name in sorted(before)[:-1])
    narrate(size=10 * SIZE)
    assert rows(parts()) == wanted("abcd")  # and none of those that there were more before
    narrate(overwrite=True, seconds=4.0)
    assert rows(parts()) == [(f"films/{name}.mp4", 4.0 * i) for name in "abcd" for i in range(2)]


@pytest.mark.usefixtures("films")
def test_a_run_that_breaks_between_parts_leaves_no_row_twice(film: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor rows of before among those of now, though all of them have moved."""
    narrate()
    Path("films/a.mp4").write_bytes(own_bytes(film, "another a"))
    write, seen = outputs.write_part, set()
    for broken in itertools.count():
        calls = itertools.count()

        def breaks(*given: Any, calls: Iterator[int] = calls, broken: int = broken) -> None:
            if next(calls) == broken:
                raise StorageError("out: cannot be written (no space left on device); make room")
            write(*given)

        monkeypatch.setattr(outputs, "write_part", breaks)
        try:
            narrate()
        except StorageError:
            there = rows(parts())
            assert len(there) == len(set(there))
            texts = {row.text[:8] for path in parts() for row in read_table(path).rows() if "a.mp4" in row.video}  # type: ignore[union-attr]
            assert len(texts) <= 1
            seen.add(len(there))
        else:
            break
    assert len(seen) > 2
    assert sorted(rows(parts())) == sorted(wanted())


@pytest.mark.usefixtures("films")
def test_what_lies_there_otherwise_is_refused() -> None:
    Path("out").mkdir()
    Path("out/part-00003.csv").write_text("mine")
    with pytest.raises(InputError, match=r"part-00003.csv: exists, and was not written by this command"):
        narrate()
    assert Path("out/part-00003.csv").read_text() == "mine"
    Path("out/part-00003.csv").unlink()
    narrate()
    with pytest.raises(InputError, match=r"holds parts already, such as part-00000.csv; give --part-mb"):
        narrate(size=None)
    for path in parts():
        path.unlink()
    narrate(size=None)
    with pytest.raises(InputError, match=r"holds a file a video already, such as a.csv; leave --part-mb out"):
        narrate()
    narrate("srt", None)  # of others nobody takes parts for rows


@pytest.mark.usefixtures("films")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["-o", "n.parquet"], "--part-mb: parts go into a folder; give a name that ends with a /, not n.parquet"),
        (["-o", "out/", "--format", "srt"], "--part-mb: srt has no parts; give --format jsonl or csv or parquet"),
        (["-o", "o/", "--format", "csv", "--embed", "o/"], "--embed o/: parts of two kinds in one folder"),
    ],
)
def test_what_makes_no_sense_is_a_line(words: list[str], told: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate", "films", "-q", "--part-mb", "1", *words]) == 2
    assert capfd.readouterr().err.startswith(f"error: {told}")


@pytest.mark.usefixtures("films")
def test_on_the_command_line_with_embeddings_and_shares() -> None:
    table = pytest.importorskip("pyarrow.parquet")
    how = ["-q", "--format", "parquet", "--part-mb", "1", "--threads", "1"]
    for share in "12":
        words = ["-o", f"s{share}/", "--shard", f"{share}/2", *how]
        assert run(["narrate", "films", *words, "--embed", f"e{share}/"]) == 0
    assert run(["merge", "s1", "s2", "-o", "all/", "--format", "parquet", "--part-mb", "1"]) == 0
    assert run(["merge", "e1", "e2", "-o", "vectors/", "--part-mb", "1"]) == 0
    for folder in ("all", "vectors"):
        assert [path.name for path in Path(folder).glob("*.parquet")] == ["part-00000.parquet"]
        whole = table.read_table(f"{folder}/part-00000.parquet")
        told = list(zip(whole["video"].to_pylist(), whole["start"].to_pylist(), strict=True))
        assert told == [(f"films/{name}.mp4", 2.0 * i) for name in "abc" for i in range(4)]


def test_formats_that_are_made_at_once_have_no_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"video": "a.mp4", "start": 0.0, "end": 1.0, "sample": 0, "text": "x", "perplexity": 1.0, "logprob": -1.0}
    (tmp_path / "n.jsonl").write_text(json.dumps(row) + "\n")
    words = [str(tmp_path / "n.jsonl"), str(tmp_path / "out/"), "--part-mb", "1"]
    assert run(["convert", *words, "--format", "pkl"]) == 2
    assert "--part-mb: pkl has no parts" in capsys.readouterr().err
    assert run(["convert", *words, "--format", "parquet"]) == 0


def test_an_output_says_where_its_parts_go() -> None:
    folder = outputs.Output("csv", "folder", Path("x"))
    assert folder.in_parts(5) == replace(folder, part_bytes=5)
