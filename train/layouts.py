"""Names of tensors in the weight files of others: which of them is which tensor of ours.

A layout is a row of rules that turn our names into those of the file, so that nothing is known twice: sizes are the
model's, depth is the model's. What no rule names begins fresh. The video tower takes CLIP's image tower as the original
does (`remap_keys` there): its attention becomes space attention, with the norm before it; time attention and the norm
before that are new.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple


class Origin(NamedTuple):
    """Where in a file a tensor of ours comes from.

    Attributes:
        names: One tensor, or several one above the other.
        turned: Whether the file has it as (outputs, inputs) and we as (inputs, outputs).
    """

    names: tuple[str, ...]
    turned: bool = False


class Rule(NamedTuple):
    """Our names, as a pattern for the whole name → the file's, as templates; see `Origin`."""

    ours: str
    theirs: tuple[str, ...]
    turned: bool = False


@dataclass(frozen=True)
class Layout:
    """How a kind of file names things.

    Attributes:
        what: Whose files are like that, for those who gave another.
        mark: A name that they have and others have not.
        rules: First that fits counts.
        prefix: Beginning that all names may have, and may lack.
        spare: Pattern of names, among those of parts that we take, that we have no use for.
        strict: Nothing may be left over, in other parts either.
    """

    what: str
    mark: str
    rules: tuple[Rule, ...]
    prefix: str = ""
    spare: str = ""
    strict: bool = False

    def origin(self, name: str) -> Origin | None:
        """Where our tensor `name` comes from; None if it begins fresh."""
        for rule in self.rules:
            if found := re.fullmatch(rule.ours, name):
                return Origin(tuple(map(found.expand, rule.theirs)), rule.turned)
        return None

    def origins(self, names: Iterable[str]) -> dict[str, Origin]:
        """The same for all of `names` that come from the file."""
        found = ((name, self.origin(name)) for name in names)
        return {name: origin for name, origin in found if origin}

    def left(self, names: Iterable[str], used: Collection[str]) -> list[str]:
        """Of a file's names those that are not used, though they belong to parts that are."""
        parts, used = {name.partition(".")[0] for name in used}, set(used)
        return [
            name
            for name in names
            if name not in used
            and (self.strict or name.partition(".")[0] in parts)
            and not re.fullmatch(self.spare, name)
        ]


_HUB_IMAGE, _HUB_TEXT = r"vision_model.encoder.layers.\1", r"text_model.encoder.layers.\1"
_OURS, _OPENAI = r"visual\.blocks\.(\d+)", r"visual.transformer.resblocks.\1"
_OUR_TEXT = r"transformer\.resblocks\.(\d+)"
_QKV = ("q", "k", "v")

CLIP_HUB = Layout(
    "a CLIP of the transformers library",
    "vision_model.pre_layrnorm.weight",  # sic
    (
        Rule(r"visual\.cls_token", ("vision_model.embeddings.class_embedding",)),
        Rule(r"visual\.pos_embed", ("vision_model.embeddings.position_embedding.weight",)),
        Rule(r"visual\.patch_embed\.proj\.weight", ("vision_model.embeddings.patch_embedding.weight",)),
        Rule(r"visual\.ln_pre\.(\w+)", (r"vision_model.pre_layrnorm.\1",)),
        Rule(r"visual\.norm\.(\w+)", (r"vision_model.post_layernorm.\1",)),
        Rule(_OURS + r"\.norm([12])\.(\w+)", (_HUB_IMAGE + r".layer_norm\2.\3",)),
        Rule(_OURS + r"\.attn\.qkv\.(\w+)", tuple(rf"{_HUB_IMAGE}.self_attn.{one}_proj.\2" for one in _QKV)),
        Rule(_OURS + r"\.attn\.proj\.(\w+)", (_HUB_IMAGE + r".self_attn.out_proj.\2",)),
        Rule(_OURS + r"\.mlp\.(fc[12])\.(\w+)", (_HUB_IMAGE + r".mlp.\2.\3",)),
        Rule(r"token_embedding\.weight", ("text_model.embeddings.token_embedding.weight",)),
        Rule(r"positional_embedding", ("text_model.embeddings.position_embedding.weight",)),
        Rule(r"ln_final\.(\w+)", (r"text_model.final_layer_norm.\1",)),
        Rule(_OUR_TEXT + r"\.ln_([12])\.(\w+)", (_HUB_TEXT + r".layer_norm\2.\3",)),
        Rule(_OUR_TEXT + r"\.attn\.in_proj_(\w+)", tuple(rf"{_HUB_TEXT}.self_attn.{one}_proj.\2" for one in _QKV)),
        Rule(_OUR_TEXT + r"\.attn\.out_proj\.(\w+)", (_HUB_TEXT + r".self_attn.out_proj.\2",)),
        Rule(_OUR_TEXT + r"\.mlp\.c_fc\.(\w+)", (_HUB_TEXT + r".mlp.fc1.\2",)),
        Rule(_OUR_TEXT + r"\.mlp\.c_proj\.(\w+)", (_HUB_TEXT + r".mlp.fc2.\2",)),
        Rule(r"image_projection", ("visual_projection.weight",), turned=True),
        Rule(r"text_projection", ("text_projection.weight",), turned=True),
        Rule(r"logit_scale", ("logit_scale",)),
    ),
    spare=r"(vision|text)_model\.embeddings\.position_ids",
)
CLIP_OPENAI = Layout(
    "a CLIP of OpenAI's own names",
    "visual.conv1.weight",
    (
        Rule(r"visual\.cls_token", ("visual.class_embedding",)),
        Rule(r"visual\.pos_embed", ("visual.positional_embedding",)),
        Rule(r"visual\.patch_embed\.proj\.weight", ("visual.conv1.weight",)),
        Rule(r"visual\.ln_pre\.(\w+)", (r"visual.ln_pre.\1",)),
        Rule(r"visual\.norm\.(\w+)", (r"visual.ln_post.\1",)),
        Rule(_OURS + r"\.norm([12])\.(\w+)", (_OPENAI + r".ln_\2.\3",)),
        Rule(_OURS + r"\.attn\.qkv\.(\w+)", (_OPENAI + r".attn.in_proj_\2",)),
        Rule(_OURS + r"\.attn\.proj\.(\w+)", (_OPENAI + r".attn.out_proj.\2",)),
        Rule(_OURS + r"\.mlp\.fc1\.(\w+)", (_OPENAI + r".mlp.c_fc.\2",)),
        Rule(_OURS + r"\.mlp\.fc2\.(\w+)", (_OPENAI + r".mlp.c_proj.\2",)),
        Rule(r"image_projection", ("visual.proj",)),
        Rule(r"(token_embedding\.weight|ln_final\.\w+|transformer\..+)", (r"\1",)),
        Rule(r"(positional_embedding|text_projection|logit_scale)", (r"\1",)),
    ),
    spare=r"visual\.proj",
)
GPT2 = Layout(
    "a GPT-2 of the transformers library",
    "h.0.attn.c_attn.weight",
    # Not what was added: crossattention, ln_cross_attn, mlp_crossattention, ln_2_crossattention, alpha_*.
    (Rule(r"text_decoder\.transformer\.((?:wte|wpe|ln_f|h\.\d+\.(?:ln_1|attn|ln_2|mlp))\..+)", (r"\1",)),),
    prefix="transformer.",
    spare=r"h\.\d+\.attn\.(bias|masked_bias)",
)
DISTILBERT = Layout(
    "a DistilBERT of the transformers library",
    "transformer.layer.0.attention.q_lin.weight",
    (Rule(r"textual\.(.+)", (r"\1",)),),
    prefix="distilbert.",
    spare=r"embeddings\.position_ids",
)
LAVILA = Layout("a LaViLa model", "visual.temporal_embed", (Rule(r"(.+)", (r"\1",)),), strict=True)
LAVILA_VIDEO = Layout("a LaViLa model", "visual.temporal_embed", (Rule(r"(visual\..+)", (r"\1",)),))
