"""Text to moment: an index finds what the dual encoder finds, grows, and is never half there."""

from __future__ import annotations

import json
import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("lancedb")

from lavila_fast import DualEncoder
from lavila_fast.archive.journals.spans import span_of
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError
from lavila_fast.files import locked
from lavila_fast.search.cut import save
from lavila_fast.search.fusion import Background, fuse
from lavila_fast.search.index import Index, Query
from lavila_fast.search.moments import Moment, moments
from lavila_fast.search.store import Hit, Store, Window, quoted
from lavila_fast.video.cut import cut
from lavila_fast.video.probe import probe
from lavila_fast.video.reader import read_frames

ASSETS = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets"
SHOWN = [json.loads(line) for line in (ASSETS / "kitchen.jsonl").read_text("utf-8").splitlines()]


def saved(found: list[Moment], folder: Path) -> list[Path]:
    """Clips of moments, all of which can be cut."""
    paths = list(save(found, folder))
    assert all(isinstance(path, Path) for path in paths), paths
    return [path for path in paths if isinstance(path, Path)]


@pytest.fixture(scope="module")
def kitchen(kitchen_index: Path) -> Path:
    """A folder with an index that nobody writes to."""
    return kitchen_index


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a film and an index of one's own."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ASSETS / "kitchen.mp4", "film.mp4")
    assert run(["index", "film.mp4", "-o", "ix", "--threads", "1", "-q"]) == 0
    return tmp_path


def test_the_index_finds_what_the_dual_encoder_finds(kitchen: Path) -> None:
    index, model = Index.open(kitchen / "ix"), DualEncoder.from_pretrained("nano", threads=1)
    rows = list(model.embed_video(ASSETS / "kitchen.mp4"))
    vectors = np.stack([row.embedding for row in rows]).astype(np.float16).astype(np.float32)
    texts = model.embed_text([one["text"] for one in SHOWN])
    for shown, text in zip(SHOWN, texts, strict=True):
        best = int((vectors @ text).argmax())
        (moment, *_) = index.search(Query(vector=text, mode="vector", limit=3)).moments
        assert moment.start <= rows[best].start < rows[best].end <= moment.end
        assert moment.score == pytest.approx(float(vectors[best] @ text), abs=2e-3)
        if span_of(rows[best]) == (round(shown["start"] * 1000), round((shown["end"] - shown["start"]) * 1000)):
            assert moment.text == shown["text"]


def test_what_is_not_there_is_no_confident_match(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", str(kitchen / "ix"), SHOWN[2]["text"]]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(SHOWN[2]["text"])
    assert run(["search", str(kitchen / "ix"), "#C C opens the red drawer with the right hand"]) == 1
    assert "no confident match" in capsys.readouterr().out.splitlines()[0]
    assert run(["search", str(kitchen / "ix"), "submarine", "--mode", "text"]) == 1
    assert capsys.readouterr().out == "nothing found\n"


def test_words_filters_and_likeness(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def found(*words: str) -> list[dict[str, Any]]:
        run(["search", str(kitchen / "ix"), "--json", *words])
        moments: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["moments"]
        return moments

    knives = [one["start"] for one in SHOWN if "knife" in one["text"]]
    assert sorted(one["start"] for one in found("knife", "--mode", "text")) == knives
    assert all(one["start"] >= 10 for one in found(SHOWN[2]["text"], "--after", "10"))
    assert all(one["end"] <= 4 for one in found(SHOWN[2]["text"], "--before", "4"))
    assert found(SHOWN[2]["text"], "--video", "other") == []
    (nearest, *_) = found("--like", "film.mp4@5", "--mode", "vector")
    assert nearest["start"] <= 5 < nearest["end"]
    assert nearest["score"] == pytest.approx(1.0, abs=2e-3)


@pytest.mark.usefixtures("place")
def test_an_index_grows_and_forgets(capsys: pytest.CaptureFixture[str]) -> None:
    def update(*inputs: str) -> dict[str, Any]:
        assert run(["index", *inputs, "-o", "ix", "--threads", "1", "-q", "--json"]) in (0, 1)
        told: dict[str, Any] = json.loads(capsys.readouterr().out)
        return told

    assert update("film.mp4") == {"added": 0, "videos": 0, "dropped": 0, "still": 0, "windows": 12, "index": "ix"}
    shutil.copy("film.mp4", "twin.mp4")
    assert update("film.mp4", "twin.mp4")["windows"] == 24
    store = Store.open(Path("ix"), 128)
    rows = [Window("film.mp4", "of another content", "film.mp4", 0.0, 2.0, vector=np.ones(128, np.float32))]
    store.add(rows)  # as a file that was replaced leaves, or a killed run
    store.drop([next(key for key in store.held() if key[1] == "twin.mp4")])
    shutil.copytree("ix", "lost")
    shutil.rmtree("lost/table")
    assert run(["search", "lost", "x"]) == 2
    assert "holds no index" in capsys.readouterr().err
    assert run(["index", "film.mp4", "twin.mp4", "-o", "lost", "-q"]) == 0  # made again of what lies beside it
    assert len(Store.open(Path("lost"), 128)) == 24
    assert run(["index", "film.mp4", "-o", "film.mp4"]) == 1
    assert "give the folder of an index" in capsys.readouterr().err
    assert update("film.mp4", "twin.mp4") == {
        "added": 12,
        "videos": 1,
        "dropped": 1,
        "still": 0,
        "windows": 24,
        "index": "ix",
    }


@pytest.mark.usefixtures("place")
def test_moments_are_cut(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "ix", SHOWN[5]["text"], "--save-top", "1", "-o", "clips"]) == 0
    (clip,) = Path("clips").glob("*.mp4")
    (cue,) = Path("clips").glob("*.srt")
    assert SHOWN[5]["text"] in cue.read_text()
    begin = cut(Path("film.mp4"), Path("again.mp4"), 10.0, 12.0)
    assert 0 <= begin <= 10.0
    own = read_frames(clip, range(probe(clip).frames))
    first = round(begin * 15)  # pictures a second
    assert len(own) == 12 * 15 - first  # up to the moment's end
    assert (own == read_frames(Path("film.mp4"), range(first, 12 * 15))).all()
    assert f"--> 00:00:{12 - begin:06.3f}".replace(".", ",") in cue.read_text()
    assert run(["search", "ix", SHOWN[5]["text"], "--save-top", "1"]) == 2
    wide = Path("厨" * 80 + "\n.mp4")  # 241 bytes, and a line break
    shutil.copy("film.mp4", wide)
    (path,) = saved([Moment(wide.name, str(wide), 0.0, 2.0, "x", 0.5, 1.0)], Path("odd"))
    assert len(path.name.encode()) < 255
    assert path.is_file()
    assert path.with_suffix(".srt").is_file()
    capsys.readouterr()
    Path("film.mp4").unlink()
    assert run(["search", "ix", SHOWN[5]["text"], "--save-top", "1", "-o", "more"]) == 1
    assert "film.mp4: does not exist" in capsys.readouterr().err


def test_a_film_that_was_moved_or_touched_is_known_where_it_is_now(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "moved").mkdir()
    shutil.move("film.mp4", "moved/film.mp4")
    monkeypatch.chdir("moved")  # so its name stays
    before = Path("../ix/features.jsonl").read_bytes()
    for date in (1, 2):
        os.utime("film.mp4", (86400 * date,) * 2)
        assert run(["index", "film.mp4", "-o", "../ix", "--threads", "1", "-q"]) == 0
        assert Path("../ix/features.jsonl").read_bytes() == before  # nothing was embedded again
        words = ["search", "../ix", "--like", "film.mp4@5", "--mode", "vector", "--json"]
        run([*words, "--save-top", "1", "-o", "clips"])
        (found,) = {one["path"] for one in json.loads(capsys.readouterr().out)["moments"]}
        assert found == str((place / "moved" / "film.mp4").resolve())
        assert {held.date for held in Store.open(Path("../ix"), 128).held().values()} == {86400.0 * date}
    assert len(list(Path("clips").glob("*.mp4"))) == 1


@pytest.mark.usefixtures("place")
def test_a_lost_film_costs_its_own_clips(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("film.mp4", "twin.mp4")
    assert run(["index", "film.mp4", "twin.mp4", "-o", "ix", "--threads", "1", "-q"]) == 0
    words = ["search", "ix", SHOWN[5]["text"], "--threshold", "0", "-n", "4", "--save-top", "4", "-o", "clips"]
    assert run(words) == 0
    clips = len(list(Path("clips").glob("*.mp4")))
    shutil.rmtree("clips")
    for spoil, said in (
        (lambda film: film.unlink(), "film.mp4: does not exist; check the path"),
        (
            lambda film: film.write_bytes(b"another film"),
            "film.mp4: is not the video that was indexed; run lavila-fast",
        ),
    ):
        spoil(Path("film.mp4"))
        capsys.readouterr()
        assert run(words) == 1
        told = capsys.readouterr()
        assert sum(said in line for line in told.err.splitlines()) == 1  # whatever number of its moments
        assert SHOWN[5]["text"] in told.out
        assert 0 < len(list(Path("clips").glob("*twin_*.mp4"))) == len(list(Path("clips").glob("*.mp4"))) < clips


@pytest.mark.usefixtures("place")
def test_sentences_that_come_later_are_put_in(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["index", "film.mp4", "-o", "mute", "--threads", "1", "-q", "--json"]
    asked = ["search", "mute", "knife", "--mode", "text", "--json"]
    assert run([*words, "--no-narrate"]) == 0
    assert run(asked) == 2
    assert "or index without --no-narrate" in capsys.readouterr().err
    assert run(words) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 12
    for more in ((), ("--no-narrate",)):  # and they stay
        assert run([*words, *more]) == 0
        assert json.loads(capsys.readouterr().out)["added"] == 0
        assert run(asked) == 0
        assert len(json.loads(capsys.readouterr().out)["moments"]) > 0


@pytest.mark.usefixtures("place")
def test_a_damaged_index_says_how_it_is_made_again(capsys: pytest.CaptureFixture[str]) -> None:
    def told(*words: str) -> str:
        assert run([*words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    again = ["index", "film.mp4", "-o", "broken", "--threads", "1", "-q"]
    lance = Path("broken/table/windows.lance")
    for damage in (
        lambda: shutil.rmtree(lance / "data"),
        lambda: shutil.rmtree(lance / "_versions"),
        lambda: [file.write_bytes(b"x" * 100) for file in (lance / "_versions").iterdir()],
        lambda: [file.write_bytes(file.read_bytes()[:200]) for file in (lance / "data").iterdir()],
    ):
        shutil.rmtree("broken", ignore_errors=True)
        shutil.copytree("ix", "broken")
        damage()
        for words in (["search", "broken", SHOWN[2]["text"]], again):
            assert "broken: its table is damaged (" in (line := told(*words))
            assert "remove broken/table and run lavila-fast index again with the same -o" in line
        shutil.rmtree("broken/table")
        assert run(again) == 0
        assert run(["search", "broken", SHOWN[2]["text"]]) == 0
    for about in ("[]", '{"model": "nano"}', "\0"):  # who says nothing is passed over
        Path("broken/index.json").write_text(about)
        assert "holds no index; make one" in told("search", "broken", SHOWN[2]["text"])
        assert run(again) == 0
        assert run(["search", "broken", SHOWN[2]["text"]]) == 0


def test_who_has_a_table_open_sees_what_others_make_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavila_fast.search.lance._FRESH", timedelta(0))
    random = np.random.default_rng(0)

    def rows(video: str) -> list[Window]:
        vectors = random.standard_normal((40, 8)).astype(np.float32)
        return [Window(video, video, video, i, i + 1, "an onion", vector=one) for i, one in enumerate(vectors)]

    writer = Store.create(tmp_path, 8)
    writer.add(rows("a.mp4"))
    writer.settle()
    reader = Store.open(tmp_path, 8)
    writer.add(rows("b.mp4"))
    assert len(reader) == 80
    reader.nearest(np.ones(8, np.float32), 5)
    writer.compact()  # the files that the reader knows are gone
    writer.settle()
    assert len(reader.nearest(np.ones(8, np.float32), 100)) == len(reader.worded("onion", 100)) == 80
    assert len(reader.sample(100)) == 80
    assert [film.video for film in reader.videos("b")] == ["b.mp4"]
    (tmp_path / "table").rename(tmp_path / "away")
    with pytest.raises(InputError, match="holds no index; make one"):
        reader.nearest(np.ones(8, np.float32), 5)
    assert not (tmp_path / "table").exists()  # who reads makes nothing
    (tmp_path / "away").rename(tmp_path / "table")
    assert len(reader.nearest(np.ones(8, np.float32), 5)) == 5


def test_a_table_is_open_while_it_takes_the_place_of_another(tmp_path: Path) -> None:
    store = Store.create(tmp_path, 8)
    store.add([Window("a.mp4", "a", "a", 0, 1, vector=np.ones(8, np.float32))])
    table = tmp_path / "table" / "windows.lance"
    table.rename(table.with_name("windows_old.lance"))  # as for a moment while somebody compacts it
    assert len(Store.open(tmp_path, 8)) == 1
    assert not table.exists()  # it is not for who reads to put it back
    assert Store.there(tmp_path)
    assert table.exists()


@pytest.mark.usefixtures("place")
def test_two_never_write_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    with locked(Path("ix/table"), InputError("x")):
        assert run(["index", "film.mp4", "-o", "ix", "--threads", "1", "-q"]) == 1
    assert "ix: another lavila-fast is writing its table; run the same command again" in capsys.readouterr().err


def test_names_of_clips_hold_no_line_breaks(kitchen_film: Path, tmp_path: Path) -> None:
    film = tmp_path / "new\nline.mp4"
    shutil.copy(kitchen_film, film)
    (path,) = saved([Moment(film.name, str(film), 0.0, 2.0, "x", 0.5, 1.0)], tmp_path / "clips")
    assert path.name == "01_new%0Aline_0.0-2.0.mp4"


def test_a_new_table_is_made_in_silence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # where there is none, and in place of one
        assert len(Store.create(tmp_path, 8)) == 0
    assert capfd.readouterr() == ("", "")


def test_a_large_table_finds_what_comparing_all_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    vectors = random.standard_normal((3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        Window(f"{i % 7}.mp4", "x", "x", 2.0 * i, 2.0 * i + 2, f"number {i}", vector=one)
        for i, one in enumerate(vectors)
    ]
    store = Store.create(tmp_path, 32)
    store.add(rows)
    monkeypatch.setattr("lavila_fast.search.store.LARGE", 1000)
    store.settle()
    assert {one.index_type for one in store._table.list_indices()} == {"FTS", "IvfSq"}
    halves = vectors.astype(np.float16).astype(np.float32)
    shared = []
    for query in vectors[:20] + 0.1 * random.standard_normal((20, 32)).astype(np.float32):
        exact = np.argsort(-(halves @ query), kind="stable")[:10]
        found = [int(hit.window.text.split()[1]) for hit in store.nearest(query, 10)]
        shared.append(len(set(found) & set(exact.tolist())))
    assert sum(shared) >= 0.98 * 200
    assert [hit.window.text for hit in store.worded("1234", 5)] == ["number 1234"]
    assert {hit.window.video for hit in store.nearest(vectors[0], 10, "video = '3.mp4'")} == {"3.mp4"}


def test_a_large_table_of_many_pieces_is_compacted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"LARGE": 256, "BATCH": 64, "_MOST_PIECES": 2}.items():
        monkeypatch.setattr(f"lavila_fast.search.store.{name}", value)
    random = np.random.default_rng(0)
    vectors = random.standard_normal((600, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = [
        Window(f"{i % 7}.mp4", "x", "x", 2.0 * i, 2.0 * i + 2, f"number {i}", vector=v) for i, v in enumerate(vectors)
    ]
    store = Store.create(tmp_path, 32)
    for at in range(0, 600, 20):
        store.add(rows[at : at + 20])
    assert store._table.stats()["fragment_stats"]["num_fragments"] == 30
    store.settle()
    assert store._table.stats()["fragment_stats"]["num_fragments"] < 30
    assert len(store) == 600
    assert {one.index_type for one in store._table.list_indices()} == {"FTS", "IvfSq"}
    assert [store.nearest(one, 1)[0].window.text for one in vectors[::100]] == [
        f"number {i}" for i in range(0, 600, 100)
    ]
    made = {one.name: one.created_at for one in store._table.list_indices()}
    store.add(rows[:10])  # few: they are found without being in an index
    store.settle()
    assert {one.name: one.created_at for one in store._table.list_indices()} == made
    assert len(store.nearest(vectors[3], 2)) == 2
    table = tmp_path / "table" / "windows.lance"
    table.rename(table.with_name("windows_old.lance"))  # as a kill between two names leaves it
    assert Store.there(tmp_path)
    assert len(Store.open(tmp_path, 32)) == 610


def test_bad_input_is_a_line_each(kitchen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words, told in {
        (str(tmp_path), "x"): "holds no index",
        (str(kitchen / "ix"),): "say what to look for",
        (str(kitchen / "ix"), "x", "--like", "film.mp4@900"): "not in the index",
        (str(kitchen / "ix"), "x", "--like", "film.mp4"): "not in the index",
        (str(kitchen / "ix"), "x", "--after", "nan"): "nan is not a finite number",
    }.items():
        assert run(["search", *words]) == 2, words
        assert told in capsys.readouterr().err
    shutil.copytree(kitchen / "ix", tmp_path / "own")
    again = ["index", str(ASSETS / "kitchen.mp4"), "-o", str(tmp_path / "own"), "-q"]
    assert run([*again, "--stride-seconds", "1"]) == 2
    told = capsys.readouterr().err
    assert "or remove the index to begin anew" in told
    assert "--overwrite" not in told  # which `index` has not
    mute = Store.create(tmp_path / "mute", 2)
    mute.add([Window("a", "a", "a", 0.0, 2.0, vector=np.ones(2, np.float32))])
    with pytest.raises(InputError, match="holds no sentences"):
        Index(tmp_path / "mute", mute, {}, "nano").search(Query("x", mode="text"))
    about = json.loads((kitchen / "ix" / "index.json").read_text())
    shutil.copytree(kitchen / "ix", tmp_path / "other")
    about["run"]["model"] = "nano (0123456789abcdef, native avx2)"
    (tmp_path / "other" / "index.json").write_text(json.dumps(about))
    assert run(["search", str(tmp_path / "other"), "x"]) == 2
    assert "was begun with model nano (0123456789abcdef" in capsys.readouterr().err
    for words in (["index", "x", "-o", ""], ["search", "", "x"], ["index", "", "-o", str(tmp_path / "new")]):
        assert run(words) == 2
        assert "without a name; name a" in capsys.readouterr().err
    about["model"] = "gone/bundle"
    (tmp_path / "other" / "index.json").write_text(json.dumps(about))
    assert run(["search", str(tmp_path / "other"), "x"]) == 2
    assert f"; or say by --model where that of {tmp_path / 'other'} is now" in capsys.readouterr().err
    assert run(["mcp", str(kitchen / "ix"), "--model", "gone/bundle"]) == 2  # before an agent asks
    assert "error: gone/bundle: no such file or folder" in capsys.readouterr().err


def window(start: float, score: float, video: str = "a") -> Hit:
    return Hit(Window(video, video, video, start, start + 2, f"{start:g}", frame=start + 1), score)


def test_neighbours_become_one_moment() -> None:
    hits = [window(0, 1.0), window(2, 5.0), window(4, 4.0), window(6, 2.0), window(20, 4.5), window(2, 3.0, "b")]
    found = moments(hits, 10, 0.6)
    assert [(one.video, one.start, one.end, one.text, one.score) for one in found] == [
        ("a", 2, 6, "2", 5.0),
        ("a", 20, 22, "20", 4.5),
        ("b", 2, 4, "2", 3.0),
        ("a", 6, 8, "6", 2.0),
        ("a", 0, 2, "0", 1.0),
    ]


def test_reciprocal_ranks() -> None:
    def moment(start: float) -> Moment:
        return Moment("a", "a", start, start + 2, f"{start:g}", 1.0, start)

    first, second = [moment(0), moment(10), moment(20)], [moment(30), moment(10)]
    # By hand: 10 has 1/62 + 1/62, 0 and 30 have 1/61 each (in order of time), 20 has 1/63.
    assert [one.start for one in fuse(first, second)] == [10, 0, 30, 20]


def test_how_far_a_cosine_stands_out() -> None:
    sample = np.stack([np.array([x, 0.0], np.float32) for x in (0.1, 0.2, 0.3, 0.2, 0.25)])
    one = Background.of(np.array([1.0, 0.0], np.float32), sample)
    assert one.middle == pytest.approx(0.2)
    assert one.stands_out(0.2 + 3 * 0.05 * 1.4826) == pytest.approx(3.0)
    assert quoted("o'clock") == "'o''clock'"
