"""The benchmarks, a row each: what they examine, how they are opened, and what ``--data`` is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from lavila_fast.errors import InputError
from lavila_fast.evaluate.annotations import (
    DataFolder,
    open_charades_ego,
    open_ego_mcq,
    open_egtea,
    open_ek100_cls,
    open_ek100_mir,
    open_narration,
)
from lavila_fast.evaluate.exams import Exam
from lavila_fast.evaluate.protocols import Protocol

_DUAL = ("dual_encoder",)
_EITHER = ("classifier", "dual_encoder")


@dataclass(frozen=True)
class Benchmark:
    """One row.

    Attributes:
        kinds: Of models that can be examined; of several in a bundle, the first.
        open: Reads the annotations.
        layout: What ``--data`` is to be.
    """

    kinds: tuple[str, ...]
    open: Callable[[DataFolder, Protocol], Exam]
    layout: str

    def kinds_for(self, protocol: str | None) -> tuple[str, ...]:
        """Of models that serve under a protocol; a classifier is fine-tuned, a dual encoder asked zero-shot."""
        if len(self.kinds) == 1 or protocol is None:
            return self.kinds
        return ("classifier",) if protocol == "fine-tuned" else _DUAL


BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "ek100_mir": Benchmark(_DUAL, open_ek100_mir, "epic-kitchens-100-annotations/ and video_ht256px/P01/…"),
        "ek100_cls": Benchmark(_EITHER, open_ek100_cls, "epic-kitchens-100-annotations/ and video_ht256px/P01/…"),
        "egtea": Benchmark(_EITHER, open_egtea, "action_idx.txt, test_split1.txt and cropped_clips/"),
        "charades_ego": Benchmark(_DUAL, open_charades_ego, "CharadesEgo/ and CharadesEgo_v1_480/"),
        "ego_mcq": Benchmark(_DUAL, open_ego_mcq, "egomcq.json and video_5min_chunks_288px/"),
        "narration": Benchmark(("narrator",), open_narration, "ego4d_val.pkl and video_5min_chunks_288px/"),
    }
)


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in BENCHMARKS:
        near = get_close_matches(name, BENCHMARKS, 1) or list(BENCHMARKS)
        raise InputError(f"no benchmark is called {name}; take {' or '.join(near)}")
    return BENCHMARKS[name]
