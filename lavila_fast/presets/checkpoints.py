"""Every released checkpoint, a row each: where its weights are, and what they were trained for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from urllib.parse import urlsplit

from lavila_fast.config import ClassifierConfig, ModelConfig
from lavila_fast.presets.variants import VARIANTS

CHECKPOINT_ROOT = "https://dl.fbaipublicfiles.com/lavila/checkpoints/"


@dataclass(frozen=True)
class Checkpoint:
    """Weights that can be had.

    Attributes:
        name: What a user types.
        variant: Row of `VARIANTS`; for a classifier, the dual encoder whose video tower it has.
        url: Where the file is; empty when the weights come with this package.
        md5_prefix: First six digits of the file's md5; empty when its publisher gives none.
        note: What it was trained on and for.
        num_classes: Sizes of a classifier's heads; empty for other kinds.
        frames: Frames a clip it was trained with, when not the variant's.
    """

    name: str
    variant: str
    url: str
    md5_prefix: str
    note: str
    num_classes: tuple[int, ...] = ()
    frames: int | None = None

    @property
    def relative(self) -> str:
        """Path of the file below the cache or the folder that `pull --dir` names; empty when shipped."""
        return "checkpoints/" + urlsplit(self.url).path.rsplit("/", 1)[-1] if self.url else ""

    @property
    def config(self) -> ModelConfig:
        """The model's sizes."""
        base = VARIANTS[self.variant]
        vision = replace(base.vision, frames=self.frames or base.vision.frames)
        if self.num_classes:
            return ClassifierConfig(vision, self.num_classes, multi_head=len(self.num_classes) > 1)
        return replace(base, vision=vision)


_NARRATORS, _EGO4D = CHECKPOINT_ROOT + "narrator/", CHECKPOINT_ROOT + "dual_encoders/ego4d/"
_TUNED = CHECKPOINT_ROOT + "dual_encoders/"
_TSF_B, _TSF_L = "CLIP_OPENAI_TIMESFORMER_BASE", "CLIP_OPENAI_TIMESFORMER_LARGE"
_TSF_HR = "CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE"
_EK100 = (97, 300, 3806)

_ROWS = (
    Checkpoint("nano", "NANO_NARRATOR", "", "", "narrator; made-up miniature kitchen only; comes with the package"),
    Checkpoint(
        "narrator-base",
        "VCLM_OPENAI_TIMESFORMER_BASE_GPT2",
        _NARRATORS + "vclm_openai_timesformer_base_gpt2_base.pt_ego4d.jobid_319630.ep_0002.md5sum_68a71f.pth",
        "68a71f",
        "narrator; Ego4D, first person; CIDEr 0.833",
    ),
    Checkpoint(
        "narrator-large",
        "VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL",
        _NARRATORS + "vclm_openai_timesformer_large_336px_gpt2_xl.pt_ego4d.jobid_246897.ep_0003.md5sum_443263.pth",
        "443263",
        "narrator; Ego4D, first person, the most accurate; CIDEr 0.977",
    ),
    Checkpoint(
        "narrator-third-person",
        "VCLM_OPENAI_TIMESFORMER_LARGE_GPT2_XL",
        _NARRATORS + "htm_aa/vclm_openai_timesformer_large_gpt2_xl.pt_htm.jobid_341080.ep_0001.pth",
        "",
        "narrator; HTM-AA (instructional videos), third person",
    ),
    Checkpoint(
        "dual-base-baseline",
        _TSF_B,
        _EGO4D + "clip_openai_timesformer_base.baseline.ep_0003.pth",
        "dbcc4d",
        "dual encoder; Ego4D human narrations only; narrator-base starts from its video tower",
    ),
    Checkpoint(
        "dual-large-336-baseline",
        _TSF_HR,
        _EGO4D + "clip_openai_timesformer_large_336px_distilbert_base.baseline.ep_0003.pth",
        "5c69b8",
        "dual encoder; Ego4D human narrations only; narrator-large starts from its video tower",
    ),
    Checkpoint(
        "egovlp-epoch1",
        "CLIP_HF_EGOVLP_DISTILBERT_BASE",
        _EGO4D + "egovlp_epo1_converted_f16.md5sum_7a3d3b.pth",
        "7a3d3b",
        "dual encoder of EgoVLP; for zero-shot Charades-Ego",
    ),
    Checkpoint(
        "egovlp",
        "CLIP_HF_EGOVLP_DISTILBERT_BASE",
        _EGO4D + "egovlp_converted_f16.md5sum_c33363.pth",
        "c33363",
        "dual encoder of EgoVLP; for zero-shot EK-100, EGTEA, EgoMCQ",
    ),
    Checkpoint(
        "dual-base-epoch1",
        _TSF_B,
        _EGO4D + "clip_openai_timesformer_base.narrator_rephraser.ep_0001.md5sum_02dbb9.pth",
        "02dbb9",
        "dual encoder; Ego4D with narrator and rephraser; for Charades-Ego",
    ),
    Checkpoint(
        "dual-base",
        _TSF_B,
        _EGO4D + "clip_openai_timesformer_base.narrator_rephraser.ep_0005.md5sum_d73a9c.pth",
        "d73a9c",
        "dual encoder; Ego4D with narrator and rephraser; search and zero-shot EK-100, EGTEA, EgoMCQ",
    ),
    Checkpoint(
        "dual-large-epoch1",
        _TSF_L,
        _EGO4D + "clip_openai_timesformer_large.narrator_rephraser.ep_0001.md5sum_9a25de.pth",
        "9a25de",
        "dual encoder; Ego4D with narrator and rephraser; for Charades-Ego",
    ),
    Checkpoint(
        "dual-large",
        _TSF_L,
        _EGO4D + "clip_openai_timesformer_large.narrator_rephraser.ep_0003.md5sum_c89337.pth",
        "c89337",
        "dual encoder; Ego4D with narrator and rephraser; search and zero-shot EK-100, EGTEA, EgoMCQ",
    ),
    Checkpoint(
        "ek100-mir-base",
        _TSF_B,
        _TUNED + "ek100_mir/clip_openai_timesformer_base.ft_ek100_mir.ep_0085.md5sum_c67d95.pth",
        "c67d95",
        "dual encoder fine-tuned for EK-100 retrieval; mAP 50.5, nDCG 65.0",
        frames=16,
    ),
    Checkpoint(
        "ek100-mir-large",
        _TSF_L,
        _TUNED + "ek100_mir/clip_openai_timesformer_large.ft_ek100_mir.ep_0095.md5sum_bd508b.pth",
        "bd508b",
        "dual encoder fine-tuned for EK-100 retrieval; mAP 50.9, nDCG 66.5",
        frames=16,
    ),
    Checkpoint(
        "charades-ego-base",
        _TSF_B,
        _TUNED + "charades_ego/clip_openai_timesformer_base.ft_charades_ego.ep_0005.md5sum_39bf4b.pth",
        "39bf4b",
        "dual encoder fine-tuned for Charades-Ego; mAP 33.7",
        frames=16,
    ),
    Checkpoint(
        "charades-ego-large",
        _TSF_L,
        _TUNED + "charades_ego/clip_openai_timesformer_large.ft_charades_ego.ep_0003.md5sum_9448b2.pth",
        "9448b2",
        "dual encoder fine-tuned for Charades-Ego; mAP 36.1",
        frames=16,
    ),
    Checkpoint(
        "ek100-action-base",
        _TSF_B,
        _TUNED + "ek100_cls/clip_openai_timesformer_base.ft_ek100_cls.single_head.ep_0100.md5sum_e8aa0c.pth",
        "e8aa0c",
        "classifier of EK-100 actions; top-1 46.2",
        (3806,),
        16,
    ),
    Checkpoint(
        "ek100-verb-noun-action-base",
        _TSF_B,
        _TUNED + "ek100_cls/clip_openai_timesformer_base.ft_ek100_cls.ep_0100.md5sum_4e3575.pth",
        "4e3575",
        "classifier of EK-100 verbs, nouns, actions; action top-1 46.9",
        _EK100,
        16,
    ),
    Checkpoint(
        "ek100-verb-noun-action-large",
        _TSF_L,
        _TUNED + "ek100_cls/clip_openai_timesformer_large.ft_ek100_cls.ep_0090.md5sum_4a2509.pth",
        "4a2509",
        "classifier of EK-100 verbs, nouns, actions; action top-1 51.0",
        _EK100,
        16,
    ),
    Checkpoint(
        "egtea-base",
        _TSF_B,
        _TUNED + "egtea/clip_openai_timesformer_base.ft_egtea.ep_0090.md5sum_3b1faf.pth",
        "3b1faf",
        "classifier of EGTEA actions; mean accuracy 70.1",
        (106,),
        16,
    ),
    Checkpoint(
        "egtea-large",
        _TSF_L,
        _TUNED + "egtea/clip_openai_timesformer_large.ft_egtea.ep_0095.md5sum_a5ba17.pth",
        "a5ba17",
        "classifier of EGTEA actions; mean accuracy 76.0",
        (106,),
        16,
    ),
)
CHECKPOINTS: Mapping[str, Checkpoint] = MappingProxyType({row.name: row for row in _ROWS})
