"""What a compiled engine was built for, and whether it may run here.

An engine is machine code for one GPU, one TensorRT and one graph; on another it fails late, or worse, runs. So beside
every ``engines/<name>.engine`` of a bundle lies ``<name>.engine.json``, its key, and nothing is loaded whose key does
not fit. AOTInductor's packages (``<name>.pt2``) are kept the same way; they are code for the processor, and run only
where they were built or where the user allows it. The comparison is pure, so that it can be tested without a GPU.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from lavila_fast.download import cache_dir, is_there, user_cache
from lavila_fast.errors import BundleError, InputError, MissingExtraError
from lavila_fast.files import sha256, write_json

# What could not be run where this was written (no GPU, no libnvinfer): it is checked as far as it goes without.
NEVER_RUN = ("cuda", "tensorrt", "jetson", "rtx", "torch_tensorrt")
BUILDERS = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx", "torch_tensorrt": "torch-tensorrt"}  # the extra of each
AOT = "aotinductor"
FOLDER = "engines"  # in a bundle; bundle.json does not list what lies there, because it is made on the target
WEIGHT_FILES = ("weights.safetensors", "{name}.data", "{stem}.data")
ALLOW = "LAVILA_ALLOW_HOST_CODE"
_LARGEST_KEY = 1 << 20


@dataclass(frozen=True)
class Machine:
    """What an engine would run on: the builder whose runtime is here and its version, GPU name and capability."""

    builder: str
    version: str
    gpu: str
    capability: str


@dataclass(frozen=True)
class EngineKey:
    """What an engine was built with.

    Attributes:
        builder: What runs it: ``tensorrt``, ``tensorrt_rtx`` or ``aotinductor``.
        version: Of the builder.
        gpu: Name of the GPU it was built on; empty if it was built for capabilities, on any machine.
        capabilities: Compute capabilities it runs on, e.g. ``("8.6", "8.9")``.
        graph: `graph_hash` of what it was built from.
        engine: SHA-256 of the engine.
        options: What else went into it (profiles, workspace, flags).
    """

    builder: str
    version: str
    gpu: str
    capabilities: tuple[str, ...]
    graph: str
    engine: str
    options: dict[str, Any] = field(default_factory=dict)

    def save(self, engine: Path) -> None:
        """Write the key beside its engine."""
        write_json(key_path(engine), asdict(self))


def key_path(engine: Path) -> Path:
    """Where the key of an engine lies."""
    return engine.with_name(engine.name + ".json")


def engine_path(folder: Path, name: str, suffix: str = ".engine") -> Path:
    """Where the engine of a bundle's graph lies."""
    return folder / FOLDER / f"{name}{suffix}"


def mend(engine: Path) -> str:
    """The command that builds an engine anew."""
    folder = engine.parent.parent if engine.parent.name == FOLDER else engine.parent
    how = f" --builder {AOT} --checkpoint CHECKPOINT" if engine.suffix == ".pt2" else ""
    return f"run: lavila-fast engines build {folder}{how}"


def read_key(engine: Path) -> EngineKey:
    """The key beside an engine.

    Raises:
        BundleError: none there, or damaged.
    """
    path = key_path(engine)
    try:
        if path.stat().st_size > _LARGEST_KEY:
            raise ValueError("far too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        return _checked(EngineKey(**{**values, "capabilities": tuple(values["capabilities"])}))
    except FileNotFoundError:
        raise BundleError(
            f"{engine}: no key beside it, so nothing says what it was built for; {mend(engine)}"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise BundleError(f"{path}: damaged ({error}); {mend(engine)}") from error


def _checked(key: EngineKey) -> EngineKey:
    """The same; ValueError for the first field of another type than it should have."""
    words = {name: getattr(key, name) for name in ("builder", "version", "gpu", "graph", "engine")}
    for name, value in (*words.items(), *(("capabilities", one) for one in key.capabilities)):
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, not a text")
    if not isinstance(key.options, dict):
        raise ValueError(f"options are {key.options!r}, not names with values")
    return key


def graph_hash(graph: Path) -> str:
    """SHA-256 of a graph and of the weight files beside it that it names."""
    content = graph.read_bytes()
    digest = hashlib.sha256(content)
    names = {pattern.format(name=graph.name, stem=graph.stem) for pattern in WEIGHT_FILES}
    for name in sorted(names):
        if name.encode() in content and (graph.parent / name).is_file():
            digest.update(sha256(graph.parent / name).encode())
    return digest.hexdigest()


def misfits(key: EngineKey, machine: Machine, graph: str | None) -> list[str]:
    """Why an engine may not run on a machine or belongs to another graph; empty if it fits.

    A version-compatible engine runs on any TensorRT of its major version; a hardware-compatible one on capability 8.0
    and up. `graph` is `graph_hash` of the graph beside it, or None where there is none.
    """
    flags = key.options
    found = []
    if graph is not None and key.graph != graph:
        found.append("built from another graph than the one beside it")
    if key.builder != machine.builder:
        found.append(f"built with {key.builder}, to be run by {machine.builder}")
    elif _version(key.version, flags) != _version(machine.version, flags):
        found.append(f"built with {key.builder} {key.version}, here is {machine.version}")
    if flags.get("hardware_compatible"):
        if not machine.capability[:1].isdecimal() or _number(machine.capability) < (8, 0):  # a processor has a name
            found.append(f"built for capability 8.0 and up, here is {machine.gpu} ({machine.capability})")
    elif machine.capability not in key.capabilities or key.gpu not in ("", machine.gpu):
        wanted = f"{key.gpu or 'GPUs of capability'} ({', '.join(key.capabilities)})"
        found.append(f"built for {wanted}, here is {machine.gpu} ({machine.capability})")
    return found


def _version(version: str, flags: dict[str, Any]) -> str:
    return version.split(".")[0] if flags.get("version_compatible") else version


def _number(capability: str) -> tuple[int, ...]:
    return tuple(int(part) for part in capability.split("."))


def check_engine(engine: Path, graph: Path | None, machine: Machine) -> EngineKey:
    """The key of an engine that fits.

    Raises:
        BundleError: the engine or its key is missing, cut short or altered, or built for something else; the text
            gives the command that builds it anew.
    """
    if not engine.is_file():
        raise BundleError(f"{engine}: not built yet; {mend(engine)}")
    key = read_key(engine)
    if sha256(engine) != key.engine:
        raise BundleError(f"{engine}: not the file its key describes (hash differs); {mend(engine)}")
    if graph is not None and not graph.is_file():
        raise BundleError(f"{graph}: missing from the bundle; export it again")
    wrong = misfits(key, machine, None if graph is None else graph_hash(graph))
    if wrong:
        raise BundleError(f"{engine}: {'; '.join(wrong)}; {mend(engine)}")
    return key


def needs_host_code(engine: Path, key: EngineKey) -> bool:
    """Whether an engine brings code for the processor, which `ALLOW` must allow: a key can be written by anybody.

    Raises:
        BundleError: it does, and the user has not allowed it.
    """
    if not key.options.get("version_compatible"):
        return False
    require_trust(engine, key)
    return True


def trust(engine: Path) -> None:
    """Note that an engine was built here, by this user: its code may run."""
    note = cache_dir() / "built" / sha256(engine)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.touch()


def require_trust(engine: Path, key: EngineKey) -> None:
    """Refuse machine code that came with a bundle from elsewhere; a key can be written by anybody.

    Args:
        engine: The file; `check_engine` has compared it with its key.
        key: Its key.

    Raises:
        BundleError: it was not built here by this user, and `ALLOW` does not allow it.
    """
    cache = user_cache()
    if os.environ.get(ALLOW) != "1" and not (cache and is_there(cache / "built" / key.engine)):
        raise BundleError(
            f"{engine}: code for this computer that was not built on it; {mend(engine)}, "
            f"or set {ALLOW}=1 if you trust its maker"
        )


def load_builder(builder: str) -> Any:
    """The Python module of a builder.

    Raises:
        InputError: an unknown one.
        MissingExtraError: it is not installed.
    """
    if builder not in BUILDERS:
        raise InputError(f"no builder {builder!r}; choose {', '.join(BUILDERS)}")
    try:
        return import_module(builder)
    except ImportError as error:
        raise MissingExtraError(builder, BUILDERS[builder]) from error


def this_machine(builder: str, device: int = 0) -> Machine:
    """What engines of `builder` would run on here. Never run with a GPU.

    Raises:
        MissingExtraError: the builder or cuda-bindings is not installed.
        InputError: no GPU here, or no driver for it.
    """
    version = str(load_builder(builder).__version__)
    try:
        from cuda.bindings import runtime as cuda  # type: ignore[import-not-found]
    except ImportError as error:
        raise MissingExtraError("cuda-bindings", "tensorrt") from error
    code, properties = cuda.cudaGetDeviceProperties(device)
    if code != cuda.cudaError_t.cudaSuccess:
        raise InputError(f"no GPU {device} here ({code.name}); engines run and are built on the machine that has it")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Machine(builder, version, name.rstrip("\0"), f"{properties.major}.{properties.minor}")
