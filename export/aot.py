"""AOTInductor: a narrator's graphs compiled by PyTorch into packages that load without compiling.

A package is machine code for this processor or GPU and this PyTorch, so it has a key like any engine, and is made
where it will run. It needs a C++ compiler to build and torch, no compiler, to run.

    lavila-fast engines build BUNDLE --builder aotinductor --checkpoint narrator.safetensors
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils import _pytree as pytree

from lavila_fast.bundle.engine_key import AOT, EngineKey, Machine, check_engine, engine_path, require_trust, trust
from lavila_fast.engines.host.compiled import aot_machine
from lavila_fast.errors import BundleError, InputError
from lavila_fast.export.graphs.specs import Spec, narrator_specs
from lavila_fast.files import new_file, sha256
from lavila_fast.models.checkpoint import weights_digest
from lavila_fast.models.narrator import NarratorModel


def build_packages(
    model: NarratorModel,
    folder: Path,
    device: str = "cpu",
    force: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, EngineKey]:
    """Compile encoder and decoder into ``engines/<name>.pt2`` of a bundle.

    Args:
        model: A narrator, float32 or with swapped layers that PyTorch can compile.
        folder: The bundle.
        device: ``cpu``, or ``cuda`` (never run).
        force: Compile those too that are still good.
        say: Called with a line for each graph.

    Raises:
        InputError: there is no compiler here, or the graph cannot be compiled.
    """
    machine, weights, keys = aot_machine(device), weights_digest(model), {}
    for spec in narrator_specs(model):
        package = engine_path(folder, spec.name, ".pt2")
        good = None if force else _still_good(package, machine, weights)
        say(f"{package}: {'still good' if good else 'compiling'}")
        keys[spec.name] = good or _build(spec, package, device, weights)
    return keys


def _still_good(package: Path, machine: Machine, weights: str) -> EngineKey | None:
    """The key of a package that was compiled here from these weights."""
    try:
        key = check_engine(package, None, machine)
        require_trust(package, key)
    except BundleError:
        return None
    return key if key.options.get("weights") == weights else None


def _build(spec: Spec, package: Path, device: str, weights: str) -> EngineKey:
    package.parent.mkdir(parents=True, exist_ok=True)
    module, arguments = spec.module.eval().to(device), pytree.tree_map(lambda t: t.to(device), spec.arguments)
    try:
        with warnings.catch_warnings(), torch.no_grad(), new_file(package, package.suffix) as part:
            warnings.simplefilter("ignore")
            program = torch.export.export(module, arguments, dynamic_shapes=spec.axes)
            torch._inductor.aoti_compile_and_package(program, package_path=str(part))
    except Exception as error:  # inductor raises the compiler's own failures as they come
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{spec.name}: AOTInductor cannot compile it here ({reason}); is g++ installed?") from error
    machine = aot_machine(device)
    key = EngineKey(AOT, machine.version, machine.gpu, (machine.capability,), "", sha256(package), {"weights": weights})
    key.save(package)
    trust(package)
    return key
