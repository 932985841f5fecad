"""From a video file to narrations, in order, lazily, and with everything good said before the trouble."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny

pytest.importorskip("torch")

from lavila_fast import Clip, Narration, Narrator
from lavila_fast.archive.journals.identity import difference
from lavila_fast.archive.request import Request
from lavila_fast.archive.work import Narrating
from lavila_fast.engines.sampling import Warp
from lavila_fast.errors import BundleError, CheckpointError, InputError, ModelNotFoundError, VideoError
from lavila_fast.export.sources import find_checkpoint
from lavila_fast.files import sha256
from lavila_fast.generate.options import Options
from lavila_fast.generate.randomness import clip_key
from lavila_fast.generate.scheduler import EncodedClip, write_samples
from lavila_fast.presets import CHECKPOINTS
from lavila_fast.pretrained import ASSETS, find_model
from lavila_fast.video.clips import windows
from lavila_fast.video.content import content_id
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource
from lavila_fast.video.transforms import normalise, preprocess


@pytest.fixture(scope="module")
def narrator(tiny_bundle):
    return Narrator.from_pretrained(tiny_bundle, threads=1)


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return tiny.film(tmp_path_factory.mktemp("film") / "kitchen.mp4", seconds=12)


def test_every_window_is_narrated_in_order(narrator, video):
    found = list(narrator.narrate(video, clip_seconds=2.0, stride_seconds=1.5, options=Options(3)))
    expected = [(s, e, i) for s, e in windows(12.0, 2.0, 1.5) for i in range(3)]
    assert len(expected) > 20
    assert [(n.start, n.end, n.sample) for n in found] == expected
    assert all(isinstance(n, Narration) and n.video == str(video) for n in found)
    assert all(n.perplexity >= 1.0 and n.logprob <= 0.0 for n in found)
    assert len({n.text for n in found}) > 5


def test_the_models_own_clip_length_is_the_default(narrator, video):
    assert [(n.start, n.end) for n in narrator.narrate(str(video))] == list(windows(12.0, 2.0, 2.0))
    longer = replace(narrator, clip_seconds=5.0)
    assert [(n.start, n.end) for n in longer.narrate(video)] == list(windows(12.0, 5.0, 5.0))


def test_the_road_step_by_step(narrator, video):
    """The same clips by hand: decode whole frames, preprocess, normalise, encode, write, decode the words."""
    clips = [Clip(str(video), s, e) for s, e in windows(12.0, 2.0, 2.0)]
    options, runtime, vision = Options(2, seed=5), narrator.runtime, narrator.config.vision
    expected = []
    for one in read_clips(video, clips, vision.frames):
        frames = np.stack([preprocess(frame, vision.img) for frame in one.frames])
        context = runtime.encode(normalise(frames, vision.mean, vision.std)[None])
        task = EncodedClip(None, clip_key(5, content_id(video), one.clip.start), context)
        ((_, sentences),) = write_samples(runtime, [task], options, 1)
        for i, s in enumerate(sentences):
            text = narrator.tokenizer.decode(s.ids, clean=True).strip()
            expected.append(Narration(str(video), one.clip.start, one.clip.end, i, text, s.perplexity, s.logprob))
    assert list(narrator.narrate(video, options=options, batch=3)) == expected


def test_random_numbers_are_the_content_s_and_not_the_name_s(narrator, video, tmp_path):
    """Cameras call every first film of a card the same."""
    other = tiny.film(tmp_path / video.name, seconds=12)
    other.write_bytes(other.read_bytes() + b"\0")  # the same pictures
    copied = shutil.copy(video, tmp_path / "GH010001.MP4")
    texts = [[one.text for one in narrator.narrate(path, options=Options(2))] for path in (video, other, copied)]
    assert texts[0] == texts[2] != texts[1]


@pytest.mark.parametrize("batch", [1, 2, 16])
@pytest.mark.parametrize(
    "options", [Options(2, seed=1), Options(2, Warp(1.0), 4, 2), Options(2, Warp(1.0), 3)], ids=str
)
def test_batch_and_folder_change_nothing(narrator, video, tmp_path, batch, options):
    moved = shutil.copy(video, tmp_path)
    reference = list(narrator.narrate(video, clip_seconds=3.0, options=options, batch=4))
    found = narrator.narrate(moved, clip_seconds=3.0, options=options, batch=batch)
    assert [replace(one, video=str(video)) for one in found] == reference


def test_the_checkpoint_says_what_its_bundle_says(narrator, tiny_bundle, video):
    """Once through PyTorch, once through ONNX Runtime."""
    weights = tiny_bundle.parent / "narrator.safetensors"
    other = Narrator.from_pretrained(weights, threads=1, tokenizer=tiny_bundle.parent / "words.json")
    options = Options(4, seed=2)
    for a, b in zip(narrator.narrate(video, options=options), other.narrate(video, options=options), strict=True):
        assert (a.start, a.sample, a.text) == (b.start, b.sample, b.text)
        assert a.perplexity == pytest.approx(b.perplexity, rel=1e-4)
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)
    assert narrator.fingerprint != other.fingerprint
    digest, _, engine = narrator.fingerprint.partition(", ")
    assert len(digest) == 16
    assert engine == narrator.runtime.identity


def test_clips_are_decoded_just_in_time(narrator, video):
    """While a clip is written no more than the batch lies decoded, and what was handed on is let go."""
    clips = [Clip("v", s, e) for s, e in windows(12.0, 1.0, 0.5)]
    source, pulled = VideoSource("v", video), []

    def decoded():
        for one in narrator.read(source, clips):
            pulled.append(one.clip)
            yield one

    written = narrator.narrate_clips(decoded(), Options(warp=Warp(0), max_tokens=6), batch=3)
    assert pulled == []
    ahead = []
    for number, _ in enumerate(written):
        ahead.append(len(pulled) - number)
    assert len(pulled) == len(clips) == len(ahead)
    assert max(ahead) <= 2 * 3  # three in flight while three, finished together, wait to be handed out


def test_a_run_writes_the_first_clip_before_it_needs_the_second(narrator, video, tmp_path, monkeypatch):
    """Somebody waits for it: decoding stands still until its row is in the file."""
    out, waited = tmp_path / "out.jsonl", []
    plain = Narrator.read

    def slowly(self, source, clips, *given, **named):
        for number, one in enumerate(plain(self, source, clips, *given, **named)):
            if number == 1:
                deadline = time.monotonic() + 60
                while not (out.exists() and out.stat().st_size) and time.monotonic() < deadline:
                    time.sleep(0.01)
                waited.append(out.exists() and out.stat().st_size > 0)
            yield one

    monkeypatch.setattr(Narrator, "read", slowly)
    request = Request((str(video),), Narrating(Options()), output=str(out), quiet=True, workers=1)
    found = request.find()
    summary = request.run(narrator, "tiny", found, request.choose_output(found))
    assert waited == [True]
    assert summary.clips == len(out.read_text().splitlines()) == 6


@pytest.mark.parametrize("batch", [1, 4])
def test_what_is_good_comes_before_the_error(narrator, tmp_path, batch):
    film = tiny.film(tmp_path / "kitchen.mkv", seconds=12)  # Matroska can be read up to where it ends
    greedy = Options(warp=Warp(0))  # a file cut short is another one, and draws other numbers
    whole = list(narrator.narrate(film, clip_seconds=1.0, options=greedy))
    film.write_bytes(film.read_bytes()[: int(film.stat().st_size * 0.55)])
    found = []
    with pytest.raises(VideoError, match=r"kitchen\.mkv: ends at .* of 12\.0 s") as caught:
        found.extend(narrator.narrate(film, clip_seconds=1.0, options=greedy, batch=batch))
    assert "\n" not in str(caught.value)
    assert 3 <= len(found) < 12
    assert found[:-1] == whole[: len(found) - 1]  # the last may repeat its last readable frame


def test_a_sentence_about_substitutes_says_so(narrator, video):
    clips = list(narrator.read(VideoSource("v", video), [Clip("v", 0, 2), Clip("v", 2, 4), Clip("v", 4, 6)]))
    clips[1] = replace(clips[1], damaged=True)
    said = [rows[0] for rows in narrator.narrate_clips(clips, batch=2)]
    assert [one.damaged for one in said] == [False, True, False]
    assert [one.to_dict().get("damaged") for one in said] == [None, True, None]


@pytest.mark.parametrize("content", [None, b"", b"This is not a video.\n" * 50])
def test_no_video_at_all(narrator, tmp_path, content):
    path = tmp_path / "v.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(VideoError, match=r"v\.mp4"):
        list(narrator.narrate(path))


def test_names_that_stand_for_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"poet: no such file or folder, nor a model's name; .*models list"):
        Narrator.from_pretrained("poet")
    with pytest.raises(InputError, match=r"narrator-base: not fetched yet .*models pull narrator-base"):
        Narrator.from_pretrained("narrator-base")
    with pytest.raises(BundleError, match="not a bundle"):
        Narrator.from_pretrained(tmp_path)
    (tmp_path / "weights.pth").write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match=r"weights\.pth"):
        Narrator.from_pretrained("weights.pth")


def test_a_checkpoint_and_its_vocabulary(monkeypatch, tmp_path, tiny_bundle):
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "cache"))
    weights = shutil.copy(tiny_bundle.parent / "narrator.safetensors", tmp_path)
    with pytest.raises(CheckpointError, match="no gpt2 vocabulary beside it; give --tokenizer"):
        Narrator.from_pretrained(weights, threads=1)
    shutil.copy(tiny_bundle.parent / "words.json", tmp_path / "narrator.tokenizer.json")
    assert Narrator.from_pretrained(weights, threads=1).tokenizer.vocab_size == tiny.VOCAB


def test_a_checkpoint_with_another_vocabulary_is_another_narrator(tmp_path, tiny_bundle):
    weights = Path(shutil.copy(tiny_bundle.parent / "narrator.safetensors", tmp_path))
    words = Path(shutil.copy(tiny_bundle.parent / "words.json", tmp_path / "narrator.tokenizer.json"))

    def opened(tokenizer=None):
        return Narrator.from_pretrained(weights, threads=1, tokenizer=tokenizer).fingerprint

    first = opened()
    assert opened(tiny_bundle.parent / "words.json") == first
    told = json.loads(words.read_text(encoding="utf-8"))
    vocab = told["model"]["vocab"]
    a, b = list(vocab)[3:5]
    vocab[a], vocab[b] = vocab[b], vocab[a]
    words.write_text(json.dumps(told), encoding="utf-8")
    changed = opened()
    assert changed != first
    # Versions before noted the weights alone: their journals are another model's, and are said to be.
    before = {"model": f"m ({sha256(weights)[:16]}, {first.partition(', ')[2]})"}
    assert "was begun with model m (" in (difference(before, {"model": f"m ({first})"}) or "")


def test_a_name_means_the_same_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "cache"))
    pulled = tmp_path / "cache" / CHECKPOINTS["narrator-base"].relative
    pulled.parent.mkdir(parents=True)
    pulled.touch()
    assert find_model("nano") == find_model(Path("nano")) == ASSETS / "nano"
    assert find_model("narrator-base") == find_checkpoint("narrator-base") == pulled
    for name in ("nano", "narrator-base"):
        Path(name).mkdir()
    assert find_model("nano") == ASSETS / "nano"  # the default model, wherever one stands
    assert find_model("./nano") == find_model(Path("nano")) == Path("nano")
    assert find_model("narrator-base") == Path("narrator-base")
    with pytest.raises(InputError, match="narrator-base: a folder, and no checkpoint"):
        find_checkpoint("narrator-base")
    with pytest.raises(ModelNotFoundError, match=r"narrator-bas: no such file .* did you mean narrator-base"):
        find_model("narrator-bas")


def test_an_engine_tells_all_that_sentences_depend_on(tiny_model):
    """Vector widths round float32 sums differently; INT8 sums are exact, but AMX runs some attention in bfloat16."""
    from lavila_fast.engines.host.eager import TorchRuntime
    from lavila_fast.engines.host.native import native_identity
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime

    floats = {"w": np.zeros(1, np.float32)}
    low = floats | {"v": np.zeros(1, np.int8)}
    assert {native_identity(i, floats) for i in ("amx", "vnni", "avx512")} == {"native avx512"}
    assert native_identity("avx2", floats) == native_identity("avx2", low) == "native avx2"
    assert native_identity("amx", low) != native_identity("vnni", low) == native_identity("avx512", low)
    low_bit, gpu = TorchGpuRuntime(tiny_model, "cpu", "int8"), TorchGpuRuntime(tiny_model, "cpu", "fp32")
    assert len({one.identity for one in (TorchRuntime(tiny_model), low_bit, gpu)}) == 3
    assert (gpu.writer, gpu.device, TorchRuntime(tiny_model).writer) == ("ahead", "cpu", "steps")


@pytest.mark.parametrize("options", [Options(2, seed=3), Options(2, Warp(1.0), 4, 2)], ids=["samples", "beams"])
def test_whoever_writes_the_sentences_are_the_same(narrator, tiny_model, video, options):
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime

    ahead = replace(narrator, runtime=TorchGpuRuntime(tiny_model, "cpu", "fp32", slots=3))
    texts = [[one.text for one in some.narrate(video, options=options)] for some in (narrator, ahead)]
    assert texts[0] == texts[1]
