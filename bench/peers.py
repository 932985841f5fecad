"""Others at the same work: Hugging Face's cached GPT-2 behind the eager encoder, and OpenVINO for the encoder.

The extra ``[peers]`` brings them; nothing but the benchmark needs it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.errors import MissingExtraError
from lavila_fast.models.narrator import NarratorModel

HF_NOTE = (
    "the encoder is ours, eager; the decoder is transformers' GPT2LMHeadModel with add_cross_attention and KV cache, "
    "the nearest cached peer: cross-attention in every layer, but without the gated block's MLP, 29% of a token's work"
)
OPENVINO_NOTE = "the encoder only, the same ONNX graph; the better of the latency and throughput hints"


class HuggingFace:
    """Narrates clips as one would with transformers: encode, then `generate` with sampling."""

    def __init__(
        self,
        narrator: NarratorModel,
        samples: int,
        temperature: float,
        top_p: float,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Random weights of the same sizes; of `narrator`, on `device`, a copy is made for another type."""
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError as error:
            raise MissingExtraError("transformers", "peers") from error
        text = narrator.config.text
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=text.vocab,
            n_embd=text.n_embd,
            n_layer=text.n_layer,
            n_head=text.n_head,
            n_positions=text.n_positions,
            add_cross_attention=True,
            bos_token_id=text.vocab - 1,
            eos_token_id=None,
        )
        with torch.device(device):
            self.model = GPT2LMHeadModel(config).eval().to(dtype)
        self.narrator = narrator if dtype == torch.float32 else copy.deepcopy(narrator).to(dtype)
        self.device, self.dtype = device, dtype
        self.how = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0, "pad_token_id": 0}
        self.samples = samples

    def _upload(self, videos: Sequence[NDArray[np.float32] | Tensor]) -> Tensor:
        return torch.cat([torch.as_tensor(video, device=self.device) for video in videos]).to(self.dtype)

    @torch.inference_mode()
    def narrate(self, videos: Sequence[NDArray[np.float32] | Tensor], tokens: int) -> Tensor:
        """Ids (clips · samples, 1 + tokens); sentences never end early."""
        at_once = 1 if self.device == "cpu" else 64  # a GPU wants many
        parts = [videos[i : i + at_once] for i in range(0, len(videos), at_once)]
        seen = torch.cat([self.narrator.visual_tokens(self._upload(part)) for part in parts])
        seen = seen.repeat_interleave(self.samples, 0)
        begin = torch.full((len(seen), 1), self.narrator.config.text.vocab - 1, device=self.device)
        out: Tensor = self.model.generate(
            begin,
            attention_mask=torch.ones_like(begin),
            encoder_hidden_states=seen,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            **self.how,
        )
        assert out.shape == (len(seen), 1 + tokens)
        return out


ASKED = {"fp32": "f32", "bf16": "bf16"}  # for int8, what OpenVINO itself takes for the rest on this machine


class OpenVino:
    """An ONNX encoder with one input; `latency` runs one clip, `throughput` several at once."""

    def __init__(self, encoder: Path, kind: str, threads: int, videos: list[NDArray[np.float32]]) -> None:
        """Compile for both hints.

        Args:
            encoder: The graph.
            kind: ``fp32``, ``bf16`` or ``int8``.
            threads: Of inference.
            videos: What INT8 is calibrated on, each (1, 3, T, H, W).
        """
        try:
            os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
            import openvino as ov
            from openvino import properties
        except ImportError as error:
            raise MissingExtraError("openvino", "peers") from error
        model = ov.convert_model(str(encoder))
        model.reshape(list(videos[0].shape))
        if kind == "int8":
            model = _quantized(model, videos)
        how: dict[Any, Any] = {properties.inference_num_threads(): threads}
        if kind in ASKED:
            how[properties.hint.inference_precision()] = ASKED[kind]
        core = ov.Core()
        self.compiled = {
            hint: core.compile_model(model, "CPU", {**how, properties.hint.performance_mode(): hint.upper()})
            for hint in ("latency", "throughput")
        }
        one = self.compiled["throughput"]
        self.streams = int(one.get_property("NUM_STREAMS"))
        self.precision = str(one.get_property("INFERENCE_PRECISION_HINT")).split("'")[-2]

    def latency(self, video: NDArray[np.float32]) -> None:
        """One clip."""
        self.compiled["latency"]([video])

    def throughput(self, video: NDArray[np.float32], clips: int) -> None:
        """`clips` clips, as many at once as OpenVINO likes."""
        import openvino as ov

        queue = ov.AsyncInferQueue(self.compiled["throughput"])
        for _ in range(clips):
            queue.start_async([video])
        queue.wait_all()


def _quantized(model: Any, videos: list[NDArray[np.float32]]) -> Any:
    """Weights and activations to INT8 by NNCF's post-training quantization for transformers."""
    try:
        import nncf
    except ImportError as error:
        raise MissingExtraError("nncf", "peers") from error
    nncf.set_log_level(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):  # its progress bars
        warnings.simplefilter("ignore")
        return nncf.quantize(
            model,
            nncf.Dataset(videos),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(videos),
            fast_bias_correction=True,
        )
