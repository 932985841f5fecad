"""Bundles: what is written is read back, and what is damaged, altered or foreign is refused in one line."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import tiny

pytest.importorskip("torch")

from lavila_fast import Narrator
from lavila_fast.bundle.manifest import FORMAT, MANIFEST, Bundle, open_bundle
from lavila_fast.config import ClassifierConfig
from lavila_fast.engines.host.ort import OrtRuntime
from lavila_fast.errors import BundleError, InputError


@pytest.fixture
def bundle(tmp_path, tiny_bundle):
    return shutil.copytree(tiny_bundle, tmp_path / "bundle")


def alter(folder, **values):
    path = folder / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(folder, *parts):
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    text = str(caught.value)
    assert "\n" not in text
    for part in (str(folder), *parts):
        assert part in text


def test_what_the_export_wrote(tiny_bundle, tiny_model):
    found = open_bundle(tiny_bundle)
    assert found.narrator == tiny_model.config
    assert (found.name, found.folder, found.clip_seconds, found.target) == ("tiny", tiny_bundle, 2.0, "cpu")
    assert set(found.files) == {"encoder.onnx", "decoder.onnx", "narrator_tokenizer.json", "weights.safetensors"}
    assert {p.name for p in tiny_bundle.iterdir()} == {MANIFEST, *found.files}
    assert found.tokenizer["narrator"] == {"kind": "gpt2", "file": "narrator_tokenizer.json"}
    assert set(found.built_with) == {"torch", "onnx", "lavila-fast"}
    assert found.opset == 20
    assert found.precision == {"encoder": "fp32", "decoder": "fp32"}
    assert found.native
    assert set(found.engines) == {"onnxruntime"}
    assert found.parity["graphs"]["decoder"]["relative"] < 1e-5


def test_round_trip(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"a" * 5000)
    models = {"narrator": tiny.config(), "classifier": ClassifierConfig(num_classes=(3, 4), multi_head=True)}
    made = Bundle(tmp_path, "x", models, 1.5, {"encoder": "int8"}, {"narrator": {"kind": "gpt2"}}, "sm90", 18, note="n")
    made = replace(made, engines={"tensorrt": "never run"}, parity={"verdict": "pass"}, calibration={"clips": 512})
    made.save()
    found = open_bundle(tmp_path)
    assert {**vars(found), "files": {}} == vars(made)
    assert set(found.files) == {"a.onnx"}
    found.save()
    assert open_bundle(tmp_path) == found
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["a.onnx", MANIFEST]


def test_altered_file(bundle):
    path = bundle / "decoder.onnx"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    refused(bundle, "decoder.onnx", "hash differs")
    assert open_bundle(bundle, verify=False).name == "tiny"


def test_missing_file(bundle):
    (bundle / "encoder.onnx").unlink()
    refused(bundle, "encoder.onnx", "missing")


def test_not_a_bundle(tmp_path):
    refused(tmp_path, "not a bundle", "models list")


def test_newer_format(bundle):
    alter(bundle, format=FORMAT + 1)
    refused(bundle, "newer", "upgrade")


def test_a_bundle_of_the_first_format(bundle, tiny_model):
    """It had no engines, parity, calibration or native weights."""
    path = bundle / MANIFEST
    values = json.loads(path.read_text())
    for name in ("engines", "parity", "calibration", "native"):
        del values[name]
    path.write_text(json.dumps(values | {"format": 1}))
    found = open_bundle(bundle)
    assert found.narrator == tiny_model.config
    assert (found.engines, found.parity, found.calibration, found.native) == ({}, {}, {}, False)


@pytest.mark.parametrize("name", ["../decoder.onnx", "/etc/hostname", "a/b", "..", ""])
def test_files_stay_in_the_folder(bundle, name):
    alter(bundle, files={name: "0" * 64})
    refused(bundle)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "7",
        '"format"',
        '{"format": 1}',
        '{"format": "1"}',
        '{"format": 0}',
        "[" * 200_000,
        "\xff\xfe",
        '{"format": 1, "models": [], "files": {}}',
        '{"format": 1, "models": {}, "files": []}',
    ],
)
def test_damaged_manifest(bundle, text):
    (bundle / MANIFEST).write_bytes(text.encode("latin-1"))
    refused(bundle, MANIFEST, "damaged", "again")


@pytest.mark.parametrize(
    "values",
    [
        {"models": {"narrator": {"kind": "poet"}}},
        {"models": {"narrator": {"kind": "narrator", "vision": {"img": 30, "patch": 16}}}},
        {"models": {"narrator": {"kind": "narrator", "from_the_future": 1}}},
        {"files": ["decoder.onnx"]},
        {"surprise": 1},
    ],
)
def test_values_that_do_not_fit(bundle, values):
    alter(bundle, **values)
    refused(bundle, MANIFEST, "damaged")


def test_a_bundle_without_a_narrator(bundle):
    alter(bundle, models={})
    with pytest.raises(BundleError, match="has no narrator"):
        Narrator.from_pretrained(bundle)


def test_a_bundle_without_a_vocabulary(bundle):
    alter(bundle, tokenizer={})
    with pytest.raises(BundleError, match="names no tokenizer"):
        Narrator.from_pretrained(bundle)


def test_the_vocabulary_must_be_the_models(bundle):
    from lavila_fast.text import train_bpe

    train_bpe(["#C C opens the drawer"] * 3, 262).save(bundle / "narrator_tokenizer.json")
    open_bundle(bundle, verify=False).save()
    with pytest.raises(BundleError, match="262 tokens, the narrator 258"):
        Narrator.from_pretrained(bundle)


def test_swapped_graphs(bundle, tiny_model):
    """With hashes that fit, what the graphs take and give is what betrays them."""
    encoder, decoder = bundle / "encoder.onnx", bundle / "decoder.onnx"
    other = encoder.read_bytes()
    encoder.write_bytes(decoder.read_bytes())
    refused(bundle, "encoder.onnx", "hash differs")
    with pytest.raises(BundleError, match=r"encoder\.onnx: 'cross_key_0' does not fit"):
        OrtRuntime(bundle, tiny_model.config, threads=1)
    encoder.write_bytes(other)
    decoder.write_bytes(other)
    with pytest.raises(BundleError, match=r"decoder\.onnx: .* does not fit the model sizes"):
        OrtRuntime(bundle, tiny_model.config, threads=1)


@pytest.mark.parametrize("sizes", [{"queries": 6}, {"vision": {"img": 64}}, {"vision": {"frames": 3}}])
def test_a_graph_of_another_model(bundle, tiny_model, sizes):
    """Names are the same, sizes are not."""
    vision = replace(tiny_model.config.vision, **sizes.get("vision", {}))
    other = replace(tiny_model.config, **{**sizes, "vision": vision})
    with pytest.raises(BundleError, match="the model sizes in"):
        OrtRuntime(bundle, other, threads=1)


@pytest.mark.parametrize("name", ["decoder.onnx", "weights.safetensors"])
def test_a_truncated_file(bundle, tiny_model, name):
    path = bundle / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(bundle, name, "hash differs")
    with pytest.raises(BundleError, match="ONNX Runtime cannot load this graph"):
        OrtRuntime(bundle, tiny_model.config, threads=1)


def test_a_folder_of_ones_own_is_not_overwritten(tmp_path, tiny_bundle):
    from lavila_fast.export.options import ExportOptions

    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a bundle"):
        ExportOptions(tiny_bundle.parent / "narrator.safetensors", tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_another_program_s_bundle_json_is_no_leave_to_delete(tmp_path, tiny_bundle):
    from lavila_fast.export.options import ExportOptions

    (tmp_path / "bundle.json").write_text('{"my": "webpack"}')
    (tmp_path / "src").mkdir()
    with pytest.raises(InputError, match="not a bundle"):
        ExportOptions(tiny_bundle.parent / "narrator.safetensors", tmp_path)


def test_a_bundle_is_not_replaced_with_what_else_lies_in_it(bundle, tiny_bundle):
    from lavila_fast.export.options import ExportOptions

    weights = tiny_bundle.parent / "narrator.safetensors"
    ExportOptions(weights, bundle)
    (bundle / "notes.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"notes\.txt in it is not the bundle's"):
        ExportOptions(weights, bundle)


def test_no_stray_joins_a_bundle_that_was_written(bundle):
    for name in ("my_tokenizer.json", "x_ranges.json"):
        (bundle / name).write_text("{}")
    open_bundle(bundle).save()
    assert not {"my_tokenizer.json", "x_ranges.json"} & set(open_bundle(bundle).files)


def test_files_of_the_user_s_are_no_part_of_it(bundle):
    (bundle / "notes.txt").write_text("mine")
    (bundle / "parity.json").write_text("{}")
    open_bundle(bundle).save()
    assert "notes.txt" not in open_bundle(bundle).files
    assert "parity.json" in open_bundle(bundle).files
    (bundle / "notes.txt").unlink()
    open_bundle(bundle)


def test_the_plan_of_engines_may_be_edited(bundle):
    plan = bundle / "engines.json"
    plan.write_text('{"axes": {}}')
    open_bundle(bundle).save()
    assert plan.name not in open_bundle(bundle).files
    before = {**open_bundle(bundle).files, plan.name: "0" * 64}  # as bundles made before have it
    alter(bundle, files=before)
    open_bundle(bundle).save()
    assert open_bundle(bundle).files == before  # and so its fingerprint


def test_engines_that_bring_code_run_only_if_the_user_allows_it(tmp_path, monkeypatch):
    from lavila_fast.bundle.engine_key import EngineKey, needs_host_code

    key = EngineKey("tensorrt", "11", "x", ("9.0",), "", "", {"version_compatible": True})
    monkeypatch.delenv("LAVILA_ALLOW_HOST_CODE", raising=False)
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "home"))
    assert not needs_host_code(tmp_path, replace(key, options={}))
    with pytest.raises(BundleError, match="set LAVILA_ALLOW_HOST_CODE=1"):
        needs_host_code(tmp_path, key)
    monkeypatch.setenv("LAVILA_ALLOW_HOST_CODE", "1")
    assert needs_host_code(tmp_path, key)


@pytest.mark.parametrize("failing", [1, 2, None])
def test_the_old_bundle_is_never_lost(bundle, tmp_path, monkeypatch, failing):
    from pathlib import Path

    from lavila_fast.export.build import restore, swap_in

    new, rename, calls = shutil.copytree(bundle, tmp_path / "new"), Path.rename, []
    alter(new, note="new")

    def fails(path, target):
        calls.append(path)
        if len(calls) == failing:
            raise OSError("the disk is gone")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fails)
    if failing is None:
        swap_in(new, bundle)
    else:
        with pytest.raises(OSError, match="gone"):
            swap_in(new, bundle)
    assert open_bundle(bundle).note == ("new" if failing is None else "")
    assert not (tmp_path / ".bundle.old").exists()
    bundle.rename(tmp_path / ".bundle.old")  # killed between the two
    restore(bundle)
    open_bundle(bundle)
