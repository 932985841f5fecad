"""`NarratorRuntime` for engines with memory of their own: caches stay on the device and are updated in place.

A clip takes a *slot*: R rows side by side that began together and advance together, so one length serves a clip, a row
that ends leaves its place idle, and nothing is moved when others leave. Engines see the slots from the first to the
last one in use; only tokens cross to the device, only choices (or, without torch there, logits) come back. What an
engine must do is run two graphs on memory it is given: the encoder, and `export.graphs.inplace`'s decoder.

Axes: B slots, R rows a slot, N rows in use, h heads, d head size, C capacity, Q visual tokens, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.device.memory import ITEM_BYTES, DeviceArray, Memory
from lavila_fast.engines.device.sampling import sampler_beside
from lavila_fast.engines.host.state import MIN_ROWS
from lavila_fast.engines.protocol import ClipContext, WriterKind
from lavila_fast.engines.sampling import Chosen, Warp, choose_tokens, log_softmax
from lavila_fast.errors import InputError


@dataclass(frozen=True)
class SlotContext:
    """Key (1, h, d, Q) and value (1, h, Q, d) of each gated block in turn, for each clip, on the device."""

    clips: tuple[tuple[DeviceArray, ...], ...]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)


class SlotState:
    """Rows in flight.

    Attributes:
        slot: (N,) the slot of each row, and `nth` its place there.
        lengths: (B,) tokens in the cache of each slot; 0 for an idle one.
        caches: Key, value of each block in turn, (B, R · h, C, d).
        cross: Key (B, h, d, Q), value (B, h, Q, d) of each gated block in turn.
        logits: (B, R, V) float32.
        scratch: Where an engine that cannot write in place writes; shaped as `caches`.
    """

    def __init__(self) -> None:
        self.slot, self.nth = np.empty(0, np.int64), np.empty(0, np.int64)
        self.lengths = np.empty(0, np.int64)
        self.most_rows = 0
        self.caches: list[DeviceArray] = []
        self.cross: list[DeviceArray] = []
        self.scratch: list[DeviceArray] = []
        self.logits: DeviceArray | None = None
        self.ids: DeviceArray | None = None
        self.ages: DeviceArray | None = None

    @property
    def rows(self) -> int:
        """N."""
        return len(self.slot)

    @property
    def slots(self) -> int:
        """B."""
        return len(self.lengths)

    @property
    def clips(self) -> int:
        """Slots in use."""
        return len(np.unique(self.slot))

    @property
    def place(self) -> I64:
        """Where each row stands among all B · R, (N,)."""
        return self.slot * self.most_rows + self.nth


class SlotRuntime(ABC):
    """The protocol over two graphs that a subclass runs.

    Args:
        config: The model's sizes.
        memory: Of the engine's device.
        dtype: Of caches and visual keys and values, a key of `memory.ITEM_BYTES`.
        capacity: C, of the decoder graph.
        aliased: Whether the engine may write a cache while reading it; else it gets other memory and the result is
            copied back.
    """

    identity: str
    device: str = "cpu"  # frames come from the host's memory
    writer: WriterKind = "steps"

    def __init__(self, config: NarratorConfig, memory: Memory, dtype: str, capacity: int, aliased: bool = True) -> None:
        self.config, self.memory, self.dtype = config, memory, dtype
        self.capacity, self.aliased = capacity, aliased
        self.heads, self.size = config.text.n_head, config.text.n_embd // config.text.n_head
        self.video_dtype = "float32"
        self._sampler = sampler_beside(memory)
        self.most_clips, self.most_samples = 1 << 30, 1 << 30

    @abstractmethod
    def _encode(self, video: DeviceArray, cross: Sequence[DeviceArray]) -> None:
        """Video (1, 3, T, H, W) → key (1, h, d, Q), value (1, h, Q, d) of each gated block, into `cross`."""

    @abstractmethod
    def _step(
        self,
        ids: DeviceArray,
        lengths: DeviceArray,
        past: Sequence[DeviceArray],
        cross: Sequence[DeviceArray],
        logits: DeviceArray,
        present: Sequence[DeviceArray],
    ) -> None:
        """See `export.graphs.inplace.InplaceDecoder.forward`; written in place, `present` is `past`."""

    def encode(self, video: F32) -> SlotContext:
        """See `NarratorRuntime.encode`. One clip at a time, so that a result cannot depend on its neighbours."""
        return SlotContext(tuple(self._encode_one(one[None]) for one in video))

    def _encode_one(self, video: F32) -> tuple[DeviceArray, ...]:
        block = self.memory.zeros(video.shape, self.video_dtype)
        self.memory.write(block, video)
        cross = tuple(self.memory.zeros((1, *shape), self.dtype) for shape in self._cross_shapes())
        self._encode(block, cross)
        return cross

    def _cross_shapes(self) -> list[tuple[int, ...]]:
        h, d, q = self.heads, self.size, self.config.queries
        return [shape for _ in self.config.text.cross_layers for shape in ((h, d, q), (h, q, d))]

    def merge(self, contexts: Sequence[SlotContext]) -> SlotContext:
        """See `NarratorRuntime.merge`."""
        return SlotContext(tuple(clip for context in contexts for clip in context.clips))

    def begin(self) -> SlotState:
        """See `NarratorRuntime.begin`."""
        return SlotState()

    def join(self, state: SlotState, context: ClipContext, samples: int) -> None:
        """See `NarratorRuntime.join`. Here the begin token is fed to all rows of a slot: they are computed anyway."""
        assert isinstance(context, SlotContext)
        idle = np.setdiff1d(np.arange(state.slots), state.slot)
        slots = np.concatenate([idle, np.arange(state.slots, state.slots + len(context))])[: len(context)]
        self._make_room(state, int(slots.max()) + 1, samples)
        for slot, clip in zip(slots.tolist(), context.clips, strict=True):
            for mine, new in zip(state.cross, clip, strict=True):
                self.memory.copy(new, mine.part(slot, slot + 1))
        state.lengths[slots] = 0
        ids = np.full((state.slots, state.most_rows), self.config.text.vocab - 1)
        for first, last in _runs(slots):
            self._run(state, ids, first, last)
        state.lengths[slots] = 1
        state.slot = np.concatenate([state.slot, np.repeat(slots, samples)])
        state.nth = np.concatenate([state.nth, np.tile(np.arange(samples), len(slots))])

    def _make_room(self, state: SlotState, slots: int, rows: int) -> None:
        """Make room for `slots` slots of `rows` rows; what is in use stays."""
        slots, rows = max(slots, state.slots), max(rows, state.most_rows, MIN_ROWS)
        if (slots, rows) == (state.slots, state.most_rows):
            return
        if slots > self.most_clips or rows > self.most_samples:
            raise InputError(
                f"the engine was built for at most {self.most_clips} clips at once and {self.most_samples} samples or "
                f"beams a clip, not {slots} and {rows}; lower --batch-size or --samples, or build it for more"
            )
        zeros, text = self.memory.zeros, self.config.text
        cache = (slots, rows * self.heads, self.capacity, self.size)
        old = [*state.caches, *state.cross, *([state.logits] if state.logits else [])]
        state.caches = [zeros(cache, self.dtype) for _ in range(2 * text.n_layer)]
        state.scratch = [] if self.aliased else [zeros(cache, self.dtype) for _ in state.caches]
        state.cross = [zeros((slots, *shape), self.dtype) for shape in self._cross_shapes()]
        state.logits = zeros((slots, rows, text.vocab), "float32")
        state.ids, state.ages = zeros((slots, rows), "int64"), zeros((slots,), "int64")
        for slot in np.unique(state.slot).tolist():  # old rows lie at the front of the new slot
            for source, target in zip(old, [*state.caches, *state.cross, state.logits], strict=True):
                kept = source.part(slot, slot + 1)
                self.memory.copy(kept, target.part(slot, slot + 1).view(*kept.shape))
        state.lengths = np.append(state.lengths, np.zeros(slots - state.slots, np.int64))
        state.most_rows = rows

    def _run(self, state: SlotState, ids: I64, first: int, last: int) -> None:
        """Feed `ids` (B, R) to the slots ``first … last - 1``."""
        assert state.logits is not None
        assert state.ids is not None
        assert state.ages is not None

        def part(blocks: Sequence[DeviceArray]) -> list[DeviceArray]:
            return [block.part(first, last) for block in blocks]

        mine, ages, logits = part([state.ids, state.ages, state.logits])
        self.memory.write(mine, ids[first:last])
        self.memory.write(ages, state.lengths[first:last])
        past = part(state.caches)
        present = past if self.aliased else part(state.scratch)
        self._step(mine, ages, past, part(state.cross), logits, present)
        if not self.aliased:
            for new, old in zip(present, past, strict=True):
                self.memory.copy(new, old)

    def sample(self, state: SlotState, warp: Warp, u: F64) -> Chosen:
        """See `NarratorRuntime.sample`."""
        lines, place = self._lines(state)
        if self._sampler is not None:
            return self._sampler(lines, place, warp, u)
        return choose_tokens(self.memory.read(lines), place, warp, u)

    def _lines(self, state: SlotState) -> tuple[DeviceArray, I64]:
        """Logits of the slots up to the last one in use, (M, V), and the line of each row, (N,)."""
        assert state.logits is not None
        used = state.logits.part(0, int(state.slot.max()) + 1)
        return used.view(used.shape[0] * used.shape[1], used.shape[2]), state.place

    def logprobs(self, state: SlotState) -> F32:
        """See `NarratorRuntime.logprobs`."""
        lines, place = self._lines(state)
        return log_softmax(self.memory.read(lines)[place])[0]

    def step(self, state: SlotState, tokens: I64) -> None:
        """See `NarratorRuntime.step`.

        Raises:
            InputError: a row is as long as the graph's cache.
        """
        if int(state.lengths.max()) >= self.capacity:
            raise InputError(f"a sentence reached {self.capacity} tokens, the most this engine holds; lower max_tokens")
        ids = np.zeros((state.slots, state.most_rows), np.int64)
        ids[state.slot, state.nth] = tokens
        self._run(state, ids, 0, int(state.slot.max()) + 1)
        state.lengths[np.unique(state.slot)] += 1

    def select(self, state: SlotState, rows: I64) -> None:
        """See `NarratorRuntime.select`. A row named once stays where it is; only repeated ones are copied."""
        slot, nth = state.slot[rows], state.nth[rows]
        if len(rows):
            self._make_room(state, state.slots, int(np.bincount(slot).max()))
        for one in np.unique(slot):
            mine = np.flatnonzero(slot == one)
            first = np.unique(nth[mine], return_index=True)[1]
            free = np.setdiff1d(np.arange(state.most_rows), nth[mine])
            for row, place in zip(np.delete(mine, first), free, strict=False):
                self._copy_row(state, int(one), int(nth[row]), int(place))
                nth[row] = place
        state.slot, state.nth = slot, nth
        state.lengths[np.setdiff1d(np.arange(state.slots), slot)] = 0

    def _copy_row(self, state: SlotState, slot: int, source: int, target: int) -> None:
        assert state.logits is not None
        base, lines = slot * state.most_rows, state.slots * state.most_rows
        for block in (*state.caches, state.logits):
            rows = block.view(lines, block.nbytes // lines // ITEM_BYTES[block.dtype])
            self.memory.copy(rows.part(base + source, base + source + 1), rows.part(base + target, base + target + 1))


def _runs(slots: I64) -> Iterator[tuple[int, int]]:
    """First and one past the last of each run of neighbouring slots, in order."""
    for run in np.split(slots, np.flatnonzero(np.diff(slots) != 1) + 1):
        yield int(run[0]), int(run[-1]) + 1
