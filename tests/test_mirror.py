"""Outputs in object storage: whole objects only, resumed anywhere, and nothing lost where they cannot be written."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")

import s3_here
from s3_here import BUCKET, Proxy, client, objects
from scribe import narrate, rows
from test_video_coded import write_video

from lavila_fast.archive.finished.segments import Rules
from lavila_fast.archive.mirror import Mirror
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError, StorageError
from lavila_fast.remote import stores

OUT = f"s3://{BUCKET}/rows/out.jsonl"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(3):
        write_video(folder / f"{number}.mp4", 20, Fraction(2), start=1000 * number)
    return folder


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with s3_here.server() as port:
        one = Proxy(port)
        client(one.url).create_bucket(Bucket=BUCKET)
        yield one


@pytest.fixture(autouse=True)
def fresh(proxy: Proxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    s3_here.begin_anew(proxy, monkeypatch)
    monkeypatch.chdir(tmp_path)
    s3_here.restore(proxy.url, {})


def on_machine(name: str, *inputs: Path, out: str = OUT, overwrite: bool = False, **how: Any) -> tuple[int, int]:
    """A run there: clips that were done before, and clips written."""
    with Mirror(out, Path(name), overwrite=overwrite) as mirror:
        summary, scribe = narrate(*inputs, output=mirror.local, overwrite=overwrite, **how)
    assert summary.exit_code == 0
    return summary.done_before, scribe.written


def test_another_machine_goes_on_with_what_is_there(films: Path, proxy: Proxy) -> None:
    narrate(films, output="here.jsonl", merge=Rules())
    assert on_machine("a", films / "0.mp4", merge=Rules()) == (0, 5)
    there = objects(proxy.url)
    ends = ("", ".run.json", ".videos.jsonl", ".report.json", ".segments.jsonl", ".files.jsonl")
    assert {f"rows/out.jsonl{end}" for end in ends[:5]} <= there.keys() <= {f"rows/out.jsonl{end}" for end in ends}
    assert on_machine("b", films, merge=Rules()) == (5, 10)
    for end in ("", ".segments.jsonl"):
        assert objects(proxy.url)[f"rows/out.jsonl{end}"] == Path(f"here.jsonl{end}").read_bytes()
    account = json.loads(objects(proxy.url)["rows/out.jsonl.report.json"])
    assert [one["clips"] for one in account["runs"]] == [5, 10]
    assert on_machine("a", films) == (15, 0)  # which had but the first film
    proxy.asked.clear()
    assert on_machine("b", films) == (15, 0)
    assert [one for one in proxy.asked if one[0] != "HEAD" and "jsonl" in one[1]] == []
    assert on_machine("b", films, overwrite=True) == (0, 15)
    assert objects(proxy.url)["rows/out.jsonl"] == Path("here.jsonl").read_bytes()


def fill(work: str, texts: dict[str, str], overwrite: bool = False) -> None:
    """What a run does that leaves just these files in a folder."""
    with Mirror(f"s3://{BUCKET}/rows/", Path(work), overwrite=overwrite) as mirror:
        folder = Path(mirror.local)
        for path in folder.glob("part-*"):
            path.unlink()
        for name, text in texts.items():
            (folder / name).write_text(text)


@pytest.mark.parametrize(("machine", "overwrite"), [("a", False), ("b", False), ("a", True), ("b", True)])
def test_parts_that_a_run_has_fewer_of_go_there_too(machine: str, overwrite: bool, proxy: Proxy) -> None:
    """The last one's rows stand in others now; what is not a part is somebody else's."""
    fill("a", {f"part-0000{number}.jsonl": f"{number}\n" for number in range(3)})
    client(proxy.url).put_object(Bucket=BUCKET, Key="rows/theirs.txt", Body=b"theirs")
    fill(machine, {f"part-0000{number}.jsonl": f"new {number}\n" for number in range(2)}, overwrite)
    assert objects(proxy.url) == {
        "rows/part-00000.jsonl": b"new 0\n",
        "rows/part-00001.jsonl": b"new 1\n",
        "rows/theirs.txt": b"theirs",
    }


def test_files_that_somebody_tidied_away_here_are_fetched_and_not_removed_there(films: Path, proxy: Proxy) -> None:
    assert on_machine("a", films) == (0, 15)
    there = objects(proxy.url)
    for path in next(Path("a").glob("out.jsonl~*")).glob("out.jsonl*"):
        path.unlink()
    assert on_machine("a", films) == (15, 0)
    assert objects(proxy.url)["rows/out.jsonl"] == there["rows/out.jsonl"]
    assert objects(proxy.url).keys() == there.keys()


def test_what_somebody_removed_there_is_put_again(films: Path, proxy: Proxy) -> None:
    assert on_machine("a", films) == (0, 15)
    before = objects(proxy.url)
    for gone in ("rows/out.jsonl", "rows/out.jsonl.run.json"):
        client(proxy.url).delete_object(Bucket=BUCKET, Key=gone)
        assert on_machine("a", films) == (15, 0)
        assert objects(proxy.url)[gone] == before[gone]
    s3_here.restore(proxy.url, {})
    assert on_machine("a", films) == (15, 0)
    assert objects(proxy.url).keys() == before.keys()


@pytest.mark.parametrize("status", [403, 507, 400])
def test_what_cannot_be_written_there_is_kept_here(status: int, films: Path, proxy: Proxy) -> None:
    proxy.faults.read_only = status
    said = "forbidden \\(403\\); check" if status == 403 else "no room is left there .*; make room"
    with pytest.raises(
        StorageError, match=rf"^s3://films/rows/out.jsonl.run.json: cannot be written: {said}"
    ) as caught:
        on_machine("a", films)
    assert "\n" not in str(caught.value)
    kept = next(Path("a").glob("out.jsonl~*"))
    assert f"the rows are in {kept}" in str(caught.value)
    assert len(rows(kept / "out.jsonl")) == 15
    assert objects(proxy.url) == {}
    proxy.faults.read_only = 0
    assert on_machine("a", films) == (15, 0)
    assert objects(proxy.url)["rows/out.jsonl"] == (kept / "out.jsonl").read_bytes()


def test_rows_of_two_machines_never_overwrite_each_other(films: Path, proxy: Proxy) -> None:
    with Mirror(OUT, Path("a")) as first:
        narrate(films / "0.mp4", output=first.local)
        first.upload()
        on_machine("b", films / "1.mp4")
        narrate(films / "2.mp4", output=first.local)
        with pytest.raises(StorageError, match="another run has written it; give each run an output of its own"):
            first.upload()
        with pytest.raises(StorageError):
            first.__exit__(None, None, None)
        there = objects(proxy.url)["rows/out.jsonl"]
        assert {Path(json.loads(line)["video"]).name for line in there.splitlines()} == {"0.mp4", "1.mp4"}
        with pytest.raises(
            InputError, match="another run has written it since this machine did, whose own rows are in"
        ):
            Mirror(OUT, Path("a")).__enter__()
        first.upload = lambda: None  # type: ignore[method-assign]  # all is said


def test_a_copy_that_a_kill_left_unnoted_is_known(films: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = Mirror(OUT, Path("a"))
    with mirror:
        narrate(films / "0.mp4", output=mirror.local)
        mirror.upload()
    narrate(films, output=mirror.local)  # and is killed:
    put, states = mirror._store.put, []

    def put_and_die(path: Path, url: str) -> stores.Seen:
        states.append(put(path, url))
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(mirror._store, "put", put_and_die)
        with pytest.raises(KeyboardInterrupt):
            mirror.upload()
    assert states
    assert on_machine("a", films) == (15, 0)
    assert len(objects(proxy.url)["rows/out.jsonl"].splitlines()) == 15


def test_other_formats_and_folders(films: Path, proxy: Proxy, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--temperature", "0", "--no-isolate", "--work", "w"]
    out = f"s3://{BUCKET}/subs/"
    assert run(["narrate", str(films / "0.mp4"), "-o", out, "--format", "srt", *words]) == 0
    told = capfd.readouterr().err
    assert f"{out}: made in w/subs~" in told
    assert f"done: 1 video, 5 clips, 0 failed: {out}" in told
    assert run(["narrate", str(films / "0.mp4"), "-o", "here/", "--format", "srt", *words]) == 0
    assert objects(proxy.url)["subs/0.srt"] == Path("here/0.srt").read_bytes()
    pytest.importorskip("pyarrow")
    import io

    import pyarrow.parquet as pq

    table = f"s3://{BUCKET}/t/rows.parquet"
    assert run(["narrate", str(films / "0.mp4"), "-o", table, "--json", *words]) == 0
    assert json.loads(capfd.readouterr().out)["output"] == table
    read = pq.read_table(io.BytesIO(objects(proxy.url)["t/rows.parquet"]))
    assert read.num_rows == 5
    assert "t/rows.parquet.journal" in objects(proxy.url)


def test_what_makes_no_sense_is_one_line(proxy: Proxy, capfd: pytest.CaptureFixture[str]) -> None:
    for words, said in (
        (["narrate", "x.mp4", "-o", "https://host/out.jsonl"], "nothing is written to web servers"),
        (["narrate", "x.mp4", "-o", "ftp://host/out.jsonl"], "nothing is read from ftp://"),
        (["index", "x.mp4", "-o", f"s3://{BUCKET}/index"], "an index is a folder here"),
        (["narrate", "x.mp4", "-o", f"s3://{BUCKET}"], f"s3://{BUCKET}: give a file, such as s3://{BUCKET}/narrations"),
        (["narrate", "x.mp4", "-o", "s3://"], "s3://: names no file"),
        (["narrate", "x.mp4", "-o", "s3://no-such-bucket/out.jsonl"], "x.mp4"),
    ):
        assert run(words) in (1, 2)
        err = capfd.readouterr().err
        assert said in err
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) >= 1
    proxy.faults.forbid = True
    assert run(["narrate", "--manifest", f"s3://{BUCKET}/m.csv", "-o", "m.jsonl"]) == 2
    assert f"error: s3://{BUCKET}/m.csv: forbidden (403); check the credentials" in capfd.readouterr().err
    assert run(["narrate", "x.mp4", "-o", OUT]) == 2
    assert f"error: {OUT}: forbidden (403); check the credentials" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_killed_run_goes_on_on_another_machine(films: Path, proxy: Proxy, tmp_path: Path) -> None:
    film = write_video(tmp_path / "long.mp4", 480, Fraction(2))
    settings = ["--temperature", "0.7", "--threads", "1", "--stride-seconds", "0.05"]  # 4,761 windows: many seconds
    s3_here.upload(proxy.url, "in/long.mp4", film)
    url = f"s3://{BUCKET}/in/long.mp4"

    def command(work: str) -> list[str]:
        out = ["-o", OUT, "--work", work, "--upload-minutes", "0.02"]
        return [sys.executable, "-m", "lavila_fast", "narrate", url, *out, *settings]

    def rows_there() -> int:
        return len(objects(proxy.url).get("rows/out.jsonl", b"").splitlines())

    environment = s3_here.environment(proxy.url, OMP_NUM_THREADS="1")
    for machine in ("a", "b"):
        before = rows_there()
        process = subprocess.Popen(command(machine), env=environment, stderr=subprocess.DEVNULL)

        def kill(method: str, path: str, before: int = before, process: Any = process) -> None:
            """While rows are being put for the second time."""
            if (method, path) == ("PUT", f"/{BUCKET}/rows/out.jsonl") and rows_there() > before:
                proxy.faults.before = None
                process.send_signal(signal.SIGKILL)

        proxy.faults.before = kill
        assert process.wait(600) == -signal.SIGKILL
    done = subprocess.run(command("c"), env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    before = int(done.stderr.partition("clips (")[2].partition(" done before")[0])
    assert before >= 2
    assert run(["narrate", str(film), "-o", "here.jsonl", *settings]) == 0
    there = [json.loads(line) for line in objects(proxy.url)["rows/out.jsonl"].splitlines()]
    here = [json.loads(line) for line in Path("here.jsonl").read_text("utf-8").splitlines()]
    assert len(there) == 4761
    assert [{**one, "video": ""} for one in there] == [{**one, "video": ""} for one in here]
