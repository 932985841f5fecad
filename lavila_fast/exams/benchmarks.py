"""The benchmarks, a row each: what they examine, how they are opened, and what ``--data`` is to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType

from lavila_fast.errors import InputError
from lavila_fast.exams.annotations import open_charades_ego, open_egtea, open_ek100_cls, open_ek100_mir
from lavila_fast.exams.data_folder import DataFolder
from lavila_fast.exams.ego4d_annotations import open_ego_mcq, open_narration
from lavila_fast.exams.exam import Exam
from lavila_fast.exams.protocols import Protocol

_DUAL = ("dual_encoder",)
_EITHER = ("classifier", "dual_encoder")


@dataclass(frozen=True)
class Benchmark:
    """One row.

    Attributes:
        kinds: Of models that can be examined; of several in a bundle, the first.
        open: Reads the annotations.
        options: What may be changed about its protocols.
        layout: What ``--data`` is to be.
    """

    kinds: tuple[str, ...]
    open: Callable[[DataFolder, Protocol], Exam]
    options: tuple[str, ...]
    layout: str

    def kinds_for(self, protocol: str | None) -> tuple[str, ...]:
        """Of models that serve under a protocol; a classifier is fine-tuned, a dual encoder asked zero-shot."""
        if len(self.kinds) == 1 or protocol is None:
            return self.kinds
        return ("classifier",) if protocol == "fine-tuned" else _DUAL


_EK100 = "epic-kitchens-100-annotations/ and video_ht256px/P01/…"
_PAIRS = ("frames", "normalised")
_WINDOWS = ("frames", "stride", "clips", "crops", "template")
_WRITING = ("every", "samples", "temperature", "top_p", "max_tokens", "seed")
BENCHMARKS: Mapping[str, Benchmark] = MappingProxyType(
    {
        "ek100_mir": Benchmark(_DUAL, open_ek100_mir, _PAIRS, _EK100),
        "ek100_cls": Benchmark(_EITHER, open_ek100_cls, ("frames", "crops", "template"), _EK100),
        "egtea": Benchmark(_EITHER, open_egtea, _WINDOWS, "action_idx.txt, test_split1.txt and cropped_clips/"),
        "charades_ego": Benchmark(
            _DUAL, open_charades_ego, (*_WINDOWS, "sparse"), "CharadesEgo/ and CharadesEgo_v1_480/"
        ),
        "ego_mcq": Benchmark(_DUAL, open_ego_mcq, _PAIRS, "egomcq.json and video_5min_chunks_288px/"),
        "narration": Benchmark(("narrator",), open_narration, _WRITING, "ego4d_val.pkl and video_5min_chunks_288px/"),
    }
)


def check_changes(name: str, changes: Mapping[str, object]) -> None:
    """Nothing that was asked for is passed over in silence.

    Raises:
        InputError: a benchmark has no use for one of the changes.
    """
    able = find_benchmark(name).options
    for one in changes:
        if one not in able:
            raise InputError(f"{name} has no use for {one}; it has {', '.join(able)}")


def find_benchmark(name: str) -> Benchmark:
    """A benchmark by its name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in BENCHMARKS:
        near = get_close_matches(name, BENCHMARKS, 1) or list(BENCHMARKS)
        raise InputError(f"no benchmark is called {name}; take {' or '.join(near)}")
    return BENCHMARKS[name]
