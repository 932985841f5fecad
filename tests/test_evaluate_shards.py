"""A benchmark whose videos lie in WebDataset shards: the same features as from files, whole or in chunks."""

from __future__ import annotations

import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
from tiny import film

from lavila_fast.errors import InputError, VideoError
from lavila_fast.exams.ego4d_annotations import chunk_seconds
from lavila_fast.exams.footage import Library
from lavila_fast.exams.shards import ShardFilm
from lavila_fast.train.prepare.manifest import Made
from lavila_fast.train.prepare.shards import write_shards
from lavila_fast.video.kept import kept_files

NAMES = ("P01/P01_01.MP4", "P02/P02_03.MP4", "UID.mp4/0.mp4", "UID.mp4/300.mp4", "OP01-R01/clip-1.mp4")


def row(root: Path, name: str) -> Made:
    path = root / name
    info, size = kept_files().info(path), path.stat().st_size
    chunk = name.startswith("UID")
    place, start = (name.split("/")[0], int(path.stem)) if chunk else (name, 0)
    facts = (info.frames, info.frames / info.fps, info.fps, 64, 48)
    return Made(name, size, *facts, place, start, True, "h", name, "id", size, 0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Films, and shards of them."""
    root = tmp_path_factory.mktemp("shards")
    for i, name in enumerate(NAMES):
        path = root / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        film(path.with_suffix(".mp4"), seconds=2 + i).rename(path)
    rows = [row(root / "films", name) for name in NAMES]
    assert len(list(write_shards(rows, root / "films", root / "shards", 30_000))) > 1
    return root / "films", root / "shards"


@pytest.mark.parametrize("name", [*NAMES, "UID.mp4", "P01/P01_01.mp4"])
def test_frames_are_those_of_the_files(folders: tuple[Path, Path], name: str) -> None:
    files, shards = (Library(folder) for folder in folders)
    assert shards(name) == files(name)
    ids = [0, 19, 3, 3, files(name).frames - 1]
    np.testing.assert_array_equal(shards.frames(name, ids), files.frames(name, ids))
    assert shards.in_chunks(name) == files.in_chunks(name)


def test_what_is_not_there(folders: tuple[Path, Path]) -> None:
    files, shards = (Library(folder) for folder in folders)
    for library in (files, shards):
        assert not library.holds("P03/P03_01.MP4")
        assert library.in_chunks("P03.mp4") is None
        with pytest.raises(VideoError, match=r"P03_01.MP4: does not exist; fetch it"):
            library("P03/P03_01.MP4")
        assert chunk_seconds(library, ["none", "UID"]) == 300


def test_a_chunk_is_asked_of_a_whole_film(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "films").mkdir()
    shutil.copy(folders[0] / NAMES[0], tmp_path / "films" / "WHOLE.mp4")
    list(write_shards([row(tmp_path / "films", "WHOLE.mp4")], tmp_path / "films", tmp_path / "shards", 1 << 20))
    for name in ("films", "shards"):
        library = Library(tmp_path / name)
        assert library("WHOLE.mp4/0.mp4").frames == 20
        assert not library.holds("WHOLE.mp4/300.mp4")
        assert chunk_seconds(library, ["WHOLE"]) > 300


def test_shards_without_an_index_or_cut_short(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in folders[1].glob("*.tar"):
        shutil.copy(shard, tmp_path)
    library = Library(tmp_path)
    assert all(library.holds(name) for name in NAMES)
    last = max(tmp_path.glob("*.tar"))
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    library = Library(tmp_path)
    assert 0 < sum(library.holds(name) for name in NAMES) < len(NAMES)
    assert "damaged" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "0.tar").write_bytes(b"")
    with pytest.raises(InputError, match="its shards hold no videos; write the shards again"):
        Library(tmp_path / "none")


def test_a_shard_that_shrinks_after_it_was_opened(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[1], tmp_path / "s")
    library = Library(tmp_path / "s")
    (found,) = library.films(NAMES[0])
    assert isinstance(found, ShardFilm)
    found.shard.write_bytes(found.shard.read_bytes()[: found.member.offset + 10])
    with pytest.raises(VideoError, match=r"\.tar/P01/P01_01.mp4: ends before it should"):
        library.frames(NAMES[0], [0])


def test_a_benchmark_in_shards(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """All that an exam asks of its clips is the same, whichever folder it is opened with."""
    from lavila_fast.exams.annotations import open_ek100_mir
    from lavila_fast.exams.data_folder import DataFolder
    from lavila_fast.exams.protocols import PROTOCOLS

    root, protocol = miniatures.ek100(tmp_path / "EK100"), PROTOCOLS["ek100_mir"]["zero-shot"]
    videos = root / "video_ht256px"
    rows = [row(videos, name) for name in NAMES[:2]]
    list(write_shards(rows, videos, root / "shards", 1 << 20))
    plain = open_ek100_mir(DataFolder(root), protocol)
    samples = [plain.clips.sample(i) for i in range(len(plain.ids))]
    shutil.rmtree(videos)
    packed = open_ek100_mir(DataFolder(root), protocol)
    assert [packed.clips.sample(i) for i in range(len(packed.ids))] == samples
