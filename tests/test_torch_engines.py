"""Compiled PyTorch: the same narrations, one compilation for all sizes, and packages that know their machine."""

from __future__ import annotations

from dataclasses import replace

import pytest
import test_runtime as histories
import tiny

torch = pytest.importorskip("torch")

from lavila_fast.bundle.engine_key import EngineKey, engine_path, read_key  # noqa: E402
from lavila_fast.bundle.manifest import sha256  # noqa: E402
from lavila_fast.engines.host.compiled import AotRuntime, CompiledRuntime, aot_machine  # noqa: E402
from lavila_fast.errors import BundleError, InputError  # noqa: E402


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
    check(AotRuntime(tmp_path, small.config), small)
    package = engine_path(tmp_path, "decoder", ".pt2")
    content = package.read_bytes()
    package.write_bytes(content[:-200])
    with pytest.raises(BundleError, match=r"decoder\.pt2: not the file its key describes"):
        AotRuntime(tmp_path, small.config)
    replace(read_key(package), engine=sha256(package)).save(package)  # the key fits, the file is no package
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
    here = aot_machine()
    package = engine_path(tmp_path, "encoder", ".pt2")
    package.parent.mkdir()
    package.write_bytes(b"machine code")
    key = EngineKey(here.builder, here.version, here.gpu, (here.capability,), "", sha256(package))
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
