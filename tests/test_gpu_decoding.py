"""Decoding by units against PyAV's one pass: which frames, which pixels, and who reads what the units cannot serve.

DALI decodes VP9 and MJPEG on a CPU, torchcodec everything; so both are run here for real, on files whose frames carry
their number. Nothing of this has been run on a GPU.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_video_coded import numbers, write_sound, write_video
from test_video_units import FILES, VP9, film

from lavila_fast.bench.gpu.decoding import agreement, throughput
from lavila_fast.errors import InputError, MissingExtraError, VideoError
from lavila_fast.log import log_once
from lavila_fast.records import Clip
from lavila_fast.video import decoders as video_decoders
from lavila_fast.video.cpu.pyav_reader import PyavReader
from lavila_fast.video.decoders import unit_decoders
from lavila_fast.video.facts import read_facts
from lavila_fast.video.gpu import unit_reader
from lavila_fast.video.gpu.unit_reader import UnitReader
from lavila_fast.video.names import DECODERS, GPU_DECODERS
from lavila_fast.video.probe import open_file, probe
from lavila_fast.video.reader import read_clips
from lavila_fast.video.requests import ClipRequest, FileReader, FrameGate, Health, OpenClip
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

PLAIN = FrameTransform(48, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
LEVELS = 3.0  # of 255: DALI's colours differ from swscale's by rounding

dali = pytest.mark.skipif(find_spec("nvidia") is None or find_spec("nvidia.dali") is None, reason="DALI not installed")


@pytest.fixture(autouse=True)
def said_afresh() -> None:
    log_once.cache_clear()


def sliding(path: Path, clip: float = 1.0, stride: float = 0.7) -> list[Clip]:
    return list(expand_windows(VideoSource("v", path), clip, stride))


def shown(frames_3THW: np.ndarray) -> list[int]:
    """Numbers on the frames of a square file; a crop would cut them off."""
    return numbers(np.moveaxis(frames_3THW, 0, 3).round().clip(0, 255).astype(np.uint8))


def both(path: Path, clips: list[Clip], decoder: str = "dali", transform: FrameTransform = PLAIN) -> float:
    """Read with PyAV and `decoder`; the same clips in the same order. Largest difference of their pixels."""
    expected = list(read_clips(path, clips, 4, transform))
    found = list(read_clips(path, clips, 4, transform, decoder=decoder, device="cpu"))
    assert [one.clip for one in found] == [one.clip for one in expected]
    assert found[0].frames.shape == (3, 4, transform.size, transform.size)
    assert found[0].frames.dtype == np.float32
    return max(float(np.abs(a.frames - b.frames).max()) for a, b in zip(expected, found, strict=True))


def handed_over(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]


# ---- DALI, for real, on the CPU


@dali
@pytest.mark.parametrize(("name", "codec"), [("v.webm", "libvpx-vp9"), ("v.mp4", "libvpx-vp9"), ("v.mkv", "mjpeg")])
def test_dali_shows_the_same_frames(tmp_path: Path, name: str, codec: str, caplog: pytest.LogCaptureFixture) -> None:
    path = film(tmp_path / name, codec=codec, size=(64, 64), pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    clips = sliding(path)
    found = list(read_clips(path, clips, 4, PLAIN, decoder="dali", device="cpu"))
    expected = list(read_clips(path, clips, 4, PLAIN))
    assert [shown(one.frames) for one in found] == [shown(one.frames) for one in expected]
    assert both(path, clips) <= LEVELS
    assert not handed_over(caplog)


@dali
def test_dali_resizes_and_crops_alike(tmp_path: Path) -> None:
    """Noise, odd sizes up and down: a wrong pixel centre or crop would be off by tens of levels."""
    rng = np.random.default_rng(0)
    for number, (width, height) in enumerate([(322, 182), (66, 90)]):
        path = tmp_path / f"{number}.mkv"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mjpeg", rate=25, options={"qmin": "1", "qmax": "2"})
            stream.width, stream.height, stream.pix_fmt = width, height, "yuvj444p"
            stream.pix_fmt = "yuvj420p"
            for i in range(10):
                frame = av.VideoFrame(width, height, "yuvj420p")
                for plane in frame.planes:
                    low = rng.integers(0, 256, plane.buffer_size, np.uint8) if plane is frame.planes[0] else None
                    plane.update((np.full(plane.buffer_size, 128, np.uint8) if low is None else low).tobytes())
                frame.pts = i
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        assert both(path, [Clip("v", 0, 0.4)]) <= LEVELS


@dali
def test_normalised_like_the_readers(tmp_path: Path) -> None:
    path = film(tmp_path / "v.webm", 20)
    transform = FrameTransform(32, (108.3, 116.7, 104.1), (68.5, 66.6, 70.3))
    assert both(path, sliding(path, 0.4, 0.4), transform=transform) <= LEVELS / 66


@dali
def test_bt709_is_set_right(tmp_path: Path) -> None:
    """DALI's colours are BT.601 whatever the file says."""
    path = tmp_path / "v.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9", rate=25, options=VP9)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.colorspace = 96, 64, "yuv420p", 1
        for i in range(10):
            frame = av.VideoFrame(96, 64, "yuv420p")
            for plane, level in zip(frame.planes, (120, 90, 170), strict=True):
                plane.update(np.full(plane.buffer_size, level, np.uint8))
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    assert read_facts(path).matrix == 1
    assert both(path, [Clip("v", 0, 0.4)]) <= LEVELS
    as_601 = next(read_clips(path, [Clip("v", 0, 0.4)], 4, PLAIN, decoder="dali", device="cpu")).frames[:, 0, 0, 0]
    matrix = read_facts(path).recolour_33()
    assert matrix is not None
    assert np.abs(np.linalg.inv(matrix) @ as_601 - as_601).max() > 6


@dali
def test_variable_rate_follows_the_clock(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frames are found by their timestamps, which DALI's own readers cannot."""
    gaps = np.concatenate([np.full(50, 33), np.random.default_rng(0).integers(40, 300, 30), np.full(40, 20)])
    times = np.concatenate([[0], np.cumsum(gaps)[:-1]]).tolist()
    path = film(tmp_path / "v.webm", 120, rate=30, pts=times, time_base=Fraction(1, 1000), size=(64, 64))
    clips = sliding(path, 2.0, 1.5)
    found = [shown(one.frames) for one in read_clips(path, clips, 4, PLAIN, decoder="dali", device="cpu")]
    assert found == [shown(one.frames) for one in read_clips(path, clips, 4, PLAIN)]
    info = probe(path)
    assert any(number != round(i) for number, i in zip(found[3], np.linspace(0, info.frames, 4), strict=True))
    assert not handed_over(caplog)


@dali
def test_far_into_a_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = film(tmp_path / "v.webm", 900, size=(64, 64), rate=25)
    clips = [Clip("v", 30.2, 31), Clip("v", 33, 35), Clip("v", 33.5, 34.1)]
    found = [shown(one.frames) for one in read_clips(path, clips, 4, PLAIN, decoder="dali", device="cpu")]
    assert found == [shown(one.frames) for one in read_clips(path, clips, 4, PLAIN)]
    assert not handed_over(caplog)


@dali
def test_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit with more frames than fit is decoded in parts, and clips may need several batches."""
    path = film(tmp_path / "v.webm", size=(64, 64))
    monkeypatch.setattr(unit_reader, "_BYTES", 64 * 64 * 3 * 3)
    monkeypatch.setattr(unit_reader, "_UNITS", 2)
    (decoder,), sizes = unit_decoders("dali", 48, "cpu"), []
    plain = decoder.decode
    monkeypatch.setattr(decoder, "decode", lambda asked: sizes.append([len(r.ordinals) for r in asked]) or plain(asked))
    assert both(path, sliding(path)) <= LEVELS
    assert max(map(sum, sizes)) == 3


@dali
def test_a_folder_of_chunks(tmp_path: Path) -> None:
    folder = tmp_path / "v.mp4"
    folder.mkdir()
    for start in (0, 300):
        write_video(folder / f"{start}.mkv", 600, 2, codec="libvpx-vp9", options=VP9, size=(64, 32), start=start * 2)
    assert both(folder, [Clip("v", 10, 20), Clip("v", 295, 305), Clip("v", 400, 402)]) <= LEVELS


# ---- the gate that all frames pass


class FakeDecoder:
    """Frames of one grey each, the unit's number of the frame, on (S, S, 3) as a library gives them."""

    name = "fake"

    def why_not(self, facts: Any) -> str:
        return ""

    def decode(self, requests: Any) -> list[Any]:
        return [np.stack([np.full((48, 48, 3), i, np.float32) for i in one.ordinals]) for one in requests]


@pytest.mark.parametrize("by", ["pyav", "units", "plain"])
def test_each_wanted_frame_passes_one_gate_once(tmp_path: Path, by: str) -> None:
    """Clips that overlap share frames; what a filter gives is what the transform gets."""
    path, seen = film(tmp_path / "v.webm", 50), []

    def count(frame: Any) -> Any:
        seen.append(frame)
        return np.full_like(frame, 7) if by == "units" else frame

    ids = [[3, 9, 9, 12], [9, 12, 30, 41]]
    times = [[i / 25 for i in each] for each in ids]
    clips = [OpenClip.empty(Clip("v", i, i + 1), 4) for i in range(2)]
    requests = [ClipRequest(clip, wanted) for clip, wanted in zip(clips, times, strict=True)]
    reader: FileReader = UnitReader((FakeDecoder(),), "cpu") if by == "units" else PyavReader()
    gate = FrameGate(None if by == "plain" else PLAIN, (count,))
    with open_file(path) as file:
        done = list(reader.read(file, requests, gate, 1, Health()))
    assert done == clips
    assert len(seen) == 5  # 3, 9, 12, 30, 41
    shapes = {one.shape for clip in clips for one in clip.images}
    assert shapes == {(64, 96, 3) if by == "plain" else (3, 48, 48)}
    if by == "units":
        assert {shape.shape for shape in seen} == {(48, 48, 3)}
        assert all((image == 7).all() for clip in clips for image in clip.images)
    else:
        assert all(isinstance(frame, av.VideoFrame) for frame in seen)


# ---- what PyAV is left with


@dali
@pytest.mark.parametrize(
    ("codec", "suffix", "turn", "pixels", "reason"),
    [
        ("libx264", "mp4", 0, "yuv420p", "h264 on GPUs only"),
        ("mjpeg", "mov", 90, "yuvj420p", "turned by 90"),
        ("mjpeg", "mkv", 0, "yuvj444p", "pixel format yuvj444p"),
        ("mjpeg", "avi", 0, "yuvj420p", "container avi"),
    ],
)
def test_pyav_reads_what_dali_cannot(
    tmp_path: Path,
    codec: str,
    suffix: str,
    turn: int,
    pixels: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = write_video(tmp_path / f"v.{suffix}", 50, codec=codec, turn=turn, pix_fmt=pixels, size=(64, 64))
    assert both(path, sliding(path)) == 0
    assert both(path, sliding(path)) == 0
    assert [reason in line for line in handed_over(caplog)] == [True]  # said once


def outcome(path: Path, clips: list[Clip], **how: Any) -> tuple[list[Clip], str]:
    """Clips that were read, and the error that followed."""
    done: list[Clip] = []
    read = read_clips(path, clips, 4, PLAIN, **how)
    try:
        done.extend(one.clip for one in read)
    except VideoError as error:
        return done, str(error)
    return done, ""


@dali
def test_errors_are_the_readers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = film(tmp_path / "whole.webm", 200)
    clips = sliding(whole)
    files = {"whole": whole, "missing": tmp_path / "missing.mkv", "sound": write_sound(tmp_path / "sound.mp4", 1)}
    for name, content in {"empty": b"", "text": b"no video", "cut": whole.read_bytes()[:-4000]}.items():
        files[name] = tmp_path / f"{name}.webm"
        files[name].write_bytes(content)
    fast = film(tmp_path / "fast.mp4", 200, container_options={"movflags": "faststart"})
    files["torn"] = tmp_path / "torn.mp4"
    files["torn"].write_bytes(fast.read_bytes()[: fast.stat().st_size * 2 // 3])
    files["head"] = tmp_path / "head.webm"
    files["head"].write_bytes(whole.read_bytes()[:600])
    failed = {}
    for name, path in files.items():
        expected = outcome(path, clips)
        assert outcome(path, clips, decoder="dali") == expected, name
        failed[name] = bool(expected[1])
    assert failed == {name: name != "whole" for name in files}
    assert handed_over(caplog) == [
        "torn.mp4: hidden or damaged frames: decoded by PyAV",
        "head.webm: it ends early: decoded by PyAV",
    ]
    late = [Clip("v", 1, 2), Clip("v", 100, 102)]
    done, error = outcome(whole, late, decoder="dali")
    assert (done, error) == outcome(whole, late)
    assert "1 of 2 clips could not be read" in error


@dali
def test_a_decoder_that_fails_midway(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Clips that were complete stay DALI's, the others are read anew, none is lost or doubled."""
    path = film(tmp_path / "v.webm", size=(64, 64))
    (made,) = unit_decoders("dali", 48, "cpu")

    class Failing:
        name, calls, why_not = "failing", 0, made.why_not

        def decode(self, requests: Any) -> Any:
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("the decoder is gone\nand more")
            return made.decode(requests)

    clips = sliding(path, 1.0, 0.3)
    plain = [one.frames for one in read_clips(path, clips, 4, PLAIN)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unit_reader, "_UNITS", 1)
        patch.setattr(video_decoders, "unit_decoders", lambda *_: (Failing(),))
        found = list(read_clips(path, clips, 4, PLAIN, decoder="dali", device="cpu"))
    assert [one.clip for one in found] == clips
    assert all(np.abs(one.frames - frames).max() <= LEVELS for one, frames in zip(found, plain, strict=True))
    same = [np.array_equal(one.frames, frames) for one, frames in zip(found, plain, strict=True)]
    assert not same[0]
    assert same[-1]
    assert handed_over(caplog) == ["v.webm: failing failed (the decoder is gone): decoded by PyAV"]


# ---- the choice


def test_the_choice_is_said_and_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"unknown; take one of auto, pyav, hwaccel, dali"):
        unit_decoders("nvdec", 48, "cpu")
    assert unit_decoders("pyav", 48, "cpu") == unit_decoders("auto", 48, "cpu") == ()
    with pytest.raises(InputError, match="on a GPU only"):
        video_decoders.NvCodecDecoder(48, "cpu")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, extra in [("dali", "dali"), ("torchcodec", "torchcodec")]:
        with pytest.raises(MissingExtraError, match=rf"lavila-fast\[{extra}\]"):
            unit_decoders(name, 7, "cpu")


def test_one_entrance_whatever_the_transform(tmp_path: Path) -> None:
    """Source size and other transforms are PyAV's; a library asked for by name says that it cannot."""
    path = film(tmp_path / "v.webm", 20)
    for how in ({}, {"decoder": "auto"}, {"decoder": "pyav", "device": "cpu"}):
        (one,) = read_clips(path, [Clip("v", 0, 0.4)], 4, **how)
        assert (one.frames.shape, one.frames.dtype) == ((4, 64, 96, 3), np.uint8)
    with pytest.raises(InputError, match="decoder dali: resizes and crops; give a FrameTransform, or take"):
        next(read_clips(path, [Clip("v", 0, 0.4)], 4, decoder="dali"))


def test_a_machine_with_nothing_of_nvidia(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia", None)
    monkeypatch.delitem(sys.modules, "nvidia.dali", raising=False)
    with pytest.raises(MissingExtraError, match="NVIDIA DALI is not installed"):
        unit_decoders("dali", 8, "cpu")


def test_no_gpu_is_said() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    for name in DECODERS:
        with pytest.raises(InputError, match="no GPU that PyTorch can use; take device cpu"):
            unit_decoders(name, 48, "cuda")


def test_importing_brings_no_heavy_library() -> None:
    code = "import sys, lavila_fast.video.reader; print([m for m in ('torch', 'nvidia.dali') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@dali
def test_throughput_counts(tmp_path: Path) -> None:
    path = film(tmp_path / "v.webm")
    found = throughput([path, path], "dali", "cpu", size=32, clip_seconds=1.0)
    assert (found["clips"], found["decoder"]) == (8, "dali")
    assert found["frames_per_s"] == pytest.approx(4 * found["clips_per_s"])
    assert found["video_seconds_per_s"] == pytest.approx(8 / found["seconds"])


@dali
def test_agreement_is_measured(tmp_path: Path) -> None:
    path = film(tmp_path / "v.webm", 150)
    found = agreement(path, "dali", "cpu", size=32)
    assert found["clips"] == 3
    assert 0 < found["mean"] <= found["p99.9"] <= found["max"] <= LEVELS
    assert agreement(path, "pyav", "cpu", size=32)["max"] == 0


# ---- on a GPU, where there is one: never run yet


@pytest.mark.parametrize("decoder", GPU_DECODERS)
@pytest.mark.parametrize("codec", ["libx264", "libx265"])
def test_on_a_gpu(tmp_path: Path, decoder: str, codec: str, caplog: pytest.LogCaptureFixture) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    try:
        unit_decoders(decoder, 256, "cuda")
    except MissingExtraError as error:
        pytest.skip(str(error))
    path = film(tmp_path / "v.mp4", 150, codec=codec, size=(256, 256))
    large = FrameTransform(256, (0.0,) * 3, (1.0,) * 3)
    clips = sliding(path)
    found = list(read_clips(path, clips, 4, large, decoder=decoder, device="cuda"))
    assert all(one.frames.is_cuda for one in found)
    expected = [shown(one.frames) for one in read_clips(path, clips, 4, large)]
    assert [shown(one.frames.cpu().numpy()) for one in found] == expected
    assert not handed_over(caplog)
    off = agreement(path, decoder, "cuda", size=256)
    assert off["mean"] < 1.5, off


# ---- torchcodec, in a process of its own that finds PyAV's FFmpeg libraries


TORCHCODEC = """
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from lavila_fast.records import Clip
from lavila_fast.video.reader import read_clips
from lavila_fast.video.transforms import FrameTransform
plain, found = FrameTransform(48, (0.0,) * 3, (1.0,) * 3), {}
clips = [Clip("v", i / 2, i / 2 + 1) for i in range(7)]
for path in map(Path, sys.argv[1:]):
    expected = list(read_clips(path, clips, 4, plain))
    seen = list(read_clips(path, clips, 4, plain, decoder="torchcodec", device="cpu"))
    assert [one.clip for one in seen] == [one.clip for one in expected]
    found[path.name] = max(float(np.abs(a.frames - b.frames).max()) for a, b in zip(expected, seen))
print(json.dumps(found))
"""


# The loader of all recipes: what is drawn and shown, whoever decodes. Parts are larger than what a model sees, so that
# none is enlarged, which looks beyond its borders.
LOADER = """
import json, sys
from pathlib import Path
import numpy as np, torch
torch.set_num_threads(1)
from lavila_fast.train.augment import Crop
from lavila_fast.train.datasets.samples import FrameRead, Sample, choose_frames
from lavila_fast.train.items import Items, Looks
class Filmed:
    def __init__(self, file): self.file = file
    def __len__(self): return 4
    def sample(self, index, random=None):
        frames = choose_frames(20 * index, 20 * index + 30, 4, random)
        return Sample((FrameRead(self.file, tuple(frames)),), label=index)
looks, found = Looks(32, (0.0,) * 3, (1.0,) * 3, Crop((0.5, 1.0)), flips=True), {}
keys = [(epoch, index) for epoch in range(2) for index in range(4)]
for path in map(Path, sys.argv[1:]):
    ways = [Items(Filmed(path.name), path.parent, looks, decoder=name) for name in ("pyav", "torchcodec")]
    plain, seen = (items.__getitems__(keys) for items in ways)
    assert not np.allclose(plain[0]["video"], plain[4]["video"], atol=20)
    found[path.name] = max(float(np.abs(a["video"] - b["video"]).max()) for a, b in zip(plain, seen, strict=True))
print(json.dumps(found))
"""


@pytest.mark.skipif(find_spec("torchcodec") is None, reason="torchcodec not installed")
@pytest.mark.parametrize("program", [TORCHCODEC, LOADER], ids=["reader", "loader"])
def test_torchcodec_shows_the_same_frames(tmp_path: Path, program: str) -> None:
    libraries = Path(av.__file__).parents[1] / "av.libs"
    found = {library.name.split("-")[0]: library for library in libraries.glob("lib*.so.*")}
    for name in ("avcodec", "avdevice", "avfilter", "avformat", "avutil", "swresample", "swscale"):
        if (library := found.get(f"lib{name}")) is None:
            pytest.skip("PyAV does not bring FFmpeg's libraries here")
        major = library.name.split(".so.")[1].split(".")[0]
        (tmp_path / f"lib{name}.so.{major}").symlink_to(library)
    files = []
    for name, (codec, options, pixels, _) in FILES.items():
        files.append(film(tmp_path / name, codec=codec, options=options, pix_fmt=pixels, size=(128, 64)))
    places = f"{tmp_path}:{libraries}:{os.environ.get('LD_LIBRARY_PATH', '')}"
    call = [sys.executable, "-c", program, *map(str, files)]
    done = subprocess.run(call, capture_output=True, text=True, env={**os.environ, "LD_LIBRARY_PATH": places})
    if "libtorchcodec" in done.stderr:
        pytest.skip("torchcodec finds no FFmpeg that it knows")
    assert done.returncode == 0, done.stderr
    off = json.loads(done.stdout.splitlines()[-1])
    assert set(off) == set(FILES)
    assert max(off.values()) <= 0.01, off
    assert not [line for line in done.stderr.splitlines() if "decoded by PyAV" in line]
