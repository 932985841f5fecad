"""Training: losses as the original's, batches that depend on the step alone, runs that resume and split exactly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from lavila_fast.config import ClipTextConfig, DualEncoderConfig, GPT2Config, NarratorConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import CheckpointError, InputError  # noqa: E402
from lavila_fast.evaluate import kitchen as evaluate_kitchen  # noqa: E402
from lavila_fast.evaluate.clips import Clips, action_of, filmed_clips, labels_of  # noqa: E402
from lavila_fast.kitchen.world import HELD_OUT_PAIRS, all_actions  # noqa: E402
from lavila_fast.models.load import load_narrator  # noqa: E402
from lavila_fast.train import evaluate_kitchen as evaluate_files  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.checkpoints import Checkpoints  # noqa: E402
from lavila_fast.train.data import Batches, DataConfig, open_clips, render_one  # noqa: E402
from lavila_fast.train.kitchen_tasks import features, make_task, narrator_tokenizer, text_tokenizer  # noqa: E402
from lavila_fast.train.loop import KitchenRun, train  # noqa: E402
from lavila_fast.train.losses import caption_loss, clip_loss, contrastive_rows, max_margin_loss  # noqa: E402
from lavila_fast.train.portable import AVERAGE, read_tensors  # noqa: E402
from lavila_fast.train.recipes import RECIPES, Recipe  # noqa: E402
from lavila_fast.train.ship import main as ship_files  # noqa: E402
from lavila_fast.train.ship import ship  # noqa: E402

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
VISION = VisionConfig(img=16, patch=8, dim=32, depth=1, heads=1, act="gelu")
NARRATOR = NarratorConfig(
    VISION, GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab=426, n_positions=32), queries=2, pool_heads=1
)
DUAL = DualEncoderConfig(VISION, ClipTextConfig(width=32, heads=1, layers=1, vocab=664, context=32), 16)
DATA = DataConfig(clips=48, sizes=((32, 24),), img=16)
TINY = Recipe("tiny", NARRATOR, DATA, steps=6, batch_size=16, warmup=2, lr=3e-3, bfloat16=False, save_every=3)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def clips():
    frames, labels = zip(*(render_one(DATA, i) for i in range(DATA.clips)), strict=True)
    return Clips(np.stack(frames), np.array(labels))


def golden(name):
    if not (GOLDEN / f"{name}.npz").is_file():
        pytest.skip(f"no {name}.npz in {GOLDEN}")
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def losses(run, most=100):
    return [row["loss"] for _, row in zip(range(most), run.steps(), strict=False)]


@pytest.mark.parametrize("name", ["narrator_every_layer", "narrator_every_3rd_layer"])
def test_caption_loss_is_the_originals(name):
    data = golden(name)
    found = caption_loss(data["logits"], data["text"][:, 1:].long())
    assert float(found.loss) == pytest.approx(float(data["caption_loss"]), abs=1e-4)
    assert float(found.perplexity) == pytest.approx(float(data["caption_ppl"]), rel=1e-4)


def test_clip_loss_is_the_originals():
    data = golden("dual_encoder_clip")
    found = clip_loss(data["video_embed"], data["text_embed"], data["logit_scale"])
    assert float(found) == pytest.approx(float(data["clip_loss"]), abs=2e-4)


def test_other_contrastive_losses_are_the_originals():
    data = golden("dual_encoder_clip")
    video, text = data["video_embed"], data["text_embed"]
    found = {
        "ssl_clip_loss": contrastive_rows(
            video, text, data["logit_scale"], torch.tensor(1 / 0.08), data["is_human_narration"]
        ).loss,
        "max_margin_loss_0p2": max_margin_loss(video, text, 0.2),
        "adaptive_max_margin_loss_0p4": max_margin_loss(video, text, 0.4, data["relevancy"]),
    }
    for name, loss in found.items():
        assert float(loss) == pytest.approx(float(data[name]), abs=2e-4), name


def test_clip_loss_leaves_out_the_same_thing_said_twice():
    torch.manual_seed(0)
    video, text = torch.nn.functional.normalize(torch.randn(2, 4, 8), dim=-1)
    text[3] = text[1]
    same = torch.eye(4, dtype=torch.bool)
    same[1, 3] = same[3, 1] = True
    rows = [row for row in range(4) if row != 3]
    logits = 5 * video @ text.T
    expected = -torch.stack([logits[1, 1] - logits[1, rows].logsumexp(0), logits[1, 1] - logits[rows, 1].logsumexp(0)])
    found = clip_loss(video, text, torch.tensor(5.0), same)
    without = clip_loss(video, text, torch.tensor(5.0))
    assert found < without
    kept = logits.masked_fill(same & ~torch.eye(4, dtype=torch.bool), float("-inf"))
    parts = [kept.logsumexp(1) - kept.diag(), kept.logsumexp(0) - kept.diag()]
    torch.testing.assert_close(torch.stack([part[1] for part in parts]), expected)
    assert float(found) == pytest.approx(float(torch.stack(parts).mean()), abs=1e-5)


def test_labels_and_actions_are_each_others_inverse():
    assert all(action_of(np.array(labels_of(action))) == action for action in all_actions())


def test_cache_gives_what_was_rendered(tmp_path):
    config = DataConfig(clips=3, sizes=((24, 16),), img=8, frames=1)
    first, again = (open_clips(config, tmp_path) for _ in range(2))
    assert len(list(tmp_path.glob("*/*.npz"))) == 1
    np.testing.assert_array_equal(first.frames, again.frames)
    frames, labels = render_one(config, 2)
    np.testing.assert_array_equal(first.frames[2], frames)
    assert tuple(first.labels[2]) == labels
    assert config.digest != replace(config, shift=0.0).digest


def test_a_batch_depends_on_its_step_alone(clips):
    whole = Batches(clips, 16, seed=3)
    frames, labels = whole.at(5)
    shares = [whole.at(5, rank, 2) for rank in range(2)]
    np.testing.assert_array_equal(frames[0::2], shares[0][0])
    np.testing.assert_array_equal(labels[1::2], shares[1][1])
    assert not np.array_equal(frames, whole.at(6)[0])
    assert Batches(clips, 16, seed=3, still=True).at(5)[0].shape == (16, 1, 16, 16, 3)
    epoch = np.concatenate([whole.at(step)[1][:, 1:3] for step in range(3)])
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, clips.labels[:, 1:3]))


def test_symmetries_change_what_is_said_and_never_show_held_out_pairs():
    rng = np.random.default_rng(0)
    shown = [a for a in all_actions() if (a.verb, a.obj) not in HELD_OUT_PAIRS]
    frames = rng.integers(0, 200, (len(shown), 2, 8, 8, 3), dtype=np.uint8)
    plain = Clips(frames, np.array([labels_of(action) for action in shown]))
    drawn = [action_of(row) for step in range(8) for row in Batches(plain, 256).at(step)[1]]
    assert not {(action.verb, action.obj) for action in drawn} & HELD_OUT_PAIRS
    one = Clips(np.repeat(frames[:1], 64, 0), np.repeat(plain.labels[:1], 64, 0))
    seen, labels = Batches(one, 64).at(0)
    right = labels[:, 3] == 1
    assert 10 < right.sum() < 54
    dark = seen.astype(float).mean(axis=(1, 2, 4))
    flat = frames[0].astype(float).mean(axis=(0, 1, 3))
    same = [
        np.corrcoef(row, flat if plain.labels[0, 3] == int(r) else flat[::-1])[0, 1]
        for row, r in zip(dark, right, strict=True)
    ]
    assert min(same) > 0.99


@pytest.mark.parametrize("model", [NARRATOR, DUAL])
def test_loss_falls_on_a_batch_seen_again_and_again(clips, model):
    few = Clips(clips.frames[:16], clips.labels[:16])
    run = KitchenRun(replace(TINY, model=model, steps=40, hints=0.0 if model is DUAL else 0.5), few)
    seen = losses(run)
    assert np.mean(seen[-4:]) < 0.75 * np.mean(seen[:4])


def test_bfloat16_scores_nearly_as_float32(clips):
    few = TrainingBatch(torch.from_numpy(clips.frames[:16]), targets=torch.from_numpy(clips.labels[:16]))
    exact, fast = (make_task(replace(TINY, bfloat16=b)) for b in (False, True))
    assert fast(few)[0].item() == pytest.approx(exact(few)[0].item(), rel=0.01)
    fast(few)[0].backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in fast.parameters())


def test_frozen_tower_learns_from_features(clips):
    run = KitchenRun(replace(TINY, model=DUAL, frozen=True, hints=0.0), clips)
    with torch.no_grad():
        frames, labels = torch.from_numpy(clips.frames[:8]), torch.from_numpy(clips.labels[:8])
        whole, _ = run.task(TrainingBatch(frames, targets=labels))
        seen = features(run.task, clips)
        parts, _ = run.task(TrainingBatch(torch.from_numpy(seen.frames[:8]), targets=labels))
    assert float(whole) == pytest.approx(float(parts), abs=1e-5)
    before = run.task.model.visual.norm.weight.clone()
    run.use_features()
    assert len(losses(run)) == TINY.steps
    assert torch.equal(before, run.task.model.visual.norm.weight)


def test_resumed_run_equals_an_uninterrupted_one(clips, tmp_path):
    whole = KitchenRun(TINY, clips)
    expected = losses(whole)
    train(replace(TINY, save_every=3), clips, None, tmp_path / "tiny")
    interrupted = KitchenRun(TINY, clips)
    first = losses(interrupted, 2)
    (tmp_path / "checkpoint").mkdir()
    interrupted.save(tmp_path / "checkpoint")
    resumed = KitchenRun(TINY, clips)
    assert not resumed.resume(tmp_path / "nothing")
    assert resumed.resume(tmp_path / "checkpoint")
    assert first + losses(resumed) == expected
    average = resumed.average
    for name, weight in read_tensors(tmp_path / "tiny" / AVERAGE).items():
        assert torch.equal(weight, average[name]), name


def test_sigterm_saves_and_leaves(clips, tmp_path, monkeypatch):
    plain = Batches.at
    handler = signal.getsignal(signal.SIGTERM)

    def at(self, step, *share):
        if step == 2:
            signal.raise_signal(signal.SIGTERM)
        return plain(self, step, *share)

    monkeypatch.setattr(Batches, "at", at)
    train(TINY, clips, None, tmp_path, every=1)
    assert signal.getsignal(signal.SIGTERM) is handler
    monkeypatch.setattr(Batches, "at", plain)
    train(TINY, clips, clips, tmp_path, resume=True, every=1)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "unseen" not in row]
    assert [row["step"] for row in steps] == [1, 2, 3, 4, 5, 6]
    whole = losses(KitchenRun(TINY, clips))
    assert [row["loss"] for row in steps] == pytest.approx(whole, abs=1e-4)
    with pytest.raises(CheckpointError, match=r"other settings than this run has now \(lr was 0.003, is 1.0\)"):
        train(replace(TINY, lr=1.0), clips, None, tmp_path, resume=True)


_WORKER = """
import sys, numpy as np, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import TINY, DUAL, Clips, replace, train
torch.set_num_threads(1)
data = np.load({data!r})
row = replace(TINY, model=DUAL, hints=0.0) if {dual} else TINY
clips = Clips(data["frames"], data["labels"])
train(row, clips, clips, Path({out!r}), resume={resume}, every=1, zero={zero})
"""


def two_processes(folder, clips, zero=None, dual=False, resume=False):
    """Losses of TINY's steps, trained by two processes in `folder`."""
    np.savez(folder / "data.npz", frames=clips.frames, labels=clips.labels)
    names = {"tests": str(Path(__file__).parent), "data": str(folder / "data.npz"), "out": str(folder / "two")}
    (folder / "work.py").write_text(_WORKER.format(dual=dual, zero=zero, resume=resume, **names))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run([*start, str(folder / "work.py")], timeout=250, env=env, capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    rows = [json.loads(line) for line in (folder / "two" / "log.jsonl").read_text().splitlines()]
    assert "unseen" in rows[-1]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
@pytest.mark.parametrize("dual", [False, True])
def test_two_processes_learn_what_one_does(clips, tmp_path, dual):
    one = losses(KitchenRun(replace(TINY, model=DUAL, hints=0.0) if dual else TINY, clips))
    assert two_processes(tmp_path, clips, dual=dual) == pytest.approx(one, abs=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_learns_what_plain_pytorch_does_and_goes_on_with_it(clips, tmp_path, stage):
    pytest.importorskip("deepspeed")
    one = losses(KitchenRun(TINY, clips))
    halfway = KitchenRun(TINY, clips)
    losses(halfway, 3)
    with Checkpoints(tmp_path / "two").writing(3) as folder:
        halfway.save(folder)
    assert two_processes(tmp_path, clips, stage, resume=True) == pytest.approx(one[3:], abs=2e-3)
    end = read_tensors(tmp_path / "two" / AVERAGE)
    losses(halfway)
    for name, weight in halfway.average.items():
        torch.testing.assert_close(end[name], weight, rtol=0, atol=2e-3)


def test_learning_rate_warms_up_and_ends_at_nothing():
    rates = replace(TINY, steps=1000).schedule.rates()
    assert len(rates) == 1000
    assert rates[0] == TINY.lr / 2
    assert max(rates) == rates[1] == TINY.lr
    assert 0 < rates[-1] < 1e-5 * TINY.lr


def test_recipes_fit_their_vocabularies_and_follow_each_other():
    for recipe in RECIPES.values():
        words = narrator_tokenizer() if isinstance(recipe.model, NarratorConfig) else text_tokenizer()
        assert recipe.model.text.vocab == words.vocab_size
        sentences = [action.sentence for action in all_actions()]
        shown = sentences if words.kind == "gpt2" else [one.lower() for one in sentences]
        assert [words.decode(row).replace(" ", "") for row in words.encode(sentences)] == [
            one.replace(" ", "") for one in shown
        ]
        assert recipe.start is None or recipe.start in RECIPES
    with pytest.raises(InputError, match="at least 1"):
        replace(TINY, steps=0)
    with pytest.raises(InputError, match="evenly"):
        KitchenRun(TINY, Clips(np.zeros((0, 4, 16, 16, 3), np.uint8), np.zeros((0, 4), np.int64)), world=3)


def test_shipped_file_says_what_the_run_learnt(clips, tmp_path, monkeypatch):
    train(TINY, clips, None, tmp_path / "run")
    monkeypatch.setattr("lavila_fast.train.ship.RECIPES", {"tiny": TINY})
    narrator = load_narrator(ship("tiny", tmp_path / "run", tmp_path / "narrator.safetensors"))
    assert narrator.config == NARRATOR
    kept = read_tensors(tmp_path / "run" / AVERAGE)
    for name, weight in narrator.state_dict().items():
        torch.testing.assert_close(weight, kept[f"model.{name}"].half().float())


def test_programs_exit_as_the_error_says(tmp_path, monkeypatch):
    (tmp_path / "nano_narrator").mkdir()
    (tmp_path / "nano_narrator" / AVERAGE).write_bytes(b"half a file")
    done = CliRunner().invoke(ship_files, [str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1

    def fail(*given):
        raise CheckpointError("x: not a checkpoint; fetch it again")

    monkeypatch.setattr(evaluate_files, "kitchen_figures", fail)
    done = CliRunner().invoke(evaluate_files.main, [str(tmp_path)])
    assert (done.exit_code, done.output) == (2, "error: x: not a checkpoint; fetch it again\n")


def test_sentence_figures_count_parts():
    actions = all_actions()[:2]
    labels = np.array([labels_of(action) for action in actions])
    wrong_hand = actions[1].sentence.replace("left", "right").replace("right hand", "left hand")
    assert evaluate_kitchen.sentence_figures([actions[0].sentence, "#C C sings"], labels)["sentence"] == 0.5
    found = evaluate_kitchen.sentence_figures([actions[0].sentence, wrong_hand], labels)
    assert (found["verb"], found["object"], found["hand"]) == (1.0, 1.0, 0.5)
    assert found["sentence"] == 0.5


def test_ranking_figures():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.3, 0.8]], np.float32)
    fits = np.array([[True, False, False], [True, True, False]])
    found = evaluate_kitchen.ranking(scores, fits)
    assert found["recall_at_1"] == 0.5
    assert found["recall_at_5"] == 1.0
    assert found["map"] == pytest.approx((1 + (1 / 2 + 2 / 3) / 2) / 2)


def test_multiple_choice_is_sure_of_itself_and_only_of_itself():
    labels = np.array([labels_of(action) for action in all_actions()[::7]])
    own = np.eye(len(labels), dtype=np.float32)
    assert evaluate_kitchen.choice_figures(own, own, labels) == {"any": 1.0, "near": 1.0}
    assert evaluate_kitchen.choice_figures(own, -own, labels) == {"any": 0.0, "near": 0.0}


@pytest.mark.slow
def test_films_show_the_scenes(tmp_path):
    found = filmed_clips("unseen_pairs", 1, tmp_path)
    assert found.frames.shape == (50, 4, 64, 64, 3)
    config = DataConfig(sizes=((320, 240),), first=1_000_000, split="unseen_pairs", shift=0.0, jitter=0.0)
    frames, labels = render_one(config, 0)
    assert tuple(found.labels[0]) == labels
    assert np.abs(found.frames[0] - frames.astype(np.float32)).mean() < 6


def test_confusions_name_the_part_that_is_wrong():
    shown, other = all_actions()[0], replace(all_actions()[0], verb="put_down")
    labels = np.array([labels_of(shown)] * 4)
    said = [shown.sentence, other.sentence, other.sentence, "nonsense"]
    assert evaluate_kitchen.confusions(said, labels) == [["verb", shown.verb, "put_down", 2]]


def command(*arguments):
    """`python -m lavila_fast.train` that must not get as far as rendering; what it says, in one line."""
    env = {name: value for name, value in os.environ.items() if name != "RANK"}
    start = [sys.executable, "-m", "lavila_fast.train", *map(str, arguments)]
    done = subprocess.run(start, capture_output=True, text=True, timeout=120, env=env)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert not done.stdout
    return line


def test_command_refuses_in_one_line(tmp_path):
    """An earlier run, ZeRO alone, too few clips, and a recipe whose start is not there."""
    used, start = tmp_path / "used", tmp_path / "nano_narrator"
    used.mkdir()
    (used / "checkpoints").mkdir()
    assert "give --resume, --overwrite, or another --output" in command("nano_image", "--output", used)
    assert "torchrun" in command("nano_image", "--output", tmp_path / "new", "--zero", 1)
    dual = ("nano_dual", "--output", tmp_path / "nano_dual")
    assert f"python -m lavila_fast.train nano_narrator --output {start}" in command(*dual)
    start.mkdir()
    (start / AVERAGE).touch()
    assert "--clips must be at least a batch, 256" in command(*dual, "--clips", 64)
    assert not (tmp_path / "new").exists()


def test_a_batch_needs_so_many_clips(clips):
    with pytest.raises(InputError, match="48 clips fill no batch; give at least 49"):
        Batches(clips, 49)


def test_an_earlier_run_is_kept_unless_told_otherwise(clips, tmp_path):
    kept = train(TINY, clips, None, tmp_path, every=1).read_bytes()
    with pytest.raises(InputError, match="holds an earlier run"):
        train(replace(TINY, lr=1e-4), clips, None, tmp_path)
    with pytest.raises(InputError, match="leave one of the two out"):
        train(TINY, clips, None, tmp_path, resume=True, overwrite=True)
    assert (tmp_path / AVERAGE).read_bytes() == kept
    train(replace(TINY, lr=1e-4), clips, None, tmp_path, every=1, overwrite=True)
    assert (tmp_path / AVERAGE).read_bytes() != kept
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == TINY.steps
