"""A runtime whose caches live in host memory as numpy arrays; an engine only has to run two graphs.

The caches have a fixed capacity, the engine reads them in place and returns just the new keys and values, and rows that
leave are replaced by the last ones: nothing is ever copied that did not change. Rows of any age live side by side,
which is what continuous batching needs.

Axes: N rows, B clips, R rows a clip, h heads, d head size, C capacity in tokens, Q visual tokens, V vocabulary.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.protocol import ClipContext, WriterKind
from lavila_fast.engines.sampling import Chosen, Warp, choose_tokens, log_softmax
from lavila_fast.errors import InputError, NotFiniteError

PAGE = 16  # the cache grows by this many tokens
# A product with one row takes another path in most libraries and rounds differently. No product here ever has fewer
# rows than this, so that a narration does not depend on which others happen to be in flight.
MIN_ROWS = 2


@dataclass(frozen=True)
class HostContext:
    """Key (B, h, d, Q) and value (B, h, Q, d) of each gated block in turn."""

    cross: tuple[F32, ...]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.cross[0])


@dataclass
class StepInputs:
    """What the step graph reads; see `models.gpt2.GatedGPT2.step` for the shapes."""

    ids: I64
    lengths: I64
    grid: I64
    place: I64
    past: list[F32]
    cross: list[F32]


class HostState:
    """Rows in flight."""

    def __init__(self, config: NarratorConfig) -> None:
        text = config.text
        self.heads, self.size = text.n_head, text.n_embd // text.n_head
        self.layers, self.vocab = text.n_layer, text.vocab
        self.kv = np.zeros((2 * self.layers, 0, self.heads, PAGE, self.size), np.float32)
        self.cross: list[F32] = []
        self.clips = 0
        self.slot = np.empty(0, np.int64)  # the clip of each row
        self.lengths = np.empty(0, np.int64)  # tokens of each row in the cache
        self.logits = np.empty((0, text.vocab), np.float32)
        self.source = np.empty(0, np.int64)  # the line of logits each row reads

    @property
    def rows(self) -> int:
        """N."""
        return len(self.slot)

    def reserve(self, rows: int, length: int) -> None:
        """Make room for `rows` rows of `length` tokens; what is there stays."""
        have_rows, have_length = self.kv.shape[1], self.kv.shape[3]
        if rows <= have_rows and length <= have_length:
            return
        shape = list(self.kv.shape)
        shape[1] = max(have_rows, rows)
        shape[3] = max(have_length, -(-length // PAGE) * PAGE)
        bigger = np.zeros(shape, np.float32)
        bigger[:, : self.rows, :, :have_length] = self.kv[:, : self.rows]
        self.kv = bigger

    def place_clips(self, cross: Sequence[F32]) -> None:
        """Copy new clips' keys and values behind those in flight."""
        need = self.clips + len(cross[0])
        if not self.cross or len(self.cross[0]) < need:
            bigger = [np.empty((need, *c.shape[1:]), np.float32) for c in cross]
            for new, old in zip(bigger, self.cross, strict=False):
                new[: self.clips] = old[: self.clips]
            self.cross = bigger
        for mine, new in zip(self.cross, cross, strict=True):
            mine[self.clips : need] = new
        self.clips = need

    def drop_idle_clips(self) -> None:
        """Fill the place of a clip that has no rows with the last one."""
        for clip in range(self.clips - 1, -1, -1):
            if not (self.slot == clip).any():
                last = self.clips - 1
                if clip != last:
                    for layer in self.cross:
                        layer[clip] = layer[last]
                    self.slot[self.slot == last] = clip
                self.clips = last


def grid_of(slot: I64, clips: int) -> tuple[I64, I64]:
    """The rows of each clip as a padded table (B, R), and each row's place in the flattened table (N,)."""
    counts = np.bincount(slot, minlength=clips)
    order = np.argsort(slot, kind="stable")
    nth = np.empty(len(slot), np.int64)
    nth[order] = np.arange(len(slot)) - np.repeat(np.cumsum(counts) - counts, counts)
    grid = np.zeros((clips, max(MIN_ROWS, int(counts.max()))), np.int64)
    grid[slot, nth] = np.arange(len(slot))
    return grid, slot * grid.shape[1] + nth


def require_finite(values: F32, where: str = "the values of its frames") -> None:
    """Raise NotFiniteError unless all are finite numbers: integer products would make ordinary ones of them."""
    if not np.isfinite(values.sum()):  # where one is not, no sum with it is
        raise NotFiniteError(None, where)


def require_process(process: int) -> None:
    """Raise InputError in a child made by fork: it has none of the engine's threads, and locks as they were."""
    if os.getpid() != process:
        raise InputError(
            "this model was opened before the process was forked, and its threads stayed behind; open one in the "
            "child (a model that is pickled is opened again), or start processes with the spawn method"
        )


class HostRuntime(ABC):
    """`NarratorRuntime` over two graphs that a subclass runs. Frames are wanted in the host's memory."""

    identity: str
    device: str = "cpu"
    writer: WriterKind = "steps"

    def __init__(self, config: NarratorConfig) -> None:
        self.config, self._process = config, os.getpid()

    @abstractmethod
    def _encode(self, video: F32) -> list[F32]:
        """Video (1, 3, T, H, W) → key (1, h, d, Q), value (1, h, Q, d) of each gated block."""

    @abstractmethod
    def _step(self, inputs: StepInputs) -> tuple[F32, F32]:
        """Logits (N, V) and new keys and values (2 · layers, N, h, d)."""

    def encode(self, video: F32) -> HostContext:
        """See `NarratorRuntime.encode`. One clip at a time: a CPU gains nothing from more, and results cannot vary."""
        require_process(self._process)
        vision = self.config.vision
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[3:] != (vision.img, vision.img) or not len(video):
            raise InputError(f"video has shape {video.shape}; expected (B, 3, T, {vision.img}, {vision.img})")
        if not 1 <= video.shape[2] <= vision.frames:
            raise InputError(f"video has {video.shape[2]} frames; this model takes 1 to {vision.frames}")
        require_finite(video)
        parts = [self._encode(video[i : i + 1]) for i in range(len(video))]
        for layer in (layer for part in parts for layer in part):
            require_finite(layer, "the numbers of the video encoder")
        return HostContext(tuple(np.concatenate(layer) for layer in zip(*parts, strict=True)))

    def merge(self, contexts: Sequence[HostContext]) -> HostContext:
        """See `NarratorRuntime.merge`."""
        if len(contexts) == 1:
            return contexts[0]
        layers = zip(*(context.cross for context in contexts), strict=True)
        return HostContext(tuple(np.concatenate(layer) for layer in layers))

    def begin(self) -> HostState:
        """See `NarratorRuntime.begin`."""
        return HostState(self.config)

    def join(self, state: HostState, context: ClipContext, samples: int) -> None:
        """See `NarratorRuntime.join`."""
        require_process(self._process)
        if not isinstance(context, HostContext):
            raise InputError("join: these clips were encoded by another kind of engine")
        self._require_shapes(context.cross)
        if samples < 1:
            raise InputError(f"join: samples must be at least 1, not {samples}")
        old, clips, first_clip = state.rows, len(context), state.clips
        one = np.arange(clips)
        if not old:  # nobody reads these lines any more
            state.logits = state.logits[:0]
        begin = np.full(clips, self.config.text.vocab - 1)
        logits, new = self._forward(state, old, begin, np.zeros(clips, np.int64), one, list(context.cross))
        state.reserve(old + clips * samples, 1)
        state.place_clips(context.cross)
        state.kv[:, old : old + clips * samples, :, 0] = np.repeat(new, samples, axis=1)
        state.slot = np.concatenate([state.slot, first_clip + np.repeat(one, samples)])
        state.lengths = np.concatenate([state.lengths, np.ones(clips * samples, np.int64)])
        state.source = np.concatenate([state.source, len(state.logits) + np.repeat(one, samples)])
        state.logits = np.concatenate([state.logits, logits])

    def _require_shapes(self, cross: Sequence[F32]) -> None:
        """Raise InputError for the clips of another narrator, as far as shapes can tell."""
        text, queries = self.config.text, self.config.queries
        heads, size = text.n_head, text.n_embd // text.n_head
        wanted = [(heads, size, queries), (heads, queries, size)] * len(text.cross_layers)
        if [layer.shape[1:] for layer in cross] != wanted:
            raise InputError("join: a clip of another narrator")

    def _forward(
        self, state: HostState, first: int, ids: I64, lengths: I64, slot: I64, cross: list[F32]
    ) -> tuple[F32, F32]:
        """Feed `ids` to the rows from `first` on: logits (N, V) and new keys and values (2 · layers, N, h, d)."""
        rows, padded = len(ids), max(MIN_ROWS, len(ids))
        state.reserve(first + padded, int(lengths.max()) + 1)
        if rows < padded:
            ids, lengths, slot = np.append(ids, ids), np.append(lengths, 0), np.append(slot, slot)
        grid, place = grid_of(slot, len(cross[0]))
        past = [layer[first : first + padded] for layer in state.kv]
        logits, new = self._step(StepInputs(ids, lengths, grid, place, past, cross))
        return logits[:rows], new[:, :rows]

    def sample(self, state: HostState, warp: Warp, u: F64) -> Chosen:
        """See `NarratorRuntime.sample`."""
        return choose_tokens(state.logits, state.source, warp, u)

    def logprobs(self, state: HostState) -> F32:
        """See `NarratorRuntime.logprobs`."""
        return log_softmax(state.logits)[0][state.source]

    def step(self, state: HostState, tokens: I64) -> None:
        """See `NarratorRuntime.step`."""
        require_process(self._process)
        if len(tokens) != state.rows:
            raise InputError(f"step: {len(tokens)} tokens for {state.rows} rows")
        if not state.rows:
            return
        cross = [layer[: state.clips] for layer in state.cross]
        state.logits, new = self._forward(state, 0, tokens, state.lengths, state.slot, cross)
        state.kv[:, np.arange(state.rows), :, state.lengths] = new.transpose(1, 0, 2, 3)
        state.lengths = state.lengths + 1
        state.source = np.arange(state.rows)

    def select(self, state: HostState, rows: I64) -> None:
        """See `NarratorRuntime.select`."""
        moved = np.flatnonzero(rows != np.arange(len(rows)))
        if len(moved):
            state.reserve(len(rows), 1)
            used = int(state.lengths.max())
            state.kv[:, moved, :, :used] = state.kv[:, rows[moved], :, :used]
        state.slot, state.lengths, state.source = state.slot[rows], state.lengths[rows], state.source[rows]
        state.drop_idle_clips()
