"""Where and at which sizes the GPU bench runs, how it times, and how it judges an error."""

from __future__ import annotations

import gc
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.config import GPT2Config, NarratorConfig, VisionConfig
from lavila_fast.presets import VARIANTS

_TOY_VISION = VisionConfig(img=16, patch=8, dim=32, depth=2, heads=2)
_TOY_TEXT = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab=300, n_positions=32)
TOY = NarratorConfig(_TOY_VISION, _TOY_TEXT, queries=8, pool_heads=2, max_tokens=20)


class Rows(list[Measured]):
    """Rows of a part, each printed as soon as it is known: a part that is cut off leaves what it found."""

    def append(self, row: Measured) -> None:
        """Keep and print it."""
        super().append(row)
        tell(row=row)


def tell(**facts: Any) -> None:
    """Print something a part found, as a line of JSON for `bench.gpu` to read."""
    print(json.dumps(facts), flush=True)


@dataclass(frozen=True)
class Setup:
    """A run's surroundings.

    Attributes:
        rehearse: Toy sizes on the CPU, Triton in its interpreter: that the code runs, no figures.
        deadline: `time.monotonic()` by which a part that can go on another time should be through.
        known: Rows that such a part has found before, of these sources on this GPU.
    """

    rehearse: bool = False
    deadline: float = math.inf
    known: tuple[Measured, ...] = ()

    @property
    def device(self) -> str:
        """Of all tensors."""
        return "cpu" if self.rehearse else "cuda"

    @property
    def seconds_left(self) -> float:
        """To the deadline."""
        return self.deadline - time.monotonic()

    @property
    def kernels(self) -> str:
        """Implementation to ask the ops for by name, so that nothing falls back unseen."""
        return "triton"

    @property
    def leeway(self) -> float:
        """How many times PyTorch's own error a kernel may have; Triton's interpreter cuts bf16 off, unrounded."""
        return 4.0 if self.rehearse else 2.0

    @property
    def base(self) -> NarratorConfig:
        """TSF-B + GPT-2."""
        return TOY if self.rehearse else NarratorConfig()

    @property
    def large(self) -> NarratorConfig:
        """TSF-L@336 + GPT-2 XL."""
        config = VARIANTS["VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL"]
        assert isinstance(config, NarratorConfig)
        return replace(TOY, text=replace(_TOY_TEXT, freq=2)) if self.rehearse else config

    def of(self, real: Any, toy: Any) -> Any:
        """One of two values."""
        return toy if self.rehearse else real

    @cached_property
    def generator(self) -> torch.Generator:
        """Of this run's random numbers."""
        return torch.Generator(self.device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
        """Random numbers; zeros would flatter a GPU."""
        made = torch.randn(shape, generator=self.generator, device=self.device, dtype=torch.float32)
        return made.to(dtype)

    def wait(self) -> None:
        """Until the device is idle."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def ms(self, run: Callable[[], Any], budget_ms: int = 200) -> float:
        """Median milliseconds of a piece of device work, the L2 cache flushed before each.

        Work that the device does sooner than the host can ask for it must be recorded first, see `recorded`.
        """
        if self.device == "cpu":
            return 1e3 * self._seconds(run)
        from triton.testing import do_bench

        took: float = do_bench(run, warmup=25, rep=budget_ms, return_mode="median")
        return took

    def recorded(self, run: Callable[[], Any]) -> Callable[[], Any]:
        """`run` as a CUDA graph, as the runtime runs it: what is timed then is the device's work alone."""
        if self.device == "cpu":
            return run
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # kernels load at their first call
                run()
        torch.cuda.current_stream().wait_stream(side)
        with torch.cuda.graph(graph):
            run()
        return graph.replay

    def seconds(self, run: Callable[[], Any], repeats: int = 3) -> float:
        """Median wall seconds of work that involves the host too, after a warm-up."""
        run()
        self.wait()
        return statistics.median(self._seconds(run) for _ in range(self.of(repeats, 1)))

    def _seconds(self, run: Callable[[], Any]) -> float:
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def free(self) -> None:
        """Give cached memory back between contestants."""
        if self.device == "cuda":
            gc.collect()
            torch.cuda.empty_cache()


def relative(found: Tensor, wanted: Tensor) -> float:
    """‖found − wanted‖ / ‖wanted‖ in float64; not a number where anything is not."""
    found, wanted = found.detach().double(), wanted.detach().double().to(found.device)
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


def verdict(
    name: str, found: Iterable[Tensor], plain: Iterable[Tensor], wanted: Iterable[Tensor], leeway: float = 2.0
) -> Measured:
    """A kernel's error against float32, beside PyTorch's own in the same type; it may be `leeway` times that.

    Args:
        name: Of the row.
        found: What the kernel gave.
        plain: What PyTorch gives in the same type.
        wanted: The same from float32 inputs.
        leeway: See above.
    """
    pairs = [(relative(f, w), relative(p, w)) for f, p, w in zip(found, plain, wanted, strict=True)]
    ours, theirs = max(pairs, key=lambda pair: pair[0] / max(pair[1], 1e-9))
    return {"check": name, "error": ours, "pytorch": theirs, "ok": all(f <= leeway * p + 1e-5 for f, p in pairs)}


def attempt(rows: list[Measured], row: Measured, run: Callable[..., Measured], *arguments: Any) -> None:
    """Append `row` with what `run` finds of the arguments, or with the reason why there is nothing."""
    try:
        rows.append({**row, **run(*arguments)})
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        rows.append({**row, "not_run": f"{type(error).__name__}: {what}"[:300]})
