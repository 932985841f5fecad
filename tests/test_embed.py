"""`lavila-fast embed`: the vectors of the dual encoder in files, whole after whatever happens."""

from __future__ import annotations

import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import watched
from test_records import cut

from lavila_fast import DualEncoder
from lavila_fast.archive.beside import require_same_frames
from lavila_fast.archive.formats.embeddings import EmbeddingJournal, EmbeddingLines
from lavila_fast.archive.journals.kinds import features
from lavila_fast.archive.journals.videos import read_records
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError
from lavila_fast.records import ClipEmbedding

KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"
Embed = Callable[..., int]


@pytest.fixture
def embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embed:
    monkeypatch.chdir(tmp_path)
    shutil.copy(KITCHEN, "film.mp4")
    return lambda *words: run(["embed", "--threads", "1", "--no-isolate", *map(str, words)])


@pytest.fixture(scope="module")
def by_hand() -> list[ClipEmbedding]:
    """What the dual encoder gives without any of this."""
    return list(DualEncoder.from_pretrained("nano", threads=1).embed_video(KITCHEN, frame_times=True))


def halves(rows: list[ClipEmbedding]) -> np.ndarray:
    return np.stack([row.embedding for row in rows]).astype(np.float16)


def table(path: str) -> Any:
    return pytest.importorskip("pyarrow.parquet").read_table(path)


def parquet(path: str) -> np.ndarray:
    column = table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def test_parquet_holds_what_the_dual_encoder_gives(embed: Embed, by_hand: list[ClipEmbedding]) -> None:
    found = table("f.parquet") if embed("film.mp4", "-o", "f.parquet") == 0 else None
    assert found is not None
    assert str(found.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[128]"
    np.testing.assert_array_equal(parquet("f.parquet"), halves(by_hand))
    assert found["video"].to_pylist() == ["film.mp4"] * len(by_hand)
    assert found["start"].to_pylist() == [row.start for row in by_hand]
    assert found["end"].to_pylist() == [row.end for row in by_hand]
    assert found["frames"].to_pylist() == [list(row.frames or ()) for row in by_hand]
    told = json.loads(found.schema.metadata[b"lavila_fast"])
    assert told["model"].startswith("nano (")
    assert (told["task"], told["dim"], told["clips"]) == ("embed", 128, "2 s every 2 s")


def test_other_formats_hold_the_same_without_pyarrow(
    embed: Embed, by_hand: list[ClipEmbedding], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert embed("film.mp4", "-o", "f.npz", "-q") == 0
    assert embed("film.mp4", "-o", "f.jsonl", "-q") == 0
    with np.load("f.npz") as arrays:
        np.testing.assert_array_equal(arrays["embedding"], halves(by_hand))
        assert arrays["embedding"].dtype == np.float16
        assert arrays["frames"].tolist() == [list(row.frames or ()) for row in by_hand]
        assert json.loads(str(arrays["lavila_fast"]))["dim"] == 128
    rows = [json.loads(line) for line in Path("f.jsonl").read_text("utf-8").splitlines()]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float16), halves(by_hand))
    assert embed("film.mp4", "-o", "f.parquet") == 2
    assert "pip install 'lavila-fast[parquet]'" in capsys.readouterr().err


# --- going on -------------------------------------------------------------------------------------------------------

MANY = ("film.mp4", "--stride-seconds", "0.2", "-q")
WINDOWS = 111


def command(*words: object) -> list[str]:
    start = [sys.executable, "-m", "lavila_fast", "embed", "--threads", "1"]
    return [str(word) for word in (*start, *words)]


def lines(path: str) -> int:
    return Path(path).read_bytes().count(b"\n") if Path(path).exists() else 0


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is no signal there")
@pytest.mark.parametrize("name", ["f.parquet", pytest.param("f.jsonl", marks=pytest.mark.slow)])
def test_killed_and_resumed_equals_unbroken(embed: Embed, name: str) -> None:
    pytest.importorskip("pyarrow")
    journal = name if name == "f.jsonl" else f"{name}.journal"
    process = watched.start(command(*MANY, "-o", name))
    deadline = time.monotonic() + 120
    while lines(journal) < 8 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = lines(journal)
    assert 8 <= before < WINDOWS
    assert name == "f.jsonl" or not Path(name).exists()  # whole or not at all
    with Path(journal).open("ab") as file:  # as a crash within a write leaves it
        file.write(b'{"video": "film.mp4", "start": 20.0, "end": 22.0, "frames": [20.')
    assert embed(*MANY, "-o", name) == 0
    assert Path(journal).read_bytes().count(b"\n") == WINDOWS
    Path("unbroken").mkdir()
    assert embed(*MANY, "-o", f"unbroken/{name}") == 0
    assert Path(name).read_bytes() == Path("unbroken", name).read_bytes()


def test_rows_that_are_none_are_made_again(embed: Embed, by_hand: list[ClipEmbedding]) -> None:
    assert embed("film.mp4", "-o", "f.npz", "-q") == 0
    whole = Path("f.npz").read_bytes()
    kept = Path("f.npz.journal").read_bytes().splitlines(keepends=True)
    row = json.loads(kept[3])
    short = json.dumps(row | {"embedding": row["embedding"][:8]}).encode() + b"\n"
    kept[3:6] = [short, b"[1, 2]\n", b'{"video": 3}\n']
    Path("f.npz.journal").write_bytes(b"".join(kept))
    assert embed("film.mp4", "-o", "f.npz", "-q") == 0
    assert Path("f.npz").read_bytes() == whole


def test_features_of_another_model_stay_alone(embed: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    assert embed("film.mp4", "-o", "f.npz", "-q") == 0
    whole = Path("f.npz").read_bytes()
    capsys.readouterr()
    for change, told in (
        (["--engine", "onnxruntime"], "was begun with model nano ("),
        (["--clip-seconds", "4"], "was begun with clips 2 s every 2 s, and now it is 4 s every 4 s"),
    ):
        assert embed("film.mp4", "-o", "f.npz", "-q", *change) == 2
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1
    Path("labels.txt").write_text("opens\ncloses\n")
    words = ["--labels", "labels.txt", "--format", "csv", "--no-isolate", "-q"]
    assert run(["classify", "film.mp4", "-o", "f.npz", *words]) == 2
    assert "was begun with task embed, and now it is classify" in capsys.readouterr().err
    assert Path("f.npz").read_bytes() == whole


def test_a_folder_gets_a_file_a_video(embed: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.mp4").write_bytes(b"no film")
    Path("films").mkdir()
    Path("film.mp4").rename("films/one.mp4")
    shutil.copy("films/one.mp4", "films/two.mp4")
    assert embed("films", "bad.mp4", "-o", "out/", "--format", "npz", "--json") == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["copied"]) == (12, 12)
    assert [line.partition(":")[0] for line in told["failed"]] == ["bad.mp4"]
    assert sorted(path.name for path in Path("out").glob("*.npz")) == ["one.npz", "two.npz"]
    with np.load("out/two.npz") as arrays:
        assert set(arrays["video"].tolist()) == {"films/two.mp4"}
    assert run(["status", "out"]) == 1
    assert "not a video that can be opened" in capsys.readouterr().out


def test_what_cannot_be_written(embed: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in (
        (["-o", "film.mp4/f.npz"], "cannot be written"),
        (["-o", "f.csv"], "say --format, or name it .parquet, .npz, .jsonl"),
        (["-o", "-", "--format", "npz"], "cannot be printed"),
    ):
        assert embed("film.mp4", "-q", *words) in (1, 2)
        error = capsys.readouterr().err
        assert told in error
        assert error.count("\n") == 1


def test_half_precision_survives_both_spellings() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    every = halves[np.isfinite(halves)].astype(np.float32)
    row = ClipEmbedding("a.mp4", 0.0, 2.0, every, True, (0.5, 1.0))
    for writer in (EmbeddingLines(), EmbeddingJournal()):
        read = features().parse(writer.clip([row]))
        assert read is not None
        np.testing.assert_array_equal(read.embedding, every)
        assert (read.video, read.start, read.end, read.damaged, read.frames) == ("a.mp4", 0.0, 2.0, True, (0.5, 1.0))
    for bad in ("*", "AAAA", [[1.0]], [float("nan")], {"0": 1}, None):
        line = json.dumps({"video": "a", "start": 0, "end": 1, "embedding": bad}).encode()
        assert features().parse(line) is None
    assert features(2).parse(b'{"video": "a", "start": 0, "end": 1, "embedding": [1.0]}') is None


# --- beside narrations ----------------------------------------------------------------------------------------------


@pytest.fixture
def narrate(embed: Embed) -> Embed:
    return lambda *words: run(["narrate", "film.mp4", "--threads", "1", *map(str, words)])


def test_one_pass_gives_both(narrate: Embed, embed: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate("-o", "both.jsonl", "--embed", "both.npz", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["features"]["clips"], told["features"]["frames_decoded"]) == (12, 12, 0)
    assert narrate("-o", "alone.jsonl", "-q") == 0
    assert embed("film.mp4", "-o", "alone.npz", "-q") == 0
    assert Path("both.jsonl").read_bytes() == Path("alone.jsonl").read_bytes()
    assert Path("both.npz").read_bytes() == Path("alone.npz").read_bytes()
    assert embed("film.mp4", "-o", "both.npz", "--json") == 0  # it is an output of `embed` like any other
    assert json.loads(capsys.readouterr().out)["done_before"] == 12


def test_what_was_narrated_before_is_embedded_too(narrate: Embed, embed: Embed) -> None:
    assert narrate("-o", "n.jsonl", "-q") == 0
    whole = Path("n.jsonl").read_bytes()
    cut = whole.splitlines(keepends=True)
    Path("n.jsonl").write_bytes(b"".join(cut[:5]))
    assert narrate("-o", "n.jsonl", "--embed", "f.npz", "-q") == 0
    assert embed("film.mp4", "-o", "alone.npz", "-q") == 0
    assert Path("n.jsonl").read_bytes() == whole
    assert Path("f.npz").read_bytes() == Path("alone.npz").read_bytes()
    Path("n.jsonl").write_bytes(b"".join(cut[:7]))  # as a crash may leave the two
    Path("f.npz").unlink()
    kept = Path("f.npz.journal").read_bytes().splitlines(keepends=True)
    Path("f.npz.journal").write_bytes(b"".join(kept[:9]) + kept[9][:40])
    assert narrate("-o", "n.jsonl", "--embed", "f.npz", "-q") == 0
    assert Path("n.jsonl").read_bytes() == whole
    assert Path("f.npz").read_bytes() == Path("alone.npz").read_bytes()


def test_a_video_that_fails_is_told_once(embed: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.mp4").write_bytes(b"no film")
    assert run(["narrate", "film.mp4", "bad.mp4", "-o", "n.jsonl", "--embed", "f.npz"]) == 1
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert run(["status", "f.npz"]) == 1


def test_substitutes_are_counted_as_by_embed_alone(embed: Embed) -> None:
    cut(Path("cut.mp4"))
    assert run(["narrate", "cut.mp4", "-o", "n.jsonl", "--embed", "f.npz", "-q"]) == 1
    assert embed("cut.mp4", "-o", "alone.npz", "-q") == 1
    assert Path("f.npz").read_bytes() == Path("alone.npz").read_bytes()
    records = [read_records(Path(f"{name}.videos.jsonl"))["cut.mp4"] for name in ("f.npz", "alone.npz", "n.jsonl")]
    assert [(one.status, one.damaged, one.clips) for one in records] == [("partial", 1, records[1].clips)] * 3


def test_no_file_of_anybody_is_overwritten(narrate: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    Path("f.npz").write_text("mine")
    assert narrate("-o", "n.jsonl", "--embed", "f.npz", "-q") == 2
    assert "was not written by this command" in capsys.readouterr().err
    assert Path("f.npz").read_text() == "mine"
    assert not Path("n.jsonl").exists()
    assert narrate("-o", "n.jsonl", "--embed", "f.npz", "-q", "--overwrite") == 0
    with np.load("f.npz") as arrays:
        assert len(arrays["start"]) == 12


def test_models_that_see_other_frames(narrate: Embed, capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate("--embed-model", "nano") == 2
    assert "of no use without --embed" in capsys.readouterr().err
    assert narrate("-o", "n.jsonl", "--embed", "-") == 2
    assert "go to a file" in capsys.readouterr().err
    assert narrate("-o", "n.jsonl", "--embed", "./n.jsonl") == 2
    assert "that is where the narrations go" in capsys.readouterr().err
    Path("link.jsonl").symlink_to("n.jsonl")
    for other in ("n.jsonl.videos.jsonl", "link.jsonl"):  # what lies beside it, and itself by another name
        assert narrate("-o", "n.jsonl", "--embed", other) == 2
        assert "that is where the narrations go" in capsys.readouterr().err
    vision = DualEncoder.from_pretrained("nano", threads=1).config.vision
    one = SimpleNamespace(config=SimpleNamespace(vision=vision), device="cpu", decoder="auto")
    other = SimpleNamespace(config=SimpleNamespace(vision=replace(vision, frames=16)), device="cpu", decoder="auto")
    with pytest.raises(InputError, match="the narrator sees 4 frames of 64 pixels on cpu, the dual encoder 16 frames"):
        require_same_frames(one, other)  # type: ignore[arg-type]


# --- killed, both at once -------------------------------------------------------------------------------------------


def both_of(folder: str) -> tuple[list[bytes], list[tuple[Any, ...]]]:
    """Narrations and embeddings, in an order of their own."""
    with np.load(Path(folder, "f.npz")) as file:
        columns = [file[name].tolist() for name in ("video", "start", "end", "frames", "embedding")]
    return sorted(Path(folder, "n.jsonl").read_bytes().splitlines()), sorted(zip(*columns, strict=True))


def killed(words: list[str], folder: str, chance: random.Random, within: float | None) -> bool:
    """Start a run and kill it some rows later, or at any moment `within` so many seconds; whether it was at work."""
    process = watched.start([sys.executable, "-m", "lavila_fast", *words])
    there = [f"{folder}/n.jsonl", f"{folder}/f.npz.journal"]
    target = sum(map(lines, there)) + (chance.randint(0, 30) if within is None else 1000)
    deadline = time.monotonic() + (60 if within is None else chance.uniform(0, within))
    while sum(map(lines, there)) <= target and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.05))
    process.kill()
    return process.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is no signal there")
@pytest.mark.parametrize(
    "kills", [2, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(1200)])], ids="{} kills".format
)
def test_both_outputs_survive_kills(embed: Embed, kills: int) -> None:
    tiny.film(Path("short.mp4"), seconds=3)
    chance = random.Random(kills)
    asked = ["narrate", "film.mp4", "short.mp4", "--samples", "2", "--threads", "1", "--stride-seconds", "0.1", "-q"]
    done, began = 0, time.monotonic()
    assert run([*asked, "--no-isolate", "-o", "whole/n.jsonl", "--embed", "whole/f.npz"]) == 0
    took = time.monotonic() - began
    for turn in range(kills):
        within = took if turn % 5 == 4 else None  # a moment may be past the end on a machine that is at ease by then
        done += killed([*asked, "-o", "broken/n.jsonl", "--embed", "broken/f.npz"], "broken", chance, within)
    assert done >= kills / 2  # the last ones may come when all is there already
    assert run([*asked, "--no-isolate", "-o", "broken/n.jsonl", "--embed", "broken/f.npz"]) == 0
    assert both_of("broken") == both_of("whole")
    assert Path("broken/f.npz.journal").read_bytes().count(b"\n") == len(both_of("whole")[1])
