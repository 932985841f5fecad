"""Windows in which nothing moves: found by a measure on the frames, spared the model, and kept as rows that say so."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila_fast.archive.finished.merge import merge, read_part
from lavila_fast.archive.finished.tables import read_table
from lavila_fast.archive.outputs import Output
from lavila_fast.archive.windows.still import THRESHOLD, Still, StillGate, motion
from lavila_fast.cli.main import run
from lavila_fast.config import VisionConfig
from lavila_fast.errors import InputError
from lavila_fast.records import Clip, Narration, Row
from lavila_fast.video.reader import DecodedClip

KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"
FROZEN = [6.0, 8.0, 10.0]  # begins of the windows of `film` in which nothing moves
ONE, NONE = (1.0,) * 3, (0.0,) * 3


def pictures() -> list[np.ndarray]:
    with av.open(str(KITCHEN)) as film:
        return [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of the kitchen, six of a picture that only a camera's noise and a lamp change, six of the kitchen."""
    path, every, noise = tmp_path_factory.mktemp("still") / "film.mp4", pictures(), np.random.default_rng(7)
    frozen = (every[90] * (1 + 0.01 * math.sin(i)) + noise.normal(0, 2, every[90].shape) for i in range(90))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=15, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for picture in (*every[:90], *frozen, *every[180:270]):
            shown = np.clip(picture, 0, 255).astype(np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shown, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.fixture
def place(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("film.mp4").symlink_to(film)
    return tmp_path


def narrate(*words: str) -> int:
    return run(["narrate", "film.mp4", "--threads", "1", "--no-isolate", "-q", *words])


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


# --- the measure


def test_noise_and_a_lamp_are_no_motion_and_a_small_thing_that_moves_is() -> None:
    random = np.random.default_rng(3)
    for size in (64, 224):
        room = np.repeat(random.uniform(40, 200, (3, 1, size // 8, size // 8)), 4, axis=1)
        room = room.repeat(8, axis=2).repeat(8, axis=3)
        noisy = room + random.normal(0, 3, room.shape)
        lit = noisy * np.linspace(0.95, 1.05, 4).reshape(1, 4, 1, 1)
        moved, side = noisy.copy(), size // 16
        for t in range(4):
            moved[:, t, 9 : 9 + side, 5 + t * side : 5 + (t + 1) * side] += 60
        assert motion(room, NONE, ONE) == 0
        assert 0 < motion(noisy, NONE, ONE) < THRESHOLD
        assert motion(lit, NONE, ONE) < THRESHOLD
        assert motion(moved, NONE, ONE) > 2 * THRESHOLD


def test_motion_is_the_same_however_frames_are_normalised_and_wherever_they_lie() -> None:
    torch = pytest.importorskip("torch")
    frames, std = np.random.default_rng(5).uniform(0, 255, (3, 4, 64, 64)), (60.0, 50.0, 70.0)
    normal = ((frames - 100) / np.reshape(std, (3, 1, 1, 1))).astype(np.float32)
    expected = motion(frames, NONE, ONE)
    assert motion(normal, (100.0,) * 3, std) == pytest.approx(expected, abs=0.011)
    assert motion(torch.from_numpy(normal), (100.0,) * 3, std) == pytest.approx(expected, abs=0.011)


def test_frames_that_stand_for_others_say_nothing() -> None:
    def gated(clip: DecodedClip, nearest: float = 0.0) -> list[Row]:
        def look(clips: Iterator[DecodedClip]) -> Iterator[list[Row]]:
            for _ in clips:
                yield [Narration("v", 0.0, 2.0, 0, "seen", 1.0, -1.0)]

        gate = StillGate(Still(skips=True), look, VisionConfig(img=64), ("narrations", 1), nearest)
        return next(gate.see(iter([clip])))

    flat, clip = np.zeros((3, 4, 64, 64), np.float32), Clip("v", 0.0, 2.0)
    assert gated(DecodedClip(clip, flat, (0.0, 0.5, 1.0, 1.5)))[0].skipped == "still"
    assert gated(DecodedClip(clip, flat, (0.0,) * 4))[0].skipped == "still"  # one long picture of a slide show
    assert gated(DecodedClip(clip, flat, (0.0,) * 4), nearest=1.0)[0].skipped is None  # one key frame for all four
    assert gated(DecodedClip(clip, flat, (0.0, 0.5, 1.0, 1.5), damaged=True))[0].skipped is None
    assert gated(DecodedClip(Clip("v", 0.0, 0.4), flat, (0.0, 0.1, 0.2, 0.3)))[0].skipped is None  # too brief to say


def test_rows_keep_their_order_and_a_long_lull_holds_nothing_back() -> None:
    moving = np.random.default_rng(1).uniform(-1, 1, (3, 4, 64, 64)).astype(np.float32)
    alive = {0, 3, 4, 5, 60, 199}
    taken: list[int] = []

    def clips() -> Iterator[DecodedClip]:
        for i in range(200):
            taken.append(i)
            frames = moving if i in alive else np.zeros_like(moving)
            yield DecodedClip(Clip("v", 2.0 * i, 2.0 * i + 2), frames, (0.0, 0.5, 1.0, 1.5))

    def look(some: Iterator[DecodedClip]) -> Iterator[list[Row]]:
        for one in list(some):  # a model that wants all there is before it gives a row
            yield [Narration("v", one.clip.start, one.clip.end, 0, "seen", 1.0, -1.0)]

    gate = StillGate(Still(skips=True), look, VisionConfig(img=64), ("narrations", 1))
    found = []
    for rows in gate.see(clips()):
        found.append(rows)
        assert len(taken) - len(found) < 50
    assert [rows[0].start / 2 for rows in found] == list(range(200))
    assert {i for i, rows in enumerate(found) if rows[0].skipped is None} == alive
    assert all(rows[0].motion is not None for rows in found)


# --- runs


@pytest.mark.usefixtures("place")
def test_still_windows_are_skipped_and_all_others_are_as_without() -> None:
    assert narrate("-o", "all.jsonl", "--samples", "2") == 0
    assert narrate("-o", "some.jsonl", "--samples", "2", "--still", "skip", "--batch-size", "3") == 0
    plain, gated = lines("all.jsonl"), lines("some.jsonl")
    assert [(row["start"], row["sample"]) for row in plain] == [(row["start"], row["sample"]) for row in gated]
    skipped = [row for row in gated if row.get("skipped")]
    assert [row["start"] for row in skipped] == [start for start in FROZEN for _ in range(2)]
    for row in skipped:
        assert (row["skipped"], row["text"], row["perplexity"], row["logprob"]) == ("still", "", None, None)
        assert row["motion"] < THRESHOLD
    seen = [row for row in gated if "skipped" not in row]
    assert min(row.pop("motion") for row in seen) > 5 * THRESHOLD
    assert seen == [row for row in plain if row["start"] not in FROZEN]


@pytest.mark.usefixtures("place")
def test_scores_change_no_row_and_settings_do_not_mix(capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate("-o", "all.jsonl") == 0
    assert narrate("-o", "scored.jsonl", "--still", "score") == 0
    scored = lines("scored.jsonl")
    motions = {row["start"]: row.pop("motion") for row in scored}
    assert scored == lines("all.jsonl")
    assert sorted(start for start, one in motions.items() if one < THRESHOLD) == FROZEN
    for output, words in (
        ("all.jsonl", ["--still", "skip"]),
        ("scored.jsonl", []),
        ("scored.jsonl", ["--still", "skip"]),
    ):
        before = Path(output).read_bytes()
        assert narrate("-o", output, *words) == 2
        assert " with still " in capsys.readouterr().err
        assert Path(output).read_bytes() == before
    assert narrate("-o", "skip.jsonl", "--still", "skip") == 0
    assert narrate("-o", "skip.jsonl", "--still", "skip", "--still-threshold", "3") == 2


@pytest.mark.usefixtures("place")
def test_a_cut_run_and_shares_make_the_same_rows() -> None:
    assert narrate("-o", "one.jsonl", "--still", "skip") == 0
    whole = Path("one.jsonl").read_bytes()
    for keep in (3, 4, 6):
        cut = b"".join(whole.splitlines(keepends=True)[:keep]) + b'{"video": "fi'
        Path("one.jsonl").write_bytes(cut)
        assert narrate("-o", "one.jsonl", "--still", "skip", "--batch-size", "2") == 0
        assert Path("one.jsonl").read_bytes() == whole
    for number in (1, 2):
        assert narrate("-o", f"s{number}.jsonl", "--still", "skip", "--shard", f"{number}/2") == 0
    merge([read_part(Path(f"s{number}.jsonl")) for number in (1, 2)], Output("jsonl", "file", Path("both.jsonl")))
    assert Path("both.jsonl").read_bytes() == whole
    assert narrate("-o", "both.jsonl", "--still", "skip") == 0
    assert Path("both.jsonl").read_bytes() == whole


@pytest.mark.usefixtures("place")
def test_every_format_marks_skipped_windows_or_leaves_them_out() -> None:
    assert narrate("-o", "n.jsonl", "--still", "skip") == 0
    rows = list(read_table(Path("n.jsonl")).rows())
    for name in ("n.csv", "n.parquet"):
        assert run(["convert", "n.jsonl", name]) == 0
        back = list(read_table(Path(name)).rows())
        assert repr(back) == repr(rows)  # numbers that are none are not equal
        assert run(["convert", name, f"{name}.jsonl"]) == 0
        assert lines(f"{name}.jsonl") == lines("n.jsonl")
    assert Path("n.csv").read_text().splitlines()[0].endswith(",logprob,motion,skipped")
    for name in ("n.srt", "n.vtt", "n.edl"):
        assert run(["convert", "n.jsonl", name]) == 0
        assert "…" not in Path(name).read_text()
    assert Path("n.srt").read_text().count(" --> ") == 6
    assert run(["convert", "n.jsonl", "n.fcpxml"]) == 0
    assert Path("n.fcpxml").read_text().count("<marker ") == 6
    assert run(["convert", "n.jsonl", "n.lerobot.jsonl", "--format", "lerobot"]) == 0
    assert len(lines("n.lerobot.jsonl")) == 6
    assert run(["convert", "n.jsonl", "n.pkl"]) == 0
    assert len(list(read_table(Path("n.pkl")).rows())) == 6


@pytest.mark.usefixtures("place")
def test_embeddings_and_labels_have_skipped_rows_too() -> None:
    words = ["film.mp4", "--threads", "1", "--no-isolate", "-q", "--still", "skip"]
    for name in ("f.parquet", "f.npz", "f.jsonl"):
        assert run(["embed", *words, "-o", name]) == 0
        rows: list[Any] = list(read_table(Path(name)).rows())
        assert [row.start for row in rows if row.skipped] == FROZEN
        assert {len(row.embedding) for row in rows} == {0, 128}
        assert all((row.motion < THRESHOLD) == bool(row.skipped) for row in rows)
    assert run(["convert", "f.npz", "again.parquet"]) == 0
    assert repr(list(read_table(Path("again.parquet")).rows())) == repr(list(read_table(Path("f.parquet")).rows()))
    Path("words.txt").write_text("cuts the onion\nwashes the cup\n")
    for name in ("l.jsonl", "l.csv", "l.parquet"):
        assert run(["classify", *words, "--labels", "words.txt", "-o", name]) == 0
        labels: list[Any] = list(read_table(Path(name)).rows())
        assert [(row.start, row.labels) for row in labels if row.skipped] == [(start, ()) for start in FROZEN]
        assert len(labels) == 9


@pytest.mark.usefixtures("place")
def test_embeddings_beside_narrations_skip_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate("-o", "n.jsonl", "--embed", "f.jsonl", "--still", "skip") == 0
    for name in ("n.jsonl", "f.jsonl"):
        assert [row.start for row in read_table(Path(name)).rows() if row.skipped] == FROZEN
    assert run(["embed", "film.mp4", "-o", "f.jsonl", "--threads", "1", "--no-isolate", "--still", "skip"]) == 0
    assert "0 clips (9 done before)" in capsys.readouterr().err
    assert narrate("--still", "skip") == 0
    assert capsys.readouterr().out.count("(still)") == 3


def test_options_that_do_not_fit_are_refused() -> None:
    assert Still.parse("off") is None
    for threshold in (0.0, -1.0, math.nan, math.inf, 256.0):
        with pytest.raises(InputError, match="--still-threshold"):
            Still.parse("skip", threshold)
    for mode in ("off", "score"):
        with pytest.raises(InputError, match="no use without --still skip"):
            Still.parse(mode, 2.0)


@pytest.mark.usefixtures("place")
def test_an_index_leaves_still_windows_out_and_is_done_with_them(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("lancedb")
    from lavila_fast.search.index import Index

    words = ["index", "film.mp4", "-o", "ix", "--threads", "1", "-q", "--json"]
    for added in (6, 0):  # the second time there is nothing to do
        assert run([*words, "--still", "skip"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told == {"added": added, "videos": added // 6, "dropped": 0, "still": 3, "windows": 6, "index": "ix"}
    begins = Index.open(Path("ix")).store._table.to_arrow()["start"].to_pylist()
    assert sorted(begins) == [2.0 * i for i in range(9) if 2.0 * i not in FROZEN]
    assert run(words) == 2
    assert "skip under 2" in capsys.readouterr().err
    assert run([*words, "--still-threshold", "3"]) == 2
    assert "no use without --still skip" in capsys.readouterr().err


@pytest.mark.usefixtures("place")
def test_a_plan_says_what_skipping_would_spare(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "film.mp4", "--seconds", "0.2", "--threads", "1"]
    assert run([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    tried = [2.0 * i for i in range(told["tried"])]  # neighbours; of nine windows, eight at most
    assert told["still_share"] == sum(start in FROZEN for start in tried) / len(tried) > 0
    assert told["still_seconds"] > 0
    assert narrate("-o", "n.jsonl") == 0
    assert told["row_bytes"] == pytest.approx(Path("n.jsonl").stat().st_size, rel=0.1)
    assert run([*words, "--clip-seconds", "6"]) == 0
    assert "with --still skip: " in capsys.readouterr().out
