"""What a training loop asks of an engine, and what all engines do alike: checkpoints.

A process holds a *piece* of each trained weight: all of it, or with ZeRO the elements that it updates.
"""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavila_fast.errors import CheckpointError, InputError
from lavila_fast.train import portable
from lavila_fast.train.gradients import Norms
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.portable import Entry, TensorFile
from lavila_fast.train.processes import rank_and_world
from lavila_fast.train.tasks import TrainingTask

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class TrainingEngine(ABC):
    """Gradients and updates of a task.

    Attributes:
        task: What is trained. With ZeRO stage 3 its parameters hold nothing outside `module`.
        module: The task, wrapped; call it with a batch.
        how: How parameters follow their gradients.
        device: Where batches are to be.
        precision: In which the forward pass computes; float32 weights are updated whatever it is.
    """

    task: TrainingTask
    module: nn.Module
    how: Optimisation
    device: torch.device
    precision: str

    @abstractmethod
    def backward(self, loss: Tensor, ends: bool = True) -> Tensor:
        """Add the gradient of a micro-batch's share of its update, whose last one it is if it `ends` it.

        Returns:
            What was differentiated: the loss over the micro-batches of an update.
        """

    @abstractmethod
    def update(self, rate: float) -> Norms:
        """Take one step at learning rate `rate` (times a group's factor) and forget the gradients."""

    @abstractmethod
    def pieces(self) -> dict[str, Tensor]:
        """This process's pieces of the float32 weights that are trained, by name; they change with each update."""

    @abstractmethod
    def whole(self, name: str, piece: Tensor) -> Tensor:
        """The tensor of which every process has such a piece of the weight `name`; called by all."""

    @abstractmethod
    def piece_of(self, name: str, whole: Tensor) -> Tensor:
        """The opposite of `whole`."""

    @abstractmethod
    def weights(self) -> list[Entry]:
        """All parameters by the task's names, in float32; see `Entry` for how they are gathered."""

    @abstractmethod
    def _put_weight(self, name: str, whole: Tensor) -> None:
        """Give a parameter a value."""

    @abstractmethod
    def _optimiser_entries(self) -> list[Entry]:
        """What the optimiser remembers, as ``KIND/NAME``."""

    @abstractmethod
    def _put_optimiser(self, file: TensorFile) -> None:
        """Have the optimiser remember what `_optimiser_entries` gave."""

    @property
    def about(self) -> dict[str, Any]:
        """What is said of the engine in a checkpoint, for readers."""
        return {"engine": type(self).__name__, "precision": self.precision, "processes": rank_and_world()[1]}

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """In float16: the factor of the loss as ``scale``, and ``steady``, updates since it changed."""
        return None

    @loss_scale.setter
    def loss_scale(self, value: dict[str, float]) -> None:
        raise NotImplementedError

    def save(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write weights, the optimiser's state and `state` into a folder; called by every process.

        Raises:
            StorageError: it cannot be written.
        """
        rows = self._buffer_rows()
        uneven = {name: each for name, each in rows.items() if bool((each != each[0]).any())}
        # Of a buffer that is a sum over a process's own batches, a mean goes on as the sum would.
        common = {name: each.mean(0) if name in uneven else each[0] for name, each in rows.items()}
        buffers = [portable.entry_of(name, tensor) for name, tensor in common.items()]
        portable.write_tensors(folder / portable.WEIGHTS, [*self.weights(), *buffers])
        portable.write_tensors(folder / portable.OPTIMISER, self._optimiser_entries())
        if uneven:
            entries = [portable.entry_of(name, tensor) for name, tensor in uneven.items()]
            portable.write_tensors(folder / portable.PROCESSES, entries)
        about = {**self.about, "optimiser": self.how.name, "loss_scale": self.loss_scale, "versions": _versions()}
        portable.write_state(folder, {**state, **about})

    @torch.no_grad()
    def load(self, folder: Path) -> dict[str, Any]:
        """Restore what `save` wrote, by whatever engine, and return its `state`; called by every process.

        Raises:
            CheckpointError: incomplete, damaged, or of another model or optimiser.
        """
        state = portable.read_state(folder)
        weights, optimiser = TensorFile(folder / portable.WEIGHTS), TensorFile(folder / portable.OPTIMISER)
        shapes = {entry.name: entry.shape for entry in self.weights()}
        weights.check(shapes | {name: tuple(buffer.shape) for name, buffer in self._buffers().items()})
        self._check_optimiser(state, optimiser, shapes)
        portable.check_files(folder, state)
        for name in shapes:
            self._put_weight(name, weights[name])
        self._put_optimiser(optimiser)
        self._put_buffers(folder, weights)
        if state.get("loss_scale"):
            self.loss_scale = state["loss_scale"]
        return state

    def _check_optimiser(self, state: dict[str, Any], file: TensorFile, shapes: dict[str, tuple[int, ...]]) -> None:
        if state.get("optimiser") != self.how.name:
            raise CheckpointError(
                f"{file.path}: of optimiser {state.get('optimiser')}, this run has {self.how.name}; "
                "resume with the recipe that made it, or start afresh"
            )
        trained = {name for name, parameter in self.task.named_parameters() if parameter.requires_grad}
        for key, shape in file.shapes.items():
            kind, _, name = key.partition("/")
            whole = kind.startswith(("exp_avg", "momentum"))
            if name not in trained or (whole and shape != shapes[name]):
                raise CheckpointError(
                    f"{file.path}: {key} {shape} is not of what this run trains; "
                    "resume with the recipe that made it, or start afresh"
                )

    def _buffers(self) -> dict[str, Tensor]:
        """Those that are kept, live."""
        parameters = {name for name, _ in self.task.named_parameters()}
        return {name: tensor for name, tensor in self.task.state_dict().items() if name not in parameters}

    def _buffer_rows(self) -> dict[str, Tensor]:
        """Each process's (world, …), in float32."""
        world = rank_and_world()[1]
        rows = {}
        for name, buffer in self._buffers().items():
            own = buffer.detach().float().contiguous() if buffer.is_floating_point() else buffer.contiguous()
            each = [torch.empty_like(own) for _ in range(world)]
            if world > 1:
                dist.all_gather(each, own)
            rows[name] = torch.stack(each if world > 1 else [own])
        return rows

    def _put_buffers(self, folder: Path, weights: TensorFile) -> None:
        rank, world = rank_and_world()
        path = folder / portable.PROCESSES
        uneven = portable.read_tensors(path) if path.is_file() else {}
        for name, buffer in self._buffers().items():
            own = uneven.get(name)
            buffer.copy_(own[rank] if own is not None and len(own) == world else weights[name])


def known_precision(precision: str, task: TrainingTask) -> str:
    """See that this precision fits.

    Raises:
        InputError: it is unknown, or the device or the task cannot do with it.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision}: unknown; take one of {', '.join(PRECISIONS)}")
    if precision == "float16" and hasattr(task.criterion, "pseudo_gradients"):
        raise InputError(
            "float16 scales the loss by a factor that changes, and this task adds up a gradient over updates; "
            "take bfloat16 or float32"
        )
    if (
        precision == "bfloat16"
        and torch.cuda.is_available()
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise InputError("this GPU computes no bfloat16; take float16 or float32")
    return precision


def _versions() -> dict[str, str]:
    found = {}
    for package in ("lavila-fast", "torch", "deepspeed"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
