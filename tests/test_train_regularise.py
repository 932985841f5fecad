"""Noise and forgotten activations in training: where they sit, that eval mode knows nothing of them, what they save."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from lavila_fast.config import (  # noqa: E402
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    NarratorConfig,
    VisionConfig,
)
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.gpt2 import GatedGPT2  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.models.text_towers import DistilBert  # noqa: E402
from lavila_fast.models.timesformer import SpaceTimeBlock, TimeSformer  # noqa: E402
from lavila_fast.models.training_only import keep_places  # noqa: E402
from lavila_fast.train.batch import TrainingBatch  # noqa: E402
from lavila_fast.train.regularisation import Regularisation  # noqa: E402
from lavila_fast.train.regularise import regularise  # noqa: E402
from lavila_fast.train.tasks import CaptionTask, ClassifyTask, ContrastiveTask, TrainingTask  # noqa: E402

VISION = VisionConfig(img=32, patch=8, dim=32, depth=4, heads=2, frames=3)
GPT2 = GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab=60, n_positions=16, freq=2)
BERT = DistilBertConfig(dim=32, heads=2, layers=3, hidden=64, vocab=60, max_positions=16)
CLIP = ClipTextConfig(width=32, heads=2, layers=3, vocab=60, context=12)
MODELS: dict[str, Callable[[], Any]] = {
    "narrator": lambda: NarratorModel(NarratorConfig(VISION, GPT2, queries=4, pool_heads=2, max_tokens=12)),
    "clip": lambda: DualEncoder(DualEncoderConfig(VISION, CLIP, embed=16)),
    "distilbert": lambda: DualEncoder(DualEncoderConfig(VISION, BERT, embed=16)),
    "classifier": lambda: Classifier(ClassifierConfig(VISION, (5, 7), multi_head=True)),
}
NOISE = {
    "narrator": Regularisation(drop_path=0.3, dropout=0.2, patch_dropout=0.25),
    "clip": Regularisation(drop_path=0.3, patch_dropout=0.25),
    "distilbert": Regularisation(drop_path=0.3, dropout=0.2),
    "classifier": Regularisation(drop_path=0.3, head_dropout=0.5),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def random(make: Callable[[], Any], seed: int = 0) -> Any:
    """A model whose every weight counts."""
    torch.manual_seed(seed)
    model = make().train()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 0 and "alpha" in name:
                weight.fill_(0.7)
            elif weight.ndim >= 2:
                weight.normal_(std=0.2)
    return model


def batch_for(kind: str, count: int = 4) -> TrainingBatch:
    random = torch.Generator().manual_seed(5)
    video = torch.randn(count, 3, VISION.frames, VISION.img, VISION.img, generator=random)
    if kind == "classifier":
        return TrainingBatch(video, targets=torch.randint(5, (count, 2), generator=random))
    ids = torch.randint(1, 60, (count, 12), generator=random)
    return TrainingBatch(video, ids=ids, mask=(torch.arange(12) < torch.tensor([12, 9, 5, 12])[:count, None]).long())


def task_of(kind: str, model: nn.Module, fast: bool = False) -> TrainingTask:
    if isinstance(model, NarratorModel):
        return CaptionTask(model, fast)
    return ClassifyTask(model, fast=fast) if isinstance(model, Classifier) else ContrastiveTask(model, fast=fast)


def gradients(task: TrainingTask, batch: TrainingBatch, seed: int = 3) -> dict[str, Tensor]:
    task.zero_grad()
    torch.manual_seed(seed)
    torch.autograd.backward(task(batch)[0])
    return {name: weight.grad.clone() for name, weight in task.named_parameters() if weight.grad is not None}


class Kept:
    """Bytes of distinct storages that backward keeps, weights left out."""

    def __init__(self, model: nn.Module) -> None:
        self.own = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        self.bytes: dict[int, int] = {}

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.own:
            self.bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def of(self, forward: Callable[[], Tensor]) -> int:
        with torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor):
            alive = forward()
        del alive
        return sum(self.bytes.values())


# --- noise ---


def test_every_clip_goes_with_or_without_space_attention_and_mlp_but_never_without_time() -> None:
    block = random(lambda: SpaceTimeBlock(VISION))
    x = torch.randn(64, 1 + 3 * 16, 32)
    with torch.no_grad():
        block.drop_path = 0.5
        torch.manual_seed(1)
        found = block(x, 3)
        torch.manual_seed(1)
        torch.testing.assert_close(block.cls(x, 3), found[:, :1])
        space = block.attn(block.norm1(x + block.timeattn(block.norm3(x), 3)), 3)
        might = []
        for with_space, with_mlp in itertools.product((0, 1), repeat=2):
            y = x + 2 * with_space * space
            might.append(y + 2 * with_mlp * block.mlp(block.norm2(y)))
    same = torch.stack([torch.isclose(found, one, atol=1e-4).flatten(1).all(1) for one in might], 1)
    assert (same.sum(1) == 1).all()
    assert (same.sum(0) > 6).all()  # of 64, 16 are expected


def test_deeper_blocks_drop_more() -> None:
    tower = TimeSformer(VISION)
    regularise(tower, Regularisation(drop_path=0.1))
    np.testing.assert_allclose([block.drop_path for block in tower.blocks], np.linspace(0, 0.1, 4), rtol=1e-6)
    regularise(tower, Regularisation())
    assert not any(block.drop_path for block in tower.blocks)


def test_the_same_places_go_in_all_frames() -> None:
    count, frames, places = 8, 3, 16
    numbers = torch.arange(count * frames * places).view(count, frames, places, 1).float().expand(-1, -1, -1, 5)
    kept = keep_places(numbers, 0.25)
    assert kept.shape == (count, frames, 12, 5)
    first = numbers[:, :, :1, 0]
    where = kept[..., 0] - first
    assert (where == where[:, :1]).all()
    assert (kept == kept[..., :1]).all()
    assert all(len(set(row.tolist())) == 12 for row in where[:, 0])
    assert len({tuple(sorted(row.tolist())) for row in where[:, 0]}) > 4
    assert keep_places(numbers, 0.999).shape[2] == 1


def test_towers_see_fewer_patches_and_their_cls_token() -> None:
    tower = random(lambda: TimeSformer(VISION))
    regularise(tower, Regularisation(patch_dropout=0.5))
    video = batch_for("clip").video
    whole = tower.eval().embed(video)
    some = tower.train().embed(video)
    assert some.shape == (4, 1 + 3 * 8, 32)
    torch.testing.assert_close(some[:, 0], whole[:, 0])
    for ours, all_ in zip(some, whole, strict=True):  # each is one of the whole ones
        assert ((ours[:, None] - all_).abs().amax(-1).min(1).values < 1e-5).all()
    assert tower(video).shape == (4, 32)
    assert tower.forward_features(video).shape == (4, 25, 32)


def test_gpt2_drops_where_transformers_does() -> None:
    """Without gated blocks it is GPT-2: the same numbers are drawn, in the same order."""
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 60, "n_positions": 16}
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, bos_token_id=59, eos_token_id=59, attn_implementation="eager")
    ).train()
    ours = GatedGPT2(GPT2Config(n_embd=32, n_layer=3, n_head=2, vocab=60, n_positions=16, freq=4)).train()
    state = {name: weight for name, weight in theirs.state_dict().items() if name != "lm_head.weight"}
    # Its block 0 has a gated cross-attention, whose gates are closed at first; nothing is drawn where there is nothing.
    ours.load_state_dict(state, strict=False)
    ours.transformer.h[0].cross = False
    ids = torch.randint(60, (4, 12))
    for rate in (0.0, 0.1):
        for module in theirs.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate
        regularise(ours, Regularisation(dropout=rate))
        for seed in (1, 2):
            torch.manual_seed(seed)
            expected = theirs(ids).logits
            torch.manual_seed(seed)
            torch.testing.assert_close(ours.logits(ids, torch.zeros(4, 1, 32)), expected, rtol=1e-5, atol=1e-5)


def test_distilbert_drops_where_transformers_does() -> None:
    transformers = pytest.importorskip("transformers")
    sizes: dict[str, Any] = {"dim": 32, "n_heads": 2, "n_layers": 3, "hidden_dim": 64, "vocab_size": 60}
    theirs = transformers.DistilBertModel(
        transformers.DistilBertConfig(**sizes, max_position_embeddings=16, attn_implementation="eager")
    ).train()
    ours = DistilBert(BERT).train()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    regularise(ours, Regularisation(dropout=0.1))  # which is theirs by default
    batch = batch_for("distilbert")
    torch.manual_seed(1)
    expected = theirs(batch.ids, batch.mask).last_hidden_state
    torch.manual_seed(1)
    torch.testing.assert_close(ours(batch.ids, batch.mask), expected, rtol=1e-5, atol=1e-5)


def test_gated_blocks_drop_from_probabilities_and_from_both_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random(MODELS["narrator"])
    regularise(model, NOISE["narrator"])
    drawn: list[tuple[int, ...]] = []
    plain = torch.nn.functional.dropout

    def watched(x: Tensor, rate: float) -> Tensor:
        assert rate == 0.2
        drawn.append(tuple(x.shape))
        return plain(x, rate)

    monkeypatch.setattr(torch.nn.functional, "dropout", watched)
    model.logits(torch.randn(2, 4, 32), torch.randint(60, (2, 7)))
    gated, branch = [(2, 2, 7, 4), (2, 7, 32), (2, 7, 32)], [(2, 7, 32)] * 2
    assert drawn == [(2, 7, 32), *gated, *branch, *branch, *gated, *branch]


def test_each_head_of_a_classifier_has_its_own_features_dropped() -> None:
    model = random(lambda: Classifier(ClassifierConfig(VISION, (5, 5), multi_head=True)))
    model.fc_cls[1].load_state_dict(model.fc_cls[0].state_dict())
    video = batch_for("classifier").video
    verb, noun = model(video)
    torch.testing.assert_close(verb, noun)
    regularise(model, Regularisation(head_dropout=0.5))
    verb, noun = model(video)
    assert not torch.isclose(verb, noun).any(1).all()


@pytest.mark.parametrize("kind", MODELS)
def test_eval_mode_knows_nothing_of_it_and_training_does(kind: str) -> None:
    model, batch = random(MODELS[kind]), batch_for(kind)
    task = task_of(kind, model)
    names = list(model.state_dict())
    with torch.no_grad():
        plain, plain_eval = task(batch)[0], task.eval()(batch)[0]
        assert plain == plain_eval
        regularise(model, Regularisation(**{**vars(NOISE[kind]), "checkpointing": "blocks"}))
        before = torch.get_rng_state()
        assert task(batch)[0] == plain
        assert torch.equal(torch.get_rng_state(), before)
        noisy = task.train()(batch)[0]
        assert noisy != plain
        torch.set_rng_state(before)
        assert task(batch)[0] == noisy
        regularise(model, Regularisation())
        assert task(batch)[0] == plain
    assert list(model.state_dict()) == names


# --- activations ---


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("kind", MODELS)
def test_forgotten_activations_give_the_same_gradients(kind: str, fast: bool) -> None:
    model, batch = random(MODELS[kind]), batch_for(kind)
    task = task_of(kind, model, fast)
    found = {}
    for row in ("none", "selective", "blocks"):
        regularise(model, Regularisation(**{**vars(NOISE[kind]), "checkpointing": row}))
        found[row] = gradients(task, batch)
        assert all(isinstance(weight, nn.Parameter) for weight in model.parameters())
    assert len(found["none"]) > 20
    for row in ("selective", "blocks"):
        assert found[row].keys() == found["none"].keys()
        for name, gradient in found[row].items():
            assert torch.equal(gradient, found["none"][name]), f"{row} {name}"


@pytest.mark.parametrize("kind", MODELS)
def test_less_is_kept(kind: str) -> None:
    model, batch = random(MODELS[kind]), batch_for(kind)
    task, kept = task_of(kind, model), {}
    for row in ("none", "selective", "blocks"):
        regularise(model, Regularisation(checkpointing=row))
        kept[row] = Kept(task).of(lambda: task(batch)[0])
    assert kept["blocks"] < kept["none"] / 2
    assert kept["blocks"] < kept["selective"] < 0.75 * kept["none"]


@pytest.mark.slow
def test_compiled_tower_is_the_tower() -> None:
    tower, video = random(lambda: TimeSformer(replace(VISION, depth=2))), batch_for("clip").video
    regularise(tower, Regularisation(drop_path=0.5, patch_dropout=0.25))
    compiled = torch.compile(tower, backend="aot_eager", fullgraph=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = tower(video)
        torch.manual_seed(seed)
        torch.testing.assert_close(compiled(video), expected)


# --- refusals ---


@pytest.mark.parametrize("name", ["drop_path", "dropout", "head_dropout", "patch_dropout"])
@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_rates_that_make_no_sense_are_refused(name: str, rate: float) -> None:
    with pytest.raises(InputError, match=f"{name} must be from 0 to below 1"):
        Regularisation(**{name: rate})


def test_what_a_model_has_no_place_for_is_refused() -> None:
    with pytest.raises(InputError, match="checkpointing some: unknown; take one of blocks, none, selective"):
        Regularisation(checkpointing="some")
    clip, narrator = MODELS["clip"](), MODELS["narrator"]()
    with pytest.raises(InputError, match=r"dropout 0\.1: this model has no GPT-2 or DistilBERT"):
        regularise(clip, Regularisation(dropout=0.1))
    with pytest.raises(InputError, match=r"head_dropout 0\.5: this model has no classifier's head; set it to 0"):
        regularise(narrator, Regularisation(head_dropout=0.5))
    with pytest.raises(InputError, match=r"drop_path 0\.1: this model has no video tower"):
        regularise(narrator.text_decoder, Regularisation(drop_path=0.1))
