"""The native CPU engine as a runtime: `kernels/csrc` behind ctypes.

Weights are packed once for the processor at hand. A clip's cross-attention keys and values, the rows' pasts, logits and
sampling all stay on the native side; tokens and uniform numbers are all that crosses. Rows share and move pages of the
past by number, so `select` copies nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_void_p
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.weights import Arrays, MappedFiles, map_weights
from lavila_fast.config import NarratorConfig, VisionConfig
from lavila_fast.engines.host.native_library import Calls, Handle, last_error, open_library, tensor_table
from lavila_fast.engines.host.state import require_finite
from lavila_fast.engines.protocol import ClipContext, WriterKind
from lavila_fast.engines.sampling import Chosen, Warp
from lavila_fast.errors import BundleError, InputError
from lavila_fast.machine import thread_count

_ACTS = {"quick_gelu": 1, "gelu": 2}  # `lavila::Act`


@dataclass(frozen=True)
class NativeContext:
    """Cross-attention keys and values of some clips, on the native side."""

    clips: tuple[Handle, ...]

    def __len__(self) -> int:
        """Number of clips."""
        return len(self.clips)


class NativeState:
    """Rows in flight."""

    def __init__(self, runtime: NativeRuntime) -> None:
        self._runtime = runtime  # its weights must live
        self._library = runtime._library
        self._handle = Handle(self._library, "lv_rows_new", "lv_rows_free", runtime._decoder.pointer)

    @property
    def pointer(self) -> int:
        """Of the `lv_rows`."""
        return int(self._handle.pointer)

    @property
    def rows(self) -> int:
        """N."""
        return int(self._library.lv_rows_count(self.pointer))

    @property
    def slot(self) -> I64:
        """The clip of each row (N,), numbered as they first appear."""
        slots = np.empty(self.rows, np.int64)
        self._library.lv_rows_slots(self.pointer, slots)
        return slots

    @property
    def clips(self) -> int:
        """Clips that have rows."""
        return len(np.unique(self.slot))


class NativeRuntime:
    """`NarratorRuntime` of a CPU bundle. One call at a time runs on its threads; others wait.

    Attributes:
        identity: With the instructions whose roundings differ; see `native_identity`.
    """

    device = "cpu"
    writer: WriterKind = "steps"

    def __init__(self, folder: Path, config: NarratorConfig, threads: int | None = None) -> None:
        """Pack the weights of a bundle folder.

        Args:
            folder: Holds ``weights.safetensors``.
            config: The narrator's sizes.
            threads: None takes all cores that this process may use.

        Raises:
            InputError: the native engine cannot run here.
            BundleError: the weights are missing, damaged, or not of this narrator.
        """
        library = open_library()
        self._files = MappedFiles(folder / WEIGHTS)
        self._build(library, map_weights(folder / WEIGHTS, "narrator."), config, threads, folder / WEIGHTS)

    @classmethod
    def from_tensors(cls, arrays: Arrays, config: NarratorConfig, threads: int | None = None) -> NativeRuntime:
        """The same from arrays as a bundle holds them, named without ``narrator.``; see `bundle.weights`."""
        self = cls.__new__(cls)
        self._files = MappedFiles()
        self._build(open_library(), arrays, config, threads, "weights")
        return self

    def _build(
        self, library: ctypes.CDLL, arrays: Arrays, config: NarratorConfig, threads: int | None, where: object
    ) -> None:
        self.config, self._library = config, library
        self.identity = native_identity(library.lv_isa().decode(), arrays)
        text, vision = config.text, config.vision
        count = thread_count(threads)
        self._call = Calls(library)
        try:
            table, kept = tensor_table(arrays)
            self._threads = Handle(library, "lv_threads_new", "lv_threads_free", count)
            head = table, len(table)
            self._encoder = Handle(
                library, "lv_tsf_new", "lv_tsf_free", *head, b"visual.", *vision_sizes(vision), self._threads.pointer
            )
            sizes = vision.dim, text.n_embd, config.pool_heads, config.queries
            self._pool = Handle(library, "lv_pool_new", "lv_pool_free", *head, *sizes, self._threads.pointer)
            deep = text.n_embd, text.n_layer, text.n_head, text.vocab, text.n_positions, text.freq, config.queries
            self._decoder = Handle(library, "lv_decoder_new", "lv_decoder_free", *head, *deep, self._threads.pointer)
        except ValueError as error:
            raise BundleError(f"{where}: {error}; this is not the narrator that bundle.json describes") from error
        # The words' vectors are read where they lie.
        self._words = [array for name, array in kept if name.endswith(b"wte.weight")]

    def visual_tokens(self, video: F32) -> F32:
        """What the decoder sees of one clip: normalised float32 video (3, T, H, W) → (Q, E)."""
        vision = self.config.vision
        if video.ndim != 4 or video.shape[::2] != (3, vision.img) or video.shape[3] != vision.img:
            raise InputError(f"video has shape {video.shape}; expected (3, T, {vision.img}, {vision.img})")
        frames = video.shape[1]
        if not 1 <= frames <= vision.frames:
            raise InputError(f"video has {frames} frames; this model takes 1 to {vision.frames}")
        require_finite(video)
        self._files.check()
        tokens = np.empty((1 + frames * vision.patches, vision.dim), np.float32)
        visual = np.empty((self.config.queries, self.config.text.n_embd), np.float32)
        self._call("lv_tsf_run", self._encoder.pointer, np.ascontiguousarray(video, np.float32), frames, tokens, 0)
        self._call("lv_pool_run", self._pool.pointer, tokens, len(tokens), visual)
        return visual

    def look(self, visual_BQE: F32) -> NativeContext:
        """Clips from their visual tokens."""
        wanted = self.config.queries, self.config.text.n_embd
        if visual_BQE.ndim != 3 or visual_BQE.shape[1:] != wanted:
            raise InputError(f"visual tokens have shape {visual_BQE.shape}; expected (B, {wanted[0]}, {wanted[1]})")
        return NativeContext(tuple(self._clip(np.ascontiguousarray(one, np.float32)) for one in visual_BQE))

    def _clip(self, visual_QE: F32) -> Handle:
        return self._call.make("lv_decoder_clip", "lv_clip_free", self._decoder.pointer, visual_QE)

    def encode(self, video: F32) -> NativeContext:
        """See `NarratorRuntime.encode`. One clip at a time, so that a result cannot depend on its neighbours.

        Raises:
            InputError: the video has another size than the model, or more frames.
        """
        side, most = self.config.vision.img, self.config.vision.frames
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[3:] != (side, side):
            raise InputError(f"video has shape {video.shape}; expected (B, 3, T, {side}, {side})")
        if not 1 <= video.shape[2] <= most:
            raise InputError(f"video has {video.shape[2]} frames; this model takes 1 to {most}")
        return NativeContext(tuple(self._clip(self.visual_tokens(one)) for one in video))

    def merge(self, contexts: Sequence[NativeContext]) -> NativeContext:
        """See `NarratorRuntime.merge`."""
        return NativeContext(tuple(clip for context in contexts for clip in context.clips))

    def begin(self) -> NativeState:
        """See `NarratorRuntime.begin`."""
        return NativeState(self)

    def join(self, state: NativeState, context: ClipContext, samples: int) -> None:
        """See `NarratorRuntime.join`."""
        if not isinstance(context, NativeContext):
            raise InputError("join: these clips were encoded by another kind of engine")
        clips = (c_void_p * len(context))(*(clip.pointer for clip in context.clips))
        self._call("lv_rows_join", state.pointer, clips, len(clips), samples)

    def step(self, state: NativeState, tokens: I64) -> None:
        """See `NarratorRuntime.step`."""
        self._call("lv_rows_step", state.pointer, np.ascontiguousarray(tokens, np.int64), len(tokens))

    def select(self, state: NativeState, rows: I64) -> None:
        """See `NarratorRuntime.select`."""
        self._call("lv_rows_select", state.pointer, np.ascontiguousarray(rows, np.int64), len(rows))

    def logits(self, state: NativeState) -> F32:
        """Logits of every next token of every row, (N, V)."""
        return self._lines("lv_rows_logits", state)

    def logprobs(self, state: NativeState) -> F32:
        """See `NarratorRuntime.logprobs`."""
        return self._lines("lv_rows_logprobs", state)

    def _lines(self, name: str, state: NativeState) -> F32:
        out = np.empty((state.rows, self.config.text.vocab), np.float32)
        self._call(name, state.pointer, out)
        return out

    def sample(self, state: NativeState, warp: Warp, u: F64) -> Chosen:
        """See `NarratorRuntime.sample`."""
        rows = state.rows
        if len(u) != rows:
            raise InputError(f"sample: {len(u)} numbers for {rows} rows")
        chosen = Chosen(np.empty(rows, np.int64), np.empty(rows, np.float32), np.empty(rows, np.float32))
        shape = warp.temperature, warp.top_k or 0, warp.top_p
        draws = np.ascontiguousarray(u, np.float64)
        self._call("lv_rows_sample", state.pointer, *shape, draws, chosen.tokens, chosen.logprob, chosen.entropy)
        return chosen


def native_identity(instructions: str, arrays: Arrays) -> str:
    """The engine and the instructions that its numbers depend on.

    Sums in float32 depend on the width of a vector. Sums in INT8 are exact, in whatever instructions; but with AMX and
    INT8 weights the encoder's attention is multiplied in bfloat16.

    Args:
        instructions: ``amx``, ``vnni``, ``avx512`` or ``avx2``.
        arrays: The model's weights.
    """
    low = any(array.dtype == np.int8 for array in arrays.values())
    if instructions == "amx" and low:
        return "native amx"
    return "native avx2" if instructions == "avx2" else "native avx512"


def native_choose(logits: F32, source: I64, warp: Warp, u: F64, threads: int = 1) -> Chosen:
    """`sampling.choose_tokens` by the native library; its threads live for this call only."""
    if len(source) and not 0 <= source.min() <= source.max() < len(logits):
        raise InputError("choose: a row reads a line that is not there")
    library = open_library()
    rows, pool = len(source), Handle(library, "lv_threads_new", "lv_threads_free", threads)
    chosen = Chosen(np.empty(rows, np.int64), np.empty(rows, np.float32), np.empty(rows, np.float32))
    failed = library.lv_choose(
        pool.pointer,
        np.ascontiguousarray(logits, np.float32),
        logits.shape[1],
        np.ascontiguousarray(source, np.int64),
        rows,
        warp.temperature,
        warp.top_k or 0,
        warp.top_p,
        np.ascontiguousarray(u, np.float64),
        chosen.tokens,
        chosen.logprob,
        chosen.entropy,
    )
    if failed:
        raise InputError(last_error(library))
    return chosen


def vision_sizes(vision: VisionConfig) -> tuple[int, ...]:
    """A video encoder's sizes as `lv_tsf_new` takes them."""
    sizes = vision.img, vision.patch, vision.dim, vision.depth, vision.heads, vision.frames
    return (*sizes, int(vision.ln_pre), _ACTS[vision.act], int(vision.gated_time))
