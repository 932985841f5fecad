"""DeepSpeed's ZeRO (Rajbhandari et al., 2020): processes share out the optimiser's state (stage 1), the gradients, too
(2), and the weights, too (3); stage 0 shares nothing and is for comparison.

In stage 3 a weight is whole only while a module that needs it computes. Modules fetch their own; what the task reads
outside its own module's forward (projections, class token, gates, the tied head) is noticed by DeepSpeed when it is
first read within the forward pass of `module`, and fetched from then on for whatever module is running.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.train.engines.base import PRECISIONS, TrainingEngine, known_precision
from lavila_fast.train.engines.shares import gathered, gradient_parts, put_gradient, shares_of
from lavila_fast.train.gradients import Norms
from lavila_fast.train.optimisers import Optimisation, make_optimiser, set_rate
from lavila_fast.train.portable import Entry, TensorFile
from lavila_fast.train.processes import own_device, share_of
from lavila_fast.train.tasks import TrainingTask

STAGES = (0, 1, 2, 3)
LARGEST_BUCKET = 50_000_000  # elements that are exchanged at a time
SMALL = 10_000  # elements up to which a weight stays whole in stage 3: vectors, gates, class tokens


class DeepSpeedEngine(TrainingEngine):
    """A task under ZeRO."""

    def __init__(
        self,
        task: TrainingTask,
        how: Optimisation,
        stage: int,
        clips: int,
        precision: str = "float32",
        offload: bool = False,
        small: int = SMALL,
    ) -> None:
        """An engine; processes have met before, see `processes`.

        Args:
            task: What is trained. A `fast` one computes in bfloat16, by DeepSpeed's means.
            how: How.
            stage: Of ZeRO, 0 to 3.
            clips: Of a micro-batch, over all processes.
            precision: Of weights and gradients in the passes; float32 ones are updated.
            offload: Keep the optimiser's state in the machine's memory and update there (stages 1 to 3).
            small: See `SMALL`.

        Raises:
            InputError: what does not go together.
            MissingExtraError: DeepSpeed is not installed.
        """
        precision = "bfloat16" if task.fast and precision == "float32" else precision
        self.task, self.how, self.stage, self.offload = task, how, stage, offload
        self.precision, self.device = known_precision(precision, task), own_device()
        _check(how, stage, offload, precision)
        each = share_of(clips, dist.get_world_size())
        if not torch.cuda.is_available():
            os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed looks for one, and warns that it found none
        try:
            import deepspeed
        except ImportError as error:
            raise MissingExtraError("deepspeed", "train") from error
        # For CPUs it would compile an exchange of its own when it is first used: that takes a compiler, a minute, and a
        # lock, for which every later run waits without end if this one is killed meanwhile. gloo is there already.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        if precision == "float16" and not deepspeed.get_accelerator().is_fp16_supported():
            raise InputError("DeepSpeed computes no float16 on this device; take bfloat16 or float32")
        task.fast = False
        self.shapes = {name: tuple(parameter.shape) for name, parameter in task.named_parameters()}
        # DeepSpeed would make its float32 weights of those that it has rounded.
        rounded = dict(task.named_parameters()) if precision != "float32" else {}
        exact = {name: parameter.detach().float().cpu().clone() for name, parameter in rounded.items()}
        self.trained = {name: p for name, p in task.named_parameters() if p.requires_grad}
        _cast_buffers(task, precision)
        # DeepSpeed cuts by the norm of all, but what is the task's own beside the model is not to count.
        own = any(not name.startswith("model.") for name in self.trained)
        self._cuts = how.clip == "value" or own or stage == 0
        settings = self._settings(clips, each, small)
        optimiser = make_optimiser(how, task)
        with _scalars_aside(task, stage):
            self.module: Any = deepspeed.initialize(model=task, optimizer=optimiser, config=settings)[0]
        self.shares = shares_of(self.module.optimizer, self.trained, stage)
        if stage == 0:  # DeepSpeed makes a step of its own there, which is not to count
            for state in self._states.values():
                state.clear()
        self._frozen: dict[str, Tensor] = {}
        for name, whole in exact.items():
            self._put_weight(name, whole)
        # Nobody else keeps the exact values of what is rounded and not trained; the first process does.
        self._exact = {name for name in exact if name not in self.trained}
        self._frozen |= {name: exact[name] for name in self._exact} if dist.get_rank() == 0 else {}

    def _settings(self, clips: int, each: int, small: int) -> dict[str, Any]:
        trained = sum(p.numel() for p in self.trained.values())
        bucket = min(LARGEST_BUCKET, (trained // 1024 + 1) * 1024)  # DeepSpeed wants an even number
        zero: dict[str, Any] = {"stage": self.stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket}
        if self.stage == 3:
            zero |= {"stage3_param_persistence_threshold": small, "stage3_prefetch_bucket_size": bucket}
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device.type == "cuda"}
        settings: dict[str, Any] = {
            "train_batch_size": clips,
            "train_micro_batch_size_per_gpu": each,
            "gradient_clipping": 0.0 if self._cuts or self.how.clip != "norm" else self.how.most,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # PyTorch's fused AdamW runs on CPUs, too
            "steps_per_print": 10**9,
        }
        if self.precision != "float32":
            settings["bf16" if self.precision == "bfloat16" else "fp16"] = {"enabled": True}
            if self.stage:
                settings["data_types"] = {"grad_accum_dtype": "fp32"}
        return settings

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
        """Cut gradients in a way that DeepSpeed has not, each process its parts."""
        trained = {name: p for name, p in self.trained.items() if name.startswith("model.")}
        parts = gradient_parts(trained, self.stage)
        scale = float(getattr(self.module.optimizer, "loss_scale", 1.0))
        before = after = self._norm(parts) / scale
        if not before.isfinite():
            return Norms(before, after)  # in float16 the step will be left out
        if self.how.clip == "norm":
            factor = self.how.most / (before + 1e-6)
            if factor < 1:
                torch._foreach_mul_([part for _, part in parts], float(factor))
                after = before * factor
        elif self.how.clip == "value":
            for _, part in parts:
                part.clamp_(-self.how.most * scale, self.how.most * scale)
            after = self._norm(parts) / scale
        if self.how.clip != "none":
            for parameter, part in parts:
                put_gradient(parameter, part, self.stage)
        return Norms(before, after)

    def _norm(self, parts: list[tuple[nn.Parameter, Tensor]]) -> Tensor:
        squares = [part.float().square().sum() for _, part in parts]
        total = torch.stack(squares).sum().to(self.device) if squares else torch.zeros((), device=self.device)
        if self.stage:
            dist.all_reduce(total)
        return total.sqrt()

    @torch.no_grad()
    def _keep_bounds(self) -> None:
        """As the task wishes, in all copies."""
        for name, (low, high) in self.task.bounds.items():
            for copy in self._copies(name):
                copy.clamp_(low, high)

    def _copies(self, name: str) -> list[Tensor]:
        """All tensors that hold elements of a weight on this process."""
        parameter = self.task.get_parameter(name)
        copies = [self.shares[name].master] if name in self.shares else [self._frozen.get(name)]
        if self.stage == 3:
            copies.append(parameter.ds_tensor.data)  # type: ignore[attr-defined]
        if parameter.numel() == math.prod(self.shapes[name]):  # in stage 3 only of a small one, or while it is fetched
            copies.append(parameter.data)
        return [copy for copy in copies if copy is not None]

    def pieces(self) -> dict[str, Tensor]:
        """See `TrainingEngine`."""
        return {name: share.master for name, share in self.shares.items()}

    def whole(self, name: str, piece: Tensor) -> Tensor:
        """See `TrainingEngine`."""
        if self.stage == 0:
            return piece.view(self.shapes[name])
        return gathered(self.shares[name], piece, self.shapes[name], self.device)

    def piece_of(self, name: str, whole: Tensor) -> Tensor:
        """See `TrainingEngine`."""
        share = self.shares[name]
        return whole.reshape(-1).narrow(0, share.start, share.master.numel())

    def weights(self) -> list[Entry]:
        """See `TrainingEngine`."""
        return [Entry(name, shape, torch.float32, partial(self._weight, name)) for name, shape in self.shapes.items()]

    def _weight(self, name: str) -> Tensor:
        if name in self.shares:
            return self.whole(name, self.shares[name].master)
        if name in self._exact:
            whole = self._frozen.get(name, torch.empty(self.shapes[name])).to(self.device)
            dist.broadcast(whole, 0)
            return whole
        parameter = self.task.get_parameter(name)
        if self.stage < 3:
            return parameter.detach()
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.detach().clone()

    @torch.no_grad()
    def _put_weight(self, name: str, whole: Tensor) -> None:
        parameter = self.task.get_parameter(name)
        if name in self.shares:
            self.shares[name].master.copy_(self.piece_of(name, whole))
        elif name in self._frozen:
            self._frozen[name].copy_(whole)
        if self.stage == 3:
            own: Tensor = parameter.ds_tensor  # type: ignore[attr-defined]
            start = min(own.numel() * dist.get_rank(), whole.numel())
            count = min(own.numel(), whole.numel() - start)
            own.data[:count].copy_(whole.reshape(-1)[start : start + count])
        if parameter.numel() == whole.numel():
            parameter.data.copy_(whole)

    @property
    def _states(self) -> Any:
        """What PyTorch's optimiser remembers, by the tensors it knows."""
        return getattr(self.module.optimizer, "optimizer", self.module.optimizer).state

    def _optimiser_entries(self) -> list[Entry]:
        kinds = {kind for state in self._states.values() for kind, value in state.items() if value is not None}
        entries = []
        for name in self.shares:
            for kind in sorted(kinds):
                shape = () if kind == "step" else self.shapes[name]
                entries.append(Entry(f"{kind}/{name}", shape, torch.float32, partial(self._remembered, name, kind)))
        return entries

    def _remembered(self, name: str, kind: str) -> Tensor:
        share = self.shares[name]
        value = self._states[share.key][kind]
        return torch.as_tensor(value).float() if kind == "step" else self.whole(name, share.of(value))

    @torch.no_grad()
    def _put_optimiser(self, file: TensorFile) -> None:
        for state in self._states.values():
            state.clear()
        steps: dict[Tensor, float] = {}  # of all that DeepSpeed has put into a row
        for key in file.shapes:
            kind, _, name = key.partition("/")
            share, tensor = self.shares[name], file[key]
            if kind == "step":
                steps[share.key] = max(steps.get(share.key, 0.0), float(tensor))
                continue
            state = self._states[share.key]
            if kind not in state:
                state[kind] = torch.zeros_like(share.key, requires_grad=False)
            share.of(state[kind]).copy_(self.piece_of(name, tensor))
        for row, step in steps.items():
            self._states[row]["step"] = torch.tensor(step, device=row.device)
        self.module.optimizer._hp_optimizer_states_linked = False  # DeepSpeed's own names for them

    @property
    def loss_scale(self) -> dict[str, float] | None:
        """See `TrainingEngine`."""
        scaler = getattr(self.module.optimizer, "loss_scaler", None)
        if self.precision != "float16" or scaler is None:
            return None
        steady = scaler.cur_iter - scaler.last_overflow_iter - 1
        return {"scale": scaler.cur_scale, "steady": steady, "patience": scaler.cur_hysteresis}

    @loss_scale.setter
    def loss_scale(self, value: dict[str, float]) -> None:
        scaler = getattr(self.module.optimizer, "loss_scaler", None)
        if self.precision == "float16" and scaler is not None:
            scaler.cur_scale, scaler.cur_iter, scaler.last_overflow_iter = value["scale"], int(value["steady"]), -1
            scaler.cur_hysteresis = int(value.get("patience", scaler.cur_hysteresis))

    @property
    def about(self) -> dict[str, Any]:
        """See `TrainingEngine`."""
        return {**super().about, "stage": self.stage, "offload": self.offload}


def _check(how: Optimisation, stage: int, offload: bool, precision: str) -> None:
    if stage not in STAGES:
        raise InputError(f"ZeRO stage {stage}: unknown; take 0, 1, 2 or 3")
    if how.name == "adamw8bit":
        raise InputError("optimiser adamw8bit: its state is packed and cannot be shared out; take adamw, or leave ZeRO")
    if not stage and (offload or precision == "float16"):
        raise InputError("offload and float16 need a ZeRO stage from 1 to 3")


def _cast_buffers(task: TrainingTask, precision: str) -> None:
    """Those of the model meet weights of this type; DeepSpeed casts parameters alone."""
    for buffer in task.model.buffers():
        if buffer.is_floating_point():
            buffer.data = buffer.data.to(PRECISIONS[precision])


@contextmanager
def _scalars_aside(task: TrainingTask, stage: int) -> Iterator[None]:
    """DeepSpeed 0.19 cannot broadcast a scalar, to make processes alike; ours are alike anyway.

    A mark leaves them out. In stage 3 there is none, and it sees rows of one element instead.
    """
    scalars = [parameter for parameter in task.parameters() if parameter.ndim == 0]
    for parameter in scalars:
        if stage == 3:
            parameter.data = parameter.data.view(1)
        else:
            parameter.ds_optim_param = True  # type: ignore[attr-defined]
    yield
    for parameter in scalars if stage == 3 else []:
        parameter.ds_shape = torch.Size(())  # type: ignore[attr-defined]  # that it has when it is gathered
        if parameter.numel():
            parameter.data = parameter.data.view(())
