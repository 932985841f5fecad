"""How a run is started: what of a machine it takes, and files that start it on a cluster.

Several processes are the same command started once for each, with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as
torchrun, DeepSpeed's launcher and the script of `slurm_script` set them, and as `several` does on one machine.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from lavila_fast.errors import InputError
from lavila_fast.files import warn
from lavila_fast.machine import available_cpus
from lavila_fast.parent import end_with_parent

PARENT = "LAVILA_FAST_PARENT"  # number of the process that started this one, if it was `several`
_LAST_WORDS = 5.0  # seconds
_GRACE = 60.0  # seconds that processes have to leave by themselves when another one failed


@dataclass(frozen=True)
class Launch:
    """What of the machine a run takes; its results do not depend on it, but for rounding.

    Attributes:
        zero: ZeRO stage of DeepSpeed; None: plain PyTorch.
        offload: Keep the optimiser's state in the host's memory, and update there.
        workers: Processes that read videos, for each process that trains.
        compile: Compile the model.
        every: Updates between progress lines.
        sinks: Rows of `watch.SINKS`.
        quiet: Say nothing but warnings.
        limit: Stop after so many updates, as if asked to; 0: at the end.
    """

    zero: int | None = None
    offload: bool = False
    workers: int = 2
    compile: bool = False
    every: int = 10
    sinks: tuple[str, ...] = ()
    quiet: bool = False
    limit: int = 0

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: offloading without ZeRO, or a number out of range.
        """
        if self.zero is not None and self.zero not in range(4):
            raise InputError(f"--zero {self.zero}: DeepSpeed has stages 0 to 3")
        if self.offload and not self.zero:
            raise InputError("--offload needs --zero 1, 2 or 3")


def several(processes: int, arguments: Sequence[str]) -> int:
    """Start a command once for each process on this machine, and wait for all; returns the first exit code but 0.

    Ctrl-C and SIGTERM reach every process, and each has the time it needs to save. When one fails, the others end; when
    this one is killed, they save and leave, see `follow_parent`.

    Args:
        processes: How many.
        arguments: Of ``lavila-fast``.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    threads = max(1, available_cpus() // processes)
    common = {"OMP_NUM_THREADS": str(threads), **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    common |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes), PARENT: str(os.getpid())}
    started: list[subprocess.Popen[bytes]] = []

    def hand_on(sign: int, frame: object) -> None:
        for one in started:
            one.send_signal(sign)

    before = {sign: signal.signal(sign, hand_on) for sign in (signal.SIGTERM, signal.SIGINT)}
    try:
        for rank in range(processes):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "lavila_fast", *arguments]
            pipe: Any = {"stderr": subprocess.PIPE, "start_new_session": True}
            started.append(subprocess.Popen(command, env={**common, **own}, **pipe))  # noqa: S603
        with _heard(started):
            return _waited(started)
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)


def follow_parent() -> None:
    """Have this process, if `several` started it, save and leave when that one is gone."""
    parent = os.environ.get(PARENT, "")
    if parent.isdecimal():
        end_with_parent(int(parent), signal.SIGTERM)


@contextmanager
def _heard(started: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """Hand on what processes say on standard error; an error that all have found, once."""
    errors: set[bytes] = set()

    def hear(stream: IO[bytes]) -> None:
        for line in stream:
            if line.startswith(b"error: "):
                if line in errors:
                    continue
                errors.add(line)
            warn(line.decode("utf-8", "replace").rstrip("\n"))

    threads = [threading.Thread(target=hear, args=(one.stderr,), daemon=True) for one in started]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(_LAST_WORDS)  # a process of theirs may hold it open


def _waited(started: Sequence[subprocess.Popen[bytes]]) -> int:
    """The first exit code that is not 0; a process that fails takes the others with it, after a while."""
    failed, since = 0, 0.0
    while any(one.poll() is None for one in started):
        time.sleep(0.1)
        codes = [one.returncode for one in started if one.returncode]
        if codes and not failed:
            failed, since = codes[0], time.monotonic()
        if failed and time.monotonic() - since > _GRACE:
            for one in started:
                one.kill()
    return failed or next((one.returncode for one in started if one.returncode), 0)


def slurm_script(arguments: Sequence[str], nodes: int, gpus: int, hours: int = 72) -> str:
    """A batch script with a process for each GPU, which meet on the first node.

    Slurm sends SIGTERM ten minutes before the end: the run saves, leaves, and is queued again; its `--resume` goes on.
    """
    command = shlex.join([sys.executable, "-m", "lavila_fast", *arguments])
    own = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"  # a process knows its own
    return f"""#!/bin/bash
#SBATCH --job-name=lavila-fast
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={gpus}
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task=8
#SBATCH --time={hours}:00:00
#SBATCH --signal=B:TERM@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))  # a job's own, where several share a node
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK  # which srun no longer takes over by itself

# SIGTERM comes to this script alone: hand it on, wait until all have saved, and queue again.
leave() {{ scancel --signal=TERM "$SLURM_JOB_ID.0"; wait "$run"; scontrol requeue "$SLURM_JOB_ID"; }}
trap leave TERM

srun bash -c '{own} exec "$@"' - \\
  {command} &
run=$!
wait "$run"
"""
