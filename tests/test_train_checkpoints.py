"""Checkpoints: whole or not at all, the same for every engine, and a clear line for what cannot be resumed."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lavila_fast.config import ClipTextConfig, DualEncoderConfig, GPT2Config, NarratorConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import CheckpointError, InputError, PeerError, StorageError  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.load import CLASSES, load_dual_encoder  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.models.weight_files import read_weights  # noqa: E402
from lavila_fast.presets import VARIANTS  # noqa: E402
from lavila_fast.train import portable  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.checkpoints import Checkpoints  # noqa: E402
from lavila_fast.train.consolidate import consolidate, original_names  # noqa: E402
from lavila_fast.train.engines import TorchEngine, TrainingEngine  # noqa: E402
from lavila_fast.train.optimisers import Optimisation  # noqa: E402
from lavila_fast.train.portable import AVERAGE, OPTIMISER, STATE, WEIGHTS, averaged_weights, read_tensors  # noqa: E402
from lavila_fast.train.processes import processes, share_of  # noqa: E402
from lavila_fast.train.run import TrainingRun  # noqa: E402
from lavila_fast.train.steps import Steps  # noqa: E402
from lavila_fast.train.tasks import CaptionTask, ContrastiveTask, TrainingTask  # noqa: E402

VISION = VisionConfig(img=16, patch=8, dim=48, depth=2, heads=3, frames=3, gated_time=True)
DUAL = DualEncoderConfig(VISION, ClipTextConfig(width=32, heads=2, layers=1, vocab=60, context=9), 16)
NARRATOR = NarratorConfig(
    VISION, GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab=61, n_positions=12), queries=3, pool_heads=1
)
GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
STEPS = 60
CLIPS = 6


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Noise:
    """Batches that depend on the step alone."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        generator = torch.Generator().manual_seed(step)
        video = torch.randn(CLIPS, 3, 3, 16, 16, generator=generator)
        ids = torch.randint(1, 58, (CLIPS, 9), generator=generator)
        ids[:, -1] = 59
        human = torch.arange(CLIPS) % 2
        return TrainingBatch(video, ids=ids, human=human).rows(slice(rank, None, world))


Make = Callable[[TrainingTask, Optimisation], TrainingEngine]
HOW = Optimisation(weight_decay=0.05, clip="norm", most=0.5)


def task_of(kind: str, precise: bool = True) -> TrainingTask:
    """One of three: a dual encoder, one with two temperatures, a narrator of which little is trained."""
    torch.manual_seed(0)
    if kind == "narrator":
        narrator = NarratorModel(NARRATOR)
        narrator.requires_grad_(False)
        for name, parameter in narrator.named_parameters():
            if "cross" in name or "alpha_" in name or name.startswith("img_"):
                parameter.requires_grad_(True)
            if name.endswith(("alpha_cattn", "alpha_dense")):
                parameter.data.fill_(0.5)
        for embedding in (narrator.text_decoder.transformer.wte, narrator.text_decoder.transformer.wpe):
            torch.nn.init.normal_(embedding.weight, std=0.02)
        return CaptionTask(narrator)
    if kind == "dual":
        return ContrastiveTask(DualEncoder(DUAL))
    return ContrastiveTask(DualEncoder(DUAL), pseudo_temperature=0.1, summed_pseudo=precise)


def run_of(
    make: Make = TorchEngine,
    kind: str = "two",
    how: Optimisation = HOW,
    rank: int = 0,
    world: int = 1,
    ema: float = 0.9,
    precise: bool = True,
    **settings: Any,
) -> TrainingRun:
    rates = np.full(STEPS, 1e-3)
    engine = make(task_of(kind, precise), how)
    told = json.dumps({"lr": 1e-3, "steps": STEPS, **settings})
    return TrainingRun(
        engine.task, engine, Noise(), Steps(STEPS, 1), rates, rank=rank, world=world, ema=ema, settings=told
    )


def losses(run: TrainingRun, most: int = 10) -> list[float]:
    return [row["loss"] for row in islice(run.steps(), most)]


def saved(run: TrainingRun, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    run.save(folder)
    return folder


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after four steps. Not to be altered: copy it first."""
    run = run_of()
    losses(run, 4)
    return saved(run, tmp_path_factory.mktemp("run") / "checkpoint")


SGD = Optimisation(name="sgd", betas=(0.9, 0.0), clip="value", most=0.01)


@pytest.mark.parametrize("how", [HOW, SGD], ids=["adamw", "sgd"])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, how: Optimisation, precision: str) -> None:
    def make(task: TrainingTask, how: Optimisation) -> TorchEngine:
        return TorchEngine(task, how, precision=precision)

    whole = run_of(make, how=how, precise=precision == "float32")
    losses(whole, 3)
    folder = saved(whole, tmp_path / "checkpoint")
    rest = losses(whole)
    assert all(map(math.isfinite, rest))
    resumed = run_of(make, how=how, precise=precision == "float32")
    assert resumed.resume(folder)
    assert losses(resumed) == rest
    assert resumed.engine.loss_scale == whole.engine.loss_scale
    expected = whole.average
    for name, weight in resumed.average.items():
        assert torch.equal(weight, expected[name]), name


def test_packed_state_of_8_bits_resumes(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    how = replace(HOW, name="adamw8bit")
    whole = run_of(kind="narrator", how=how)
    # Packed is what has 4,096 elements or more.
    assert whole.task.get_parameter("model.text_decoder.transformer.h.0.mlp_crossattention.c_fc.weight").numel() == 4096
    losses(whole, 3)
    folder = saved(whole, tmp_path / "checkpoint")
    resumed = run_of(kind="narrator", how=how)
    resumed.resume(folder)
    assert losses(resumed) == losses(whole)


def test_without_a_decay_the_average_is_the_weights(tmp_path: Path) -> None:
    run = run_of(ema=0.0)
    losses(run, 2)
    folder = saved(run, tmp_path / "checkpoint")
    assert not (folder / AVERAGE).exists()
    for name, weight in averaged_weights(folder).items():
        assert torch.equal(weight, run.task.state_dict()[name])


def test_average_follows_the_weights(halfway: Path) -> None:
    run = run_of()
    expected = {name: weight.clone() for name, weight in run.task.named_parameters()}
    for step, _ in enumerate(islice(run.steps(), 4), 1):
        decay = min(0.9, step / (step + 10))
        for name, weight in run.task.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * weight.detach()
    found = averaged_weights(halfway)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight.detach())


def test_files_hold_names_and_no_programs(halfway: Path) -> None:
    assert sorted(path.name for path in halfway.iterdir()) == sorted([AVERAGE, OPTIMISER, STATE, WEIGHTS])
    names = set(dict(task_of("two").named_parameters()))
    assert set(read_tensors(halfway / WEIGHTS)) == names | {"criterion.pseudo_gradients"}
    kinds = {"exp_avg", "exp_avg_sq", "step"}
    assert set(read_tensors(halfway / OPTIMISER)) == {f"{kind}/{name}" for kind in kinds for name in names}
    state = json.loads((halfway / STATE).read_text())
    assert (state["step"], state["done"], state["format"]) == (4, 4, 1)
    assert state["settings"] == {"lr": 1e-3, "steps": STEPS}
    assert state["versions"]["torch"]


def altered(halfway: Path, folder: Path, name: str, change: Callable[[bytes], bytes | None]) -> Path:
    shutil.copytree(halfway, folder)
    content = change((folder / name).read_bytes())
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_bytes(content)
    return folder


FAULTS: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda content: None,
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "last_byte": lambda content: content[:-1],
    "header": lambda content: content[:20],
    "other": lambda content: b"half a file",
}


@pytest.mark.parametrize("name", [WEIGHTS, OPTIMISER, AVERAGE])
@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_named_and_change_nothing(halfway: Path, tmp_path: Path, name: str, fault: str) -> None:
    folder = altered(halfway, tmp_path / "checkpoint", name, FAULTS[fault])
    run = run_of()
    before = {key: tensor.clone() for key, tensor in run.task.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"{name}: (missing|truncated or damaged .*); remove {folder}") as raised:
        run.resume(folder)
    assert "\n" not in str(raised.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in run.task.state_dict().items())
    assert run.step == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: None, "state.json: missing"),
        (lambda state: state[:-30], "state.json: cannot be read"),
        (lambda state: b"[]", "state.json: not the state of a run"),
        (lambda state: b"\xff\xfe", "state.json: cannot be read"),
        (lambda state: state.replace(b'"format": 1', b'"format": 9'), "format 9, this version reads 1"),
        (lambda state: state.replace(b'"lr": 0.001', b'"lr": 0.5'), r"other settings .*\(lr was 0.5, is 0.001\)"),
        (lambda state: state.replace(b"adamw", b"sgd"), "of optimiser sgd, this run has adamw"),
    ],
)
def test_states_that_do_not_fit_are_told(halfway: Path, tmp_path: Path, change: Any, said: str) -> None:
    folder = altered(halfway, tmp_path / "checkpoint", STATE, change)
    with pytest.raises(CheckpointError, match=said) as raised:
        run_of().resume(folder)
    assert "\n" not in str(raised.value)


def test_another_model_is_told_by_name_and_shape(halfway: Path) -> None:
    def other(task: TrainingTask, how: Optimisation) -> TorchEngine:
        wider = replace(DUAL, embed=20)
        return TorchEngine(ContrastiveTask(DualEncoder(wider), pseudo_temperature=0.1, summed_pseudo=True), how)

    with pytest.raises(
        CheckpointError, match=r"model\.image_projection is \(48, 16\), expected \(48, 20\) \(0 missing"
    ):
        run_of(other).resume(halfway)
    with pytest.raises(CheckpointError, match=r"of another model, model\.\S+ is missing"):
        run_of(kind="narrator").resume(halfway)

    def frozen(task: TrainingTask, how: Optimisation) -> TorchEngine:
        task.model.visual.cls_token.requires_grad_(False)
        return TorchEngine(task, how)

    with pytest.raises(CheckpointError, match=r"visual\.cls_token \(1, 1, 48\) is not of what this run trains"):
        run_of(frozen, ema=0.0).resume(halfway)


class TestCheckpoints:
    def write(self, checkpoints: Checkpoints, *steps: int) -> None:
        for step in steps:
            with checkpoints.writing(step) as folder:
                (folder / "weights.safetensors").write_bytes(b"w" * step)
                (folder / STATE).write_text("{}")

    def test_last_and_best_stay(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path, keep=2)
        assert checkpoints.latest() is None
        assert checkpoints.best() is None
        self.write(checkpoints, 10)
        assert checkpoints.mark_best(10, 0.5)
        self.write(checkpoints, 20, 30)
        assert not checkpoints.mark_best(20, 0.4)
        assert not checkpoints.mark_best(20, math.nan)
        self.write(checkpoints, 100)
        assert checkpoints.steps == [10, 30, 100]
        assert checkpoints.latest() == tmp_path / "checkpoints" / "step_00000100"
        assert checkpoints.best() == tmp_path / "checkpoints" / "step_00000010"
        assert checkpoints.mark_best(100, 0.6)
        self.write(checkpoints, 200)
        assert Checkpoints(tmp_path).steps == [100, 200]
        (tmp_path / "checkpoints" / "best.json").write_text("{")
        with pytest.raises(CheckpointError, match=r"best\.json: cannot be read; remove it"):
            checkpoints.best()

    def test_a_step_written_again_stays(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        self.write(checkpoints, 5)
        before = (checkpoints.of(5) / STATE).stat().st_ino
        self.write(checkpoints, 5)
        assert (checkpoints.of(5) / STATE).stat().st_ino == before
        assert [path.name for path in checkpoints.folder.iterdir()] == ["step_00000005"]

    def test_an_error_leaves_those_before(self, tmp_path: Path) -> None:
        checkpoints = Checkpoints(tmp_path)
        self.write(checkpoints, 1)
        with pytest.raises(ZeroDivisionError), checkpoints.writing(2) as folder:
            (folder / STATE).write_text(str(1 // 0))
        assert checkpoints.steps == [1]
        self.write(checkpoints, 3)
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step_00000001", "step_00000003"]

    def test_a_full_disk_is_told_in_a_line(self, tmp_path: Path) -> None:
        run, checkpoints = run_of(), Checkpoints(tmp_path)
        self.write(checkpoints, 1)
        import resource

        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
        try:
            with pytest.raises(StorageError, match=r"safetensors: cannot be written \(file too large\); make room"):  # noqa: SIM117
                with checkpoints.writing(2) as folder:
                    run.save(folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert checkpoints.steps == [1]

    def test_a_kill_at_any_write_leaves_those_before(self, tmp_path: Path) -> None:
        """A child saves step 1, then is killed at the n-th change to the disk while it saves step 2."""
        run = run_of(kind="narrator")
        assert _killed_at(10**6, run, tmp_path / "all") == 0
        changes = int((tmp_path / "all" / "changes").read_text())
        assert changes > 50
        for call in sorted({1, 2, 3, *range(4, changes, 17), *range(changes - 12, changes + 1)}):
            folder = tmp_path / str(call)
            assert _killed_at(call, run, folder) == signal.SIGKILL, call
            found = Checkpoints(folder)
            assert found.steps in ([1], [1, 2]), call
            again, latest = run_of(kind="narrator"), found.latest()
            assert latest is not None
            assert again.resume(latest)
            assert again.step == found.steps[-1]


def _killed_at(fatal: int, run: TrainingRun, folder: Path) -> int:
    """The signal that killed the child, or 0."""
    child = os.fork()
    if not child:  # pragma: no cover - another process
        try:
            _save_twice(run, folder, fatal)
        finally:
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def _save_twice(run: TrainingRun, folder: Path, fatal: int) -> None:
    checkpoints = Checkpoints(folder)
    counted: list[str] = []
    for step in (1, 2):
        run.step = run.done = step
        if step == 2:
            _kill_at(fatal, counted)
        with checkpoints.writing(step) as part:
            run.save(part)
    (folder / "changes").write_text(str(len(counted)))


def _kill_at(fatal: int, counted: list[str]) -> None:
    """Have the process killed before the `fatal`-th tensor, opened file, rename or removal."""

    def watch(event: str, arguments: Any) -> None:
        if event in ("open", "tensor", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
            counted.append(event)
            if len(counted) == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    plain = portable._Stream._write

    def write(self: Any, tensor: Any) -> None:
        watch("tensor", ())
        plain(self, tensor)

    portable._Stream._write = write  # type: ignore[method-assign]
    sys.addaudithook(watch)


def test_a_model_file_has_the_averaged_weights(halfway: Path, tmp_path: Path) -> None:
    average = averaged_weights(halfway)
    path = consolidate(halfway, DUAL, tmp_path / "model.safetensors")
    model = load_dual_encoder(path)
    assert model.config == DUAL
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, average[f"model.{name}"]), name
    assert not torch.equal(model.logit_scale, read_tensors(halfway / WEIGHTS)["model.logit_scale"])
    with pytest.raises(CheckpointError, match="key image_projection is"):
        consolidate(halfway, replace(DUAL, embed=20), tmp_path / "other.safetensors")


def test_the_originals_file_has_its_layout(halfway: Path, tmp_path: Path) -> None:
    given = {"norm_embed": True}
    path = consolidate(halfway, DUAL, tmp_path / "model.pth", "pth", epoch=3, args=given)
    with torch.serialization.safe_globals([Namespace]):
        content = torch.load(path, weights_only=True)
    assert list(content) == ["epoch", "state_dict", "args", "best_acc1"]
    assert content["epoch"] == 3
    assert vars(content["args"]) == {"model": "dual_encoder", "clip_length": 3, "project_embed_dim": 16, **given}
    average = averaged_weights(halfway)
    for name, weight in content["state_dict"].items():
        assert torch.equal(weight, average[name.replace("module.", "model.")])
    model = load_dual_encoder(path, DUAL)
    assert set(read_weights(path).tensors) == {f"module.{name}" for name in model.state_dict()}


def test_names_are_those_of_the_released_files() -> None:
    path = GOLDEN / "checkpoint_keys.json.gz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {GOLDEN}")
    for name, shapes in json.loads(gzip.decompress(path.read_bytes())).items():
        config = VARIANTS[name]
        with torch.device("meta"):
            weights = CLASSES[type(config)](config).state_dict()
        found = {key: list(tensor.shape) for key, tensor in original_names(weights, config).items()}
        assert found == {key.removeprefix("module."): shape for key, shape in shapes.items()}, name


def test_narrator_comes_back_from_the_originals_layout(tmp_path: Path) -> None:
    run = run_of(kind="narrator")
    losses(run, 1)
    path = consolidate(saved(run, tmp_path / "c"), NARRATOR, tmp_path / "narrator.pth", "pth")
    file = read_weights(path).tensors
    assert file["module.text_decoder.transformer.h.1.attn.bias"].dtype == torch.uint8
    assert torch.equal(file["module.text_decoder.lm_head.weight"], file["module.text_decoder.transformer.wte.weight"])


def joining(monkeypatch: pytest.MonkeyPatch, rank: int) -> None:
    values = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 9}
    for name, value in values.items():
        monkeypatch.setenv(name, str(value))


def test_a_peer_that_is_not_there_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    joining(monkeypatch, 1)
    with pytest.raises(PeerError, match=r"after 1 s at the start; they meet at MASTER_ADDR 127\.0\.0\.1:9") as raised:  # noqa: SIM117
        with processes(meeting=1):
            pass
    assert "\n" not in str(raised.value)


LOST = """
import os, time, torch, torch.distributed as dist
from lavila_fast.errors import exit_with_line
from lavila_fast.train.processes import processes
os.environ["RANK"] = "0" if os.fork() else "1"  # torch is loaded once
if os.environ["RANK"] == "1":
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
with exit_with_line(), processes(waiting=3) as (rank, world):
    if rank:
        time.sleep(60)
    dist.all_reduce(torch.ones(1))
"""


def test_a_peer_that_is_lost_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "lost.py").write_text(LOST)
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": "2"}
    command = [sys.executable, str(tmp_path / "lost.py")]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as first:
        try:
            said = first.communicate(timeout=50)[1].decode().strip().splitlines()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(first.pid, signal.SIGKILL)  # the other one sleeps
    assert said[-1].startswith("error: process 0: no word from the others (an exchange may take 3 s; they meet at")
    assert first.returncode == 1


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_batch_that_does_not_come_out_even_is_told() -> None:
    assert share_of(6, 3) == 2
    with pytest.raises(InputError, match="4 processes cannot share a batch of 6 evenly; start a number"):
        share_of(6, 4)


WORKER = """
import json, sys, torch, torch.distributed as dist
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_train_checkpoints as ours
from lavila_fast.train.checkpoints import Checkpoints
from lavila_fast.train.engines import DeepSpeedEngine, TorchEngine
from lavila_fast.train.processes import processes
torch.set_num_threads(1)
folder, found = Path({folder!r}), {{}}
with processes() as (rank, world):
    def run(engine, kind):
        def make(task, how):
            if engine == "ddp":
                return TorchEngine(task, how, world)
            stage, precision, offload = engine
            return DeepSpeedEngine(task, how, stage, 6, precision, offload, small=0)
        return ours.run_of(make, kind, rank=rank, world=world, precise=kind == "two")

    def told(name, value):
        found[name] = value
        if rank == 0:
            (folder / "found.json").write_text(json.dumps(found))
{body}
"""

CHAIN = """
    for kind in ("two", "narrator"):
        start = folder / kind / "torch"
        for engine in (*((stage, "float32", stage == 1) for stage in (2, 3, 1, 0)), "ddp"):
            one = run(engine, kind)
            one.resume(start)
            name = "ddp" if engine == "ddp" else f"zero{{engine[0]}}"
            checkpoints = Checkpoints(folder / kind / name)
            first = ours.losses(one)
            with checkpoints.writing(one.step) as part:
                one.save(part)
            told(f"{{kind}} {{name}}", [start.name if start.name == "torch" else str(start), first])
            start = checkpoints.latest()
            again = ours.losses(one, 3)
            two = run(engine, kind)
            two.resume(start)
            assert ours.losses(two, 3) == again, (kind, name)
            average, expected = two.average, one.average
            assert all(torch.equal(average[key], expected[key]) for key in expected), (kind, name)
            told(f"{{kind}} end", str(start))
"""

HALF = """
    import deepspeed
    # So it says of a CPU without instructions for it; PyTorch computes it all the same.
    deepspeed.get_accelerator().is_fp16_supported = lambda: True
    for engine in ((0, "bfloat16", False), (1, "bfloat16", False), (2, "bfloat16", False), (3, "bfloat16", False),
                   (3, "bfloat16", True), (1, "float16", False), (2, "float16", False), (3, "float16", False)):
        one = run(engine, "narrator")
        name = " ".join(map(str, engine))
        first = ours.losses(one, 8)
        scale = one.engine.loss_scale
        place = folder / name.replace(" ", "_")
        with Checkpoints(place).writing(8) as part:
            one.save(part)
        rest = ours.losses(one, 3)
        two = run(engine, "narrator")
        two.resume(Checkpoints(place).latest())
        assert two.engine.loss_scale == scale
        assert ours.losses(two, 3) == rest, name
        told(name, first + rest)
"""


def together(folder: Path, body: str) -> dict[str, Any]:
    """What two processes have found."""
    program = WORKER.format(tests=str(Path(__file__).parent), folder=str(folder), body=body)
    (folder / "work.py").write_text(program.replace("{{", "{").replace("}}", "}"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*start, str(folder / "work.py")], env=env, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_any_engine_goes_on_from_any_other(tmp_path: Path) -> None:
    """From one process to ZeRO of every stage and DDP on two, and back: what plain PyTorch would have done."""
    pytest.importorskip("deepspeed")
    for kind in ("two", "narrator"):
        run = run_of(kind=kind)
        losses(run, 4)
        (tmp_path / kind).mkdir()
        saved(run, tmp_path / kind / "torch")
    found = together(tmp_path, CHAIN)
    for kind in ("two", "narrator"):
        steps = [(name, value) for name, value in found.items() if name.startswith(kind) and "end" not in name]
        assert len(steps) == 5
        for name, (start, theirs) in steps:
            alone = run_of(kind=kind)
            alone.resume(tmp_path / kind / start)
            np.testing.assert_allclose(theirs, losses(alone), rtol=0, atol=1e-5, err_msg=name)
        last = run_of(kind=kind)
        assert last.resume(Path(found[f"{kind} end"]))
        assert len(losses(last)) == 6


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_half_precision_learns_and_resumes_to_the_bit(tmp_path: Path) -> None:
    pytest.importorskip("deepspeed")
    exact = losses(run_of(kind="narrator"), 11)
    for name, theirs in together(tmp_path, HALF).items():
        np.testing.assert_allclose(theirs, exact, rtol=0, atol=0.05, err_msg=name)
