"""What a run may ask of its model beside learning: noise, and to keep fewer activations; `regularise.py` does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from lavila_fast.errors import InputError

CHECKPOINTING: Mapping[str, str] = MappingProxyType(
    {
        "none": "every activation is kept for backward",
        "selective": "MLPs and their norms are computed again, what attention gave is kept",
        "blocks": "whole blocks of the towers are computed again, only what goes in is kept",
    }
)
"""How activations are kept. A TimeSformer of 6 blocks, 384 wide, 4 × 49 patches, 2 clips, on a CPU core: forward and
backward need 113 MiB at most with ``none``, 77 with ``selective``, 29 with ``blocks``. Forgetting every second block
needs 74 MiB, but 5% more time than ``selective``, and ``blocks`` 10% more."""


@dataclass(frozen=True)
class Regularisation:
    """What is changed in a model for training.

    Attributes:
        drop_path: Stochastic depth of the video tower: how often the last block's space attention, and its MLP, are
            left out for a clip; evenly less in blocks before it, never in the first. Attention over time stays.
        dropout: Share of numbers left out in a language model, GPT-2 or DistilBERT: of embedded tokens, of attention's
            probabilities and of what each branch adds (DistilBERT: its MLPs). The original trains with 0.1.
        head_dropout: Share of features left out before a classifier's heads, for each head another.
        patch_dropout: Share of places left out in all frames of a clip.
        checkpointing: A row of `CHECKPOINTING`.
    """

    drop_path: float = 0.0
    dropout: float = 0.0
    head_dropout: float = 0.0
    patch_dropout: float = 0.0
    checkpointing: str = "none"

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: a rate that leaves nothing, or an unknown way of checkpointing.
        """
        for name in ("drop_path", "dropout", "head_dropout", "patch_dropout"):
            rate = getattr(self, name)
            if not 0 <= rate < 1:
                raise InputError(f"{name} must be from 0 to below 1, not {rate:g}")
        if self.checkpointing not in CHECKPOINTING:
            raise InputError(
                f"checkpointing {self.checkpointing}: unknown; take one of {', '.join(sorted(CHECKPOINTING))}"
            )
