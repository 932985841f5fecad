"""Narrators with fewer bits: how close they stay, what they weigh, and that INT8 is the house's INT8."""

from __future__ import annotations

import copy
import dataclasses
import sys

import pytest
from tiny import config, narrator, videos

torch = pytest.importorskip("torch")

from safetensors.torch import load_file  # noqa: E402

from lavila_fast import load_narrator  # noqa: E402
from lavila_fast.errors import InputError, MissingExtraError  # noqa: E402
from lavila_fast.models.gpt2 import Mlp  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.presets import config_for  # noqa: E402
from lavila_fast.pretrained import ASSETS  # noqa: E402
from lavila_fast.quant.half import SafeSquaredMlp  # noqa: E402
from lavila_fast.quant.low_bit import (  # noqa: E402
    CHOICES,
    KernelInt8Linear,
    convert_decoder,
    size_of,
    to_int8,
)

# How far logits may stray from float32's (relative L2), and how often the likeliest word must be the same. Measured:
# .0008, .007, .02, .007, .06 and .93 or more.
NEAR = {"fp32": 0.0, "fp16": 0.003, "bf16": 0.02, "int8": 0.05, "bnb-int8": 0.02, "bnb-nf4": 0.15}
SAME = 0.9
# Bytes compared with float32; the tiny one is mostly blocks.
LIGHT = {"fp32": 1.0, "fp16": 0.51, "bf16": 0.51, "int8": 0.36, "bnb-int8": 0.45, "bnb-nf4": 0.39}
PLAIN = [name for name in CHOICES if not name.startswith("bnb")]


@pytest.fixture(scope="module")
def wide():
    """A tiny narrator whose matrices have 64 inputs or more, as NF4's blocks want; biases are not zero."""
    sizes = config()
    model = narrator(dataclasses.replace(sizes, text=dataclasses.replace(sizes.text, n_embd=64)))
    with torch.no_grad():
        for name, bias in model.named_parameters():
            if name.endswith("bias") and "transformer.h" in name:
                bias.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
    return model


@pytest.fixture(scope="module")
def inputs():
    ids = torch.randint(258, (6, 30), generator=torch.Generator().manual_seed(2))
    return torch.from_numpy(videos(6)), ids


def run(model, inputs):
    with torch.inference_mode():
        return model(*inputs)


@pytest.mark.parametrize("precision", CHOICES)
def test_logits_stay_close_and_weights_shrink(wide, inputs, precision):
    if precision.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    before = copy.deepcopy(wide.state_dict())
    model = convert_decoder(wide, precision)
    weight = size_of(model)
    found, wanted = run(model, inputs), run(wide, inputs)
    assert isinstance(model, NarratorModel)
    assert found.dtype == torch.float32
    assert (found - wanted).norm() / wanted.norm() <= NEAR[precision]
    assert (found.argmax(-1) == wanted.argmax(-1)).float().mean() >= SAME
    assert weight <= LIGHT[precision] * size_of(wide)
    assert all(torch.equal(wide.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("precision", ["int8", "bnb-int8", "bnb-nf4"])
def test_low_bits_are_really_there(wide, precision):
    """Each strays measurably: nothing was left in float by accident."""
    if precision.startswith("bnb"):
        pytest.importorskip("bitsandbytes")
    model = convert_decoder(wide, precision)
    block = model.text_decoder.transformer.h[0]
    kinds = {type(layer).__name__ for layer in (block.attn.c_attn, block.mlp.c_fc, block.crossattention.q_attn)}
    assert kinds == {{"int8": "KernelInt8Linear", "bnb-int8": "InHalf", "bnb-nf4": "Linear4bit"}[precision]}
    if precision != "int8":
        assert type(model.visual.blocks[0].mlp.fc1) is torch.nn.Linear
        assert model.text_decoder.transformer.wte.weight.dtype == torch.float32
    weight = getattr(block.mlp.c_fc, "layer", block.mlp.c_fc).weight
    assert weight.dtype == (torch.uint8 if precision == "bnb-nf4" else torch.int8)
    assert weight.numel() == 64 * 256 // (2 if precision == "bnb-nf4" else 1)


def test_int8_is_what_the_exporter_says_it_is(wide, inputs):
    """Row by row, both compute the same integers; only the order of float operations could differ."""
    from lavila_fast.quant.scheme import Scheme, quantize

    emulated = run(quantize(wide, Scheme("int8", "cpu", per_tensor_encoder=False)), inputs)
    found = run(convert_decoder(wide, "int8"), inputs)
    assert (found - emulated).norm() / emulated.norm() < 1e-5


def test_a_bundles_integers_come_back():
    stored = load_file(ASSETS / "nano" / "weights.safetensors")
    model = convert_decoder(load_narrator("nano"), "int8")
    compared = 0
    for name, layer in model.named_modules():
        kept = stored.get(f"narrator.{name}.weight")
        if isinstance(layer, KernelInt8Linear) and kept.dtype == torch.int8:
            assert torch.equal(layer.weight, kept.T), name
            torch.testing.assert_close(layer.weight_scale, stored[f"narrator.{name}.weight_scale"].float())
            compared += 1
    assert compared > 20


def test_a_step_of_int8_is_the_whole_sequence(wide, inputs):
    decoder = convert_decoder(wide, "int8").text_decoder
    visual = torch.randn(3, 5, 64, generator=torch.Generator().manual_seed(4))
    ids = inputs[1][:3, :4]
    sizes, rows = wide.config.text, torch.arange(3)
    past = [torch.zeros(3, sizes.n_head, 6, 64 // sizes.n_head) for _ in range(2 * sizes.n_layer)]
    cross = [tensor for pair in decoder.keys_values(visual) for tensor in pair]
    with torch.inference_mode():
        for t in range(4):
            logits, new = decoder.step(ids[:, t], torch.full((3,), t), rows[:, None], rows, past, cross)
            for cache, one in zip(past, new, strict=True):
                cache[:, :, t] = one
        wanted = decoder.logits(ids, visual)[:, -1]
    # Not to the last bit: attention adds up in another order, and a level more or less may follow.
    assert (logits - wanted).norm() / wanted.norm() < 0.01


def test_layers_can_be_kept(tiny_model, inputs):
    keep = {"visual.blocks.0.mlp.fc1", "text_decoder.transformer.wte"}
    model = convert_decoder(tiny_model, "int8", keep=keep)
    assert type(model.visual.blocks[0].mlp.fc1) is torch.nn.Linear
    assert type(model.img_attn_pool.to_q) is torch.nn.Linear  # always
    assert isinstance(model.visual.blocks[0].mlp.fc2, KernelInt8Linear)
    assert torch.equal(model.text_decoder.transformer.wte.weight, tiny_model.text_decoder.transformer.wte.weight)
    assert run(model, inputs).shape == (6, 30, 258)


def test_int8_compiles_in_one_graph(wide, inputs):
    decoder = convert_decoder(wide, "int8").text_decoder
    visual = torch.randn(6, 5, 64, generator=torch.Generator().manual_seed(4))
    compiled = torch.compile(decoder.logits, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(inputs[1], visual), decoder.logits(inputs[1], visual))


@pytest.mark.parametrize("precision", PLAIN)
def test_sizes_are_known_without_memory(precision):
    """The largest model, on the meta device: 16 bits halve it, INT8 leaves a little more than a quarter."""
    with torch.device("meta"):
        model = NarratorModel(config_for("narrator-large"))
    share = size_of(convert_decoder(model, precision, "meta")) / size_of(model)
    assert share == pytest.approx({"fp32": 1.0, "int8": 0.252}.get(precision, 0.5), abs=0.002)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_squares_beyond_float16_are_scaled(dtype):
    torch.manual_seed(0)
    mlp, x = Mlp(32, squared_relu=True), torch.randn(5, 32)
    with torch.no_grad():
        mlp.c_fc.weight.mul_(1500)
        mlp.c_proj.bias.normal_(std=30)
    wanted = mlp(x)
    found = SafeSquaredMlp(copy.deepcopy(mlp)).to(dtype)(x.to(dtype)).float()
    assert mlp.c_fc(x).relu().square().max() > 65504
    assert (found - wanted).norm() / wanted.norm() < (1e-5 if dtype == torch.float32 else 3e-3)


def test_swapping_leaves_what_it_does_not_know():
    module = torch.nn.Sequential(torch.nn.Linear(8, 8, bias=False), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3))
    x = torch.randn(2, 3, 8)
    wanted = module(x)
    swapped = to_int8(module)
    assert [type(layer).__name__ for layer in swapped] == ["KernelInt8Linear", "LayerNorm", "KernelInt8Linear"]
    assert (swapped(x) - wanted).norm() / wanted.norm() < 0.05
    assert swapped(x[:0]).shape == (0, 3, 3)


def test_mistakes_are_named(tiny_model, monkeypatch):
    with pytest.raises(InputError, match="precision 'int3' is none of fp32, fp16, bf16, int8, bnb-int8, bnb-nf4"):
        convert_decoder(tiny_model, "int3")
    with pytest.raises(InputError, match="layer 'nose' is not in this model"):
        convert_decoder(tiny_model, "int8", keep={"nose"})
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"lavila-fast\[bitsandbytes\]"):
        convert_decoder(tiny_model, "bnb-nf4")
