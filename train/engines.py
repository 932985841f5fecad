"""Who computes gradients and updates parameters: plain PyTorch, with DDP for several processes, or DeepSpeed.

Both keep the task's weights whole on every process (ZeRO stages 1 and 2 share out the optimiser's state and the
gradients), so averaging, evaluation and shipping are the same for both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavila_fast.errors import CheckpointError, InputError, MissingExtraError
from lavila_fast.files import write_json
from lavila_fast.train.checkpoints import read_state, save_state
from lavila_fast.train.optimisers import Norms, Optimisation, cut_gradients, make_optimiser, set_rate
from lavila_fast.train.tasks import TrainingTask


class TrainingEngine(Protocol):
    """What the loop asks of an engine."""

    module: nn.Module
    """The task, wrapped; call it with a batch."""

    def backward(self, loss: Tensor, ends: bool = True) -> Tensor:
        """Add the gradient of a micro-batch's share of its update, whose last one it is if it `ends` it.

        Returns:
            What was differentiated: the loss over the micro-batches of an update.
        """

    def update(self, rate: float) -> Norms:
        """Take one step at learning rate `rate` (times a group's factor) and forget the gradients."""

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write the optimiser's state with `state` beside it; called by every process."""

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the optimiser and return the `state` that was saved, or None if there is nothing."""


class TorchEngine:
    """One process or DDP."""

    def __init__(self, task: TrainingTask, how: Optimisation, world: int = 1) -> None:
        self.task, self.how = task, how
        self.module: nn.Module = DistributedDataParallel(task, broadcast_buffers=False) if world > 1 else task
        self.optimiser = make_optimiser(how, task)

    def backward(self, loss: Tensor, ends: bool = True) -> Tensor:
        """See `TrainingEngine`."""
        share = loss / self.how.accumulate
        torch.autograd.backward(share)
        return share.detach()

    def update(self, rate: float) -> Norms:
        """See `TrainingEngine`."""
        set_rate(self.optimiser, rate)
        gradients = [p.grad for p in self.task.model.parameters() if p.grad is not None]
        norms = cut_gradients(gradients, self.how)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        with torch.no_grad():
            for name, (low, high) in self.task.bounds.items():
                self.task.get_parameter(name).clamp_(low, high)
        self.task.after_update()
        return norms

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """See `TrainingEngine`."""
        if not dist.is_initialized() or dist.get_rank() == 0:
            save_state({**state, "optimiser": self.optimiser.state_dict()}, folder / "state.pt")

    def load(self, folder: Path) -> dict[str, Any] | None:
        """See `TrainingEngine`."""
        if not (folder / "state.pt").is_file():
            return None
        state: dict[str, Any] = read_state(folder / "state.pt")
        self.optimiser.load_state_dict(state.pop("optimiser"))
        return state


class DeepSpeedEngine:
    """AdamW of which every process keeps a share: ZeRO (Rajbhandari et al., 2020), stage 1 or 2.

    A checkpoint of one stage loads into another without an error and then trains differently, so the stage and the
    number of processes are written beside it and compared. DeepSpeed unpickles its own checkpoints: resume only yours.
    """

    def __init__(self, task: TrainingTask, how: Optimisation, stage: int, clips: int) -> None:
        """`clips`: of a micro-batch, over all processes."""
        if stage not in (1, 2):
            raise InputError(f"ZeRO stage {stage}: this loop knows stages 1 and 2")
        try:
            import deepspeed
        except ImportError as error:
            raise MissingExtraError("deepspeed", "train") from error
        self.task, self.how, world = task, how, dist.get_world_size()
        # DeepSpeed cuts by the norm of all, but what is the loss's own is not to count.
        own = any(parameter.requires_grad for parameter in task.criterion.parameters())
        self._cuts = how.clip == "value" or own
        self.kind = {"stage": stage, "processes": world}
        settings = {
            "train_batch_size": clips,
            "train_micro_batch_size_per_gpu": clips // world,
            "gradient_clipping": 0.0 if self._cuts or how.clip != "norm" else how.most,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        optimiser = make_optimiser(how, task)
        for gate in (p for p in task.parameters() if p.ndim == 0):
            # DeepSpeed 0.19 cannot broadcast a scalar; this mark leaves it out. Ours are the same everywhere anyway.
            gate.ds_optim_param = True  # type: ignore[attr-defined]
        self.module: Any = deepspeed.initialize(model=task, optimizer=optimiser, config=settings)[0]

    def backward(self, loss: Tensor, ends: bool = True) -> Tensor:
        """See `TrainingEngine`."""
        share = loss / self.how.accumulate
        self.module.set_gradient_accumulation_boundary(ends)
        self.module.backward(share)
        if not ends:
            self.module.step()  # counts the micro-batch, and no more
        return share.detach()

    def update(self, rate: float) -> Norms:
        """See `TrainingEngine`."""
        set_rate(self.module.optimizer, rate)
        norms = self._cut() if self._cuts else None
        self.module.step()
        self._keep_bounds()
        self.task.after_update()
        if norms:
            return norms
        before = torch.as_tensor(float(self.module.get_global_grad_norm() or 0.0))
        return Norms(before, before.clamp(max=self.how.most) if self.how.clip == "norm" else before)

    @torch.no_grad()
    def _cut(self) -> Norms:
        """Cut gradients in a way that DeepSpeed has not; whole ones are gathered for it, one after the other."""
        from deepspeed.utils import safe_get_full_grad, safe_set_full_grad

        trained = [parameter for parameter in self.task.model.parameters() if parameter.requires_grad]
        gradients = [safe_get_full_grad(parameter) for parameter in trained]
        norms = cut_gradients(gradients, self.how)
        for parameter, gradient in zip(trained, gradients, strict=True):
            safe_set_full_grad(parameter, gradient)
        return norms

    @torch.no_grad()
    def _keep_bounds(self) -> None:
        """As the task wishes, in the copies that DeepSpeed updates, too."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param

        for name, (low, high) in self.task.bounds.items():
            parameter = self.task.get_parameter(name)
            if parameter.requires_grad:
                safe_set_full_fp32_param(parameter, safe_get_full_fp32_param(parameter).clamp(low, high))
            parameter.clamp_(low, high)

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """See `TrainingEngine`; the tag is the step, so that a write cut short leaves the last checkpoint whole."""
        place = folder / "deepspeed"
        self.module.save_checkpoint(str(place), tag=f"step{state['step']}", client_state={"ours": state})
        if dist.get_rank() == 0:
            write_json(place / "kind.json", self.kind)

    def load(self, folder: Path) -> dict[str, Any] | None:
        """See `TrainingEngine`.

        Raises:
            CheckpointError: saved with another stage or number of processes.
        """
        place = folder / "deepspeed"
        if not (place / "latest").is_file():
            return None
        saved = json.loads((place / "kind.json").read_text())
        if saved != self.kind:
            raise CheckpointError(f"{place}: saved with {saved}, now {self.kind}; start it as it was")
        state: dict[str, Any] = self.module.load_checkpoint(str(place))[1]["ours"]
        return state
