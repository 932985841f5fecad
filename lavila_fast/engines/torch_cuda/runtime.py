"""The narrator on a GPU in PyTorch: CUDA graphs, caches that never move, 16-bit or INT8, and a host that never waits.

    runtime = TorchGpuRuntime(load_narrator(path), "cuda", "bf16")
    for owner, sentences in write_ahead(runtime, clips, options): ...      # generate.ahead: the fast way
    for owner, sentences in write_beams(runtime, tasks, options): ...      # all else speaks the plain protocol

The plain protocol (`engines.protocol`) is served by `SlotRuntime` with PyTorch's tensors as memory. On ``cpu`` the same
code runs without graphs; there it is tested. Never run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from lavila_fast.arrays import F64, I64
from lavila_fast.engines.device.memory import DeviceArray
from lavila_fast.engines.device.sampling import Sampler, choose_tokens_in_torch
from lavila_fast.engines.device.slots import SlotRuntime
from lavila_fast.engines.protocol import WriterKind
from lavila_fast.engines.sampling import Chosen, Warp
from lavila_fast.engines.torch_cuda.decode_loop import DecodeLoop, SamplingParams
from lavila_fast.engines.torch_cuda.encoder import BUFFERS, Encode, EncoderBatch, keys_values
from lavila_fast.engines.torch_cuda.launch import launcher_for
from lavila_fast.engines.torch_cuda.memory import (
    TYPE_NAMES,
    TorchMemory,
    check_room,
    choose_lanes,
    choose_slots,
    room_for,
    slot_bytes,
)
from lavila_fast.engines.torch_cuda.step import SlotDecoder, with_folded_gates
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.quant.low_bit import convert_decoder

ENCODE_BATCH = 32
CPU_ENCODE_BATCH = 2
DEFAULT_SAMPLES = 10  # samples a clip, as the original writes


class TorchGpuRuntime(SlotRuntime):
    """See the module.

    Attributes:
        memory: Of the plain protocol.
        launcher: Of the device.
        precision: Of `quant.low_bit.CHOICES`.
        slots: Clips in flight at most, whoever writes and however many samples: products keep their shape.
        encode_batch: Clips the encoder takes at once.
    """

    memory: TorchMemory
    writer: WriterKind = "ahead"

    def __init__(
        self,
        model: NarratorModel,
        device: str = "cuda",
        precision: str = "bf16",
        slots: int | None = None,
        rows: int = DEFAULT_SAMPLES,
        capacity: int | None = None,
        *,
        compile_encoder: str | None = None,
        compile_step: bool = False,
        compile_backend: str = "inductor",
        encoder: Encode | None = None,
        encode_batch: int | None = None,
        graphs: bool = True,
        lanes: int | None = None,
        lag: int = 2,
        steady: bool = True,
    ) -> None:
        """Take a narrator to the device.

        Args:
            model: Float32; it stays as it is.
            device: ``cpu``, ``cuda``, ``cuda:1``.
            precision: Of `quant.low_bit.CHOICES`; ``fp32`` is the reference's. ``bnb-int8`` has the host look at the
                data, so it runs without graphs.
            slots: Clips in flight at most; None takes what a GPU of this size holds, up to 512.
            rows: Samples a clip that slots are counted for where `slots` is None, and that `warm_up` prepares for.
            capacity: Tokens a sentence may have, without the last; None takes the model's.
            compile_encoder: A mode of `torch.compile` (``default``, ``max-autotune-no-cudagraphs``), or None.
            compile_step: Whether to compile the decoder's step too.
            compile_backend: Of `torch.compile`.
            encoder: Instead of the model's, such as `AotRuntime(...).encoder`; see `encoder.keys_values`.
            encode_batch: Clips the encoder takes at once.
            graphs: Whether to capture CUDA graphs.
            lanes: Sentences that are written at once at most; see `step`. None takes 60% of slots times rows.
            lag: Steps the host may queue before it reads one. A slot stays taken so long after its last sentence ended.
            steady: See `decode_loop`.

        Raises:
            InputError: no such device, or no such precision.
        """
        graphs = graphs and precision != "bnb-int8"
        self.launcher = launcher_for(device, graphs)
        where = self.launcher.device
        with room_for("the model"):
            self.model = convert_decoder(with_folded_gates(model), precision, where)
        self.decoder = SlotDecoder(self.model.text_decoder)
        config = self.model.config
        most = min(config.max_tokens, config.text.n_positions) - 1
        memory = TorchMemory(where, self.launcher.architecture)
        super().__init__(config, memory, TYPE_NAMES[self.decoder.dtype], capacity or most)
        self._sampler = _sampler(self.memory)
        self._encode_any = encoder or keys_values(self.model)
        self._video = torch.float32 if encoder else self.model.visual.cls_token.dtype
        self._encode_batch = self._encode_any
        if compile_encoder and encoder is None:
            self._encode_batch = _compiled(self._encode_any, compile_backend, compile_encoder)
        self._decode = _compiled(self.decoder, compile_backend) if compile_step else self.decoder
        told = "given" if encoder else compile_encoder or "eager"
        self._told: dict[str, Any] = {"precision": precision, "encoder": told, "compiled_step": compile_step}
        self.precision, self.device = precision, str(where)
        one = slot_bytes(config, rows, self.capacity, self.decoder.dtype)
        self.slots = slots or choose_slots(self.launcher.total_bytes(), _weight_bytes(self.model), one)
        self.identity = f"torch-cuda {precision} {self.launcher.architecture}, {self.slots} clips in flight"
        self._rows, self._lanes, self._lag, self._steady = rows, lanes, lag, steady
        self.encode_batch = encode_batch or (CPU_ENCODE_BATCH if where.type == "cpu" else ENCODE_BATCH)
        self._loop: DecodeLoop | None = None
        self._encoder_batches: list[EncoderBatch] = []

    def _cross_shapes(self) -> list[tuple[int, ...]]:
        return [(self.heads, self.config.queries, self.size) for _ in range(2 * len(self.config.text.cross_layers))]

    @torch.no_grad()
    def _encode(self, video: DeviceArray, cross: Sequence[DeviceArray]) -> None:
        tensors = self._encode_any(self.memory.tensor(video).to(self._video))
        for number, (block, tensor) in enumerate(zip(cross, tensors, strict=True)):
            self.memory.tensor(block).copy_(tensor if number % 2 else tensor.transpose(-1, -2))

    @torch.no_grad()
    def _step(
        self,
        ids: DeviceArray,
        lengths: DeviceArray,
        past: Sequence[DeviceArray],
        cross: Sequence[DeviceArray],
        logits: DeviceArray,
        present: Sequence[DeviceArray],
    ) -> None:
        B, R = ids.shape
        ages_B = self.memory.tensor(lengths).int()
        shape = B * R, self.heads, self.capacity, self.size
        caches = [self.memory.tensor(block).view(shape) for block in past]
        seen = [self.memory.tensor(block) for block in cross]
        ids_M, ages_M = self.memory.tensor(ids).flatten(), ages_B.repeat_interleave(R)
        out_MV = self.decoder(ids_M, ages_M, torch.ones_like(ages_B, dtype=torch.bool), caches, seen)
        self.memory.tensor(logits).copy_(out_MV.view(B, R, -1))

    def decode_loop(self, samples: int) -> DecodeLoop:
        """The slots for `samples` rows a clip, made at the first call and whenever the number changes.

        Raises:
            InputError: no room on the device for `slots` clips of so many samples, or somebody is writing.
        """
        if self._loop is None or self._loop.rows != samples:
            if self._loop is not None:
                self._loop.reserve()  # nobody's, or an error
                self._loop = None
            self.encoder_batches()  # they take their memory first
            self.launcher.new_pool()
            slots = self.slots
            check_room(
                slots, slot_bytes(self.config, samples, self.capacity, self.decoder.dtype), self.launcher.free_bytes()
            )
            sizes, lanes = (slots, samples, self.capacity), choose_lanes(self._lanes, slots, samples)
            with room_for(f"{slots} clips in flight", "lower --batch-size"):
                self._loop = DecodeLoop(
                    self.config, self.decoder, self.launcher, sizes, lanes, self._lag, self._steady, self._decode
                )
        return self._loop

    def encoder_batches(self) -> list[EncoderBatch]:
        """The encoder's batches, made (and compiled, and captured) at the first call."""
        if not self._encoder_batches:
            dtypes = self._video, self.decoder.dtype
            self.launcher.new_pool(encoding=True)
            with room_for(f"the encoder's batches of {self.encode_batch} clips"):
                self._encoder_batches = [
                    EncoderBatch(self.config, self._encode_batch, self.launcher, self.encode_batch, dtypes)
                    for _ in range(BUFFERS)
                ]
        return self._encoder_batches

    def warm_up(self, samples: int | None = None, params: SamplingParams | None = None) -> None:
        """Compile and capture all that `write_ahead` will use; it does so itself when it must.

        Raises:
            InputError: see `decode_loop`.
        """
        self.decode_loop(samples or self._rows).prepare(
            params or SamplingParams(Warp(0.7, top_p=0.95), self.capacity + 1)
        )

    def describe(self) -> dict[str, Any]:
        """What runs and how, for reports: JSON-ready."""
        loop, cuda = self._loop, self.launcher.device.type == "cuda"
        about: dict[str, Any] = {
            "device": torch.cuda.get_device_name(self.launcher.device) if cuda else "cpu",
            "torch": str(torch.__version__),
            **self._told,
            "graphs": self.launcher.graphs,
            "type": self.dtype,
            "capacity": self.capacity,
            "encode_batch": self.encode_batch,
            "lag": self._lag,
            "steady": self._steady,
        }
        if loop is not None:
            about |= {
                "slots": loop.slots,
                "rows": loop.rows,
                "lanes": loop.lanes,
                "slot_bytes": loop.nbytes // loop.slots,
            }
        return about


def _compiled(what: Any, backend: str, mode: str = "") -> Any:
    """As one graph of fixed shapes; modes are inductor's alone."""
    told: dict[str, Any] = {"mode": mode} if mode and backend == "inductor" else {}
    return torch.compile(what, fullgraph=True, dynamic=False, backend=backend, **told)


def _weight_bytes(model: NarratorModel) -> int:
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers()))


def _sampler(memory: TorchMemory) -> Sampler:
    """Chooses tokens on that memory; not a method, with which a runtime would hold itself and its gigabytes."""

    def sample(lines: DeviceArray, place: I64, warp: Warp, u: F64) -> Chosen:
        return choose_tokens_in_torch(memory.tensor(lines), place, warp, u)

    return sample
