"""How far an engine may stray from the reference, and what was found, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lavila_fast.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What passes.

    Attributes:
        relative: Most of each graph's ``|engine - reference| / |reference|`` (Euclidean norms over all clips).
        kl: Most nats a token between the next-word distributions, on average.
        top1: Least share of next words (and classes) that are the same.
        cosine: Least cosine between an embedding and the reference's, of the worst clip or sentence.
        points: Most points of sentence accuracy or of retrieval (mAP, nDCG) lost on the kitchen.
    """

    relative: float
    kl: float
    top1: float
    cosine: float
    points: float


LIMITS: dict[str, Limits] = {
    "fp32": Limits(relative=1e-4, kl=1e-6, top1=0.999, cosine=0.99999, points=0.1),
    "fp16": Limits(relative=5e-3, kl=1e-3, top1=0.995, cosine=0.9999, points=0.1),
    "bf16": Limits(relative=3e-2, kl=1e-2, top1=0.98, cosine=0.999, points=0.2),
    "int8": Limits(relative=1e-1, kl=2e-2, top1=0.97, cosine=0.995, points=0.5),
}
LIMITS["mixed"] = LIMITS["int8"]
_COARSEST = ("int8", "mixed", "bf16", "fp16", "fp32")


def precision_of(stated: Mapping[str, str], graphs: tuple[str, ...]) -> str:
    """The coarsest precision among some graphs, as `Bundle.precision` states them (``fp32, weights stored in fp16``).

    Raises:
        InputError: they state none that is known.
    """
    words = " ".join(str(stated[graph]) for graph in graphs if graph in stated) or " ".join(map(str, stated.values()))
    for name in _COARSEST:
        if name in words:
            return name
    raise InputError(f"precision {words!r} is none of {', '.join(LIMITS)}; name the limits with --limits")


@dataclass(frozen=True)
class Check:
    """One line of the verdict: `found` must be at most (or, with `least`, at least) `limit`."""

    what: str
    found: float
    limit: float
    least: bool = False
    unit: str = ""

    @property
    def ok(self) -> bool:
        """Whether it holds; what is not a number does not."""
        return self.found >= self.limit if self.least else self.found <= self.limit

    def __str__(self) -> str:
        """E.g. ``encoder, relative error: 0.02 (limit 0.0001)``."""
        return f"{self.what}: {self.found:.4g}{self.unit} (limit {self.limit:g}{self.unit})"


@dataclass
class Section:
    """What was found about one model in one engine.

    Attributes:
        kind: ``narrator``, ``dual_encoder`` or ``classifier``.
        engine: What ran it.
        precision: The limits' name.
        graphs: `parity_measure.Errors.figures` of each graph.
        figures: Agreement, by name.
        quality: Task quality by name: reference, engine, points lost with their interval, counts.
        layers: Relative error of the decoder's cached keys and values, block by block.
        kl_by_position: Mean and 90th percentile of the KL at each place in a sentence.
        examples: Clips where the engine says something else, the least sure first.
        checks: The verdict's lines.
    """

    kind: str
    engine: str
    precision: str
    graphs: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    quality: dict[str, dict[str, float]] = field(default_factory=dict)
    layers: list[float] = field(default_factory=list)
    kl_by_position: dict[str, list[float]] = field(default_factory=dict)
    examples: list[dict[str, Any]] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.kind.replace('_', ' ')} in {self.engine}, {self.precision}"


POINTS = {"sentence": "sentence accuracy", "text_to_video_map": "text to video, mAP"}
POINTS |= {"video_to_text_map": "video to text, mAP", "text_to_video_ndcg": "text to video, nDCG"}
POINTS |= {"video_to_text_ndcg": "video to text, nDCG"}
"""Task figures that have a limit."""


def checks_of(section: Section, limits: Limits) -> Iterator[Check]:
    """Every limit that applies to what was measured."""
    for name, error in section.graphs.items():
        yield Check(f"{name}, relative error", error["relative"], limits.relative)
    for name, value in section.figures.items():
        if name == "kl":
            yield Check("next word, KL divergence", value, limits.kl, unit=" nats")
        elif name.endswith("top1_agreement"):
            what = "next word" if section.kind == "narrator" else "class"
            yield Check(f"{what}, top-1 agreement", value, limits.top1, least=True)
        elif name.endswith("cosine_min"):
            yield Check(f"{name.split('_')[0]} embeddings, least cosine", value, limits.cosine, least=True)
    for name, what in POINTS.items():
        if name in section.quality:
            yield Check(f"{what}, points lost", section.quality[name]["lost_points"], limits.points)
