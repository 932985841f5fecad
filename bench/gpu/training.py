"""Pre-training steps on one GPU: ours, the original's way in eager PyTorch, and the fast peer's tower of the same size.

On a GPU: never run yet. What is measured for the dual encoders TSF-B and TSF-L with CLIP's text tower, 4 frames of 224
pixels: samples a second, peak memory and MFU (3 × the forward pass's operations, recomputation not counted, over the
maker's dense bf16 peak), at a batch common to all and at the largest that fits; and where the time of one step of ours
goes. Frames lie on the device: no loader, no decoding takes part.

    python3 -m lavila_fast.bench.gpu --part training --part training_large

Contestants come in the order of their worth. Each row is told as soon as it is measured; a run whose time is over
leaves the rest, and the same command goes on there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lavila_fast.bench.gpu.kernel_kinds import time_by_kind
from lavila_fast.bench.gpu.ratios import ORIGINAL_WAY, OURS, Measured
from lavila_fast.bench.gpu.setup import TOY, Rows, Setup, attempt, tell
from lavila_fast.bench.gpu.training_models import Contestant, build, device_peak, flops_per_sample, random_batch
from lavila_fast.bench.gpu.training_steps import MEMORY_SHARE, RATE, Trainer, largest_batch, out_of_memory
from lavila_fast.config import ClipTextConfig, DualEncoderConfig
from lavila_fast.presets import VARIANTS

EAGER = Contestant(OURS, seconds=35)  # its kernels are compiled at the first step
ORIGINAL = Contestant(ORIGINAL_WAY, "original", amp="fp16", fused=False)
COMPILED = Contestant(f"{OURS}, compiled", compiled=True, seconds=70)
PEER = Contestant("AVION's way", "joint", amp="fp16", fused=False, checkpointed=True)
SDPA = Contestant("PyTorch's attention, the rest as ours", attention="sdpa")
CHECKPOINTED = Contestant(f"{OURS}, checkpointed", checkpointed=True)
ORIGINAL_BF16 = Contestant("the original's way, bf16 autocast", "original", amp="bf16", fused=False, largest=False)
PEER_AS_OURS = Contestant("AVION's tower, the rest as ours", "joint")
AUTOCAST = Contestant(f"{OURS}, autocast", amp="bf16", largest=False, seconds=15)
UNFUSED = Contestant(f"{OURS}, AdamW not fused", fused=False, largest=False, seconds=15)

BASE = (EAGER, ORIGINAL, COMPILED, PEER, CHECKPOINTED, SDPA, AUTOCAST, UNFUSED, PEER_AS_OURS, ORIGINAL_BF16)
LARGE = (EAGER, ORIGINAL, COMPILED, PEER, CHECKPOINTED, SDPA)

NOTE = (
    "Samples/s of whole steps (forward, backward, AdamW) on frames that lie on the device. MFU: 3 × the operations of "
    "the forward pass, counted by PyTorch's flop counter, recomputation not counted, over the maker's dense bf16 peak "
    "of this GPU. Ours: weights cast to bf16 once a step, fused AdamW, our Triton kernels. The original's way: its "
    "computation of divided attention (whole softmax matrices), float16 autocast, scaled loss, the same weights and "
    "the same function. AVION's way: a ViT of the same width and depth with joint attention over all tokens by "
    "PyTorch's fused kernel, float16 autocast, blocks checkpointed: another, smaller function. All have our text "
    f"tower. PyTorch may use {100 * MEMORY_SHARE:.0f}% of the memory; a largest batch is found to within an eighth."
)
SAME_LOSS = 0.05  # by which first losses may differ: 16-bit arithmetic, random weights


@dataclass(frozen=True)
class TrainingContest:
    """A model and who trains it.

    Attributes:
        name: Of the model.
        config: Its sizes.
        common: Batch of all contestants.
        most: Largest batch that is tried.
        contestants: In the order of their worth.
    """

    setup: Setup
    name: str
    config: DualEncoderConfig
    common: int
    most: int
    contestants: Sequence[Contestant]
    rows: Rows = field(default_factory=Rows)

    @cached_property
    def weights(self) -> Mapping[str, Tensor]:
        """On the host, from one seed."""
        with torch.device(self.setup.device):
            torch.manual_seed(0)
            model = build(self.config, Contestant("", attention="sdpa"), "sdpa")
        return {name: weight.cpu() for name, weight in model.state_dict().items()}

    @cached_property
    def peak(self) -> float | None:
        """FLOP/s of this GPU."""
        return device_peak(torch.cuda.get_device_name()) if self.setup.device == "cuda" else None

    def label(self, contestant: Contestant, at: str) -> Measured:
        """What a row is known by."""
        return {"model": self.name, "by": contestant.name, "at": at}

    def missing(self, contestant: Contestant) -> list[str]:
        """Its rows that are not there yet."""
        wanted = ["common", *(["largest"] if contestant.largest else []), *(["profile"] if contestant is EAGER else [])]
        there = [{key: row.get(key) for key in ("model", "by", "at")} for row in self.rows]
        return [at for at in wanted if self.label(contestant, at) not in there]


def base_part(setup: Setup) -> dict[str, Any]:
    """TSF-B."""
    return hold(TrainingContest(setup, "TSF-B", _sizes(setup, "BASE"), setup.of(64, 2), setup.of(2048, 4), BASE))


def large_part(setup: Setup) -> dict[str, Any]:
    """TSF-L."""
    return hold(TrainingContest(setup, "TSF-L", _sizes(setup, "LARGE"), setup.of(16, 2), setup.of(1024, 4), LARGE))


def _sizes(setup: Setup, size: str) -> DualEncoderConfig:
    config = VARIANTS[f"CLIP_OPENAI_TIMESFORMER_{size}"]
    assert isinstance(config, DualEncoderConfig)
    toy = DualEncoderConfig(TOY.vision, ClipTextConfig(width=16, heads=2, layers=2, vocab=50, context=8), embed=16)
    return toy if setup.rehearse else config


def hold(contest: TrainingContest) -> dict[str, Any]:
    """Everyone in turn, but who has all rows already or more to do than there is time."""
    setup = contest.setup
    if setup.device == "cuda":
        torch.cuda.set_per_process_memory_fraction(MEMORY_SHARE)
    tell(notes=[NOTE])
    contest.rows.extend(row for row in setup.known if "check" not in row)  # and not told again
    left = []
    for contestant in contest.contestants:
        if not (missing := contest.missing(contestant)):
            continue
        if setup.seconds_left < contestant.seconds:
            left.append(contestant.name)
            continue
        _run(contest, contestant, missing)
        setup.free()
        setup.wait()  # raises after a kernel that faulted: nothing later in this process could be believed
    _check_losses(contest)
    return {"left": left}


def _run(contest: TrainingContest, contestant: Contestant, missing: Sequence[str]) -> None:
    """The rows of one; what stops it is written into all that it still owed."""
    torch.backends.cudnn.benchmark = bool(contestant.amp)  # as the loops do that use autocast
    try:
        trainer = Trainer(contest.setup, contest.config, contestant, contest.weights)
        if not contestant.compiled:  # it would be compiled for that batch, too
            trainer.settle()
    except Exception as error:
        _owe(contest, contestant, missing, f"{type(error).__name__}: {' '.join(str(error).split())}"[:300])
        return
    measures = {"common": _at_common, "largest": _at_largest, "profile": _profile}
    for number, at in enumerate(missing):
        attempt(contest.rows, contest.label(contestant, at), measures[at], contest, trainer)
        try:
            contest.setup.wait()
            trainer.forget()
        except RuntimeError:  # a kernel has faulted, and would again
            _owe(contest, contestant, missing[number + 1 :], "the GPU was lost before")
            raise


def _owe(contest: TrainingContest, contestant: Contestant, missing: Sequence[str], reason: str) -> None:
    for at in missing:
        contest.rows.append({**contest.label(contestant, at), "not_run": reason})


def _at_common(contest: TrainingContest, trainer: Trainer) -> Measured:
    found = _measured(contest, trainer, contest.common)
    return {**found, "first_loss": trainer.first_loss}


def _measured(contest: TrainingContest, trainer: Trainer, size: int) -> Measured:
    found = trainer.measure(size, budget_s=6)
    flops = flops_per_sample(contest.config, trainer.contestant.tower)
    rates: Measured = {"tflops": flops * found["samples_per_s"] / 1e12}
    if contest.peak:
        rates["mfu_percent"] = 100 * 1e12 * rates["tflops"] / contest.peak
    return {"batch": size, **found, **rates}


def _at_largest(contest: TrainingContest, trainer: Trainer) -> Measured:
    """The largest batch that fits; for who compiles anew for each size, the largest that fits without."""
    size = (
        _largest_of(contest, EAGER.name)
        if trainer.contestant.compiled
        else largest_batch(trainer.fits, contest.common, contest.most)
    )
    if not size:
        return {"not_run": "not even one clip fits"}
    while True:  # steps in a row, their memory in pieces, may take more than the one that was tried
        try:
            return _measured(contest, trainer, size)
        except RuntimeError as error:
            if not out_of_memory(error) or size < 2:
                raise
        trainer.forget()
        size = size * 7 // 8


def _largest_of(contest: TrainingContest, name: str) -> int:
    found = (row for row in contest.rows if row["by"] == name and row["at"] == "largest")
    return next((int(row["batch"]) for row in found if "batch" in row), contest.common)


def _profile(contest: TrainingContest, trainer: Trainer) -> Measured:
    """One step at the common batch: how long the device is busy, and with what."""
    batch = random_batch(contest.config, contest.common, contest.setup.device)
    trainer.take(batch)
    return {"batch": contest.common, **time_by_kind(contest.setup, lambda: trainer.step(batch, RATE))}


def _check_losses(contest: TrainingContest) -> None:
    """Those who compute the same function from the same weights and clips begin with the same loss."""
    joint = {contestant.name for contestant in contest.contestants if contestant.tower == "joint"}
    losses = [row["first_loss"] for row in contest.rows if "first_loss" in row and row["by"] not in joint]
    if len(losses) > 1:
        apart = max(losses) - min(losses)
        name = f"training, {contest.name}: the same first loss by {len(losses)} ways"
        contest.rows.append({"check": name, "error": apart, "ok": apart <= SAME_LOSS})
