"""Every recipe trains from annotation files and real videos, at toy size; runs are killed, resumed and split."""

from __future__ import annotations

import functools
import json
import os
import pickle
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

import watched  # noqa: E402
from test_video_coded import write_video  # noqa: E402

from lavila_fast.cli.main import run  # noqa: E402
from lavila_fast.cli.train import train  # noqa: E402
from lavila_fast.config import ClassifierConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.models.load import load_model  # noqa: E402
from lavila_fast.train import launch  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.datasets.samples import Place  # noqa: E402
from lavila_fast.train.inputs import batch_share, open_recipe  # noqa: E402
from lavila_fast.train.optimisers import Optimisation  # noqa: E402
from lavila_fast.train.recipe import with_settings  # noqa: E402
from lavila_fast.train.tasks import ClassifyTask  # noqa: E402
from lavila_fast.train.watch import Watch, progress_line, read_log  # noqa: E402
from lavila_fast.train.zoo import RECIPES as ROWS  # noqa: E402
from lavila_fast.train.zoo import find_recipe  # noqa: E402
from lavila_fast.train.zoo_nano import NANO  # noqa: E402
from lavila_fast.train.zoo_paper import PAPER  # noqa: E402

OWN = (*NANO, *PAPER)  # of which test_train_nano and test_paper have a look
RECIPES = {name: row for name, row in ROWS.items() if row not in OWN}
TRAIN = Path(__file__).parents[1] / "train"
TOYS = {"CLIP": "NANO_DUAL_ENCODER", "VCLM": "NANO_NARRATOR"}
VOCABULARIES = {"CLIP": TRAIN / "text_tokenizer.json", "VCLM": TRAIN / "narrator_tokenizer.json"}
SENTENCES = ("#C C picks up the red cup", "#C C puts down the green bowl", "#C C pushes the blue plate")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A miniature of every data set, as each lies on a disk."""
    root = tmp_path_factory.mktemp("datasets")
    films = [write_video(root / f"{i}.mp4", 60, 30, size=(96, 72)) for i in range(2)]

    def place(path: Path, which: int = 0) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(films[which], path)

    ego4d(root / "Ego4D", place)
    ek100(root / "EK100", place)
    egtea(root / "EGTEA", place)
    charades(root, place)
    rows = [f"{i % 2}.mp4,{0.1 * i:.1f},{0.1 * i + 1:.1f},{SENTENCES[i % 3]},{'ab'[i % 2]}" for i in range(8)]
    (root / "mine.csv").write_text("\n".join(["video,start,end,text,label", *rows]) + "\n")
    return root


def pickled(path: Path, rows: list[tuple[Any, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(rows))


def spoken(video: str, several: bool = False) -> list[tuple[Any, ...]]:
    texts = [list(SENTENCES) if several else SENTENCES[i % 3] for i in range(6)]
    return [(video, 0.2 * i, 0.2 * i + 0.8, text) for i, text in enumerate(texts)]


def ego4d(folder: Path, place: Any) -> None:
    place(folder / "video_5min_chunks_288px" / "one.mp4" / "0.mp4")
    pickled(folder / "ego4d_train.pkl", spoken("one"))
    pickled(folder / "ego4d_val.pkl", spoken("one")[:3])
    pickled(folder / "ego4d_train.rephraser.no_punkt_top3.pkl", spoken("one", several=True))
    narrated = [(*row, [0.5] * 3) for row in spoken("one", several=True)]
    pickled(folder / "ego4d_train.narrator_63690737.return_10.pkl", narrated)


def ek100(folder: Path, place: Any) -> None:
    place(folder / "video_ht256px" / "P01" / "P01_01.MP4")
    head = "narration_id,participant_id,video_id,start_timestamp,stop_timestamp,narration,verb_class,noun_class"
    rows = [f"P01_01_{i},P01,P01_01,00:00:00.{i}0,00:00:01.{i}0,{SENTENCES[i % 3]},{i % 2},{i % 3}" for i in range(6)]
    base = folder / "epic-kitchens-100-annotations"
    found = base / "retrieval_annotations"
    (found / "relevancy").mkdir(parents=True)
    for part in ("train", "validation"):
        (base / f"EPIC_100_{part}.csv").write_text("\n".join([head, *rows]) + "\n")
    for part in ("train", "test"):
        (found / f"EPIC_100_retrieval_{part}.csv").write_text("\n".join([head, *rows]) + "\n")
        said = [f"P01_01_{i},{SENTENCES[i]}" for i in range(3)]
        (found / f"EPIC_100_retrieval_{part}_sentence.csv").write_text(
            "\n".join(["narration_id,narration", *said]) + "\n"
        )
    relevancy = np.eye(3)[np.arange(6) % 3]
    path = found / "relevancy" / "caption_relevancy_EPIC_100_retrieval_train.pkl"
    path.write_bytes(pickle.dumps(relevancy))


def egtea(folder: Path, place: Any) -> None:
    names = [f"OP01-R01-Salad-{i}-{i}-F1-F2" for i in range(4)]
    for name in names:
        place(folder / "cropped_clips" / "OP01-R01-Salad" / f"{name}.mp4")
    (folder / "action_idx.txt").write_text("Take cup 1\nPut bowl 2\n")
    for part in ("train", "test"):
        (folder / f"{part}_split1.txt").write_text("".join(f"{name} {1 + i % 2} 1 1\n" for i, name in enumerate(names)))


def charades(root: Path, place: Any) -> None:
    place(root / "CharadesEgo" / "CharadesEgo_v1_480" / "one.mp4")
    for part in ("train", "val"):
        pickled(root / "CharadesEgo" / "CharadesEgo" / f"metadata_filtered_{part}.pkl", spoken("one"))
    place(root / "HTM" / "videos" / "one.mp4")
    for part in ("train", "val"):
        pickled(root / "HTM" / f"htm_aa_{part}.pkl", spoken("one"))


FOLDERS = {  # of each data set
    "ego4d": "Ego4D",
    "ek100_mir": "EK100",
    "ek100_cls": "EK100",
    "egtea": "EGTEA",
    "charades_ego": "CharadesEgo",
    "htm_aa": "HTM",
    "listed": "mine.csv",
}
CLASSES = {"egtea": [2], "ek100_cls": [2, 3, 6], "listed": [2]}


def command(name: str, home: Path, output: Path, *more: str, **settings: Any) -> list[str]:
    """The command that trains a recipe at toy size."""
    row = RECIPES[name]
    family = row.model.split("_")[0]
    toy: dict[str, Any] = {"batch_size": 4, "micro": 2, "steps": 2, "frames": 2}
    toy |= {"model": TOYS[family], "starts": "none"} if family in TOYS else {}  # else a trial, small as it is
    toy |= {"evaluate_clips": 2, "evaluate_epochs": 1, "save_epochs": 1, "precision": "float32"}
    if "DISTILBERT" in row.model:
        toy["regularisation.dropout"] = 0
    if row.task.name == "classify":
        classes = CLASSES[row.data.name]
        toy["task.classes"] = json.dumps(classes[-1:] if row.data.options.get("heads") == 1 else classes)
    given = [f"--set={key}={value}" for key, value in {**toy, **settings}.items()]
    given_words = row.task.name != "classify" and family in VOCABULARIES
    vocabulary = ["--tokenizer", str(VOCABULARIES[family])] if given_words else []
    where = ["--data", str(home / FOLDERS[row.data.name]), "-o", str(output), "--workers", "0", "--every", "1", "-q"]
    return ["train", name, *where, *vocabulary, *given, *more]


LARGE = {name for name in RECIPES if "tsf_l" in name and "narrator" not in name}  # differ from TSF-B's in numbers alone


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in RECIPES]
)
def test_every_recipe_trains(name: str, home: Path, tmp_path: Path) -> None:
    assert run(command(name, home, tmp_path / "run")) == 0
    told = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert told["recipe"]["name"] == name
    assert told["versions"]["torch"] == torch.__version__
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "validation" not in row]
    assert [row["step"] for row in trained] == [1, 2]
    assert all(np.isfinite(row["loss"]) and row["norm"] > 0 for row in trained)
    assert any("validation" in row for row in rows)
    model = load_model(tmp_path / "run" / "model.safetensors")
    assert model.config.vision.frames == 2
    assert (tmp_path / "run" / "model.tokenizer.json").is_file() == (RECIPES[name].task.name != "classify")
    assert "<svg" in (tmp_path / "run" / "log.svg").read_text()


def weights(folder: Path) -> dict[str, Any]:
    return load_model(folder / "model.safetensors").state_dict()


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


LONG: dict[str, Any] = {"steps": 6, "save_epochs": 0.5, "evaluate_epochs": 100, "regularisation.drop_path": 0.2}


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_stopped_run_goes_on_to_the_bit(home: Path, tmp_path: Path) -> None:
    whole, parts = (command("finetune_mir_tsf_b", home, tmp_path / name, **LONG) for name in ("whole", "parts"))
    assert run(whole) == 0
    assert run([*parts, "--stop-after", "3"]) == 0
    assert not (tmp_path / "parts" / "model.safetensors").exists()
    assert run(parts) == 2  # used
    assert run([*parts, "--resume", "--stop-after", "5"]) == 0
    assert run([*parts, "--resume"]) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seconds", [0.0, pytest.param(0.4, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_to_the_bit(home: Path, tmp_path: Path, seconds: float) -> None:
    """Killed when its log has three rows of six, and a while."""
    given = command("finetune_mir_tsf_b", home, tmp_path / "run", **LONG)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = watched.start([sys.executable, "-m", "lavila_fast", *given], env=env)
    log = tmp_path / "run" / "log.jsonl"
    while started.poll() is None and not (log.is_file() and len(log.read_text().splitlines()) >= 3):
        time.sleep(0.01)
    time.sleep(seconds)
    started.send_signal(signal.SIGKILL)
    started.wait()
    assert run([*given, "--resume"]) == 0
    assert run(command("finetune_mir_tsf_b", home, tmp_path / "whole", **LONG)) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file grows over so many bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_whose_disk_is_full_goes_on_to_the_bit(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full for a checkpoint, for a line of the log, and for the model at the end."""
    more: dict[str, Any] = {**LONG, "steps": 6}
    assert run(command("finetune_mir_tsf_b", home, tmp_path / "whole", **more)) == 0
    monkeypatch.chdir(tmp_path)  # what is printed goes to a file that cannot grow either: paths are to be short
    folder = Path("run")
    given = command("finetune_mir_tsf_b", home, folder, "--resume", **more)
    assert run([*given, "--stop-after", "1"]) == 0
    capfd.readouterr()
    for named in ("weights.safetensors", "log.jsonl"):
        log = (folder / "log.jsonl").stat().st_size
        with full_at(1 << 20 if named != "log.jsonl" else log + 10):
            assert run(given) == 1
        (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("error: "))
        assert named in line
        assert "make room, then run the same command with --resume" in line
        assert not [path for path in folder.rglob("*") if path.name.endswith(".part")]
    assert run([*given, "--stop-after", "6"]) == 0
    (folder / "model.safetensors").unlink(missing_ok=True)
    with full_at(1 << 20):
        assert run(given) == 1
    assert "model.safetensors: cannot be written" in (told := capfd.readouterr().err)
    assert "then run the same command with --resume" in told
    assert run(given) == 0
    assert same(weights(tmp_path / "whole"), weights(folder))
    assert [row["step"] for row in read_log(folder) if "validation" not in row] == [1, 2, 3, 4, 5, 6]


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "validation" not in row]


@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.slow), "1"])
def test_sigterm_saves_and_leaves(workers: str, home: Path, tmp_path: Path) -> None:
    """Sent to all processes of the run, as a scheduler does."""
    given = command("pretrain_tsf_b", home, tmp_path / "run", steps=500, save_epochs=1000, evaluate_epochs=1000)
    given += ["--workers", workers]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen([sys.executable, "-m", "lavila_fast", *given], env=env, start_new_session=True)
    while started.poll() is None and not (tmp_path / "run" / "log.jsonl").is_file():
        time.sleep(0.01)
    os.killpg(started.pid, signal.SIGTERM)
    assert started.wait(120) == 143
    done = len(losses(tmp_path / "run"))
    assert run([*given, "--workers", "0", "--resume", "--stop-after", str(done + 1)]) == 0
    assert len(losses(tmp_path / "run")) == done + 1


SHORT: dict[str, Any] = {"steps": 4, "regularisation.drop_path": 0, "regularisation.head_dropout": 0}


@pytest.fixture(scope="module")
def alone(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[float]]:
    """Recipe → the losses of one process."""

    @functools.cache
    def of(name: str) -> list[float]:
        folder = tmp_path_factory.mktemp("alone") / "run"
        assert run(command(name, home, folder, **SHORT)) == 0
        return losses(folder)

    return of


@pytest.mark.parametrize("name", ["pretrain_tsf_b", pytest.param("finetune_cls_tsf_b", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(
    name: str, home: Path, tmp_path: Path, alone: Callable[[str], list[float]]
) -> None:
    two = command(name, home, tmp_path / "two", **SHORT)
    assert run([*two, "--processes", "2"]) == 0
    np.testing.assert_allclose(losses(tmp_path / "two"), alone(name), rtol=1e-5)


def with_variable(setting: str) -> set[int]:
    """Numbers of the processes that have a variable in their environment."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if setting.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.add(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.timeout(1500)
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
def test_a_killed_launcher_takes_its_processes_with_it(home: Path, tmp_path: Path) -> None:
    """They save, and leave; so do their readers."""
    given = command("pretrain_tsf_b", home, tmp_path / "run", steps=500, save_epochs=1000, evaluate_epochs=1000)
    given += ["--workers", "1", "--processes", "2"]
    started = subprocess.Popen(
        [sys.executable, "-m", "lavila_fast", *given], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    while started.poll() is None and not (tmp_path / "run" / "log.jsonl").is_file():
        time.sleep(0.01)
    mark = f"{launch.PARENT}={started.pid}"
    assert len(with_variable(mark)) >= 4  # two that train, two that read
    started.kill()
    started.wait()
    deadline = time.monotonic() + 120
    while with_variable(mark) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not with_variable(mark)
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 1
    told = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert told["processes"] == 2
    assert shlex.split(told["command"])[-2:] == ["--processes", "2"]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_of_one_process_goes_on_with_two(home: Path, tmp_path: Path) -> None:
    settings = {"steps": 6, "evaluate_epochs": 100}
    whole, parts = (command("pretrain_tsf_b", home, tmp_path / name, **settings) for name in ("whole", "parts"))
    assert run(whole) == 0
    assert run([*parts, "--stop-after", "3"]) == 0
    assert run([*parts, "--resume", "--processes", "2"]) == 0
    np.testing.assert_allclose(losses(tmp_path / "whole"), losses(tmp_path / "parts"), rtol=1e-5)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_zero_trains_and_plain_pytorch_goes_on(
    stage: int, home: Path, tmp_path: Path, alone: Callable[[str], list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses are those of one process; its checkpoint knows no DeepSpeed."""
    pytest.importorskip("deepspeed")
    parts = command("pretrain_tsf_b", home, tmp_path / "parts", **SHORT)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert run([*parts, "--stop-after", "2", "--processes", "2", "--zero", str(stage)]) == 0
    assert run([*parts, "--resume"]) == 0
    np.testing.assert_allclose(losses(tmp_path / "parts"), alone("pretrain_tsf_b"), rtol=1e-5)


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return capfd.readouterr().err.strip()


def test_what_is_wrong_is_said_in_a_line(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = command("pretrain_tsf_b", home, tmp_path / "run")

    def fails(given: list[str], *words: str) -> None:
        assert run(given) == 2
        line = said(capfd)
        assert line.startswith("error: ")
        assert "\n" not in line
        for word in words:
            assert word in line, line

    fails(["train", "pretrain_tsf"], "no recipe is called pretrain_tsf", "pretrain_tsf_b")
    fails([*good, "--set", "rate=3"], "there is no rate")
    fails([*good, "--set", "lr=fast"], "lr is 3e-05 in the recipe")
    fails([*good, "--set", "task.heat=3"], "task contrastive has no option heat")
    fails([*good, "--set", "data.humans=3"], "data set ego4d has no option humans; it has human, others")
    fails([*good, "--set", "data.human=no.pkl"], "no.pkl", "no such file")
    fails([*good, "--set", "batch_size=64"], "12 clips fill no batch of 64")
    fails([*good, "--set", "model=NANO"], "no model is called NANO; take")
    fails([*good, "--set", "model=NANO_NARRATOR"], "is not for NANO_NARRATOR, which is a narrator")
    fails([*good, "--videos", str(tmp_path / "none")], "none", "no such folder of videos")
    fails([*good, "--set", 'freeze=["gates"]'], "freeze gates: this model has no such parameters")
    wrong = [str(TRAIN / "narrator_tokenizer.json") if one.endswith("tokenizer.json") else one for one in good]
    fails(wrong, "")
    fails([*command("finetune_egtea_tsf_b", home, tmp_path / "run"), "--set", "task.classes=[1]"], "[2] classes")
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_its_own_settings_alone(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(command("pretrain_tsf_b", home, tmp_path / "run")) == 0
    assert run([*command("pretrain_tsf_b", home, tmp_path / "run", lr=0.5), "--resume"]) == 2
    assert "made with other settings than this run has now (lr " in (line := said(capfd))
    assert "3e-05" in line
    assert "0.5" in line


def test_a_loss_that_is_no_number_ends_the_run(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = command("finetune_egtea_tsf_b", home, tmp_path / "run", lr=1e30, steps=5, fix_lr="true")
    assert run(given) == 1
    line = said(capfd)
    assert "nothing of this update is kept" in line
    assert "OP01-R01-Salad" in line
    assert run([*given, "--resume"]) == 1


def test_a_plan_says_what_will_happen(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*command("narrator_tsf_b", home, tmp_path / "run", epochs=3, steps=0), "--dry-run", "--json"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert (plan["clips"], plan["updates"], plan["batch"], plan["micro-batches an update"]) == (6, 3, 4, 2)
    assert plan["unreadable"] == []
    assert set(plan["trained"]) == {"img_queries", "img_attn_pool", "img_attn_pool_norm", "text_decoder"}
    assert sum(plan["trained"].values()) + sum(plan["frozen"].values()) == plan["parameters"]
    assert min(plan["memory of a process"][name] for name in ("weights", "gradients", "optimiser", "activations")) > 0
    assert not (tmp_path / "run").exists()


def test_settings_reach_parts_and_what_may_change_is_no_identity() -> None:
    row = find_recipe("pretrain_tsf_b")
    changed = with_settings(row, ["lr=1", "optimiser.weight_decay=0", "keep=9", "micro=4"])
    assert (changed.lr, changed.optimiser.weight_decay, changed.keep, changed.micro) == (1.0, 0.0, 9, 4)
    assert with_settings(row, ["keep=9", "micro=4"]).identity == row.identity
    told = json.loads(changed.identity)
    assert told == {**json.loads(row.identity), "lr": 1.0, "optimiser": {**told["optimiser"], "weight_decay": 0.0}}


def test_a_model_takes_the_vocabulary_that_fits_it(home: Path, tmp_path: Path) -> None:
    """Beside a narrator's first weights may lie a dual encoder's, which is another's."""
    (tmp_path / "model.safetensors").touch()
    shutil.copy(TRAIN / "text_tokenizer.json", tmp_path / "model.tokenizer.json")
    started = ["model=NANO_NARRATOR", f"starts=dual_encoder:{tmp_path / 'model.safetensors'}"]
    place = Place(home / "Ego4D", 4)
    found = open_recipe(with_settings(find_recipe("narrator_tsf_b"), started), place).tokenizer
    assert found is not None
    assert found.vocab_size == 426
    with pytest.raises(InputError, match="the vocabulary has 664 words, NANO_NARRATOR 426"):
        open_recipe(with_settings(find_recipe("narrator_tsf_b"), started), place, str(TRAIN / "text_tokenizer.json"))
    assert open_recipe(find_recipe("try_retrieval"), Place(home / "mine.csv", 4)).tokenizer is not None
    nowhere = ["model=NANO_DUAL_ENCODER", "starts=clip:clip-vit-l-14"]
    assert open_recipe(with_settings(find_recipe("pretrain_tsf_b_human"), nowhere), place).tokenizer is not None


def test_other_processes_are_given_the_options_as_they_were_read(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not what the calling process was started with."""
    started: list[Any] = []
    monkeypatch.setattr(launch, "several", lambda *given: started.append(given) or 0)
    given = ["try_retrieval", "--data", str(home / "mine.csv"), "-o", str(tmp_path / "a run"), "--set=batch_size=4"]
    assert CliRunner().invoke(train, [*given, "--processes", "2", "--zero=1", "-q"]).exit_code == 0
    words = ["train", "try_retrieval", "--data", str(home / "mine.csv"), "--output", str(tmp_path / "a run")]
    assert started == [(2, [*words, "--set", "batch_size=4", "--zero", "1", "--quiet"])]
    wrong = CliRunner().invoke(train, [*given, "--processes", "2", "--set", "batch_size=5"])
    assert "2 processes cannot share a batch of 5" in str(wrong.exception)
    assert len(started) == 1


def test_a_slurm_script_starts_the_same_run(home: Path, tmp_path: Path) -> None:
    script, told = tmp_path / "job.sh", tmp_path / "told"
    given = ["try_retrieval", "--data", "my 'data'.csv", "-o", "run", "--set", "lr=1e-3", "--processes", "2"]
    assert CliRunner().invoke(train, [*given, "--slurm", str(script), "--nodes=3", "--gpus", "4"]).exit_code == 0
    assert "#SBATCH --nodes=3\n#SBATCH --ntasks-per-node=4\n" in script.read_text()
    stand_ins = f"""scontrol() {{ echo first; }}; export SLURM_JOB_ID=5 SLURM_CPUS_PER_TASK=8
        srun() {{ printf '%s\\0' "$MASTER_ADDR" "$MASTER_PORT" "${{@:4}}" > {told}; return 7; }}"""
    done = subprocess.run(["bash"], input=f"{stand_ins}\n{script.read_text()}", text=True, check=False)
    assert done.returncode == 7  # a run that fails is a job that failed
    run_it = ["-", sys.executable, "-m", "lavila_fast", "train", "try_retrieval", "--data", "my 'data'.csv"]
    rest = ["--output", "run", "--set", "lr=1e-3", "--resume"]
    assert told.read_text().split("\0")[:-1] == ["first", "20005", *run_it, *rest]


def test_lines_tell_all_updates_and_how_fast_they_were(tmp_path: Path) -> None:
    watch = Watch(tmp_path, 20, 8, every=10, quiet=True)
    assert [watch.add(step, step / 5, {"loss": step, "clip_loss": step}, 0.0, step == 5) for step in range(1, 8)] == [
        step == 5 for step in range(1, 8)
    ]
    row = json.loads((tmp_path / "log.jsonl").read_text())
    assert (row["step"], row["loss"]) == (5, 3)  # the mean of all five
    shown = progress_line({**row, "clips_per_s": 12.345, "data_wait": 0.25, "eta_s": 7300.0, "norm": None})
    told = "update 5 of 20, epoch 1: loss 3; 12.3 clips/s, 25% of the time waiting for them, 2.0 hours left"
    assert shown == told
    assert progress_line({"step": 5, "validation": True, "loss": 2.0}) == "update 5, validation: loss 2"


def test_batches_are_shared() -> None:
    pairs = find_recipe("pretrain_tsf_b_human")
    assert tuple(batch_share(pairs, 32)) == (32, 1, None)
    assert tuple(batch_share(pairs, 1)) == (1024, 1, 32)
    assert tuple(batch_share(with_settings(pairs, ["negatives=micro"]), 4)) == (32, 8, None)
    assert tuple(batch_share(find_recipe("narrator_tsf_b"), 8)) == (8, 4, None)
    with pytest.raises(InputError, match="3 processes cannot share a batch of 1024 evenly"):
        batch_share(pairs, 3)


def test_recipes_have_the_originals_numbers() -> None:
    """As published with its checkpoints: flags of the model zoo, clips of all its GPUs."""
    rows = {name: RECIPES[name] for name in RECIPES}
    batches = {name: row.batch_size for name, row in rows.items() if not name.endswith("_fast")}
    assert batches["pretrain_tsf_b"] == 32 * 32
    assert batches["pretrain_tsf_l_336_human"] == 8 * 64
    assert batches["narrator_tsf_b"] == 8 * 32
    assert (batches["finetune_mir_tsf_b"], batches["finetune_mir_tsf_l"]) == (16 * 32, 4 * 32)
    assert batches["finetune_cls_tsf_b"] == 16 * 8
    adamw, sgd = Optimisation(), rows["finetune_egtea_tsf_b"].optimiser
    assert (adamw.betas, adamw.eps, adamw.weight_decay) == ((0.9, 0.999), 1e-8, 0.01)
    assert (sgd.name, sgd.weight_decay, sgd.betas[0], sgd.factors) == ("sgd", 4e-5, 0.9, {"visual.": 0.1})
    for name, row in rows.items():
        constant = name.startswith(("pretrain", "narrator", "finetune_narrator"))
        assert row.fix_lr == constant, name
        few = constant or name == "finetune_retrieval" or name.startswith("try_")
        assert row.frames == (4 if few else 16), name


def test_a_single_head_is_said_once() -> None:
    vision = VisionConfig(img=16, patch=8, dim=32, depth=1, heads=1, frames=2, act="gelu")
    batch = TrainingBatch(torch.randn(4, 3, 2, 16, 16), targets=torch.zeros(4, 2, dtype=torch.long))
    _, two = ClassifyTask(Classifier(ClassifierConfig(vision, (5, 3), multi_head=True)))(batch)
    assert list(two) == ["head_0", "right_0", "head_1", "right_1"]
    task = ClassifyTask(Classifier(ClassifierConfig(vision, (5,))))
    alone = TrainingBatch(batch.video, targets=torch.zeros(4, dtype=torch.long))
    loss, one = task(alone)
    logits = task.model(batch.video)
    assert list(one) == ["right"]
    assert one["right"] == (logits.argmax(-1) == 0).float().mean()
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, alone.targets, label_smoothing=0.1))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_clips_have_mixed_losses(kind: str) -> None:
    """Against the formula: of what the model saw, pixel by pixel, and of two cross-entropies."""
    torch.manual_seed(0)
    vision = VisionConfig(img=16, patch=8, dim=32, depth=1, heads=1, frames=2, act="gelu")
    task = ClassifyTask(Classifier(ClassifierConfig(vision, (5,))), smoothing=0.0, **{kind: 1.0})
    seen: list[torch.Tensor] = []
    task.model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    video = torch.randn(4, 3, 2, 16, 16)
    targets = torch.tensor([0, 1, 2, 3])
    loss, _ = task.train()(TrainingBatch(video, targets=targets))
    own = (seen[0] - video.flip(0)) / (video - video.flip(0))  # each pixel's share of its own clip
    if kind == "cutmix":
        assert set(own.round(decimals=3).unique().tolist()) <= {0.0, 1.0}
        assert torch.equal(own[0, 0, 0], own[3, 2, 1])  # one box for all
    share = own.mean().item()
    assert 0 < share < 1
    chances = task.model(seen[0]).log_softmax(-1)
    expected = -(share * chances[range(4), targets] + (1 - share) * chances[range(4), targets.flip(0)]).mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-4)
    calm, _ = task.eval()(TrainingBatch(video, targets=targets))
    assert torch.equal(seen[-1], video)
    assert float(calm.detach()) == pytest.approx(
        float(-task.model(video).log_softmax(-1)[range(4), targets].mean()), rel=1e-5
    )


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_documented_sequence(tmp_path: Path) -> None:
    """From raw videos to a dual encoder that learnt from a narrator that was trained here, by commands alone."""
    raw, data, runs = tmp_path / "raw", tmp_path / "Ego4D", tmp_path / "runs"
    raw.mkdir()
    data.mkdir()
    write_video(raw / "one.mp4", 100, 25, size=(192, 144))
    pickled(data / "ego4d_train.pkl", spoken("one"))
    pickled(data / "ego4d_val.pkl", spoken("one")[:3])
    chunks = data / "video_5min_chunks_288px"
    assert run(["prepare", "ego4d", "--data", str(raw), "-o", str(chunks), "--side", "96", "--workers", "0", "-q"]) == 0
    assert run(["prepare", "ego4d", "--data", str(data), "--check-only"]) == 0

    def trained(name: str, output: str, **settings: Any) -> Path:
        told = command(name, tmp_path, runs / output, **settings)
        at = told.index("--tokenizer")  # each finds its own: the package's, or beside its first weights
        assert run([*told[:at], *told[at + 2 :]]) == 0
        return runs / output / "model.safetensors"

    human = trained("pretrain_tsf_b_human", "human")
    narrator = trained("narrator_tsf_b", "narrator", starts=json.dumps([f"dual_encoder:{human}"]))
    said = tmp_path / "narrated.jsonl"
    told = ["narrate", str(chunks), "--clips", str(data / "ego4d_train.pkl"), "--model", str(narrator)]
    assert run([*told, "--samples", "3", "-o", str(said), "--quiet"]) == 0
    assert run(["narrations", str(said), "-o", str(data / "narrated.pkl")]) == 0
    everything = {"data.others": '["narrated.pkl"]', "data.human": "ego4d_train.pkl"}
    model = trained("pretrain_tsf_b", "all", **everything)
    rows = [json.loads(line) for line in (runs / "all" / "log.jsonl").read_text().splitlines()]
    assert sum(row["rows_pseudo"] for row in rows if "validation" not in row) > 0
    assert load_model(model).config.vision.frames == 2
