"""Weight files, bundles and vocabularies that were damaged or made to harm: refused before they cost anything."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import zipfile

import pytest
import tiny

from lavila_fast.bundle.manifest import MANIFEST, open_bundle
from lavila_fast.bundle.weights import MappedFiles
from lavila_fast.config import to_dict
from lavila_fast.errors import BundleError, CheckpointError, InputError
from lavila_fast.text import load_tokenizer
from lavila_fast.text.vocabularies import library_errors

torch = pytest.importorskip("torch")

from lavila_fast.models.load import convert_checkpoint, load_narrator  # noqa: E402
from lavila_fast.models.weight_files import read_weights  # noqa: E402


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def checkpoint(tmp_path, change=lambda state: None):
    model = tiny.narrator()
    state = dict(model.state_dict())
    change(state)
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    (tmp_path / "model.json").write_text(json.dumps(to_dict(model.config)))
    return tmp_path / "model.pth"


KEY = "text_decoder.transformer.ln_f.weight"


@pytest.mark.parametrize(
    ("told", "change"),
    [
        ("int64", lambda t: t.long()),
        ("bool", lambda t: t.bool()),
        ("complex64", lambda t: t.to(torch.complex64)),
        ("meta", lambda t: t.to("meta")),
        ("not a dense tensor", lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8)),
        ("repeats few numbers", lambda t: t[:1].clone().expand(32)),
    ],
)
def test_tensors_that_can_never_run_are_refused(tmp_path, told, change):
    path = checkpoint(tmp_path, lambda state: state.update({KEY: change(state[KEY])}))
    with pytest.raises(CheckpointError, match=told):
        convert_checkpoint(path, tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
    with pytest.raises(CheckpointError, match=told):
        load_narrator(path)


def test_a_flipped_bit_is_noticed(tmp_path):
    path = checkpoint(tmp_path)
    assert load_narrator(path)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda one: one.file_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 400 + largest.file_size // 2] ^= 4
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="checksum of its part"):
        load_narrator(path)


def test_a_packed_pickle_is_not_unfolded(tmp_path):
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb/data.pkl", b"\0" * (32 << 20))
        archive.writestr("bomb/version", "3")
    with pytest.raises(CheckpointError, match="unfold to more than the file"):
        read_weights(path)


class Large:
    def __reduce__(self):
        return bytearray, (2**40,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_number_in_a_pickle_takes_no_memory(tmp_path, zipped):
    path, content = tmp_path / "large.pth", pickle.dumps({"a": Large()}, protocol=2)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("large/data.pkl", content)
            archive.writestr("large/version", "3")
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match="bytearray"):
        read_weights(path)


@pytest.mark.parametrize(
    "sizes",
    [
        {"img": 32, "depth": 10**6},
        {"img": 32, "n_embd": 32, "queries": 2**32 + 5},
        {"img": "32", "n_embd": 32},
        {"img": 32, "num_classes": "12"},
        {"img": 32, "embed": 8, "distilbert": 3},
        {"kind": "narrator", "vision": []},
    ],
)
def test_a_sidecar_that_makes_no_sense_is_named(tmp_path, sizes):
    path = checkpoint(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(sizes))
    with pytest.raises(CheckpointError, match=r"model\.json: "):
        load_narrator(path)


@pytest.mark.parametrize(
    "values",
    [
        *({"clip_seconds": value} for value in ([2.0], "2", 0, -1, None, True, float("nan"), 1e9)),
        *({"tokenizer": value} for value in ([], {"narrator": []}, {"narrator": {"file": 3, "kind": "gpt2"}}, "gpt2")),
        *({name: value} for name in ("name", "note", "target") for value in (1, [], None)),
        *({name: [1]} for name in ("precision", "built_with", "engines", "checkpoints", "parity", "calibration")),
        {"files": {"decoder.onnx": 7}},
        {"native": "yes"},
        {"opset": 1.5},
        {"format": 2.5},
        {"format": True},
    ],
)
def test_every_field_of_a_manifest_has_its_type(bundle, values):
    path = bundle / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    with pytest.raises(BundleError, match=r"bundle\.json: damaged"):
        open_bundle(bundle)


@pytest.mark.parametrize("value", [10**8, 2**32 + 1, 1.0])
def test_a_bundle_s_sizes_are_bounded_before_anything_is_made_of_them(bundle, value):
    path = bundle / MANIFEST
    values = json.loads(path.read_text())
    values["models"]["narrator"]["text"]["n_layer"] = value
    path.write_text(json.dumps(values))
    with pytest.raises(BundleError, match="n_layer"):
        open_bundle(bundle)


@pytest.mark.parametrize("name", ["encoder.onnx.data", "narrator.safetensors", "other.onnx"])
def test_files_that_are_not_listed_are_not_used(bundle, name):
    (bundle / name).write_bytes(b"anything")
    with pytest.raises(BundleError, match=f"{name}: not among the files"):
        open_bundle(bundle)


def test_a_file_with_more_holes_than_content_is_not_read(bundle):
    with (bundle / "encoder.onnx").open("r+b") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(BundleError, match="far larger"):
        open_bundle(bundle)


def test_a_file_that_changes_while_it_is_read_in_place(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"abcdef")
    files = MappedFiles(path, tmp_path / "no such file")
    files.check()
    other = tmp_path / "other"
    other.write_bytes(b"another")
    other.replace(path)
    files.check()  # the old one is still mapped
    files = MappedFiles(path)
    with path.open("r+b") as file:
        file.truncate(3)
    with pytest.raises(BundleError, match="changed while it is in use"):
        files.check()


def spelled(**changed):
    values = json.loads(tiny.tokenizer().backend.to_str())
    for name, value in changed.items():
        (values["model"] if name in ("vocab", "merges", "type") else values)[name] = value
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "[" * 100_000,
        '{"model": 3}',
        spelled(vocab={"a": 2**32 - 1}),
        spelled(vocab={"a": -1}),
        spelled(vocab={"a": 1.5}),
        spelled(vocab=[]),
        spelled(type="Poet"),
        spelled(merges=[["x", "y"]]),
        spelled(added_tokens=[{"id": 2**31, "content": "x"}]),
        spelled(added_tokens=[3]),
        spelled(normalizer={"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 10**6}),
        spelled(normalizer={"type": "Replace", "pattern": {"Regex": "("}, "content": "b"}),
        spelled(decoder={"type": "Strip", "content": "a", "start": 2**62, "stop": 2**62}),
        spelled(pre_tokenizer={"type": "Split", "pattern": {"Regex": "(?<"}, "behavior": "Removed", "invert": True}),
        spelled(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        spelled(decoder={"type": "CTC"}),
        "x" * (17 << 20),
    ],
    ids=range(20),
)
def test_a_hostile_vocabulary_is_one_line(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(InputError) as told:
        load_tokenizer(tmp_path, "gpt2")
    assert "tokenizer.json" in str(told.value)
    assert "\n" not in str(told.value)


def test_padding_and_templates_of_a_vocabulary_are_left_out(tmp_path):
    padding = {
        "strategy": {"Fixed": 2**31},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "x",
    }
    (tmp_path / "tokenizer.json").write_text(spelled(padding=padding))
    assert load_tokenizer(tmp_path, "gpt2", tiny.LIMIT).rows(["a cup"]) == tiny.tokenizer().rows(["a cup"])


def test_a_panic_of_the_library_is_one_line():
    class Panic(BaseException):
        pass

    with pytest.raises(InputError, match="a vocabulary: not a vocabulary of this kind"), library_errors("a vocabulary"):
        raise Panic
    with pytest.raises(KeyboardInterrupt), library_errors("a vocabulary"):
        raise KeyboardInterrupt
