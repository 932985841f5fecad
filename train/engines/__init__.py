"""Who computes gradients and updates parameters: plain PyTorch, with DDP for several processes, or DeepSpeed.

Checkpoints are the same for all (see `portable`), so a run may go on with another engine, stage or number of processes.
"""

from lavila_fast.errors import InputError
from lavila_fast.models.text_towers import BertLayer, ClipBlock
from lavila_fast.models.timesformer import SpaceTimeBlock
from lavila_fast.train.engines.base import TrainingEngine
from lavila_fast.train.engines.deepspeed_engine import DeepSpeedEngine
from lavila_fast.train.engines.torch_engine import TorchEngine
from lavila_fast.train.launch import Launch
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.processes import rank_and_world
from lavila_fast.train.tasks import TrainingTask

__all__ = ["DeepSpeedEngine", "TorchEngine", "TrainingEngine", "make_engine"]


def make_engine(task: TrainingTask, how: Optimisation, launch: Launch, precision: str, clips: int) -> TrainingEngine:
    """The engine that a run asks for.

    Args:
        task: What is trained.
        how: How.
        launch: Says which ZeRO stage, and whether to compile.
        precision: Of the forward pass.
        clips: Of a micro-batch, over all processes.

    Raises:
        InputError: what does not go together.
        MissingExtraError: DeepSpeed is asked for and not installed.
    """
    if launch.compile:
        if launch.zero == 3:
            raise InputError("--compile is not for --zero 3, where weights come and go; take stage 1 or 2")
        compile_blocks(task)
    if launch.zero is not None:
        return DeepSpeedEngine(task, how, launch.zero, clips, precision, launch.offload)
    return TorchEngine(task, how, rank_and_world()[1], "float32" if task.fast else precision)


def compile_blocks(task: TrainingTask) -> None:
    """Compile each block of the towers when it first runs; one after the other is quicker than all at once."""
    for module in task.modules():
        if isinstance(module, (SpaceTimeBlock, ClipBlock, BertLayer)):
            module.compile()
