"""Training: losses as the original's, batches that depend on the step alone, runs that resume and split exactly."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.evaluate import kitchen as evaluate_kitchen  # noqa: E402
from lavila_fast.evaluate.clips import Clips, action_of, filmed_clips, labels_of  # noqa: E402
from lavila_fast.kitchen.world import HELD_OUT_PAIRS, all_actions  # noqa: E402
from lavila_fast.train.data import Batches, DataConfig, open_clips, render_one  # noqa: E402
from lavila_fast.train.losses import caption_loss, clip_loss, contrastive_rows, max_margin_loss  # noqa: E402

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
DATA = DataConfig(clips=48, sizes=((32, 24),), img=16)


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


def test_a_batch_needs_so_many_clips(clips):
    with pytest.raises(InputError, match="48 clips fill no batch; give at least 49"):
        Batches(clips, 49)
