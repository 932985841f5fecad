"""The small models' three runs at toy size: as recorded, one after the other, stopped, split, shipped."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("PIL")

from lavila_fast.cli.main import run  # noqa: E402
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, GPT2Config, NarratorConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import CheckpointError, InputError  # noqa: E402
from lavila_fast.evaluate.clips import PARTS, Clips  # noqa: E402
from lavila_fast.kitchen.world import all_actions  # noqa: E402
from lavila_fast.models.load import load_dual_encoder, load_narrator  # noqa: E402
from lavila_fast.presets import VARIANTS  # noqa: E402
from lavila_fast.text.tokenizer import load_tokenizer  # noqa: E402
from lavila_fast.train import build as builds  # noqa: E402
from lavila_fast.train import data, plan  # noqa: E402
from lavila_fast.train import evaluate_kitchen as evaluate_files  # noqa: E402
from lavila_fast.train import ship as ships  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.build import Setting, build  # noqa: E402
from lavila_fast.train.checkpoints import Checkpoints  # noqa: E402
from lavila_fast.train.consolidate import model_weights  # noqa: E402
from lavila_fast.train.datasets.kitchen import VOCABULARIES, KitchenBatches, open_kitchen, sentence_ids  # noqa: E402
from lavila_fast.train.datasets.samples import Place  # noqa: E402
from lavila_fast.train.inputs import open_recipe  # noqa: E402
from lavila_fast.train.kitchen_tasks import features  # noqa: E402
from lavila_fast.train.recipe import with_settings  # noqa: E402
from lavila_fast.train.zoo import find_recipe  # noqa: E402
from lavila_fast.train.zoo_nano import NANO  # noqa: E402

VISION = VisionConfig(img=16, patch=8, dim=32, depth=1, heads=1, act="gelu")
TEXT = GPT2Config(n_embd=32, n_layer=1, n_head=1, vocab=426, n_positions=32)
NARRATOR = NarratorConfig(VISION, TEXT, queries=2, pool_heads=1)
DUAL = DualEncoderConfig(VISION, ClipTextConfig(width=32, heads=1, layers=1, vocab=664, context=32), 16)
SIZED = {"NANO_NARRATOR": NARRATOR, "NANO_DUAL_ENCODER": DUAL}
TOY: dict[str, Any] = {
    **{"data.clips": 48, "data.held": 16, "data.img": 16, "data.sizes": "[[32,24]]", "batch_size": 16, "micro": 16},
    **{"steps": 6, "warmup_steps": 2, "lr": 3e-3, "lr_start": 1.5e-3, "save_epochs": 1, "evaluate_epochs": 1},
}
# Of the loop that the small models were first trained with, which this one took the place of.
RECORDED = {
    "nano_image": [8.33335, 8.37808, 7.84894, 7.73262, 7.49256, 7.30409],
    "nano_narrator": [8.63246, 9.12875, 8.67367, 8.42954, 8.30071, 8.06043],
    "nano_dual": [3.04433, 3.13241, 2.85367, 2.83127, 2.78819, 2.76696],
}
BATCHES = {  # still, step → digest of frames and labels, likewise
    (False, 0): "52ad37ac6b338b3d",
    (False, 5): "ea58801a93791dcd",
    (False, 7): "d3afd595605deb9d",
    (True, 0): "5c21960bce4e1caf",
    (True, 5): "d075fbdf654f7f1f",
    (True, 7): "94511aafa129bf89",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def toy_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "VARIANTS", {**VARIANTS, **SIZED})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the kitchen's clips are kept in; drawn here, without a process of its own."""
    folder = tmp_path_factory.mktemp("cache")
    opened = open_kitchen(Place(folder, 4), 48, held=16, img=16, sizes=[(32, 24)])
    for clips in (opened.train, opened.validation):
        config = clips.config  # type: ignore[union-attr]
        (folder / config.digest).mkdir()
        data._render_chunk((config, folder / config.digest, 0))
    return folder


def toy(name: str, **settings: Any) -> Any:
    return with_settings(find_recipe(name), [f"{key}={value}" for key, value in {**TOY, **settings}.items()])


def starting(name: str, runs: Path) -> list[str]:
    kind, before = {"nano_narrator": ("run", "nano_image"), "nano_dual": ("video", "nano_narrator")}[name]
    return ["--set", f"starts={kind}:{runs / before}"]


def command(name: str, cache: Path, runs: Path, *more: str, **settings: Any) -> list[str]:
    given = [f"--set={key}={value}" for key, value in {**TOY, **settings}.items()]
    begun = [] if name == "nano_image" else starting(name, runs)
    return ["train", name, "--data", str(cache), "-o", str(runs / name), "--every", "1", "-q", *given, *begun, *more]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder) if "validation" not in row]


@pytest.fixture
def runs(cache: Path, tmp_path: Path) -> Path:
    for recipe in NANO:
        assert run(command(recipe.name, cache, tmp_path)) == 0
    return tmp_path


def test_three_runs_learn_what_the_shipped_models_learnt_from(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses are those recorded; the files are what loaders, `ship` and the export take."""
    for name, expected in RECORDED.items():
        assert losses(runs / name) == pytest.approx(expected, abs=2e-3), name
        assert [row["step"] for row in rows(runs / name) if "validation" in row] == [3, 6]
    narrator = load_narrator(runs / "nano_narrator" / "model.safetensors")
    dual = load_dual_encoder(runs / "nano_dual" / "model.safetensors")
    assert (narrator.config, dual.config) == (NARRATOR, DUAL)
    for name, weight in dual.visual.state_dict().items():
        assert torch.equal(weight, narrator.visual.state_dict()[name]), name
    shipped = [
        (name, SIZED["NANO_NARRATOR" if "narrator" in kind else "NANO_DUAL_ENCODER"], kind)
        for name, _, kind in ships._SHIPPED
    ]
    monkeypatch.setattr(ships, "_SHIPPED", shipped)
    done = CliRunner().invoke(ships.main, [str(runs), "--output", str(runs / "nano")])
    assert done.exit_code == 0, done.output
    for name, weight in load_narrator(runs / "nano" / "narrator.safetensors").state_dict().items():
        torch.testing.assert_close(weight, narrator.state_dict()[name].half().float())
    words = load_tokenizer(runs / "nano" / "narrator_tokenizer.json", "gpt2", 32)
    sentence = all_actions()[7].sentence
    assert words.decode(words.encode([sentence])[0]) == sentence


def test_what_is_kept_is_the_averaged_model_and_what_is_looked_at_too(cache: Path, tmp_path: Path) -> None:
    assert run(command("nano_image", cache, tmp_path)) == 0
    latest = Checkpoints(tmp_path / "nano_image").latest()
    assert latest is not None
    kept = load_narrator(tmp_path / "nano_image" / "model.safetensors")
    for name, weight in model_weights(latest, NARRATOR).items():
        assert torch.equal(weight, kept.state_dict()[name])
    recipe = toy("nano_image")
    opened = open_recipe(recipe, Place(cache, 4))
    task = build(recipe, opened.opened, Setting()).task.eval()
    task.model.load_state_dict(kept.state_dict())
    items = [opened.held()[0, i] for i in range(16)]
    assert items[0]["video"].shape == (1, 16, 16, 3)
    batch = {name: torch.as_tensor(np.stack([item[name] for item in items])) for name in ("video", "ids", "targets")}
    _, numbers = task(TrainingBatch(**batch))
    looked = [row for row in rows(tmp_path / "nano_image") if "validation" in row][-1]
    assert looked["caption"] == pytest.approx(float(numbers["caption"]), abs=1e-3)


@pytest.mark.parametrize("still", [False, True])
def test_batches_are_those_that_were_recorded(still: bool) -> None:
    random = np.random.default_rng(0)
    frames = random.integers(0, 256, (50, 4, 8, 8, 3), dtype=np.uint8)
    clips = Clips(frames, np.stack([random.integers(0, len(names), 50) for names in PARTS.values()], 1))
    words = load_tokenizer(VOCABULARIES["gpt2"], "gpt2", 32)
    batches = KitchenBatches(data.Batches(clips, 16, seed=3, still=still), sentence_ids(words))
    for step in (0, 5, 7):
        batch = batches.batch(step, 1, 2)
        assert batch.targets is not None
        seen = batch.video.numpy().tobytes() + batch.targets.numpy().tobytes()
        assert hashlib.blake2b(seen, digest_size=8).hexdigest() == BATCHES[still, step]
        assert batch.ids is not None
        assert batch.mask is not None
        actions = {tuple(data.labels_of(action)): action.sentence for action in all_actions()}
        for ids, mask, labels in zip(batch.ids, batch.mask, batch.targets, strict=True):
            assert words.decode(ids.tolist()) == actions[tuple(labels.tolist())]
            assert int(mask.sum()) == len(words.rows([actions[tuple(labels.tolist())]])[0])
    assert batches.names(5) == [f"clip {row}" for row in data.Batches(clips, 16, seed=3).rows(5)]


def test_a_stopped_run_goes_on_to_the_bit(cache: Path, tmp_path: Path) -> None:
    assert run(command("nano_image", cache, tmp_path / "whole")) == 0
    assert run(command("nano_image", cache, tmp_path / "parts", "--stop-after", "2")) == 0
    assert run(command("nano_image", cache, tmp_path / "parts")) == 2  # used
    assert run(command("nano_image", cache, tmp_path / "parts", "--resume")) == 0
    whole, parts = (load_narrator(tmp_path / name / "nano_image" / "model.safetensors") for name in ("whole", "parts"))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    assert losses(tmp_path / "whole" / "nano_image") == losses(tmp_path / "parts" / "nano_image")


def test_a_clip_and_its_features_score_alike(cache: Path) -> None:
    recipe = toy("nano_dual", starts="none")
    opened = open_recipe(recipe, Place(cache, 4))
    task = build(recipe, opened.opened, Setting()).task.eval()
    items = [opened.held()[0, i] for i in range(8)]
    tensors = {name: torch.as_tensor(np.stack([one[name] for one in items])) for name in ("video", "ids", "targets")}
    clips = Clips(tensors["video"].numpy(), tensors["targets"].numpy())
    seen = torch.from_numpy(features(task, clips).frames)  # type: ignore[arg-type]
    assert seen.shape == (8, 32)
    videos = (tensors["video"], seen)
    whole, parts = (float(task(TrainingBatch(**{**tensors, "video": video}))[0].detach()) for video in videos)
    assert whole == pytest.approx(parts, abs=1e-5)


def test_what_is_wrong_is_said_before_anything_is_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def fails(given: list[str], *words: str) -> None:
        assert run(given) == 2
        line = capfd.readouterr().err.strip()
        assert line.startswith("error: ")
        assert "\n" not in line
        for word in words:
            assert word in line, line

    fails(command("nano_narrator", tmp_path / "cache", tmp_path), "nano_image", "no such file or folder")
    (tmp_path / "file").write_text("")
    fails(command("nano_image", tmp_path / "file", tmp_path), "file: is a file; --data is to be a folder")
    fails(command("nano_image", tmp_path / "cache", tmp_path, **{"data.clips": 0}), "must be at least 1")
    fails(
        command("nano_image", tmp_path / "cache", tmp_path, "--dry-run", batch_size=64), "48 clips fill no batch of 64"
    )
    assert not (tmp_path / "cache").exists()


def test_a_dry_run_draws_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*command("nano_image", tmp_path / "cache", tmp_path), "--dry-run", "--json"]) == 0
    told = json.loads(capfd.readouterr().out)
    assert (told["clips"], told["updates"], told["validation clips"]) == (48, 6, 16)
    assert not (tmp_path / "cache").exists()


def test_features_are_of_a_frozen_tower(cache: Path) -> None:
    recipe = toy("nano_dual", starts="none", freeze="")
    opened = open_recipe(recipe, Place(cache, 4))
    task, batches = build(recipe, opened.opened, Setting()).task, opened.batches(16, 0)
    with pytest.raises(InputError, match="frozen"):
        task.ready(batches, 0, 1)
    with pytest.raises(InputError, match="whole batch at once"):
        build(toy("nano_dual", starts="none", micro=4), opened.opened, Setting(4))


def test_recipes_fit_their_vocabularies() -> None:
    for recipe, kind in zip(NANO, ("gpt2", "gpt2", "clip"), strict=True):
        words = load_tokenizer(VOCABULARIES[kind], kind, 32)  # type: ignore[index, arg-type]
        assert VARIANTS[recipe.model].text.vocab == words.vocab_size  # type: ignore[union-attr]
        said = [action.sentence for action in all_actions()]
        shown = said if kind == "gpt2" else [one.lower() for one in said]
        found = [words.decode(row).replace(" ", "") for row in words.encode(said)]
        assert found == [one.replace(" ", "") for one in shown]


def test_rates_warm_up_and_end_at_nothing() -> None:
    for recipe in NANO:
        rates = recipe.schedule(recipe.steps, 312).rates()
        assert len(rates) == recipe.steps
        assert rates[0] == recipe.lr / 100
        assert max(rates) == rates[99] == recipe.lr
        assert 0 < rates[-1] < 1e-5 * recipe.lr


def test_bfloat16_is_named_where_it_is_only_imitated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavila_fast.machine import computes_bfloat16

    told = {
        "flags\t\t: fpu avx2 avx512f": False,
        "flags : avx512_bf16 fpu": True,
        "Features : fp bf16": True,
        "x": None,
    }
    for text, expected in told.items():
        (tmp_path / "cpuinfo").write_text(f"processor : 0\n{text}\n")
        assert computes_bfloat16(tmp_path / "cpuinfo") is expected
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for has, slow in ((True, False), (False, True), (None, False)):
        monkeypatch.setattr(plan, "computes_bfloat16", lambda has=has: has)
        assert plan.slow_precision(find_recipe("nano_image")) is None
        line = plan.slow_precision(find_recipe("pretrain_tsf_b"))
        assert (line is not None and "--set precision=float32" in line) == slow


def test_programs_exit_as_the_error_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nano_narrator").mkdir()
    done = CliRunner().invoke(ships.main, [str(tmp_path), "--output", str(tmp_path / "out")])
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1

    def fail(*given: object) -> None:
        raise CheckpointError("x: not a checkpoint; fetch it again")

    monkeypatch.setattr(evaluate_files, "kitchen_figures", fail)
    done = CliRunner().invoke(evaluate_files.main, [str(tmp_path)])
    assert (done.exit_code, done.output) == (2, "error: x: not a checkpoint; fetch it again\n")


_WORKER = """
import sys
sys.path.insert(0, {tests!r})
from test_train_nano import SIZED, VARIANTS, builds, run
builds.VARIANTS = {{**VARIANTS, **SIZED}}
sys.exit(run({given!r}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nano_image", "nano_dual"])
def test_two_processes_do_what_one_does(name: str, cache: Path, runs: Path, tmp_path: Path) -> None:
    given = [str(tmp_path / "two") if one == str(runs / name) else one for one in command(name, cache, runs)]
    (tmp_path / "work.py").write_text(_WORKER.format(tests=str(Path(__file__).parent), given=given))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*start, str(tmp_path / "work.py")], timeout=250, env=env, check=False)
    assert done.returncode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(runs / name), abs=2e-3)
