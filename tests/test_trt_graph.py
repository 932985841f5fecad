"""TensorRT's road of dual encoders, with ONNX Runtime behind its calls: addresses, shapes and types are real."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace

import numpy as np
import pytest

from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.engines.device import trt_graph
from lavila_fast.engines.device.memory import HostMemory
from lavila_fast.engines.embed import GraphDualEncoder
from lavila_fast.engines.host.ort import session
from lavila_fast.errors import BundleError, LavilaError
from lavila_fast.pretrained import ASSETS

KINDS = SimpleNamespace(FLOAT="tensor(float)", HALF="tensor(float16)", BF16="tensor(bfloat16)", INT64="tensor(int64)")
NUMPY = {"tensor(float)": np.float32, "tensor(int64)": np.int64}
TRT = SimpleNamespace(TensorIOMode=SimpleNamespace(INPUT="in"), DataType=KINDS)
MOST_TOKENS = 20


class Engine:
    """TensorRT's engine and context in one, on the host."""

    def __init__(self, path):
        self.session = session(path, 1)
        self.ends = {one.name: one for one in [*self.session.get_inputs(), *self.session.get_outputs()]}
        self.inputs = [one.name for one in self.session.get_inputs()]
        self.shapes, self.addresses = {}, {}
        self.num_io_tensors = len(self.ends)

    def create_execution_context(self):
        return self

    def get_tensor_name(self, i):
        return list(self.ends)[i]

    def get_tensor_mode(self, name):
        return "in" if name in self.inputs else "out"

    def get_tensor_dtype(self, name):
        return self.ends[name].type

    def get_tensor_shape(self, name):
        known = self.shapes.get(name)
        if name in self.inputs or not self.shapes:
            return known or tuple(size if isinstance(size, int) else -1 for size in self.ends[name].shape)
        batch = next(iter(self.shapes.values()))[0]
        return tuple(size if isinstance(size, int) else batch for size in self.ends[name].shape)

    def set_input_shape(self, name, shape):
        self.shapes[name] = tuple(shape)
        return name != "ids" or shape[1] <= MOST_TOKENS

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def _at(self, name, shape):
        kind = NUMPY[self.ends[name].type]
        size = int(np.prod(shape)) * np.dtype(kind).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(self.addresses[name]), kind).reshape(shape)

    def execute_async_v3(self, stream):
        feed = {name: self._at(name, self.shapes[name]) for name in self.inputs}
        for one, found in zip(self.session.get_outputs(), self.session.run(None, feed), strict=True):
            self._at(one.name, found.shape)[...] = found
        return True


@pytest.fixture
def pair():
    """The shipped dual encoder by both roads."""
    bundle = open_bundle(ASSETS / "nano", verify=False)
    config = bundle.models["dual_encoder"]
    graphs = (lambda path, threads: trt_graph.TrtGraph(TRT, Engine(path), HostMemory()), "tensorrt sm_0")
    return GraphDualEncoder(bundle.folder, config, 1, *graphs), GraphDualEncoder(bundle.folder, config, 1)


def test_embeddings_come_through_device_memory(pair):
    found, exact = pair
    vision = found.config.vision
    video = np.random.default_rng(0).standard_normal((2, 3, vision.frames, vision.img, vision.img)).astype(np.float32)
    ids = np.arange(1, 13).reshape(2, 6)
    np.testing.assert_array_equal(found.video(video), exact.video(video))
    np.testing.assert_array_equal(found.text(ids), exact.text(ids))
    assert (found.text(ids)[0] != found.text(ids)[1]).any()
    assert found.identity == "tensorrt sm_0"


def test_more_than_an_engine_was_built_for_is_refused(pair):
    with pytest.raises(LavilaError, match=r"TensorRT refused a call; .* build it for more"):
        pair[0].text(np.arange(1, MOST_TOKENS + 2)[None])


def test_an_engine_of_another_graph_is_refused():
    bundle = open_bundle(ASSETS / "nano", verify=False)

    def swapped(path, threads):
        other = "dual_text" if path.stem == "dual_video" else "dual_video"
        return trt_graph.TrtGraph(TRT, Engine(path.with_stem(other)), HostMemory())

    with pytest.raises(BundleError, match="does not fit the model sizes"):
        GraphDualEncoder(bundle.folder, bundle.models["dual_encoder"], 1, swapped)
