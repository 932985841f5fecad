"""PyTorch, compiled: `torch.compile` of a checkpoint's model, and AOTInductor packages of a bundle.

Both are `HostRuntime`s that run the reference model's two graphs, compiled once for all sizes of batch and cache.
`CompiledRuntime` compiles at its first clips (tens of seconds); `AotRuntime` loads what
``lavila-fast engines build BUNDLE --builder aotinductor`` compiled. Of devices, ``cpu`` was run, ``cuda`` never.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.bundle.engine_key import AOT, Machine, check_engine, engine_path, mend, require_trust
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.host.state import HostRuntime, StepInputs
from lavila_fast.errors import BundleError, InputError, MissingExtraError
from lavila_fast.machine import torch_threads

if TYPE_CHECKING:
    from torch import Tensor

    from lavila_fast.models.narrator import NarratorModel


def _import_torch() -> Any:
    try:
        import torch
    except ImportError as error:
        raise MissingExtraError("torch", "torch") from error
    return torch


class _OnDevice(HostRuntime):
    """Two callables over torch tensors; arrays go to their device and back."""

    def __init__(self, config: NarratorConfig, device: str, threads: int | None) -> None:
        super().__init__(config)
        self._torch, self._where = _import_torch(), device
        if device != "cpu" and not self._torch.cuda.is_available():
            raise InputError(f"PyTorch sees no GPU here, so device {device!r} cannot be used; take cpu")
        self._torch.set_num_threads(torch_threads(threads, self._torch.get_num_threads()))
        self.encoder: Callable[..., Any]
        self.decoder: Callable[..., Any]

    def _to(self, arrays: Sequence[np.ndarray]) -> list[Tensor]:
        return [self._torch.from_numpy(np.ascontiguousarray(array)).to(self._where) for array in arrays]

    def _encode(self, video: F32) -> list[F32]:
        with self._torch.no_grad():
            return [np.ascontiguousarray(t.float().cpu().numpy()) for t in self.encoder(*self._to([video]))]

    def _step(self, inputs: StepInputs) -> tuple[F32, F32]:
        words = self._to([inputs.ids, inputs.lengths, inputs.grid, inputs.place])
        with self._torch.no_grad():
            logits, new = self.decoder(*words, self._to(inputs.past), self._to(inputs.cross))
        return logits.float().cpu().numpy(), new.float().cpu().numpy()


class CompiledRuntime(_OnDevice):
    """A `models.narrator.NarratorModel` under `torch.compile`."""

    identity = "torch-compiled"

    def __init__(
        self,
        model: NarratorModel,
        threads: int | None = None,
        device: str = "cpu",
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        """Keep `model` (eval mode).

        Args:
            model: Float32.
            threads: torch's process-wide intra-op threads.
            device: ``cpu``, or ``cuda`` (never run).
            backend: Of `torch.compile`; ``inductor`` needs a C++ compiler.
        """
        super().__init__(model.config, device, threads)
        self.model = model.float().eval().to(device)

        def encode(video: Tensor) -> list[Tensor]:
            tokens = self.model.visual_tokens(video)
            return [t for pair in self.model.text_decoder.keys_values(tokens) for t in pair]

        options: dict[str, Any] = {"dynamic": True, "fullgraph": True, "backend": backend}
        self.encoder = self._unequal(self._torch.compile(encode, **options))
        self.decoder = self._unequal(self._torch.compile(self.model.text_decoder.step, **options))

    @staticmethod
    def _unequal(function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile without taking sizes that happen to be equal at first (rows, capacity) for one and the same.

        That leaves two captured graphs, one clip and more, instead of one for every coincidence.
        """
        from torch.fx.experimental import _config

        def called(*arguments: Any) -> Any:
            with _config.patch(use_duck_shape=False):  # type: ignore[attr-defined]
                return function(*arguments)

        return called


class AotRuntime(_OnDevice):
    """``engines/encoder.pt2`` and ``engines/decoder.pt2`` of a bundle folder, compiled where they run."""

    identity = "torch-aot"

    def __init__(
        self,
        folder: Path,
        config: NarratorConfig,
        threads: int | None = None,
        device: str = "cpu",
        weights: str | None = None,
    ) -> None:
        """Load the packages. They are machine code: their hashes are checked, their maker must be trusted.

        Args:
            folder: Of the bundle.
            config: The narrator's sizes.
            threads: torch's process-wide intra-op threads.
            device: ``cpu``, or ``cuda`` (never run).
            weights: `models.checkpoint.weights_digest` of what the bundle was made from; None: it does not say.

        Raises:
            BundleError: a package is missing, altered, was compiled for another machine or PyTorch, from other weights,
                or elsewhere.
        """
        super().__init__(config, device, threads)
        machine = aot_machine(device)
        self.encoder, self.decoder = (
            self._load(engine_path(folder, n, ".pt2"), machine, weights) for n in ("encoder", "decoder")
        )

    def _load(self, package: Path, machine: Machine, weights: str | None) -> Callable[..., Any]:
        key = check_engine(package, None, machine)
        if weights is not None and key.options.get("weights") != weights:
            raise BundleError(f"{package}: compiled from other weights than the bundle's; {mend(package)}")
        require_trust(package, key)
        try:
            loaded: Callable[..., Any] = self._torch._inductor.aoti_load_package(str(package))
        except Exception as error:  # the loader's own, unrelated classes
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise BundleError(f"{package}: PyTorch cannot load it ({reason}); {mend(package)}") from error
        return loaded


def aot_machine(device: str = "cpu") -> Machine:
    """What packages are compiled for: this PyTorch and this processor's vector instructions, or this GPU."""
    torch = _import_torch()
    if device == "cpu":
        return Machine(AOT, str(torch.__version__), "cpu", str(torch.backends.cpu.get_cpu_capability()))
    major, minor = torch.cuda.get_device_capability()
    return Machine(AOT, str(torch.__version__), str(torch.cuda.get_device_name()), f"{major}.{minor}")
