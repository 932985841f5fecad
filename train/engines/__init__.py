"""Who computes gradients and updates parameters: plain PyTorch, with DDP for several processes, or DeepSpeed.

Checkpoints are the same for all (see `portable`), so a run may go on with another engine, stage or number of processes.
"""

from lavila_fast.train.engines.base import TrainingEngine
from lavila_fast.train.engines.deepspeed_engine import DeepSpeedEngine
from lavila_fast.train.engines.torch_engine import TorchEngine

__all__ = ["DeepSpeedEngine", "TorchEngine", "TrainingEngine"]
