"""Training steps in the GPU bench, on a CPU: rivals are what they say, nothing is measured twice, memory is freed."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

pytest.importorskip("triton")

from lavila_fast.bench import flops
from lavila_fast.bench.gpu.__main__ import collected, run_part
from lavila_fast.bench.gpu.kernel_kinds import kind
from lavila_fast.bench.gpu.page import gpu_headline
from lavila_fast.bench.gpu.ratios import ORIGINAL_WAY, speedups
from lavila_fast.bench.gpu.rivals import JointAttention, JointViT, LinearPatchEmbed, OriginalTimeSformer
from lavila_fast.bench.gpu.setup import Setup
from lavila_fast.bench.gpu.training import BASE, EAGER, PEER, TrainingContest, base_part, hold
from lavila_fast.bench.gpu.training_models import (
    Contestant,
    build,
    checkpoint_blocks,
    device_peak,
    flops_per_sample,
    random_batch,
)
from lavila_fast.bench.gpu.training_page import write_training
from lavila_fast.bench.gpu.training_steps import Trainer, largest_batch
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig
from lavila_fast.kernels.attention import reference
from lavila_fast.models.timesformer import PatchEmbed, TimeSformer
from lavila_fast.train.tasks import ContrastiveTask

VISION = VisionConfig(img=24, patch=8, dim=32, depth=2, heads=2, frames=3)
TOY = DualEncoderConfig(VISION, ClipTextConfig(width=16, heads=2, layers=2, vocab=50, context=8), embed=16)


def shaken(tower: TimeSformer) -> TimeSformer:
    """With no parameter left at 0 or 1."""
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return tower


@pytest.mark.parametrize("gated", [False, True])
def test_the_original_way_is_the_same_function(gated: bool) -> None:
    torch.manual_seed(0)
    config = replace(VISION, gated_time=gated)
    ours = shaken(TimeSformer(config).double())
    theirs = OriginalTimeSformer(config).double()
    theirs.load_state_dict(ours.state_dict())
    video = torch.randn(2, 3, 3, 24, 24, dtype=torch.float64)
    given = torch.randn(2, 32, dtype=torch.float64)
    outputs = [tower(video) for tower in (ours, theirs)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(theirs.forward_features(video), ours.forward_features(video), rtol=1e-10, atol=1e-12)
    for out in outputs:
        out.backward(given)
    found = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
        torch.testing.assert_close(found[name].grad, parameter.grad, rtol=1e-9, atol=1e-11, msg=name)


def test_joint_attention_sees_all_tokens() -> None:
    torch.manual_seed(0)
    attention, x = JointAttention(32, 2), torch.randn(2, 28, 32)
    one_group = reference.divided_attention(attention.qkv(x).view(2, 28, 3, 2, 16), 1, "space")
    torch.testing.assert_close(attention(x), attention.proj(one_group.reshape(2, 28, 32)))
    convolution, product = PatchEmbed(VISION), LinearPatchEmbed(VISION)
    product.load_state_dict(convolution.state_dict())
    video = torch.randn(2, 3, 3, 24, 24)
    torch.testing.assert_close(product(video), convolution(video))
    assert JointViT(VISION)(video).shape == (2, 32)


def test_operations_are_those_that_the_sizes_tell() -> None:
    T, N, D, S, L, W, E, patch = 3, 9, 32, 28, 8, 16, 16, 3 * 8 * 8
    cls_alone = 2 * (S - 1) * D * (D + D + 8 * D) + 4 * T * N * (N + 1) * D  # what the last block does without
    text = 2 * (2 * L * W * 4 * W + 2 * L * W * 8 * W + 4 * L * L * W)
    ours = flops.timesformer(VISION) - cls_alone + text + 2 * (D + W) * E
    assert flops_per_sample(TOY, "ours") == flops_per_sample(TOY, "original") == 3 * ours
    joint = 2 * T * N * patch * D + 2 * (2 * S * D * 4 * D + 2 * S * D * 8 * D + 4 * S * S * D)
    assert flops_per_sample(TOY, "joint") == 3 * (joint + text + 2 * (D + W) * E)


def test_checkpointed_blocks_are_computed_twice_and_give_the_same() -> None:
    torch.manual_seed(0)
    batch, found = random_batch(TOY, 3, "cpu"), []
    weights = build(TOY, Contestant("x"), "sdpa").state_dict()
    for checkpointed in (False, True):
        model = build(TOY, Contestant("x"), "sdpa")
        model.load_state_dict(weights)
        calls: list[int] = []
        model.visual.blocks[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        if checkpointed:
            checkpoint_blocks(model)
        loss = ContrastiveTask(model, fast=True)(batch)[0]
        loss.backward()
        found.append((loss.detach(), len(calls), {name: p.grad for name, p in model.named_parameters()}))
    (loss, once, gradients), (same, twice, again) = found
    assert (once, twice, float(same)) == (1, 2, float(loss))
    for name, gradient in gradients.items():
        torch.testing.assert_close(again[name], gradient, rtol=0, atol=0, msg=name)


@pytest.mark.slow
def test_our_kernels_train_compiled_under_cast_weights() -> None:
    torch.manual_seed(0)
    small = replace(TOY, vision=replace(VISION, img=16, depth=2, heads=1, frames=2))
    weights, batch, found = build(small, Contestant("x"), "sdpa").state_dict(), random_batch(small, 2, "cpu"), []
    for by, fast in (("sdpa", False), ("sdpa", True), ("triton", True)):
        model = build(small, Contestant("x"), by)
        model.load_state_dict(weights)
        for block in model.visual.blocks if by == "triton" else ():
            block.compile(fullgraph=True, dynamic=False, backend="aot_eager")
        loss = ContrastiveTask(model, fast=fast)(batch)[0]
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.visual.parameters()])))
    (loss, gradient), (_, by_torch), (same, ours) = found  # the first in float32
    torch.testing.assert_close(same, loss, rtol=0.02, atol=0.02)
    error = torch.linalg.vector_norm(ours - gradient) / torch.linalg.vector_norm(gradient)
    assert error < 2 * torch.linalg.vector_norm(by_torch - gradient) / torch.linalg.vector_norm(gradient)
    assert error < 0.1


def test_blocks_are_compiled_once_for_all_of_them() -> None:
    """Not each for itself: that would take minutes, and past eight PyTorch would leave the rest as they are."""
    deep = replace(TOY, vision=replace(VISION, depth=4))
    trainer = Trainer(
        Setup(True), deep, Contestant("x", compiled=True), build(deep, Contestant("x"), "sdpa").state_dict()
    )
    before = counters["stats"]["unique_graphs"]
    for _ in range(2):
        trainer.take(random_batch(deep, 2, "cpu"))
    assert counters["stats"]["unique_graphs"] == before + 1


@pytest.mark.parametrize("room", [0, 1, 5, 63, 64, 65, 100, 300, 511, 5000])
def test_the_largest_batch_is_found_by_few_tries(room: int) -> None:
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= room

    found = largest_batch(fits, 64, 2048)
    assert found <= room
    assert found == 2048 or found + max(1, found / 7) > room
    assert len(tried) == len(set(tried)) <= 10
    assert max(tried) <= 2048


def test_a_step_without_room_leaves_nothing_behind() -> None:
    weights = build(TOY, Contestant("x"), "sdpa").state_dict()
    trainer = Trainer(Setup(True), TOY, Contestant("x", attention="sdpa"), weights)
    trainer.settle()
    step, kept = trainer.step, []

    def narrow(batch: Any, rate: float) -> Tensor:
        activation = torch.zeros(len(batch))
        kept.append(weakref.ref(activation))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return step(batch, rate)

    trainer.step = narrow
    assert (trainer.fits(4), trainer.fits(2)) == (False, True)
    gc.collect()
    assert [one() for one in kept] == [None, None]
    assert all(parameter.grad is None for group in trainer.optimiser.param_groups for parameter in group["params"])

    def broken(batch: Any, rate: float) -> Tensor:
        raise RuntimeError("an illegal memory access was encountered")

    trainer.step = broken
    with pytest.raises(RuntimeError, match="illegal"):
        trainer.fits(2)


class LostGpu(Setup):
    """As after a kernel that faulted: whoever waits for the device is told so."""

    def wait(self) -> None:
        raise RuntimeError("an illegal memory access was encountered")


def test_a_lost_gpu_ends_the_part_and_is_not_asked_again() -> None:
    contest = TrainingContest(LostGpu(True), "TSF-B", TOY, 2, 4, BASE)
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises(RuntimeError, match="illegal"):
        hold(contest)
    assert [row["at"] for row in contest.rows if "not_run" in row] == ["common", "largest", "profile"]
    assert contest.missing(EAGER) == []


def test_settling_leaves_the_weights() -> None:
    weights = {name: w.clone() for name, w in build(TOY, Contestant("x"), "sdpa").state_dict().items()}
    for contestant in (Contestant("x", attention="sdpa"), Contestant("y", "original", amp="fp16", fused=False)):
        trainer = Trainer(Setup(True), TOY, contestant, weights)
        trainer.settle()
        assert trainer.optimiser.state
        assert trainer.first_loss is None
        held = [p for group in trainer.optimiser.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in held]
        trainer.take(random_batch(TOY, 2, "cpu"))
        names = [name for group in trainer.optimiser.param_groups for name in group["names"]]
        for name, old in zip(names, before, strict=True):
            torch.testing.assert_close(old, weights[name], rtol=0, atol=0)
        assert any((p != old).any() for p, old in zip(held, before, strict=True))


@pytest.fixture(scope="module")
def rehearsed() -> Iterator[dict[str, Any]]:
    """What the part prints, as `bench.gpu` collects it."""
    benchmark, told = torch.backends.cudnn.benchmark, io.StringIO()
    with contextlib.redirect_stdout(told):
        left = base_part(Setup(True))
    yield {**collected(told.getvalue()), **left, "speedups": []}
    torch.backends.cudnn.benchmark = benchmark


def test_a_rehearsal_runs_every_contestant(rehearsed: dict[str, Any], tmp_path: Path) -> None:
    rows = rehearsed["rows"]
    assert rehearsed["left"] == []
    assert [row for row in rows if "not_run" in row] == []
    steps = [row for row in rows if row.get("at") in ("common", "largest")]
    assert len(steps) == len(BASE) + sum(contestant.largest for contestant in BASE)
    assert all(row["samples_per_s"] > 0 and row["tflops"] > 0 for row in steps)
    assert {row["batch"] for row in steps if row["at"] == "largest"} == {4}
    (check,) = (row for row in rows if "check" in row)
    assert check["ok"]
    assert "8 ways" in check["check"]
    (profile,) = (row for row in rows if "shares" in row)
    assert profile["by"] == EAGER.name
    assert sum(profile["shares"].values()) == pytest.approx(100, abs=1)
    write_training(tmp_path, "a CPU", {"training": rehearsed}, False)
    summary = json.loads((tmp_path / "gpu_training.json").read_text())
    assert summary["rows"] == rows
    assert summary["machine"]["date"]
    assert summary["rehearsal"]
    assert summary["headline"] == dict.fromkeys(
        ("training_samples_s_tsf_b", "training_speedup_vs_original_eager", "training_mfu_tsf_b")
    )
    table = (tmp_path / "gpu_training.md").read_text()
    assert "No figure here means anything" in table
    assert table.count("| TSF-B | the original's way |") == 2


@pytest.mark.slow
def test_a_run_cut_short_goes_on_where_it_stopped(rehearsed: dict[str, Any], tmp_path: Path) -> None:
    gone = PEER.name, "largest"
    cut = {**rehearsed, "rows": [row for row in rehearsed["rows"] if (row.get("by"), row.get("at")) != gone]}
    path = tmp_path / "training.json"
    path.write_text(json.dumps(cut))
    found = run_part("training", True, 200, path)
    kept = [row for row in cut["rows"] if "check" not in row]
    assert found["rows"][: len(kept)] == kept  # to the last digit: not measured again
    assert [(row.get("by"), row.get("at")) for row in found["rows"][len(kept) :]] == [gone, (None, None)]  # and a check
    assert (found["left"], "failed" in found) == ([], False)


def test_what_there_is_no_time_for_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    done = [
        {"model": "TSF-B", "by": EAGER.name, "at": at, "samples_per_s": 1.0} for at in ("common", "largest", "profile")
    ]
    setup = Setup(True, time.monotonic() + 1, tuple(done))
    contest = TrainingContest(setup, "TSF-B", TOY, 2, 4, BASE)
    assert hold(contest) == {"left": [contestant.name for contestant in BASE[1:]]}
    assert contest.rows == done
    assert '"row"' not in capsys.readouterr().out


def test_ratios_and_headline_take_the_best_of_ours() -> None:
    rates = {("ours", "common"): 100.0, ("ours, compiled", "largest"): 300.0, (ORIGINAL_WAY, "common"): 50.0}
    rows: list[dict[str, Any]] = [
        {"model": "TSF-B", "by": by, "at": at, "samples_per_s": rate, "mfu_percent": rate / 10}
        for (by, at), rate in rates.items()
    ]
    rows.append({"model": "TSF-B", "by": ORIGINAL_WAY, "at": "largest", "not_run": "no memory"})
    found = {(row["what"], row["against"]): row["speedup"] for row in speedups(rows)}
    assert found == {
        ("training step, common batch", ORIGINAL_WAY): 2.0,
        ("training step, each at its best batch", ORIGINAL_WAY): 6.0,
    }
    told = gpu_headline({"training": {"rows": rows, "speedups": speedups(rows)}})
    assert told["training_samples_s_tsf_b"] == 300
    assert told["training_speedup_vs_original_eager"] == 6
    assert told["training_mfu_tsf_b"] == 30


def test_peaks_and_kinds_go_by_name() -> None:
    assert (device_peak("NVIDIA H200"), device_peak("NVIDIA H100 PCIe"), device_peak("Radeon")) == (
        989e12,
        756e12,
        None,
    )
    kernels = {
        "_backward": "our attention",
        "_forward_finish": "our attention",
        "void pytorch_flash::flash_bwd_kernel<…>": "attention of others",
        "nvjet_tst_192x192_64x4_2x1_v_bz_coopB_TNT": "matrix products",
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<c10::BFloat16, float>": "LayerNorm",
        "void at::native::(anonymous namespace)::layer_norm_grad_input_kernel_vectorized<…>": "LayerNorm",
        "void at::native::multi_tensor_apply_kernel<…FusedAdamMathFunctor…>": "optimizer",
        "void at::native::unrolled_elementwise_kernel<at::native::direct_copy_kernel_cuda(…)>": "copies and casts",
        "void at::native::vectorized_elementwise_kernel<4, at::native::sigmoid_kernel_cuda…>": (
            "elementwise (residuals, GELU, biases)"
        ),
        "triton_poi_fused_add_0": "elementwise (residuals, GELU, biases)",
    }
    assert {name: kind(name) for name in kernels} == kernels
