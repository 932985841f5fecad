"""Contrastive losses in pieces and over processes: the same gradient as the whole batch's, in the memory of a piece."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import torch.distributed as dist  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from lavila_fast.config import ClipTextConfig, DistilBertConfig, DualEncoderConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.parameters import freeze  # noqa: E402
from lavila_fast.train.regularisation import Regularisation  # noqa: E402
from lavila_fast.train.regularise import regularise  # noqa: E402
from lavila_fast.train.tasks import ContrastiveTask, DualTask, MarginTask, SiglipTask, TrainingTask  # noqa: E402

VISION = VisionConfig(img=32, patch=8, dim=32, depth=2, heads=2, frames=2)
CLIP = ClipTextConfig(width=32, heads=2, layers=2, vocab=60, context=12)
BERT = DistilBertConfig(dim=32, heads=2, layers=2, hidden=64, vocab=60, max_positions=16)
CLIPS = 8
TASKS: dict[str, Callable[..., DualTask]] = {
    "contrastive": ContrastiveTask,
    "not_normalised": lambda model, **given: ContrastiveTask(model, normalize=False, **given),
    "two_temperatures": lambda model, **given: ContrastiveTask(model, pseudo_temperature=0.1, **given),
    "margin": MarginTask,
    "adaptive_margin": lambda model, **given: MarginTask(model, 0.4, adaptive=True, **given),
    "siglip": SiglipTask,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def dual(text: Any = CLIP, vision: VisionConfig = VISION) -> DualEncoder:
    torch.manual_seed(0)
    model = DualEncoder(DualEncoderConfig(vision, text, embed=16)).train()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim >= 2:
                weight.normal_(std=0.2)
    return model


def batch_of(count: int = CLIPS, vision: VisionConfig = VISION, raw: bool = True) -> TrainingBatch:
    random = torch.Generator().manual_seed(5)
    shape = count, vision.frames, vision.img, vision.img, 3
    video = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    long = torch.randint(4, 13, (count, 1), generator=random)
    return TrainingBatch(
        video if raw else video.permute(0, 4, 1, 2, 3) / 64 - 2,
        ids=torch.randint(1, 60, (count, 12), generator=random),
        mask=(torch.arange(12) < long).long(),
        human=torch.arange(count) % 3 % 2,
        relevancy=torch.rand(count, generator=random),
    )


def gradients(task: nn.Module, batch: TrainingBatch, seed: int = 3) -> tuple[Tensor, dict[str, Tensor]]:
    task.zero_grad()
    torch.manual_seed(seed)
    loss = task(batch)[0]
    torch.autograd.backward(loss)
    named = {name.removeprefix("module."): weight for name, weight in task.named_parameters()}
    return loss.detach(), {name: weight.grad.clone() for name, weight in named.items() if weight.grad is not None}


def compare(found: dict[str, Any], expected: dict[str, Any], within: float) -> None:
    """Each gradient, relative to the largest number of all."""
    assert found.keys() == expected.keys()
    largest = max(float(abs(one).max()) for one in expected.values())
    for name, one in expected.items():
        assert float(abs(found[name] - one).max()) <= within * largest, name


# --- pieces ---


@pytest.mark.parametrize(("chunk", "raw"), [(3, True), (8, False)])
@pytest.mark.parametrize("kind", TASKS)
def test_pieces_have_the_gradient_of_the_whole(kind: str, chunk: int, raw: bool) -> None:
    for text in (CLIP, BERT):
        model, batch = dual(text), batch_of(raw=raw)
        whole, expected = gradients(TASKS[kind](model), batch)
        loss, found = gradients(TASKS[kind](model, chunk=chunk), batch)
        torch.testing.assert_close(loss, whole, rtol=1e-6, atol=0)
        compare(found, expected, 1e-6)


def test_pieces_draw_the_same_noise_twice() -> None:
    """Against the same pieces with all their activations kept; with blocks forgotten inside pieces, too."""
    model, batch = dual(BERT), batch_of()
    noise = Regularisation(drop_path=0.3, dropout=0.2, patch_dropout=0.25)
    regularise(model, noise)
    task = ContrastiveTask(model, chunk=3)

    def kept(batch: TrainingBatch, _: Tensor) -> tuple[Tensor, Tensor]:
        videos, texts = [], []
        for start in range(0, len(batch), 3):
            piece = batch.rows(slice(start, start + 3))
            texts.append(model.embed_text(piece.ids, piece.mask))
            videos.append(model.embed_video(task.shown(piece.video)))
        return torch.cat(videos), torch.cat(texts)

    task.embed, embed = kept, task.embed  # type: ignore[method-assign]
    whole, expected = gradients(task, batch)
    other, _ = gradients(task, batch, seed=4)
    assert other != whole
    task.embed = embed  # type: ignore[method-assign]
    for checkpointing in ("none", "selective", "blocks"):
        regularise(model, replace(noise, checkpointing=checkpointing))
        loss, found = gradients(task, batch)
        assert loss == whole
        compare(found, expected, 1e-6)


@pytest.mark.parametrize("checkpointing", ["none", "blocks"])
def test_pieces_in_bfloat16(checkpointing: str) -> None:
    """Near the gradient in float32, as near as the whole batch in bfloat16: pieces are added up in float32."""
    model, batch = dual(), batch_of()
    regularise(model, Regularisation(checkpointing=checkpointing))
    _, exact = gradients(ContrastiveTask(model), batch)
    _, whole = gradients(ContrastiveTask(model, fast=True), batch)
    _, found = gradients(ContrastiveTask(model, fast=True, chunk=3), batch)
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    assert distance(found, exact) < 1.2 * distance(whole, exact) < 0.1


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative, over all gradients."""
    ours, theirs = (torch.cat([one.flatten() for one in each.values()]) for each in (found, expected))
    return float((ours - theirs).norm() / theirs.norm())


def test_a_temperature_keeps_its_digits_in_bfloat16() -> None:
    """Rounded to bfloat16, ln(1/0.07) is a scale 0.3% too small."""
    task = ContrastiveTask(dual(), fast=True)
    assert float(task(batch_of())[1]["scale"]) == pytest.approx(1 / 0.07, rel=1e-6)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that is allocated at once, beyond what was there, as PyTorch's own allocator tells its profiler."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(max(0, np.cumsum(changes).max()))


def step_peak(task: TrainingTask, batch: TrainingBatch) -> int:
    """Of forward and backward together."""
    for weight in task.parameters():
        weight.grad = torch.zeros_like(weight)
    return peak_bytes(lambda: torch.autograd.backward(task(batch)[0]))


def test_the_peak_is_that_of_a_piece_and_embeddings() -> None:
    """Forward and backward, all that is allocated: not a piece's activations more, however many pieces there are."""
    model, chunk = dual(), 8
    piece = step_peak(ContrastiveTask(model), batch_of(chunk))
    peaks = {}
    for count in (32, 96):
        peaks[count] = step_peak(ContrastiveTask(model, chunk=chunk), batch_of(count))
        # Embeddings and their gradients, pieces and joined; logits both ways, their softmaxes and gradients.
        embeddings, logits = 4 * 2 * count * 16 * 4, 8 * count * count * 4
        assert peaks[count] <= 1.15 * piece + embeddings + logits, count
    whole = step_peak(ContrastiveTask(model), batch_of(96))
    assert whole > 10 * piece
    assert peaks[96] < whole / 6


def test_pieces_of_no_clips_are_refused() -> None:
    with pytest.raises(InputError, match="chunk must be at least 1 clip, not 0; leave it out"):
        ContrastiveTask(dual(), chunk=0)


# --- several processes, against one batch in float64 ---


def whole_loss(kind: str, video_NE: Tensor, text_NE: Tensor, log: Tensor, own: Tensor, batch: TrainingBatch) -> Tensor:
    """Losses as papers define them, of all clips at once; `own` is the criterion's number."""
    count = len(video_NE)
    right = torch.eye(count, dtype=torch.bool)
    if "margin" in kind:
        video_NE, text_NE = video_NE / video_NE.norm(dim=1, keepdim=True), text_NE / text_NE.norm(dim=1, keepdim=True)
        cosines = video_NE @ text_NE.T
        assert batch.relevancy is not None
        margins = 0.4 * batch.relevancy.double() if "adaptive" in kind else torch.full((count,), 0.2).double()
        slack = margins[:, None] - cosines.diagonal()[:, None]
        both = (slack + cosines).clamp(min=0), (slack + cosines.T).clamp(min=0)
        return sum(one[~right].sum() for one in both) / (2 * count * (count - 1))  # type: ignore[return-value]
    scale = log.exp() * torch.ones_like(right)
    if kind == "two_temperatures":
        assert batch.human is not None
        logs = torch.where(batch.human.bool(), log, own)
        scale = ((logs[:, None] + logs) / 2).exp()
    logits = scale * (video_NE @ text_NE.T)
    if kind == "siglip":
        chances = 1 / (1 + torch.exp(-(logits + own)))
        return -torch.where(right, chances, 1 - chances).log().sum() / count
    rows, columns = logits.exp().sum(1).log(), logits.exp().sum(0).log()
    return (rows + columns - 2 * logits.diagonal()).mean() / 2


def expected_of(kind: str) -> dict[str, np.ndarray]:
    """Loss and gradients in float64, in one process, in one piece."""
    task = TASKS[kind](dual())
    model, batch = task.model.double(), batch_of()
    normalize = "margin" not in kind
    pixels = (batch.video.double() - task.mean.double().flatten()) / task.std.double().flatten()
    video = model.embed_video(pixels.permute(0, 4, 1, 2, 3), normalize)
    own = next(iter(task.criterion.double().parameters()), torch.zeros(()))
    loss = whole_loss(kind, video, model.embed_text(batch.ids, None, normalize), model.logit_scale, own, batch)
    torch.autograd.backward(loss)
    named = {name: weight.grad for name, weight in task.named_parameters() if weight.grad is not None}
    return {"loss": loss.detach().numpy(), **{name: gradient.numpy() for name, gradient in named.items()}}


SPREAD = [kind for kind in TASKS if kind != "not_normalised"]


def share(rank: int, world: int) -> dict[str, np.ndarray]:
    """What a process finds of each kind: its loss, and gradients as DDP leaves them; whole and in pieces."""
    here = batch_of().rows(slice(rank * CLIPS // world, (rank + 1) * CLIPS // world))
    found: dict[str, np.ndarray] = {}
    for kind in SPREAD:
        for chunk, checkpointing in ((None, "none"), (1, "blocks")):
            model = dual()
            regularise(model, Regularisation(checkpointing=checkpointing))
            task: nn.Module = TASKS[kind](model, chunk=chunk)
            if world > 1:
                unused = "margin" in kind  # the temperature
                task = DistributedDataParallel(task, broadcast_buffers=False, find_unused_parameters=unused)
            loss, each = gradients(task, here)
            for name, value in {"loss": loss, **each}.items():
                found[f"{kind}.{chunk}.{name}"] = value.numpy()
    return found


PROGRAM = """
import sys
sys.path.insert(0, {tests!r})
import test_train_contrastive as here
here.torch.multiprocessing.start_processes(here.processes, (4, {folder!r}), nprocs=4, start_method="fork")
"""


def processes(rank: int, most: int, folder: str) -> None:
    """One process of `most`, and then, if it is one of the first two, of two."""
    torch.set_num_threads(1)
    for world in (most, 2):
        if rank < world:
            store = dist.FileStore(f"{folder}/store{world}", world)
            dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
            np.savez(f"{folder}/{world}.{rank}.npz", **share(rank, world))
            dist.destroy_process_group()


@pytest.fixture(scope="module")
def shares(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, np.ndarray]]]:
    """World → what each of its processes found."""
    folder = tmp_path_factory.mktemp("processes")
    program = PROGRAM.format(tests=str(Path(__file__).parent), folder=str(folder))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    several = {world: [dict(np.load(folder / f"{world}.{rank}.npz")) for rank in range(world)] for world in (2, 4)}
    return {1: [share(0, 1)], **several}


@pytest.mark.parametrize("kind", SPREAD)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_have_the_loss_and_gradient_of_the_whole(shares: Any, world: int, kind: str) -> None:
    expected = expected_of(kind)
    for chunk in (None, 1):
        begin = f"{kind}.{chunk}."
        found = [
            {key.removeprefix(begin): value for key, value in one.items() if key.startswith(begin)}
            for one in shares[world]
        ]
        assert float(np.mean([one["loss"] for one in found])) == pytest.approx(float(expected["loss"]), rel=1e-5)
        for one in found:
            if "margin" in kind and world > 1:
                one.pop("model.logit_scale", None)
            compare({**one, "loss": expected["loss"]}, expected, 1e-5)


# --- SigLIP ---


def test_siglip_begins_as_in_the_paper_and_learns_its_bias() -> None:
    task = SiglipTask(dual())
    assert task.model.logit_scale.item() == pytest.approx(math.log(10))
    assert {name: one.item() for name, one in task.criterion.named_parameters()} == {"logit_bias": -10.0}
    _, found = gradients(task, batch_of())
    assert found["criterion.logit_bias"] != 0
    assert found["model.logit_scale"] != 0
    numbers = task(batch_of())[1]
    assert (float(numbers["bias"]), float(numbers["scale"])) == (-10.0, pytest.approx(10.0))


def test_siglip_with_a_frozen_temperature() -> None:
    model = dual()
    freeze(model, ["temperature"])
    task = SiglipTask(model, scale=None)
    assert float(model.logit_scale) == pytest.approx(math.log(1 / 0.07))
    whole, expected = gradients(task, batch_of())
    assert "model.logit_scale" not in expected
    loss, found = gradients(SiglipTask(model, scale=None, chunk=3), batch_of())
    assert float(loss) == pytest.approx(float(whole))
    compare(found, expected, 1e-6)
    assert float(model.logit_scale) == pytest.approx(math.log(1 / 0.07))
