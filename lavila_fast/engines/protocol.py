"""What every engine offers the generator: encode clips once, then advance rows of text one token at a time.

Little crosses between host and engine: uniform numbers in, tokens and two scores out. A *clip* has R *rows*, its
samples or beams; they share the clip's cross-attention keys and values. Rows are numbered 0 … N-1 in an order only
`select` changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Protocol

from lavila_fast.arrays import F32, F64, I64
from lavila_fast.config import ClassifierConfig, DualEncoderConfig, NarratorConfig
from lavila_fast.engines.sampling import Chosen, Warp

WriterKind = Literal["steps", "ahead"]
"""Who writes sentences with an engine: ``steps`` asks it for one step at a time; ``ahead`` queues steps on a
device whose runtime has a decode loop of its own."""


class ClipContext(Protocol):
    """Cross-attention keys and values of some clips, kept where the engine wants them."""

    def __len__(self) -> int:
        """Number of clips."""
        ...


class NarratorRuntime(Protocol):
    """An engine for one narrator. `State` is the engine's own business; only its methods here touch it."""

    config: NarratorConfig

    @property
    def device(self) -> str:
        """Where frames are wanted: ``cpu``, ``cuda:0``."""
        ...

    @property
    def identity(self) -> str:
        """All of the engine that sentences depend on, beside the model: its name, and precision, instruction set or
        shapes where they change numbers. Runs of two identities are not mixed.
        """
        ...

    @property
    def writer(self) -> WriterKind:
        """Who writes sentences with it; beams are always searched in steps."""
        ...

    def encode(self, video: F32) -> ClipContext:
        """Everything the decoder needs of clips: normalised float32 video (B, 3, T, H, W), once a clip."""
        ...

    def merge(self, contexts: Sequence[Any]) -> ClipContext:
        """Several contexts as one, so that their clips can join in one step."""
        ...

    def begin(self) -> Any:
        """A state with no rows."""
        ...

    def join(self, state: Any, context: ClipContext, samples: int) -> None:
        """Append `samples` rows for each clip; the begin token is fed once a clip, not once a row."""
        ...

    def sample(self, state: Any, warp: Warp, u: F64) -> Chosen:
        """Choose the next token of every row with one uniform number in [0, 1) a row; the state does not change."""
        ...

    def logprobs(self, state: Any) -> F32:
        """Log-probabilities of every next token of every row, (N, V)."""
        ...

    def step(self, state: Any, tokens: I64) -> None:
        """Feed one token a row."""
        ...

    def select(self, state: Any, rows: I64) -> None:
        """Make row i what row ``rows[i]`` was; rows not named leave, and a clip without rows frees its place.

        A row may be named several times (beams) as long as it stays within its clip.
        """
        ...


class DualEncoderRuntime(Protocol):
    """An engine for one dual encoder. A clip's or a text's result never depends on what else is asked for with it."""

    config: DualEncoderConfig

    @property
    def device(self) -> str:
        """Where frames are wanted, as of `NarratorRuntime`."""
        ...

    @property
    def identity(self) -> str:
        """All of the engine that embeddings depend on, as of `NarratorRuntime`."""
        ...

    def video(self, video: F32) -> F32:
        """Embed normalised float32 video (B, 3, T, H, W) as (B, E), of unit length."""
        ...

    def text(self, ids: I64, mask: I64 | None = None) -> F32:
        """Embed token ids (B, L) as (B, E), of unit length.

        Args:
            ids: CLIP ids, end token highest, or WordPiece ids that start with [CLS].
            mask: (B, L), 1 for tokens and 0 for padding behind them (None: all are tokens); DistilBERT only.

        Raises:
            InputError: ids of another rank, too long, or beyond the vocabulary.
        """
        ...


class ClassifierRuntime(Protocol):
    """An engine for one classifier."""

    config: ClassifierConfig

    @property
    def device(self) -> str:
        """Where frames are wanted, as of `NarratorRuntime`."""
        ...

    @property
    def identity(self) -> str:
        """All of the engine that logits depend on, as of `NarratorRuntime`."""
        ...

    def logits(self, video: F32) -> list[F32]:
        """Logits (B, classes) of each head, from normalised float32 video (B, 3, T, H, W)."""
        ...
