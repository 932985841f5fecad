"""Who takes the optimiser's step: plain PyTorch (with DDP when there are several processes), or DeepSpeed's ZeRO.

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
from lavila_fast.train.recipes import Recipe
from lavila_fast.train.tasks import TrainingTask


class TrainingEngine(Protocol):
    """What the loop asks of an engine."""

    module: nn.Module
    """The task, wrapped; call it with frames and labels."""

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """Propagate `loss` back and take one step at learning rate `rate`; returns the norm of the gradient."""

    def save(self, folder: Path, state: dict[str, Any]) -> None:
        """Write the optimiser's state with `state` beside it; called by every process."""

    def load(self, folder: Path) -> dict[str, Any] | None:
        """Restore the optimiser and return the `state` that was saved, or None if there is nothing."""


def parameter_groups(task: TrainingTask, recipe: Recipe) -> list[dict[str, Any]]:
    """Matrices with weight decay, the rest without; frozen parameters not at all."""
    moving = [p for p in task.parameters() if p.requires_grad]
    matrices, others = [p for p in moving if p.ndim >= 2], [p for p in moving if p.ndim < 2]
    return [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]


class TorchEngine:
    """AdamW, one process or DDP."""

    def __init__(self, task: TrainingTask, recipe: Recipe, world: int) -> None:
        self.task, self.clip_norm, self.world = task, recipe.clip_norm, world
        self.module: nn.Module = DistributedDataParallel(task) if world > 1 else task
        self.optimiser = torch.optim.AdamW(parameter_groups(task, recipe), lr=recipe.lr, betas=recipe.betas, fused=True)

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """See `TrainingEngine`."""
        torch.autograd.backward(loss)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        norm = nn.utils.clip_grad_norm_(self.task.parameters(), self.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        return norm

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

    def __init__(self, task: TrainingTask, recipe: Recipe, stage: int) -> None:
        if stage not in (1, 2):
            raise InputError(f"ZeRO stage {stage}: this loop knows stages 1 and 2")
        try:
            import deepspeed
        except ImportError as error:
            raise MissingExtraError("deepspeed", "train") from error
        world = dist.get_world_size()
        self.kind = {"stage": stage, "processes": world}
        settings = {
            "train_batch_size": recipe.batch_size,
            "train_micro_batch_size_per_gpu": recipe.batch_size // world,
            "gradient_clipping": recipe.clip_norm,
            "zero_optimization": {"stage": stage},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 10**9,
        }
        optimiser = torch.optim.AdamW(parameter_groups(task, recipe), lr=recipe.lr, betas=recipe.betas)
        for gate in (p for p in task.parameters() if p.ndim == 0):
            # DeepSpeed 0.19 cannot broadcast a scalar; this mark leaves it out. Ours are the same everywhere anyway.
            gate.ds_optim_param = True  # type: ignore[attr-defined]
        self.module: Any = deepspeed.initialize(model=task, optimizer=optimiser, config=settings)[0]

    def update(self, loss: Tensor, rate: float) -> Tensor:
        """See `TrainingEngine`."""
        self.module.backward(loss)
        for group in self.module.optimizer.param_groups:
            group["lr"] = rate
        self.module.step()
        return torch.as_tensor(float(self.module.get_global_grad_norm() or 0.0))

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
