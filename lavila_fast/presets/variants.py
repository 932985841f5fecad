"""Sizes of every variant, a row each, under the names that the released checkpoints carry inside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from lavila_fast.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    ModelConfig,
    NarratorConfig,
    VisionConfig,
)

BASE = VisionConfig()
LARGE = VisionConfig(patch=14, dim=1024, depth=24, heads=16)
LARGE_336 = replace(LARGE, img=336)
EGOVLP = VisionConfig(ln_pre=False, act="gelu", mean=IMAGENET_MEAN, std=IMAGENET_STD)
NANO = VisionConfig(img=64, patch=8, dim=128, depth=5, heads=2, act="gelu")

GPT2 = GPT2Config()
GPT2_XL = GPT2Config(n_embd=1600, n_layer=48, n_head=25, freq=2)
GPT2_XL_SPARSE = replace(GPT2_XL, freq=3)
CLIP_BASE = ClipTextConfig()
CLIP_LARGE = ClipTextConfig(width=768, heads=12)
DISTILBERT = DistilBertConfig()

NANO_GPT2 = GPT2Config(n_embd=128, n_layer=2, n_head=4, vocab=426, n_positions=32)
NANO_CLIP = ClipTextConfig(width=128, heads=4, layers=2, vocab=664, context=32)
NANO_NARRATOR = NarratorConfig(NANO, NANO_GPT2, queries=8, pool_heads=2, max_tokens=32)
NANO_DUAL_ENCODER = DualEncoderConfig(NANO, NANO_CLIP, embed=128)
# For many runs on a processor: see train/zoo_paper.py. The vocabularies are the shipped model's.
MINI = VisionConfig(img=64, patch=16, dim=96, depth=3, heads=3, act="gelu")
MINI_NARRATOR = NarratorConfig(MINI, replace(NANO_GPT2, n_embd=96), queries=8, pool_heads=2, max_tokens=32)
MINI_DUAL_ENCODER = DualEncoderConfig(MINI, replace(NANO_CLIP, width=64, heads=2), embed=128)

VARIANTS: Mapping[str, ModelConfig] = MappingProxyType(
    {
        "VCLM_OPENAI_TIMESFORMER_BASE_GPT2": NarratorConfig(BASE, GPT2),
        "VCLM_OPENAI_TIMESFORMER_BASE_GPT2_XL": NarratorConfig(BASE, GPT2_XL, pool_heads=25),
        "VCLM_OPENAI_TIMESFORMER_LARGE_GPT2": NarratorConfig(LARGE, GPT2),
        "VCLM_OPENAI_TIMESFORMER_LARGE_GPT2_XL": NarratorConfig(LARGE, GPT2_XL, pool_heads=25),
        "VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL": NarratorConfig(LARGE_336, GPT2_XL_SPARSE, pool_heads=25),
        "CLIP_OPENAI_TIMESFORMER_BASE": DualEncoderConfig(BASE, CLIP_BASE),
        "CLIP_OPENAI_TIMESFORMER_LARGE": DualEncoderConfig(LARGE, CLIP_LARGE),
        "CLIP_OPENAI_TIMESFORMER_LARGE_336PX": DualEncoderConfig(LARGE_336, CLIP_LARGE),
        "CLIP_OPENAI_TIMESFORMER_BASE_DISTILBERT_BASE": DualEncoderConfig(BASE, DISTILBERT),
        "CLIP_OPENAI_TIMESFORMER_LARGE_DISTILBERT_BASE": DualEncoderConfig(LARGE, DISTILBERT),
        "CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE": DualEncoderConfig(LARGE_336, DISTILBERT),
        "CLIP_HF_EGOVLP_DISTILBERT_BASE": DualEncoderConfig(EGOVLP, DISTILBERT, head="egovlp"),
        "NANO_NARRATOR": NANO_NARRATOR,
        "NANO_DUAL_ENCODER": NANO_DUAL_ENCODER,
        "MINI_NARRATOR": MINI_NARRATOR,
        "MINI_DUAL_ENCODER": MINI_DUAL_ENCODER,
    }
)
