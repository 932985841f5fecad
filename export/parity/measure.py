"""What is measured: every engine runs behind the runtime that ships it, next to the PyTorch model, on the same clips.

The reference takes the plain way (whole sequences, no cache, no exported graph), so that a fault in the caching shows
as well as one in a graph. Its greedy sentences are fed to both sides word by word for the next-word distributions.

Shape suffixes: N clips, L tokens, V vocabulary, E embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.engines.device.slots import SlotContext
from lavila_fast.engines.host.eager import TorchRuntime
from lavila_fast.engines.host.state import HostContext, HostState
from lavila_fast.engines.protocol import ClipContext, NarratorRuntime
from lavila_fast.evaluate.kitchen import write_greedily
from lavila_fast.evaluate.metrics import interval
from lavila_fast.export.parity.limits import Section
from lavila_fast.models.gpt2 import Block
from lavila_fast.models.narrator import NarratorModel

EDGES = np.arange(-9, 1.01, 0.25)  # of the histograms, log10 of the error over the reference's root mean square
BATCH = 8  # clips


@dataclass
class Errors:
    """Errors of one graph, added up clip by clip; each clip's own relative error is kept."""

    count: int = 0
    largest: float = 0.0
    absolute: float = 0.0
    squares: float = 0.0
    reference: float = 0.0
    clips: list[float] = field(default_factory=list)
    histogram: I64 = field(default_factory=lambda: np.zeros(len(EDGES) - 1, np.int64))

    def add(self, wanted: Sequence[NDArray[Any]], got: Sequence[NDArray[Any]]) -> None:
        """One clip's outputs of the reference and of the engine, of equal shapes."""
        squares = reference = 0.0
        for a, b in zip(wanted, got, strict=True):
            assert a.shape == b.shape, f"{a.shape} against {b.shape}"
            gap = np.abs(b.astype(np.float64) - a)
            here = float(np.square(a, dtype=np.float64).sum())
            self.count += gap.size
            self.largest = max(self.largest, float(gap.max()))
            self.absolute += float(gap.sum())
            squares, reference = squares + float(np.square(gap).sum()), reference + here
            scaled = gap / max(np.sqrt(here / gap.size), 1e-30)
            self.histogram += np.histogram(np.log10(np.maximum(scaled, 1e-30)).clip(-9, 1), EDGES)[0]
        self.squares, self.reference = self.squares + squares, self.reference + reference
        self.clips.append(float(np.sqrt(squares / max(reference, 1e-30))))

    def figures(self) -> dict[str, Any]:
        """Largest and mean absolute error, relative error of all clips and of the worst one, and the histogram."""
        return {
            "max": self.largest,
            "mean": self.absolute / max(self.count, 1),
            "relative": float(np.sqrt(self.squares / max(self.reference, 1e-30))),
            "relative_worst_clip": max(self.clips, default=0.0),
            "histogram": self.histogram.tolist(),
        }


@dataclass
class Sentences:
    """What the reference says of a batch of clips, and how sure it is: the material of `NarratorParity`.

    Attributes:
        visual: What the decoder sees of each clip, (N, Q, E).
        cross: Keys and values of the gated blocks, each (N, …).
        ids: Greedy sentences (N, L), begin token first, padded with the end token.
        counts: Tokens after the begin token, (N,).
        logprobs: Of each next token, (N, L-1, V).
        caches: Self-attention keys and values of each block, (2 · layers, N, h, L-1, d).
    """

    visual: F32
    cross: list[F32]
    ids: I64
    counts: I64
    logprobs: F32
    caches: F32


@torch.inference_mode()
def reference_sentences(model: NarratorModel, videos: F32) -> Sentences:
    """Greedy sentences of the PyTorch model for normalised clips (N, 3, T, H, W), and its distributions along them."""
    runtime = TorchRuntime(model)
    said = write_greedily(runtime, (runtime.encode(video[np.newaxis]) for video in videos), BATCH)
    counts = np.array([len(one.ids) - 1 for one in said])
    end = model.config.text.vocab - 1
    ids = np.array([one.ids + (end,) * (counts.max() + 1 - len(one.ids)) for one in said])
    seen = model.visual_tokens(torch.from_numpy(videos))
    cross = [t.numpy() for pair in model.text_decoder.keys_values(seen) for t in pair]
    kept: list[F32] = []
    blocks = [block for block in model.text_decoder.transformer.h if isinstance(block, Block)]
    hooks = [block.attn.register_forward_pre_hook(_keeper(kept)) for block in blocks]
    try:
        logits = model.logits(seen, torch.from_numpy(ids[:, :-1]))
    finally:
        for hook in hooks:
            hook.remove()
    return Sentences(seen.numpy(), cross, ids, counts, logits.log_softmax(-1).numpy(), np.stack(kept))


def _keeper(kept: list[F32]) -> Any:
    """A hook that notes a self-attention's keys and values, (N, h, L, d) each."""

    def note(attention: Any, arguments: tuple[Tensor, ...]) -> None:
        (x_NLE,) = arguments
        N, L, E = x_NLE.shape
        _, key, value = attention.c_attn(x_NLE).split(E, dim=-1)
        kept.extend(t.view(N, L, attention.heads, -1).transpose(1, 2).numpy() for t in (key, value))

    return note


def follow(runtime: NarratorRuntime, context: ClipContext, ids: I64) -> tuple[F32, Any]:
    """Feed sentences (N, L) to an engine: log-probabilities of each next token (N, L-1, V), and the state after."""
    state = runtime.begin()
    runtime.join(state, context, 1)
    lines = [runtime.logprobs(state)]
    for tokens in ids[:, 1:-1].T:
        runtime.step(state, tokens)
        lines.append(runtime.logprobs(state))
    return np.stack(lines, axis=1), state


class NarratorParity:
    """One engine against the reference, batch by batch."""

    def __init__(self, runtime: NarratorRuntime) -> None:
        self.runtime = runtime
        self.errors = {"encoder": Errors(), "decoder": Errors(), "narrator": Errors()}
        self.kl: list[F64] = []  # of each clip, (tokens,)
        self.alike: list[NDArray[np.bool_]] = []
        self.ids: list[tuple[int, ...]] = []
        self._layers = np.zeros((2, runtime.config.text.n_layer))

    def add(self, videos: F32, wanted: Sentences) -> None:
        """Compare on some clips."""
        runtime = self.runtime
        contexts = [runtime.encode(video[np.newaxis]) for video in videos]
        merged = runtime.merge(contexts)
        seen, given = self._look(videos, merged, wanted)
        for i in range(len(videos) if seen else 0):
            self.errors["encoder"].add([a[i] for a, _ in seen], [b[i] for _, b in seen])
        if given is not None:
            self._lines("decoder", wanted, follow(runtime, given, wanted.ids)[0])
        lines, state = follow(runtime, merged, wanted.ids)
        self._lines("narrator", wanted, lines)
        self._distributions(wanted, lines)
        if isinstance(state, HostState):
            self._caches(wanted, state)
        self.ids += [one.ids for one in write_greedily(runtime, contexts, BATCH)]

    def _look(
        self, videos: F32, context: ClipContext, wanted: Sentences
    ) -> tuple[list[tuple[F32, F32]], ClipContext | None]:
        """What the encoder gives, beside the reference's, and the reference's in the engine's own form.

        An engine that keeps both to itself is compared as a whole only.
        """
        runtime: Any = self.runtime
        if isinstance(context, HostContext):
            theirs = HostContext(tuple(np.ascontiguousarray(layer) for layer in wanted.cross))
            return list(zip(wanted.cross, context.cross, strict=True)), theirs
        if hasattr(runtime, "look"):  # the native engine
            seen = np.stack([runtime.visual_tokens(video) for video in videos])
            return [(wanted.visual, seen)], runtime.look(wanted.visual)
        if isinstance(context, SlotContext) and all(block.dtype != "bfloat16" for block in context.clips[0]):
            read = runtime.memory.read
            layers = zip(*([read(block) for block in clip] for clip in context.clips), strict=True)
            return list(zip(wanted.cross, map(np.concatenate, layers), strict=True)), None
        return [], None

    def _lines(self, graph: str, wanted: Sentences, lines: F32) -> None:
        for a, b, count in zip(wanted.logprobs, lines, wanted.counts, strict=True):
            self.errors[graph].add([a[:count]], [b[:count]])

    def _distributions(self, wanted: Sentences, lines: F32) -> None:
        for a, b, count in zip(wanted.logprobs, lines, wanted.counts, strict=True):
            a64, b64 = (_normal(line[:count].astype(np.float64)) for line in (a, b))
            self.kl.append((np.exp(a64) * (a64 - b64)).sum(-1))
            self.alike.append(a64.argmax(-1) == b64.argmax(-1))

    def _caches(self, wanted: Sentences, state: HostState) -> None:
        steps, layers = wanted.caches.shape[3], self._layers.shape[1]
        got = state.kv[:, : state.rows, :, :steps]
        written = (np.arange(steps) < wanted.counts[:, None])[:, None, :, None]
        gap = np.square((got - wanted.caches) * written, dtype=np.float64).reshape(layers, -1).sum(1)
        self._layers += gap, np.square(wanted.caches * written, dtype=np.float64).reshape(layers, -1).sum(1)

    def fill(self, section: Section, wanted: Sequence[tuple[int, ...]]) -> None:
        """Put what was found into a section; `wanted` are the reference's sentences."""
        section.graphs = {name: one.figures() for name, one in self.errors.items() if one.count}
        kl, alike = np.concatenate(self.kl), np.concatenate(self.alike)
        section.figures |= {
            "tokens": len(kl),
            "kl": float(kl.mean()),
            "kl_worst_token": float(kl.max()),
            "top1_agreement": float(alike.mean()),
            "greedy_tokens_equal": token_agreement(wanted, self.ids),
            "greedy_sentences_equal": float(np.mean([a == b for a, b in zip(wanted, self.ids, strict=True)])),
        }
        if self._layers[1].all():
            section.layers = np.sqrt(self._layers[0] / self._layers[1]).tolist()
        section.kl_by_position = by_position(self.kl)


def _normal(lines: F64) -> F64:
    """Log-probabilities that add up to one to the last digit, so that no divergence comes out below zero."""
    out: F64 = lines - np.log(np.exp(lines).sum(-1, keepdims=True))
    return out


def token_agreement(wanted: Sequence[tuple[int, ...]], got: Sequence[tuple[int, ...]]) -> float:
    """Share of places, begin token aside, where two sets of sentences have the same token."""
    same = sum(x == y for a, b in zip(wanted, got, strict=True) for x, y in zip(a[1:], b[1:], strict=False))
    return same / sum(max(len(a), len(b)) - 1 for a, b in zip(wanted, got, strict=True))


def by_position(kl: Sequence[F64]) -> dict[str, list[float]]:
    """Mean and 90th percentile of the KL at each place of a sentence, over the sentences that reach it."""
    places = [[one[i] for one in kl if len(one) > i] for i in range(max(map(len, kl)))]
    return {"mean": [float(np.mean(p)) for p in places], "p90": [float(np.quantile(p, 0.9)) for p in places]}


def compared(reference: dict[str, F64], engine: dict[str, F64]) -> dict[str, dict[str, float]]:
    """Task quality side by side, from one value a clip or query: means, points lost, their 95% interval, counts.

    A point is a hundredth of the figure's range (CIDEr's is 0..10).
    """
    found = {}
    for name, a in reference.items():
        per_point = 10.0 if name == "cider" else 100.0
        lost = (a - engine[name]) * per_point
        low, high = interval(lost)
        found[name] = {
            "reference": float(a.mean()),
            "engine": float(engine[name].mean()),
            "lost_points": float(lost.mean()),
            "low": low,
            "high": high,
            "worse": int((lost > 1e-9).sum()),
            "better": int((lost < -1e-9).sum()),
            "of": len(lost),
        }
    return found


def in_batches(videos: Sequence[F32] | F32, size: int = BATCH) -> Iterator[F32]:
    """Slices of up to `size` clips."""
    for i in range(0, len(videos), size):
        yield np.asarray(videos[i : i + size])
