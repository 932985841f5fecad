"""Each variant's row against the shapes in the released checkpoints, worked out here from the shapes alone."""

from __future__ import annotations

import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from lavila_fast.config import (
    CLIP_MEAN,
    IMAGENET_MEAN,
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    NarratorConfig,
    from_dict,
    to_dict,
)
from lavila_fast.errors import InputError
from lavila_fast.presets import (
    CHECKPOINTS,
    PRETRAINED,
    VARIANTS,
    config_for,
    files_of_tokenizer,
    tokenizer_kind,
    vocabulary_files,
)

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
SHAPES: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress((GOLDEN / "checkpoint_keys.json.gz").read_bytes()))


def numbers(shapes: dict[str, Any], pattern: str) -> list[int]:
    return sorted({int(match[1]) for key in shapes if (match := re.match(pattern, key))})


def test_every_recorded_variant_has_a_row() -> None:
    assert len(SHAPES) == 12
    assert set(SHAPES) <= set(VARIANTS)


@pytest.mark.parametrize("name", SHAPES)
def test_vision(name: str) -> None:
    shapes, vision = SHAPES[name], VARIANTS[name].vision
    dim, _, patch, _ = shapes["visual.patch_embed.proj.weight"]
    side = round((shapes["visual.pos_embed"][1] - 1) ** 0.5) * patch
    frames = shapes["visual.temporal_embed"][1]
    assert (vision.dim, vision.patch, vision.img, vision.frames) == (dim, patch, side, frames)
    assert vision.depth == len(numbers(shapes, r"visual\.blocks\.(\d+)\."))
    assert vision.heads * 64 == dim
    assert vision.ln_pre == ("visual.ln_pre.weight" in shapes)
    assert vision.ln_pre != ("visual.patch_embed.proj.bias" in shapes)
    assert vision.gated_time == any("alpha_timeattn" in key for key in shapes)
    clip = name.split("_")[1] == "OPENAI"
    assert (vision.act, vision.mean) == (("quick_gelu", CLIP_MEAN) if clip else ("gelu", IMAGENET_MEAN))


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("VCLM")])
def test_narrator(name: str) -> None:
    shapes, config = SHAPES[name], VARIANTS[name]
    assert isinstance(config, NarratorConfig)
    text = config.text
    assert [text.vocab, text.n_embd] == shapes["text_decoder.transformer.wte.weight"]
    assert text.n_positions == shapes["text_decoder.transformer.wpe.weight"][0]
    assert text.n_layer == len(numbers(shapes, r"text_decoder\.transformer\.h\.(\d+)\."))
    assert list(text.cross_layers) == numbers(shapes, r"text_decoder\.transformer\.h\.(\d+)\.crossattention\.c_attn")
    assert text.n_head == {768: 12, 1600: 25}[text.n_embd]
    assert [config.queries, text.n_embd] == shapes["img_queries"]
    assert config.pool_heads * 64 == shapes["img_attn_pool.to_q.weight"][0]


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("CLIP")])
def test_dual_encoder(name: str) -> None:
    shapes, config = SHAPES[name], VARIANTS[name]
    assert isinstance(config, DualEncoderConfig)
    assert config.head == ("egovlp" if "image_projection.0.weight" in shapes else "plain")
    plain = config.head == "plain"
    assert config.embed == (shapes["image_projection"][1] if plain else shapes["image_projection.0.weight"][0])
    if "token_embedding.weight" in shapes:
        assert isinstance(config.text, ClipTextConfig)
        assert [config.text.vocab, config.text.width] == shapes["token_embedding.weight"]
        assert [config.text.context, config.text.width] == shapes["positional_embedding"]
        assert config.text.layers == len(numbers(shapes, r"transformer\.resblocks\.(\d+)\."))
        assert config.text.heads * 64 == config.text.width
    else:
        assert isinstance(config.text, DistilBertConfig)
        assert [config.text.vocab, config.text.dim] == shapes["textual.embeddings.word_embeddings.weight"]
        assert config.text.max_positions == shapes["textual.embeddings.position_embeddings.weight"][0]
        assert config.text.layers == len(numbers(shapes, r"textual\.transformer\.layer\.(\d+)\."))
        assert config.text.hidden == shapes["textual.transformer.layer.0.ffn.lin1.weight"][0]
        assert config.text.heads * 64 == config.text.dim


RELEASED = [row for row in CHECKPOINTS.values() if row.url]


def test_all_released_checkpoints_are_here_once() -> None:
    assert len(RELEASED) == 20
    assert len({row.url for row in RELEASED}) == len({row.relative for row in RELEASED}) == 20


@pytest.mark.parametrize("row", RELEASED, ids=lambda row: row.name)
def test_checkpoint_row_agrees_with_its_file_name(row: Any) -> None:
    file = row.relative.removeprefix("checkpoints/")
    assert row.url.startswith("https://dl.fbaipublicfiles.com/lavila/checkpoints/")
    assert row.url.endswith("/" + file)
    in_name = re.search(r"md5sum_([0-9a-f]{6})\.pth$", file)
    if in_name:
        assert row.md5_prefix == in_name[1]
    assert re.fullmatch("[0-9a-f]{6}|", row.md5_prefix)
    stem = row.variant.lower().removeprefix("clip_hf_").removesuffix("_distilbert_base")
    assert file.startswith(stem)
    assert isinstance(row.config, ClassifierConfig) == ("ek100_cls" in row.url or "egtea" in row.url)


def test_only_the_third_person_narrator_has_no_checksum() -> None:
    assert [row.name for row in RELEASED if not row.md5_prefix] == ["narrator-third-person"]


def test_classifiers() -> None:
    three, one = CHECKPOINTS["ek100-verb-noun-action-large"].config, CHECKPOINTS["egtea-base"].config
    assert isinstance(three, ClassifierConfig)
    assert isinstance(one, ClassifierConfig)
    assert (three.num_classes, three.multi_head, three.vision.dim) == ((97, 300, 3806), True, 1024)
    assert (one.num_classes, one.multi_head, one.vision.frames) == ((106,), False, 16)


def test_config_for() -> None:
    assert config_for("narrator-base") == VARIANTS["VCLM_OPENAI_TIMESFORMER_BASE_GPT2"]
    assert config_for("dual-base", frames=16).vision.frames == 16
    assert config_for("ek100-mir-base") == config_for("dual-base", frames=16)
    with pytest.raises(InputError, match="did you mean narrator-base"):
        config_for("narrator-bsae")


def test_configs_survive_json() -> None:
    for name in [*VARIANTS, *CHECKPOINTS]:
        assert from_dict(json.loads(json.dumps(to_dict(config_for(name))))) == config_for(name)


def test_tokenizers_of_models() -> None:
    kinds = {name: tokenizer_kind(config) for name, config in VARIANTS.items()}
    assert kinds["VCLM_OPENAI_TIMESFORMER_BASE_GPT2_XL"] == "gpt2"
    assert kinds["CLIP_OPENAI_TIMESFORMER_LARGE"] == "clip"
    assert kinds["CLIP_HF_EGOVLP_DISTILBERT_BASE"] == "wordpiece"
    assert tokenizer_kind(config_for("egtea-base")) is None
    assert [row.name for row in vocabulary_files(config_for("narrator-large"))] == ["vocab.json", "merges.txt"]
    assert [row.kind for row in vocabulary_files(config_for("egovlp"))] == ["wordpiece"]
    assert vocabulary_files(config_for("nano")) == vocabulary_files(config_for("egtea-base")) == ()
    for name in SHAPES:
        assert all(len(row.sha256) == 64 for row in vocabulary_files(VARIANTS[name]))
        assert vocabulary_files(VARIANTS[name])


def test_what_training_begins_with() -> None:
    assert not set(PRETRAINED) & (set(CHECKPOINTS) | set(VARIANTS))
    for row in PRETRAINED.values():
        pattern = r"https://huggingface\.co/[\w-]+/[\w-]+/resolve/([0-9a-f]{40}|refs%2Fpr%2F\d+)/model\.safetensors"
        assert re.fullmatch(pattern, row.url)
        assert re.fullmatch("[0-9a-f]{64}", row.sha256)
        assert row.relative == f"pretrained/{row.name}.safetensors"
        assert files_of_tokenizer(row.tokenizer)
    assert len({row.sha256 for row in PRETRAINED.values()}) == len(PRETRAINED) == 6
    with pytest.raises(InputError, match="gpt2 is what training begins with"):
        config_for("gpt2")
