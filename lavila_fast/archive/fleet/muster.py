"""How many workers a run has, and where: from options to a `Fleet`."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, TypeVar

from lavila_fast.archive.fleet.crew import Fleet
from lavila_fast.archive.fleet.local import LocalLink
from lavila_fast.archive.fleet.seen import Link, Task
from lavila_fast.clip_model import ClipModel
from lavila_fast.errors import InputError
from lavila_fast.machine import VISIBLE, available_cpus, visible_gpus

if TYPE_CHECKING:
    from lavila_fast.archive.request import Request
    from lavila_fast.video.children.limits import ChildLimits
    from lavila_fast.video.children.pool import Children

M = TypeVar("M", bound=ClipModel)
MOST = 1024
_READERS = 2  # stretches that a worker works on at once, at least: one comes to its end while the other goes on


@dataclass(frozen=True)
class Workers:
    """What was asked for.

    Attributes:
        processes: How many; None: one a GPU where the model runs on GPUs, else the run does everything itself.
        devices: Numbers or names of GPUs; empty: all.
        ray: Address of a Ray cluster, ``local`` for one of this machine alone; None: processes of this machine.
        cpus: Processors that a worker on a cluster asks for.
    """

    processes: int | None = None
    devices: tuple[str, ...] = ()
    ray: str | None = None
    cpus: int = 1

    @classmethod
    def parse(cls, processes: int | None, devices: str | None, ray: str | None, threads: int | None) -> Workers:
        """From the command line.

        Raises:
            InputError: they do not fit each other.
        """
        names = () if devices in (None, "all") else tuple(part.strip() for part in str(devices).split(","))
        if not all(names) or len(set(names)) < len(names):
            raise InputError(f"--devices {devices}: give GPUs by number, each once, such as 0,2; or all")
        if devices is not None and ray is not None:
            raise InputError("--devices: on a cluster Ray says who has which; leave it out")
        if ray is not None and processes is None:
            raise InputError(f"--ray {ray}: say how many workers there are to be, --processes N")
        return cls(processes, names, ray, threads or 1)

    def threads_each(self, threads: int | None) -> int | None:
        """Threads of the model, where several share this machine."""
        if threads or self.ray or not self.processes or self.processes == 1:
            return threads
        return max(1, available_cpus() // self.processes)

    def places(self, device: str) -> list[dict[str, str]]:
        """The variables that tell each worker's process which device is its own; empty: there are no workers.

        Args:
            device: Of the model: ``cpu`` or another.

        Raises:
            InputError: GPUs were asked for that there are not, or for a model that runs on none.
        """
        if self.ray is not None:
            return [{}] * (self.processes or 1)
        if device == "cpu":
            if self.devices:
                raise InputError(f"--devices {','.join(self.devices)}: this model runs on the CPU; see --engine")
            return [{}] * self.processes if self.processes and self.processes > 1 else []
        known = tuple(visible_gpus())
        if missing := [one for one in self.devices if known and one not in known]:
            raise InputError(f"--devices {missing[0]}: there are {', '.join(known)}")
        names = self.devices or known
        count = self.processes or len(names)
        if count < 2 and not self.devices:
            return []
        return [{VISIBLE: names[place % len(names)]} if names else {} for place in range(count)]


def muster(
    workers: Workers,
    request: Request,
    model: M,
    limits: ChildLimits | None,
    children: Children | None,
    also: tuple[Request, ClipModel] | None = None,
) -> tuple[M, Fleet | None]:
    """The fleet of a run, if it is to have one, and the model without its engine, which is the workers' then.

    Args:
        workers: What was asked for.
        request: Of the run.
        model: What it runs with.
        limits: Of processes that decode; None: workers decode themselves.
        children: The run's own, which look at videos; they end with the fleet.
        also: What else is to be done with the clips one by one, see `beside`.

    Raises:
        InputError: what was asked for cannot be had.
    """
    places = workers.places(model.device)
    if not places:
        return model, None
    readers = max(_READERS, available_cpus() // len(places) if workers.ray is None else workers.cpus)
    second = (_sent(also[0]), pickle.dumps(also[1])) if also else None
    task = Task(_sent(request), pickle.dumps(model), limits, readers, second)
    start = _start_on_ray(workers, task, model.device) if workers.ray is not None else _start_here(task, places)
    return _without_engine(model), Fleet(start, len(places), readers, children)


def _sent(request: Request) -> Request:
    """A request as it goes to workers: without what only this process can tell."""
    return replace(request, metrics=None)


def _start_here(task: Task, places: list[dict[str, str]]) -> Callable[[int], Link]:
    return lambda place: LocalLink(task, places[place])


def _start_on_ray(workers: Workers, task: Task, device: str) -> Callable[[int], Link]:
    from lavila_fast.archive.fleet.cluster import Cluster

    assert workers.ray is not None
    cluster = Cluster(workers.ray, workers.cpus, gpus=int(device != "cpu"))
    return lambda place: cluster.start(task)


def _without_engine(model: M) -> M:
    """What a run asks of a model, without what takes memory."""
    facts = SimpleNamespace(config=model.config, device=model.device)
    return replace(model, runtime=facts)  # type: ignore[type-var]
