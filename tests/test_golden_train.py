"""Training steps of the original, recorded at small sizes: the same losses, rates, norms and weights from our loop.

The folder is ``LAVILA_GOLDEN_TRAIN_DIR``, or a copy among the tests' data; sizes come from its files.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import pickle
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lavila_fast.config import ClassifierConfig, DualEncoderConfig, NarratorConfig  # noqa: E402
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.models.checkpoint import load_state, tidy  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.models.sizes import config_from_sizes  # noqa: E402
from lavila_fast.models.weight_files import read_weights  # noqa: E402
from lavila_fast.presets import VARIANTS  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.engines import TorchEngine, TrainingEngine  # noqa: E402
from lavila_fast.train.gradients import Norms  # noqa: E402
from lavila_fast.train.losses import contrastive_rows, max_margin_loss  # noqa: E402
from lavila_fast.train.optimisers import Optimisation, optimiser_groups  # noqa: E402
from lavila_fast.train.parameters import freeze, parameter_groups  # noqa: E402
from lavila_fast.train.processes import averaged  # noqa: E402
from lavila_fast.train.run import MicroRow, TrainingRun  # noqa: E402
from lavila_fast.train.schedules import Schedule  # noqa: E402
from lavila_fast.train.steps import Steps  # noqa: E402
from lavila_fast.train.tasks import (  # noqa: E402
    CaptionTask,
    ClassifyTask,
    ContrastiveTask,
    MarginTask,
    TrainingTask,
)

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_TRAIN_DIR") or Path(__file__).parent / "data" / "golden-train")
CASES = sorted(path.stem for path in GOLDEN.glob("*.*.npz") if path.name != "steps.inputs.npz")
FAMILIES = {"pretrain_ssl": "pretrain_clip", "finetune_retrieval": "pretrain_clip"}
RULES = {
    "freeze_lm_vclm": "language_model",
    "freeze_visual_vclm": "space",
    "freeze_visual_vclm_temporal": "time",
    "freeze_temperature": "temperature",
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Recording:
    """One run of the original."""

    def __init__(self, name: str) -> None:
        self.family, _, self.case = name.partition(".")
        self.told: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
        self.options: dict[str, Any] = self.told["options"]
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}
        with np.load(GOLDEN / "steps.inputs.npz") as arrays:
            self.inputs = {key: torch.from_numpy(arrays[key]) for key in arrays.files}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    @property
    def start(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Weights and sizes to begin with."""
        stem = FAMILIES.get(self.family, "pretrain_clip" if self.family.startswith("finetune") else self.family)
        path = GOLDEN / f"{stem}.pth"
        return tidy(read_weights(path).tensors, path), json.loads((GOLDEN / f"{stem}.json").read_text())

    def model(self) -> DualEncoder | NarratorModel | Classifier:
        state, sizes = self.start
        config = config_from_sizes(sizes)
        made: Any
        replaced = {
            key.removeprefix("start."): torch.from_numpy(self[key]) for key in self.arrays if key[:6] == "start."
        }
        if self.family == "finetune_classification":
            classes = self.options["num_classes"]
            vision = config.vision
            state = {key: value for key, value in state.items() if key.startswith("visual.")} | replaced
            frames = state["visual.temporal_embed"].shape[1]
            config = ClassifierConfig(replace(vision, frames=frames), tuple(classes), multi_head=len(classes) > 1)
            made = Classifier(config)
        else:
            state |= replaced
            if "visual.temporal_embed" in replaced:
                config = replace(
                    config, vision=replace(config.vision, frames=replaced["visual.temporal_embed"].shape[1])
                )
            made = DualEncoder(config) if isinstance(config, DualEncoderConfig) else NarratorModel(config)
        load_state(made, state, Path(self.case))
        if self.case == "not_gated":
            open_gates(made)
        if self.family.startswith("pretrain"):
            with torch.no_grad():
                made.logit_scale.fill_(math.log(1 / self.options["temperature_init"]))
        return made

    def task(self) -> TrainingTask:
        model, options = self.model(), self.options
        rules = [rule for flag, rule in RULES.items() if options.get(flag)]
        if self.family == "finetune_retrieval":
            rules = ["temperature"]
        frozen = freeze(model, [*rules, "gates"] if self.case == "not_gated" else rules)
        assert sorted(name for name in frozen if "alpha_" not in name) == sorted(self.told["frozen"])
        if self.family == "finetune_classification":
            return ClassifyTask(model, options["label_smoothing"])
        if self.family == "narrator":
            return CaptionTask(model)
        if self.family == "finetune_retrieval" and self.case != "charades":
            adaptive = self.case == "adaptive_margin"
            return MarginTask(model, 0.4 if adaptive else 0.2, adaptive)
        pseudo: dict[str, Any] = {}
        if self.family == "pretrain_ssl":
            pseudo = {
                "pseudo_temperature": options["pseudo_temperature_init"],
                "learn_pseudo": not options["freeze_pseudo_temperature"],
                "summed_pseudo": True,
            }
        return ContrastiveTask(model, normalize=options.get("norm_embed", True), **pseudo)

    def optimisation(self) -> Optimisation:
        told, options = self.told["optimizer_defaults"], self.options
        clip = options["clip_grad_value"]
        sgd = self.told["optimizer"] == "SGD"
        return Optimisation(
            name="sgd" if sgd else "adamw",
            betas=(told["momentum"], 0.0) if sgd else tuple(told["betas"]),
            eps=told.get("eps", 1e-8),
            weight_decay=options["wd"],
            clip="none" if clip is None else options["clip_grad_type"],
            most=1.0 if clip is None else clip,
            accumulate=options["update_freq"],
            factors={"visual.": options["lr_multiplier_on_backbone"]} if "finetune_cl" in self.family else {},
            same_rate=True,
        )

    def schedule(self, steps: Steps) -> Schedule:
        options, each = self.options, steps.updates // steps.epochs
        return Schedule(
            options["lr"],
            steps.updates,
            int(options["warmup_epochs"] * each),
            options["lr_start"],
            options["lr_end"],
            constant=options["fix_lr"],
        )

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        return self._whole(step).rows(slice(rank, None, world))

    def _whole(self, step: int) -> TrainingBatch:
        number, inputs = int(self["batch"].flat[step]), self.inputs
        video = inputs["video_finetune" if self.family.startswith("finetune") else "video"][number].float() / 64
        rest: dict[str, torch.Tensor] = {}
        if self.family == "pretrain_distilbert":
            rest = {"ids": inputs["bert_ids"][number], "mask": inputs["bert_mask"][number]}
        elif self.family == "narrator":
            rest = {"ids": inputs["caption"][number]}
        elif self.family == "finetune_classification":
            rest = {"targets": self._targets(number)}
        else:
            rest = {name: inputs[key][number] for name, key in _DUAL.items()}
        return TrainingBatch(video, **{name: _long(value) for name, value in rest.items()})

    def _targets(self, number: int) -> torch.Tensor:
        if len(self.options["num_classes"]) == 1:
            return self.inputs["action" if "ek100" in self.case else "label"][number]
        pairs = [tuple(map(int, pair.split(":"))) for pair in self.told["action_to_verb_noun"]]
        return torch.tensor([(*pairs[int(action)], int(action)) for action in self.inputs["action"][number]])


_DUAL = {"ids": "clip_text", "human": "is_human", "relevancy": "relevancy"}


def _long(value: torch.Tensor) -> torch.Tensor:
    return value if value.is_floating_point() else value.long()


def close(found: Any, expected: Any, relative: float, what: str) -> None:
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=relative, atol=1e-12, err_msg=what)


def learn(
    name: str, make: Callable[[TrainingTask, Optimisation], TrainingEngine], rank: int = 0, world: int = 1
) -> Found:
    """Go through a recording's steps."""
    recording = Recording(name)
    task, how = recording.task(), recording.optimisation()
    epochs, batches = recording["batch"].shape
    steps = Steps(batches, epochs, how.accumulate, carry=True)
    factors = [group["factor"] for group in optimiser_groups(task, how)]
    engine = make(task, how)
    rates = recording.schedule(steps).rates()
    run = TrainingRun(task, engine, recording, steps, rates, rank=rank, world=world)
    found = Found([scales(engine)])
    found.factors = factors
    for row in run.micro_steps():
        if row.micro.update == steps.updates and recording.told["error"]:  # the original fails here; we go on
            break
        found.add(row, rates)
        found.scales.append(scales(engine))
    found.pseudo_gradients = getattr(engine, "pseudo_gradients", [])
    found.weights = {entry.name.removeprefix("model."): entry.whole().numpy().ravel() for entry in engine.weights()}
    return found


@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_originals(name: str) -> None:
    compare(Recording(name), learn(name, Watched))


@pytest.mark.parametrize("name", CASES)
def test_groups_are_the_originals(name: str) -> None:
    recording = Recording(name)
    groups, expected = optimiser_groups(recording.task(), recording.optimisation()), recording.told["groups"]
    assert [(one["weight_decay"], sorted(one["names"])) for one in groups] == [
        (one["weight_decay"], sorted(one["names"])) for one in expected
    ]


class Watched(TorchEngine):
    """Keeps the gradient of the pseudo temperature at each update."""

    def update(self, rate: float) -> Norms:
        pseudo = getattr(self.task.criterion, "logit_scale_pseudo", None)
        if pseudo is not None and pseudo.grad is not None:
            self.pseudo_gradients.append(float(pseudo.grad))
        return super().update(rate)

    def __init__(self, task: TrainingTask, how: Optimisation) -> None:
        super().__init__(task, how)
        self.pseudo_gradients: list[float] = []


@torch.no_grad()
def open_gates(narrator: NarratorModel) -> None:
    for name, parameter in narrator.named_parameters():
        if "alpha_" in name and name.startswith("text_decoder."):
            parameter.fill_(20.0)  # whose tanh is 1


class Found:
    """What our run did; numbers are means over processes."""

    def __init__(self, scales: list[tuple[float, float]]) -> None:
        self.scales = scales
        self.numbers: list[dict[str, float]] = []
        self.differentiated: list[float] = []
        self.norms: list[Norms] = []
        self.rates: list[float] = []
        self.factors: list[float] = []
        self.pseudo_gradients: list[float] = []
        self.weights: dict[str, np.ndarray] = {}

    def add(self, row: MicroRow, rates: np.ndarray) -> None:
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        numbers = averaged({**row.numbers, "loss": row.loss, "share": row.share}, world)
        self.differentiated.append(numbers.pop("share"))
        self.numbers.append(numbers)
        if row.norms:
            self.norms.append(Norms(*(torch.as_tensor(float(norm)) for norm in row.norms)))
            self.rates.append(float(rates[row.micro.update]))

    def all(self, name: str) -> list[float]:
        return [one[name] for one in self.numbers]


def scales(engine: TrainingEngine) -> tuple[float, float]:
    found = {entry.name: float(entry.whole()) for entry in engine.weights() if "logit_scale" in entry.name}
    return found.get("model.logit_scale", math.nan), found.get("criterion.logit_scale_pseudo", math.nan)


SHARES = {"clip_acc": "right", "clip_acc_gt": "right_human", "clip_acc_pseudo": "right_pseudo", "caption_acc": "right"}
PARTIAL = ("num_gt", "num_pseudo", "clip_acc_gt", "clip_acc_pseudo", "caption_acc")
NAMES = {"num_gt": "rows_human", "num_pseudo": "rows_pseudo", "max_margin_loss": "margin_loss", "ppl": "perplexity"}


def compare(recording: Recording, found: Found) -> None:
    close(found.differentiated, recording["loss_backward"], 2e-5, "loss")
    close(np.outer(found.rates, found.factors), recording["lr"], 1e-9, "learning rate")
    close([norms.before for norms in found.norms], recording["grad_norm"], 2e-4, "norm")
    close([norms.after for norms in found.norms], recording["grad_norm_after_clip"], 2e-4, "norm after clipping")
    for place, key in enumerate(("log_scale", "log_scale_pseudo")):
        if key in recording.arrays:
            close([pair[place] for pair in found.scales], recording[key], 1e-5, key)
    if "grad.logit_scale_pseudo" in recording.arrays and found.pseudo_gradients:
        close(found.pseudo_gradients, recording["grad.logit_scale_pseudo"], 1e-3, "gradient of the pseudo temperature")
    for key in [key for key in recording.arrays if key.startswith("metric.")]:
        name = key.removeprefix("metric.")
        if name in PARTIAL and torch.distributed.is_initialized():  # shares of kinds that processes hold unevenly
            continue
        ours = np.array(found.all(SHARES.get(name) or NAMES.get(name, name)))
        theirs = recording[key] / 100 if name in SHARES else recording[key]
        np.testing.assert_allclose(ours, theirs, rtol=1e-4 if name == "ppl" else 2e-5, atol=1e-7, err_msg=key)
    if "cross_entropy" in recording.arrays:
        heads = len(recording.options["num_classes"])
        names = [f"head_{i}" for i in range(heads)] if heads > 1 else ["loss"]
        ours = [[one[name] for name in names] for one in found.numbers]
        close(np.ravel(ours), recording["cross_entropy"], 2e-5, "cross-entropy")
    rate = float(recording["lr"].max())
    compare_weights(recording, found.weights, (0.002 if recording.told["optimizer"] == "SGD" else 0.02) * rate)


def compare_weights(recording: Recording, ours: dict[str, np.ndarray], allowed: float) -> None:
    beyond = elements = 0
    seen = set()
    for key in recording.arrays:
        kind, _, name = key.partition(".")
        if kind not in ("end", "end_every5"):
            continue
        seen.add(name)
        expected, step = recording[key].ravel(), 1 if kind == "end" else 5
        found = ours[name][::step]
        unstable = np.zeros(len(ours[name]), bool)
        unstable[recording.arrays.get(f"unstable.{name}", np.zeros(0, np.int64))] = True
        off = np.abs(found - expected) > allowed
        off &= ~unstable[::step]
        beyond, elements = beyond + int(off.sum()), elements + len(off)
    assert beyond <= elements / 10_000, f"{beyond} of {elements} weights are off by over {allowed:g}"
    assert seen >= {name for group in recording.told["groups"] for name in group["names"]} - {
        "criterion.logit_scale_pseudo"
    }


def test_there_are_recordings() -> None:
    if not GOLDEN.is_dir():
        pytest.skip(f"no recordings in {GOLDEN}")
    assert len(CASES) > 15


FLAGS = {
    "--freeze-lm-vclm": "language_model",
    "--freeze-visual-vclm": "space",
    "--freeze-visual-vclm-temporal": "time",
    "--timesformer-freeze-space": "image_model",
}
NAMES_FILE = GOLDEN / "trainable_names.json.gz"
TOLD: dict[str, Any] = json.loads(gzip.decompress(NAMES_FILE.read_bytes())) if NAMES_FILE.is_file() else {}
OURS = sorted(name for name in TOLD if name in VARIANTS)


def counted(names: Any) -> dict[str, int]:
    """Names with ``*`` for the number of a layer → how many layers."""
    return dict(Counter(re.sub(r"\.(blocks|h|resblocks|layer)\.\d+\.", r".\1.*.", name) for name in names))


@pytest.mark.parametrize("name", OURS)
def test_real_models_train_what_the_original_trains(name: str) -> None:
    plain = empty(VARIANTS[name])
    for flags, told in TOLD[name].items():
        given, config, model = flags.split(), VARIANTS[name], plain.requires_grad_(True)
        if "--timesformer-gated-xattn" in given:
            model = empty(replace(config, vision=replace(config.vision, gated_time=True)))
        rules = [FLAGS[flag] for flag in given if flag in FLAGS]
        gated = not isinstance(config, NarratorConfig) or "--gated-xattn" in given
        frozen = [one for one in freeze(model, rules if gated else ["gates", *rules]) if gated or "alpha_" not in one]
        groups = {one.decay: one.names for one in parameter_groups(model.named_parameters(), 0.01)}
        what = f"{name} {flags}"
        assert counted(groups[0.01]) == told["decay"], what
        assert counted(groups[0.0]) == told["no_decay"], what
        assert counted(frozen) == told["frozen"], what
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert trained == told["trained_parameters"], what


def empty(config: Any) -> DualEncoder | NarratorModel:
    """A model without memory."""
    with torch.device("meta"):
        return DualEncoder(config) if isinstance(config, DualEncoderConfig) else NarratorModel(config)


def test_rules_that_find_nothing_are_refused() -> None:
    dual = empty(DualEncoderConfig())
    with pytest.raises(InputError, match="freeze language_model: this model has no such parameters"):
        freeze(dual, ["language_model"])
    with pytest.raises(InputError, match="freeze nothing: unknown; take one of language_model, space"):
        freeze(dual, ["nothing"])


KINDS = ("clip_gathered_with_gradients", "clip_gathered_without_gradients", "ssl", "max_margin", "adaptive_margin")
DISTRIBUTED = GOLDEN / "distributed_loss.npz"


def distributed_share(rank: int, world: int, folder: str, source: str) -> None:
    """One process of several: the losses of its rows and their gradients, written to a file."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", world)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world)
    with np.load(source) as arrays:
        told = {name: torch.from_numpy(arrays[name]) for name in ("video", "text", "is_human", "relevancy")}
        scales = [float(arrays["logit_scale"]), math.log(1 / float(arrays["pseudo_temperature"]))]
    here = slice(rank * len(told["video"]) // world, (rank + 1) * len(told["video"]) // world)
    found: dict[str, Any] = {}
    for kind in (*KINDS, "max_margin_diagonal_kept"):
        video, text = (told[name][here].clone().requires_grad_() for name in ("video", "text"))
        logs = [torch.tensor(value, requires_grad=True) for value in scales]
        human, relevancy = told["is_human"][here], told["relevancy"][here]
        if "margin" in kind:
            wanted = {"max_margin": (0.2, None, False), "max_margin_diagonal_kept": (0.2, None, True)}
            margin, by, diagonal = wanted.get(kind, (0.4, relevancy, False))
            loss = max_margin_loss(video, text, margin, by, diagonal)
        else:
            two = (logs[1].exp(), human) if kind == "ssl" else (None, None)
            loss = contrastive_rows(video, text, logs[0], *two, gradients="without" not in kind).loss
        torch.autograd.backward(loss)
        gradients = [torch.zeros(()) if log.grad is None else log.grad for log in logs]
        found |= {f"{kind}.loss": loss.detach().numpy(), f"{kind}.scales": torch.stack(gradients).numpy()}
        found |= {f"{kind}.{name}": each.grad.numpy() for name, each in (("video", video), ("text", text))}
    np.savez(f"{folder}/{rank}.npz", **found)
    torch.distributed.destroy_process_group()


WORLDS = (1, 2, 4)
FORKED = """
import sys
sys.path.insert(0, {tests!r})
import test_golden_train as golden
start = golden.torch.multiprocessing.start_processes
start(golden.distributed_shares, ({folder!r}, {source!r}), nprocs=4, start_method="fork")
"""


def distributed_shares(rank: int, folder: str, source: str) -> None:
    """One process of four: its shares in all worlds that it is in."""
    for world in WORLDS:
        if rank < world:
            distributed_share(rank, world, f"{folder}/{world}", source)


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, np.ndarray]]]:
    """World → what each of its processes found; one process loads torch, and forks."""
    folder = tmp_path_factory.mktemp("shares")
    for world in WORLDS:
        (folder / str(world)).mkdir()
    program = FORKED.format(tests=str(Path(__file__).parent), folder=str(folder), source=str(DISTRIBUTED))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=250, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {world: [dict(np.load(folder / str(world) / f"{rank}.npz")) for rank in range(world)] for world in WORLDS}


@pytest.mark.skipif(not DISTRIBUTED.is_file(), reason=f"no recordings in {GOLDEN}")
@pytest.mark.parametrize("world", WORLDS)
def test_losses_over_processes_are_the_originals(shares: dict[int, list[dict[str, np.ndarray]]], world: int) -> None:
    with np.load(DISTRIBUTED) as arrays:
        for kind in (*KINDS, "max_margin_diagonal_kept"):
            told = {key.rpartition(".")[2]: arrays[key] for key in arrays.files if f"processes_{world}.{kind}." in key}
            assert told, kind
            losses = [float(share[f"{kind}.loss"]) for share in shares[world]]
            np.testing.assert_allclose(np.mean(losses), told["loss"], rtol=0, atol=2e-6, err_msg=kind)
            for name in ("video", "text"):
                ours = np.concatenate([share[f"{kind}.{name}"] for share in shares[world]])
                np.testing.assert_allclose(ours, told[f"grad_{name}"], rtol=0, atol=1e-6, err_msg=f"{kind} {name}")
            scales = np.mean([share[f"{kind}.scales"] for share in shares[world]], 0)
            for place, key in enumerate(("grad_logit_scale", "grad_log_pseudo_scale")):
                if key in told:
                    np.testing.assert_allclose(scales[place], told[key], rtol=0, atol=1e-6, err_msg=f"{kind} {key}")


WORKER = """
import pickle, sys, torch, torch.distributed as dist
sys.path.insert(0, {tests!r})
import test_golden_train as golden
from lavila_fast.train.engines import DeepSpeedEngine, TorchEngine
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, world = dist.get_rank(), dist.get_world_size()
def make(task, how):
    return TorchEngine(task, how, world) if {zero} is None else DeepSpeedEngine(task, how, {zero}, 6, small=0)
for name in golden.CASES:
    found = golden.learn(name, make, rank, world)
    if rank == 0:
        with open(f"{folder}/{{name}}.found", "wb") as file:
            pickle.dump(found, file)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("zero", [None, 0, 1, 2, 3])
def test_two_processes_do_the_originals_steps(
    tmp_path: Path, zero: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has half of every batch: by DDP, and by DeepSpeed's ZeRO; in stage 3 no weight stays whole."""
    if zero is not None:
        pytest.importorskip("deepspeed")
    program = WORKER.format(tests=str(Path(__file__).parent), zero=zero, folder=tmp_path)
    (tmp_path / "work.py").write_text(program)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "LAVILA_GOLDEN_TRAIN_DIR": str(GOLDEN)}
    done = subprocess.run([*start, str(tmp_path / "work.py")], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    wrong = {}
    for name in CASES:
        with (tmp_path / f"{name}.found").open("rb") as file:
            found = Unpickler(file).load()
        try:
            compare(Recording(name), found)
        except AssertionError as error:
            wrong[name] = str(error)[:300]
    assert not wrong, wrong


class Unpickler(pickle.Unpickler):
    """What the worker above has written: it knows this module by its plain name."""

    def find_class(self, module: str, name: str) -> Any:
        return globals()[name] if module == "test_golden_train" else super().find_class(module, name)
