"""Every run of LaViLa's model zoo as a row, the same with AVION's choices, and rows for videos of your own.

Numbers are the original's; where it leaves one open, the row's `about` says so. Its mixed precision was float16 with
scaled losses, ours is bfloat16. The rows that end with ``_fast`` differ from those they are named after in what AVION
(Zhao and Krähenbühl, 2023) does otherwise and what holds for divided attention, too: docs/TRAINING.md has the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType

from lavila_fast.errors import InputError
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.recipe import Choice, Recipe
from lavila_fast.train.regularisation import Regularisation
from lavila_fast.train.starts import Start
from lavila_fast.train.zoo_nano import NANO
from lavila_fast.train.zoo_paper import PAPER

_HUMAN = Choice("ego4d", {"human": "ego4d_train.pkl", "validation": "ego4d_val.pkl"})
_ALL = _HUMAN.told(
    human="ego4d_train.rephraser.no_punkt_top3.pkl", others=("ego4d_train.narrator_63690737.return_10.pkl",)
)
_TWO_TEMPERATURES = {"pseudo_temperature": 0.07, "learn_pseudo": False}
_RECOMPUTED = Regularisation(checkpointing="blocks")

PRETRAIN_B = Recipe(
    "pretrain_tsf_b_human",
    model="CLIP_OPENAI_TIMESFORMER_BASE",
    task=Choice("contrastive", {"normalize": True, "temperature": 0.07}),
    data=_HUMAN,
    about="dual encoder on Ego4D, narrations of people only",
    starts=(Start("clip", "clip-vit-b-16"),),
    freeze=("temperature",),
    fix_lr=True,
    precision="bfloat16",
    published="EK-100 retrieval zero-shot: the baseline of dual-base-baseline",
)
PRETRAIN_B_ALL = replace(
    PRETRAIN_B,
    name="pretrain_tsf_b",
    task=replace(PRETRAIN_B.task, options={**PRETRAIN_B.task.options, **_TWO_TEMPERATURES}),
    data=_ALL,
    about="dual encoder on Ego4D, narrations of people, rephrased, and a narrator's; two temperatures",
    published="EK-100 retrieval zero-shot mAP 29.7, nDCG 31.5; EGTEA 28.9; Charades-Ego 26.8; EgoMCQ intra 59.9",
)
PRETRAIN_L_336 = replace(
    PRETRAIN_B,
    name="pretrain_tsf_l_336_human",
    model="CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE",
    about="dual encoder of 336 pixels with DistilBERT on Ego4D, narrations of people only; narrator_tsf_l starts here",
    starts=(Start("clip", "clip-vit-l-14-336"), Start("distilbert", "distilbert-base-uncased")),
    batch_size=512,
    micro=8,
    regularisation=replace(_RECOMPUTED, dropout=0.1),
    published="",
)
PRETRAIN_L_ALL = replace(
    PRETRAIN_B_ALL,
    name="pretrain_tsf_l",
    model="CLIP_OPENAI_TIMESFORMER_LARGE",
    about="dual encoder on Ego4D, all narrations; its batch is not published: TSF-B's is taken",
    starts=(Start("clip", "clip-vit-l-14"),),
    micro=8,
    regularisation=_RECOMPUTED,
    published="EK-100 retrieval zero-shot mAP 35.0, nDCG 34.2; EGTEA 34.1; Charades-Ego 28.9; EgoMCQ intra 63.1",
)

NARRATOR_B = Recipe(
    "narrator_tsf_b",
    model="VCLM_OPENAI_TIMESFORMER_BASE_GPT2",
    task=Choice("caption"),
    data=_HUMAN,
    about="narrator on Ego4D: cross-attention and pool between a frozen video tower and a frozen GPT-2",
    starts=(Start("gpt2", "gpt2"), Start("dual_encoder", "dual-base-baseline")),
    freeze=("language_model", "space", "time"),
    fix_lr=True,
    batch_size=256,
    micro=8,
    optimiser=Optimisation(clip="norm", most=1.0),
    regularisation=Regularisation(dropout=0.1),
    published="METEOR 0.282, ROUGE-L 0.517, CIDEr 0.833",
)
NARRATOR_L = replace(
    NARRATOR_B,
    name="narrator_tsf_l",
    model="VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL",
    about="narrator of 336 pixels with GPT-2 XL on Ego4D",
    starts=(Start("gpt2", "gpt2-xl"), Start("dual_encoder", "dual-large-336-baseline")),
    regularisation=replace(_RECOMPUTED, dropout=0.1),
    published="METEOR 0.298, ROUGE-L 0.539, CIDEr 0.977",
)
NARRATOR_HTM = replace(
    NARRATOR_L,
    name="narrator_htm_aa",
    model="VCLM_OPENAI_TIMESFORMER_LARGE_GPT2_XL",
    data=Choice("htm_aa", {"train": "htm_aa_train.pkl", "validation": "htm_aa_val.pkl"}),
    about="narrator in the third person, on HTM-AA; its flags are not published: narrator_tsf_l's are taken",
    starts=(Start("gpt2", "gpt2-xl"), Start("dual_encoder", "dual-large")),
    published="",
)

_TUNED = Regularisation(drop_path=0.1, checkpointing="blocks")
MIR_B = Recipe(
    "finetune_mir_tsf_b",
    model="CLIP_OPENAI_TIMESFORMER_BASE",
    task=Choice("margin", {"margin": 0.2}),
    data=Choice("ek100_mir"),
    about="EK-100 multi-instance retrieval",
    starts=(Start("whole", "dual-base"),),
    freeze=("temperature",),
    frames=16,
    epochs=100,
    batch_size=512,
    micro=16,
    regularisation=_TUNED,
    precision="bfloat16",
    save_epochs=5.0,
    evaluate_epochs=5.0,
    published="mAP 50.5, nDCG 65.0",
)
MIR_L = replace(
    MIR_B,
    name="finetune_mir_tsf_l",
    model="CLIP_OPENAI_TIMESFORMER_LARGE",
    starts=(Start("whole", "dual-large"),),
    batch_size=128,
    micro=4,
    published="mAP 50.9, nDCG 66.5",
)
CHARADES_B = replace(
    MIR_B,
    name="finetune_charades_tsf_b",
    task=Choice("contrastive", {"normalize": True}),
    data=Choice("charades_ego"),
    about="Charades-Ego",
    starts=(Start("whole", "dual-base-epoch1"),),
    epochs=10,
    save_epochs=1.0,
    evaluate_epochs=1.0,
    published="mAP 33.7",
)
CHARADES_L = replace(
    CHARADES_B,
    name="finetune_charades_tsf_l",
    model="CLIP_OPENAI_TIMESFORMER_LARGE",
    starts=(Start("whole", "dual-large-epoch1"),),
    batch_size=128,
    micro=4,
    published="mAP 36.1",
)
_HEADS = Regularisation(drop_path=0.1, head_dropout=0.5, checkpointing="blocks")
EGTEA_B = Recipe(
    "finetune_egtea_tsf_b",
    model="CLIP_OPENAI_TIMESFORMER_BASE",
    task=Choice("classify", {"classes": (106,), "smoothing": 0.1}),
    data=Choice("egtea"),
    about="actions of EGTEA Gaze+",
    starts=(Start("dual_encoder", "dual-base"),),
    frames=16,
    flips=True,
    epochs=100,
    batch_size=128,
    micro=16,
    lr=3e-3,
    # The tower's factor comes to hold for the heads, too, in the original's loop.
    optimiser=Optimisation(name="sgd", weight_decay=4e-5, factors={"visual.": 0.1}, same_rate=True),
    regularisation=_HEADS,
    precision="bfloat16",
    save_epochs=5.0,
    evaluate_epochs=5.0,
    published="70.12 % of test clips right",
)
EGTEA_L = replace(
    EGTEA_B,
    name="finetune_egtea_tsf_l",
    model="CLIP_OPENAI_TIMESFORMER_LARGE",
    starts=(Start("dual_encoder", "dual-large"),),
    micro=4,
    published="76.00 % of test clips right",
)
CLS_B = replace(
    EGTEA_B,
    name="finetune_cls_tsf_b",
    task=Choice("classify", {"classes": (97, 300, 3806), "smoothing": 0.1}),
    data=Choice("ek100_cls", {"heads": 3}),
    about="verbs, nouns and actions of EK-100, a head each",
    published="verbs 69.0 %, nouns 58.4 %, actions 46.9 %",
)
CLS_B_ONE = replace(
    CLS_B,
    name="finetune_cls_one_head_tsf_b",
    task=Choice("classify", {"classes": (3806,), "smoothing": 0.1}),
    data=Choice("ek100_cls", {"heads": 1}),
    about="actions of EK-100; verbs and nouns are sums over them",
    published="verbs 67.7 %, nouns 56.7 %, actions 46.2 %",
)
CLS_L = replace(
    CLS_B,
    name="finetune_cls_tsf_l",
    model="CLIP_OPENAI_TIMESFORMER_LARGE",
    starts=(Start("dual_encoder", "dual-large"),),
    micro=4,
    published="verbs 72.0 %, nouns 62.9 %, actions 51.0 %",
)

# AVION's choices. Positions do not decay, batches are those of eight cards of 24 GB.
_UNDECAYED = ("pos_embed", "positional_embedding", "temporal_embed")
_FAST = Optimisation(undecayed=_UNDECAYED)
PRETRAIN_B_FAST = replace(
    PRETRAIN_B_ALL,
    name="pretrain_tsf_b_fast",
    task=PRETRAIN_B.task,
    about="pretrain_tsf_b with AVION's choices: batch 2,048, one temperature, positions undecayed",
    batch_size=2048,
    micro=256,
    optimiser=_FAST,
    regularisation=_RECOMPUTED,
    published="AVION, ViT-B: EK-100 retrieval zero-shot mAP 32.9, nDCG 32.7 of 16 frames, in 260 hours of an A5000",
)
PRETRAIN_L_FAST = replace(
    PRETRAIN_B_FAST,
    name="pretrain_tsf_l_fast",
    model="CLIP_OPENAI_TIMESFORMER_LARGE",
    about="pretrain_tsf_l with AVION's choices: batch 896, one temperature, positions undecayed",
    starts=(Start("clip", "clip-vit-l-14"),),
    batch_size=896,
    micro=112,
    published="AVION, ViT-L: EK-100 retrieval zero-shot mAP 37.6, nDCG 35.3 of 16 frames, in 680 hours of an A5000",
)
MIR_B_FAST = replace(
    MIR_B,
    name="finetune_mir_tsf_b_fast",
    about="EK-100 multi-instance retrieval with AVION's choices: positions undecayed, 64 clips at a time",
    micro=64,
    optimiser=_FAST,
    published="AVION, ViT-B: mAP 52.0, nDCG 66.5",
)
CLS_B_FAST = replace(
    CLS_B_ONE,
    name="finetune_cls_tsf_b_fast",
    task=Choice("classify", {"classes": (3806,), "smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0}),
    about="actions of EK-100 with AVION's choices: mixup, cutmix, two epochs of warm-up, rate by batch",
    batch_size=512,
    micro=64,
    lr=3e-3 * 512 / 128,
    warmup_epochs=2.0,
    optimiser=replace(CLS_B_ONE.optimiser, undecayed=_UNDECAYED),
    published="AVION, ViT-B: verbs 70.0 %, nouns 59.4 %, actions 49.5 %",
)

# Videos of your own, from a list of video, start, end, text (or label).
FINETUNE_RETRIEVAL = replace(
    CHARADES_B,
    name="finetune_retrieval",
    data=Choice("listed"),
    about="a dual encoder on your own list of video, start, end, text",
    starts=(Start("whole", "dual-base"),),
    frames=4,
    batch_size=64,
    micro=16,
    published="",
)
FINETUNE_NARRATOR = replace(
    NARRATOR_B,
    name="finetune_narrator",
    data=Choice("listed"),
    about="a narrator on your own list of video, start, end, text",
    starts=(Start("whole", "narrator-base"),),
    batch_size=64,
    lr=1e-5,
)
FINETUNE_CLASSES = replace(
    EGTEA_B,
    name="finetune_classes",
    task=Choice("classify", {"smoothing": 0.1}),
    data=Choice("listed", {"labels": True}),
    about="a classifier on your own list of video, start, end, label",
    optimiser=Optimisation(name="sgd", weight_decay=4e-5, factors={"visual.": 0.1}),
    epochs=20,
    batch_size=64,
    published="",
)

# To try all of it in minutes on any machine: the small model that comes with the package goes on learning.
TRY_RETRIEVAL = replace(
    FINETUNE_RETRIEVAL,
    name="try_retrieval",
    model="NANO_DUAL_ENCODER",
    about="a trial without downloads: the shipped small dual encoder on your own list of video, start, end, text",
    starts=(Start("whole", "nano"),),
    epochs=3,
    batch_size=16,
    lr=3e-4,
    regularisation=Regularisation(),
    precision="float32",
)
TRY_NARRATOR = replace(
    TRY_RETRIEVAL,
    name="try_narrator",
    model="NANO_NARRATOR",
    task=Choice("caption"),
    about="a trial without downloads: the shipped small narrator on your own list of video, start, end, text",
    freeze=(),
    optimiser=FINETUNE_NARRATOR.optimiser,
)
TRY_CLASSES = replace(
    TRY_RETRIEVAL,
    name="try_classes",
    task=FINETUNE_CLASSES.task,
    data=FINETUNE_CLASSES.data,
    about="a trial without downloads: a classifier on the shipped small video tower, on your own list with a label",
    starts=(Start("dual_encoder", "nano"),),
    freeze=(),
)

_ROWS = (
    *(PRETRAIN_B, PRETRAIN_B_ALL, PRETRAIN_L_336, PRETRAIN_L_ALL, NARRATOR_B, NARRATOR_L, NARRATOR_HTM),
    *(MIR_B, MIR_L, CHARADES_B, CHARADES_L, EGTEA_B, EGTEA_L, CLS_B, CLS_B_ONE, CLS_L),
    *(PRETRAIN_B_FAST, PRETRAIN_L_FAST, MIR_B_FAST, CLS_B_FAST),
    *(TRY_RETRIEVAL, TRY_NARRATOR, TRY_CLASSES),
    *(FINETUNE_RETRIEVAL, FINETUNE_NARRATOR, FINETUNE_CLASSES),
    *NANO,
    *PAPER,
)
RECIPES: Mapping[str, Recipe] = MappingProxyType({row.name: row for row in _ROWS})


def find_recipe(name: str) -> Recipe:
    """A row by its name.

    Raises:
        InputError: there is none of this name.
    """
    if name not in RECIPES:
        near = get_close_matches(name, RECIPES, 4, 0.4)
        near_ones = " or ".join(near)
        raise InputError(f"no recipe is called {name}; {f'did you mean {near_ones}?' if near else 'see train --list'}")
    return RECIPES[name]
