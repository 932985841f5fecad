"""B clips in flight on the device: fixed tensors, and the step that advances all of them without the host.

The begin token is the whole prompt, so a clip needs no prefill but its cross-attention keys and values: `admit` copies
those into the slot, and the slot's rows of the KV cache are overwritten from the start. A step feeds each row the token
that the step before chose, on the device; rows that reach the end token or the limit fall idle there. The host knows
all else in advance (which clip has which slot, at which step, which uniform numbers), so it queues step after step and
collects tokens some steps later, from pinned memory: see `generate.ahead`. What a row is given and what happens to it
depends on nothing but its clip: idle neighbours and steps past its end change nothing.

With `steady` all B slots are computed at every step, so the products have one shape and a row's result cannot depend
on how many other slots are in use, as far as the library's kernel treats all rows of a product alike (for another shape
it may choose another kernel, with another rounding). Without it a step covers a power of two of slots, up to the last
in use: less latency for few clips.

With fewer *lanes* than rows (see `step`), only so many rows may be alive at once, and the writer admits no
more clips; every slot goes on to its last sentence, while the lanes stay full. Never run on a GPU yet.

Shape suffixes: B slots, R rows a slot, M = B · R, L lanes, h heads, d head size, C capacity, Q visual tokens, K steps
drawn.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.sampling import Chosen, Warp
from lavila_fast.engines.torch_cuda.encoder import EncoderBatch
from lavila_fast.engines.torch_cuda.launch import Event, Launcher
from lavila_fast.engines.torch_cuda.memory import room_for
from lavila_fast.engines.torch_cuda.step import LaneMap, SlotDecoder
from lavila_fast.errors import InputError
from lavila_fast.kernels.decode.ops import sample

DRAWN = 8  # steps whose uniform numbers are on the device at once
Decode = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, LaneMap | None], Tensor]


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen, and how many a sentence may have, begin token included. A captured graph is for one."""

    warp: Warp
    limit: int


@dataclass(frozen=True)
class StepOutcome:
    """One step's outcome: its number, and tokens, log-probabilities and entropies of the first n slots, each (n, R)."""

    number: int
    chosen: Chosen


class DecodeLoop:
    """See the module.

    Args:
        config: The model's sizes.
        decoder: The step.
        launcher: Of its device.
        sizes: B, R, C.
        lanes: L, at least R.
        lag: Steps that are queued before the host reads one.
        steady: See the module.
        decode: `decoder`, perhaps compiled.
    """

    def __init__(
        self,
        config: NarratorConfig,
        decoder: SlotDecoder,
        launcher: Launcher,
        sizes: tuple[int, int, int],
        lanes: int,
        lag: int = 2,
        steady: bool = True,
        decode: Decode | None = None,
    ) -> None:
        (self.slots, self.rows, self.capacity), self.lag, self.drawn = sizes, lag, DRAWN
        self.lanes = min(max(lanes, self.rows), self.slots * self.rows)
        self.end, self.launcher, self.decode = config.text.vocab - 1, launcher, decode or decoder
        self.buckets = [self.slots] if steady else _doubling(self.slots)
        B, R, M = self.slots, self.rows, self.slots * self.rows
        text, device = config.text, launcher.device
        h, d = text.n_head, text.n_embd // text.n_head

        def zeros(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self._ids_BR, self._lengths_B = zeros(B, R, dtype=torch.int64), zeros(B)
        self._live_BR = zeros(B, R, dtype=torch.bool)
        self._draws_BRK = zeros(B, R, DRAWN, dtype=torch.float64)
        self._kv_cache = zeros(2 * text.n_layer, M, h, self.capacity, d, dtype=decoder.dtype)
        self._cross_kv = zeros(2 * len(text.cross_layers), B, h, config.queries, d, dtype=decoder.dtype)
        self._out_M3 = zeros(M, 3)
        self._host_buffers = cycle([launcher.host_buffer(self._out_M3) for _ in range(lag + 1)])
        self._queued: deque[tuple[int, Event, Tensor]] = deque()
        self._steps: dict[tuple[int, SamplingParams], Callable[[], None]] = {}
        self._reserved, self._number = False, 0
        launcher.synchronize()  # what was made on the default stream is there for the others

    @property
    def nbytes(self) -> int:
        """Memory of the tensors that stay."""
        kept = self._kv_cache, self._cross_kv, self._draws_BRK, self._out_M3, self._ids_BR
        return sum(tensor.nbytes for tensor in kept)

    @property
    def queued(self) -> int:
        """Steps that are queued and not yet read."""
        return len(self._queued)

    @property
    def number(self) -> int:
        """Of the next step."""
        return self._number

    def admit(self, slots: I64, batch: EncoderBatch, first: int) -> None:
        """Put encoded clips, from number `first` of `batch` on, into idle slots."""
        with self.launcher.decoding(), torch.no_grad():
            batch.done.wait()
            where = self.launcher.upload(slots)
            self._cross_kv.index_copy_(1, where, batch.cross[:, first : first + len(slots)])
            batch.taken = self.launcher.record_event()
            self._lengths_B.index_fill_(0, where, 0)
            self._ids_BR.index_fill_(0, where, self.end)
            self._live_BR.index_fill_(0, where, True)

    def draw(self, slots: I64, u: F64) -> None:
        """Uniform numbers (n, R, K) for the next K = `drawn` steps of these slots, due when a clip used up its last."""
        with self.launcher.decoding(), torch.no_grad():
            upload = self.launcher.upload
            self._draws_BRK.index_copy_(0, upload(slots), upload(u))

    def prepare(self, params: SamplingParams) -> None:
        """Capture the steps for `params`. All slots must be idle; a step then changes nothing.

        Raises:
            InputError: no room on the device.
        """
        for slots in self.buckets:
            if (slots, params) not in self._steps:
                with room_for(f"a step of {slots} clips", "lower --batch-size"):
                    self._steps[slots, params] = self.launcher.capture(lambda n=slots: self._advance(n, params))  # type: ignore[misc]

    def launch(self, slots: int, params: SamplingParams) -> None:
        """Queue a step of the first `slots` slots at least."""
        assert len(self._queued) <= self.lag
        bucket = next(n for n in self.buckets if n >= slots)
        with self.launcher.decoding():
            self._steps[bucket, params]()
            buffer = next(self._host_buffers)[: bucket * self.rows]
            buffer.copy_(self._out_M3[: bucket * self.rows], non_blocking=True)
            self._queued.append((self._number, self.launcher.record_event(), buffer))
        self._number += 1

    def read(self) -> StepOutcome:
        """Wait for the oldest step not yet read. The arrays hold until the next launch."""
        number, event, buffer = self._queued.popleft()
        event.synchronize()
        tokens, logprob, entropy = buffer.numpy().reshape(-1, self.rows, 3).transpose(2, 0, 1)
        return StepOutcome(number, Chosen(tokens.astype(np.int64), _floats(logprob), _floats(entropy)))

    @torch.no_grad()
    def _advance(self, n: int, params: SamplingParams) -> None:
        live_nR, lengths_n, R = self._live_BR[:n], self._lengths_B[:n], self.rows
        active_n = live_nR.any(1)
        lengths_M = torch.where(live_nR, lengths_n[:, None], -1).flatten()
        caches, cross = self._kv_cache[:, : n * R], self._cross_kv[:, :n]
        lane_map = _map_lanes(live_nR.flatten(), min(self.lanes, n * R))
        logits_LV = self.decode(self._ids_BR[:n].flatten(), lengths_M, active_n, caches, cross, lane_map)
        step_n11 = (lengths_n % DRAWN).long()[:, None, None]
        u_M = self._draws_BRK[:n].gather(2, step_n11.expand(-1, R, 1)).flatten()
        warp, u_L = params.warp, u_M if lane_map is None else u_M[lane_map.row_L]
        chosen = sample(logits_LV, u_L, warp.temperature, warp.top_k, warp.top_p, warp.greedy)
        tokens_M, logprob_M, entropy_M = chosen if lane_map is None else (one[lane_map.lane_M] for one in chosen)
        for column, values in enumerate((tokens_M.int(), logprob_M.view(torch.int32), entropy_M.view(torch.int32))):
            self._out_M3[: n * R, column].copy_(values)
        tokens_nR = tokens_M.view(n, R)
        self._ids_BR[:n].copy_(tokens_nR)
        # A sentence now has begin token, one a step before, and this one.
        live_nR &= (tokens_nR != self.end) & (lengths_n + 2 < params.limit)[:, None]
        lengths_n += active_n.int()

    def reserve(self) -> None:
        """Reserve the loop for one writer.

        Raises:
            InputError: another one has it.
        """
        if self._reserved:
            raise InputError("this engine is writing for another caller; finish or close that one first")
        self._reserved = True

    def release(self) -> None:
        """Empty all slots, wait for what is queued, which is not read any more, and let others have the loop."""
        self._queued.clear()
        with self.launcher.decoding():
            self._live_BR.zero_()
        self.launcher.synchronize()  # whoever frees the loop, or its clips, frees what nobody reads any more
        self._reserved = False


def _map_lanes(live_M: Tensor, lanes: int) -> LaneMap | None:
    """Lanes for the rows that are alive, at most `lanes`; None where every row has one of its own."""
    if lanes == len(live_M):
        return None
    count_M = live_M.cumsum(0)
    nth_L = torch.arange(1, lanes + 1, device=live_M.device)
    row_L = torch.searchsorted(count_M, nth_L).clamp(max=len(live_M) - 1)  # where the count first reaches n
    return LaneMap(row_L, (count_M - 1).clamp(0, lanes - 1))


def _floats(bits: NDArray[np.int32]) -> F32:
    return np.ascontiguousarray(bits).view(np.float32)


def _doubling(most: int) -> Sequence[int]:
    return [2**i for i in range((most - 1).bit_length())] + [most]
