"""Plain PyTorch: one process, or several that average their gradients (DDP)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavila_fast.train.engines.base import PRECISIONS, TrainingEngine, known_precision
from lavila_fast.train.gradients import Norms, cut_gradients
from lavila_fast.train.optimisers import Optimisation, make_optimiser, set_rate, trained_names
from lavila_fast.train.portable import Entry, TensorFile, entry_of
from lavila_fast.train.processes import own_device
from lavila_fast.train.tasks import TrainingTask


class TorchEngine(TrainingEngine):
    """One process or DDP; every process has all weights and all of the optimiser's state."""

    def __init__(self, task: TrainingTask, how: Optimisation, world: int = 1, precision: str = "float32") -> None:
        """An engine.

        Args:
            task: What is trained; it moves to this process's device.
            how: How.
            world: Processes.
            precision: Of the forward pass, by autocast; in ``float32`` a task that is `fast` casts for itself.
        """
        self.task, self.how, self.precision = task, how, known_precision(precision, task)
        self.device = own_device()
        task.to(self.device)
        if precision != "float32":
            cast = torch.autocast(self.device.type, PRECISIONS[precision])
            task.fast, task.forward = False, cast(task.forward)  # type: ignore[method-assign]
        self.module: nn.Module = DistributedDataParallel(task, broadcast_buffers=False) if world > 1 else task
        self.optimiser = make_optimiser(how, task)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "float16")

    def backward(self, loss: Tensor, ends: bool = True) -> Tensor:
        """See `TrainingEngine`."""
        share = loss / self.how.accumulate
        torch.autograd.backward(self.scaler.scale(share))
        return share.detach()

    def update(self, rate: float) -> Norms:
        """See `TrainingEngine`."""
        set_rate(self.optimiser, rate)
        self.scaler.unscale_(self.optimiser)
        gradients = [p.grad for p in self.task.model.parameters() if p.grad is not None]
        norms = cut_gradients(gradients, self.how)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        self.optimiser.zero_grad(set_to_none=False)
        with torch.no_grad():
            for name, (low, high) in self.task.bounds.items():
                self.task.get_parameter(name).clamp_(low, high)
        self.task.after_update()
        return norms

    def pieces(self) -> dict[str, Tensor]:
        """See `TrainingEngine`."""
        return {name: p.detach() for name, p in self.task.named_parameters() if p.requires_grad}

    def whole(self, name: str, piece: Tensor) -> Tensor:
        """See `TrainingEngine`."""
        return piece

    def piece_of(self, name: str, whole: Tensor) -> Tensor:
        """See `TrainingEngine`."""
        return whole

    def weights(self) -> list[Entry]:
        """See `TrainingEngine`."""
        return [entry_of(name, parameter.detach()) for name, parameter in self.task.named_parameters()]

    def _put_weight(self, name: str, whole: Tensor) -> None:
        self.task.get_parameter(name).copy_(whole)

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """See `TrainingEngine`."""
        if not self.scaler.is_enabled():
            return None
        state = self.scaler.state_dict()
        return {"scale": state["scale"], "steady": state["_growth_tracker"]}

    @loss_scale.setter
    def loss_scale(self, value: dict[str, float]) -> None:
        if self.scaler.is_enabled():
            state = {**self.scaler.state_dict(), "scale": value["scale"], "_growth_tracker": int(value["steady"])}
            self.scaler.load_state_dict(state)

    def _names(self) -> dict[Tensor, str]:
        return {parameter: name for name, parameter in self.task.named_parameters()}

    def _optimiser_entries(self) -> list[Entry]:
        names, entries = self._names(), []
        for parameter, state in self.optimiser.state.items():
            for kind, value in state.items():
                if value is not None:
                    tensor = value if isinstance(value, Tensor) else torch.tensor(value)
                    entries.append(entry_of(f"{kind}/{names[parameter]}", tensor))
        return entries

    def _put_optimiser(self, file: TensorFile) -> None:
        inner, names = trained_names(self.task), self._names()
        state: dict[int, dict[str, Any]] = {}
        groups = self.optimiser.state_dict()["param_groups"]
        place = {
            names[inner[name]]: i for group in groups for name, i in zip(group["names"], group["params"], strict=True)
        }
        for key in file.shapes:
            kind, _, name = key.partition("/")
            tensor = file[key]
            # Counts of 8-bit AdamW are plain numbers.
            value = tensor if tensor.is_floating_point() or tensor.ndim else int(tensor)
            state.setdefault(place[name], {})[kind] = value
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
