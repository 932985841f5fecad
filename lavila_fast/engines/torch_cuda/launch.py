"""How work reaches the device: streams, events, captured graphs, pinned memory. All that is CUDA's alone is here.

`Launcher` is the twin for the CPU, where work is done when it is called; `CudaLauncher` queues it. Whatever runs over
them reads the same for both, and is tested on the first. Rules of CUDA graphs that the second keeps: what is captured
reads and writes fixed memory, waits for nothing and allocates from a pool of its own; it is run a few times on the
capturing stream before (Triton kernels and libraries load at their first call); graphs of one stream share a pool,
which is safe because they are never replayed at once and leave nothing in it; other threads may allocate meanwhile
("thread_local"). What cannot be captured is launched kernel by kernel, with a warning. Never run on a GPU yet.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavila_fast.errors import InputError

_LOG = logging.getLogger("lavila_fast.engines")

WARM_UPS = 3


class Event:
    """A point in a stream's work. On the CPU it has always been reached."""

    def synchronize(self) -> None:
        """Let the host wait until it is reached."""

    def query(self) -> bool:
        """Whether it is reached."""
        return True

    def wait(self) -> None:
        """Let the current stream wait until it is reached; the host goes on."""


class Launcher:
    """Direct calls, for the CPU.

    Attributes:
        device: Where tensors are.
        graphs: Whether work is captured.
        architecture: ``cpu``, or what code for a GPU is compiled for (``sm_90``).
    """

    graphs = False
    architecture = "cpu"

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def decoding(self) -> AbstractContextManager[Any]:
        """Within it, work goes to the decoder's stream, which the device prefers."""
        return nullcontext()

    def encoding(self) -> AbstractContextManager[Any]:
        """Within it, work goes to the encoder's stream."""
        return nullcontext()

    def uploading(self) -> AbstractContextManager[Any]:
        """Within it, work goes to the stream on which clips arrive."""
        return nullcontext()

    def upload(self, values: Any) -> Tensor:
        """An array or tensor on the device, queued on the current stream; the source may be altered at once."""
        return _tensor(values)

    def host_buffer(self, like: Tensor) -> Tensor:
        """Host memory of the shape and type of `like`, that the device can write on its own."""
        return torch.zeros_like(like, device="cpu")

    def record_event(self) -> Event:
        """An event after all work of the current stream so far."""
        return Event()

    def new_pool(self, encoding: bool = False) -> None:
        """Let what is captured from now on share memory of its own: PyTorch wants no pool whose graphs are all gone."""

    def capture(self, work: Callable[[], None], encoding: bool = False) -> Callable[[], None]:
        """What to call for `work` from now on, in the same stream's context. `work` is run meanwhile, once or more."""
        work()
        return work

    def synchronize(self) -> None:
        """Wait until the device has done everything."""

    def total_bytes(self) -> int | None:
        """Memory of the device, used or not, or None where nobody counts it."""
        return None

    def free_bytes(self) -> int | None:
        """Memory that can still be had, or None where nobody counts it."""
        return None


def _tensor(values: Any) -> Tensor:
    return values if isinstance(values, Tensor) else torch.from_numpy(np.ascontiguousarray(values))


class _CudaEvent(Event):
    def __init__(self, device: torch.device) -> None:
        self._device, self._event = device, torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def synchronize(self) -> None:
        self._event.synchronize()

    def query(self) -> bool:
        return bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> None:
        torch.cuda.current_stream(self._device).wait_event(self._event)


class CudaLauncher(Launcher):
    """Three streams of one GPU; with `graphs`, captured work. Never run on a GPU yet."""

    def __init__(self, device: torch.device, graphs: bool = True) -> None:
        """Take a GPU.

        Raises:
            InputError: PyTorch sees none, or not this one.
        """
        if not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
            raise InputError(
                f"PyTorch sees no GPU for device {device}; check nvidia-smi, or leave --engine out for the CPU"
            )
        super().__init__(torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index))
        torch.cuda.set_device(self.device)  # Triton's kernels start on the current one
        self.graphs = graphs
        self.architecture = "sm_{}{}".format(*torch.cuda.get_device_capability(self.device))
        # A step is short and many wait for it; the encoder fills what it leaves.
        self._streams = [torch.cuda.Stream(self.device, priority=p) for p in (-1, 0, 0)]  # type: ignore[no-untyped-call]
        self._pools = [torch.cuda.graph_pool_handle() for _ in range(2)]  # the two run at once: no common memory

    def decoding(self) -> AbstractContextManager[Any]:
        """See `Launcher`."""
        return torch.cuda.stream(self._streams[0])

    def encoding(self) -> AbstractContextManager[Any]:
        """See `Launcher`."""
        return torch.cuda.stream(self._streams[1])

    def uploading(self) -> AbstractContextManager[Any]:
        """See `Launcher`."""
        return torch.cuda.stream(self._streams[2])

    def upload(self, values: Any) -> Tensor:
        """See `Launcher`. PyTorch's pinned allocator keeps the copy's source until the copy is done."""
        given = _tensor(values)
        if given.is_cuda:  # its owner may drop it before the current stream has read it
            given.record_stream(torch.cuda.current_stream(given.device))
            return given.to(self.device)
        pinned = torch.empty_like(given, pin_memory=True).copy_(given)  # a copy, though the source be pinned itself
        return pinned.to(self.device, non_blocking=True)

    def host_buffer(self, like: Tensor) -> Tensor:
        """See `Launcher`."""
        return torch.zeros(like.shape, dtype=like.dtype, pin_memory=True)

    def record_event(self) -> Event:
        """See `Launcher`."""
        return _CudaEvent(self.device)

    def new_pool(self, encoding: bool = False) -> None:
        """See `Launcher`."""
        self._pools[encoding] = torch.cuda.graph_pool_handle()

    def capture(self, work: Callable[[], None], encoding: bool = False) -> Callable[[], None]:
        """See `Launcher`."""
        self.synchronize()
        with torch.cuda.stream(self._streams[encoding]):
            for _ in range(WARM_UPS):
                work()
        self.synchronize()
        if not self.graphs:
            return work
        gc.collect()  # in the middle of a capture it might free what cannot be freed there
        before, graph, how = torch.cuda.current_stream(self.device), torch.cuda.CUDAGraph(), self._how(encoding)
        try:
            with torch.cuda.graph(graph, **how):
                work()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # it ran before, so it is the capture's
            self._leave_capture(before, how["pool"])
            _LOG.warning("without CUDA graphs, and slower: %s", str(error).strip().split("\n")[0])
            return work
        self.synchronize()
        return graph.replay

    def _how(self, encoding: bool) -> dict[str, Any]:
        stream, pool = self._streams[encoding], self._pools[encoding]
        return {"stream": stream, "pool": pool, "capture_error_mode": "thread_local"}

    def _leave_capture(self, before: torch.cuda.Stream, pool: Any) -> None:
        """Undo what `torch.cuda.graph` leaves behind when a capture fails: its stream, and up to 2.11 its pool."""
        self.graphs = False
        torch.cuda.set_stream(before)
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(self.device.index, pool)
        self.synchronize()

    def synchronize(self) -> None:
        """See `Launcher`."""
        torch.cuda.synchronize(self.device)

    def total_bytes(self) -> int | None:
        """See `Launcher`."""
        return int(torch.cuda.get_device_properties(self.device).total_memory)

    def free_bytes(self) -> int | None:
        """See `Launcher`. PyTorch counts the graphs' pools as unused, so it gives back what it can, and CUDA counts."""
        torch.cuda.empty_cache()
        return int(torch.cuda.mem_get_info(self.device)[0])


def launcher_for(device: str, graphs: bool) -> Launcher:
    """The launcher of a device (``cpu``, ``cuda``, ``cuda:1``).

    Raises:
        InputError: no such device.
    """
    try:
        wanted = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is not a device; take cpu, cuda or cuda:0") from error
    if wanted.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is neither cpu nor cuda; take one of them")
    return CudaLauncher(wanted, graphs) if wanted.type == "cuda" else Launcher(wanted)
