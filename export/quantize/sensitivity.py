"""Which layers suffer from INT8, and how many must be spared: each quantized alone, and a loss measured.

A loss is a number, 0 for a model that is like the float one, larger for worse. `Reference` measures two of them against
the float model on given clips, with no labels:

* `divergence`: KL divergence in nats of next-word (narrator) or class distributions; for a dual encoder 1 - cosine. It
  is smooth, so it ranks layers even where no word changes.
* `points`: percent of words or classes whose first choice changes; for a dual encoder 100 · (1 - cosine).

Any function of a model serves as well, such as points of sentence accuracy lost.

    reference = Reference(narrator, video)
    found = sensitivity(narrator, Scheme("int8"), reference.divergence)
    scheme = mixed(narrator, Scheme("mixed"), reference.points, max_drop=0.5, found=found)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.errors import InputError
from lavila_fast.export.quantize.calibrate import batches, drawn_ids, random_texts
from lavila_fast.files import write_json, write_text
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.quant.scheme import Scheme, layers, quantize

Evaluate = Callable[[nn.Module], float]
Group = Callable[[str], str]


@dataclass(frozen=True)
class LayerLoss:
    """The loss when these layers, and no others, are quantized; `name` is theirs, or their group's."""

    name: str
    layers: tuple[str, ...]
    loss: float


def by_layer(name: str) -> str:
    """Every layer for itself."""
    return name


def by_block(name: str) -> str:
    """All layers of a block together: ``visual.blocks.3``. For large models, where measuring each takes hours."""
    found = re.match(r".*?\.\d+(?=\.)", name)
    return found.group() if found else name


class Reference:
    """The float model's outputs on some clips, to compare others with.

    Args:
        model: The float NarratorModel, DualEncoder or Classifier.
        video: Normalised clips (N, 3, T, H, W).
        texts: Ids (N, L) that are read, for narrator and dual encoder; else the narrator's own words, or random ones.
    """

    def __init__(self, model: nn.Module, video: Tensor, texts: Tensor | None = None) -> None:
        noise = torch.Generator().manual_seed(0)
        self.model, self.video = model, video
        self.seen: list[Tensor] = []
        with torch.inference_mode():
            if isinstance(model, NarratorModel):
                self.seen = [model.visual_tokens(some) for some in batches(video)]
                self.texts = torch.cat([drawn_ids(model, one, noise) for one in self.seen]) if texts is None else texts
            elif isinstance(model, DualEncoder):
                self.texts = random_texts(model, len(video), noise) if texts is None else texts
            self.wanted = self._outputs(model)

    def divergence(self, model: nn.Module) -> float:
        """Mean divergence of a model of the same class; see the module."""
        pairs = list(zip(self._outputs(model), self.wanted, strict=True))
        if isinstance(model, DualEncoder):
            return sum(float(1 - (got * want).sum(-1).mean()) for got, want in pairs) / len(pairs)
        return sum(_kl(want, got) for got, want in pairs) / len(pairs)

    def points(self, model: nn.Module) -> float:
        """Percent of first choices that change; see the module."""
        if isinstance(model, DualEncoder):
            return 100 * self.divergence(model)
        pairs = list(zip(self._outputs(model), self.wanted, strict=True))
        return sum(float((got.argmax(-1) != want.argmax(-1)).float().mean()) for got, want in pairs) * 100 / len(pairs)

    @torch.inference_mode()
    def _outputs(self, model: nn.Module) -> list[Tensor]:
        """Logits, or embeddings of clips and texts."""
        if isinstance(model, NarratorModel):
            texts = batches(self.texts)
            return [model.logits(seen, ids).float() for seen, ids in zip(self._tokens(model), texts, strict=True)]
        if isinstance(model, DualEncoder):
            clips = [model.embed_video(some) for some in batches(self.video)]
            return [torch.cat(clips), model.embed_text(self.texts)]
        parts = [model(some) for some in batches(self.video)]
        heads = zip(*([part] if isinstance(part, Tensor) else part for part in parts), strict=True)
        return [torch.cat(head) for head in heads]

    def _tokens(self, model: NarratorModel) -> list[Tensor]:
        """Visual tokens; those of the float model where nothing before them was changed."""
        assert isinstance(self.model, NarratorModel)
        before = ("visual", "img_attn_pool", "img_attn_pool_norm")
        if all(_same(model.get_submodule(name), self.model.get_submodule(name)) for name in before):
            return self.seen
        return [model.visual_tokens(some) for some in batches(self.video)]


def _same(mine: nn.Module, theirs: nn.Module) -> bool:
    """Whether two modules have the same types of parts and share all tensors."""
    parts = [[type(part) for part in one.modules()] for one in (mine, theirs)]
    return parts[0] == parts[1] and [*map(id, mine.parameters())] == [*map(id, theirs.parameters())]


def _kl(want: Tensor, got: Tensor) -> float:
    """Mean KL divergence of logits (..., V), in nats; infinite where `got` is not finite."""
    if not bool(got.isfinite().all()):
        return math.inf
    p, q = want.double().log_softmax(-1), got.double().log_softmax(-1)
    return float(F.kl_div(q, p, reduction="none", log_target=True).sum(-1).mean())


def sensitivity(
    model: nn.Module,
    scheme: Scheme,
    evaluate: Evaluate,
    group: Group = by_layer,
    progress: Callable[[str], None] | None = None,
) -> list[LayerLoss]:
    """Quantize each layer (or group) alone and measure, worst first.

    Args:
        model: The float model.
        scheme: An int8 scheme; layers it keeps are not tried.
        evaluate: A model's loss, see the module.
        group: Name of a layer → name of its group, e.g. `by_block`.
        progress: Told the name of each group before it is measured.
    """
    every = frozenset(layers(model))
    found = []
    for name, members in groupby(sorted(every - scheme.keep, key=group), key=group):
        if progress is not None:
            progress(name)
        alone = frozenset(members)
        loss = evaluate(quantize(model, replace(scheme, keep=every - alone)))
        found.append(LayerLoss(name, tuple(sorted(alone)), loss))
    return sorted(found, key=lambda one: -one.loss)


def mixed(
    model: nn.Module,
    scheme: Scheme,
    evaluate: Evaluate,
    max_drop: float,
    found: Sequence[LayerLoss] | None = None,
) -> Scheme:
    """Spare the most sensitive layers until the loss of the whole is within a budget.

    Layers are kept in the order of `found`, as few as do; how many is found by bisection, since each try runs the whole
    model.

    Args:
        model: The float model.
        scheme: An int8 scheme.
        evaluate: The loss that has a budget.
        max_drop: The budget, in the unit of `evaluate`; `Reference.points` makes it percentage points.
        found: What `sensitivity` found, with this measure or another; measured here if None.

    Returns:
        The scheme with `keep` set; precision ``mixed``.

    Raises:
        InputError: not even keeping all layers meets the budget.
    """
    if not max_drop >= 0:
        raise InputError(f"max-drop {max_drop:g} is no budget; give 0 or more")
    order = found if found is not None else sensitivity(model, scheme, evaluate)

    def sparing(count: int) -> Scheme:
        spared = {name for one in order[:count] for name in one.layers}
        return replace(scheme, precision="mixed", keep=scheme.keep | spared)

    fails, holds = -1, len(order)
    while holds - fails > 1:
        middle = 0 if fails < 0 else (fails + holds) // 2
        if evaluate(quantize(model, sparing(middle))) <= max_drop:
            holds = middle
        else:
            fails = middle
    if holds == len(order) and evaluate(quantize(model, sparing(holds))) > max_drop:
        raise InputError(f"max-drop {max_drop:g} is not met even with all layers in higher precision; allow more")
    return sparing(holds)


def save_report(found: Sequence[LayerLoss], folder: Path, kind: str, measure: str = "divergence") -> None:
    """Write ``<kind>_sensitivity.json`` and ``.md``, a table, into a folder; `kind` is the model's."""
    rows = [asdict(one) for one in found]
    write_json(folder / f"{kind}_sensitivity.json", {"measure": measure, "layers": rows})
    lines = [
        f"# Sensitivity of the {kind} to INT8",
        "",
        "Each layer quantized alone, all others in float; worst first.",
        "",
    ]
    lines += [f"| layer | {measure} |", "|---|---:|", *(f"| `{one.name}` | {one.loss:.3g} |" for one in found)]
    write_text(folder / f"{kind}_sensitivity.md", "\n".join(lines) + "\n")
