"""Workers on a Ray cluster: an actor each. Ray carries stretches and rows; what is done, the run's journal knows.

Whoever can import `lavila_fast` there, and reads the model and the videos at the same paths, can work.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lavila_fast.archive.fleet.seen import Answer, Task, WorkerLost
from lavila_fast.archive.fleet.worker import Worker
from lavila_fast.errors import LavilaError, MissingExtraError, ServerError
from lavila_fast.records import Clip
from lavila_fast.video.sources import VideoSource


class Cluster:
    """A Ray cluster that this process has joined as a driver."""

    def __init__(self, address: str, cpus: int, gpus: int) -> None:
        """Join it.

        Args:
            address: ``HOST:PORT``, ``auto``, ``ray://…``, or ``local`` for one that lives as long as this process.
            cpus: Processors that a worker asks for.
            gpus: GPUs that it asks for.

        Raises:
            MissingExtraError: Ray is not installed.
            ServerError: the cluster cannot be reached, or no node of it could hold a worker.
        """
        try:
            import ray
        except ImportError as error:
            raise MissingExtraError("ray", "ray") from error
        self._ray: Any = ray
        if not ray.is_initialized():
            quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
            try:
                ray.init(None if address == "local" else address, include_dashboard=False, **quiet)
            except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
                what = " ".join(str(error).split())[:200]
                raise ServerError(
                    f"--ray {address}: the cluster cannot be reached ({what}); see `ray status`"
                ) from error
        self._needs = {"num_cpus": cpus, "num_gpus": gpus}
        self._require_room(address, cpus, gpus)

    def start(self, task: Task) -> RayLink:
        """A worker, somewhere."""
        actor = (
            self._ray.remote(_Actor)
            .options(**self._needs, max_restarts=0, max_concurrency=2 * task.readers + 2)
            .remote(task, str(Path.cwd()))
        )
        return RayLink(self._ray, actor)

    def _require_room(self, address: str, cpus: int, gpus: int) -> None:
        """See that a worker fits on some node. One that is full today, or to be added, may hold it later."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            most = max((int(node.get("CPU", 0)) for node in nodes), default=0)
            need = f"{cpus} CPUs and {gpus} GPUs" if gpus else f"{cpus} CPUs"
            raise ServerError(
                f"--ray {address}: a worker asks for {need}, and no node has so many (at most {most} CPUs); "
                "give fewer --threads, or add a node"
            )


class _Actor:
    """What lives on the cluster: a worker whose errors of opening are told when it is first asked."""

    def __init__(self, task: Task, folder: str) -> None:
        with contextlib.suppress(OSError):
            os.chdir(folder)  # paths are the driver's
        self._worker: Worker | None = None
        self._error: LavilaError | None = None
        try:
            self._worker = Worker(task)
        except LavilaError as error:
            self._error = error

    def rows(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        if self._worker is None:
            assert self._error is not None
            raise self._error
        yield from self._worker.rows(source, clips)


class RayLink:
    """The way to an actor."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor, self._opened = ray, actor, False
        self._begun, self._first = False, actor.__ray_ready__.remote()

    def ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        """See `Link`.

        Raises:
            LavilaError: the actor cannot open the model.
        """
        errors = self._ray.exceptions
        try:
            for one in self._actor.rows.options(num_returns="streaming").remote(source, list(clips)):
                answer = self._ray.get(one)
                self._opened = True
                yield answer
        except errors.RayTaskError as error:
            if isinstance(error.cause, LavilaError):
                raise error.cause from error
            raise WorkerLost(f"{type(error.cause).__name__}: {error.cause}", self._opened) from error
        except (errors.RayActorError, errors.ObjectLostError, errors.WorkerCrashedError) as error:
            raise WorkerLost(_how(error), self._opened) from error

    def begun(self) -> bool:
        """See `Link`; also whether it is gone again."""
        if not self._begun and self._ray.wait([self._first], timeout=0)[0]:
            with contextlib.suppress(self._ray.exceptions.RayError):  # it is gone, which whoever asks is told
                self._ray.get(self._first)
                self._opened = True
            self._begun = True
        return self._begun

    def cpu(self) -> float:
        """See `Link`."""
        return 0.0

    def close(self) -> None:
        """See `Link`."""
        with contextlib.suppress(Exception):  # Ray may be gone already
            self._ray.kill(self._actor, no_restart=True)


def _how(error: Exception) -> str:
    """How an actor ended: of one that could not be made, such as where a package is lacking, by what it said last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:200] if lines and "creation task" in lines[0] else type(error).__name__
