"""Training from video files: batches that depend on the step alone, the same from DALI and from PyAV."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
from test_video_coded import number_of, write_video
from test_video_units import VP9

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from lavila_fast.config import GPT2Config, NarratorConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import InputError, VideoError  # noqa: E402
from lavila_fast.evaluate.clips import action_of  # noqa: E402
from lavila_fast.kitchen.world import all_actions  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.records import Clip  # noqa: E402
from lavila_fast.text.tokenizer import load_tokenizer  # noqa: E402
from lavila_fast.train.augment import Crop  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.dali_data import ListBatches, ListConfig, _Draws, open_list, read_sentences  # noqa: E402
from lavila_fast.train.datasets.kitchen import VOCABULARIES, sentence_ids  # noqa: E402
from lavila_fast.train.datasets.samples import FrameRead, Sample, choose_frames  # noqa: E402
from lavila_fast.train.engines import TorchEngine  # noqa: E402
from lavila_fast.train.fresh import seeded  # noqa: E402
from lavila_fast.train.items import Items, Looks  # noqa: E402
from lavila_fast.train.kitchen_tasks import KitchenNarratorTask  # noqa: E402
from lavila_fast.train.optimisers import Optimisation  # noqa: E402
from lavila_fast.train.run import TrainingRun  # noqa: E402
from lavila_fast.train.schedules import Schedule  # noqa: E402
from lavila_fast.train.steps import Steps  # noqa: E402
from lavila_fast.video import sources  # noqa: E402
from lavila_fast.video.facts import read_facts  # noqa: E402
from lavila_fast.video.reader import read_clips  # noqa: E402
from lavila_fast.video.transforms import preprocess  # noqa: E402

STILL = ListConfig(img=32, decoder="pyav", area=(1, 1), jitter=False)
LEVELS = 4  # of 255: DALI's colours and the rounding to bytes

dali = pytest.mark.skipif(find_spec("nvidia") is None or find_spec("nvidia.dali") is None, reason="DALI not installed")


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three files that say their frames' numbers, one of them not for DALI on a CPU, and a list of clips."""
    folder = tmp_path_factory.mktemp("videos")
    write_video(folder / "a.webm", 150, codec="libvpx-vp9", options=VP9, size=(64, 64))
    write_video(folder / "b.mkv", 150, codec="mjpeg", pix_fmt="yuvj420p", size=(96, 64), start=1000)
    write_video(folder / "c.mp4", 150, size=(64, 96), start=2000)
    spans = [(0, 1), (1, 2), (2.1, 4), (4.5, 6)]
    rows = [{"video": v, "start": s, "end": e} for v, (s, e) in product(("a.webm", "b.mkv", "c.mp4"), spans)]
    said = [{**row, "text": all_actions()[37 * i].sentence} for i, row in enumerate(rows)]
    (folder / "list.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said))
    return folder


def opened(videos: Path, size: int = 6, seed: int = 0, **changed: object) -> ListBatches:
    config = replace(STILL, list=str(videos / "list.jsonl"), root=str(videos), **changed)
    return open_list(config, size, seed)


def test_an_epoch_shows_every_clip_as_the_reader_does(videos: Path) -> None:
    batches, seen = opened(videos), {}
    for step in range(2):
        frames, labels = batches.at(step)
        assert (frames.shape, frames.dtype) == ((6, 4, 32, 32, 3), np.uint8)
        seen |= {action_of(row).sentence: clip for row, clip in zip(labels, frames, strict=True)}
    assert len(seen) == 12
    for line in (videos / "list.jsonl").read_text().splitlines():
        row = json.loads(line)
        clip = Clip("v", row["start"], row["end"])
        (expected,) = read_clips(videos / row["video"], [clip], 4, lambda frame: preprocess(frame, 32))
        assert np.abs(seen[row["text"]] - expected.frames).max() <= 0.51


@dali
def test_dali_and_pyav_see_the_same(videos: Path) -> None:
    """Frames, crops and mirrors are drawn alike, whoever decodes; noise of the draws would be off by 100 levels."""
    drawn = {"area": (0.3, 1.0), "jitter": True, "mirror": 0.5, "img": 40}
    with_dali, with_pyav = opened(videos, decoder="dali", **drawn), opened(videos, **drawn)
    for step in (0, 3):
        (found, labels), (expected, same) = with_dali.at(step), with_pyav.at(step)
        np.testing.assert_array_equal(labels, same)
        assert np.abs(found.astype(int) - expected).max() <= LEVELS


@dali
def test_a_batch_depends_on_seed_and_step_alone(videos: Path) -> None:
    drawn = {"decoder": "dali", "area": (0.5, 1.0), "jitter": True, "mirror": 0.5}
    one = opened(videos, **drawn)
    whole = {step: one.at(step) for step in (0, 1, 2, 3)}
    again = opened(videos, **drawn)
    for step in (3, 1):  # resumed, and wound back
        np.testing.assert_array_equal(again.at(step)[0], whole[step][0])
    halves = [opened(videos, **drawn).at(3, rank, 2) for rank in (0, 1)]
    for rank, (frames, labels) in enumerate(halves):
        np.testing.assert_array_equal(frames, whole[3][0][rank::2])
        np.testing.assert_array_equal(labels, whole[3][1][rank::2])
    assert not np.array_equal(whole[0][1], whole[2][1])  # another epoch, another order
    other = opened(videos, seed=1, **drawn).at(0)
    assert not np.array_equal(other[1], whole[0][1])


class Filmed:
    """Clips of the three files, as data sets of recipes have them."""

    def __len__(self) -> int:
        return 6

    def sample(self, index: int, random: np.random.Generator | None = None) -> Sample:
        frames = tuple(choose_frames(20 * index, 20 * index + 40, 4, random))
        return Sample((FrameRead(("a.webm", "b.mkv", "c.mp4")[index % 3], frames),), black=index % 2, label=index)


@dali
@pytest.mark.parametrize("levels", [True, False])
def test_what_a_recipe_sees_does_not_depend_on_the_decoder(videos: Path, levels: bool) -> None:
    """Frames, parts, mirrors; PyAV reads the file that DALI cannot read on a CPU."""
    looks = Looks(24, (0.0,) * 3, (1.0,) * 3, Crop((0.3, 1.0)), flips=True, levels=levels)
    found, expected = (Items(Filmed(), videos, looks, decoder=name) for name in ("dali", "pyav"))
    keys = [(epoch, index) for epoch in range(2) for index in range(6)]
    for ours, plain in zip(found.__getitems__(keys), expected.__getitems__(keys), strict=True):
        assert ours["targets"] == plain["targets"]
        assert (ours["video"].dtype, ours["video"].shape) == (plain["video"].dtype, plain["video"].shape)
        assert np.abs(ours["video"].astype(float) - plain["video"]).max() <= LEVELS
    assert not found[0, 0]["missing"]
    moved = expected[1, 0]["video"].astype(float) - expected[0, 0]["video"]
    assert np.abs(moved).max() > 10 * LEVELS  # draws matter


def test_facts_of_a_file_are_read_once_and_anew_where_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, reads = tmp_path / "a.mp4", []
    write_video(path, 150, size=(64, 64))
    monkeypatch.setattr(sources, "read_facts", lambda file, most: (reads.append(file), read_facts(file, most))[1])
    clips = [Clip(str(path), start, 9.0) for start in (0.0, 0.5, 1.0)]
    batches = ListBatches(clips, np.zeros((3, 4), np.int64), replace(STILL, img=64), 3, ahead=0)
    assert number_of(batches.at(0)[0][0, -1]) > 100
    batches.at(1)
    before = len(reads)
    assert 1 <= before <= 3  # threads may ask at the same time
    write_video(path, 50, size=(64, 64))
    assert number_of(batches.at(2)[0][0, -1]) < 50
    assert before < len(reads) <= 2 * 3


def test_jitter_stays_within_its_segment(videos: Path) -> None:
    batches = ListBatches([Clip(str(videos / "a.webm"), 1, 4)], np.zeros((1, 4), np.int64), replace(STILL, img=64), 1)
    jittered = replace(batches, config=replace(batches.config, jitter=True))
    (middle, _), drawn = batches.at(0), set()
    assert [number_of(frame) for frame in middle[0]] == [34, 52, 71, 90]
    for step in range(12):
        numbers = [number_of(frame) for frame in jittered.at(step)[0][0]]
        assert all(abs(a - b) <= 9.5 for a, b in zip(numbers, (34, 52, 71, 90), strict=True))
        assert all(a < b for a, b in pairwise(numbers))
        drawn.add(tuple(numbers))
    assert len(drawn) == 12


def test_crops_cover_what_they_should() -> None:
    rng, config = np.random.default_rng(0), replace(STILL, area=(0.5, 1.0), mirror=0.25)
    batches = ListBatches([Clip("v", 0, 1)], np.zeros((1, 4), np.int64), config, 1)
    draws = [_Draws(rng.random(4), rng.random((10, 4)), rng.random()) for _ in range(400)]
    crops = np.array([batches._region(160, 100, draw) for draw in draws])
    mirrored = crops[:, 1] > crops[:, 3]
    assert 0.18 < mirrored.mean() < 0.32
    top, left, bottom, right = crops[:, 0], crops[:, [1, 3]].min(1), crops[:, 2], crops[:, [1, 3]].max(1)
    assert (top.min(), left.min(), bottom.max(), right.max()) == (0, 0, 100, 160)
    high, wide = bottom - top, right - left
    share, aspect = high * wide / 16_000, wide / high
    assert 0.48 < share.min() < 0.55
    assert 0.65 < share.max() <= 1
    assert 0.73 < aspect.min() < 1 < aspect.max() < 1.36
    for free in (top / np.maximum(100 - high, 1), left / np.maximum(160 - wide, 1)):
        assert 0.4 < free.mean() < 0.6


def test_a_file_that_cannot_be_read_is_named(videos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"no video")
    labels = np.zeros((1, 4), np.int64)
    with pytest.raises(VideoError, match=r"bad\.mp4: is not a video"):
        ListBatches([Clip(str(bad), 0, 1)], labels, STILL, 1).at(0)
    with pytest.raises(VideoError, match=r"a\.webm: clip 50-51 s lies after the end"):
        ListBatches([Clip(str(videos / "a.webm"), 50, 51)], labels, STILL, 1).at(0)


def test_lists_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "list.jsonl"
    path.write_text('{"video": "a.mp4", "start": 0, "end": 1, "text": "#C C dreams"}\n')
    with pytest.raises(InputError, match=r"list\.jsonl, line 1: .*dreams.*known text"):
        read_sentences(path, tmp_path)
    path.write_text('{"video": "a.mp4", "start": NaN, "end": 1, "text": "#C C dreams"}\n')
    with pytest.raises(InputError, match="no clip lasts from nan to 1"):
        read_sentences(path, tmp_path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"list\.jsonl: not UTF-8"):
        read_sentences(path, tmp_path)
    with pytest.raises(InputError, match="0 clips, 0 labels: no batch of 4"):
        ListBatches([], np.zeros((0, 4), np.int64), STILL, 4)


def test_only_a_newline_ends_a_row(tmp_path: Path) -> None:
    row = {"start": 0, "end": 1, "text": all_actions()[0].sentence}
    names = ["a\u2028b.mp4", "c\u0085d.mp4"]
    text = "".join(json.dumps({"video": name, **row}, ensure_ascii=False) + "\n" for name in names)
    (tmp_path / "list.jsonl").write_text(text, encoding="utf-8")
    clips, _ = read_sentences(tmp_path / "list.jsonl", tmp_path)
    assert [clip.video for clip in clips] == [str(tmp_path / name) for name in names]


def test_a_run_learns_from_files_and_resumes(videos: Path, tmp_path: Path) -> None:
    text = GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab=426, n_positions=32)
    vision = VisionConfig(img=16, patch=8, dim=32, depth=1, heads=1, act="gelu")
    data = replace(STILL, img=16, list=str(videos / "list.jsonl"), root=str(videos), area=(0.5, 1.0), jitter=True)
    config = NarratorConfig(vision, text, queries=2, pool_heads=1)
    ids = sentence_ids(load_tokenizer(VOCABULARIES["gpt2"], "gpt2", 32))

    class Said:
        """Batches with their sentences."""

        def __init__(self) -> None:
            self.plain = open_list(data, 4)

        def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
            batch = self.plain.batch(step, rank, world)
            assert batch.targets is not None
            return replace(batch, ids=ids[tuple(batch.targets.T)])

    def begun() -> TrainingRun:
        task = KitchenNarratorTask(seeded(lambda: NarratorModel(config), 0), hints=0.5, verbs=True)
        batches, rates = Said(), Schedule(1e-3, 4, 1, 1e-3).rates()
        return TrainingRun(task, TorchEngine(task, Optimisation()), batches, Steps(batches.plain.epoch, 4, 1), rates)

    losses = [row["loss"] for row in begun().steps()]
    first = begun()
    before = [row["loss"] for _, row in zip(range(2), first.steps(), strict=False)]
    first.save(tmp_path)
    second = begun()
    assert second.resume(tmp_path)
    assert before + [row["loss"] for row in second.steps()] == losses
    assert len(losses) == 4
