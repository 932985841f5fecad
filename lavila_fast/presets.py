"""Every model there is, one row each: sizes of the variants, released checkpoints, vocabulary files.

A variant's name is the one that the released checkpoints carry inside them. A checkpoint adds where its weights are and
what they were trained for. Sizes follow from the shapes in the checkpoints, and a test holds them against each other.
What training begins with, the weights of CLIP and of language models, are rows too: `PRETRAINED`.

    config_for("narrator-base")              # NarratorConfig of a checkpoint
    config_for("CLIP_OPENAI_TIMESFORMER_BASE", frames=16)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from urllib.parse import quote, urlsplit

from lavila_fast.config import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    ModelConfig,
    NarratorConfig,
    VisionConfig,
)
from lavila_fast.errors import InputError

CLIP_SECONDS = 2.0  # that every released checkpoint was trained on, about
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
    }
)

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


HUB = "https://huggingface.co/"


@dataclass(frozen=True)
class Pretrained:
    """Weights of others that training begins with; `train/starts.py` says what of a model they are.

    Attributes:
        name: What a user types.
        kind: How the file is read: a row of `STARTS` there.
        repository: Whose it is at the hub, OWNER/NAME.
        revision: A commit, or a pull request whose files nobody took over.
        sha256: Of the file, as the hub states it.
        tokenizer: As in `tokenizer_kind`.
        note: What it is and what begins with it.
    """

    name: str
    kind: str
    repository: str
    revision: str
    sha256: str
    tokenizer: str
    note: str

    @property
    def url(self) -> str:
        """Where the file is."""
        return f"{HUB}{self.repository}/resolve/{quote(self.revision, safe='')}/model.safetensors"

    @property
    def relative(self) -> str:
        """Path of the file below the cache or the folder that `pull --dir` names."""
        return f"pretrained/{self.name}.safetensors"


# Of two of the three CLIPs the owner publishes a pickle only. Their safetensors are the hub's own conversions, which
# stand in pull requests. The pickles, pytorch_model.bin, do as well, given to a run as a path.
_PRETRAINED = (
    Pretrained(
        "clip-vit-b-16",
        "clip",
        "openai/clip-vit-base-patch16",
        "refs/pr/10",
        "846bf12e84b91c2a65b44833a915241443b39356f1000ac1345c61d7bf8a209e",
        "clip",
        "CLIP ViT-B/16, 599 MB; video tower of TSF-B, text tower of its dual encoder",
    ),
    Pretrained(
        "clip-vit-l-14",
        "clip",
        "openai/clip-vit-large-patch14",
        "32bd64288804d66eefd0ccbe215aa642df71cc41",
        "a2bf730a0c7debf160f7a6b50b3aaf3703e7e88ac73de7a314903141db026dcb",
        "clip",
        "CLIP ViT-L/14, 1.7 GB; video tower of TSF-L, text tower of its dual encoder",
    ),
    Pretrained(
        "clip-vit-l-14-336",
        "clip",
        "openai/clip-vit-large-patch14-336",
        "refs/pr/8",
        "f51cb7b04a2afb04828b1b8e0edc34bbf082080d098b9874f5756e7b7ba8c807",
        "clip",
        "CLIP ViT-L/14 at 336 pixels, 1.7 GB; video tower of TSF-L@HR",
    ),
    Pretrained(
        "gpt2",
        "gpt2",
        "openai-community/gpt2",
        "607a30d783dfa663caf39e06633721c8d4cfcd7e",
        "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
        "gpt2",
        "GPT-2, 548 MB; text decoder of narrators",
    ),
    Pretrained(
        "gpt2-xl",
        "gpt2",
        "openai-community/gpt2-xl",
        "15ea56dee5df4983c59b2538573817e1667135e2",
        "0f8b28eb05a8075f48b61b6f35332978c74fc7763fa9fb4051a1c30511736a6a",
        "gpt2",
        "GPT-2 XL, 6.4 GB; text decoder of large narrators",
    ),
    Pretrained(
        "distilbert-base-uncased",
        "distilbert",
        "distilbert/distilbert-base-uncased",
        "12040accade4e8a0f71eabdb258fecc2e7e948be",
        "5e3f1108e3cb34ee048634875d8482665b65ac713291a7e32396fb18f6ff0063",
        "wordpiece",
        "DistilBERT, 268 MB; text tower of the dual encoder that TSF-L@HR has",
    ),
)
PRETRAINED: Mapping[str, Pretrained] = MappingProxyType({row.name: row for row in _PRETRAINED})


@dataclass(frozen=True)
class VocabularyFile:
    """A published file a tokenizer is made of, under the name by which a folder of them is recognised."""

    kind: str
    name: str
    url: str
    sha256: str

    @property
    def relative(self) -> str:
        """Path below the cache or the folder that `pull --dir` names."""
        return f"tokenizers/{self.kind}/{self.name}"


_GPT2_FILES = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
_CLIP_FILES = "https://raw.githubusercontent.com/openai/CLIP/d05afc436d78f1c48dc0dbf8e5980a9d471f35f6/clip/"
_BERT_FILES = "https://huggingface.co/bert-base-uncased/resolve/86b5e0934494bd15c9632b12f734a8a67f723594/"
_VOCABULARY_FILES = (
    VocabularyFile(
        "gpt2",
        "vocab.json",
        _GPT2_FILES + "encoder.json",
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    VocabularyFile(
        "gpt2",
        "merges.txt",
        _GPT2_FILES + "vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    VocabularyFile(
        "clip",
        "bpe_simple_vocab_16e6.txt.gz",
        _CLIP_FILES + "bpe_simple_vocab_16e6.txt.gz",
        "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a",
    ),
    VocabularyFile(  # DistilBERT uncased has BERT's vocabulary
        "wordpiece",
        "vocab.txt",
        _BERT_FILES + "vocab.txt",
        "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    ),
)


def tokenizer_kind(config: ModelConfig) -> str | None:
    """``gpt2``, ``clip`` or ``wordpiece``; None for a classifier, which reads no text."""
    if isinstance(config, NarratorConfig):
        return "gpt2"
    if isinstance(config, DualEncoderConfig):
        return "clip" if isinstance(config.text, ClipTextConfig) else "wordpiece"
    return None


def vocabulary_files(config: ModelConfig) -> tuple[VocabularyFile, ...]:
    """The published files of a model's tokenizer; none when its vocabulary is not a published one."""
    if getattr(getattr(config, "text", None), "vocab", None) not in (GPT2.vocab, CLIP_BASE.vocab, DISTILBERT.vocab):
        return ()
    return files_of_tokenizer(tokenizer_kind(config))


def files_of_tokenizer(kind: str | None) -> tuple[VocabularyFile, ...]:
    """The published files of a tokenizer, by its kind."""
    return tuple(row for row in _VOCABULARY_FILES if row.kind == kind)


def hint(name: str, beginnings: bool = False) -> str:
    """What somebody may have meant who wrote a name that no model has; with `beginnings`, of `PRETRAINED`, too."""
    near = get_close_matches(name, [*CHECKPOINTS, *VARIANTS, *(PRETRAINED if beginnings else ())], 3, 0.4)
    return f"did you mean {' or '.join(near)}?" if near else "`lavila-fast models list` has them all"


def config_for(name: str, frames: int | None = None) -> ModelConfig:
    """Sizes of a checkpoint or variant.

    Args:
        name: Key of `CHECKPOINTS` or `VARIANTS`.
        frames: Frames a clip, when not its own.

    Raises:
        InputError: no such name.
    """
    if name in PRETRAINED:
        raise InputError(f"{name} is what training begins with, no model; `lavila-fast models list` has models")
    if name not in CHECKPOINTS and name not in VARIANTS:
        raise InputError(f"no model is called {name!r}; {hint(name, beginnings=True)}")
    config = CHECKPOINTS[name].config if name in CHECKPOINTS else VARIANTS[name]
    return config if frames is None else replace(config, vision=replace(config.vision, frames=frames))
