"""Compiled PyTorch: the same narrations, one compilation for all sizes, and packages that know their machine."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import test_runtime as histories
import tiny

torch = pytest.importorskip("torch")

from lavila_fast.bundle.engine_key import ALLOW, EngineKey, engine_path, read_key, trust  # noqa: E402
from lavila_fast.engines.host.compiled import AotRuntime, CompiledRuntime, aot_machine  # noqa: E402
from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.errors import BundleError, InputError  # noqa: E402
from lavila_fast.files import sha256  # noqa: E402
from lavila_fast.models.checkpoint import weights_digest  # noqa: E402


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    """Where it is noted what was built here."""
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(ALLOW, raising=False)


def written(package, **options):
    """A package with a key that fits this machine; what it holds is no code."""
    here = aot_machine()
    package.parent.mkdir(exist_ok=True)
    package.write_bytes(b"machine code")
    key = EngineKey(here.builder, here.version, here.gpu, (here.capability,), "", sha256(package), options)
    key.save(package)
    return key


@pytest.fixture(scope="module")
def small():
    """One block of text, so that compiling takes seconds."""
    sizes = tiny.config()
    return tiny.narrator(replace(sizes, text=replace(sizes.text, n_layer=1)))


def check(runtime, model, seeds=2):
    for seed in range(seeds):
        histories.test_any_history_gives_the_logits_of_the_whole_prefix({"it": runtime}, model, "it", seed)
    histories.test_beams_that_swap_and_share_a_past({"it": runtime}, model, "it")


def test_captured_graphs_hold_for_every_size(small):
    """What `torch.compile` captures before it generates code: two decoders serve all sizes, one clip and more."""
    captured = []

    def as_it_is(graph, _):
        captured.append(graph)
        return graph.forward

    torch._dynamo.reset()
    check(CompiledRuntime(small, backend=as_it_is), small, seeds=1)
    assert len(captured) == 3  # and the encoder, which sees one clip at a time
    torch._dynamo.reset()


def test_threads_follow_what_the_process_may_use(small, monkeypatch):
    """PyTorch counts processors, and knows nothing of a quota."""
    monkeypatch.setattr("lavila_fast.machine.available_cpus", lambda: 1)
    before = torch.get_num_threads()
    try:
        for runtime in (TorchRuntime, CompiledRuntime):
            torch.set_num_threads(2)
            runtime(small)
            assert torch.get_num_threads() == 1
        monkeypatch.undo()
        TorchRuntime(small)
        assert torch.get_num_threads() == 1  # what somebody has set before stays
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_compiled(small):
    """Needs a C++ compiler."""
    torch._dynamo.reset()
    check(CompiledRuntime(small), small)


@pytest.mark.slow
def test_packages_load_without_compiling(small, tmp_path):
    """Needs a C++ compiler."""
    pytest.importorskip("onnxscript")
    from lavila_fast.export.aot import build_packages

    keys = build_packages(small, tmp_path)
    assert set(keys) == {"encoder", "decoder"}
    said = []
    assert build_packages(small, tmp_path, say=said.append) == keys
    assert all(line.endswith("still good") for line in said)
    build_packages(small, tmp_path, force=True, say=said.append)
    assert all(line.endswith("compiling") for line in said[2:])
    other = tiny.narrator(small.config, seed=5)
    with pytest.raises(BundleError, match="compiled from other weights than the bundle's"):
        AotRuntime(tmp_path, small.config, weights=weights_digest(other))
    AotRuntime(tmp_path, small.config, weights=weights_digest(small))
    check(AotRuntime(tmp_path, small.config), small)
    package = engine_path(tmp_path, "decoder", ".pt2")
    content = package.read_bytes()
    package.write_bytes(content[:-200])
    with pytest.raises(BundleError, match=r"decoder\.pt2: not the file its key describes"):
        AotRuntime(tmp_path, small.config)
    replace(read_key(package), engine=sha256(package)).save(package)  # the key fits, the file is no package
    with pytest.raises(BundleError, match=r"decoder\.pt2: code for this computer that was not built on it"):
        AotRuntime(tmp_path, small.config)
    trust(package)
    with pytest.raises(BundleError, match=r"decoder\.pt2: PyTorch cannot load it"):
        AotRuntime(tmp_path, small.config)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "1.0"}, r"built with aotinductor 1\.0, here is"),
        ({"capabilities": ("9.0",), "gpu": "NVIDIA H200"}, r"built for NVIDIA H200 \(9\.0\), here is cpu"),
        ({"engine": "0" * 64}, "hash differs"),
    ],
)
def test_packages_of_other_machines(tmp_path, change, said):
    package = engine_path(tmp_path, "encoder", ".pt2")
    key = written(package)
    replace(key, **change).save(package)
    with pytest.raises(BundleError, match=said) as caught:
        AotRuntime(tmp_path, tiny.config())
    assert str(caught.value).endswith(f"engines build {tmp_path} --builder aotinductor --checkpoint CHECKPOINT")


def test_a_package_that_is_not_there(tmp_path):
    with pytest.raises(BundleError, match=r"encoder\.pt2: not built yet; run: lavila-fast engines build"):
        AotRuntime(tmp_path, tiny.config())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there(small):
    with pytest.raises(InputError, match="PyTorch sees no GPU here"):
        CompiledRuntime(small, device="cuda")


def test_code_from_elsewhere_does_not_run(tmp_path, monkeypatch):
    """Its key fits and its hash is right, but both came with the bundle."""
    package = engine_path(tmp_path, "encoder", ".pt2")
    written(package)
    with pytest.raises(BundleError, match=f"not built on it; run: lavila-fast engines build .* or set {ALLOW}=1"):
        AotRuntime(tmp_path, tiny.config())
    loaded = r"encoder\.pt2: PyTorch cannot load it"  # so far it comes: it is no package
    trust(package)
    with pytest.raises(BundleError, match=loaded):
        AotRuntime(tmp_path, tiny.config())
    package.write_bytes(b"other code")
    replace(read_key(package), engine=sha256(package)).save(package)
    monkeypatch.setenv(ALLOW, "1")
    with pytest.raises(BundleError, match=loaded):
        AotRuntime(tmp_path, tiny.config())


def test_packages_of_other_weights(tmp_path):
    package = engine_path(tmp_path, "encoder", ".pt2")
    for options in ({}, {"weights": "a"}):
        written(package, **options)
        trust(package)
        with pytest.raises(BundleError, match="compiled from other weights than the bundle's; run: "):
            AotRuntime(tmp_path, tiny.config(), weights="b")


@pytest.mark.parametrize("builder", ["aotinductor", "torch_tensorrt"])
def test_engines_are_built_from_the_weights_of_their_bundle(tmp_path, tiny_model, tiny_bundle, capsys, builder):
    from lavila_fast.bundle.manifest import MANIFEST
    from lavila_fast.cli.main import run
    from lavila_fast.models.load import save_checkpoint

    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, bundle)
    values = json.loads((bundle / MANIFEST).read_text())
    assert values["checkpoints"] == {"narrator": weights_digest(tiny_model)}
    values["target"] = "tensorrt"  # any target will do: nothing gets built
    (bundle / MANIFEST).write_text(json.dumps(values))
    other = save_checkpoint(tiny.narrator(tiny_model.config, seed=5), tmp_path / "other.safetensors")
    command = ["engines", "build", str(bundle), "--builder", builder, "--checkpoint", str(other)]
    assert run(command) == 2
    assert "other.safetensors: not the weights that" in capsys.readouterr().err
    del values["checkpoints"]
    (bundle / MANIFEST).write_text(json.dumps(values | {"format": 2}))
    assert run(command) == 2
    assert "does not say which weights it was made from; export it again" in capsys.readouterr().err
    assert not (bundle / "engines").exists()
