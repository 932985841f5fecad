"""Sizes of the models: small frozen dataclasses that validate themselves and go to JSON and back.

No torch here: bundles carry these on machines that have none. A model variant is a row of them in `presets/`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from math import isfinite
from typing import Any, Literal

from lavila_fast.errors import InputError

CLIP_MEAN, CLIP_STD = (108.3272985, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)
IMAGENET_MEAN, IMAGENET_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


# The most that a size may be: far above any model, and low enough that nothing made from a product of two overflows.
MOST = {
    **dict.fromkeys(("img", "frames", "max_tokens", "context"), 4096),
    **dict.fromkeys(("depth", "n_layer", "layers", "freq"), 512),
    **dict.fromkeys(("heads", "n_head", "pool_heads", "patch"), 1024),
    **dict.fromkeys(("dim", "n_embd", "width", "embed", "queries"), 32768),
    **dict.fromkeys(("hidden", "n_positions", "max_positions"), 131072),
    **dict.fromkeys(("vocab", "num_classes"), 1 << 20),
}
_WORDS = {
    "act": ("quick_gelu", "gelu"),
    "head": ("plain", "egovlp"),
    "kind": ("narrator", "dual_encoder", "classifier", "clip", "distilbert"),
}


def check_fields(config: Any) -> None:
    """The schema of every config, whoever wrote it: whole numbers within `MOST`, colours, words, switches.

    Raises:
        InputError: naming the first field that has another type or makes no sense.
    """
    for one in fields(config):
        name, value = one.name, getattr(config, one.name)
        if name in MOST and name != "num_classes":
            require_size(name, value, MOST[name])
        elif name in ("mean", "std"):
            object.__setattr__(config, name, _colours(name, value))
        elif name in _WORDS and (not isinstance(value, str) or value not in _WORDS[name]):
            raise InputError(f"{name} {value!r} is none of {', '.join(_WORDS[name])}")
        elif one.type in ("bool", bool) and not isinstance(value, bool):
            raise InputError(f"{name} must be true or false, not {value!r}")


def require_size(name: str, value: object, most: int) -> None:
    """Raise InputError unless a size is a whole number from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise InputError(f"{name} must be a whole number from 1 to {most}, not {_short(value)}")


def _colours(name: str, values: Any) -> tuple[float, float, float]:
    good = isinstance(values, list | tuple) and len(values) == 3
    if not good or not all(isinstance(v, int | float) and not isinstance(v, bool) and isfinite(v) for v in values):
        raise InputError(f"{name} must be three numbers, one a colour, not {_short(values)}")
    if name == "std" and min(values) <= 0:
        raise InputError(f"std must be over 0 for every colour, not {_short(values)}")
    red, green, blue = values
    return red, green, blue


def _short(value: object) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a number of very many digits"
    return text if len(text) <= 60 else f"{text[:60]}…"


def _divides(name: str, whole: int, part: int) -> None:
    if whole % part:
        raise InputError(f"{name}: {whole} is not a positive multiple of {part}")


@dataclass(frozen=True)
class VisionConfig:
    """A TimeSformer with frozen-in-time attention (Bain et al., ICCV 2021), as LaViLa uses it.

    Attributes:
        img: Side of the square input, pixels.
        patch: Side of a patch, pixels.
        dim: Width. `depth` blocks of `heads` heads.
        frames: Length of the temporal embedding: the most frames a clip can have.
        ln_pre: LayerNorm before the blocks and no bias in the patch embedding (CLIP-initialised models).
        act: Activation of the MLPs: ``quick_gelu`` (CLIP) or ``gelu`` (EgoVLP).
        gated_time: Time attention multiplied by tanh of a learned scalar.
        mean: Per-channel RGB mean of the input on the scale 0..255, and `std` likewise.
    """

    img: int = 224
    patch: int = 16
    dim: int = 768
    depth: int = 12
    heads: int = 12
    frames: int = 4
    ln_pre: bool = True
    act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    gated_time: bool = False
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)
        _divides("vision: img / patch", self.img, self.patch)
        _divides("vision: dim / heads", self.dim, self.heads)

    @property
    def patches(self) -> int:
        """Patches a frame."""
        return (self.img // self.patch) ** 2


@dataclass(frozen=True)
class GPT2Config:
    """GPT-2 with a gated cross-attention block before every block i with ``i % freq == 0``.

    Begin and end token are both ``vocab - 1``; the pad token is 0.
    """

    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    vocab: int = 50257
    n_positions: int = 1024
    freq: int = 1

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)
        _divides("gpt2: n_embd / n_head", self.n_embd, self.n_head)

    @property
    def cross_layers(self) -> tuple[int, ...]:
        """Blocks that have a gated cross-attention before them."""
        return tuple(i for i in range(self.n_layer) if i % self.freq == 0)


@dataclass(frozen=True)
class NarratorConfig:
    """TimeSformer → attention pool (`queries` learned queries, `pool_heads` heads of 64) → gated GPT-2."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: GPT2Config = field(default_factory=GPT2Config)
    queries: int = 256
    pool_heads: int = 12
    max_tokens: int = 77
    kind: Literal["narrator"] = "narrator"

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)
        if self.max_tokens < 2:
            raise InputError(f"max_tokens must be at least 2, begin and end, not {self.max_tokens}")


@dataclass(frozen=True)
class ClipTextConfig:
    """CLIP's text transformer: causal, pre-norm, QuickGELU; the feature is taken at the highest token id."""

    width: int = 512
    heads: int = 8
    layers: int = 12
    vocab: int = 49408
    context: int = 77
    kind: Literal["clip"] = "clip"

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)
        _divides("clip text: width / heads", self.width, self.heads)


@dataclass(frozen=True)
class DistilBertConfig:
    """DistilBERT (Sanh et al., 2019); the feature is the first token's."""

    dim: int = 768
    heads: int = 12
    layers: int = 6
    hidden: int = 3072
    vocab: int = 30522
    max_positions: int = 512
    kind: Literal["distilbert"] = "distilbert"

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)
        _divides("distilbert: dim / heads", self.dim, self.heads)


@dataclass(frozen=True)
class DualEncoderConfig:
    """TimeSformer and text tower projected to `embed` dimensions; `head` ``plain`` (matrices) or ``egovlp``.

    EgoVLP's heads have biases and a ReLU before the text one.
    """

    vision: VisionConfig = field(default_factory=VisionConfig)
    text: ClipTextConfig | DistilBertConfig = field(default_factory=ClipTextConfig)
    embed: int = 256
    head: Literal["plain", "egovlp"] = "plain"
    kind: Literal["dual_encoder"] = "dual_encoder"

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)


@dataclass(frozen=True)
class ClassifierConfig:
    """TimeSformer and one linear head (`num_classes` of length 1, key ``fc_cls``) or several (``fc_cls.0`` …)."""

    vision: VisionConfig = field(default_factory=VisionConfig)
    num_classes: tuple[int, ...] = (1000,)
    multi_head: bool = False
    kind: Literal["classifier"] = "classifier"

    def __post_init__(self) -> None:
        """Check sizes."""
        check_fields(self)
        if not isinstance(self.num_classes, list | tuple) or not 1 <= len(self.num_classes) <= 64:
            raise InputError(f"num_classes must be a list of one size a head, not {_short(self.num_classes)}")
        for size in self.num_classes:
            require_size("num_classes", size, MOST["num_classes"])
        object.__setattr__(self, "num_classes", tuple(self.num_classes))
        if len(self.num_classes) != 1 and not self.multi_head:
            raise InputError("classifier: several num_classes need multi_head")


ModelConfig = NarratorConfig | DualEncoderConfig | ClassifierConfig


def to_dict(config: ModelConfig) -> dict[str, Any]:
    """The config as JSON-ready dictionaries; `from_dict` is its inverse."""
    return asdict(config)


def _make(cls: type[Any], values: Any) -> Any:
    if not isinstance(values, dict):
        raise InputError(f"{cls.__name__}: sizes must be names with numbers, not {_short(values)}")
    known = set(cls.__dataclass_fields__)
    unknown = sorted(set(values) - known)
    if unknown:
        raise InputError(f"{cls.__name__}: unknown field {unknown[0]!r}; this file may come from a newer lavila-fast")
    return cls(**values)


def from_dict(values: dict[str, Any]) -> ModelConfig:
    """Rebuild a config from `to_dict`'s output.

    Raises:
        InputError: an unknown kind or field, or sizes that do not fit.
    """
    if not isinstance(values, dict):
        raise InputError(f"a model's sizes must be names with numbers, not {_short(values)}")
    values = dict(values)
    kind = values.get("kind")
    values["vision"] = _make(VisionConfig, values.get("vision", {}))
    if kind == "narrator":
        values["text"] = _make(GPT2Config, values.get("text", {}))
        return _make(NarratorConfig, values)  # type: ignore[no-any-return]
    if kind == "dual_encoder":
        text = values.get("text", {})
        bert = isinstance(text, dict) and text.get("kind") == "distilbert"
        values["text"] = _make(DistilBertConfig if bert else ClipTextConfig, text)
        return _make(DualEncoderConfig, values)  # type: ignore[no-any-return]
    if kind == "classifier":
        return _make(ClassifierConfig, values)  # type: ignore[no-any-return]
    raise InputError(f"unknown kind of model {_short(kind)}: expected narrator, dual_encoder or classifier")
