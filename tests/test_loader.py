"""Batches of real files: the same whoever reads them, and what cannot be read is replaced and counted."""

from __future__ import annotations

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from test_video_coded import write_video  # noqa: E402

from lavila_fast.errors import InputError, LavilaError, VideoError  # noqa: E402
from lavila_fast.kernels.preprocess import native  # noqa: E402
from lavila_fast.text.train import train_bpe  # noqa: E402
from lavila_fast.train import items as train_items  # noqa: E402
from lavila_fast.train.augment import training_clip  # noqa: E402
from lavila_fast.train.datasets.charades import TrimmedVideos  # noqa: E402
from lavila_fast.train.datasets.ego4d import Ego4D, Narrated  # noqa: E402
from lavila_fast.train.datasets.egtea import Egtea, Trimmed  # noqa: E402
from lavila_fast.train.datasets.samples import Folder  # noqa: E402
from lavila_fast.train.items import ItemDraws, Items, Looks  # noqa: E402
from lavila_fast.train.loader import LoadedBatches  # noqa: E402
from lavila_fast.video import kept  # noqa: E402
from lavila_fast.video.probe import open_file  # noqa: E402
from lavila_fast.video.reader import read_frames  # noqa: E402

LOOKS = Looks(32, (0.0,) * 3, (255.0,) * 3, flips=True)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for name in "abc":
        write_video(folder / f"{name}.mp4", 90, 30, size=(80, 48), options={"bf": "2", "g": "30"})
    return folder


def items(folder: Path, rows: int = 12) -> Items:
    narrated = [Narrated("abc"[i % 3], 0.1 * i, 0.1 * i + 1, (f"#C C sees {i}",)) for i in range(rows)]
    return Items(TrimmedVideos(narrated, Folder(folder), 4), folder, LOOKS, train_bpe(["#C C sees"], 300, 16), seed=5)


@pytest.mark.parametrize("options", [{"bf": "0"}, {"bf": "3", "g": "50"}])
def test_frames_are_those_of_a_decoder(tmp_path: Path, options: dict[str, str]) -> None:
    path = write_video(tmp_path / "v.mp4", 100, 25, size=(64, 48), options=options)
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    for wanted in ([0, 5, 99], [99, 3, 3, 50], list(range(100)), [42]):
        np.testing.assert_array_equal(read_frames(path, wanted), np.stack([whole[i] for i in wanted]))
    with pytest.raises(VideoError, match="has no frame 100 that can be read"):
        read_frames(path, [7, 100])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_the_same_whoever_reads_them(videos: Path, workers: int) -> None:
    found = LoadedBatches(items(videos), 4, seed=1, workers=workers)
    assert found.epoch == 3
    whole = [found.batch(step) for step in range(4)]
    again = LoadedBatches(items(videos), 4, seed=1)
    assert torch.equal(again.batch(2).video, whole[2].video)  # resumed in the middle
    assert not torch.equal(whole[0].video, whole[3].video)  # another epoch
    halves = [again.batch(1, rank, 2) for rank in range(2)]
    for name, value in whole[1].tensors.items():
        assert torch.equal(halves[0].tensors[name], value[0::2]), name
        assert torch.equal(halves[1].tensors[name], value[1::2]), name
    assert whole[0].video.shape == (4, 3, 4, 32, 32)
    assert whole[0].ids.shape == whole[0].mask.shape == (4, 16)
    assert {key for step in range(3) for _, key in found.keys(step)} == set(range(12))


def test_a_thread_reads_what_processes_read(videos: Path) -> None:
    """Which is how frames stay on a GPU."""
    plain, here = (LoadedBatches(items(videos), 4, seed=1, here=here) for here in (False, True))
    for step in (0, 1, 4, 2):
        assert torch.equal(here.batch(step).video, plain.batch(step).video)
    here.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("clips")]


def test_a_clip_shows_what_its_row_says(videos: Path) -> None:
    plain = Items(items(videos).annotated, videos, Looks(32, (0.0,) * 3, (1.0,) * 3, crop=None))
    seen = plain[0, 4]["video"]
    reads = plain.annotated.sample(4).reads
    assert [(read.file, read.frames) for read in reads] == [("b.mp4", (15, 22, 29, 36))]
    frames = read_frames(videos / "b.mp4", reads[0].frames).astype(float)
    assert seen.mean() == pytest.approx(frames[:, :, 15:63].mean(), abs=1.0)


def test_a_video_that_is_gone_is_replaced_and_counted(videos: Path, tmp_path: Path) -> None:
    for name in "ac":
        (tmp_path / f"{name}.mp4").symlink_to(videos / f"{name}.mp4")
    found = LoadedBatches(items(tmp_path), 4, seed=1)
    batches = [found.batch(step) for step in range(3)]
    assert all(len(batch) == 4 for batch in batches)
    assert len(found.missing) >= 4
    assert all("b.mp4: does not exist" in line for line in found.missing)
    with pytest.raises(LavilaError, match=r"of \d+ clips could not be read, the first: .*b\.mp4.*--resume"):
        list(map(found.batch, range(3, 40)))
    (tmp_path / "a.mp4").unlink()
    (tmp_path / "c.mp4").unlink()  # a link to what other tests read
    (tmp_path / "c.mp4").write_bytes(b"no film at all")
    with pytest.raises(VideoError, match="in a row cannot be read"):
        LoadedBatches(items(tmp_path), 4).batch(0)


def test_a_clip_is_what_numpy_makes_of_whole_frames(videos: Path) -> None:
    """In batches, alone, from open files and from others: the same pixels."""
    data = items(videos)
    batch = data.__getitems__([(3, index) for index in range(12)])
    for index, item in enumerate(batch):
        random = data.random(3, index)
        (read,) = data.annotated.sample(index, random).reads
        frames, draws = read_frames(videos / read.file, read.frames), ItemDraws(random)
        assert LOOKS.crop
        box = LOOKS.crop.draw(48, 80, draws)
        expected = training_clip(frames, 32, LOOKS.mean, LOOKS.std, box, draws.uniform(0, 1) < 0.5)
        np.testing.assert_array_equal(item["video"], expected, err_msg=str(index))
        np.testing.assert_array_equal(data[3, index]["video"], expected, err_msg=str(index))


def test_levels_are_the_same_clips_rounded(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the native library and without: what is normalised later, half a level off at most."""
    plain = items(videos)
    rounded = replace(plain, looks=replace(LOOKS, levels=True))
    for fused in (True, False):
        for index in range(6):
            exact = plain[0, index]["video"].transpose(1, 2, 3, 0) * 255
            found = rounded[0, index]["video"]
            assert (found.dtype, found.shape) == (np.uint8, (4, 32, 32, 3)), (fused, index)
            assert np.abs(found - exact).max() <= 0.5 + 1e-3, (fused, index)
        monkeypatch.setattr(train_items, "kept_files", kept.KeptFiles)
        monkeypatch.setattr(native, "why_not", lambda *_: "there is none")
    batch = LoadedBatches(rounded, 4).batch(0)
    assert (batch.video.dtype, tuple(batch.video.shape)) == (torch.uint8, (4, 4, 32, 32, 3))


def test_without_the_native_library_the_same(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = [items(videos)[0, index]["video"] for index in range(6)]
    monkeypatch.setattr(train_items, "kept_files", kept.KeptFiles)  # none that knows how colours are converted
    monkeypatch.setattr(native, "why_not", lambda *_: "there is none")
    for index, expected in enumerate(fused):
        np.testing.assert_array_equal(items(videos)[0, index]["video"], expected)


def test_files_stay_open_but_not_all(videos: Path) -> None:
    files, opened = kept.KeptFiles(2), []

    def opens(path: Path, *given, **more):
        opened.append(path.stem)
        return open_file(path, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "open_file", opens)
        for name in "aabbab":
            read_frames(videos / f"{name}.mp4", [5, 40], files=files)
        assert (opened, len(files)) == (["a", "b"], 2)
        whole = {name: read_frames(videos / f"{name}.mp4", range(90)) for name in "abc"}
        for place, name in ((3, "c"), (80, "a"), (79, "a"), (0, "a"), (31, "b"), (89, "c"), (2, "c")):
            found = read_frames(videos / f"{name}.mp4", [place], files=files)
            np.testing.assert_array_equal(found[0], whole[name][place], err_msg=f"{name} {place}")
        assert len(files) == 2
        with files.open(videos / "c.mp4") as one, files.open(videos / "c.mp4") as other:
            assert one.container is not other.container
        with pytest.raises(ZeroDivisionError), files.open(videos / "c.mp4"):
            raise ZeroDivisionError  # whoever fails does not leave it to the next
        assert len(files) == 1
    files.close()
    assert len(files) == 0
    assert len(pickle.loads(pickle.dumps(files))) == 0  # our own


def test_a_file_that_changes_is_opened_anew(videos: Path, tmp_path: Path) -> None:
    path, files = tmp_path / "v.mp4", kept.KeptFiles()
    path.write_bytes((videos / "a.mp4").read_bytes())
    assert files.info(path).frames == 90
    write_video(path, 20, 30, size=(64, 32))
    assert files.info(path).frames == 20
    assert read_frames(path, [19], files=files).shape == (1, 32, 64, 3)


def test_black_frames_end_each_view(videos: Path) -> None:
    """A film of 90 frames, views of 64 frames at a stride of 2."""
    test = Egtea([Trimmed("a.mp4", 3)], Folder(videos), 64, 2, views=2)
    item = Items(test, videos, Looks(16, (0.0,) * 3, (1.0,) * 3, crop=None))[0, 0]
    bright = item["video"].max((0, 2, 3)) > 0
    assert bright.tolist() == ([True] * 45 + [False] * 19) * 2
    assert int(item["targets"]) == 3


def test_too_few_clips_for_a_batch(videos: Path) -> None:
    with pytest.raises(InputError, match="3 clips fill no batch of 4"):
        LoadedBatches(items(videos, 3), 4)


@pytest.mark.slow
def test_ego4d_in_chunks(tmp_path: Path) -> None:
    """A clip that begins in one chunk and ends in the next."""
    for start, count in ((0, 9000), (300, 60)):
        path = tmp_path / "uid.mp4" / f"{start}.mp4"
        path.parent.mkdir(exist_ok=True)
        write_video(path, count, 30, size=(32, 16), options={"g": "300"})
    row = Narrated("uid", 299.5, 300.5, ("#C C waits",))
    annotated = Ego4D([row], Folder(tmp_path), 4, human=1)
    reads = annotated.sample(0).reads
    assert [(read.file, read.frames) for read in reads] == [
        ("uid.mp4/0.mp4", (8988, 8995)),
        ("uid.mp4/300.mp4", (3, 10)),
    ]
    item = Items(annotated, tmp_path, Looks(16, (0.0,) * 3, (1.0,) * 3))[0, 0]
    assert item["video"].shape == (3, 4, 16, 16)
    assert item["missing"] == []
