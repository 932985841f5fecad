"""What a model may begin training with, as rows; `begin.py` reads the files. Recipes can be listed without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from lavila_fast.errors import InputError
from lavila_fast.train.layouts import CLIP_HUB, CLIP_OPENAI, DISTILBERT, GPT2, LAVILA, LAVILA_VIDEO, Layout

if TYPE_CHECKING:
    from lavila_fast.train.fresh import Model

# Kind of start → how its files may be laid out, for a model.
STARTS: Mapping[str, Callable[[Model], tuple[Layout, ...]]] = MappingProxyType(
    {
        "clip": lambda model: (CLIP_HUB, CLIP_OPENAI),
        "distilbert": lambda model: (DISTILBERT,),
        "gpt2": lambda model: (GPT2,),
        "dual_encoder": lambda model: (LAVILA if model.config.kind == "dual_encoder" else LAVILA_VIDEO,),
        "video": lambda model: (LAVILA_VIDEO,),
        "whole": lambda model: (LAVILA,),
        "run": lambda model: (LAVILA,),
    }
)


@dataclass(frozen=True)
class Start:
    """What a part of a model, or all of it, begins with.

    Attributes:
        kind: A row of `STARTS`. ``clip``: the video tower, and the text tower of a dual encoder that has CLIP's.
            ``distilbert``: the text tower. ``gpt2``: the text decoder. ``dual_encoder``: the video tower of one of
            LaViLa's; for a dual encoder, all. ``video``: the video tower of any of them. ``whole``: all, from a model
            of the same kind. ``run``: the same from a run's folder, with what its loss had learnt of its own.
        source: A name in `presets.PRETRAINED` or `presets.CHECKPOINTS`, a weight file, or a folder that has one.
    """

    kind: str
    source: str

    def __post_init__(self) -> None:
        """Check the kind."""
        if self.kind not in STARTS:
            raise InputError(f"start {self.kind}: unknown; take one of {', '.join(STARTS)}")
