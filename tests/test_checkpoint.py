"""Weights come in strictly and safely: what is refused, what the error names, what survives a round trip."""

from __future__ import annotations

import argparse
import gzip
import json
import os
import pickle
import shutil
import subprocess
import sys
import types
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from lavila_fast.config import (  # noqa: E402
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    NarratorConfig,
    VisionConfig,
    to_dict,
)
from lavila_fast.errors import CheckpointError, InputError, StorageError  # noqa: E402
from lavila_fast.models.checkpoint import NO_INFORMATION, TIED, MismatchError, fit_frames, infer_config  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.load import (  # noqa: E402
    CLASSES,
    convert_checkpoint,
    load_classifier,
    load_dual_encoder,
    load_narrator,
    save_checkpoint,
)
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.models.text_towers import DistilBert  # noqa: E402
from lavila_fast.models.weight_files import read_weights  # noqa: E402
from lavila_fast.presets import VARIANTS  # noqa: E402

VISION = VisionConfig(img=16, patch=8, dim=24, depth=2, heads=3, frames=4)
NARRATOR = NarratorConfig(VISION, GPT2Config(16, 3, 2, vocab=31, n_positions=12, freq=2), queries=5, pool_heads=2)
DUAL = DualEncoderConfig(VISION, ClipTextConfig(16, 2, 2, vocab=31, context=9), embed=8)
HEADS = ClassifierConfig(VISION, (3, 4), multi_head=True)
GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def released(model, path, prefix="module.", **changes):
    """Write `model` as the original does; `changes` replace (or with None remove) keys, dots written as __."""
    state = OrderedDict((prefix + key, t.clone()) for key, t in model.state_dict().items())
    for key, value in changes.items():
        name = prefix + key.replace("__", ".")
        state.pop(name, None)
        if value is not None:
            state[name] = value
    args = argparse.Namespace(model="CLIP_OPENAI_TIMESFORMER_BASE", lr=1e-3)
    torch.save({"epoch": 3, "state_dict": state, "args": args, "best_acc1": 0.5}, path)
    return path


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_released_layout_and_bare_state_dict(tmp_path, prefix):
    model = NarratorModel(NARRATOR)
    loaded = load_narrator(released(model, tmp_path / "a.pth", prefix), NARRATOR)
    assert same(loaded, model)
    assert not loaded.training
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    assert same(load_narrator(tmp_path / "bare.pth", to_dict(NARRATOR)), model)


def test_legacy_file_that_is_no_zip(tmp_path):
    model = DualEncoder(DUAL)
    torch.save(model.state_dict(), tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_dual_encoder(tmp_path / "old.pth", DUAL), model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(tmp_path, dtype):
    model = NarratorModel(NARRATOR)
    path = released(model.to(dtype), tmp_path / "half.pth")
    loaded = load_narrator(path, NARRATOR)
    assert {t.dtype for t in loaded.state_dict().values()} == {torch.float32}
    assert same(loaded, model.float())


def test_buffers_without_information_and_tied_head_are_not_needed(tmp_path):
    model = NarratorModel(NARRATOR)
    mask = torch.ones(1, 1, 12, 12).tril()
    extra = {f"text_decoder__transformer__h__{i}__attn__bias": mask for i in range(3)}
    extra["text_decoder__transformer__h__0__crossattention__masked_bias"] = torch.tensor(-1e4)
    extra["text_decoder__lm_head__weight"] = model.state_dict()["text_decoder.transformer.wte.weight"].clone()
    assert same(load_narrator(released(model, tmp_path / "a.pth", **extra), NARRATOR), model)

    extra["text_decoder__lm_head__weight"][0, 0] += 1
    with pytest.raises(CheckpointError, match=r"lm_head\.weight differs from .*wte\.weight"):
        load_narrator(released(model, tmp_path / "b.pth", **extra), NARRATOR)


def test_first_offending_key_counts_and_full_list(tmp_path):
    model = DualEncoder(DUAL)
    path = released(model, tmp_path / "a.pth", visual__cls_token=None, ln_final__bias=None, odd=torch.zeros(1))
    with pytest.raises(MismatchError) as caught:
        load_dual_encoder(path, DUAL)
    first, *listed = str(caught.value).splitlines()
    assert first.startswith(f"{path}: key visual.cls_token is missing (2 missing, 0 of another shape, 1 unexpected)")
    assert [line.strip() for line in listed] == [
        "missing: visual.cls_token",
        "missing: ln_final.bias",
        "unexpected: odd",
    ]

    path = released(model, tmp_path / "b.pth", ln_final__weight=torch.zeros(17))
    with pytest.raises(MismatchError, match=r"key ln_final\.weight is \(17,\), expected \(16,\)") as caught:
        load_dual_encoder(path, DUAL)
    assert caught.value.misshaped == {"ln_final.weight": ((16,), (17,))}

    with pytest.raises(MismatchError, match="key odd is unexpected"):
        load_dual_encoder(released(model, tmp_path / "c.pth", odd=torch.zeros(1)), DUAL)


def test_same_key_with_and_without_prefix(tmp_path):
    state = DualEncoder(DUAL).state_dict()
    torch.save({**state, "module.logit_scale": torch.zeros([])}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="logit_scale is there with and without"):
        load_dual_encoder(tmp_path / "a.pth", DUAL)


class Touch:
    """Creates a file when it is unpickled by a loader that runs what it is told to."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("layout", ["in args", "in state_dict", "plain pickle", "legacy", "protocol 4"])
def test_a_pickle_that_runs_code_is_refused(tmp_path, layout):
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    state = {"module.logit_scale": torch.zeros([])}
    if layout == "in args":
        torch.save({"state_dict": state, "args": argparse.Namespace(model=Touch(touched))}, path)
    elif layout == "in state_dict":
        torch.save({"state_dict": {**state, "x": Touch(touched)}}, path)
    elif layout == "legacy":
        torch.save({**state, "x": Touch(touched)}, path, _use_new_zipfile_serialization=False)
    elif layout == "protocol 4":
        torch.save({**state, "x": Touch(touched)}, path, pickle_protocol=4)
    else:
        path.write_bytes(pickle.dumps(Touch(touched), protocol=2))
    with pytest.raises(CheckpointError, match=r"evil\.pth") as caught:
        load_dual_encoder(path, DUAL)
    assert not touched.exists()
    if layout != "protocol 4":
        assert "mkdir" in str(caught.value)
    touched.mkdir()  # what the file asks for is possible here, so it was not run above
    assert touched.exists()


def test_tables_and_numbers_of_fine_tuned_checkpoints_are_set_aside(tmp_path, monkeypatch):
    """Their args hold a pandas table; neither pandas nor numpy may run, whatever the pickle makes of their names."""
    module = types.ModuleType("pandas.core.frame")
    table = type("DataFrame", (), {"__module__": module.__name__, "__init__": lambda self: setattr(self, "x", [1])})
    module.DataFrame = table
    for name in [name for name in sys.modules if name.split(".")[0] == "pandas"]:  # of other tests
        monkeypatch.delitem(sys.modules, name)
    with monkeypatch.context() as patch:
        for name in ("pandas", "pandas.core"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        args = argparse.Namespace(actions=table(), mapping=np.arange(3), num_classes=[3, 4])
        model = Classifier(HEADS)
        torch.save({"state_dict": model.state_dict(), "args": args, "best_acc1": np.float64(3)}, tmp_path / "a.pth")
    assert "pandas.core.frame" not in sys.modules
    assert same(load_classifier(tmp_path / "a.pth", HEADS), model)
    assert "pandas.core.frame" not in sys.modules


@pytest.mark.parametrize("name", ["a.pth", "a.safetensors"])
@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x80\x02}q\x00.", os.urandom(300)])
def test_not_a_checkpoint(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        load_narrator(tmp_path / name, NARRATOR)


def test_missing_file_and_unknown_name(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        load_narrator(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match="nothing-of-that-name: no such"):
        load_narrator("nothing-of-that-name")
    with pytest.raises(CheckpointError, match=r"holds no narrator\.safetensors"):
        load_narrator(tmp_path)


def test_truncated_checkpoint_names_the_first_lost_key(tmp_path):
    model = DualEncoder(DUAL)
    path = released(model, tmp_path / "a.pth")
    whole = path.read_bytes()
    keys = list(model.state_dict())
    found = []
    for share in (0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(CheckpointError, match=r"a\.pth: truncated, the data of key 'module\.") as caught:
            load_dual_encoder(path, DUAL)
        found.append(keys.index(str(caught.value).split("'module.")[1].split("'")[0]))
    assert found == sorted(found)
    assert len(set(found)) == 3

    path = save_checkpoint(model, tmp_path / "a.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: truncated, the data of key '\w"):
        load_dual_encoder(path)
    path.write_bytes(whole[:50])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a safetensors file"):
        load_dual_encoder(path)


def test_every_shorter_checkpoint_is_an_error_of_ours(tmp_path):
    path = released(Classifier(HEADS), tmp_path / "a.pth")
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_classifier(path, HEADS)


@pytest.mark.parametrize("config", [NARRATOR, DUAL, HEADS], ids=lambda c: c.kind)
def test_own_format_round_trip_in_a_bundle(tmp_path, config):
    model = CLASSES[type(config)](config)
    load = {"narrator": load_narrator, "dual_encoder": load_dual_encoder, "classifier": load_classifier}[config.kind]
    path = save_checkpoint(model, tmp_path / f"{config.kind}.safetensors")
    for source in (path, tmp_path):
        loaded = load(source)
        assert same(loaded, model)
        assert loaded.config == config
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_convert_keeps_half_precision_and_is_strict(tmp_path):
    model = NarratorModel(NARRATOR).half()
    source = released(model, tmp_path / "half.pth")
    output = convert_checkpoint(source, tmp_path / "n.safetensors", NARRATOR)
    assert {t.dtype for t in read_weights(output).tensors.values()} == {torch.float16}
    assert same(load_narrator(output), model.float())
    full = convert_checkpoint(source, tmp_path / "f.safetensors", NARRATOR, dtype="float32")
    assert {t.dtype for t in read_weights(full).tensors.values()} == {torch.float32}

    with pytest.raises(InputError, match="float32, float16, bfloat16"):
        convert_checkpoint(source, tmp_path / "i.safetensors", NARRATOR, dtype="int8")

    released(model, tmp_path / "bad.pth", img_queries=None)
    with pytest.raises(MismatchError, match="img_queries is missing"):
        convert_checkpoint(tmp_path / "bad.pth", tmp_path / "bad.safetensors", NARRATOR)
    assert not (tmp_path / "bad.safetensors").exists()
    with pytest.raises(StorageError, match="nowhere"):
        convert_checkpoint(source, tmp_path / "nowhere" / "n.safetensors", NARRATOR)


def test_metadata_that_is_no_config(tmp_path):
    for text in ("{", "[]", '{"kind": "poet"}', '{"kind": "narrator", "vision": {"img": 3}}'):
        save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"lavila_fast": text})
        with pytest.raises(CheckpointError, match="not a model's config"):
            load_narrator(tmp_path / "a.safetensors")


def test_another_kind_of_model(tmp_path):
    path = save_checkpoint(DualEncoder(DUAL), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="kind dual_encoder; use load_dual_encoder"):
        load_narrator(path)
    with pytest.raises(InputError, match="use load_dual_encoder"):
        load_narrator(path, DUAL)
    torch.save({"fc.weight": torch.zeros(2, 2)}, tmp_path / "resnet.pth")
    with pytest.raises(CheckpointError, match=r"resnet\.pth: key visual\.\S+ is missing"):
        load_narrator(tmp_path / "resnet.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match="holds a list"):
        load_narrator(tmp_path / "list.pth")
    torch.save({"state_dict": {"x": 3}}, tmp_path / "number.pth")
    with pytest.raises(CheckpointError, match="'x' is a int"):
        load_narrator(tmp_path / "number.pth")


def test_heads_that_cannot_be_told_ask_for_a_config(tmp_path):
    path = released(DualEncoder(DUAL), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"how many attention heads .* as config"):
        load_dual_encoder(path)


def test_temporal_embedding_is_cut_or_stretched(tmp_path):
    model = Classifier(HEADS)
    with torch.no_grad():
        model.visual.temporal_embed.normal_()
    path = released(model, tmp_path / "a.pth")
    shorter = load_classifier(path, HEADS, frames=2)
    assert torch.equal(shorter.visual.temporal_embed, model.visual.temporal_embed[:, :2])
    assert shorter.config.vision.frames == 2
    longer = load_classifier(path, replace(HEADS, vision=replace(VISION, frames=10)))
    ours, theirs = longer.visual.temporal_embed[0].detach().numpy(), model.visual.temporal_embed[0].detach().numpy()
    place = np.clip((np.arange(10) + 0.5) * 4 / 10 - 0.5, 0, 3)  # pixel centres, edges repeated
    expected = np.stack([np.interp(place, range(4), column) for column in theirs.T], axis=1)
    np.testing.assert_allclose(ours, expected, atol=1e-6)
    assert fit_frames({"visual.temporal_embed": torch.zeros(1, 4, 2).half()}, 8)["visual.temporal_embed"].dtype == (
        torch.float16
    )


KEYS = GOLDEN / "checkpoint_keys.json.gz"
RELEASED = json.loads(gzip.decompress(KEYS.read_bytes())) if KEYS.is_file() else {}


@pytest.mark.parametrize("variant", RELEASED)
def test_names_and_shapes_of_released_variants(variant):
    """The model built from the preset has exactly the released tensors, and the tensors alone tell the preset."""
    with torch.device("meta"):
        model = CLASSES[type(VARIANTS[variant])](VARIANTS[variant])
        tensors = {key: torch.empty(shape) for key, shape in RELEASED[variant].items()}
    ours = {key: list(t.shape) for key, t in model.state_dict().items()}
    theirs = {k: s for k, s in RELEASED[variant].items() if not NO_INFORMATION.fullmatch(k) and k != TIED}
    assert ours == theirs
    left_out = set(RELEASED[variant]) - set(theirs)
    assert {key.rpartition(".")[2] for key in left_out} <= {"bias", "masked_bias", "weight"}
    assert infer_config(tensors, Path(variant)) == VARIANTS[variant]


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_distilbert_is_the_one_of_transformers(masked):
    transformers = pytest.importorskip("transformers")
    sizes = {"dim": 32, "n_heads": 4, "n_layers": 3, "hidden_dim": 80, "vocab_size": 50, "max_position_embeddings": 20}
    theirs = transformers.DistilBertModel(transformers.DistilBertConfig(**sizes)).eval()
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    ours = DistilBert(DistilBertConfig(32, 4, 3, 80, 50, 20)).eval()
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(50, (5, 13))
    mask = (torch.arange(13) < torch.tensor([13, 1, 5, 12, 7])[:, None]).long() if masked else None
    expected = theirs(ids, attention_mask=mask).last_hidden_state
    keep = mask.bool() if masked else torch.ones_like(ids).bool()
    torch.testing.assert_close(ours(ids, mask)[keep], expected[keep], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_clip_text_reads_up_to_its_end_token():
    model = DualEncoder(DUAL).eval()
    ids = torch.tensor([[29, 4, 5, 30, 0, 0, 0, 0, 0], [29, 7, 30, 0, 0, 0, 0, 0, 0]])
    whole = model.embed_text(ids)
    torch.testing.assert_close(model.embed_text(ids[:, :4]), whole, atol=1e-6, rtol=0)
    assert not torch.allclose(model.embed_text(ids[:, [0, 2, 1, 3]]), whole, atol=1e-3)
    with pytest.raises(InputError, match="L from 1 to 9"):
        model.embed_text(torch.zeros(1, 10, dtype=torch.long))


@pytest.mark.parametrize("package", ["torch", "safetensors"])
def test_without_torch_the_error_names_the_extra(package):
    code = f"import sys; sys.modules['{package}'] = None; import lavila_fast; lavila_fast.load_narrator"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode
    assert f"{package} is not installed; run: pip install 'lavila-fast[torch]'" in done.stderr


def test_sizes_beside_the_checkpoint_are_used(tmp_path):
    """NAME.json beside NAME.pth says the heads that the weights do not; a file about something else is passed over."""
    golden = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
    for suffix in (".pth", ".json"):
        shutil.copy(golden / f"classifier{suffix}", tmp_path / f"mine{suffix}")
    assert load_classifier(tmp_path / "mine.pth").config.vision.heads == 3
    (tmp_path / "mine.json").write_text('{"loss": 1.0}')
    with pytest.raises(CheckpointError, match="width 48"):
        load_classifier(tmp_path / "mine.pth")
