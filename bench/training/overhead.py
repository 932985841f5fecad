"""What the loop costs beside its work: a training step of TSF-B and CLIP's text tower, its parts timed from within.

Batches are ready in memory. Forward, backward and the optimiser's step are wrapped; all else of a step counts as the
loop's own, gradient norms, clamps, averaged weights and numbers to watch included.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from lavila_fast.config import ClipTextConfig, DualEncoderConfig
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.engines import TorchEngine
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.run import TrainingRun
from lavila_fast.train.steps import Steps
from lavila_fast.train.tasks import ContrastiveTask

SMALL_BATCH, MEASURED, UNMEASURED = 2, 4, 2  # clips; steps, and those before them


@dataclass
class Stopwatch:
    """Seconds in wrapped calls, by name."""

    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.seconds[name] += time.perf_counter() - began

        return timed

    def watch(self, engine: TorchEngine) -> None:
        """Time an engine's forward, backward and optimiser."""
        engine.module.forward = self.around("forward", engine.module.forward)
        engine.backward = self.around("backward", engine.backward)  # type: ignore[method-assign]
        for name in ("step", "zero_grad"):
            setattr(engine.optimiser, name, self.around("optimiser", getattr(engine.optimiser, name)))


@dataclass(frozen=True)
class ReadyBatches:
    """One batch again and again."""

    ready: TrainingBatch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """See `run.Batches`."""
        return self.ready


def ready_run(sizes: DualEncoderConfig, clips: int, steps: int, ema: float = 0.0) -> TrainingRun:
    """A contrastive run with random weights and inputs."""
    torch.manual_seed(0)
    task, vision, text = ContrastiveTask(DualEncoder(sizes)), sizes.vision, sizes.text
    assert isinstance(text, ClipTextConfig)
    video = torch.randn(clips, 3, vision.frames, vision.img, vision.img)
    batches = ReadyBatches(TrainingBatch(video, ids=torch.randint(1, text.vocab, (clips, text.context))))
    engine = TorchEngine(task, Optimisation())
    return TrainingRun(task, engine, batches, Steps(steps, 1), np.full(steps, 3e-5), ema=ema)


def overhead_section(
    sizes: DualEncoderConfig | None = None, clips: int = SMALL_BATCH, steps: int = MEASURED
) -> dict[str, Any]:
    """Seconds of a step by part, and the loop's share."""
    run, watch = ready_run(sizes or DualEncoderConfig(), clips, UNMEASURED + steps), Stopwatch()
    watch.watch(run.engine)  # type: ignore[arg-type]
    rows = run.steps()
    for _ in range(UNMEASURED):
        next(rows)
    watch.seconds.clear()
    began = time.perf_counter()
    for _ in range(steps):
        next(rows)
    whole = time.perf_counter() - began
    own = whole - sum(watch.seconds.values())
    return {
        "what": f"a step of TSF-B and CLIP's text tower, {clips} clips, float32; mean of {steps}",
        "step_s": round(whole / steps, 6),
        **{f"{name}_s": round(took / steps, 6) for name, took in watch.seconds.items()},
        "own_s": round(own / steps, 6),
        "loop_overhead_percent": round(100 * own / whole, 2),
    }
