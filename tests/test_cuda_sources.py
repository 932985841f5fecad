"""CUDA sources without a GPU: nvcc compiles them, and their arithmetic, compiled for the CPU, is the reference's."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lavila_fast.errors import KernelError  # noqa: E402
from lavila_fast.kernels import cuda_build, libraries  # noqa: E402
from lavila_fast.kernels.preprocess import check_cuda, cuda  # noqa: E402
from lavila_fast.kernels.preprocess.check_cuda import MEAN, STD  # noqa: E402
from lavila_fast.kernels.preprocess.cuda import Surface  # noqa: E402

LOOP = """
#include "pixel.h"
extern "C" void preprocess(const lv_frame* frames, int count, int size, const float* mean, const float* factor,
                           float* out, int places) {
    const lavila::Normal normal{{mean[0], mean[1], mean[2]}, {factor[0], factor[1], factor[2]}};
    for (int i = 0; i < count; ++i)
        for (int at = 0; at < size * size; ++at) {
            float rgb[3];
            lavila::pixel(frames[i], normal, at / size, at % size, rgb);
            for (int c = 0; c < 3; ++c)
                out[((long(frames[i].clip) * 3 + c) * places + frames[i].place) * size * size + at] = rgb[c];
        }
}
extern "C" int frame_bytes() { return sizeof(lv_frame); }
"""


@pytest.fixture(scope="module")
def on_host(tmp_path_factory):
    """The kernel's arithmetic as a library for the CPU."""
    if not shutil.which("c++"):
        pytest.skip("no C++ compiler")
    folder = tmp_path_factory.mktemp("pixel")
    (folder / "loop.cpp").write_text(LOOP)
    flags = ["-std=c++17", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", f"-I{cuda_build.SOURCES}"]
    subprocess.run(["c++", *flags, str(folder / "loop.cpp"), "-o", str(folder / "loop.so")], check=True)
    return ctypes.CDLL(str(folder / "loop.so"))


@pytest.fixture(scope="module")
def compiled():
    try:
        cuda_build.find_nvcc()
    except KernelError as error:
        pytest.skip(str(error))
    return cuda_build.build_cuda()


def flat(surfaces, places):
    """What `cuda.preprocess` hands to the op."""
    planes = [plane for one in surfaces for plane in one.planes]
    return planes, [n for one, place in zip(surfaces, places, strict=True) for n in cuda.facts_of(one, *place)]


@pytest.mark.parametrize("size", [16, 33])
def test_arithmetic_is_the_references(on_host, size):
    assert on_host.frame_bytes() == ctypes.sizeof(cuda.FrameDescriptor)
    surfaces = list(check_cuda.cases(((64, 48), (50, 120), (8, 8), (130, 66))))
    places = [(i // 4, (i + 1) % 4) for i in range(len(surfaces))]
    wanted = torch.zeros(len(surfaces) // 4, 3, 4, size, size)
    cuda.preprocess(surfaces, places, wanted, MEAN, STD)
    got = np.zeros(wanted.shape, np.float32)
    table = cuda.frames(*flat(surfaces, places), size)
    on_host.preprocess(table, len(table), size, *cuda.factors(MEAN, STD), got.ctypes.data_as(ctypes.c_void_p), 4)
    levels = np.abs(got - wanted.numpy()) * np.array(STD).reshape(3, 1, 1, 1)
    assert levels.max() < 1e-3
    assert (wanted.abs().amax((1, 3, 4)) > 0).all()  # there was something to compare at every place


def test_op_serves_the_cpu_and_is_seen_by_compile_and_export():
    surfaces, places = list(check_cuda.cases(((16, 20),)))[3:5], [(0, 1), (1, 0)]
    planes, facts = flat(surfaces, places)
    arguments = planes, facts, list(MEAN), list(STD), torch.zeros(2, 3, 2, 9, 9, dtype=torch.bfloat16)
    torch.library.opcheck(cuda.preprocess_yuv, arguments)

    def run(out):
        cuda.preprocess(surfaces, places, out, MEAN, STD)
        return out * 2

    eager, traced = run(torch.ones(2, 3, 2, 9, 9)), torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(traced(torch.ones(2, 3, 2, 9, 9)), eager)
    assert (eager[0, :, 0] == 2).all()  # the places that nobody named
    assert (eager.abs().amax((1, 3, 4)) > 0).all()


GREY = torch.zeros(8, 16, dtype=torch.uint8)


@pytest.mark.parametrize(
    ("surface", "place", "shape", "reason"),
    [
        (Surface("yuv444p", 16, 8, (GREY,) * 3), (0, 0), (1, 3, 1, 8, 8), "yuv444p"),
        (Surface("nv12", 16, 8, (GREY,)), (0, 0), (1, 3, 1, 8, 8), "2 planes"),
        (Surface("nv12", 16, 8, (GREY, GREY[:3])), (0, 0), (1, 3, 1, 8, 8), "uint8 .4, 16 or more"),
        (Surface("nv12", 16, 8, (GREY, GREY.float())), (0, 0), (1, 3, 1, 8, 8), "float32"),
        (
            Surface("yuv420p", 16, 8, (GREY, GREY, GREY[:, :8].contiguous())),
            (0, 0),
            (1, 3, 1, 8, 8),
            "different distances",
        ),
        (Surface("nv12", 16, 8, (GREY, GREY), matrix=0), (0, 0), (1, 3, 1, 8, 8), "matrix 0"),
        (Surface("nv12", 16, 8, (GREY, GREY), turn=45), (0, 0), (1, 3, 1, 8, 8), "turn 45"),
        (Surface("nv12", 16, 8, (GREY, GREY)), (1, 0), (1, 3, 1, 8, 8), "no place .1, 0"),
        (Surface("nv12", 16, 8, (GREY, GREY)), (0, 0), (1, 3, 1, 8, 9), "contiguous"),
    ],
)
def test_what_the_kernel_would_misread_is_refused(surface, place, shape, reason):
    with pytest.raises(KernelError, match=reason):
        cuda.preprocess([surface], [place], torch.zeros(shape), MEAN, STD)


def test_ten_bit_rows_begin_at_even_addresses():
    planes, facts = flat([Surface("p010le", 8, 8, (GREY[:, :16], GREY[:4]))], [(0, 0)])
    assert cuda.frames(planes, facts, 8)[0].y == GREY.data_ptr()
    with pytest.raises(KernelError, match="even addresses"):
        cuda.frames([planes[0][:, 1:], planes[1]], facts, 8)


def test_compiles_for_all_architectures_without_spills(compiled):
    rows = cuda_build.cuda_resources()
    names = {"cuda/preprocess_f32", "cuda/preprocess_f16", "cuda/preprocess_bf16"}
    assert {(row.name, row.architecture) for row in rows} == {(n, a) for n in names for a in (80, 87, 89, 90, 100)}
    assert len(rows) == 15
    for row in rows:
        assert row.spills == row.stack == row.shared == 0
        assert 16 < row.registers <= 64  # 8 blocks of 128 threads find room on a multiprocessor
    before = compiled.stat().st_mtime_ns
    assert cuda_build.build_cuda().stat().st_mtime_ns == before  # nothing changed, nothing is compiled


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_library_loads_and_says_that_there_is_no_device(compiled):
    cuda._load_cuda.cache_clear()  # it may have been looked for before it was compiled
    assert cuda.why_not().startswith("CUDA finds no device here: ")
    assert "\n" not in cuda.why_not()


def test_a_library_of_other_sources_is_left_alone_and_compiled_anew(compiled, tmp_path, monkeypatch):
    """Their age says nothing: a checkout gives old sources a new time, a copy of a folder new sources an old one."""
    key = libraries.sources_key(libraries.CUDA_SOURCES)
    found, reason = libraries.open_library(compiled, "lv_cuda", cuda.INTERFACE, key, "it")
    assert (found.lv_cuda_sources().decode(), reason) == (key, "")
    changed = tmp_path / "cuda"
    shutil.copytree(libraries.CUDA_SOURCES, changed)
    (changed / "pixel.h").write_text((changed / "pixel.h").read_text() + "\n")
    for path in changed.iterdir():
        os.utime(path, (0, 0))
    monkeypatch.setattr(cuda, "CUDA_SOURCES", changed)
    monkeypatch.setattr(cuda, "library_folders", lambda: [compiled.parent])
    monkeypatch.setattr(cuda_build, "SOURCES", changed)
    monkeypatch.setattr(cuda_build, "find_nvcc", lambda: tmp_path / "nvcc")
    cuda._load_cuda.cache_clear()
    assert cuda.why_not().endswith("was compiled from other sources than are here; run: " + cuda._BUILD_COMMAND)
    cuda._load_cuda.cache_clear()
    with pytest.raises(FileNotFoundError):  # it sets out to compile: there is no such nvcc
        cuda_build.build_cuda(compiled.parent)


def test_ways_to_fail_say_a_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda_build, "_places", lambda: iter([tmp_path]))
    with pytest.raises(KernelError, match="cuda-build"):
        cuda_build.find_nvcc()
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n[ $1 = --list-gpu-code ] && echo sm_90 && exit\necho 'x.cu: error: too old' >&2; exit 2"
    )
    nvcc.chmod(0o755)
    assert cuda_build.find_nvcc() == nvcc
    with pytest.raises(KernelError, match="error: too old"):
        cuda_build.build_cuda(tmp_path / "out")
    nvcc.write_text("#!/bin/sh\necho sm_35")
    with pytest.raises(KernelError, match="newer"):
        cuda_build.build_cuda(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_gpu_is_the_reference(compiled):
    assert check_cuda.check_preprocess()["good"]
