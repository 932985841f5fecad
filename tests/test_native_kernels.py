"""The native CPU engine's layers and encoder against exact arithmetic and the PyTorch reference.

All tests of this file also run on lower instruction sets, in processes of their own (`test_lower_instruction_sets`).
"""

from __future__ import annotations

import ctypes
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lavila_fast.kernels import native

DATA = Path(__file__).parent / "data"
NONE, QUICK_GELU, GELU, GELU_TANH, SQUARED_RELU = range(5)
DTYPES = {"float32": 0, "float16": 1, "int8": 2}


def test_library_is_built_where_it_can_be():
    if os.environ.get("LAVILA_NATIVE") == "0" or not shutil.which("c++") or not shutil.which("cmake"):
        pytest.skip("no compiler, or switched off")
    assert native.available() or "avx2" not in native.cpu_flags(), native.why_not()


SETS = ("vnni", "avx512", "avx2")
ON_LOWER = """
import os, sys
import hypothesis, pytest, torch
for isa in sys.argv[3:]:
    if not os.fork():
        os.environ["LAVILA_ISA"] = isa
        os.dup2(os.open(os.path.join(sys.argv[2], isa), os.O_WRONLY | os.O_CREAT), 1)
        code = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", sys.argv[1]]))
        print("code", code, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def on_lower(tmp_path_factory):
    """Instruction set → what pytest says of this file on it; one process loads torch, and forks."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("sets")
    command = [sys.executable, "-c", ON_LOWER, __file__, str(folder), *SETS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {isa: (folder / isa).read_text() for isa in SETS}


@pytest.mark.skipif(not native.available() or "LAVILA_ISA" in os.environ, reason=native.why_not() or "is one of these")
@pytest.mark.parametrize("isa", SETS)
def test_lower_instruction_sets(on_lower, isa):
    assert on_lower[isa].endswith("\ncode 0\n"), on_lower[isa][-2000:]
    assert " passed" in on_lower[isa]


@pytest.mark.skipif("LAVILA_ISA" in os.environ, reason="one process is enough")
@pytest.mark.parametrize(
    ("folder", "value", "reason"),
    [("", "0", "switched off"), ("nothing", None, "not compiled"), ("broken", None, "cannot be loaded")],
)
def test_why_not_says_it_in_a_line(tmp_path, folder, value, reason):
    (tmp_path / "broken").mkdir()
    for width in ("avx512", "avx2"):
        (tmp_path / "broken" / f"liblavila_native_{width}.so").write_bytes(b"not a library")
    if "avx2" not in native.cpu_flags():
        pytest.skip("this processor has no AVX2")
    code = "from lavila_fast.kernels import native as n; assert not n.available(); print(n.why_not())"
    environment = os.environ | {"LAVILA_NATIVE": value or str(tmp_path / folder)}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert reason in told.stdout
    assert told.stdout.count("\n") == 1


def test_library_of_other_sources_is_left_alone(tmp_path):
    if not native.available():
        pytest.skip(native.why_not())
    path = Path(native.library()._name)
    assert native.library().lv_sources().decode() == native.sources_key()
    copy = tmp_path / "csrc"
    shutil.copytree(native.HERE / "csrc", copy)
    assert native._open_native(path, native.sources_key(copy))[0] is not None
    with (copy / "flags.txt").open("a") as flags:
        flags.write("\n")
    found, reason = native._open_native(path, native.sources_key(copy))
    assert found is None
    assert reason.endswith("was compiled from other sources than are here; run: python -m lavila_fast.kernels.build")
    assert native._open_native(path, native.sources_key(tmp_path / "a wheel without them"))[0] is not None


@pytest.mark.skipif("LAVILA_ISA" in os.environ, reason="one process is enough")
def test_other_sources_mean_onnxruntime_and_a_line_in_the_log(tmp_path):
    if not native.available():
        pytest.skip(native.why_not())
    code = (
        "import logging; logging.basicConfig(level=logging.INFO)\n"
        "from lavila_fast.kernels import native; native.sources_key = lambda: 'another'\n"
        "from lavila_fast.narrator import Narrator\n"
        "print(type(Narrator.from_pretrained('nano').runtime).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Ort" in done.stdout
    assert "was compiled from other sources" in done.stderr


class Engine:
    """The C functions under test, on a pool of `threads`."""

    def __init__(self, threads: int):
        # A handle of its own: on the shared one the runtime declares argument types that suit only it.
        self.lib = ctypes.CDLL(native.library()._name)
        for name in ("lv_threads_new", "lv_linear_new", "lv_tsf_new", "lv_pool_new"):
            getattr(self.lib, name).restype = ctypes.c_void_p
        self.lib.lv_error.restype = ctypes.c_char_p
        self.pool = ctypes.c_void_p(self.lib.lv_threads_new(threads))

    def tensors(self, arrays):
        arrays = {name: np.require(a, requirements="C") for name, a in arrays.items()}
        rows = [
            native.Tensor(n.encode(), DTYPES[a.dtype.name], a.ndim, (ctypes.c_int64 * 4)(*a.shape), a.ctypes.data)
            for n, a in arrays.items()
        ]
        table = (native.Tensor * len(rows))(*rows)
        table.keep = arrays
        return table, len(rows)

    def error(self):
        return self.lib.lv_error().decode()

    def made(self, pointer):
        if not pointer:
            raise RuntimeError(self.error())
        return ctypes.c_void_p(pointer)

    def linear(self, x, act=NONE, y=None, **arrays):
        inputs, outputs = arrays["weight"].shape
        table, count = self.tensors({f"l.{name}": a for name, a in arrays.items()})
        layer = self.made(self.lib.lv_linear_new(table, count, b"l", inputs, outputs, self.pool))
        add, y = y is not None, np.zeros((len(x), outputs), np.float32) if y is None else y.copy()
        self.lib.lv_linear_run(layer, floats(x), ctypes.c_int64(len(x)), floats(y), act, add)
        self.lib.lv_linear_free(layer)
        return y

    def quantize(self, x):
        q, scale = np.zeros(x.shape, np.uint8), np.zeros(len(x), np.float32)
        rows, pointer = ctypes.c_int64(len(x)), q.ctypes.data_as(ctypes.c_void_p)
        self.lib.lv_quantize(self.pool, floats(x), rows, x.shape[1], pointer, floats(scale))
        return q.astype(np.int64) - 128, scale


def floats(array):
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


@pytest.fixture(scope="module")
def engines():
    if not native.available():
        pytest.skip(native.why_not())
    return Engine(1), Engine(3)


@pytest.fixture
def random():
    return np.random.default_rng(0)


def test_instruction_set_is_the_one_asked_for(engines):
    found, asked = native.library().lv_isa().decode(), os.environ.get("LAVILA_ISA", "amx")
    order = ["avx2", "avx512", "vnni", "amx"]
    assert order.index(found) <= order.index(asked)
    if asked in ("avx2", "avx512") and "avx512vl" in native.cpu_flags():
        assert found == asked


def test_rows_are_quantized_each_on_its_own(engines, random):
    x = random.standard_normal((5, 77)).astype(np.float32) * np.float32([[1e-3], [1], [50], [0], [3]])
    q, scale = engines[1].quantize(x)
    top = np.abs(x).max(1)
    np.testing.assert_array_equal(scale, np.where(top > 0, top / np.float32(127), 1))
    assert np.abs(q).max(1).tolist() == [127, 127, 127, 0, 127]
    assert np.abs(q * scale[:, None].astype(np.float64) - x).max(1).tolist() <= (scale * 0.5001).tolist()


SHAPES = [(1, 32, 96), (3, 1, 1), (17, 100, 50), (33, 64, 33), (80, 770, 257), (131, 256, 768)]


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
def test_int8_product_is_exact(engines, random, rows, inputs, outputs):
    x = random.standard_normal((rows, inputs)).astype(np.float32)
    weight = random.integers(-127, 128, (inputs, outputs), np.int8)
    weight[:, 0] = 127  # the largest sums there can be
    scale, bias = random.random(outputs).astype(np.float32) + 0.1, random.standard_normal(outputs).astype(np.float32)
    q, x_scale = engines[1].quantize(x)
    exact = (q @ weight.astype(np.int64)) * (x_scale[:, None].astype(np.float64) * scale) + bias
    y = engines[1].linear(x, weight=weight, weight_scale=scale, bias=bias)
    np.testing.assert_allclose(y, exact, rtol=5e-7, atol=1e-6)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), SHAPES)
@pytest.mark.parametrize("half", [False, True])
def test_float_product_errs_no_more_than_numpys(engines, random, rows, inputs, outputs, half):
    x, weight = random.standard_normal((rows, inputs)), random.standard_normal((inputs, outputs))
    x, weight = x.astype(np.float32), weight.astype(np.float16 if half else np.float32)
    exact = x.astype(np.float64) @ weight.astype(np.float64)
    numpys = np.abs(x @ weight.astype(np.float32) - exact).max()
    assert np.abs(engines[1].linear(x, weight=weight) - exact).max() <= 2 * numpys + 1e-6


@pytest.mark.parametrize("int8", [False, True])
def test_a_row_is_the_same_bits_in_any_company(engines, random, int8):
    x, weight = random.standard_normal((150, 300)).astype(np.float32), random.standard_normal((300, 200))
    arrays = {"weight": weight.astype(np.float32), "bias": random.standard_normal(200).astype(np.float32)}
    if int8:
        arrays |= {"weight": (weight * 30).astype(np.int8), "weight_scale": np.full(200, 0.01, np.float32)}
    together = engines[1].linear(x, QUICK_GELU, **arrays)
    for first, last in [(0, 1), (0, 150), (3, 23), (140, 150), (7, 40), (5, 101)]:
        alone = engines[0].linear(x[first:last], QUICK_GELU, **arrays)
        np.testing.assert_array_equal(alone, together[first:last])


def test_result_can_be_added(engines, random):
    x, weight = random.standard_normal((9, 40)).astype(np.float32), random.standard_normal((40, 70)).astype(np.float32)
    y = random.standard_normal((9, 70)).astype(np.float32)
    np.testing.assert_array_equal(engines[0].linear(x, y=y, weight=weight), y + engines[0].linear(x, weight=weight))


ACTS = {
    QUICK_GELU: lambda x: x / (1 + np.exp(-1.702 * x)),
    GELU: lambda x: x * 0.5 * np.vectorize(math.erfc)(-x / math.sqrt(2)),
    GELU_TANH: lambda x: x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    SQUARED_RELU: lambda x: np.maximum(x, 0) ** 2,
}


@pytest.mark.parametrize("act", ACTS)
def test_acts(engines, act):
    x = np.concatenate([np.linspace(-12, 12, 20001), [0.0, 1e-20, -1e-20]]).astype(np.float32)
    y = np.zeros_like(x)
    engines[0].lib.lv_act(act, floats(x), ctypes.c_int64(len(x)), floats(y))
    exact = ACTS[act](x.astype(np.float64))
    near = np.abs(x) < 5  # beyond, the rounding of the exponent's argument is what is left of a value near 0
    np.testing.assert_allclose(y[near], exact[near], rtol=3e-6, atol=1e-30)
    np.testing.assert_allclose(y, exact, rtol=3e-5, atol=1e-30)
    far = np.array([-1e4, -200, 200, 1e4], np.float32)
    engines[0].lib.lv_act(act, floats(far.copy()), ctypes.c_int64(4), floats(far))
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(far, ACTS[act](np.array([-1e4, -200, 200, 1e4])), rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize("width", [1, 7, 32, 100, 768])
def test_norm(engines, random, width):
    x = (random.standard_normal((6, width)) * 3 + 50).astype(np.float32)
    weight, bias = (random.standard_normal(width).astype(np.float32) for _ in range(2))
    table, count = engines[0].tensors({"n.weight": weight, "n.bias": bias})
    y, eps, rows = np.zeros_like(x), ctypes.c_float(1e-5), ctypes.c_int64(6)
    assert engines[0].lib.lv_norm(table, count, b"n", eps, engines[0].pool, floats(x), rows, width, floats(y)) == 0
    wide = x.astype(np.float64)
    exact = (wide - wide.mean(1, keepdims=True)) / np.sqrt(wide.var(1, keepdims=True) + 1e-5) * weight + bias
    np.testing.assert_allclose(y, exact, rtol=2e-5, atol=2e-5)


class Encoder:
    """A torch TimeSformer's weights in the native encoder, and the pool of a narrator."""

    def __init__(self, engine, model, prefix="", int8=False, drop=None):
        import torch

        self.engine, self.vision = engine, getattr(model.config, "vision", model.config)
        layers = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
        arrays = {name: t.numpy() for name, t in model.state_dict().items() if name != drop}
        for name in layers & set(arrays):
            arrays[name] = arrays[name].T
            if int8 and "to_q" not in name:
                arrays |= quantized(name, arrays[name])
        self.table = engine.tensors(arrays)
        v = self.vision
        sizes = v.img, v.patch, v.dim, v.depth, v.heads, v.frames, v.ln_pre, 1 + (v.act == "gelu"), v.gated_time
        self.tsf = engine.made(engine.lib.lv_tsf_new(*self.table, prefix.encode(), *sizes, engine.pool))

    def tokens(self, video, cls_only=False):
        frames = video.shape[1]
        out = np.zeros((1 if cls_only else 1 + frames * self.vision.patches, self.vision.dim), np.float32)
        if self.engine.lib.lv_tsf_run(self.tsf, floats(video), frames, floats(out), cls_only):
            raise RuntimeError(self.engine.error())
        return out

    def pooled(self, tokens, config):
        lib, (E, heads, Q) = self.engine.lib, (config.text.n_embd, config.pool_heads, config.queries)
        pool = self.engine.made(lib.lv_pool_new(*self.table, self.vision.dim, E, heads, Q, self.engine.pool))
        out = np.zeros((Q, E), np.float32)
        assert lib.lv_pool_run(pool, floats(tokens), len(tokens), floats(out)) == 0
        lib.lv_pool_free(pool)
        return out


def quantized(name, weight):
    scale = np.abs(weight).max(0) / np.float32(127)
    return {name: np.rint(weight / scale).astype(np.int8), f"{name}_scale": scale}


def vision(**sizes):
    from lavila_fast.config import VisionConfig

    return VisionConfig(**{"img": 32, "patch": 16, "dim": 32, "depth": 2, "heads": 2, "frames": 4} | sizes)


def timesformer(config):
    torch = pytest.importorskip("torch")
    from lavila_fast.models.timesformer import TimeSformer

    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = TimeSformer(config).eval()
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.1)
    return model


def reference(model, video):
    import torch

    with torch.no_grad():
        return getattr(model, "visual", model).forward_features(torch.from_numpy(video[None]))[0].numpy()


def relative(got, exact):
    return float(np.abs(got - exact).max() / np.abs(exact).max())


CONFIGS = {
    "clip": {},
    "egovlp": {"ln_pre": False, "act": "gelu"},
    "gated": {"gated_time": True},
    "odd head size": {"dim": 72, "heads": 4, "img": 48},
    "wide heads": {"dim": 128, "heads": 2, "img": 96, "depth": 1},
    "many frames": {"frames": 17},
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fewer", [0, 1])
def test_encoder_is_the_reference(engines, random, name, fewer):
    config = vision(**CONFIGS[name])
    model = timesformer(config)
    video = random.standard_normal((3, config.frames - fewer, config.img, config.img)).astype(np.float32)
    encoder, tokens = Encoder(engines[1], model), reference(model, video)
    assert relative(encoder.tokens(video), tokens) < 2e-5
    assert relative(encoder.tokens(video, cls_only=True), tokens[:1]) < 2e-5
    other_threads = Encoder(engines[0], model).tokens(video)
    np.testing.assert_array_equal(other_threads, encoder.tokens(video))


@pytest.mark.parametrize("name", ["clip", "wide heads"])
def test_int8_encoder_is_near_the_reference(engines, random, name):
    config = vision(**CONFIGS[name])
    model = timesformer(config)
    video = random.standard_normal((3, config.frames, config.img, config.img)).astype(np.float32)
    encoder, exact = Encoder(engines[1], model, int8=True), reference(model, video)
    tokens = encoder.tokens(video)
    error = np.linalg.norm(tokens - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 0.04  # it is INT8, and no worse than that
    assert relative(encoder.tokens(video, cls_only=True)[0], tokens[0]) < 1e-6
    np.testing.assert_array_equal(Encoder(engines[0], model, int8=True).tokens(video), tokens)


def test_shipped_model_and_its_pool(engines, random):
    torch = pytest.importorskip("torch")
    from lavila_fast.models.load import load_narrator

    weights = DATA / "nano" / "narrator.safetensors"
    if not weights.is_file():
        pytest.skip(f"no {weights}")
    model = load_narrator(weights)
    config = model.config
    shape = 3, config.vision.frames, config.vision.img, config.vision.img
    video = random.standard_normal(shape).astype(np.float32)
    with torch.no_grad():
        visual = model.visual_tokens(torch.from_numpy(video[None]))[0].numpy()
    encoder = Encoder(engines[1], model, "visual.")
    tokens = encoder.tokens(video)
    assert relative(tokens, reference(model, video)) < 2e-5
    assert relative(encoder.pooled(tokens, config), visual) < 1e-4
    low = Encoder(engines[1], model, "visual.", int8=True)
    got = low.pooled(low.tokens(video), config)
    assert (got * visual).sum() / np.linalg.norm(got) / np.linalg.norm(visual) > 0.995


@pytest.mark.parametrize("every", [1, 2, 7, 16, 64])
def test_a_task_that_throws_is_an_error_of_the_caller(engines, every):
    """In whichever thread; the pool works on afterwards."""
    done = ctypes.c_int64()
    for engine in engines:
        fail = engine.lib.lv_fail
        fail.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.POINTER(ctypes.c_int64)]
        for _ in range(20):
            assert fail(engine.pool, 64, every, ctypes.byref(done)) != 0
            assert engine.lib.lv_error().endswith(b"failed")
        x = np.ones((70, 32), np.float32)
        assert np.array_equal(engine.quantize(x)[0], engines[0].quantize(x)[0])


def test_bad_input_is_an_error_that_names_it(engines, random):
    model = timesformer(vision())
    with pytest.raises(RuntimeError, match=r"'blocks.1.mlp.fc2.weight' is missing"):
        Encoder(engines[0], model, drop="blocks.1.mlp.fc2.weight")
    with pytest.raises(RuntimeError, match=r"'other.patch_embed.proj.weight' is missing"):
        Encoder(engines[0], model, prefix="other.")
    model.norm.weight.data = model.norm.weight.data[:-1]
    with pytest.raises(RuntimeError, match=r"'norm.weight' has shape \(31\); expected \(32\)"):
        Encoder(engines[0], model)
    encoder = Encoder(engines[0], timesformer(vision()))
    with pytest.raises(RuntimeError, match="5 frames; this model takes 1 to 4"):
        encoder.tokens(random.standard_normal((3, 5, 32, 32)).astype(np.float32))
    with pytest.raises(RuntimeError, match="more than 256 frames"):
        Encoder(engines[0], timesformer(vision(frames=257, depth=1)))
    weight = random.integers(-127, 128, (8, 8), np.int8)
    with pytest.raises(RuntimeError, match=r"'l.weight_scale' is missing"):
        engines[0].linear(np.zeros((1, 8), np.float32), weight=weight)
