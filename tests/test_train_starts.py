"""What training begins with, against the transformers library: whoever takes its weights computes what it computes."""

from __future__ import annotations

import gzip
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

from lavila_fast.config import (  # noqa: E402
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    NarratorConfig,
    VisionConfig,
)
from lavila_fast.errors import CheckpointError, InputError, ModelNotFoundError  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.load import CLASSES, save_checkpoint  # noqa: E402
from lavila_fast.models.weight_files import Weights  # noqa: E402
from lavila_fast.presets import PRETRAINED, VARIANTS  # noqa: E402
from lavila_fast.train import layouts  # noqa: E402
from lavila_fast.train.begin import Begun, begin  # noqa: E402
from lavila_fast.train.fitting import copy_tensors, empty, match, recognise, stretch_positions  # noqa: E402
from lavila_fast.train.layouts import CLIP_HUB, CLIP_OPENAI  # noqa: E402
from lavila_fast.train.starts import STARTS, Start  # noqa: E402

VISION = VisionConfig(img=32, patch=8, dim=32, depth=3, heads=2, frames=4)
CLIP_TEXT = ClipTextConfig(width=24, heads=2, layers=2, vocab=60, context=12)
BERT = DistilBertConfig(dim=24, heads=2, layers=2, hidden=48, vocab=70, max_positions=20)
GPT2 = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab=80, n_positions=16)
DUAL = DualEncoderConfig(VISION, CLIP_TEXT, embed=16)
NARRATOR = NarratorConfig(VISION, GPT2, queries=5, pool_heads=2, max_tokens=16)
TIME = re.compile(r"visual\.(temporal_embed|blocks\.\d+\.(timeattn|norm3)\..+)")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # of what the constructors of transformers draw
    yield
    torch.set_num_threads(before)


def shaken(model, seed=0):
    """No tensor as its constructor left it, so that one in the wrong place shows."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def clip_config(vision=VISION, text=CLIP_TEXT, width=16):
    return transformers.CLIPConfig(
        text_config={
            "hidden_size": text.width,
            "intermediate_size": 4 * text.width,
            "num_hidden_layers": text.layers,
            "num_attention_heads": text.heads,
            "vocab_size": text.vocab,
            "max_position_embeddings": text.context,
            "eos_token_id": text.vocab - 1,
        },
        vision_config={
            "hidden_size": vision.dim,
            "intermediate_size": 4 * vision.dim,
            "num_hidden_layers": vision.depth,
            "num_attention_heads": vision.heads,
            "image_size": vision.img,
            "patch_size": vision.patch,
        },
        projection_dim=width,
    )


def gpt2_config(text=GPT2):
    sizes = {"n_embd": text.n_embd, "n_layer": text.n_layer, "n_head": text.n_head, "n_positions": text.n_positions}
    return transformers.GPT2Config(
        vocab_size=text.vocab, bos_token_id=text.vocab - 1, eos_token_id=text.vocab - 1, **sizes
    )


def bert_config(text=BERT):
    return transformers.DistilBertConfig(
        vocab_size=text.vocab,
        max_position_embeddings=text.max_positions,
        n_layers=text.layers,
        n_heads=text.heads,
        dim=text.dim,
        hidden_dim=text.hidden,
    )


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A CLIP of the transformers library, and the folder that it wrote."""
    folder = tmp_path_factory.mktemp("clip")
    model = shaken(transformers.CLIPModel(clip_config()))
    model.save_pretrained(folder)
    # Ours is the original's: eps is smaller in the blocks and after them.
    for module in model.vision_model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6
    model.vision_model.pre_layrnorm.eps = 1e-5
    return model, folder


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpt2")
    model = shaken(transformers.GPT2LMHeadModel(gpt2_config()))
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    model = shaken(transformers.DistilBertForMaskedLM(bert_config()))
    model.save_pretrained(folder)
    return model, folder


def made(config):
    return CLASSES[type(config)](config).eval()


def video(frames, seed=1, count=2, img=32):
    return torch.randn(count, 3, frames, img, img, generator=torch.Generator().manual_seed(seed))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_frame_is_seen_as_clip_sees_a_picture(clip):
    model = made(replace(DUAL, vision=replace(VISION, frames=1)))
    begin(model, [Start("clip", str(clip[1]))])
    seen = clip[0].vision_model(video(1)[:, :, 0]).pooler_output
    assert seen.std() > 0.5
    close(model.visual(video(1)), seen)
    close(model.embed_video(video(1), normalize=False), clip[0].visual_projection(seen))


@torch.no_grad()
def test_clip_reads_text_as_before(clip):
    model = made(DUAL)
    begin(model, [Start("clip", str(clip[1]))])
    ids = torch.tensor([[1, 5, 9, 59, 0, 0], [1, 58, 3, 4, 7, 59]])
    read = clip[0].text_model(ids).pooler_output
    close(model.embed_text(ids, normalize=False), clip[0].text_projection(read))
    close(model.logit_scale, clip[0].logit_scale)


def test_what_of_clip_is_taken(clip):
    """At another joint width projections and temperature are not, nor by models without CLIP's text tower."""
    start = Start("clip", str(clip[1]))
    begun = begin(made(DUAL), [start])
    assert all(TIME.fullmatch(name) for name in begun.fresh)
    assert len(begun.fresh) == 1 + 3 * 6
    assert len(begun.taken) + len(begun.fresh) == len(DualEncoder(DUAL).state_dict())

    apart = begin(made(replace(DUAL, embed=8)), [start])
    assert set(begun.taken) - set(apart.taken) == {"image_projection", "text_projection", "logit_scale"}
    for config in (replace(DUAL, text=BERT), NARRATOR, ClassifierConfig(VISION, (7,))):
        assert begin(made(config), [start]).taken == tuple(n for n in begun.taken if n.startswith("visual."))


def openai_names(hub, layers, text_layers):
    """The same weights as OpenAI published them; written down from its model, not from our rules."""
    out = {
        "visual.class_embedding": hub["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": hub["vision_model.embeddings.position_embedding.weight"],
        "visual.conv1.weight": hub["vision_model.embeddings.patch_embedding.weight"],
        "visual.proj": hub["visual_projection.weight"].T.contiguous(),
        "token_embedding.weight": hub["text_model.embeddings.token_embedding.weight"],
        "positional_embedding": hub["text_model.embeddings.position_embedding.weight"],
        "text_projection": hub["text_projection.weight"].T.contiguous(),
        "logit_scale": hub["logit_scale"],
        "input_resolution": torch.tensor(32),
        "context_length": torch.tensor(12),
        "vocab_size": torch.tensor(60),
    }
    for kind in ("weight", "bias"):
        out[f"visual.ln_pre.{kind}"] = hub[f"vision_model.pre_layrnorm.{kind}"]
        out[f"visual.ln_post.{kind}"] = hub[f"vision_model.post_layernorm.{kind}"]
        out[f"ln_final.{kind}"] = hub[f"text_model.final_layer_norm.{kind}"]
        for here, there, depth in (("visual.", "vision_model", layers), ("", "text_model", text_layers)):
            for i in range(depth):
                block, hub_block = f"{here}transformer.resblocks.{i}", f"{there}.encoder.layers.{i}"
                qkv = [hub[f"{hub_block}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
                out[f"{block}.attn.in_proj_{kind}"] = torch.cat(qkv)
                out[f"{block}.attn.out_proj.{kind}"] = hub[f"{hub_block}.self_attn.out_proj.{kind}"]
                out[f"{block}.ln_1.{kind}"] = hub[f"{hub_block}.layer_norm1.{kind}"]
                out[f"{block}.ln_2.{kind}"] = hub[f"{hub_block}.layer_norm2.{kind}"]
                out[f"{block}.mlp.c_fc.{kind}"] = hub[f"{hub_block}.mlp.fc1.{kind}"]
                out[f"{block}.mlp.c_proj.{kind}"] = hub[f"{hub_block}.mlp.fc2.{kind}"]
    return out


@pytest.mark.parametrize("half", [False, True])
def test_openais_own_names_give_the_same(clip, tmp_path, half):
    """Its files are in half precision, as pickles."""
    names = openai_names(load_file(clip[1] / "model.safetensors"), VISION.depth, CLIP_TEXT.layers)
    torch.save({n: t.half() if half and t.is_floating_point() else t for n, t in names.items()}, tmp_path / "a.pt")
    one, other = made(DUAL), made(DUAL)
    assert begin(one, [Start("clip", str(clip[1]))]) == begin(other, [Start("clip", str(tmp_path / "a.pt"))])
    for name, value in one.state_dict().items():
        assert other.state_dict()[name].dtype == torch.float32
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-3 * half, atol=1e-3 * half, msg=name)


@torch.no_grad()
def test_distilbert_reads_as_before(bert, tmp_path):
    ids, mask = torch.randint(70, (3, 9), generator=torch.Generator().manual_seed(0)), torch.ones(3, 9)
    mask[1, 5:] = 0
    hidden = bert[0].distilbert(ids, attention_mask=mask).last_hidden_state
    assert {name.partition(".")[0] for name in load_file(bert[1] / "model.safetensors")} > {"distilbert"}
    bert[0].distilbert.save_pretrained(tmp_path)  # without prefix, without head
    for folder in (bert[1], tmp_path):
        model = made(replace(DUAL, text=BERT))
        begun = begin(model, [Start("distilbert", str(folder))])
        assert begun.taken == tuple(name for name in model.state_dict() if name.startswith("textual."))
        close(model.textual(ids, mask), hidden)


@torch.no_grad()
@pytest.mark.parametrize("freq", [1, 2])
def test_first_words_are_as_likely_as_gpt2_says_whatever_is_seen(gpt2, clip, freq):
    model = made(replace(NARRATOR, text=replace(GPT2, freq=freq)))
    begin(model, [Start("clip", str(clip[1])), Start("gpt2", str(gpt2[1]))], seed=3)
    ids = torch.tensor([[79, 4, 5, 30], [79, 0, 11, 2]])
    likely = gpt2[0](ids).logits.softmax(-1)
    assert likely.max() > 2 / 80
    for seed in (1, 2):
        close(model(video(4, seed), ids).softmax(-1), likely)
    assert not model.visual_tokens(video(4, 1)).allclose(model.visual_tokens(video(4, 2)), atol=1e-3)
    for name, value in model.state_dict().items():
        if "alpha_" in name:
            value.fill_(0.5)
    assert (model(video(4), ids).softmax(-1) - likely).abs().max() > 1e-4  # ten times what closed ones may be off


def test_gpt2_with_or_without_prefix_and_buffers(gpt2, tmp_path):
    """The hub's own file has neither prefix nor head, but the causal masks of older versions."""
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 16, 16) for i in range(3)}
    plain = {name: value.clone() for name, value in gpt2[0].transformer.state_dict().items()}
    save_file({**plain, **masks}, tmp_path / "model.safetensors")
    one, other = made(NARRATOR), made(NARRATOR)
    assert begin(one, [Start("gpt2", str(gpt2[1]))]) == begin(other, [Start("gpt2", str(tmp_path))])
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    head = {f"transformer.{name}": value for name, value in plain.items()}
    head["lm_head.weight"] = plain["wte.weight"] + 1
    save_file(head, tmp_path / "untied.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs"):
        begin(made(NARRATOR), [Start("gpt2", str(tmp_path / "untied.safetensors"))])


def hub_files():
    """Real names and shapes, without values: name in PRETRAINED → tensors."""
    with torch.device("meta"):
        base = clip_config(VISION_B, VARIANTS["CLIP_OPENAI_TIMESFORMER_BASE"].text, 512)
        large = clip_config(VISION_L, VARIANTS["CLIP_OPENAI_TIMESFORMER_LARGE"].text, 768)
        hr = clip_config(VISION_HR, VARIANTS["CLIP_OPENAI_TIMESFORMER_LARGE"].text, 768)
        files = {
            "clip-vit-b-16": transformers.CLIPModel(base).state_dict(),
            "clip-vit-l-14": transformers.CLIPModel(large).state_dict(),
            "clip-vit-l-14-336": transformers.CLIPModel(hr).state_dict(),
            "gpt2": transformers.GPT2Model(transformers.GPT2Config()).state_dict(),
            "gpt2-xl": transformers.GPT2Model(transformers.GPT2Config(n_embd=1600, n_layer=48, n_head=25)).state_dict(),
            "distilbert-base-uncased": transformers.DistilBertForMaskedLM(transformers.DistilBertConfig()).state_dict(),
        }
        for name in ("clip-vit-b-16", "clip-vit-l-14", "clip-vit-l-14-336"):
            files[name] |= {
                f"{tower}_model.embeddings.position_ids": torch.empty(1, 77) for tower in ("text", "vision")
            }
        files["gpt2"] |= {f"h.{i}.attn.bias": torch.empty(1, 1, 1024, 1024) for i in range(12)}
    return files


VISION_B, VISION_L = VisionConfig(), VisionConfig(patch=14, dim=1024, depth=24, heads=16)
VISION_HR = replace(VISION_L, img=336)
BEGINNINGS = {  # the others are put together from the same parts
    "CLIP_OPENAI_TIMESFORMER_BASE": ["clip-vit-b-16"],
    "CLIP_OPENAI_TIMESFORMER_LARGE": ["clip-vit-l-14"],
    "CLIP_OPENAI_TIMESFORMER_LARGE_336PX": ["clip-vit-l-14-336"],
    "CLIP_OPENAI_TIMESFORMER_LARGE_336PX_DISTILBERT_BASE": ["clip-vit-l-14-336", "distilbert-base-uncased"],
    "VCLM_OPENAI_TIMESFORMER_BASE_GPT2": ["clip-vit-b-16", "gpt2"],
    "VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL": ["clip-vit-l-14-336", "gpt2-xl"],
}
NO_USE = r"(visual|text)_projection\.weight|logit_scale|vocab_.+|.+\.position_ids|h\.\d+\.attn\.bias"
NEW = re.compile(
    TIME.pattern
    + r"|(image|text)_projection|logit_scale|img_queries|img_attn_pool.+"
    + r"|text_decoder\.transformer\.h\.\d+\.((mlp_|ln_2_)?crossattention|ln_cross_attn|alpha_).+"
)


def test_every_real_variant_finds_all_in_the_hubs_files():
    files = hub_files()
    assert set(files) == set(PRETRAINED)
    for variant, names in BEGINNINGS.items():
        model, taken = empty(VARIANTS[variant]), set()
        for name in names:
            path = Path(name)
            layout, state = recognise(STARTS[PRETRAINED[name].kind](model), Weights(path, dict(files[name])))
            origins = match(model, layout, state, path)
            taken |= set(origins)
            used = {one for origin in origins.values() for one in origin.names}
            text = "" if "token_embedding.weight" in origins else r"|text_model\..+"
            assert not [one for one in state if one not in used and not re.fullmatch(NO_USE + text, one)], variant
        left = set(model.state_dict()) - taken
        assert left, variant
        assert not [name for name in left if not NEW.fullmatch(name)], variant


RECORDED = Path(os.environ.get("LAVILA_GOLDEN_TRAIN_DIR") or Path(__file__).parent / "data" / "golden-train")
TOLD_FILE = RECORDED / "trainable_names.json.gz"
TOLD = json.loads(gzip.decompress(TOLD_FILE.read_bytes())) if TOLD_FILE.is_file() else {}


@pytest.mark.parametrize("name", [name for name in TOLD if name in VARIANTS and "OPENAI" in name])
def test_parts_that_are_taken_are_those_that_the_original_froze_as_taken(name):
    """Its flags freeze what it copied from CLIP (but for the class token), and what it copied from GPT-2."""
    names = empty(VARIANTS[name]).state_dict()
    dual = name.startswith("CLIP")
    frozen = TOLD[name]["--timesformer-freeze-space" if dual else "--gated-xattn --freeze-lm-vclm"]["frozen"]
    for layout in (CLIP_HUB, CLIP_OPENAI) if dual else (layouts.GPT2,):
        taken = {re.sub(r"\.(blocks|h)\.\d+\.", r".\1.*.", one) for one in layout.origins(names)}
        taken = {one for one in taken if one.startswith(("visual.", "text_decoder."))} - {"visual.cls_token"}
        assert taken == set(frozen)


@torch.no_grad()
def test_narrators_and_classifiers_take_the_video_tower_of_a_dual_encoder(tmp_path):
    dual = shaken(made(DUAL))
    save_checkpoint(dual, tmp_path / "dual.safetensors")
    torch.save({"state_dict": {f"module.{k}": v.half() for k, v in dual.state_dict().items()}}, tmp_path / "dual.pth")
    for file, tolerance in (("dual.safetensors", 0), ("dual.pth", 2e-3)):
        for config in (NARRATOR, ClassifierConfig(VISION, (7, 3), multi_head=True)):
            model = made(config)
            begun = begin(model, [Start("dual_encoder", str(tmp_path / file))])
            assert begun.taken == tuple(name for name in model.state_dict() if name.startswith("visual."))
            for name in begun.taken:
                torch.testing.assert_close(
                    model.state_dict()[name], dual.state_dict()[name], rtol=tolerance, atol=tolerance
                )
    assert begin(made(DUAL), [Start("dual_encoder", str(tmp_path / "dual.safetensors"))]).fresh == ()


def test_more_frames_and_larger_pictures(tmp_path):
    dual = shaken(made(DUAL))
    path = save_checkpoint(dual, tmp_path / "dual.safetensors")
    model = made(replace(DUAL, vision=replace(VISION, frames=8, img=48)))
    assert begin(model, [Start("whole", str(path))]).fresh == ()
    time, old = model.visual.temporal_embed[0], dual.visual.temporal_embed[0]
    close(time[0], old[0])
    close(time[3], 0.75 * old[1] + 0.25 * old[2])  # its centre is at 3.5 / 2 - 0.5 = 1.25 of the old frames
    fewer = made(replace(DUAL, vision=replace(VISION, frames=2)))
    begin(fewer, [Start("dual_encoder", str(path))])
    assert torch.equal(fewer.visual.temporal_embed, dual.visual.temporal_embed[:, :2])
    assert model.visual.pos_embed.shape == (1, 37, 32)
    assert torch.equal(model.visual.pos_embed, stretch_positions(dual.visual.pos_embed, 36))


@pytest.mark.parametrize("new", [24, 9, 16])
def test_positions_are_stretched_as_pictures_are(new):
    """Pillow's bicubic filter, which is antialiased, is the one that open_clip's interpolation follows."""
    image = pytest.importorskip("PIL.Image")
    old = torch.randn(1, 1 + 16 * 16, 3, generator=torch.Generator().manual_seed(0))
    stretched = stretch_positions(old, new * new)
    assert torch.equal(stretched[:, 0], old[:, 0])
    for i in range(3):
        grid = image.fromarray(old[0, 1:, i].reshape(16, 16).contiguous().numpy())
        want = np.asarray(grid.resize((new, new), image.Resampling.BICUBIC))
        np.testing.assert_allclose(stretched[0, 1:, i].reshape(new, new), want, atol=2e-5)


def test_a_whole_model_of_each_kind_survives(tmp_path):
    for config in (NARRATOR, DUAL, replace(DUAL, text=BERT), ClassifierConfig(VISION, (7,))):
        before = shaken(made(config))
        path = save_checkpoint(before, tmp_path / "model.safetensors")
        model = made(config)
        assert begin(model, [Start("whole", str(path))]) == Begun(tuple(model.state_dict()), ())
        assert all(torch.equal(value, before.state_dict()[name]) for name, value in model.state_dict().items())


def test_later_starts_win(clip, tmp_path):
    dual = shaken(made(DUAL), seed=9)
    path = save_checkpoint(dual, tmp_path / "dual.safetensors")
    model = made(DUAL)
    begin(model, [Start("dual_encoder", str(path)), Start("clip", str(clip[1]))])
    assert torch.equal(model.visual.temporal_embed, dual.visual.temporal_embed)
    assert torch.equal(model.visual.ln_pre.weight, clip[0].vision_model.pre_layrnorm.weight)


def test_the_shipped_bundle_can_be_begun_from():
    model = made(VARIANTS["NANO_NARRATOR"])
    begun = begin(model, [Start("dual_encoder", "nano")])
    assert begun.taken == tuple(name for name in model.state_dict() if name.startswith("visual."))
    assert begin(model, [Start("whole", "nano")]).fresh == ()


# What the original's constructors leave, read off them: time_init "zeros" of frozen-in-time, CLIP's
# `initialize_parameters`, GPT-2's `_init_weights`, the classifiers' heads.
def test_fresh_numbers_are_the_originals():
    vision, depth = replace(VISION, dim=256, gated_time=True), 3
    text = ClipTextConfig(width=128, heads=2, layers=2, vocab=600, context=40)
    dual = made(DualEncoderConfig(vision, text, 64))
    begin(dual, [])
    state = dual.state_dict()
    for i in range(depth):
        block = f"visual.blocks.{i}"
        for name in ("timeattn.qkv.weight", "timeattn.qkv.bias", "timeattn.proj.bias", "norm3.bias", "alpha_timeattn"):
            assert not state[f"{block}.{name}"].any()
        assert (state[f"{block}.timeattn.proj.weight"] == 1).all()
        assert (state[f"{block}.norm3.weight"] == 1).all()
    assert not state["visual.temporal_embed"].any()

    def deviates(tensor, want):
        assert abs(float(tensor.mean())) < want / 5
        assert abs(float(tensor.std()) / want - 1) < 0.12

    deviates(state["visual.pos_embed"], 0.02)
    deviates(state["visual.blocks.1.attn.qkv.weight"], (3 * 256) ** -0.5)  # uniform, up to 1/√256
    deviates(state["image_projection"], 256**-0.5)
    deviates(state["text_projection"], 128**-0.5)
    deviates(state["token_embedding.weight"], 0.02)
    deviates(state["positional_embedding"], 0.01)
    deviates(state["transformer.resblocks.0.attn.in_proj_weight"], 128**-0.5)
    deviates(state["transformer.resblocks.1.attn.out_proj.weight"], 128**-0.5 * 4**-0.5)
    deviates(state["transformer.resblocks.1.mlp.c_proj.weight"], 128**-0.5 * 4**-0.5)
    deviates(state["transformer.resblocks.0.mlp.c_fc.weight"], 256**-0.5)
    assert not state["transformer.resblocks.0.attn.in_proj_bias"].any()

    narrator = made(replace(NARRATOR, text=replace(GPT2, n_embd=64, vocab=500)))
    begin(narrator, [])
    state, block = narrator.state_dict(), "text_decoder.transformer.h.1"
    deviates(state["img_queries"], 64**-0.5)
    deviates(state[f"{block}.crossattention.c_attn.weight"], 0.02)
    deviates(state[f"{block}.crossattention.c_proj.weight"], 0.02 / 6**0.5)
    deviates(state[f"{block}.mlp_crossattention.c_proj.weight"], 0.02 / 6**0.5)
    deviates(state["text_decoder.transformer.wte.weight"], 0.02)
    assert not any(value.any() for name, value in state.items() if "alpha_" in name or name.endswith("beta"))
    assert all((value == 1).all() for name, value in state.items() if name.endswith("gamma"))

    classifier = made(ClassifierConfig(VISION, (300, 40), multi_head=True))
    begin(classifier, [])
    deviates(classifier.state_dict()["fc_cls.0.weight"], 0.01)
    assert not classifier.state_dict()["fc_cls.1.bias"].any()


def test_fresh_numbers_depend_on_seed_and_name_alone(clip, gpt2):
    def state(seed, *starts):
        model = shaken(made(NARRATOR), seed=len(starts))
        begun = begin(model, starts, seed)
        return {name: value for name, value in model.state_dict().items() if name in begun.fresh}

    alone = state(5)
    for fresh in (state(5, Start("clip", str(clip[1]))), state(5, Start("gpt2", str(gpt2[1])))):
        assert 0 < len(fresh) < len(alone)
        assert all(torch.equal(value, alone[name]) for name, value in fresh.items())
    assert not torch.equal(state(6)["img_queries"], alone["img_queries"])


def test_a_model_keeps_its_type_and_what_is_trained(clip):
    whole, half = made(DUAL), made(DUAL).bfloat16()
    half.visual.requires_grad_(False)
    for model in (whole, half):
        begin(model, [Start("clip", str(clip[1]))])
    for name, value in half.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name].bfloat16()), name
    assert all(p.requires_grad != name.startswith("visual.") for name, p in half.named_parameters())


@pytest.mark.parametrize(
    "config",
    [
        replace(DUAL, head="egovlp", text=BERT, vision=replace(VISION, ln_pre=False, act="gelu")),
        replace(DUAL, vision=replace(VISION, gated_time=True)),
        ClassifierConfig(VISION, (4,)),
    ],
    ids=lambda config: config.kind,
)
def test_nothing_is_left_as_it_was(config):
    """Except the temperature, which is a setting."""
    one, other = shaken(made(config), 1), shaken(made(config), 2)
    scale = [model.logit_scale.item() for model in (one, other) if isinstance(model, DualEncoder)]
    begin(one, [])
    begin(other, [])
    for name, value in one.state_dict().items():
        assert name == "logit_scale" or torch.equal(value, other.state_dict()[name]), name
    assert [model.logit_scale.item() for model in (one, other) if isinstance(model, DualEncoder)] == scale


def refused(config, kind, source, wanted):
    with pytest.raises(CheckpointError) as caught:
        begin(made(config), [Start(kind, str(source))])
    text = str(caught.value)
    assert "\n" not in text
    assert re.search(wanted, text), text
    return text


def test_other_sizes_name_a_tensor_both_shapes_and_what_fits(clip, gpt2, tmp_path):
    wider = replace(DUAL, vision=replace(VISION, dim=64))
    text = refused(
        wider, "clip", clip[1], r"gives image_projection the shape \(32, 16\), where this model has \(64, 16\)"
    )
    assert text.endswith("fits no variant of this kind of model")
    refused(replace(DUAL, vision=replace(VISION, depth=5)), "clip", clip[1], r"layers\.3\..* is missing \(32 in all\)")
    refused(
        replace(DUAL, vision=replace(VISION, depth=2)), "clip", clip[1], r"layers\.2\..* has no place .*\(16 in all"
    )
    unlike = replace(VISION, ln_pre=False, act="gelu")
    refused(replace(DUAL, vision=unlike), "clip", clip[1], r"pre_layrnorm\.\w+ has no place")
    refused(replace(NARRATOR, text=replace(GPT2, vocab=81)), "gpt2", gpt2[1], "has 80 words, this model's 81")
    nano = made(VARIANTS["NANO_DUAL_ENCODER"])
    path = save_checkpoint(nano, tmp_path / "nano.safetensors")
    state = tmp_path / "bare.pth"  # without sizes inside
    torch.save(nano.state_dict(), state)
    refused(DUAL, "whole", state, "it fits NANO_DUAL_ENCODER$")
    refused(DUAL, "whole", path, "its vision dim is 128, this model's 32")


def test_same_shapes_of_another_function_are_refused(tmp_path):
    path = save_checkpoint(made(DUAL), tmp_path / "dual.safetensors")
    refused(replace(DUAL, vision=replace(VISION, heads=4)), "whole", path, "its vision heads is 2, this model's 4")
    refused(replace(DUAL, text=replace(CLIP_TEXT, heads=4)), "whole", path, "its text heads is 2, this model's 4")


def test_files_of_something_else(clip, gpt2, bert, tmp_path):
    refused(NARRATOR, "gpt2", clip[1], "not a GPT-2 .*; give another file, or another kind of start")
    refused(DUAL, "clip", gpt2[1], "not a CLIP .*")
    refused(replace(DUAL, text=BERT), "distilbert", gpt2[1], "not a DistilBERT")
    refused(DUAL, "dual_encoder", bert[1], "not a LaViLa model")
    narrator = save_checkpoint(made(NARRATOR), tmp_path / "narrator.safetensors")
    refused(DUAL, "whole", narrator, "a narrator, and this is a dual_encoder; take a file of the same kind")
    refused(DUAL, "dual_encoder", narrator, "is missing")
    (tmp_path / "text").mkdir()
    refused(
        DUAL, "clip", tmp_path / "text", r"holds no clip\.safetensors, nor model\.safetensors or pytorch_model\.bin"
    )
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    refused(DUAL, "clip", tmp_path / "junk.safetensors", "not a safetensors file")


def test_missing_names_are_counted(clip, tmp_path):
    hub = load_file(clip[1] / "model.safetensors")
    save_file({n: t for n, t in hub.items() if not n.startswith("text_model")}, tmp_path / "vision.safetensors")
    refused(DUAL, "clip", tmp_path / "vision.safetensors", r"text_model\.\S+ is missing \(\d+ in all\)")
    begin(made(NARRATOR), [Start("clip", str(tmp_path / "vision.safetensors"))])
    whole = {**hub, "vision_model.pre_layrnorm.bias": hub["vision_model.pre_layrnorm.bias"].int()}
    save_file(whole, tmp_path / "int.safetensors")
    refused(DUAL, "clip", tmp_path / "int.safetensors", r"pre_layrnorm\.bias is int32, not floating")


def test_hub_pickles_are_read_without_running_them(gpt2, tmp_path):
    torch.save(gpt2[0].state_dict(), tmp_path / "pytorch_model.bin")
    assert "text_decoder.transformer.wte.weight" in begin(made(NARRATOR), [Start("gpt2", str(tmp_path))]).taken

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"wte.weight": Evil()}, tmp_path / "pytorch_model.bin")
    refused(NARRATOR, "gpt2", tmp_path, "refused")
    assert not (tmp_path / "ran").exists()


def test_what_is_not_here(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("gpt2", "dual-base"):
        with pytest.raises(ModelNotFoundError, match=f"run: lavila-fast models pull {name}$"):
            begin(made(NARRATOR), [Start("gpt2" if name == "gpt2" else "dual_encoder", name)])
    (tmp_path / "gpt2").mkdir()
    with pytest.raises(ModelNotFoundError, match="models pull gpt2"):
        begin(made(NARRATOR), [Start("gpt2", "gpt2")])  # the name, not the folder
    with pytest.raises(CheckpointError, match="holds no"):
        begin(made(NARRATOR), [Start("gpt2", "./gpt2")])
    with pytest.raises(ModelNotFoundError, match=r"gone\.safetensors: no such file"):
        begin(made(NARRATOR), [Start("gpt2", "gone.safetensors")])


def test_a_pulled_file_is_found_by_name(gpt2, tmp_path, monkeypatch):
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    place = tmp_path / PRETRAINED["gpt2"].relative
    place.parent.mkdir()
    place.write_bytes((gpt2[1] / "model.safetensors").read_bytes())
    assert begin(made(NARRATOR), [Start("gpt2", "gpt2")]).taken


def test_starts_that_make_no_sense(clip):
    with pytest.raises(
        InputError, match="start bert: unknown; take one of clip, distilbert, gpt2, dual_encoder, video, whole, run"
    ):
        Start("bert", "x")
    for config, kind in ((DUAL, "gpt2"), (DUAL, "distilbert"), (ClassifierConfig(VISION, (3,)), "gpt2")):
        with pytest.raises(InputError, match=f"start {kind}: this {config.kind} has no part"):
            begin(made(config), [Start(kind, str(clip[1]))])


def test_tensors_are_let_go_one_by_one(clip):
    """Nothing of the file is held when all has been copied, and each tensor no longer than its copying takes."""
    model = made(DUAL)
    weights = Weights(clip[1], load_file(clip[1] / "model.safetensors"))
    layout, state = recognise(STARTS["clip"](model), weights)
    origins = match(model, layout, state, clip[1])
    copy_tensors(model, origins, state, clip[1])
    assert not state
